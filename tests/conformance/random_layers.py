"""Layers with random settings on random shapes: some that Caffe takes, some that it refuses.

    for case in random_cases(seed=1, count=300): ...

Made to find settings that nobody thought of. Each case is one layer `l` with bottoms b0, b1, ... and tops t0, t1, ...
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np

Shape = tuple[int, ...]

FILLERS = 'weight_filler { type: "gaussian" std: 0.5 } bias_filler { type: "gaussian" std: 0.5 }'


@dataclass(frozen=True)
class Case:
    """One layer. ``kinds`` says of some bottoms what values they hold: see `values`."""

    text: str
    shapes: tuple[Shape, ...]
    kinds: dict[int, str | int] = field(default_factory=dict)
    tops: int = 1

    @property
    def is_loss(self) -> bool:
        """Whether gradients come from the loss itself."""
        return "Loss" in self.text

    @property
    def prototxt(self) -> str:
        """The net: an Input layer a bottom, then the layer."""
        lines = ['name: "random"', "force_backward: true"]
        for index, shape in enumerate(self.shapes):
            dims = " ".join(f"dim: {size}" for size in shape)
            lines.append(
                f'layer {{ name: "in{index}" type: "Input" top: "b{index}" input_param {{ shape {{ {dims} }} }} }}'
            )
        bottoms = " ".join(f'bottom: "b{index}"' for index in range(len(self.shapes)))
        tops = " ".join(f'top: "t{index}"' for index in range(self.tops))
        return "\n".join([*lines, f'layer {{ name: "l" {self.text} {bottoms} {tops} }}'])

    def bottoms(self, seed: int) -> dict[str, np.ndarray]:
        """Values of all bottoms, float32."""
        draw = np.random.RandomState(seed)
        return {
            f"b{index}": values(self.kinds.get(index, "normal"), shape, draw) for index, shape in enumerate(self.shapes)
        }


def values(kind: str | int, shape: Shape, draw: np.random.RandomState) -> np.ndarray:
    """normal, relu (its negative ones 0), unit (between 0 and 1), or whole numbers below ``kind``."""
    if isinstance(kind, int):
        return draw.randint(0, kind, shape).astype(np.float32)
    normal = np.asarray(draw.standard_normal(shape), np.float32)
    return {"normal": normal, "relu": normal.clip(0), "unit": 1 / (1 + np.exp(-normal))}[kind]


class _Maker:
    """Draws cases; one method a layer type."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.int, self.one_of = self.random.randint, self.random.choice

    def shape(self, axes: int | None = None, least: int = 1, most: int = 7) -> Shape:
        """A shape, of 4 axes mostly."""
        return tuple(self.int(least, most) for _ in range(axes or self.one_of([2, 3, 4, 4, 4])))

    def some(self, *settings: str) -> str:
        """About half of the settings."""
        return " ".join(setting for setting in settings if self.random.random() < 0.5)

    def axis(self, shape: Shape) -> int:
        """An axis, counted from either end; now and then one too many."""
        return self.int(-len(shape), len(shape) - (self.random.random() < 0.95))

    def axis_within(self, shape: Shape) -> int:
        """An axis that exists, counted from the front."""
        return self.int(0, len(shape) - 1)

    def convolution(self, kind: str = "Convolution") -> Case:
        group = self.one_of([1, 1, 2])
        kernel = self.one_of(
            [
                f"kernel_size: {self.int(1, 4)}",
                f"kernel_h: {self.int(1, 4)} kernel_w: {self.int(1, 4)}",
                f"kernel_size: {self.int(1, 3)} kernel_size: {self.int(1, 3)}",
            ]
        )
        stride = self.one_of(
            ["", f"stride: {self.int(1, 3)}", f"stride_h: {self.int(1, 3)} stride_w: {self.int(1, 3)}"]
        )
        more = self.some(f"pad: {self.int(0, 3)}", f"dilation: {self.int(1, 3)}", "bias_term: false")
        settings = f"num_output: {group * self.int(1, 3)} group: {group} {kernel} {stride} {more} {FILLERS}"
        shape = (self.int(1, 3), group * self.int(1, 3), self.int(1, 9), self.int(1, 9))
        return Case(f'type: "{kind}" convolution_param {{ {settings} }}', (shape,))

    def deconvolution(self) -> Case:
        return self.convolution("Deconvolution")

    def pooling(self) -> Case:
        kernel = self.one_of(
            [f"kernel_size: {self.int(1, 5)}", f"kernel_h: {self.int(1, 4)} kernel_w: {self.int(1, 4)}"]
        )
        pad = self.one_of(["", "", f"pad: {self.int(0, 3)}", f"pad_h: {self.int(0, 3)} pad_w: {self.int(0, 2)}"])
        stride = self.one_of(
            ["", f"stride: {self.int(1, 4)}", f"stride_h: {self.int(1, 3)} stride_w: {self.int(1, 3)}"]
        )
        pool = self.one_of(["MAX", "AVE"])
        text = f"pool: {pool} {kernel} {pad} {stride} {self.some('round_mode: FLOOR')}"
        tops = self.one_of([1, 1, 1, 2]) if pool == "MAX" else 1
        kinds: dict[int, str | int] = {0: self.one_of(["normal", "relu"])}
        return Case(f'type: "Pooling" pooling_param {{ {text} }}', (self.shape(4, 1, 8),), kinds, tops)

    def lrn(self) -> Case:
        settings = f"alpha: {self.random.random() * 3:.3f} beta: {self.one_of([0.75, 0.5, 1, 0.3])}"
        more = self.some("k: 2", "norm_region: WITHIN_CHANNEL")
        return Case(
            f'type: "LRN" lrn_param {{ local_size: {self.one_of([1, 3, 5, 7])} {settings} {more} }}',
            (self.shape(4, 1, 8),),
        )

    def inner_product(self) -> Case:
        shape = self.shape()
        more = self.some("transpose: true", "bias_term: false")
        settings = f"num_output: {self.int(1, 5)} axis: {self.axis(shape)} {more} {FILLERS}"
        return Case(f'type: "InnerProduct" inner_product_param {{ {settings} }}', (shape,))

    def scale(self, kind: str = "Scale") -> Case:
        shape, bias = self.shape(), self.some("bias_term: true") if kind == "Scale" else ""
        if self.random.random() < 0.6:
            settings = f'axis: {self.axis(shape)} num_axes: {self.int(-1, 3)} filler {{ type: "gaussian" std: 1 }}'
            return Case(f'type: "{kind}" {kind.lower()}_param {{ {settings} {bias} }}', (shape,))
        axis = self.axis_within(shape)
        other = shape[axis : axis + self.int(1, len(shape) - axis)]
        return Case(f'type: "{kind}" {kind.lower()}_param {{ axis: {axis} {bias} }}', (shape, other))

    def bias(self) -> Case:
        return self.scale("Bias")

    def concat(self) -> Case:
        shape = self.shape()
        axis = self.axis_within(shape)
        shapes = tuple((*shape[:axis], self.int(1, 4), *shape[axis + 1 :]) for _ in range(self.int(1, 3)))
        return Case(f'type: "Concat" concat_param {{ axis: {axis - self.one_of([0, len(shape)])} }}', shapes)

    def slice(self) -> Case:
        shape, tops = self.shape(), self.int(1, 3)
        points = sorted(self.random.sample(range(1, 8), tops - 1))
        given = self.some(" ".join(f"slice_point: {point}" for point in points))
        return Case(f'type: "Slice" slice_param {{ axis: {self.axis_within(shape)} {given} }}', (shape,), tops=tops)

    def reshape(self) -> Case:
        shape = self.shape()
        dims = " ".join(f"dim: {self.one_of([0, 0, -1, 1, 2, shape[0]])}" for _ in range(self.int(0, 4)))
        settings = f"axis: {self.axis(shape)} num_axes: {self.int(-1, len(shape))} shape {{ {dims} }}"
        return Case(f'type: "Reshape" reshape_param {{ {settings} }}', (shape,))

    def crop(self) -> Case:
        shape, axis = self.shape(4, 3, 7), self.int(0, 3)
        offsets = " ".join(f"offset: {self.int(0, 2)}" for _ in range(self.one_of([0, 1, 4 - axis])))
        wanted = tuple(max(1, size - self.int(0, 3)) for size in shape)
        return Case(f'type: "Crop" crop_param {{ axis: {axis} {offsets} }}', (shape, wanted))

    def reduction(self) -> Case:
        shape, operation = self.shape(), self.one_of(["SUM", "ASUM", "SUMSQ", "MEAN"])
        settings = f"operation: {operation} axis: {self.int(1, len(shape) - 1)} coeff: {self.int(-2, 3)}"
        return Case(f'type: "Reduction" reduction_param {{ {settings} }}', (shape,))

    def softmax(self) -> Case:
        shape = self.shape()
        return Case(f'type: "Softmax" softmax_param {{ axis: {self.axis(shape)} }}', (shape,))

    def _labelled(self) -> tuple[Shape, Shape, int, int]:
        """Scores' and labels' shapes, the axis of the classes and their number."""
        shape = self.shape(self.one_of([2, 3, 4]))
        axis = self.axis_within(shape)
        labels = shape[:axis] + shape[axis + 1 :]
        if len(labels) < 3 and self.random.random() < 0.3:
            labels = (*labels[:1], 1, *labels[1:])
        return shape, labels, axis, shape[axis]

    def _loss_param(self) -> str:
        modes = [f"normalization: {mode}" for mode in ("FULL", "VALID", "BATCH_SIZE", "NONE")]
        mode = self.some(self.one_of([*modes, "normalize: true", "normalize: false"]))
        return f"loss_param {{ {self.some(f'ignore_label: {self.int(-1, 3)}')} {mode} }}"

    def softmax_with_loss(self) -> Case:
        shape, labels, axis, classes = self._labelled()
        text = f"{self.some('loss_weight: 0.3')} softmax_param {{ axis: {axis} }} {self._loss_param()}"
        return Case(f'type: "SoftmaxWithLoss" {text}', (shape, labels), {1: classes})

    def accuracy(self) -> Case:
        shape, labels, axis, classes = self._labelled()
        more = self.some(f"ignore_label: {self.int(0, 2)}", f"top_k: {self.int(1, 3)}")
        kinds: dict[int, str | int] = {0: self.one_of(["normal", 3]), 1: classes}
        text = f'type: "Accuracy" accuracy_param {{ axis: {axis} {more} }}'
        return Case(text, (shape, labels), kinds, self.one_of([1, 2]))

    def sigmoid_cross_entropy_loss(self) -> Case:
        shape = self.shape()
        kinds: dict[int, str | int] = {1: self.one_of(["unit", 2, 3])}
        return Case(f'type: "SigmoidCrossEntropyLoss" {self._loss_param()}', (shape, shape), kinds)

    def hinge_loss(self) -> Case:
        shape = self.shape(2)
        text = f'type: "HingeLoss" hinge_loss_param {{ norm: {self.one_of(["L1", "L2"])} }}'
        return Case(text, (shape, shape[:1]), {1: shape[1]})

    def contrastive_loss(self) -> Case:
        shape = self.shape(2)
        more = self.some("legacy_version: true", f"margin: {self.int(1, 4)}")
        text = f'type: "ContrastiveLoss" contrastive_loss_param {{ {more} }}'
        return Case(text, (shape, shape, shape[:1]), {2: 2})

    def argmax(self) -> Case:
        shape = self.shape(self.one_of([2, 3, 4, 5]))
        more = self.some(f"axis: {self.axis(shape)}", f"top_k: {self.int(1, 3)}", "out_max_val: true")
        return Case(f'type: "ArgMax" argmax_param {{ {more} }}', (shape,), {0: self.one_of(["normal", 3])})

    def eltwise(self) -> Case:
        count, operation = self.int(2, 4), self.one_of(["SUM", "PROD", "MAX"])
        coeff = self.some(" ".join(f"coeff: {self.one_of([1, -1, 0.5])}" for _ in range(count)))
        settings = (
            f"operation: {operation} {coeff if operation != 'PROD' else ''} {self.some('stable_prod_grad: false')}"
        )
        # a product's other gradient divides by the values
        kinds: dict[int, str | int] = {i: self.one_of(["normal", 3]) for i in range(count) if operation != "PROD"}
        return Case(f'type: "Eltwise" eltwise_param {{ {settings} }}', (self.shape(),) * count, kinds)

    def mvn(self) -> Case:
        more = self.some("normalize_variance: false", "across_channels: true", "eps: 0.05")
        return Case(f'type: "MVN" mvn_param {{ {more} }}', (self.shape(),))

    def batch_norm(self) -> Case:
        more = self.some("use_global_stats: true", "eps: 0.01", "moving_average_fraction: 0.9")
        return Case(f'type: "BatchNorm" batch_norm_param {{ {more} }}', (self.shape(self.one_of([2, 3, 4]), 2, 5),))

    def tile(self) -> Case:
        shape = self.shape()
        return Case(f'type: "Tile" tile_param {{ axis: {self.axis(shape)} tiles: {self.int(1, 3)} }}', (shape,))

    def flatten(self) -> Case:
        shape = self.shape(self.one_of([2, 3, 4, 5]))
        more = self.some(f"axis: {self.axis(shape)}", f"end_axis: {self.axis(shape)}")
        return Case(f'type: "Flatten" flatten_param {{ {more} }}', (shape,))

    def power(self) -> Case:
        power, scale, shift = (self.one_of([0, 0.5, 1, 2, 3, -1]), self.one_of([0, 0.1, 1]), self.one_of([0, 1, 5]))
        settings = f"power: {power} scale: {scale} shift: {shift}"
        return Case(f'type: "Power" power_param {{ {settings} }}', (self.shape(),))

    def neuron(self) -> Case:
        kinds: dict[int, str | int] = {0: self.one_of(["normal", "relu"])}
        text = self.one_of(
            [
                *(f'type: "{name}"' for name in ("AbsVal", "BNLL", "Sigmoid", "TanH", "ReLU", "PReLU", "ELU", "Swish")),
                'type: "ReLU" relu_param { negative_slope: 0.3 }',
                'type: "PReLU" prelu_param { channel_shared: true filler { type: "gaussian" std: 1 } }',
                'type: "ELU" elu_param { alpha: 0.2 }',
                'type: "Exp" exp_param { base: 2 scale: 0.5 shift: -1 }',
                'type: "Log" log_param { base: 10 scale: 0.1 shift: 9 }',
                'type: "Clip" clip_param { min: -0.5 max: 0.5 }',
                'type: "Threshold" threshold_param { threshold: 0.2 }',
            ]
        )
        return Case(text, (self.shape(),), kinds)


def random_cases(seed: int, count: int) -> Iterator[Case]:
    """``count`` cases, the same for the same seed."""
    maker = _Maker(seed)
    helpers = ("shape", "some", "axis", "axis_within")
    methods: list[Callable[[], Case]] = [
        getattr(maker, name) for name in vars(_Maker) if not name.startswith("_") and name not in helpers
    ]
    for _ in range(count):
        yield maker.one_of(methods)()
