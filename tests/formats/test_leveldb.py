"""Reading a LevelDB, with plyvel, and the error without it."""

import subprocess
import sys

import cv2
import numpy as np
import pytest

from transfer_caffe.formats.datum import raw_datum
from transfer_caffe.formats.leveldb import LevelDatabase
from transfer_caffe.real_caffe.programs import program
from transfer_caffe.utils.errors import UserError

IMAGES = np.random.RandomState(0).randint(0, 256, (5, 4, 6, 3)).astype(np.uint8)


@pytest.fixture
def database(tmp_path):
    plyvel = pytest.importorskip("plyvel")
    with plyvel.DB(str(tmp_path / "a db"), create_if_missing=True) as db:
        for index, image in enumerate(IMAGES):
            db.put(b"%08d" % index, raw_datum(image, index % 3))
    return tmp_path / "a db"


def test_records_are_numbered_in_the_order_of_their_keys(database):
    db, again = LevelDatabase(database), LevelDatabase(database)  # a train net and a test net
    assert len(db) == len(again) == 5
    for index in (4, 0, 3):
        image, label = db.record(index)
        assert np.array_equal(image, IMAGES[index].transpose(2, 0, 1)) and label == index % 3
    del db, again
    assert len(LevelDatabase(database)) == 5  # it was closed


def test_what_is_not_a_leveldb_is_named(database, tmp_path):
    (tmp_path / "lmdb").mkdir()
    (tmp_path / "lmdb" / "data.mdb").touch()
    for path, message in (
        (tmp_path / "gone", "no such database"),
        (tmp_path, "not a LevelDB: a folder with a file CURRENT"),
        (tmp_path / "lmdb", "this is an LMDB: set backend: LMDB"),
    ):
        with pytest.raises(UserError, match=message):
            LevelDatabase(path)
    (database / "CURRENT").write_text("damaged")
    with pytest.raises(UserError, match="LevelDB"):
        LevelDatabase(database)


def test_without_plyvel_one_line_says_what_to_install(tmp_path, monkeypatch):
    (tmp_path / "CURRENT").touch()
    monkeypatch.setitem(sys.modules, "plyvel", None)
    with pytest.raises(UserError, match="needs the package plyvel: pip install plyvel"):
        LevelDatabase(tmp_path)


def test_a_leveldb_of_real_caffe_is_read_as_real_caffe_reads_it(tmp_path):
    pytest.importorskip("plyvel")
    convert = program("convert_imageset")
    if convert is None:
        pytest.skip("there is no real Caffe (`make caffe`)")
    for index, image in enumerate(IMAGES):
        cv2.imwrite(f"{tmp_path}/{index}.png", image)
    (tmp_path / "list.txt").write_text("".join(f"{index}.png {index}\n" for index in range(5)))
    argv = [str(convert), "--backend", "leveldb", f"{tmp_path}/", "list.txt", "level"]
    subprocess.run(argv, cwd=tmp_path, check=True, capture_output=True)
    db = LevelDatabase(tmp_path / "level")
    found = [db.record(index) for index in range(len(db))]
    assert [label for _, label in found] == list(range(5))
    assert all(np.array_equal(image, own.transpose(2, 0, 1)) for (image, _), own in zip(found, IMAGES, strict=True))
