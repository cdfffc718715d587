"""Small nets for the conformance suite that test interactions between layers.

    GRAPH_CASES["blob used three times"]      a Case of transfer_caffe.compare

They test in-place layers, blobs used more than once, losses on inner blobs, shared weights, frozen layers and
propagate_down.
"""

from __future__ import annotations

import numpy as np

from transfer_caffe.compare import Case
from transfer_caffe.formats.proto import parse_text
from transfer_caffe.formats.proto.caffe_pb2 import NetParameter

FILLERS = 'weight_filler { type: "gaussian" std: 0.5 } bias_filler { type: "gaussian" std: 0.5 }'
DATA = 'layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 2 dim: 3 dim: 5 dim: 6 } } }'
LABEL = 'layer { name: "label" type: "Input" top: "label" input_param { shape { dim: 2 } } }'
LOSS = 'layer { name: "loss" type: "SoftmaxWithLoss" bottom: "fc" bottom: "label" top: "loss" }'

GRAPH_CASES: dict[str, Case] = {}


def layer(name: str, kind: str, bottoms: str, tops: str, settings: str = "") -> str:
    """Return the prototxt of one layer; ``bottoms`` and ``tops`` are names separated by spaces."""
    blobs = [f'bottom: "{blob}"' for blob in bottoms.split()] + [f'top: "{blob}"' for blob in tops.split()]
    return f'layer {{ name: "{name}" type: "{kind}" {" ".join(blobs)} {settings} }}'


def conv(name: str, bottom: str, settings: str = "") -> str:
    """Return a 3x3 convolution that keeps the size and has 3 outputs; its top has its name."""
    return layer(
        name,
        "Convolution",
        bottom,
        name,
        f"convolution_param {{ num_output: 3 kernel_size: 3 pad: 1 {FILLERS} }} {settings}",
    )


def fc(bottom: str, name: str = "fc", settings: str = "", outputs: int = 4) -> str:
    """Return an InnerProduct layer; its top has its name."""
    return layer(
        name, "InnerProduct", bottom, name, f"inner_product_param {{ num_output: {outputs} {FILLERS} }} {settings}"
    )


def add(name: str, *layers: str, phase: str = "TRAIN", force: bool = False) -> None:
    """Add a net to the table; its input blobs are usually `data` and `label`."""
    seed = len(GRAPH_CASES)
    text = "\n".join([f'name: "graph" force_backward: {"true" if force else "false"}', *layers])
    values = {}
    if LABEL in layers:
        values["blob/label"] = np.random.RandomState(seed).randint(0, 4, 2).astype(np.float32)
    GRAPH_CASES[name] = Case(parse_text(text, NetParameter(), name), phase, values, seed=seed)


IN_PLACE = {
    "ReLU": "",
    "ReLU leaky": "relu_param { negative_slope: 0.1 }",
    "PReLU": 'prelu_param { filler { type: "gaussian" std: 1 } }',
    "ELU": "elu_param { alpha: 0.3 }",
    "Sigmoid": "",
    "TanH": "",
    "BNLL": "",
    "Power": "power_param { power: 2 scale: 0.5 shift: 1 }",
    "Power scale only": "power_param { scale: -2 shift: 1 }",
    "Exp": "exp_param { base: 2 scale: 0.5 }",
    "Log": "log_param { scale: 0.01 shift: 3 }",
    "AbsVal": "",
    "Swish": "",
    "Clip": "clip_param { min: -0.5 max: 0.7 }",
    "Dropout": "",
    "Scale": 'scale_param { bias_term: true filler { type: "gaussian" std: 1 } }',
    "Bias": 'bias_param { filler { type: "gaussian" std: 1 } }',
    "BatchNorm": "",
    "Softmax": "",
    "Flatten": "",
    "Reshape": "reshape_param { shape { dim: 0 dim: -1 } }",
}
for _name, _settings in IN_PLACE.items():
    # Flatten and Reshape cannot work in place in Caffe: the case tests that both engines reject them
    _kind = _name.split()[0]
    _phase = "TEST" if _kind == "Dropout" else "TRAIN"
    add(f"in place: {_name}", DATA, LABEL, conv("c", "data"), layer("l", _kind, "c", "c", _settings), fc("c"), LOSS,
        phase=_phase)  # fmt: skip

RELU, NORM = layer("relu", "ReLU", "c", "c"), layer("norm", "BatchNorm", "c", "c")
SCALE = layer("scale", "Scale", "c", "c", 'scale_param { bias_term: true filler { type: "gaussian" std: 1 } }')
ELTWISE = "eltwise_param { operation: %s }"
POOL = "pooling_param { pool: MAX kernel_size: 2 stride: 2 }"

