"""Layers for blobs of any shape, with weights or normalising: InnerProduct, Embed, BatchNorm, Scale, Bias, MVN, ..."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from transfer_caffe.engine.layers.base import Layer, ReadsTop, Shape, default_filler
from transfer_caffe.formats.proto.caffe_pb2 import EltwiseParameter, FillerParameter
from transfer_caffe.formats.shapes import inner_product_blobs


class InnerProduct(Layer):
    """Fully connected layer (caffe/layers/inner_product_layer.cpp).

    Weights: (outputs, inputs), or (inputs, outputs) with ``transpose``.
    """

    precision = "low"

    def setup(self, shapes: Sequence[Shape]) -> None:
        param, shape = self.param.inner_product_param, shapes[0]
        self.first = self.axis(param.axis, shape)
        inputs, outputs = math.prod(shape[self.first :]), param.num_output
        if outputs < 1:
            raise self.error("inner_product_param has no num_output")
        self.transpose = param.transpose
        for blob, filler in zip(
            inner_product_blobs(param, inputs), (param.weight_filler, param.bias_filler), strict=False
        ):
            self.add_blob(blob, filler)

    def top_shapes(self, shapes: Sequence[Shape]) -> list[Shape]:
        return [(*shapes[0][: self.first], self.param.inner_product_param.num_output)]

    def forward(self, bottoms: list[Tensor], batch: int) -> list[Tensor]:
        x = bottoms[0].flatten(self.first)
        weight, *bias = (blob.in_type(x.dtype) for blob in self.blobs)
        return [_linear(x, weight.t() if self.transpose else weight, bias[0] if bias else None)]


LARGE = 1 << 20
"""Number of weights from which oneDNN's matrix product is called explicitly; below, its overhead outweighs the gain."""

_onednn: Any = getattr(torch.ops.mkldnn, "_linear_pointwise", None) if torch.backends.mkldnn.is_available() else None


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return x (rows, inputs) times the transpose of weight (outputs, inputs), plus bias."""
    plain = x.device.type == "cpu" and x.dtype == torch.float32 and x.ndim == 2
    if _onednn is None or not plain or weight.numel() < LARGE:
        return F.linear(x, weight, bias)
    y = _LargeLinear.apply(x, weight, bias)
    assert isinstance(y, Tensor)
    return y


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return the same product as `_linear`, for float32 on a CPU and without autograd."""
    if _onednn is None or weight.numel() < LARGE:
        return F.linear(x, weight, bias)
    return _onednn(x.contiguous(), weight, bias, "none", [], "")


