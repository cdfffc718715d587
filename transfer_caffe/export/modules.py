"""Modules for layer types that PyTorch has no module for. They compute what the engine's layers compute in phase TEST.

They are traceable by torch.fx and torch.export, work for any batch size where the layer does, and their gradients are
autograd's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

LOWEST = torch.finfo(torch.float32).min
"""What Caffe's MAX pooling gives for a window without pixels."""


TOTAL, FRACTION = "caffe_total", "caffe_fraction"
"""Attributes of a BatchNorm's module: Caffe's sum of weights (its third blob), and moving_average_fraction."""


def weigh_statistics(module: nn.Module, _: object) -> None:
    """Set a BatchNorm's momentum before a pass, such that its statistics become the weighted means that Caffe keeps.

    Caffe multiplies its sums and the sum of the weights by the fraction, and adds the batch with weight 1
    (caffe/layers/batch_norm_layer.cpp), so the first batches count more than with PyTorch's constant momentum. Weights
    that were loaded into a net without statistics count as settled.
    """
    if not module.training:
        return
    fraction, total = getattr(module, FRACTION), getattr(module, TOTAL)
    if not total and isinstance(module.running_var, Tensor) and bool(module.running_var.any()):
        total = 1 / (1 - fraction) if fraction < 1 else math.inf
    total = fraction * total + 1
    setattr(module, TOTAL, total)
    module.momentum = 1 / total  # pyright: ignore[reportAttributeAccessIssue]


class Abs(nn.Module):
    """|x|."""

    def forward(self, x: Tensor) -> Tensor:
        return x.abs()


class ArgMax(nn.Module):
    """Indices of the ``top_k`` largest values, or the values; see `engine.layers.common.ArgMax`."""

    def __init__(self, axis: int | None, top_k: int, values: bool, axes: int) -> None:
        """``axes``: the number of axes of the blob."""
        super().__init__()
        self.axis, self.top_k, self.values, self.ones = axis, top_k, values, (1,) * (axes - 3)

    def forward(self, x: Tensor) -> Tensor:
        rows = x.flatten(1) if self.axis is None else x.movedim(self.axis, -1)
        # of equal values the last one comes first
        values, places = rows.flip(-1).sort(dim=-1, descending=True, stable=True)
        values = values[..., : self.top_k]
        places = (rows.shape[-1] - 1 - places[..., : self.top_k]).to(x.dtype)
        if self.axis is not None:
            return (values if self.values else places).movedim(-1, self.axis)
        top = torch.stack([places, values], 1) if self.values else places.unsqueeze(1)
        return top.reshape(-1, 1 + self.values, self.top_k, *self.ones)


class AveragePool(nn.AvgPool2d):
    """AVE pooling with windows that reach beyond the padded image, of which only the part inside counts."""

    factors: Tensor

    def __init__(self, kernel: Sequence[int], stride: Sequence[int], edges: Sequence[int], factors: Tensor) -> None:
        """``edges``: padding left, right, top, bottom; ``factors``: area of the kernel by that of each window."""
        super().__init__((kernel[0], kernel[1]), (stride[0], stride[1]))
        self.edges = list(edges)
        self.register_buffer("factors", factors, persistent=False)

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(F.pad(input, self.edges)) * self.factors


class BatchReindex(nn.Module):
    """Select items by their indices."""

    def forward(self, x: Tensor, places: Tensor) -> Tensor:
        return x.index_select(0, places.long())


class Clip(nn.Module):
    """max(min, min(x, max)); unlike nn.Hardtanh, also where ``least`` is not below ``most``."""

    def __init__(self, least: float, most: float) -> None:
        super().__init__()
        self.least, self.most = least, most

    def forward(self, x: Tensor) -> Tensor:
        return x.clamp(max=self.most).clamp(min=self.least)


class Concat(nn.Module):
    """Concatenate along an axis."""

    def __init__(self, axis: int) -> None:
        super().__init__()
        self.axis = axis

    def forward(self, *blobs: Tensor) -> Tensor:
        return torch.cat(blobs, self.axis)


