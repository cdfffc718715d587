"""Nets for the conformance suite with one layer each: every layer type of the engine with many settings.

    LAYER_CASES["Pooling"]      a list of LayerCase

A case is a layer `l` with bottoms b0, b1, ... from Input layers and tops t0, t1, ...
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from transfer_caffe.formats.proto import parse_text
from transfer_caffe.formats.proto.caffe_pb2 import NetParameter

Shape = tuple[int, ...]
Kind = str | int
"""The values of a bottom: normal, relu (negative values are 0), unit (between 0 and 1), zeros (some values are 0), nan
(most values of every second column are NaN), huge, or, given a number, integers from 0 up to that number."""

FILLERS = 'weight_filler { type: "gaussian" std: 0.5 } bias_filler { type: "gaussian" std: 0.5 }'


@dataclass(frozen=True)
class LayerCase:
    """One layer: its prototxt without names, and its bottoms' shapes and kinds of values (see `Kind`)."""

    text: str
    shapes: tuple[Shape, ...]
    kinds: dict[int, Kind] = field(default_factory=dict)
    tops: int = 1
    phase: str = "TRAIN"

    @property
    def type(self) -> str:
        """The layer type's name in Caffe."""
        return self.text.split('"')[1]

    @property
    def is_loss(self) -> bool:
        """Whether gradients come from the loss itself."""
        return self.type.endswith("Loss")

    @property
    def name(self) -> str:
        """A readable description of the case."""
        return f"{self.text} {' '.join(str(list(shape)) for shape in self.shapes)} {self.kinds or ''}".strip()

    @property
    def forward_only(self) -> bool:
        """Whether Caffe has no gradient for the layer, or none for a bottom that holds labels or indices."""
        return self.type in ("Accuracy", "ArgMax", "Threshold", "Embed", "Filter", "BatchReindex") or (
            self.type == "InfogainLoss" and len(self.shapes) > 2
        )

    @property
    def prototxt(self) -> str:
        """The net: one Input layer per bottom, then the layer.

        If Caffe has no gradient for a bottom, force_backward is not set; learnable blobs still have gradients then.
        """
        lines = ['name: "case"', f"force_backward: {'false' if self.forward_only else 'true'}"]
        for index, shape in enumerate(self.shapes):
            dims = " ".join(f"dim: {size}" for size in shape)
            lines.append(
                f'layer {{ name: "in{index}" type: "Input" top: "b{index}" input_param {{ shape {{ {dims} }} }} }}'
            )
        bottoms = " ".join(f'bottom: "b{index}"' for index in range(len(self.shapes)))
        tops = " ".join(f'top: "t{index}"' for index in range(self.tops))
        return "\n".join([*lines, f'layer {{ name: "l" {self.text} {bottoms} {tops} }}', *self._loss_of_blobs()])

    def _loss_of_blobs(self) -> list[str]:
        """Return a loss for a layer with weights whose bottoms have no gradients, so that the weights get some."""
        if self.type not in ("Embed",):
            return []
        return ['layer { name: "r" type: "Reduction" bottom: "t0" top: "r" loss_weight: 1',
                "  reduction_param { operation: SUMSQ } }"]  # fmt: skip

    @property
    def net(self) -> NetParameter:
        """The net as a message."""
        return parse_text(self.prototxt, NetParameter(), self.name)

    def bottoms(self, seed: int) -> dict[str, np.ndarray]:
        """Return the values of all bottoms by name, float32."""
        draw = np.random.RandomState(seed)
        return {
            f"b{index}": values(self.kinds.get(index, "normal"), shape, draw) for index, shape in enumerate(self.shapes)
        }