class _LargeLinear(torch.autograd.Function):
    """F.linear with oneDNN's matrix product instead of MKL's, for the top and for the bottom's gradient.

    On an AMD EPYC these reach 95 and 86 instead of 75 and 66 GFLOP/s per core (batch 64), which saves 1.4% of an
    iteration of CaffeNet.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _onednn(x, weight, bias, "none", [], "")

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,), (x, weight) = grad_outputs, ctx.saved_tensors
        gradient = gradient.contiguous()
        by_x, by_weight, by_bias = ctx.needs_input_grad
        return (
            _onednn(gradient, weight.t(), None, "none", [], "") if by_x else None,
            gradient.t() @ x if by_weight else None,
            gradient.sum(0) if by_bias else None,
        )


class Embed(Layer):
    """Look up a learned vector for each integer (caffe/layers/embed_layer.cpp). Weights: (input_dim, num_output)."""

    def setup(self, shapes: Sequence[Shape]) -> None:
        param = self.param.embed_param
        if param.num_output < 1 or param.input_dim < 1:
            raise self.error("embed_param needs num_output and input_dim")
        self.add_blob((param.input_dim, param.num_output), param.weight_filler)
        if param.bias_term:
            self.add_blob((param.num_output,), param.bias_filler)

    def forward(self, bottoms: list[Tensor], batch: int) -> list[Tensor]:
        places = bottoms[0].detach().long()
        if places.device.type == "cpu" and places.numel():
            least, most = int(places.min()), int(places.max())
            if least < 0 or most >= self.blobs[0].data.shape[0]:
                raise self.error(
                    f"its bottom holds {least if least < 0 else most}, which is outside of 0 to input_dim - 1, "
                    f"{self.blobs[0].data.shape[0] - 1}"
                )
        top = F.embedding(places, self.blobs[0].data)
        return [top + self.blobs[1].data if len(self.blobs) > 1 else top]


class BatchNorm(Layer):
    """Batch normalisation without scale and bias (caffe/layers/batch_norm_layer.cpp).

    Blobs: the moving sums of the batches' means and variances per channel (decay: moving_average_fraction), and the sum
    of their weights. The forward pass of training updates them; they are never learned by gradients.
    """

    ignores_propagate_down = True
    keeps_shape = True

    def setup(self, shapes: Sequence[Shape]) -> None:
        param, shape = self.param.batch_norm_param, shapes[0]
        self.global_stats = param.use_global_stats if param.HasField("use_global_stats") else not self.context.training
        if len(shape) < 2:
            raise self.error(f"needs a bottom of 2 or more axes (num, channels, ...), not {list(shape)}")
        channels = shape[1]
        if any(spec.HasField("lr_mult") and spec.lr_mult for spec in self.param.param):
            raise self.error("its statistics are not learned: set lr_mult: 0 in its param {}, or remove param {}")
        for size in (channels, channels, 1):
            self.add_blob((size,), FillerParameter())
            statistic = self.blobs[-1]
            statistic.data.requires_grad_(False)
            statistic.lr_mult, statistic.learned = 0.0, False
        self.channels, self.eps, self.fraction = channels, param.eps, param.moving_average_fraction

    def forward(self, bottoms: list[Tensor], batch: int) -> list[Tensor]:
        x = bottoms[0]
        means, variances, weight = (blob.data for blob in self.blobs)
        if self.global_stats:
            factor = torch.where(weight == 0, 0.0, 1 / weight)
            return [F.batch_norm(x, means * factor, variances * factor, eps=self.eps)]
        count = x.numel() // self.channels
        if count == 1:
            # with one value per channel, that value is the mean
            y, mean, variance = x * 0, x.detach().reshape(-1), torch.zeros_like(variances)
        else:
            # with momentum 1 these become the batch's mean and unbiased variance, which Caffe accumulates
            mean, variance = torch.zeros_like(means), torch.zeros_like(variances)
            y = F.batch_norm(x, mean, variance, training=True, momentum=1.0, eps=self.eps)
        if not x.is_meta:
            with torch.no_grad():
                means.mul_(self.fraction).add_(mean)
                variances.mul_(self.fraction).add_(variance)
                weight.mul_(self.fraction).add_(1)
        return [y]


class Bias(Layer):
    """Add a blob, learned or the second bottom, broadcast from ``axis`` on (caffe/layers/bias_layer.cpp)."""

    bottoms = (1, 2)
    keeps_shape = True

    def setup(self, shapes: Sequence[Shape]) -> None:
        param = self.param.bias_param
        shape = self.place(shapes, param.axis, param.num_axes)
        if len(shapes) == 1:
            self.add_blob(shape, param.filler)

    def place(self, shapes: Sequence[Shape], axis: int, num_axes: int) -> Shape:
        """Return the shape of the added blob, and set ``wide``, the shape in which it is broadcast."""
        shape = shapes[0]
        # a blob without axes (a scalar) is placed at the first axis, whatever `axis` is
        first = 0 if len(shapes) > 1 and not shapes[1] else self.axis(axis, shape)
        if len(shapes) > 1:
            own = shapes[1]
        else:
            if num_axes < -1 or first + num_axes > len(shape):
                raise self.error(f"num_axes {num_axes} from axis {axis} on does not fit a blob of shape {list(shape)}")
            own = shape[first:] if num_axes == -1 else shape[first : first + num_axes]
        if shape[first : first + len(own)] != own:
            raise self.error(f"bottom 1 is {list(own)}, which does not fit axis {axis} of bottom 0, {list(shape)}")
        self.wide = (*own, *(1,) * (len(shape) - first - len(own)))
        return own

    def forward(self, bottoms: list[Tensor], batch: int) -> list[Tensor]:
        other = bottoms[1] if len(bottoms) > 1 else self.blobs[0].data
        return [bottoms[0] + other.reshape(self.wide)]


class Scale(Bias):
    """Multiply by a blob, learned or the second bottom, and optionally add a bias (caffe/layers/scale_layer.cpp)."""

    ignores_propagate_down = True

    def setup(self, shapes: Sequence[Shape]) -> None:
        param = self.param.scale_param
        shape = self.place(shapes, param.axis, param.num_axes)
        if len(shapes) == 1:
            self.add_blob(shape, default_filler(param.filler, param.HasField("filler"), 1))
        if param.bias_term:
            self.add_blob(shape, param.bias_filler)

    def forward(self, bottoms: list[Tensor], batch: int) -> list[Tensor]:
        scale = bottoms[1] if len(bottoms) > 1 else self.blobs[0].data
        top = bottoms[0] * scale.reshape(self.wide)
        return [top + self.blobs[-1].data.reshape(self.wide) if self.param.scale_param.bias_term else top]


class _Normalised(torch.autograd.Function):
    """Subtract each row's mean and divide by its standard deviation + eps; the gradient ignores eps (mvn_layer.cpp)."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, eps: float) -> Tensor:
        deviation = _deviation(rows, eps)
        y = (rows - rows.mean(-1, keepdim=True)) / deviation
        ctx.save_for_backward(y, deviation)
        return y

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        return _normalised_gradient(grad_outputs[0], *ctx.saved_tensors), None


