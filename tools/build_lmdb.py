"""Make the LMDB that Caffe's Data layer reads from an image list, as Caffe's convert_imageset does.

    python -m tools.build_lmdb --shuffle --resize_height=256 --resize_width=256 images/ train.txt train_lmdb

Same positional arguments, flags, keys and records as convert_imageset (Caffe's tools/convert_imageset.cpp, and
ReadImageToDatum in src/caffe/util/io.cpp). Different from it:
- An image that is missing or broken ends the run (--on_error fail), or is left out and named (--on_error skip).
- The order that --shuffle gives follows from --seed.
- The database appears when it is complete, or not at all, and holds a file build.json that says how it was made.
- LMDB only.
"""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import cv2
import numpy as np

from transfer_caffe.data_prep.lists import read_list
from transfer_caffe.datum import DatabaseWriter, encoded_datum, raw_datum
from transfer_caffe.errors import ArgumentParser, UserError, command
from transfer_caffe.files import refuse_existing, sha256, write_json

from .gflags import as_argparse
from .progress import track

MAX_SEED = 2**32 - 1
MAX_KEY = 511  # bytes; LMDB's limit
SWITCHES = ("gray", "shuffle", "check_size", "encoded")


class BrokenImage(Exception):
    """An image that cannot be read or decoded, and why."""


@dataclass(frozen=True)
class Settings:
    """How images are stored; the names are convert_imageset's flags."""

    gray: bool = False
    shuffle: bool = False
    seed: int = 0
    resize_height: int = 0
    resize_width: int = 0
    check_size: bool = False
    encoded: bool = False
    encode_type: str = ""

    def __post_init__(self) -> None:
        """UserError for settings that make no sense; convert_imageset ignores half a size."""
        if min(self.resize_height, self.resize_width) < 0:
            raise UserError("--resize_height and --resize_width must not be negative")
        if bool(self.resize_height) != bool(self.resize_width):
            raise UserError("--resize_height and --resize_width go together: give both, or none to keep sizes")
        if not 0 <= self.seed <= MAX_SEED:
            raise UserError(f"--seed {self.seed}: a seed is a number from 0 to {MAX_SEED}")
        if self.encode_type and not _can_encode(self.encode_type):
            raise UserError(f"--encode_type {self.encode_type}: unknown image type; jpg and png are usual")


@dataclass
class Result:
    """What a build made: number of records, images left out, what the decoder complained about."""

    records: int = 0
    skipped: list[dict[str, Any]] = field(default_factory=list)
    warnings: list[dict[str, Any]] = field(default_factory=list)


def _can_encode(kind: str) -> bool:
    try:
        return cv2.haveImageWriter(f"x.{kind}")
    except cv2.error:
        return False


def read_image(path: str, settings: Settings) -> tuple[np.ndarray, bytes]:
    """Decode and resize as ReadImageToCVMat: an H x W x 3 (BGR) or, with gray, H x W image; and the file's bytes.

    Decoding from memory tells a truncated JPEG, which decoding from a file fills with gray. Raises BrokenImage.
    """
    try:
        with open(path, "rb") as file:
            data = file.read()
    except OSError as error:
        raise BrokenImage(error.strerror or str(error)) from None
    try:
        flag = cv2.IMREAD_GRAYSCALE if settings.gray else cv2.IMREAD_COLOR
        image = cv2.imdecode(np.frombuffer(data, np.uint8), flag) if data else None
    except cv2.error as error:
        raise BrokenImage(f"cannot be decoded: {error.err}") from None
    if image is None:
        raise BrokenImage("cannot be decoded: not an image, or truncated" if data else "the file is empty")
    if settings.resize_height:
        image = cv2.resize(image, (settings.resize_width, settings.resize_height))  # bilinear, as Caffe's
    return image, data


def image_record(path: str, label: int, settings: Settings) -> tuple[bytes, tuple[int, ...]]:
    """The serialized Datum of an image file, as ReadImageToDatum makes it, and the shape of the stored image.

    Encoded records hold the file's own bytes where it is of the type asked for and not resized (with gray, too: then
    real Caffe stores the colour file); else the image, encoded anew.
    """
    image, data = read_image(path, settings)
    if not (settings.encoded or settings.encode_type):
        return raw_datum(image, label), image.shape
    extension = os.path.splitext(path)[1].lower()[1:]
    if not (kind := settings.encode_type or extension):
        raise BrokenImage("its name has no ending that says how to encode it: give --encode_type")
    if not settings.resize_height and (extension == kind.lower() or (extension, kind) == ("jpeg", "jpg")):
        return encoded_datum(data, label), image.shape
    if not _can_encode(kind):
        raise BrokenImage(f"cannot be encoded as .{kind}: give --encode_type")
    return encoded_datum(cv2.imencode(f".{kind}", image)[1].tobytes(), label), image.shape


