"""Write Caffe's image lists from ImageNet's archives (ILSVRC2012).

    python -m data_prep.ilsvrc ARCHIVES --out data/ilsvrc2012

ARCHIVES is the folder with ILSVRC2012_img_train.tar, ILSVRC2012_img_val.tar and ILSVRC2012_devkit_t12.tar.gz. Their
images are unpacked into OUT/train and OUT/val. Each class is unpacked atomically: after an interruption, the next call
resumes with the missing classes. Unpacked images that are given with --train and --val are used where they are.

OUT/train.txt and OUT/val.txt are the lists of Caffe's ilsvrc12 example: classes are sorted by WordNet id and numbered
from 0, images are sorted by name. OUT/classes.csv has the classes' words and groups, OUT/oddities.csv the images that
are not plain JPEGs.
"""

from __future__ import annotations

import csv
import io
import os
import sys
import tempfile
from collections import Counter
from pathlib import Path

from transfer_caffe.data_prep.classes import Class, read_classes, write_class_names, write_classes
from transfer_caffe.data_prep.devkit import VAL_IMAGES, Truth, read_devkit, read_val_list
from transfer_caffe.data_prep.ilsvrc_images import (
    Images,
    Oddities,
    find_train,
    find_val,
    link,
    look_at_files,
    refuse_link,
    remove_partial,
    require_space,
    unpack_train,
    unpack_val,
)
from transfer_caffe.formats.image_list import Line, write_list
from transfer_caffe.utils.errors import ArgumentParser, UserError, command
from transfer_caffe.utils.files import write_text
from transfer_caffe.utils.locks import lock

TRAIN_TAR, VAL_TAR, DEVKIT = "ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar", "ILSVRC2012_devkit_t12.tar.gz"
TRAIN_IMAGES, CLASSES = 1281167, 1000
ODDITIES = "oddities.csv"


def make(train: Path, val: Path, truth: Truth | None, out: Path) -> None:
    """Write the lists, the class file and the table of oddities to ``out``, from archives or folders of images.

    Raise UserError if the archives or folders are not ImageNet's, or if ``out`` contains different lists.
    """
    out.mkdir(parents=True, exist_ok=True)
    for part, source in (("train", train), ("val", val)):
        if source.is_dir():
            link(out / part, source)
        else:
            refuse_link(out / part, source)
    remove_partial(out, r"\.lists\..*")
    require_space(out, train, val)
    oddities: Oddities = {}
    if val.is_file():
        unpack_val(val, out / "val", oddities)
    found_val = find_val(out / "val")
    val_wnids = val_classes(found_val, truth)
    if train.is_file():
        unpack_train(train, out / "train", oddities)
    found_train = find_train(out / "train")
    train_list, val_list, classes = number_classes(found_train, found_val, val_wnids)
    _say_counts(found_train, found_val, len(val_list), [each.name for each in classes], truth)

    with tempfile.TemporaryDirectory(dir=out, prefix=".lists.") as folder:
        new = Path(folder)
        write_list(new / "train.txt", train_list)
        write_list(new / "val.txt", val_list)
        if all(each.group for each in classes):
            write_classes(new / "classes.csv", classes)
        else:
            write_class_names(new / "classes.txt", [each.name for each in classes])
        names = sorted(os.listdir(new))
        there = [name for name in names if (out / name).exists()]
        if other := [name for name in there if (out / name).read_bytes() != (new / name).read_bytes()]:
            raise UserError(
                f"{out} contains {' and '.join(other)} with other content than these images give; remove the lists and "
                "the splits that were made from them to write them again"
            )
        if there == names and (out / ODDITIES).exists():
            print(f"{out}: complete already")
            return
        for name in names:
            os.replace(new / name, out / name)
    look_at_files("train", found_train, oddities)
    look_at_files("val", found_val, oddities)
    write_oddities(out / ODDITIES, oddities)


