"""A net built from its prototxt: which layers a phase has, how they connect, what they learn (caffe/net.cpp)."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from transfer_caffe.engine import glog
from transfer_caffe.engine.layers import LAYERS, Blob, Buffer, Context, Layer, Shape, data
from transfer_caffe.engine.layers.neuron import Neuron, ReLU
from transfer_caffe.engine.layers.vision import LRN, Pooling
from transfer_caffe.formats import hdf5
from transfer_caffe.formats.nets import included
from transfer_caffe.formats.proto import array_to_blob, blob_to_array, caffe_pb2, read_binary
from transfer_caffe.formats.proto.caffe_pb2 import LayerParameter, NetParameter, NetState, ParamSpec
from transfer_caffe.formats.upgrade import upgrade_net
from transfer_caffe.utils.errors import UserError

Stored = tuple[np.ndarray, bool]
"""A blob in a weights file, and whether its shape is in the form of before 2015."""

AUTOMATIC = "(automatic)"
"""The name of the top of a loss that names none."""


@contextlib.contextmanager
def _as_user_error(layer: Layer, bottoms: Sequence[Shape]) -> Iterator[None]:
    """Bottoms that a layer cannot work on at all (without axes, say): an error that names it, not PyTorch's."""
    try:
        yield
    except (IndexError, RuntimeError) as error:
        shapes = ", ".join(str(list(shape)) for shape in bottoms)
        raise layer.error(f"cannot take bottoms of {shapes}: {str(error).splitlines()[0]}") from None


