"""Extract the LMDB of a split, or a view, from the LMDB of all images, so that one database serves all splits.

    python -m tools.split_lmdb whole/train_lmdb random0/A/train.txt random0/A/train_lmdb
    python -m tools.split_lmdb --view whole/train_lmdb random0/A/train.txt random0/A/train_lmdb

The split's image list gives the images and their labels. No image is decoded, and no image file is needed. An LMDB
(also for real Caffe) contains copies of the records, with keys numbered from 0 as in convert_imageset. A view
(`transfer_caffe.formats.views`, for the embedded engine) contains only their numbers and labels. In both cases the
records have the order of the complete database, including its shuffling.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from transfer_caffe.formats.database import Database, require_sound_database
from transfer_caffe.formats.database_writer import DatabaseWriter
from transfer_caffe.formats.datum import relabelled
from transfer_caffe.formats.image_list import Line, read_list
from transfer_caffe.formats.views import is_view, made_from, whole_of, write_view
from transfer_caffe.utils.errors import ArgumentParser, UserError, command
from transfer_caffe.utils.files import checksum_path, read_text, refuse_existing, sha256, write_json
from transfer_caffe.utils.progress import track


def select(whole: Database, lines: Sequence[Line], image_list: str) -> tuple[np.ndarray, list[int]]:
    """Find the records of ``whole`` with the list's images.

    Return their numbers and new labels in the database's order (int32, records x 2), and the numbers of the lines whose
    images are not in the database because they were broken. Raise UserError for any other missing image.
    """
    wanted: dict[str, int] = {}  # path -> its line, counted from 0
    again: dict[str, list[int]] = {}  # path -> its further lines, if it has several
    for number, (name, _) in enumerate(lines):
        if wanted.setdefault(name, number) != number:
            again.setdefault(name, []).append(number)
    entries = np.empty((len(lines), 2), np.int32)
    found = 0
    for number, key in enumerate(whole.keys()):
        name = _path_of(key, whole.path)
        line = wanted.pop(name, None)
        if line is not None:
            entries[found] = number, lines[line][1]
            found += 1
            if more := again.get(name):
                wanted[name] = more.pop(0)
    missing = sorted([*wanted.values(), *(number for more in again.values() for number in more)])
    broken = {each["path"] for each in made_from(whole.path).get("skipped", [])}
    if unknown := [number for number in missing if lines[number][0] not in broken]:
        name = lines[unknown[0]][0]
        first = next(number for number, (each, _) in enumerate(lines) if each == name)
        if first != unknown[0]:
            raise UserError(
                f"{image_list}: line {unknown[0] + 1} repeats the image of line {first + 1}, and {whole.path} has "
                "it only once; remove one of the two lines"
            )
        more = f" ({len(unknown)} of the list's {len(lines)} images are not)" if len(unknown) > 1 else ""
        raise UserError(
            f"{image_list}: line {unknown[0] + 1}: {name} is not in {whole.path}{more}; build the complete database "
            "from the list that the split was made from"
        )
    if not found:
        raise UserError(f"{image_list}: none of its images could be read when {whole.path} was built")
    return entries[:found], missing


def _path_of(key: bytes, database: Path) -> str:
    """Return the image path in a record's key. Raise UserError if it has none."""
    number, separator, name = key.partition(b"_")
    if not (number.isdigit() and separator):
        raise UserError(
            f"{database}: the key {key!r} is not `number_path`, as convert_imageset writes it, so its image is "
            "unknown; build the database with python -m tools.build_lmdb"
        )
    return name.decode(errors="surrogateescape")


