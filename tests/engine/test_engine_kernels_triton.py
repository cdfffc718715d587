"""The GPU's kernels for pooling and for batches, run on the CPU by Triton's interpreter, against the plain operations.

They run in separate processes, because the interpreter must be enabled before Triton is imported.
"""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

from transfer_caffe.utils.processes import environment

POOLING = """
import itertools
import torch
import torch.nn.functional as F
from transfer_caffe.engine.layers import pool_triton
from transfer_caffe.formats.shapes import pooled_side

pool_triton.BLOCK = 256
pool_triton.ROWS, pool_triton.CHANNELS, pool_triton.STEPS = 4, 4, 2


class Truncate(torch.autograd.Function):
    # converts to bfloat16 as the interpreter does; a GPU rounds

    @staticmethod
    def forward(ctx, x):
        return (x.view(torch.int32) & -65536).view(torch.float32).bfloat16()

    @staticmethod
    def backward(ctx, gradient):
        return gradient.float()


SIZES = [((3, 2), (2, 2), (0, 0)), ((3, 3), (2, 2), (1, 1)), ((2, 2), (2, 2), (0, 0)), ((3, 3), (1, 1), (1, 1)),
         ((2, 3), (3, 1), (0, 1)), ((5, 4), (2, 2), (2, 2)), ((3, 3), (1, 2), (0, 0)), ((1, 1), (2, 2), (0, 0)),
         ((3, 3), (2, 2), (0, 0)), ((1, 1), (1, 1), (0, 0)), ((3, 2), (2, 1), (0, 0))]
for (kernel, stride, pad), with_bias, relu, dtype in itertools.product(
    SIZES, (False, True), (False, True), (torch.float32, torch.bfloat16)
):
    torch.manual_seed(1)
    x = torch.randn(2, 5, 7, 7 if kernel == (3, 3) else 6).to(dtype).contiguous(memory_format=torch.channels_last)
    x[0, 0, :4, :4] = 0.5  # ties: the first one is the maximum
    x[1, 1, 2, 2] = float("nan")
    x[1, 2, :, :] = float("-inf")
    x[1, 4, :4, :4] = -1
    x[1, 4, 1:4, 1:4] = 0  # no gradient passes a ReLU at 0
    bias = torch.randn(5).to(dtype) if with_bias else None
    size = [pooled_side(side, k, s, p, True, True) for side, k, s, p in zip(x.shape[2:], kernel, stride, pad)]
    found = []
    for fused in (False, True):
        leaf = x.clone(memory_format=torch.preserve_format).requires_grad_()
        added = None if bias is None else bias.clone().requires_grad_()
        if fused:
            settings = kernel, stride, pad, tuple(size), relu, None
            y = pool_triton.FusedPool.apply(leaf, added, *settings, True)
            with torch.no_grad():
                alone = pool_triton.FusedPool.apply(x, bias, *settings, False)
                assert torch.equal(y.nan_to_num(9), alone.nan_to_num(9))
        else:
            inner = leaf if added is None else leaf.float() + added.float()[None, :, None, None]
            inner = inner if dtype == torch.float32 or added is None else Truncate.apply(inner)
            y = F.max_pool2d(inner, kernel, stride, pad, ceil_mode=True)
            y = y.relu() if relu else y
        y.backward(torch.randn(y.shape, generator=torch.Generator().manual_seed(3)).to(dtype))
        assert y.dtype == leaf.grad.dtype == dtype
        found.append((y.detach(), leaf.grad, None if added is None else added.grad))
    where = (kernel, stride, pad, with_bias, relu, dtype)
    assert torch.equal(found[0][0].nan_to_num(9), found[1][0].nan_to_num(9)), where  # the same bits
    most = 2**-7 if dtype == torch.bfloat16 else 2**-24
    # a gradient is a sum over up to 9 windows: 9 roundings in each of both (windows of 5 x 4 with stride 2: 3 x 2)
    assert torch.allclose(found[0][1].float(), found[1][1].float(), rtol=0, atol=18 * most * 4), where
    assert torch.equal(found[0][1] != 0, found[1][1] != 0), where  # of the same elements
    if bias is not None:
        # sums over at most 84 windows of gradients of about 1, 4 at most
        assert torch.allclose(found[0][2].float(), found[1][2].float(), rtol=0, atol=84 * 2 * most * 4), where
print("same")
"""