def values(kind: Kind, shape: Shape, draw: np.random.RandomState) -> np.ndarray:
    """Sample values of a kind."""
    if isinstance(kind, int):
        return np.asarray(draw.randint(0, kind, shape), np.float32)
    normal = np.asarray(draw.standard_normal(shape), np.float32)
    if kind == "nan":
        # no window may be without numbers: real Caffe writes its gradient to a wrong place
        odd = np.arange(shape[-1]) % 2 == 1
        return np.where((draw.random_sample(shape) < 0.6) & odd, np.nan, normal).astype(np.float32)
    if kind == "zeros":
        return np.where(draw.random_sample(shape) < 0.4, 0, normal).astype(np.float32)
    return {"normal": normal, "relu": normal.clip(0), "unit": 1 / (1 + np.exp(-normal)), "huge": 200 * normal}[kind]


X: Shape = (2, 4, 5, 6)
LABELS: dict[int, Kind] = {1: 4}
LAYER_CASES: dict[str, list[LayerCase]] = {}


def add(
    kind: str, settings: str, *shapes: Shape, kinds: dict[int, Kind] | None = None, tops: int = 1, phase: str = "TRAIN"
) -> None:
    """Add a case to the table."""
    case = LayerCase(f'type: "{kind}" {settings}'.strip(), shapes or (X,), kinds or {}, tops, phase)
    LAYER_CASES.setdefault(kind, []).append(case)


def add_all(kind: str, param: str, settings: list[str], *shapes: Shape, **more: object) -> None:
    """Add one case for each of ``settings``, the contents of the layer's ``param``."""
    for setting in settings:
        add(kind, f"{param} {{ {setting} }}" if setting else "", *shapes, **more)  # pyright: ignore[reportArgumentType]


for _kind in ("Convolution", "Deconvolution"):
    add_all(
        _kind,
        "convolution_param",
        [
            f"num_output: 6 kernel_size: 3 {FILLERS}",
            f"num_output: 6 kernel_size: 3 pad: 1 stride: 2 group: 2 {FILLERS}",
            f"num_output: 4 kernel_size: 3 pad: 1 group: 4 bias_term: false {FILLERS}",
            f"num_output: 6 kernel_h: 3 kernel_w: 2 pad_h: 1 pad_w: 0 stride_h: 2 stride_w: 1 {FILLERS}",
            f"num_output: 6 kernel_size: 3 kernel_size: 1 {FILLERS}",
            f"num_output: 5 kernel_size: 1 {FILLERS}",
            f"num_output: 5 kernel_size: 2 dilation: 2 pad: 2 {FILLERS}",
            f"num_output: 5 kernel_size: 3 stride: 3 pad: 2 {FILLERS}",
        ],
    )
    add(_kind, f"convolution_param {{ num_output: 3 kernel_size: 2 {FILLERS} }}", (2, 3, 4, 3, 4))
    add(_kind, f"convolution_param {{ num_output: 3 kernel_size: 2 axis: 2 {FILLERS} }}", (2, 2, 3, 4, 3))
    add(_kind, f"convolution_param {{ num_output: 3 kernel_size: 2 {FILLERS} }}", (2, 3, 5))
    add(_kind, f"convolution_param {{ num_output: 3 kernel_size: 2 {FILLERS} }}", X, X, tops=2)
    add(_kind, f"convolution_param {{ num_output: 3 kernel_size: 2 {FILLERS} }}", (2, 2, 3, 2, 3, 2))
    _settings = "num_output: 4 kernel_size: 2 stride: 2 pad: 1 dilation: 1 dilation: 2 dilation: 1 dilation: 1 group: 2"
    add(_kind, f"convolution_param {{ {_settings} bias_term: false {FILLERS} }}", (2, 2, 3, 4, 2, 3))
    add(_kind, f"convolution_param {{ num_output: 3 kernel_size: 1 axis: 2 {FILLERS} }}", (2, 2, 4))
