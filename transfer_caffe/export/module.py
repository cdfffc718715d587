"""A Caffe net as a PyTorch module, made of PyTorch's own modules under the layers' names, and back to a .caffemodel.

    module = as_module("deploy.prototxt", "net.caffemodel")
    scores = module(images)                             # (batch, channels, height, width), preprocessed as for Caffe
    write_caffemodel(module, "tuned.caffemodel")

The module is a torch.fx.GraphModule: its `code` is the net as a Python function. It is in evaluation mode; `train()`
turns on Dropout and the batch statistics of BatchNorm. Where Caffe rounds a pooling's size up, the input is padded.
"""

from __future__ import annotations

import operator
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from transfer_caffe.engine.layers import Layer, Shape
from transfer_caffe.export import modules as own
from transfer_caffe.export import recurrent
from transfer_caffe.export.inference import load
from transfer_caffe.export.state import blobs_of, module_names, tensor_names, tensors_of
from transfer_caffe.formats.proto import array_to_blob, write_binary
from transfer_caffe.formats.proto.caffe_pb2 import (
    TEST,
    EltwiseParameter,
    LRNParameter,
    NetParameter,
    ReductionParameter,
)
from transfer_caffe.formats.proto.caffe_pb2 import PoolingParameter as Pool
from transfer_caffe.utils.errors import UserError

RESERVED = frozenset(dir(fx.GraphModule(nn.Module(), fx.Graph())))
"""Names that a layer's module cannot have."""

ORIGIN = "caffe"
"""The attribute of each layer's module with what the way back needs. Unlike attributes of a GraphModule, those of its
modules survive copying and pickling; each of them has it, because any may be replaced."""


@dataclass
class Call:
    """One layer in the module's graph: its inputs, their shapes, and where nodes are added."""

    graph: fx.Graph
    layer: Layer
    name: str
    bottoms: list[fx.Node]
    shapes: list[Shape]
    top_shapes: list[Shape]
    parameters: dict[int, nn.Parameter]
    """The parameters of blobs that other layers have as well, by the identity of the blob."""


Made = tuple[nn.Module, list[fx.Node] | None]
"""A layer's module, and what it is called with: None for all bottoms."""


def as_module(
    net: str | os.PathLike[str] | NetParameter, weights: str | os.PathLike[str] | None = None,
    shape: Sequence[int] = (),
) -> fx.GraphModule:  # fmt: skip
    """Return a net as a PyTorch module, with the weights of a .caffemodel (None: those of its fillers).

    ``net`` may be a train_val.prototxt: data layers become inputs, losses and accuracies are left out. ``shape`` is
    that of one image (channels, height, width), if the net does not say it. The module takes the input blobs in the
    net's order, and returns the output blob, or a dict of several by name. A layer's name is changed only where PyTorch
    does not accept it (a dot becomes an underscore). Blobs with lr_mult 0 do not require gradients. Raise UserError,
    which names the layer, for a layer that has no equivalent.
    """
    used = load(net, weights, shape)
    layers = [layer for layer in used.net.layers if layer.type != "Input"]
    names = module_names(layers, RESERVED)
    graph, root = fx.Graph(), nn.Module()
    blobs: dict[str, fx.Node] = {}
    sizes: dict[str, Shape] = dict(used.inputs)
    for blob in used.inputs:
        blobs[blob] = graph.placeholder(_identifier(blob))
    parameters: dict[int, nn.Parameter] = {}
    for layer, name in zip(layers, names, strict=True):
        if layer.type not in MODULES:
            raise layer.error("cannot be exported: layers of this type have no equivalent in ONNX or PyTorch")
        shapes = [sizes[bottom] for bottom in layer.param.bottom]
        tops = [tuple(each) for each in layer.top_shapes(shapes)]
        call = Call(graph, layer, name, [blobs[bottom] for bottom in layer.param.bottom], shapes, tops, parameters)
        module, arguments = MODULES[layer.type](call)
        _fill(call, module)
        root.add_module(name, module)
        for top, node, size in zip(layer.top, _nodes(call, arguments), tops, strict=True):
            blobs[top], sizes[top] = node, size
    outputs = used.net.outputs
    graph.output(blobs[outputs[0]] if len(outputs) == 1 else {name: blobs[name] for name in outputs})
    origin = _origin(used.net.name, layers, names)
    for name in names:
        setattr(root.get_submodule(name), ORIGIN, origin)
    return fx.GraphModule(root, graph, class_name=_identifier(used.net.name or "CaffeNet")).eval()


