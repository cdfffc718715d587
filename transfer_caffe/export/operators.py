"""The ONNX operators of each layer type: what the engine's layers compute in phase TEST, in standard operators.

A function of `OPERATORS` adds the nodes of one layer to a graph. Each layer's settings are those that the engine's
layer has checked and computed (`engine.layers`), so there is one place that interprets prototxts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from transfer_caffe.engine.layers import Blob, Layer, Shape
from transfer_caffe.export.graph import Graph
from transfer_caffe.export.recurrent import add_lstm_unit, add_recurrent
from transfer_caffe.export.state import statistics
from transfer_caffe.formats.proto.caffe_pb2 import EltwiseParameter, LRNParameter, ReductionParameter
from transfer_caffe.formats.proto.caffe_pb2 import PoolingParameter as Pool

LOWEST = float(np.finfo(np.float32).min)
"""What Caffe's MAX pooling gives for a window without pixels."""

MOST_AXES = 3
"""The number of spatial axes up to which PyTorch and onnxruntime convolve."""


@dataclass
class Place:
    """One layer in the graph: its tensors, their shapes, and the graph that its nodes are added to."""

    graph: Graph
    layer: Layer
    name: str
    bottoms: list[str]
    shapes: list[Shape]
    tops: list[str]
    top_shapes: list[Shape]
    names: tuple[str, ...]
    """The names of the layer's weights."""
    blob_names: dict[int, str]
    """The names of weights that were added, by the identity of the blob."""

    def node(self, operator: str, inputs: Sequence[str], top: str | None = None, **attributes: Any) -> str:
        """Add a node whose output is ``top``, a name as it is, or (None) a new tensor; return the output."""
        if top is None:
            what = f"{self.name}/{operator.lower()}"
            return self.graph.node(operator, inputs, what, what, **attributes)
        return self.graph.node(operator, inputs, [top], self.name, **attributes)

    def constant(self, array: np.ndarray | Sequence[int] | float, what: str) -> str:
        """Add a constant and return its name."""
        return self.graph.constant(array, f"{self.name}/{what}")

    def weight(self, index: int, shape: Shape | None = None) -> str:
        """Add blob ``index`` of the layer, in ``shape`` or its own, and return its name.

        A blob that layers share is added once, under the name of the first of them.
        """
        blob: Blob = self.layer.blobs[index]
        owner = blob.owner or blob
        array = blob.data.detach().numpy()
        shape = tuple(array.shape) if shape is None else shape
        own = self.blob_names.setdefault(id(owner), f"{self.name}.{self.names[index]}")
        known = self.graph.constants.get(own)
        if known is not None and known.shape != shape:
            own = f"{own} as {'x'.join(map(str, shape)) or 'scalar'}"
        return self.graph.weight(array.reshape(shape), own)

    def reshaped(self, tensor: str, shape: Shape, top: str | None = None) -> str:
        """Add a Reshape; the first axis is inferred, so that it may have any size."""
        rest = math.prod(shape[1:])
        dims = [-1, *shape[1:]] if shape and rest else list(shape)
        return self.node("Reshape", [tensor, self.constant(np.array(dims, np.int64), "shape")], top)

    def scaled(self, tensor: str, scale: float, shift: float, top: str | None = None) -> str:
        """Return ``tensor * scale + shift``, without the operations that change nothing; ``top`` as in `node`."""
        steps = [("Mul", scale)] * (scale != 1) + [("Add", shift)] * (shift != 0)
        for index, (operator, value) in enumerate(steps):
            last = index == len(steps) - 1
            tensor = self.node(operator, [tensor, self.constant(float(value), operator.lower())], top if last else None)
        return self.node("Identity", [tensor], top) if not steps and top is not None else tensor