add("Convolution", f"convolution_param {{ num_output: 3 kernel_size: 3 pad: 5 {FILLERS} }}")
add(
    "Convolution",
    f"convolution_param {{ num_output: 4 kernel_h: 2 kernel_w: 3 pad_h: 3 pad_w: 1 stride: 2 group: 2 {FILLERS} }}",
)
add("Convolution", f"convolution_param {{ num_output: 3 kernel_size: 15 pad: 7 {FILLERS} }}")
add(
    "Deconvolution",
    'convolution_param { num_output: 4 kernel_size: 4 stride: 2 pad: 1 group: 4 weight_filler { type: "bilinear" } }',
)
add_all(
    "InnerProduct",
    "inner_product_param",
    [
        f"num_output: 5 {FILLERS}",
        f"num_output: 5 axis: 2 transpose: true {FILLERS}",
        f"num_output: 5 axis: -1 bias_term: false {FILLERS}",
        f"num_output: 3 axis: 0 {FILLERS}",
    ],
)
for _pool in ("MAX", "AVE"):
    for _setting in (
        "kernel_size: 3 stride: 2",
        "kernel_size: 3 stride: 2 pad: 1",
        "kernel_size: 3 stride: 2 pad: 2",
        "kernel_size: 3 stride: 1 pad: 2",
        "kernel_h: 2 kernel_w: 4 stride: 3 pad_h: 1 pad_w: 3",
        "global_pooling: true",
        "kernel_size: 2 stride: 2 round_mode: FLOOR",
        "kernel_size: 2 stride: 3 round_mode: FLOOR",
        "kernel_size: 2 stride: 4 pad: 1",
    ):
        add("Pooling", f"pooling_param {{ pool: {_pool} {_setting} }}")
        add("Pooling", f"pooling_param {{ pool: {_pool} {_setting} }}", (2, 3, 7, 5), kinds={0: "relu"})
add("Pooling", "pooling_param { pool: AVE kernel_size: 1 stride: 2 }")
for _tops in (1, 2):
    for _setting in ("kernel_size: 2 stride: 2 round_mode: FLOOR", "kernel_size: 3 stride: 2 pad: 2"):
        add("Pooling", f"pooling_param {{ {_setting} }}", kinds={0: "nan"}, tops=_tops)
add_all("Pooling", "pooling_param", ["kernel_size: 3 stride: 2", "kernel_size: 3 stride: 2 pad: 2"], tops=2)
add_all(
    "LRN",
    "lrn_param",
    [
        "local_size: 5 alpha: 0.5",
        "local_size: 3 alpha: 2 beta: 0.5 k: 2",
        "local_size: 9 alpha: 1",
        "norm_region: WITHIN_CHANNEL local_size: 3 alpha: 1",
        "norm_region: WITHIN_CHANNEL local_size: 5 alpha: 2 beta: 0.6 k: 2",
    ],
    (2, 7, 5, 6),
)
add_all("BatchNorm", "batch_norm_param", ["", "use_global_stats: true eps: 0.01", "eps: 0.1"])
add_all("BatchNorm", "batch_norm_param", ["", "moving_average_fraction: 0.5"], (6, 3))
add("BatchNorm", "", (3, 2, 4))
add("BatchNorm", "", (1, 3, 1, 1))
add("BatchNorm", "", phase="TEST")
add_all(
    "Scale",
    "scale_param",
    [
        "",
        'filler { type: "gaussian" std: 1 }',
        'bias_term: true filler { type: "gaussian" std: 1 }',
        'axis: 0 num_axes: 2 filler { type: "gaussian" std: 1 }',
        'axis: 2 num_axes: -1 bias_term: true bias_filler { type: "gaussian" std: 1 }',
        'axis: 1 num_axes: 0 filler { type: "gaussian" std: 1 }',
        'axis: -1 filler { type: "gaussian" std: 1 }',
    ],
)
add("Scale", "scale_param { axis: 0 }", X, (2, 4))
add("Scale", "scale_param { axis: 1 bias_term: true }", X, (4, 5))
add_all(
    "Bias",
    "bias_param",
    [
        'filler { type: "gaussian" std: 1 }',
        'axis: 2 num_axes: -1 filler { type: "gaussian" std: 1 }',
        'axis: 1 num_axes: 0 filler { type: "constant" value: 2 }',
    ],
)
add("Bias", "bias_param { axis: 0 }", X, (2, 4))
for _kinds in ({}, {0: "zeros"}):
    for _kind, _param, _settings in (
        ("ReLU", "relu_param", ["", "negative_slope: 0.1"]),
        ("PReLU", "prelu_param", ["", "channel_shared: true", 'filler { type: "gaussian" std: 1 }']),
        ("ELU", "elu_param", ["", "alpha: 0.3"]),
        ("Sigmoid", "", [""]),
        ("TanH", "", [""]),
        ("AbsVal", "", [""]),
        ("BNLL", "", [""]),
        ("Swish", "swish_param", ["", "beta: 0.7"]),
        ("Clip", "clip_param", ["min: -0.5 max: 0.7"]),
        ("Threshold", "threshold_param", ["", "threshold: 0.2"]),
        (
            "Power",
            "power_param",
            ["", "power: 2 scale: 0.5 shift: 1", "power: 0", "scale: 0 shift: 2 power: 2",
             "power: 0.5 scale: 0.1 shift: 2", "power: -1 scale: 0.1 shift: 2", "scale: -0.5"],
        ),
        ("Exp", "exp_param", ["", "base: 2 scale: 0.5 shift: 1", "scale: 0.5 shift: 1"]),
        ("Log", "log_param", ["scale: 0.1 shift: 3", "base: 2 scale: 0.1 shift: 3", "base: 10 shift: 9"]),
    ):  # fmt: skip
        add_all(_kind, _param, _settings, kinds=_kinds)
