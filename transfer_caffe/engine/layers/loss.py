"""Losses and Accuracy (caffe/layers/loss_layer.cpp and the files of each)."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from transfer_caffe.engine.layers.base import Layer, Shape
from transfer_caffe.formats.proto import blob_to_array, read_binary
from transfer_caffe.formats.proto.caffe_pb2 import BlobProto, HingeLossParameter, LossParameter

_LEAST_FLOAT = float(np.finfo(np.float32).tiny)  # C++'s FLT_MIN
LARGEST_LOSS = -math.log(_LEAST_FLOAT)
"""That of a label in SoftmaxWithLoss: Caffe takes no probability for less than FLT_MIN."""
_LEAST_PROBABILITY = 1e-20  # kLOG_THRESHOLD of InfogainLoss and MultinomialLogisticLoss


class _Labelled(Layer):
    """A layer of scores and integer labels: the label blob has the scores' shape without the class axis."""

    bottoms = (2, 2)
    label_bottom = 1
    ignore: int | None = None
    check_labels = True

    def class_axis(self) -> int:
        """The axis of the scores that counts the classes."""
        return 1

    def setup(self, shapes: Sequence[Shape]) -> None:
        scores, labels = shapes[0], shapes[1]
        if self.is_loss and scores[:1] != labels[:1]:
            raise self.error(f"needs as many labels as images, not {list(labels)} for scores of {list(scores)}")
        self.class_dim = self.axis(self.class_axis(), scores)
        self.classes = scores[self.class_dim]
        places = math.prod(scores) // self.classes
        self.one_each = len(scores) > 0 and places == scores[0]
        """Whether each image has one label."""
        if math.prod(labels) != places:
            raise self.error(
                f"needs one label for each of the {places} places of the scores {list(scores)}, "
                f"not labels of shape {list(labels)}"
            )

    def rows(self, bottoms: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Scores as (places, classes) and labels as (places,) integers."""
        labels = bottoms[1].detach().reshape(-1).long()
        if self.check_labels and labels.device.type == "cpu":
            wrong = labels[((labels < 0) | (labels >= self.classes)) & (labels != self.ignored())]
            if wrong.numel():
                raise self.error(f"the label {wrong[0]} is outside of its classes, 0 to {self.classes - 1}")
        return bottoms[0].movedim(self.class_dim, -1).reshape(-1, self.classes), labels

    def outer(self, bottoms: list[Tensor]) -> int:
        """The number of images: the places before the class axis (a Filter may have left fewer than were foreseen)."""
        return math.prod(bottoms[0].shape[: self.class_dim])

    def ignored(self) -> int:
        """The label that does not count; one that no image has where none is set."""
        return -sys.maxsize if self.ignore is None else self.ignore

    def normalizer(self, mode: int, outer: int, labels: int, valid: Tensor | None) -> float | Tensor:
        """What the summed loss is divided by (LossLayer::GetNormalizer); never less than 1.

        ``outer`` is the number of images, ``labels`` of labels, ``valid`` of those not ignored (None: all).
        """
        if mode == LossParameter.NONE:
            return 1.0
        if mode == LossParameter.BATCH_SIZE:
            return float(outer)
        if mode == LossParameter.FULL or valid is None:
            return float(max(labels, 1))
        return valid.clamp(min=1)


def _normalization(loss: LossParameter, default: int) -> int:
    """The mode that a loss_param asks for; the old switch `normalize` counts where `normalization` is not set."""
    if loss.HasField("normalization"):
        return loss.normalization
    if loss.HasField("normalize"):
        return LossParameter.VALID if loss.normalize else LossParameter.BATCH_SIZE
    return default


class SoftmaxWithLoss(_Labelled):
    """Multinomial logistic loss of the softmax (caffe/layers/softmax_loss_layer.cpp); a second top is the softmax."""

    tops = (1, 2)
    is_loss = True

    def class_axis(self) -> int:
        return self.param.softmax_param.axis

    def setup(self, shapes: Sequence[Shape]) -> None:
        super().setup(shapes)
        loss = self.param.loss_param
        self.ignore = loss.ignore_label if loss.HasField("ignore_label") else None
        self.mode = _normalization(loss, LossParameter.VALID)

    def top_shapes(self, shapes: Sequence[Shape]) -> list[Shape]:
        return [(), shapes[0]][: len(self.top)]

    def forward(self, bottoms: list[Tensor], batch: int) -> list[Tensor]:
        scores, labels = self.rows(bottoms)
        losses = F.cross_entropy(scores, labels, ignore_index=self.ignored(), reduction="none")
        # Caffe's gradient does not know of the limit
        losses = _value_of(losses, losses.detach().clamp(max=LARGEST_LOSS))
        valid = None if self.ignore is None else (labels != self.ignore).sum()
        tops = [losses.sum() / self.normalizer(self.mode, self.outer(bottoms), labels.numel(), valid)]
        if len(self.top) > 1:
            tops.append(F.softmax(bottoms[0].detach(), self.class_dim))
        return tops


class _LogOfAtLeast(torch.autograd.Function):
    """log(max(p, least)) with the gradient 1 / max(p, least), also where p is less."""

    @staticmethod
    def forward(ctx: Any, p: Tensor, least: float) -> Tensor:
        p = p.clamp(min=least)
        ctx.save_for_backward(p)
        return p.log()

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        return grad_outputs[0] / ctx.saved_tensors[0], None


def _log_of_at_least(p: Tensor, least: float = _LEAST_PROBABILITY) -> Tensor:
    result = _LogOfAtLeast.apply(p, least)
    assert isinstance(result, Tensor)
    return result


def _value_of(x: Tensor, value: Tensor) -> Tensor:
    """``value``, with the gradient of x."""
    return value + (x - x.detach())


class MultinomialLogisticLoss(_Labelled):
    """Minus the mean logarithm of the label's probability (caffe/layers/multinomial_logistic_loss_layer.cpp)."""

    is_loss = True

    def setup(self, shapes: Sequence[Shape]) -> None:
        super().setup([(shapes[0][0], math.prod(shapes[0][1:])), shapes[1]])

    def forward(self, bottoms: list[Tensor], batch: int) -> list[Tensor]:
        scores, labels = self.rows([bottoms[0].flatten(1), bottoms[1]])
        own = scores.gather(1, labels[:, None])
        return [-_log_of_at_least(own).sum() / scores.shape[0]]


class InfogainLoss(_Labelled):
    """Loss of the softmax with a matrix H that says what each class is worth at each label (infogain_loss_layer.cpp).

    H is classes x classes, from infogain_loss_param.source or the third bottom; a second top is the softmax.
    """

    bottoms = (2, 3)
    tops = (1, 2)
    is_loss = True

    def class_axis(self) -> int:
        return self.param.infogain_loss_param.axis

    def setup(self, shapes: Sequence[Shape]) -> None:
        super().setup(shapes)
        loss = self.param.loss_param
        if loss.HasField("normalize"):
            raise self.error("does not know the old switch normalize; give normalization: VALID or BATCH_SIZE")
        self.ignore = loss.ignore_label if loss.HasField("ignore_label") else None
        self.mode = _normalization(loss, LossParameter.VALID)
        self.matrix: Tensor | None = None
        where, count = "bottom 2", math.prod(shapes[2]) if len(shapes) > 2 else 0
        if len(shapes) < 3:
            where = self.param.infogain_loss_param.source
            if not where:
                raise self.error("needs infogain_loss_param { source } or a third bottom, for its matrix")
            array = blob_to_array(read_binary(where, BlobProto()), where)
            self.matrix, count = torch.from_numpy(array.copy()).to(self.context.device), array.size
        if count != self.classes**2:
            raise self.error(f"the matrix ({where}) has {count} values; {self.classes} x {self.classes} are needed")

    def forward(self, bottoms: list[Tensor], batch: int) -> list[Tensor]:
        scores, labels = self.rows(bottoms)
        matrix = (bottoms[2].detach() if self.matrix is None else self.matrix).reshape(self.classes, self.classes)
        valid = labels != self.ignored()
        rows = matrix.to(scores.device)[torch.where(valid, labels, 0)] * valid[:, None]
        # the value is cut at a probability of 1e-20, the gradient is that of the logarithm of the softmax
        logs = F.log_softmax(scores, 1)
        logs = _value_of(logs, logs.detach().clamp(min=math.log(_LEAST_PROBABILITY)))
        count = None if self.ignore is None else valid.sum()
        loss = -(rows * logs).sum() / self.normalizer(self.mode, self.outer(bottoms), labels.numel(), count)
        return [loss, F.softmax(bottoms[0].detach(), self.class_dim)][: len(self.top)]


class SigmoidCrossEntropyLoss(_Labelled):
    """Cross-entropy of the sigmoid with targets from 0 to 1 (caffe/layers/sigmoid_cross_entropy_loss_layer.cpp)."""

    tops = (1, 2)
    is_loss = True

    def setup(self, shapes: Sequence[Shape]) -> None:
        if math.prod(shapes[0]) != math.prod(shapes[1]):
            raise self.error(f"needs as many targets as scores, not {list(shapes[1])} for {list(shapes[0])}")
        loss = self.param.loss_param
        self.ignore = loss.ignore_label if loss.HasField("ignore_label") else None
        self.mode = _normalization(loss, LossParameter.BATCH_SIZE)

    def forward(self, bottoms: list[Tensor], batch: int) -> list[Tensor]:
        scores, targets = bottoms[0], bottoms[1].detach().reshape(bottoms[0].shape)
        losses = F.binary_cross_entropy_with_logits(scores, targets, reduction="none")
        valid = None
        if self.ignore is not None:
            # a target is ignored when its integer part is the ignored label
            counted = targets.long() != self.ignore
            losses, valid = losses * counted, counted.sum()
        tops = [losses.sum() / self.normalizer(self.mode, scores.shape[0], scores.numel(), valid)]
        return [*tops, torch.sigmoid(scores.detach())][: len(self.top)]


class EuclideanLoss(Layer):
    """Half the mean, over images, of the squared distance of two blobs (caffe/layers/euclidean_loss_layer.cpp)."""

    bottoms = (2, 2)
    is_loss = True

    def setup(self, shapes: Sequence[Shape]) -> None:
        if shapes[0][0] != shapes[1][0] or math.prod(shapes[0]) != math.prod(shapes[1]):
            raise self.error(f"needs bottoms of one size, not {list(shapes[0])} and {list(shapes[1])}")

    def forward(self, bottoms: list[Tensor], batch: int) -> list[Tensor]:
        difference = bottoms[0].flatten() - bottoms[1].flatten()
        return [difference.square().sum() / (2 * bottoms[0].shape[0])]


class HingeLoss(_Labelled):
    """One-against-all hinge loss, L1 or L2, over images (caffe/layers/hinge_loss_layer.cpp)."""

    is_loss = True

    def setup(self, shapes: Sequence[Shape]) -> None:
        super().setup([(shapes[0][0], math.prod(shapes[0][1:])), shapes[1]])

    def forward(self, bottoms: list[Tensor], batch: int) -> list[Tensor]:
        scores, labels = self.rows([bottoms[0].flatten(1), bottoms[1]])
        sign = torch.ones_like(scores).scatter_(1, labels[:, None], -1)
        margins = (1 + sign * scores).clamp(min=0)
        norm = self.param.hinge_loss_param.norm
        return [(margins if norm == HingeLossParameter.L1 else margins.square()).sum() / scores.shape[0]]


class _ContrastiveDistance(torch.autograd.Function):
    """sqrt(x), with the gradient that Caffe's contrastive loss takes for it: 1 / (2 (sqrt(x) + 1e-4))."""

    @staticmethod
    def forward(ctx: Any, squares: Tensor) -> Tensor:
        distance = squares.sqrt()
        ctx.save_for_backward(distance)
        return distance

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> Tensor:
        return grad_outputs[0] / (2 * (ctx.saved_tensors[0] + 1e-4))


class ContrastiveLoss(Layer):
    """Of pairs: those alike (bottom 2 is not 0) cost their squared distance, others what they lack to the margin.

    As caffe/layers/contrastive_loss_layer.cpp; the legacy version takes the margin of squared distances.
    """

    bottoms = (3, 3)
    is_loss = True

    def setup(self, shapes: Sequence[Shape]) -> None:
        first, second, alike = shapes
        if first != second or math.prod(first[2:]) != 1 or math.prod(alike) != first[0]:
            raise self.error(
                "needs two blobs of num x channels and one value a pair, not "
                f"{', '.join(str(list(shape)) for shape in shapes)}"
            )

    def forward(self, bottoms: list[Tensor], batch: int) -> list[Tensor]:
        param = self.param.contrastive_loss_param
        first, second, alike = bottoms[0].flatten(1), bottoms[1].flatten(1), bottoms[2].detach().reshape(-1)
        squares = (first - second).square().sum(1)
        if param.legacy_version:
            apart = (param.margin - squares).clamp(min=0)
        else:
            distance = _ContrastiveDistance.apply(squares)
            assert isinstance(distance, Tensor)
            apart = (param.margin - distance).clamp(min=0).square()
        return [torch.where(alike.long() != 0, squares, apart).sum() / (2 * first.shape[0])]


class Accuracy(_Labelled):
    """Part of the places whose label is among the top_k scores; a tie counts against the label (accuracy_layer.cpp).

    A second top is the accuracy of each class, 0 for one that the batch does not have.
    """

    tops = (1, 2)

    def class_axis(self) -> int:
        return self.param.accuracy_param.axis

    def setup(self, shapes: Sequence[Shape]) -> None:
        super().setup(shapes)
        param = self.param.accuracy_param
        self.ignore = param.ignore_label if param.HasField("ignore_label") else None
        if not 1 <= param.top_k <= self.classes:
            raise self.error(f"top_k {param.top_k} must lie between 1 and the number of classes, {self.classes}")

    def top_shapes(self, shapes: Sequence[Shape]) -> list[Shape]:
        return [(), (self.classes,)][: len(self.top)]

    @torch.no_grad()
    def forward(self, bottoms: list[Tensor], batch: int) -> list[Tensor]:
        scores, labels = self.rows(bottoms)
        counted = labels != self.ignored()
        labels = torch.where(counted, labels, 0)
        better = (scores >= scores.gather(1, labels[:, None])).sum(1) - 1
        right = (better < self.param.accuracy_param.top_k) & counted
        tops = [right.sum() / counted.sum().clamp(min=1)]
        if len(self.top) > 1:
            sums = torch.zeros(2, self.classes, device=scores.device, dtype=scores.dtype)
            sums[0].index_add_(0, labels, right.to(sums.dtype))
            sums[1].index_add_(0, labels, counted.to(sums.dtype))
            tops.append(sums[0] / sums[1].clamp(min=1))
        return tops


LAYERS = (
    Accuracy,
    ContrastiveLoss,
    EuclideanLoss,
    HingeLoss,
    InfogainLoss,
    MultinomialLogisticLoss,
    SigmoidCrossEntropyLoss,
    SoftmaxWithLoss,
)
