"""Precision: what bf16 changes in a net, what stays float32, and the flag --precision."""

import re

import numpy as np
import pytest
import torch
from support import solver_suite

from transfer_caffe.engine.__main__ import main
from transfer_caffe.engine.layers import LAYERS
from transfer_caffe.engine.net import Net
from transfer_caffe.engine.precision import use_precision
from transfer_caffe.engine.solver.solverstate import read_state
from transfer_caffe.formats.proto import parse_text, read_binary, write_binary
from transfer_caffe.formats.proto.caffe_pb2 import TRAIN, NetParameter, NetState, SolverState
from transfer_caffe.utils.errors import UserError

CPU = torch.device("cpu")
ROUNDING = 2.0**-8
"""The largest relative rounding error of bf16, whose significand has 8 bits.

The bounds here are a number of roundings times this error: the worst case, in which all rounding errors add up.
"""

NET = """
layer { name: "in" type: "Input" top: "x" top: "label"
  input_param { shape { dim: 2 dim: 3 dim: 9 dim: 9 } shape { dim: 2 } } }
layer { name: "conv" type: "Convolution" bottom: "x" top: "conv"
  convolution_param { num_output: 7 kernel_size: 3 weight_filler { type: "xavier" } } }
layer { name: "relu" type: "ReLU" bottom: "conv" top: "conv" }
layer { name: "norm" type: "LRN" bottom: "conv" top: "norm" lrn_param { local_size: 5 alpha: 1 } }
layer { name: "pool" type: "Pooling" bottom: "norm" top: "pool"
  pooling_param { pool: AVE kernel_size: 3 stride: 2 } }
layer { name: "sigmoid" type: "Sigmoid" bottom: "pool" top: "sigmoid" }
layer { name: "fc" type: "InnerProduct" bottom: "sigmoid" top: "fc"
  inner_product_param { num_output: 1000 weight_filler { type: "xavier" } } }
layer { name: "same" type: "Reshape" bottom: "label" top: "same" reshape_param { shape { dim: 2 } } }
layer { name: "loss" type: "SoftmaxWithLoss" bottom: "fc" bottom: "same" top: "loss" }
"""


def run(dtype):
    net = Net(parse_text(NET, NetParameter(), "net"), NetState(phase=TRAIN), 3, CPU, dtype=dtype)
    draw = np.random.default_rng(0)
    net.feed({"x": draw.normal(size=(2, 3, 9, 9)).astype("f4"), "label": np.array([999, 257], "f4")})
    loss, outputs = net.forward(0, keep=True)
    net.backward()
    return net, loss, outputs


def losses(err):
    return [float(value) for value in re.findall(r"Iteration \d+.*, loss = (\S+)", err)]


def write_weights(folder):
    """Write w.caffemodel, with which all layers of the net have gradients of the same order of magnitude."""
    net = (folder / "net.prototxt").read_text()
    (folder / "net.prototxt").write_text(net.replace("transform_param { ", "transform_param { scale: 0.015625 "))
    write_binary(folder / "w.caffemodel", solver_suite.weights("sgd_fixed"))


def train(*flags):
    assert main(["train", "--solver", "solver.prototxt", *flags]) == 0


def test_bf16_holds_products_in_bfloat16_and_losses_weights_and_their_gradients_in_float32():
    net, loss, outputs = run(torch.bfloat16)
    dtypes = {name: blob.dtype for name, blob in net.blobs.items()}
    low = {name for name, dtype in dtypes.items() if dtype == torch.bfloat16}
    assert low == {"conv", "norm", "pool", "fc"}  # sigmoid, labels and loss stay in float32
    assert loss.dtype == outputs["loss"].dtype == torch.float32
    for blob in net.learnable:
        assert blob.data.dtype == torch.float32
        assert blob.data.grad is not None and blob.data.grad.dtype == torch.float32


def test_bf16_gives_the_losses_and_gradients_of_fp32_to_its_rounding():
    (exact, loss, _), (low, low_loss, _) = run(torch.float32), run(torch.bfloat16)
    # roundings up to a score: x, weights of conv, conv, norm, pool, the sigmoid, weights of fc, fc
    forward = 8 * ROUNDING
    assert low_loss.item() == pytest.approx(loss.item(), rel=forward)  # scores are of order 1, the loss is log 1000
    assert low_loss.item() != loss.item()
    # and back to the weights of conv: the gradients of fc's top, fc's bottom, pool's top, pool's bottom, norm's bottom,
    # and the weights
    for ours, theirs in zip(low.learnable, exact.learnable, strict=True):
        assert ours.data.grad is not None and theirs.data.grad is not None
        difference = (ours.data.grad - theirs.data.grad).norm() / theirs.data.grad.norm()
        assert difference <= forward + 6 * ROUNDING


def test_a_label_that_no_bfloat16_can_hold_stays_the_same_through_layers_that_pass_it_on():
    net, *_ = run(torch.bfloat16)
    assert net.blobs["same"].tolist() == [999, 257]


