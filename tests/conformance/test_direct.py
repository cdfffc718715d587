"""Iterations without autograd compute the same losses, outputs and gradients as with it, for any number of shards."""

import os
import signal

import numpy as np
import pytest
import torch
from conformance.graph_cases import GRAPH_CASES
from conformance.networks import NETWORKS, net_text, write_data
from conformance.seeded import seeded_weights

from transfer_caffe.compare import build, draw_values
from transfer_caffe.engine.iteration import threads
from transfer_caffe.engine.iteration.direct import Clock, Direct
from transfer_caffe.engine.iteration.graph import forward_backward
from transfer_caffe.engine.iteration.steps import ByAutograd, PoolingStep, Shard
from transfer_caffe.engine.layers.vision import Pooling
from transfer_caffe.engine.net import Net
from transfer_caffe.experiment.read import load_recipe
from transfer_caffe.formats.proto import parse_text
from transfer_caffe.formats.proto.caffe_pb2 import TRAIN, NetParameter, NetState
from transfer_caffe.sweep.measure import synthetic
from transfer_caffe.utils.errors import UserError

ROUNDING = 1e-5
"""Tolerance relative to a gradient's largest value: reordered sums of a thousand terms rarely differ by 1e-6."""

CHAIN = """
layer { name: "data" type: "DummyData" top: "data" top: "label" dummy_data_param {
        shape { dim: 8 dim: 3 dim: 9 dim: 9 } shape { dim: 8 } data_filler { type: "gaussian" std: 1 }
        data_filler { type: "constant" value: LABEL } } }
layer { name: "conv" type: "Convolution" bottom: "data" top: "c" param { name: "w" }
        convolution_param { num_output: 6 kernel_size: 3 pad: 1 group: 3 weight_filler { type: "xavier" } } }
layer { name: "relu" type: "ReLU" bottom: "c" top: "c" }
layer { name: "pool" type: "Pooling" bottom: "c" top: "p" pooling_param { pool: MAX kernel_size: 3 stride: 2 } }
layer { name: "norm" type: "LRN" bottom: "p" top: "n" lrn_param { local_size: 3 alpha: 0.5 } }
layer { name: "conv2" type: "Convolution" bottom: "n" top: "c2" param { lr_mult: RATE } param { lr_mult: RATE }
        convolution_param { num_output: 6 kernel_size: 3 weight_filler { type: "xavier" } } }
layer { name: "mean" type: "Pooling" bottom: "c2" top: "m" pooling_param { pool: AVE kernel_size: 2 } }
layer { name: "fc" type: "InnerProduct" bottom: "m" top: "f"
        inner_product_param { num_output: 5 weight_filler { type: "xavier" } } }
layer { name: "relu2" type: "ReLU" bottom: "f" top: "f" }
layer { name: "drop" type: "Dropout" bottom: "f" top: "f" }
layer { name: "fc2" type: "InnerProduct" bottom: "f" top: "g"
        inner_product_param { num_output: 5 weight_filler { type: "xavier" } } }
layer { name: "accuracy" type: "Accuracy" bottom: "g" bottom: "label" top: "accuracy" }
layer { name: "loss" type: "SoftmaxWithLoss" bottom: "g" bottom: "label" top: "loss" loss_weight: 0.5 }
MORE
"""


def chain(more="", rate="1", label="2"):
    text = CHAIN.replace("MORE", more).replace("RATE", rate).replace("LABEL", label)
    return Net(parse_text(text, NetParameter(), ""), NetState(phase=TRAIN), 1, torch.device("cpu"))


def results(net, run):
    for blob in net.learnable:
        blob.data.grad = None
    loss, outputs = run()
    gradients = [None if blob.data.grad is None else blob.data.grad.clone() for blob in net.learnable]
    return loss.clone(), {name: value.clone() for name, value in outputs.items()}, gradients


