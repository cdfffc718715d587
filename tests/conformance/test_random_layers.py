"""Layers with random settings: the engine computes them or rejects them with a one-line error; it never crashes."""

import pytest
import torch
from conformance.random_layers import random_cases

from transfer_caffe.engine.net import Net
from transfer_caffe.formats.proto import parse_text
from transfer_caffe.formats.proto.caffe_pb2 import TRAIN, NetParameter, NetState
from transfer_caffe.utils.errors import UserError


@pytest.mark.parametrize("seed", range(10))
def test_random_settings_are_computed_or_refused_by_name(seed, capsys):
    computed = 0
    for case in random_cases(seed, 100):
        param = parse_text(case.prototxt, NetParameter(), "random")
        try:
            net = Net(param, NetState(phase=TRAIN), 0, torch.device("cpu"))
            net.feed(case.bottoms(seed))
            net.forward(0, keep=True)
            tops = {name: net.blobs[name].detach().numpy() for name in net.layers[-1].top}
            net.backward(None if case.is_loss else tops)
            computed += 1
        except UserError as error:
            assert "layer 'l' (" in str(error) and "\n" not in str(error)
            continue
        for name, shape in net.shapes.items():
            assert tuple(net.blobs[name].shape) == shape, case
    assert 50 < computed < 100  # some are computed, some are rejected
