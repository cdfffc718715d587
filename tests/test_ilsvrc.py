"""data_prep.ilsvrc: ImageNet's archives, in miniature, to lists; hostile, damaged and incomplete ones."""

import csv
import errno
import fcntl
import io
import os
import re
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
from small_ilsvrc import IDS, LABELS, NAMES, Miniature, jpeg, meta_mat, tar

from data_prep import archives, ilsvrc, ilsvrc_images
from data_prep.devkit import read_val_list
from data_prep.ilsvrc import main
from data_prep.lists import read_classes, read_list, write_list
from transfer_caffe.errors import UserError

TRAIN_LIST = [(f"{wnid}/{name}", label) for label, wnid in enumerate(NAMES) for name in NAMES[wnid]]
VAL_LIST = [(f"ILSVRC2012_val_{i:08d}.JPEG", label) for i, label in enumerate(LABELS, 1)]
TRAIN, VAL, KIT = "ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar", "ILSVRC2012_devkit_t12.tar.gz"


@pytest.fixture
def mini():
    return Miniature()


@pytest.fixture
def run(tmp_path, mini):
    """Write the miniature and run the command on it; the exit code."""

    def run(*options):
        mini.write(tmp_path / "archives")
        return main([str(tmp_path / "archives"), "--out", str(tmp_path / "data/out"), *map(str, options)])

    return run


@pytest.fixture
def out(tmp_path):
    return tmp_path / "data/out"


@pytest.fixture
def fails(tmp_path, run, capsys):
    """Run the command, which must end with one line, and leave nothing outside of its output; the line."""

    def fails(*options):
        before = {path for path in tmp_path.rglob("*") if "data" not in path.parts}
        assert run(*options) == 2
        text = capsys.readouterr().err
        assert text.splitlines()[-1].startswith("python -m data_prep.ilsvrc: error: ")
        assert "Traceback" not in text
        after = {path for path in tmp_path.rglob("*") if "data" not in path.parts}
        archives = {tmp_path / "archives", *(tmp_path / "archives" / name for name in (TRAIN, VAL, KIT))}
        assert after - before <= archives
        return text.splitlines()[-1]

    return fails