def split(source: str | os.PathLike[str], image_list: str, out: str, view: bool = False) -> int:
    """Write the records of the images in ``image_list`` from database ``source`` to ``out``, as an LMDB or a view.

    Return their number. An interrupted copy is resumed. Raise UserError if an image is missing or ``out`` exists.
    """
    refuse_existing(out, "choose another name, or remove it to make it again")
    lines = read_list(image_list)
    digest = sha256(image_list)
    if is_view(source):
        raise UserError(f"{source}: this is itself a view; use its database, {whole_of(source)}")
    whole = Database(source, checked=False)
    with ThreadPoolExecutor(1, thread_name_prefix="checksum") as pool:
        # the checksum is compared while records are copied; the result is needed before the copy is complete
        sound = pool.submit(require_sound_database, source)
        return _split(whole, lines, digest, image_list, out, view, sound)


def _split(
    whole: Database, lines: Sequence[Line], digest: str, image_list: str, out: str, view: bool, sound: Future[None]
) -> int:
    """Do the work of `split`; ``sound`` is the running check of the source's checksum."""
    entries, missing = select(whole, lines, image_list)
    origin = made_from(whole.path)
    made = {
        **{name: value for name, value in origin.items() if name not in ("skipped", "warnings")},
        "list": image_list,
        "list_sha256": digest,
        "images": len(lines),
        "records": len(entries),
        "order": f"as in the complete database ({origin.get('order', 'unknown')})",
        "skipped": [{"line": number + 1, "path": lines[number][0]} for number in missing],
        "warnings": [],
    }
    for number in missing:
        print(f"left out: {lines[number][0]} ({image_list}, line {number + 1}): broken", file=sys.stderr, flush=True)
    if view:
        sound.result()
        write_view(out, whole, entries, made)
    else:
        _copy(whole, entries, out, made | {"copied_from": str(whole.path)}, sound)
    return len(entries)


def _copy(whole: Database, entries: np.ndarray, out: str, made: dict[str, Any], sound: Future[None]) -> None:
    """Copy the records to a new LMDB, or resume an interrupted copy."""
    source = (whole.path / "data.mdb").stat()
    beside = checksum_path(whole.path / "data.mdb")
    job = {
        "list_sha256": made["list_sha256"],
        "whole": [source.st_size, source.st_mtime_ns, read_text(beside) if beside.exists() else ""],
    }
    writer = DatabaseWriter(out, job, source.st_size * len(entries) // len(whole))
    try:
        with writer:
            done = writer.state.get("place", 0)
            if done:
                print(f"{out}: resuming after the first {done} records", file=sys.stderr, flush=True)
            copied = track(whole.raw_at(entries[done:, 0].tolist()), len(entries), "records", done)
            for place, (key, value) in enumerate(copied, start=done):
                writer.state = {"place": place + 1}
                label = int(entries[place, 1])
                record = relabelled(value, label, f"{whole.path}: record {key.decode(errors='backslashreplace')!r}")
                writer.put(b"%08d_" % place + key.partition(b"_")[2], record)
            writer.require = sound.result
            write_json(writer.folder / "build.json", made)
    finally:
        if writer.kept:
            print(f"{out}: not complete; the finished part is in {writer.folder}: the same command resumes it",
                  file=sys.stderr, flush=True)  # fmt: skip


def _parser() -> ArgumentParser:
    parser = ArgumentParser(
        prog="python -m tools.split_lmdb",
        description="Extract the database of a split from the database of all images, without decoding images.",
        epilog="example: python -m tools.split_lmdb whole/train_lmdb random0/A/train.txt random0/A/train_lmdb",
        allow_abbrev=False,
    )
    parser.add_argument("whole", metavar="WHOLE", help="the LMDB of all images")
    parser.add_argument("list", metavar="LIST", help="the split's image list")
    parser.add_argument("database", metavar="DB", help="folder of the new database")
    parser.add_argument("--view", action="store_true", help="write an index of WHOLE, no copy; not for real Caffe")
    return parser


@command
def main(argv: list[str] | None = None) -> int | None:
    """Extract a split's database from the command line."""
    options = _parser().parse_args(argv)
    count = split(options.whole, options.list, options.database, options.view)
    print(f"{options.database}: {count} records of {options.whole}" + (", as a view" if options.view else ""))


if __name__ == "__main__":
    sys.exit(main())
