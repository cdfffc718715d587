"""Write the mean image of an LMDB as a binaryproto for Caffe's mean_file, as Caffe's compute_image_mean does.

    python -m tools.compute_mean train_lmdb mean.binaryproto
    python -m tools.compute_mean A/train_lmdb A/mean.binaryproto B/train_lmdb B/mean.binaryproto ...

The arguments and, bit for bit, the file are the same as compute_image_mean's (Caffe's tools/compute_image_mean.cpp).
Beside it a checksum for `sha256sum -c` is written, mean.binaryproto.sha256. Views (`transfer_caffe.formats.views`) are
supported, too; several views of one database are read in one pass over it.
"""

from __future__ import annotations

import hashlib
import os
import sys
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import pairwise
from typing import NamedTuple

import cv2
import numpy as np

from transfer_caffe.formats.database import Database
from transfer_caffe.formats.datum import decode_datum
from transfer_caffe.formats.proto import array_to_blob, caffe_pb2
from transfer_caffe.formats.views import View, open_records
from transfer_caffe.tools.build_lmdb import require_lmdb
from transfer_caffe.utils.errors import ArgumentParser, UserError, command
from transfer_caffe.utils.files import refuse_existing, write_bytes, write_checksum
from transfer_caffe.utils.gflags import as_argparse
from transfer_caffe.utils.machine import cores, keep_freed_memory
from transfer_caffe.utils.progress import track

Records = Database | View
IN_TASK = 32  # records that a thread decodes at a time


class _Raw(NamedTuple):
    """A record before it is decoded, and the numbers of the sums that it is added to."""

    key: bytes
    value: bytes
    sums: list[int]


def mean_image(records: Records) -> np.ndarray:
    """Return the mean of all records, C x H x W float32; see `mean_images`."""
    return mean_images([records])[0]


def mean_images(everything: Sequence[Records], jobs: int | None = None) -> list[np.ndarray]:
    """Return the mean of each of several databases and views, C x H x W float32.

    Sums are computed in float32 in the order of the records, as in Caffe: exact up to 2^24, then with the same rounding
    as Caffe's. Views of one database are summed in one pass over it by ``jobs`` threads (default: one per core). Each
    thread decodes images, then adds a band of the rows, so the sums do not depend on the number of threads. Raise
    UserError, naming the record, if its shape differs from the first record's.
    """
    result: list[np.ndarray] = [np.empty(0)] * len(everything)
    for whole, members in _by_database(everything).items():
        sums = _sums(whole, [everything[place] for place in members], jobs or cores())
        for place, total in zip(members, sums, strict=True):
            result[place] = total / np.float32(len(everything[place]))
    return result


def _by_database(everything: Sequence[Records]) -> dict[Database | View, list[int]]:
    """Group the databases and views that can be summed in one pass: views of one database that follow its order."""
    groups: dict[Database | View, list[int]] = {}
    whole: dict[str, Database] = {}
    for place, records in enumerate(everything):
        key: Database | View = records
        if isinstance(records, Database):
            key = whole.setdefault(os.path.realpath(records.path), records)
        elif (np.diff(records.index) > 0).all():
            key = whole.setdefault(os.path.realpath(records.whole_path), records.database)
        groups.setdefault(key, []).append(place)
    return groups


def _sums(source: Records, members: Sequence[Records], jobs: int) -> list[np.ndarray]:
    """Return the sums of ``members``, whose records are all in ``source``, each C x H x W float32."""
    shape = source.shape
    totals = [np.zeros((shape[0] * shape[1], shape[2]), np.float32) for _ in members]
    bands = [slice(*ends) for ends in _ends(len(totals[0]), jobs)]

    def add(images: list[tuple[np.ndarray, list[int]]], band: slice) -> None:
        parts = [total[band] for total in totals]
        for image, sums in images:
            for each in sums:
                cv2.accumulate(image[band], parts[each])  # float32 plus the pixels, as Caffe's loop

    keep_freed_memory()
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        with ThreadPoolExecutor(jobs, thread_name_prefix="mean") as pool:
            for images in _decoded(source, _tasks(source, members), shape, pool, jobs):
                list(pool.map(add, [images] * len(bands), bands))
    finally:
        cv2.setNumThreads(threads)
    return [total.reshape(shape) for total in totals]


def _ends(rows: int, parts: int) -> list[tuple[int, int]]:
    """Divide ``rows`` into ``parts`` bands of about equal size; return the (start, end) of each."""
    edges = np.linspace(0, rows, min(parts, rows) + 1).astype(int).tolist()
    return list(pairwise(edges))