add("in place: BatchNorm, Scale, ReLU", DATA, LABEL, conv("c", "data"), NORM, SCALE, RELU, fc("c"), LOSS)
add("in place: ReLU, Dropout in TEST", DATA, LABEL, conv("c", "data"), RELU, layer("drop", "Dropout", "c", "c"),
    fc("c"), LOSS, phase="TEST")  # fmt: skip
add("in place on a convolution, a pooling and an LRN", DATA, LABEL, conv("c", "data"), RELU,
    layer("pool", "Pooling", "c", "pool", POOL), layer("relu2", "ReLU", "pool", "pool"),
    layer("lrn", "LRN", "pool", "lrn", "lrn_param { alpha: 2 }"), layer("relu3", "ReLU", "lrn", "lrn"), fc("lrn"),
    LOSS)  # fmt: skip
add("in place on the input, forced", DATA, layer("l", "TanH", "data", "data"), fc("data"), force=True)
add("blob used twice", DATA, LABEL, conv("c", "data"), conv("d", "c"), layer("sum", "Eltwise", "c d", "sum"),
    layer("relu", "ReLU", "sum", "sum"), fc("sum"), LOSS)  # fmt: skip
add("blob used three times", DATA, LABEL, conv("c", "data"), RELU, conv("d", "c"), conv("e", "c"),
    layer("cat", "Concat", "c d e", "cat"), fc("cat"), LOSS)  # fmt: skip
add("blob used before and after a layer in place", DATA, LABEL, conv("c", "data"), RELU,
    layer("pool", "Pooling", "c", "pool", POOL), fc("pool", "one"), fc("c", "two"),
    layer("fc", "Eltwise", "one two", "fc"), LOSS)  # fmt: skip
for _operation in ("SUM", "PROD", "MAX"):
    add(f"one blob twice in Eltwise {_operation}", DATA, LABEL, conv("c", "data"),
        layer("e", "Eltwise", "c c", "e", ELTWISE % _operation), fc("e"), LOSS)  # fmt: skip
add("one blob twice in Concat", DATA, LABEL, conv("c", "data"), layer("cat", "Concat", "c c", "cat"), fc("cat"), LOSS)
add("projection shortcut", DATA, LABEL, conv("c", "data"), NORM, SCALE, RELU, conv("d", "c"),
    layer("norm2", "BatchNorm", "d", "d"), conv("short", "data"), layer("sum", "Eltwise", "d short", "sum"),
    layer("relu2", "ReLU", "sum", "sum"), fc("sum"), LOSS)  # fmt: skip
add("scores used by loss, accuracy and Silence", DATA, LABEL, fc("data"), LOSS,
    layer("accuracy", "Accuracy", "fc label", "accuracy"), layer("softmax", "Softmax", "fc", "softmax"),
    layer("silence", "Silence", "softmax", ""))  # fmt: skip
add("a top that nothing uses", DATA, LABEL, conv("c", "data"), layer("slice", "Slice", "c", "a b d"), fc("b"), LOSS)
add("loss_weight on an inner blob", DATA, LABEL, conv("c", "data", "loss_weight: 0.01"), fc("c"), LOSS)
add("loss_weight on a blob changed in place", DATA, LABEL, conv("c", "data"),
    layer("relu", "ReLU", "c", "c", "loss_weight: 0.3"), fc("c"), LOSS)  # fmt: skip
add("two losses", DATA, LABEL, fc("data"), LOSS, fc("data", "other", outputs=3), fc("data", "target", outputs=3),
    layer("distance", "EuclideanLoss", "other target", "distance", "loss_weight: 0.25"))  # fmt: skip
add("a loss of weight 0", DATA, LABEL, fc("data"), LOSS, fc("data", "other"),
    layer("hinge", "HingeLoss", "other label", "hinge", "loss_weight: 0"))  # fmt: skip
add("a loss with its softmax", DATA, LABEL, fc("data"),
    layer("loss", "SoftmaxWithLoss", "fc label", "loss softmax", "loss_weight: 1 loss_weight: 0"))  # fmt: skip
add("shared weights", DATA, LABEL, conv("c", "data", 'param { name: "w" } param { name: "b" }'), RELU,
    conv("d", "c", 'param { name: "w" } param { name: "b" }'), conv("e", "d", 'param { name: "w" }'), fc("e"),
    LOSS)  # fmt: skip
add("shared weights in another shape", DATA, LABEL, fc("data", "one", 'param { name: "w" }'),
    layer("two", "InnerProduct", "data", "two", "inner_product_param { num_output: 4 transpose: true "
          + FILLERS + ' } param { name: "w" share_mode: PERMISSIVE }'),
    layer("fc", "Eltwise", "one two", "fc"), LOSS)  # fmt: skip