def _nodes(call: Call, arguments: list[fx.Node] | None) -> list[fx.Node]:
    """Add the calls of a layer's module, and return the nodes of its tops."""
    layer, tops = call.layer, len(call.layer.top)
    if layer.type in ("Convolution", "Deconvolution"):  # one call for each bottom
        return [call.graph.call_module(call.name, (bottom,)) for bottom in call.bottoms]
    node = call.graph.call_module(call.name, tuple(call.bottoms if arguments is None else arguments))
    if layer.type == "Split":
        return [node] * tops
    if tops == 1 and layer.type != "Slice":
        return [node]
    return [call.graph.call_function(operator.getitem, (node, index)) for index in range(tops)]


def _fill(call: Call, module: nn.Module) -> None:
    """Set the module's tensors to the layer's weights; a blob that layers share becomes one parameter."""
    layer = call.layer
    if isinstance(module, own.ViewedLinear) or not layer.blobs:
        return
    if layer.type == "BatchNorm":
        for name, array in tensors_of(layer).items():
            if getattr(module, name, None) is not None:
                getattr(module, name).copy_(torch.from_numpy(np.array(array)))
        return
    tensors = tensors_of(layer)
    for name, blob in zip(tensor_names(layer.param, len(layer.blobs)), layer.blobs, strict=True):
        key = id(blob.owner or blob)
        if key not in call.parameters:
            value = torch.from_numpy(np.array(tensors[name], np.float32))
            call.parameters[key] = nn.Parameter(value, requires_grad=blob.lr_mult != 0)
        parameter = call.parameters[key]
        if parameter.shape != tensors[name].shape:
            raise layer.error("cannot be exported: it shares weights in another shape")
        setattr(module, name, parameter)


def _identifier(name: str) -> str:
    """Return a name as a Python identifier."""
    text = re.sub(r"\W", "_", name, flags=re.ASCII)
    return text if text.isidentifier() else f"_{text}"


def _origin(name: str, layers: Sequence[Layer], names: Sequence[str]) -> dict[str, Any]:
    """Return what the way back needs: the net's message without weights, the modules' names, BatchNorms' sums."""
    message = NetParameter(name=name)
    sums: dict[str, list[np.ndarray]] = {}
    views: dict[str, Shape] = {}
    for layer, module in zip(layers, names, strict=True):
        copy = message.layer.add()
        copy.CopyFrom(layer.param)
        copy.ClearField("blobs")
        if not copy.HasField("phase"):
            copy.phase = TEST
        if layer.type == "BatchNorm":
            sums[module] = [blob.data.detach().numpy().copy() for blob in layer.blobs]
        if layer.type == "InnerProduct" and layer.blobs[0].owner is not None:
            views[module] = tuple(layer.blobs[0].data.shape)
    blobs = [len(layer.blobs) for layer in layers]
    return {"net": message.SerializeToString(), "modules": list(names), "blobs": blobs, "sums": sums, "views": views}


def write_caffemodel(module: nn.Module, path: str | os.PathLike[str]) -> None:
    """Write the weights of a module that `as_module` made, trained or not, as a .caffemodel.

    A Conv or Linear with another number of outputs may have taken the place of the original. Raise UserError for
    another module, and for weights that are missing.
    """
    origin = next((getattr(each, ORIGIN) for each in module.children() if hasattr(each, ORIGIN)), None)
    if not isinstance(origin, dict):
        raise UserError("write_caffemodel: this module was not made by as_module")
    state = {name: tensor.detach().cpu().numpy() for name, tensor in module.state_dict().items()}
    net = NetParameter.FromString(origin["net"])
    for layer, name, count in zip(net.layer, origin["modules"], origin["blobs"], strict=True):
        wanted = tensor_names(layer, count)
        tensors = {each: state[f"{name}.{each}"] for each in wanted if f"{name}.{each}" in state}
        missing = [each for each in wanted if each not in tensors]
        if missing and layer.type != "BatchNorm":
            raise UserError(f"layer {layer.name!r} ({layer.type}): the module has no {name}.{missing[0]}")
        if not wanted:
            continue
        if name in origin["views"]:
            arrays = [tensors["weight"].reshape(origin["views"][name]), *([tensors["bias"]] if count > 1 else [])]
        else:
            arrays = blobs_of(layer, tensors, origin["sums"].get(name, ()))
            _set_outputs(layer, arrays)
        layer.blobs.extend(array_to_blob(array) for array in arrays)
    write_binary(path, net)


