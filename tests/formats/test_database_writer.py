"""Tests of transfer_caffe.formats.database_writer: atomic writes, resuming, one writer at a time."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from test_datum import IMAGE  # all records have the same image

from transfer_caffe.formats.database import Database
from transfer_caffe.formats.database_writer import DatabaseWriter
from transfer_caffe.formats.datum import raw_datum
from transfer_caffe.utils.errors import UserError

JOB = {"list": "a.txt", "sizes": (2, 3)}
PARTIAL = ".db.partial"


@pytest.fixture(autouse=True)
def _small_batches(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("transfer_caffe.formats.database_writer._BATCH_BYTES", 5 * 51)  # five records
    monkeypatch.setattr("transfer_caffe.formats.database_writer._FIRST_MAP", 1 << 15)  # so that the map must grow


def write(count=500, stop_at=None, job=JOB, path="db"):
    """Write ``count`` records, or stop before record ``stop_at``. Return the place from which the work was resumed."""
    with DatabaseWriter(path, job) as writer:
        first = writer.state.get("place", 0)
        for place in range(first, count):
            if place == stop_at:
                raise KeyboardInterrupt
            writer.state = {"place": place + 1}
            writer.put(b"%08d_x.png" % place, raw_datum(IMAGE, place))
    return first


def stop(at, **how):
    with pytest.raises(KeyboardInterrupt):
        write(stop_at=at, **how)


def content(path="db"):
    return (Path(path) / "data.mdb").read_bytes()


def test_stopped_work_is_gone_on_with_to_the_same_bytes():
    write(path="reference")
    stop(203)
    assert sorted(os.listdir()) == [PARTIAL, "reference"]
    stop(204)
    stop(417)
    assert 410 <= write() <= 417
    assert sorted(os.listdir()) == ["db", "reference"] and content() == content("reference")
    assert sorted(os.listdir("db")) == ["data.mdb", "data.mdb.sha256"]
    assert [label for _, _, label in Database("db")] == list(range(500))


@pytest.mark.parametrize("change", ["job", "boot", "data", "checkpoint", "cut", "entries"])
def test_what_cannot_be_trusted_is_started_over(change, monkeypatch):
    write(path="reference")
    stop(203)
    checkpoint = Path(PARTIAL, "checkpoint.json")
    found = json.loads(checkpoint.read_text())
    if change == "boot":  # the machine was rebooted since
        checkpoint.write_text(json.dumps(found | {"boot": "another"}))
    elif change == "entries":
        for each in found["checkpoints"]:
            each["entries"] += 1
        checkpoint.write_text(json.dumps(found))
    elif change == "cut":
        os.truncate(Path(PARTIAL, "data.mdb"), 16384)
    elif change in ("data", "checkpoint"):
        Path(PARTIAL, "data.mdb" if change == "data" else "checkpoint.json").write_text("broken")
    assert write(job={**JOB, "list": "b.txt"} if change == "job" else JOB) == 0
    assert content() == content("reference")


def test_the_checkpoint_before_counts_where_the_last_was_not_committed(monkeypatch):
    # as if killed after the checkpoint of a batch was written and before the batch was committed
    write(path="reference")
    stop(203)
    checkpoint = Path(PARTIAL, "checkpoint.json")
    found = json.loads(checkpoint.read_text())
    at = found["checkpoints"][-1]["entries"]
    later = {"entries": at + 5, "state": {"place": at + 5}}
    checkpoint.write_text(json.dumps(found | {"checkpoints": [found["checkpoints"][-1], later]}))
    assert write() == at
    assert content() == content("reference")


def test_without_a_job_nothing_is_left_and_nothing_gone_on_with():
    stop(203, job=None)
    assert os.listdir() == []


def test_work_that_was_stopped_before_anything_was_written_leaves_nothing():
    stop(3)
    assert os.listdir() == []


def test_a_second_writer_is_refused_and_the_first_one_ends_well():
    with DatabaseWriter("db", JOB) as first:
        first.put(b"00000000_x", raw_datum(IMAGE, 0))
        with pytest.raises(UserError, match="db: another process is writing it"):
            write()
    assert len(Database("db")) == 1
    with pytest.raises(UserError, match="exists already"):
        write()


def test_a_writer_that_is_killed_leaves_no_lock():
    script = (
        "import os, signal; from transfer_caffe.formats.database_writer import DatabaseWriter\n"
        "with DatabaseWriter('db', {'a': 1}) as w:\n"
        "    w.put(b'00000000_x', b'1'); w.flush(); os.kill(os.getpid(), signal.SIGKILL)"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    assert subprocess.run([sys.executable, "-c", script], env=environment).returncode == -signal.SIGKILL
    assert os.listdir() == [PARTIAL]
    assert write() == 0


def test_what_appeared_at_the_place_meanwhile_is_not_replaced():
    with pytest.raises(UserError, match="exists already"), DatabaseWriter("db", JOB) as writer:
        for place in range(20):
            writer.put(b"%08d_x" % place, raw_datum(IMAGE, 0))
        os.mkdir("db")
    assert os.listdir("db") == [] and writer.kept


def test_a_link_in_the_place_of_the_hidden_folder_is_not_followed(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/letter").write_text("dear")
    os.symlink("mine", PARTIAL)
    with pytest.raises(OSError):
        write()
    assert (tmp_path / "mine/letter").read_text() == "dear"


def test_a_disk_that_is_too_small_is_told_of_before_the_work():
    with pytest.raises(UserError, match=r"db: needs 1e\+06 GB, and .* GB are free"), DatabaseWriter("db", JOB, 10**15):
        pass
    assert os.listdir() == []


def test_what_a_kill_left_of_a_checksum_is_not_in_the_finished_database():
    stop(203)
    for name in (".data.mdb.sha256.0123abcd.tmp", "checkpoint.json.new"):
        Path(PARTIAL, name).write_text("half")
    assert write() > 0
    assert sorted(os.listdir("db")) == ["data.mdb", "data.mdb.sha256"]
