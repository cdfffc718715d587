"""A net for inference: inputs in place of data layers, without labels, losses and accuracies, with a file's weights.

    used = load("train_val.prototxt", "net.caffemodel")
    used.net, used.left_out

What is done to a train_val.prototxt is what users of Caffe do by hand to get a deploy.prototxt: the last
SoftmaxWithLoss becomes a Softmax named `prob`. A deploy.prototxt is not changed.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from google.protobuf.message import Message

from transfer_caffe.engine.layers import LAYERS, Shape
from transfer_caffe.engine.layers.recurrent import LSTM, RNN
from transfer_caffe.engine.net import Net
from transfer_caffe.formats.nets import included, read_net, state_of
from transfer_caffe.formats.proto import read_mean
from transfer_caffe.formats.proto.caffe_pb2 import (
    TEST,
    FillerParameter,
    LayerParameter,
    NetParameter,
    NetState,
    TransformationParameter,
)
from transfer_caffe.formats.upgrade import upgrade_net
from transfer_caffe.utils.errors import UserError

IMAGES = ("Data", "ImageData")
"""Layer types that read images with labels."""

SECOND_TOPS = {"SoftmaxWithLoss": "Softmax", "InfogainLoss": "Softmax", "SigmoidCrossEntropyLoss": "Sigmoid"}
"""The type of the layer that computes a loss layer's second top."""

PROBABILITIES = "prob"
"""The name of the Softmax in place of a SoftmaxWithLoss, and of its top, as in Caffe's own deploy.prototxt files."""


@dataclass(frozen=True)
class Inference:
    """A net for inference: the engine's net with its weights, and what it was made from.

    ``param`` is the message of ``net``. ``left_out`` names the layers of the original that it lacks. ``transform`` is
    the data layer's transform_param, if the original has a data layer.
    """

    net: Net
    param: NetParameter
    left_out: list[str]
    transform: TransformationParameter | None
    _at_sizes: dict[int, Inference | None] = field(default_factory=dict, repr=False, compare=False)

    @property
    def inputs(self) -> dict[str, Shape]:
        """The shapes of the input blobs, by name, in the net's order."""
        return {top: self.net.shapes[top] for layer in self.param.layer if layer.type == "Input" for top in layer.top}

    @property
    def images(self) -> str:
        """The name of the input blob that holds images: the first input."""
        return next(iter(self.inputs), "")

    @property
    def batch(self) -> int:
        """The number of items in a batch: that of the first input; 0 if there is none."""
        return next((shape[0] for shape in self.inputs.values() if shape), 0)

    def with_batch(self, size: int) -> Inference | None:
        """Return the net for another batch size, with the same weights; None if it cannot be built.

        The inputs with as many items as the first one get ``size`` items.
        """
        if size not in self._at_sizes:
            self._at_sizes[size] = self._built(size) if self.batch else None
        return self._at_sizes[size]

    def compute(self, values: Mapping[str, np.ndarray]) -> None:
        """Compute all blobs from values of the inputs; recurrent layers start from zeros, as in exported files."""
        for layer in self.net.layers:
            if isinstance(layer, (RNN, LSTM)):
                for state in layer.hidden:
                    state.zero_()
        self.net.feed(values)
        with torch.no_grad():
            self.net.forward(0, keep=True)

    def _built(self, size: int) -> Inference | None:
        param = NetParameter()
        param.CopyFrom(self.param)
        for layer in param.layer:
            if layer.type == "Input":
                for shape in layer.input_param.shape:
                    if shape.dim and shape.dim[0] == self.batch:
                        shape.dim[0] = size
        try:
            net = Net(param, self.net.state, 1, torch.device("cpu"), share=self.net)
        except UserError:
            return None
        return Inference(net, param, self.left_out, self.transform)


def load(
    net: str | os.PathLike[str] | NetParameter, weights: str | os.PathLike[str] | None, shape: Sequence[int] = ()
) -> Inference:
    """Build a net for inference, with the weights of a .caffemodel (None: those in its prototxt, or of its fillers).

    ``shape`` is that of one image (channels, height, width); it is needed where the net and its data do not say it.
    Raise UserError for files that cannot be used, and for a layer whose weights the file does not have.
    """
    where = f"net {net.name!r}" if isinstance(net, NetParameter) else os.fspath(net)
    given = upgrade_net(net, where) if isinstance(net, NetParameter) else read_net(net)
    param, left_out, transform = for_inference(given, where, shape)
    if weights is not None:
        _clear_fillers(param)
    made = Net(param, state_of(param, TEST), 1, torch.device("cpu"))
    if weights is not None and made.learnable:
        require_weights(made, made.copy_from(weights), f"{os.fspath(weights)} has no weights for it")
    return Inference(made, param, left_out, transform)


def require_weights(net: Net, copied: Iterable[str], lack: str) -> None:
    """Raise UserError, which says ``lack``, for a layer whose weights are not from a file or the prototxt.

    ``copied``: the layers whose weights are from a file. Weights shared with such a layer count, too.
    """
    copied, known = set(copied), []
    for layer in net.layers:
        if layer.blobs and (layer.name in copied or layer.param.blobs):
            known += [blob.owner or blob for blob in layer.blobs]
    for layer in net.layers:
        if any((blob.owner or blob) not in known for blob in layer.blobs):
            raise layer.error(f"{lack}; give the .caffemodel of this net")