def everything(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def error_of(capsys, *arguments):
    assert main([str(word) for word in arguments]) == 2
    return capsys.readouterr().err.splitlines()[-1]


# --- what it makes


def test_lists_are_in_caffes_order_and_labels_in_that_of_the_wordnet_ids(run, out):
    assert run() == 0
    assert (out / "train.txt").read_bytes() == "".join(f"{name} {label}\n" for name, label in TRAIN_LIST).encode()
    assert (out / "val.txt").read_bytes() == "".join(f"{name} {label}\n" for name, label in VAL_LIST).encode()
    assert TRAIN_LIST[0][0].endswith("_10026.JPEG") and TRAIN_LIST[1][0].endswith("_1006.JPEG")


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
    assert "6 training images are here, ImageNet has 1281167: n02085620 (2 of 5)" in text
    assert "n01440764" not in text


def test_of_a_part_of_the_classes_labels_have_no_gaps_and_other_validation_images_are_left_out(run, out, mini, capsys):
    del mini.train["n01440764"]
    assert run() == 0
    assert read_list(out / "val.txt") == [("ILSVRC2012_val_00000002.JPEG", 1), ("ILSVRC2012_val_00000003.JPEG", 0)]
    assert {label for _, label in read_list(out / "train.txt")} == {0, 1}
    assert [c.name for c in read_classes(out / "classes.csv")] == ["n02085620", "n02123045"]
    [warning] = [line for line in capsys.readouterr().err.splitlines() if "classes are here" in line]
    assert "2 classes are here, ImageNet has 1000" in warning
    assert "2 validation images of other classes are left out" in warning


def test_classes_that_are_not_imagenets_have_no_groups_and_no_class_file(run, out, mini, capsys):
    mini.train["n99999999"] = [("n99999999_1.JPEG", jpeg())]
    assert run() == 0
    assert "n99999999: none of ImageNet's 1000 classes" in capsys.readouterr().err
    assert (out / "classes.txt").read_text() == "0 n01440764\n1 n02085620\n2 n02123045\n3 n99999999\n"
    assert not (out / "classes.csv").exists()


def test_validation_images_of_absent_classes_alone_are_an_error(fails, mini):
    mini.train = {"n99999999": [("n99999999_1.JPEG", jpeg())]}
    assert "no validation image is of one of the 1 classes" in fails()


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
    assert main(argv + kit) == 0  # and again; of sorted folders the kit says the same


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
        ("x.JPEG 0\n", "line 1: 'x.JPEG' is not named"),
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
        (lambda images: moved_into_class(images, "n01440764", shutil.copy), "have one name"),
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
    assert "holds class archives" in error_of(
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


# --- twice, stopped, killed, two at once


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
    mini.train["n01440764"][0] = (NAMES["n01440764"][0], b"")  # an oddity of a class that a stopped run unpacked

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
        while "is at work on it; waiting" not in text:
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


# --- archives that are damaged, hostile, or others


def member(name, kind=tarfile.REGTYPE, link=""):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    return info


HOSTILE = {
    "absolute": member("/tmp/evil_NAME"),
    "upwards": member("../NAME"),
    "upwards behind a folder": member("n01440764/../../NAME"),
    "in a folder": member("sub/NAME"),
    "in the own folder": member("././NAME"),
    "link": member("NAME", tarfile.SYMTYPE, "/etc/passwd"),
    "hard link": member("NAME", tarfile.LNKTYPE, "../../outside"),
    "device": member("NAME", tarfile.CHRTYPE),
    "block device": member("NAME", tarfile.BLKTYPE),
    "pipe": member("NAME", tarfile.FIFOTYPE),
    "folder": member("NAME", tarfile.DIRTYPE),
    "sparse": member("NAME", tarfile.CONTTYPE),
    "other name": member("evil.sh"),
    "other class": member("n02085620_77.JPEG"),
    "other ending": member("NAME.sh"),
    "line break": member("NAME\n"),
    "not UTF-8": member("NAME\udcff"),
    "other digits": member("n01440764_١.JPEG"),
    "hidden": member(".NAME"),
    "long": member("a" * 300),
    "twice": member("TWICE"),
    "twice, with ./": member("./TWICE"),
}


@pytest.mark.parametrize("where", ["class", "val", "train"])
@pytest.mark.parametrize("attack", HOSTILE)
def test_only_plain_files_of_the_expected_names_come_out_of_an_archive(tmp_path, fails, out, mini, where, attack):
    name = {"class": "n01440764_77.JPEG", "val": "ILSVRC2012_val_00000077.JPEG", "train": "n01440765.tar"}[where]
    twice = {"class": NAMES["n01440764"][0], "val": VAL_LIST[0][0], "train": "n01440764.tar"}[where]
    info = tarfile.TarInfo(HOSTILE[attack].name.replace("NAME", name).replace("TWICE", twice))
    info.type, info.linkname = HOSTILE[attack].type, HOSTILE[attack].linkname
    data = b"evil" if info.type in (tarfile.REGTYPE, tarfile.CONTTYPE) else b""
    if where == "class":
        mini.train["n01440764"].append((info, data))
    elif where == "val":
        mini.val.append((info, data))
    if where == "train":
        real = Miniature.write

        def write(folder):
            real(mini, folder)
            classes = [(f"{wnid}.tar", tar(images)) for wnid, images in mini.train.items()]
            (folder / TRAIN).write_bytes(tar([*classes, (info, data)]))

        mini.write = write
    text = fails()
    archive = {"class": f"{TRAIN}: n01440764.tar", "val": VAL, "train": TRAIN}[where]
    assert archive in text
    shown = info.name.removeprefix("./") if attack.startswith("twice") else repr(info.name)[1:-1].rstrip("/")
    assert shown in text
    assert not os.path.exists(f"/tmp/evil_{name}")
    assert not [path for path in out.rglob("*") if path.is_file() and b"evil" in path.read_bytes()]
    # nothing of the archive that is wrong
    assert not (out / {"class": "train/n01440764", "val": "val", "train": "train"}[where]).exists() or (
        where == "train" and not list((out / "train").iterdir())
    )


@pytest.mark.parametrize("name", [TRAIN, VAL, KIT])
@pytest.mark.parametrize("kept", [0.97, 0.5, 0.1, 0.0])
def test_a_truncated_archive_is_one_line_that_names_it(tmp_path, mini, out, capsys, name, kept):
    folder = mini.write(tmp_path / "a")
    data = (folder / name).read_bytes()
    data = data.rstrip(b"\0") if name != KIT else data
    (folder / name).write_bytes(data[: int(kept * len(data))])
    text = error_of(capsys, folder, "--out", out)
    assert name in text
    assert not (out / "train.txt").exists()


def test_an_archive_that_ends_between_two_members_is_truncated_too(tmp_path, mini, out, capsys):
    folder = mini.write(tmp_path / "a")
    with tarfile.open(folder / VAL) as archive:
        third = archive.getmembers()[2]
    (folder / VAL).write_bytes((folder / VAL).read_bytes()[: third.offset])
    assert f"{VAL}: truncated or damaged at byte {third.offset}" in error_of(capsys, folder, "--out", out)
    assert not (out / "val").exists()


def test_a_class_archive_that_ends_early_is_named(tmp_path, mini, out, capsys):
    folder = mini.write(tmp_path / "a")
    classes = {wnid: tar(images) for wnid, images in mini.train.items()}
    for cut in (3000, 1536):
        classes["n02085620"] = tar(mini.train["n02085620"])[:cut]
        (folder / TRAIN).write_bytes(tar([(f"{wnid}.tar", data) for wnid, data in classes.items()]))
        assert "n02085620.tar: " in error_of(capsys, folder, "--out", out)
        assert not (out / "train/n02085620").exists()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"<html>404 not found</html>" * 100, "not a tar archive"),
        (b"", "not a tar archive"),
        (b"\x1f\x8b\x08" + bytes(600), "compressed (gzip)"),
        (b"BZh9" + bytes(600), "compressed (bzip2)"),
        (b"PK\3\4" + bytes(600), "compressed (zip)"),
        (tar([]), "the archive is empty"),
        (tar([("readme.txt", b"x")]), "holds 'readme.txt', where"),
    ],
)
@pytest.mark.parametrize("name", [TRAIN, VAL])
def test_a_file_that_is_no_such_archive_is_one_line(tmp_path, mini, out, capsys, name, data, message):
    folder = mini.write(tmp_path / "a")
    (folder / name).write_bytes(data)
    text = error_of(capsys, folder, "--out", out)
    assert name in text and message in text


