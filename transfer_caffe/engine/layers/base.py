"""What a layer is: settings and bottoms' shapes in, blobs made by fillers, tops computed once a batch.

Gradients come from autograd; where Caffe's gradient is not that of its forward formula, or PyTorch lacks the
operation or has it slowly, a layer has an autograd function of its own.
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
    """What all layers of a net share: the seed, the device, the phase, and whether all gradients are wanted.

    ``dtype`` is what layers compute in that can do with less than float32 (`Layer.precision`).
    """

    seed: int
    device: torch.device
    training: bool
    force_backward: bool = False
    dtype: torch.dtype = torch.float32


class Blob:
    """A learnable blob: its values, Caffe's multipliers, and whether gradients are computed for it."""

    def __init__(self, data: Tensor, lr_mult: float = 1.0, decay_mult: float = 1.0, owner: Blob | None = None) -> None:
        """``owner`` is the blob whose values these are, seen in another shape."""
        self._data, self.lr_mult, self.decay_mult, self.owner = data, lr_mult, decay_mult, owner
        self.learned = lr_mult != 0
        self.given: tuple[bool, ...] = (False, False)
        """Whether lr_mult and decay_mult were given, for a blob that others share."""

    @property
    def data(self) -> Tensor:
        """The values; a shared blob's in this one's shape."""
        return self._data if self.owner is None else self.owner.data.view(self._data.shape)

    def move_to(self, memory: Tensor) -> None:
        """Keep the values in another tensor of the same shape."""
        memory.copy_(self._data.detach())
        self._data = memory.requires_grad_(self._data.requires_grad)

    def seen_as(self, shape: Shape) -> Blob:
        """The same values for a layer that needs them in another shape (share_mode: PERMISSIVE)."""
        return Blob(torch.empty(shape, device="meta"), self.lr_mult, self.decay_mult, owner=self)


class Buffer:
    """What a blob's memory holds once the forward pass is over; the net fills it in."""

    content: Tensor


