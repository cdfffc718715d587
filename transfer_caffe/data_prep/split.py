"""Split the classes of image lists into two halves, A and B, or reduce the number of images per class.

    python -m data_prep.split random --seed 1 --train train.txt --val val.txt --out random1
    python -m data_prep.split natman --train train.txt --val val.txt --out natman
    python -m data_prep.split reduced --images-per-class 100 --train train.txt --val val.txt --out reduced100

`random` and `natman` write OUT/A/train.txt, OUT/A/val.txt, OUT/A/classes.txt and the same for B. Labels are renumbered
from 0 in the order of the old ones; classes.txt maps old to new labels. `reduced` and `whole` write OUT/train.txt,
OUT/val.txt, OUT/classes.txt with unchanged labels. These are the paper's splits (section 4 and supplement).
"""

from __future__ import annotations

import argparse
import filecmp
import functools
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from transfer_caffe.data_prep.classes import IMAGENET_CLASSES, Class, read_classes
from transfer_caffe.formats.image_list import Line, read_list, write_class_map, write_list
from transfer_caffe.utils.errors import ArgumentParser, UserError, command, require_file
from transfer_caffe.utils.files import whole_folder

IMAGENET_COUNT = 1000
MAX_SEED = 2**32 - 1
GET_LISTS = (
    "make ImageNet's lists with `make ilsvrc ARCHIVES=FOLDER`, give your own with TRAIN= and VAL= (--train and --val), "
    "or try the demo's: `make data RECIPE=demo`, then TRAIN=data/photos/train.txt VAL=data/photos/val.txt"
)