class Constant(nn.Module):
    """The same values for each batch: a Parameter layer, or a DummyData."""

    def __init__(self, values: Sequence[Tensor], learned: bool) -> None:
        super().__init__()
        self.count, self.learned = len(values), learned
        for index, value in enumerate(values):
            if learned:
                self.weight = nn.Parameter(value)
            else:
                self.register_buffer(f"value{index}", value, persistent=False)

    def forward(self) -> Tensor | tuple[Tensor, ...]:
        if self.learned:
            return self.weight
        values = tuple(self.get_buffer(f"value{index}") for index in range(self.count))
        return values[0] if len(values) == 1 else values


class Crop(nn.Module):
    """Crop the first blob at given places; None keeps an axis as it is."""

    def __init__(self, windows: Sequence[tuple[int, int] | None]) -> None:
        super().__init__()
        self.windows = list(windows)

    def forward(self, x: Tensor, size: Tensor) -> Tensor:
        for axis, window in enumerate(self.windows):
            if window is not None:
                x = x.narrow(axis, window[0], window[1] - window[0])
        return x


class Eltwise(nn.Module):
    """Elementwise sum with coefficients, product or maximum."""

    def __init__(self, operation: str, coefficients: Sequence[float]) -> None:
        super().__init__()
        self.operation, self.coefficients = operation, list(coefficients)

    def forward(self, *blobs: Tensor) -> Tensor:
        top = blobs[0]
        if self.operation == "SUM":
            terms = [b if c == 1 else b * c for b, c in zip(blobs, self.coefficients, strict=True)]
            top = terms[0]
            for term in terms[1:]:
                top = top + term
            return top
        for blob in blobs[1:]:
            top = top * blob if self.operation == "PROD" else torch.maximum(top, blob)
        return top


class Embed(nn.Embedding):
    """An embedding with a bias, of values that are floats."""

    def __init__(self, inputs: int, outputs: int, bias: bool) -> None:
        super().__init__(inputs, outputs)
        self.bias = nn.Parameter(torch.zeros(outputs)) if bias else None

    def forward(self, input: Tensor) -> Tensor:
        top = super().forward(input.long())
        return top if self.bias is None else top + self.bias


class Exp(nn.Module):
    """factor * exp(scale * x)."""

    def __init__(self, scale: float, factor: float) -> None:
        super().__init__()
        self.scale, self.factor = scale, factor

    def forward(self, x: Tensor) -> Tensor:
        return torch.exp(x * self.scale) * self.factor


class Filter(nn.Module):
    """Select the items where the last blob is not 0."""

    def forward(self, *blobs: Tensor) -> Tensor | tuple[Tensor, ...]:
        places = blobs[-1].reshape(-1).nonzero().reshape(-1)
        tops = tuple(blob.index_select(0, places) for blob in blobs[:-1])
        return tops[0] if len(tops) == 1 else tops


