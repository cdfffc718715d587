"""Layers that a GPU computes together give the losses, outputs and gradients of layers that are computed apart.

Random nets on the CPU, with PyTorch's operations in the place of the GPU's kernel; that the kernel computes the same is
shown by `test_engine_kernels_triton.py`.
"""

import random

import numpy as np
import pytest
import torch
from support.plain_pool import PlainPool

from transfer_caffe.engine.layers import vision
from transfer_caffe.engine.net import Net
from transfer_caffe.formats.proto import parse_text
from transfer_caffe.formats.proto.caffe_pb2 import TEST, TRAIN, NetParameter, NetState

NETS = 400


def drawn(draw):
    """The prototxt of a random net of layers that may be computed together, and of others that use their blobs."""
    lines = ['name: "n" force_backward: true' if draw.random() < 0.1 else 'name: "n"']
    lines.append('layer { name: "in" type: "Input" top: "x" top: "label" input_param { shape { dim: 2 dim: 3 dim: 15 '
                 "dim: 15 } shape { dim: 2 } } }")  # fmt: skip
    sides, channels = {"x": 15}, {"x": 3}
    last, kind = "x", ""

    def add(kind, bottoms, tops, more=""):
        name = f"l{len(lines)}"
        if draw.random() < 0.05:
            more += "".join(f" propagate_down: {draw.choice(('true', 'false'))}" for _ in bottoms)
        if draw.random() < 0.1:
            more += f" loss_weight: {draw.choice((0, 0.3))}" * len(tops)
        words = [f'bottom: "{each}"' for each in bottoms] + [f'top: "{each}"' for each in tops]
        lines.append(f'layer {{ name: "{name}" type: "{kind}" {" ".join(words)} {more} }}')

    for _ in range(draw.randint(3, 10)):
        bottom = last if draw.random() < 0.8 else draw.choice(list(sides))
        side, top = sides[bottom], f"b{len(lines)}"
        often = {"conv": "relu", "relu": "pool", "pool": "norm"}.get(kind, "conv")
        kind = often if draw.random() < 0.6 else draw.choice(("conv", "relu", "pool", "norm", "in place", "user"))
        sides[top], channels[top] = side, channels[bottom]
        if kind == "conv" and side >= 3:
            channels[top], sides[top] = draw.choice((2, 4)), side - 2
            rates = "".join(f" param {{ lr_mult: {draw.choice((0, 1, 1))} }}" for _ in range(draw.randint(0, 2)))
            add("Convolution", [bottom], [top],
                f"convolution_param {{ num_output: {channels[top]} kernel_size: 3 "
                f"bias_term: {draw.choice(('true', 'true', 'false'))} weight_filler {{ type: 'xavier' }} "
                f"bias_filler {{ type: 'gaussian' std: 1 }} }}{rates if 'false' not in rates else ''}")  # fmt: skip
        elif kind == "pool" and side >= 3:
            sides[top] = -(-(side - 3) // 2) + 1
            add("Pooling", [bottom], [top],
                f"pooling_param {{ pool: {draw.choice(('MAX', 'MAX', 'AVE'))} kernel_size: 3 stride: 2 }}")  # fmt: skip
        elif kind == "norm":
            add("LRN", [bottom], [top], f"lrn_param {{ local_size: 3 alpha: 0.5 {draw.choice(('', '', '', REGION))} }}")
        elif kind == "relu" or kind == "in place":
            del sides[top], channels[top]
            top = bottom if kind == "in place" or draw.random() < 0.8 else top
            if top != bottom:
                sides[top], channels[top] = side, channels[bottom]
            slope = "relu_param { negative_slope: 0.1 }" if draw.random() < 0.1 else ""
            if kind == "relu":
                add("ReLU", [bottom], [top], slope)
            else:
                add("TanH", [bottom], [top])
        elif kind == "user":
            del sides[top], channels[top]
            add("Silence", [bottom], [])
            continue
        else:
            del sides[top], channels[top]
            continue
        last = top
    lines.append(f'layer {{ name: "fc" type: "InnerProduct" bottom: "{last}" top: "f" '
                 "inner_product_param { num_output: 4 weight_filler { type: 'xavier' } } }")  # fmt: skip
    lines.append('layer { name: "loss" type: "SoftmaxWithLoss" bottom: "f" bottom: "label" top: "loss" }')
    return "\n".join(lines)


REGION = "norm_region: WITHIN_CHANNEL"


def computed(text, phase, **more):
    net = Net(parse_text(text, NetParameter(), ""), NetState(phase=phase), 1, torch.device("cpu"))
    values = np.random.default_rng(0)
    net.feed({"x": values.normal(size=(2, 3, 15, 15)).astype("f4"), "label": np.array([1, 3], "f4")})
    loss, outputs = net.forward(**more)
    if loss.requires_grad:
        loss.backward()
    gradients = {f"blob {index}": blob.data.grad for index, blob in enumerate(net.learnable)}
    return net, {"loss": loss.detach(), **{name: value.detach() for name, value in outputs.items()}, **gradients}


@pytest.mark.parametrize("phase", [TRAIN, TEST], ids=["train", "test"])
def test_layers_that_are_computed_together_compute_what_they_compute_apart(phase, monkeypatch):
    monkeypatch.setattr(vision, "fused_pool", lambda: PlainPool)
    together = {"pools": 0, "norms": 0, "biases": 0}
    for seed in range(NETS):
        text = drawn(random.Random(seed))
        _, apart = computed(text, phase)
        monkeypatch.setattr(Net, "fused_devices", ("cuda", "cpu"))
        net, found = computed(text, phase)
        _, kept = computed(text, phase, keep=True)
        monkeypatch.setattr(Net, "fused_devices", ("cuda",))
        for name, value in zip(together, (net.fused_pools, net.norm_after, net.bias_later), strict=True):
            together[name] += len(value)
        for other in (found, kept):
            assert list(other) == list(apart)
            for name, value in apart.items():
                mine = other[name]
                assert (mine is None) == (value is None), (seed, name)
                # up to ten layers of up to 36 products each, in other orders; ties of the pooled values are not moved
                # by that, as biases and the ReLU keep the order of values
                if mine is not None:
                    most = 1e-4 * float(value.abs().max()) + 1e-6
                    assert torch.allclose(mine, value, rtol=0, atol=most, equal_nan=True), (seed, name, text)
    assert min(together.values()) >= 20, together
