"""What is recorded as a CUDA graph neither reads a value nor copies from the host, as its recording would fail at that.

It runs on PyTorch's device "meta", whose tensors have no values: reading one raises an error, in every layer's forward
and backward pass and in the update.
"""

import warnings

import pytest
import torch
from support.plain_pool import PlainPool
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from transfer_caffe.engine.iteration.graph import CAPTURABLE, forward_backward, uncapturable
from transfer_caffe.engine.kernels import usable
from transfer_caffe.engine.layers import LAYERS, vision
from transfer_caffe.engine.layers.sources import DummyData
from transfer_caffe.engine.net import Net
from transfer_caffe.engine.solver.device_update import DeviceUpdate, blobs_with_copies
from transfer_caffe.formats.proto import parse_text
from transfer_caffe.formats.proto.caffe_pb2 import TEST, TRAIN, NetParameter, NetState, SolverParameter

META = torch.device("meta")
START = """
layer { name: "data" type: "DummyData" top: "data" top: "label" top: "goal" top: "cont" dummy_data_param {
  shape { dim: 4 dim: 3 dim: 12 dim: 12 } shape { dim: 4 } shape { dim: 4 dim: 5 } shape { dim: 4 dim: 1 }
  data_filler { type: "constant" value: 1 } data_filler { type: "constant" } data_filler { type: "constant" value: 1 }
  data_filler { type: "constant" value: 1 } } }
layer { name: "conv" type: "Convolution" bottom: "data" top: "c" convolution_param { num_output: 3 kernel_size: 3 } }
"""
END = """
layer { name: "fc" type: "InnerProduct" bottom: "x" top: "f" inner_product_param { num_output: 5 } }
layer { name: "loss" type: "SoftmaxWithLoss" bottom: "f" bottom: "label" top: "loss" }
layer { name: "score" type: "Accuracy" bottom: "f" bottom: "label" top: "score" include { phase: TEST } }
"""
LEARNED = """
layer { name: "fc" type: "InnerProduct" bottom: "c" top: "f" inner_product_param { num_output: 5 } }
"""


def one(kind, more="", bottom='bottom: "c"'):
    """A layer between a convolution and the loss."""
    return START + f'layer {{ name: "l" type: "{kind}" {bottom} top: "x" {more} }}' + END


def loss(kind, bottom):
    return START + LEARNED + f'layer {{ name: "l" type: "{kind}" bottom: "f" {bottom} top: "loss" }}'


def recurrent(kind):
    return (
        START
        + LEARNED
        + f"""
      layer {{ name: "r" type: "Reshape" bottom: "f" top: "r" reshape_param {{ shape {{ dim: 4 dim: 1 dim: 5 }} }} }}
      layer {{ name: "l" type: "{kind}" bottom: "r" bottom: "cont" top: "h" recurrent_param {{ num_output: 5 }} }}
      layer {{ name: "x" type: "Reshape" bottom: "h" top: "x" reshape_param {{ shape {{ dim: 4 dim: 5 }} }} }}
      """
        + END.replace('"fc"', '"fc2"').replace('"f"', '"f2"')
    )


