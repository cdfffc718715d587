"""Real Caffe and the embedded engine resume from each other's files: states, weights, means and databases.

There are 40 images in batches of 8, so the data starts over after every 5 iterations. At these iterations real Caffe,
which starts reading from the beginning when it resumes, reads the same data as an uninterrupted run.
"""

import re

import numpy as np
import pytest
from support import solver_suite
from support.solver_suite import FINETUNE, TRAIN, run_ours, run_real

from transfer_caffe.engine.solver import solverstate
from transfer_caffe.formats.proto import read_binary
from transfer_caffe.formats.proto.caffe_pb2 import NetParameter, SolverState
from transfer_caffe.real_caffe import programs as real_caffe

h5py = pytest.importorskip("h5py")
pytestmark = pytest.mark.skipif(real_caffe.program() is None, reason="there is no real Caffe (`make caffe`)")

RUNS = {"ours": run_ours, "real": run_real}
HDF5 = "snapshot_format: HDF5"
CASES = [
    "sgd_fixed",
    "sgd_multistep_unsorted",
    "sgd_clip_iter_size_average",
    "nesterov",
    "adagrad_clip_iter_size",
    "rmsprop",
    "adadelta",
    "adam",
    "adam_clip_iter_size",
    "shared_sgd",
    "shared_adam",
    "frozen_adam",
    "scalar_sgd",
]


def train_both(tmp_path, case, more, iterations):
    """Train a case with both engines, in folders with their names, and return their losses."""
    losses = {}
    for name, run in RUNS.items():
        solver_suite.prepare(tmp_path / name, case, more, iterations)
        losses[name] = solver_suite.losses(run(tmp_path / name, *FINETUNE))
    return losses


@pytest.mark.parametrize("more", ["", HDF5], ids=["binary", "hdf5"])
@pytest.mark.parametrize("case", CASES)
def test_each_goes_on_from_the_others_state(case, more, tmp_path):
    ending = ".h5" if more else ""
    whole = train_both(tmp_path, case, more, 30)["real"]
    undisturbed = solver_suite.blobs(tmp_path / "real", 30, ending)
    for reader, writer in (("ours", "real"), ("real", "ours")):
        # the state names its weights relative to the folder where its run was started
        log = RUNS[reader](tmp_path / writer, *TRAIN, "--snapshot", f"snap/tiny_iter_20.solverstate{ending}")
        losses = solver_suite.losses(log)
        assert len(losses) == 11
        if "average" not in case and "adam_clip" not in case:  # a smoothed loss starts again
            np.testing.assert_allclose(losses, whole[20:], rtol=3e-5)
        resumed = solver_suite.blobs(tmp_path / writer, 30, ending)
        assert solver_suite.difference(resumed, undisturbed, histories=False) < 2e-5
        assert solver_suite.difference(resumed, undisturbed, histories=True) < 2e-5


@pytest.mark.parametrize("case", ["sgd_multistep_unsorted", "adam", "shared_sgd"])
def test_binary_snapshots_have_the_same_fields(case, tmp_path):
    train_both(tmp_path, case, "", 10)
    states = [read_binary(tmp_path / name / "snap/tiny_iter_10.solverstate", SolverState()) for name in RUNS]
    assert states[0].random_seed == 7
    states[0].ClearField("random_seed")
    states[0].ClearField("learned_net_sha256")
    for state in states:
        state.DiscardUnknownFields()
        for blob in state.history:
            blob.ClearField("data")
    assert states[0] == states[1]
    nets = [read_binary(tmp_path / name / "snap/tiny_iter_10.caffemodel", NetParameter()) for name in RUNS]
    shapes = [
        [(layer.name, layer.type, [list(blob.shape.dim) for blob in layer.blobs]) for layer in net.layer]
        for net in nets
    ]
    assert shapes[0] == shapes[1]


@pytest.mark.parametrize("case", ["sgd_multistep_unsorted", "adam", "shared_sgd"])
def test_hdf5_snapshots_have_the_same_layout(case, tmp_path):
    train_both(tmp_path, case, HDF5, 10)

    def layout(path):
        found = {}

        def visit(name, item):
            if isinstance(item, h5py.Dataset):
                kind = item.id.get_type()
                text = kind.get_class() == h5py.h5t.STRING
                found[name] = (item.shape, str(item.dtype), (kind.get_strpad(), kind.get_cset()) if text else None)
            else:
                found[name] = None

        with h5py.File(path) as file:
            file.visititems(visit)
            values = {name: file[name][()] for name in ("iter", "learned_net", "current_step") if name in file}
        return found, values

    for kind in ("caffemodel", "solverstate"):
        (ours, our_values), (real, real_values) = (
            layout(tmp_path / name / f"snap/tiny_iter_10.{kind}.h5") for name in RUNS
        )
        for name in ("random_seed", "learned_net_sha256"):
            ours.pop(name, None)
        assert ours == real
        assert our_values == real_values


