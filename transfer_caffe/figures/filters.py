"""First-layer filters of the base networks, drawn as images."""

from __future__ import annotations

import math
import mmap
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from transfer_caffe.figures.style import Drawn, write_figure
from transfer_caffe.formats import seal
from transfer_caffe.formats.proto import blob_to_array, caffe_pb2
from transfer_caffe.results.markers import Marker
from transfer_caffe.utils.errors import UserError
from transfer_caffe.utils.files import require_checksum

LAYER = "conv1"
MOST = 12


def draw_filters(markers: Sequence[Marker], weights: dict[str, Path], folder: Path) -> Drawn | None:
    """Draw a grid of filters for each base network that has final weights (``weights``: network name to .caffemodel).

    Return None if there is none. At most `MOST` networks are shown; the caption says so if there are more.
    """
    found: list[tuple[Marker, np.ndarray]] = []
    bases = [m for m in markers if m.kind == "base" and m.network in weights]
    for marker in bases:
        if len(found) == MOST:
            break
        filters = read_filters(weights[marker.network])
        if filters is not None:
            found.append((marker, filter_grid(filters)))
    if not found:
        return None

    seeds = len({marker.seed for marker, _ in found})

    def make() -> Figure:
        columns = len(found) if len(found) < 6 else 3 if len(found) == 6 else 4
        rows = math.ceil(len(found) / columns)
        side = 15 / columns
        shape = max(grid.shape[0] / grid.shape[1] for _, grid in found)
        figure = Figure(figsize=(15, rows * (side * 0.94 * shape + 0.55) + 0.1))
        for index, (marker, grid) in enumerate(found):
            axes = figure.add_subplot(rows, columns, index + 1)
            axes.imshow(grid, interpolation="nearest")
            seed = f", seed {marker.seed}" if seeds > 1 else ""
            axes.set_title(f"{marker.split} {marker.treatment}{seed}", fontsize=15)
            axes.axis("off")
        figure.subplots_adjust(0.01, 0.01, 0.99, 1 - 0.45 / figure.get_figheight(), 0.06, 0.1)
        return figure

    more = f" Only the first {MOST} of {len(bases)} base networks are shown." if len(bases) > len(found) == MOST else ""
    drawn = Drawn(
        "conv1_filters",
        "First-layer filters of the base networks",
        f"The {LAYER} filters of each base network after training. Each filter is normalised to its own range of "
        f"values, so brightness cannot be compared between filters.{more}",
        f"Grids of small colour images: the {LAYER} filters of {len(found)} base networks.",
    )
    return write_figure(make, folder, drawn)


def filter_grid(filters: np.ndarray) -> np.ndarray:
    """Arrange filters (count, 3 or 1, height, width) in one image (rows, columns, 3) with values from 0 to 1.

    The channels are BGR, as in Caffe, and the image is RGB. Each filter is normalised to 0..1 separately (a constant
    filter is grey) and surrounded by one white pixel.
    """
    count, channels, height, width = filters.shape
    side = math.sqrt(count)
    candidates = range(math.ceil(side), math.ceil(2 * side) + 1)  # few empty cells, and not too wide
    columns = min(candidates, key=lambda each: (-count % each, abs(each - side * 1.22)))
    rows = math.ceil(count / columns)
    grid = np.ones((rows * (height + 1) + 1, columns * (width + 1) + 1, 3), dtype=np.float32)
    for index, each in enumerate(filters):
        low, high = float(each.min()), float(each.max())
        image = (each - low) / (high - low) if high > low else np.full_like(each, 0.5)
        image = np.repeat(image, 3, axis=0) if channels == 1 else image[::-1]
        row, column = divmod(index, columns)
        top, left = row * (height + 1) + 1, column * (width + 1) + 1
        grid[top : top + height, left : left + width] = image.transpose(1, 2, 0)
    return grid


def read_filters(path: Path) -> np.ndarray | None:
    """Read the weights of `LAYER` from a .caffemodel, with the shape (count, channels, height, width).

    Return None if there is no such layer, or if its filters do not have 1 or 3 channels and finite values. Only this
    layer is parsed, because parsing a complete CaffeNet of 244 MB takes one gigabyte of memory. Raise UserError if the
    file is damaged.
    """
    seal.verify(path)
    require_checksum(path)
    if not path.stat().st_size:
        raise UserError(f"{path}: the file is empty; expected a binary NetParameter")
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        try:
            for number, start, end in _fields(data, 0, len(data)):
                if number == caffe_pb2.NetParameter.LAYER_FIELD_NUMBER and _name(data, start, end) == LAYER.encode():
                    layer = caffe_pb2.LayerParameter.FromString(data[start:end])
                    break
            else:
                return None
        except (IndexError, ValueError):
            raise UserError(f"{path}: damaged or truncated: it does not parse as a binary NetParameter") from None
    if not layer.blobs:
        return None
    filters = blob_to_array(layer.blobs[0], f"{path}: {LAYER}")
    if filters.ndim != 4 or filters.shape[1] not in (1, 3) or not np.isfinite(filters).all():
        return None
    return filters


def _name(data: mmap.mmap, start: int, end: int) -> bytes:
    number = caffe_pb2.LayerParameter.NAME_FIELD_NUMBER
    return next((data[a:b] for field, a, b in _fields(data, start, end) if field == number), b"")


def _fields(data: mmap.mmap, start: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Yield (field number, start, end) of every length-delimited field of a message; raise ValueError if damaged.

    In the wire format of Protocol Buffers, a field is a key (field number and wire type, as a varint) followed by a
    value whose encoding depends on the wire type.
    """
    at = start
    while at < end:
        key, at = _varint(data, at)
        kind = key & 7
        if kind == 2:
            length, at = _varint(data, at)
            if at + length > end:
                raise ValueError
            yield key >> 3, at, at + length
            at += length
        elif kind == 0:
            _, at = _varint(data, at)
        elif kind in (1, 5):
            at += 8 if kind == 1 else 4
        else:
            raise ValueError


def _varint(data: mmap.mmap, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            return value, at
        if shift > 63:
            raise ValueError
