"""Build all data that a recipe's networks read: images, lists of the halves, databases, mean images.

    python -m transfer_caffe.data --recipe demo
    python -m transfer_caffe.data --recipe paper --copies       # for real Caffe, which cannot read views

data/photos/random0/A then holds train.txt, val.txt, classes.txt, train_lmdb, val_lmdb and mean.binaryproto, and so does
the folder of each half of each split of the recipe. Existing parts are kept. Each part is written atomically, so the
program may be killed and started again at any time. With `images: {views: true}` the images are decoded once, into the
database of the split `whole`, and the halves are views of that database or copies from it.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transfer_caffe.experiment.read import load_recipe
from transfer_caffe.experiment.recipe import Recipe
from transfer_caffe.utils.errors import ArgumentParser, UserError, command
from transfer_caffe.utils.files import read_json, sha256, write_json
from transfer_caffe.utils.locks import lock

# NumPy, OpenCV and lmdb are only imported where data is built, so that checking finished data is fast

PHOTOS = "photos"
"""The demo's dataset, which this program creates itself."""

CUT_FROM = "cut_from.json"
"""File in the folder of a split with the SHA-256 checksums of the lists from which it was made."""

Say = Callable[[str], None]


def make_data(recipe: Recipe, data: str | os.PathLike[str] = "data", say: Say = print, copies: bool = False) -> None:
    """Build the missing parts of a recipe's data in the folder ``data``.

    Raise UserError for existing parts that were built with other settings. With ``copies``, write databases instead of
    views, for real Caffe.
    """
    data = Path(data)
    require_lists(recipe, data)
    with lock(data / f".{Path(recipe.dataset).name}.lock", f"the data of {recipe.name}", say):
        make_images(recipe, data, say)
        whole = recipe.data_folder(data, "whole")
        splits = [*["whole"] * recipe.images.views, *(network.split for network in recipe.networks())]
        for split in dict.fromkeys(splits):
            make_lists(recipe, data, split, say)
        for folder in dict.fromkeys([*[whole] * recipe.images.views, *folders(recipe, data)]):
            for part in ("train", "val"):
                if recipe.images.views and folder != whole:
                    take_database(recipe, whole, folder, part, copies, say)
                else:
                    make_database(recipe, data, folder, part, say)
        make_means(folders(recipe, data), say)


def folders(recipe: Recipe, data: Path) -> list[Path]:
    """Return the folders whose data or mean image the recipe's networks use."""
    networks = recipe.networks()
    needed = [network.data_folder(data) for network in networks] + [network.mean_folder(data) for network in networks]
    return list(dict.fromkeys(needed))


def missing(recipe: Recipe, data: Path, copies: bool = False) -> list[Path]:
    """Return the paths that `make_data` would create; files that exist are complete, so only names are checked."""
    whole, used = [recipe.data_folder(data, "whole")] * recipe.images.views, folders(recipe, data)
    absent = []
    for folder in dict.fromkeys([*whole, *used]):
        names = ["train.txt", "val.txt", "train_lmdb", "val_lmdb", *["mean.binaryproto"] * (folder in used)]
        absent += [folder / name for name in names if not (folder / name).exists()]
        if copies:
            from transfer_caffe.formats.views import is_view

            absent += [folder / name for name in ("train_lmdb", "val_lmdb") if is_view(folder / name)]
    return absent


def require_lists(recipe: Recipe, data: Path) -> None:
    """Raise UserError unless the image lists of the recipe's dataset exist or this program creates them."""
    folder = recipe.dataset_folder(data)
    for part in () if recipe.dataset == PHOTOS else ("train", "val"):
        if not (folder / f"{part}.txt").is_file():
            how = (
                "create both with `make ilsvrc ARCHIVES=FOLDER`"
                if folder.name == "ilsvrc2012"
                else "write both, with lines `relative/path label`, or create them from a tree of class folders with "
                f"`python -m transfer_caffe.data_prep.folders IMAGES --out {folder} --val-images-per-class N`"
            )
            raise UserError(
                f"{folder / part}.txt: no such image list; the dataset {recipe.dataset} of recipe {recipe.name} needs "
                f"train.txt and val.txt there: {how}"
            )


def make_images(recipe: Recipe, data: Path, say: Say) -> None:
    """Create the images of the demo's dataset if the recipe uses it."""
    folder = recipe.dataset_folder(data)
    if recipe.dataset == PHOTOS:
        from transfer_caffe.data_prep import photos

        if not photos.is_made(folder):
            _remove_partial(folder)
            say(f"{folder}: creating the images")
            photos.make(folder, say=say)


