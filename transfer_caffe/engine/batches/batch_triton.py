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
    pixels, windows, image, top, left, flip, mean, out, count, blocks, rows, columns, mean_columns, scale,
    WIDTH: tl.constexpr, CHANNELS: tl.constexpr, RECORDS: tl.constexpr, WINDOWS: tl.constexpr, MEAN: tl.constexpr,
    MEAN_FILE: tl.constexpr, SCALE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    # each program instance works on one image: what is drawn for it is loaded once, and indices within an image fit in
    # int32, in which divisions take a fraction of their time in int64; the records may have more than 2^31 values
    program = tl.program_id(0)
    number = (program // blocks).to(tl.int64)
    place = program % blocks * BLOCK + tl.arange(0, BLOCK)
    inside = place < count
    channel = place % CHANNELS
    column = place // CHANNELS % WIDTH
    row = place // CHANNELS // WIDTH
    column = tl.where(tl.load(flip + number) != 0, WIDTH - 1 - column, column)
    y = tl.load(top + number).to(tl.int32) + row
    x = tl.load(left + number).to(tl.int32) + column
    if RECORDS:
        record = tl.load(image + number)
        source = pixels + record * rows * columns * CHANNELS + (y * columns + x) * CHANNELS + channel
        found = tl.load(source, mask=place < tl.where(record >= 0, count, 0), other=0)
    if WINDOWS:
        window = -1 - record if RECORDS else number
        source = windows + window * count + (row * WIDTH + column) * CHANNELS + channel
        cut = tl.load(source, mask=place < tl.where(window >= 0, count, 0), other=0)
        found = tl.where(record >= 0, found, cut) if RECORDS else cut
    value = found.to(tl.float32)
    if MEAN:
        if MEAN_FILE:
            value = value - tl.load(mean + (y * mean_columns + x) * CHANNELS + channel, mask=inside, other=0.0)
        else:
            value = value - tl.load(mean + channel, mask=inside, other=0.0)
    if SCALE:
        value = value * scale
    tl.store(out + number * count + place, value.to(out.dtype.element_ty), mask=inside)


def make(
    pixels: Tensor | None, windows: Tensor | None, image: Tensor | None, drawn: Tensor, mean: Tensor | None,
    mean_file: bool, scale: float, size: tuple[int, int], dtype: torch.dtype,
) -> Tensor:  # fmt: skip
    """Return a batch (batch, channels, height, width) in channels-last memory format.

    ``pixels`` are records (records, height, width, channels), of which ``image`` holds indices; ``windows`` are those
    of the batch in order, or, if there are records, too, those to which ``image`` refers as -1 - index. ``drawn`` holds
    top, left and flip of each window; ``mean`` is (height, width, channels).
    """
    given = windows if pixels is None else pixels
    assert given is not None
    channels, (height, width) = given.shape[3], size
    count = drawn.shape[1]
    out = torch.empty((count, channels, height, width), dtype=dtype, device=given.device,
                      memory_format=torch.channels_last)  # fmt: skip
    top, left, flip = drawn.unbind()
    size_of_one = height * width * channels
    blocks = triton.cdiv(size_of_one, BLOCK)
    sizes = (size_of_one, blocks, given.shape[1], given.shape[2])
    with torch.cuda.device_of(given):  # Triton uses the current GPU
        _make[(count * blocks,)](
            given, given if windows is None else windows, top if image is None else image, top, left, flip,
            top if mean is None else mean, out, *sizes, 1 if mean is None else mean.shape[1], scale, width, channels,
            pixels is not None, windows is not None, mean is not None, mean_file, scale != 1, BLOCK,
        )  # fmt: skip
    return out