def _deviation(rows: Tensor, eps: float) -> Tensor:
    return (rows - rows.mean(-1, keepdim=True)).square().mean(-1, keepdim=True).sqrt() + eps


def _normalised_gradient(gradient: Tensor, y: Tensor, deviation: Tensor) -> Tensor:
    along = (gradient * y).mean(-1, keepdim=True)
    return (gradient - gradient.mean(-1, keepdim=True) - y * along) / deviation


class MVN(ReadsTop):
    """Normalise each image, or each of its channels, to mean 0 and variance 1 (caffe/layers/mvn_layer.cpp).

    The top always has four axes; missing ones are appended with size 1.
    """

    def setup(self, shapes: Sequence[Shape]) -> None:
        if len(shapes[0]) > 4:
            raise self.error(f"needs a bottom of at most 4 axes, not {list(shapes[0])}")

    def value(self, x: Tensor) -> Tensor:
        param, rows = self.param.mvn_param, self._rows(x)
        if not param.normalize_variance:
            return (rows - rows.mean(-1, keepdim=True)).reshape(_four_axes(x))
        y = _Normalised.apply(rows, param.eps)
        assert isinstance(y, Tensor)
        return y.reshape(_four_axes(x))

    def gradient(self, above: Tensor, x: Tensor, top: Tensor) -> Tensor:
        rows, param = self._rows(above), self.param.mvn_param
        if param.normalize_variance:
            below = _normalised_gradient(rows, self._rows(top), _deviation(self._rows(x), param.eps))
        else:
            below = rows - rows.mean(-1, keepdim=True)
        return below.reshape(x.shape)

    def _rows(self, x: Tensor) -> Tensor:
        x = x.reshape(_four_axes(x))
        return x.flatten(1)[:, None] if self.param.mvn_param.across_channels else x.flatten(2)


def _four_axes(x: Tensor) -> Shape:
    return (*x.shape, *(1,) * (4 - x.ndim))


class Softmax(ReadsTop):
    """Softmax over softmax_param.axis."""

    ignores_propagate_down = True

    def setup(self, shapes: Sequence[Shape]) -> None:
        self.over = self.axis(self.param.softmax_param.axis, shapes[0])

    def value(self, x: Tensor) -> Tensor:
        return F.softmax(x, self.over)

    def gradient(self, above: Tensor, x: Tensor, top: Tensor) -> Tensor:
        return (above - (above * top).sum(self.over, keepdim=True)) * top