@pytest.mark.parametrize("region", ["ACROSS_CHANNELS", "WITHIN_CHANNEL"])
def test_local_responses_of_bf16_are_those_of_float32_rounded_once(region):
    text = f'name: "n" type: "LRN" bottom: "x" top: "y" lrn_param {{ local_size: 3 alpha: 9 norm_region: {region} }}'
    net = parse_text(
        'layer { name: "in" type: "Input" top: "x" input_param { shape { dim: 2 dim: 5 dim: 4 dim: 4 } } }'
        f" layer {{ {text} }}",
        NetParameter(),
        "net",
    )
    layer = Net(net, NetState(phase=TRAIN), 0, CPU).layers[1]
    x = torch.randn(2, 5, 4, 4, generator=torch.Generator().manual_seed(0)).bfloat16()
    results = []
    for values in (x, x.float()):
        values.requires_grad_()
        (y,) = layer.forward([values], 0)
        results.append((y, torch.autograd.grad(y, values, torch.ones_like(y))[0]))
    (y, gradient), (exact, exact_gradient) = results
    assert y.dtype == gradient.dtype == torch.bfloat16
    assert torch.equal(y, exact.bfloat16())
    assert torch.equal(gradient, exact_gradient.bfloat16())


def test_a_step_in_bf16_is_that_of_fp32_to_its_rounding_and_writes_the_same_kind_of_snapshots(tiny, capsys):
    # one step from given weights: over many steps, differences in the last bit of sums, which depend on the CPU, grow
    write_weights(tiny)
    solver = (tiny / "solver.prototxt").read_text()
    (tiny / "solver.prototxt").write_text(solver.replace("max_iter: 20", "max_iter: 1 iter_size: 8"))
    logs, steps = [], []
    for precision in ("fp32", "bf16"):
        train("--precision", precision, "--weights", "w.caffemodel")
        logs.append(capsys.readouterr().err)
        steps.append(read_state("snap/tiny_iter_1.solverstate").history)
        for path, message in (("caffemodel", NetParameter()), ("solverstate", SolverState())):
            assert read_binary(f"snap/tiny_iter_1.{path}", message).ByteSize()
    assert "Precision: bf16, deterministic." in logs[1]
    exact, low = (losses(log)[0] for log in logs)
    # roundings up to a score: x; weights and top of conv1, conv2 and fc3; norm1, pool2, drop3
    forward = 10 * ROUNDING
    assert low != exact and low == pytest.approx(exact, rel=forward)
    # and back to the weights of conv1: drop3, fc3, pool2, conv2, norm1, pool1, the weights. In addition, a fraction of
    # units of about `forward` is so close to a ReLU's kink, or to the next maximum in a pooling, that rounding may move
    # them to the other side; their share of the gradient's squares is about as large
    most = forward + 7 * ROUNDING + forward**0.5
    for ours, theirs in zip(steps[1], steps[0], strict=True):
        assert ours.dtype == theirs.dtype == np.float32
        assert 0 < np.linalg.norm(ours - theirs) <= most * np.linalg.norm(theirs)


def test_training_in_bf16_stopped_and_resumed_ends_with_the_same_bytes(tiny):
    train("--precision", "bf16")
    end = (tiny / "snap/tiny_iter_20.caffemodel").read_bytes()
    train("--precision", "bf16", "--snapshot", "snap/tiny_iter_5.solverstate")
    assert (tiny / "snap/tiny_iter_20.caffemodel").read_bytes() == end


def test_test_and_time_take_a_precision(tiny, capsys):
    write_weights(tiny)  # not trained weights: their outputs may be constant, and then the same in bf16
    for precision in ("fp32", "bf16"):
        command = ["test", "--model", "net.prototxt", "--weights", "w.caffemodel", "--iterations", "4"]
        assert main([*command, "--precision", precision]) == 0
    found = re.findall(r"\] Loss: (\S+)", capsys.readouterr().err)
    assert found[0] != found[1] and float(found[0]) == pytest.approx(float(found[1]), rel=10 * ROUNDING)
    assert main(["time", "--model", "net.prototxt", "--iterations", "1", "--precision", "bf16"]) == 0


def test_tf32_without_a_gpu_is_refused_in_one_line():
    with pytest.raises(UserError, match=r"^--precision tf32: tf32 requires a GPU; use fp32 or bf16"):
        use_precision("tf32", True, CPU)


@pytest.mark.parametrize("precision", ["fp32", "tf32"])
def test_the_switches_of_pytorch_are_as_asked_for(precision):
    try:
        torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = True
        use_precision(precision, False, torch.device("cuda", 0))
        assert not torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction
        assert torch.backends.cudnn.allow_tf32 == torch.backends.cuda.matmul.allow_tf32 == (precision == "tf32")
        assert torch.backends.cudnn.benchmark and not torch.backends.cudnn.deterministic
    finally:
        use_precision("fp32", True, CPU)
    assert torch.backends.cudnn.deterministic and not torch.backends.cudnn.benchmark
    assert not torch.backends.cudnn.allow_tf32


def test_each_layer_says_in_what_it_computes():
    kinds = {"low": set(), "given": set(), "float32": set()}
    for name, layer in LAYERS.items():
        kinds[layer.precision].add(name)
    assert kinds["low"] == {"Convolution", "Deconvolution", "InnerProduct"}
    assert kinds["given"] == {
        "Pooling", "LRN", "ReLU", "Dropout", "Concat", "Flatten", "Reshape", "Slice", "Split", "Im2col", "SPP",
    }  # fmt: skip
