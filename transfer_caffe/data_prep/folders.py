"""Write Caffe's image lists from a tree of class folders, IMAGES/CLASS/...

    python -m data_prep.folders IMAGES --out data/birds --val-images-per-class 50
    python -m data_prep.folders birds/train --val birds/test --groups groups.csv --out data/birds

Classes are sorted by name and numbered from 0; images are sorted by path. OUT contains train.txt, val.txt, a link to
the images, and a class file. The class file is classes.csv if --groups gives the group of each class (CSV with the
header `name,group`, groups natural or man-made), otherwise classes.txt with lines `number name`. Validation images are
in another tree with the same classes, or are a random sample of each class by --seed. The sample of a class depends
only on its name, its images and the seed.
"""

from __future__ import annotations

import os
import sys
import zlib
from collections import Counter
from pathlib import Path

import numpy as np

from transfer_caffe.data_prep.classes import GROUPS, Class, csv_lines, write_class_names, write_classes
from transfer_caffe.data_prep.split import MAX_SEED
from transfer_caffe.formats.image_list import Line, write_list
from transfer_caffe.utils.errors import ArgumentParser, UserError, command
from transfer_caffe.utils.files import whole_folder

IMAGES, VAL_IMAGES = "images", "val_images"

ENDINGS = (
    ".jpg", ".jpeg", ".jpe", ".jp2", ".png", ".bmp", ".dib", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm",
)  # fmt: skip
"""Extensions, in lower case, of the files that real Caffe's OpenCV can read."""

Tree = dict[str, list[str]]
"""The images of each class, as paths that start with the class; classes and images are sorted."""


def find_images(root: Path) -> tuple[Tree, list[str]]:
    """Return the images of ROOT/CLASS/..., at any depth, and the paths of other files. Hidden files are ignored.

    Raise UserError for a class without images, a name that an image list cannot contain, or a cyclic link.
    """
    tree: Tree = {}
    others: list[str] = []
    for name, is_folder in _entries(root, ""):
        if not is_folder:
            others.append(name)
            continue
        files = _files(root, name, ())
        tree[name] = sorted(path for path in files if os.path.splitext(path)[1].lower() in ENDINGS)
        others += [path for path in files if os.path.splitext(path)[1].lower() not in ENDINGS]
        if not tree[name]:
            raise UserError(f"{root / name}: this class has no images; add some, or remove the folder")
    if not tree:
        raise UserError(f"{root}: no folders there; a folder of images for each class was expected")
    return tree, others


def _files(root: Path, folder: str, above: tuple[str, ...]) -> list[str]:
    """Return the files in a folder at any depth; ``above``: the folders that contain it, to detect cyclic links."""
    real = os.path.realpath(root / folder)
    if real in above:
        raise UserError(f"{root / folder}: this link points to a folder that contains it; remove it")
    result = []
    for name, is_folder in _entries(root, folder):
        path = f"{folder}/{name}"
        result += _files(root, path, (*above, real)) if is_folder else [path]
    return result


def _entries(root: Path, folder: str) -> list[tuple[str, bool]]:
    """Return the sorted names in a folder, each with whether it is a folder; without hidden files."""
    with os.scandir(root / folder) as entries:
        found = sorted((entry.name, entry.is_dir()) for entry in entries if not entry.name.startswith("."))
    for name, _ in found:
        if "\n" in name or "\r" in name:
            raise UserError(f"{str(root / folder / name)!r}: an image list cannot contain a line break; rename it")
        try:
            name.encode()
        except UnicodeEncodeError:
            raise UserError(f"{str(root / folder / name)!r}: this name is not UTF-8; rename it") from None
    return found


def draw(tree: Tree, count: int, seed: int, where: Path) -> tuple[Tree, Tree]:
    """Split ``tree`` into training and validation images; the latter are ``count`` random images of each class.

    Raise UserError if a class has no images left for training.
    """
    train: Tree = {}
    val: Tree = {}
    for name, paths in tree.items():
        if len(paths) <= count:
            raise UserError(
                f"{where / name}: {len(paths)} images; with {count} for validation, none is left for training"
            )
        drawn = np.random.RandomState([seed, zlib.crc32(name.encode())]).choice(len(paths), count, replace=False)
        for_val = set(drawn.tolist())
        train[name] = [path for place, path in enumerate(paths) if place not in for_val]
        val[name] = [path for place, path in enumerate(paths) if place in for_val]
    return train, val


def read_groups(path: Path, names: list[str]) -> list[Class]:
    """Return the classes ``names`` with their groups from a CSV file with the header `name,group`."""
    rows = csv_lines(path)
    if next(rows, (0, []))[1] != ["name", "group"]:
        raise UserError(f"{path}: its first line must be name,group")
    groups: dict[str, str] = {}
    for number, row in rows:
        where = f"{path}: line {number}"
        if not row:
            continue
        if len(row) != 2:
            raise UserError(f"{where}: {len(row)} columns; name and group were expected")
        if row[1] not in GROUPS:
            raise UserError(f"{where}: unknown group {row[1]!r}; allowed are {' and '.join(GROUPS)}")
        if row[0] in groups or row[0] not in names:
            raise UserError(
                f"{where}: {row[0]!r} is {'listed twice' if row[0] in groups else 'not a class of the images'}"
            )
        groups[row[0]] = row[1]
    if missing := [name for name in names if name not in groups]:
        raise UserError(f"{path}: no group for {missing[0]!r} ({len(missing)} of {len(names)} classes have none)")
    return [Class(number, name, name, groups[name]) for number, name in enumerate(names)]