class ArgMax(Layer):
    """Indices of the top_k largest values, or the values (caffe/layers/argmax_layer.cpp); no gradient passes.

    Without ``axis`` the maximum is copied each image; the top is then num x 1 x top_k (indices), or with
    out_max_val num x 2 x top_k (indices and values). Of equal values, the one with the larger index comes first.
    """

    def setup(self, shapes: Sequence[Shape]) -> None:
        param, shape = self.param.argmax_param, shapes[0]
        self.over = self.axis(param.axis, shape) if param.HasField("axis") else None
        size = shape[self.over] if self.over is not None else math.prod(shape[1:])
        if not 1 <= param.top_k <= size:
            raise self.error(f"top_k {param.top_k} must lie between 1 and {size}")

    def forward(self, bottoms: list[Tensor], batch: int) -> list[Tensor]:
        param, x = self.param.argmax_param, bottoms[0].detach()
        rows = x.flatten(1) if self.over is None else x.movedim(self.over, -1)
        values, places = rows.flip(-1).sort(dim=-1, descending=True, stable=True)
        values = values[..., : param.top_k]
        places = (rows.shape[-1] - 1 - places[..., : param.top_k]).to(x.dtype)
        if self.over is not None:
            return [(values if param.out_max_val else places).movedim(-1, self.over)]
        top = torch.stack([places, values], 1) if param.out_max_val else places[:, None]
        return [top.reshape(*top.shape, *(1,) * (x.ndim - 3))]


class _Largest(torch.autograd.Function):
    """Elementwise maximum; the gradient goes to the blob that Caffe selects (eltwise_layer.cpp).

    If the first two blobs are equal that is the second; a later blob must be strictly larger.
    """

    @staticmethod
    def forward(ctx: Any, *blobs: Tensor) -> Tensor:
        top, taken = blobs[0], torch.zeros_like(blobs[0], dtype=torch.long)
        for index, blob in enumerate(blobs[1:], start=1):
            better = blob >= top if index == 1 else blob > top
            top, taken = torch.where(better, blob, top), torch.where(better, index, taken)
        ctx.save_for_backward(taken)
        ctx.count = len(blobs)
        return top

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, ...]:
        (taken,) = ctx.saved_tensors
        return tuple(torch.where(taken == index, grad_outputs[0], 0) for index in range(ctx.count))


class Eltwise(Layer):
    """Elementwise sum (with coefficients), product or maximum of blobs of the same shape.

    See caffe/layers/eltwise_layer.cpp.
    """

    bottoms = (2, None)
    keeps_shape = True

    def setup(self, shapes: Sequence[Shape]) -> None:
        param = self.param.eltwise_param
        self.require_same_shape(shapes)
        if param.coeff and (len(param.coeff) != len(shapes) or param.operation == EltwiseParameter.PROD):
            raise self.error(
                f"coeff must be given once per bottom ({len(shapes)}), and not with PROD; it is given "
                f"{len(param.coeff)} times"
            )

    def forward(self, bottoms: list[Tensor], batch: int) -> list[Tensor]:
        param = self.param.eltwise_param
        if param.operation == EltwiseParameter.MAX:
            top = _Largest.apply(*bottoms)
            assert isinstance(top, Tensor)
            return [top]
        if param.operation == EltwiseParameter.PROD:
            return [math.prod(bottoms[1:], start=bottoms[0])]
        coefficients = list(param.coeff) or [1.0] * len(bottoms)
        terms = [bottom if c == 1 else bottom * c for bottom, c in zip(bottoms, coefficients, strict=True)]
        return [sum(terms[1:], start=terms[0])]


class Parameter(Layer):
    """A learned blob as the top (caffe/layers/parameter_layer.hpp); it is initialised with zeros."""

    bottoms = (0, 0)

    def setup(self, shapes: Sequence[Shape]) -> None:
        self.add_blob(tuple(self.param.parameter_param.shape.dim), FillerParameter())

    def forward(self, bottoms: list[Tensor], batch: int) -> list[Tensor]:
        # a copy: an update that is recorded with the passes changes the blob before its values are displayed
        return [self.blobs[0].data.clone()]


LAYERS = (InnerProduct, Embed, BatchNorm, Bias, Scale, MVN, Softmax, ArgMax, Eltwise, Parameter)
