"""Build and run a net from its prototxt: the layers of a phase, their blobs and their weights (caffe/net.cpp)."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from transfer_caffe.engine import glog, passes
from transfer_caffe.engine.layers import LAYERS, Blob, Context, Layer, Shape, data, vision
from transfer_caffe.engine.layers.neuron import ReLU
from transfer_caffe.engine.weights import array_of, copy_blob, copy_weights, to_message
from transfer_caffe.formats.nets import included, read_net, state_of
from transfer_caffe.formats.proto import blob_to_array, caffe_pb2
from transfer_caffe.formats.proto.caffe_pb2 import LayerParameter, NetParameter, NetState, ParamSpec
from transfer_caffe.formats.splits import net_in_state
from transfer_caffe.formats.upgrade import upgrade_net
from transfer_caffe.utils.errors import UserError

AUTOMATIC = "(automatic)"
"""The name of the top of a loss layer that does not name one."""


@contextlib.contextmanager
def _as_user_error(layer: Layer, bottoms: Sequence[Shape]) -> Iterator[None]:
    """Turn PyTorch's errors about a layer's bottoms (a bottom without axes, for example) into a UserError."""
    try:
        yield
    except (IndexError, RuntimeError) as error:
        shapes = ", ".join(str(list(shape)) for shape in bottoms)
        raise layer.error(f"cannot take bottoms of {shapes}: {str(error).splitlines()[0]}") from None


class Net:
    """The layers of one phase, ready to run.

    ``layers`` are in the order of the prototxt. ``learnable`` holds all blobs in order (a blob shared by name once),
    like Caffe's learnable_params. A net built with ``share`` uses the blobs of that net's layers of the same name.

    To inspect a net, `feed` it values, run `forward` with ``keep`` and `backward`; `array` and `gradient` then return
    values and gradients by blob name (``blobs`` and ``diffs`` hold the tensors). `weights` and `set_weights` get and
    set the weights as arrays.
    """

    fused_devices: ClassVar[tuple[str, ...]] = ("cuda",)
    """Types of devices on which layers are fused; tests add the CPU."""

    @classmethod
    def load(
        cls, path: str | os.PathLike[str], weights: str | os.PathLike[str] | None = None, phase: str = "TEST",
        seed: int = 1, device: str = "cpu",
    ) -> Net:  # fmt: skip
        """Build the net of a prototxt in a phase, TRAIN or TEST, with the weights of a .caffemodel or the fillers.

        ``seed`` is the seed of the fillers and of everything else that is random. Paths in the prototxt are relative
        to the current folder, as with Caffe. Raise UserError for a file that cannot be used.
        """
        phases = {"TRAIN": caffe_pb2.TRAIN, "TEST": caffe_pb2.TEST}
        if phase not in phases:
            raise ValueError(f"phase {phase!r}: TRAIN or TEST was expected")
        param = read_net(path)
        net = cls(param, state_of(param, phases[phase]), seed, torch.device(device))
        if weights is not None:
            net.copy_from(weights)
        return net

    def __init__(
        self, param: NetParameter, state: NetState, seed: int, device: torch.device, share: Net | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:  # fmt: skip
        """Build all layers; ``dtype`` as in `Context`. Raise UserError, which names the layer, for invalid settings."""
        param = upgrade_net(param, f"net {param.name!r}")  # a net inside a solver prototxt is not upgraded yet
        self.traced: bool = param.debug_info
        """Whether the net is built for `debug_info`: with the Split layers that Caffe logs, and without fusing."""
        self.debug_info: bool = param.debug_info
        """Whether passes log each layer, if there is a log; a solver switches that (`engine.debug`)."""
        if self.traced:
            param = net_in_state(param, state)
        self.name: str = param.name
        self.state = state
        self.blobs: dict[str, Tensor] = {}
        """The values of every blob after a forward pass with ``keep``."""
        self._first: dict[str, Tensor] = {}
        self._loss: Tensor | None = None
        training = state.phase == caffe_pb2.TRAIN
        context = Context(seed, device, training, param.force_backward, dtype)
        self.layers: list[Layer] = []
        self.learnable: list[Blob] = []
        self.loss_weights: list[list[tuple[str, float]]] = []
        """For each layer, the tops that contribute to the loss, with their loss weights."""
        self._makers: dict[str, Layer] = {}
        self._named: dict[str, Blob] = {}
        self.force_backward: bool = param.force_backward
        unused: set[str] = set()
        shapes: dict[str, Shape] = {}
        phase = "TRAIN" if training else "TEST"
        params = [layer for layer in param.layer if included(layer, state)]
        for layer_param in params:
            layer = self._create(layer_param, context)
            before = sum(other.name == layer.name for other in self.layers)
            if before:
                layer.key = f"{layer.name} ({before + 1})"
            for bottom in layer_param.bottom:
                if bottom not in shapes:
                    raise layer.error(f"bottom blob {bottom!r} is not a top of any earlier layer (phase {phase})")
                unused.discard(bottom)
            bottoms = [shapes[bottom] for bottom in layer_param.bottom]
            with _as_user_error(layer, bottoms):
                layer.setup(bottoms)
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
                    raise layer.error(f"top blob {top!r} is already a top of an earlier layer")
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
        passes.keep_overwritten(self.layers)
        for layer in passes.images_to_convert(self.layers, shapes.keys() - unused):
            layer.image_type = dtype
        self.cuts = {} if param.force_backward else passes.find_cuts(self.layers)
        # Caffe keeps these in a std::set, so outputs are sorted by name
        self.outputs = sorted(unused)
        counts_in_loss = [bool(each) for each in self.loss_weights]
        self.relu_after = {} if self.traced else passes.relus_to_postpone(self.layers, counts_in_loss, self.cuts)
        self.postponed = set(self.relu_after.values())
        self._fuse(counts_in_loss, device)

    def _fuse(self, counts_in_loss: Sequence[bool], device: torch.device) -> None:
        """Find layers that a GPU computes together: bias, pooling, postponed ReLU, and LRN; bias and ReLU."""
        self.fused_pools: dict[Layer, Any] = {}
        """The operation of each pooling that is computed with others."""
        self.bias_later: dict[Layer, vision.Convolution] = {}
        """For a pooling or a ReLU, the convolution whose bias it adds."""
        self.norm_after: dict[Layer, vision.LRN] = {}
        """For a pooling, the LRN that it computes."""
        self._fused: Any = None
        if self.traced or device.type not in self.fused_devices:
            return
        pools = [layer for layer in self.relu_after if isinstance(layer, vision.Pooling) and layer.can_be_fused]
        rectified = passes.biases_to_rectify(self.layers, counts_in_loss, self.cuts)
        self._fused = vision.fused_pool() if pools or rectified else None
        if self._fused is None:
            return
        self.fused_pools = dict.fromkeys(pools, self._fused)
        later = passes.biases_to_postpone(self.layers, self.relu_after, counts_in_loss)
        self.bias_later = {pool: conv for pool, conv in later.items() if pool in self.fused_pools}
        self.bias_later |= {relu: conv for relu, conv in rectified.items() if relu not in self.postponed}
        self.norm_after = passes.norms_to_join(self.layers, pools, counts_in_loss)

    def compute_apart(self) -> None:
        """From here on compute each layer on its own."""
        self.fused_pools, self.bias_later, self.norm_after = {}, {}, {}

    def _create(self, param: LayerParameter, context: Context) -> Layer:
        if param.type not in LAYERS:
            known = ", ".join(sorted(LAYERS))
            raise UserError(f"layer {param.name!r}: unknown layer type {param.type!r}; known: {known}")
        if param.HasField("phase"):
            context = dataclasses.replace(context, training=param.phase == caffe_pb2.TRAIN)
        return LAYERS[param.type](param, context)

    def _start_from(self, layer: Layer) -> None:
        """Initialise a layer from the ``blobs`` in its prototxt, if there are any, instead of from the fillers."""
        given = layer.param.blobs
        if given and len(given) != len(layer.blobs):
            raise layer.error(f"its prototxt has {len(given)} blobs, but the layer has {len(layer.blobs)}")
        for index, (blob, stored) in enumerate(zip(layer.blobs, given, strict=False)):
            where = f"layer {layer.name!r}, blob {index} in the prototxt"
            copy_blob(blob, blob_to_array(stored, where), not stored.HasField("shape"), where)

    def _share_by_name(self, layer: Layer) -> None:
        """Let blobs with the same name in ``param {}`` share the blob of the first such layer (Net::AppendParam)."""
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
                    raise layer.error(f"blob {index} shares {spec.name!r}, which has a different {what}")
                # a multiplier that the first layer does not set is taken from the first layer that sets it
                setattr(blob, what, getattr(spec, what))
                blob.given = tuple(given or place == i for i, given in enumerate(blob.given))
            blob.learned = blob.lr_mult != 0
            blob.data.requires_grad_(blob.learned or self.force_backward)
            layer.blobs[index] = blob if own.data.shape == blob.data.shape else blob.seen_as(tuple(own.data.shape))
        for blob in layer.blobs:
            if blob.owner is None and not any(blob is other for other in self.learnable):
                self.learnable.append(blob)

    def _blobs_for(self, layer: Layer) -> list[Blob]:
        """Return the blobs that a layer of another net shares with this net (Net::ShareTrainedLayersWith)."""
        own = next((own for own in self.layers if own.key == layer.key), None)
        if own is None:
            return layer.blobs
        if [blob.data.shape for blob in own.blobs] != [blob.data.shape for blob in layer.blobs]:
            raise layer.error("the shapes of its blobs differ between the training net and the test net")
        return own.blobs

    def _check_labels(self, layer: Layer) -> None:
        """Let the data layer reject labels that are out of this layer's range: real Caffe would read out of bounds."""
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
            raise layer.error(f"has {len(given)} loss_weight for {len(layer.top)} tops")
        weights = given or ([1.0] if layer.is_loss else [])
        return [(top, weight) for top, weight in zip(layer.top, weights, strict=False) if weight]

    def loss_weight(self, blob: str) -> float:
        """Return the loss weight of an output blob; 0 for one that does not contribute to the loss."""
        return next((weight for weights in self.loss_weights for top, weight in weights if top == blob), 0.0)

    @property
    def has_loss(self) -> bool:
        """Whether any blob contributes to the loss."""
        return any(self.loss_weights)

    def feed(self, values: Mapping[str, np.ndarray]) -> None:
        """Set the tops of Input and MemoryData layers, by blob name, to arrays of the blobs' shapes."""
        for layer in self.layers:
            own = {name: np.asarray(values[name]) for name in layer.top if name in values}
            if own and not layer.param.bottom:
                layer.feed(own)
        if unknown := set(values) - {name for layer in self.layers if not layer.param.bottom for name in layer.top}:
            raise UserError(f"net {self.name!r}: {sorted(unknown)[0]!r} is not an input blob")

    def forward(self, batch: int = 0, keep: bool = False) -> tuple[Tensor, dict[str, Tensor]]:
        """Run all layers on batch number ``batch`` and return the loss (a scalar) and the output blobs by name.

        With ``keep``, all blobs are kept in ``blobs``, and `backward` computes their gradients.
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
            tops = self._run(layer, layer.cast(bottoms), batch, fuse=not keep)
            if not keep and layer not in self.fused_pools and (relu := self.relu_after.get(layer)):
                tops = relu.forward(tops, batch)
            if self.force_backward and not bottoms and not layer.blobs:
                tops = [top.detach().requires_grad_() for top in tops]
            if keep:
                # a top that is the same tensor as its bottom still needs a separate gradient
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

    def _run(self, layer: Layer, bottoms: list[Tensor], batch: int, fuse: bool) -> list[Tensor]:
        """Return a layer's tops; with ``fuse``, layers may be computed together (`_fuse`)."""
        if fuse and layer in self.fused_pools and isinstance(layer, vision.Pooling):
            convolution, norm = self.bias_later.get(layer), self.norm_after.get(layer)
            bias = convolution.blobs[1].data if convolution else None
            return [layer.fused(self.fused_pools[layer], bottoms[0], bias, True, norm.settings if norm else None)]
        if fuse and isinstance(layer, ReLU) and (convolution := self.bias_later.get(layer)):
            return [vision.rectified(self._fused, bottoms[0], convolution.blobs[1].data)]
        if fuse and isinstance(layer, vision.Convolution) and layer in self.bias_later.values():
            return layer.without_bias(bottoms)
        if fuse and isinstance(layer, vision.LRN) and layer in self.norm_after.values():
            return bottoms  # the pooling has already normalised them
        return layer.forward(bottoms, batch)

    def backward(self, diffs: Mapping[str, np.ndarray] | None = None) -> None:
        """Compute the gradients of all blobs and weights, after a forward pass with ``keep``.

        They are gradients of the loss, or start from ``diffs``, gradients of tops by name in the tops' shapes. The
        weights' gradients are zeroed first.
        """
        for blob in self.learnable:
            blob.leaf.grad = None
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
        """The gradient of each blob after `backward`; None where there is none.

        For a blob that layers change in place, this is the gradient below the first of them, as in Caffe's buffers.
        """
        return {name: blob.grad if blob.requires_grad else None for name, blob in self._first.items()}

    def array(self, blob: str) -> np.ndarray:
        """Return a copy of a blob's values, float32 in the blob's shape, after a forward pass with ``keep``."""
        return self.blobs[blob].detach().float().cpu().numpy().copy()

    def gradient(self, blob: str) -> np.ndarray | None:
        """Return a copy of a blob's gradient after `backward`; None if the blob gets no gradient."""
        diff = self.diffs[blob]
        return None if diff is None else diff.float().cpu().numpy().copy()

    @property
    def weights(self) -> dict[str, list[np.ndarray]]:
        """Copies of the weights of each layer that has any, by layer name, in Caffe's shapes and order.

        The second layer of a name is called "NAME (2)".
        """
        return {
            layer.key: [blob.data.detach().cpu().numpy().copy() for blob in layer.blobs]
            for layer in self.layers
            if layer.blobs
        }

    def set_weights(self, weights: Mapping[str, Sequence[np.ndarray]]) -> None:
        """Set the weights of the named layers; other layers keep theirs.

        Raise UserError for an unknown layer, a wrong number of blobs, a shape mismatch, or values that are not finite.
        """
        own = {layer.key: layer for layer in self.layers if layer.blobs}
        checked: list[tuple[Blob, np.ndarray, str]] = []
        for name, arrays in weights.items():
            if name not in own:
                raise UserError(f"net {self.name!r} has no layer {name!r} with weights; it has {', '.join(own)}")
            if len(arrays) != len(own[name].blobs):
                raise own[name].error(f"has {len(own[name].blobs)} blobs, not {len(arrays)}")
            for index, (blob, given) in enumerate(zip(own[name].blobs, arrays, strict=True)):
                array, where = np.asarray(given, np.float32), f"layer {name!r}, blob {index}"
                if array.shape != tuple(blob.data.shape):
                    raise UserError(
                        f"{where}: shape mismatch: {list(array.shape)} given, {list(blob.data.shape)} needed"
                    )
                if not np.isfinite(array).all():
                    raise UserError(f"{where}: the given values are not finite")
                checked.append((blob, array, where))
        for blob, array, where in checked:  # all or nothing
            copy_blob(blob, array, False, where)

    def copy_from(self, path: str | os.PathLike[str]) -> list[str]:
        """Copy the blobs of a .caffemodel into the layers of the same name and return these layers' names.

        Raise the errors of `engine.weights.copy_weights`.
        """
        return copy_weights(self.name, self.layers, path)

    def to_proto(self, array: Callable[[Tensor], np.ndarray] = array_of) -> NetParameter:
        """Return the net with its weights as the message of a .caffemodel (Net::ToProto).

        ``array`` returns the values of a weight's tensor.
        """
        return to_message(self.name, self.layers, self.state.phase, array)