NORMALISED = """
import itertools
import torch
from triton.runtime import interpreter
from transfer_caffe.engine.layers import lrn_triton, pool_triton
from transfer_caffe.formats.shapes import pooled_side

pool_triton.BLOCK = lrn_triton.BLOCK = 128
pool_triton.ROWS, pool_triton.CHANNELS, pool_triton.STEPS = 4, 16, 2
builder = type(interpreter.interpreter_builder)
begin, store = builder.set_grid_dim, builder.create_masked_store
stored = set()


def beginning(self, *sizes):
    stored.clear()
    begin(self, *sizes)


def storing(self, places, values, mask, *settings):
    # no value is stored by two program instances, which a GPU runs in any order
    new = places.data[mask.data].tolist()
    assert len(new) == len(set(new)) and stored.isdisjoint(new)
    stored.update(new)
    return store(self, places, values, mask, *settings)


builder.set_grid_dim, builder.create_masked_store = beginning, storing
WINDOWS = [((3, 3), (2, 2), (0, 0)), ((2, 2), (2, 1), (1, 1))]
LRNS = [(5, 0.7, 0.75, 1.0), (3, 0.2, 0.5, 2.0), (1, 0.3, 0.75, 1.0)]
for number, (lrn, with_bias, dtype) in enumerate(itertools.product(
    LRNS, (True, False), (torch.float32, torch.bfloat16)
)):
    (kernel, stride, pad), relu = WINDOWS[number % 5 % 2], number % 3 != 1
    channels = (5, 24, 5, 24, 40, 24, 128)[number % 7]
    torch.manual_seed(1)
    x = torch.randn(2, channels, 5, 6).to(dtype).contiguous(memory_format=torch.channels_last)
    bias = torch.randn(channels).to(dtype) if with_bias else None
    size = [pooled_side(side, k, s, p, True, True) for side, k, s, p in zip(x.shape[2:], kernel, stride, pad)]
    windows = kernel, stride, pad, tuple(size), relu
    found = []
    for joined in (False, True):
        leaf = x.clone(memory_format=torch.preserve_format).requires_grad_()
        added = None if bias is None else bias.clone().requires_grad_()
        y = pool_triton.FusedPool.apply(leaf, added, *windows, lrn if joined else None, True)
        if not joined:
            y = lrn_triton.FusedLRN.apply(y, *lrn, None)
        y.backward(torch.randn(y.shape, generator=torch.Generator().manual_seed(3)).to(dtype))
        found.append((y.detach(), leaf.grad, torch.zeros(1) if added is None else added.grad))
    where = (kernel, channels, lrn, with_bias, relu, dtype)
    for one, other in zip(*found, strict=True):
        assert one.dtype == other.dtype and one.is_contiguous(memory_format=torch.channels_last) or one.ndim == 1
        assert torch.equal(one, other), where  # the same bits
    with torch.no_grad():
        assert torch.equal(pool_triton.FusedPool.apply(x, bias, *windows, lrn, False), y), where
    assert stored
empty = torch.empty(0, 8, 5, 6).contiguous(memory_format=torch.channels_last).requires_grad_()
bias = torch.ones(8, requires_grad=True)
y = pool_triton.FusedPool.apply(empty, bias, (3, 3), (2, 2), (0, 0), (2, 3), True, LRNS[0], True)
y.sum().backward()
assert y.shape == (0, 8, 2, 3) and empty.grad.shape == empty.shape and not bias.grad.any()
print("same")
"""

