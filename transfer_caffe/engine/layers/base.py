"""The base class of layers: it is set up from its settings and bottom shapes, and computes its tops once per batch.

Gradients come from autograd. A layer has its own autograd function where Caffe's gradient is not the derivative of its
forward formula, or where PyTorch has no operation for it or only a slow one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from transfer_caffe.engine import rng
from transfer_caffe.engine.layers.fillers import fill
from transfer_caffe.formats import shapes
from transfer_caffe.formats.proto.caffe_pb2 import FillerParameter, LayerParameter
from transfer_caffe.utils.errors import UserError

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Context:
    """Settings that all layers of a net share: the seed, the device, the phase, and whether all gradients are computed.

    ``dtype`` is the precision of layers that do not require float32 (`Layer.precision`).
    """

    seed: int
    device: torch.device
    training: bool
    force_backward: bool = False
    dtype: torch.dtype = torch.float32


class Blob:
    """A learnable blob: its values, Caffe's multipliers (lr_mult, decay_mult), and whether it is learned."""

    def __init__(self, data: Tensor, lr_mult: float = 1.0, decay_mult: float = 1.0, owner: Blob | None = None) -> None:
        """Create a blob; with ``owner``, a view of that blob's values in another shape."""
        self._data, self.lr_mult, self.decay_mult, self.owner = data, lr_mult, decay_mult, owner
        self.learned = lr_mult != 0
        self.given: tuple[bool, ...] = (False, False)
        """Whether lr_mult and decay_mult were given explicitly; used for blobs that layers share."""
        self.low: Tensor | None = None
        """A copy in the precision of the net, from which layers compute and which then gets the gradient; the solver's
        update keeps it up to date (`solver.device_update`)."""

    @property
    def leaf(self) -> Tensor:
        """The tensor that gets the gradient."""
        return self.data if self.low is None else self.low

    def in_type(self, dtype: torch.dtype) -> Tensor:
        """Return the values in a type."""
        return self.low if self.low is not None and self.low.dtype == dtype else self.data.to(dtype)

    @property
    def data(self) -> Tensor:
        """The values; for a view of another blob, that blob's values in this blob's shape."""
        return self._data if self.owner is None else self.owner.data.view(self._data.shape)

    @property
    def values(self) -> Tensor:
        """The values without their history: autograd does not notice writes, so that a graph may be used again."""
        return self.data.data

    def move_to(self, memory: Tensor) -> None:
        """Move the values into another tensor of the same shape."""
        memory.copy_(self._data.detach())
        self._data = memory.requires_grad_(self._data.requires_grad)

    def seen_as(self, shape: Shape) -> Blob:
        """Return a view of the values for a layer that needs them in another shape (share_mode: PERMISSIVE)."""
        return Blob(torch.empty(shape, device="meta"), self.lr_mult, self.decay_mult, owner=self)


class Buffer:
    """The content of a blob's memory after the forward pass; the net fills it in."""

    content: Tensor


