"""Tests of transfer_caffe.formats.datum and of reading and writing LMDB databases."""

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import cv2
import lmdb
import numpy as np
import pytest

from transfer_caffe.formats.database import Database
from transfer_caffe.formats.database_writer import DatabaseWriter
from transfer_caffe.formats.datum import decode_datum, encoded_datum, raw_datum
from transfer_caffe.formats.proto import caffe_pb2
from transfer_caffe.utils.errors import UserError

IMAGE = np.arange(18, dtype=np.uint8).reshape(2, 3, 3) * 14


def write(path, count=10, key=b"%08d_x.png"):
    with DatabaseWriter(path) as db:
        for i in range(count):
            db.put(key % i, raw_datum(np.full((2, 3, 3), i % 256, np.uint8), i))
    return path


def test_a_raw_record_is_what_real_caffe_writes():
    # written by convert_imageset of Caffe 1.0 from IMAGE as a PNG file, label 0, and its negative, label 300
    first = b'\x08\x03\x10\x02\x18\x03"\x12\x00*T~\xa8\xd2\x0e8b\x8c\xb6\xe0\x1cFp\x9a\xc4\xee(\x008\x00'
    second = b'\x08\x03\x10\x02\x18\x03"\x12\xff\xd5\xab\x81W-\xf1\xc7\x9dsI\x1f\xe3\xb9\x8fe;\x11(\xac\x028\x00'
    assert raw_datum(IMAGE, 0) == first
    assert raw_datum(255 - IMAGE, 300) == second


def test_a_raw_record_is_read_as_channels_height_width():
    array, label = decode_datum(raw_datum(IMAGE, 7), "x")
    assert array.dtype == np.uint8 and label == 7
    np.testing.assert_array_equal(array, IMAGE.transpose(2, 0, 1))


def test_float_data_is_read_as_float32():
    datum = caffe_pb2.Datum(channels=1, height=1, width=2, float_data=[0.5, -2], label=1)
    array, _ = decode_datum(datum.SerializeToString(), "x")
    assert array.dtype == np.float32 and array.tolist() == [[[0.5, -2]]]


@pytest.mark.parametrize(("color", "channels"), [(None, 1), (True, 3), (False, 1)])
def test_an_encoded_gray_image_has_one_channel_unless_colour_is_forced(color, channels):
    data = cv2.imencode(".png", IMAGE[:, :, 0])[1].tobytes()
    array, label = decode_datum(encoded_datum(data, 3), "x", color)
    assert array.shape == (channels, 2, 3) and label == 3
    np.testing.assert_array_equal(array[0], IMAGE[:, :, 0])


@pytest.mark.parametrize(
    "record",
    [
        b"\xff\xff",
        b"",
        caffe_pb2.Datum(channels=3, height=2, width=2, data=b"123").SerializeToString(),
        caffe_pb2.Datum(channels=-1, height=-1, width=3, data=b"123").SerializeToString(),
        encoded_datum(b"no image", 0),
        encoded_datum(b"", 0),
        encoded_datum(cv2.imencode(".png", IMAGE)[1].tobytes()[:40], 0),
    ],
    ids=["garbage", "empty", "too short", "negative", "no image", "no bytes", "truncated"],
)
def test_a_damaged_record_is_an_error_that_names_database_and_key(tmp_path, record):
    with DatabaseWriter(tmp_path / "db") as db:
        db.put(b"00000000_a.png", record)
    with pytest.raises(UserError, match=r"db: record '00000000_a.png': .*damaged"):
        Database(tmp_path / "db").record(0)


def test_sixteen_bits_a_channel_are_refused():
    data = cv2.imencode(".png", IMAGE.astype(np.uint16))[1].tobytes()
    with pytest.raises(UserError, match="8 bits"):
        decode_datum(encoded_datum(data, 0), "x")


def test_records_are_found_by_number_and_in_order(tmp_path):
    db = Database(write(tmp_path / "db", 300))
    assert len(db) == 300 and db.shape == (3, 2, 3)
    for i in (0, 299, 17):
        array, label = db.record(i)
        assert label == i and array[0, 0, 0] == i % 256
    assert [label for _, _, label in db] == list(range(300))
    with pytest.raises(IndexError):
        db.record(300)


@pytest.mark.parametrize("numbers", [[0, 2, 3], [1, 2, 3], [0, 1, 1, 3], [5, 6, 9]])
def test_records_are_found_by_number_when_keys_do_not_count_lines(tmp_path, numbers):
    # images that convert_imageset skipped leave gaps in the numbers; other programs write arbitrary keys
    with DatabaseWriter(tmp_path / "db") as writer:
        for place, number in enumerate(numbers):
            writer.put(b"%08d_%d" % (number, place), raw_datum(IMAGE, place))
    db = Database(tmp_path / "db")
    assert [db.record(i)[1] for i in reversed(range(len(numbers)))] == list(reversed(range(len(numbers))))