BATCHES = """
import itertools
import sys
import numpy as np
import torch
sys.path.insert(0, sys.argv[2])
from support.guards import guarded
from support.streams import OnCpu
from transfer_caffe.engine.batches import batch_triton
from transfer_caffe.engine.batches.transform import OnDevice, Transformer
from transfer_caffe.formats.proto import array_to_blob, parse_text, write_binary
from transfer_caffe.formats.proto.caffe_pb2 import TransformationParameter

batch_triton.BLOCK = 64  # an image of 5 x 5 x 3 or 8 x 9 x 3 values takes several blocks
empty = torch.empty
torch.UntypedStorage.copy_ = lambda self, other: self  # the interpreter copies what it has not copied before, to itself


def truncated(x):
    return (x.view(torch.int32) & -65536).view(torch.float32).bfloat16()


device = torch.device("cpu")
for channels, crop, mean, scale, dtype in itertools.product(
    (1, 3), (0, 5), ("", "mean_file", "mean_value: 100.3", "each"), (1.0, 0.017), (torch.float32, torch.bfloat16)
):
    text = f"crop_size: {crop} mirror: true scale: {scale} "
    if mean == "mean_file":
        path = sys.argv[1] + "/mean.binaryproto"
        write_binary(path, array_to_blob(np.random.RandomState(0).rand(1, channels, 8, 9).astype("f4") * 200))
        text += f'mean_file: "{path}"'
    else:
        text += " ".join(f"mean_value: {100.3 + i}" for i in range(channels)) if mean == "each" else mean
    transformer = Transformer(parse_text(text, TransformationParameter(), ""), (channels, 8, 9), True, "here")
    on_device = OnDevice(transformer, device)
    with OnCpu():
        on_gpu = OnDevice(transformer, torch.device("cuda"), dtype)
    assert on_gpu._fused is not None
    pixels = torch.randint(0, 256, (6, 8, 9, channels), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    image = torch.tensor([0, 5, 3, 3])
    drawn = torch.from_numpy(transformer.draws(np.random.default_rng(2), 4, transformer.shape))
    drawn[2] = torch.tensor([0, 1, 1, 0])
    plain = on_device.cut(pixels, image, drawn)
    windows = torch.from_numpy(np.ascontiguousarray(transformer.cut(pixels.numpy(), image.numpy(), drawn.numpy())))
    mixed = torch.tensor([0, -1, -2, 3])  # the second and the third image are windows from the host
    assert torch.equal(on_device.mix(pixels, windows[1:3], mixed, drawn), plain)
    # the interpreter truncates to bfloat16; a GPU rounds, as PyTorch does
    to = (lambda x: x) if dtype == torch.float32 else truncated
    at_end = scale == 1  # nothing before, or nothing after, a tensor may be read or written
    torch.empty = lambda *given, **more: guarded(empty(*given, **more), at_end)
    if on_gpu.mean is not None:
        on_gpu.mean = guarded(on_gpu.mean, at_end)
    records, cut, some = (guarded(each, at_end) for each in (pixels, windows, windows[1:3]))
    for fused in (on_gpu.cut(records, image, drawn), on_gpu.finish(cut, drawn),
                  on_gpu.finish(guarded(windows.float(), at_end), drawn), on_gpu.mix(records, some, mixed, drawn)):
        assert fused.is_contiguous(memory_format=torch.channels_last) and fused.shape == plain.shape
        assert fused.dtype == dtype and torch.equal(fused, to(plain)), (channels, crop, mean, scale, dtype)
    torch.empty = empty

# records that have more than 2^31 values together; memory that is not written takes no room
transformer = Transformer(TransformationParameter(), (3, 8, 9), True, "here")
many = torch.empty((2**31 // 216 + 2, 8, 9, 3), dtype=torch.uint8)
many[-1] = pixel = torch.arange(216, dtype=torch.uint8).reshape(8, 9, 3)
with OnCpu():
    on_gpu = OnDevice(transformer, torch.device("cuda"))
made = on_gpu.cut(many, torch.tensor([len(many) - 1]), torch.zeros((3, 1), dtype=torch.int64))
assert torch.equal(made[0].permute(1, 2, 0), pixel.float())
print("same")
"""

