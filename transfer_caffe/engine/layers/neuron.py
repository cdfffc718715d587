"""Elementwise layers: ReLU, Sigmoid, Power, Dropout, ... (caffe/layers/neuron_layer.hpp)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from transfer_caffe.engine import rng
from transfer_caffe.engine.layers.base import Layer, ReadsTop, Shape, default_filler


class Neuron(ReadsTop):
    """An elementwise function, `value`, with the derivative, `slope`, that Caffe's backward pass computes from buffers.

    When a layer works in place, the old values in its buffer are lost, and Caffe computes the gradient from the new
    ones. This happens, for example, with Sigmoid followed by in-place Dropout, and with in-place BNLL.
    """

    keeps_shape = True
    keeps_slope_in_place = True
    """Whether the gradient in place, with no in-place layer after it, is the same as with a separate top."""

    def slope(self, bottom: Tensor, top: Tensor) -> Tensor:
        """Return the derivative, computed from the content of the bottom's and top's buffers in the backward pass."""
        raise NotImplementedError

    def gradient(self, above: Tensor, x: Tensor, top: Tensor) -> Tensor:
        return above * self.slope(top if self.in_place else x, top)


class AbsVal(Layer):
    """|x|; the gradient at 0 is 0."""

    keeps_shape = True

    def setup(self, shapes: Sequence[Shape]) -> None:
        if self.in_place:
            raise self.error("cannot work in place: give its top a different name from its bottom")

    def forward(self, bottoms: list[Tensor], batch: int) -> list[Tensor]:
        return [bottoms[0].abs()]


class BNLL(Neuron):
    """log(1 + exp(x))."""

    keeps_slope_in_place = False

    def value(self, x: Tensor) -> Tensor:
        return F.softplus(x)

    def slope(self, bottom: Tensor, top: Tensor) -> Tensor:
        return torch.sigmoid(bottom)


class Clip(Neuron):
    """max(min, min(x, max)); with one call, PyTorch would take the smaller end if they are the wrong way round."""

    keeps_slope_in_place = False

    def value(self, x: Tensor) -> Tensor:
        return x.clamp(max=self.param.clip_param.max).clamp(min=self.param.clip_param.min)

    def slope(self, bottom: Tensor, top: Tensor) -> Tensor:
        param = self.param.clip_param
        return ((bottom >= param.min) & (bottom <= param.max)).to(bottom.dtype)


class Dropout(Layer):
    """In training, zero a unit with probability dropout_ratio and scale the others by 1 / (1 - ratio)."""

    precision = "given"

    def setup(self, shapes: Sequence[Shape]) -> None:
        self.ratio = self.param.dropout_param.dropout_ratio
        if not 0 <= self.ratio < 1:
            raise self.error(f"dropout_ratio must be at least 0 and less than 1, not {self.ratio:g}")
        self.generator: torch.Generator | None = None
        """The generator used inside a CUDA graph (`iteration.graph`); otherwise each batch has its own generator."""

    def seed(self, batch: int) -> int:
        """Return the seed of a batch's mask."""
        return rng.derived_seed(self.context.seed, "dropout", self.key, batch)

    def forward(self, bottoms: list[Tensor], batch: int) -> list[Tensor]:
        x = bottoms[0]
        if not self.context.training or x.is_meta:
            return [x]
        return [(x * self.mask(x.shape, x.device, batch)).to(x.dtype)]

    def mask(self, shape: Sequence[int], device: torch.device, batch: int) -> Tensor:
        """Return the mask by which a batch is multiplied: 0 for dropped units, 1 / (1 - ratio) for the others."""
        generator = self.generator or torch.Generator(device=device).manual_seed(self.seed(batch))
        keep = torch.rand(shape, device=device, generator=generator).ge_(self.ratio)
        return keep.mul_(1 / (1 - self.ratio))


class ELU(Neuron):
    """x where x > 0, otherwise alpha * (exp(x) - 1)."""

    def value(self, x: Tensor) -> Tensor:
        return F.elu(x, self.param.elu_param.alpha)

    def slope(self, bottom: Tensor, top: Tensor) -> Tensor:
        return torch.where(bottom > 0, 1.0, top + self.param.elu_param.alpha)


class Exp(Neuron):
    """base ^ (shift + scale * x); base -1 is e."""

    def setup(self, shapes: Sequence[Shape]) -> None:
        param = self.param.exp_param
        if param.base != -1 and param.base <= 0:
            raise self.error(f"base must be positive (or -1 for e), not {param.base:g}")
        self.log_base = 1.0 if param.base == -1 else math.log(param.base)

    def value(self, x: Tensor) -> Tensor:
        param = self.param.exp_param
        return torch.exp(x * (self.log_base * param.scale)) * math.exp(self.log_base * param.shift)

    def slope(self, bottom: Tensor, top: Tensor) -> Tensor:
        return top * (self.log_base * self.param.exp_param.scale)