def test_a_database_is_opened_twice_in_a_process_and_read_by_threads(tmp_path):
    write(tmp_path / "db", 100)
    first, second = Database(tmp_path / "db"), Database(f"{tmp_path}/../{tmp_path.name}/db")
    found = []
    threads = [
        threading.Thread(target=lambda db=db: found.append([db.record(i)[1] for i in range(100)]))
        for db in (first, second) * 4
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [list(range(100))] * 8


def test_a_database_on_which_nothing_may_be_written_is_read(tmp_path):
    write(tmp_path / "db")
    assert sorted(path.name for path in (tmp_path / "db").iterdir()) == ["data.mdb", "data.mdb.sha256"]
    os.chmod(tmp_path / "db", 0o500)
    assert Database(tmp_path / "db").record(3)[1] == 3
    assert sorted(path.name for path in (tmp_path / "db").iterdir()) == ["data.mdb", "data.mdb.sha256"]


def test_a_path_that_is_no_database_is_an_error_that_says_what_it_is(tmp_path):
    with pytest.raises(UserError, match="nothing: no such database"):
        Database(tmp_path / "nothing")
    with pytest.raises(UserError, match="not an LMDB"):
        Database(tmp_path)
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="not an LMDB"):
        Database(tmp_path / "file")
    (tmp_path / "CURRENT").write_text("x")
    with pytest.raises(UserError, match="LevelDB"):
        Database(tmp_path)
    (tmp_path / "data.mdb").write_bytes(b"no database" * 1000)
    with pytest.raises(UserError, match="not a valid LMDB"):
        Database(tmp_path)


def test_a_database_without_records_is_an_error(tmp_path):
    write(tmp_path / "db", 0)
    with pytest.raises(UserError, match="no records"):
        Database(tmp_path / "db")


@pytest.mark.parametrize("left", [0, 1, 4096, 6000, 8192, 20480, 49152, -4096, -1])
def test_a_truncated_database_is_an_error_and_kills_nobody(tmp_path, left):
    file = write(tmp_path / "db", 2000) / "data.mdb"
    os.truncate(file, left if left >= 0 else file.stat().st_size + left)
    # in a separate process, because a failure would be SIGBUS
    script = "import sys; from transfer_caffe.formats.database import Database; list(Database(sys.argv[1]))"
    done = subprocess.run([sys.executable, "-c", script, tmp_path / "db"], capture_output=True, text=True)
    assert done.returncode == 1
    assert "transfer_caffe.utils.errors.UserError" in done.stderr and "build" in done.stderr


def test_the_map_grows_and_all_records_are_there(tmp_path, monkeypatch):
    monkeypatch.setattr("transfer_caffe.formats.database_writer._FIRST_MAP", 1 << 16)
    monkeypatch.setattr("transfer_caffe.formats.database_writer._BATCH_BYTES", 1 << 14)
    write(tmp_path / "db", 5000)
    assert [label for _, _, label in Database(tmp_path / "db")] == list(range(5000))


def test_two_records_of_one_key_are_an_error(tmp_path):
    with pytest.raises(UserError, match="two records"), DatabaseWriter(tmp_path / "db") as db:
        db.put(b"a", b"1")
        db.put(b"a", b"2")
    assert list(tmp_path.iterdir()) == []


def test_a_database_that_failed_halfway_is_absent(tmp_path):
    with pytest.raises(KeyboardInterrupt), DatabaseWriter(tmp_path / "db") as db:
        db.put(b"a", b"1")
        db.flush()
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_an_existing_database_is_refused(tmp_path):
    before = (write(tmp_path / "db") / "data.mdb").read_bytes()
    with pytest.raises(UserError, match="exists already"):
        write(tmp_path / "db", 3)
    assert (tmp_path / "db/data.mdb").read_bytes() == before


@pytest.mark.parametrize("text", ["mdb_txn_commit: No space left on device", "mdb_txn_commit: Input/output error"])
def test_a_full_disk_is_reported_as_one(tmp_path, monkeypatch, text):
    class Usage:
        free = 0

    monkeypatch.setattr("shutil.disk_usage", lambda _: Usage)
    with pytest.raises(OSError, match="No space left") as caught, DatabaseWriter(tmp_path / "db") as db:
        db.put(b"a", b"1")

        def full(_):
            raise lmdb.Error(text)

        monkeypatch.setattr(db, "_open", full)
    assert caught.value.filename == str(tmp_path / "db")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="Linux tells how much of a file is in memory")
@pytest.mark.parametrize("way", ["all records", "keys"])
def test_going_through_a_database_does_not_keep_it_in_memory(tmp_path, monkeypatch, way):
    monkeypatch.setattr("transfer_caffe.formats.lmdb_pages._AHEAD", 1 << 20)
    with DatabaseWriter(tmp_path / "db") as writer:
        for number in range(300):
            writer.put(b"%08d_x" % number, raw_datum(np.full((200, 200, 3), number % 256, np.uint8), 0))  # 36 MB

    def mapped():
        text = Path("/proc/self/status").read_text()
        return int(text.partition("RssFile:")[2].split()[0]) / 1024

    db = Database(tmp_path / "db")
    before = most = mapped()
    for _ in db.raw_in_order() if way == "all records" else db.keys():
        most = max(most, mapped())
    assert most - before < 8


def test_a_database_can_be_opened_while_another_thread_lets_the_last_use_of_it_go(tmp_path, monkeypatch):
    with lmdb.open(str(tmp_path / "db"), map_size=1 << 20) as env, env.begin(write=True) as transaction:
        transaction.put(b"00000000_x", raw_datum(np.zeros((2, 2, 3), np.uint8), 4))
    opened: list[Database] = []

    class Slow:
        """A database that closes as liblmdb does, without holding the GIL: other threads run in the meantime."""

        def __init__(self, real):
            self.real = real

        def __getattr__(self, name):
            return getattr(self.real, name)

        def close(self):
            other.start()
            time.sleep(0.1)
            self.real.close()

    other = threading.Thread(target=lambda: opened.append(Database(tmp_path / "db")))
    first = Database(tmp_path / "db")
    first._environment.lmdb = Slow(first._env)  # pyright: ignore[reportAttributeAccessIssue]
    del first
    other.join()
    assert opened[0].record(0)[1] == 4
