"""The stages of a net: n is a number of stages. They are found in the graph of the layers, in any net.

    for stage in stages_of(read_net("train_val.prototxt")):
        print(stage.number, stage.name, stage.cut, stage.layers)

A *cut* is a blob through which all paths from the images to the main loss pass. A *stage* is what lies between two
cuts and has weights: one convolution of a chain, a complete inception module, a residual block. Layers that only
rescale what another layer makes (BatchNorm, Scale, Bias, PReLU) and layers without weights belong to the stage before
them. A CaffeNet has the eight stages that Yosinski et al. (2014) count as its layers.
"""

from __future__ import annotations

import collections
from collections.abc import Sequence
from dataclasses import dataclass

from transfer_caffe.formats.nets import included
from transfer_caffe.formats.proto import caffe_pb2
from transfer_caffe.formats.proto.caffe_pb2 import LayerParameter, NetParameter, NetState
from transfer_caffe.utils.errors import UserError

COMPANIONS = ("BatchNorm", "Scale", "Bias", "PReLU")
"""Layer types with weights that rescale the output of another layer, and belong to its stage."""

WITH_WEIGHTS = ("Convolution", "Deconvolution", "InnerProduct", "Embed", "Parameter", "LSTM", "RNN", *COMPANIONS)
"""Layer types that have weights. A Scale or a Bias of two bottoms has none."""

LOSSES = (
    "SoftmaxWithLoss", "HingeLoss", "MultinomialLogisticLoss", "InfogainLoss", "SigmoidCrossEntropyLoss",
    "EuclideanLoss", "ContrastiveLoss",
)  # fmt: skip
"""Layer types whose top counts in the loss (Layer::SetLossWeights); others do with a loss_weight of their own."""


@dataclass(frozen=True)
class Stage:
    """One stage. ``layers`` are the names of all its layers in the net's order, ``weighted`` of those with weights.

    ``number`` counts from 1; ``name`` is the stage's first layer with weights that is not one of `COMPANIONS`, ``cut``
    the blob at its end.
    """

    number: int
    name: str
    cut: str
    layers: tuple[str, ...]
    weighted: tuple[str, ...]


def has_weights(layer: LayerParameter) -> bool:
    """Whether a layer has blobs of its own."""
    return layer.type in WITH_WEIGHTS and not (layer.type in ("Scale", "Bias") and len(layer.bottom) > 1)


def training_layers(net: NetParameter) -> list[LayerParameter]:
    """Return the layers of a net in the phase TRAIN."""
    state = NetState()
    state.CopyFrom(net.state)
    state.phase = caffe_pb2.TRAIN
    return [layer for layer in net.layer if included(layer, state)]


def losses_of(layers: Sequence[LayerParameter]) -> list[LayerParameter]:
    """Return the layers that count in the loss, in their order."""
    return [
        layer
        for layer in layers
        if (any(layer.loss_weight) if layer.loss_weight else layer.type in LOSSES) and layer.type != "Accuracy"
    ]


def main_loss(layers: Sequence[LayerParameter]) -> LayerParameter | None:
    """Return the loss with the largest weight, the last of several; None for a net without a loss."""
    found = losses_of(layers)
    heaviest = max((max(each.loss_weight, default=1.0) for each in found), default=0.0)
    return next((each for each in reversed(found) if max(each.loss_weight, default=1.0) == heaviest), None)


def images_of(layers: Sequence[LayerParameter], where: str) -> str:
    """Return the blob of the images: the first top of the one layer that reads them. UserError if there are several."""
    sources = [layer for layer in layers if not layer.bottom and layer.top and layer.type != "Parameter"]
    if not sources:
        raise UserError(f"{where}: no layer reads images: a Data or an Input layer was expected")
    used = {bottom for layer in layers for bottom in layer.bottom}
    reading = [layer for layer in sources if layer.top[0] in used]
    labels = _only_labels(layers)
    images = [layer for layer in reading if layer.top[0] not in labels] or reading or sources
    if len(images) > 1:
        names = ", ".join(repr(layer.name) for layer in images)
        raise UserError(f"{where}: {len(images)} layers read images ({names}); a net with one data source is needed")
    return images[0].top[0]


def _only_labels(layers: Sequence[LayerParameter]) -> set[str]:
    """The blobs that only losses and accuracies read, as their second bottom or later."""
    found: set[str] = set()
    for layer in layers:
        if layer.type in LOSSES or layer.type == "Accuracy":
            found |= set(layer.bottom[1:])
    others = {
        bottom
        for layer in layers
        for place, bottom in enumerate(layer.bottom)
        if not (place and (layer.type in LOSSES or layer.type == "Accuracy"))
    }
    return found - others


