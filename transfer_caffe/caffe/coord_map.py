"""How positions in one blob of a `NetSpec` correspond to positions in another (python/caffe/coord_map.py).

A map (axis, scale, shift) says: position i along the spatial axes, which follow ``axis``, corresponds to position
scale * i + shift. Layers that work elementwise have no axis, scale 1 and shift 0.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from transfer_caffe.caffe.net_spec import Function, Top
from transfer_caffe.caffe.net_spec import layers as L

Map = tuple[int | None, Any, Any]

IDENTITY: Map = (None, 1, 0)
PASS_THROUGH_LAYERS = (
    "AbsVal", "BatchNorm", "Bias", "BNLL", "Dropout", "Eltwise", "ELU", "Exp", "Log", "LRN", "MVN", "Power", "PReLU",
    "ReLU", "Scale", "Sigmoid", "Split", "TanH", "Threshold",
)  # fmt: skip


class UndefinedMapException(Exception):
    """The layer does not keep positions: InnerProduct, for example."""


class AxisMismatchException(Exception):
    """Two maps have different axes."""


def conv_params(fn: Function) -> tuple[int, np.ndarray, np.ndarray, np.ndarray]:
    """Return axis, stride, extent of the kernel (with dilation) and pad of a convolution or pooling."""
    given = fn.params.get("convolution_param", fn.params.get("pooling_param", fn.params))
    if any(f"{what}_{side}" in given for what in ("pad", "kernel", "stride") for side in "hw"):
        raise AssertionError("cropping does not support legacy _h/_w params")
    kernel, dilation, stride, pad = (
        np.array(given.get(name, default), ndmin=1)
        for name, default in (("kernel_size", None), ("dilation", 1), ("stride", 1), ("pad", 0))
    )
    if kernel[0] is None:
        raise KeyError("kernel_size")
    return given.get("axis", 1), stride, (kernel - 1) * dilation + 1, pad


def crop_params(fn: Function) -> tuple[int, np.ndarray]:
    """Return axis and offset of a Crop."""
    given = fn.params.get("crop_param", fn.params)
    return given.get("axis", 2), np.array(given.get("offset", 0), ndmin=1)


def coord_map(fn: Function) -> Map:
    """Return the map from the positions in a layer's bottom to those in its top."""
    if fn.type_name in PASS_THROUGH_LAYERS:
        return IDENTITY
    if fn.type_name == "Crop":
        axis, offset = crop_params(fn)
        return axis - 1, 1, -offset
    if fn.type_name in ("Convolution", "Pooling", "Im2col"):
        axis, stride, extent, pad = conv_params(fn)
        return axis, 1 / stride, (pad - (extent - 1) / 2) / stride
    if fn.type_name == "Deconvolution":
        axis, stride, extent, pad = conv_params(fn)
        return axis, stride, (extent - 1) / 2 - pad
    raise UndefinedMapException(fn.type_name)


def compose(base_map: Map, next_map: Map) -> Map:
    """Return the map that applies ``next_map`` first, then ``base_map``."""
    (axis, scale, shift), (other, next_scale, next_shift) = base_map, next_map
    if axis is not None and other is not None and axis != other:
        raise AxisMismatchException(f"axes {axis} and {other}")
    return other if axis is None else axis, scale * next_scale, scale * next_shift + shift


def inverse(coord_map: Map) -> Map:
    """Return the map in the other direction."""
    axis, scale, shift = coord_map
    return axis, 1 / scale, -shift / scale


def _ancestors(top: Top) -> Iterable[tuple[Top, Map]]:
    """Yield a blob and all blobs from which positions lead to it, with the map from them."""
    waiting: list[tuple[Top, Map]] = [(top, IDENTITY)]
    seen: set[Top] = set()
    while waiting:
        blob, so_far = waiting.pop()
        yield blob, so_far
        seen.add(blob)
        try:
            through = compose(so_far, coord_map(blob.fn))
        except UndefinedMapException:
            continue
        # the second bottom of a Crop only gives the size
        bottoms = blob.fn.inputs[:1] if blob.fn.type_name == "Crop" else blob.fn.inputs
        waiting += [(bottom, through) for bottom in bottoms if bottom not in seen]


def coord_map_from_to(top_from: Top, top_to: Top) -> Map:
    """Return the map from positions in ``top_from`` to those in ``top_to``, through a blob from which both come.

    Raise RuntimeError if there is none.
    """
    maps = dict(_ancestors(top_from))
    for blob, so_far in _ancestors(top_to):
        if blob in maps:
            return compose(so_far, inverse(maps[blob]))
    raise RuntimeError("Could not compute map between tops; are they connected by spatial layers?")


def crop(top_from: Top, top_to: Top) -> Top:
    """Return a Crop layer that cuts ``top_from`` to the size of ``top_to``, at corresponding positions.

    Raise AssertionError if their scales differ, or the offset would be negative or no whole number.
    """
    axis, scale, shift = coord_map_from_to(top_from, top_to)
    scale, shift = np.array(scale, ndmin=1), np.array(shift, ndmin=1)
    for fine, problem in (
        ((scale == 1).all(), f"scale mismatch on crop (a = {scale})"),
        ((shift <= 0).all(), f"cannot crop negative offset (b = {shift})"),
        ((np.round(shift) == shift).all(), f"cannot crop noninteger offset (b = {shift})"),
    ):
        if not fine:
            raise AssertionError(problem)
    first = 2 if axis is None else axis + 1
    return L.Crop(top_from, top_to, crop_param={"axis": first, "offset": [int(offset) for offset in -shift]})