add("Power", "power_param { power: 3 }")
add("ELU", "", kinds={0: "huge"})
add("BNLL", "", kinds={0: "huge"})
add("Sigmoid", "", kinds={0: "huge"})
add_all("Dropout", "dropout_param", ["", "dropout_ratio: 0.3"], phase="TEST")
add_all("Softmax", "softmax_param", ["", "axis: 0", "axis: 2", "axis: -1"])
for _setting in (
    "",
    "loss_weight: 2.5",
    "loss_param { ignore_label: 2 }",
    "loss_param { ignore_label: 2 normalization: FULL }",
    "loss_param { normalization: BATCH_SIZE }",
    "loss_param { normalization: NONE }",
    "loss_param { normalize: false }",
    "loss_param { normalize: true ignore_label: 1 }",
):
    add("SoftmaxWithLoss", _setting, (3, 4), (3,), kinds=LABELS)
    add("SoftmaxWithLoss", _setting, X, (2, 5, 6), kinds=LABELS)
add("SoftmaxWithLoss", "softmax_param { axis: 2 }", (2, 3, 4, 5), (2, 3, 5), kinds=LABELS)
add("SoftmaxWithLoss", "", (3, 4), (3,), kinds={0: "huge", **LABELS})
for _setting in (
    "",
    "loss_param { normalize: true }",
    "loss_param { ignore_label: 1 }",
    "loss_param { ignore_label: 1 normalization: VALID }",
    "loss_param { normalization: FULL }",
    "loss_param { normalization: NONE }",
    "loss_weight: 0.5",
):
    add("SigmoidCrossEntropyLoss", _setting, (3, 4, 2), (3, 4, 2), kinds={1: 2})