def val_classes(val: Images, truth: Truth | None) -> list[str]:
    """Return the class of each validation image. Raise UserError if it is unknown, or if folder and truth differ."""
    if truth is None:
        if unknown := next((path for path, wnid in val.found if not wnid), None):
            raise UserError(f"{val.folder / unknown}: its class is unknown; give {DEVKIT} with --devkit, or --val-list")
        return [wnid for _, wnid in val.found]
    numbers = [int(path[-13:-5]) for path, _ in val.found]
    truth.require_fits(set(numbers))
    wnids = [truth.wnids[number] for number in numbers]
    for (path, wnid), true in zip(val.found, wnids, strict=True):
        if wnid and wnid != true:
            raise UserError(f"{val.folder / path}: the class of this image is {true} ({truth.where}), not {wnid}")
    return wnids


def number_classes(train: Images, val: Images, val_wnids: list[str]) -> tuple[list[Line], list[Line], list[Class]]:
    """Return the training list, the validation list, and the classes.

    The classes are those with training images, sorted by WordNet id and numbered without gaps. Validation images of
    other classes are left out. The group of a class that is not in ImageNet is empty.
    """
    known = {each.name: each for each in read_classes()}
    wnids = sorted({wnid for _, wnid in train.found})
    label = {wnid: number for number, wnid in enumerate(wnids)}
    val_list = [(path, label[wnid]) for (path, _), wnid in zip(val.found, val_wnids, strict=True) if wnid in label]
    if not val_list:
        raise UserError(f"{val.folder}: no validation image belongs to the {len(wnids)} classes with training images")
    classes = [
        Class(label[wnid], wnid, known[wnid].words, known[wnid].group)
        if wnid in known
        else Class(label[wnid], wnid, "", "")
        for wnid in wnids
    ]
    return [(path, label[wnid]) for path, wnid in train.found], val_list, classes


def _say_counts(train: Images, val: Images, val_listed: int, wnids: list[str], truth: Truth | None) -> None:
    """Print the numbers of images and classes, with warnings where they differ from ImageNet's."""
    print(f"{len(train.found)} training images and {val_listed} validation images in {len(wnids)} classes")
    if len(wnids) != CLASSES:
        _warn(
            f"found {len(wnids)} classes, ImageNet has {CLASSES}: they are numbered 0 to {len(wnids) - 1}, not as "
            f"in the paper; {len(val.found) - val_listed} validation images of other classes are left out"
        )
    elif len(train.found) != TRAIN_IMAGES:
        _warn(f"found {len(train.found)} training images, ImageNet has {TRAIN_IMAGES}{_short_classes(train, truth)}")
    if len(val.found) != VAL_IMAGES:
        _warn(f"found {len(val.found)} validation images, ImageNet has {VAL_IMAGES}")
    if any(wnid for _, wnid in val.found):
        _warn("the paths in val.txt have class folders, but Caffe's and the paper's have none: the checksums differ")
    known = {each.name for each in read_classes()}
    if strange := [wnid for wnid in wnids if wnid not in known]:
        _warn(
            f"{_some(strange)}: not in ImageNet's {CLASSES} classes, so the groups are unknown, and classes.txt is "
            "written instead of classes.csv"
        )
    for images in (train, val):
        if images.others:
            _warn(f"{images.folder}: {len(images.others)} other files are not in the list: {_some(images.others)}")


def _short_classes(train: Images, truth: Truth | None) -> str:
    """Describe the classes whose number of training images differs from the expected one; "" if there is none."""
    count = Counter(wnid for _, wnid in train.found)
    expected = truth.train_images if truth else {}
    other = [f"{wnid} ({n} of {expected[wnid]})" for wnid, n in count.items() if expected.get(wnid, n) != n]
    return f": {_some(other)}" if other else ""


def _some(names: list[str]) -> str:
    """Return up to five names as text, and the number of further ones."""
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _warn(message: str) -> None:
    """Write a warning to standard error."""
    print(f"warning: {message}", file=sys.stderr, flush=True)