TWO = 'bottom: "c" bottom: "c"'
POOL = "kernel_size: 3 stride: 2"
NETS = {
    **{kind: one(kind) for kind in (
        "AbsVal", "BNLL", "BatchNorm", "Bias", "Dropout", "ELU", "Exp", "Flatten", "LRN", "Log", "MVN", "PReLU",
        "Power", "ReLU", "Scale", "Sigmoid", "Softmax", "Split", "Swish", "TanH", "Threshold",
    )},
    "Clip": one("Clip", "clip_param { min: 0 max: 1 }"),
    "Concat": one("Concat", bottom=TWO),
    "Convolution": one("Convolution", "convolution_param { num_output: 6 kernel_size: 3 group: 3 }"),
    "Convolution with dilation": one("Convolution", "convolution_param { num_output: 6 kernel_size: 3 dilation: 2 }"),
    "Crop": one("Crop", "crop_param { axis: 2 }", TWO),
    "Deconvolution": one("Deconvolution", "convolution_param { num_output: 4 kernel_size: 3 stride: 2 }"),
    "Eltwise": one("Eltwise", bottom=TWO),
    "Eltwise MAX": one("Eltwise", "eltwise_param { operation: MAX }", TWO),
    "Eltwise PROD": one("Eltwise", "eltwise_param { operation: PROD }", TWO),
    "Eltwise with coefficients": one("Eltwise", "eltwise_param { coeff: 1 coeff: -2 }", TWO),
    "Im2col": one("Im2col", "convolution_param { kernel_size: 3 }"),
    "LRN within a channel": one("LRN", "lrn_param { norm_region: WITHIN_CHANNEL local_size: 3 }"),
    "Pooling": one("Pooling", f"pooling_param {{ {POOL} }}"),
    "Pooling AVE": one("Pooling", f"pooling_param {{ pool: AVE {POOL} pad: 1 }}"),
    "Pooling AVE with wide pad": one("Pooling", f"pooling_param {{ pool: AVE {POOL} pad: 2 }}"),
    "Pooling with indices": one("Pooling", f'top: "i" pooling_param {{ {POOL} }}')
    + 'layer { name: "s" type: "Silence" bottom: "i" }',
    "Pooling with wide pad": one("Pooling", f"pooling_param {{ {POOL} pad: 2 }}"),
    "ReLU with slope": one("ReLU", "relu_param { negative_slope: 0.1 }"),
    "Reduction": one("Reduction", "reduction_param { operation: MEAN axis: 2 }"),
    "Reshape": one("Reshape", "reshape_param { shape { dim: 4 dim: -1 } }"),
    "SPP": one("SPP", "spp_param { pyramid_height: 2 }"),
    "Slice": one("Slice", 'top: "y" slice_param { axis: 1 slice_point: 1 }')
    + 'layer { name: "s" type: "Silence" bottom: "y" }',
    "Tile": one("Tile", "tile_param { axis: 1 tiles: 2 }"),
    "Parameter": START + """
      layer { name: "p" type: "Parameter" top: "p" parameter_param { shape { dim: 4 dim: 3 dim: 10 dim: 10 } } }
      layer { name: "sum" type: "Eltwise" bottom: "c" bottom: "p" top: "x" }""" + END,
    "ContrastiveLoss": START + LEARNED + LEARNED.replace('"f', '"g') + """
      layer { name: "l" type: "ContrastiveLoss" bottom: "f" bottom: "g" bottom: "label" top: "loss" }""",
    "EuclideanLoss": loss("EuclideanLoss", 'bottom: "goal"'),
    "HingeLoss": loss("HingeLoss", 'bottom: "label"'),
    "SigmoidCrossEntropyLoss": loss("SigmoidCrossEntropyLoss", 'bottom: "goal"'),
    "LSTM": recurrent("LSTM"),
    "RNN": recurrent("RNN"),
    "LSTMUnit": START + LEARNED + """
      layer { name: "gates" type: "InnerProduct" bottom: "c" top: "g" inner_product_param { num_output: 20 } }
      layer { name: "r" type: "Reshape" bottom: "f" top: "r" reshape_param { shape { dim: 1 dim: 4 dim: 5 } } }
      layer { name: "s" type: "Reshape" bottom: "g" top: "s" reshape_param { shape { dim: 1 dim: 4 dim: 20 } } }
      layer { name: "t" type: "Reshape" bottom: "cont" top: "t" reshape_param { shape { dim: 1 dim: 4 } } }
      layer { name: "l" type: "LSTMUnit" bottom: "r" bottom: "s" bottom: "t" top: "cell" top: "h" }
      layer { name: "u" type: "Silence" bottom: "cell" }
      layer { name: "x" type: "Reshape" bottom: "h" top: "x" reshape_param { shape { dim: 4 dim: 5 } } }
      """ + END.replace('"fc"', '"fc2"').replace('"f"', '"f2"'),
    "a pooling after a ReLU": START + """
      layer { name: "relu" type: "ReLU" bottom: "c" top: "c" }
      layer { name: "pool" type: "Pooling" bottom: "c" top: "p" pooling_param { kernel_size: 3 stride: 2 } }
      layer { name: "norm" type: "LRN" bottom: "p" top: "x" }""" + END,
}  # fmt: skip


