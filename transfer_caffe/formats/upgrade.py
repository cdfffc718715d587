"""Old nets and solvers brought to today's form, as Caffe 1.0 does it on reading (caffe/util/upgrade_proto.cpp).

    upgrade_net(param, "old.prototxt")        a net of 2013 (V0) or 2014 (V1), prototxt or .caffemodel
    upgrade_solver(param, "solver.prototxt")  solver_type: NESTEROV becomes type: "Nesterov"

The forms, from old to new:
- V0 (2013)    layers { layer { name: "conv1" type: "conv" kernelsize: 11 ... } bottom: "data" top: "conv1" }
- V1 (2014)    layers { name: "conv1" type: CONVOLUTION convolution_param { ... } blobs_lr: 1 ... }
- today (2015) layer { name: "conv1" type: "Convolution" convolution_param { ... } param { lr_mult: 1 } }

What Caffe drops is dropped here too, and said. What it reads from beyond the end of a list, or gets wrong without a
word (`layer` beside the `layers { layer {} }` of V0 is lost), is a UserError.
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

# V0's type: V1's type
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

# V0's field: where each layer type that has it keeps it in V1; "*" stands for every type
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

# V1's type: today's type
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
# V1's fields for a layer's learnable blobs, a list each: today's field of the ParamSpec of that blob
V1_SPECS = {"param": "name", "blob_share_mode": "share_mode", "blobs_lr": "lr_mult", "weight_decay": "decay_mult"}

# the V1 layers that had fields of their own for what transform_param says now
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
    """Say on standard error what was left out of an old net."""
    print(f"warning: {message}", file=sys.stderr, flush=True)


def upgrade_net(param: NetParameter, where: str, say: Say = warn) -> NetParameter:
    """The net in today's form (UpgradeNetAsNeeded); one that has it already is returned as it is.

    ``param`` is not changed. ``say`` is told, a line each, what the old net has and Caffe leaves out. UserError,
    beginning with ``where``, for what cannot be upgraded.
    """
    if param.layers and param.layer:
        raise UserError(
            f"{where}: has both `layer` and `layers`; write all of its layers in today's form, "
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
    """The solver with `type` instead of the old `solver_type` (UpgradeSolverAsNeeded); nets inside it stay as they are.

    One that has today's form is returned as it is; ``param`` is not changed. UserError if it gives both.
    """
    if not param.HasField("solver_type"):
        return param
    if param.HasField("type"):
        raise UserError(f"{where}: gives both type and solver_type, its old form; remove solver_type")
    new = SolverParameter()
    new.CopyFrom(param)
    new.type = SOLVER_TYPES[param.solver_type]
    new.ClearField("solver_type")
    return new


def _v0_net(param: NetParameter, where: str, say: Say) -> NetParameter:
    """V0 to V1 (UpgradeV0Net): of the net itself only name, inputs and force_backward stay."""
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
    """Index, bottoms and pad (None: its own) of each layer that is no padding layer (UpgradeV0PaddingLayers).

    Nets of 2013 padded by a layer; the convolution or pooling above it does so now.
    """
    makers: dict[str, V1LayerParameter | None] = dict.fromkeys(param.input)
    kept: list[tuple[int, Sequence[str], int | None]] = []
    for index, connection in enumerate(param.layers):
        layer, bottoms, pad = connection.layer, list(connection.bottom), None
        place = f"{where}: layer {layer.name!r}"
        for number, bottom in enumerate(connection.bottom):
            if bottom not in makers:
                raise UserError(f"{place}: bottom blob {bottom!r} is not made by any layer or input before it")
            maker = makers[bottom]
            if maker is None or maker.layer.type != "padding":
                continue
            if layer.type not in ("conv", "pool"):
                raise UserError(
                    f"{place}: is of type {layer.type!r}, above padding layer {maker.layer.name!r}; "
                    "Caffe pads for conv and pool only"
                )
            if len(connection.bottom) != 1:
                raise UserError(f"{place}: takes {len(connection.bottom)} blobs; above a padding layer it takes one")
            if len(maker.bottom) != 1 or len(maker.top) != 1:
                raise UserError(f"{where}: padding layer {maker.layer.name!r}: it takes one blob and makes one")
            bottoms[number], pad = maker.bottom[0], maker.layer.pad
        if layer.type != "padding":
            kept.append((index, bottoms, pad))
        makers.update(dict.fromkeys(connection.top, connection))
    return kept


def _v0_layer(
    connection: V1LayerParameter, bottoms: Sequence[str], pad: int | None, new: V1LayerParameter, where: str, say: Say
) -> None:
    """One layer of V0 as one of V1 (UpgradeV0LayerParameter); its `layer {}` alone counts, beside bottoms and tops."""
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
    """Set a field of any kind; one value given to a repeated field is added to it."""
    current = getattr(message, name)
    if isinstance(current, Message):
        current.CopyFrom(value)
    elif hasattr(current, "extend"):
        current.extend([value] if isinstance(value, int | float | str) else value)
    else:
        setattr(message, name, value)


def _v1_net(param: NetParameter) -> NetParameter:
    """V1 to today's form (UpgradeNetDataTransformation, UpgradeV1Net)."""
    new = NetParameter()
    for field, value in param.ListFields():
        if field.name != "layers":
            _put(new, field.name, value)
    # where one layer says it in the old way, Caffe gives all data layers both messages, be they empty
    rewrite = any(_old_transforms(layer) for layer in param.layers)
    for layer in param.layers:
        _v1_layer(layer, new.layer.add(), rewrite and layer.type in DATA_PARAMS)
    return new


def _old_transforms(layer: V1LayerParameter) -> list[str]:
    if layer.type not in DATA_PARAMS:
        return []
    return [name for name in TRANSFORMS if getattr(layer, DATA_PARAMS[layer.type]).HasField(name)]


def _v1_layer(old: V1LayerParameter, new: LayerParameter, transforms: bool) -> None:
    """One layer of V1 in today's form (UpgradeV1LayerParameter); ``transforms``: move them into transform_param."""
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
    """The net's own `input` fields as an Input layer in front (UpgradeNetInput); without sizes they are dropped.

    Caffe takes them without sizes from old .caffemodels, where no one needs them.
    """
    new = NetParameter()
    for field, value in param.ListFields():
        if field.name not in ("input", "input_shape", "input_dim", "layer"):
            _put(new, field.name, value)
    count = len(param.input)
    if param.input_shape or param.input_dim:
        given, wanted, what = len(param.input_dim), 4 * count, "input_dim, which are four an input"
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
    """BatchNorm layers that give three param, as they once had to, learn none of them (UpgradeNetBatchNorm)."""
    olds = [i for i, layer in enumerate(param.layer) if layer.type == "BatchNorm" and len(layer.param) == 3]
    if not olds:
        return param
    new = NetParameter()
    new.CopyFrom(param)
    for i in olds:
        for spec in new.layer[i].param:
            spec.lr_mult = spec.decay_mult = 0
    return new
