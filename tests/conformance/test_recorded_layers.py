"""Layers that can be recorded as a graph compute the same as without one, in all cases that real Caffe judges."""

import contextlib

import pytest
import torch
from conformance.layer_cases import LAYER_CASES
from support.tape import Tape, capturing

from transfer_caffe.engine.iteration import graph
from transfer_caffe.engine.layers import LAYERS
from transfer_caffe.engine.net import Net
from transfer_caffe.formats.proto.caffe_pb2 import TEST, TRAIN, NetState

CAN_BE_RECORDED = {name for name, layer in LAYERS.items() if issubclass(layer, graph.CAPTURABLE)}
# Power computes a constant in the host's memory, which the stand-in takes for the device's
RECORDED = CAN_BE_RECORDED & LAYER_CASES.keys() - {"Power"}


@pytest.mark.parametrize("kind", sorted(RECORDED))
def test_a_layer_that_can_be_recorded_computes_the_same_from_other_values(kind):
    for case in LAYER_CASES[kind]:
        found = []
        for recorded in (False, True):
            phase = TRAIN if case.phase == "TRAIN" else TEST
            net = Net(case.net, NetState(phase=phase), 1, torch.device("cpu"))
            for layer in net.layers:
                layer.check_labels = False  # as on a GPU

            def run(net=net):
                return graph.forward_backward(net, 0)

            net.feed(case.bottoms(0))
            made = graph.Graph(net, Tape(net))
            assert not recorded or made.record(run) == ""
            inputs = [layer.forward([], 0)[0] for layer in net.layers if layer.type == "Input"]
            for tensor, values in zip(inputs, case.bottoms(1).values(), strict=True):
                tensor.detach().copy_(torch.from_numpy(values))
            with contextlib.nullcontext() if recorded else capturing():
                _, outputs = made.replay(0) if recorded else run()
            found.append([*outputs.values(), *(blob.leaf.grad for blob in net.learnable)])
            found[-1] += [blob.data.detach() for blob in net.learnable]
        for one, other in zip(*found, strict=True):
            assert (one is None) == (other is None), case.name
            assert one is None or torch.equal(one.nan_to_num(9), other.nan_to_num(9)), case.name
