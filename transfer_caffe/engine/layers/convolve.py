"""Convolutions that PyTorch computes slowly or not at all: huge kernels, wide padding, and more than three axes.

On a CPU, PyTorch's convolutions (oneDNN) are several times as fast as Caffe's matrix products, with these exceptions:

- Many weights. oneDNN rearranges the weights in each pass, and their gradients, which takes longer than the convolution
  itself if the image is small (fc6 of FCN: 3.8 instead of 0.3 s backward), and without need of a rearrangement it can
  end in a loop without vector instructions (fc6 of DilatedNet, 7 x 7 with dilation 4: minutes).
- Kernels wider than 14, whose gradient oneDNN computes in such a loop (15 x 15: 0.86 instead of 0.03 s).
- Padding beyond the kernel (conv1_1 of FCN, pad 100: 0.5 instead of 0.1 s backward).

`Method` decides which of them applies from the shapes of the settings alone, so that results do not depend on the
machine's speed or load. It has both passes, for training without autograd (`iteration.steps`); `apply` is for autograd.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from transfer_caffe.engine.layers.common import product
from transfer_caffe.formats.shapes import convolution_sides

MANY_WEIGHTS, MOST_WEIGHTS = 1 << 22, 1 << 26
"""From the first number of weights on, a convolution of few windows is computed as a matrix product, and from the
second one on every convolution: oneDNN has no fast gradient of dilated kernels there. CaffeNet, ResNet and VGG (except
for its InnerProducts) have less than the first number."""

FEW_WINDOWS = 1024
"""Up to this number of windows (places of the kernel in all images of a batch), rearranging many weights takes longer
than the convolution: 512 x 1024 x 3 x 3 on 16 x 16 takes 0.07 instead of 0.09 s for 1 image, but 0.71 instead of 0.42 s
for 8 images (forward and backward)."""

WIDE_KERNEL = 15
"""Kernel size from which the gradient of the weights is computed as a matrix product."""

COLUMN_BYTES = 64 << 20
"""Images are unfolded together up to this size, since each matrix product reads all weights once."""

Wanted = Sequence[bool]
Found = tuple[Tensor | None, Tensor | None, Tensor | None]
"""The gradients of bottom, weights and bias; None for those that were not wanted."""


def channels_last(images: Tensor) -> Tensor:
    """Return images (num, channels, height, width) in the memory format channels-last.

    With one channel both formats are the same memory, and PyTorch takes it as channels-first, unless the strides are
    those of channels-last; the top of a convolution has its format. A LeNet's first pooling then takes 0.6 ms, not 4.2.
    """
    images = images.contiguous(memory_format=torch.channels_last)
    num, channels, height, width = images.shape
    if channels == 1 and images.device.type == "cpu":
        return images.view(num, height, width, 1).permute(0, 3, 1, 2)
    return images


class Method:
    """How a 2-D convolution is computed on a CPU; ``special`` is False if PyTorch's own operation is the best one.

    Bottoms are (num, channels, height, width), weights (outputs, channels / group, height, width), both float32.
    """

    def __init__(
        self, weights: Sequence[int], windows: int, stride: Sequence[int], pad: Sequence[int], dilation: Sequence[int],
        group: int,
    ) -> None:  # fmt: skip
        """Choose the method for weights of this shape and ``windows``, the number of windows in a batch."""
        self.outputs, self.kernel = weights[0], tuple(weights[2:])
        self.stride, self.dilation, self.group = tuple(stride), tuple(dilation), group
        reach = [d * (k - 1) + 1 for d, k in zip(dilation, self.kernel, strict=True)]
        wide = any(p >= r for p, r in zip(pad, reach, strict=True))
        self.edges = (pad[1], pad[1], pad[0], pad[0]) if wide else None
        """Zeros to put around the bottom beforehand, as for `torch.nn.functional.pad`; None for none."""
        self.pad = (0, 0) if wide else tuple(pad)
        undivided = group == 1 and max(self.kernel) > 1
        least = MANY_WEIGHTS if windows <= FEW_WINDOWS else MOST_WEIGHTS
        self.by_product = undivided and math.prod(weights) >= least
        self.gradient_by_product = self.by_product or (undivided and max(self.kernel) >= WIDE_KERNEL)
        self.special = wide or self.gradient_by_product

    @property
    def settings(self) -> tuple[Any, ...]:
        """The arguments of PyTorch's convolution after the tensors."""
        return self.stride, self.pad, self.dilation, False, [0, 0], self.group

    def padded(self, x: Tensor) -> Tensor:
        """Return the bottom as `forward` and `backward` take it."""
        return x if self.edges is None else F.pad(x, self.edges)

    def forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Return the top for a `padded` bottom."""
        if not self.by_product:
            x = channels_last(x)
            return torch.ops.aten.convolution(x, weight, bias, *self.settings)
        rows, sides = weight.flatten(1), self.sides(x)
        parts = [product(part, rows, bias) for part in self._unfolded(x)]
        top = parts[0] if len(parts) == 1 else torch.cat(parts)
        return top.view(len(x), *sides, self.outputs).permute(0, 3, 1, 2)

    def backward(self, gradient: Tensor, x: Tensor, weight: Tensor, wanted: Wanted) -> Found:
        """Return the gradients of the bottom (before padding), the weights and the bias, for a `padded` bottom."""
        below = by_weight = by_bias = None
        if self.gradient_by_product:
            rows = gradient.permute(0, 2, 3, 1).reshape(-1, self.outputs)
            if wanted[0] and self.by_product:
                below = self._folded(product(rows, weight.flatten(1).t()), x)
            if wanted[1]:
                by_weight = self._gradient_of_weights(rows, x).view(weight.shape)
            if wanted[2]:
                by_bias = rows.sum(0)
        mine = (self.by_product, self.gradient_by_product, self.gradient_by_product)
        rest = [want and not own for want, own in zip(wanted, mine, strict=True)]
        if any(rest):
            x = channels_last(x)
            outputs = [self.outputs] if rest[2] else None
            found = torch.ops.aten.convolution_backward(gradient, x, weight, outputs, *self.settings, rest)
            below, by_weight, by_bias = (
                each if asked else own
                for each, asked, own in zip(found, rest, (below, by_weight, by_bias), strict=True)
            )
        if below is not None and self.edges is not None:
            left, right, up, down = self.edges
            below = below[:, :, up : below.shape[2] - down, left : below.shape[3] - right]
        return below, by_weight, by_bias

    def sides(self, x: Tensor) -> list[int]:
        """Return the height and width of the top for a `padded` bottom."""
        return convolution_sides(x.shape[2:], self.kernel, self.stride, self.pad, self.dilation)

    def _unfolded(self, x: Tensor) -> list[Tensor]:
        """Return the windows of the images as rows, (windows, weights of an output), for a few images at a time."""
        rows, length = math.prod(self.sides(x)), x.shape[1] * math.prod(self.kernel)
        count = max(1, COLUMN_BYTES // (4 * rows * length))
        return [
            F.unfold(part, self.kernel, self.dilation, self.pad, self.stride).transpose(1, 2).reshape(-1, length)
            for part in x.contiguous().split(count)
        ]

    def _folded(self, rows: Tensor, x: Tensor) -> Tensor:
        """Return the sum of windows at their places, the opposite of `_unfolded`."""
        windows = rows.view(len(x), -1, rows.shape[1]).transpose(1, 2)
        return F.fold(windows, tuple(x.shape[2:]), self.kernel, self.dilation, self.pad, self.stride)

    def _gradient_of_weights(self, rows: Tensor, x: Tensor) -> Tensor:
        total, first = None, 0
        for part in self._unfolded(x):
            own = rows[first : first + len(part)].t()
            total = own @ part if total is None else total.addmm_(own, part)
            first += len(part)
        assert total is not None
        return total

    def apply(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Return the top for a bottom without padding, with gradients by autograd."""
        y = _Special.apply(x, weight, bias, self)
        assert isinstance(y, Tensor)
        return y


