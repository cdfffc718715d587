"""Build an LMDB for Caffe's Data layer from an image list, as Caffe's convert_imageset does.

    python -m tools.build_lmdb --shuffle --resize_height=256 --resize_width=256 images/ train.txt train_lmdb

The positional arguments, flags, keys and records are the same as convert_imageset's (Caffe's
tools/convert_imageset.cpp, and ReadImageToDatum in src/caffe/util/io.cpp). Differences:
- A missing or broken image ends the run (--on_error fail), or is left out and reported (--on_error skip), or is treated
  as in Caffe and reported: stored as far as it can be decoded, otherwise left out (--on_error caffe). In encoded
  records this part of the image is re-encoded, where Caffe stores the damaged file.
- The order of --shuffle is determined by --seed.
- Images are decoded by one thread per core (--jobs); the database does not depend on the number of threads.
- The database is written atomically and contains a file build.json that says how it was built. After a kill, a full
  disk, or a broken image, the same command resumes the build; images that are stored already are not read again.
- Only LMDB is supported.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import cv2
import numpy as np

from transfer_caffe.formats.database_writer import DatabaseWriter
from transfer_caffe.formats.image_list import Line, read_list
from transfer_caffe.tools.images import Made, Settings, Task, library_messages, make_records
from transfer_caffe.utils.errors import ArgumentParser, UserError, command
from transfer_caffe.utils.files import refuse_existing, sha256, write_json
from transfer_caffe.utils.gflags import as_argparse
from transfer_caffe.utils.machine import cores
from transfer_caffe.utils.progress import track

ON_ERROR = ("fail", "skip", "caffe")
MAX_KEY = 511  # bytes; LMDB's limit
SWITCHES = ("gray", "shuffle", "check_size", "encoded", "scaled_decode")
TASK_BYTES = 2 << 20  # approximate size of the records that a thread builds at a time
MOST_IN_TASK = 64


@dataclass
class Result:
    """The result of a build: number of records, images left out, warnings of the decoder."""

    records: int = 0
    skipped: list[dict[str, Any]] = field(default_factory=list)
    warnings: list[dict[str, Any]] = field(default_factory=list)


class _Builder:
    """The image list, its order and the decoding of its images, for `build`."""

    def __init__(self, root: str, image_list: str, settings: Settings, on_error: str) -> None:
        """Read the image list and determine the order of the records."""
        self.root, self.image_list, self.settings, self.on_error = root, image_list, settings, on_error
        self.lines = read_list(image_list)
        self.list_sha256 = sha256(image_list)
        if root and not os.path.isdir(root):
            raise UserError(f"{root}: no such folder; the image list's paths should start there")
        self.order = np.arange(len(self.lines))
        if settings.shuffle:
            self.order = np.random.RandomState(settings.seed).permutation(len(self.lines))
        self.bytes = self.sized = 0

    def job(self) -> dict[str, Any]:
        """Return the description that an unfinished database must have in order to be resumed."""
        # the treatment of damaged images may differ: up to now there were none, or all of them were reported
        settings = vars(self.settings) | {"damaged": None}
        root = os.path.abspath(self.root or ".")
        return {"list_sha256": self.list_sha256, "root": root, **settings, "opencv": cv2.__version__}

    def size(self) -> int:
        """Return the size of the database in bytes (pages of 4096 per record); 0 if it depends on the images."""
        settings = self.settings
        if settings.encoded or settings.encode_type or not settings.resize_height:
            return 0
        record = settings.resize_height * settings.resize_width * (1 if settings.gray else 3)
        return len(self.lines) * (-(-record // 4096) * 4096 if record > 2000 else record)

    def path(self, line: int) -> str:
        """Return the path of the image in a line of the list (counted from 0)."""
        name = self.lines[line][0]
        return f"{self.root.rstrip('/')}/{name.lstrip('/')}" if self.root else name

    def tasks(self, first: int) -> Iterator[Task]:
        """Yield the images from position ``first`` on, in tasks of about `TASK_BYTES`."""
        while first < len(self.order):
            size = self.bytes // self.sized if self.sized else TASK_BYTES // 8
            count = min(max(TASK_BYTES // max(size, 1), 1), MOST_IN_TASK)
            lines = self.order[first : first + count].tolist()
            yield [(self.path(line), self.lines[line][1]) for line in lines]
            first += count

    def made(self, first: int, jobs: int) -> Iterator[tuple[int, Made]]:
        """Yield (line, the record of its image or the problem) from position ``first`` on."""
        everything = make_records(self.tasks(first), self.settings, jobs)
        for place, made in enumerate(everything, start=first):
            self.bytes, self.sized = self.bytes + len(made.record), self.sized + 1
            yield int(self.order[place]), made


def build(
    root: str, image_list: str, database: str, settings: Settings, on_error: str = "fail", jobs: int | None = None
) -> Result:
    """Write ``database`` from the images of ``image_list`` under ``root``.

    ``on_error``: the treatment of a missing or broken image: `fail` (UserError), `skip` (left out, with a line on
    standard error), or `caffe` (stored as far as it can be decoded, otherwise left out; also with a line).
    ``jobs``: number of decoding threads; None is one per core. An interrupted build with the same arguments is resumed.
    """
    refuse_existing(database, "choose another name, or remove it to build it again")
    builder = _Builder(root, image_list, replace(settings, damaged=on_error == "caffe"), on_error)
    lines, count = builder.lines, len(builder.lines)
    for warning in doubtful(lines, image_list):
        _say(f"warning: {warning}")
    result = Result()
    first: tuple[str, tuple[int, ...]] | None = None
    writer = DatabaseWriter(database, builder.job(), builder.size())
    try:
        # library_messages keeps the output of progress bars separate from the messages of decoders
        with library_messages(), writer:
            done = writer.state.get("place", 0)
            if done:
                result = Result(**writer.state["result"])
                first = writer.state["first"] and (writer.state["first"][0], tuple(writer.state["first"][1]))
                _say(f"{database}: resuming after the first {done} of {count} images, which are done")
            elif writer.started_over:
                _say(f"{database}: the unfinished build there has another list or other settings: starting over")
            progress = track(builder.made(done, jobs or cores()), count, "images", done)
            for place, (line, made) in enumerate(progress, start=done):
                name = lines[line][0]
                path = builder.path(line)
                where = f"{path} ({image_list}, line {line + 1})"
                key = f"{place:08d}_{name}".encode()
                problem = made.problem and made.problem + (f" ({made.heard})" if made.heard else "")
                if len(key) > MAX_KEY:
                    problem = f"the path is longer than the {MAX_KEY - 9} bytes that LMDB allows"
                if problem:
                    if on_error == "fail":
                        hint = (
                            "correct the image, the list, or the folder that its paths are relative to; or leave out "
                            "such images with --on_error skip (in a recipe `images: {on_error: skip}`)"
                        )
                        raise UserError(f"{where}: {problem}; {hint}")
                    result.skipped.append({"line": line + 1, "path": name, "reason": problem})
                    _say(f"left out: {where}: {problem}")
                    continue
                if made.heard and not made.damage:
                    result.warnings.append({"line": line + 1, "path": name, "message": made.heard})
                    _say(f"warning: {where}: stored, but its decoder reports: {made.heard}")
                if made.damage:
                    message = f"damaged, stored as far as it could be decoded ({made.heard or made.damage})"
                    result.warnings.append({"line": line + 1, "path": name, "message": message})
                    _say(f"warning: {where}: {message}")
                if settings.check_size:
                    first = first or (path, made.shape)
                    if made.shape != first[1]:
                        sizes = f"{_size(made.shape)}, but {first[0]} has {_size(first[1])}"
                        raise UserError(f"{where}: {sizes} (height x width x channels); resize, or omit --check_size")
                result.records += 1
                writer.state = {"place": place + 1, "result": vars(result), "first": first}
                writer.put(key, made.record)
            if not result.records:
                raise UserError(f"{image_list}: none of its {count} images could be read; is {root} the right folder?")
            write_json(writer.folder / "build.json", _provenance(builder, result))
    finally:
        if writer.kept:
            _say(f"{database}: not complete; the finished part is in {writer.folder}: the same command resumes it")
    return result


def _say(line: str) -> None:
    """Write a line to standard error."""
    print(line, file=sys.stderr, flush=True)


def doubtful(lines: Sequence[Line], image_list: str) -> list[str]:
    """Return warnings about duplicate images and labels without images, which are legal but seldom intended.

    Raise UserError for an image with two labels.
    """
    # compare hashes first: a dictionary of a million names takes 100 MB
    hashes = np.fromiter((hash(name) for name, _ in lines), np.int64, len(lines))
    values, counts = np.unique(hashes, return_counts=True)
    again = set(values[counts > 1].tolist())
    seen: dict[str, tuple[int, int]] = {}
    twice: list[str] = []
    for number, (name, label) in enumerate(lines, 1):
        if again and hash(name) in again:
            before, its_label = seen.setdefault(name, (number, label))
            if label != its_label:
                raise UserError(
                    f"{image_list}: line {number}: {name} has the label {label}, but {its_label} in line {before}; "
                    "remove one of the two lines"
                )
            if before != number:
                twice.append(f"line {number} repeats the image of line {before}")
    labels = np.unique(np.fromiter((label for _, label in lines), np.int64, len(lines)))
    result = []
    if twice:
        result.append(f"{image_list}: {twice[0]}" + (f" ({len(twice)} such lines)" if len(twice) > 1 else ""))
    if missing := int(labels[-1]) + 1 - len(labels):
        gap = int(np.flatnonzero(labels != np.arange(len(labels)))[0])
        more = f" ({missing} of the labels 0 to {labels[-1]} have none)" if missing > 1 else ""
        result.append(f"{image_list}: no image has the label {gap}{more}")
    return result


def _size(shape: tuple[int, ...]) -> str:
    """Return an image's shape as text: height x width x channels."""
    return "x".join(str(n) for n in (*shape, 1)[:3])