class Log(Layer):
    """The logarithm to ``base`` of shift + scale * x; base -1 is e."""

    keeps_shape = True

    def setup(self, shapes: Sequence[Shape]) -> None:
        param = self.param.log_param
        if param.base != -1 and (param.base <= 0 or param.base == 1):
            raise self.error(f"base must be positive and not 1 (or -1 for e), not {param.base:g}")
        self.log_base = 1.0 if param.base == -1 else math.log(param.base)

    def forward(self, bottoms: list[Tensor], batch: int) -> list[Tensor]:
        param = self.param.log_param
        return [torch.log(bottoms[0] * param.scale + param.shift) / self.log_base]


class Power(ReadsTop):
    """(shift + scale * x) ^ power (caffe/layers/power_layer.cpp)."""

    keeps_shape = True

    def value(self, x: Tensor) -> Tensor:
        param = self.param.power_param
        if param.power * param.scale == 0:
            # a constant, independent of x, with gradient 0
            return x * 0 + (1.0 if param.power == 0 else torch.tensor(param.shift).pow(param.power).item())
        inner = x * param.scale + param.shift
        return inner if param.power == 1 else inner.pow(param.power)

    def gradient(self, above: Tensor, x: Tensor, top: Tensor) -> Tensor:
        param = self.param.power_param
        inner, factor = x * param.scale + param.shift, param.power * param.scale
        if factor == 0 or param.power == 1:
            return above * factor
        return above * factor * (inner if param.power == 2 else top / inner)


class PReLU(Layer):
    """max(x, 0) + slope * min(x, 0), with a learned slope for each channel or one shared by all channels."""

    keeps_shape = True

    def setup(self, shapes: Sequence[Shape]) -> None:
        param, shape = self.param.prelu_param, shapes[0]
        if len(shape) < 2:
            raise self.error(f"needs a bottom of 2 or more axes, not {list(shape)}")
        self.wide = () if param.channel_shared else (shape[1], *(1,) * (len(shape) - 2))
        self.add_blob(
            () if param.channel_shared else (shape[1],), default_filler(param.filler, param.HasField("filler"), 0.25)
        )

    def forward(self, bottoms: list[Tensor], batch: int) -> list[Tensor]:
        x, slope = bottoms[0], self.blobs[0].data.reshape(self.wide)
        return [torch.where(x > 0, x, slope * x)]


class ReLU(Neuron):
    """max(x, 0) + negative_slope * min(x, 0)."""

    precision = "given"

    def value(self, x: Tensor) -> Tensor:
        slope = self.param.relu_param.negative_slope
        return F.leaky_relu(x, slope) if slope else F.relu(x)

    def slope(self, bottom: Tensor, top: Tensor) -> Tensor:
        return torch.where(bottom > 0, 1.0, self.param.relu_param.negative_slope)


class Sigmoid(Neuron):
    """1 / (1 + exp(-x))."""

    def value(self, x: Tensor) -> Tensor:
        return torch.sigmoid(x)

    def slope(self, bottom: Tensor, top: Tensor) -> Tensor:
        return top * (1 - top)


class Swish(ReadsTop):
    """x * sigmoid(beta * x)."""

    keeps_shape = True

    def value(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(x * self.param.swish_param.beta)

    def gradient(self, above: Tensor, x: Tensor, top: Tensor) -> Tensor:
        beta = self.param.swish_param.beta
        return above * (beta * top + torch.sigmoid(x * beta) * (1 - beta * top))


class TanH(Neuron):
    """The hyperbolic tangent."""

    def value(self, x: Tensor) -> Tensor:
        return torch.tanh(x)

    def slope(self, bottom: Tensor, top: Tensor) -> Tensor:
        return 1 - top * top


class Threshold(Layer):
    """1 where x is larger than the threshold, otherwise 0. No gradient passes."""

    keeps_shape = True

    def forward(self, bottoms: list[Tensor], batch: int) -> list[Tensor]:
        return [(bottoms[0].detach() > self.param.threshold_param.threshold).to(bottoms[0].dtype)]


LAYERS = (AbsVal, BNLL, Clip, Dropout, ELU, Exp, Log, Power, PReLU, ReLU, Sigmoid, Swish, TanH, Threshold)
