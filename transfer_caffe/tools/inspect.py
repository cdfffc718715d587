"""What is in a Caffe image database: records, labels, how it was made, damage; and a contact sheet of its images.

    python -m tools.inspect train_lmdb
    python -m tools.inspect train_lmdb --sheet birds.png --label 7

It reads every record, and decodes encoded ones: what this finds whole, Caffe can read. Of a database of hundreds of
gigabytes --quick reads 1000 records only. Damaged records are named, and the rest goes on; the exit code is then 2.
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
MOST_IMAGES = 400  # on a sheet: 28 MB of pixels


def line(name: str, *values: str) -> str:
    """A line of the answer; further values stand below the first."""
    return "\n".join(f"{'' if place else name:<12}{value}" for place, value in enumerate(values))


def about_file(source: Database | View) -> Iterator[str]:
    """What there is to tell before any record is read."""
    database = database_of(source)
    yield line("database", shown(str(source.path)))
    yield line("kind", f"view of {shown(str(database.path))}" if isinstance(source, View) else "LMDB")
    yield line("records", f"{len(source):,}")
    file = database.path / "data.mdb"
    size = file.stat().st_size
    values = [f"data.mdb has {size:,} bytes, {size / len(database):,.0f} a record"]
    if isinstance(source, View):
        values[0] += f" of its {len(database):,}"
        values.append(f"the view has {sum(each.stat().st_size for each in source.path.iterdir()):,} bytes")
    yield line("size", *values)
    if not checksum_path(file).exists():
        checksum = "none beside data.mdb"
    elif size > CHECKED_BYTES:
        checksum = f"there, not compared (above {CHECKED_BYTES >> 30} GiB): sha256sum -c data.mdb.sha256 does it"
    else:
        checksum = "compared, and right"
    yield line("checksum", checksum)


def about_making(source: Database | View, survey: Survey) -> Iterator[str]:
    """How it was made, from the record beside it if there is one; else what the labels tell of it."""
    name = VIEW if isinstance(source, View) else "build.json"
    path = source.path / name
    made = None
    try:
        if os.path.lexists(path):
            made = read_json(path)
            if not isinstance(made, dict):
                made = None
                raise UserError("damaged: not what tools.build_lmdb writes")
        else:
            yield line("made by", f"unknown: no {name}; by convert_imageset or another program")
    except UserError as error:
        yield line("made by", f"{name} cannot be used: {shown(str(error).removeprefix(f'{path}: '))}")
    if made is None:
        yield line("order", _seen_order(survey))
        return
    whole = shown(str(made.get("copied_from", ""))) or (isinstance(source, View) and "that database")
    yield line("made by", f"tools.split_lmdb ({name}), out of {whole}" if whole else f"tools.build_lmdb ({name})")
    root = f", images under {shown(str(made['root']))}" if made.get("root") else ""
    yield line("list", f"{shown(str(made.get('list')))}: {made.get('images')} images{root}")
    if made.get("records") != len(source):
        yield line("", f"{name} tells of {made.get('records')} records: it belongs to another database")
    size = f"{made.get('resize_height')} x {made.get('resize_width')} (height x width)"
    scaled = ", large JPEGs decoded at a part of their size" if made.get("scaled_decode") else ""
    order = "unknown"
    if "shuffle" in made:
        yield line("resized", size + scaled if made.get("resize_height") else "no")
        order = f"shuffled, seed {made.get('seed')}" if made["shuffle"] else "that of the list"
    yield line("order", f"that of the whole database: {order}" if whole else order)
    for key, title, what, why in (
        ("skipped", "left out", "images that could not be read", "reason"),
        ("warnings", "warnings", "images whose decoder complained", "message"),
    ):
        if (entries := made.get(key)) and isinstance(entries, list):
            named = [_entry(each, why) for each in entries if isinstance(each, dict)]
            yield line(title, f"{len(entries):,} {what}", *_first(named, len(entries)))


def _entry(entry: dict[str, object], why: str) -> str:
    return shown(f"line {entry.get('line')}: {entry.get('path')}" + (f": {entry[why]}" if why in entry else ""))


def _seen_order(survey: Survey) -> str:
    labels = survey.labels[survey.sound]
    if len(labels) and labels[0] == labels[-1] and not np.diff(labels).any():
        return "unknown; all labels are the same"
    if (np.diff(labels) >= 0).all():
        return "not shuffled: labels ascend from record to record"
    return f"unknown; {np.count_nonzero(np.diff(labels)):,} times the next record has another label"


def about_records(source: Database | View, survey: Survey) -> Iterator[str]:
    """Shapes, storage, labels, keys and damage of the records that were read."""
    whole = survey.read == len(source)
    yield line("read", "all records" if whole else f"{survey.read:,} records, evenly spread: all below is of these")
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
        yield line(
            "twice", f"paths that several records have: {paths:,}, in {records:,} records", *_first(named, records)
        )
    elif whole:
        yield line("twice", "no path")
    if survey.complaints:
        what = f"records that the decoder complains about: {survey.complaints:,}"
        yield line("complaints", what, *_first(survey.complaint_lines, survey.complaints))
    what = f"records: {survey.damaged:,}" if survey.damaged else "none"
    yield line("damaged", what, *_first(survey.damages, survey.damaged))


def _about_shapes(shapes: Counter[tuple[int, ...]]) -> Iterator[str]:
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
        f"most often {name(common)}: {count:,} records",
    )


def _about_labels(labels: np.ndarray, whole: bool) -> Iterator[str]:
    values, counts = np.unique(labels, return_counts=True)
    yield line("labels", f"{values[0]} to {values[-1]}: {len(values):,} classes", f"records a class: {_spread(counts)}")
    missing = int(values[-1]) - int(values[0]) + 1 - len(values)
    if missing and whole:
        gaps: list[str] = []
        for before, after in zip(values[:-1].tolist(), values[1:].tolist(), strict=True):
            if after - before > 1:
                gaps.append(f"{before + 1}" if after - before == 2 else f"{before + 1} to {after - 1}")
        more = ", ..." if len(gaps) > MOST_NAMED else ""
        yield line("", f"labels between that no record has: {missing:,} ({', '.join(gaps[:MOST_NAMED])}{more})")


def _spread(numbers: np.ndarray) -> str:
    if numbers.min() == numbers.max():
        return f"{numbers[0]:,}"
    return f"min {numbers.min():,}, median {np.median(numbers):,.6g}, max {numbers.max():,}"


def _first(named: list[str], total: int) -> list[str]:
    named = named[:MOST_NAMED]
    return named + [f"... and {total - len(named):,} more"] * (total > len(named) > 0)


def chosen(candidates: np.ndarray, count: int, seed: int | None) -> list[int]:
    """``count`` of the candidates, in their order: evenly spread, or drawn by ``seed``."""
    count = min(count, len(candidates))
    if seed is None:
        return candidates[np.arange(count) * len(candidates) // count].tolist()
    return np.sort(np.random.RandomState(seed).choice(candidates, count, replace=False)).tolist()


def pictures(source: Database | View, indices: Sequence[int]) -> Iterator[tuple[np.ndarray | None, tuple[str, str]]]:
    """For a contact sheet: each image, and under it its label and the number in its key."""
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
        description="Tell what is in an image database.",
        epilog="example: python -m tools.inspect train_lmdb --sheet birds.png --label 7",
        allow_abbrev=False,
    )
    parser.add_argument("database", metavar="DB", help="the LMDB")
    parser.add_argument("--quick", action="store_true", help=f"read {QUICK} records only, evenly spread")
    parser.add_argument("--labels", action="store_true", help="list all labels, a line `label count` each")
    parser.add_argument("--sheet", metavar="FILE.png", help="draw a contact sheet of images")
    parser.add_argument("--images", type=int, metavar="N", help="how many of them (64)")
    parser.add_argument("--seed", type=int, metavar="S", help="draw them at random, instead of evenly spread")
    parser.add_argument("--label", type=int, metavar="L", help="of this label only")
    parser.add_argument("--force", action="store_true", help="write over an existing sheet")
    return parser


def _check(options: argparse.Namespace) -> None:
    """UserError for options that make no sense, before any work."""
    file, images, seed, label = (getattr(options, name) for name in ("sheet", "images", "seed", "label"))
    if file is None:
        if (images, seed, label) != (None, None, None):
            raise UserError("--images, --seed and --label choose the images of a sheet: give --sheet FILE.png, too")
        return
    if not file.lower().endswith(".png"):
        raise UserError(f"--sheet {file}: a sheet is a PNG file: give it a name that ends in .png")
    if os.path.isdir(file):
        raise UserError(f"--sheet {file}: this is a folder; give a file's name")
    if not options.force:
        refuse_existing(file, "choose another name, or write over it with --force")
    if images is not None and not 1 <= images <= MOST_IMAGES:
        raise UserError(f"--images {images}: a sheet has 1 to {MOST_IMAGES} images")
    if seed is not None and not 0 <= seed < 2**32:
        raise UserError(f"--seed {seed}: a seed is a number from 0 to {2**32 - 1}")
    if label is not None and options.quick:
        raise UserError("--label needs the labels of all records: leave out --quick")


@command
def main(argv: list[str] | None = None) -> int | None:
    """Look at a database from the command line."""
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