add("SigmoidCrossEntropyLoss", "", (3, 4), (3, 4), kinds={0: "huge", 1: "unit"})
add("EuclideanLoss", "", X, X)
add("EuclideanLoss", "loss_weight: 3", (3, 4), (3, 4))
add("HingeLoss", "", (5, 4), (5,), kinds=LABELS)
add("HingeLoss", "hinge_loss_param { norm: L2 } loss_weight: 0.5", (5, 4), (5,), kinds=LABELS)
add_all(
    "ContrastiveLoss",
    "contrastive_loss_param",
    ["", "margin: 3", "margin: 5 legacy_version: true"],
    (6, 4),
    (6, 4),
    (6,),
    kinds={2: 2},
)
add("InfogainLoss", "loss_weight: 2", (5, 4), (5,), (4, 4), kinds={1: 4, 2: "unit"})
add("InfogainLoss", "loss_param { ignore_label: 1 }", (2, 4, 3), (2, 3), (1, 1, 4, 4), kinds={1: 4, 2: "unit"})
add(
    "InfogainLoss",
    "infogain_loss_param { axis: 2 } loss_param { normalization: BATCH_SIZE }",
    (2, 3, 4),
    (2, 3),
    (1, 1, 4, 4),
    kinds={1: 4, 2: "unit"},
)
add("MultinomialLogisticLoss", "", (5, 4), (5,), kinds={0: "unit", 1: 4})
add("MultinomialLogisticLoss", "loss_weight: 2", (5, 4), (5,), kinds={0: "relu", 1: 4})
for _setting in ("", "accuracy_param { top_k: 2 }", "accuracy_param { ignore_label: 1 }"):
    add("Accuracy", _setting, (9, 4), (9,), kinds={0: 3, 1: 4})
    add("Accuracy", _setting, (9, 4), (9,), kinds=LABELS, tops=2)
    add("Accuracy", _setting, X, (2, 5, 6), kinds=LABELS)
add("Accuracy", "accuracy_param { axis: 2 }", (2, 3, 4, 5), (2, 3, 5), kinds=LABELS, tops=2)
for _kinds in ({}, {0: 3}):
    add_all(
        "ArgMax",
        "argmax_param",
        ["", "top_k: 2", "out_max_val: true", "out_max_val: true top_k: 3", "axis: 1", "axis: -1 top_k: 2",
         "axis: 2 out_max_val: true"],
        kinds=_kinds,
    )  # fmt: skip
add("ArgMax", "", (3, 4))
add("ArgMax", "", (2, 3, 4, 2, 2))
for _setting in ("operation: SUM", "operation: PROD", "operation: PROD stable_prod_grad: false", "operation: MAX"):
    add("Eltwise", f"eltwise_param {{ {_setting} }}", X, X)
    add("Eltwise", f"eltwise_param {{ {_setting} }}", (3, 4), (3, 4), (3, 4))
add("Eltwise", "eltwise_param { operation: MAX }", (5, 6), (5, 6), (5, 6), kinds={0: 3, 1: 3, 2: 3})
add("Eltwise", "eltwise_param { operation: PROD }", (5, 6), (5, 6), kinds={0: 2, 1: 2})
add("Eltwise", "eltwise_param { coeff: 1 coeff: -2 coeff: 0.5 }", (3, 4), (3, 4), (3, 4))
add("Concat", "", X, (2, 3, 5, 6))
add("Concat", "concat_param { axis: 0 }", (2, 3, 4), (3, 3, 4))
add("Concat", "concat_param { axis: -1 }", (2, 3, 4), (2, 3, 2), (2, 3, 1))
add("Concat", "concat_param { concat_dim: 2 }", X, X)
add("Concat", "")
add("Slice", "", tops=2)
add("Slice", "slice_param { slice_point: 1 slice_point: 3 }", tops=3)
add("Slice", "slice_param { axis: -1 }", tops=3)
add("Slice", "slice_param { slice_dim: 0 slice_point: 1 }", tops=2)
add("Slice", "", tops=1)
add("Split", "", tops=3)
add_all("Flatten", "flatten_param", ["", "axis: 2", "axis: 0 end_axis: 1", "axis: -2", "end_axis: -2", "end_axis: 0"])
add_all(
    "Reshape",
    "reshape_param",
    [
        "shape { dim: 0 dim: -1 }",
        "shape { dim: 2 dim: -1 dim: 3 }",
        "axis: 1 shape { dim: -1 dim: 2 }",
        "axis: 1 num_axes: 2 shape { dim: 20 }",
        "axis: -1 shape { dim: 1 dim: 1 }",
        "axis: 1 num_axes: 0 shape { dim: 1 }",
        "shape { dim: 0 dim: 0 dim: -1 }",
    ],
)
add("Crop", "", X, (1, 1, 3, 3))
add("Crop", "crop_param { axis: 2 offset: 1 }", X, (2, 3, 3, 4))
add("Crop", "crop_param { axis: 1 offset: 0 offset: 1 offset: 2 }", X, (1, 2, 3, 4))
add("Crop", "crop_param { axis: -1 }", X, (2, 4, 3, 3))
add_all("Tile", "tile_param", ["tiles: 3", "axis: 2 tiles: 2", "axis: -1 tiles: 2", "axis: 0 tiles: 2"])
for _operation in ("SUM", "ASUM", "SUMSQ", "MEAN"):
    add_all(
        "Reduction",
        "reduction_param",
        [f"operation: {_operation} {setting}" for setting in ("", "axis: 1", "axis: -1 coeff: 2.5")],
    )
