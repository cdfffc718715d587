"""Upgrade of old nets and solvers to the current format, as Caffe 1.0 does on reading (caffe/util/upgrade_proto.cpp).

    upgrade_net(param, "old.prototxt")        a net of 2013 (V0) or 2014 (V1), prototxt or .caffemodel
    upgrade_solver(param, "solver.prototxt")  solver_type: NESTEROV becomes type: "Nesterov"

The formats, from old to new:
- V0 (2013)      layers { layer { name: "conv1" type: "conv" kernelsize: 11 ... } bottom: "data" top: "conv1" }
- V1 (2014)      layers { name: "conv1" type: CONVOLUTION convolution_param { ... } blobs_lr: 1 ... }
- current (2015) layer { name: "conv1" type: "Convolution" convolution_param { ... } param { lr_mult: 1 } }

Fields that Caffe drops are dropped here too, with a warning. UserError is raised where Caffe would read beyond the end
of a list or silently lose something (such as a `layer` beside V0's `layers { layer {} }`).
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any

from google.protobuf.message import Message

from transfer_caffe.formats.proto.caffe_pb2 import (
    BlobShape,
    LayerParameter,
    NetParameter,
    ParamSpec,
    SolverParameter,
    V0LayerParameter,
    V1LayerParameter,
)
from transfer_caffe.utils.errors import UserError

Say = Callable[[str], None]

# V0 type: V1 type
V0_TYPES = {
    "accuracy": "ACCURACY",
    "bnll": "BNLL",
    "concat": "CONCAT",
    "conv": "CONVOLUTION",
    "data": "DATA",
    "dropout": "DROPOUT",
    "euclidean_loss": "EUCLIDEAN_LOSS",
    "flatten": "FLATTEN",
    "hdf5_data": "HDF5_DATA",
    "hdf5_output": "HDF5_OUTPUT",
    "im2col": "IM2COL",
    "images": "IMAGE_DATA",
    "infogain_loss": "INFOGAIN_LOSS",
    "innerproduct": "INNER_PRODUCT",
    "lrn": "LRN",
    "multinomial_logistic_loss": "MULTINOMIAL_LOGISTIC_LOSS",
    "pool": "POOLING",
    "relu": "RELU",
    "sigmoid": "SIGMOID",
    "softmax": "SOFTMAX",
    "softmax_loss": "SOFTMAX_LOSS",
    "split": "SPLIT",
    "tanh": "TANH",
    "window_data": "WINDOW_DATA",
}

# V0 field: its place in V1 for each layer type that has it; "*" stands for every type
V0_FIELDS: dict[str, dict[str, str]] = {
    "num_output": {"conv": "convolution_param.num_output", "innerproduct": "inner_product_param.num_output"},
    "biasterm": {"conv": "convolution_param.bias_term", "innerproduct": "inner_product_param.bias_term"},
    "weight_filler": {"conv": "convolution_param.weight_filler", "innerproduct": "inner_product_param.weight_filler"},
    "bias_filler": {"conv": "convolution_param.bias_filler", "innerproduct": "inner_product_param.bias_filler"},
    "pad": {"conv": "convolution_param.pad", "pool": "pooling_param.pad"},
    "kernelsize": {"conv": "convolution_param.kernel_size", "pool": "pooling_param.kernel_size"},
    "group": {"conv": "convolution_param.group"},
    "stride": {"conv": "convolution_param.stride", "pool": "pooling_param.stride"},
    "pool": {"pool": "pooling_param.pool"},
    "dropout_ratio": {"dropout": "dropout_param.dropout_ratio"},
    "local_size": {"lrn": "lrn_param.local_size"},
    "alpha": {"lrn": "lrn_param.alpha"},
    "beta": {"lrn": "lrn_param.beta"},
    "k": {"lrn": "lrn_param.k"},
    "source": {
        "data": "data_param.source",
        "hdf5_data": "hdf5_data_param.source",
        "images": "image_data_param.source",
        "window_data": "window_data_param.source",
        "infogain_loss": "infogain_loss_param.source",
    },
    "batchsize": {
        "data": "data_param.batch_size",
        "hdf5_data": "hdf5_data_param.batch_size",
        "images": "image_data_param.batch_size",
        "window_data": "window_data_param.batch_size",
    },
    "scale": {"*": "transform_param.scale"},
    "meanfile": {"*": "transform_param.mean_file"},
    "cropsize": {"*": "transform_param.crop_size"},
    "mirror": {"*": "transform_param.mirror"},
    "rand_skip": {"data": "data_param.rand_skip", "images": "image_data_param.rand_skip"},
    "shuffle_images": {"images": "image_data_param.shuffle"},
    "new_height": {"images": "image_data_param.new_height"},
    "new_width": {"images": "image_data_param.new_width"},
    "new_num": {},
    "new_channels": {},
    "concat_dim": {"concat": "concat_param.concat_dim"},
    "det_fg_threshold": {"window_data": "window_data_param.fg_threshold"},
    "det_bg_threshold": {"window_data": "window_data_param.bg_threshold"},
    "det_fg_fraction": {"window_data": "window_data_param.fg_fraction"},
    "det_context_pad": {"window_data": "window_data_param.context_pad"},
    "det_crop_mode": {"window_data": "window_data_param.crop_mode"},
    "hdf5_output_param": {"hdf5_output": "hdf5_output_param"},
}
V0_SAME = ("name", "blobs", "blobs_lr", "weight_decay")

# V1 type: current type
V1_TYPES = {
    "NONE": "",
    "ABSVAL": "AbsVal",
    "ACCURACY": "Accuracy",
    "ARGMAX": "ArgMax",
    "BNLL": "BNLL",
    "CONCAT": "Concat",
    "CONTRASTIVE_LOSS": "ContrastiveLoss",
    "CONVOLUTION": "Convolution",
    "DATA": "Data",
    "DECONVOLUTION": "Deconvolution",
    "DROPOUT": "Dropout",
    "DUMMY_DATA": "DummyData",
    "EUCLIDEAN_LOSS": "EuclideanLoss",
    "ELTWISE": "Eltwise",
    "EXP": "Exp",
    "FLATTEN": "Flatten",
    "HDF5_DATA": "HDF5Data",
    "HDF5_OUTPUT": "HDF5Output",
    "HINGE_LOSS": "HingeLoss",
    "IM2COL": "Im2col",
    "IMAGE_DATA": "ImageData",
    "INFOGAIN_LOSS": "InfogainLoss",
    "INNER_PRODUCT": "InnerProduct",
    "LRN": "LRN",
    "MEMORY_DATA": "MemoryData",
    "MULTINOMIAL_LOGISTIC_LOSS": "MultinomialLogisticLoss",
    "MVN": "MVN",
    "POOLING": "Pooling",
    "POWER": "Power",
    "RELU": "ReLU",
    "SIGMOID": "Sigmoid",
    "SIGMOID_CROSS_ENTROPY_LOSS": "SigmoidCrossEntropyLoss",
    "SILENCE": "Silence",
    "SOFTMAX": "Softmax",
    "SOFTMAX_LOSS": "SoftmaxWithLoss",
    "SPLIT": "Split",
    "SLICE": "Slice",
    "TANH": "TanH",
    "WINDOW_DATA": "WindowData",
    "THRESHOLD": "Threshold",
}
# V1 fields with a value per learnable blob of a layer: the current field in the ParamSpec of that blob
V1_SPECS = {"param": "name", "blob_share_mode": "share_mode", "blobs_lr": "lr_mult", "weight_decay": "decay_mult"}

# the V1 layers that had their own fields for the settings that are now in transform_param
DATA_PARAMS = {
    V1LayerParameter.DATA: "data_param",
    V1LayerParameter.IMAGE_DATA: "image_data_param",
    V1LayerParameter.WINDOW_DATA: "window_data_param",
}
TRANSFORMS = ("scale", "mean_file", "crop_size", "mirror")

SOLVER_TYPES = {
    SolverParameter.SGD: "SGD",
    SolverParameter.NESTEROV: "Nesterov",
    SolverParameter.ADAGRAD: "AdaGrad",
    SolverParameter.RMSPROP: "RMSProp",
    SolverParameter.ADADELTA: "AdaDelta",
    SolverParameter.ADAM: "Adam",
}


def warn(message: str) -> None:
    """Write a warning to standard error about something that was dropped from an old net."""
    print(f"warning: {message}", file=sys.stderr, flush=True)


def upgrade_net(param: NetParameter, where: str, say: Say = warn) -> NetParameter:
    """Return the net in the current format (UpgradeNetAsNeeded). A net that needs no upgrade is returned itself.

    ``param`` is not changed. ``say`` is called with one line for each thing in the old net that Caffe drops. Raise
    UserError, starting with ``where``, if the net cannot be upgraded.
    """
    if param.layers and param.layer:
        raise UserError(
            f"{where}: has both `layer` and `layers`; write all of its layers in the current format, "
            'layer { type: "Name" ... }'
        )
    if any(layer.HasField("layer") for layer in param.layers):
        param = _v0_net(param, where, say)
    if param.layers:
        param = _v1_net(param)
    if param.input:
        param = _with_input_layer(param, where)
    return _batch_norms(param)


def upgrade_solver(param: SolverParameter, where: str) -> SolverParameter:
    """Return the solver with `type` instead of the old `solver_type` (UpgradeSolverAsNeeded).

    Nets inside the solver are not upgraded. A solver that needs no upgrade is returned itself. ``param`` is unchanged.
    Raise UserError if the solver has both fields.
    """
    if not param.HasField("solver_type"):
        return param
    if param.HasField("type"):
        raise UserError(f"{where}: has both type and its old form solver_type; remove solver_type")
    new = SolverParameter()
    new.CopyFrom(param)
    new.type = SOLVER_TYPES[param.solver_type]
    new.ClearField("solver_type")
    return new


def _v0_net(param: NetParameter, where: str, say: Say) -> NetParameter:
    """Upgrade V0 to V1 (UpgradeV0Net). Of the net's own fields only name, the inputs and force_backward are kept."""
    new = NetParameter(input=param.input, input_dim=param.input_dim)
    for name in ("name", "force_backward"):
        if param.HasField(name):
            setattr(new, name, getattr(param, name))
    lost = [field.name for field, _ in param.ListFields() if field.name in ("input_shape", "state", "debug_info")]
    if lost:
        say(f"{where}: left out, as Caffe does with a net of 2013: {', '.join(lost)}")
    for index, bottoms, pad in _without_padding(param, where):
        old = param.layers[index]
        _v0_layer(old, bottoms, pad, new.layers.add(), f"{where}: layer {old.layer.name or old.name!r}", say)
    return new


