"""The engine against real Caffe's recorded numbers, on machines without real Caffe. See golden/make_golden.py."""

import contextlib
import json

import numpy as np
import pytest
from conformance.network_runs import EARLY, ITERATIONS, first_iteration, prepare, relative, weights, write_weights
from conformance.networks import NETWORKS
from golden_cases import NETWORKS_FILE, golden_cases, read_layers

from transfer_caffe.compare import (
    TOLERANCE,
    build,
    compare_with,
    difference,
    draw_values,
    noise_floor,
    run_ours,
)
from transfer_caffe.engine import glog
from transfer_caffe.engine.__main__ import main
from transfer_caffe.log import parse_log

CASES = golden_cases()
NETWORK_NUMBERS = json.loads(NETWORKS_FILE.read_text())
LATE = 1e-2
STALE = "tests/golden is not of these cases; make it again: PYTHONPATH=tests python tests/golden/make_golden.py"


@pytest.fixture(scope="module")
def recorded():
    return read_layers()


def inputs(arrays):
    return {key.removeprefix("in/"): array for key, array in arrays.items() if key.startswith("in/")}


def test_the_recorded_cases_are_those_of_the_suite(recorded):
    assert [name for name, _ in recorded] == [name for name, _ in CASES], STALE
    assert set(NETWORK_NUMBERS) == set(NETWORKS), STALE


@pytest.mark.parametrize("part", range(10))
def test_values_and_gradients_of_layers_are_as_recorded(part, recorded):
    for (name, case), (_, arrays) in list(zip(CASES, recorded, strict=True))[part::10]:
        with glog.silence():
            net = build(case.net, case.phase)
        values = inputs(arrays)
        given = set(values)
        draw_values(net, values, case.seed)
        assert set(values) == given, STALE
        rows, error = compare_with(net, values, arrays, case.backward)
        assert error is None, f"{name}: {error}"
        wrong = [f"{row.what} {row.name} {row.difference:.1e}" for row in rows if not row.difference <= TOLERANCE]
        assert not wrong, f"{name}: {wrong}"
        compared = {f"{row.what}/{row.name}" for row in rows}
        assert compared or not case.net.layer[-1].top, name


def test_nearly_all_recorded_arrays_are_compared(recorded):
    compared = total = 0
    for (_, case), (_, arrays) in zip(CASES, recorded, strict=True):
        with glog.silence():
            net = build(case.net, case.phase)
        rows, _ = compare_with(net, inputs(arrays), arrays, case.backward)
        keys = {key for key, array in arrays.items() if not key.startswith("in/") and array.any()}
        compared, total = compared + len(keys & {f"{row.what}/{row.name}" for row in rows}), total + len(keys)
    assert compared > 0.97 * total


@pytest.mark.parametrize("name", NETWORKS)
def test_blobs_and_gradients_of_a_network_have_the_recorded_norms(name, tmp_path):
    recorded = NETWORK_NUMBERS[name]
    prepare(name, tmp_path, 1)
    case = first_iteration(name, weights(name, recorded["seed"], tmp_path), tmp_path)
    with contextlib.chdir(tmp_path), glog.silence():
        net = build(case.net, case.phase)
        values = dict(case.values)
        draw_values(net, values, case.seed)
        found = run_ours(net, values, True)
    real = {key: np.array([norm]) for key, norm in recorded["norms"].items()}
    wrong = {}
    for key, array in found.items():
        if key in real:
            norm = np.array([np.linalg.norm(array.astype(np.float64).ravel())])
            apart = difference(norm, real[key], noise_floor(key, real))
            if not apart <= TOLERANCE:
                wrong[key] = apart
    assert not wrong
    assert {key for key, norm in real.items() if key.startswith("grad/") and norm[0]} <= set(found)


@pytest.mark.parametrize("name", NETWORKS)
def test_the_losses_of_a_network_are_as_recorded(name, tmp_path, monkeypatch, capsys):
    recorded = NETWORK_NUMBERS[name]
    prepare(name, tmp_path, ITERATIONS)
    write_weights(weights(name, recorded["seed"], tmp_path), tmp_path / "w.caffemodel")
    monkeypatch.chdir(tmp_path)
    capsys.readouterr()
    assert main(["train", "--solver", "solver.prototxt", "--weights", "w.caffemodel"]) == 0
    found = parse_log(capsys.readouterr().err).train_losses
    losses = np.array([found[iteration] for iteration in range(EARLY)])
    assert relative(losses, np.array(recorded["losses"])).max() < TOLERANCE
    assert abs(found[ITERATIONS] - recorded["last"]) < LATE * recorded["last"]
