"""Whole networks through both engines from the same weights: all blobs and gradients of iteration 0, and the losses."""

import json
import sys

import numpy as np
import pytest
from conformance.network_runs import (
    EARLY,
    ITERATIONS,
    first_iteration,
    losses,
    prepare,
    relative,
    weights,
    write_weights,
)
from conformance.networks import NETWORKS
from conformance.suite import needs_real_caffe
from golden_cases import NETWORKS_FILE

from transfer_caffe import real_caffe
from transfer_caffe.compare import TOLERANCE, compare

pytestmark = needs_real_caffe

LATE = 1e-2
"""The relative difference that is allowed for the loss of the trained net; `TOLERANCE` in iterations 0 to 19."""

SEEDS = {name: numbers["seed"] for name, numbers in json.loads(NETWORKS_FILE.read_text()).items()}


@pytest.fixture(params=list(NETWORKS))
def network(request, tmp_path):
    """A network's name, folder and weights: weights from which real Caffe is steady (golden/make_golden.py)."""
    prepare(request.param, tmp_path, ITERATIONS)
    return request.param, tmp_path, weights(request.param, SEEDS[request.param], tmp_path)


def test_all_blobs_and_gradients_of_the_first_iteration_are_real_caffes(network):
    name, folder, values = network
    outcome = compare([first_iteration(name, values, folder)])[0]
    assert outcome.ours is None and outcome.real is None
    assert not [row for row in outcome.rows if not row.difference <= TOLERANCE]
    # each weight that learns has been compared
    compared = {f"{row.what}/{row.name}" for row in outcome.rows}
    assert {key for key, array in outcome.reference.items() if key.startswith("grad/") and array.any()} <= compared


def test_both_engines_report_the_same_losses(network):
    _, folder, values = network
    write_weights(values, folder / "w.caffemodel")
    theirs = losses([str(real_caffe.program())], folder, "w.caffemodel")
    ours = losses([sys.executable, "-m", "transfer_caffe.engine"], folder, "w.caffemodel")
    assert len(theirs) == len(ours) == ITERATIONS + 1  # the last one is of the trained net
    apart = relative(ours, theirs)
    assert apart[:EARLY].max() < TOLERANCE, f"from iteration {np.argmax(apart >= TOLERANCE)}"
    assert apart[-1] < LATE
    assert np.ptp(theirs) > 0.05 * theirs.mean(), "the net does not train"
