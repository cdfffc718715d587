"""Tests of data_prep.ilsvrc on small archives and folders: the lists, subsets, interrupted and repeated runs."""

# ruff: noqa: F401, F811 - fixtures come from small_ilsvrc

# ruff: noqa: F401 - fixtures come from small_ilsvrc

import csv
import errno
import fcntl
import os
import shutil
import subprocess
import sys
import tarfile
import threading
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
from support.small_ilsvrc import (
    IDS,
    NAMES,
    TRAIN_LIST,
    VAL_LIST,
    error_of,
    everything,
    fails,
    jpeg,
    meta_mat,
    mini,
    out,
    run,
    tar,
)

from transfer_caffe.data_prep import archives, ilsvrc, ilsvrc_images
from transfer_caffe.data_prep.classes import read_classes
from transfer_caffe.data_prep.devkit import read_val_list
from transfer_caffe.data_prep.ilsvrc import main
from transfer_caffe.formats.image_list import read_list, write_list
from transfer_caffe.utils.errors import UserError

# --- the output


def test_lists_are_in_caffes_order_and_labels_in_that_of_the_wordnet_ids(run, out):
    assert run() == 0
    assert (out / "train.txt").read_bytes() == "".join(f"{name} {label}\n" for name, label in TRAIN_LIST).encode()
    assert (out / "val.txt").read_bytes() == "".join(f"{name} {label}\n" for name, label in VAL_LIST).encode()
    assert TRAIN_LIST[0][0].endswith("_10026.JPEG") and TRAIN_LIST[1][0].endswith("_1006.JPEG")


def test_images_are_looked_at_while_they_are_unpacked_and_not_again(run, monkeypatch):
    monkeypatch.setattr(ilsvrc_images, "look", None)
    assert run() == 0


def test_every_image_is_unpacked_byte_for_byte_where_the_recipe_looks_for_it(run, out, mini):
    assert run() == 0
    images = {f"{wnid}/{name}": data for wnid, members in mini.train.items() for name, data in members}
    assert everything(out / "train") == images
    assert everything(out / "val") == dict(mini.val)


def test_classes_have_words_and_groups_by_their_wordnet_id(run, out):
    assert run() == 0
    classes = read_classes(out / "classes.csv")
    assert [(c.name, c.group) for c in classes] == [(wnid, "natural") for wnid in NAMES]
    assert classes[0].words == "tench, Tinca tinca"


def test_the_order_in_the_archives_does_not_matter(run, out, mini):
    mini.train = {wnid: images[::-1] for wnid, images in reversed(mini.train.items())}
    mini.val.reverse()
    assert run() == 0
    assert read_list(out / "train.txt") == TRAIN_LIST
    assert read_list(out / "val.txt") == VAL_LIST


def test_archives_packed_with_tar_c_of_a_folder_are_taken_as_well(run, out, mini):
    here = tarfile.TarInfo("./")
    here.type = tarfile.DIRTYPE
    mini.val = [(here, b""), *((f"./{name}", data) for name, data in mini.val)]
    assert run() == 0
    assert read_list(out / "val.txt") == VAL_LIST


def test_the_thousand_classes_give_no_warning_of_numbers_that_are_not_the_papers(run, out, monkeypatch, capsys):
    monkeypatch.setattr(ilsvrc, "CLASSES", 3)
    monkeypatch.setattr(ilsvrc, "TRAIN_IMAGES", 6)
    monkeypatch.setattr(ilsvrc, "VAL_IMAGES", 4)
    assert run() == 0
    assert capsys.readouterr().err == ""


def test_training_images_that_are_missing_are_counted_and_their_classes_named(run, mini, monkeypatch, capsys):
    monkeypatch.setattr(ilsvrc, "CLASSES", 3)
    mini.meta = meta_mat(counts={"n02085620": 5})
    assert run() == 0
    text = capsys.readouterr().err
    assert "found 6 training images, ImageNet has 1281167: n02085620 (2 of 5)" in text
    assert "n01440764" not in text