def _convolution(place: Place) -> None:
    layer: Any = place.layer
    transposed = layer.type == "Deconvolution"
    weights = [place.weight(index) for index in range(len(layer.blobs))]
    settings = {
        "kernel_shape": list(layer.kernel), "strides": list(layer.stride), "pads": [*layer.pad, *layer.pad],
        "dilations": list(layer.dilation), "group": layer.group,
    }  # fmt: skip
    axis, axes = layer.channel_axis, len(layer.kernel)
    if axes > MOST_AXES:
        raise layer.error(f"cannot be exported: it has {axes} spatial axes, and other programs support {MOST_AXES}")
    if not axes:  # one place, so that it is an ordinary convolution
        settings = {"kernel_shape": [1], "group": layer.group}
        weights[0] = place.weight(0, (*layer.blobs[0].data.shape, 1))
    operator = "ConvTranspose" if transposed else "Conv"
    # OpenCV 5.0 reads outside of the image if a convolution with a kernel of 1 and stride 1 pads
    apart = operator == "Conv" and any(layer.pad) and max(layer.kernel) == 1
    if apart:
        settings["pads"] = [0] * (2 * axes)
    for bottom, shape, top, top_shape in zip(place.bottoms, place.shapes, place.tops, place.top_shapes, strict=True):
        plain = axis == 1 and axes > 0
        # all axes before the channels are a batch
        rows = (math.prod(shape[:axis]), *shape[axis:], *(() if axes else (1,)))
        images = bottom if plain else place.reshaped(bottom, rows)
        if apart:
            widths = np.array([0, 0, *layer.pad, 0, 0, *layer.pad], np.int64)
            images = place.node("Pad", [images, place.constant(widths, "pads")])
        found = place.node(operator, [images, *weights], top if plain else None, **settings)
        if not plain:
            place.reshaped(found, top_shape, top)


def _im2col(place: Place) -> None:
    """Add the windows of a convolution: a convolution of each channel by kernels with a single 1."""
    layer: Any = place.layer
    shape, axis, axes = place.shapes[0], layer.channel_axis, len(layer.kernel)
    if not 1 <= axes <= MOST_AXES:
        raise layer.error(f"cannot be exported: it has {axes} spatial axes, and other programs support {MOST_AXES}")
    count, channels = math.prod(layer.kernel), shape[axis]
    ones = np.tile(np.eye(count, dtype=np.float32).reshape(count, 1, *layer.kernel), (channels, 1, *(1,) * axes))
    images = place.bottoms[0]
    if axis != 1:
        images = place.reshaped(images, (math.prod(shape[:axis]), *shape[axis:]))
    windows = place.node(
        "Conv", [images, place.constant(ones, "windows")], place.tops[0] if axis == 1 else None,
        kernel_shape=list(layer.kernel), strides=list(layer.stride), pads=[*layer.pad, *layer.pad],
        dilations=list(layer.dilation), group=channels,
    )  # fmt: skip
    if axis != 1:
        place.reshaped(windows, place.top_shapes[0], place.tops[0])


def _spp(place: Place) -> None:
    """Add a pyramid of poolings, each of which is flattened."""
    layer: Any = place.layer
    tops = []
    for number, level in enumerate(layer.levels):
        name = f"{place.name}/level{number}"
        top = place.tops[0] if len(layer.levels) == 1 else place.graph.free_name(name)
        sizes = [tuple(level.top_shapes(place.shapes)[0])]
        _pooling(Place(place.graph, level, name, place.bottoms, place.shapes, [top], sizes, (), place.blob_names))
        tops.append(top)
    if len(tops) > 1:
        place.node("Concat", [place.node("Flatten", [top], axis=1) for top in tops], place.tops[0], axis=1)


def _pooling(place: Place) -> None:
    layer: Any = place.layer
    maximum = layer.param.pooling_param.pool == Pool.MAX
    height, width = place.shapes[0][2:]
    if layer.param.pooling_param.global_pooling and len(place.tops) == 1:
        place.node("GlobalMaxPool" if maximum else "GlobalAveragePool", place.bottoms, place.tops[0])
        return
    # what the last window needs after the image; never more than the kernel, see formats.shapes.pooled_side
    sides = zip(layer.size, layer.stride, layer.kernel, layer.pad, (height, width), strict=True)
    ends = [max((n - 1) * stride + kernel - pad - side, 0) for n, stride, kernel, pad, side in sides]
    bottom, pads = place.bottoms[0], [*layer.pad, *ends]
    empty = any(end >= kernel for end, kernel in zip(ends, layer.kernel, strict=True))
    settings: dict[str, Any] = {"kernel_shape": list(layer.kernel), "strides": list(layer.stride), "pads": pads}
    if empty:
        # a window without pixels, which the operators do not have
        widths = place.constant(np.array([0, 0, *layer.pad, 0, 0, *ends], np.int64), "pads")
        bottom = place.node("Pad", [bottom, widths, place.constant(LOWEST if maximum else 0.0, "padding")])
        settings["pads"] = [0, 0, 0, 0]
    if not maximum:
        _average(place, bottom, settings, ends)
        return
    if len(place.tops) == 1:
        place.node("MaxPool", [bottom], place.tops[0], **settings)
        return
    if empty:
        raise layer.error("cannot be exported: its second top has windows without pixels")
    places = place.graph.free_name(f"{place.name}/places")
    place.graph.node("MaxPool", [bottom], [place.tops[0], places], place.name, **settings)
    # ONNX counts places from the start of the blob, Caffe from the start of the channel
    within = place.node("Mod", [places, place.constant(np.array(height * width), "area")])
    place.node("Cast", [within], place.tops[1], to=1)


