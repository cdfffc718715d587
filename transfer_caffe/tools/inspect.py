"""Show the content of a Caffe image database: records, labels, how it was built, damage; and draw a contact sheet.

    python -m tools.inspect train_lmdb
    python -m tools.inspect train_lmdb --sheet birds.png --label 7

All records are read, and encoded ones are decoded: Caffe can read a database in which no damage is found. For databases
of hundreds of gigabytes, --quick reads only 1000 records. Damaged records are listed without stopping the inspection;
the exit code is then 2.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np

from transfer_caffe.formats.database import CHECKED_BYTES, Database
from transfer_caffe.formats.views import VIEW, View, open_records
from transfer_caffe.tools.contact_sheet import contact_sheet
from transfer_caffe.tools.images import library_messages
from transfer_caffe.tools.survey import MOST_NAMED, Survey, database_of, looks, shown, stored
from transfer_caffe.utils.errors import ArgumentParser, UserError, command
from transfer_caffe.utils.files import checksum_path, read_json, refuse_existing, write_bytes
from transfer_caffe.utils.progress import track

QUICK = 1000
MOST_IMAGES = 400  # per contact sheet: 28 MB of pixels


def line(name: str, *values: str) -> str:
    """Return a line of the output, a title and a value; further values are on lines below the first."""
    return "\n".join(f"{'' if place else name:<12}{value}" for place, value in enumerate(values))


def about_file(source: Database | View) -> Iterator[str]:
    """Yield the lines that do not depend on the records: path, kind, size, checksum."""
    database = database_of(source)
    yield line("database", shown(str(source.path)))
    yield line("kind", f"view of {shown(str(database.path))}" if isinstance(source, View) else "LMDB")
    yield line("records", f"{len(source):,}")
    file = database.path / "data.mdb"
    size = file.stat().st_size
    values = [f"data.mdb has {size:,} bytes, {size / len(database):,.0f} per record"]
    if isinstance(source, View):
        values[0] += f" of its {len(database):,}"
        values.append(f"the view has {sum(each.stat().st_size for each in source.path.iterdir()):,} bytes")
    yield line("size", *values)
    if not checksum_path(file).exists():
        checksum = "none beside data.mdb"
    elif size > CHECKED_BYTES:
        checksum = f"not checked (above {CHECKED_BYTES >> 30} GiB): use sha256sum -c data.mdb.sha256"
    else:
        checksum = "checked, correct"
    yield line("checksum", checksum)


def about_making(source: Database | View, survey: Survey) -> Iterator[str]:
    """Yield the lines about how the database was built, from its build.json or view.json, or else from its labels."""
    name = VIEW if isinstance(source, View) else "build.json"
    path = source.path / name
    made = None
    try:
        if os.path.lexists(path):
            made = read_json(path)
            if not isinstance(made, dict):
                made = None
                raise UserError("damaged: not written by tools.build_lmdb")
        else:
            yield line("made by", f"unknown: no {name}; convert_imageset or another program")
    except UserError as error:
        yield line("made by", f"{name} cannot be read: {shown(str(error).removeprefix(f'{path}: '))}")
    if made is None:
        yield line("order", _seen_order(survey))
        return
    whole = shown(str(made.get("copied_from", ""))) or (isinstance(source, View) and "that database")
    yield line("made by", f"tools.split_lmdb ({name}), from {whole}" if whole else f"tools.build_lmdb ({name})")
    root = f", images under {shown(str(made['root']))}" if made.get("root") else ""
    yield line("list", f"{shown(str(made.get('list')))}: {made.get('images')} images{root}")
    if made.get("records") != len(source):
        yield line("", f"{name} describes {made.get('records')} records: it belongs to another database")
    size = f"{made.get('resize_height')} x {made.get('resize_width')} (height x width)"
    scaled = ", large JPEGs decoded at a reduced size" if made.get("scaled_decode") else ""
    order = "unknown"
    if "shuffle" in made:
        yield line("resized", size + scaled if made.get("resize_height") else "no")
        order = f"shuffled, seed {made.get('seed')}" if made["shuffle"] else "as in the list"
    yield line("order", f"as in the complete database: {order}" if whole else order)
    for key, title, what, why in (
        ("skipped", "left out", "images that could not be read", "reason"),
        ("warnings", "warnings", "images with warnings of the decoder", "message"),
    ):
        if (entries := made.get(key)) and isinstance(entries, list):
            named = [_entry(each, why) for each in entries if isinstance(each, dict)]
            yield line(title, f"{len(entries):,} {what}", *_first(named, len(entries)))


def _entry(entry: dict[str, object], why: str) -> str:
    """Return a line about an image that was left out or has a warning; ``why``: the key of the reason."""
    return shown(f"line {entry.get('line')}: {entry.get('path')}" + (f": {entry[why]}" if why in entry else ""))


def _seen_order(survey: Survey) -> str:
    """Describe the order of the records as far as it can be seen from their labels."""
    labels = survey.labels[survey.sound]
    if len(labels) and labels[0] == labels[-1] and not np.diff(labels).any():
        return "unknown; all labels are the same"
    if (np.diff(labels) >= 0).all():
        return "not shuffled: the labels are in ascending order"
    return f"unknown; the label changes {np.count_nonzero(np.diff(labels)):,} times from one record to the next"


def about_records(source: Database | View, survey: Survey) -> Iterator[str]:
    """Yield the lines about the records that were read: shapes, storage, labels, keys, damage."""
    whole = survey.read == len(source)
    yield line("read", "all records" if whole else f"{survey.read:,} records, evenly spaced; all below is about these")
    if survey.shapes:
        yield from _about_shapes(survey.shapes)
        ways = [f"{count:,} {name}" for name, count in survey.ways.most_common()]
        yield line("stored as", ", ".join(ways) if len(ways) > 1 else next(iter(survey.ways)))
        if survey.qualities:
            qualities = np.repeat(list(survey.qualities), list(survey.qualities.values()))
            yield line("quality", f"{_spread(qualities)} (of 100, by the JPEGs' quantization tables)")
        yield from _about_labels(survey.labels[survey.sound], whole)
    yield line("first keys", *map(shown, survey.first_keys))
    paths, records, some = survey.twice()
    if paths:
        named = [f"record {number}: {shown(stored(source, number)[0])}" for number in some]
        yield line("twice", f"paths of several records: {paths:,}, in {records:,} records", *_first(named, records))
    elif whole:
        yield line("twice", "no path")
    if survey.complaints:
        what = f"records with messages of the decoder: {survey.complaints:,}"
        yield line("complaints", what, *_first(survey.complaint_lines, survey.complaints))
    what = f"records: {survey.damaged:,}" if survey.damaged else "none"
    yield line("damaged", what, *_first(survey.damages, survey.damaged))


def _about_shapes(shapes: Counter[tuple[int, ...]]) -> Iterator[str]:
    """Yield the lines about the shapes of the images."""

    def name(shape: tuple[int, ...]) -> str:
        return " x ".join(map(str, shape))

    if len(shapes) == 1:
        yield line("shape", f"{name(next(iter(shapes)))} (channels x height x width)")
        return
    by_size = sorted(shapes, key=lambda shape: (int(np.prod(shape)), shape))
    [(common, count)] = shapes.most_common(1)
    yield line(
        "shapes",
        f"{len(shapes):,} different ones (channels x height x width)",
        f"smallest {name(by_size[0])}, largest {name(by_size[-1])}",
        f"most frequent {name(common)}: {count:,} records",
    )


def _about_labels(labels: np.ndarray, whole: bool) -> Iterator[str]:
    """Yield the lines about the labels; ``whole``: all records were read."""
    values, counts = np.unique(labels, return_counts=True)
    yield line(
        "labels", f"{values[0]} to {values[-1]}: {len(values):,} classes", f"records per class: {_spread(counts)}"
    )
    missing = int(values[-1]) - int(values[0]) + 1 - len(values)
    if missing and whole:
        gaps: list[str] = []
        for before, after in zip(values[:-1].tolist(), values[1:].tolist(), strict=True):
            if after - before > 1:
                gaps.append(f"{before + 1}" if after - before == 2 else f"{before + 1} to {after - 1}")
        more = ", ..." if len(gaps) > MOST_NAMED else ""
        yield line("", f"labels between them without records: {missing:,} ({', '.join(gaps[:MOST_NAMED])}{more})")


def _spread(numbers: np.ndarray) -> str:
    """Return the minimum, median and maximum of numbers as text; a single number if all are equal."""
    if numbers.min() == numbers.max():
        return f"{numbers[0]:,}"
    return f"min {numbers.min():,}, median {np.median(numbers):,.6g}, max {numbers.max():,}"


def _first(named: list[str], total: int) -> list[str]:
    """Return the first lines of a list, and a line with the number of the rest."""
    named = named[:MOST_NAMED]
    return named + [f"... and {total - len(named):,} more"] * (total > len(named) > 0)


def chosen(candidates: np.ndarray, count: int, seed: int | None) -> list[int]:
    """Return ``count`` of the candidates, in their order: evenly spaced, or a random sample by ``seed``."""
    count = min(count, len(candidates))
    if seed is None:
        return candidates[np.arange(count) * len(candidates) // count].tolist()
    return np.sort(np.random.RandomState(seed).choice(candidates, count, replace=False)).tolist()


def pictures(source: Database | View, indices: Sequence[int]) -> Iterator[tuple[np.ndarray | None, tuple[str, str]]]:
    """Yield each image for a contact sheet with its captions: its label, and the number in its key."""
    for index in indices:
        digits = re.match(rb"\d+", stored(source, index)[0])
        name = digits[0].decode() if digits else f"record {index}"
        try:
            array, label = source.record(index)
            yield array, (f"label {label}", name)
        except UserError:
            yield None, ("damaged", name)


def _parser() -> ArgumentParser:
    parser = ArgumentParser(
        prog="python -m tools.inspect",
        description="Show the content of an image database.",
        epilog="example: python -m tools.inspect train_lmdb --sheet birds.png --label 7",
        allow_abbrev=False,
    )
    parser.add_argument("database", metavar="DB", help="the LMDB, or a view")
    parser.add_argument("--quick", action="store_true", help=f"read only {QUICK} records, evenly spaced")
    parser.add_argument("--labels", action="store_true", help="list all labels, one line `label count` each")
    parser.add_argument("--sheet", metavar="FILE.png", help="draw a contact sheet of images")
    parser.add_argument("--images", type=int, metavar="N", help="number of images on the sheet (64)")
    parser.add_argument("--seed", type=int, metavar="S", help="sample the images at random instead of evenly spaced")
    parser.add_argument("--label", type=int, metavar="L", help="show only images with this label")
    parser.add_argument("--force", action="store_true", help="overwrite an existing sheet")
    return parser


def _check(options: argparse.Namespace) -> None:
    """Raise UserError for invalid combinations of options, before any work."""
    file, images, seed, label = (getattr(options, name) for name in ("sheet", "images", "seed", "label"))
    if file is None:
        if (images, seed, label) != (None, None, None):
            raise UserError("--images, --seed and --label choose the images of a sheet: give --sheet FILE.png, too")
        return
    if not file.lower().endswith(".png"):
        raise UserError(f"--sheet {file}: a sheet is a PNG file: give it a name that ends in .png")
    if os.path.isdir(file):
        raise UserError(f"--sheet {file}: this is a folder; give the name of a file")
    if not options.force:
        refuse_existing(file, "choose another name, or overwrite it with --force")
    if images is not None and not 1 <= images <= MOST_IMAGES:
        raise UserError(f"--images {images}: a sheet has 1 to {MOST_IMAGES} images")
    if seed is not None and not 0 <= seed < 2**32:
        raise UserError(f"--seed {seed}: the seed must be a number from 0 to {2**32 - 1}")
    if label is not None and options.quick:
        raise UserError("--label needs the labels of all records: omit --quick")


@command
def main(argv: list[str] | None = None) -> int | None:
    """Inspect a database from the command line."""
    options = _parser().parse_args(argv)
    _check(options)
    source = open_records(options.database)
    everything = range(len(source))
    print(*about_file(source), sep="\n", flush=True)
    survey = Survey(indices := chosen(np.asarray(everything), QUICK, None) if options.quick else everything)
    with library_messages() as messages:
        for each in track(looks(source, indices, messages), len(indices), "records"):
            survey.add(each)
    print(*about_making(source, survey), *about_records(source, survey), sep="\n", flush=True)
    if options.labels:
        values, counts = np.unique(survey.labels[survey.sound], return_counts=True)
        print("\nlabel count", *(f"{v} {n}" for v, n in zip(values, counts, strict=True)), sep="\n", flush=True)
    if options.sheet:
        candidates = np.asarray(everything) if options.label is None else survey.with_label(options.label)
        if not len(candidates):
            raise UserError(f"{options.database}: no record has the label {options.label}; --labels lists them all")
        drawn = chosen(candidates, options.images or 64, options.seed)
        with library_messages():
            picture = contact_sheet(pictures(source, drawn), len(drawn))
        write_bytes(options.sheet, picture)
        print(line("sheet", f"{shown(options.sheet)}: {len(drawn):,} images"), flush=True)
    if survey.damaged:
        raise UserError(f"{options.database}: {survey.damaged} of {survey.read} records are damaged; build it again")


if __name__ == "__main__":
    sys.exit(main())