def _clear_fillers(message: Message) -> None:
    """Remove all fillers from a message: filling weights that a file replaces takes a second for a CaffeNet."""
    for each_field, value in list(message.ListFields()):
        if each_field.message_type is None:
            continue
        if each_field.message_type is FillerParameter.DESCRIPTOR:
            message.ClearField(each_field.name)
        elif each_field.name != "blobs":
            # a repeated field gives a container
            for each in [value] if isinstance(value, Message) else value:
                _clear_fillers(each)


def for_inference(
    param: NetParameter, where: str, shape: Sequence[int] = ()
) -> tuple[NetParameter, list[str], TransformationParameter | None]:
    """Return a net for inference, what was left out (name and type), and the transform_param of its data layer."""
    state = state_of(param, TEST)
    layers: list[LayerParameter] = []
    transform: TransformationParameter | None = None
    for layer in param.layer:
        if not included(layer, state):
            continue
        copy = LayerParameter()
        copy.CopyFrom(layer)
        if _reads(copy):
            if transform is None and copy.HasField("transform_param"):
                transform = copy.transform_param
            copy = _as_input(copy, param, state, shape)
        elif copy.type == "Input" and shape:
            copy.input_param.shape[0].dim[1:] = shape
        layers.append(copy)
    layers = [*_inputs_of_other_phases(layers, param, shape), *layers]
    kept, left_out = _without_losses(layers)
    if not any(layer.bottom or layer.type == "Parameter" for layer in kept):
        if left_out:
            name, kind = left_out[-1]
            raise UserError(f"layer {name!r} ({kind}): has no meaning without labels, and the net has no other layers")
        raise UserError(f"{where}: has no layers in phase TEST")
    new = NetParameter(name=param.name, layer=kept)
    new.state.CopyFrom(param.state)
    return new, [f"{name} ({kind})" for name, kind in left_out], transform


def _reads(layer: LayerParameter) -> bool:
    fillers = layer.dummy_data_param.data_filler
    if layer.type == "DummyData":
        return any(filler.type not in ("", "constant") for filler in fillers)
    return not layer.bottom and layer.type not in ("Input", "Parameter")


def _inputs_of_other_phases(
    layers: Sequence[LayerParameter], param: NetParameter, shape: Sequence[int]
) -> list[LayerParameter]:
    """Return inputs for blobs that no layer computes: a net may have data layers for phase TRAIN or for stages only."""
    made: set[str] = set()
    missing: set[str] = set()
    for layer in layers:
        missing |= set(layer.bottom) - made
        made |= set(layer.top)
    found = []
    for layer in param.layer:
        if not layer.bottom and layer.type != "Parameter" and missing & set(layer.top) and not made & set(layer.top):
            copy = LayerParameter()
            copy.CopyFrom(layer)
            copy.ClearField("include")
            copy.ClearField("exclude")
            found.append(_as_input(copy, param, state_of(param, TEST), shape))
            made |= set(layer.top)
    return found


def _as_input(layer: LayerParameter, param: NetParameter, state: NetState, shape: Sequence[int]) -> LayerParameter:
    """Return the Input layer in place of one that reads data, with the shapes of its tops."""
    shapes = _shapes_of(layer, param, state, shape)
    new = LayerParameter(name=layer.name, type="Input", top=layer.top)
    for each in shapes:
        new.input_param.shape.add(dim=each)
    return new


def _shapes_of(layer: LayerParameter, param: NetParameter, state: NetState, shape: Sequence[int]) -> list[Shape]:
    if layer.type not in LAYERS and not shape:  # a Python layer, for example
        raise UserError(
            f"layer {layer.name!r} ({layer.type}): what it reads is unknown; give the shape of an image (--shape)"
        )
    batch = max(layer.data_param.batch_size, layer.image_data_param.batch_size, 1)
    crop, channels = layer.transform_param.crop_size, _channels_of(layer, param)
    if not shape and layer.type in IMAGES and crop and channels:
        # without opening the data, which may be elsewhere
        shape = (channels, crop, crop)
    if shape and layer.type not in ("DummyData", "MemoryData"):
        return [(batch, *shape), *[(batch,)] * (len(layer.top) - 1)]
    alone = NetParameter(name=param.name, layer=[layer])
    try:
        net = Net(alone, state, 1, torch.device("cpu"))
    except (UserError, OSError) as error:
        words = str(error).removeprefix(f"layer {layer.name!r} ({layer.type}): ")
        raise UserError(
            f"layer {layer.name!r} ({layer.type}): {words}; or give the shape of an image (--shape)"
        ) from None
    return [net.shapes[top] for top in layer.top]


