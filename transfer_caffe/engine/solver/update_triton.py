"""The update of `device_update` as a Triton kernel: one pass over memory.

Imported only on machines with a GPU; Triton comes with PyTorch's CUDA builds. Performance has not been measured yet;
correctness was tested with Triton's interpreter.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

BLOCK = 1024


@triton.jit
def _update(weight, gradient, history, rates, index, count, momentum, decay, factor, BLOCK: tl.constexpr):
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = place < count
    rate = tl.load(rates + index)
    old = tl.load(weight + place, mask=inside, other=0.0)
    step = tl.load(gradient + place, mask=inside, other=0.0).to(tl.float32) * factor + decay * old
    new = momentum * tl.load(history + place, mask=inside, other=0.0) + rate * step
    tl.store(history + place, new, mask=inside)
    tl.store(weight + place, old - new, mask=inside)


def update(
    weight: Tensor, gradient: Tensor, history: Tensor, rates: Tensor, index: int, momentum: float, decay: float,
    factor: float,
) -> None:  # fmt: skip
    """Update a weight and its history; all tensors are contiguous and float32, the gradient may be bfloat16."""
    count = weight.numel()
    grid = (triton.cdiv(count, BLOCK),)
    _update[grid](weight, gradient, history, rates, index, count, momentum, decay, factor, BLOCK)