def test_of_a_part_of_the_classes_labels_have_no_gaps_and_other_validation_images_are_left_out(run, out, mini, capsys):
    del mini.train["n01440764"]
    assert run() == 0
    assert read_list(out / "val.txt") == [("ILSVRC2012_val_00000002.JPEG", 1), ("ILSVRC2012_val_00000003.JPEG", 0)]
    assert {label for _, label in read_list(out / "train.txt")} == {0, 1}
    assert [c.name for c in read_classes(out / "classes.csv")] == ["n02085620", "n02123045"]
    [warning] = [line for line in capsys.readouterr().err.splitlines() if "classes, ImageNet has" in line]
    assert "found 2 classes, ImageNet has 1000" in warning
    assert "2 validation images of other classes are left out" in warning


def test_classes_that_are_not_imagenets_have_no_groups_and_no_class_file(run, out, mini, capsys):
    mini.train["n99999999"] = [("n99999999_1.JPEG", jpeg())]
    assert run() == 0
    assert "n99999999: not in ImageNet's 1000 classes" in capsys.readouterr().err
    assert (out / "classes.txt").read_text() == "0 n01440764\n1 n02085620\n2 n02123045\n3 n99999999\n"
    assert not (out / "classes.csv").exists()


def test_validation_images_of_absent_classes_alone_are_an_error(fails, mini):
    mini.train = {"n99999999": [("n99999999_1.JPEG", jpeg())]}
    assert "no validation image belongs to the 1 classes" in fails()


# --- folders instead of archives


@pytest.mark.parametrize("sort_val", [False, True])
def test_unpacked_folders_are_linked_and_nothing_is_copied(tmp_path, out, mini, sort_val, capsys):
    images = mini.unpack(tmp_path / "my images", sort_val)
    before = everything(images)
    kit = ["--devkit", str(images / "ILSVRC2012_devkit_t12")]
    argv = ["--train", str(images / "train"), "--val", str(images / "val"), "--out", str(out)]
    assert main(argv + ([] if sort_val else kit)) == 0
    assert (out / "train").is_symlink() and (out / "train").samefile(images / "train")
    assert (out / "val").is_symlink() and (out / "val").samefile(images / "val")
    assert read_list(out / "train.txt") == TRAIN_LIST
    val = read_list(out / "val.txt")
    assert [(name.rpartition("/")[2], label) for name, label in val] == VAL_LIST
    assert all((out / "val" / name).is_file() for name, _ in val)
    assert everything(images) == before
    assert ("class folders" in capsys.readouterr().err) == sort_val
    assert main(argv + kit) == 0  # again: for class folders the kit gives the same classes


def test_folders_in_the_output_itself_are_used_as_they_are(out, mini):
    mini.unpack(out)
    argv = [
        "--train",
        str(out / "train"),
        "--val",
        str(out / "val"),
        "--devkit",
        str(out / "ILSVRC2012_devkit_t12/data"),
    ]
    assert main([*argv, "--out", str(out)]) == 0
    assert not (out / "train").is_symlink()
    assert read_list(out / "train.txt") == TRAIN_LIST


def test_caffes_own_list_takes_the_place_of_the_development_kit(tmp_path, run, out):
    number = {c.name: c.index for c in read_classes()}
    by_id = {n: wnid for wnid, n in IDS.items()}
    lines = [(f"ILSVRC2012_val_{i:08d}.JPEG", number[by_id[n]]) for i, n in enumerate((2, 1, 3, 2), 1)]
    write_list(tmp_path / "caffe_val.txt", lines)
    assert run("--val-list", tmp_path / "caffe_val.txt") == 0
    assert read_list(out / "val.txt") == VAL_LIST


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x.JPEG 0\n", "line 1: 'x.JPEG' is not a name"),
        ("ILSVRC2012_val_00000001.JPEG 1000\n", "line 1: label 1000"),
        ("ILSVRC2012_val_00000001.JPEG 1\n" * 2, "line 2: .*twice"),
    ],
)
def test_a_list_that_is_not_caffes_is_an_error_that_names_the_line(tmp_path, text, message):
    (tmp_path / "val.txt").write_text(text)
    with pytest.raises(UserError, match=message):
        read_val_list(tmp_path / "val.txt")


