"""Bias, MAX pooling, ReLU and LRN on a GPU as one Triton kernel forward, and as one or two backward.

relu(pool(x + bias)) is computed as relu(pool(x) + bias), which has the same bits: adding a constant and rounding keep
the order of values. A window's maximum is remembered as its place in the window, one byte instead of PyTorch's eight;
255 means that the ReLU stops its gradient. The backward pass gathers: each element of the bottom adds the gradients of
the windows whose maximum it is, in a fixed order, so results do not depend on the order in which blocks run.

LRN across channels follows in the same kernel: a program instance computes all channels of its places, stores them, and
reads the neighbours back after a barrier. Its gradient, what the ReLU stops of it, and the gradient of the bias are one
kernel, too. The bits are those of `lrn_triton`.

With windows of 1 x 1, only the bias and the ReLU are left: so they are computed after a convolution without pooling.

Imported only on machines with a GPU; Triton comes with PyTorch's CUDA builds. The tensors are in channels-last memory
format. Performance has not been measured yet; correctness was tested with Triton's interpreter.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from transfer_caffe.engine.layers.lrn_triton import gradient_below, normalised

Norm = tuple[int, float, float, float]
"""Size, alpha, beta and k of an LRN."""
BLOCK = 1024
ROWS, CHANNELS, STEPS = 32, 32, 8
"""Size of the tiles in which the gradient of the bias is summed, and the number of tiles below each other in a sum."""


@triton.jit
def _own(count, blocks, span, BLOCK: tl.constexpr):
    """Return the image that this program instance works on, and the indices of its values within that image.

    Of BLOCK values it computes ``span``. Indices within an image fit in int32, in which divisions take a fraction of
    their time in int64.
    """
    program = tl.program_id(0)
    lane = tl.arange(0, BLOCK)
    place = program % blocks * span + lane
    return (program // blocks).to(tl.int64), place, (lane < span) & (place < count)


@triton.jit
def _forward(
    x, bias, y, index, normed, root, count, blocks, span, channels, height, width, rows, columns, pad_h, pad_w, factor,
    beta, k,
    KERNEL_H: tl.constexpr, KERNEL_W: tl.constexpr, STRIDE_H: tl.constexpr, STRIDE_W: tl.constexpr, RELU: tl.constexpr,
    BIAS: tl.constexpr, NORM: tl.constexpr, REACH: tl.constexpr, THREE_QUARTERS: tl.constexpr, KEEP: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    image, place, inside = _own(count, blocks, span, BLOCK)
    x += image * height * width * channels
    y += image * count
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
    if KEEP:
        tl.store(index + image * count + place, found.to(tl.uint8), mask=inside)
    if NORM:
        tl.debug_barrier()  # the neighbours' values are those of other threads
        value, kept = normalised(y + place, channel, channels, inside, factor, beta, k, REACH, THREE_QUARTERS)
        tl.store(normed + image * count + place, value.to(normed.dtype.element_ty), mask=inside)
        if KEEP:
            tl.store(root + image * count + place, kept, mask=inside)


@triton.jit
def _backward(
    gradient, index, out, count, blocks, span, channels, height, width, rows, columns, pad_h, pad_w,
    KERNEL_H: tl.constexpr, KERNEL_W: tl.constexpr, STRIDE_H: tl.constexpr, STRIDE_W: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    image, place, inside = _own(count, blocks, span, BLOCK)
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


@triton.jit
def _backward_by_two(
    gradient, index, out, count, blocks, span, channels, height, width, rows, columns, pad_h, pad_w, across,
    KERNEL_H: tl.constexpr, KERNEL_W: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Compute what `_backward` does with a stride of 2, for 2 x 2 elements at once, which share their windows.

    With windows of 3 x 3 these are 9 pairs of an element and a window instead of 16, and a quarter of the loads.
    """
    image, place, inside = _own(count, blocks, span, BLOCK)
    gradient += image * rows * columns * channels
    index += image * rows * columns * channels
    out += image * height * width * channels
    channel = place % channels
    across_block = place // channels % across
    down_block = place // channels // across
    total_00 = tl.zeros((BLOCK,), tl.float32)
    total_01 = tl.zeros((BLOCK,), tl.float32)
    total_10 = tl.zeros((BLOCK,), tl.float32)
    total_11 = tl.zeros((BLOCK,), tl.float32)
    for i in tl.static_range((KERNEL_H + 1) // 2):
        for j in tl.static_range((KERNEL_W + 1) // 2):
            row, column = down_block - i, across_block - j
            there = inside & (row >= 0) & (row < rows) & (column >= 0) & (column < columns)
            at = (row * columns + column) * channels + channel
            own = tl.load(index + at, mask=there, other=255).to(tl.int32)
            value = tl.load(gradient + at, mask=there, other=0.0).to(tl.float32)
            first = 2 * i * KERNEL_W + 2 * j  # the first element's place in that window
            total_00 += tl.where(own == first, value, 0.0)
            if 2 * j + 1 < KERNEL_W:
                total_01 += tl.where(own == first + 1, value, 0.0)
            if 2 * i + 1 < KERNEL_H:
                total_10 += tl.where(own == first + KERNEL_W, value, 0.0)
                if 2 * j + 1 < KERNEL_W:
                    total_11 += tl.where(own == first + KERNEL_W + 1, value, 0.0)
    h, w = 2 * down_block - pad_h, 2 * across_block - pad_w
    at = out + (h * width + w) * channels + channel
    # h and w are inside the image, unless they are in the padding
    upper, lower = inside & (h >= 0), inside & (h >= -1) & (h < height - 1)
    left, right = w >= 0, (w >= -1) & (w < width - 1)
    tl.store(at, total_00.to(out.dtype.element_ty), mask=upper & left)
    tl.store(at + channels, total_01.to(out.dtype.element_ty), mask=upper & right)
    tl.store(at + width * channels, total_10.to(out.dtype.element_ty), mask=lower & left)
    tl.store(at + (width + 1) * channels, total_11.to(out.dtype.element_ty), mask=lower & right)


@triton.jit
def _below(
    gradient, index, x, top, root, out, sums, windows, channels, factor, beta,
    RELU: tl.constexpr, BIAS: tl.constexpr, OUT: tl.constexpr, NORM: tl.constexpr, REACH: tl.constexpr,
    THREE_QUARTERS: tl.constexpr, ROWS: tl.constexpr, CHANNELS: tl.constexpr, STEPS: tl.constexpr,
):  # fmt: skip
    """Compute what the ReLU passes on of the gradients of the pooled values, and what it adds up to per channel.

    With LRN, ``gradient`` is that of its top. ``sums`` gets a row per ROWS * STEPS windows.
    """
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)[None, :]
    window = tl.program_id(0).to(tl.int64) * (ROWS * STEPS) + tl.arange(0, ROWS)[:, None]
    total = tl.zeros((ROWS, CHANNELS), tl.float32)
    for _ in range(STEPS):
        there = (window < windows) & (channel < channels)
        place = window * channels + channel
        if NORM:
            value = gradient_below(
                gradient + place, x + place, top + place, root + place, channel + tl.zeros_like(window).to(tl.int32),
                channels, there, factor, beta, REACH, THREE_QUARTERS,
            )  # fmt: skip
            value = value.to(out.dtype.element_ty).to(tl.float32)
        else:
            value = tl.load(gradient + place, mask=there, other=0.0).to(tl.float32)
        if RELU:
            value = tl.where(tl.load(index + place, mask=there, other=255) == 255, 0.0, value)
        if OUT:
            tl.store(out + place, value.to(out.dtype.element_ty), mask=there)
        if BIAS:
            total += value  # 0 where there is none
        window += ROWS
    if BIAS:
        below = tl.sum(total, 0)[None, :]
        tl.store(sums + tl.program_id(0) * channels + channel, below, mask=channel < channels)


class FusedPool(torch.autograd.Function):
    """MAX pooling of ``x + bias``, then ReLU if ``relu``, then LRN by ``norm``: its size, alpha, beta and k.

    Windows of 1 x 1 leave the bias and the ReLU. ``bias`` and ``norm`` may be None. With ``keep`` a backward pass can
    follow. LRN needs at most BLOCK channels. See the module's docstring.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, bias: Tensor | None, kernel: tuple[int, int], stride: tuple[int, int],
        pad: tuple[int, int], size: tuple[int, int], relu: bool, norm: Norm | None, keep: bool,
    ) -> Tensor:  # fmt: skip
        x = x.contiguous(memory_format=torch.channels_last)
        images, channels, height, width = x.shape
        y = torch.empty((images, channels, *size), dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
        index = torch.empty_like(y, dtype=torch.uint8) if keep else y
        top, root = y, y  # what is not computed or not kept: any pointers
        span, factor, beta, k = BLOCK, 0.0, 0.0, 0.0
        if norm:
            top, root = torch.empty_like(y), torch.empty_like(y, dtype=torch.float32) if keep else y
            span, factor, beta, k = BLOCK // channels * channels, norm[1] / norm[0], norm[2], norm[3]
        count = channels * size[0] * size[1]
        blocks = triton.cdiv(count, span)
        ctx.sizes, ctx.windows, ctx.relu = (channels, height, width, *size, *pad), (*kernel, *stride), relu
        with torch.cuda.device_of(x):  # Triton uses the current GPU
            _forward[(images * blocks,)](
                x, y if bias is None else bias, y, index, top, root, count, blocks, span, *ctx.sizes, factor, beta, k,
                *ctx.windows, relu, bias is not None, *_constants(norm), keep, BLOCK,
            )  # fmt: skip
        if keep:
            ctx.save_for_backward(index, *((y, top, root) if norm else ()))
        ctx.shape, ctx.norm, ctx.bias_type = x.shape, norm, None if bias is None else bias.dtype
        return top

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        index, *kept = ctx.saved_tensors
        gradient = grad_outputs[0].contiguous(memory_format=torch.channels_last)
        below = None
        with_bias, alone = ctx.needs_input_grad[1], ctx.windows == (1, 1, 1, 1)
        if ctx.norm or with_bias or alone:
            gradient, sums = _launch_below(gradient, index, kept, ctx.norm, ctx.relu, with_bias, alone)
            # each window passes its gradient to one element: the sum over elements is the sum over windows
            below = sums.sum(0).to(ctx.bias_type) if with_bias else None
        if not ctx.needs_input_grad[0] or alone:
            return (gradient if alone else None), below, *[None] * 7
        out = torch.empty(ctx.shape, dtype=gradient.dtype, device=gradient.device,
                          memory_format=torch.channels_last)  # fmt: skip
        _launch_backward(gradient, index, out, ctx.sizes, ctx.windows)
        return out, below, *[None] * 7


def _constants(norm: Norm | None) -> tuple[bool, int, bool]:
    """Return NORM, REACH and THREE_QUARTERS, for which the kernels are compiled."""
    return (True, norm[0] // 2, norm[2] == 0.75) if norm else (False, 0, True)


def _launch_below(
    gradient: Tensor, index: Tensor, kept: list[Tensor], norm: Norm | None, relu: bool, bias: bool, alone: bool
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Return the gradient of the pooled values, and rows that add up to the gradient of the bias.

    What a ReLU stops is left to the pooling's own gradient, unless the values stand ``alone`` in their windows.
    """
    channels, windows = gradient.shape[1], gradient[:, 0].numel()
    grid = (triton.cdiv(windows, ROWS * STEPS), triton.cdiv(channels, CHANNELS))
    sums = torch.empty((grid[0], channels), device=gradient.device)
    write = alone or norm is not None
    out = torch.empty_like(gradient) if write else gradient
    y, top, root = kept or (gradient, gradient, gradient)
    factor, beta = (2 * norm[1] * norm[2] / norm[0], norm[2]) if norm else (0.0, 0.0)
    with torch.cuda.device_of(gradient):
        _below[grid](
            gradient, index, y, top, root, out, sums, windows, channels, factor, beta, relu, bias, write,
            *_constants(norm), ROWS, CHANNELS, STEPS,
        )  # fmt: skip
    return out, sums


def _launch_backward(
    gradient: Tensor, index: Tensor, out: Tensor, sizes: tuple[int, ...], windows: tuple[int, ...]
) -> None:  # fmt: skip
    channels, height, width, _, _, pad_h, pad_w = sizes
    by_two = windows[2:] == (2, 2)
    down, across = (height + pad_h + 1) // 2, (width + pad_w + 1) // 2
    count = down * across * channels if by_two else height * width * channels
    blocks = triton.cdiv(count, BLOCK)
    given = (gradient, index, out, count, blocks, BLOCK, *sizes)
    with torch.cuda.device_of(gradient):
        if by_two:
            _backward_by_two[(len(out) * blocks,)](*given, across, *windows[:2], BLOCK)
        else:
            _backward[(len(out) * blocks,)](*given, *windows, BLOCK)
