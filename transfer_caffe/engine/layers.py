"""Caffe's layers on PyTorch: what each computes, and the blobs it learns.

A layer is built from its LayerParameter and the shapes of its bottoms, then called once an iteration. Gradients
come from autograd; an operation of Caffe's that PyTorch lacks, or has slowly, is an autograd function of its own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from transfer_caffe.engine import rng
from transfer_caffe.engine.fillers import fill
from transfer_caffe.errors import UserError
from transfer_caffe.proto.caffe_pb2 import FillerParameter, LayerParameter, LossParameter, LRNParameter
from transfer_caffe.proto.caffe_pb2 import PoolingParameter as Pool

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Context:
    """What all layers of a net share: the seed, the device, and the phase."""

    seed: int
    device: torch.device
    training: bool


@dataclass(eq=False)
class Blob:
    """A learnable blob: its values, Caffe's multipliers, and whether gradients are computed for it."""

    data: Tensor
    lr_mult: float
    decay_mult: float
    learned: bool


class Layer:
    """Base of all layers. ``name`` and ``type`` as in the prototxt; ``blobs`` are the learnable blobs in order."""

    # (least, most) bottoms and tops; most None: any number
    bottoms: ClassVar[tuple[int, int | None]] = (1, 1)
    tops: ClassVar[tuple[int, int | None]] = (1, 1)
    is_loss: ClassVar[bool] = False
    takes_labels: ClassVar[bool] = False

    def __init__(self, param: LayerParameter, context: Context) -> None:
        """Keep the settings; blobs are made by `setup`, once the bottoms' shapes are known."""
        self.param = param
        self.name: str = param.name
        self.type: str = param.type
        self.context = context
        self.blobs: list[Blob] = []
        for what, names, (least, most) in (("bottom", param.bottom, self.bottoms), ("top", param.top, self.tops)):
            if len(names) < least or (most is not None and len(names) > most):
                allowed = str(least) if least == most else f"{least} to {'any' if most is None else most}"
                raise self.error(f"takes {allowed} {what} blobs, not {len(names)}")
        if not all(param.propagate_down):
            raise self.error("propagate_down: false is not supported; give the layers below lr_mult: 0")

    def error(self, message: str) -> UserError:
        """An error that names this layer."""
        return UserError(f"layer {self.name!r} ({self.type}): {message}")

    def setup(self, shapes: Sequence[Shape]) -> None:
        """Check the bottoms' shapes and make the blobs."""

    def forward(self, bottoms: list[Tensor], batch: int) -> list[Tensor]:
        """The tops. ``batch`` counts the batches this net has seen: data and dropout are functions of it."""
        raise NotImplementedError

    def add_blob(self, shape: Shape, filler: FillerParameter) -> None:
        """Append a learnable blob, filled, with the multipliers of its ``param {}``."""
        index = len(self.blobs)
        generator = rng.torch_generator(self.context.seed, "fill", self.name, index)
        values = fill(shape, filler, generator, f"layer {self.name!r}, blob {index}").to(self.context.device)
        spec = self.param.param[index] if index < len(self.param.param) else None
        lr_mult, decay_mult = (spec.lr_mult, spec.decay_mult) if spec else (1.0, 1.0)
        learned = self.context.training and lr_mult != 0
        self.blobs.append(Blob(values.requires_grad_(learned), lr_mult, decay_mult, learned))

    def axis(self, axis: int, shape: Shape) -> int:
        """Caffe's CanonicalAxisIndex: a negative axis counts from the end."""
        if not -len(shape) <= axis < len(shape):
            raise self.error(f"axis {axis} is out of range for a blob of shape {list(shape)}")
        return axis % len(shape)


def _two(layer: Layer, param: Any, name: str, default: int | None) -> tuple[int, int]:
    """(height, width) of a spatial setting given as name_h/name_w, once, or once an axis."""
    high, wide = f"{name.removesuffix('_size')}_h", f"{name.removesuffix('_size')}_w"
    fields = param.DESCRIPTOR.fields_by_name
    if high in fields and (param.HasField(high) or param.HasField(wide)):
        return getattr(param, high), getattr(param, wide)
    given = getattr(param, name)
    if isinstance(given, int):
        # not repeated (PoolingParameter): one number, with a default of its own
        return (given, given)
    values = list(given) or ([default] if default is not None else [])
    if len(values) not in (1, 2):
        raise layer.error(f"{name} must be given once or for each of the 2 spatial axes, not {len(values)} times")
    return values[0], values[-1]