def _set_outputs(layer: Any, arrays: Sequence[np.ndarray]) -> None:
    """Set num_output to that of the weights, which may belong to a module that replaced the original."""
    if layer.type == "Convolution":
        layer.convolution_param.num_output = arrays[0].shape[0]
    elif layer.type == "InnerProduct":
        layer.inner_product_param.num_output = arrays[0].shape[int(layer.inner_product_param.transpose)]


def _convolution(call: Call) -> Made:
    layer: Any = call.layer
    transposed = layer.type == "Deconvolution"
    axes = len(layer.kernel)
    if not 1 <= axes <= 3:
        raise layer.error(f"cannot be exported: it has {axes} spatial axes, and PyTorch supports 1 to 3")
    kind: Any = getattr(nn, f"Conv{'Transpose' if transposed else ''}{axes}d")
    outputs, leading = layer.param.convolution_param.num_output, layer.channel_axis
    inputs = call.shapes[0][leading]
    settings = {"stride": layer.stride, "padding": layer.pad, "dilation": layer.dilation, "groups": layer.group}
    if leading > 1:
        kind = type(kind.__name__, (own.OverAxes, kind), {"leading": leading})
    module = _empty(kind, inputs, outputs, layer.kernel, bias=len(layer.blobs) > 1, **settings)
    return module, None


def _empty(kind: Any, *arguments: Any, **settings: Any) -> nn.Module:
    """Make a module without initialising its weights, which are replaced: for 61 M of them that takes a second."""
    return kind(*arguments, device="meta", **settings)


def _inner_product(call: Call) -> Made:
    layer: Any = call.layer
    shape, first = call.shapes[0], layer.first
    inputs = int(np.prod(shape[first:]))
    rows = call.bottoms[0]
    if first != len(shape) - 1:
        rows = call.graph.call_function(torch.flatten, (rows, first))
    blob = layer.blobs[0]
    if blob.owner is not None:
        key = id(blob.owner)
        bias = layer.blobs[1] if len(layer.blobs) > 1 else None
        value = None if bias is None else nn.Parameter(bias.data.detach().clone(), requires_grad=bias.lr_mult != 0)
        return own.ViewedLinear(call.parameters[key], value, tuple(blob.data.shape), layer.transpose), [rows]
    outputs = layer.param.inner_product_param.num_output
    return _empty(nn.Linear, inputs, outputs, bias=len(layer.blobs) > 1), [rows]


def _pooling(call: Call) -> Made:
    layer: Any = call.layer
    maximum = layer.param.pooling_param.pool == Pool.MAX
    sides = call.shapes[0][2:]
    if layer.param.pooling_param.global_pooling and len(layer.top) == 1:
        return (nn.AdaptiveMaxPool2d(1) if maximum else nn.AdaptiveAvgPool2d(1)), None
    edges = _edges(layer, sides)
    ends = (edges[3], edges[1])
    if len(layer.top) > 1:
        return own.MaxPoolWithPlaces(layer.kernel, layer.stride, layer.pad, edges), None
    # PyTorch pads both sides alike, and by half a kernel at most
    alike = all(
        end <= pad and 2 * pad <= kernel for end, pad, kernel in zip(ends, layer.pad, layer.kernel, strict=True)
    )
    pad = layer.pad if alike else (0, 0)
    if maximum:
        padded = call.bottoms if alike else [
            call.graph.call_function(F.pad, (call.bottoms[0], edges), {"value": own.LOWEST})
        ]  # fmt: skip
        return nn.MaxPool2d(layer.kernel, layer.stride, pad), padded
    if alike:
        return nn.AvgPool2d(layer.kernel, layer.stride, pad), None
    return own.AveragePool(layer.kernel, layer.stride, edges, _factors(layer, sides)), None


def _edges(layer: Any, sides: Shape) -> list[int]:
    """Return the padding that a pooling's windows need: left, right, top, bottom."""
    zipped = zip(layer.size, layer.stride, layer.kernel, layer.pad, sides, strict=True)
    ends = [max((n - 1) * stride + kernel - pad - side, 0) for n, stride, kernel, pad, side in zipped]
    return [layer.pad[1], ends[1], layer.pad[0], ends[0]]


