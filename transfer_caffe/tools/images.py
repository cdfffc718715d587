"""Reading of image files and their conversion to records, as in Caffe's tools.

    record, shape = image_record("images/cat.jpg", 3, Settings(resize_height=256, resize_width=256))

Caffe's sources: ReadImageToCVMat and ReadImageToDatum in src/caffe/util/io.cpp.
"""

from __future__ import annotations

import contextlib
import os
import stat
import sys
import tempfile
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any, NamedTuple

import cv2
import numpy as np

from transfer_caffe.formats.datum import encoded_datum, raw_datum
from transfer_caffe.utils.errors import UserError
from transfer_caffe.utils.machine import keep_freed_memory

MAX_SEED = 2**32 - 1
LEAST_SCALE = 0.6
"""With scaled_decode, both sides of the decoded JPEG are at least this fraction of the requested size."""


AHEAD = 16
"""Number of tasks, in addition to two per thread, that are decoded in advance while records are written to the disk."""


class BrokenImage(Exception):
    """An image cannot be read or decoded; the message says why."""


@dataclass(frozen=True)
class Settings:
    """How images are stored. The names are convert_imageset's flags, with some additional ones.

    ``seed`` determines the order of ``shuffle``. ``jpeg_quality`` is used for re-encoded images (Caffe uses OpenCV's
    default, 95). With ``scaled_decode`` libjpeg decodes at 1/2, 1/4 or 1/8 of the size: see `_how_to_decode`. With
    ``damaged`` truncated JPEGs are stored as in Caffe, gray where data is missing (re-encoded in encoded records).
    """

    gray: bool = False
    shuffle: bool = False
    seed: int = 0
    resize_height: int = 0
    resize_width: int = 0
    check_size: bool = False
    encoded: bool = False
    encode_type: str = ""
    jpeg_quality: int = 95
    scaled_decode: bool = False
    damaged: bool = False

    def __post_init__(self) -> None:
        """Raise UserError for invalid settings. (convert_imageset ignores a height without a width.)"""
        if min(self.resize_height, self.resize_width) < 0:
            raise UserError("--resize_height and --resize_width must not be negative")
        if bool(self.resize_height) != bool(self.resize_width):
            raise UserError("--resize_height and --resize_width belong together: give both, or none to keep the sizes")
        if not 0 <= self.seed <= MAX_SEED:
            raise UserError(f"--seed {self.seed}: the seed must be a number from 0 to {MAX_SEED}")
        if self.encode_type and not _can_encode(self.encode_type):
            raise UserError(f"--encode_type {self.encode_type}: unknown image type; jpg and png are usual")
        if not 1 <= self.jpeg_quality <= 100:
            raise UserError(f"--jpeg_quality {self.jpeg_quality}: the quality must be a number from 1 to 100")
        if self.scaled_decode and not self.resize_height:
            raise UserError("--scaled_decode is for images that are resized: give --resize_height and --resize_width")


def _can_encode(kind: str) -> bool:
    """Return whether OpenCV can encode images as files of type ``kind``."""
    if kind.lower() in ("gif", "avif"):  # supported by OpenCV 5, but not by Caffe's OpenCV
        return False
    try:
        return cv2.haveImageWriter(f"x.{kind}")
    except cv2.error:
        return False


def read_image(path: str, settings: Settings, from_file: bool = False) -> tuple[np.ndarray, bytes]:
    """Decode and resize an image as ReadImageToCVMat does; return it and the file's bytes.

    The image is H x W x 3 (BGR) or, with gray, H x W. Decoding from memory detects a truncated JPEG; decoding
    ``from_file``, as Caffe does, fills it with gray. Raise BrokenImage if the image cannot be read or decoded.
    """
    try:
        # without O_NONBLOCK, opening a pipe would wait for a writer
        with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise BrokenImage("not a file")
            data = file.read()
    except OSError as error:
        raise BrokenImage(error.strerror or str(error)) from None
    if not data:
        raise BrokenImage("the file is empty")
    try:
        how = _how_to_decode(data, settings)
        image = cv2.imread(path, how) if from_file else cv2.imdecode(np.frombuffer(data, np.uint8), how)
    except cv2.error as error:
        raise BrokenImage(f"cannot be decoded: {error.err}") from None
    if image is None:
        raise BrokenImage("cannot be decoded: not an image, or truncated")
    if settings.resize_height:
        image = cv2.resize(image, (settings.resize_width, settings.resize_height))  # bilinear, as in Caffe
    return image, data


