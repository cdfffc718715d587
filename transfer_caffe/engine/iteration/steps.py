"""The layers of a CaffeNet, forward and backward, without autograd; any other layer runs through autograd.

Each step computes the same as the layer of that name (`engine.layers`); tests compare the two. A step works in place
where Caffe does. This saves memory traffic, and in the backward pass its buffers then hold the same values as Caffe's.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from transfer_caffe.engine.layers import Blob, Layer, common, loss, neuron, python_layer, vision
from transfer_caffe.engine.layers.convolve import channels_last
from transfer_caffe.formats.proto.caffe_pb2 import LossParameter, LRNParameter
from transfer_caffe.formats.proto.caffe_pb2 import PoolingParameter as Pool

aten = torch.ops.aten

Gradients = list[Tensor | None]


class Shard:
    """The part of a batch that a step computes: part ``number``, from 0, of ``count`` equal parts."""

    def __init__(self, number: int = 0, count: int = 1) -> None:
        """Create part ``number`` of ``count``."""
        self.number, self.count = number, count

    def of(self, whole: Tensor) -> Tensor:
        """Return this part of a tensor whose first axis is the batch axis."""
        if self.count == 1:
            return whole
        size = len(whole) // self.count
        return whole[self.number * size : (self.number + 1) * size]


class Step:
    """A layer in a pass. ``forward`` stores in ``saved`` what ``backward``, called at most once after it, needs.

    ``bottoms`` and ``tops`` are numbers of values (see `direct`): a blob that layers change in place has a separate
    number for each of these layers.
    """

    splits: ClassVar[bool] = True
    """Whether the layer treats the images of a batch independently, so that it can be computed in shards."""
    frees_output: ClassVar[bool] = True
    """Whether a later layer may overwrite the tops: ``backward`` does not need them, or reads the new ones as Caffe."""
    writes_in_place: ClassVar[bool] = False
    """Whether ``forward`` writes its top over its bottom if it is allowed to (``overwrites``)."""
    unary: ClassVar[bool] = False
    """Whether this is a `Unary`."""

    def __init__(self, layer: Layer, shard: Shard, weight: float) -> None:
        """``weight`` is the loss weight of the first top."""
        self.layer, self.shard, self.weight = layer, shard, weight
        self.bottoms: list[int] = []
        self.tops: list[int] = []
        self.cut: set[int] = set()
        """The indices of bottoms that get no gradient (propagate_down: false)."""
        self.terms: list[tuple[int, float]] = []
        """The tops that contribute to the loss, by number, and their loss weights."""
        self.needs: list[bool] = []
        """Which bottoms need a gradient in this pass."""
        self.overwrites = False
        """Whether the step may write its top over its bottom."""
        self.roots = [root_of(blob) for blob in layer.blobs]
        self.learned = [root.data.requires_grad for root in self.roots]
        self.learns = any(self.learned)
        self.gradients: Gradients = [None] * len(self.roots)
        """The gradients of the layer's blobs, after ``backward``."""
        self.saved: Any = None
        """What ``forward`` stores for ``backward``; the pass frees it as early as possible."""

    @classmethod
    def serves(cls, layer: Layer) -> bool:
        """Return whether this kind of step supports the layer's settings."""
        return True

    def forward(self, bottoms: list[Tensor], batch: int) -> list[Tensor]:
        """Return the tops."""
        raise NotImplementedError

    def tops_need(self) -> list[bool]:
        """Return which tops need a gradient; call it after ``forward``."""
        return [self.learns or any(self.needs)] * len(self.tops)

    def backward(self, gradients: Gradients) -> Gradients:
        """Return the bottoms' gradients, given the tops' gradients; store the blobs' gradients in ``gradients``."""
        raise NotImplementedError


class Unary(Step):
    """A step with one bottom and one top. It looks up its weights once, since they stay at the same address."""

    unary = True

    def __init__(self, layer: Layer, shard: Shard, weight: float) -> None:
        super().__init__(layer, shard, weight)
        self.values = [blob.data.detach() for blob in layer.blobs]
        self.bias = self.values[1] if len(self.values) > 1 else None

    def up(self, x: Tensor, batch: int) -> Tensor:
        """Return the top for bottom ``x``."""
        raise NotImplementedError

    def down(self, gradient: Tensor) -> Tensor | None:
        """Return the bottom's gradient, if it needs one, given the top's gradient."""
        raise NotImplementedError