def _average(place: Place, bottom: str, settings: dict[str, Any], ends: Sequence[int]) -> None:
    """Add an AVE pooling: each window is divided by its part within the padded image."""
    layer: Any = place.layer
    if not any(layer.pad) and any(settings["pads"]):
        place.node("AveragePool", [bottom], place.tops[0], count_include_pad=0, **settings)
        return
    if all(end <= pad for end, pad in zip(ends, layer.pad, strict=True)):
        place.node("AveragePool", [bottom], place.tops[0], count_include_pad=1, **settings)
        return
    mean = place.node("AveragePool", [bottom], count_include_pad=1, **settings)
    factors = []
    sizes = zip(layer.size, layer.stride, layer.kernel, layer.pad, place.shapes[0][2:], strict=True)
    for count, stride, kernel, pad, side in sizes:
        starts = np.arange(count) * stride - pad
        with np.errstate(divide="ignore"):
            factors.append(kernel / (np.minimum(starts + kernel, side + pad) - starts))
    with np.errstate(invalid="ignore"):
        wide = np.asarray(factors[0][:, None] * factors[1][None, :], np.float32)[None, None]
    place.node("Mul", [mean, place.constant(wide, "area")], place.tops[0])


def _lrn(place: Place) -> None:
    param, bottom, top = place.layer.param.lrn_param, place.bottoms[0], place.tops[0]
    if param.norm_region == LRNParameter.ACROSS_CHANNELS:
        settings = {"alpha": param.alpha, "beta": param.beta, "bias": param.k, "size": param.local_size}
        place.node("LRN", [bottom], top, **settings)
        return
    size, reach = param.local_size, param.local_size // 2
    mean = place.node(
        "AveragePool", [place.node("Mul", [bottom, bottom])], kernel_shape=[size, size], pads=[reach] * 4,
        strides=[1, 1], count_include_pad=1,
    )  # fmt: skip
    scale = place.scaled(mean, param.alpha, 1.0)
    place.node("Mul", [bottom, place.node("Pow", [scale, place.constant(-param.beta, "beta")])], top)


def _inner_product(place: Place) -> None:
    layer: Any = place.layer
    shape, first, top = place.shapes[0], layer.first, place.tops[0]
    weights = [place.weight(index) for index in range(len(layer.blobs))]
    rows = place.bottoms[0]
    if first == 1 and len(shape) > 2:
        rows = place.node("Flatten", [rows], axis=1)
    elif first != 1:  # axis 0: math.prod of nothing is 1
        rows = place.reshaped(rows, (math.prod(shape[:first]), math.prod(shape[first:])))
    if first == 1:
        place.node("Gemm", [rows, *weights], top, transB=int(not layer.transpose))
        return
    product = place.node("Gemm", [rows, *weights], transB=int(not layer.transpose))
    place.reshaped(product, place.top_shapes[0], top)


def _embed(place: Place) -> None:
    places = place.node("Cast", place.bottoms, to=7)
    if len(place.layer.blobs) == 1:
        place.node("Gather", [place.weight(0), places], place.tops[0], axis=0)
        return
    rows = place.node("Gather", [place.weight(0), places], axis=0)
    place.node("Add", [rows, place.weight(1)], place.tops[0])


def _batch_norm(place: Place) -> None:
    layer: Any = place.layer
    bottom, top, shape = place.bottoms[0], place.tops[0], place.shapes[0]
    if not layer.global_stats:
        axes = [axis for axis in range(len(shape)) if axis != 1]
        _normalised(place, bottom, axes, layer.eps, top, outside=False)
        return
    moments = statistics([blob.data.detach().numpy() for blob in layer.blobs])
    mean, variance = (
        place.graph.weight(array, f"{place.name}.{name}") for array, name in zip(moments, place.names, strict=False)
    )
    ones, zeros = np.ones_like(moments[0]), np.zeros_like(moments[0])
    inputs = [bottom, place.constant(ones, "scale"), place.constant(zeros, "bias"), mean, variance]
    place.node("BatchNormalization", inputs, top, epsilon=layer.eps)