_FULL, _REDUCED = (
    {False: cv2.IMREAD_COLOR, True: cv2.IMREAD_GRAYSCALE},
    {
        2: {False: cv2.IMREAD_REDUCED_COLOR_2, True: cv2.IMREAD_REDUCED_GRAYSCALE_2},
        4: {False: cv2.IMREAD_REDUCED_COLOR_4, True: cv2.IMREAD_REDUCED_GRAYSCALE_4},
        8: {False: cv2.IMREAD_REDUCED_COLOR_8, True: cv2.IMREAD_REDUCED_GRAYSCALE_8},
    },
)


def _how_to_decode(data: bytes, settings: Settings) -> int:
    """Return OpenCV's flag for decoding an image.

    With scaled_decode it selects the smallest size of a JPEG that is at least `LEAST_SCALE` of the requested size.
    libjpeg then saves work on detail that resizing would remove, but the pixels differ: docs/benchmarks.md has
    measurements of both effects.
    """
    size = jpeg_size(data) if settings.scaled_decode else None
    if size is not None:
        for divisor, flags in sorted(_REDUCED.items(), reverse=True):
            # an image that is rotated by its EXIF data has its sides swapped: both orientations must be large enough
            if min(size) >= LEAST_SCALE * divisor * max(settings.resize_height, settings.resize_width):
                return flags[settings.gray]
    return _FULL[settings.gray]


def jpeg_size(data: bytes) -> tuple[int, int] | None:
    """Return (height, width) from a JPEG's frame header; None if it is not a JPEG or is damaged before that header."""
    if data[:2] != b"\xff\xd8":
        return None
    place = 2
    while place + 9 <= len(data) and data[place] == 0xFF:
        kind = data[place + 1]
        if kind == 0xFF:  # a fill byte
            place += 1
        elif 0xC0 <= kind <= 0xCF and kind not in (0xC4, 0xC8, 0xCC):
            return int.from_bytes(data[place + 5 : place + 7], "big"), int.from_bytes(
                data[place + 7 : place + 9], "big"
            )
        else:
            place += 2 + int.from_bytes(data[place + 2 : place + 4], "big")
    return None


def image_record(path: str, label: int, settings: Settings, from_file: bool = False) -> tuple[bytes, tuple[int, ...]]:
    """Return the serialized Datum of an image file, as ReadImageToDatum builds it, and the shape of the stored image.

    Encoded records contain the file's own bytes if it has the requested type and is not resized (even with gray: real
    Caffe then stores the colour file, too). Otherwise the image is re-encoded. So is the part of a truncated image that
    was decoded ``from_file``: its own bytes (which real Caffe stores) cannot be decoded from a record.
    """
    image, data = read_image(path, settings, from_file)
    if not (settings.encoded or settings.encode_type):
        return raw_datum(image, label), image.shape
    extension = os.path.splitext(path)[1].lower()[1:]
    if not (kind := settings.encode_type or extension):
        raise BrokenImage("its name has no extension that determines the encoding: give --encode_type")
    if not settings.resize_height and (extension == kind.lower() or (extension, kind) == ("jpeg", "jpg")):
        if not from_file:
            return encoded_datum(data, label), image.shape
        stored = cv2.imread(path, cv2.IMREAD_ANYCOLOR)  # with the channels of the file, as the other records
        if stored is None:
            raise BrokenImage("cannot be decoded: not an image, or truncated")
    else:
        stored = image
    if not _can_encode(kind):
        raise BrokenImage(f"cannot be encoded as .{kind}: give --encode_type")
    quality = [cv2.IMWRITE_JPEG_QUALITY, settings.jpeg_quality] if kind.lower() in ("jpg", "jpeg") else []
    return encoded_datum(cv2.imencode(f".{kind}", stored, quality)[1].tobytes(), label), image.shape