def require_equal(ours, theirs, tolerance=ROUNDING):
    (loss, outputs, gradients), (their_loss, their_outputs, their_gradients) = ours, theirs
    torch.testing.assert_close(loss, their_loss, rtol=tolerance, atol=0)
    assert outputs.keys() == their_outputs.keys()
    for name, value in outputs.items():
        torch.testing.assert_close(value, their_outputs[name], rtol=tolerance, atol=tolerance)
    # the gradient of a bias before BatchNorm is only the rounding error of terms that cancel
    largest = max((float(each.abs().max()) for each in their_gradients if each is not None), default=0.0)
    for one, two in zip(gradients, their_gradients, strict=True):
        assert (one is None) == (two is None)
        if one is not None and two is not None:
            assert one.shape == two.shape
            assert float((one - two).abs().max()) <= tolerance * max(float(two.abs().max()), 0.1 * largest)


@pytest.mark.parametrize("name", [name for name, case in GRAPH_CASES.items() if not case.net.force_backward])
def test_layers_that_meet_give_what_autograd_gives(name):
    case, found = GRAPH_CASES[name], []
    for direct in (True, False):
        try:
            net = build(case.net, case.phase)
        except UserError:
            pytest.skip("no net")
        values = dict(case.values)
        draw_values(net, values, case.seed)
        net.feed({key[5:]: value for key, value in values.items() if key.startswith("blob/")})
        run = Direct(net) if direct else lambda batch, net=net: forward_backward(net, batch)
        found.append(results(net, lambda run=run: run(0)))
    require_equal(*found)


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_give_what_autograd_gives(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_data(name, tmp_path, seed=1)
    param, found = parse_text(net_text(name), NetParameter(), name), []
    weights = seeded_weights(param, 1)
    for direct in (True, False):
        net = build(param, "TRAIN")
        for layer in net.layers:
            for index, blob in enumerate(layer.blobs):
                with torch.no_grad():
                    blob.data.copy_(torch.from_numpy(weights[f"param/{layer.name}/{index}"]))
        run = Direct(net) if direct else lambda batch, net=net: forward_backward(net, batch)
        found.append(results(net, lambda run=run: run(3)))
    # rounding may move units to the other side of a ReLU's kink: 1e-4, as in the comparison with real Caffe
    require_equal(*found, tolerance=1e-4)


@pytest.mark.parametrize("rate", ["1", "0"])
@pytest.mark.parametrize("shards", [1, 2, 4])
def test_shards_sum_up_to_the_batch(shards, rate):
    net = chain(rate=rate)
    assert not any(type(step) is ByAutograd for step in Direct(net).parts[0].steps)
    require_equal(results(net, lambda: Direct(net, shards)(7)), results(net, lambda: forward_backward(net, 7)))


def test_the_results_do_not_depend_on_how_many_processes_compute_the_shards():
    found = []
    for workers in (1, 2, 3, 4):
        net = chain()
        direct = Direct(net, 4, workers)
        for batch in (0, 1, 5):
            loss, outputs, gradients = results(net, lambda direct=direct, batch=batch: direct(batch))
            with torch.no_grad():  # as a solver does; the other processes must see the change
                for blob, gradient in zip(net.learnable, gradients, strict=True):
                    assert gradient is not None
                    blob.data.sub_(gradient)
        found.append([loss, *outputs.values(), *gradients, *(blob.data.detach() for blob in net.learnable)])
    for other in found[1:]:
        assert all(torch.equal(one, two) for one, two in zip(found[0], other, strict=True))


def test_gradients_are_added_where_that_is_asked_for():
    net = chain()
    direct = Direct(net)
    first, second = (results(net, lambda batch=batch: direct(batch))[2] for batch in (0, 1))
    both = results(net, lambda: (direct(0), direct(1, add=True))[1])[2]
    for one, two, total in zip(first, second, both, strict=True):
        assert one is not None and two is not None and total is not None
        assert torch.equal(total, one + two)


@pytest.mark.parametrize(
    ("more", "splits"),
    [
        ("", True),
        ('layer { name: "b" type: "BatchNorm" bottom: "g" top: "b" }', False),
        ('layer { name: "s" type: "Sigmoid" bottom: "g" top: "s" }', False),  # by autograd, as all that has no step
        ('layer { name: "i" type: "Input" top: "i" input_param { shape { dim: 4 } } }', False),
    ],
)
def test_nets_whose_images_depend_on_each_other_are_not_split(more, splits):
    net = chain(more)
    assert Direct.splits(net) is splits
    if not splits and "Input" not in more:
        with pytest.raises(ValueError, match="cannot be computed in shards"):
            Direct(net, 2)


@pytest.mark.parametrize("workers", [1, 2])
def test_what_goes_wrong_in_a_shard_is_said(workers):
    net = chain(label="9")
    with pytest.raises(UserError, match=r"layer 'accuracy' .*label 9 is out of range; the classes are 0 to 4"):
        Direct(net, 2, workers)(0)


def test_a_process_that_is_killed_is_named_and_the_others_end_with_their_parent():
    net = chain()
    direct = Direct(net, 4, 3)
    direct(0)
    assert direct._crew is not None
    pids = [pid for pid, *_ in direct._crew._pipes]
    os.kill(pids[0], signal.SIGKILL)
    with pytest.raises(UserError, match=f"process {pids[0]}, which computes a part of each batch, was killed"):
        direct(1)
    direct._crew.close()
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_a_clock_sees_every_layer_that_computes():
    net, clock = chain(), Clock()
    Direct(net)(0, clock=clock)
    assert {layer.name for layer in clock.forward} == {layer.name for layer in net.layers}
    silent = {"data", "accuracy"}
    assert {layer.name for layer in clock.backward} == {layer.name for layer in net.layers} - silent


@pytest.mark.parametrize(("recipe", "shards", "most"), [("demo", 1, 1), ("paper", 1, 128)], ids=["mini", "caffenet"])
def test_the_number_of_threads_follows_from_the_net_and_ends_at_the_cores(recipe, shards, most, monkeypatch):
    net = Net(synthetic(next(iter(load_recipe(recipe).networks())), 0), NetState(phase=TRAIN), 1, torch.device("cpu"))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    for cores in (1, 2, 8):
        monkeypatch.setattr(threads, "cores", lambda cores=cores: cores)
        assert threads.plan(net) == threads.Plan(shards, 1, min(cores, most))


def test_a_net_of_moderate_size_has_the_same_shards_on_any_machine_that_can_share_them(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(threads, "work", lambda net: 1e9)
    for cores, shards in ((1, 1), (2, 2), (8, 2)):
        monkeypatch.setattr(threads, "cores", lambda cores=cores: cores)
        assert threads.plan(chain()) == threads.Plan(shards, shards, 1)
    monkeypatch.setattr(threads, "work", lambda net: 1e12)
    assert threads.shards_of(chain()) == threads.MOST_SHARDS
    monkeypatch.setattr(threads, "FLOP_A_WEIGHT", 1e12)
    assert threads.shards_of(chain()) == 1  # summing the gradients of so many weights is too expensive


def text_net(text):
    return Net(parse_text(text, NetParameter(), ""), NetState(phase=TRAIN), 1, torch.device("cpu"))


INPUT = """layer { name: "in" type: "DummyData" top: "x" top: "label" dummy_data_param {
    shape { dim: 4 dim: 6 } shape { dim: 4 } data_filler { type: "gaussian" std: 1 } data_filler { value: 1 } } }"""
FC = """layer { name: "NAME" type: "InnerProduct" bottom: "BOTTOM" top: "NAME" inner_product_param {
    num_output: 6 weight_filler { type: "gaussian" std: 1 } } }"""
END = 'layer { name: "loss" type: "SoftmaxWithLoss" bottom: "b" bottom: "label" top: "loss" }'


def fc(name, bottom):
    return FC.replace("NAME", name).replace("BOTTOM", bottom)


@pytest.mark.parametrize("first", ["ReLU", "Dropout"])
@pytest.mark.parametrize("second", ["Sigmoid", "TanH", "ReLU", "Dropout"])
def test_gradients_in_place_are_of_what_later_layers_in_place_have_left(first, second):
    both = "".join(
        f'layer {{ name: "{i}" type: "{kind}" bottom: "a" top: "a" }}' for i, kind in enumerate((first, second))
    )
    text = INPUT + fc("a", "x") + both + fc("b", "a") + END
    direct, autograd = text_net(text), text_net(text)
    require_equal(results(direct, lambda: Direct(direct)(3)), results(autograd, lambda: forward_backward(autograd, 3)))


def test_each_blob_has_a_gradient_of_its_own_that_an_update_may_change():
    text = "".join(
        f'layer {{ name: "{name}" type: "Parameter" top: "{name}" parameter_param {{ shape {{ dim: 4 dim: 6 }} }} }}'
        for name in "pq"
    )
    text += 'layer { name: "e" type: "Eltwise" bottom: "p" bottom: "q" top: "e" }'
    text += 'layer { name: "sum" type: "Reduction" bottom: "e" top: "sum" loss_weight: 1 }'
    net = text_net(text)
    Direct(net)(0)
    one, two = (blob.data.grad for blob in net.learnable)
    assert one is not None and two is not None
    one.mul_(5)  # a solver works in place, which is impossible with an expanded tensor
    assert torch.equal(two, torch.ones(4, 6))


def test_a_net_with_an_output_for_each_image_is_not_split():
    net = chain(
        'layer { name: "more" type: "InnerProduct" bottom: "g" top: "more" inner_product_param { num_output: 2 } }'
    )
    assert "more" in net.outputs and not Direct.splits(net)


NAN = """
layer { name: "x" type: "Input" top: "x" top: "y"
        input_param { shape { dim: 2 dim: 3 dim: 6 dim: 6 } shape { dim: 2 } } }
layer { name: "bias" type: "Bias" bottom: "x" top: "b" }
layer { name: "pool" type: "Pooling" bottom: "b" top: "p" pooling_param { kernel_size: 2 stride: 2 } }
layer { name: "fc" type: "InnerProduct" bottom: "p" top: "f"
        inner_product_param { num_output: 5 weight_filler { type: "xavier" } } }
layer { name: "loss" type: "SoftmaxWithLoss" bottom: "f" bottom: "y" top: "loss" }
"""


def test_max_pooling_ignores_nan_in_both():
    net = Net(parse_text(NAN, NetParameter(), ""), NetState(phase=TRAIN), 1, torch.device("cpu"))
    images = np.random.RandomState(0).standard_normal((2, 3, 6, 6)).astype(np.float32)
    images[:, :, :, 1::2] = np.nan
    net.feed({"x": images, "y": np.ones(2)})
    direct = results(net, lambda: Direct(net)(0))
    for gradient in direct[2]:
        assert gradient is not None and torch.isfinite(gradient).all() and gradient.abs().sum() > 0

    def by_autograd():
        found = net.forward(0)
        found[0].backward()
        return found[0].detach(), found[1]

    require_equal(direct, results(net, by_autograd))


@pytest.mark.parametrize("postponed", [False, True])
def test_a_window_without_numbers_gets_no_gradient(postponed):
    net = Net(parse_text(NAN, NetParameter(), ""), NetState(phase=TRAIN), 1, torch.device("cpu"))
    pooling = net.layers[2]
    assert isinstance(pooling, Pooling)
    pooling.relu_postponed = postponed
    bottom = torch.full((1, 3, 6, 6), torch.nan)
    bottom[0, 0, 2, 3] = 5
    step = PoolingStep(pooling, Shard(), 0.0)
    top = step.up(bottom, 0)
    assert top.flatten()[4] == 5
    assert top.isnan().sum() == 26 if postponed else (top == -torch.finfo(torch.float32).max).sum() == 26
    assert step.down(torch.ones_like(top)).nonzero().tolist() == [[0, 0, 2, 3]]
