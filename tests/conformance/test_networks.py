"""Complete networks in real Caffe and the embedded engine, from the same weights: blobs, gradients and losses."""

from __future__ import annotations

import contextlib
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
from conformance.networks import NETWORKS, net_text, solver_text, write_data
from conformance.seeded import recorded, seeded_weights
from conformance.suite import needs_real_caffe
from support import python

from transfer_caffe.compare import Case, Outcome, compare
from transfer_caffe.formats.log import read_log
from transfer_caffe.formats.proto import parse_text
from transfer_caffe.formats.proto.caffe_pb2 import NetParameter
from transfer_caffe.real_caffe import programs as real_caffe
from transfer_caffe.real_caffe.differences import TOLERANCE

ITERATIONS = 100
CLOSE, LATE = 1e-4, 1e-2
"""Accepted relative differences in iterations 0-19, and at the end."""

CAFFE = real_caffe.program()


def losses(folder: Path, engine: str, weights: str | None = None) -> np.ndarray:
    """Run `train` of an engine with the solver in ``folder`` and return the logged losses, one per iteration."""
    argv = ["train", "--solver=solver.prototxt", *([f"--weights={weights}"] if weights else [])]
    package = str(Path(real_caffe.__file__).resolve().parent.parent)
    # one thread: sums in a different order can move a unit near 0 to the other side of a ReLU
    env = {**os.environ, "GLOG_logtostderr": "1", "PYTHONPATH": package, "OMP_NUM_THREADS": "1"}
    if engine == "embedded":
        done = python.run("-m", "transfer_caffe.engine", *argv, cwd=folder, env=env)
    else:
        done = subprocess.run([str(CAFFE), *argv], cwd=folder, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    (folder / "train.log").write_text(done.stderr)
    found = read_log(folder / "train.log").train_losses
    return np.array([found[iteration] for iteration in sorted(found)])


@pytest.mark.skipif(CAFFE is None, reason="there is no real Caffe (no program caffe)")
@pytest.mark.parametrize("name", NETWORKS)
def test_both_engines_report_the_same_losses_of_a_network(name: str, tmp_path: Path) -> None:
    (tmp_path / "snap").mkdir()
    (tmp_path / "net.prototxt").write_text(net_text(name))
    write_data(name, tmp_path, seed=1)
    solver = tmp_path / "solver.prototxt"
    solver.write_text(solver_text(name, max_iter=1, snapshot_after_train=True))
    losses(tmp_path, "real")
    solver.write_text(solver_text(name, max_iter=ITERATIONS))
    weights = "snap/net_iter_1.caffemodel"
    theirs = losses(tmp_path, "real", weights)
    ours = losses(tmp_path, "embedded", weights)

    assert len(theirs) == len(ours) == ITERATIONS + 1  # the last loss is that of the trained net
    difference = np.abs(ours - theirs) / np.abs(theirs)
    assert difference[:20].max() < CLOSE, f"from iteration {np.argmax(difference[:20] >= CLOSE)}"
    assert difference[-1] < LATE
    assert np.ptp(theirs) > 0.05 * theirs.mean(), "the net does not train"


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Outcome]:
    """The first iteration of all networks in both engines, computed at once."""
    cases = []
    for name in NETWORKS:
        folder = tmp_path_factory.mktemp(name)
        with contextlib.chdir(folder):
            write_data(name, folder, seed=1)
            param = parse_text(net_text(name), NetParameter(), name)
            cases.append(Case(param, "TRAIN", seeded_weights(param, recorded(name)["seed"]), folder=folder))
    return dict(zip(NETWORKS, compare(cases), strict=True))


@needs_real_caffe
@pytest.mark.parametrize("name", NETWORKS)
def test_all_blobs_and_gradients_of_the_first_iteration_are_real_caffes(
    name: str, outcomes: dict[str, Outcome]
) -> None:
    outcome = outcomes[name]
    assert outcome.ours is None and outcome.real is None
    assert not [row for row in outcome.rows if not row.difference <= TOLERANCE]
    # all learnable blobs were compared
    compared = {f"{row.what}/{row.name}" for row in outcome.rows}
    assert {key for key, array in outcome.reference.items() if key.startswith("grad/") and array.any()} <= compared
