"""Tests of data_prep.archives and data_prep.devkit: damaged, hostile and wrong archives."""

# ruff: noqa: F401, F811 - fixtures come from small_ilsvrc

# ruff: noqa: F401 - fixtures come from small_ilsvrc

import io
import os
import re
import tarfile

import pytest
from support.small_ilsvrc import (
    IDS,
    KIT,
    NAMES,
    TRAIN,
    VAL,
    VAL_LIST,
    Miniature,
    error_of,
    fails,
    meta_mat,
    mini,
    out,
    run,
    tar,
)

from transfer_caffe.data_prep import archives
from transfer_caffe.formats.image_list import read_list


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
    # nothing from the wrong archive
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


def test_the_member_within_which_an_archive_ends_is_named(tmp_path, mini, out, capsys):
    folder = mini.write(tmp_path / "a")
    with tarfile.open(folder / VAL) as archive:
        third = archive.getmembers()[2]
    (folder / VAL).write_bytes((folder / VAL).read_bytes()[: third.offset_data + 9])
    assert f"{VAL}: truncated: it ends within {third.name}" in error_of(capsys, folder, "--out", out)
    assert not (out / "val").exists()


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
        (tar([("readme.txt", b"x")]), "contains 'readme.txt', but"),
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
    assert "contains 'ILSVRC2012_val_00000001.JPEG', but class archives nXXXXXXXX.tar were expected" in text


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
        ("2\n1\n3\n", "lists 3 images, without ILSVRC2012_val_00000004.JPEG"),
        ("2\n1\n3\n2\n1\n", "lists 5 images, but the folder has 4"),
        ("2\n1\n4\n2\n", "line 3: ID 4 is not one of the 3 classes"),
        ("2\n0\n3\n2\n", "line 2: ID 0 is not one"),
        ("2\n\n3\n2\n", "line 2: '' is not an ILSVRC2012_ID"),
        ("2\n1\nx\n2\n", "line 3: 'x' is not an"),
        ("", "line 1: '' is not an"),
        ("²\n1\n3\n2\n", "line 1: "),
    ],
)
def test_a_ground_truth_that_does_not_fit_is_one_line(fails, out, mini, truth, message):
    mini.truth = truth
    assert message in fails()
    assert not (out / "train").exists()


def test_the_truth_of_all_images_fits_a_part_of_them(run, out, mini, monkeypatch):
    monkeypatch.setattr("transfer_caffe.data_prep.devkit.VAL_IMAGES", 4)
    del mini.val[1]
    assert run() == 0
    assert read_list(out / "val.txt") == [VAL_LIST[0], *VAL_LIST[2:]]


def test_a_ground_truth_may_have_dos_line_ends_and_no_last_one(run, out, mini):
    mini.truth = "2\r\n1\r\n3\r\n2"
    assert run() == 0
    assert read_list(out / "val.txt") == VAL_LIST


@pytest.mark.parametrize("meta", [b"", b"no matlab", meta_mat()[:300]])
def test_a_damaged_class_table_is_one_line(fails, mini, meta):
    mini.meta = meta
    assert "meta.mat: not the struct array" in fails()


def test_classes_that_share_an_id_are_an_error(fails, mini):
    mini.meta = meta_mat(dict.fromkeys(IDS, 1))
    assert "meta.mat: 3 classes, with 1 IDs" in fails()


def test_a_development_kit_of_another_kind_is_one_line(tmp_path, mini, out, capsys, monkeypatch):
    folder = mini.write(tmp_path / "a")
    (folder / KIT).write_bytes(tar([("readme.txt", b"")]))
    assert "no data/meta.mat in it" in error_of(capsys, folder, "--out", out)
    damaged = bytearray(mini.write(tmp_path / "a").joinpath(KIT).read_bytes())
    damaged[len(damaged) // 2] ^= 255
    (folder / KIT).write_bytes(damaged)
    assert f"{KIT}: not a tar archive, or truncated or damaged" in error_of(capsys, folder, "--out", out)
    monkeypatch.setattr("transfer_caffe.data_prep.devkit._MAX_KIT", 10)
    assert "too large for the development kit" in error_of(capsys, folder, "--out", out)


def test_a_tar_in_a_tar_is_read_where_it_lies():
    inner = tar([("a.JPEG", b"one")])
    outer = io.BytesIO(tar([("x.tar", b"0" * 700), ("y.tar", inner)]))
    [_, (_, found)] = archives.members("o", outer, re.compile(r".\.tar"), "tars")
    outer.seek(0)
    with tarfile.open(fileobj=outer, mode="r:") as tar_file:
        part = tarfile.ExFileObject(tar_file, found)
        assert list(archives.images("i", part, re.compile(r"a\.JPEG"), "x")) == [("a.JPEG", b"one")]