def write_oddities(path: Path, oddities: Oddities) -> None:
    """Write the table of oddities with the columns: path relative to the table, oddity, effect on the stored image."""
    rows = [(image, odd.what, odd.effect) for image in sorted(oddities) for odd in oddities[image]]
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([("path", "oddity", "effect"), *rows])
    write_text(path, text.getvalue())
    counts = Counter(what for _, what, _ in rows)
    listed = ", ".join(f"{count} {what}" for what, count in sorted(counts.items()))
    print(f"{path}: {listed or 'every image is a plain JPEG'}")
    if stop := [image for image in sorted(oddities) if any(odd.stops for odd in oddities[image])]:
        _warn(
            f"{_some(stop)}: tools.build_lmdb stops at such images unless it is run with --on_error skip or --on_error "
            "caffe (in a recipe `images: {on_error: caffe}`, as in the paper's recipe)"
        )


def _sources(
    archives: Path | None, train: Path | None, val: Path | None, truth: Path | None
) -> tuple[Path, Path, Path | None]:
    """Return the paths of training images, validation images and development kit, from the options or ``archives``."""
    found: dict[str, Path] = {}
    missing = []
    for given, name, option in ((train, TRAIN_TAR, "--train"), (val, VAL_TAR, "--val"), (truth, DEVKIT, "--devkit")):
        path = given or (archives / name if archives else None)
        if path and path.exists():
            found[option] = path
        elif given:
            raise UserError(f"{given}: no such file or folder; {option} needs {name} or the folder of its images")
        elif option != "--devkit" or "--val" not in found or found["--val"].is_file():
            # the classes of validation images in class folders are known without a development kit
            missing.append(f"{name} ({option})")
    if missing:
        where = f"{archives}: " if archives else ""
        raise UserError(
            f"{where}missing: {', '.join(missing)}; download it from image-net.org, and give the folder with all "
            "archives (`python -m data_prep.ilsvrc FOLDER --out DIR`), or each archive or unpacked folder by its option"
        )
    return found["--train"], found["--val"], found.get("--devkit")


@command
def main(argv: list[str] | None = None) -> int | None:
    """Write the lists from the command line."""
    parser = ArgumentParser(
        prog="python -m data_prep.ilsvrc",
        description="Write Caffe's image lists from ImageNet's archives or unpacked images.",
        epilog="example: python -m data_prep.ilsvrc ~/Downloads --out data/ilsvrc2012\n"
        "         python -m data_prep.ilsvrc --train imagenet/train --val imagenet/val --val-list val.txt "
        "--out data/ilsvrc2012",
    )
    parser.add_argument(
        "archives",
        metavar="ARCHIVES",
        nargs="?",
        type=Path,
        help=f"folder with {TRAIN_TAR}, {VAL_TAR} and {DEVKIT}",
    )
    parser.add_argument("--train", type=Path, metavar="PATH", help="training archive, or folder of class folders")
    parser.add_argument(
        "--val", type=Path, metavar="PATH", help="validation archive, or folder, flat or with class folders"
    )
    classes = parser.add_mutually_exclusive_group()
    classes.add_argument("--devkit", type=Path, metavar="PATH", help="development kit, archive or folder")
    classes.add_argument(
        "--val-list", type=Path, metavar="LIST", help="Caffe's val.txt, instead of the development kit"
    )
    parser.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="the dataset's folder, for example data/ilsvrc2012"
    )
    args = parser.parse_args(argv)
    if args.archives and not args.archives.is_dir():
        raise UserError(
            f"{args.archives}: no such folder; download {TRAIN_TAR}, {VAL_TAR} and {DEVKIT} from image-net.org and "
            f"give their folder: `make ilsvrc ARCHIVES=FOLDER`, or `python -m data_prep.ilsvrc FOLDER --out {args.out}`"
        )
    train, val, kit = _sources(args.archives, args.train, args.val, args.devkit or args.val_list)
    out = args.out.absolute()
    with lock(out.parent / f".{out.name}.lock", str(args.out), print):
        truth = read_val_list(args.val_list) if args.val_list else read_devkit(kit) if kit else None
        make(train, val, truth, out)
    print(f"to compare the lists with the paper's: python -m data_prep.verify {args.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
