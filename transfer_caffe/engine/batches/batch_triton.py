"""Batches of images on a GPU as one Triton kernel: gather, mirror, subtract the mean, scale and convert, in one pass.

The bits are those of `transform.OnDevice`: the mean is subtracted, then the difference is scaled, with one rounding
each.

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
def _make(
    pixels, image, top, left, flip, mean, out, count, height, width, channels, rows, columns, mean_columns, scale,
    WINDOWS: tl.constexpr, MEAN: tl.constexpr, MEAN_FILE: tl.constexpr, SCALE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = place < count
    channel = place % channels
    column = place // channels % width
    row = place // channels // width % height
    number = place // channels // width // height
    mirrored = tl.load(flip + number, mask=inside, other=0) != 0
    column = tl.where(mirrored, width - 1 - column, column)
    y = tl.load(top + number, mask=inside, other=0) + row
    x = tl.load(left + number, mask=inside, other=0) + column
    if WINDOWS:  # the pixels are the windows
        source = ((number * height + row) * width + column) * channels + channel
    else:
        record = tl.load(image + number, mask=inside, other=0)
        source = ((record * rows + y) * columns + x) * channels + channel
    value = tl.load(pixels + source, mask=inside, other=0).to(tl.float32)
    if MEAN:
        if MEAN_FILE:
            value = value - tl.load(mean + (y * mean_columns + x) * channels + channel, mask=inside, other=0.0)
        else:
            value = value - tl.load(mean + channel, mask=inside, other=0.0)
    if SCALE:
        value = value * scale
    tl.store(out + place, value.to(out.dtype.element_ty), mask=inside)


def make(
    pixels: Tensor, image: Tensor | None, drawn: Tensor, mean: Tensor | None, mean_file: bool, scale: float,
    size: tuple[int, int], dtype: torch.dtype,
) -> Tensor:  # fmt: skip
    """Return a batch (batch, channels, height, width) in channels-last memory format.

    ``pixels`` are records (records, height, width, channels), of which ``image`` holds indices, or without ``image``
    windows of the batch. ``drawn`` holds top, left and flip of each window; ``mean`` is (height, width, channels).
    """
    channels, (height, width) = pixels.shape[3], size
    count = drawn.shape[1]
    out = torch.empty((count, channels, height, width), dtype=dtype, device=pixels.device,
                      memory_format=torch.channels_last)  # fmt: skip
    top, left, flip = drawn.unbind()
    sizes = (out.numel(), height, width, channels, pixels.shape[1], pixels.shape[2])
    _make[(triton.cdiv(out.numel(), BLOCK),)](
        pixels, top if image is None else image, top, left, flip, top if mean is None else mean, out, *sizes,
        1 if mean is None else mean.shape[1], scale, image is None, mean is not None, mean_file, scale != 1, BLOCK,
    )  # fmt: skip
    return out
