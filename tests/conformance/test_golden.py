"""Compare the engine with recorded results of real Caffe, on machines without real Caffe; see tests/golden."""

import contextlib
import json
import os
from pathlib import Path

import numpy as np
import pytest
from conformance.networks import NETWORKS, net_text, solver_text, write_data
from conformance.seeded import seeded_weights, write_weights
from conformance.suite import recorded_cases

from transfer_caffe.compare import build, compare_with, draw_values
from transfer_caffe.engine.__main__ import main
from transfer_caffe.formats.log import parse_log
from transfer_caffe.formats.proto import parse_text
from transfer_caffe.formats.proto.caffe_pb2 import NetParameter
from transfer_caffe.real_caffe.differences import TOLERANCE

GOLDEN = Path(__file__).parent.parent / "golden"


CASES = recorded_cases()
STALE = "tests/golden/layers.npz does not match these cases; rebuild it with tests/golden/make_golden.py"


@pytest.fixture(scope="module")
def recorded():
    """Real Caffe's arrays for each case, and the input values, in the order of the cases."""
    with np.load(GOLDEN / "layers.npz") as file:
        flat, index = file["values"], json.loads(file["index"].tobytes())
    assert [name for name, *_ in index] == [name for name, _ in CASES], STALE
    found, at = [], 0
    for _, *arrays in index:
        found.append({})
        for key, shape in arrays:
            size = int(np.prod(shape))
            found[-1][key] = flat[at : at + size].reshape(shape)
            at += size
    assert at == len(flat)
    return found


@pytest.mark.parametrize("part", range(10))
def test_values_and_gradients_of_layers_are_real_caffes(part, recorded):
    compared = total = 0
    for (name, case), reference in list(zip(CASES, recorded, strict=True))[part::10]:
        values = {key.removeprefix("in/"): array for key, array in reference.items() if key.startswith("in/")}
        for key, array in case.values.items():
            np.testing.assert_array_equal(values[key], np.asarray(array, np.float32), STALE)
        net = build(case.net, case.phase)
        draw_values(net, values, case.seed)
        rows, error = compare_with(net, values, reference, case.backward)
        assert error is None, (name, error)
        # HingeLoss of weight 0 leaves intermediate values in the gradient of its bottom
        assert not [
            row for row in rows if not (row.difference <= TOLERANCE or (row.name == "other" and row.only_in))
        ], name
        keys = {key for key, array in reference.items() if not key.startswith("in/") and array.any()}
        compared += len(keys & {f"{row.what}/{row.name}" for row in rows})
        total += len(keys)
    assert compared > 0.9 * total  # Caffe adds split blobs, with names of its own, for blobs that are used twice


NETS = json.loads((GOLDEN / "networks.json").read_text())
LATE = ("lenet", "autoencoder", "sharing", "segmenter")
"""Networks that are fast enough to train for 100 iterations here; test_networks.py trains all of them."""


@pytest.mark.parametrize("name", NETWORKS)
def test_losses_blobs_and_gradients_of_networks_are_real_caffes(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    os.mkdir("snap")
    write_data(name, tmp_path, seed=1)
    param = parse_text(net_text(name), NetParameter(), name)
    weights = seeded_weights(param, NETS[name]["seed"])
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