def root_of(blob: Blob) -> Blob:
    """Return the blob that holds the values of a shared blob."""
    while blob.owner is not None:
        blob = blob.owner
    return blob


class ByAutograd(Step):
    """Any layer, with gradients from autograd."""

    splits = False
    frees_output = False

    def forward(self, bottoms: list[Tensor], batch: int) -> list[Tensor]:
        inputs = [bottom.detach().requires_grad_(need) for bottom, need in zip(bottoms, self.needs, strict=True)]
        with torch.enable_grad():
            outputs = self.layer.forward(self.layer.cast(list(inputs)), batch)
        self.saved = inputs, outputs
        return [top.detach() for top in outputs]

    def tops_need(self) -> list[bool]:
        return [top.requires_grad for top in self.saved[1]]

    def backward(self, gradients: Gradients) -> Gradients:
        inputs, outputs = self.saved
        both = zip(outputs, gradients, strict=True)
        pairs = [(top, gradient) for top, gradient in both if top.requires_grad and gradient is not None]
        below: Gradients = [None] * len(inputs)
        asked = [(below, index, each) for index, each in enumerate(inputs) if each.requires_grad]
        asked += [(self.gradients, i, root.data) for i, root in enumerate(self.roots) if self.learned[i]]
        found = torch.autograd.grad(
            [top for top, _ in pairs],
            [each for *_, each in asked],
            [gradient for _, gradient in pairs],
            allow_unused=True,
        )
        for (where, index, _), gradient in zip(asked, found, strict=True):
            where[index] = gradient
        # an update changes gradients in place, but autograd may return the same tensor twice, or an expanded one
        self.gradients = [
            None if each is None else each.clone(memory_format=torch.contiguous_format) for each in self.gradients
        ]
        return below


class Read(ByAutograd):
    """A layer without bottoms: its batch is built once, and each shard takes its part."""

    splits = True  # frees_output stays False: a source may return the same tensor again, so it must not be overwritten


class AccuracyStep(Step):
    """Accuracy, which propagates no gradient."""

    @classmethod
    def serves(cls, layer: Layer) -> bool:
        # ignored labels may be in some shards only, and the number of images per class differs between shards
        return isinstance(layer, loss.Accuracy) and layer.ignore is None and len(layer.top) == 1

    def forward(self, bottoms: list[Tensor], batch: int) -> list[Tensor]:
        (top,) = self.layer.forward(bottoms, batch)
        return [top / self.shard.count]

    def tops_need(self) -> list[bool]:
        return [False]


class ConvolutionStep(Unary):
    """2-D convolution with one bottom."""

    @classmethod
    def serves(cls, layer: Layer) -> bool:
        if type(layer) is not vision.Convolution:
            return False
        if layer.method is None or layer.method.special:
            return False
        return layer.channel_axis == 1 and len(layer.param.bottom) == 1

    def __init__(self, layer: Layer, shard: Shard, weight: float) -> None:
        super().__init__(layer, shard, weight)
        assert isinstance(layer, vision.Convolution)
        self.places = (list(layer.stride), list(layer.pad), list(layer.dilation), False, [0, 0], layer.group)
        self.outputs = [layer.param.convolution_param.num_output]

    def up(self, x: Tensor, batch: int) -> Tensor:
        self.saved = x = channels_last(x)
        return aten.convolution(x, self.values[0], self.bias, *self.places)

    def down(self, gradient: Tensor) -> Tensor | None:
        wanted = [self.needs[0], self.learned[0], len(self.learned) > 1 and self.learned[1]]
        below, *found = aten.convolution_backward(
            gradient, self.saved, self.values[0], self.outputs, *self.places, wanted
        )
        # oneDNN also returns the gradient of a frozen weight if that of the bias is wanted
        self.gradients = [each if learns else None for each, learns in zip(found, self.learned, strict=False)]
        return below


