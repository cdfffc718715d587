"""The engine held to what real Caffe computed, on machines that have none: see tests/golden."""

import contextlib
import json
import os
from pathlib import Path

import numpy as np
import pytest
from conformance.layer_cases import LAYER_CASES
from conformance.networks import NETWORKS, net_text, solver_text, write_data
from conformance.seeded import seeded_weights, write_weights
from conformance.suite import as_case

from transfer_caffe.compare import TOLERANCE, build, compare_with, draw_values
from transfer_caffe.engine import glog
from transfer_caffe.engine.__main__ import main
from transfer_caffe.log import parse_log
from transfer_caffe.proto import parse_text
from transfer_caffe.proto.caffe_pb2 import NetParameter

GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture(scope="module")
def layers():
    """Real Caffe's arrays of each case, by its number."""
    with np.load(GOLDEN / "layers.npz") as file:
        flat, index = file["values"], json.loads(file["index"].tobytes())
    found, at = {}, 0
    for number, name, shape in index:
        size = int(np.prod(shape))
        found.setdefault(number, {})[name] = flat[at : at + size].reshape(shape)
        at += size
    assert at == len(flat)
    return found


NUMBERS = {}
for _case in (case for cases in LAYER_CASES.values() for case in cases):
    NUMBERS.setdefault(_case.type, []).append(len(NUMBERS) and sum(map(len, NUMBERS.values())))


@pytest.mark.parametrize("kind", LAYER_CASES)
def test_values_and_gradients_of_layers_are_real_caffes(kind, layers):
    for number, layer in zip(NUMBERS[kind], LAYER_CASES[kind], strict=True):
        reference = layers[number]
        values = {name.removeprefix("in/"): array for name, array in reference.items() if name.startswith("in/")}
        case = as_case(layer, number)
        for name, array in case.values.items():
            np.testing.assert_array_equal(values[name], np.asarray(array, np.float32), f"the inputs of {layer.name}")
        with glog.silence():
            net = build(layer.net, layer.phase)
        draw_values(net, values, number)
        rows, error = compare_with(net, values, reference, case.backward)
        assert error is None and rows, (layer.name, error)
        assert {f"{row.what}/{row.name}" for row in rows} >= {name for name in reference if name.startswith("data/t")}
        worst = max(row.difference for row in rows)
        assert worst <= TOLERANCE, (layer.name, [row for row in rows if row.difference > TOLERANCE])


NETS = json.loads((GOLDEN / "networks.json").read_text())
LATE = ("lenet", "autoencoder", "sharing", "segmenter")
"""Those quick enough to be trained for 100 iterations here; tests/conformance trains all."""


@pytest.mark.parametrize("name", NETWORKS)
def test_losses_blobs_and_gradients_of_networks_are_real_caffes(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    os.mkdir("snap")
    write_data(name, tmp_path, seed=1)
    param = parse_text(net_text(name), NetParameter(), name)
    weights = seeded_weights(param, seed=1)
    with glog.silence():
        net = build(param, "TRAIN")
    draw_values(net, weights, 1)
    net.forward(0, keep=True)
    net.backward()
    arrays = {f"data/{key}": blob for key, blob in net.blobs.items()}
    arrays |= {f"diff/{key}": blob for key, blob in net.diffs.items() if blob is not None}
    for layer in net.layers:
        arrays |= {f"grad/{layer.name}/{i}": x for i, b in enumerate(layer.blobs) if (x := b.data.grad) is not None}
    most = {kind: max(norm for key, norm in NETS[name]["norms"].items() if key.startswith(kind)) for kind in KINDS}
    for key, norm in NETS[name]["norms"].items():
        found = float(np.linalg.norm(arrays[key].detach().double().numpy()))
        assert found == pytest.approx(norm, rel=TOLERANCE, abs=1e-5 * most[key[:4]]), key

    late = name in LATE
    Path("net.prototxt").write_text(net_text(name))
    Path("solver.prototxt").write_text(solver_text(name, max_iter=100 if late else 19))
    write_weights("w.caffemodel", weights)
    with contextlib.suppress(OSError):
        capsys.readouterr()
    assert main(["train", "--solver", "solver.prototxt", "--weights", "w.caffemodel"]) == 0
    losses = parse_log(capsys.readouterr().err).train_losses
    np.testing.assert_allclose([losses[i] for i in range(20)], NETS[name]["losses"][:20], rtol=1e-4)
    if late:
        assert losses[100] == pytest.approx(NETS[name]["losses"][20], rel=1e-2)


KINDS = ("data", "diff", "grad")