def _normalised(place: Place, bottom: str, axes: list[int], eps: float, top: str, outside: bool) -> None:
    """Subtract the mean over ``axes`` and divide by the standard deviation; ``outside``: eps is added after the root.

    With a negative ``eps``, only subtract the mean.
    """
    mean = place.node("ReduceMean", [bottom], axes=axes, keepdims=1)
    if eps < 0:
        place.node("Sub", [bottom, mean], top)
        return
    centred = place.node("Sub", [bottom, mean])
    variance = place.node("ReduceMean", [place.node("Mul", [centred, centred])], axes=axes, keepdims=1)
    small = place.constant(eps, "eps")
    if outside:
        deviation = place.node("Add", [place.node("Sqrt", [variance]), small])
    else:
        deviation = place.node("Sqrt", [place.node("Add", [variance, small])])
    place.node("Div", [centred, deviation], top)


def _mvn(place: Place) -> None:
    param, shape, bottom = place.layer.param.mvn_param, place.shapes[0], place.bottoms[0]
    if len(shape) < 4:
        bottom = place.reshaped(bottom, (*shape, *(1,) * (4 - len(shape))))
    axes = [1, 2, 3] if param.across_channels else [2, 3]
    _normalised(place, bottom, axes, param.eps if param.normalize_variance else -1.0, place.tops[0], outside=True)


def _scale(place: Place) -> None:
    layer: Any = place.layer
    scales = layer.type == "Scale"
    if len(place.bottoms) > 1:
        other = place.bottoms[1]
        if place.shapes[1] != layer.wide:
            other = place.reshaped(other, layer.wide)
    else:
        other = place.weight(0, layer.wide)
    if not scales or not layer.param.scale_param.bias_term:
        place.node("Mul" if scales else "Add", [place.bottoms[0], other], place.tops[0])
        return
    product = place.node("Mul", [place.bottoms[0], other])
    place.node("Add", [product, place.weight(len(layer.blobs) - 1, layer.wide)], place.tops[0])


def _softmax(place: Place) -> None:
    layer: Any = place.layer
    place.node("Softmax", place.bottoms, place.tops[0], axis=layer.over)


def _argmax(place: Place) -> None:
    layer: Any = place.layer
    param, shape, top = layer.param.argmax_param, place.shapes[0], place.tops[0]
    rows, axis = place.bottoms[0], layer.over
    if axis is None:
        axis = 1
        rows = place.node("Flatten", [rows], axis=1) if len(shape) != 2 else rows
        shape = (shape[0], math.prod(shape[1:]))
    if param.top_k == 1 and not param.out_max_val:
        # of equal values the last one counts
        largest = place.node("ArgMax", [rows], axis=axis, keepdims=1, select_last_index=1)
        if layer.over is not None:
            place.node("Cast", [largest], top, to=1)
        else:
            place.reshaped(place.node("Cast", [largest], to=1), place.top_shapes[0], top)
        return
    # the operator lists the first of equal values first, Caffe the last one
    ends = [place.constant(np.array([number]), what) for number, what in (
        (-1, "from"), (np.iinfo(np.int64).min, "to"), (axis, "axis"), (-1, "step"))]  # fmt: skip
    turned = place.node("Slice", [rows, *ends])
    values, places = (place.graph.free_name(f"{place.name}/{what}") for what in ("values", "places"))
    count = place.constant(np.array([param.top_k]), "k")
    place.graph.node("TopK", [turned, count], [values, places], f"{place.name}/topk", axis=axis)
    if layer.over is not None and param.out_max_val:
        place.node("Identity", [values], top)
        return
    last = place.constant(np.array(shape[axis] - 1), "last")
    at = place.node("Sub", [last, places])
    if layer.over is not None:
        place.node("Cast", [at], top, to=1)
        return
    found = place.node("Cast", [at], to=1)
    if param.out_max_val:
        found = place.node("Concat", [found, values], axis=1)
    place.reshaped(found, place.top_shapes[0], top)


def _eltwise(place: Place) -> None:
    param, top = place.layer.param.eltwise_param, place.tops[0]
    if param.operation == EltwiseParameter.MAX:
        place.node("Max", place.bottoms, top)
        return
    terms = place.bottoms
    operator = "Mul" if param.operation == EltwiseParameter.PROD else "Add"
    if param.coeff:
        terms = [place.scaled(bottom, float(c), 0.0) for bottom, c in zip(terms, param.coeff, strict=True)]
    total = terms[0]
    for index, term in enumerate(terms[1:], start=2):
        total = place.node(operator, [total, term], top if index == len(terms) else None)


