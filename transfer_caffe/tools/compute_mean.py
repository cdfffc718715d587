"""Write the mean image of an LMDB as the binaryproto that Caffe's mean_file reads, as Caffe's compute_image_mean does.

    python -m tools.compute_mean train_lmdb mean.binaryproto
    python -m tools.compute_mean A/train_lmdb A/mean.binaryproto B/train_lmdb B/mean.binaryproto ...

Same arguments and, bit for bit, the same file as compute_image_mean (Caffe's tools/compute_image_mean.cpp); beside it
mean.binaryproto.sha256, which `sha256sum -c` checks. Views are read, too
(`transfer_caffe.formats.views`), and several of one database in one pass over it.
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
    """A record before it is decoded, and the sums that it goes into."""

    key: bytes
    value: bytes
    sums: list[int]


def mean_image(records: Records) -> np.ndarray:
    """The mean of all records, C x H x W float32: `mean_images` of one."""
    return mean_images([records])[0]


def mean_images(everything: Sequence[Records], jobs: int | None = None) -> list[np.ndarray]:
    """The mean of each of several databases and views, C x H x W float32.

    Sums in float32 in the order of the records, as Caffe does: exact up to 2^24, then rounded as Caffe's are. Views of
    one database are summed in one pass over it, by ``jobs`` threads (one a core): each decodes, and then adds up a band
    of the rows, so that no sum depends on how many they are. UserError, naming it, for a record whose shape is not that
    of the first.
    """
    result: list[np.ndarray] = [np.empty(0)] * len(everything)
    for whole, members in _by_database(everything).items():
        sums = _sums(whole, [everything[place] for place in members], jobs or cores())
        for place, total in zip(members, sums, strict=True):
            result[place] = total / np.float32(len(everything[place]))
    return result


def _by_database(everything: Sequence[Records]) -> dict[Database | View, list[int]]:
    """Which of them can be summed together: those of one database whose records come in its order."""
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
    """The sums of ``members``, whose records are all in ``source``, each C x H x W float32."""
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
    edges = np.linspace(0, rows, min(parts, rows) + 1).astype(int).tolist()
    return list(pairwise(edges))


def _tasks(source: Records, members: Sequence[Records]) -> Iterator[list[_Raw]]:
    """All records that somebody needs, in order, in pieces of `IN_TASK`."""
    # for each record of the source a bit for each sum, so that ImageNet's two dozen sets take 40 MB and not 500
    needed = np.zeros((len(members), (len(source) + 7) // 8), np.uint8)
    for bits, member in zip(needed, members, strict=True):
        mask = np.zeros(len(source), bool)
        mask[member.index if isinstance(member, View) and source is not member else slice(None)] = True
        bits[:] = np.packbits(mask)
    union = np.flatnonzero(np.unpackbits(np.bitwise_or.reduce(needed), count=len(source)))
    task: list[_Raw] = []
    numbers = union.tolist()
    # a view that is read by itself is one whose records do not ascend
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
    """The images of each task as arrays (C * H) x W, each with the sums that it goes into."""
    path = source.whole_path if isinstance(source, View) else source.path

    def decode(task: list[_Raw]) -> list[tuple[np.ndarray, list[int]]]:
        result = []
        for key, value, sums in task:
            where = f"{path}: record {key.decode(errors='backslashreplace')!r}"
            image = decode_datum(value, where)[0]
            if image.shape != shape:
                raise UserError(
                    f"{where}: {_size(image.shape)}, but the first record has {_size(shape)} (channels x height x "
                    "width); a mean needs one size: build the database with --resize_height and --resize_width"
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
        description="Compute the mean image of an LMDB or a view, and print the mean of each channel. Several pairs "
        "of a database and a file are worked on together: views of one database in one pass over it.",
        epilog="example: python -m tools.compute_mean train_lmdb mean.binaryproto",
        allow_abbrev=False,
    )
    parser.add_argument("database", metavar="DB", help="the LMDB, or a view")
    parser.add_argument("mean", nargs="?", metavar="MEAN", help="file to write; without it the means are printed only")
    parser.add_argument("more", nargs="*", metavar="DB MEAN", help="more of them")
    parser.add_argument("--backend", default="lmdb", help="lmdb, the only one")
    parser.add_argument("--force", action="store_true", help="write over an existing file")
    return parser


@command
def main(argv: list[str] | None = None) -> int | None:
    """Compute mean images from the command line."""
    options = _parser().parse_args(as_argparse(sys.argv[1:] if argv is None else argv, ("force",)))
    require_lmdb(options.backend)
    if len(options.more) % 2:
        raise UserError(f"{options.more[-1]}: no file to write its mean to; databases and files come in pairs")
    paths = [options.database, *options.more[::2]]
    files = [options.mean, *options.more[1::2]] if options.mean else []
    if len({os.path.realpath(file) for file in files}) < len(files):
        raise UserError("a file to write is named twice")
    for file in files:
        there = os.path.dirname(os.path.realpath(file))
        if os.path.basename(file) != "mean.binaryproto" and any(
            os.path.exists(os.path.join(there, name)) for name in ("data.mdb", "view.json")
        ):
            raise UserError(f"{file}: this is in the folder of a database; name a file outside of it")
    if not options.force:
        for file in files:
            refuse_existing(file, "choose another name, or write over it with --force")
    everything = [open_records(path) for path in paths]
    for place, (records, mean) in enumerate(zip(everything, mean_images(everything), strict=True)):
        if files:
            write_mean(files[place], mean)
        print(f"{paths[place]}: " * (len(paths) > 1) + f"{len(records)} records of {_size(mean.shape)}")
        for channel, value in enumerate(channel_means(mean)):
            print(f"mean_value channel [{channel}]: {value:.6g}")


if __name__ == "__main__":
    sys.exit(main())