def test_other_files_in_the_folders_are_named_and_not_listed(tmp_path, out, mini, capsys):
    images = mini.unpack(tmp_path / "i")
    for name in ("train/n01440764/notes.txt", "train/n01440764/n02085620_5.JPEG", "val/README", "train/.hidden"):
        (images / name).write_text("x")
    kit = images / "ILSVRC2012_devkit_t12"
    argv = ["--train", images / "train", "--val", images / "val", "--devkit", kit, "--out", out]
    assert main([str(word) for word in argv]) == 0
    text = capsys.readouterr().err
    assert "2 other files are not in the list: n01440764/n02085620_5.JPEG, n01440764/notes.txt" in text
    assert "1 other files are not in the list: README" in text and "hidden" not in text
    assert read_list(out / "train.txt") == TRAIN_LIST


FIRST_VAL = VAL_LIST[0][0]


def emptied(folder):
    shutil.rmtree(folder)
    folder.mkdir()


def val_for_train(images):
    shutil.rmtree(images / "train")
    shutil.copytree(images / "val", images / "train")


def moved_into_class(images, wnid, move):
    (images / "val" / wnid).mkdir()
    move(images / "val" / FIRST_VAL, images / "val" / wnid / FIRST_VAL)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda images: emptied(images / "train/n02123045"), "n02123045: this class has no"),
        (lambda images: emptied(images / "train"), "no class folders"),
        (val_for_train, "no class folders"),
        (lambda images: emptied(images / "val"), "no validation images"),
        (lambda images: moved_into_class(images, "n01440764", shutil.copy), "have the same name"),
        (lambda images: moved_into_class(images, "n02123045", os.rename), "the class of this image is n01440764"),
        (lambda images: os.remove(images / "ILSVRC2012_devkit_t12/data/meta.mat"), "no data/meta.mat and"),
    ],
)
def test_folders_that_are_not_imagenets_are_errors(tmp_path, out, mini, capsys, change, message):
    images = mini.unpack(tmp_path / "i")
    change(images)
    kit = images / "ILSVRC2012_devkit_t12"
    text = error_of(capsys, "--train", images / "train", "--val", images / "val", "--devkit", kit, "--out", out)
    assert message in text
    assert not (out / "train.txt").exists()


def test_flat_validation_images_need_a_truth(tmp_path, out, mini, capsys):
    images = mini.unpack(tmp_path / "i")
    text = error_of(capsys, "--train", images / "train", "--val", images / "val", "--out", out)
    assert "its class is unknown" in text and "--devkit" in text


def test_a_folder_of_class_archives_is_told_from_one_of_images(tmp_path, out, mini, capsys):
    (tmp_path / "tars").mkdir()
    (tmp_path / "tars/n01440764.tar").write_bytes(tar([]))
    images = mini.unpack(tmp_path / "i", sort_val=True)
    assert "contains class archives" in error_of(
        capsys, "--train", tmp_path / "tars", "--val", images / "val", "--out", out
    )


def test_archives_are_never_unpacked_into_the_users_own_folder(tmp_path, run, out, mini, capsys):
    images = mini.unpack(tmp_path / "mine", sort_val=True)
    before = everything(images)
    assert main(["--train", str(images / "train"), "--val", str(images / "val"), "--out", str(out)]) == 0
    assert run() == 2
    assert "is a link to" in capsys.readouterr().err
    assert everything(images) == before


def test_other_images_than_those_in_the_output_are_refused(tmp_path, run, out, mini, capsys):
    assert run() == 0
    images = mini.unpack(tmp_path / "mine", sort_val=True)
    text = error_of(capsys, "--train", images / "train", "--val", images / "val", "--out", out)
    assert "train exists already" in text
    assert not (out / "train").is_symlink()


