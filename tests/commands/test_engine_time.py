"""`engine time`: two lines per layer, times attributed to the right layers, and the same passes as in training."""

import re

import pytest
import torch
from conformance.networks import NETWORKS, net_text, write_data

from transfer_caffe.engine import timing
from transfer_caffe.engine.__main__ import main
from transfer_caffe.engine.iteration.graph import forward_backward
from transfer_caffe.engine.net import Net
from transfer_caffe.experiment.read import load_recipe
from transfer_caffe.formats.proto import parse_text, to_text
from transfer_caffe.formats.proto.caffe_pb2 import TRAIN, NetParameter, NetState
from transfer_caffe.sweep.measure import synthetic

DATA = """layer { name: "d" type: "DummyData" top: "data" top: "label" dummy_data_param {
  shape { dim: 4 dim: 3 dim: 12 dim: 12 } shape { dim: 4 }
  data_filler { type: "gaussian" std: 1 } data_filler { type: "constant" value: 1 } } }"""
FIRST = """layer { name: "a" type: "Convolution" bottom: "data" top: "a" LEARN
  convolution_param { num_output: 4 kernel_size: 3 weight_filler { type: "xavier" } } }
layer { name: "relu" type: "ReLU" bottom: "a" top: "a" }
layer { name: "pool" type: "Pooling" bottom: "a" top: "pool" pooling_param { pool: MAX kernel_size: 2 stride: 2 } }"""
REST = """layer { name: "b" type: "InnerProduct" bottom: "pool" top: "b"
  inner_product_param { num_output: 4 weight_filler { type: "xavier" } } }
layer { name: "c" type: "InnerProduct" bottom: "pool" top: "c" CUT
  inner_product_param { num_output: 4 weight_filler { type: "xavier" } } }
layer { name: "sum" type: "Eltwise" bottom: "b" bottom: "c" top: "sum" }
layer { name: "loss1" type: "SoftmaxWithLoss" bottom: "sum" bottom: "label" top: "loss1" }
layer { name: "loss2" type: "SoftmaxWithLoss" bottom: "b" bottom: "label" top: "loss2" loss_weight: 0.5 }"""


def template(recipe: str) -> str:
    """Return a template's training net with DummyData in place of its data layers, and few images."""
    net = synthetic(next(iter(load_recipe(recipe).networks())), 0)
    for layer in net.layer:
        for shape in layer.dummy_data_param.shape:
            shape.dim[0] = 2
    return to_text(net)


def build(text: str) -> Net:
    return Net(parse_text(text, NetParameter(), "net"), NetState(phase=TRAIN), 0, torch.device("cpu"))


def diamond(learn: str = "", cut: str = "", head: str = "") -> Net:
    """Build a net with a fork, a join and two losses."""
    return build(head + DATA + (FIRST + REST).replace("LEARN", learn).replace("CUT", cut))


@pytest.mark.parametrize("phase", ["TRAIN", "TEST"])
@pytest.mark.parametrize("name", [*NETWORKS, "the template mini", "the template caffenet"])
def test_every_layer_has_a_line_each_way_and_they_sum_to_the_total(name, phase, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    if name in NETWORKS:
        write_data(name, tmp_path, seed=1)
    text = net_text(name) if name in NETWORKS else template("demo" if name.endswith("mini") else "paper")
    (tmp_path / "net.prototxt").write_text(text)
    assert main(["time", "--model", "net.prototxt", "--iterations", "2", "--phase", phase]) == 0
    log = capsys.readouterr().err
    times = re.findall(r"caffe\.cpp:\d+\] +(\S+)\t(forward|backward): (\S+) ms\.", log)
    names = [layer.name for layer in parse_text(text, NetParameter(), name).layer if not layer.include]
    assert [(layer, way) for layer, way, _ in times] == [(n, way) for n in names for way in ("forward", "backward")]
    each = {way: sum(float(seconds) for _, w, seconds in times if w == way) for way in ("forward", "backward")}
    totals = dict(re.findall(r"Average (Forward|Backward|Forward-Backward)(?: pass)?: (\S+) ms\.", log))
    assert float(totals["Forward"]) == pytest.approx(each["forward"], rel=1e-4)
    assert float(totals["Backward"]) == pytest.approx(each["backward"], rel=1e-4)
    assert float(totals["Forward-Backward"]) == pytest.approx(sum(each.values()), rel=1e-4)
    assert each["backward"] > 0
    [total] = re.findall(r"Total Time: (\S+) ms\.", log)
    assert float(total) == pytest.approx(2 * float(totals["Forward-Backward"]), rel=1e-4)


@pytest.mark.parametrize("head", ["", "force_backward: true\n"])
def test_the_passes_that_are_timed_are_those_of_training(head):
    trained, timed = diamond(cut="propagate_down: false", head=head), diamond(cut="propagate_down: false", head=head)
    loss, _ = forward_backward(trained, 3)
    assert timing.Timer(timed).run(3) == float(loss)
    for one, other in zip(trained.learnable, timed.learnable, strict=True):
        assert one.data.grad is not None and other.data.grad is not None
        assert torch.equal(one.data.grad, other.data.grad)


class Slow(torch.autograd.Function):
    """The identity; takes one second by the test's clock, forward and backward."""

    @staticmethod
    def forward(ctx, x, clock):
        ctx.clock = clock
        clock[0] += 1
        return x.clone()

    @staticmethod
    def backward(ctx, *gradients):
        ctx.clock[0] += 1
        return gradients[0], None


def seconds_of(net: Net, monkeypatch) -> tuple[dict[str, float], dict[str, float]]:
    """Time a net whose layers take one second per top and one per top gradient; return the measured seconds."""
    clock = [0.0]
    monkeypatch.setattr(timing.time, "perf_counter", lambda: clock[0])
    for layer in net.layers:
        layer.forward = lambda bottoms, batch, own=layer.forward: [
            Slow.apply(top, clock) for top in own(bottoms, batch)
        ]
    timer = timing.Timer(net)
    timer.run(0)
    forward, backward = ({layer.name: way[layer] for layer in net.layers} for way in (timer.forward, timer.backward))
    return forward, backward


EACH = dict.fromkeys(("a", "relu", "pool", "b", "c", "sum", "loss1", "loss2"), 1.0)


def test_each_second_counts_for_the_layer_that_takes_it(monkeypatch):
    forward, backward = seconds_of(diamond(), monkeypatch)
    assert forward == {"d": 2, **EACH}
    assert backward == {"d": 0, **EACH}


def test_nothing_is_computed_backward_below_what_learns(monkeypatch):
    frozen = "param { lr_mult: 0 } param { lr_mult: 0 }"
    forward, backward = seconds_of(diamond(frozen), monkeypatch)
    assert forward == {"d": 2, **EACH}
    assert backward == {**dict.fromkeys(("d", "a", "relu", "pool"), 0), **dict.fromkeys(list(EACH)[3:], 1)}


def test_a_net_without_a_loss_goes_backward_from_its_outputs(monkeypatch):
    net = build(DATA + (FIRST + REST.partition('layer { name: "loss1"')[0]).replace("LEARN", "").replace("CUT", ""))
    _, backward = seconds_of(net, monkeypatch)
    assert backward == {"d": 0, **dict.fromkeys(list(EACH)[:6], 1)}
