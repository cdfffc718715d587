"""Choose, by a measurement, how a GPU computes each convolution in groups.

    chosen = choose(nets)           # {"conv2": "halves"}; logged
    use(nets, chosen)               # a resumed run uses the ways that its .solverstate records

cuDNN's own convolutions in groups have been many times slower than others in some versions and memory formats. The ways
(`layers.vision.WAYS`) compute the same up to rounding, so a run keeps its ways: they are recorded in its solver states.
A way replaces the native one only if it is clearly faster, so that two runs on one machine choose the same.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor

from transfer_caffe.engine import glog
from transfer_caffe.engine.layers.vision import WAYS, Convolution
from transfer_caffe.engine.net import Net
from transfer_caffe.utils.errors import UserError

CLEARLY = 1.3
"""A way is chosen if the native one takes this many times as long."""
_PLACE = "conv_layer.cpp:0"


class Devices:
    """Where ways are chosen."""

    types: ClassVar[tuple[str, ...]] = ("cuda",)
    """Types of devices; tests add the CPU."""


def choose(net: Net) -> dict[str, str]:
    """Return the way of each convolution in groups that should not be computed natively, by layer name."""
    context = net.layers[0].context
    if context.device.type not in Devices.types:
        return {}
    chosen = {}
    for layer in net.layers:
        if isinstance(layer, Convolution) and layer.can_choose:
            shape = net.shapes[layer.param.bottom[0]]
            times = {way: milliseconds(layer, way, shape, context.dtype) for way in WAYS}
            fastest = min(WAYS, key=lambda way: times[way])
            way = fastest if times["native"] > CLEARLY * times[fastest] else "native"
            told = ", ".join(f"{each} {times[each]:.3g} ms" for each in WAYS)
            glog.info(_PLACE, f"{layer.name}: {layer.group} groups are computed by {way} ({told})")
            if way != "native":
                chosen[layer.name] = way
    return chosen


def milliseconds(layer: Convolution, way: str, shape: Sequence[int], dtype: torch.dtype) -> float:
    """Return the median milliseconds of a convolution's `passes` on its device, on random numbers."""
    device = layer.context.device
    images = torch.randn(tuple(shape), device=device, dtype=dtype).contiguous(memory_format=torch.channels_last)
    before, layer.way = layer.way, way
    try:
        times = []
        for _ in range(8):
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record(torch.cuda.current_stream(device))
            passes(layer, images)
            end.record(torch.cuda.current_stream(device))
            end.synchronize()
            times.append(start.elapsed_time(end))
        return statistics.median(times[3:])
    finally:
        layer.way = before


def passes(layer: Convolution, images: Tensor) -> None:
    """Run a convolution's forward pass and, unless it is frozen, its backward pass."""
    weight = layer.blobs[0].data
    with torch.set_grad_enabled(weight.requires_grad):
        leaf = images.detach().requires_grad_(weight.requires_grad)
        top = layer.over_images(leaf)
        if weight.requires_grad:
            torch.autograd.grad(top, [leaf, weight], torch.ones_like(top))


def use(nets: Sequence[Net], chosen: Mapping[str, str]) -> None:
    """Let the convolutions of some nets be computed in the chosen ways, all others natively."""
    for net in nets:
        for layer in net.layers:
            if isinstance(layer, Convolution):
                layer.way = chosen.get(layer.name, "native") if layer.can_choose else "native"


def to_text(chosen: Mapping[str, str]) -> str:
    """Return the ways as they are recorded in a solver state."""
    return " ".join(f"{name}={way}" for name, way in chosen.items())


def of_text(text: str, where: str) -> dict[str, str]:
    """Return the ways that ``text`` records. Raise UserError, with ``where``, for a way that does not exist."""
    pairs = [each.rpartition("=") for each in text.split(" ") if each]
    chosen = {name: way for name, _, way in pairs}
    if unknown := set(chosen.values()) - set(WAYS):
        raise UserError(f"{where}: {sorted(unknown)[0]!r} is not a way to compute a convolution; the file is damaged")
    return chosen