class NothingFromTheHost(TorchDispatchMode):
    """Fails at an operation on tensors of both the device and the host; a number from the host may take part."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        used = [each for each in tree_leaves((args, kwargs, result)) if isinstance(each, torch.Tensor)]
        devices = {each.device.type for each in used if each.ndim or "copy" in str(func)}
        assert len(devices) < 2, f"{func} copies from the host"
        return result


def run(text, phase, dtype):
    """Return a net on the device, and what is recorded of it: a training iteration, or the pass of a test."""
    net = Net(parse_text(text, NetParameter(), ""), NetState(phase=phase), 1, META, dtype=dtype)
    assert uncapturable(net) == ""
    if phase == TEST:
        return net, torch.no_grad()(lambda: net.forward(0))
    blobs = [blob for blob in net.learnable if blob.lr_mult]  # of others, the histories are read
    histories = [torch.zeros_like(blob.data) for blob in blobs]
    param = SolverParameter(type="SGD", momentum=0.9, weight_decay=0.1, clip_gradients=1, regularization_type="L2")
    low = blobs_with_copies(net.layers, dtype)
    update = DeviceUpdate(param, blobs, histories, low, dtype)

    def iteration():
        for blob in net.learnable:
            blob.leaf.grad = None
        forward_backward(net, 0)
        update()

    return net, iteration


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("phase", [TRAIN, TEST], ids=["train", "test"])
@pytest.mark.parametrize("kind", NETS)
def test_a_layer_that_can_be_recorded_reads_no_value_and_copies_nothing_from_the_host(kind, phase, dtype):
    net, iteration = run(NETS[kind], phase, dtype)
    iteration()  # the warm-up may make and keep constants
    with NothingFromTheHost():
        iteration()
    if phase == TRAIN:
        assert any(blob.leaf.grad is not None for blob in net.learnable)


def test_all_layers_that_can_be_recorded_are_tested():
    nets = [Net(parse_text(text, NetParameter(), ""), NetState(phase=TEST), 1, META) for text in NETS.values()]
    tested = {type(layer) for net in nets for layer in net.layers}
    recorded = {kind for kind in LAYERS.values() if issubclass(kind, CAPTURABLE)}
    assert recorded == tested - {DummyData}


def test_reading_a_value_or_copying_from_the_host_would_be_found(monkeypatch):
    kind = LAYERS["ReLU"]
    forward = kind.forward
    for harm in (lambda x: x.sum().item(), lambda x: x[x > 0], lambda x: x + torch.ones(x.shape).to(x.device)):
        monkeypatch.setattr(kind, "forward", lambda self, b, batch, harm=harm: [harm(b[0]), forward(self, b, batch)][1])
        _, iteration = run(NETS["ReLU"], TRAIN, torch.float32)
        with pytest.raises((RuntimeError, NotImplementedError, AssertionError)), NothingFromTheHost():
            iteration()


@pytest.mark.parametrize(("side", "fused"), [(5, True), (6, False)])
def test_windows_that_are_large_are_not_fused_as_their_kernels_would_take_minutes_to_compile(side, fused, monkeypatch):
    monkeypatch.setattr(Net, "fused_devices", ("cpu",))
    monkeypatch.setattr(vision, "fused_pool", lambda: PlainPool)
    text = NETS["a pooling after a ReLU"].replace("kernel_size: 3 stride: 2 }", f"kernel_size: {side} }}")
    net = Net(parse_text(text, NetParameter(), ""), NetState(phase=TRAIN), 1, torch.device("cpu"))
    assert bool(net.fused_pools) is bool(net.bias_later) is bool(net.norm_after) is fused


def test_the_log_says_why_a_kernel_cannot_be_used(logged, capfd):
    def fails():
        warnings.warn("a default will change", stacklevel=1)  # which this project's tests would turn into an error
        raise ValueError("at 2:16:\n    x = load(y)\n\nload needs a pointer\n")

    assert usable("lrn_layer.cpp:0", "LRN runs without its kernel", fails) is None
    line = capfd.readouterr().err.strip().split("] ")[1]
    assert line == "LRN runs without its kernel: ValueError: at 2:16: load needs a pointer"
    assert usable("lrn_layer.cpp:0", "", lambda: 3) == 3