def _parameter(place: Place) -> None:
    place.node("Identity", [place.weight(0)], place.tops[0])


def _dummy_data(place: Place) -> None:
    for top, made in zip(place.tops, place.layer.forward([], 0), strict=True):
        place.node("Identity", [place.constant(made.detach().numpy(), "values")], top)


def _batch_reindex(place: Place) -> None:
    places = place.node("Cast", [place.bottoms[1]], to=7)
    place.node("Gather", [place.bottoms[0], places], place.tops[0], axis=0)


def _concat(place: Place) -> None:
    layer: Any = place.layer
    if len(place.bottoms) == 1:
        place.node("Identity", place.bottoms, place.tops[0])
    else:
        place.node("Concat", place.bottoms, place.tops[0], axis=layer.along)


def _crop(place: Place) -> None:
    layer: Any = place.layer
    shape = place.shapes[0]
    windows = [
        (axis, window.start, window.stop)
        for axis, window in enumerate(layer.windows)
        if window.start is not None and (window.start, window.stop) != (0, shape[axis])
    ]
    if not windows:
        place.node("Identity", place.bottoms[:1], place.tops[0])
        return
    axes, starts, stops = (np.array(each) for each in zip(*windows, strict=True))
    ends = [place.constant(each, what) for each, what in ((starts, "from"), (stops, "to"), (axes, "axes"))]
    place.node("Slice", [place.bottoms[0], *ends], place.tops[0])


def _filter(place: Place) -> None:
    selector = place.bottoms[-1]
    if len(place.shapes[-1]) != 1:
        selector = place.reshaped(selector, (math.prod(place.shapes[-1]),))
    chosen = place.node("NonZero", [selector])
    places = place.node("Reshape", [chosen, place.constant(np.array([-1]), "all")])
    for bottom, top in zip(place.bottoms[:-1], place.tops, strict=True):
        place.node("Gather", [bottom, places], top, axis=0)


def _flatten(place: Place) -> None:
    layer: Any = place.layer
    if layer.first == 1 and layer.last == len(place.shapes[0]) - 1:
        place.node("Flatten", place.bottoms, place.tops[0], axis=1)
    else:
        _reshape(place)


def _reshape(place: Place) -> None:
    place.reshaped(place.bottoms[0], place.top_shapes[0], place.tops[0])


REDUCTIONS = {
    ReductionParameter.SUM: "ReduceSum",
    ReductionParameter.ASUM: "ReduceL1",
    ReductionParameter.SUMSQ: "ReduceSumSquare",
    ReductionParameter.MEAN: "ReduceMean",
}


def _reduction(place: Place) -> None:
    layer: Any = place.layer
    param = layer.param.reduction_param
    axes = list(range(layer.first, len(place.shapes[0])))
    operator = REDUCTIONS[param.operation]
    top = place.tops[0] if param.coeff == 1 else None
    if operator == "ReduceSum":
        reduced = place.node(operator, [place.bottoms[0], place.constant(np.array(axes), "axes")], top, keepdims=0)
    else:
        reduced = place.node(operator, place.bottoms, top, axes=axes, keepdims=0)
    if top is None:
        place.scaled(reduced, param.coeff, 0.0, place.tops[0])


def _slice(place: Place) -> None:
    layer: Any = place.layer
    if len(place.tops) == 1:
        place.node("Identity", place.bottoms, place.tops[0])
        return
    equal = not layer.param.slice_param.slice_point
    parts = [] if equal else [place.constant(np.array(layer.parts), "parts")]
    place.graph.node("Split", [place.bottoms[0], *parts], place.tops, place.name, axis=layer.along)


def _copies(place: Place) -> None:
    for top in place.tops:
        place.node("Identity", place.bottoms, top)


def _tile(place: Place) -> None:
    layer: Any = place.layer
    repeats = np.ones(len(place.shapes[0]), np.int64)
    repeats[layer.along] = layer.param.tile_param.tiles
    place.node("Tile", [place.bottoms[0], place.constant(repeats, "repeats")], place.tops[0])


def _dropout(place: Place) -> None:
    if place.layer.context.training:
        raise place.layer.error("cannot be exported: it has phase: TRAIN, in which it is random")
    place.node("Identity", place.bottoms, place.tops[0])


def _relu(place: Place) -> None:
    slope = place.layer.param.relu_param.negative_slope
    if slope:
        place.node("LeakyRelu", place.bottoms, place.tops[0], alpha=slope)
    else:
        place.node("Relu", place.bottoms, place.tops[0])