def _without_padding(param: NetParameter, where: str) -> list[tuple[int, Sequence[str], int | None]]:
    """Return (index, bottoms, pad) of each layer except padding layers (UpgradeV0PaddingLayers).

    ``pad`` is None if the layer has no padding layer below it. Nets of 2013 had padding layers; now the convolution or
    pooling above does the padding.
    """
    makers: dict[str, V1LayerParameter | None] = dict.fromkeys(param.input)
    kept: list[tuple[int, Sequence[str], int | None]] = []
    for index, connection in enumerate(param.layers):
        layer, bottoms, pad = connection.layer, list(connection.bottom), None
        place = f"{where}: layer {layer.name!r}"
        for number, bottom in enumerate(connection.bottom):
            if bottom not in makers:
                raise UserError(f"{place}: bottom blob {bottom!r} is not the top of any layer or input before it")
            maker = makers[bottom]
            if maker is None or maker.layer.type != "padding":
                continue
            if layer.type not in ("conv", "pool"):
                raise UserError(
                    f"{place}: has type {layer.type!r}, above padding layer {maker.layer.name!r}; "
                    "Caffe supports padding only for conv and pool"
                )
            if len(connection.bottom) != 1:
                raise UserError(f"{place}: has {len(connection.bottom)} bottoms; above a padding layer it may have one")
            if len(maker.bottom) != 1 or len(maker.top) != 1:
                raise UserError(f"{where}: padding layer {maker.layer.name!r}: it must have one bottom and one top")
            bottoms[number], pad = maker.bottom[0], maker.layer.pad
        if layer.type != "padding":
            kept.append((index, bottoms, pad))
        makers.update(dict.fromkeys(connection.top, connection))
    return kept


