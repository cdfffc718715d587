"""Convolutions that the engine computes by itself: which ones, and that their results are those of the definition."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from transfer_caffe.compare import build, draw_values
from transfer_caffe.engine.iteration.direct import Direct
from transfer_caffe.engine.iteration.steps import ConvolutionStep, SpecialConvolutionStep
from transfer_caffe.engine.layers import convolve
from transfer_caffe.engine.layers.convolve import Method, channels_last
from transfer_caffe.formats.proto import parse_text
from transfer_caffe.formats.proto.caffe_pb2 import NetParameter

ROUNDING = 2e-6
"""Sums of up to 900 products in float32, in different orders: the square root of 900 roundings of 6e-8."""


def method(weights, windows=100, stride=(1, 1), pad=(0, 0), dilation=(1, 1), group=1):
    return Method(weights, windows, stride, pad, dilation, group)


@pytest.mark.parametrize(
    "weights, windows",
    [
        ((96, 3, 11, 11), 3025),  # CaffeNet, one image
        ((256, 48, 5, 5), 729),
        ((384, 256, 3, 3), 169),
        ((384, 192, 3, 3), 169),
        ((48, 32, 3, 3), 49),  # the demo
        ((512, 512, 3, 3), 196),  # VGG
        ((4096, 4096, 1, 1), 20),
    ],
)
def test_convolutions_of_common_nets_are_left_to_pytorch(weights, windows):
    pad = weights[2] // 2
    assert not method(weights, windows, pad=(pad, pad)).special


@pytest.mark.parametrize(
    "weights, windows, dilation, whole",
    [
        ((4096, 512, 7, 7), 256, 4, True),  # DilatedNet's fc6
        ((4096, 512, 7, 7), 20, 1, True),  # FCN's fc6
        ((4096, 512, 7, 7), 10_000, 4, True),
        ((1024, 512, 3, 3), 256, 12, True),  # DeepLab's fc6, one image
        ((1024, 512, 3, 3), 2048, 12, False),
        ((32, 32, 15, 15), 1024, 1, False),
    ],
)
def test_many_weights_with_few_windows_are_one_matrix_product(weights, windows, dilation, whole):
    chosen = method(weights, windows, dilation=(dilation, dilation))
    assert chosen.by_product == whole
    assert chosen.gradient_by_product == (whole or weights[2] == 15)


def test_padding_as_wide_as_the_kernel_is_added_beforehand():
    assert method((64, 3, 3, 3), pad=(100, 2)).edges == (2, 2, 100, 100)
    assert method((64, 3, 3, 3), pad=(2, 2)).edges is None
    assert method((64, 3, 3, 3), pad=(12, 12), dilation=(12, 12)).edges is None


@pytest.mark.parametrize("at_once", [1, 1 << 26], ids=["one image at a time", "all images"])
@pytest.mark.parametrize(
    "weights, stride, pad, dilation, group",
    [
        ((6, 4, 3, 3), (2, 1), (1, 2), (1, 2), 1),
        ((6, 4, 3, 2), (1, 1), (5, 0), (1, 1), 1),
        ((6, 2, 3, 3), (2, 3), (9, 1), (1, 2), 2),
        ((6, 4, 15, 3), (1, 1), (7, 1), (1, 1), 1),
    ],
)
@pytest.mark.parametrize("bias", [True, False])
def test_values_and_gradients_are_those_of_a_convolution(
    weights, stride, pad, dilation, group, bias, at_once, monkeypatch
):
    monkeypatch.setattr(convolve, "MANY_WEIGHTS", 200)
    monkeypatch.setattr(convolve, "COLUMN_BYTES", at_once)
    torch.manual_seed(0)
    chosen = Method(weights, 100, stride, pad, dilation, group)
    assert chosen.special
    given = [torch.randn(3, 4, 9, 8), torch.randn(weights), *([torch.randn(6)] if bias else [])]
    ours = [tensor.clone().requires_grad_() for tensor in given]
    exact = [tensor.double().requires_grad_() for tensor in given]
    top = chosen.apply(ours[0], ours[1], ours[2] if bias else None)
    wanted = F.conv2d(exact[0], exact[1], exact[2] if bias else None, stride, pad, dilation, group)
    diff = torch.randn_like(top)
    found = (top, *torch.autograd.grad(top, ours, diff))
    for own, right in zip(found, (wanted, *torch.autograd.grad(wanted, exact, diff.double())), strict=True):
        assert own.shape == right.shape
        assert float((own - right).detach().abs().max()) < ROUNDING * float(right.detach().abs().max())


@pytest.mark.parametrize("group", [1, 2])
def test_any_number_of_axes_gives_what_pytorch_gives_for_three(group):
    torch.manual_seed(0)
    x, bias = torch.randn(2, 4, 5, 6, 4).double(), torch.randn(6).double()
    settings = ((1, 2, 1), (1, 0, 2), (1, 1, 2))
    weight = torch.randn(6, 4 // group, 2, 3, 2).double()
    wanted = F.conv3d(x, weight, bias, *settings, group)
    torch.testing.assert_close(convolve.convolve(x, weight, bias, *settings, group), wanted)
    weight = torch.randn(4, 6 // group, 2, 3, 2).double()
    wanted = F.conv_transpose3d(x, weight, bias, settings[0], settings[1], 0, group, settings[2])
    torch.testing.assert_close(convolve.convolve_transposed(x, weight, bias, *settings, group), wanted)


NET = """
layer { name: "x" type: "Input" top: "x" top: "y"
  input_param { shape { dim: 2 dim: 3 dim: 9 dim: 8 } shape { dim: 2 } } }
