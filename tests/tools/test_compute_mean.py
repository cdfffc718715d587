"""Tests of tools.compute_mean: the mean image, bit for bit as compute_image_mean's, and its errors."""

import os

import cv2
import numpy as np
import pytest

from transfer_caffe.formats.database import Database
from transfer_caffe.formats.database_writer import DatabaseWriter
from transfer_caffe.formats.datum import encoded_datum, raw_datum
from transfer_caffe.formats.views import open_records, write_view
from transfer_caffe.tools.compute_mean import main, mean_image, mean_images
from transfer_caffe.utils.files import require_checksum

IMAGE = np.arange(18, dtype=np.uint8).reshape(2, 3, 3) * 14
# written by Caffe 1.0's compute_image_mean from IMAGE, IMAGE and 255 - IMAGE
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


def many(count=100):
    """Build a database whose sums are not exact in float32, and three overlapping views of it."""
    draw = np.random.RandomState(0)
    write("whole", draw.randint(0, 256, (count, 5, 7, 3)).astype(np.uint8) | 1)
    whole = Database("whole")
    for name, step in (("a", 2), ("b", 3), ("c", 1)):
        numbers = np.arange(count)[::step]
        write_view(name, whole, np.stack([numbers, numbers % 4], axis=1), {})
    numbers = np.arange(count)[::-1]  # in another order than the database
    write_view("back", whole, np.stack([numbers, numbers], axis=1), {})


@pytest.mark.parametrize("jobs", [1, 3, 40])
def test_means_of_many_views_in_one_pass_are_those_of_each_alone(monkeypatch, jobs):
    many()
    passes = []
    real = Database.raw_in_order
    monkeypatch.setattr(Database, "raw_in_order", lambda db, first=0: passes.append(db) or real(db, first))
    names = ["a", "whole", "b", "c", "back"]
    together = mean_images([open_records(name) for name in names], jobs)
    assert len(passes) == 1  # the view in another order is read separately
    for name, mean in zip(names, together, strict=True):
        total = np.zeros((3, 5, 7), np.float32)
        for _, image, _ in open_records(name):
            total += image
        assert mean.tobytes() == (total / np.float32(len(open_records(name)))).tobytes()


def test_the_order_of_the_sums_is_that_of_the_records(monkeypatch):
    # float32 represents integers exactly up to 2^24 only: beyond that each sum is rounded, and the order matters
    images = [np.full((1, 1, 1), value, np.uint8) for value in [255] * 70000 + [1] * 1000]
    write("whole", images)
    whole = Database("whole")
    numbers = np.arange(71000)
    write_view("forth", whole, np.stack([numbers, numbers * 0], axis=1), {})
    write_view("back", whole, np.stack([numbers[::-1], numbers * 0], axis=1), {})
    forth, back = (mean[0, 0, 0] for mean in mean_images([open_records("forth"), open_records("back")]))
    assert forth != back and abs(forth - back) < 0.1
    assert forth == mean_image(whole)[0, 0, 0]


def test_several_means_are_written_by_one_command(folder, capsys):
    many()
    assert main(["a", "a.mean", "b", "b.mean"]) == 0
    assert "a: 50 records of 3x5x7" in capsys.readouterr().out
    for name in "ab":
        assert main([name, f"{name}.alone"]) == 0
        assert (folder / f"{name}.mean").read_bytes() == (folder / f"{name}.alone").read_bytes()
        require_checksum(f"{name}.mean")
    capsys.readouterr()
    assert "databases and files must be given in pairs" in error_of(capsys, "a", "x", "b")
    assert "given twice" in error_of(capsys, "a", "x", "b", "./x")
    assert "exists already" in error_of(capsys, "a", "x", "b", "b.mean")
    assert not (folder / "x").exists()


def test_a_mean_is_not_written_over_a_file_of_a_database(folder, capsys):
    many()
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    for file in ("whole/data.mdb", "a/view.json", "a/records.npy", "whole/new"):
        assert "in the folder of a database" in error_of(capsys, "--force", "whole", file)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
