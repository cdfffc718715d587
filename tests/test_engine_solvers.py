"""The solvers: real Caffe's losses as recorded, what is refused, and resuming to the same bytes."""

import json
from pathlib import Path

import h5py
import numpy as np
import pytest
from conftest import net_text
from solver_cases import SOLVER_CASES, write_solver, write_weights

from transfer_caffe.engine.__main__ import main
from transfer_caffe.engine.updates import RULES
from transfer_caffe.log import parse_log
from transfer_caffe.proto import read_binary
from transfer_caffe.proto.caffe_pb2 import SolverState

GOLDEN = json.loads((Path(__file__).parent / "golden" / "solvers.json").read_text())


def run(capsys, *arguments):
    """Run the engine, expect success, and give its log."""
    capsys.readouterr()
    assert main(list(arguments)) == 0
    return capsys.readouterr().err


@pytest.mark.parametrize("name", SOLVER_CASES)
def test_the_losses_are_those_that_real_caffe_printed(name, tiny, capsys):
    write_solver(tiny, name)
    write_weights("w.caffemodel")
    losses = parse_log(run(capsys, "train", "--solver", "solver.prototxt", "--weights", "w.caffemodel")).train_losses
    for iteration, loss in GOLDEN[name].items():
        assert losses[int(iteration)] == pytest.approx(loss, rel=1e-4 if int(iteration) < 20 else 1e-2)


# all that is random, batches of several parts, a mean over losses; and no seed, so that one is drawn
RANDOM = """net: "net.prototxt" base_lr: 0.01 lr_policy: "fixed" iter_size: 2 average_loss: 3 weight_decay: 0.01
display: 1 max_iter: 10 snapshot: 1 snapshot_prefix: "snap/tiny" solver_mode: CPU test_iter: 2 test_interval: 5
"""


@pytest.mark.parametrize("ending", ["", ".h5"])
@pytest.mark.parametrize("kind", RULES)
def test_resuming_at_any_iteration_gives_the_same_bytes_without_a_seed_given(kind, ending, tiny, capsys):
    (tiny / "net.prototxt").write_text(net_text())
    momentum = "" if kind in ("AdaGrad", "RMSProp") else "momentum: 0.9"
    hdf5 = "snapshot_format: HDF5" if ending else ""
    (tiny / "solver.prototxt").write_text(f'{RANDOM} type: "{kind}" {momentum} {hdf5}')
    run(capsys, "train", "--solver", "solver.prototxt")
    names = [f"snap/tiny_iter_10.{what}{ending}" for what in ("caffemodel", "solverstate")]
    whole = [(tiny / name).read_bytes() for name in names]
    for iteration in (1, 4, 7):
        for name in names:
            (tiny / name).unlink()
        run(capsys, "train", "--solver", "solver.prototxt",
            "--snapshot", f"snap/tiny_iter_{iteration}.solverstate{ending}")  # fmt: skip
        assert [(tiny / name).read_bytes() for name in names] == whole


def test_another_seed_in_the_solver_is_followed_and_said(tiny, capsys):
    run(capsys, "train", "--solver", "solver.prototxt")
    assert read_binary("snap/tiny_iter_5.solverstate", SolverState()).random_seed == 7
    text = (tiny / "solver.prototxt").read_text().replace("random_seed: 7", "random_seed: 8")
    (tiny / "solver.prototxt").write_text(text)
    log = run(capsys, "train", "--solver", "solver.prototxt", "--snapshot", "snap/tiny_iter_5.solverstate")
    assert "was drawn with random_seed 7: the rest is with 8" in log


def test_hdf5_snapshots_are_laid_out_as_caffes(tiny, capsys):
    write_solver(tiny, "adam", "snapshot_format: HDF5")
    write_weights("w.caffemodel")
    run(capsys, "train", "--solver", "solver.prototxt", "--weights", "w.caffemodel")

    def content(path):
        found = {}
        with h5py.File(path) as file:
            file.visititems(lambda name, item: found.update({name: item[()] if hasattr(item, "shape") else None}))  # pyright: ignore
        return found

    weights = content("snap/tiny_iter_20.caffemodel.h5")
    layers = ["conv1", "conv2", "data", "fc3", "loss", "norm1", "pool1", "pool2", "relu1", "relu2"]
    assert sorted(name for name, value in weights.items() if value is None) == ["data", *(f"data/{x}" for x in layers)]
    assert weights["data/conv1/0"].shape == (6, 3, 3, 3) and weights["data/conv1/0"].dtype == np.float32
    assert [name for name in weights if name.startswith("data/fc3/")] == ["data/fc3/0", "data/fc3/1"]
    state = content("snap/tiny_iter_20.solverstate.h5")
    assert state["iter"].dtype == np.int32 and state["iter"].tolist() == [20]
    assert state["learned_net"] == b"snap/tiny_iter_20.caffemodel.h5"
    assert {name for name in state if name.startswith("history/")} == {f"history/{index}" for index in range(12)}


@pytest.mark.parametrize("what", ["caffemodel", "solverstate"])
@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: data[: len(data) // 2],
        lambda data: data[:-1],
        lambda data: bytes(range(256)) * 4,
        lambda data: data[:700] + bytes([data[700] ^ 1]) + data[701:],
        lambda data: data[:-20] + bytes([data[-20] ^ 16]) + data[-19:],
    ],
    ids=["empty", "half", "last byte", "random", "flip", "flip in the seal"],
)
def test_a_damaged_hdf5_snapshot_is_refused(what, damage, tiny, capsys):
    write_solver(tiny, "sgd", "snapshot_format: HDF5")
    run(capsys, "train", "--solver", "solver.prototxt")
    path = tiny / f"snap/tiny_iter_20.{what}.h5"
    path.write_bytes(damage(path.read_bytes()))
    capsys.readouterr()
    assert main(["train", "--solver", "solver.prototxt", "--snapshot", "snap/tiny_iter_20.solverstate.h5"]) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if "error: " in line]
    assert len(errors) == 1 and path.name in errors[0]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ('type: "AdaGrad" momentum: 0.9', "AdaGrad has no momentum"),
        ('type: "RMSProp" rms_decay: 1', "rms_decay must be at least 0 and less than 1"),
        ('type: "adam"', "unknown solver type 'adam'; known: SGD, Nesterov, AdaGrad, RMSProp, AdaDelta, Adam"),
        ('type: "Adam" solver_type: ADAM', "solver.prototxt"),
    ],
)
def test_settings_that_do_not_fit_a_solver_are_refused(settings, message, tiny, capsys):
    (tiny / "solver.prototxt").write_text(f'net: "net.prototxt" base_lr: 0.1 lr_policy: "fixed" max_iter: 1 {settings}')
    assert main(["train", "--solver", "solver.prototxt"]) == 2
    assert message in capsys.readouterr().err