def _factors(layer: Any, sides: Shape) -> Tensor:
    """Return the area of the kernel by the area of each window within the padded image, (height, width)."""
    factors = []
    for n, stride, kernel, before, side in zip(layer.size, layer.stride, layer.kernel, layer.pad, sides, strict=True):
        starts = torch.arange(n) * stride - before
        factors.append(kernel / ((starts + kernel).clamp(max=side + before) - starts))
    return factors[0][:, None] * factors[1]


def _spp(call: Call) -> Made:
    layer: Any = call.layer
    sides, levels = call.shapes[0][2:], []
    for level in layer.levels:
        edges = _edges(level, sides)
        if level.param.pooling_param.pool == Pool.MAX:
            levels.append(own.MaxPool(level.kernel, level.stride, edges))
        else:
            levels.append(own.AveragePool(level.kernel, level.stride, edges, _factors(level, sides)))
    return own.SpatialPyramid(levels), None


def _im2col(call: Call) -> Made:
    layer: Any = call.layer
    axes = len(layer.kernel)
    if layer.channel_axis != 1 or not 1 <= axes <= 3:
        raise layer.error("cannot be exported: PyTorch supports 1 to 3 axes after one axis of channels")
    return own.Im2col(call.shapes[0][1], layer.kernel, layer.stride, layer.pad, layer.dilation), None


def _lrn(call: Call) -> Made:
    param = call.layer.param.lrn_param
    if param.norm_region == LRNParameter.ACROSS_CHANNELS:
        return nn.LocalResponseNorm(param.local_size, param.alpha, param.beta, param.k), None
    return own.LocalResponseNormWithinChannel(param.local_size, param.alpha, param.beta), None


def _batch_norm(call: Call) -> Made:
    layer: Any = call.layer
    param = layer.param.batch_norm_param
    if param.HasField("use_global_stats") or not layer.global_stats:
        return own.FixedBatchNorm(layer.channels, layer.eps, layer.global_stats, len(call.shapes[0])), None
    axes = max(len(call.shapes[0]) - 2, 1)
    if axes > 3:
        raise layer.error(f"cannot be exported: PyTorch has no BatchNorm for {axes + 2} axes")
    kind: Any = getattr(nn, f"BatchNorm{axes}d")
    return kind(layer.channels, layer.eps, 1 - layer.fraction, affine=False), None


def _scale(call: Call) -> Made:
    layer: Any = call.layer
    arrays = {name: torch.from_numpy(np.array(each)) for name, each in tensors_of(layer).items()}
    return own.Scale(layer.wide, arrays.get("weight"), arrays.get("bias"), layer.type == "Bias"), None


def _argmax(call: Call) -> Made:
    layer: Any = call.layer
    param = layer.param.argmax_param
    return own.ArgMax(layer.over, param.top_k, param.out_max_val, len(call.shapes[0])), None


def _eltwise(call: Call) -> Made:
    param = call.layer.param.eltwise_param
    coefficients = list(param.coeff) or [1.0] * len(call.bottoms)
    return own.Eltwise(EltwiseParameter.EltwiseOp.Name(param.operation), coefficients), None


def _embed(call: Call) -> Made:
    param = call.layer.param.embed_param
    return own.Embed(param.input_dim, param.num_output, param.bias_term), None


def _constant(call: Call) -> Made:
    with torch.no_grad():
        values = [top.detach().clone() for top in call.layer.forward([], 0)]
    return own.Constant(values, call.layer.type == "Parameter"), None


def _crop(call: Call) -> Made:
    layer: Any = call.layer
    windows = [
        None if window.start is None or (window.start, window.stop) == (0, side) else (window.start, window.stop)
        for window, side in zip(layer.windows, call.shapes[0], strict=True)
    ]
    return own.Crop(windows), None


def _flatten(call: Call) -> Made:
    layer: Any = call.layer
    if layer.first > layer.last:
        return own.Reshape(call.top_shapes[0]), None
    return nn.Flatten(layer.first, layer.last), None


def _slice(call: Call) -> Made:
    layer: Any = call.layer
    sizes = layer.parts if layer.param.slice_param.slice_point else None
    return own.Slice(layer.along, len(layer.top), sizes), None


def _reduction(call: Call) -> Made:
    layer: Any = call.layer
    param = layer.param.reduction_param
    return own.Reduction(layer.first, ReductionParameter.ReductionOp.Name(param.operation), param.coeff), None


