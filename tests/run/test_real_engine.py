"""Training with real Caffe as the engine, including kills and divergence; no failed network counts as done."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from support.preloaded import forked
from support.small_world import draw_shapes, experiment
from support.waiting import PATIENCE, wait_for

from transfer_caffe import driver
from transfer_caffe.data import make_data
from transfer_caffe.experiment.read import load_recipe
from transfer_caffe.formats.log import read_log
from transfer_caffe.formats.weights import read_weights
from transfer_caffe.real_caffe import programs as real_caffe
from transfer_caffe.sweep.__main__ import main as sweep_main
from transfer_caffe.utils import processes
from transfer_caffe.utils.files import write_text

pytestmark = pytest.mark.skipif(
    real_caffe.program() is None, reason="no real Caffe here (environment variable CAFFE, the PATH, or `make caffe`)"
)

RECIPE = experiment("{random0: [baseA, baseB, A3B, A3B+, B3B], whole: [R2]}")
FROZEN, FRESH = ["conv1", "conv2", "conv3"], ["conv4", "conv5", "fc6", "fc7", "fc8"]


@pytest.fixture(scope="module", autouse=True)
def _folder(tmp_path_factory):
    """Run this module in a folder with a dataset and its databases; the folder's name contains a space."""
    before = Path.cwd()
    os.chdir(tmp_path_factory.mktemp("real caffe"))
    draw_shapes()
    write_text("tiny.yaml", RECIPE)
    make_data(load_recipe("tiny.yaml"), Path("data"), lambda line: None)
    yield
    os.chdir(before)


@pytest.fixture(scope="module")
def runs():
    """Return the folder of the networks of a finished sweep."""
    with forked():
        assert sweep_main(["run", "--recipe", "tiny.yaml", "--engine", "caffe"]) == 0
    return Path("runs/tiny")


def write_recipe(name: str, *changes: tuple[str, str]) -> Path:
    """Write another recipe on the same data, and return the folder of its networks."""
    text = RECIPE.replace("name: tiny", f"name: {name}")
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    write_text(f"{name}.yaml", text)
    return Path("runs") / name


def drive(recipe: str, treatment: str, *more: str) -> int:
    return driver.main(["--recipe", f"{recipe}.yaml", "--treatment", treatment, "--engine", "caffe", *more])


def weights(folder: Path, iteration: int = 20) -> dict[str, list[bytes]]:
    found = read_weights(folder / f"snapshots/net_iter_{iteration}.caffemodel")
    return {layer: [blob.tobytes() for blob in blobs] for layer, blobs in found.items()}