class Layer:
    """Base class of all layers. ``name`` and ``type`` are as in the prototxt; ``blobs`` are the learnable blobs."""

    # (minimum, maximum) number of bottoms and tops; a maximum of None means any number
    bottoms: ClassVar[tuple[int, int | None]] = (1, 1)
    tops: ClassVar[tuple[int, int | None]] = (1, 1)
    # a loss layer has loss weight 1 by default, and its top may be unnamed
    is_loss: ClassVar[bool] = False
    # whether real Caffe's backward pass of this layer ignores propagate_down
    ignores_propagate_down: bool = False
    # if the net's dtype is shorter than float32: whether this layer computes in that dtype (`low`), in the dtype of
    # each bottom (`given`: it moves, selects or scales values), or still in float32
    precision: ClassVar[Literal["float32", "given", "low"]] = "float32"
    keeps_shape: ClassVar[bool] = False
    """Whether the only top has the shape of the first bottom."""
    # the index of the bottom that holds labels, if there is one
    label_bottom: ClassVar[int | None] = None
    check_labels: bool = False
    """Whether to check the labels of each batch; False where the data layer checks them."""

    def __init__(self, param: LayerParameter, context: Context) -> None:
        """Store the settings; `setup` creates the blobs once the bottoms' shapes are known."""
        self.param = param
        self.name: str = param.name
        self.type: str = param.type
        self.key: str = param.name
        """The name that seeds the layer's random numbers: its name, which the net makes unique."""
        self.context = context
        self.blobs: list[Blob] = []
        self._blobs_before: list[Blob] | None = None
        self.in_place = list(param.bottom[:1]) == list(param.top[:1])
        self.buffer: Buffer | None = None
        """The buffer of the first top, if Caffe's backward pass reads it after it was overwritten; otherwise None."""
        self.top: list[str] = list(param.top)
        """The names of the tops; an unnamed top of a loss layer is called ``(automatic)`` (Net::AppendTop)."""
        if self.is_loss:
            self.top += ["(automatic)"] * (self.tops[0] - len(self.top))
        for what, names, (least, most) in (("bottom", param.bottom, self.bottoms), ("top", self.top, self.tops)):
            if len(names) < least or (most is not None and len(names) > most):
                allowed = str(least) if least == most else f"{least} to {'any' if most is None else most}"
                raise self.error(f"takes {allowed} {what} blobs, not {len(names)}")
        if len(param.propagate_down) not in (0, len(param.bottom)):
            raise self.error(f"has {len(param.propagate_down)} propagate_down for {len(param.bottom)} bottoms")

    def error(self, message: str) -> UserError:
        """Return a UserError that names this layer."""
        return UserError(f"layer {self.name!r} ({self.type}): {message}")

    def setup(self, shapes: Sequence[Shape]) -> None:
        """Check the bottoms' shapes and create the blobs."""

    def forward(self, bottoms: list[Tensor], batch: int) -> list[Tensor]:
        """Return the tops. ``batch`` is the number of the batch: data and dropout are functions of it."""
        raise NotImplementedError

    def cast(self, bottoms: list[Tensor]) -> list[Tensor]:
        """Return the bottoms in the precision in which this layer computes."""
        if self.precision == "given" or self.context.dtype == torch.float32:
            return bottoms
        dtype = self.context.dtype if self.precision == "low" else torch.float32
        return [bottom.to(dtype) for bottom in bottoms]

    def feed(self, values: Mapping[str, np.ndarray]) -> None:
        """Set the values of some tops by name. Raise UserError unless the layer is one that the program feeds."""
        raise self.error("computes its tops itself and cannot be fed")

    def top_shapes(self, shapes: Sequence[Shape]) -> list[Shape]:
        """Return the shapes of the tops, from a run on the meta device, which computes shapes without values.

        For some operations PyTorch imports its compiler for that, which takes 1.5 s. The usual layers therefore
        override this method or set `keeps_shape`.
        """
        if self.keeps_shape:
            return [shapes[0]]
        blobs = self.blobs
        self.blobs = [Blob(blob.data.detach().to("meta")) for blob in blobs]
        try:
            with torch.no_grad():
                return [tuple(top.shape) for top in self.forward([torch.empty(s, device="meta") for s in shapes], 0)]
        finally:
            self.blobs = blobs

    def add_blob(self, shape: Shape, filler: FillerParameter) -> None:
        """Append a learnable blob, initialised by ``filler``, with the multipliers of its ``param {}``."""
        index = len(self.blobs)
        if self._blobs_before is not None:
            self.blobs.append(self._same_blob(index, shape))
            return
        generator = rng.torch_generator(self.context.seed, "fill", self.key, index)
        values = fill(shape, filler, generator, f"layer {self.name!r}, blob {index}").to(self.context.device)
        spec = self.param.param[index] if index < len(self.param.param) else None
        lr_mult, decay_mult = (spec.lr_mult, spec.decay_mult) if spec else (1.0, 1.0)
        self.blobs.append(Blob(values.requires_grad_(lr_mult != 0 or self.context.force_backward), lr_mult, decay_mult))

    def reshape(self, shapes: Sequence[Shape]) -> None:
        """Set the layer up again for bottoms of other shapes, with the same blobs (Layer::Reshape).

        Raise UserError, and leave the layer as it was, if its blobs do not fit these shapes.
        """
        before, self.blobs = self.blobs, []
        self._blobs_before = before
        try:
            self.setup(shapes)
        finally:
            self.blobs, self._blobs_before = before, None

    def _same_blob(self, index: int, shape: Shape) -> Blob:
        assert self._blobs_before is not None
        if index >= len(self._blobs_before) or tuple(self._blobs_before[index].data.shape) != tuple(shape):
            has = list(self._blobs_before[index].data.shape) if index < len(self._blobs_before) else "not there"
            raise self.error(f"the new shape of its bottom needs blob {index} of {list(shape)}, but the blob is {has}")
        return self._blobs_before[index]

    def axis(self, axis: int, shape: Shape, ends: int = 0) -> int:
        """Return the canonical axis index, as Caffe's CanonicalAxisIndex: a negative axis counts from the end.

        With ``ends`` 1 the position after the last axis is allowed as well.
        """
        count = len(shape) + ends
        if not -count <= axis < count:
            raise self.error(f"axis {axis} is out of range for a blob of shape {list(shape)}")
        return axis % count

    def require_same_shape(self, shapes: Sequence[Shape], what: str = "bottoms") -> None:
        """Raise UserError unless all shapes are the same."""
        if any(shape != shapes[0] for shape in shapes):
            raise self.error(f"needs {what} of the same shape, not {', '.join(str(list(shape)) for shape in shapes)}")