class _Special(torch.autograd.Function):
    """`Method.forward` and `Method.backward`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, method: Method) -> Tensor:
        x = method.padded(x)
        ctx.save_for_backward(x, weight)
        ctx.method = method
        return method.forward(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        return *ctx.method.backward(grad_outputs[0], *ctx.saved_tensors, ctx.needs_input_grad[:3]), None


def convolve(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: Sequence[int], pad: Sequence[int], dilation: Sequence[int],
    group: int,
) -> Tensor:  # fmt: skip
    """Return the convolution of (num, channels, sides) over any number of axes, as PyTorch's for 1 to 3 axes."""
    sides = convolution_sides(x.shape[2:], weight.shape[2:], stride, pad, dilation)
    x = _edged(x, pad)
    top = None
    for place, window in _windows(weight.shape[2:], sides, stride, dilation):
        part = _grouped(x[(..., *window)], weight[(..., *place)], group)
        top = part if top is None else top + part
    assert top is not None
    return top if bias is None else top + bias.view(-1, *(1,) * len(sides))


def convolve_transposed(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: Sequence[int], pad: Sequence[int], dilation: Sequence[int],
    group: int,
) -> Tensor:  # fmt: skip
    """Return the transposed convolution of (num, channels, sides) over any number of axes."""
    sides, kernel = x.shape[2:], weight.shape[2:]
    whole = [s * (side - 1) + d * (k - 1) + 1 for side, k, s, d in zip(sides, kernel, stride, dilation, strict=True)]
    top = x.new_zeros(len(x), weight.shape[1] * group, *whole)
    swapped = weight.unflatten(0, (group, -1)).transpose(1, 2).flatten(0, 1)
    for place, window in _windows(kernel, sides, stride, dilation):
        part = _grouped(x, swapped[(..., *place)], group)
        if window:
            top[(..., *window)] += part
        else:
            top = part
    top = top[(..., *(slice(p, side - p) for p, side in zip(pad, whole, strict=True)))]
    return top if bias is None else top + bias.view(-1, *(1,) * len(sides))