def random_split(classes: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the sorted class numbers of halves A and B of random split ``seed``; B has one more if the number is odd.

    For 1000 classes and seeds 0 to 3 these are the authors' halves. NumPy is seeded with the list [seed], which samples
    other classes than RandomState(seed).
    """
    if not 0 <= seed <= MAX_SEED:
        raise UserError(f"seed {seed}: the seed must be a number from 0 to {MAX_SEED}")
    numbers = np.arange(classes)
    a = np.sort(np.random.RandomState([seed]).choice(numbers, classes // 2, replace=False))
    return a, np.setdiff1d(numbers, a)


def natman_split(classes: Sequence[Class]) -> tuple[np.ndarray, np.ndarray]:
    """Return the class numbers of the man-made classes (A, as in the paper) and of the natural ones (B)."""
    man_made = np.array([c.group == "man-made" for c in classes], dtype=bool)
    return np.flatnonzero(man_made), np.flatnonzero(~man_made)


def half_lists(lines: Sequence[Line], half: np.ndarray) -> list[Line]:
    """Return the lines of the classes in ``half``, in order, with labels renumbered in the order of ``half``."""
    new = {int(old): number for number, old in enumerate(half)}
    return [(name, new[label]) for name, label in lines if label in new]


def reduced_list(lines: Sequence[Line], images_per_class: int) -> list[Line]:
    """Return the first ``images_per_class`` lines of each class (all lines of a class with fewer), in order."""
    seen: dict[int, int] = {}
    result = []
    for name, label in lines:
        count = seen.get(label, 0)
        if count < images_per_class:
            seen[label] = count + 1
            result.append((name, label))
    return result


def count_classes(lists: dict[str, list[Line]], paths: dict[str, str], classes: Sequence[Class] | None) -> int:
    """Return the number of classes: of the class file, or otherwise the highest training label + 1.

    Raise UserError for a label outside this range, naming file and line, and for a class without a training image.
    """
    count = len(classes) if classes else max(label for _, label in lists["train"]) + 1
    source = "the class file" if classes else "the training list"
    for part, lines in lists.items():
        for number, (_, label) in enumerate(lines, 1):
            if label >= count:
                raise UserError(
                    f"{paths[part]}: line {number}: label {label}, but {source} has only the classes 0 to {count - 1}"
                )
    used = {label for _, label in lists["train"]}
    if len(used) < count:
        gap = next(label for label in range(count) if label not in used)
        raise UserError(
            f"{paths['train']}: no image has the label {gap} ({count - len(used)} of the labels 0 to {count - 1} have "
            "none); number the classes without gaps, and give each a training image"
        )
    return count


def write_halves(lists: dict[str, list[Line]], halves: tuple[np.ndarray, np.ndarray], out: str | Path) -> None:
    """Write OUT/{A,B}/{train,val,classes}.txt atomically."""
    for letter, half in zip("AB", halves, strict=True):
        if not len(half):
            raise UserError(f"half {letter} would have no classes; at least one is needed in each half")
    with whole_folder(out) as folder:
        for letter, half in zip("AB", halves, strict=True):
            for part, lines in lists.items():
                write_list(folder / letter / f"{part}.txt", half_lists(lines, half))
            write_class_map(folder / letter / "classes.txt", half)


def write_whole(lists: dict[str, list[Line]], classes: int, out: str | Path) -> None:
    """Write OUT/{train,val,classes}.txt atomically, with unchanged labels."""
    with whole_folder(out) as folder:
        for part, lines in lists.items():
            write_list(folder / f"{part}.txt", lines)
        write_class_map(folder / "classes.txt", range(classes))


def _require_same(out: str, make: Callable[[Path], None]) -> None:
    """Raise UserError unless the existing folder ``out`` contains exactly the lists that ``make`` writes."""
    with tempfile.TemporaryDirectory() as name:
        new = Path(name, "lists")
        make(new)
        made = [path.relative_to(new) for path in new.rglob("*.txt")]
        there = [Path(out, path) for path in made]
        if not all(
            path.is_file() and filecmp.cmp(path, new / part, False) for path, part in zip(there, made, strict=True)
        ):
            raise UserError(
                f"{out} exists already; give another folder with --out, or remove it to make the split again"
            )


def _class_file(given: str | None, train: str, lines: Sequence[Line]) -> str | Path:
    """Return the class file with the groups: --classes, classes.csv beside the training list, or ImageNet's."""
    if given:
        return given
    beside = Path(train).parent / "classes.csv"
    if beside.exists():
        return beside
    if max(label for _, label in lines) + 1 == IMAGENET_COUNT:
        return IMAGENET_CLASSES
    raise UserError(
        f"{train}: the groups of its classes are unknown; give a class file (index,name,words,group) with --classes "
        "(CLASSES=)"
    )


def _whole_number(least: int) -> Callable[[str], int]:
    """Return an argparse ``type`` for integers >= ``least``."""

    def parse(text: str) -> int:
        if not (text.isascii() and text.isdigit() and int(text) >= least):
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number, {least} or more")
        return int(text)

    return parse


def _parser() -> ArgumentParser:
    parser = ArgumentParser(
        prog="python -m data_prep.split",
        description="Split the classes of image lists into two halves, or reduce the number of images per class.",
        epilog="example: python -m data_prep.split random --seed 1 --train train.txt --val val.txt --out random1",
    )
    kinds = parser.add_subparsers(dest="kind", required=True, metavar="random|natman|reduced|whole")
    for kind, text in (
        ("random", "A gets a random half of the classes, B the rest; seeds 0 to 3 give the paper's splits"),
        ("natman", "A gets the man-made classes, B the natural ones"),
        ("reduced", "the first K training images of each class; all classes, the complete validation list"),
        ("whole", "no split: all classes, all images"),
    ):
        extra = {"random": "--seed 1 ", "reduced": "--images-per-class 100 "}.get(kind, "")
        sub = kinds.add_parser(
            kind,
            help=text,
            description=text,
            epilog=f"example: python -m data_prep.split {kind} {extra}--train train.txt --val val.txt --out {kind}",
        )
        if kind == "random":
            sub.add_argument("--seed", type=_whole_number(0), required=True, help="the number of the split")
        if kind == "reduced":
            sub.add_argument(
                "--images-per-class",
                type=_whole_number(1),
                required=True,
                metavar="K",
                help="number of images to keep of each class",
            )
        sub.add_argument("--train", required=True, metavar="LIST", help="image list for training")
        sub.add_argument("--val", metavar="LIST", help="image list for validation")
        sub.add_argument("--classes", metavar="CSV", help="class file: index,name,words,group")
        sub.add_argument("--out", required=True, metavar="DIR", help="the new folder")
    return parser


@command
def main(argv: list[str] | None = None) -> int | None:
    """Make a split from the command line."""
    options = _parser().parse_args(argv)
    options.out = os.path.abspath(options.out)
    paths = {"train": options.train} | ({"val": options.val} if options.val else {})
    for path in paths.values():
        require_file(path, GET_LISTS)
    lists = {part: read_list(path) for part, path in paths.items()}
    if options.kind == "natman":
        options.classes = _class_file(options.classes, options.train, lists["train"])
    if options.classes:
        require_file(options.classes, "CLASSES= or --classes needs a class file with the header index,name,words,group")
    classes = read_classes(options.classes) if options.classes else None
    count = count_classes(lists, paths, classes)

    make: Callable[[Path], None]
    if options.kind in ("random", "natman"):
        if options.kind == "random":
            halves = random_split(count, options.seed)
        else:
            assert classes
            halves = natman_split(classes)
        make = functools.partial(write_halves, lists, halves)
        what = f"A has {len(halves[0])} classes, B {len(halves[1])}"
    else:
        if options.kind == "reduced":
            lists["train"] = reduced_list(lists["train"], options.images_per_class)
        make = functools.partial(write_whole, lists, count)
        what = f"{count} classes, {len(lists['train'])} training images"
    # an existing empty folder may become the output; other existing files are the user's
    if os.path.lexists(options.out) and not (os.path.isdir(options.out) and not os.listdir(options.out)):
        _require_same(options.out, make)
        what += "; it was there already"
    else:
        make(options.out)
    print(f"{options.out}: {what}")


if __name__ == "__main__":
    sys.exit(main())