def _tasks(source: Records, members: Sequence[Records]) -> Iterator[list[_Raw]]:
    """Yield all records that are needed for a sum, in order, in tasks of `IN_TASK`."""
    # one bit per record of the source and sum: ImageNet's two dozen sets take 40 MB instead of 500
    needed = np.zeros((len(members), (len(source) + 7) // 8), np.uint8)
    for bits, member in zip(needed, members, strict=True):
        mask = np.zeros(len(source), bool)
        mask[member.index if isinstance(member, View) and source is not member else slice(None)] = True
        bits[:] = np.packbits(mask)
    union = np.flatnonzero(np.unpackbits(np.bitwise_or.reduce(needed), count=len(source)))
    task: list[_Raw] = []
    numbers = union.tolist()
    # a view is the source only if its records are not in the order of its database
    found = map(source.raw, numbers) if isinstance(source, View) else source.raw_at(numbers)
    for number, (key, value) in zip(numbers, track(found, len(union), "records"), strict=True):
        task.append(_Raw(key, value, np.flatnonzero(needed[:, number >> 3] >> (7 - (number & 7)) & 1).tolist()))
        if len(task) == IN_TASK:
            yield task
            task = []
    if task:
        yield task


def _decoded(
    source: Records, tasks: Iterable[list[_Raw]], shape: tuple[int, int, int], pool: ThreadPoolExecutor, jobs: int
) -> Iterator[list[tuple[np.ndarray, list[int]]]]:
    """Yield the images of each task as arrays (C * H) x W, each with the numbers of the sums that it is added to."""
    path = source.whole_path if isinstance(source, View) else source.path

    def decode(task: list[_Raw]) -> list[tuple[np.ndarray, list[int]]]:
        result = []
        for key, value, sums in task:
            where = f"{path}: record {key.decode(errors='backslashreplace')!r}"
            image = decode_datum(value, where)[0]
            if image.shape != shape:
                raise UserError(
                    f"{where}: {_size(image.shape)}, but the first record has {_size(shape)} (channels x height x "
                    "width); a mean image needs images of one size: build the database with --resize_height and "
                    "--resize_width"
                )
            result.append((np.ascontiguousarray(image).reshape(-1, shape[2]), sums))
        return result

    waiting: deque[Future[list[tuple[np.ndarray, list[int]]]]] = deque()
    for task in tasks:
        waiting.append(pool.submit(decode, task))
        if len(waiting) > 2 * jobs:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def _size(shape: tuple[int, ...]) -> str:
    """Return a shape as text, for example 3x256x256."""
    return "x".join(map(str, shape))


def mean_blob(mean: np.ndarray) -> caffe_pb2.BlobProto:
    """Return the BlobProto of a mean image as compute_image_mean writes it: num, channels, height, width, no shape."""
    blob = array_to_blob(mean)
    blob.ClearField("shape")
    blob.num = 1
    blob.channels, blob.height, blob.width = mean.shape
    return blob


def write_mean(path: str | os.PathLike[str], mean: np.ndarray) -> None:
    """Write a mean image and, beside it, its checksum.

    The checksum is written first. If the process is killed in between, there is no mean image without a checksum, and
    an old mean image does not match the new checksum and is refused.
    """
    data = mean_blob(mean).SerializeToString()
    write_checksum(path, hashlib.sha256(data).hexdigest())
    write_bytes(path, data)


def channel_means(mean: np.ndarray) -> list[float]:
    """Return the mean of each channel, summed in float32 in pixel order, as Caffe does for its log."""
    pixels = mean.reshape(mean.shape[0], -1)
    return [float(np.add.accumulate(channel, dtype=np.float32)[-1] / np.float32(channel.size)) for channel in pixels]


def _parser() -> ArgumentParser:
    parser = ArgumentParser(
        prog="python -m tools.compute_mean",
        description="Compute the mean image of an LMDB or a view, and print the mean of each channel. Several pairs "
        "of a database and a file can be given; views of one database are then read in one pass over it.",
        epilog="example: python -m tools.compute_mean train_lmdb mean.binaryproto",
        allow_abbrev=False,
    )
    parser.add_argument("database", metavar="DB", help="the LMDB, or a view")
    parser.add_argument("mean", nargs="?", metavar="MEAN", help="output file; without it the means are only printed")
    parser.add_argument("more", nargs="*", metavar="DB MEAN", help="further pairs of a database and an output file")
    parser.add_argument("--backend", default="lmdb", help="only lmdb is supported")
    parser.add_argument("--force", action="store_true", help="overwrite an existing file")
    return parser


@command
def main(argv: list[str] | None = None) -> int | None:
    """Compute mean images from the command line."""
    options = _parser().parse_args(as_argparse(sys.argv[1:] if argv is None else argv, ("force",)))
    require_lmdb(options.backend)
    if len(options.more) % 2:
        raise UserError(f"{options.more[-1]}: no output file for its mean; databases and files must be given in pairs")
    paths = [options.database, *options.more[::2]]
    files = [options.mean, *options.more[1::2]] if options.mean else []
    if len({os.path.realpath(file) for file in files}) < len(files):
        raise UserError("an output file is given twice; each database needs a different file")
    for file in files:
        there = os.path.dirname(os.path.realpath(file))
        if os.path.basename(file) != "mean.binaryproto" and any(
            os.path.exists(os.path.join(there, name)) for name in ("data.mdb", "view.json")
        ):
            raise UserError(f"{file}: this is in the folder of a database; choose a file outside of it")
    if not options.force:
        for file in files:
            refuse_existing(file, "choose another name, or overwrite it with --force")
    everything = [open_records(path) for path in paths]
    for place, (records, mean) in enumerate(zip(everything, mean_images(everything), strict=True)):
        if files:
            write_mean(files[place], mean)
        print(f"{paths[place]}: " * (len(paths) > 1) + f"{len(records)} records of {_size(mean.shape)}")
        for channel, value in enumerate(channel_means(mean)):
            print(f"mean_value channel [{channel}]: {value:.6g}")


if __name__ == "__main__":
    sys.exit(main())
