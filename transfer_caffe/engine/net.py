"""A net built from its prototxt: which layers a phase has, how they connect, what they learn (caffe/net.cpp)."""

from __future__ import annotations

import os

import torch
from torch import Tensor

from transfer_caffe.engine import data, glog
from transfer_caffe.engine.layers import LAYERS, Blob, Context, Layer, Shape
from transfer_caffe.errors import UserError
from transfer_caffe.proto import array_to_blob, blob_shape, blob_to_array, caffe_pb2, read_binary, read_text
from transfer_caffe.proto.caffe_pb2 import LayerParameter, NetParameter, NetState, NetStateRule
from transfer_caffe.upgrade import upgrade_net


def read_net(path: str | os.PathLike[str]) -> NetParameter:
    """Read a net prototxt; what Caffe before 2015 wrote is upgraded as Caffe does on reading."""
    return upgrade_net(read_text(path, NetParameter()), os.fspath(path))


def included(layer: LayerParameter, state: NetState) -> bool:
    """Whether a layer belongs to the net in this state: its include or exclude rules decide (Net::FilterNet)."""
    if layer.include and layer.exclude:
        raise UserError(f"layer {layer.name!r}: give include rules or exclude rules, not both")
    if layer.include:
        return any(_meets(rule, state) for rule in layer.include)
    return not any(_meets(rule, state) for rule in layer.exclude)


def _meets(rule: NetStateRule, state: NetState) -> bool:
    if rule.HasField("phase") and rule.phase != state.phase:
        return False
    if rule.HasField("min_level") and state.level < rule.min_level:
        return False
    if rule.HasField("max_level") and state.level > rule.max_level:
        return False
    return set(rule.stage) <= set(state.stage) and not set(rule.not_stage) & set(state.stage)


AUTOMATIC = "(automatic)"  # Caffe's name for the blob of a loss layer that names none


def _with_top(param: LayerParameter) -> LayerParameter:
    """A loss layer without a top, as was usual before 2014, with one; it is no output (Layer::AutoTopBlobs)."""
    kind = LAYERS.get(param.type)
    if kind is None or not kind.is_loss or param.top:
        return param
    with_top = LayerParameter()
    with_top.CopyFrom(param)
    with_top.top.append(f"{AUTOMATIC} {param.name}")
    return with_top