class FixedBatchNorm(nn.Module):
    """A BatchNorm with use_global_stats given: its own statistics (true) or the batch's (false), in training as well.

    The statistics never change.
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int, eps: float, own: bool, axes: int) -> None:
        """``axes``: the number of axes of the blob."""
        super().__init__()
        self.eps, self.own = eps, own
        self.axes = [axis for axis in range(axes) if axis != 1]
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))
        self.register_buffer("num_batches_tracked", torch.zeros((), dtype=torch.long))

    def forward(self, x: Tensor) -> Tensor:
        if self.own:
            return F.batch_norm(x, self.running_mean, self.running_var, eps=self.eps)
        centred = x - x.mean(self.axes, keepdim=True)
        return centred / (centred.square().mean(self.axes, keepdim=True) + self.eps).sqrt()


class Im2col(nn.Module):
    """The windows of a convolution as channels: a convolution by kernels with a single 1."""

    windows: Tensor

    def __init__(
        self, channels: int, kernel: Sequence[int], stride: Sequence[int], pad: Sequence[int], dilation: Sequence[int]
    ) -> None:
        super().__init__()
        count, axes = math.prod(kernel), len(kernel)
        ones = torch.eye(count).reshape(count, 1, *kernel).repeat(channels, 1, *(1,) * axes)
        self.register_buffer("windows", ones, persistent=False)
        self.convolve = (F.conv1d, F.conv2d, F.conv3d)[axes - 1]
        self.settings = (tuple(stride), tuple(pad), tuple(dilation), channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.convolve(x, self.windows, None, *self.settings)


class LocalResponseNormWithinChannel(nn.Module):
    """LRN of the region WITHIN_CHANNEL."""

    def __init__(self, size: int, alpha: float, beta: float) -> None:
        super().__init__()
        self.size, self.alpha, self.beta = size, alpha, beta

    def forward(self, x: Tensor) -> Tensor:
        mean = F.avg_pool2d(x * x, self.size, 1, self.size // 2)
        return x * (1 + self.alpha * mean).pow(-self.beta)


class Log(nn.Module):
    """log(scale * x + shift) / log(base)."""

    def __init__(self, scale: float, shift: float, log_base: float) -> None:
        super().__init__()
        self.scale, self.shift, self.log_base = scale, shift, log_base

    def forward(self, x: Tensor) -> Tensor:
        return torch.log(x * self.scale + self.shift) / self.log_base


class MaxPool(nn.Module):
    """MAX pooling of an image with edges of the lowest value; they are left, right, top, bottom."""

    def __init__(self, kernel: Sequence[int], stride: Sequence[int], edges: Sequence[int]) -> None:
        super().__init__()
        self.kernel_size, self.stride, self.edges = tuple(kernel), tuple(stride), list(edges)

    def forward(self, input: Tensor) -> Tensor:
        return F.max_pool2d(F.pad(input, self.edges, value=LOWEST), self.kernel_size, self.stride)


class MaxPoolWithPlaces(nn.Module):
    """MAX pooling with a second top: the place of each maximum in its channel, -1 for a window without pixels."""

    def __init__(self, kernel: Sequence[int], stride: Sequence[int], pad: Sequence[int], edges: Sequence[int]) -> None:
        super().__init__()
        self.kernel, self.stride, self.pad, self.edges = tuple(kernel), tuple(stride), tuple(pad), list(edges)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        height, width = x.shape[2:]
        padded = F.pad(x, self.edges, value=LOWEST)
        top, places = F.max_pool2d(padded, self.kernel, self.stride, return_indices=True)
        rows, columns = places // padded.shape[3] - self.pad[0], places % padded.shape[3] - self.pad[1]
        inside = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
        return top, torch.where(inside, rows * width + columns, -1).to(x.dtype)


class MeanVariance(nn.Module):
    """MVN: subtract the mean, divide by the standard deviation + eps; eps is None without the division."""

    def __init__(self, across: bool, eps: float | None, missing: int) -> None:
        """``missing``: how many axes the blob has less than four."""
        super().__init__()
        self.axes, self.eps, self.missing = [1, 2, 3] if across else [2, 3], eps, missing

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(self.missing):
            x = x.unsqueeze(-1)
        centred = x - x.mean(self.axes, keepdim=True)
        if self.eps is None:
            return centred
        return centred / (centred.square().mean(self.axes, keepdim=True).sqrt() + self.eps)


class OverAxes(nn.Module):
    """A convolution whose batch is all axes before its channels; mixed into PyTorch's convolutions."""

    leading: int
    """The number of axes before the channels."""

    def forward(self, input: Tensor) -> Tensor:
        top = super().forward(input.flatten(0, self.leading - 1))  # pyright: ignore
        return top.unflatten(0, input.shape[: self.leading])


class Power(nn.Module):
    """(shift + scale * x) ^ power."""

    def __init__(self, power: float, scale: float, shift: float) -> None:
        super().__init__()
        self.power, self.scale, self.shift = power, scale, shift
        with np.errstate(all="ignore"):
            self.constant = 1.0 if power == 0 else float(np.power(np.float32(shift), np.float32(power)))

    def forward(self, x: Tensor) -> Tensor:
        if self.power * self.scale == 0:
            return x * 0 + self.constant
        inner = x * self.scale + self.shift
        return inner if self.power == 1 else inner.pow(self.power)