def unfolded(
    x: Tensor, kernel: Sequence[int], stride: Sequence[int], pad: Sequence[int], dilation: Sequence[int]
) -> Tensor:
    """Return the windows of (num, channels, sides) as (num, channels, places of the kernel, sides of the top)."""
    sides = convolution_sides(x.shape[2:], kernel, stride, pad, dilation)
    x = _edged(x, pad)
    return torch.stack([x[(..., *window)] for _, window in _windows(kernel, sides, stride, dilation)], 2)


def _edged(x: Tensor, pad: Sequence[int]) -> Tensor:
    return F.pad(x, [p for each in reversed(pad) for p in (each, each)])


def _windows(
    kernel: Sequence[int], sides: Sequence[int], stride: Sequence[int], dilation: Sequence[int]
) -> list[tuple[tuple[int, ...], tuple[slice, ...]]]:
    """Return each place of a kernel, and the values of the padded image that it meets."""
    return [
        (
            place,
            tuple(
                slice(at * d, at * d + s * (side - 1) + 1, s)
                for at, d, s, side in zip(place, dilation, stride, sides, strict=True)
            ),
        )
        for place in itertools.product(*(range(size) for size in kernel))
    ]


def _grouped(x: Tensor, weight: Tensor, group: int) -> Tensor:
    """Multiply the channels of each group, (num, channels, ...), by weights (outputs, channels / group)."""
    own = x.unflatten(1, (group, -1))
    return torch.einsum("ngc...,goc->ngo...", own, weight.unflatten(0, (group, -1))).flatten(1, 2)
