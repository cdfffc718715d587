"""pycaffe's solvers: steps, tests, snapshots, callbacks, and the same training as by the engine's solver."""

from pathlib import Path

import numpy as np
import pytest

import transfer_caffe.caffe as caffe
from transfer_caffe.engine import Solver as EngineSolver
from transfer_caffe.formats.proto import read_binary
from transfer_caffe.formats.proto.caffe_pb2 import SolverState

NET = """
layer { name: "data" type: "DummyData" top: "data" top: "label" dummy_data_param {
  shape { dim: 8 dim: 4 } shape { dim: 8 } data_filler { type: "gaussian" std: 1 } data_filler { type: "constant" } } }
layer { name: "fc" type: "InnerProduct" bottom: "data" top: "fc" inner_product_param { num_output: 3
  weight_filler { type: "xavier" } } }
layer { name: "drop" type: "Dropout" bottom: "fc" top: "fc" }
layer { name: "out" type: "InnerProduct" bottom: "fc" top: "out" inner_product_param { num_output: 3
  weight_filler { type: "xavier" } } }
layer { name: "accuracy" type: "Accuracy" bottom: "out" bottom: "label" top: "accuracy" include { phase: TEST } }
layer { name: "loss" type: "SoftmaxWithLoss" bottom: "out" bottom: "label" top: "loss" }
"""
KINDS = {
    "SGD": "momentum: 0.9", "Nesterov": "momentum: 0.9", "AdaGrad": "", "RMSProp": "rms_decay: 0.9",
    "AdaDelta": "momentum: 0.9 delta: 1e-6", "Adam": "momentum: 0.9",
}  # fmt: skip


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Write a solver prototxt with some settings and return its path."""
    monkeypatch.chdir(tmp_path)
    Path("net.prototxt").write_text(NET)

    def solver(more: str = "momentum: 0.9", prefix: str = "snap/s") -> str:
        Path("solver.prototxt").write_text(
            'net: "net.prototxt" base_lr: 0.1 lr_policy: "step" gamma: 0.5 stepsize: 4 max_iter: 10 random_seed: 5'
            f' test_iter: 2 test_interval: 4 snapshot_prefix: "{prefix}" snapshot_after_train: false {more}'
        )
        return "solver.prototxt"

    return solver


def weights(solver: caffe.SGDSolver) -> list[np.ndarray]:
    return [blob.data.copy() for blobs in solver.net.params.values() for blob in blobs]


@pytest.mark.parametrize("kind", KINDS)
def test_training_is_that_of_the_engines_solver(write, kind: str) -> None:
    path = write(f'{KINDS[kind]} type: "{kind}" weight_decay: 0.01 iter_size: 2')
    engine, solver = EngineSolver.load(path), caffe.get_solver(path)
    assert type(solver) is getattr(caffe, f"{kind}Solver")
    assert isinstance(solver, caffe.SGDSolver)
    loss = 0.0
    for _ in range(7):
        loss = engine.step(1)
        solver.step(1)
    assert solver.iter == 7
    expected = [array for arrays in engine.net.weights.values() for array in arrays]
    for mine, theirs in zip(weights(solver), expected, strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-5, atol=1e-7)
    assert solver.net.blobs["loss"].data.size == 1
    assert np.isfinite(loss)


def test_the_class_decides_the_rule(write) -> None:
    solver = caffe.AdamSolver(write('momentum: 0.9 type: "SGD"'))
    assert solver.param.type == "Adam"
    with pytest.raises(RuntimeError, match="AdaGrad has no momentum"):
        caffe.AdaGradSolver(write("momentum: 0.9"))


def test_the_test_net_uses_the_weights_of_the_training_net(write) -> None:
    solver = caffe.SGDSolver(write())
    test_net = solver.test_nets[0]
    assert test_net.params["fc"][0].data.ctypes.data == solver.net.params["fc"][0].data.ctypes.data
    solver.step(1)
    test_net.forward()
    assert 0 <= test_net.blobs["accuracy"].data <= 1
    assert "accuracy" not in solver.net.blobs


def test_views_of_a_solvers_net_follow_the_training(write) -> None:
    solver = caffe.SGDSolver(write())
    weight, diff, loss = (
        solver.net.params["fc"][0].data, solver.net.params["fc"][0].diff, solver.net.blobs["loss"].data
    )  # fmt: skip
    before = weight.copy()
    solver.step(1)
    assert loss > 0
    # Caffe leaves what it has subtracted
    np.testing.assert_allclose(before - weight, diff, rtol=1e-3, atol=1e-6)


def test_what_a_program_writes_into_constant_data_stays(write) -> None:
    solver = caffe.SGDSolver(write())
    solver.net.blobs["label"].data[...] = [0, 1, 2, 0, 1, 2, 0, 1]
    solver.step(3)
    assert list(solver.net.blobs["label"].data) == [0, 1, 2, 0, 1, 2, 0, 1]


def test_solve_stops_at_max_iter_and_restore_goes_on(write, tmp_path: Path) -> None:
    solver = caffe.SGDSolver(write("momentum: 0.9 snapshot: 5"))
    solver.solve()
    assert solver.iter == 10
    assert sorted(path.name for path in (tmp_path / "snap").iterdir()) == [
        "s_iter_10.caffemodel", "s_iter_10.solverstate", "s_iter_5.caffemodel", "s_iter_5.solverstate",
    ]  # fmt: skip
    resumed = caffe.SGDSolver("solver.prototxt")
    resumed.solve("snap/s_iter_5.solverstate")
    for mine, theirs in zip(weights(resumed), weights(solver), strict=True):
        np.testing.assert_array_equal(mine, theirs)
    again = caffe.SGDSolver("solver.prototxt")
    again.restore("snap/s_iter_5.solverstate")
    assert again.iter == 5
    with pytest.raises(RuntimeError, match="Could not open file none"):
        again.restore("none.solverstate")


def test_snapshot_writes_both_files(write, tmp_path: Path) -> None:
    solver = caffe.SGDSolver(write())
    solver.step(2)
    solver.snapshot()
    assert read_binary(tmp_path / "snap/s_iter_2.solverstate", SolverState()).iter == 2
    other = caffe.Net("net.prototxt", "snap/s_iter_2.caffemodel", caffe.TEST)
    np.testing.assert_array_equal(other.params["out"][0].data, solver.net.params["out"][0].data)


def test_apply_update_uses_the_gradients_in_diff(write) -> None:
    solver = caffe.SGDSolver(write())
    blob = solver.net.params["fc"][0]
    blob.data[...] = 0
    blob.diff[...] = 1
    solver.apply_update()
    np.testing.assert_allclose(blob.data, -0.1, rtol=1e-6)
    solver.apply_update()  # diff now holds 0.1, the history too: 0.9 * 0.1 + 0.1 * 0.1
    np.testing.assert_allclose(blob.data, -0.2, rtol=1e-6)
    assert solver.iter == 2  # as in SGDSolver::ApplyUpdate


def test_settings_callbacks_and_shared_weights(write) -> None:
    solver = caffe.SGDSolver(write())
    calls: list[str] = []
    solver.add_callback(lambda: calls.append("start"), lambda: calls.append("ready"))
    assert solver.lr == pytest.approx(0.1)
    assert solver.param.max_iter == 10
    solver.step(5)
    assert calls == ["start", "ready"] * 5
    assert solver.lr == pytest.approx(0.05)
    solver.param.base_lr = 1
    assert solver.lr == pytest.approx(0.5)
    net = caffe.Net("net.prototxt", caffe.TEST)
    solver.share_weights(net)
    assert net.params["fc"][0].data.ctypes.data == solver.net.params["fc"][0].data.ctypes.data
    with pytest.raises(RuntimeError, match="two functions"):
        solver.add_callback(lambda: None)


def test_nets_outlive_their_solver(write) -> None:
    solver = caffe.SGDSolver(write())
    net, test_net = solver.net, solver.test_nets[0]
    del solver
    net.forward()
    assert test_net.forward()["loss"] > 0


def test_step_tests_and_logs_when_it_is_due(write, logged, capfd: pytest.CaptureFixture[str]) -> None:
    solver = caffe.SGDSolver(write("momentum: 0.9 display: 3"))
    solver.step(5)
    log = capfd.readouterr().err
    assert log.count("Testing net (#0)") == 2
    assert "Iteration 3, lr = 0.1" in log
    assert "Test net output #0: accuracy = " in log


def test_wrong_files_raise(write) -> None:
    with pytest.raises(RuntimeError, match="Could not open file none"):
        caffe.SGDSolver("none.prototxt")
    with pytest.raises(RuntimeError, match="max_iter is missing"):
        Path("bad.prototxt").write_text('net: "net.prototxt" base_lr: 1 lr_policy: "fixed"')
        caffe.get_solver("bad.prototxt")
    with pytest.raises(RuntimeError, match="diverged"):
        solver = caffe.SGDSolver(write())
        solver.net.params["out"][0].data[...] = np.inf
        solver.step(2)


def test_a_backward_pass_may_follow_an_update_without_a_forward_pass(write) -> None:
    path = write("momentum: 0")
    Path("net.prototxt").write_text(NET.replace("Dropout", "PReLU"))
    solver = caffe.get_solver(path)
    solver.net.forward()
    for _ in range(3):
        solver.net.backward()
        solver.apply_update()
    assert np.isfinite(solver.net.params["fc"][0].diff).all()