def _channels_of(layer: LayerParameter, param: NetParameter) -> int:
    """Return the channels of a data layer's images, as far as the prototxt says it, otherwise 0."""
    transform = layer.transform_param
    if transform.force_gray or (layer.type == "ImageData" and not layer.image_data_param.is_color):
        return 1
    if transform.force_color or layer.type == "ImageData":
        return 3
    if transform.mean_file and os.path.exists(transform.mean_file):
        return read_mean(transform.mean_file).shape[0]
    return len(transform.mean_value) if len(transform.mean_value) > 1 else 0


def _without_losses(layers: Sequence[LayerParameter]) -> tuple[list[LayerParameter], list[tuple[str, str]]]:
    """Remove losses, accuracies and what only they need; return the remaining layers, and name and type of the rest."""
    labels = _label_blobs(layers)
    last = next((layer.name for layer in reversed(layers) if layer.type == "SoftmaxWithLoss"), None)
    softmaxes = {layer.bottom[0] for layer in layers if layer.type == "Softmax" and layer.bottom}
    names = {layer.name for layer in layers} | {blob for layer in layers for blob in layer.top}
    kept: list[LayerParameter] = []
    left_out: list[tuple[str, str]] = []
    gone: dict[str, LayerParameter] = {}
    for layer in layers:
        made_of_labels = bool(layer.top) and all(top in labels for top in layer.top)
        if _is_loss(layer):
            left_out.append((layer.name, layer.type))
            gone.update({top: layer for top in layer.top})
            for each in _second_top(layer, layer.name == last and layer.bottom[0] not in softmaxes, names):
                kept.append(each)
                for top in each.top:
                    gone.pop(top, None)
            continue
        if not layer.top or made_of_labels:  # without tops: Silence, or a layer that writes files
            if layer.type != "Input":
                left_out.append((layer.name, layer.type))
            continue
        for bottom in layer.bottom:
            if bottom in gone:
                maker = gone[bottom]
                raise UserError(
                    f"layer {layer.name!r} ({layer.type}): needs {bottom!r}, which layer {maker.name!r} ({maker.type}) "
                    "computes from labels"
                )
        kept.append(layer)
    return _without_unused_inputs(kept, labels), left_out


def _is_loss(layer: LayerParameter) -> bool:
    known = LAYERS.get(layer.type)
    return layer.type == "Accuracy" or (known is not None and known.is_loss)


def _second_top(layer: LayerParameter, wants_softmax: bool, names: set[str]) -> Iterator[LayerParameter]:
    """Yield the layer that computes what is left of a loss: its second top, or the probabilities of its classes."""
    kind = SECOND_TOPS.get(layer.type)
    if kind is None or (len(layer.top) < 2 and not (layer.type == "SoftmaxWithLoss" and wants_softmax)):
        return
    name = PROBABILITIES if PROBABILITIES not in names else f"{layer.name}_{PROBABILITIES}"
    name, top = (layer.name, layer.top[1]) if len(layer.top) > 1 else (name, name)
    new = LayerParameter(name=name, type=kind, bottom=layer.bottom[:1], top=[top])
    if kind == "Softmax":
        infogain = layer.type == "InfogainLoss"
        new.softmax_param.axis = layer.infogain_loss_param.axis if infogain else layer.softmax_param.axis
    yield new


def _is_label(layer: LayerParameter, index: int) -> bool:
    """Return whether a layer's bottom holds labels or targets."""
    return _is_loss(layer) and index >= (2 if layer.type == "ContrastiveLoss" else 1)


def _label_blobs(layers: Sequence[LayerParameter]) -> set[str]:
    """Return the blobs that only losses need: labels, targets, and what is computed from nothing else.

    An input that a loss compares with, and that other layers use as well, is no label.
    """
    only: set[str] = set()
    changed = True
    while changed:
        changed = False
        for layer in layers:
            for blob in layer.top:
                uses = [
                    _is_label(user, index) or (set(user.top) <= only and not _is_loss(user))
                    for user in layers
                    for index, bottom in enumerate(user.bottom)
                    if bottom == blob and blob not in user.top
                ]
                if blob not in only and uses and all(uses):
                    only.add(blob)
                    changed = True
    # of those, keep what is computed from inputs with other uses
    for layer in layers:
        if layer.bottom and not set(layer.bottom) <= only:
            only -= set(layer.top)
    return only


def _without_unused_inputs(layers: Sequence[LayerParameter], labels: set[str]) -> list[LayerParameter]:
    """Remove the tops of Input layers that no layer uses."""
    used = {bottom for layer in layers for bottom in layer.bottom}
    kept = []
    for layer in layers:
        if layer.type == "Input":
            shapes = list(layer.input_param.shape)
            shapes *= len(layer.top) if len(shapes) == 1 else 1
            if len(shapes) != len(layer.top):
                kept.append(layer)  # the engine says what is wrong
                continue
            pairs = [(top, each) for top, each in zip(layer.top, shapes, strict=True) if top in used - labels]
            if not pairs:
                continue
            copy = LayerParameter(name=layer.name, type="Input", top=[top for top, _ in pairs])
            copy.input_param.shape.extend(each for _, each in pairs)
            layer = copy
        kept.append(layer)
    return kept
