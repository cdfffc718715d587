"""The update of `device_update` as a Triton kernel: one pass over memory.

Imported only on machines with a GPU; Triton comes with PyTorch's CUDA builds. Performance has not been measured yet;
correctness was tested with Triton's interpreter.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 1024


@triton.jit
def _update(
    weight, gradient, history, rates, low, scale, index, count, momentum, decay, factor,
    LOW: tl.constexpr, SCALED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = place < count
    rate = tl.load(rates + index)
    old = tl.load(weight + place, mask=inside, other=0.0)
    step = tl.load(gradient + place, mask=inside, other=0.0).to(tl.float32) * factor
    if SCALED:
        step = step * tl.load(scale)
    step = step + decay * old
    new = momentum * tl.load(history + place, mask=inside, other=0.0) + rate * step
    tl.store(history + place, new, mask=inside)
    tl.store(weight + place, old - new, mask=inside)
    if LOW:
        tl.store(low + place, (old - new).to(low.dtype.element_ty), mask=inside)


def update(
    weight: Tensor, gradient: Tensor, history: Tensor, rates: Tensor, index: int, momentum: float, decay: float,
    factor: float, low: Tensor | None = None, scale: Tensor | None = None,
) -> None:  # fmt: skip
    """Update a weight and its history; all tensors are contiguous and float32, the gradient may be bfloat16.

    ``low`` is a copy of the weight in bfloat16, which is updated as well. The gradient is multiplied by ``factor`` and
    by ``scale``, a value on the device.
    """
    count = weight.numel()
    grid = (triton.cdiv(count, BLOCK),)
    # without a copy or a scale, any pointer
    more = (weight if low is None else low, rates if scale is None else scale)
    settings = (index, count, momentum, decay, factor)
    with torch.cuda.device_of(weight):  # Triton uses the current GPU
        _update[grid](
            weight, gradient, history, rates, *more, *settings, low is not None, scale is not None, BLOCK
        )  # fmt: skip
