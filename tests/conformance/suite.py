"""The cases of the conformance suite for `transfer_caffe.compare`, and their results, computed once for all tests."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pytest
from conformance.graph_cases import GARBAGE_IN_CAFFE, GRAPH_CASES, REFUSED_BY_CAFFE
from conformance.layer_cases import LAYER_CASES, LayerCase

from transfer_caffe.compare import Case, Outcome, compare
from transfer_caffe.real_caffe import programs as real_caffe

needs_real_caffe = pytest.mark.skipif(
    real_caffe.program() is None or real_caffe.pycaffe() is None,
    reason="there is no real Caffe (`make caffe`); tests/conformance/test_golden.py compares with recorded numbers",
)


def as_case(layer: LayerCase, seed: int) -> Case:
    """Return a layer's case with values for its bottoms, and for weights that the fillers would set to zero."""
    draw = np.random.RandomState(seed)
    values = {f"blob/{name}": value for name, value in layer.bottoms(seed).items()}
    if layer.type == "BatchNorm":
        channels = layer.shapes[0][1]
        for index, size in enumerate((channels, channels, 1)):
            values[f"param/l/{index}"] = draw.uniform(0.5, 2, size)
    if layer.type == "Parameter":
        values["param/l/0"] = draw.standard_normal((2, 3))
    backward = not layer.forward_only or layer.type == "Embed"
    return Case(layer.net, layer.phase, values, seed=seed, backward=backward)


def recorded_cases() -> list[tuple[str, Case]]:
    """Return the cases recorded in tests/golden/layers.npz, with their names, in the recorded order."""
    layers = [layer for cases in LAYER_CASES.values() for layer in cases]
    graphs = [name for name in GRAPH_CASES if name not in REFUSED_BY_CAFFE + GARBAGE_IN_CAFFE]
    return [(layer.name, as_case(layer, seed)) for seed, layer in enumerate(layers)] + [
        (name, GRAPH_CASES[name]) for name in graphs
    ]


def outcomes(layers: Iterable[LayerCase]) -> list[tuple[LayerCase, Outcome]]:
    """Run layers in both engines and return the outcomes; the seed of each layer is its index."""
    layers = list(layers)
    return list(zip(layers, compare([as_case(layer, seed) for seed, layer in enumerate(layers)]), strict=True))


def report(layer: LayerCase, outcome: Outcome, tolerance: float) -> str:
    """Return the rows that differ, for a failed test's message."""
    rows = [f"{row.what} {row.name} {row.difference:.1e}" for row in outcome.rows if not row.difference <= tolerance]
    return f"{layer.name}: {'; '.join(rows)} ours: {outcome.ours} real: {outcome.real}"