def _prelu(place: Place) -> None:
    layer: Any = place.layer
    slope = place.weight(0, layer.wide)
    place.node("PRelu", [place.bottoms[0], slope], place.tops[0])


def _elu(place: Place) -> None:
    place.node("Elu", place.bottoms, place.tops[0], alpha=place.layer.param.elu_param.alpha)


def _clip(place: Place) -> None:
    param = place.layer.param.clip_param
    ends = [place.constant(float(param.min), "min"), place.constant(float(param.max), "max")]
    place.node("Clip", [place.bottoms[0], *ends], place.tops[0])


def _exp(place: Place) -> None:
    layer: Any = place.layer
    param = layer.param.exp_param
    inner = place.scaled(place.bottoms[0], layer.log_base * param.scale, 0.0)
    factor = math.exp(layer.log_base * param.shift)
    if factor == 1:
        place.node("Exp", [inner], place.tops[0])
    else:
        place.scaled(place.node("Exp", [inner]), factor, 0.0, place.tops[0])


def _log(place: Place) -> None:
    layer: Any = place.layer
    param = layer.param.log_param
    inner = place.scaled(place.bottoms[0], param.scale, param.shift)
    if layer.log_base == 1:
        place.node("Log", [inner], place.tops[0])
    else:
        place.scaled(place.node("Log", [inner]), 1 / layer.log_base, 0.0, place.tops[0])


def _power(place: Place) -> None:
    param = place.layer.param.power_param
    bottom, top = place.bottoms[0], place.tops[0]
    if param.power * param.scale == 0:
        value = 1.0 if param.power == 0 else float(np.power(np.float32(param.shift), np.float32(param.power)))
        place.scaled(bottom, 0.0, value, top)
    elif param.power == 1:
        place.scaled(bottom, param.scale, param.shift, top)
    else:
        inner = place.scaled(bottom, param.scale, param.shift)
        place.node("Pow", [inner, place.constant(float(param.power), "power")], top)


def _swish(place: Place) -> None:
    inner = place.scaled(place.bottoms[0], place.layer.param.swish_param.beta, 0.0)
    place.node("Mul", [place.bottoms[0], place.node("Sigmoid", [inner])], place.tops[0])


def _bnll(place: Place) -> None:
    # some runtimes compute Softplus as log(1 + exp(x)), which overflows, so its argument is not positive here
    bottom = place.bottoms[0]
    below = place.node("Softplus", [place.node("Neg", [place.node("Abs", [bottom])])])
    place.node("Add", [place.node("Relu", [bottom]), below], place.tops[0])


def _threshold(place: Place) -> None:
    limit = place.constant(float(place.layer.param.threshold_param.threshold), "threshold")
    place.node("Cast", [place.node("Greater", [place.bottoms[0], limit])], place.tops[0], to=1)


def _plain(operator: str) -> Callable[[Place], None]:
    def add(place: Place) -> None:
        place.node(operator, place.bottoms, place.tops[0])

    return add


OPERATORS: dict[str, Callable[[Place], None]] = {
    "AbsVal": _plain("Abs"), "ArgMax": _argmax, "BNLL": _bnll, "BatchNorm": _batch_norm,
    "BatchReindex": _batch_reindex, "Bias": _scale, "Clip": _clip, "Concat": _concat, "Convolution": _convolution,
    "Crop": _crop, "Deconvolution": _convolution, "Dropout": _dropout, "DummyData": _dummy_data, "ELU": _elu,
    "Eltwise": _eltwise, "Embed": _embed, "Exp": _exp, "Filter": _filter, "Flatten": _flatten, "Im2col": _im2col,
    "InnerProduct": _inner_product, "LRN": _lrn, "LSTM": add_recurrent, "LSTMUnit": add_lstm_unit, "Log": _log,
    "MVN": _mvn, "PReLU": _prelu, "Parameter": _parameter, "Pooling": _pooling, "Power": _power, "RNN": add_recurrent,
    "ReLU": _relu, "Reduction": _reduction, "Reshape": _reshape, "SPP": _spp, "Scale": _scale,
    "Sigmoid": _plain("Sigmoid"), "Slice": _slice, "Softmax": _softmax, "Split": _copies, "Swish": _swish,
    "TanH": _plain("Tanh"), "Threshold": _threshold, "Tile": _tile,
}  # fmt: skip
"""For each layer type, the function that adds the nodes of a layer."""
