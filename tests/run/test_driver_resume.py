"""Resuming a stopped, killed or damaged network gives the same bytes; two drivers never train one network at once."""

import os
import random
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from support.driving import RUNS, arguments, done_of, drive, engine_pid, final, rename_engine, start_driver
from support.small_world import RECIPE, fake_engine
from support.waiting import PATIENCE, gone, wait_for

from transfer_caffe.run.folder import iterations, weights_path
from transfer_caffe.utils.files import sha256

pytestmark = pytest.mark.usefixtures("driver_world")


def test_a_stopped_run_goes_on_and_ends_with_the_same_bytes(capsys):
    assert drive("baseA") == 0
    undisturbed = sha256(final("random0-baseA-s0"))
    shutil.rmtree(RUNS)
    # started.json records the engine's name, which here includes the misbehaviour; rename it so that both are the same
    assert drive("baseA", "early") == 1
    rename_engine("random0-baseA-s0")
    assert drive("baseA") == 0
    assert "resuming from the snapshot of iteration 2 of 8" in capsys.readouterr().out
    assert sha256(final("random0-baseA-s0")) == undisturbed
    assert [line.split(",")[0] for line in (RUNS / "random0-baseA-s0/curve.csv").read_text().split()[1:]] == list("048")


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
    assert "the snapshot of iteration 6 is damaged and renamed" in said
    assert "resuming from the snapshot of iteration 2" in said
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
    assert "the snapshot of iteration 2 is damaged and renamed" in said and "resuming from" not in said
    assert done_of("random0-baseA-s0")["resumed_from"] == []


def test_a_run_that_went_on_says_so_in_its_record_for_real_caffe_ends_elsewhere_then(capsys):
    assert drive("baseA", "early") == 1
    rename_engine("random0-baseA-s0")
    assert drive("baseA") == 0
    assert done_of("random0-baseA-s0")["resumed_from"] == [2]
    assert "real Caffe restarts its random numbers" in capsys.readouterr().out


def test_damaged_initial_weights_are_made_again(capsys):
    assert drive("baseA") == 0
    assert drive("A3B", "early") == 1
    init = RUNS / "random0-A3B-s0" / "init.caffemodel"
    whole = init.read_bytes()
    init.write_bytes(whole[:-50] + b"\1" + whole[-49:])
    assert drive("A3B", "early") == 1  # a little further
    assert init.read_bytes() == whole


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP])
def test_an_interrupted_driver_leaves_a_snapshot_and_exits_130(number):
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # under nohup the tests, and what they start, would ignore it
    process = start_driver("baseA", "slow")
    process.send_signal(number)
    out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130, err
    assert "stopping: the engine writes a snapshot" in out
    assert "Optimization stopped early." in (RUNS / "random0-baseA-s0" / "train.log").read_text()


@pytest.mark.parametrize("full", [False, True])
def test_a_driver_whose_standard_output_is_closed_or_full_leaves_a_snapshot(full):
    reader, writer = os.pipe()
    os.close(reader)
    argv = [sys.executable, "-m", "transfer_caffe.driver", *arguments("baseA", fake_engine("slow"))]
    with open("/dev/full" if full else writer, "wb") as output, open("error", "wb") as error:
        done = subprocess.run(argv, stdout=output, stderr=error, timeout=PATIENCE)
    assert done.returncode != 0 and "Traceback" not in Path("error").read_text()
    assert "Optimization stopped early." in (RUNS / "random0-baseA-s0" / "train.log").read_text()
    assert iterations(RUNS / "random0-baseA-s0") == [3]


def test_signals_that_a_scheduler_sends_to_everyone_and_twice_still_leave_a_snapshot():
    process = start_driver("baseA", "slow")
    os.kill(engine_pid(), signal.SIGTERM)
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGTERM):
        process.send_signal(number)
    process.communicate(timeout=PATIENCE)
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
    wait_for(lambda: gone(engine), "the engine's end")
    assert "Optimization Done." not in (RUNS / "random0-baseA-s0" / "train.log").read_text()
    with open(RUNS / "random0-baseA-s0" / "train.log", "a") as log:
        log.write(
            "I1123 13:41:54.200000  9956 solver.cpp:414]     Test net output #0: accur"
        )  # an incomplete line, as a kill leaves it
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
    first.communicate(timeout=PATIENCE)
    said, _ = second.communicate(timeout=PATIENCE)
    assert first.returncode == 0 and second.returncode == 0
    assert "finished by another process" in said


def test_without_waiting_a_second_driver_leaves_at_once_with_75_and_one_line():
    first = start_driver("baseA", "slow")
    argv = [sys.executable, "-m", "transfer_caffe.driver", *arguments("baseA", fake_engine("slow"), "--no-wait")]
    second = subprocess.run(argv, capture_output=True, text=True, timeout=PATIENCE)
    assert second.returncode == 75 and second.stderr.count("\n") == 1
    assert f"process {first.pid} on" in second.stderr and "not waiting" in second.stderr
    Path("go").touch()
    first.communicate(timeout=PATIENCE)
    assert first.returncode == 0
    assert subprocess.run(argv, capture_output=True, timeout=PATIENCE).returncode == 0  # already done


