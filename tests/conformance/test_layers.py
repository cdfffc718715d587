"""Each layer in real Caffe and the embedded engine: values, gradients, and weights after the forward pass."""

import re

import pytest
from conformance.layer_cases import LAYER_CASES
from conformance.random_layers import random_cases
from conformance.suite import needs_real_caffe, outcomes, report

from transfer_caffe.engine.layers import LAYERS
from transfer_caffe.engine.layers.sources import Input  # noqa: F401 - data layers add themselves to LAYERS
from transfer_caffe.real_caffe.differences import TOLERANCE

pytestmark = needs_real_caffe

READING = {
    "Data",
    "DummyData",
    "HDF5Data",
    "HDF5Output",
    "ImageData",
    "Input",
    "MemoryData",
    "WindowData",
}  # test_sources.py


@pytest.fixture(scope="module")
def answers():
    """The outcomes of all manually written cases in both engines, by layer type, computed at once."""
    by_type = {}
    for layer, outcome in outcomes(case for cases in LAYER_CASES.values() for case in cases):
        by_type.setdefault(layer.type, []).append((layer, outcome))
    return by_type


NOT_IN_CAFFE: set[str] = set()
"""Layer types that Caffe 1.0 does not have: tests/engine tests them."""


def test_every_layer_type_of_the_engine_has_cases():
    assert set(LAYERS) == set(LAYER_CASES) | READING | NOT_IN_CAFFE


@pytest.mark.parametrize("kind", LAYER_CASES)
def test_values_and_gradients_are_real_caffes(kind, answers):
    for layer, outcome in answers[kind]:
        assert outcome.ours is None and outcome.real is None, report(layer, outcome, TOLERANCE)
        assert outcome.worst() <= TOLERANCE, report(layer, outcome, TOLERANCE)
        kinds = {row.what for row in outcome.rows}
        assert layer.forward_only or kind in ("Parameter", "Silence") or "diff" in kinds


def known_difference(layer):
    """Return whether a layer differs intentionally; docs/fidelity.md says why."""
    # a window without pixels (Caffe's gradient goes to a wrong place), and 0 / 0 in the gradient of Power
    unpadded = not re.search(r"pad(_h|_w)?: [1-9]", layer.text)
    return (layer.type == "Pooling" and "MAX" in layer.text and unpadded) or layer.type == "Power"


@pytest.mark.parametrize("seed", range(3))
def test_random_settings_are_computed_alike_or_refused_by_both(seed):
    computed = 0
    for layer, outcome in outcomes(random_cases(1000 + seed, 250)):
        if outcome.real is not None:
            continue  # if only the engine accepts the settings, there is nothing to compare
        computed += 1
        assert outcome.ours is None, report(layer, outcome, TOLERANCE)
        if outcome.worst() > TOLERANCE:
            assert known_difference(layer) and outcome.worst("data", "param", "grad") <= TOLERANCE, report(
                layer, outcome, TOLERANCE
            )
    assert computed > 150