def _v0_layer(
    connection: V1LayerParameter, bottoms: Sequence[str], pad: int | None, new: V1LayerParameter, where: str, say: Say
) -> None:
    """Upgrade one layer from V0 to V1 (UpgradeV0LayerParameter). Only its `layer {}`, bottoms and tops are used."""
    lost = [field.name for field, _ in connection.ListFields() if field.name not in ("layer", "bottom", "top")]
    if lost:
        say(f"{where}: left out, as Caffe does beside the `layer {{}}` of 2013: {', '.join(lost)}")
    new.bottom.extend(bottoms)
    new.top.extend(connection.top)
    old: V0LayerParameter = connection.layer
    if old.HasField("type"):
        if old.type not in V0_TYPES:
            raise UserError(f"{where}: unknown layer type {old.type!r}; known: {', '.join(V0_TYPES)}")
        _put(new, "type", V1LayerParameter.LayerType.Value(V0_TYPES[old.type]))
    for field, value in old.ListFields():
        if field.name in V0_SAME:
            _put(new, field.name, value)
        elif field.name != "type" and not (field.name == "pad" and pad is not None):
            _put_v0(new, field.name, old.type, value, where, say)
    if pad is not None:
        _put_v0(new, "pad", old.type, pad, where, say)


def _put_v0(new: V1LayerParameter, name: str, kind: str, value: Any, where: str, say: Say) -> None:
    """Store a V0 field at its place in V1 for a layer of type ``kind``; warn if this type does not have it."""
    targets = V0_FIELDS[name]
    target = targets.get("*") or targets.get(kind)
    if target is None:
        say(f"{where}: left out, as Caffe does: {name}, which layers of type {kind!r} do not have")
        return
    message: Message = new
    *path, last = target.split(".")
    for part in path:
        message = getattr(message, part)
    _put(message, last, value)