class Reduction(nn.Module):
    """Reduce all axes from ``first`` on."""

    def __init__(self, first: int, operation: str, factor: float) -> None:
        super().__init__()
        self.first, self.operation, self.factor = first, operation, factor

    def forward(self, x: Tensor) -> Tensor:
        rows = x.flatten(self.first)
        if self.operation == "ASUM":
            rows = rows.abs()
        elif self.operation == "SUMSQ":
            rows = rows.square()
        top = rows.mean(-1) if self.operation == "MEAN" else rows.sum(-1)
        return top if self.factor == 1 else top * self.factor


class Reshape(nn.Module):
    """Change the shape; the first axis is inferred, so that it may have any size."""

    def __init__(self, shape: Sequence[int]) -> None:
        super().__init__()
        self.shape = [-1, *shape[1:]] if shape and math.prod(shape[1:]) else list(shape)

    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(self.shape)


class Scale(nn.Module):
    """Multiply by a weight, add a bias, or both; without a weight of its own, multiply by a second blob.

    ``wide``: the shape in which they are broadcast.
    """

    def __init__(self, wide: Sequence[int], weight: Tensor | None, bias: Tensor | None, adds: bool = False) -> None:
        super().__init__()
        self.wide, self.adds = [-1, *wide[1:]] if wide and math.prod(wide[1:]) else list(wide), adds
        self.weight = None if weight is None else nn.Parameter(weight)
        self.bias = None if bias is None else nn.Parameter(bias)

    def forward(self, x: Tensor, other: Tensor | None = None) -> Tensor:
        if self.adds and other is not None:
            return x + other.reshape(self.wide)
        factor = self.weight if other is None else other
        top = x if factor is None else x * factor.reshape(self.wide)
        return top if self.bias is None else top + self.bias.reshape(self.wide)


class Slice(nn.Module):
    """Divide along an axis: into equal parts, or parts of given sizes."""

    def __init__(self, axis: int, count: int, sizes: Sequence[int] | None) -> None:
        super().__init__()
        self.axis, self.count, self.sizes = axis, count, None if sizes is None else list(sizes)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return x.split(x.shape[self.axis] // self.count if self.sizes is None else self.sizes, self.axis)


class SpatialPyramid(nn.Module):
    """SPP: several poolings of a blob, each flattened, one after the other; a single one is not flattened."""

    def __init__(self, levels: Sequence[nn.Module]) -> None:
        super().__init__()
        self.levels = nn.ModuleList(levels)

    def forward(self, x: Tensor) -> Tensor:
        pooled = [level(x) for level in self.levels]
        return pooled[0] if len(pooled) == 1 else torch.cat([each.flatten(1) for each in pooled], 1)


class Swish(nn.Module):
    """x * sigmoid(beta * x)."""

    def __init__(self, beta: float) -> None:
        super().__init__()
        self.beta = beta

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(x * self.beta)


class Threshold(nn.Module):
    """1 where x is larger than the limit, otherwise 0."""

    def __init__(self, limit: float) -> None:
        super().__init__()
        self.limit = limit

    def forward(self, x: Tensor) -> Tensor:
        return (x > self.limit).to(x.dtype)


class Tile(nn.Module):
    """Repeat along an axis."""

    def __init__(self, axis: int, count: int) -> None:
        super().__init__()
        self.axis, self.count = axis, count

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x] * self.count, self.axis)


class ViewedLinear(nn.Module):
    """A fully connected layer with the weights of another layer in another shape (share_mode: PERMISSIVE)."""

    def __init__(self, weight: nn.Parameter, bias: nn.Parameter | None, shape: Sequence[int], transpose: bool) -> None:
        super().__init__()
        self.weight, self.bias, self.shape, self.transpose = weight, bias, list(shape), transpose

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight.reshape(self.shape)
        return F.linear(x, weight.t() if self.transpose else weight, self.bias)
