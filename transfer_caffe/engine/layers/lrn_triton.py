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
def _power(root, beta, THREE_QUARTERS: tl.constexpr):
    """Return scale^-beta, given scale^-1/2."""
    if THREE_QUARTERS:
        return root * tl.sqrt(root)
    return tl.exp2(2 * beta * tl.log2(root))


@triton.jit
def _places(BLOCK: tl.constexpr, WIDE: tl.constexpr):
    """Return the indices of the values that this program instance computes."""
    block = tl.program_id(0)
    if WIDE:  # more values than int32 can index; int32 remainders are faster
        block = block.to(tl.int64)
    return block * BLOCK + tl.arange(0, BLOCK)


@triton.jit
def normalised(
    x, channel, channels, inside, factor, beta, k, REACH: tl.constexpr, THREE_QUARTERS: tl.constexpr,
):  # fmt: skip
    """Return the results of LRN where ``x`` points to, and scale^-1/2, of which powers are cheap; both are float32."""
    total = tl.zeros_like(channel).to(tl.float32)
    for shift in tl.static_range(2 * REACH + 1):
        near = channel + (shift - REACH)
        value = tl.load(x + (shift - REACH), mask=inside & (near >= 0) & (near < channels), other=0.0).to(tl.float32)
        total += value * value
    root = tl.rsqrt(k + factor * total)
    value = tl.load(x, mask=inside, other=0.0).to(tl.float32)
    return value * _power(root, beta, THREE_QUARTERS), root


@triton.jit
def gradient_below(
    gradient, x, top, root, channel, channels, inside, factor, beta,
    REACH: tl.constexpr, THREE_QUARTERS: tl.constexpr,
):  # fmt: skip
    """Return the gradients of LRN's bottom; the first four arguments point to the places."""
    total = tl.zeros_like(channel).to(tl.float32)
    for shift in tl.static_range(2 * REACH + 1):
        near = channel + (shift - REACH)
        there = inside & (near >= 0) & (near < channels)
        one = tl.load(gradient + (shift - REACH), mask=there, other=0.0).to(tl.float32)
        two = tl.load(top + (shift - REACH), mask=there, other=0.0).to(tl.float32)
        three = tl.load(root + (shift - REACH), mask=there, other=0.0)
        total += one * two * (three * three)
    own = tl.load(gradient, mask=inside, other=0.0).to(tl.float32)
    own = own * _power(tl.load(root, mask=inside, other=0.0), beta, THREE_QUARTERS)
    return own - factor * total * tl.load(x, mask=inside, other=0.0).to(tl.float32)


@triton.jit
def _forward(
    x, y, root, count, channels, factor, beta, k,
    REACH: tl.constexpr, THREE_QUARTERS: tl.constexpr, BLOCK: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    place = _places(BLOCK, WIDE)
    inside = place < count
    value, kept = normalised(x + place, place % channels, channels, inside, factor, beta, k, REACH, THREE_QUARTERS)
    tl.store(y + place, value.to(y.dtype.element_ty), mask=inside)
    tl.store(root + place, kept, mask=inside)


@triton.jit
def _backward(
    gradient, x, top, root, out, count, channels, factor, beta,
    REACH: tl.constexpr, THREE_QUARTERS: tl.constexpr, BLOCK: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    place = _places(BLOCK, WIDE)
    inside = place < count
    own = gradient_below(
        gradient + place, x + place, top + place, root + place, place % channels, channels, inside, factor, beta,
        REACH, THREE_QUARTERS,
    )  # fmt: skip
    tl.store(out + place, own.to(out.dtype.element_ty), mask=inside)


class FusedLRN(torch.autograd.Function):
    """The same function as `vision._LRNAcrossChannels`, with the same arguments."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, size: int, alpha: float, beta: float, k: float, buffer: Buffer | None) -> Tensor:
        x = x.contiguous(memory_format=torch.channels_last)
        y, root = torch.empty_like(x), torch.empty_like(x, dtype=torch.float32)
        ctx.settings = (size // 2, beta == 0.75, BLOCK, x.numel() > 2**31 - 2 * BLOCK)
        with torch.cuda.device_of(x):  # Triton uses the current GPU
            _forward[_grid(x)](x, y, root, x.numel(), x.shape[1], alpha / size, beta, k, *ctx.settings)
        ctx.save_for_backward(x, y, root)
        ctx.factor, ctx.beta, ctx.buffer = 2 * alpha * beta / size, beta, buffer
        return y

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        x, y, root = ctx.saved_tensors
        # Caffe reads the top's buffer, which an in-place layer may have overwritten
        top = y if ctx.buffer is None else ctx.buffer.content
        gradient, top = (each.contiguous(memory_format=torch.channels_last) for each in (grad_outputs[0], top))
        out = torch.empty_like(x)
        sizes = (x.numel(), x.shape[1], ctx.factor, ctx.beta)
        with torch.cuda.device_of(x):
            _backward[_grid(x)](gradient, x, top, root, out, *sizes, *ctx.settings)
        return out, None, None, None, None, None


def _grid(x: Tensor) -> tuple[int]:
    return (triton.cdiv(x.numel(), BLOCK),)
