"""Write the mean image of an LMDB as the binaryproto that Caffe's mean_file reads, as Caffe's compute_image_mean does.

    python -m tools.compute_mean train_lmdb mean.binaryproto

Same arguments and, bit for bit, the same file as compute_image_mean (Caffe's tools/compute_image_mean.cpp); beside it
mean.binaryproto.sha256, which `sha256sum -c` checks.
"""

from __future__ import annotations

import hashlib
import os
import sys

import numpy as np

from transfer_caffe.datum import Database
from transfer_caffe.errors import ArgumentParser, UserError, command
from transfer_caffe.files import refuse_existing, write_bytes, write_checksum
from transfer_caffe.proto import array_to_blob, caffe_pb2

from .build_lmdb import require_lmdb
from .gflags import as_argparse
from .progress import track


def mean_image(database: Database) -> np.ndarray:
    """The mean of all records, C x H x W float32.

    Sums in float32 in the order of the records, as Caffe does: exact up to 2^24, then rounded as Caffe's are.
    UserError, naming it, for a record whose shape is not that of the first.
    """
    total = np.zeros(database.shape, np.float32)
    for key, image, _ in track(database, len(database), "records"):
        if image.shape != total.shape:
            sizes = f"{_size(image.shape)}, but the first record has {_size(total.shape)}"
            raise UserError(
                f"{database.path}: record {key.decode(errors='backslashreplace')!r}: {sizes} (channels x height x "
                "width); a mean needs one size: build the database with --resize_height and --resize_width"
            )
        total += image
    return total / np.float32(len(database))


def _size(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))


def mean_blob(mean: np.ndarray) -> caffe_pb2.BlobProto:
    """The BlobProto of a mean image: num, channels, height, width as compute_image_mean sets them, and no shape."""
    blob = array_to_blob(mean)
    blob.ClearField("shape")
    blob.num = 1
    blob.channels, blob.height, blob.width = mean.shape
    return blob


def write_mean(path: str | os.PathLike[str], mean: np.ndarray) -> None:
    """Write a mean image and, beside it, its checksum.

    The checksum comes first: killed in between, this leaves no mean without one, and an old mean is refused.
    """
    data = mean_blob(mean).SerializeToString()
    write_checksum(path, hashlib.sha256(data).hexdigest())
    write_bytes(path, data)


def channel_means(mean: np.ndarray) -> list[float]:
    """The mean of each channel, summed in float32 in pixel order as Caffe does for its log."""
    pixels = mean.reshape(mean.shape[0], -1)
    return [float(np.add.accumulate(channel, dtype=np.float32)[-1] / np.float32(channel.size)) for channel in pixels]


def _parser() -> ArgumentParser:
    parser = ArgumentParser(
        prog="python -m tools.compute_mean",
        description="Compute the mean image of an LMDB, and print the mean of each channel.",
        epilog="example: python -m tools.compute_mean train_lmdb mean.binaryproto",
        allow_abbrev=False,
    )
    parser.add_argument("database", metavar="DB", help="the LMDB")
    parser.add_argument("mean", nargs="?", metavar="MEAN", help="file to write; without it the means are printed only")
    parser.add_argument("--backend", default="lmdb", help="lmdb, the only one")
    parser.add_argument("--force", action="store_true", help="write over an existing file")
    return parser


@command
def main(argv: list[str] | None = None) -> int | None:
    """Compute a mean image from the command line."""
    options = _parser().parse_args(as_argparse(sys.argv[1:] if argv is None else argv, ("force",)))
    require_lmdb(options.backend)
    if options.mean and not options.force:
        refuse_existing(options.mean, "choose another name, or write over it with --force")
    database = Database(options.database)
    mean = mean_image(database)
    if options.mean:
        write_mean(options.mean, mean)
    print(f"{len(database)} records of {_size(mean.shape)}")
    for channel, value in enumerate(channel_means(mean)):
        print(f"mean_value channel [{channel}]: {value:.6g}")


if __name__ == "__main__":
    sys.exit(main())
