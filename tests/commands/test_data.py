"""The data stage: from image lists to databases and means; each part is written atomically, and only once."""

import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest

from transfer_caffe import data
from transfer_caffe.experiment.read import load_recipe
from transfer_caffe.formats.database import Database
from transfer_caffe.formats.proto import blob_to_array, read_binary
from transfer_caffe.formats.proto.caffe_pb2 import BlobProto
from transfer_caffe.formats.views import is_view, open_records
from transfer_caffe.utils.files import sha256

RECIPE = """\
name: small
dataset: pictures
images: {root: ../../pictures, resize: [10, 12], shuffle_seed: 3}
architecture: mini
crop: 8
mirror: true
batch: {train: 4, test: 2}
solver: {base_lr: 0.5, lr_policy: fixed, max_iter: 8, test_interval: 4}
networks:
  random0: [baseA, A3B]
  natman: [baseB]
  reduced1: [base]
"""
HERE = Path("data/pictures")
FOLDERS = [HERE / name for name in ("random0/A", "random0/B", "natman/B", "reduced1")]


@pytest.fixture(autouse=True)
def _pictures(tmp_path, monkeypatch):
    """Create four classes, two of them natural, with three training images and one validation image; chdir there."""
    monkeypatch.chdir(tmp_path)
    Path("small.yaml").write_text(RECIPE)
    HERE.mkdir(parents=True)
    draw = np.random.default_rng(0)
    for part, count in (("train", 3), ("val", 1)):
        lines = []
        for label in range(4):
            for number in range(count):
                name = f"{part}/{label}-{number}.png"
                (Path("pictures") / part).mkdir(parents=True, exist_ok=True)
                assert cv2.imwrite(f"pictures/{name}", draw.integers(0, 256, (14, 16, 3), dtype=np.uint8))
                lines.append(f"{name} {label}\n")
        (HERE / f"{part}.txt").write_text("".join(lines))
    groups = ("natural", "man-made", "man-made", "natural")
    rows = "".join(f"{index},c{index},class {index},{group}\n" for index, group in enumerate(groups))
    (HERE / "classes.csv").write_text("index,name,words,group\n" + rows)


def make() -> int:
    return data.main(["--recipe", "small.yaml"])


def state() -> dict[Path, str]:
    return {path: sha256(path) for path in HERE.rglob("*") if path.is_file() and path.name != "lock.mdb"}


def test_every_half_of_the_recipe_gets_lists_databases_and_a_mean(capsys):
    assert make() == 0
    for folder in FOLDERS:
        for part in ("train", "val"):
            lines = (folder / f"{part}.txt").read_text().splitlines()
            database = Database(folder / f"{part}_lmdb")
            assert len(database) == len(lines)
            assert database.shape == (3, 10, 12)
        assert (folder / "classes.txt").is_file()
    assert [len(Database(folder / "train_lmdb")) for folder in FOLDERS] == [6, 6, 6, 4]
    images = [image for _, image, _ in Database(FOLDERS[0] / "train_lmdb")]
    mean = blob_to_array(read_binary(FOLDERS[0] / "mean.binaryproto", BlobProto()), "mean")
    assert np.allclose(mean[0], np.mean(images, axis=0))
    assert not (HERE / "natman/A/train_lmdb").exists()  # no network needs it
    assert "complete" in capsys.readouterr().out


def test_a_second_start_makes_nothing(capsys):
    assert make() == 0
    before = {path: path.stat().st_mtime_ns for path in HERE.rglob("*")}
    capsys.readouterr()
    assert make() == 0
    assert {path: path.stat().st_mtime_ns for path in HERE.rglob("*")} == before
    assert capsys.readouterr().out == "the data of small is complete already\n"


@pytest.mark.parametrize("views", [False, True])
def test_what_is_missing_is_what_would_be_made(views):
    if views:
        use_views()
    recipe = load_recipe("small.yaml")
    assert len(data.missing(recipe, Path("data"))) == 5 * len(FOLDERS) + 4 * views
    assert make() == 0
    assert data.missing(recipe, Path("data")) == []
    copies = [folder / f"{part}_lmdb" for folder in FOLDERS for part in ("train", "val")]
    assert set(data.missing(recipe, Path("data"), copies=True)) == (set(copies) if views else set())
    (FOLDERS[1] / "mean.binaryproto").unlink()
    assert data.missing(recipe, Path("data")) == [FOLDERS[1] / "mean.binaryproto"]


def test_what_a_kill_left_is_made_good_with_the_same_bytes():
    assert make() == 0
    whole = state()
    shutil.rmtree(HERE / "natman")
    shutil.rmtree(HERE / "random0/B/val_lmdb")
    (HERE / "random0/A/mean.binaryproto").unlink()
    for leftover in (".natman.0123abcd.tmp", "random0/B/.val_lmdb.partial"):
        (HERE / leftover).mkdir()
        (HERE / leftover / "data.mdb").write_text("half")
    assert make() == 0
    assert state() == whole
    assert not [*HERE.rglob(".*.tmp"), *HERE.rglob(".*.partial")]


def test_a_database_of_other_settings_is_refused(capsys):
    assert make() == 0
    Path("small.yaml").write_text(RECIPE.replace("shuffle_seed: 3", "shuffle_seed: 4"))
    assert make() == 2
    assert "train_lmdb was built with seed 3, but the recipe now has 4; remove it" in capsys.readouterr().err


