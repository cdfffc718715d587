"""The path of one network, with a fake engine: what counts as done, what is resumed, what is refused."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from small_world import RECIPE, database, fake_engine, make_world

from transfer_caffe import driver
from transfer_caffe.datum import Database
from transfer_caffe.files import sha256
from transfer_caffe.processes import Engine
from transfer_caffe.snapshots import read_weights
from transfer_caffe.tools.compute_mean import write_mean
from transfer_caffe.views import write_view

RUNS = Path("runs/small")


@pytest.fixture(autouse=True)
def _world(tmp_path, monkeypatch):
    """A current folder whose name has a space and a quote, and signal handlers as before."""
    folder = tmp_path / "it's a folder"
    folder.mkdir()
    make_world(folder)
    monkeypatch.chdir(folder)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)}
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)


def arguments(treatment: str, engine: str = "", *more: str) -> list[str]:
    return ["--recipe", "small.yaml", "--treatment", treatment, "--engine", engine or fake_engine(), *more]


def drive(treatment: str, *misbehaviours: str, more: tuple[str, ...] = ()) -> int:
    return driver.main(arguments(treatment, fake_engine(*misbehaviours), *more))


def done_of(name: str) -> dict:
    return json.loads((RUNS / name / "done.json").read_text())


def final(name: str) -> Path:
    return RUNS / name / "snapshots" / "net_iter_8.caffemodel"


def test_a_base_is_trained_to_done(capsys):
    assert drive("baseA") == 0
    done = done_of("random0-baseA-s0")
    assert done["accuracy_final"] == 1.0 and done["accuracy_max"] == 1.0 and done["iteration_of_max"] == 8
    assert done["accuracy_top10"] == 0.5  # tests at 0, 4 and 8
    assert done["test_loss_final"] == 1.5 and done["outputs"] == 3 and done["target_classes"] == 3
    assert done["sha256"]["final"] == sha256(final("random0-baseA-s0"))
    assert done["settings"]["solver"]["base_lr"] == 0.5
    with open(RUNS / "random0-baseA-s0" / "curve.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["iteration"] for row in rows] == ["0", "4", "8"]
    assert rows[1] == {"iteration": "4", "test_accuracy": "0.5", "test_loss": "1.5", "train_loss": "2.5", "lr": "0.5"}
    assert rows[2]["lr"] == ""  # unknown stays empty
    assert "iteration 8: test accuracy 1.0000" in capsys.readouterr().out


def test_only_the_final_snapshot_is_kept():
    assert drive("baseA") == 0
    assert sorted(os.listdir(RUNS / "random0-baseA-s0" / "snapshots")) == [
        "net_iter_8.caffemodel",
        "net_iter_8.solverstate",
    ]


def test_a_second_start_of_a_network_that_is_done_touches_nothing(capsys):
    assert drive("baseA") == 0
    before = {path: path.stat().st_mtime_ns for path in RUNS.rglob("*")}
    capsys.readouterr()
    assert drive("baseA", "dies") == 0  # an engine that was started would fail
    assert {path: path.stat().st_mtime_ns for path in RUNS.rglob("*")} == before
    assert "done already" in capsys.readouterr().out


def test_the_layers_taken_over_are_the_bases_and_stay_so_when_frozen():
    for treatment in ("baseA", "A3B", "A3B+"):
        assert drive(treatment) == 0
    base, transfer, tuned = (
        read_weights(final(f"random0-{name}-s0")) for name in ("baseA", "A3B", "A3B+")
    )  # fmt: skip
    for name in ("conv1", "conv2", "conv3"):
        for of_base, of_transfer, of_tuned in zip(base[name], transfer[name], tuned[name], strict=True):
            assert of_base.tobytes() == of_transfer.tobytes()
            assert of_base.tobytes() != of_tuned.tobytes()
    assert base["conv4"][0].tobytes() != transfer["conv4"][0].tobytes()
    assert done_of("random0-A3B-s0")["frozen_layers"] == "equal to the base's"
    surgery = json.loads((RUNS / "random0-A3B-s0" / "surgery.json").read_text())
    assert surgery["base_sha256"] == sha256(final("random0-baseA-s0"))
    assert [layer["start"] for layer in surgery["layers"]] == ["copied"] * 3 + ["fresh"] * 5


def test_a_frozen_layer_that_moved_is_not_done(capsys):
    assert drive("baseA") == 0
    assert drive("A3B", "moves") == 1
    assert "layer conv1 was frozen, but" in capsys.readouterr().err
    assert not (RUNS / "random0-A3B-s0" / "done.json").exists()


def test_random_frozen_layers_are_compared_with_the_first_snapshot(capsys):
    assert drive("R2", "moves") == 1
    assert "layer conv1 was frozen, but" in capsys.readouterr().err
    assert drive("R2", more=("--restart",)) == 0
    assert done_of("whole-R2-s0")["frozen_layers"] == "equal to those of iteration 3"


def test_a_transfer_needs_its_base_to_be_done(capsys):
    assert drive("A3B") == 2
    assert "random0-baseA-s0, which is not done" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("misbehaviour", "message"),
    [
        ("nan", "training diverged: the training loss is nan at iteration 1"),
        ("early", "stopped before its end"),
        ("silent", "ended without `Optimization Done.`"),
        ("quits", "ended without `Optimization Done.`"),
        ("dies", "ended by SIGABRT: Check failed: not today"),
        ("loses", "net_iter_8.caffemodel is missing"),
        (
            "rots",
            "ended with weights that are no good: runs/small/random0-baseA-s0/snapshots/net_iter_8.caffemodel: fc8",
        ),
        ("untested", "the last test was at iteration 4 of 8"),
    ],
)
def test_a_run_that_did_not_come_to_its_proper_end_is_not_done(misbehaviour, message, capsys):
    assert drive("baseA", misbehaviour) == 1
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not (RUNS / "random0-baseA-s0" / "done.json").exists()


def test_layers_that_the_engine_ignores_are_not_done(capsys):
    assert drive("baseA") == 0
    assert drive("A3B+", "ignores") == 1
    assert "layer conv1 was to be taken over, but the engine ignored it" in capsys.readouterr().err


def test_a_stopped_run_goes_on_and_ends_with_the_same_bytes(capsys):
    assert drive("baseA") == 0
    undisturbed = sha256(final("random0-baseA-s0"))
    shutil.rmtree(RUNS)
    # started.json keeps the engine's name, which holds the misbehaviour: for the test they are one engine
    assert drive("baseA", "early") == 1
    rename_engine("random0-baseA-s0")
    assert drive("baseA") == 0
    assert "going on from the snapshot of iteration 2 of 8" in capsys.readouterr().out
    assert sha256(final("random0-baseA-s0")) == undisturbed
    assert [line.split(",")[0] for line in (RUNS / "random0-baseA-s0/curve.csv").read_text().split()[1:]] == list("048")


def rename_engine(name: str) -> None:
    path = RUNS / name / "started.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"engine": Engine.find(fake_engine()).name}))


def test_a_damaged_snapshot_is_set_aside_and_an_older_one_taken(capsys):
    assert drive("baseA") == 0
    undisturbed = sha256(final("random0-baseA-s0"))
    shutil.rmtree(RUNS)
    assert drive("baseA", "early") == 1
    rename_engine("random0-baseA-s0")
    snapshots = RUNS / "random0-baseA-s0" / "snapshots"
    for kind in ("caffemodel", "solverstate"):
        shutil.copy(snapshots / f"net_iter_2.{kind}", snapshots / f"net_iter_6.{kind}")
    os.truncate(snapshots / "net_iter_6.caffemodel", 5000)
    (snapshots / ".net_iter_7.caffemodel.1234.tmp").write_text("half")
    capsys.readouterr()
    assert drive("baseA") == 0
    said = capsys.readouterr().out
    assert "the snapshot of iteration 6 is damaged and set aside" in said
    assert "going on from the snapshot of iteration 2" in said
    assert sha256(final("random0-baseA-s0")) == undisturbed
    assert len(os.listdir(snapshots)) == 2


def test_a_flipped_byte_in_a_snapshot_is_seen_though_real_caffe_writes_no_checksum(capsys):
    assert drive("baseA", "early", "unsealed") == 1
    rename_engine("random0-baseA-s0")
    weights = RUNS / "random0-baseA-s0/snapshots/net_iter_2.caffemodel"
    beside = weights.with_name("net_iter_2.caffemodel.sha256")
    assert beside.read_text() == f"{sha256(weights)}  {weights.name}\n"
    content = bytearray(weights.read_bytes())
    content[len(content) // 2] ^= 1
    weights.write_bytes(content)
    capsys.readouterr()
    assert drive("baseA") == 0
    said = capsys.readouterr().out
    assert "the snapshot of iteration 2 is damaged and set aside" in said and "going on from" not in said
    assert done_of("random0-baseA-s0")["resumed_from"] == []


def test_a_run_that_went_on_says_so_in_its_record_for_real_caffe_ends_elsewhere_then(capsys):
    assert drive("baseA", "early") == 1
    rename_engine("random0-baseA-s0")
    assert drive("baseA") == 0
    assert done_of("random0-baseA-s0")["resumed_from"] == [2]
    assert "real Caffe draws anew what is random" in capsys.readouterr().out


def test_a_gpu_that_this_caffe_cannot_use_is_one_line_that_says_what_to_do(capsys):
    assert drive("baseA", "cpu", more=("--gpu", "0")) == 1
    error = capsys.readouterr().err
    assert "Cannot use GPU in CPU-only Caffe: check mode. (leave --gpu away" in error and error.count("\n") == 1


A = Path("data/pictures/random0/A")


def replace_database(labels: tuple[int, ...]) -> None:
    for name, content in database(labels).items():
        (A / "train_lmdb" / name).write_bytes(content)


def without_records() -> None:
    replace_database(())


def label_3_in_the_list() -> None:
    Path("small.yaml").write_text(RECIPE.replace("outputs: classes", "outputs: 3"))
    with open(A / "val.txt", "a") as file:
        file.write("7.png 3\n")


def label_3_in_the_database() -> None:
    replace_database((0, 1, 2, 3))


def mean_of_smaller_images() -> None:
    write_mean(A / "mean.binaryproto", np.full((3, 20, 20), 100, np.float32))


def mean_without_a_number() -> None:
    write_mean(A / "mean.binaryproto", np.full((3, 32, 32), np.nan, np.float32))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (without_records, "A/train_lmdb: the database has no records"),
        (mean_of_smaller_images, "A/mean.binaryproto: not the mean of three channels of 28 x 28 or more"),
        (mean_without_a_number, "one image of finite values was expected"),
        (label_3_in_the_list, "A/val.txt: line 7: label 3, but the last layer of random0-baseA-s0 has 3 outputs"),
        (label_3_in_the_database, "A/train_lmdb: record '00000003_3.png': label 3, but the last layer"),
    ],
)
def test_data_on_which_real_caffe_dies_or_trains_nonsense_is_named_before_the_engine_starts(damage, message, capsys):
    damage()
    assert drive("baseA") == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not (RUNS / "random0-baseA-s0" / "train.log").exists()


def test_changed_settings_are_refused_until_restart(capsys):
    assert drive("baseA") == 0
    Path("small.yaml").write_text(RECIPE.replace("base_lr: 0.5", "base_lr: 0.25"))
    assert drive("baseA") == 2
    error = capsys.readouterr().err
    assert "base_lr is 0.5 in the folder and 0.25 by the recipe" in error and "--restart" in error
    assert drive("baseA", more=("--restart",)) == 0
    assert (RUNS / "random0-baseA-s0.old1" / "done.json").exists()
    assert done_of("random0-baseA-s0")["settings"]["solver"]["base_lr"] == 0.25


def test_another_engine_or_thread_count_is_refused_amid_a_network(capsys):
    assert drive("baseA", "early") == 1
    assert drive("baseA") == 2
    assert "was started with engine" in capsys.readouterr().err
    rename_engine("random0-baseA-s0")
    Path("small.yaml").write_text(RECIPE + "threads: 2\n")
    assert drive("baseA") == 2
    assert "was started with threads 1, not 2" in capsys.readouterr().err


def test_a_network_whose_base_was_trained_anew_is_refused(capsys):
    assert drive("baseA") == 0
    assert drive("A3B") == 0
    path = RUNS / "random0-baseA-s0" / "done.json"
    done = json.loads(path.read_text())
    done["sha256"]["final"] = "0" * 64
    path.write_text(json.dumps(done))
    assert drive("A3B") == 2
    assert "its base random0-baseA-s0 was trained anew" in capsys.readouterr().err


@pytest.mark.parametrize("checksum", [True, False], ids=["with checksum", "without"])
@pytest.mark.parametrize("name", ["train_lmdb/data.mdb", "val_lmdb/data.mdb", "mean.binaryproto"])
def test_damaged_data_is_an_error_before_any_engine_starts(name, checksum, capsys):
    path = Path("data/pictures/random0/A") / name
    whole = path.read_bytes()
    if not checksum:
        path.with_name(f"{path.name}.sha256").unlink()
    flipped = bytes([*whole[:-5], whole[-5] ^ 1, *whole[-4:]])
    for damaged in (b"", whole[:-3], *([flipped] if checksum else [])):
        path.write_bytes(damaged)
        assert drive("baseA") == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and path.parts[-2] in error
        assert not (RUNS / "random0-baseA-s0" / "train.log").exists()


def test_damaged_initial_weights_are_made_again(capsys):
    assert drive("baseA") == 0
    assert drive("A3B", "early") == 1
    init = RUNS / "random0-A3B-s0" / "init.caffemodel"
    whole = init.read_bytes()
    init.write_bytes(whole[:-50] + b"\1" + whole[-49:])
    assert drive("A3B", "early") == 1  # a little further
    assert init.read_bytes() == whole


def test_missing_data_is_an_error_that_names_the_command(capsys):
    shutil.rmtree("data/pictures/random0/A/val_lmdb")
    assert drive("baseA") == 2
    assert "python -m transfer_caffe.data --recipe small" in capsys.readouterr().err


def test_real_caffe_is_not_started_on_a_view(capsys, monkeypatch):
    database = Path("data/pictures/random0/A/train_lmdb")
    whole = Database(database)
    os.rename(database, "whole_lmdb")
    entries = np.array([(number, number % 3) for number in range(len(whole))])
    write_view(database, Database("whole_lmdb"), entries, {"list_sha256": sha256("data/pictures/random0/A/train.txt")})
    assert drive("baseA") == 2
    said = capsys.readouterr().err
    assert "train_lmdb is a view, which real Caffe cannot read" in said and "--recipe small.yaml --copies" in said
    monkeypatch.setattr(Engine, "reads_views", True)  # as the embedded engine
    assert drive("baseA") == 0


def test_an_engine_that_does_not_exist_is_an_error(capsys):
    assert driver.main(arguments("baseA", "no-such-caffe")) == 2
    assert "no-such-caffe: there is no such program" in capsys.readouterr().err


def test_an_engine_may_lie_in_a_folder_with_a_space():
    program = Path("real caffe/bin/caffe")
    program.parent.mkdir(parents=True)
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    assert Engine.find(str(program)).argv == (str(program.resolve()),)


def test_a_treatment_that_means_nothing_is_an_error(capsys):
    assert drive("A9B") == 2
    assert capsys.readouterr().err.count("\n") == 1


def start_driver(treatment: str, *misbehaviours: str) -> subprocess.Popen[str]:
    """A driver of its own, whose engine (which waits there, amid its work) has written a snapshot."""
    process = subprocess.Popen(
        [sys.executable, "-m", "transfer_caffe.driver", *arguments(treatment, fake_engine(*misbehaviours))],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 30
    while not list(RUNS.glob("*/snapshots/net_iter_3.solverstate")):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    return process


def engine_pid() -> int:
    """The process that writes the log that is growing."""
    line = (RUNS / "random0-baseA-s0" / "train.log").read_text().splitlines()[-1]
    return int(line.split()[2])


def gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    # a process that ended, and whose new parent has not asked for its end, is gone too
    return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_an_interrupted_driver_leaves_a_snapshot_and_exits_130(number):
    process = start_driver("baseA", "slow")
    process.send_signal(number)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 130, err
    assert "stopping: the engine writes a snapshot" in out
    assert "Optimization stopped early." in (RUNS / "random0-baseA-s0" / "train.log").read_text()


def test_signals_that_a_scheduler_sends_to_everyone_and_twice_still_leave_a_snapshot():
    process = start_driver("baseA", "slow")
    os.kill(engine_pid(), signal.SIGTERM)
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGTERM):
        process.send_signal(number)
    process.communicate(timeout=30)
    assert process.returncode == 130
    assert "Optimization stopped early." in (RUNS / "random0-baseA-s0" / "train.log").read_text()


def test_a_killed_driver_takes_its_engine_along_and_the_next_one_ends_with_the_same_bytes():
    assert drive("baseA") == 0
    undisturbed = sha256(final("random0-baseA-s0"))
    shutil.rmtree(RUNS)
    process = start_driver("baseA", "slow")
    engine = engine_pid()
    process.kill()
    process.communicate()
    deadline = time.monotonic() + 5
    while not gone(engine):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert "Optimization Done." not in (RUNS / "random0-baseA-s0" / "train.log").read_text()
    with open(RUNS / "random0-baseA-s0" / "train.log", "a") as log:
        log.write("I1123 13:41:54.200000  9956 solver.cpp:414]     Test net output #0: accur")  # as a kill leaves it
    assert drive("baseA", "slow") == 0
    assert sha256(final("random0-baseA-s0")) == undisturbed
    assert "accurI" not in (RUNS / "random0-baseA-s0" / "train.log").read_text()


def test_a_second_driver_waits_for_the_first_and_finds_its_work_done():
    first = start_driver("baseA", "slow")
    second = subprocess.Popen(
        [sys.executable, "-m", "transfer_caffe.driver", *arguments("baseA", fake_engine("slow"))],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert second.stdout
    assert f"process {first.pid} on" in second.stdout.readline()
    Path("go").touch()
    first.communicate(timeout=60)
    said, _ = second.communicate(timeout=60)
    assert first.returncode == 0 and second.returncode == 0
    assert "done meanwhile" in said


@pytest.mark.parametrize("name", ["done.json", "started.json"])
@pytest.mark.parametrize("content", ["null", "[]", "3", '"x"', "{}", "[" * 100_000, '{"sha256": {"final": null}}', ""])
def test_a_damaged_record_of_a_network_is_an_error_in_one_line(name, content, capsys):
    assert drive("baseA") == 0
    (RUNS / "random0-baseA-s0" / name).write_text(content)
    if name == "started.json":
        (RUNS / "random0-baseA-s0" / "done.json").unlink()
    capsys.readouterr()
    assert drive("baseA") == 2
    error = capsys.readouterr().err
    assert (name in error and "--restart" in error) or "not valid JSON" in error
    assert error.count("\n") == 1


def test_a_done_network_whose_weights_are_damaged_or_whose_record_is_anothers_is_not_taken_for_done(capsys):
    assert drive("baseA") == 0 and drive("baseB") == 0
    done = RUNS / "random0-baseA-s0" / "done.json"
    whole = done.read_text()
    done.write_text((RUNS / "random0-baseB-s0" / "done.json").read_text())
    assert drive("baseA") == 2 and "it is not of random0-baseA-s0" in capsys.readouterr().err
    done.write_text(whole)
    weights = final("random0-baseA-s0")
    weights.write_bytes(weights.read_bytes()[:-1])
    assert drive("baseA") == 2 and "not the weights that done.json tells of" in capsys.readouterr().err