def _provenance(builder: _Builder, result: Result) -> dict[str, Any]:
    """Return the content of build.json: how the database was built. Real Caffe does not read it."""
    shuffled = builder.settings.shuffle
    return {
        "root": builder.root,
        "list": builder.image_list,
        "list_sha256": builder.list_sha256,
        "images": len(builder.lines),
        "records": result.records,
        **vars(builder.settings),
        "order": "numpy.random.RandomState(seed).permutation(images)" if shuffled else "as in the list",
        "on_error": builder.on_error,
        "skipped": result.skipped,
        "warnings": result.warnings,
        "opencv": cv2.__version__,
    }


def _parser() -> ArgumentParser:
    parser = ArgumentParser(
        prog="python -m tools.build_lmdb",
        description="Build an LMDB for Caffe from an image list. Flags can also be written as in Caffe: "
        "-shuffle, --shuffle=true, --noshuffle.",
        epilog="example: python -m tools.build_lmdb --shuffle --resize_height=256 --resize_width=256 "
        "images/ train.txt train_lmdb",
        allow_abbrev=False,
    )
    parser.add_argument("root", metavar="ROOT/", help="folder that the list's paths are relative to")
    parser.add_argument("list", metavar="LIST", help="image list with a line `relative/path label` per image")
    parser.add_argument("database", metavar="DB", help="folder of the new database")
    parser.add_argument("--gray", action="store_true", help="one channel instead of three")
    parser.add_argument("--shuffle", action="store_true", help="store the images in random order")
    parser.add_argument("--seed", type=int, default=0, help="seed of the random order (0)")
    parser.add_argument("--backend", default="lmdb", help="only lmdb is supported")
    parser.add_argument("--resize_width", type=int, default=0, metavar="PIXELS", help="width images are resized to")
    parser.add_argument("--resize_height", type=int, default=0, metavar="PIXELS", help="height images are resized to")
    parser.add_argument("--check_size", action="store_true", help="require that all images have the same size")
    parser.add_argument("--encoded", action="store_true", help="store image files instead of pixels")
    parser.add_argument(
        "--encode_type", default="", metavar="TYPE", help="store images as files of this type: png, jpg"
    )
    parser.add_argument(
        "--jpeg_quality", type=int, default=95, metavar="Q", help="quality of re-encoded JPEGs, 1 to 100 (95)"
    )
    parser.add_argument(
        "--scaled_decode",
        action="store_true",
        help="decode large JPEGs at 1/2, 1/4 or 1/8 of their size: faster, but with other pixels than convert_imageset",
    )
    parser.add_argument("--jobs", type=int, default=cores(), help="threads that decode images (one per core)")
    parser.add_argument(
        "--on_error", choices=ON_ERROR, default="fail", help="treatment of missing or broken images (fail)"
    )
    return parser


def require_lmdb(backend: str) -> None:
    """Raise UserError for Caffe's other backend, LevelDB."""
    if backend != "lmdb":
        raise UserError(f"--backend {backend}: only lmdb is supported, which every Caffe reads; omit the flag")


@command
def main(argv: list[str] | None = None) -> int | None:
    """Build a database from the command line."""
    options = _parser().parse_args(as_argparse(sys.argv[1:] if argv is None else argv, SWITCHES))
    require_lmdb(options.backend)
    settings = Settings(**{name: value for name, value in vars(options).items() if name in vars(Settings())})
    if options.jobs < 1:
        raise UserError(f"--jobs {options.jobs}: at least one thread is needed")
    result = build(options.root, options.list, options.database, settings, options.on_error, options.jobs)
    skipped = f", {len(result.skipped)} images left out" if result.skipped else ""
    print(f"{options.database}: {result.records} records{skipped}")


if __name__ == "__main__":
    sys.exit(main())