def make_lists(recipe: Recipe, data: Path, split: str, say: Say) -> None:
    """Write the image lists of a split; raise UserError if existing ones were made from other lists of the dataset."""
    out = recipe.data_folder(data, split)
    source = recipe.dataset_folder(data)
    beside = source / "classes.csv"
    cut_from = {name: sha256(source / name) for name in ("train.txt", "val.txt")}
    cut_from |= {beside.name: sha256(beside)} if beside.exists() else {}
    if out.exists():
        _require_cut_from(out, cut_from)
        return
    _remove_partial(out)
    from transfer_caffe.data_prep import split as cut
    from transfer_caffe.data_prep.classes import read_classes
    from transfer_caffe.formats import image_list

    paths = {part: str(source / f"{part}.txt") for part in ("train", "val")}
    both = {part: image_list.read_list(path) for part, path in paths.items()}
    classes = read_classes(beside) if beside.exists() else None
    count = cut.count_classes(both, paths, classes)
    say(f"{out}: image lists")
    if match := re.fullmatch(r"random(\d+)", split):
        cut.write_halves(both, cut.random_split(count, int(match[1])), out)
    elif split == "natman":
        if classes is None and count == cut.IMAGENET_COUNT:
            classes = read_classes()
        if classes is None:
            raise UserError(f"{beside}: no such class file; the split natman needs the groups of the classes")
        cut.write_halves(both, cut.natman_split(classes), out)
    else:
        if match := re.fullmatch(r"reduced(\d+)", split):
            both["train"] = cut.reduced_list(both["train"], int(match[1]))
        cut.write_whole(both, count, out)
    write_json(out / CUT_FROM, cut_from)


def _require_cut_from(out: Path, cut_from: dict[str, str]) -> None:
    record = out / CUT_FROM
    if not record.exists():
        return  # made with data_prep.split: the user is responsible for it
    if read_json(record) != cut_from:
        raise UserError(
            f"{out} was made from other lists than those that the dataset has now ({', '.join(cut_from)}); restore the "
            f"former lists, or remove {out} to make it again (networks trained on it were then trained on other data)"
        )


def make_database(recipe: Recipe, data: Path, folder: Path, part: str, say: Say) -> None:
    """Build FOLDER/PART_lmdb from FOLDER/PART.txt; raise UserError if it exists with another list or other settings."""
    database, image_list, images = folder / f"{part}_lmdb", _list_of(folder, part), recipe.images
    settings = _settings(recipe)
    root = recipe.dataset_folder(data) / (images.root if part == "train" else images.val_root)
    if database.exists():
        _require_made_so(database, settings | {"list_sha256": sha256(image_list)}, views=False)
        _require_made_of(database, root, image_list)
        return
    _forget(database, part)
    from transfer_caffe.tools import build_lmdb

    say(f"{database}: images")
    build_lmdb.build(str(root), str(image_list), str(database), build_lmdb.Settings(**settings), recipe.images.on_error)


def take_database(recipe: Recipe, whole: Path, folder: Path, part: str, copies: bool, say: Say) -> None:
    """Make FOLDER/PART_lmdb from WHOLE/PART_lmdb: a view, or with ``copies`` an LMDB with the copied records."""
    database, image_list = folder / f"{part}_lmdb", _list_of(folder, part)
    from transfer_caffe.formats.views import is_view

    if database.exists():
        _require_made_so(database, _settings(recipe) | {"list_sha256": sha256(image_list)}, views=True)
        if not (copies and is_view(database)):
            return
        shutil.rmtree(database)  # a view can be rebuilt in seconds if the copy fails
    else:
        _forget(database, part)
    _remove_partial(database)
    from transfer_caffe.tools import split_lmdb

    say(f"{database}: {'records copied from' if copies else 'a view of'} {whole / f'{part}_lmdb'}")
    split_lmdb.split(whole / f"{part}_lmdb", str(image_list), str(database), view=not copies)


def _settings(recipe: Recipe) -> dict[str, Any]:
    images = recipe.images
    return {
        "shuffle": True,  # both parts, as in Caffe's create_imagenet.sh
        "seed": images.shuffle_seed,
        "resize_height": images.resize[0],
        "resize_width": images.resize[1],
        "encoded": images.encoded,
        "gray": images.gray,
    }