def test_swapped_archives_are_told(tmp_path, mini, out, capsys):
    folder = mini.write(tmp_path / "a")
    text = error_of(capsys, "--train", folder / VAL, "--val", folder / TRAIN, "--devkit", folder / KIT, "--out", out)
    assert "holds 'ILSVRC2012_val_00000001.JPEG', where class archives nXXXXXXXX.tar were expected" in text


def test_missing_archives_are_named_with_their_options(tmp_path, out, capsys):
    (tmp_path / "a").mkdir()
    text = error_of(capsys, tmp_path / "a", "--out", out)
    for word in (TRAIN, VAL, KIT, "--train", "--val", "--devkit"):
        assert word in text
    assert "no such folder" in error_of(capsys, tmp_path / "none", "--out", out)
    assert "none: no such file or folder" in error_of(capsys, tmp_path / "a", "--train", "none", "--out", out)
    assert not out.exists()


@pytest.mark.parametrize(
    ("truth", "message"),
    [
        ("2\n1\n3\n", "knows 3 images, and not ILSVRC2012_val_00000004.JPEG"),
        ("2\n1\n3\n2\n1\n", "knows 5 images, but 4 are there"),
        ("2\n1\n4\n2\n", "line 3: ID 4 is none of the 3 classes"),
        ("2\n0\n3\n2\n", "line 2: ID 0 is none"),
        ("2\n\n3\n2\n", "line 2: '' is no ILSVRC2012_ID"),
        ("2\n1\nx\n2\n", "line 3: 'x' is no"),
        ("", "line 1: '' is no"),
        ("²\n1\n3\n2\n", "line 1: "),
    ],
)
def test_a_ground_truth_that_does_not_fit_is_one_line(fails, out, mini, truth, message):
    mini.truth = truth
    assert message in fails()
    assert not (out / "train").exists()


