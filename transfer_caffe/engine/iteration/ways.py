"""Choose, by a measurement, how a GPU computes each convolution in groups, and that of images with a stride.

    chosen = choose(nets)           # {"conv2": "halves"}; logged
    use(nets, chosen)               # a resumed run uses the ways that its .solverstate records

cuDNN's own convolutions in groups have been many times slower than others in some versions and memory formats, and an
image's three channels use a part of the matrix units. The ways (`layers.vision.WAYS`) compute the same up to rounding,
so a run keeps its ways: they are recorded in its solver states.
A way replaces the native one only if it is clearly faster, so that two runs on one machine choose the same.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import ClassVar
from urllib.parse import unquote

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
    """Return the way of each convolution that should not be computed natively, by layer name."""
    context = net.layers[0].context
    if context.device.type not in Devices.types:
        return {}
    chosen = {}
    below = False
    for layer in net.layers:
        if isinstance(layer, Convolution) and len(layer.ways) > 1:
            shape = net.shapes[layer.param.bottom[0]]
            times = {way: milliseconds(layer, way, shape, context.dtype, below) for way in layer.ways}
            fastest = min(times, key=lambda way: times[way])
            way = fastest if times["native"] > CLEARLY * times[fastest] else "native"
            told = ", ".join(f"{each} {time:.3g} ms" for each, time in times.items())
            what = f"{layer.group} groups are" if layer.group > 1 else f"stride {max(layer.stride)} is"
            glog.info(_PLACE, f"{layer.name}: {what} computed by {way} ({told})")
            if way != "native":
                chosen[layer.name] = way
        below = below or any(blob.learned for blob in layer.blobs)
    return chosen


def milliseconds(layer: Convolution, way: str, shape: Sequence[int], dtype: torch.dtype, below: bool) -> float:
    """Return the median milliseconds of a convolution's `passes` on its device, on random numbers."""
    device = layer.context.device
    images = torch.randn(tuple(shape), device=device, dtype=dtype).contiguous(memory_format=torch.channels_last)
    before, layer.way = layer.way, way
    try:
        times = []
        for _ in range(8):
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record(torch.cuda.current_stream(device))
            passes(layer, images, below)
            end.record(torch.cuda.current_stream(device))
            end.synchronize()
            times.append(start.elapsed_time(end))
        return statistics.median(times[3:])
    finally:
        layer.way = before


def passes(layer: Convolution, images: Tensor, below: bool) -> None:
    """Run a convolution's forward pass and the backward passes that training runs.

    These are the passes to its weights, unless it is frozen, and to its bottom if a layer ``below`` learns.
    """
    leaf, weight = images.detach().requires_grad_(below), layer.blobs[0].data
    wanted = [each for each in (leaf, weight) if each.requires_grad]
    with torch.set_grad_enabled(bool(wanted)):
        top = layer.over_images(leaf)
        if wanted:
            torch.autograd.grad(top, wanted, torch.ones_like(top))


def use(nets: Sequence[Net], chosen: Mapping[str, str]) -> None:
    """Let the convolutions of some nets be computed in the chosen ways, all others natively."""
    for net in nets:
        for layer in net.layers:
            if isinstance(layer, Convolution):
                way = chosen.get(layer.name, "native")
                layer.way = way if way in layer.ways else "native"


def to_text(chosen: Mapping[str, str]) -> str:
    """Return the ways as they are recorded in a solver state; a name's spaces and equals signs as in a URL."""
    named = {name.replace("%", "%25").replace(" ", "%20").replace("=", "%3D"): way for name, way in chosen.items()}
    return " ".join(f"{name}={way}" for name, way in named.items())


def of_text(text: str, where: str) -> dict[str, str]:
    """Return the ways that ``text`` records. Raise UserError, with ``where``, for a way that does not exist."""
    pairs = [each.rpartition("=") for each in text.split(" ") if each]
    chosen = {unquote(name): way for name, _, way in pairs}
    if unknown := set(chosen.values()) - set(WAYS):
        raise UserError(f"{where}: {sorted(unknown)[0]!r} is not a way to compute a convolution; the file is damaged")
    return chosen
