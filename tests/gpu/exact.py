"""The layers of a CaffeNet in float64, and how far rounding may take a layer in another precision from that.

    for finding in compare(net, precision, images, labels): ...

Each layer is compared on its own, with the bottoms that the net gives it, so an error in one layer is found there, and
ties that rounding moves in one layer do not spread to others. Nothing of the engine's arithmetic is used here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from transfer_caffe.engine.layers import Layer
from transfer_caffe.engine.layers.common import InnerProduct
from transfer_caffe.engine.layers.data import Images
from transfer_caffe.engine.layers.loss import SoftmaxWithLoss
from transfer_caffe.engine.layers.neuron import Dropout, ReLU
from transfer_caffe.engine.layers.vision import LRN, Convolution, Pooling
from transfer_caffe.engine.net import Net

FLOAT32, BF16, TF32 = 2.0**-24, 2.0**-8, 2.0**-11
"""Relative rounding errors: to float32, to bf16, and of each factor of a product in TF32."""
LRN_ROUNDINGS = 32
"""Upper limit of the float32 roundings in a value or a gradient of LRN."""


@dataclass(frozen=True)
class Finding:
    """The largest ratio between a difference and its bound, of a layer's top or of the gradient of one input."""

    layer: str
    what: str
    ratio: float

    @property
    def holds(self) -> bool:
        """Whether no difference is larger than its bound, and all are numbers."""
        return self.ratio <= 1


def compare(net: Net, precision: str, batch: int = 0) -> Iterator[Finding]:
    """Compare all layers of a net, forward and backward, with float64 on the CPU."""
    blobs: dict[str, Tensor] = {}
    draw = torch.Generator().manual_seed(0)
    for layer in net.layers:
        bottoms = [blobs[name].detach() for name in layer.param.bottom]
        if isinstance(layer, Images):
            tops = layer.forward([], batch)
        else:
            given = [each.clone(memory_format=torch.preserve_format) for each in layer.cast(bottoms)]
            below = [index for index in range(len(given)) if index != layer.label_bottom]
            for index in below:
                given[index].requires_grad_()
            for blob in layer.blobs:
                blob.data.grad = None
            tops = layer.forward(given, batch)
            if layer.buffer is not None:
                layer.buffer.content = tops[0].detach()
            gradient = torch.randn(tops[0].shape, generator=draw).to(tops[0].device, tops[0].dtype)
            tops[0].backward(gradient)
            yield from _compare(layer, precision, given, tops[0].detach(), gradient, batch)
        if layer in net.postponed:
            continue  # as in training: the pooling reads the values before the ReLU, among which ties are rare
        if relu := net.relu_after.get(layer):
            tops = relu.forward(tops, batch)
        blobs.update(zip(layer.top, (top.detach() for top in tops), strict=True))
    for blob in net.learnable:
        blob.data.grad = None


def _compare(
    layer: Layer, precision: str, given: list[Tensor], top: Tensor, gradient: Tensor, batch: int
) -> Iterator[Finding]:
    function = _functions(layer, batch)
    inputs = [_double(each) for each in given]
    # the layer rounds its weights to the bottoms' type
    weights = [_double(blob.data.detach().to(given[0].dtype)) for blob in layer.blobs]
    found = [top, *(each.grad for each in given), *(blob.data.grad for blob in layer.blobs)]
    results = _passes(function, inputs, weights, _double(gradient))
    sums = isinstance(layer, Convolution | InnerProduct)
    if sums:  # the error is relative to the sum of the absolute products
        sizes = _passes(function, [each.abs() for each in inputs], [each.abs() for each in weights],
                        _double(gradient).abs())  # fmt: skip
    else:  # differences of larger values: relative to the largest
        sizes = [None if each is None else each.abs().max().expand_as(each) for each in results]
    counts = _terms(layer, results)
    names = ["top", *(f"gradient of bottom {i}" for i in range(len(given)))]
    names += [f"gradient of blob {i}" for i in range(len(layer.blobs))]
    for name, own, exact, size, count in zip(names, found, results, sizes, counts, strict=True):
        if own is None or exact is None or size is None:
            continue
        if isinstance(layer, Convolution) and "gradient" in name and not _sums_in_float32(given[0]):
            continue
        products = 2 * TF32 if precision == "tf32" and sums else 0.0
        stored = BF16 if own.dtype == torch.bfloat16 or precision == "bf16" else FLOAT32
        # twice: a sum of products may be rounded before the bias is added to it
        most = size * (products + count * FLOAT32) + exact.abs() * 2 * stored
        if sums and name == "top":
            most = most + weights[1].abs().reshape(-1, *[1] * (exact.ndim - 2)) * 2 * stored
        if isinstance(layer, Pooling) and "gradient" in name:
            most = most + _windows(layer, given[0], gradient) * 4 * stored
        if isinstance(layer, LRN) and "gradient" in name:
            most = most + size * 2 * stored  # the top that the gradient is computed from is rounded, too
        difference = (_double(own.detach()) - exact).abs()
        ratio = float((difference / most.clamp(min=1e-30)).nan_to_num(nan=float("inf")).max())
        yield Finding(layer.name, name, ratio if torch.isfinite(own).all() else float("inf"))