def _list_of(folder: Path, part: str) -> Path:
    image_list = folder / f"{part}.txt"
    if not image_list.is_file():
        raise UserError(
            f"{image_list}: no such image list, although {folder.parent} exists; remove that folder to build it again"
        )
    return image_list


def _forget(database: Path, part: str) -> None:
    """Remove the mean image of a training database that does not exist any more."""
    if part == "train":
        (database.parent / "mean.binaryproto").unlink(missing_ok=True)


def _require_made_so(database: Path, settings: dict[str, Any], views: bool) -> None:
    from transfer_caffe.formats.views import VIEW

    record = next((path for path in (database / VIEW, database / "build.json") if path.exists()), None)
    if record is None:
        return  # made with convert_imageset: the user is responsible for it
    made = read_json(record)
    if bool(made.get("database") or made.get("copied_from")) != views:
        how = "built from the images" if views else "made from the database of all images"
        raise UserError(
            f"{database} was {how}, but the recipe has `views: {str(views).lower()}` now, which changes the order of "
            "the records; restore the recipe, or remove the database to build it again (networks trained on it were "
            "then trained on other data)"
        )
    for key, value in settings.items():
        if made.get(key, False if key == "gray" else None) != value:  # older records do not have it
            raise UserError(
                f"{database} was built with {key} {made.get(key)}, but the recipe now has {value}; remove it to build "
                "it again (networks trained on it were then trained on other data)"
            )


def _require_made_of(database: Path, root: Path, image_list: Path) -> None:
    """Raise UserError if a database was built from other images: those of another folder, which are not the same files.

    A folder that was copied or renamed has the same images: the first, middle and last one of the list are compared.
    """
    record = database / "build.json"
    made = read_json(record).get("root") if record.exists() else None  # relative to the folder of the command
    before = Path(made or root)
    if not before.is_dir() or not root.is_dir() or before.samefile(root):
        return
    from transfer_caffe.formats.image_list import read_list

    paths = [path for path, _ in read_list(image_list)]
    for path in {paths[0], paths[len(paths) // 2], paths[-1]}:
        old, new = (folder / path.lstrip("/") for folder in (before, root))
        if old.is_file() and new.is_file() and old.read_bytes() != new.read_bytes():
            raise UserError(
                f"{database} was built from the images in {before}, but the recipe has those in {root}; remove it to "
                "build it again (networks trained on it were then trained on other data)"
            )


def make_means(folders: list[Path], say: Say) -> None:
    """Compute missing FOLDER/mean.binaryproto, the means of the training images, all in one pass."""
    missing = [folder for folder in folders if not (folder / "mean.binaryproto").exists()]
    if not missing:
        return
    from transfer_caffe.formats.views import open_records
    from transfer_caffe.tools import compute_mean

    for folder in missing:
        say(f"{folder / 'mean.binaryproto'}: mean image")
    means = compute_mean.mean_images([open_records(folder / "train_lmdb") for folder in missing])
    for folder, mean in zip(missing, means, strict=True):
        compute_mean.write_mean(folder / "mean.binaryproto", mean)


def _remove_partial(path: Path) -> None:
    """Remove temporary files that a killed writer of ``path`` left beside it. The lock must be held."""
    for partial in path.parent.glob(f".{path.name}.*.tmp"):
        if partial.is_dir():
            shutil.rmtree(partial)
        else:
            partial.unlink()


@command
def main(argv: list[str] | None = None) -> int | None:
    """Run the command line."""
    parser = ArgumentParser(
        prog="python -m transfer_caffe.data",
        description="Build the missing image lists, databases and mean images of a recipe.",
        epilog="example: python -m transfer_caffe.data --recipe demo",
    )
    parser.add_argument("--recipe", required=True, help="a recipe's name or its YAML file")
    parser.add_argument("--data", default="data", type=Path, metavar="DIR", help="folder of datasets (default: data)")
    parser.add_argument(
        "--copies", action="store_true", help="write copies instead of views, for real Caffe, which cannot read views"
    )
    args = parser.parse_args(argv)
    recipe = load_recipe(args.recipe)
    made: list[str] = []

    def say(line: str) -> None:
        made.append(line)
        print(line, flush=True)

    make_data(recipe, args.data, say, args.copies)
    print(f"the data of {recipe.name} is complete" + ("" if made else " already"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