class _WithBuffer(torch.autograd.Function):
    """A layer whose backward pass reads a top's buffer that later layers have overwritten."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: ReadsTop, buffer: Buffer) -> Tensor:
        ctx.save_for_backward(x)
        ctx.layer, ctx.buffer = layer, buffer
        return layer.value(x)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        return ctx.layer.gradient(grad_outputs[0], ctx.saved_tensors[0], ctx.buffer.content), None, None


class ReadsTop(Layer):
    """A layer whose backward pass, in Caffe, reads its top, so that its gradient depends on later in-place layers.

    If ``buffer`` is None, no values are lost, and autograd's gradient equals Caffe's.
    """

    def value(self, x: Tensor) -> Tensor:
        """Return the top."""
        raise NotImplementedError

    def gradient(self, above: Tensor, x: Tensor, top: Tensor) -> Tensor:
        """Return the bottom's gradient for bottom ``x``; ``top`` is the content of the top's buffer."""
        raise NotImplementedError

    def forward(self, bottoms: list[Tensor], batch: int) -> list[Tensor]:
        if self.buffer is None or not bottoms[0].requires_grad or not torch.is_grad_enabled():
            return [self.value(bottoms[0])]
        top = _WithBuffer.apply(bottoms[0], self, self.buffer)
        assert isinstance(top, Tensor)
        return [top]


def spatial(layer: Layer, param: Any, name: str, default: int | None, axes: int = 2) -> tuple[int, ...]:
    """Return a spatial setting of a layer (`formats.shapes.spatial`); raise UserError if it is invalid."""
    try:
        return shapes.spatial(param, name, default, axes)
    except ValueError as error:
        raise layer.error(str(error)) from None


def default_filler(filler: FillerParameter, given: bool, value: float) -> FillerParameter:
    """Return ``filler`` if it was ``given``, otherwise a constant filler with the layer's default ``value``."""
    return filler if given else FillerParameter(type="constant", value=value)