def _sums_in_float32(x: Tensor) -> bool:
    """Return whether the gradients of a convolution of ``x`` are sums in float32.

    On a processor without instructions for bf16, PyTorch adds up bf16 values in bf16.
    """
    return x.device.type != "cpu" or x.dtype != torch.bfloat16 or torch.ops.mkldnn._is_mkldnn_bf16_supported()


def _double(x: Tensor) -> Tensor:
    return x.detach().cpu().double().contiguous()


def _passes(
    function: Callable[[list[Tensor], list[Tensor]], Tensor], inputs: list[Tensor], weights: list[Tensor], up: Tensor
) -> list[Tensor | None]:
    """Return the top and the gradients of inputs and weights, for the top's gradient ``up``."""
    leaves = [each.clone().requires_grad_() for each in (*inputs, *weights)]
    top = function(leaves[: len(inputs)], leaves[len(inputs) :])
    top.backward(up.reshape(top.shape))
    return [top.detach(), *(leaf.grad for leaf in leaves)]


def _functions(layer: Layer, batch: int) -> Callable[[list[Tensor], list[Tensor]], Tensor]:
    """Return a layer's function of its inputs and weights, in float64."""
    param = layer.param
    if isinstance(layer, Convolution):
        return lambda x, w: F.conv2d(x[0], w[0], w[1], layer.stride, layer.pad, 1, layer.group)
    if isinstance(layer, InnerProduct):
        return lambda x, w: F.linear(x[0].flatten(1), w[0], w[1])
    if isinstance(layer, ReLU):
        return lambda x, w: x[0].clamp(min=0)
    if isinstance(layer, Pooling):
        return lambda x, w: F.max_pool2d(x[0], layer.kernel, layer.stride, layer.pad, ceil_mode=True)
    if isinstance(layer, LRN):
        size, alpha, beta, k = (param.lrn_param.local_size, param.lrn_param.alpha, param.lrn_param.beta,
                                param.lrn_param.k)  # fmt: skip
        # F.local_response_norm divides alpha by the size, like Caffe
        return lambda x, w: F.local_response_norm(x[0], size, alpha, beta, k)
    if isinstance(layer, Dropout):
        mask = _double(layer.mask(_shape_of(layer), layer.context.device, batch))
        return lambda x, w: x[0] * mask.reshape(x[0].shape)
    if isinstance(layer, SoftmaxWithLoss):
        return lambda x, w: F.cross_entropy(x[0], x[1].long())
    raise ValueError(f"layer {layer.name!r} ({layer.type}) has no function in float64")


def _shape_of(layer: Layer) -> tuple[int, ...]:
    shape = layer.__dict__.get("seen")
    assert shape is not None, "call `note_shapes` first"
    return shape


def note_shapes(net: Net) -> None:
    """Note the shape of each layer's first bottom, which a Dropout's mask has."""
    for layer in net.layers:
        if layer.param.bottom:
            layer.__dict__["seen"] = net.shapes[layer.param.bottom[0]]


def _terms(layer: Layer, results: list[Tensor | None]) -> list[float]:
    """Return, for each result, the number of float32 roundings in one of its values."""
    if isinstance(layer, Convolution | InnerProduct):
        weight = results[2]
        assert weight is not None and results[0] is not None
        products = weight[0].numel()
        images = results[0].numel() / len(weight)  # a weight's gradient is a sum over images and positions
        below = weight.numel() / (weight.shape[1] if weight.ndim > 1 else 1)
        return [products + 1, below, images, images]
    if isinstance(layer, LRN):
        return [LRN_ROUNDINGS, LRN_ROUNDINGS * 4]
    if isinstance(layer, SoftmaxWithLoss):
        return [64.0] * len(results)
    return [1.0] * len(results)


def _windows(layer: Pooling, x: Tensor, gradient: Tensor) -> Tensor:
    """Return the sum of the absolute gradients of all windows that hold an element, an upper limit of what is added."""
    inner = _double(x).requires_grad_()
    sums = F.avg_pool2d(inner, layer.kernel, layer.stride, layer.pad, ceil_mode=True, divisor_override=1)
    sums.backward(_double(gradient).abs())
    assert inner.grad is not None
    return inner.grad