layer { name: "a" type: "Convolution" bottom: "x" top: "a"
  convolution_param { num_output: 4 kernel_size: 3 pad: 4 weight_filler { type: "xavier" } } }
layer { name: "relu" type: "ReLU" bottom: "a" top: "a" }
layer { name: "b" type: "Convolution" bottom: "a" top: "b"
  convolution_param { num_output: 5 kernel_size: 3 dilation: 2 weight_filler { type: "xavier" } } }
layer { name: "fc" type: "InnerProduct" bottom: "b" top: "fc"
  inner_product_param { num_output: 3 weight_filler { type: "xavier" } } }
layer { name: "loss" type: "SoftmaxWithLoss" bottom: "fc" bottom: "y" top: "loss" }
"""


def gradient_of(blob):
    assert blob.data.grad is not None
    return blob.data.grad


def test_training_without_autograd_has_a_step_for_them_with_the_same_gradients(monkeypatch):
    monkeypatch.setattr(convolve, "MANY_WEIGHTS", 150)
    net = build(parse_text(NET, NetParameter(), "net"), "TRAIN")
    values = {}
    draw_values(net, values, 1)
    net.feed({key[5:]: value for key, value in values.items() if key.startswith("blob/")})
    run = Direct(net)
    kinds = [type(step) for step in run.parts[0].steps]
    assert kinds.count(SpecialConvolutionStep) == 2 and ConvolutionStep not in kinds
    loss, _ = run(0)
    found = [gradient_of(blob).clone() for blob in net.learnable]
    whole, _ = net.forward(0, keep=True)
    net.backward()
    assert float(loss) == pytest.approx(float(whole.detach()), rel=ROUNDING)
    for own, blob in zip(found, net.learnable, strict=True):
        right = gradient_of(blob)
        np.testing.assert_allclose(own, right, rtol=0, atol=ROUNDING * float(right.abs().max()))


@pytest.mark.parametrize("channels", [1, 3])
def test_the_top_of_a_convolution_is_channels_last(channels):
    """Pooling and the next convolution are quicker; of one channel, PyTorch would keep the top channels-first."""
    images, weights = torch.randn(2, channels, 6, 5), torch.randn(4, channels, 3, 3)
    given = channels_last(images)
    assert torch.equal(given, images) and given.data_ptr() == (images if channels == 1 else given).data_ptr()
    top = F.conv2d(given, weights)
    assert top.is_contiguous(memory_format=torch.channels_last) and not top.is_contiguous()
    torch.testing.assert_close(top, F.conv2d(images, weights))
    images.requires_grad_()
    channels_last(images).square().sum().backward()
    assert images.grad is not None
    torch.testing.assert_close(images.grad, 2 * images)