FROZEN = "param { lr_mult: 0 } param { lr_mult: 0 }"
add("frozen in the middle", DATA, LABEL, conv("c", "data"), conv("d", "c", FROZEN), conv("e", "d"), fc("e"), LOSS)
add("frozen from below", DATA, LABEL, conv("c", "data", FROZEN), RELU, conv("d", "c", FROZEN), fc("d"), LOSS)
add(
    "frozen from below, forced", DATA, LABEL, conv("c", "data", FROZEN), RELU, conv("d", "c"), fc("d"), LOSS, force=True
)
add("a frozen bias", DATA, LABEL, conv("c", "data", "param { lr_mult: 1 } param { lr_mult: 0 }"), fc("c"), LOSS)
add("propagate_down false in a chain", DATA, LABEL, conv("c", "data"), conv("d", "c", "propagate_down: false"), fc("d"),
    LOSS)  # fmt: skip
add("propagate_down false on one of two paths", DATA, LABEL, conv("c", "data"), conv("d", "c", "propagate_down: false"),
    conv("e", "c"), layer("sum", "Eltwise", "d e", "sum"), fc("sum"), LOSS)  # fmt: skip
add("propagate_down false for one bottom of Eltwise", DATA, LABEL, conv("c", "data"), conv("d", "data"),
    layer("sum", "Eltwise", "c d", "sum", "propagate_down: true propagate_down: false"), fc("sum"), LOSS)  # fmt: skip
add("propagate_down given for the label", DATA, LABEL, fc("data"),
    layer("loss", "SoftmaxWithLoss", "fc label", "loss", "propagate_down: true propagate_down: false"))  # fmt: skip
add("no loss, gradient of the output given", DATA, conv("c", "data"), RELU, fc("c"), force=True)
add("two outputs with given gradients", DATA, conv("c", "data"), fc("c", "one"), fc("c", "two"), force=True)
add("nothing learns", DATA, LABEL, fc("data", settings=FROZEN), LOSS)
add("two layers without weights of one name", DATA, LABEL, conv("c", "data"), RELU, layer("relu", "TanH", "c", "t"),
    fc("t"), LOSS)  # fmt: skip
add("a layer with a phase of its own", DATA, LABEL, conv("c", "data"),
    layer("drop", "Dropout", "c", "c", "phase: TEST"), layer("bn", "BatchNorm", "c", "bn", "phase: TRAIN"), fc("bn"),
    LOSS)  # fmt: skip
add("dropout of nothing", DATA, LABEL, conv("c", "data"),
    layer("drop", "Dropout", "c", "c", "dropout_param { dropout_ratio: 0 }"), fc("c"), LOSS)  # fmt: skip

# in Caffe the gradient of these reads the top, which the next layer has overwritten
OVERWRITTEN = {
    "MVN": "",
    "MVN across channels": "mvn_param { across_channels: true }",
    "MVN of the mean only": "mvn_param { normalize_variance: false }",
    "Power 2": "power_param { power: 2 scale: 0.5 shift: 1 }",
    "Power 2 without shift": "power_param { power: 2 scale: 0.5 }",
    "Power 3": "power_param { power: 3 scale: 0.5 shift: 1 }",
    "Power 3 without shift": "power_param { power: 3 scale: 0.5 }",
    "Power 1": "power_param { scale: 0.5 shift: 1 }",
    "Sigmoid": "",
    "Softmax": "",
    "Swish": "swish_param { beta: 0.7 }",
}
for _name, _settings in OVERWRITTEN.items():
    for _over in ("ReLU", "Scale"):
        _more = 'scale_param { filler { type: "gaussian" std: 1 } }' if _over == "Scale" else ""
        add(f"{_name}, then {_over} in place", DATA, LABEL, conv("c", "data"),
            layer("l", _name.split()[0], "c", "d", _settings), layer("over", _over, "d", "d", _more), fc("d"),
            LOSS)  # fmt: skip
for _settings in ("", "stable_prod_grad: false"):
    add(f"Eltwise PROD, then ReLU in place {_settings}".strip(), DATA, LABEL, conv("c", "data"), conv("d", "data"),
        layer("l", "Eltwise", "c d", "e", f"eltwise_param {{ operation: PROD {_settings} }}"),
        layer("over", "ReLU", "e", "e"), fc("e"), LOSS)  # fmt: skip

REFUSED_BY_CAFFE = ("in place: AbsVal", "in place: Flatten", "in place: Reshape", "a loss with its softmax")
"""Nets that real Caffe rejects; the engine may accept or reject them."""

GARBAGE_IN_CAFFE = ("in place: Power", "in place: Power scale only", "in place: Log")
"""Nets whose in-place gradients are wrong in real Caffe: it overwrites the gradient from above before reading it."""