NETS = """
import torch
from transfer_caffe.engine.layers import pool_triton, vision
from transfer_caffe.engine.net import Net
from transfer_caffe.engine.timing import Timer
from transfer_caffe.formats.proto import parse_text
from transfer_caffe.formats.proto.caffe_pb2 import TRAIN, NetParameter, NetState
import numpy as np

pool_triton.BLOCK = 256
NET = '''
layer { name: "in" type: "Input" top: "x" top: "label"
  input_param { shape { dim: 2 dim: 3 dim: 12 dim: 12 } shape { dim: 2 } } }
layer { name: "conv" type: "Convolution" bottom: "x" top: "c" param { lr_mult: RATE } param { lr_mult: RATE }
  convolution_param { num_output: 4 kernel_size: 3 group: 1 weight_filler { type: "xavier" }
  bias_filler { type: "gaussian" std: 1 } } }
layer { name: "relu" type: "ReLU" bottom: "c" top: "c" }
layer { name: "pool" type: "Pooling" bottom: "c" top: "p" pooling_param { pool: MAX kernel_size: 3 stride: 2 } }
layer { name: "conv2" type: "Convolution" bottom: "p" top: "c2"
  convolution_param { num_output: 4 kernel_size: 3 weight_filler { type: "xavier" } MORE } WEIGHT }
layer { name: "relu2" type: "ReLU" bottom: "c2" top: "c2" }
layer { name: "pool2" type: "Pooling" bottom: "c2" top: "p2" pooling_param { pool: MAX kernel_size: 2 stride: 2 } }
EXTRA
layer { name: "fc" type: "InnerProduct" bottom: "p2" top: "f"
  inner_product_param { num_output: 5 weight_filler { type: "xavier" } } }
layer { name: "loss" type: "SoftmaxWithLoss" bottom: "f" bottom: "label" top: "loss" }
'''
RECTIFIED = '''layer { name: "conv3" type: "Convolution" bottom: "p2" top: "c3"
  convolution_param { num_output: 3 kernel_size: 1 weight_filler { type: "xavier" }
  bias_filler { type: "gaussian" std: 1 } } BETWEEN }
layer { name: "relu3" type: "ReLU" bottom: "c3" top: "c3" SLOPE }
AFTER layer { name: "conv4" type: "Convolution" bottom: "c3" top: "n" convolution_param { num_output: 3 kernel_size: 1
  weight_filler { type: "xavier" } } }'''


def rectified(between="", slope="", after=""):
    return RECTIFIED.replace("BETWEEN", between).replace("SLOPE", slope).replace("AFTER", after)


USED_TWICE = 'layer { name: "s" type: "Silence" bottom: "c2" }'
LRN = 'layer { name: "norm" type: "LRN" bottom: "BOTTOM" top: "n" lrn_param { local_size: 3 alpha: 0.5 MORE } }'
JOINED, WITHIN = LRN.replace("MORE", ""), LRN.replace("MORE", "norm_region: WITHIN_CHANNEL")
POOL_USED_TWICE = JOINED + 'layer { name: "s" type: "Silence" bottom: "p2" }'
OVERWRITTEN = JOINED + 'layer { name: "square" type: "Power" bottom: "n" top: "n" power_param { power: 2 } }'
asked = []  # whether something is kept for a backward pass


class Operation:
    @staticmethod
    def apply(*settings):
        asked.append(settings[-1])
        return pool_triton.FusedPool.apply(*settings)


both, norm = ["conv", "conv2"], ["norm"]
for rate, more, extra, expected, joined in (
    ("1", "", "", both, []), ("0", "", "", both, []), ("01", "", "", both, []),
    ("1", "bias_term: false", "", ["conv"], []),
    ("1", "", USED_TWICE, both, []), ("1", "", JOINED, both, norm), ("0", "", JOINED, both, norm),
    ("1", "bias_term: false", JOINED, ["conv"], norm), ("1", "", WITHIN, both, []), ("1", "", OVERWRITTEN, both, []),
    ("1", "", POOL_USED_TWICE, both, []), ("1", "", "LOSS" + JOINED, both, []),
    ("1", "", JOINED.replace("lrn_param", "propagate_down: false lrn_param"), both, norm),
    ("1", "", "WIDE" + JOINED, both, []), ("1", "", rectified(), [*both, "conv3"], []),
    ("1", "", rectified("param { lr_mult: 0 } param { lr_mult: 0 }"), [*both, "conv3"], []),
    ("1", "", rectified("param { lr_mult: 0 }"), [*both, "conv3"], []),
    ("1", "", rectified(after='layer { name: "t" type: "Silence" bottom: "c3" }'), [*both, "conv3"], []),
    ("1", "", rectified(slope="relu_param { negative_slope: 0.1 }"), both, []),
    ("1", "", rectified(after='layer { name: "t" type: "TanH" bottom: "c3" top: "c3" }'), both, []),
    ("1", "", rectified(slope="propagate_down: false"), both, []), ("1", "", rectified("loss_weight: 0.1"), both, []),
    ("1", "", rectified('} layer { name: "t" type: "Silence" bottom: "c3"'), both, []),
    ("1", "", rectified().replace('std: 1 } } ', 'std: 1 } bias_term: false } '), both, []),
    ("1", "", rectified(after='layer { name: "t" type: "Eltwise" bottom: "c3" bottom: "d3" top: "e3" }')
     .replace('bottom: "c3" top: "c3"', 'bottom: "c3" top: "d3"')
     .replace('bottom: "c3" top: "n"', 'bottom: "e3" top: "n"'), both, []),
    ("1", "loss_weight: 0.3", "", ["conv"], []),
):
    found = []
    for fused in (False, True):
        Net.fused_devices = ("cuda", "cpu") if fused else ("cuda",)
        vision.fused_pool = lambda: Operation
        text = NET.replace("RATE", rate[0], 1).replace("RATE", rate[-1])
        weight = more if "loss_weight" in more else ""
        text = text.replace("WEIGHT", weight).replace("MORE", "" if weight else more)
        text = text.replace("EXTRA", extra.replace("BOTTOM", "p2"))
        if '"n"' in extra:
            text = text.replace('type: "InnerProduct" bottom: "p2"', 'type: "InnerProduct" bottom: "n"')
        vision.MOST_JOINED = 3 if "WIDE" in extra else 4  # the net has 4 channels
        text = text.replace("WIDE", "")
        if "LOSS" in extra:
            text = text.replace("LOSS", "").replace('name: "pool2"', 'name: "pool2" loss_weight: 0.5')
        net = Net(parse_text(text, NetParameter(), ""), NetState(phase=TRAIN), 1, torch.device("cpu"))
        assert [conv.name for conv in net.bias_later.values()] == (expected if fused else []), extra
        assert [norm.name for norm in net.norm_after.values()] == (joined if fused else []), extra
        draw = np.random.default_rng(0)
        net.feed({"x": draw.normal(size=(2, 3, 12, 12)).astype("f4"), "label": np.array([1, 3], "f4")})
        loss, _ = net.forward()
        loss.backward()
        found.append([loss.detach(), *(blob.data.grad for blob in net.learnable)])
        asked.clear()
        with torch.no_grad():
            assert net.forward()[0] == loss
        assert bool(asked) is fused and not any(asked)
        if fused:  # with all blobs kept, nothing is fused
            kept, _ = net.forward(keep=True)
            assert abs(kept - loss) < 100 * 2**-24 * loss and net.blobs["c"].min() == 0
            Timer(net)
            assert abs(net.forward()[0] - loss) < 100 * 2**-24 * loss  # nor where each layer is timed
            assert not net.fused_pools
    for one, other in zip(*found, strict=True):
        assert (one is None) == (other is None)
        # sums of at most 200 products
        assert one is None or torch.allclose(one, other, rtol=0, atol=400 * 2**-24 * float(one.abs().max())), extra
print("same")
"""


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed (pip install triton)")
@pytest.mark.parametrize("code", [POOLING, NORMALISED, BATCHES, NETS], ids=["pooling", "normalised", "batches", "nets"])
def test_a_kernel_computes_what_plain_operations_compute(code, tmp_path):
    env = {**environment(), "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    argv = [sys.executable, "-c", code, str(tmp_path), str(Path(__file__).parent.parent)]
    done = subprocess.run(argv, env=env, capture_output=True, text=True)
    assert done.stdout == "same\n", done.stderr[-3000:]