@contextlib.contextmanager
def library_messages() -> Iterator[Any]:
    """Collect what libraries (libjpeg, libpng) write to file descriptor 2; yields a function that takes it, as text.

    libjpeg reports damage inside a JPEG there and nowhere else, without the file's name. Python's own sys.stderr
    goes on as before.
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


def build(root: str, image_list: str, database: str, settings: Settings, on_error: str = "fail") -> Result:
    """Write ``database`` from the images of ``image_list`` under ``root``.

    ``on_error``: what an image that is missing or broken does: `fail` (UserError) or `skip` (a line on standard error).
    """
    refuse_existing(database, "choose another name, or remove it to build it again")
    lines = read_list(image_list)
    if root and not os.path.isdir(root):
        raise UserError(f"{root}: no such folder; the image list's paths should start there")
    order = np.arange(len(lines))
    if settings.shuffle:
        order = np.random.RandomState(settings.seed).permutation(len(lines))
    result = Result()
    first: tuple[str, tuple[int, ...]] | None = None
    with library_messages() as messages, DatabaseWriter(database) as writer:
        for place, line in enumerate(track(order.tolist(), len(lines), "images")):
            name, label = lines[line]
            path = f"{root.rstrip('/')}/{name.lstrip('/')}" if root else name
            where = f"{path} ({image_list}, line {line + 1})"
            key = f"{place:08d}_{name}".encode()
            try:
                if len(key) > MAX_KEY:
                    raise BrokenImage(f"the path is longer than the {MAX_KEY - 9} bytes that LMDB takes")
                record, shape = image_record(path, label, settings)
            except BrokenImage as error:
                heard = messages()
                reason = f"{error} ({heard})" if heard else str(error)
                if on_error == "fail":
                    hint = "repair the image or the list, or leave such images out with --on_error skip"
                    raise UserError(f"{where}: {reason}; {hint}") from None
                result.skipped.append({"line": line + 1, "path": name, "reason": reason})
                print(f"left out: {where}: {reason}", file=sys.stderr, flush=True)
                continue
            if heard := messages():
                result.warnings.append({"line": line + 1, "path": name, "message": heard})
                print(f"warning: {where}: stored, but its decoder says: {heard}", file=sys.stderr, flush=True)
            if settings.check_size:
                first = first or (path, shape)
                if shape != first[1]:
                    sizes = f"{_size(shape)}, but {first[0]} has {_size(first[1])}"
                    raise UserError(f"{where}: {sizes} (height x width x channels); resize, or drop --check_size")
            writer.put(key, record)
            result.records += 1
        if not result.records:
            raise UserError(f"{image_list}: none of its {len(lines)} images could be read; is {root} the right folder?")
        write_json(writer.folder / "build.json", _provenance(root, image_list, settings, on_error, len(lines), result))
    return result


def _size(shape: tuple[int, ...]) -> str:
    return "x".join(str(n) for n in (*shape, 1)[:3])


def _provenance(
    root: str, image_list: str, settings: Settings, on_error: str, images: int, result: Result
) -> dict[str, Any]:
    """How the database was made; real Caffe does not look at it."""
    order = "numpy.random.RandomState(seed).permutation(images)" if settings.shuffle else "that of the list"
    return {
        "root": root,
        "list": image_list,
        "list_sha256": sha256(image_list),
        "images": images,
        "records": result.records,
        **vars(settings),
        "order": order,
        "on_error": on_error,
        "skipped": result.skipped,
        "warnings": result.warnings,
        "opencv": cv2.__version__,
    }


def _parser() -> ArgumentParser:
    parser = ArgumentParser(
        prog="python -m tools.build_lmdb",
        description="Make the LMDB that Caffe reads from an image list. Flags are spelled as in Caffe, too: "
        "-shuffle, --shuffle=true, --noshuffle.",
        epilog="example: python -m tools.build_lmdb --shuffle --resize_height=256 --resize_width=256 "
        "images/ train.txt train_lmdb",
        allow_abbrev=False,
    )
    parser.add_argument("root", metavar="ROOT/", help="folder that the list's paths start from")
    parser.add_argument("list", metavar="LIST", help="image list, a line `relative/path label` an image")
    parser.add_argument("database", metavar="DB", help="folder to make")
    parser.add_argument("--gray", action="store_true", help="one channel instead of three")
    parser.add_argument("--shuffle", action="store_true", help="store the images in random order")
    parser.add_argument("--seed", type=int, default=0, help="which random order (0)")
    parser.add_argument("--backend", default="lmdb", help="lmdb, the only one")
    parser.add_argument("--resize_width", type=int, default=0, metavar="PIXELS", help="width images are resized to")
    parser.add_argument("--resize_height", type=int, default=0, metavar="PIXELS", help="height images are resized to")
    parser.add_argument("--check_size", action="store_true", help="all images must have the same size")
    parser.add_argument("--encoded", action="store_true", help="store image files instead of pixels")
    parser.add_argument(
        "--encode_type", default="", metavar="TYPE", help="store images as files of this type: png, jpg"
    )
    parser.add_argument(
        "--on_error", choices=("fail", "skip"), default="fail", help="what a missing or broken image does (fail)"
    )
    return parser


def require_lmdb(backend: str) -> None:
    """UserError for Caffe's other backend."""
    if backend != "lmdb":
        raise UserError(f"--backend {backend}: only lmdb is supported, which every Caffe reads; leave the flag out")


@command
def main(argv: list[str] | None = None) -> int | None:
    """Build a database from the command line."""
    options = _parser().parse_args(as_argparse(sys.argv[1:] if argv is None else argv, SWITCHES))
    require_lmdb(options.backend)
    settings = Settings(**{name: getattr(options, name) for name in Settings.__dataclass_fields__})
    result = build(options.root, options.list, options.database, settings, options.on_error)
    skipped = f", {len(result.skipped)} images left out" if result.skipped else ""
    print(f"{options.database}: {result.records} records{skipped}")


if __name__ == "__main__":
    sys.exit(main())