# --- repeated, interrupted, killed and concurrent runs


def test_a_second_run_changes_nothing_and_looks_at_nothing(run, out, monkeypatch, capsys):
    assert run() == 0
    before, times = everything(out), {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    monkeypatch.setattr(ilsvrc_images, "look", None)
    monkeypatch.setattr(archives, "unpack", None)
    capsys.readouterr()
    assert run() == 0
    assert "complete already" in capsys.readouterr().out
    assert everything(out) == before
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == times


def test_lists_that_are_others_are_the_users_and_stay(run, out, fails):
    assert run() == 0
    (out / "train.txt").write_text("mine 0\n")
    assert "train.txt with other content" in fails()
    assert (out / "train.txt").read_text() == "mine 0\n"


@pytest.mark.parametrize("stop_after", range(1, 6))
def test_stopped_anywhere_it_goes_on_with_the_classes_that_are_missing(run, out, mini, monkeypatch, stop_after):
    calls = iter(range(100))
    mini.train["n01440764"][0] = (NAMES["n01440764"][0], b"")  # an oddity in a class that an interrupted run unpacked

    def interrupted(data, look_at=ilsvrc_images.look_at):
        if next(calls) == 4 + stop_after:  # after the validation images
            raise KeyboardInterrupt
        return look_at(data)

    with monkeypatch.context() as patch:
        patch.setattr(ilsvrc_images, "look_at", interrupted)
        assert run() == 130
    done = sorted(path.name for path in (out / "train").iterdir())
    assert done == [wnid for wnid, end in zip(NAMES, (3, 5, 6), strict=True) if end <= stop_after]
    assert all(len(list((out / "train" / wnid).iterdir())) == len(NAMES[wnid]) for wnid in done)
    assert not (out / "train.txt").exists()
    unpacked = []
    real = archives.unpack
    monkeypatch.setattr(archives, "unpack", lambda *a: unpacked.append(a[-1].name) or real(*a))
    assert run() == 0
    assert unpacked == [wnid for wnid in NAMES if wnid not in done]
    assert read_list(out / "train.txt") == TRAIN_LIST
    assert (out / "oddities.csv").read_text().count("empty file") == 1


def test_what_a_killed_run_left_is_removed(run, out):
    for name in ("train/.n01440764.0123abcd.tmp", ".val.0123abcd.tmp", ".lists.x_y"):
        (out / name).mkdir(parents=True)
        (out / name / "part").write_text("x")
    (out / "train/.mine").write_text("x")
    assert run() == 0
    assert sorted(path.name for path in out.rglob(".*")) == [".mine"]


def test_two_at_once_wait_for_each_other_with_one_line(run, out, capsys):
    out.parent.mkdir()
    with open(out.parent / ".out.lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        thread = threading.Thread(target=run)
        thread.start()
        text = ""
        while "is using it; waiting" not in text:
            time.sleep(0.01)
            text += capsys.readouterr().out
        assert not out.exists()
    thread.join()
    assert text.count("\n") == 1
    assert read_list(out / "train.txt") == TRAIN_LIST


def test_a_class_that_the_archive_has_not_is_an_error(run, out, fails):
    assert run() == 0
    (out / "train/n03000000").mkdir()
    assert "n03000000: there is no such class in" in fails()


def test_a_full_disk_is_one_line_and_leaves_whole_classes(run, out, fails, monkeypatch):
    real, wrote = open, []

    def open_on_a_full_disk(path, mode="r", **options):
        if mode == "xb" and "n02085620" in str(path):
            wrote.append(path)
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(path, mode, **options)

    monkeypatch.setattr(archives, "open", open_on_a_full_disk, raising=False)
    text = fails()
    assert wrote and "no space left" in text and "n02085620" in text and ".tmp" not in text
    assert [path.name for path in (out / "train").iterdir()] == ["n01440764"]


def test_a_disk_that_is_too_small_is_told_before_anything_is_unpacked(run, out, fails, monkeypatch):
    monkeypatch.setattr(ilsvrc_images.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(1, 1, 1000))
    assert "GB are still to be unpacked" in fails()
    assert not list(out.iterdir())
    monkeypatch.undo()
    assert run() == 0
    monkeypatch.setattr(ilsvrc_images.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(1, 1, 0))
    assert run() == 0  # nothing is left to unpack


def test_a_part_of_a_file_that_is_on_disk_already_is_not_counted_as_needed(run, out, monkeypatch, mini):
    assert run() == 0
    shutil.rmtree(out / "train/n02123045")
    size = round(1.02 * len(tar(mini.train["n02123045"])))
    monkeypatch.setattr(ilsvrc_images.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(1, 1, size))
    assert run() == 0


# --- oddities


def odd_images():
    exif = b"\xff\xe1\0\x22Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0"
    return {
        "PNG named JPEG": cv2.imencode(".png", np.zeros((9, 8, 3), np.uint8))[1].tobytes(),
        "EXIF orientation 6": jpeg()[:2] + exif + jpeg()[2:],
        "JPEG without end": jpeg()[:-2],
        "empty file": b"",
        "no image": b"<html>",
    }


@pytest.mark.parametrize("unpacked", [False, True])
def test_oddities_are_listed_and_counted(tmp_path, run, out, mini, capsys, unpacked):
    odd = odd_images()
    names = [f"n02123045_{9 - i}.JPEG" for i in range(len(odd))]
    mini.train["n02123045"] = [
        *mini.train["n02123045"],
        *zip([f"n02123045_1{n[10:]}" for n in names], odd.values(), strict=True),
    ]
    mini.val[2] = (mini.val[2][0], odd["PNG named JPEG"])
    if unpacked:
        images = mini.unpack(tmp_path / "i", sort_val=True)
        assert main(["--train", str(images / "train"), "--val", str(images / "val"), "--out", str(out)]) == 0
    else:
        assert run() == 0
    with open(out / "oddities.csv", newline="") as file:
        header, *rows = csv.reader(file)
    assert header == ["path", "oddity", "effect"]
    assert [row[0] for row in rows] == sorted(row[0] for row in rows)
    assert all((out / path).exists() and effect for path, _, effect in rows)
    expected = {f"train/n02123045/n02123045_1{n[10:]}": what for n, what in zip(names, odd, strict=True)}
    val = f"val/{'n02085620/' if unpacked else ''}{mini.val[2][0]}"
    assert {path: what for path, what, _ in rows} == expected | {val: "PNG named JPEG"}
    said = capsys.readouterr()
    assert "1 EXIF orientation 6, 1 JPEG without end, 2 PNG named JPEG, 1 empty file, 1 no image" in said.out
    [warning] = [line for line in said.err.splitlines() if "--on_error skip" in line]
    stopping = {path for path, what, _ in rows if what in ("JPEG without end", "empty file", "no image")}
    assert {path for path, _, _ in rows if path in warning} == stopping


# --- the command


def test_a_long_run_shows_how_far_it_is(run, monkeypatch, capsys, mini):
    monkeypatch.setattr("transfer_caffe.utils.progress.SECONDS_BETWEEN_LINES", 0)
    mini.train["n01440764"] += [(f"n01440764_2{n}.JPEG", jpeg() + bytes(1 << 20)) for n in range(4)]
    assert run() == 0
    text = capsys.readouterr().err
    assert "MiB of training images" in text and "s left" in text


def test_the_installed_module_is_a_command(tmp_path, out, mini):
    folder = mini.write(tmp_path / "a b")
    argv = [sys.executable, "-m", "transfer_caffe.data_prep.ilsvrc", str(folder), "--out", str(out)]
    package = str(Path(__file__).parent.parent.parent)
    subprocess.run(argv, check=True, env={**os.environ, "PYTHONPATH": package}, capture_output=True)
    assert read_list(out / "train.txt") == TRAIN_LIST