def _mvn(call: Call) -> Made:
    param = call.layer.param.mvn_param
    eps = param.eps if param.normalize_variance else None
    return own.MeanVariance(param.across_channels, eps, 4 - len(call.shapes[0])), None


def _dropout(call: Call) -> Made:
    param = call.layer.param
    if call.layer.context.training:
        raise call.layer.error("cannot be exported: it has phase: TRAIN, in which it is random")
    if param.HasField("phase"):  # it never drops anything
        return nn.Identity(), None
    return nn.Dropout(param.dropout_param.dropout_ratio), None


def _relu(call: Call) -> Made:
    slope = call.layer.param.relu_param.negative_slope
    return (nn.LeakyReLU(slope) if slope else nn.ReLU()), None


def _prelu(call: Call) -> Made:
    return nn.PReLU(call.layer.blobs[0].data.numel()), None


def _clip(call: Call) -> Made:
    param = call.layer.param.clip_param
    return nn.Hardtanh(param.min, param.max), None


def _exp(call: Call) -> Made:
    layer: Any = call.layer
    param = layer.param.exp_param
    return own.Exp(layer.log_base * param.scale, float(np.exp(layer.log_base * param.shift))), None


def _log(call: Call) -> Made:
    layer: Any = call.layer
    param = layer.param.log_param
    return own.Log(param.scale, param.shift, layer.log_base), None


def _power(call: Call) -> Made:
    param = call.layer.param.power_param
    return own.Power(param.power, param.scale, param.shift), None


def _swish(call: Call) -> Made:
    beta = call.layer.param.swish_param.beta
    return (nn.SiLU() if beta == 1 else own.Swish(beta)), None


def _tile(call: Call) -> Made:
    layer: Any = call.layer
    return own.Tile(layer.along, layer.param.tile_param.tiles), None


def _plain(make: Callable[[Any], nn.Module]) -> Callable[[Call], Made]:
    def module(call: Call) -> Made:
        return make(call.layer), None

    return module


MODULES: dict[str, Callable[[Call], Made]] = {
    "AbsVal": _plain(lambda _: own.Abs()),
    "ArgMax": _argmax,
    "BNLL": _plain(lambda _: nn.Softplus()),
    "BatchNorm": _batch_norm,
    "BatchReindex": _plain(lambda _: own.BatchReindex()),
    "Bias": _scale,
    "Clip": _clip,
    "Concat": _plain(lambda layer: own.Concat(layer.along)),
    "Convolution": _convolution,
    "Crop": _crop,
    "Deconvolution": _convolution,
    "Dropout": _dropout,
    "DummyData": _constant,
    "ELU": _plain(lambda layer: nn.ELU(layer.param.elu_param.alpha)),
    "Eltwise": _eltwise,
    "Embed": _embed,
    "Exp": _exp,
    "Filter": _plain(lambda _: own.Filter()),
    "Flatten": _flatten,
    "Im2col": _im2col,
    "InnerProduct": _inner_product,
    "LRN": _lrn,
    "LSTM": _plain(lambda layer: recurrent.LSTM(layer.steps, 2, layer.size, layer.static, layer.exposed)),
    "LSTMUnit": _plain(lambda _: recurrent.LSTMUnit()),
    "Log": _log,
    "MVN": _mvn,
    "PReLU": _prelu,
    "Parameter": _constant,
    "Pooling": _pooling,
    "Power": _power,
    "RNN": _plain(lambda layer: recurrent.RNN(layer.steps, 1, layer.size, layer.static, layer.exposed)),
    "ReLU": _relu,
    "Reduction": _reduction,
    "Reshape": lambda call: (own.Reshape(call.top_shapes[0]), None),
    "SPP": _spp,
    "Scale": _scale,
    "Sigmoid": _plain(lambda _: nn.Sigmoid()),
    "Slice": _slice,
    "Softmax": _plain(lambda layer: nn.Softmax(layer.over)),
    "Split": _plain(lambda _: nn.Identity()),
    "Swish": _swish,
    "TanH": _plain(lambda _: nn.Tanh()),
    "Threshold": _plain(lambda layer: own.Threshold(layer.param.threshold_param.threshold)),
    "Tile": _tile,
}
"""For each layer type, the function that makes a layer's module, and adds the nodes of its arguments."""