def _require_same_classes(train: Tree, val: Tree, images: Path, val_images: Path) -> None:
    """Raise UserError unless both trees have the same classes."""
    for here, there, folder in ((train, val, val_images), (val, train, images)):
        if missing := [name for name in here if name not in there]:
            raise UserError(
                f"{folder / missing[0]}: no such class ({len(missing)} classes are only in the other tree); both trees "
                "must have the same classes"
            )


def _lines(tree: Tree) -> list[Line]:
    """Return the lines of the image list of a tree."""
    return [(path, label) for label, paths in enumerate(tree.values()) for path in paths]


def _say_others(root: Path, others: list[str]) -> None:
    """Warn of files that are not images."""
    if not others:
        return
    kinds = Counter(os.path.splitext(path)[1].lower() or "without extension" for path in others)
    counted = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common())
    first = ", ".join(others[:5]) + (", ..." if len(others) > 5 else "")
    print(
        f"warning: {root}: {len(others)} files are not images by their extensions ({counted}): {first}",
        file=sys.stderr,
    )


def _folder(given: str | Path) -> Path:
    """Return the absolute path of a folder. Raise UserError if it does not exist."""
    path = Path(given).absolute()
    if not path.is_dir():
        raise UserError(f"{given}: no such folder; give a folder that contains a folder of images for each class")
    return path


def _parser() -> ArgumentParser:
    parser = ArgumentParser(
        prog="python -m data_prep.folders",
        description="Write Caffe's image lists from a tree with a folder of images for each class.",
        epilog="example: python -m data_prep.folders ~/birds --out data/birds --val-images-per-class 50",
    )
    parser.add_argument(
        "images", type=Path, metavar="IMAGES", help="folder that contains a folder of images for each class"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="the new folder: data/NAME")
    validation = parser.add_mutually_exclusive_group(required=True)
    validation.add_argument("--val", metavar="VAL", help="folder with the validation images, with the same classes")
    validation.add_argument(
        "--val-images-per-class", type=int, metavar="N", help="sample N images of each class for validation"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the sample of validation images (default 0)")
    parser.add_argument(
        "--groups",
        type=Path,
        metavar="CSV",
        help="CSV file with columns name,group (natural or man-made), for the split natman",
    )
    return parser


@command
def main(argv: list[str] | None = None) -> int | None:
    """Write the lists from the command line."""
    args = _parser().parse_args(argv)
    if args.val_images_per_class is not None and args.val_images_per_class < 1:
        raise UserError(f"--val-images-per-class {args.val_images_per_class}: at least 1 is needed")
    if not 0 <= args.seed <= MAX_SEED:
        raise UserError(f"--seed {args.seed}: the seed must be a number from 0 to {MAX_SEED}")
    roots = {IMAGES: _folder(args.images)} | ({VAL_IMAGES: _folder(args.val)} if args.val else {})
    if args.val and os.path.samefile(roots[IMAGES], roots[VAL_IMAGES]):
        raise UserError(f"--val {args.val}: these are the training images; use --val-images-per-class")
    out = Path(args.out).absolute()
    if os.path.lexists(out) and not (out.is_dir() and not out.is_symlink() and not os.listdir(out)):
        raise UserError(f"{args.out} exists already; give another folder with --out, or remove it to make it again")
    for root in roots.values():
        if Path(os.path.realpath(out)).is_relative_to(os.path.realpath(root)):
            raise UserError(f"{args.out} is inside {root} and would count as a class; give another --out")

    train, others = find_images(roots[IMAGES])
    _say_others(roots[IMAGES], others)
    if args.val:
        val, others = find_images(roots[VAL_IMAGES])
        _say_others(roots[VAL_IMAGES], others)
        _require_same_classes(train, val, roots[IMAGES], roots[VAL_IMAGES])
    else:
        assert args.val_images_per_class is not None  # argparse requires one of them
        train, val = draw(train, args.val_images_per_class, args.seed, roots[IMAGES])
    names = list(train)
    classes = read_groups(args.groups, names) if args.groups else None
    lists = {"train": _lines(train), "val": _lines(val)}
    with whole_folder(out) as folder:
        for part, lines in lists.items():
            write_list(folder / f"{part}.txt", lines)
        if classes:
            write_classes(folder / "classes.csv", classes)
        else:
            write_class_names(folder / "classes.txt", names)
        for link, root in roots.items():
            (folder / link).symlink_to(root, target_is_directory=True)
    print(
        f"{args.out}: {len(lists['train'])} training and {len(lists['val'])} validation images in {len(names)} classes"
    )
    extra = f", val_root: {VAL_IMAGES}" if args.val else ""
    dataset = str(args.out).removeprefix("data/").rstrip("/")
    print(f"in a recipe: dataset: {dataset} and images: {{root: {IMAGES}{extra}, resize: ...}}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