class Net:
    """The layers of one phase, ready to run.

    ``layers`` are in the order of the prototxt; ``learnable`` are all blobs once, in order (a blob shared by name
    counts once), as Caffe's learnable_params. A net made with ``share`` uses that net's blobs by layer name.
    """

    def __init__(
        self, param: NetParameter, state: NetState, seed: int, device: torch.device, share: Net | None = None
    ) -> None:
        """Build all layers; bad settings are UserErrors that name the layer."""
        param = upgrade_net(param, f"net {param.name!r}")  # the nets inside a solver come as they are written
        self.name: str = param.name
        self.state = state
        training = state.phase == caffe_pb2.TRAIN
        context = Context(seed, device, training)
        self.layers: list[Layer] = []
        self.learnable: list[Blob] = []
        self._weights: list[list[tuple[str, float]]] = []
        self._makers: dict[str, Layer] = {}
        self._named: dict[str, Blob] = {}
        unused: set[str] = set()
        shapes: dict[str, Shape] = {}
        phase = "TRAIN" if training else "TEST"
        params = [_with_top(layer) for layer in param.layer if included(layer, state)]
        names = [layer.name for layer in params]
        for layer_param in params:
            if names.count(layer_param.name) > 1:
                raise UserError(f"net {self.name!r} ({phase}): two layers are named {layer_param.name!r}")
            layer = self._create(layer_param, context)
            for bottom in layer_param.bottom:
                if bottom not in shapes:
                    raise layer.error(f"bottom blob {bottom!r} is not made by any layer before it (phase {phase})")
                unused.discard(bottom)
            layer.setup([shapes[bottom] for bottom in layer_param.bottom])
            if share:
                layer.blobs = share._blobs_for(layer)
            else:
                self._share_by_name(layer)
            for top, shape in zip(layer_param.top, self._top_shapes(layer, shapes), strict=True):
                if top in shapes and top not in layer_param.bottom:
                    raise layer.error(f"top blob {top!r} is made by an earlier layer already")
                shapes[top] = shape
                unused.add(top)
                self._makers[top] = layer
                glog.info("net.cpp:129", f"{layer.name} -> {top}: {' '.join(map(str, shape))}")
            self._check_labels(layer)
            self._weights.append(self._loss_weights(layer))
            self.layers.append(layer)
        if not self.layers:
            raise UserError(f"net {self.name!r} has no layers in phase {phase}")
        self.shapes = shapes
        # Caffe keeps these in a std::set: outputs are listed by name
        self.outputs = sorted(name for name in unused if not name.startswith(AUTOMATIC))

    def _create(self, param: LayerParameter, context: Context) -> Layer:
        if param.type not in LAYERS:
            raise UserError(f"layer {param.name!r}: unknown layer type {param.type!r}; known: {', '.join(LAYERS)}")
        return LAYERS[param.type](param, context)

    def _top_shapes(self, layer: Layer, shapes: dict[str, Shape]) -> list[Shape]:
        if isinstance(layer, data.Data):
            return layer.top_shapes()
        # a run on the meta device computes shapes without computing values
        blobs = layer.blobs
        layer.blobs = [Blob(blob.data.detach().to("meta"), 0, 0, False) for blob in blobs]
        try:
            with torch.no_grad():
                bottoms = [torch.empty(shapes[bottom], device="meta") for bottom in layer.param.bottom]
                return [tuple(top.shape) for top in layer.forward(bottoms, 0)]
        finally:
            layer.blobs = blobs

    def _share_by_name(self, layer: Layer) -> None:
        for index, spec in enumerate(layer.param.param[: len(layer.blobs)]):
            if not spec.name:
                continue
            blob = self._named.setdefault(spec.name, layer.blobs[index])
            if blob.data.shape != layer.blobs[index].data.shape:
                raise layer.error(
                    f"blob {index} shares {spec.name!r}, whose shape is {list(blob.data.shape)}, "
                    f"not {list(layer.blobs[index].data.shape)}"
                )
            layer.blobs[index] = blob
        for blob in layer.blobs:
            if not any(blob is other for other in self.learnable):
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
        """Let the data layer refuse labels that this layer cannot use: real Caffe reads past the end instead."""
        if not layer.takes_labels:
            return
        maker = self._makers[layer.param.bottom[1]]
        ignore = getattr(layer, "ignore", None)
        if isinstance(maker, data.Data) and ignore is None:
            maker.limit_labels(getattr(layer, "classes", 0), layer.name)

    def _loss_weights(self, layer: Layer) -> list[tuple[str, float]]:
        given = list(layer.param.loss_weight)
        if given and len(given) != len(layer.param.top):
            raise layer.error(f"gives {len(given)} loss_weight for {len(layer.param.top)} tops")
        weights = given or ([1.0] if layer.is_loss else [])
        return [(top, weight) for top, weight in zip(layer.param.top, weights, strict=False) if weight]

    def loss_weight(self, blob: str) -> float:
        """The weight of an output blob in the loss; 0 for one that is no loss."""
        return next((weight for weights in self._weights for top, weight in weights if top == blob), 0.0)

    def forward(self, batch: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Run all layers on batch number ``batch``; gives the loss (one value) and the output blobs by name."""
        blobs: dict[str, Tensor] = {}
        loss: Tensor | None = None
        for layer, weights in zip(self.layers, self._weights, strict=True):
            tops = layer.forward([blobs[bottom] for bottom in layer.param.bottom], batch)
            blobs.update(zip(layer.param.top, tops, strict=True))
            for top, weight in weights:
                term = blobs[top].sum() if weight == 1 else blobs[top].sum() * weight
                loss = term if loss is None else loss + term
        outputs = {name: blobs[name] for name in self.outputs}
        return (torch.zeros((), device=self.layers[0].context.device) if loss is None else loss), outputs

    def copy_from(self, path: str | os.PathLike[str]) -> list[str]:
        """Copy the blobs of a .caffemodel into the layers of the same name; gives these layers' names.

        As Net::CopyTrainedLayersFrom, but a file of which nothing fits, which real Caffe takes for a start from
        scratch, is an error here; so are values that are not finite.
        """
        path = os.fspath(path)
        param = upgrade_net(read_binary(path, NetParameter()), path)
        own = {layer.name: layer for layer in self.layers}
        copied = []
        for source in param.layer:
            target = own.get(source.name)
            if target is None:
                glog.info("net.cpp:746", f"Ignoring source layer {source.name}")
                continue
            if len(source.blobs) != len(target.blobs):
                raise target.error(f"{path} has {len(source.blobs)} blobs for it, the net {len(target.blobs)}")
            for index, (blob, stored) in enumerate(zip(target.blobs, source.blobs, strict=True)):
                self._copy_blob(target, blob, stored, f"{path}: layer {source.name!r}, blob {index}")
            if target.blobs:
                copied.append(source.name)
        if not copied:
            names = ", ".join(layer.name for layer in param.layer) or "no layers"
            raise UserError(f"{path}: no layer in it has the name of a layer of the net {self.name!r}; it has {names}")
        return copied

    @staticmethod
    def _copy_blob(layer: Layer, blob: Blob, stored: caffe_pb2.BlobProto, where: str) -> None:
        values, shape = blob_to_array(stored, where), tuple(blob.data.shape)
        # files from before 2015 give every blob four axes, the leading ones 1 (Blob::ShapeEquals)
        legacy = not stored.HasField("shape") and blob_shape(stored) == (1,) * (4 - len(shape)) + shape
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
            if any(top.startswith(AUTOMATIC) for top in copy.top):
                copy.ClearField("top")
            copy.phase = self.state.phase
            copy.blobs.extend(array_to_blob(blob.data.detach().cpu().numpy()) for blob in layer.blobs)
        return param