class Input(Layer):
    """Blobs of the given shapes, fed from outside; zeros until then."""

    bottoms = (0, 0)
    tops = (1, None)

    def setup(self, shapes: Sequence[Shape]) -> None:
        given = [tuple(shape.dim) for shape in self.param.input_param.shape]
        if len(given) not in (1, len(self.param.top)):
            raise self.error(f"input_param needs one shape, or one for each of the {len(self.param.top)} tops")
        self.shapes = given if len(given) > 1 else given * len(self.param.top)
        self.values = [torch.zeros(shape, device=self.context.device) for shape in self.shapes]

    def forward(self, bottoms: list[Tensor], batch: int) -> list[Tensor]:
        return list(self.values)


class Convolution(Layer):
    """Convolution with group, pad, stride and dilation (caffe/layers/conv_layer.cpp). Weights: out, in/group, h, w."""

    def setup(self, shapes: Sequence[Shape]) -> None:
        param, shape = self.param.convolution_param, shapes[0]
        if len(shape) != 4 or self.axis(param.axis, shape) != 1:
            raise self.error(f"needs a bottom of 4 axes (num, channels, height, width), not {list(shape)}")
        if not param.kernel_size and not param.HasField("kernel_h"):
            raise self.error("convolution_param gives no kernel_size")
        self.stride, self.pad = _two(self, param, "stride", 1), _two(self, param, "pad", 0)
        self.dilation, self.group = _two(self, param, "dilation", 1), param.group
        kernel, channels, outputs = _two(self, param, "kernel_size", None), shape[1], param.num_output
        if min(*kernel, *self.stride, *self.dilation) < 1 or outputs < 1:
            raise self.error("num_output, kernel_size, stride and dilation must be positive")
        if self.group < 1 or channels % self.group or outputs % self.group:
            raise self.error(f"group {self.group} must divide both {channels} channels and num_output {outputs}")
        for size, k, pad, dilation in zip(shape[2:], kernel, self.pad, self.dilation, strict=True):
            if size + 2 * pad < dilation * (k - 1) + 1:
                raise self.error(f"the kernel ({k}) is larger than the padded bottom {list(shape)}")
        self.add_blob((outputs, channels // self.group, *kernel), param.weight_filler)
        if param.bias_term:
            self.add_blob((outputs,), param.bias_filler)

    def forward(self, bottoms: list[Tensor], batch: int) -> list[Tensor]:
        weight, bias = self.blobs[0].data, self.blobs[1].data if len(self.blobs) > 1 else None
        return [F.conv2d(bottoms[0], weight, bias, self.stride, self.pad, self.dilation, self.group)]


class InnerProduct(Layer):
    """Fully connected layer (caffe/layers/inner_product_layer.cpp). Weights: outputs, inputs (transposed if so set)."""

    def setup(self, shapes: Sequence[Shape]) -> None:
        param, shape = self.param.inner_product_param, shapes[0]
        self.first = self.axis(param.axis, shape)
        inputs, outputs = math.prod(shape[self.first :]), param.num_output
        if outputs < 1:
            raise self.error("inner_product_param gives no num_output")
        self.transpose = param.transpose
        self.add_blob((inputs, outputs) if self.transpose else (outputs, inputs), param.weight_filler)
        if param.bias_term:
            self.add_blob((outputs,), param.bias_filler)

    def forward(self, bottoms: list[Tensor], batch: int) -> list[Tensor]:
        weight, bias = self.blobs[0].data, self.blobs[1].data if len(self.blobs) > 1 else None
        return [F.linear(bottoms[0].flatten(self.first), weight.t() if self.transpose else weight, bias)]


class ReLU(Layer):
    """max(x, 0) + negative_slope * min(x, 0)."""

    def forward(self, bottoms: list[Tensor], batch: int) -> list[Tensor]:
        slope = self.param.relu_param.negative_slope
        return [F.leaky_relu(bottoms[0], slope) if slope else F.relu(bottoms[0])]


class Pooling(Layer):
    """MAX and AVE pooling (caffe/layers/pooling_layer.cpp): output sizes round up, and a window that would start
    in the padding only is dropped; AVE divides by the window clipped to the padded image. PyTorch's ceil_mode
    follows the same rules.
    """

    def setup(self, shapes: Sequence[Shape]) -> None:
        param, shape = self.param.pooling_param, shapes[0]
        if len(shape) != 4:
            raise self.error(f"needs a bottom of 4 axes (num, channels, height, width), not {list(shape)}")
        if param.pool not in (Pool.MAX, Pool.AVE):
            raise self.error("only MAX and AVE pooling are supported, not STOCHASTIC")
        self.kernel = shape[2:] if param.global_pooling else _two(self, param, "kernel_size", None)
        self.stride, self.pad = _two(self, param, "stride", 1), _two(self, param, "pad", 0)
        self.ceil = param.round_mode == Pool.CEIL
        if min(*self.kernel, *self.stride) < 1:
            raise self.error("kernel_size and stride must be positive (or set global_pooling)")
        if any(2 * pad > k for pad, k in zip(self.pad, self.kernel, strict=True)):
            raise self.error(f"pad {list(self.pad)} of more than half the kernel {list(self.kernel)} is not supported")

    def forward(self, bottoms: list[Tensor], batch: int) -> list[Tensor]:
        if self.param.pooling_param.pool == Pool.MAX:
            return [F.max_pool2d(bottoms[0], self.kernel, self.stride, self.pad, ceil_mode=self.ceil)]
        return [F.avg_pool2d(bottoms[0], self.kernel, self.stride, self.pad, ceil_mode=self.ceil)]


class _LRNAcrossChannels(torch.autograd.Function):
    """y = x * scale^-beta, scale = k + alpha / size * (sum of x^2 over size channels around); see lrn_layer.cpp."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, size: int, alpha: float, beta: float, k: float) -> Tensor:
        scale = _channel_sums(x * x, size).mul_(alpha / size).add_(k)
        power = _negative_power(scale, beta)
        ctx.save_for_backward(x, scale, power)
        ctx.settings = size, alpha, beta
        return x * power

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,), (x, scale, power) = grad_outputs, ctx.saved_tensors
        size, alpha, beta = ctx.settings
        weighted = gradient * power
        sums = _channel_sums((weighted * x).div_(scale), size)
        return weighted.sub_(sums.mul_(x).mul_(2 * alpha * beta / size)), None, None, None, None


def _channel_sums(x: Tensor, size: int) -> Tensor:
    """For each channel the sum over the size channels around it (size is odd)."""
    sums = x.clone()
    for shift in range(1, min(size // 2, x.shape[1] - 1) + 1):
        sums[:, shift:] += x[:, :-shift]
        sums[:, :-shift] += x[:, shift:]
    return sums


def _negative_power(x: Tensor, beta: float) -> Tensor:
    # pow() costs several times two square roots, and 0.75 is what every CaffeNet has
    return x.sqrt().mul_(x.sqrt().sqrt_()).reciprocal_() if beta == 0.75 else x.pow(-beta)


class LRN(Layer):
    """Local response normalisation (caffe/layers/lrn_layer.cpp); alpha is divided by local_size."""

    def setup(self, shapes: Sequence[Shape]) -> None:
        param = self.param.lrn_param
        if len(shapes[0]) != 4:
            raise self.error(f"needs a bottom of 4 axes (num, channels, height, width), not {list(shapes[0])}")
        if param.local_size % 2 == 0:
            raise self.error(f"local_size must be odd, not {param.local_size}")

    def forward(self, bottoms: list[Tensor], batch: int) -> list[Tensor]:
        param, x = self.param.lrn_param, bottoms[0]
        if param.norm_region == LRNParameter.ACROSS_CHANNELS:
            y = _LRNAcrossChannels.apply(x, param.local_size, param.alpha, param.beta, param.k)
            assert isinstance(y, Tensor)
            return [y]
        # within a channel Caffe averages x^2 over a padded square (so alpha is divided by its area), and k is 1
        mean = F.avg_pool2d(x * x, param.local_size, 1, param.local_size // 2)
        return [x * (1 + param.alpha * mean).pow(-param.beta)]


class Dropout(Layer):
    """In training, zero a unit with probability dropout_ratio and scale the others by 1 / (1 - ratio)."""

    def setup(self, shapes: Sequence[Shape]) -> None:
        self.ratio = self.param.dropout_param.dropout_ratio
        if not 0 < self.ratio < 1:
            raise self.error(f"dropout_ratio must lie between 0 and 1, not {self.ratio:g}")

    def forward(self, bottoms: list[Tensor], batch: int) -> list[Tensor]:
        x = bottoms[0]
        if not self.context.training or x.is_meta:
            return [x.clone() if x.is_meta else x]
        generator = rng.torch_generator(self.context.seed, "dropout", self.name, batch, device=x.device)
        keep = torch.rand(x.shape, device=x.device, generator=generator).ge_(self.ratio)
        return [x * keep.mul_(1 / (1 - self.ratio))]


class Softmax(Layer):
    """Softmax over softmax_param.axis."""

    def forward(self, bottoms: list[Tensor], batch: int) -> list[Tensor]:
        return [F.softmax(bottoms[0], self.axis(self.param.softmax_param.axis, tuple(bottoms[0].shape)))]


class _Labelled(Layer):
    """A layer of scores and integer labels: the label blob has the scores' shape without the class axis."""

    bottoms = (2, 2)
    takes_labels = True
    ignore: int | None = None

    def class_axis(self) -> int:
        raise NotImplementedError

    def setup(self, shapes: Sequence[Shape]) -> None:
        scores, labels = shapes
        self.class_dim = self.axis(self.class_axis(), scores)
        self.classes = scores[self.class_dim]
        places = math.prod(scores) // self.classes
        if math.prod(labels) != places:
            raise self.error(
                f"needs one label for each of the {places} places of the scores {list(scores)}, "
                f"not labels of shape {list(labels)}"
            )

    def rows(self, bottoms: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Scores as (places, classes) and labels as (places,) integers."""
        return bottoms[0].movedim(self.class_dim, -1).reshape(-1, self.classes), bottoms[1].reshape(-1).long()


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
        # the old switch `normalize` counts only where `normalization` is not set
        old = not loss.HasField("normalization") and loss.HasField("normalize")
        self.mode = (LossParameter.VALID if loss.normalize else LossParameter.BATCH_SIZE) if old else loss.normalization
        self.batch_size = shapes[0][0]

    def forward(self, bottoms: list[Tensor], batch: int) -> list[Tensor]:
        scores, labels = self.rows(bottoms)
        ignore = -100 if self.ignore is None else self.ignore
        loss = F.cross_entropy(scores, labels, ignore_index=ignore, reduction="sum")
        tops = [loss / self.normalizer(labels)]
        if len(self.param.top) > 1:
            tops.append(F.softmax(bottoms[0], self.class_dim))
        return tops

    def normalizer(self, labels: Tensor) -> float | Tensor:
        """What the summed loss is divided by (LossLayer::GetNormalizer); never less than 1."""
        if self.mode == LossParameter.NONE:
            return 1.0
        if self.mode == LossParameter.BATCH_SIZE:
            return float(self.batch_size)
        if self.mode == LossParameter.FULL or self.ignore is None:
            return float(max(labels.numel(), 1))
        return (labels != self.ignore).sum().clamp(min=1)


class Accuracy(_Labelled):
    """Part of the places whose label is among the top_k scores; a tie counts against the label (accuracy_layer.cpp)."""

    tops = (1, 1)

    def class_axis(self) -> int:
        return self.param.accuracy_param.axis

    def setup(self, shapes: Sequence[Shape]) -> None:
        super().setup(shapes)
        param = self.param.accuracy_param
        self.ignore = param.ignore_label if param.HasField("ignore_label") else None
        if not 1 <= param.top_k <= self.classes:
            raise self.error(f"top_k {param.top_k} must lie between 1 and the number of classes, {self.classes}")

    @torch.no_grad()
    def forward(self, bottoms: list[Tensor], batch: int) -> list[Tensor]:
        scores, labels = self.rows(bottoms)
        counted = torch.ones_like(labels, dtype=torch.bool) if self.ignore is None else labels != self.ignore
        own = scores.gather(1, torch.where(counted, labels, 0)[:, None])
        better = (scores >= own).sum(1) - 1
        right = (better < self.param.accuracy_param.top_k) & counted
        return [right.sum() / counted.sum().clamp(min=1)]


LAYERS: dict[str, type[Layer]] = {
    "Accuracy": Accuracy,
    "Convolution": Convolution,
    "Dropout": Dropout,
    "InnerProduct": InnerProduct,
    "Input": Input,
    "LRN": LRN,
    "Pooling": Pooling,
    "ReLU": ReLU,
    "Softmax": Softmax,
    "SoftmaxWithLoss": SoftmaxWithLoss,
}