def test_a_database_of_other_images_is_refused_and_one_of_a_copy_of_its_images_is_not(capsys):
    assert make() == 0
    shutil.copytree("pictures", "copies")
    Path("small.yaml").write_text(RECIPE.replace("../../pictures", "../../copies"))
    assert make() == 0
    for path in Path("copies").rglob("*.png"):
        assert cv2.imwrite(str(path), np.zeros((14, 16, 3), np.uint8))
    capsys.readouterr()
    assert make() == 2
    error = capsys.readouterr().err
    assert "train_lmdb was built from the images in " in error and "/pictures, but the recipe has those in " in error
    assert error.count("\n") == 1
    shutil.move("pictures", "moved")  # where the database's images are not there any more, nothing can be compared
    assert make() == 0


def test_a_database_of_another_list_is_refused(capsys):
    assert make() == 0
    with open(FOLDERS[1] / "val.txt", "a") as image_list:
        image_list.write("val/0-0.png 0\n")
    assert make() == 2
    assert "random0/B/val_lmdb was built with list_sha256" in capsys.readouterr().err


def test_a_split_of_lists_that_have_changed_since_is_refused(capsys):
    assert make() == 0
    with open(HERE / "train.txt", "a") as file:
        file.write("1_0.png 1\n")
    assert make() == 2
    assert "random0 was made from other lists than those that the dataset has now" in capsys.readouterr().err


def test_the_mean_is_made_anew_with_its_database():
    assert make() == 0
    before = (FOLDERS[0] / "mean.binaryproto").read_bytes()
    name = json.loads((FOLDERS[0] / "train_lmdb/build.json").read_text())["root"] + "/"
    first = (FOLDERS[0] / "train.txt").read_text().split(" ")[0]
    assert cv2.imwrite(name + first, np.zeros((14, 16, 3), np.uint8))
    shutil.rmtree(FOLDERS[0] / "train_lmdb")
    assert make() == 0
    assert (FOLDERS[0] / "mean.binaryproto").read_bytes() != before


def test_a_missing_image_is_named_and_leaves_no_database(capsys):
    Path("pictures/train/2-1.png").unlink()
    assert make() == 2
    error = capsys.readouterr().err
    assert "train/2-1.png" in error and error.count("\n") == 1
    assert not [path for path in HERE.rglob("train_lmdb") if "2-1" in (path.parent / "train.txt").read_text()]


def test_missing_lists_are_an_error_that_says_what_is_needed(capsys):
    (HERE / "val.txt").unlink()
    assert make() == 2
    assert "data/pictures/val.txt: no such image list" in capsys.readouterr().err


def test_natman_without_groups_is_an_error(capsys):
    (HERE / "classes.csv").unlink()
    assert make() == 2
    assert "data/pictures/classes.csv: no such class file" in capsys.readouterr().err


def use_views():
    Path("small.yaml").write_text(RECIPE.replace("shuffle_seed: 3", "shuffle_seed: 3, views: true"))


def contents(folder: Path, part: str) -> list[tuple[bytes, int]]:
    return [(image.tobytes(), label) for _, image, label in open_records(folder / f"{part}_lmdb")]


def test_with_views_all_images_are_stored_once_and_the_halves_are_views():
    use_views()
    assert make() == 0
    assert sorted(path.parent for path in HERE.rglob("data.mdb")) == [
        HERE / "whole/train_lmdb", HERE / "whole/val_lmdb"]  # fmt: skip
    assert not (HERE / "whole/mean.binaryproto").exists()  # no network needs it
    for folder in FOLDERS:
        assert is_view(folder / "train_lmdb") and (folder / "mean.binaryproto.sha256").exists()
        assert len(contents(folder, "train")) == len((folder / "train.txt").read_text().splitlines())
    labels = {label for _, label in contents(FOLDERS[0], "train")}
    assert labels == {0, 1}


def test_views_become_copies_for_real_caffe_with_the_same_records_and_means(capsys):
    use_views()
    assert make() == 0
    views = {(folder, part): contents(folder, part) for folder in FOLDERS for part in ("train", "val")}
    means = {folder: (folder / "mean.binaryproto").read_bytes() for folder in FOLDERS}
    assert data.main(["--recipe", "small.yaml", "--copies"]) == 0
    assert "random0/A/train_lmdb: records copied from data/pictures/whole/train_lmdb" in capsys.readouterr().out
    for (folder, part), records in views.items():
        assert not is_view(folder / f"{part}_lmdb")
        assert [(image.tobytes(), label) for _, image, label in Database(folder / f"{part}_lmdb")] == records
        assert (folder / "mean.binaryproto").read_bytes() == means[folder]
    before = {path: path.stat().st_mtime_ns for path in HERE.rglob("*")}
    assert make() == 0  # the embedded engine can use copies as well
    assert {path: path.stat().st_mtime_ns for path in HERE.rglob("*")} == before
    for folder in FOLDERS:
        (folder / "mean.binaryproto").unlink()
    assert make() == 0
    assert {folder: (folder / "mean.binaryproto").read_bytes() for folder in FOLDERS} == means


def test_databases_of_the_other_kind_are_refused(capsys):
    assert make() == 0
    use_views()
    assert make() == 2
    assert "train_lmdb was built from the images, but the recipe has `views: true` now" in capsys.readouterr().err
    shutil.rmtree(HERE / "random0")
    shutil.rmtree(HERE / "natman")
    shutil.rmtree(HERE / "reduced1")
    assert make() == 0
    Path("small.yaml").write_text(RECIPE)
    assert make() == 2
    assert "was made from the database of all images, but the recipe has `views: false`" in capsys.readouterr().err