for _kinds in ({}, {0: "unit"}):
    add_all(
        "MVN",
        "mvn_param",
        ["", "normalize_variance: false", "across_channels: true", "across_channels: true normalize_variance: false",
         "eps: 0.1"],
        kinds=_kinds,
    )  # fmt: skip
add("MVN", "", (3, 4, 5))
add("Embed", f"embed_param {{ num_output: 5 input_dim: 4 {FILLERS} }}", (3, 2), kinds={0: 4})
add("Embed", f"embed_param {{ num_output: 5 input_dim: 4 bias_term: false {FILLERS} }}", (6,), kinds={0: 4})
add("Filter", "", (5, 2), (5, 3), (5,), kinds={2: 2}, tops=2)
add("BatchReindex", "", (4, 3, 2), (6,), kinds={1: 4})
add("Silence", "", X, X, tops=0)
LAYER_CASES["Parameter"] = [LayerCase('type: "Parameter" parameter_param { shape { dim: 2 dim: 3 } }', ())]
_LAST = (
    'recurrent_param { num_output: 3 EXPOSE weight_filler { type: "gaussian" std: 0.5 } bias_filler { value: 0.1 } }'
)
for _kind, _states in (("RNN", 1), ("LSTM", 2)):
    for _static in ((), ((2, 4),)):
        add(_kind, _LAST.replace("EXPOSE", ""), (4, 2, 3, 2), (4, 2), *_static, kinds={1: 2})
        add(_kind, _LAST.replace("EXPOSE", "expose_hidden: true"), (4, 2, 5), (4, 2), *_static, *((1, 2, 3),) * _states,
            kinds={1: 2}, tops=1 + _states)  # fmt: skip
add("LSTMUnit", "", (1, 3, 2), (1, 3, 8), (1, 3), kinds={2: 2}, tops=2)
add("LSTMUnit", "", (1, 3, 2), (1, 3, 8), (1, 3), kinds={2: "unit"}, tops=2)
add_all(
    "Im2col",
    "convolution_param",
    ["kernel_size: 3", "kernel_h: 3 kernel_w: 2 pad_h: 1 pad_w: 0 stride: 2", "kernel_size: 2 dilation: 2 pad: 2",
     "kernel_size: 1", "kernel_size: 2 stride: 3 pad: 1 pad: 0"],
)  # fmt: skip
add("Im2col", "convolution_param { kernel_size: 2 pad: 1 }", (2, 3, 4, 3, 4))
add("Im2col", "convolution_param { kernel_size: 2 axis: 2 }", (2, 2, 3, 4, 3))
add("Im2col", "convolution_param { kernel_size: 2 force_nd_im2col: true }")
for _pool in ("MAX", "AVE"):
    for _setting in ("pyramid_height: 1", "pyramid_height: 2", "pyramid_height: 3"):
        add("SPP", f"spp_param {{ {_setting} pool: {_pool} }}", (2, 3, 8, 11))
