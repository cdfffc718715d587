"""The layers of a CaffeNet, forward and backward, as operations without autograd; and any other layer with it.

What each computes is what the layer of that name computes (`engine.layers`); tests compare the two. A step works in
place where Caffe does, which saves memory traffic, and makes its buffers hold in the backward pass what Caffe's hold.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from transfer_caffe.engine.layers import Blob, Layer, common, loss, neuron, vision
from transfer_caffe.formats.proto.caffe_pb2 import LossParameter, LRNParameter
from transfer_caffe.formats.proto.caffe_pb2 import PoolingParameter as Pool

aten = torch.ops.aten

Gradients = list[Tensor | None]


class Shard:
    """Which part of a batch a step computes: the ``count`` equal parts are numbered from 0."""

    def __init__(self, number: int = 0, count: int = 1) -> None:
        """Part ``number`` of ``count``."""
        self.number, self.count = number, count

    def of(self, whole: Tensor) -> Tensor:
        """This part of a tensor whose first axis counts the images of the batch."""
        if self.count == 1:
            return whole
        size = len(whole) // self.count
        return whole[self.number * size : (self.number + 1) * size]


class Step:
    """A layer in a pass. ``forward`` keeps in ``saved`` what ``backward``, called at most once after it, needs.

    ``bottoms`` and ``tops`` are numbers (`Direct`): a blob that layers change in place has one for each of them.
    """

    splits: ClassVar[bool] = True
    """Whether the layer treats each image of a batch by itself, so that it can be computed in shards."""
    frees_output: ClassVar[bool] = True
    """Whether a later layer may overwrite the tops: ``backward`` does not need them, or as Caffe finds them then."""
    writes_in_place: ClassVar[bool] = False
    """Whether ``forward`` writes its top over its bottom where it may (``overwrites``)."""
    unary: ClassVar[bool] = False
    """Whether it is a `Unary`."""

    def __init__(self, layer: Layer, shard: Shard, weight: float) -> None:
        """``weight`` is the loss weight of the first top."""
        self.layer, self.shard, self.weight = layer, shard, weight
        self.bottoms: list[int] = []
        self.tops: list[int] = []
        self.cut: set[int] = set()
        """The bottoms, by number, that get no gradient (propagate_down: false)."""
        self.terms: list[tuple[int, float]] = []
        """The tops that count in the loss, by number, and their weights."""
        self.needs: list[bool] = []
        """Which bottoms need a gradient, in this pass."""
        self.overwrites = False
        """Whether it may write its top over its bottom."""
        self.roots = [root_of(blob) for blob in layer.blobs]
        self.learned = [root.data.requires_grad for root in self.roots]
        self.learns = any(self.learned)
        self.gradients: Gradients = [None] * len(self.roots)
        """Those of the layer's blobs, after ``backward``."""
        self.saved: Any = None
        """What ``forward`` keeps for ``backward``; the pass frees it as soon as it can."""

    @classmethod
    def serves(cls, layer: Layer) -> bool:
        """Whether this kind of step can do what the layer is set to."""
        return True

    def forward(self, bottoms: list[Tensor], batch: int) -> list[Tensor]:
        """The tops."""
        raise NotImplementedError

    def tops_need(self) -> list[bool]:
        """Which tops need a gradient, after ``forward``."""
        return [self.learns or any(self.needs)] * len(self.tops)

    def backward(self, gradients: Gradients) -> Gradients:
        """The gradients of the bottoms from those of the tops; those of the blobs are left in ``gradients``."""
        raise NotImplementedError


class Unary(Step):
    """One bottom, one top; the weights are looked up once, since they stay where they are."""

    unary = True

    def __init__(self, layer: Layer, shard: Shard, weight: float) -> None:
        super().__init__(layer, shard, weight)
        self.values = [blob.data.detach() for blob in layer.blobs]
        self.bias = self.values[1] if len(self.values) > 1 else None

    def up(self, x: Tensor, batch: int) -> Tensor:
        """The top of a bottom."""
        raise NotImplementedError

    def down(self, gradient: Tensor) -> Tensor | None:
        """The gradient of the bottom, where it needs one, from that of the top."""
        raise NotImplementedError


def root_of(blob: Blob) -> Blob:
    """The blob that holds the values of a shared one."""
    while blob.owner is not None:
        blob = blob.owner
    return blob


class ByAutograd(Step):
    """Any layer, its gradients by autograd."""

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
        # an update changes blobs' gradients in place; autograd may give one tensor for several, or an expanded one
        self.gradients = [
            None if each is None else each.clone(memory_format=torch.contiguous_format) for each in self.gradients
        ]
        return below


