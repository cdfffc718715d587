"""Training of one network with a fake engine: the files it writes, and when the network counts as done."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.driving import RUNS, done_of, drive, final

from transfer_caffe.formats.weights import read_weights
from transfer_caffe.run.engines import Engine
from transfer_caffe.utils.files import sha256
from transfer_caffe.utils.processes import environment

pytestmark = pytest.mark.usefixtures("driver_world")


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
    assert rows[2]["lr"] == ""  # unknown values are empty
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
    assert drive("baseA", "dies") == 0  # an engine would fail if it were started
    assert {path: path.stat().st_mtime_ns for path in RUNS.rglob("*")} == before
    assert "already done" in capsys.readouterr().out


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
        ("early", "the engine was stopped early and wrote a snapshot"),
        ("silent", "ended without `Optimization Done.`"),
        ("quits", "ended without `Optimization Done.`"),
        ("dies", "terminated by SIGABRT: Check failed: not today"),
        ("loses", "net_iter_8.caffemodel is missing"),
        (
            "rots",
            "the final weights are invalid: runs/small/random0-baseA-s0/snapshots/net_iter_8.caffemodel: fc8",
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
    assert "layer conv1 should be copied from the base, but the engine ignored it" in capsys.readouterr().err


def test_a_gpu_that_this_caffe_cannot_use_is_one_line_that_says_what_to_do(capsys):
    assert drive("baseA", "cpu", more=("--gpu", "0")) == 1
    error = capsys.readouterr().err
    assert "Cannot use GPU in CPU-only Caffe: check mode. (omit --gpu" in error and error.count("\n") == 1


def test_an_engine_may_lie_in_a_folder_with_a_space():
    program = Path("real caffe/bin/caffe")
    program.parent.mkdir(parents=True)
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    assert Engine.find(str(program)).argv == (str(program.resolve()),)


def test_the_driver_itself_is_light_it_imports_no_torch():
    words = "import sys, transfer_caffe.driver; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", words], env=environment()).returncode == 0
