"""Loss layers and Accuracy (caffe/layers/loss_layer.cpp and the file of each layer)."""

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
"""The largest loss of a label in SoftmaxWithLoss: Caffe clamps probabilities to at least FLT_MIN."""
_LEAST_PROBABILITY = 1e-20  # kLOG_THRESHOLD of InfogainLoss and MultinomialLogisticLoss


class _Labelled(Layer):
    """Base class of layers with scores and integer labels, one label for each position of the scores.

    The label blob has the shape of the scores without the class axis.
    """

    bottoms = (2, 2)
    label_bottom = 1
    ignore: int | None = None
    check_labels = True

    def class_axis(self) -> int:
        """Return the class axis of the scores."""
        return 1

    def setup(self, shapes: Sequence[Shape]) -> None:
        scores, labels = shapes[0], shapes[1]
        if self.is_loss and scores[:1] != labels[:1]:
            raise self.error(
                f"needs as many labels as images; the labels are {list(labels)}, the scores {list(scores)}"
            )
        self.class_dim = self.axis(self.class_axis(), scores)
        self.classes = scores[self.class_dim]
        places = math.prod(scores) // self.classes
        self.one_each = len(scores) > 0 and places == scores[0]
        """Whether each image has one label."""
        if math.prod(labels) != places:
            raise self.error(
                f"needs one label for each of the {places} positions of the scores {list(scores)}, "
                f"not labels of shape {list(labels)}"
            )

    def rows(self, bottoms: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Return the scores as (positions, classes) and the labels as (positions,) integers.

        On a CPU, raise UserError for a label that is out of range.
        """
        labels = bottoms[1].detach().reshape(-1).long()
        if self.check_labels and labels.device.type == "cpu":
            wrong = labels[((labels < 0) | (labels >= self.classes)) & (labels != self.ignored())]
            if wrong.numel():
                raise self.error(f"label {wrong[0]} is out of range; the classes are 0 to {self.classes - 1}")
        return bottoms[0].movedim(self.class_dim, -1).reshape(-1, self.classes), labels

    def outer(self, bottoms: list[Tensor]) -> int:
        """Return the number of positions before the class axis, the images (a Filter may have removed some)."""
        return math.prod(bottoms[0].shape[: self.class_dim])

    def ignored(self) -> int:
        """Return the label to ignore; a value that no image has if none is set."""
        return -sys.maxsize if self.ignore is None else self.ignore

    def normalizer(self, mode: int, outer: int, labels: int, valid: Tensor | None) -> float | Tensor:
        """Return the divisor of the summed loss (LossLayer::GetNormalizer), at least 1.

        ``outer`` is the number of images, ``labels`` the number of labels, ``valid`` the number of labels that are not
        ignored (None: all of them).
        """
        if mode == LossParameter.NONE:
            return 1.0
        if mode == LossParameter.BATCH_SIZE:
            return float(outer)
        if mode == LossParameter.FULL or valid is None:
            return float(max(labels, 1))
        return valid.clamp(min=1)


def _normalization(loss: LossParameter, default: int) -> int:
    """Return the normalisation mode of a loss_param; the deprecated `normalize` applies if `normalization` is unset."""
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
        # Caffe's gradient ignores the clamp
        losses = _value_of(losses, losses.detach().clamp(max=LARGEST_LOSS))
        valid = None if self.ignore is None else (labels != self.ignore).sum()
        tops = [losses.sum() / self.normalizer(self.mode, self.outer(bottoms), labels.numel(), valid)]
        if len(self.top) > 1:
            tops.append(F.softmax(bottoms[0].detach(), self.class_dim))
        return tops


class _LogOfAtLeast(torch.autograd.Function):
    """log(max(p, least)), with the gradient 1 / max(p, least) also where p < least."""

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
    """Return ``value``, with the gradient of x."""
    return value + (x - x.detach())


class MultinomialLogisticLoss(_Labelled):
    """Negative mean log probability of the label (caffe/layers/multinomial_logistic_loss_layer.cpp)."""

    is_loss = True

    def setup(self, shapes: Sequence[Shape]) -> None:
        super().setup([(shapes[0][0], math.prod(shapes[0][1:])), shapes[1]])

    def forward(self, bottoms: list[Tensor], batch: int) -> list[Tensor]:
        scores, labels = self.rows([bottoms[0].flatten(1), bottoms[1]])
        own = scores.gather(1, labels[:, None])
        return [-_log_of_at_least(own).sum() / scores.shape[0]]


class InfogainLoss(_Labelled):
    """Softmax loss weighted by an infogain matrix H (caffe/layers/infogain_loss_layer.cpp).

    H is classes x classes (row: label), from infogain_loss_param.source or the third bottom. A second top is the
    softmax.
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
            raise self.error("does not support the deprecated normalize; set normalization: VALID or BATCH_SIZE")
        self.ignore = loss.ignore_label if loss.HasField("ignore_label") else None
        self.mode = _normalization(loss, LossParameter.VALID)
        self.matrix: Tensor | None = None
        where, count = "bottom 2", math.prod(shapes[2]) if len(shapes) > 2 else 0
        if len(shapes) < 3:
            where = self.param.infogain_loss_param.source
            if not where:
                raise self.error("needs infogain_loss_param { source } or a third bottom for its matrix")
            array = blob_to_array(read_binary(where, BlobProto()), where)
            self.matrix, count = torch.from_numpy(array.copy()).to(self.context.device), array.size
        if count != self.classes**2:
            raise self.error(f"the matrix ({where}) has {count} values; {self.classes} x {self.classes} are needed")

    def forward(self, bottoms: list[Tensor], batch: int) -> list[Tensor]:
        scores, labels = self.rows(bottoms)
        matrix = (bottoms[2].detach() if self.matrix is None else self.matrix).reshape(self.classes, self.classes)
        valid = labels != self.ignored()
        rows = matrix.to(scores.device)[torch.where(valid, labels, 0)] * valid[:, None]
        # the value clamps probabilities to at least 1e-20, the gradient is the unclamped log softmax's
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
    """Half the squared distance of two blobs, averaged over images (caffe/layers/euclidean_loss_layer.cpp)."""

    bottoms = (2, 2)
    is_loss = True

    def setup(self, shapes: Sequence[Shape]) -> None:
        if shapes[0][0] != shapes[1][0] or math.prod(shapes[0]) != math.prod(shapes[1]):
            raise self.error(f"needs bottoms of the same size, not {list(shapes[0])} and {list(shapes[1])}")

    def top_shapes(self, shapes: Sequence[Shape]) -> list[Shape]:
        return [()]

    def forward(self, bottoms: list[Tensor], batch: int) -> list[Tensor]:
        difference = bottoms[0].flatten() - bottoms[1].flatten()
        return [difference.square().sum() / (2 * bottoms[0].shape[0])]


class HingeLoss(_Labelled):
    """One-vs-all hinge loss, L1 or L2, averaged over images (caffe/layers/hinge_loss_layer.cpp)."""

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
    """sqrt(x), with the gradient that Caffe's contrastive loss uses: 1 / (2 (sqrt(x) + 1e-4))."""

    @staticmethod
    def forward(ctx: Any, squares: Tensor) -> Tensor:
        distance = squares.sqrt()
        ctx.save_for_backward(distance)
        return distance

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> Tensor:
        return grad_outputs[0] / (2 * (ctx.saved_tensors[0] + 1e-4))


class ContrastiveLoss(Layer):
    """Contrastive loss of pairs of vectors (caffe/layers/contrastive_loss_layer.cpp).

    Similar pairs (bottom 2 is not 0) cost their squared distance, dissimilar ones max(margin - distance, 0)^2. The
    legacy version compares the squared distance with the margin: max(margin - distance^2, 0).
    """

    bottoms = (3, 3)
    is_loss = True

    def setup(self, shapes: Sequence[Shape]) -> None:
        first, second, alike = shapes
        if first != second or math.prod(first[2:]) != 1 or math.prod(alike) != first[0]:
            raise self.error(
                "needs two blobs of num x channels and one value per pair, not "
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
    """Fraction of positions whose label is among the top_k scores; ties count as errors (accuracy_layer.cpp).

    A second top is the accuracy per class; 0 for classes that do not occur in the batch.
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