def _put(message: Message, name: str, value: Any) -> None:
    """Set a field of any kind; a single value for a repeated field is appended to it."""
    current = getattr(message, name)
    if isinstance(current, Message):
        current.CopyFrom(value)
    elif hasattr(current, "extend"):
        current.extend([value] if isinstance(value, int | float | str) else value)
    else:
        setattr(message, name, value)


def _v1_net(param: NetParameter) -> NetParameter:
    """Upgrade V1 to the current format (UpgradeNetDataTransformation, UpgradeV1Net)."""
    new = NetParameter()
    for field, value in param.ListFields():
        if field.name != "layers":
            _put(new, field.name, value)
    # if one layer has the old fields, Caffe adds both messages to all data layers, even if they are empty
    rewrite = any(_old_transforms(layer) for layer in param.layers)
    for layer in param.layers:
        _v1_layer(layer, new.layer.add(), rewrite and layer.type in DATA_PARAMS)
    return new


def _old_transforms(layer: V1LayerParameter) -> list[str]:
    """Return the names of the old transformation fields that a data layer has."""
    if layer.type not in DATA_PARAMS:
        return []
    return [name for name in TRANSFORMS if getattr(layer, DATA_PARAMS[layer.type]).HasField(name)]


def _v1_layer(old: V1LayerParameter, new: LayerParameter, transforms: bool) -> None:
    """Upgrade one layer from V1 (UpgradeV1LayerParameter). ``transforms``: move these fields into transform_param."""
    specs: list[ParamSpec] = []
    for field, value in old.ListFields():
        if field.name == "type":
            new.type = V1_TYPES[V1LayerParameter.LayerType.Name(value)]
        elif field.name in V1_SPECS:
            specs.extend(ParamSpec() for _ in range(len(value) - len(specs)))
            for spec, each in zip(specs, value, strict=False):
                setattr(spec, V1_SPECS[field.name], each)
        else:
            _put(new, field.name, value)
    new.param.extend(specs)
    if transforms:
        own = getattr(new, DATA_PARAMS[old.type])
        own.SetInParent()
        new.transform_param.SetInParent()
        for name in _old_transforms(old):
            setattr(new.transform_param, name, getattr(own, name))
            own.ClearField(name)


def _with_input_layer(param: NetParameter, where: str) -> NetParameter:
    """Turn the net's `input` fields into an Input layer at the start (UpgradeNetInput); drop those without sizes.

    Old .caffemodels have them without sizes, and Caffe accepts that, because they are not needed there.
    """
    new = NetParameter()
    for field, value in param.ListFields():
        if field.name not in ("input", "input_shape", "input_dim", "layer"):
            _put(new, field.name, value)
    count = len(param.input)
    if param.input_shape or param.input_dim:
        given, wanted, what = len(param.input_dim), 4 * count, "input_dim, four per input"
        if param.input_shape:
            given, wanted, what = len(param.input_shape), count, "input_shape"
        if given < wanted:
            raise UserError(f"{where}: {count} input fields need {wanted} {what}; there are {given}")
        dims = param.input_dim
        shapes = param.input_shape or [BlobShape(dim=dims[4 * index : 4 * index + 4]) for index in range(count)]
        layer = new.layer.add(name="input", type="Input", top=param.input)
        layer.input_param.shape.extend(shapes[:count])
    new.layer.extend(param.layer)
    return new


def _batch_norms(param: NetParameter) -> NetParameter:
    """Set lr_mult and decay_mult to 0 in BatchNorm layers with three `param`, as Caffe does (UpgradeNetBatchNorm)."""
    olds = [i for i, layer in enumerate(param.layer) if layer.type == "BatchNorm" and len(layer.param) == 3]
    if not olds:
        return param
    new = NetParameter()
    new.CopyFrom(param)
    for i in olds:
        for spec in new.layer[i].param:
            spec.lr_mult = spec.decay_mult = 0
    return new