class SpecialConvolutionStep(Unary):
    """2-D convolution with one bottom, for which PyTorch's own operation is slow (`layers.convolve`)."""

    @classmethod
    def serves(cls, layer: Layer) -> bool:
        if type(layer) is not vision.Convolution or layer.method is None or not layer.method.special:
            return False
        return layer.channel_axis == 1 and len(layer.param.bottom) == 1

    def __init__(self, layer: Layer, shard: Shard, weight: float) -> None:
        super().__init__(layer, shard, weight)
        assert isinstance(layer, vision.Convolution) and layer.method is not None
        self.method = layer.method

    def up(self, x: Tensor, batch: int) -> Tensor:
        self.saved = self.method.padded(x)
        return self.method.forward(self.saved, self.values[0], self.bias)

    def down(self, gradient: Tensor) -> Tensor | None:
        wanted = (self.needs[0], self.learned[0], len(self.learned) > 1 and self.learned[1])
        below, *found = self.method.backward(gradient, self.saved, self.values[0], wanted)
        self.gradients = found[: len(self.learned)]
        return below


class ReLUStep(Unary):
    """max(x, 0); in place, the gradient depends on the buffer's values in the backward pass, as in Caffe."""

    writes_in_place = True

    @classmethod
    def serves(cls, layer: Layer) -> bool:
        return isinstance(layer, neuron.ReLU) and not layer.param.relu_param.negative_slope

    def up(self, x: Tensor, batch: int) -> Tensor:
        self.saved = x.relu_() if self.overwrites else x.relu()
        return self.saved

    def down(self, gradient: Tensor) -> Tensor:
        return aten.threshold_backward(gradient, self.saved, 0)


class PoolingStep(Unary):
    """MAX pooling without indices, and AVE pooling, by PyTorch's operations."""

    @classmethod
    def serves(cls, layer: Layer) -> bool:
        return isinstance(layer, vision.Pooling) and layer.native and len(layer.top) == 1

    def __init__(self, layer: Layer, shard: Shard, weight: float) -> None:
        super().__init__(layer, shard, weight)
        assert isinstance(layer, vision.Pooling)
        self.is_maximum = layer.param.pooling_param.pool == Pool.MAX
        self.empty: Tensor | None = None
        """Which windows have no number; None if there are none."""
        windows = [list(layer.kernel), list(layer.stride), list(layer.pad)]
        self.settings = (*windows, [1, 1], layer.ceil) if self.is_maximum else (*windows, layer.ceil, True, None)

    def up(self, x: Tensor, batch: int) -> Tensor:
        if not self.is_maximum:
            self.saved = x, None
            return aten.avg_pool2d(x, *self.settings)
        top, places = aten.max_pool2d_with_indices(x, *self.settings)
        self.saved = x, places
        self.empty = None
        if vision.Pooling.lacks_numbers(top):
            assert isinstance(self.layer, vision.Pooling)
            top, places = aten.max_pool2d_with_indices(self.layer.numbers(x), *self.settings)
            self.saved = x, places
            self.empty = top <= -torch.finfo(top.dtype).max
            top = self.layer.without_nan(top)
        return top

    def down(self, gradient: Tensor) -> Tensor:
        bottom, places = self.saved
        if bottom.is_contiguous(memory_format=torch.channels_last):
            gradient = gradient.contiguous(memory_format=torch.channels_last)
        # these operations only use the bottom's shape, so it may have been overwritten
        if not self.is_maximum:
            return aten.avg_pool2d_backward(gradient, bottom, *self.settings)
        if self.empty is not None:
            gradient = gradient.masked_fill(self.empty, 0)
        return aten.max_pool2d_with_indices_backward(gradient, bottom, *self.settings, places)


class LRNStep(Unary):
    """LRN across channels."""

    @classmethod
    def serves(cls, layer: Layer) -> bool:
        if not isinstance(layer, vision.LRN) or layer.buffer is not None:
            return False
        return layer.param.lrn_param.norm_region == LRNParameter.ACROSS_CHANNELS

    def __init__(self, layer: Layer, shard: Shard, weight: float) -> None:
        super().__init__(layer, shard, weight)
        param = layer.param.lrn_param
        self.settings, self.k = (param.local_size, param.alpha, param.beta), param.k

    def up(self, x: Tensor, batch: int) -> Tensor:
        scale, power = vision.lrn_scale(x, *self.settings, self.k)
        self.saved = x, scale, power
        return x * power

    def down(self, gradient: Tensor) -> Tensor:
        x, scale, power = self.saved
        size, alpha, beta = self.settings
        return vision.lrn_gradient(gradient, x, scale, power, size, alpha, beta)