class Made(NamedTuple):
    """The result for one image: its record and shape, or the problem; its damage; the messages of its decoder."""

    record: bytes
    shape: tuple[int, ...]
    problem: str = ""
    damage: str = ""
    heard: str = ""


def make_record(path: str, label: int, settings: Settings) -> Made:
    """Return the result of `image_record`, or its problem. The caller collects the messages of the decoder."""
    try:
        return Made(*image_record(path, label, settings))
    except BrokenImage as error:
        if settings.damaged:
            with contextlib.suppress(BrokenImage):
                return Made(*image_record(path, label, settings, from_file=True), damage=str(error))
        return Made(b"", (), str(error))


Task = Sequence[tuple[str, int]]
"""The images that one thread reads at a time: paths and labels."""


def make_records(tasks: Iterable[Task], settings: Settings, jobs: int) -> Iterator[Made]:
    """Yield the result for each image of each task, in order, computed by ``jobs`` threads.

    Threads are used because OpenCV releases the GIL, and because processes would need more time to pass on a record
    than to build it. But threads share file descriptor 2, where libjpeg and libpng report problems without naming the
    image. When a message appears, the tasks in progress are completed, and their images are read again one by one.
    """
    tasks = iter(tasks)
    waiting: deque[tuple[Task, Future[list[Made]] | list[Made]]] = deque()
    keep_freed_memory()
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)  # one of this pool's threads per image, and no threads of OpenCV
    pool = ThreadPoolExecutor(jobs, thread_name_prefix="images")
    try:
        with library_messages() as messages:

            def one_by_one(task: Task) -> list[Made]:
                messages()  # discard earlier messages
                return [make_record(*image, settings)._replace(heard=messages()) for image in task]

            while True:
                while len(waiting) < 2 * jobs + AHEAD and (task := next(tasks, None)):
                    waiting.append((task, pool.submit(_each, task, settings)))
                if not waiting:
                    return
                task, made = waiting.popleft()
                if isinstance(made, Future):
                    made = made.result()
                    if messages():
                        wait(future for _, future in waiting if isinstance(future, Future))
                        made = one_by_one(task)
                        waiting = deque((each, one_by_one(each)) for each, _ in waiting)
                yield from made
    finally:
        pool.shutdown(cancel_futures=True)
        cv2.setNumThreads(threads)


def _each(task: Task, settings: Settings) -> list[Made]:
    """Return the results for the images of a task."""
    return [make_record(path, label, settings) for path, label in task]


@contextlib.contextmanager
def library_messages() -> Iterator[Any]:
    """Capture what libraries (libjpeg, libpng) write to file descriptor 2.

    Yield a function that returns the captured text and clears it. libjpeg reports damage inside a JPEG only there,
    without the file's name. Python's own sys.stderr is not affected.
    """
    sys.stderr.flush()
    saved = os.dup(2)
    before = sys.stderr
    with tempfile.TemporaryFile() as collected:

        def take() -> str:
            if not (size := os.lseek(collected.fileno(), 0, os.SEEK_CUR)):
                return ""
            text = os.pread(collected.fileno(), size, 0).decode(errors="replace")
            os.lseek(collected.fileno(), 0, os.SEEK_SET)
            return " ".join(text.split())

        try:
            if before is sys.__stderr__:
                sys.stderr = open(saved, "w", buffering=1, errors="backslashreplace", closefd=False)  # noqa: SIM115
            os.dup2(collected.fileno(), 2)
            yield take
        finally:
            sys.stderr.flush()
            os.dup2(saved, 2)
            sys.stderr = before
            os.close(saved)
