"""Layers with random settings and random shapes, some of which Caffe accepts and some of which it rejects.

    for case in random_cases(seed=1, count=300): ...

They find combinations of settings that the manually written cases miss. See layer_cases.py for what a case is.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

from conformance.layer_cases import FILLERS, Kind, LayerCase, Shape


class _Maker:
    """Samples cases; there is one method per layer type."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.int, self.one_of = self.random.randint, self.random.choice

    def shape(self, axes: int | None = None, least: int = 1, most: int = 7) -> Shape:
        """Sample a shape, usually with 4 axes."""
        return tuple(self.int(least, most) for _ in range(axes or self.one_of([2, 3, 4, 4, 4])))

    def some(self, *settings: str) -> str:
        """Sample about half of the settings."""
        return " ".join(setting for setting in settings if self.random.random() < 0.5)

    def axis(self, shape: Shape) -> int:
        """Sample an axis, counted from either end; sometimes it is out of range."""
        return self.int(-len(shape), len(shape) - (self.random.random() < 0.95))

    def axis_within(self, shape: Shape) -> int:
        """Sample an axis that exists, counted from the front."""
        return self.int(0, len(shape) - 1)

    def convolution(self, kind: str = "Convolution") -> LayerCase:
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
        return LayerCase(f'type: "{kind}" convolution_param {{ {settings} }}', (shape,))

    def deconvolution(self) -> LayerCase:
        return self.convolution("Deconvolution")

    def pooling(self) -> LayerCase:
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
        kinds: dict[int, Kind] = {0: self.one_of(["normal", "relu"])}
        return LayerCase(f'type: "Pooling" pooling_param {{ {text} }}', (self.shape(4, 1, 8),), kinds, tops)

    def lrn(self) -> LayerCase:
        settings = f"alpha: {self.random.random() * 3:.3f} beta: {self.one_of([0.75, 0.5, 1, 0.3])}"
        more = self.some("k: 2", "norm_region: WITHIN_CHANNEL")
        return LayerCase(
            f'type: "LRN" lrn_param {{ local_size: {self.one_of([1, 3, 5, 7])} {settings} {more} }}',
            (self.shape(4, 1, 8),),
        )

    def inner_product(self) -> LayerCase:
        shape = self.shape()
        more = self.some("transpose: true", "bias_term: false")
        settings = f"num_output: {self.int(1, 5)} axis: {self.axis(shape)} {more} {FILLERS}"
        return LayerCase(f'type: "InnerProduct" inner_product_param {{ {settings} }}', (shape,))

    def scale(self, kind: str = "Scale") -> LayerCase:
        shape, bias = self.shape(), self.some("bias_term: true") if kind == "Scale" else ""
        if self.random.random() < 0.6:
            settings = f'axis: {self.axis(shape)} num_axes: {self.int(-1, 3)} filler {{ type: "gaussian" std: 1 }}'
            return LayerCase(f'type: "{kind}" {kind.lower()}_param {{ {settings} {bias} }}', (shape,))
        axis = self.axis_within(shape)
        other = shape[axis : axis + self.int(1, len(shape) - axis)]
        return LayerCase(f'type: "{kind}" {kind.lower()}_param {{ axis: {axis} {bias} }}', (shape, other))

    def bias(self) -> LayerCase:
        return self.scale("Bias")

    def concat(self) -> LayerCase:
        shape = self.shape()
        axis = self.axis_within(shape)
        shapes = tuple((*shape[:axis], self.int(1, 4), *shape[axis + 1 :]) for _ in range(self.int(1, 3)))
        return LayerCase(f'type: "Concat" concat_param {{ axis: {axis - self.one_of([0, len(shape)])} }}', shapes)

    def slice(self) -> LayerCase:
        shape, tops = self.shape(), self.int(1, 3)
        points = sorted(self.random.sample(range(1, 8), tops - 1))
        given = self.some(" ".join(f"slice_point: {point}" for point in points))
        return LayerCase(
            f'type: "Slice" slice_param {{ axis: {self.axis_within(shape)} {given} }}', (shape,), tops=tops
        )

    def reshape(self) -> LayerCase:
        shape = self.shape()
        dims = " ".join(f"dim: {self.one_of([0, 0, -1, 1, 2, shape[0]])}" for _ in range(self.int(0, 4)))
        settings = f"axis: {self.axis(shape)} num_axes: {self.int(-1, len(shape))} shape {{ {dims} }}"
        return LayerCase(f'type: "Reshape" reshape_param {{ {settings} }}', (shape,))

    def crop(self) -> LayerCase:
        shape, axis = self.shape(4, 3, 7), self.int(0, 3)
        offsets = " ".join(f"offset: {self.int(0, 2)}" for _ in range(self.one_of([0, 1, 4 - axis])))
        wanted = tuple(max(1, size - self.int(0, 3)) for size in shape)
        return LayerCase(f'type: "Crop" crop_param {{ axis: {axis} {offsets} }}', (shape, wanted))

    def reduction(self) -> LayerCase:
        shape, operation = self.shape(), self.one_of(["SUM", "ASUM", "SUMSQ", "MEAN"])
        settings = f"operation: {operation} axis: {self.int(1, len(shape) - 1)} coeff: {self.int(-2, 3)}"
        return LayerCase(f'type: "Reduction" reduction_param {{ {settings} }}', (shape,))

    def softmax(self) -> LayerCase:
        shape = self.shape()
        return LayerCase(f'type: "Softmax" softmax_param {{ axis: {self.axis(shape)} }}', (shape,))

    def _labelled(self) -> tuple[Shape, Shape, int, int]:
        """Sample the shapes of scores and labels; return them, the class axis and the number of classes."""
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

    def softmax_with_loss(self) -> LayerCase:
        shape, labels, axis, classes = self._labelled()
        text = f"{self.some('loss_weight: 0.3')} softmax_param {{ axis: {axis} }} {self._loss_param()}"
        return LayerCase(f'type: "SoftmaxWithLoss" {text}', (shape, labels), {1: classes})

    def accuracy(self) -> LayerCase:
        shape, labels, axis, classes = self._labelled()
        more = self.some(f"ignore_label: {self.int(0, 2)}", f"top_k: {self.int(1, 3)}")
        kinds: dict[int, Kind] = {0: self.one_of(["normal", 3]), 1: classes}
        text = f'type: "Accuracy" accuracy_param {{ axis: {axis} {more} }}'
        return LayerCase(text, (shape, labels), kinds, self.one_of([1, 2]))

    def sigmoid_cross_entropy_loss(self) -> LayerCase:
        shape = self.shape()
        kinds: dict[int, Kind] = {1: self.one_of(["unit", 2, 3])}
        return LayerCase(f'type: "SigmoidCrossEntropyLoss" {self._loss_param()}', (shape, shape), kinds)

    def hinge_loss(self) -> LayerCase:
        shape = self.shape(2)
        text = f'type: "HingeLoss" hinge_loss_param {{ norm: {self.one_of(["L1", "L2"])} }}'
        return LayerCase(text, (shape, shape[:1]), {1: shape[1]})

    def contrastive_loss(self) -> LayerCase:
        shape = self.shape(2)
        more = self.some("legacy_version: true", f"margin: {self.int(1, 4)}")
        text = f'type: "ContrastiveLoss" contrastive_loss_param {{ {more} }}'
        return LayerCase(text, (shape, shape, shape[:1]), {2: 2})

    def argmax(self) -> LayerCase:
        shape = self.shape(self.one_of([2, 3, 4, 5]))
        more = self.some(f"axis: {self.axis(shape)}", f"top_k: {self.int(1, 3)}", "out_max_val: true")
        return LayerCase(f'type: "ArgMax" argmax_param {{ {more} }}', (shape,), {0: self.one_of(["normal", 3])})

    def eltwise(self) -> LayerCase:
        count, operation = self.int(2, 4), self.one_of(["SUM", "PROD", "MAX"])
        coeff = self.some(" ".join(f"coeff: {self.one_of([1, -1, 0.5])}" for _ in range(count)))
        settings = (
            f"operation: {operation} {coeff if operation != 'PROD' else ''} {self.some('stable_prod_grad: false')}"
        )
        # the gradient of PROD may divide by the values, so they must not be 0
        kinds: dict[int, Kind] = {i: self.one_of(["normal", 3]) for i in range(count) if operation != "PROD"}
        return LayerCase(f'type: "Eltwise" eltwise_param {{ {settings} }}', (self.shape(),) * count, kinds)

    def mvn(self) -> LayerCase:
        more = self.some("normalize_variance: false", "across_channels: true", "eps: 0.05")
        return LayerCase(f'type: "MVN" mvn_param {{ {more} }}', (self.shape(),))

    def batch_norm(self) -> LayerCase:
        # with two values per channel the gradient is zero except for eps and rounding
        more = self.some("use_global_stats: true", "eps: 0.01", "moving_average_fraction: 0.9")
        return LayerCase(
            f'type: "BatchNorm" batch_norm_param {{ {more} }}', (self.shape(self.one_of([2, 3, 4]), 3, 5),)
        )

    def tile(self) -> LayerCase:
        shape = self.shape()
        return LayerCase(f'type: "Tile" tile_param {{ axis: {self.axis(shape)} tiles: {self.int(1, 3)} }}', (shape,))

    def flatten(self) -> LayerCase:
        shape = self.shape(self.one_of([2, 3, 4, 5]))
        more = self.some(f"axis: {self.axis(shape)}", f"end_axis: {self.axis(shape)}")
        return LayerCase(f'type: "Flatten" flatten_param {{ {more} }}', (shape,))

    def power(self) -> LayerCase:
        power, scale, shift = (self.one_of([0, 0.5, 1, 2, 3, -1]), self.one_of([0, 0.1, 1]), self.one_of([0, 1, 5]))
        settings = f"power: {power} scale: {scale} shift: {shift}"
        return LayerCase(f'type: "Power" power_param {{ {settings} }}', (self.shape(),))

    def neuron(self) -> LayerCase:
        kinds: dict[int, Kind] = {0: self.one_of(["normal", "relu"])}
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
        return LayerCase(text, (self.shape(),), kinds)


def random_cases(seed: int, count: int) -> Iterator[LayerCase]:
    """Return ``count`` cases, which are the same for the same seed."""
    maker = _Maker(seed)
    helpers = ("shape", "some", "axis", "axis_within")
    methods: list[Callable[[], LayerCase]] = [
        getattr(maker, name) for name in vars(_Maker) if not name.startswith("_") and name not in helpers
    ]
    for _ in range(count):
        yield maker.one_of(methods)()