class InnerProductStep(Unary):
    """A fully connected layer whose bottom's first axis is the batch axis."""

    @classmethod
    def serves(cls, layer: Layer) -> bool:
        return isinstance(layer, common.InnerProduct) and layer.first == 1 and not layer.transpose

    def up(self, x: Tensor, batch: int) -> Tensor:
        rows = x.flatten(1)
        self.saved = x.shape, rows
        return common.product(rows, self.values[0], self.bias)

    def down(self, gradient: Tensor) -> Tensor | None:
        shape, rows = self.saved
        if self.learned[0]:
            self.gradients[0] = gradient.t() @ rows
        if self.bias is not None and self.learned[1]:
            self.gradients[1] = gradient.sum(0)
        return common.product(gradient, self.values[0].t()).view(shape) if self.needs[0] else None


class DropoutStep(Unary):
    """Dropout: the mask of the complete batch is sampled, and each shard takes its part of it."""

    writes_in_place = True

    @classmethod
    def serves(cls, layer: Layer) -> bool:
        return isinstance(layer, neuron.Dropout) and layer.context.training

    def up(self, x: Tensor, batch: int) -> Tensor:
        assert isinstance(self.layer, neuron.Dropout)
        whole = x.shape if self.shard.count == 1 else (len(x) * self.shard.count, *x.shape[1:])
        self.saved = self.shard.of(self.layer.mask(whole, x.device, batch))
        return x.mul_(self.saved) if self.overwrites else x * self.saved

    def down(self, gradient: Tensor) -> Tensor:
        return gradient * self.saved


class SoftmaxLossStep(Step):
    """SoftmaxWithLoss with one label per image, at the end of a net."""

    @classmethod
    def serves(cls, layer: Layer) -> bool:
        if not isinstance(layer, loss.SoftmaxWithLoss):
            return False
        return layer.ignore is None and layer.class_dim == 1 and layer.one_each and len(layer.top) == 1

    def forward(self, bottoms: list[Tensor], batch: int) -> list[Tensor]:
        layer = self.layer
        assert isinstance(layer, loss.SoftmaxWithLoss)
        scores, labels = layer.rows(bottoms)
        over = 1.0 if layer.mode == LossParameter.NONE else float(len(scores) * self.shard.count)
        logs, own = torch.log_softmax(scores, 1), labels[:, None]
        self.saved = logs, own, over, bottoms[0].shape
        return [logs.gather(1, own).neg_().clamp_(max=loss.LARGEST_LOSS).sum().div_(over)]

    def tops_need(self) -> list[bool]:
        return [self.needs[0]]

    def backward(self, gradients: Gradients) -> Gradients:
        logs, own, over, shape = self.saved
        gradient = logs.exp_()
        gradient.scatter_add_(1, own, gradient.new_full((1, 1), -1.0).expand(len(gradient), 1))
        return [gradient.mul_(self.weight / over).view(shape), None]


STEPS: tuple[type[Step], ...] = (
    AccuracyStep, ConvolutionStep, SpecialConvolutionStep, ReLUStep, PoolingStep, LRNStep, InnerProductStep,
    DropoutStep, SoftmaxLossStep,
)  # fmt: skip


def step_for(layer: Layer, shard: Shard, weight: float, by_autograd: bool) -> Step:
    """Return the step of a layer; with ``by_autograd``, always use autograd."""
    # a layer written in Python may give each batch another size, which cannot be divided into shards
    if not layer.param.bottom and not layer.blobs and not isinstance(layer, python_layer.Python):
        return Read(layer, shard, weight)
    kinds = () if by_autograd else STEPS
    return next((kind for kind in kinds if kind.serves(layer)), ByAutograd)(layer, shard, weight)