def test_the_truth_of_all_images_fits_a_part_of_them(run, out, mini, monkeypatch):
    monkeypatch.setattr("data_prep.devkit.VAL_IMAGES", 4)
    del mini.val[1]
    assert run() == 0
    assert read_list(out / "val.txt") == [VAL_LIST[0], *VAL_LIST[2:]]


def test_a_ground_truth_may_have_dos_line_ends_and_no_last_one(run, out, mini):
    mini.truth = "2\r\n1\r\n3\r\n2"
    assert run() == 0
    assert read_list(out / "val.txt") == VAL_LIST


@pytest.mark.parametrize("meta", [b"", b"no matlab", meta_mat()[:300], meta_mat(dict.fromkeys(IDS, 1))])
def test_a_damaged_class_table_is_one_line(fails, mini, meta):
    mini.meta = meta
    assert "meta.mat" in fails()


def test_a_development_kit_of_another_kind_is_one_line(tmp_path, mini, out, capsys, monkeypatch):
    folder = mini.write(tmp_path / "a")
    (folder / KIT).write_bytes(tar([("readme.txt", b"")]))
    assert "no data/meta.mat in it" in error_of(capsys, folder, "--out", out)
    damaged = bytearray(mini.write(tmp_path / "a").joinpath(KIT).read_bytes())
    damaged[len(damaged) // 2] ^= 255
    (folder / KIT).write_bytes(damaged)
    assert f"{KIT}: not a tar archive, or truncated or damaged" in error_of(capsys, folder, "--out", out)
    monkeypatch.setattr("data_prep.devkit._MAX_KIT", 10)
    assert "too large for the development kit" in error_of(capsys, folder, "--out", out)


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
    assert (
        "1 EXIF orientation 6, 1 JPEG without end, 2 PNG named JPEG, 1 empty file, 1 no image"
        in capsys.readouterr().out
    )


# --- the command


def test_a_long_run_shows_how_far_it_is(run, monkeypatch, capsys, mini):
    monkeypatch.setattr("transfer_caffe.tools.progress.SECONDS_BETWEEN_LINES", 0)
    mini.train["n01440764"] += [(f"n01440764_2{n}.JPEG", jpeg() + bytes(1 << 20)) for n in range(4)]
    assert run() == 0
    text = capsys.readouterr().err
    assert "MiB of training images" in text and "s left" in text


def test_the_installed_module_is_a_command(tmp_path, out, mini):
    folder = mini.write(tmp_path / "a b")
    argv = [sys.executable, "-m", "transfer_caffe.data_prep.ilsvrc", str(folder), "--out", str(out)]
    package = str(Path(__file__).parent.parent)
    subprocess.run(argv, check=True, env={**os.environ, "PYTHONPATH": package}, capture_output=True)
    assert read_list(out / "train.txt") == TRAIN_LIST


def test_a_tar_in_a_tar_is_read_where_it_lies():
    inner = tar([("a.JPEG", b"one")])
    outer = io.BytesIO(tar([("x.tar", b"0" * 700), ("y.tar", inner)]))
    [_, (_, found)] = archives.members("o", outer, re.compile(r".\.tar"), "tars")
    outer.seek(0)
    with tarfile.open(fileobj=outer, mode="r:") as tar_file:
        part = tarfile.ExFileObject(tar_file, found)
        assert list(archives.images("i", part, re.compile(r"a\.JPEG"), "x")) == [("a.JPEG", b"one")]
