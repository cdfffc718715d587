"""The shapes of a layer's outputs and weights, computed from its parameters as in Caffe's LayerSetUp and Reshape.

    convolution_blobs(param, 3, (11, 11))           ((96, 3, 11, 11), (96,))

This module does not need PyTorch: the engine's layers and the code that plans or checks networks share it. Sides are
heights and widths in pixels. Shapes do not include the number of images.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from transfer_caffe.formats.proto.caffe_pb2 import ConvolutionParameter, InnerProductParameter, PoolingParameter

Shape = tuple[int, ...]


def spatial(param: Any, name: str, default: int | None, axes: int = 2) -> Shape:
    """Return a spatial setting, which is given as name_h and name_w, once for all axes, or once per axis.

    Raise ValueError if it is given in two ways, or for another number of axes.
    """
    high, wide = f"{name.removesuffix('_size')}_h", f"{name.removesuffix('_size')}_w"
    fields = param.DESCRIPTOR.fields_by_name
    if high in fields and (param.HasField(high) or param.HasField(wide)):
        if axes != 2:
            raise ValueError(f"{high} and {wide} are for 2 spatial axes, not for {axes}; give {name} once per axis")
        if (param.HasField(name) if isinstance(getattr(param, name), int) else len(getattr(param, name))) and (
            param.HasField(high) and param.HasField(wide)
        ):
            raise ValueError(f"give {name}, or {high} and {wide}, not both")
        return getattr(param, high), getattr(param, wide)
    given = getattr(param, name)
    if isinstance(given, int):
        # not a repeated field (PoolingParameter): one number, which has its own default
        return (given,) * axes
    values = list(given) or ([default] if default is not None else [])
    if len(values) not in (1, axes):
        raise ValueError(f"{name} must be given once or for each of the {axes} spatial axes, not {len(values)} times")
    return tuple(values) * (axes if len(values) == 1 else 1)


def convolution_sides(
    sides: Sequence[int], kernel: Sequence[int], stride: Sequence[int], pad: Sequence[int], dilation: Sequence[int]
) -> list[int]:
    """Return the sides of a Convolution's output, one per axis (caffe/layers/conv_layer.cpp)."""
    zipped = zip(sides, kernel, stride, pad, dilation, strict=True)
    return [(side + 2 * p - d * (k - 1) - 1) // s + 1 for side, k, s, p, d in zipped]


def convolution_blobs(param: ConvolutionParameter, channels: int, kernel: Sequence[int]) -> tuple[Shape, ...]:
    """Return the shapes of a Convolution's weights (outputs, channels / group, kernel) and, if it has one, its bias."""
    weights = (param.num_output, channels // param.group, *kernel)
    return (weights, (param.num_output,)) if param.bias_term else (weights,)


def inner_product_blobs(param: InnerProductParameter, inputs: int) -> tuple[Shape, ...]:
    """Return the shapes of an InnerProduct's weights (outputs, inputs; swapped with ``transpose``) and bias."""
    weights = (inputs, param.num_output) if param.transpose else (param.num_output, inputs)
    return (weights, (param.num_output,)) if param.bias_term else (weights,)


def pooled_side(side: int, kernel: int, stride: int, pad: int, up: bool, drop: bool) -> int:
    """Return the side of a Pooling's output (PoolingLayer::Reshape).

    ``up``: whether it is rounded up; ``drop``: whether a last window that starts in the padding is dropped.
    """
    room = side + 2 * pad - kernel
    size = (-(-room // stride) if up else room // stride) + 1
    return size - 1 if drop and (size - 1) * stride >= side + pad else size


def pooling_sides(param: PoolingParameter, sides: Sequence[int]) -> list[int]:
    """Return the height and width of a Pooling's output for an input with these sides."""
    if param.global_pooling:
        return [1, 1]
    kernel, stride, pad = (spatial(param, name, None) for name in ("kernel_size", "stride", "pad"))
    up = param.round_mode == PoolingParameter.CEIL
    return [pooled_side(*each, up, any(pad)) for each in zip(sides, kernel, stride, pad, strict=True)]