@pytest.mark.parametrize("more", ["", HDF5], ids=["binary", "hdf5"])
@pytest.mark.parametrize("case", ["sgd_fixed", "shared_sgd"])
def test_both_score_weights_alike_whoever_wrote_them_and_train_on_from_them(case, more, tmp_path):
    ending = ".h5" if more else ""
    train_both(tmp_path, case, more, 20)
    for name in RUNS:
        weights = f"snap/tiny_iter_20.caffemodel{ending}"
        score = ("test", "--model", "net.prototxt", "--iterations", "4", "--weights", weights)
        logs = [run(tmp_path / name, *score) for run in RUNS.values()]
        found = [re.findall(r"caffe.cpp:\d+\] (.*?)[=:] ([\d.e+-]+)", log) for log in logs]
        assert len(found[0]) == 11 and [what for what, _ in found[0]] == [what for what, _ in found[1]]
        np.testing.assert_allclose(*([float(value) for _, value in each] for each in found), rtol=2e-5)
        (tmp_path / name / weights).rename(tmp_path / name / f"v.caffemodel{ending}")
        tuned = (*TRAIN, "--weights", f"v.caffemodel{ending}")
        losses = [solver_suite.losses(run(tmp_path / name, *tuned)) for run in RUNS.values()]
        assert len(losses[0]) == 21
        np.testing.assert_allclose(*losses, rtol=2e-5)


def test_a_state_of_real_caffe_has_no_seed_and_one_is_drawn(tmp_path):
    solver_suite.prepare(tmp_path, "sgd_fixed", iterations=20)
    run_real(tmp_path, *FINETUNE)
    assert solverstate.read_state(f"{tmp_path}/snap/tiny_iter_20.solverstate").seed is None
    text = (tmp_path / "solver.prototxt").read_text()
    (tmp_path / "solver.prototxt").write_text(
        text.replace("random_seed: 7", "").replace("max_iter: 20", "max_iter: 21")
    )
    log = run_ours(tmp_path, *TRAIN, "--snapshot", "snap/tiny_iter_20.solverstate")
    assert "random_seed is not set: taking" in log
    assert solverstate.read_state(f"{tmp_path}/snap/tiny_iter_21.solverstate").seed is not None


TWICE = """layer { name: "data" type: "DummyData" top: "x" top: "y" dummy_data_param { shape { dim: 3 dim: 5 }
  shape { dim: 3 } data_filler { type: "constant" value: 0.5 } data_filler { type: "constant" value: 2 } } }
layer { name: "fc" type: "InnerProduct" bottom: "x" top: "a" inner_product_param { num_output: 4
  weight_filler { type: "constant" value: 0.1 } } }
layer { name: "fc" type: "InnerProduct" bottom: "a" top: "b" inner_product_param { num_output: 3
  weight_filler { type: "constant" value: 0.3 } } }
layer { name: "loss" type: "SoftmaxWithLoss" bottom: "b" bottom: "y" top: "loss" }"""


def test_two_layers_of_one_name_are_trained_and_saved_alike(tmp_path):
    saved = []
    for name, run in RUNS.items():
        folder = tmp_path / name
        folder.mkdir()
        (folder / "net.prototxt").write_text(TWICE)
        (folder / "solver.prototxt").write_text(
            'net: "net.prototxt" base_lr: 0.05 lr_policy: "fixed" momentum: 0.9 max_iter: 9 display: 1 '
            'snapshot_prefix: "s" solver_mode: CPU random_seed: 1'
        )
        losses = solver_suite.losses(run(folder, *TRAIN))
        param = read_binary(folder / "s_iter_9.caffemodel", NetParameter())
        saved.append((losses, [blob for layer in param.layer if layer.name == "fc" for blob in layer.blobs]))
    (losses, blobs), (real_losses, real_blobs) = saved
    assert len(losses) == 10 and losses[-1] < 0.9 * losses[0] and len(blobs) == 4
    np.testing.assert_allclose(losses, real_losses, rtol=2e-5)
    for own, real in zip(blobs, real_blobs, strict=True):
        assert own.shape == real.shape
        np.testing.assert_allclose(own.data, real.data, rtol=1e-5)