class Net:
    """The layers of one phase, ready to run.

    ``layers`` are in the order of the prototxt; ``learnable`` are all blobs once, in order (a blob shared by name
    counts once), as Caffe's learnable_params. A net made with ``share`` uses that net's blobs by layer name.

    To look inside: `feed` values, `forward` with ``keep``, `backward`, then read ``blobs`` and ``diffs`` by name.
    """

    def __init__(
        self, param: NetParameter, state: NetState, seed: int, device: torch.device, share: Net | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:  # fmt: skip
        """Build all layers; bad settings are UserErrors that name the layer. ``dtype`` as in `Context`."""
        param = upgrade_net(param, f"net {param.name!r}")  # the nets inside a solver come as they are written
        self.name: str = param.name
        self.state = state
        self.blobs: dict[str, Tensor] = {}
        """Every blob's values after a forward pass with ``keep``."""
        self._first: dict[str, Tensor] = {}
        self._loss: Tensor | None = None
        training = state.phase == caffe_pb2.TRAIN
        context = Context(seed, device, training, param.force_backward, dtype)
        self.layers: list[Layer] = []
        self.learnable: list[Blob] = []
        self.loss_weights: list[list[tuple[str, float]]] = []
        """Of each layer the tops that count in the loss, with their weights."""
        self._makers: dict[str, Layer] = {}
        self._named: dict[str, Blob] = {}
        self.force_backward: bool = param.force_backward
        unused: set[str] = set()
        shapes: dict[str, Shape] = {}
        phase = "TRAIN" if training else "TEST"
        params = [layer for layer in param.layer if included(layer, state)]
        names = [layer.name for layer in params]
        for layer_param in params:
            layer = self._create(layer_param, context)
            before = sum(other.name == layer.name for other in self.layers)
            if before:
                layer.key = f"{layer.name} ({before + 1})"
            for bottom in layer_param.bottom:
                if bottom not in shapes:
                    raise layer.error(f"bottom blob {bottom!r} is not made by any layer before it (phase {phase})")
                unused.discard(bottom)
            bottoms = [shapes[bottom] for bottom in layer_param.bottom]
            with _as_user_error(layer, bottoms):
                layer.setup(bottoms)
            if layer.blobs and names.count(layer.name) > 1:
                # a weights file finds blobs by the layer's name: real Caffe copies them all into the first one
                raise UserError(f"net {self.name!r} ({phase}): two layers are named {layer.name!r}, one with weights")
            self._start_from(layer)
            if share:
                layer.blobs = share._blobs_for(layer)
            else:
                self._share_by_name(layer)
            self._check_labels(layer)
            with _as_user_error(layer, bottoms):
                tops = layer.top_shapes(bottoms)
            for top, shape in zip(layer.top, tops, strict=True):
                if top in shapes and top not in layer_param.bottom and top != AUTOMATIC:
                    raise layer.error(f"top blob {top!r} is made by an earlier layer already")
                shapes[top] = shape
                self._makers[top] = layer
                if top != AUTOMATIC:
                    unused.add(top)
                glog.info("net.cpp:129", f"{layer.name} -> {top}: {' '.join(map(str, shape))}")
            self.loss_weights.append(self._loss_weights(layer))
            self.layers.append(layer)
        if not self.layers:
            raise UserError(f"net {self.name!r} has no layers in phase {phase}")
        self.shapes = shapes
        self._find_overwritten()
        self.cuts = {} if param.force_backward else self._find_cuts()
        # Caffe keeps these in a std::set: outputs are listed by name
        self.outputs = sorted(unused)
        self.relu_after = self._find_relus_to_postpone()
        self.postponed = set(self.relu_after.values())

    def _find_overwritten(self) -> None:
        """Give a buffer to each layer whose backward pass reads, in Caffe, what a later layer has overwritten."""
        last = {layer.top[0]: layer for layer in self.layers if layer.top}
        for layer in self.layers:
            if isinstance(layer, Neuron | LRN) and (
                last[layer.top[0]] is not layer
                or (isinstance(layer, Neuron) and layer.in_place and not layer.keeps_slope_in_place)
            ):
                layer.buffer = Buffer()

    def _find_relus_to_postpone(self) -> dict[Layer, ReLU]:
        """Of MAX poolings that alone see what a ReLU in place has left: the ReLU, which can as well work on their top.

        The maximum of what is cut off at 0 is the maximum cut off at 0, and its gradient goes to the same place or
        nowhere. A top has a quarter of the values: 4% of an iteration of conv 16-32-48-48-32 on 28 x 28, 1% of
        CaffeNet's (CPU).
        """
        found: dict[Layer, ReLU] = {}
        for index, relu in enumerate(self.layers):
            if not isinstance(relu, ReLU) or not relu.in_place or relu.param.relu_param.negative_slope:
                continue
            if self.loss_weights[index]:  # it counts in the loss itself
                continue
            blob = relu.top[0]
            users = [layer for layer in self.layers[index + 1 :] if blob in layer.param.bottom]
            buffered = any(layer.buffer is not None and layer.top[0] == blob for layer in self.layers)
            if len(users) != 1 or buffered or any(self.cuts.get(layer) for layer in (relu, users[0])):
                continue
            if isinstance(users[0], Pooling) and users[0].is_plain_maximum:
                found[users[0]] = relu
        return found

    def _find_cuts(self) -> dict[Layer, set[int]]:
        """The bottoms, by number, through which a layer passes no gradient back: propagate_down is false.

        Some layers of real Caffe pass it all the same, and it counts where another layer uses the blob as well.
        """
        cuts = {
            layer: {index for index, down in enumerate(layer.param.propagate_down) if not down} for layer in self.layers
        }
        open_blobs = {
            blob for layer in self.layers for index, blob in enumerate(layer.param.bottom) if index not in cuts[layer]
        }
        for layer, cut in cuts.items():
            if layer.ignores_propagate_down and not layer.in_place:
                cut -= {index for index in cut if layer.param.bottom[index] in open_blobs}
        return cuts

    def _create(self, param: LayerParameter, context: Context) -> Layer:
        if param.type not in LAYERS:
            known = ", ".join(sorted(LAYERS))
            raise UserError(f"layer {param.name!r}: unknown layer type {param.type!r}; known: {known}")
        if param.HasField("phase"):
            context = dataclasses.replace(context, training=param.phase == caffe_pb2.TRAIN)
        return LAYERS[param.type](param, context)

    def _start_from(self, layer: Layer) -> None:
        """Let a layer start from the ``blobs`` that its prototxt holds, if it does, rather than from the fillers."""
        given = layer.param.blobs
        if given and len(given) != len(layer.blobs):
            raise layer.error(f"its prototxt gives {len(given)} blobs; it has {len(layer.blobs)}")
        for index, (blob, stored) in enumerate(zip(layer.blobs, given, strict=False)):
            where = f"layer {layer.name!r}, blob {index} in the prototxt"
            self._copy_blob(blob, blob_to_array(stored, where), not stored.HasField("shape"), where)

    def _share_by_name(self, layer: Layer) -> None:
        """Let blobs of one name in ``param {}`` be one blob, the first layer's (Net::AppendParam)."""
        for index, spec in enumerate(layer.param.param[: len(layer.blobs)]):
            if not spec.name:
                continue
            own, blob = layer.blobs[index], self._named.setdefault(spec.name, layer.blobs[index])
            if blob is own:
                own.given = spec.HasField("lr_mult"), spec.HasField("decay_mult")
                continue
            permissive = spec.share_mode == ParamSpec.PERMISSIVE
            if own.data.numel() != blob.data.numel() or (own.data.shape != blob.data.shape and not permissive):
                raise layer.error(
                    f"blob {index} shares {spec.name!r}, whose shape is {list(blob.data.shape)}, "
                    f"not {list(own.data.shape)}"
                )
            for place, what in enumerate(("lr_mult", "decay_mult")):
                if not spec.HasField(what):
                    continue
                if blob.given[place] and getattr(blob, what) != getattr(spec, what):
                    raise layer.error(f"blob {index} shares {spec.name!r}, which has another {what}")
                # a multiplier that the first layer leaves open is the first that one gives
                setattr(blob, what, getattr(spec, what))
                blob.given = tuple(given or place == i for i, given in enumerate(blob.given))
            blob.learned = blob.lr_mult != 0
            blob.data.requires_grad_(blob.learned or self.force_backward)
            layer.blobs[index] = blob if own.data.shape == blob.data.shape else blob.seen_as(tuple(own.data.shape))
        for blob in layer.blobs:
            if blob.owner is None and not any(blob is other for other in self.learnable):
                self.learnable.append(blob)

    def _blobs_for(self, layer: Layer) -> list[Blob]:
        """The blobs that a layer of another net over the same weights shall use (Net::ShareTrainedLayersWith)."""
        own = next((own for own in self.layers if own.name == layer.name), None)
        if own is None:
            return layer.blobs
        if [blob.data.shape for blob in own.blobs] != [blob.data.shape for blob in layer.blobs]:
            raise layer.error("its blobs have other shapes in the training net than in the test net")
        return own.blobs

    def _check_labels(self, layer: Layer) -> None:
        """Let the layer that reads refuse labels that this one cannot use: real Caffe reads past the end instead."""
        classes, ignore = getattr(layer, "classes", 0), getattr(layer, "ignore", None)
        if layer.label_bottom is None or not classes:
            return
        maker = self._makers[layer.param.bottom[layer.label_bottom]]
        if isinstance(maker, data.Images) and ignore is None:
            maker.limit_labels(classes, layer.name)
            layer.check_labels = False

    def _loss_weights(self, layer: Layer) -> list[tuple[str, float]]:
        given = list(layer.param.loss_weight)
        if given and len(given) != len(layer.top):
            raise layer.error(f"gives {len(given)} loss_weight for {len(layer.top)} tops")
        weights = given or ([1.0] if layer.is_loss else [])
        return [(top, weight) for top, weight in zip(layer.top, weights, strict=False) if weight]

    def loss_weight(self, blob: str) -> float:
        """The weight of an output blob in the loss; 0 for one that is no loss."""
        return next((weight for weights in self.loss_weights for top, weight in weights if top == blob), 0.0)

    @property
    def has_loss(self) -> bool:
        """Whether any blob counts in the loss."""
        return any(self.loss_weights)

    def feed(self, values: Mapping[str, np.ndarray]) -> None:
        """Set tops of Input and MemoryData layers, by blob name: arrays in the blobs' shapes."""
        for layer in self.layers:
            own = {name: np.asarray(values[name]) for name in layer.top if name in values}
            if own and not layer.param.bottom:
                layer.feed(own)
        if unknown := set(values) - {name for layer in self.layers if not layer.param.bottom for name in layer.top}:
            raise UserError(f"net {self.name!r}: {sorted(unknown)[0]!r} is not a blob that can be fed")

    def forward(self, batch: int, keep: bool = False) -> tuple[Tensor, dict[str, Tensor]]:
        """Run all layers on batch number ``batch``; gives the loss (one value) and the output blobs by name.

        ``keep`` leaves all blobs in ``blobs``, and lets `backward` find their gradients.
        """
        blobs: dict[str, Tensor] = {}
        first: dict[str, Tensor] = {}
        loss: Tensor | None = None
        for layer, weights in zip(self.layers, self.loss_weights, strict=True):
            if layer in self.postponed and not keep:
                continue
            bottoms = [blobs[bottom] for bottom in layer.param.bottom]
            if cut := self.cuts.get(layer):
                bottoms = [bottom.detach() if index in cut else bottom for index, bottom in enumerate(bottoms)]
            tops = layer.forward(layer.cast(bottoms), batch)
            if not keep and (relu := self.relu_after.get(layer)):
                tops = relu.forward(tops, batch)
            if self.force_backward and not bottoms and not layer.blobs:
                tops = [top.detach().requires_grad_() for top in tops]
            if keep:
                # a top that is its bottom unchanged has a gradient of its own all the same
                tops = [top.view_as(top) if any(top is bottom for bottom in bottoms) else top for top in tops]
                for name, top in zip(layer.top, tops, strict=True):
                    if name not in first:
                        first[name] = top
                        if top.requires_grad:
                            top.retain_grad()
            blobs.update(zip(layer.top, tops, strict=True))
            for top, weight in weights:
                term = blobs[top].sum(dtype=torch.float32)
                term = term if weight == 1 else term * weight
                loss = term if loss is None else loss + term
        for layer in self.layers:
            if layer.buffer is not None:
                layer.buffer.content = blobs[layer.top[0]].detach()
        if keep:
            self.blobs, self._first, self._loss = blobs, first, loss
        outputs = {name: blobs[name].float() for name in self.outputs}
        return (torch.zeros((), device=self.layers[0].context.device) if loss is None else loss), outputs

    def backward(self, diffs: Mapping[str, np.ndarray] | None = None) -> None:
        """Gradients of all blobs and weights, after a forward pass with ``keep``: of the loss, or of given ``diffs``.

        ``diffs`` are the gradients of tops by name, in their shapes. Weights' gradients start at zero.
        """
        for blob in self.learnable:
            blob.data.grad = None
        if diffs is None:
            if self._loss is not None and self._loss.requires_grad:
                self._loss.backward()
            return
        wanted = {
            name: torch.tensor(np.asarray(diff), dtype=torch.float32, device=self.blobs[name].device)
            for name, diff in diffs.items()
            if self.blobs[name].requires_grad
        }
        if wanted:
            torch.autograd.backward([self.blobs[name] for name in wanted], list(wanted.values()))

    @property
    def diffs(self) -> dict[str, Tensor | None]:
        """The gradient of each blob after `backward`, None where there is none.

        Of a blob that layers change in place it is the gradient before the first of them, as in Caffe's buffers.
        """
        return {name: blob.grad if blob.requires_grad else None for name, blob in self._first.items()}

    def copy_from(self, path: str | os.PathLike[str]) -> list[str]:
        """Copy the blobs of a .caffemodel into the layers of the same name; gives these layers' names.

        As Net::CopyTrainedLayersFrom, but a file of which nothing fits, which real Caffe takes for a start from
        scratch, is an error here; so are values that are not finite.
        """
        path = os.fspath(path)
        layers = self._read_hdf5(path) if path.endswith(".h5") else self._read_binary(path)
        own = {layer.name: layer for layer in self.layers}
        copied = []
        for name, blobs in layers:
            target = own.get(name)
            if target is None:
                glog.info("net.cpp:746", f"Ignoring source layer {name}")
                continue
            if len(blobs) != len(target.blobs):
                raise target.error(f"{path} has {len(blobs)} blobs for it, the net {len(target.blobs)}")
            for index, (blob, stored) in enumerate(zip(target.blobs, blobs, strict=True)):
                if stored is not None:
                    self._copy_blob(blob, *stored, f"{path}: layer {name!r}, blob {index}")
            if target.blobs:
                copied.append(name)
        if not copied:
            names = ", ".join(name for name, _ in layers) or "no layers"
            raise UserError(f"{path}: no layer in it has the name of a layer of the net {self.name!r}; it has {names}")
        return copied

    @staticmethod
    def _read_binary(path: str) -> list[tuple[str, list[Stored | None]]]:
        param = upgrade_net(read_binary(path, NetParameter()), path)
        return [
            (
                layer.name,
                [
                    (blob_to_array(blob, f"{path}: layer {layer.name!r}, blob {index}"), not blob.HasField("shape"))
                    for index, blob in enumerate(layer.blobs)
                ],
            )
            for layer in param.layer
        ]

    def _read_hdf5(self, path: str) -> list[tuple[str, list[Stored | None]]]:
        """As `_read_binary`; None is a blob that another layer owns, and that stands there."""
        layers = []
        for name, blobs in hdf5.read_weights(path).items():
            layer = next((layer for layer in self.layers if layer.name == name), None)
            count = len(layer.blobs) if layer else len(blobs)
            for index in set(range(count)) - set(blobs):
                if layer is None or (index in self._owned(layer) and blobs):
                    raise UserError(f"{path}: layer {name!r} has no blob {index}: it is of another net, or damaged")
            if blobs or not count:
                layers.append(
                    (name, [(blobs[i], False) if i in blobs else None for i in range(max(count, len(blobs)))])
                )
        return layers

    def _owned(self, layer: Layer) -> list[int]:
        """The blobs of a layer, by index, that no layer before it has as well."""
        before = [blob for other in self.layers[: self.layers.index(layer)] for blob in other.blobs]
        return [
            index
            for index, blob in enumerate(layer.blobs)
            if blob.owner is None and not any(blob is other for other in before)
        ]

    def owned_weights(self) -> list[tuple[str, dict[int, np.ndarray]]]:
        """Of each layer the blobs that it owns, by index: a blob that layers share is the first one's."""
        return [
            (layer.name, {index: layer.blobs[index].data.detach().cpu().numpy() for index in self._owned(layer)})
            for layer in self.layers
        ]

    @staticmethod
    def _copy_blob(blob: Blob, values: np.ndarray, old: bool, where: str) -> None:
        shape = tuple(blob.data.shape)
        # files from before 2015 give every blob four axes, the leading ones 1 (Blob::ShapeEquals)
        legacy = old and values.shape == (1,) * (4 - len(shape)) + shape
        if values.shape != shape and not legacy:
            raise UserError(
                f"{where}: cannot copy: shape mismatch: the file has {list(values.shape)}, "
                f"the net {list(shape)}; to learn this layer from scratch, rename it"
            )
        weights = torch.from_numpy(values.reshape(shape).copy())
        if not torch.isfinite(weights).all():
            raise UserError(f"{where}: holds values that are not finite numbers; the file is damaged")
        with torch.no_grad():
            blob.data.copy_(weights)

    def to_proto(self) -> NetParameter:
        """The net with its weights, as a .caffemodel holds it (Net::ToProto)."""
        param = NetParameter(name=self.name)
        for layer in self.layers:
            copy = param.layer.add()
            copy.CopyFrom(layer.param)
            copy.ClearField("blobs")
            if not copy.HasField("phase"):
                copy.phase = self.state.phase
            copy.blobs.extend(array_to_blob(blob.data.detach().cpu().numpy()) for blob in layer.blobs)
        return param