def test_all_networks_come_to_done_and_into_the_table(runs):
    with open(runs / "results.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["treatment"] for row in rows} == {"baseA", "baseB", "A3B", "B3B", "A3B+", "R2"}
    assert all(0 <= float(row["accuracy_final"]) <= 1 for row in rows)
    done = json.loads((runs / "random0-baseA-s0/done.json").read_text())
    assert done["engine"] == "caffe" and done["tests"] == 3 and done["resumed_from"] == []


def test_layers_that_are_taken_over_and_frozen_end_byte_equal_to_the_bases_and_the_others_learn(runs):
    for base, treatment in (("baseA", "A3B"), ("baseB", "B3B")):
        before, after = weights(runs / f"random0-{base}-s0"), weights(runs / f"random0-{treatment}-s0")
        assert all(before[layer] == after[layer] for layer in FROZEN)
        assert all(ours != theirs for layer in FRESH for ours, theirs in zip(after[layer], before[layer], strict=True))
    base, tuned = weights(runs / "random0-baseA-s0"), weights(runs / "random0-A3B+-s0")
    assert all(base[layer] != tuned[layer] for layer in FROZEN)


def test_random_frozen_layers_do_not_learn(runs):
    done = json.loads((runs / "whole-R2-s0/done.json").read_text())
    assert done["frozen_layers"] == "equal to those of iteration 10"


def test_the_same_network_ends_with_the_same_bytes(runs):
    before = weights(runs / "random0-baseA-s0")
    shutil.copytree(runs / "random0-baseA-s0", "runs/first")
    assert drive("tiny", "baseA", "--restart") == 0
    again = runs / "random0-baseA-s0"
    assert weights(again) == before
    shutil.rmtree(again)
    shutil.move("runs/first", again)


def test_a_loss_that_is_not_a_number_is_never_done_whether_caffe_exits_with_0_or_dies_of_it(capsys):
    changes = (("base_lr: 0.01", "base_lr: 1000000.0"), ("display: 5", "display: 1"))
    folder = write_recipe("hot", *changes) / "random0-baseA-s0"
    for _ in range(2):  # the second time there may be snapshots
        assert drive("hot", "baseA") == 1
        error = capsys.readouterr().err
        # with NaN, max pooling writes out of bounds; whether and when Caffe crashes because of that is random
        assert "training diverged" in error or "terminated by SIG" in error
        assert error.count("\n") == 1 and not (folder / "done.json").exists()


# ends long after the snapshot at which the tests kill it, even if a slow test does so late
LONG = (("max_iter: 20", "max_iter: 1000"), ("test_interval: 10", "test_interval: 500"))


def start(recipe: str, snapshot: Path) -> subprocess.Popen[str]:
    """Start a driver in a separate process, and wait until the engine has written this snapshot."""
    argv = [sys.executable, "-m", "transfer_caffe.driver", "--recipe", f"{recipe}.yaml", "--treatment", "baseA"]
    process = subprocess.Popen(
        [*argv, "--engine", "caffe"],
        env=processes.environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    wait_for(snapshot.exists, snapshot.name, process)
    return process


def test_a_killed_network_goes_on_from_its_newest_whole_snapshot(capsys):
    folder = write_recipe("killed", *LONG) / "random0-baseA-s0"
    process = start("killed", folder / "snapshots/net_iter_30.solverstate")
    process.kill()
    process.communicate()
    newest = max((folder / "snapshots").glob("*.caffemodel"), key=lambda path: int(path.stem.rsplit("_", 1)[1]))
    newest.with_suffix(".solverstate").touch()
    os.truncate(newest, newest.stat().st_size // 2)
    assert drive("killed", "baseA") == 0
    out = capsys.readouterr().out
    assert f"the snapshot of iteration {newest.stem.rsplit('_', 1)[1]} is damaged and renamed" in out
    done = json.loads((folder / "done.json").read_text())
    assert len(done["resumed_from"]) == 1 and 0 < done["resumed_from"][0] < 1000
    assert f"resuming from the snapshot of iteration {done['resumed_from'][0]} of 1000" in out


def test_an_interrupted_network_leaves_a_snapshot_and_goes_on():
    folder = write_recipe("stopped", *LONG) / "random0-baseA-s0"
    process = start("stopped", folder / "snapshots/net_iter_10.solverstate")
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=PATIENCE)
    assert process.returncode == 130
    assert read_log(folder / "train.log").stopped_early and not (folder / "done.json").exists()
    assert drive("stopped", "baseA") == 0


def test_a_network_that_was_killed_between_its_last_snapshot_and_done_needs_no_training(runs):
    folder = runs / "random0-baseB-s0"
    before, done = weights(folder), json.loads((folder / "done.json").read_text())
    (folder / "done.json").unlink()
    assert drive("tiny", "baseB") == 0
    assert weights(folder) == before
    again = json.loads((folder / "done.json").read_text())
    assert again["accuracy_final"] == done["accuracy_final"] and again["resumed_from"] == [20]


def test_a_gpu_is_asked_of_caffe_and_its_refusal_is_one_line(capsys):
    write_recipe("gpu")
    assert drive("gpu", "baseA", "--gpu", "0") == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and ("CPU-only Caffe" in error or "CUDA" in error or "cuda" in error)
