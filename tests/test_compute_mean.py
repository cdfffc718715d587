"""tools.compute_mean: the mean image, bit for bit as compute_image_mean's, and what it refuses."""

import os

import cv2
import numpy as np
import pytest

from tools.compute_mean import main
from transfer_caffe.database_writer import DatabaseWriter
from transfer_caffe.datum import encoded_datum, raw_datum
from transfer_caffe.files import require_checksum

IMAGE = np.arange(18, dtype=np.uint8).reshape(2, 3, 3) * 14
# by Caffe 1.0's compute_image_mean from IMAGE, IMAGE and 255 - IMAGE
CAFFE_MEAN = bytes.fromhex(
    "08011003180220032a480000aa420000c6420000e2420000fe4200000d4300001b435555b3425555cf425555eb42abaa0343abaa1143abaa1f43"
    "abaabc42abaad842abaaf442555508435555164355552443"
)


def write(path, images, record=raw_datum):
    with DatabaseWriter(path) as db:
        for i, image in enumerate(images):
            db.put(b"%08d_x" % i, record(image, 0))


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def error_of(capsys, *argv):
    assert main(list(argv)) == 2
    text = capsys.readouterr().err
    assert text.count("\n") == 1
    return text


def test_the_file_and_the_channel_means_are_those_of_real_caffe(folder, capsys):
    write("db", [IMAGE, IMAGE, 255 - IMAGE])
    assert main(["-backend=lmdb", "db", "mean.binaryproto"]) == 0
    assert (folder / "mean.binaryproto").read_bytes() == CAFFE_MEAN
    require_checksum("mean.binaryproto")
    assert (folder / "mean.binaryproto.sha256").exists()
    lines = capsys.readouterr().out.splitlines()
    assert lines[1:] == [f"mean_value channel [{c}]: {value}" for c, value in enumerate(("120", "124.667", "129.333"))]


def test_encoded_records_give_the_same_mean(folder):
    write(
        "db", [IMAGE, IMAGE, 255 - IMAGE], lambda i, label: encoded_datum(cv2.imencode(".png", i)[1].tobytes(), label)
    )
    assert main(["db", "mean.binaryproto"]) == 0
    assert (folder / "mean.binaryproto").read_bytes() == CAFFE_MEAN


def test_sums_beyond_the_precision_of_float32_are_rounded_as_in_real_caffe(folder):
    # exact sums would give 252
    write("db", (np.full((1, 1), 249 + i % 7, np.uint8) for i in range(70000)))
    assert main(["db", "mean.binaryproto"]) == 0
    assert (folder / "mean.binaryproto").read_bytes().hex() == "08011001180120012a04d9f87b43"


def test_a_record_of_another_size_is_an_error_that_names_it(capsys):
    write("db", [IMAGE, IMAGE, IMAGE[:1]])
    text = error_of(capsys, "db", "mean.binaryproto")
    assert "'00000002_x': 3x1x3" in text and "3x2x3" in text
    assert os.listdir() == ["db"]


def test_a_database_that_is_missing_or_empty_is_an_error(capsys):
    write("empty", [])
    assert "no such database" in error_of(capsys, "nothing", "mean.binaryproto")
    assert "no records" in error_of(capsys, "empty", "mean.binaryproto")


def test_an_existing_mean_is_refused_unless_forced(folder, capsys):
    write("db", [IMAGE, IMAGE, 255 - IMAGE])
    (folder / "mean.binaryproto").write_text("mine")
    assert "--force" in error_of(capsys, "db", "mean.binaryproto")
    assert (folder / "mean.binaryproto").read_text() == "mine"
    assert main(["--force", "db", "mean.binaryproto"]) == 0
    assert (folder / "mean.binaryproto").read_bytes() == CAFFE_MEAN


def test_without_a_file_name_the_means_are_printed_only(capsys):
    write("db", [IMAGE])
    assert main(["db"]) == 0
    assert "mean_value channel [2]" in capsys.readouterr().out
    assert os.listdir() == ["db"]


def test_leveldb_is_refused(capsys):
    assert "only lmdb" in error_of(capsys, "--backend", "leveldb", "db", "mean.binaryproto")