class Layer:
    """Base of all layers. ``name`` and ``type`` as in the prototxt; ``blobs`` are the learnable blobs in order."""

    # (least, most) bottoms and tops; most None: any number
    bottoms: ClassVar[tuple[int, int | None]] = (1, 1)
    tops: ClassVar[tuple[int, int | None]] = (1, 1)
    # a loss counts in the net's loss with weight 1, and may leave its top unnamed
    is_loss: ClassVar[bool] = False
    # real Caffe's backward pass of some layers does not look at propagate_down
    ignores_propagate_down: bool = False
    # where the net's dtype is a shorter one than float32: whether this layer computes in it (`low`), in that of each
    # bottom (`given`: it moves, picks or scales values), or in float32 all the same
    precision: ClassVar[Literal["float32", "given", "low"]] = "float32"
    # the bottom that holds labels, if one does
    label_bottom: ClassVar[int | None] = None
    check_labels: bool = False
    """Whether to look at the labels of each batch; not where the layer that reads them does."""

    def __init__(self, param: LayerParameter, context: Context) -> None:
        """Keep the settings; blobs are made by `setup`, once the bottoms' shapes are known."""
        self.param = param
        self.name: str = param.name
        self.type: str = param.type
        self.key: str = param.name
        """The name by which it draws its random numbers: its own, made unique by the net."""
        self.context = context
        self.blobs: list[Blob] = []
        self.in_place = list(param.bottom[:1]) == list(param.top[:1])
        self.buffer: Buffer | None = None
        """That of the first top, where Caffe's backward pass reads it after it was overwritten; None elsewhere."""
        self.top: list[str] = list(param.top)
        """The names of the tops; one that a loss leaves unnamed is ``(automatic)`` (Net::AppendTop)."""
        if self.is_loss:
            self.top += ["(automatic)"] * (self.tops[0] - len(self.top))
        for what, names, (least, most) in (("bottom", param.bottom, self.bottoms), ("top", self.top, self.tops)):
            if len(names) < least or (most is not None and len(names) > most):
                allowed = str(least) if least == most else f"{least} to {'any' if most is None else most}"
                raise self.error(f"takes {allowed} {what} blobs, not {len(names)}")
        if len(param.propagate_down) not in (0, len(param.bottom)):
            raise self.error(f"gives {len(param.propagate_down)} propagate_down for {len(param.bottom)} bottoms")

    def error(self, message: str) -> UserError:
        """An error that names this layer."""
        return UserError(f"layer {self.name!r} ({self.type}): {message}")

    def setup(self, shapes: Sequence[Shape]) -> None:
        """Check the bottoms' shapes and make the blobs."""

    def forward(self, bottoms: list[Tensor], batch: int) -> list[Tensor]:
        """The tops. ``batch`` counts the batches this net has seen: data and dropout are functions of it."""
        raise NotImplementedError

    def cast(self, bottoms: list[Tensor]) -> list[Tensor]:
        """The bottoms in the precision in which this layer takes them."""
        if self.precision == "given" or self.context.dtype == torch.float32:
            return bottoms
        dtype = self.context.dtype if self.precision == "low" else torch.float32
        return [bottom.to(dtype) for bottom in bottoms]

    def feed(self, values: Mapping[str, np.ndarray]) -> None:
        """Take the values of some tops, by name, from outside. Only layers that are fed by code can."""
        raise self.error("makes its tops itself, and cannot be fed")

    def top_shapes(self, shapes: Sequence[Shape]) -> list[Shape]:
        """The shapes of the tops: by a run on the meta device, which computes shapes without values.

        With some operations PyTorch loads its compiler for that, which takes a second: the layers of a CaffeNet tell
        their shapes themselves.
        """
        blobs = self.blobs
        self.blobs = [Blob(blob.data.detach().to("meta")) for blob in blobs]
        try:
            with torch.no_grad():
                return [tuple(top.shape) for top in self.forward([torch.empty(s, device="meta") for s in shapes], 0)]
        finally:
            self.blobs = blobs

    def add_blob(self, shape: Shape, filler: FillerParameter) -> None:
        """Append a learnable blob, filled, with the multipliers of its ``param {}``."""
        index = len(self.blobs)
        generator = rng.torch_generator(self.context.seed, "fill", self.name, index)
        values = fill(shape, filler, generator, f"layer {self.name!r}, blob {index}").to(self.context.device)
        spec = self.param.param[index] if index < len(self.param.param) else None
        lr_mult, decay_mult = (spec.lr_mult, spec.decay_mult) if spec else (1.0, 1.0)
        self.blobs.append(Blob(values.requires_grad_(lr_mult != 0 or self.context.force_backward), lr_mult, decay_mult))

    def axis(self, axis: int, shape: Shape, ends: int = 0) -> int:
        """Caffe's CanonicalAxisIndex: a negative axis counts from the end. ``ends`` 1 allows the place behind it."""
        count = len(shape) + ends
        if not -count <= axis < count:
            raise self.error(f"axis {axis} is out of range for a blob of shape {list(shape)}")
        return axis % count

    def require_same_shape(self, shapes: Sequence[Shape], what: str = "bottoms") -> None:
        """Error unless all shapes are the same."""
        if any(shape != shapes[0] for shape in shapes):
            raise self.error(f"needs {what} of one shape, not {', '.join(str(list(shape)) for shape in shapes)}")


def spatial(layer: Layer, param: Any, name: str, default: int | None, axes: int = 2) -> tuple[int, ...]:
    """A spatial setting of a layer (`formats.shapes.spatial`); what is wrong with it is an error of the layer."""
    try:
        return shapes.spatial(param, name, default, axes)
    except ValueError as error:
        raise layer.error(str(error)) from None


def default_filler(filler: FillerParameter, given: bool, value: float) -> FillerParameter:
    """``filler`` where it was ``given``, else the constant that a layer has for a default."""
    return filler if given else FillerParameter(type="constant", value=value)