def test_an_engine_that_outlives_its_driver_keeps_others_away_until_it_has_ended():
    assert drive("baseA") == 0
    undisturbed = sha256(final("random0-baseA-s0"))
    shutil.rmtree(RUNS)
    # the death of the driver only ends its own child, here the shell, and not the engine that the shell has started
    shell = Path("shell engine.sh").resolve()
    shell.write_text(f'#!/bin/sh\n{fake_engine("slow")} "$@" &\nwait $!\n')
    shell.chmod(0o755)
    process = start_driver("baseA", engine=str(shell))
    engine = engine_pid()
    process.kill()
    process.communicate()
    assert not gone(engine)
    argv = [sys.executable, "-m", "transfer_caffe.driver", *arguments("baseA", str(shell))]
    assert subprocess.run([*argv, "--no-wait"], capture_output=True, timeout=PATIENCE).returncode == 75
    second = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)
    assert second.stdout and "waiting until it ends" in second.stdout.readline()
    os.kill(engine, signal.SIGINT)
    said, _ = second.communicate(timeout=PATIENCE)
    assert second.returncode == 0 and "resuming from the snapshot of iteration" in said
    assert sha256(final("random0-baseA-s0")) == undisturbed


@pytest.mark.parametrize(
    ("keep", "training", "after"),
    [("", {4, 6}, {8}), ("keep_snapshots: 1\n", {6}, {8}), ("keep_snapshots: 3\n", {2, 4, 6}, {4, 6, 8}),
     ("keep_snapshots: all\n", {2, 4, 6}, {2, 4, 6, 8})],
    ids=["default", "1", "3", "all"],
)  # fmt: skip
def test_so_many_snapshots_are_kept_as_the_recipe_says_while_training_and_after(keep, training, after):
    recipe = RECIPE.replace("snapshot: 3", "snapshot: 2")
    Path("small.yaml").write_text(recipe + keep)
    process = start_driver("baseA", "lingers", newest=6)
    folder = RUNS / "random0-baseA-s0"
    wait_for(lambda: set(iterations(folder)) == training, lambda: f"{training}: {iterations(folder)}")
    assert [weights_path(folder, each).exists() for each in training] == [True] * len(training)
    Path("go").touch()
    process.communicate(timeout=PATIENCE)
    assert process.returncode == 0 and set(iterations(folder)) == after
    Path("small.yaml").write_text(recipe + "keep_snapshots: 7\n")  # not a setting that affects training
    assert drive("baseA", "lingers") == 0


def test_no_older_snapshot_is_removed_while_the_newer_one_is_not_whole():
    Path("small.yaml").write_text(RECIPE.replace("snapshot: 3", "snapshot: 2") + "keep_snapshots: 1\n")
    process = start_driver("baseA", "lingers", "tears", newest=6)
    folder = RUNS / "random0-baseA-s0"
    assert process.stdout
    timer = threading.Timer(PATIENCE, process.kill)  # in case the message never comes
    timer.start()
    assert any("iteration 6 is damaged, so older ones are kept" in line for line in process.stdout)
    timer.cancel()
    assert {4, 6} <= set(iterations(folder))
    process.kill()
    process.communicate()
    Path("go").touch()
    rename_engine("random0-baseA-s0")
    assert drive("baseA") == 0
    assert done_of("random0-baseA-s0")["resumed_from"] == [4]


def test_snapshots_cut_off_anywhere_or_swapped_are_set_aside_until_a_whole_pair_is_found(capsys):
    assert drive("baseA") == 0 and drive("baseB") == 0
    undisturbed = sha256(final("random0-baseA-s0"))
    draw = random.Random(0)
    a, b = (RUNS / f"random0-{name}-s0" / "snapshots" for name in ("baseA", "baseB"))

    def cut(path: Path) -> None:
        os.truncate(path, draw.randrange(path.stat().st_size))

    def swap(kind: str) -> None:
        shutil.copy(b / f"net_iter_8.{kind}", a / f"net_iter_8.{kind}")

    harms = {
        "weights cut off": lambda: cut(a / "net_iter_8.caffemodel"),
        "state cut off": lambda: cut(a / "net_iter_8.solverstate"),
        "both empty": lambda: [os.truncate(a / f"net_iter_8.{kind}", 0) for kind in ("caffemodel", "solverstate")],
        "no weights": lambda: (a / "net_iter_8.caffemodel").unlink(),
        "no state": lambda: (a / "net_iter_8.solverstate").unlink(),
        "another's weights": lambda: swap("caffemodel"),
        "another's state": lambda: swap("solverstate"),
        "another's pair": lambda: [swap("caffemodel"), swap("solverstate")],
    }
    for what, harm in harms.items():
        for _ in range(3 if "cut" in what else 1):
            (RUNS / "random0-baseA-s0" / "done.json").unlink()
            harm()
            capsys.readouterr()
            assert drive("baseA") == 0, what
            assert ("renamed to" in capsys.readouterr().out) == (what != "no state"), what
            assert sha256(final("random0-baseA-s0")) == undisturbed, what


def test_a_network_does_not_go_on_with_other_data_than_it_was_started_on(capsys):
    assert drive("baseA", "early") == 1
    rename_engine("random0-baseA-s0")
    image_list = Path("data/pictures/random0/A/val.txt")
    before = image_list.read_text()
    image_list.write_text(before.replace("0.png", "zero.png"))
    capsys.readouterr()
    assert drive("baseA") == 2
    error = capsys.readouterr().err
    assert "was started on different data: the checksum of val.txt was" in error and error.count("\n") == 1
    image_list.write_text(before)
    assert drive("baseA") == 0
