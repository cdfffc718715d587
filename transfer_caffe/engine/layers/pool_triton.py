"""Bias, MAX pooling and ReLU on a GPU as one Triton kernel per direction.

relu(pool(x + bias)) is computed as relu(pool(x) + bias), which has the same bits: adding a constant and rounding keep
the order of values. A window's maximum is remembered as its place in the window, one byte instead of PyTorch's eight;
255 means that the ReLU stops its gradient. The backward pass gathers: each element of the bottom adds the gradients of
the windows whose maximum it is, in a fixed order, so results do not depend on the order in which blocks run.

Imported only on machines with a GPU; Triton comes with PyTorch's CUDA builds. The tensors are in channels-last memory
format. Performance has not been measured yet; correctness was tested with Triton's interpreter.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 1024


@triton.jit
def _own(count, blocks, BLOCK: tl.constexpr):
    """Return the image that this program instance works on, and the indices of its values within that image.

    Indices within an image fit in int32, in which divisions take a fraction of their time in int64.
    """
    program = tl.program_id(0)
    place = program % blocks * BLOCK + tl.arange(0, BLOCK)
    return (program // blocks).to(tl.int64), place, place < count


@triton.jit
def _forward(
    x, bias, y, index, count, blocks, channels, height, width, rows, columns, pad_h, pad_w,
    KERNEL_H: tl.constexpr, KERNEL_W: tl.constexpr, STRIDE_H: tl.constexpr, STRIDE_W: tl.constexpr,
    RELU: tl.constexpr, BIAS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    image, place, inside = _own(count, blocks, BLOCK)
    x += image * height * width * channels
    y += image * count
    index += image * count
    channel = place % channels
    column = place // channels % columns
    row = place // channels // columns
    top, left = row * STRIDE_H - pad_h, column * STRIDE_W - pad_w
    best = tl.full((BLOCK,), float("-inf"), tl.float32)
    found = tl.zeros((BLOCK,), tl.int32) + 255
    for i in tl.static_range(KERNEL_H):
        for j in tl.static_range(KERNEL_W):
            h, w = top + i, left + j
            there = inside & (h >= 0) & (h < height) & (w >= 0) & (w < width)
            value = tl.load(x + (h * width + w) * channels + channel, mask=there, other=0.0).to(tl.float32)
            # as PyTorch: the first maximum, or the last NaN; a window without a maximum has -inf at its first place
            better = there & ((value > best) | (value != value) | (found == 255))
            best = tl.where(better, value, best)
            found = tl.where(better, i * KERNEL_W + j, found)
    if BIAS:
        best = best + tl.load(bias + channel, mask=inside, other=0.0).to(tl.float32)
        best = best.to(y.dtype.element_ty).to(tl.float32)
    if RELU:
        found = tl.where(best <= 0, 255, found)  # no element gets this window's gradient
        best = tl.where(best < 0, 0.0, best)  # a NaN stays
    tl.store(y + place, best.to(y.dtype.element_ty), mask=inside)
    tl.store(index + place, found.to(tl.uint8), mask=inside)


@triton.jit
def _backward(
    gradient, index, out, count, blocks, channels, height, width, rows, columns, pad_h, pad_w,
    KERNEL_H: tl.constexpr, KERNEL_W: tl.constexpr, STRIDE_H: tl.constexpr, STRIDE_W: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    image, place, inside = _own(count, blocks, BLOCK)
    gradient += image * rows * columns * channels
    index += image * rows * columns * channels
    channel = place % channels
    w = place // channels % width + pad_w
    h = place // channels // width + pad_h
    total = tl.zeros((BLOCK,), tl.float32)
    for i in tl.static_range((KERNEL_H + STRIDE_H - 1) // STRIDE_H):
        for j in tl.static_range((KERNEL_W + STRIDE_W - 1) // STRIDE_W):
            row, column = h // STRIDE_H - i, w // STRIDE_W - j
            down, right = h - row * STRIDE_H, w - column * STRIDE_W  # the element's place in that window
            there = inside & (row >= 0) & (row < rows) & (column >= 0) & (column < columns)
            there = there & (down < KERNEL_H) & (right < KERNEL_W)
            at = (row * columns + column) * channels + channel
            # the mask does not depend on what is loaded, so that neighbouring channels are loaded at once
            own = tl.load(index + at, mask=there, other=255).to(tl.int32) == down * KERNEL_W + right
            total += tl.where(own, tl.load(gradient + at, mask=there, other=0.0).to(tl.float32), 0.0)
    tl.store(out + image * count + place, total.to(out.dtype.element_ty), mask=inside)


class FusedPool(torch.autograd.Function):
    """MAX pooling of ``x + bias``, followed by ReLU if ``relu``; ``bias`` may be None. See the module's docstring."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, bias: Tensor | None, kernel: tuple[int, int], stride: tuple[int, int],
        pad: tuple[int, int], size: tuple[int, int], relu: bool,
    ) -> Tensor:  # fmt: skip
        x = x.contiguous(memory_format=torch.channels_last)
        images, channels, height, width = x.shape
        y = torch.empty((images, channels, *size), dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
        index = torch.empty_like(y, dtype=torch.uint8)
        ctx.sizes, ctx.windows, ctx.relu = (channels, height, width, *size, *pad), (*kernel, *stride), relu
        given = y if bias is None else bias  # without a bias, any pointer
        count, blocks = _division(y)
        _forward[(images * blocks,)](
            x, given, y, index, count, blocks, *ctx.sizes, *ctx.windows, relu, bias is not None, BLOCK
        )
        ctx.save_for_backward(index)
        ctx.shape, ctx.bias_type = x.shape, None if bias is None else bias.dtype
        return y

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        (index,) = ctx.saved_tensors
        gradient = grad_outputs[0].contiguous(memory_format=torch.channels_last)
        out = below = None
        if ctx.needs_input_grad[0]:
            out = torch.empty(ctx.shape, dtype=gradient.dtype, device=gradient.device,
                              memory_format=torch.channels_last)  # fmt: skip
            count, blocks = _division(out)
            _backward[(len(out) * blocks,)](gradient, index, out, count, blocks, *ctx.sizes, *ctx.windows, BLOCK)
        if ctx.needs_input_grad[1]:
            # each window passes its gradient to one element: the sum over elements is the sum over windows
            passed = torch.where(index == 255, 0, gradient) if ctx.relu else gradient
            below = passed.sum((0, 2, 3), dtype=torch.float32).to(ctx.bias_type)
        return out, below, None, None, None, None, None


def _division(x: Tensor) -> tuple[int, int]:
    """Return the number of values of one image, and the number of program instances that compute them."""
    count = x[0].numel()
    return count, triton.cdiv(count, BLOCK)
