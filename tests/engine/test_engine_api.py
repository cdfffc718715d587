"""Net and Solver as a library: arrays in and out, without side effects on the process."""

import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch

from transfer_caffe.engine import Net, Solver
from transfer_caffe.utils.errors import UserError

DEPLOY = """
name: "deploy"
layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 2 dim: 3 dim: 5 dim: 5 } } }
layer { name: "conv1" type: "Convolution" bottom: "data" top: "conv1"
  convolution_param { num_output: 4 kernel_size: 3 weight_filler { type: "xavier" } } }
layer { name: "fc2" type: "InnerProduct" bottom: "conv1" top: "fc2"
  inner_product_param { num_output: 3 weight_filler { type: "xavier" } } }
"""


@pytest.fixture
def deploy(tmp_path) -> Path:
    (tmp_path / "deploy.prototxt").write_text(DEPLOY + "force_backward: true\n")
    return tmp_path / "deploy.prototxt"


def test_a_net_computes_what_its_weights_say(deploy):
    net = Net.load(deploy)
    images = np.random.RandomState(0).normal(size=(2, 3, 5, 5)).astype(np.float32)
    net.feed({"data": images})
    loss, outputs = net.forward(keep=True)
    assert float(loss) == 0 and list(outputs) == ["fc2"]
    weights = net.weights
    assert [array.shape for array in weights["conv1"]] == [(4, 3, 3, 3), (4,)]
    windows = np.lib.stride_tricks.sliding_window_view(images, (3, 3), axis=(2, 3))
    conv = np.einsum("nchwij,ocij->nohw", windows, weights["conv1"][0]) + weights["conv1"][1][:, None, None]
    np.testing.assert_allclose(net.array("conv1"), conv, atol=1e-5)
    fc = conv.reshape(2, -1) @ weights["fc2"][0].T + weights["fc2"][1]
    np.testing.assert_allclose(net.array("fc2"), fc, atol=1e-5)
    net.backward({"fc2": np.ones((2, 3), np.float32)})
    gradient = net.gradient("conv1")
    assert gradient is not None
    np.testing.assert_allclose(gradient.reshape(2, -1), np.tile(weights["fc2"][0].sum(axis=0), (2, 1)), atol=1e-5)


def test_arrays_are_copies_and_weights_can_be_set(deploy):
    net = Net.load(deploy)
    net.weights["fc2"][0][:] = 7
    assert not (net.weights["fc2"][0] == 7).any()
    weights = net.weights["fc2"]
    net.set_weights({"fc2": [np.full_like(weights[0], 7), weights[1]]})
    assert (net.weights["fc2"][0] == 7).all()


def test_weights_that_do_not_fit_are_refused_in_a_line(deploy):
    net = Net.load(deploy)
    for wrong, words in (
        ({"fc3": []}, "has no layer 'fc3' with weights; it has conv1, fc2"),
        ({"fc2": [np.zeros((3, 36))]}, "has 2 blobs, not 1"),
        ({"fc2": [np.zeros((3, 35)), np.zeros(3)]}, "shape mismatch"),
        ({"fc2": [np.full((3, 36), np.nan), np.zeros(3)]}, "not finite"),
    ):
        with pytest.raises(UserError, match=words):
            net.set_weights(wrong)


def test_wrong_calls_are_not_user_errors(deploy, tiny):
    with pytest.raises(ValueError, match="TRAIN or TEST was expected"):
        Net.load(deploy, phase="VAL")
    with pytest.raises(ValueError, match="iterations must be at least 1"):
        Solver.load("solver.prototxt").step(0)
    with pytest.raises(FileNotFoundError):
        Net.load("nowhere.prototxt")


def test_a_solver_steps_as_caffe_train_does_and_touches_nothing_else(tiny, capfd, monkeypatch):
    def forked() -> int:
        raise AssertionError("a process was forked")

    monkeypatch.setattr(os, "fork", forked)
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
    threads, files = torch.get_num_threads(), sorted(tiny.rglob("*"))
    solver = Solver.load("solver.prototxt")
    losses = [solver.step() for _ in range(5)]
    assert losses[-1] == Solver.load("solver.prototxt").step(5) and np.isfinite(losses).all()
    scores = solver.score()
    assert 0 <= float(scores["accuracy"]) <= 1 and solver.iteration == 5
    assert sorted(tiny.rglob("*")) == files
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)] == handlers
    assert torch.get_num_threads() == threads
    assert capfd.readouterr() == ("", "")


def test_a_net_takes_the_weights_that_a_solver_has_learnt(tiny):
    solver = Solver.load("solver.prototxt")
    solver.step(3)
    net = Net.load("net.prototxt", phase="TEST")
    net.set_weights(solver.net.weights)
    for name, arrays in net.weights.items():
        for array, other in zip(arrays, solver.net.weights[name], strict=True):
            np.testing.assert_array_equal(array, other)