def _path(layers: Sequence[LayerParameter], where: str) -> tuple[list[int], dict[int, str]]:
    """Return the layers on a path from the images to the main loss, by number, and the cuts, both in the net's order.

    A cut is given by the layer that makes it: number -> name of the blob. A net without a loss ends with the last layer
    on a path from the images. A blob that a layer changes in place counts as a new one.
    """
    images = images_of(layers, where)
    newest: dict[str, int | None] = {}  # of each blob the layer that made its content; None if no image is in it
    reads: list[set[int]] = []  # of each layer, those that made what it reads of the images
    for number, layer in enumerate(layers):
        makers = {newest[bottom] for bottom in layer.bottom if bottom in newest}
        reads.append({each for each in makers if each is not None})
        for top in layer.top:
            newest[top] = number if reads[number] or (top == images and not layer.bottom) else None
    source = next(number for number, layer in enumerate(layers) if not layer.bottom and images in layer.top)
    last = main_loss(layers)
    fed = [number for number, layer in enumerate(layers) if reads[number] and layer.type != "Accuracy"]
    end = (
        next((n for n, layer in enumerate(layers) if layer is last), None)
        if last is not None
        else max(fed, default=None)
    )
    if end is None or not reads[end]:
        raise UserError(f"{where}: {layers[end].name if end else 'no layer'!r} does not depend on the images")
    on_path, order = {end}, []
    for number in range(end, -1, -1):
        if number in on_path:
            order.insert(0, number)
            on_path |= reads[number]
    cuts: dict[int, str] = {}
    for place, number in enumerate(order[:-1]):
        later = order[place + 1 :]
        if {maker for reader in later for maker in reads[reader] if maker <= number} != {number}:
            continue  # something that was made before is still needed
        tops = {b for reader in later if number in reads[reader] for b in layers[reader].bottom} & set(
            layers[number].top
        )
        if number == source:
            tops &= {images}
        if len(tops) == 1:
            cuts[number] = next(iter(tops))
    return order, cuts


def cuts_of(net: NetParameter) -> list[str]:
    """Return the blobs through which all paths from the images to the main loss pass, from the images upwards."""
    layers = training_layers(net)
    return list(dict.fromkeys(_path(layers, _where(net))[1].values()))


def stages_of(net: NetParameter, cuts: Sequence[str] = ()) -> list[Stage]:
    """Return the stages of a net, from the images upwards.

    ``cuts``: blobs where stages end, instead of all that could be one; the last stage ends at the loss. UserError for a
    net without a path from one source of images to a loss or an output, and for a cut that is none.
    """
    where = _where(net)
    layers = training_layers(net)
    named = collections.Counter(layer.name for layer in layers)
    for layer in layers:
        if has_weights(layer) and named[layer.name] > 1:  # files of weights, and the experiment, go by names
            raise UserError(f"{where}: two layers are named {layer.name!r}, one with weights; rename one of them")
    order, ends = _path(layers, where)
    known = list(dict.fromkeys(ends.values()))
    blobs = {top for layer in layers for top in layer.top}
    for name in cuts:
        if name not in blobs:
            raise UserError(f"{where}: there is no blob {name!r}; cuts are {', '.join(known[1:-1] or known)}")
        if name not in known:
            raise UserError(f"{where}: {name!r} is not a cut: some paths bypass it; cuts are {', '.join(known)}")
    if list(cuts) != [name for name in known if name in cuts]:
        raise UserError(f"{where}: the cuts {', '.join(cuts)} are not in the net's order, or one is given twice")
    groups: list[tuple[list[int], str]] = []  # the layers between two cuts, and the cut at their end
    group: list[int] = []
    for number in order:
        group.append(number)
        if number in ends:
            groups.append((group, ends[number]))
            group = []
    groups.append((group, layers[order[-1]].top[0] if layers[order[-1]].top else layers[order[-1]].name))
    merged: list[tuple[list[int], str]] = []
    for members, cut in groups:
        own = [n for n in members if has_weights(layers[n]) and layers[n].type not in COMPANIONS]
        # a blob that is changed in place is a cut several times: its last content ends the stage
        opens = bool(own) if not cuts else bool(merged) and merged[-1][1] in cuts and merged[-1][1] != cut
        if merged and not (opens and (cuts or _weights_in(merged[-1][0], layers))):
            merged[-1] = (merged[-1][0] + members, cut)
        else:
            merged.append((members, cut))
    stages = []
    for number, (members, cut) in enumerate(merged, start=1):
        weighted = [layers[n].name for n in members if has_weights(layers[n])]
        proper = [layers[n].name for n in members if has_weights(layers[n]) and layers[n].type not in COMPANIONS]
        if not weighted:
            raise UserError(f"{where}: no layer with weights before the cut {cut!r}; leave that cut out")
        names = tuple(layers[n].name for n in members if layers[n].bottom)
        stages.append(Stage(number, (proper or weighted)[0], cut, names, tuple(weighted)))
    return stages


def _weights_in(members: Sequence[int], layers: Sequence[LayerParameter]) -> bool:
    return any(has_weights(layers[n]) and layers[n].type not in COMPANIONS for n in members)


def _where(net: NetParameter) -> str:
    return f"net {net.name!r}" if net.name else "the net"
