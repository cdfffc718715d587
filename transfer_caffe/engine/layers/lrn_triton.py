"""LRN across channels on a GPU as two Triton kernels, one per direction: one pass over memory instead of a dozen.

Imported only on machines with a GPU; Triton comes with PyTorch's CUDA builds. The tensors are in channels-last memory
format, so neighbouring channels are adjacent in memory. Sums are accumulated in float32, whatever the tensors' type,
and results do not depend on the order in which blocks run. Performance has not been measured yet; correctness was
tested with Triton's interpreter.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from transfer_caffe.engine.layers.base import Buffer

BLOCK = 1024


@triton.jit
def _power(scale, beta, THREE_QUARTERS: tl.constexpr):
    if THREE_QUARTERS:
        root = 1 / tl.sqrt(scale)
        return root * tl.sqrt(root)
    return tl.exp2(-beta * tl.log2(scale))


@triton.jit
def _places(BLOCK: tl.constexpr, WIDE: tl.constexpr):
    """Return the indices of the values that this program instance computes."""
    block = tl.program_id(0)
    if WIDE:  # more values than int32 can index; int32 remainders are faster
        block = block.to(tl.int64)
    return block * BLOCK + tl.arange(0, BLOCK)


@triton.jit
def _forward(
    x, y, scale, count, channels, factor, beta, k,
    REACH: tl.constexpr, THREE_QUARTERS: tl.constexpr, BLOCK: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    place = _places(BLOCK, WIDE)
    inside = place < count
    channel = place % channels
    total = tl.zeros((BLOCK,), tl.float32)
    for shift in tl.static_range(2 * REACH + 1):
        near = channel + (shift - REACH)
        value = tl.load(x + place + (shift - REACH), mask=inside & (near >= 0) & (near < channels), other=0.0)
        value = value.to(tl.float32)
        total += value * value
    total = k + factor * total
    value = tl.load(x + place, mask=inside, other=0.0).to(tl.float32)
    value = value * _power(total, beta, THREE_QUARTERS)
    tl.store(y + place, value.to(y.dtype.element_ty), mask=inside)
    tl.store(scale + place, total, mask=inside)


@triton.jit
def _backward(
    gradient, x, top, scale, out, count, channels, factor, beta,
    REACH: tl.constexpr, THREE_QUARTERS: tl.constexpr, BLOCK: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    place = _places(BLOCK, WIDE)
    inside = place < count
    channel = place % channels
    total = tl.zeros((BLOCK,), tl.float32)
    for shift in tl.static_range(2 * REACH + 1):
        near = channel + (shift - REACH)
        there = inside & (near >= 0) & (near < channels)
        one = tl.load(gradient + place + (shift - REACH), mask=there, other=0.0).to(tl.float32)
        two = tl.load(top + place + (shift - REACH), mask=there, other=0.0).to(tl.float32)
        total += one * two / tl.load(scale + place + (shift - REACH), mask=there, other=1.0)
    own = tl.load(gradient + place, mask=inside, other=0.0).to(tl.float32)
    own = own * _power(tl.load(scale + place, mask=inside, other=1.0), beta, THREE_QUARTERS)
    own = own - factor * total * tl.load(x + place, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + place, own.to(out.dtype.element_ty), mask=inside)


class FusedLRN(torch.autograd.Function):
    """The same function as `vision._LRNAcrossChannels`, with the same arguments."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, size: int, alpha: float, beta: float, k: float, buffer: Buffer | None) -> Tensor:
        x = x.contiguous(memory_format=torch.channels_last)
        y, scale = torch.empty_like(x), torch.empty_like(x, dtype=torch.float32)
        ctx.settings = (size // 2, beta == 0.75, BLOCK, x.numel() > 2**31 - 2 * BLOCK)
        _forward[_grid(x)](x, y, scale, x.numel(), x.shape[1], alpha / size, beta, k, *ctx.settings)
        ctx.save_for_backward(x, y, scale)
        ctx.factor, ctx.beta, ctx.buffer = 2 * alpha * beta / size, beta, buffer
        return y

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        x, y, scale = ctx.saved_tensors
        # Caffe reads the top's buffer, which an in-place layer may have overwritten
        top = y if ctx.buffer is None else ctx.buffer.content
        gradient, top = (each.contiguous(memory_format=torch.channels_last) for each in (grad_outputs[0], top))
        out = torch.empty_like(x)
        sizes = (x.numel(), x.shape[1], ctx.factor, ctx.beta)
        _backward[_grid(x)](gradient, x, top, scale, out, *sizes, *ctx.settings)
        return out, None, None, None, None, None


def _grid(x: Tensor) -> tuple[int]:
    return (triton.cdiv(x.numel(), BLOCK),)