class Read(ByAutograd):
    """A layer without bottoms: its batch is made once, and each shard takes its part."""

    splits = True  # and a source may hand out the same tensor again: it must not be overwritten


class AccuracyStep(Step):
    """Accuracy, which passes no gradient."""

    @classmethod
    def serves(cls, layer: Layer) -> bool:
        # what is ignored may lie in one shard alone, and an accuracy of each class has another number of images in each
        return isinstance(layer, loss.Accuracy) and layer.ignore is None and len(layer.top) == 1

    def forward(self, bottoms: list[Tensor], batch: int) -> list[Tensor]:
        (top,) = self.layer.forward(bottoms, batch)
        return [top / self.shard.count]

    def tops_need(self) -> list[bool]:
        return [False]


class ConvolutionStep(Unary):
    """Convolution over images, one bottom."""

    @classmethod
    def serves(cls, layer: Layer) -> bool:
        if type(layer) is not vision.Convolution:
            return False
        return len(layer.kernel) == 2 and layer.channel_axis == 1 and len(layer.param.bottom) == 1

    def __init__(self, layer: Layer, shard: Shard, weight: float) -> None:
        super().__init__(layer, shard, weight)
        assert isinstance(layer, vision.Convolution)
        self.places = (list(layer.stride), list(layer.pad), list(layer.dilation), False, [0, 0], layer.group)
        self.outputs = [layer.param.convolution_param.num_output]

    def up(self, x: Tensor, batch: int) -> Tensor:
        self.saved = x = x.contiguous(memory_format=torch.channels_last)
        return aten.convolution(x, self.values[0], self.bias, *self.places)

    def down(self, gradient: Tensor) -> Tensor | None:
        wanted = [self.needs[0], self.learned[0], len(self.learned) > 1 and self.learned[1]]
        below, *found = aten.convolution_backward(
            gradient, self.saved, self.values[0], self.outputs, *self.places, wanted
        )
        self.gradients = found[: len(self.learned)]
        return below


class ReLUStep(Unary):
    """max(x, 0); in place its gradient is that of the values that are there in the backward pass, as Caffe's is."""

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
    """MAX pooling without places, and AVE pooling, by PyTorch's operations."""

    @classmethod
    def serves(cls, layer: Layer) -> bool:
        return isinstance(layer, vision.Pooling) and layer.native and len(layer.top) == 1

    def __init__(self, layer: Layer, shard: Shard, weight: float) -> None:
        super().__init__(layer, shard, weight)
        assert isinstance(layer, vision.Pooling)
        self.is_maximum = layer.param.pooling_param.pool == Pool.MAX
        windows = [list(layer.kernel), list(layer.stride), list(layer.pad)]
        self.settings = (*windows, [1, 1], layer.ceil) if self.is_maximum else (*windows, layer.ceil, True, None)

    def up(self, x: Tensor, batch: int) -> Tensor:
        if not self.is_maximum:
            self.saved = x, None
            return aten.avg_pool2d(x, *self.settings)
        top, places = aten.max_pool2d_with_indices(x, *self.settings)
        self.saved = x, places
        return top

    def down(self, gradient: Tensor) -> Tensor:
        bottom, places = self.saved
        if bottom.is_contiguous(memory_format=torch.channels_last):
            gradient = gradient.contiguous(memory_format=torch.channels_last)
        # of the bottom the operations take the shape alone, so it may have been overwritten since
        if self.is_maximum:
            return aten.max_pool2d_with_indices_backward(gradient, bottom, *self.settings, places)
        return aten.avg_pool2d_backward(gradient, bottom, *self.settings)


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
    """A fully connected layer whose bottom's first axis counts the images."""

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
    """Dropout: the mask of the whole batch is drawn, and a shard takes its part of it."""

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
    """SoftmaxWithLoss of one label an image, at the end of a net."""

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
    AccuracyStep, ConvolutionStep, ReLUStep, PoolingStep, LRNStep, InnerProductStep, DropoutStep, SoftmaxLossStep,
)  # fmt: skip


def step_for(layer: Layer, shard: Shard, weight: float, by_autograd: bool) -> Step:
    """The step of a layer; ``by_autograd`` where the others must not be used."""
    if not layer.param.bottom and not layer.blobs:
        return Read(layer, shard, weight)
    kinds = () if by_autograd else STEPS
    return next((kind for kind in kinds if kind.serves(layer)), ByAutograd)(layer, shard, weight)
