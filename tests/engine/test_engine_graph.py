"""Iterations recorded as a graph compute the same as without one; on the CPU a stand-in records and replays."""

import contextlib
import functools
import itertools

import lmdb
import numpy as np
import pytest
import torch
from support.streams import OnCpu
from support.tape import Tape, capturing

from transfer_caffe.engine import net as net_module
from transfer_caffe.engine.batches import resident, transform
from transfer_caffe.engine.iteration import graph, ways
from transfer_caffe.engine.iteration.graph import Pass, TestPass, uncapturable
from transfer_caffe.engine.layers import vision
from transfer_caffe.engine.layers.base import Blob
from transfer_caffe.engine.layers.data import Images
from transfer_caffe.engine.layers.neuron import Dropout
from transfer_caffe.engine.net import Net
from transfer_caffe.engine.solver import device_update
from transfer_caffe.engine.solver import solver as solver_module
from transfer_caffe.engine.solver.beside import Beside
from transfer_caffe.engine.solver.device_update import DeviceUpdate, blobs_with_copies
from transfer_caffe.engine.solver.solver import Signals, Solver
from transfer_caffe.engine.solver.solverstate import read_state
from transfer_caffe.formats.datum import raw_datum
from transfer_caffe.formats.proto import parse_text
from transfer_caffe.formats.proto.caffe_pb2 import TRAIN, NetParameter, NetState, SolverParameter
from transfer_caffe.utils.errors import UserError

pytestmark = pytest.mark.usefixtures("logged")

NET = """
layer { name: "d" type: "Data" top: "data" top: "label" transform_param { crop_size: 7 mirror: true scale: 0.01 }
        data_param { source: "db" batch_size: 4 backend: LMDB } }
layer { name: "conv1" type: "Convolution" bottom: "data" top: "c" param { lr_mult: RATE }
        convolution_param { num_output: 4 kernel_size: 3 weight_filler { type: "xavier" } } }
layer { name: "relu1" type: "ReLU" bottom: "c" top: "c" }
layer { name: "pool1" type: "Pooling" bottom: "c" top: "p" pooling_param { pool: MAX kernel_size: 3 stride: 2 } }
layer { name: "norm1" type: "LRN" bottom: "p" top: "n" lrn_param { local_size: 3 } }
layer { name: "drop" type: "Dropout" bottom: "n" top: "n" }
layer { name: "fc" type: "InnerProduct" bottom: "n" top: "f"
        inner_product_param { num_output: 5 weight_filler { type: "xavier" } } }
layer { name: "drop2" type: "Dropout" bottom: "f" top: "f" dropout_param { dropout_ratio: 0.2 } }
layer { name: "loss" type: "SoftmaxWithLoss" bottom: "f" bottom: "label" top: "loss" }
MORE
"""


@pytest.fixture(autouse=True)
def _database(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    draw = np.random.RandomState(0)
    with lmdb.open("db", map_size=1 << 24) as env, env.begin(write=True) as transaction:
        for index in range(10):
            image = draw.randint(0, 256, (9, 9, 3)).astype(np.uint8)
            transaction.put(f"{index:08d}_x".encode(), raw_datum(image, index % 5))
    monkeypatch.setattr(Images, "_made_by_device", ("cpu",))


def param_of(more="", rate="1", **settings):
    given = {
        "base_lr": 0.1, "lr_policy": "step", "gamma": 0.5, "stepsize": 4, "momentum": 0.9, "weight_decay": 0.01,
        "random_seed": 3, "snapshot_prefix": "net", "display": 2, "max_iter": 9, "snapshot_after_train": True,
    }  # fmt: skip
    param = SolverParameter(**given | settings)
    param.net_param.CopyFrom(parse_text(NET.replace("MORE", more).replace("RATE", rate), NetParameter(), ""))
    return param


def solver(more="", rate="1", dtype=torch.float32, **settings):
    made = Solver(param_of(more, rate, **settings), torch.device("cpu"), dtype=dtype)
    made._pass._direct = None  # without a graph a GPU computes by autograd
    return made


def with_graph(made):
    """Let a solver's iterations be recorded, and return the tapes."""
    tapes = []

    def recorder(net=made.net):
        tapes.append(Tape(net))
        return tapes[-1]

    inside = made._on_device and made.param.iter_size == 1
    made._pass = Pass(made.net, recorder, update=made._update_on_device if inside else None)
    made._test_passes = [TestPass(net, functools.partial(recorder, net)) for net in made.test_nets]
    return tapes


def state(made):
    blobs = [blob.data.detach().numpy().tobytes() for blob in made.net.learnable]
    return [*blobs, *(history.numpy().tobytes() for history in made.history)]


@pytest.mark.parametrize("rate", ["1", "0"])
def test_a_recorded_training_is_the_same_training(rate, capfd):
    eager = solver(rate=rate)
    assert eager.solve(Signals())
    lines = [line.split("] ")[1] for line in capfd.readouterr().err.splitlines() if "loss = " in line]
    made = solver(rate=rate)
    tapes = with_graph(made)
    made.solve(Signals())
    said = capfd.readouterr().err
    assert len(tapes) == 1 and len(tapes[0].seeds) == 9 - graph.WARM_UP
    assert "From here on an iteration is one CUDA graph." in said
    assert state(made) == state(eager)
    told = [line.split("] ")[1] for line in said.splitlines() if "loss = " in line]
    without_speed = [line.split(" (")[0] + line.rpartition("), ")[2] for line in lines]
    assert [line.split(" (")[0] + line.rpartition("), ")[2] for line in told] == without_speed


def test_masks_are_drawn_anew_for_each_batch_by_the_seeds_of_eager_runs():
    made = solver()
    tapes = with_graph(made)
    made.solve(Signals())
    seeds = tapes[0].seeds
    drops = [layer for layer in made.net.layers if isinstance(layer, Dropout)]
    assert seeds == [[layer.seed(batch) for layer in drops] for batch in range(graph.WARM_UP, 9)]
    assert len({seed for pair in seeds for seed in pair}) == 2 * len(seeds)


def test_training_goes_on_from_a_snapshot_at_any_iteration():
    undisturbed = solver()
    undisturbed.solve(Signals())
    first = solver(max_iter=5)
    with_graph(first)
    first.solve(Signals())
    second = solver()
    with_graph(second)
    second.restore("net_iter_5.solverstate", read_state("net_iter_5.solverstate"))
    second.solve(Signals())
    assert state(second) == state(undisturbed)


def test_the_net_can_be_run_without_its_graph_in_between():
    eager, made = solver(), solver()
    with_graph(made)
    for one in (eager, made):
        for iteration in range(6):
            one._pass(iteration)
    with torch.no_grad():
        assert torch.equal(made.net.forward(17)[0], eager.net.forward(17)[0])
    assert torch.equal(made._pass(6)[0], eager._pass(6)[0])


def test_a_loss_that_was_given_away_does_not_change_with_the_next_batch():
    made = solver()
    with_graph(made)
    losses = [made._pass(iteration)[0] for iteration in range(8)]
    assert len({float(loss) for loss in losses}) == 8


def test_what_cannot_be_recorded_runs_without_a_graph(capfd):
    class Refuses(Tape):
        def record(self, function):
            function()
            try:
                raise ValueError("layer 'norm1' read a value\nmore")
            finally:  # what torch.cuda.graph does: ending the capture fails, too
                raise RuntimeError("operation not permitted when stream is capturing\nmore")

    eager, made = solver(), solver()
    made._pass = Pass(made.net, lambda: Refuses(made.net))
    eager.solve(Signals())
    capfd.readouterr()
    made.solve(Signals())
    said = capfd.readouterr().err
    why = "layer 'norm1' read a value; then: operation not permitted when stream is capturing"
    assert said.count(f"Iterations run without a CUDA graph: {why}\n") == 1
    assert state(made) == state(eager)


@pytest.mark.parametrize(
    ("more", "why"),
    [
        ("force_backward: true", "force_backward is set"),
        ('layer { name: "b" type: "ArgMax" bottom: "f" top: "b" }', "layer 'b' (ArgMax) reads values"),
        (
            'layer { name: "x" type: "DummyData" top: "x" dummy_data_param { shape { dim: 2 } '
            'data_filler { type: "uniform" } } }',
            "layer 'x' (DummyData) reads values or samples random numbers on the host",
        ),
        ('layer { name: "x" type: "DummyData" top: "x" dummy_data_param { shape { dim: 2 } } }', ""),
    ],
)
def test_nets_with_layers_that_work_on_the_host_are_told_apart(more, why, capfd):
    param = parse_text(NET.replace("MORE", more).replace("RATE", "1"), NetParameter(), "")
    net = Net(param, NetState(phase=TRAIN), 1, torch.device("cpu"))
    assert uncapturable(net).startswith(why) and bool(uncapturable(net)) == bool(why)
    capfd.readouterr()
    Pass(net, lambda: Tape(net))
    assert ("without a CUDA graph" in capfd.readouterr().err) is bool(why)
    assert (TestPass(net, lambda: Tape(net))._make is None) is bool(why)


@pytest.mark.parametrize(
    ("more", "dtype", "direct"),
    [("", torch.float32, True), ("", torch.bfloat16, False), ("force_backward: true", torch.float32, False)],
)
def test_a_cpu_computes_without_autograd_in_float32_only(more, dtype, direct):
    assert (graph.direct_of(solver(more, dtype=dtype).net, own_process=False) is not None) is direct


def test_batches_that_the_host_makes_are_not_recorded(monkeypatch):
    monkeypatch.setattr(Images, "_made_by_device", ("cuda",))
    assert uncapturable(solver().net).startswith("layer 'd' (Data) reads values")


def test_on_a_cpu_nothing_is_recorded(capfd):
    made = solver()
    made.solve(Signals())
    assert not made._pass.recorded and "graph" not in capfd.readouterr().err


@pytest.mark.parametrize("parts", [2, 3])
@pytest.mark.parametrize("on_device", [False, True])
def test_an_iteration_of_several_batches_is_recorded_as_a_first_one_and_one_that_adds(
    parts, on_device, monkeypatch, capfd
):
    monkeypatch.setattr(DeviceUpdate, "devices", ("cuda", "cpu") if on_device else ("cuda",))
    eager, made = solver(iter_size=parts), solver(iter_size=parts)
    tapes = with_graph(made)
    eager.solve(Signals())
    made.solve(Signals())
    assert [tape.adds for tape in tapes] == [False, True]
    assert capfd.readouterr().err.count("From here on an iteration is one CUDA graph.") == 1
    # the first is replayed from the fourth iteration on, the other after three runs that add to a recorded gradient
    assert len(tapes[0].seeds) == 9 - graph.WARM_UP
    assert len(tapes[1].seeds) == (9 - graph.WARM_UP) * (parts - 1) - graph.WARM_UP
    drops = [layer for layer in made.net.layers if isinstance(layer, Dropout)]
    assert tapes[0].seeds[-1] == [layer.seed(8 * parts) for layer in drops]
    assert tapes[1].seeds[-1] == [layer.seed(9 * parts - 1) for layer in drops]
    assert state(made) == state(eager)


@pytest.fixture
def on_device(monkeypatch):
    """Let the CPU update weights as a GPU does, inside the graph."""
    monkeypatch.setattr(DeviceUpdate, "devices", ("cuda", "cpu"))


@pytest.mark.parametrize("rate", ["1", "0", "0.3"])
@pytest.mark.parametrize("policy", ["step", "inv"])
def test_an_update_within_the_graph_follows_the_learning_rate(rate, policy, on_device, capfd):
    settings = {"rate": rate, "lr_policy": policy, "power": 0.7, "gamma": 0.5}
    eager, made = solver(**settings), solver(**settings)
    tapes = with_graph(made)
    eager.solve(Signals())
    rates = [line.split("] ")[1] for line in capfd.readouterr().err.splitlines() if "lr = " in line]
    made.solve(Signals())
    assert len(tapes) == 1 and len(tapes[0].seeds) == 9 - graph.WARM_UP
    assert rates == [line.split("] ")[1] for line in capfd.readouterr().err.splitlines() if "lr = " in line]
    assert len(set(rates)) > 2
    assert state(made) == state(eager)


@pytest.mark.parametrize(
    "settings",
    [
        {}, {"momentum": 0.0}, {"rate": "0"}, {"weight_decay": 0.0}, {"iter_size": 2}, {"rate": "0.3 decay_mult: 3"},
        {"rate": "0 decay_mult: 3"}, {"clip_gradients": 0.0}, {"clip_gradients": 1e6}, {"clip_gradients": 0.3},
        {"clip_gradients": 0.3, "iter_size": 2}, {"clip_gradients": 0.3, "rate": "0"},
    ],
)  # fmt: skip
def test_updates_on_a_device_are_those_of_the_cpu_to_rounding(settings, monkeypatch):
    made = []
    for devices in (("cuda",), ("cuda", "cpu")):
        monkeypatch.setattr(DeviceUpdate, "devices", devices)
        one = solver(**settings)
        one.iteration = 5  # after the first step of the learning rate
        for history in one.history:
            history.copy_(0.1 * torch.randn(history.shape, generator=torch.Generator().manual_seed(1)))
        one.step(1)
        made.append([*map(values, one.net.learnable), *one.history])
    for other, one in zip(*made, strict=True):
        # a step of the history has 5 roundings in each of both, and the weight one; with clipping there are those of
        # the norm, a sum of 400 squares
        most = (12 + 400 * ("clip_gradients" in settings)) * 2**-24
        assert torch.allclose(one, other, rtol=most, atol=most * float(other.abs().max()))


def test_the_learning_rate_is_sent_to_the_device_only_when_it_changes(on_device, monkeypatch):
    made, sent = solver(), []
    made.step(1)
    assert made._device_update is not None
    monkeypatch.setattr(made._device_update._staging, "send", sent.append)
    made.step(7)
    assert len(sent) == 1  # stepsize is 4


def values(blob):
    return blob.data.detach()


def test_momentum_and_decay_act_on_a_blob_without_gradient_as_in_caffe(on_device):
    made = solver(rate="0")
    made.history[0].fill_(1.0)  # of conv1, which is frozen, but was fine-tuned before
    before = values(made.net.learnable[0]).clone()
    made.step(2)
    assert torch.allclose(made.history[0], torch.full_like(before, 0.9 * 0.9), rtol=3 * 2**-24, atol=0)
    assert torch.allclose(values(made.net.learnable[0]), before - 0.9 - 0.81, rtol=0, atol=1e-6)


@pytest.mark.parametrize("limit", [0.0, 0.3])
def test_clipping_leaves_gradients_of_zero_and_no_gradients_as_they_are(limit):
    param = SolverParameter(momentum=0.9, weight_decay=0.01, clip_gradients=limit)
    blobs = [Blob(torch.ones(3).requires_grad_()) for _ in range(2)]
    for gradients in ((None, None), (torch.zeros(3), None)):
        update = DeviceUpdate(param, blobs, [torch.zeros(3) for _ in blobs])
        update.set_rate(0.0)
        for blob, gradient in zip(blobs, gradients, strict=True):
            blob.data.grad = gradient
        update()
        assert float(update.norm) == 0 and all(blob.data.eq(1).all() for blob in blobs)


def test_rates_on_the_device_are_products_rounded_once():
    blobs = [Blob(torch.ones(1), lr_mult) for lr_mult in (1.0, 0.3, 7.1)]
    update = DeviceUpdate(SolverParameter(), blobs, [torch.zeros(1) for _ in blobs])
    for rate in (0.1, 0.01, 0.003, 0.7):
        update.set_rate(rate)
        assert update._rates.tolist() == [float(np.float32(rate * blob.lr_mult)) for blob in blobs]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_where_a_kernel_cannot_run_plain_operations_are_used_and_the_log_says_so(capfd):
    assert transform._fused_batches.__wrapped__() is None and device_update._fused_update.__wrapped__() is None
    said = capfd.readouterr().err
    assert "Batches are made without their Triton kernel: " in said
    assert "Updates run without their Triton kernel: " in said


def test_blobs_that_no_update_changes_are_left_out(on_device):
    made = solver(rate="0")
    made.step(1)
    assert made._device_update is not None
    assert made._device_update._blobs == [blob for blob in made.net.learnable if blob.lr_mult]


@pytest.mark.parametrize(
    ("settings", "fits"),
    [({}, True), ({"clip_gradients": 3.0}, True), ({"regularization_type": "L1"}, False), ({"type": "Adam"}, False)],
)
def test_only_updates_that_need_no_host_run_on_the_device(settings, fits, on_device):
    assert solver(**settings)._on_device is fits
    assert not DeviceUpdate.fits(SolverParameter(**settings), torch.device("xpu"))


@pytest.mark.parametrize("devices", [("cuda",), ("cuda", "cpu")])
def test_a_solver_that_is_restored_in_between_records_anew(devices, monkeypatch):
    monkeypatch.setattr(DeviceUpdate, "devices", devices)
    undisturbed = solver()
    undisturbed.solve(Signals())
    solver(max_iter=5).solve(Signals())
    made = solver()
    tapes = with_graph(made)
    made.step(6)
    made.restore("net_iter_5.solverstate", read_state("net_iter_5.solverstate"))
    made.solve(Signals())
    assert state(made) == state(undisturbed)
    assert [len(tape.seeds) for tape in tapes] == [6 - graph.WARM_UP, 4 - graph.WARM_UP]  # and warms up anew


def test_gradients_that_something_else_has_computed_do_not_end_up_in_the_next_update():
    eager, made = solver(), solver()
    tapes = with_graph(made)
    for one in (eager, made):
        one.step(6)
        for blob in one.net.learnable:
            blob.leaf.grad = None
        graph.forward_backward(one.net, 77)  # a user looks at gradients
        one.step(2)
    assert len(tapes[0].seeds) == 8 - graph.WARM_UP and state(made) == state(eager)


def test_a_blob_that_is_frozen_moves_on_after_the_history_of_a_training_in_which_it_was_not(on_device):
    solver(max_iter=5).solve(Signals())
    made, fresh = solver(rate="0"), solver(rate="0")
    made.step(2)  # without the frozen blob, whose history is 0
    for each in (made, fresh):
        each.restore("net_iter_5.solverstate", read_state("net_iter_5.solverstate"))
        before = state(each)
        each.step(1)
    assert state(made) == state(fresh) and state(made)[0] != before[0]


TESTED = """layer { name: "accuracy" type: "Accuracy" bottom: "f" bottom: "label" top: "accuracy"
                  include { phase: TEST } }"""


def test_passes_of_a_test_are_recorded_and_give_the_same_outputs_with_the_weights_of_the_moment(capfd):
    said = []
    for recorded in (False, True):
        made = solver(TESTED, test_iter=[5], test_interval=3)
        tapes = with_graph(made) if recorded else []
        capfd.readouterr()
        made.solve(Signals())
        lines = [line.split("] ")[1] for line in capfd.readouterr().err.splitlines()]
        said.append([line for line in lines if "Test net output" in line])
        if recorded:
            _, test = sorted(tapes, key=lambda tape: len(tape.seeds))
            assert len(test.seeds) == 4 * 5 - graph.WARM_UP  # tests at 0, 3, 6 and 9
            assert test.registered == []  # a test draws no masks
    assert len(said[0]) == 8 and said[0] == said[1]
    assert len(set(said[0])) > 4


def test_the_losses_of_a_recorded_test_do_not_change_with_the_next_batch():
    made = solver(test_iter=[6], test_interval=3)
    with_graph(made)
    losses = [made._test_passes[0](batch)[0] for batch in range(6)]
    assert len({float(loss) for loss in losses}) == 6
    assert not any(loss.requires_grad for loss in losses)


def test_a_test_that_cannot_be_recorded_runs_without_a_graph(capfd):
    class Refuses(Tape):
        def record(self, function):
            raise RuntimeError("not while capturing")

    made = solver(test_iter=[6], test_interval=3)
    run = TestPass(made.test_nets[0], lambda: Refuses(made.net))
    losses = [run(batch)[0] for batch in range(6)]
    with torch.no_grad():
        assert losses == [made.test_nets[0].forward(batch)[0] for batch in range(6)]
    assert capfd.readouterr().err.count("Test passes run without a CUDA graph: not while capturing") == 1


@pytest.mark.parametrize("rate", ["1", "0"])
@pytest.mark.parametrize("clip", [-1.0, 0.3])
@pytest.mark.parametrize("graph", [False, True])
def test_copies_of_weights_in_bf16_change_no_bit(rate, clip, graph, on_device, monkeypatch):
    low = torch.bfloat16
    settings = {"rate": rate, "dtype": low, "test_iter": [2], "test_interval": 3, "clip_gradients": clip}
    plain = solver(**settings)
    with monkeypatch.context() as patched:
        patched.setattr(solver_module, "blobs_with_copies", lambda *_: [])
        plain.step(8)
    made = solver(**settings)
    if graph:
        with_graph(made)
    made.step(8)
    copied = [layer.blobs[0] for layer in made.net.layers if layer.type in ("Convolution", "InnerProduct")]
    assert [blob for blob in made.net.learnable if blob.low is not None] == copied
    assert state(made) == state(plain)
    for blob in copied:
        assert blob.low is not None and torch.equal(blob.low, blob.data.to(low))
        assert blob.data.grad is None and (blob.low.grad is not None) == (blob.lr_mult != 0)
    assert {name: value.tolist() for name, value in made.score().items()} == {
        name: value.tolist() for name, value in plain.score().items()
    }


@pytest.mark.parametrize("graph", [False, True])
def test_copies_of_weights_follow_when_weights_are_loaded_in_between(graph, on_device):
    made, other = (solver(dtype=torch.bfloat16) for _ in range(2))
    if graph:
        with_graph(made)
    made.step(6)
    weights = {name: [array * 0.5 for array in arrays] for name, arrays in made.net.weights.items()}
    other.step(6)
    other._device_update = None  # its copies are made anew
    for each in (made, other):
        each.net.set_weights(weights)
        each.step(2)
    assert state(made) == state(other)


@pytest.mark.parametrize("graph", [False, True])
def test_copies_of_weights_follow_when_a_program_changes_weights_as_tensors(graph, on_device, capfd):
    made, other = (solver(dtype=torch.bfloat16, test_iter=[2], test_interval=3) for _ in range(2))
    if graph:
        with_graph(made)
    for each in (made, other):
        each.step(6)
        for blob in each.net.learnable:
            blob.data.detach().mul_(0.5)
    other._device_update = None  # its copies are made anew
    for blob in other.net.learnable:
        blob.low = None
    assert made.score() == other.score()
    said = []
    for one, training in ((made, False), (other, False), (made, True), (other, True)):
        capfd.readouterr()
        for blob in one.net.learnable:
            blob.data.detach().mul_(0.5)
            blob.low = blob.low if one is made else None
        other._device_update = None
        assert one.step(2) if training else one.test(Signals("none", "none"))
        said.append([line.split("] ")[1] for line in capfd.readouterr().err.splitlines() if "net output" in line])
    assert said[0] == said[1] != []
    assert state(made) == state(other)


def test_gradients_of_several_batches_are_added_in_float32(on_device):
    made = solver(dtype=torch.bfloat16, iter_size=2)
    made.step(1)
    for blob in made.net.learnable:
        assert blob.low is None and blob.data.grad is not None and blob.data.grad.dtype == torch.float32


def test_weights_that_are_used_twice_have_no_copies():
    shared = 'param { name: "w" } inner_product_param { num_output: 5 bias_term: false }'
    more = f'layer {{ name: "a" type: "InnerProduct" bottom: "f" top: "a" {shared} }}'
    more += f'layer {{ name: "b" type: "InnerProduct" bottom: "a" top: "b" {shared} }}'
    two = 'bottom: "data" bottom: "data" top: "c2" top: "c3" convolution_param { num_output: 2 kernel_size: 3 }'
    more += f'layer {{ name: "two" type: "Convolution" {two} }}'
    wide = 'param { name: "v" share_mode: PERMISSIVE }'
    more += """layer { name: "p" type: "InnerProduct" bottom: "f" top: "p2" param { name: "v" }
      inner_product_param { num_output: 5 bias_term: false } }
      layer { name: "q" type: "Reshape" bottom: "p2" top: "q" reshape_param { shape { dim: 4 dim: 5 dim: 1 dim: 1 } } }
      layer { name: "r" type: "Convolution" bottom: "q" top: "r" WIDE
      convolution_param { num_output: 5 kernel_size: 1 bias_term: false } }""".replace("WIDE", wide)
    made = solver(more, dtype=torch.bfloat16)
    names = {layer.name: layer.blobs[0] for layer in made.net.layers if layer.blobs}
    assert blobs_with_copies(made.net.layers, torch.bfloat16) == [names["conv1"], names["fc"]]
    assert blobs_with_copies(made.net.layers, torch.float32) == []


@pytest.mark.parametrize("graph", [False, True])
@pytest.mark.parametrize("how", ["set", "restored"])
def test_a_test_after_weights_were_loaded_scores_these_weights(how, graph, on_device):
    solver(max_iter=5, dtype=torch.bfloat16).solve(Signals())
    made = solver(dtype=torch.bfloat16, test_iter=[2], test_interval=3)
    if graph:
        with_graph(made)
    made.step(6)
    made.score()
    made.score()  # recorded by now
    if how == "set":
        made.net.copy_from("net_iter_5.caffemodel")
    else:
        made.restore("net_iter_5.solverstate", read_state("net_iter_5.solverstate"))
    fresh = solver(dtype=torch.bfloat16, test_iter=[2], test_interval=3)
    fresh.net.copy_from("net_iter_5.caffemodel")
    assert made.score() == fresh.score()


def test_a_test_pass_recorded_before_training_is_recorded_anew_with_the_copies_of_the_weights(on_device):
    made = solver(dtype=torch.bfloat16, test_iter=[6], test_interval=3)
    tapes = with_graph(made)
    made.score()
    made.step(1)
    made.score()
    assert [len(tape.seeds) for tape in tapes] == [3, 3]


@pytest.mark.parametrize(
    ("more", "converted"), [("", True), ('layer { name: "s" type: "Silence" bottom: "data" }', False)]
)
def test_images_are_made_in_bf16_where_only_convolutions_read_them_and_that_changes_no_bit(
    more, converted, monkeypatch
):
    made = solver(more, dtype=torch.bfloat16)
    images = made.net.layers[0]
    assert isinstance(images, Images) and (images.image_type == torch.bfloat16) is converted
    made.step(3)
    assert images.forward([], 0)[0].dtype == images.image_type
    monkeypatch.setattr(net_module.passes, "images_to_convert", lambda *_: [])
    plain = solver(more, dtype=torch.bfloat16)
    plain.step(3)
    assert plain.net.layers[0].forward([], 0)[0].dtype == torch.float32
    assert state(made) == state(plain)
    assert solver(more).net.layers[0].forward([], 0)[0].dtype == torch.float32


def test_images_that_count_in_the_loss_or_that_the_host_makes_are_not_converted():
    net = solver(dtype=torch.bfloat16).net
    images = net.layers[0]
    assert isinstance(images, Images)
    assert net_module.passes.images_to_convert(net.layers, {"data"}) == [images]
    assert net_module.passes.images_to_convert(net.layers, {"label"}) == []
    images.by_device = False
    assert net_module.passes.images_to_convert(net.layers, {"data"}) == []
    images.by_device = True
    images.param.loss_weight.append(1.0)
    assert net_module.passes.images_to_convert(net.layers, {"data"}) == []


def test_clipping_within_the_graph_is_clipping_without_one_and_is_logged_where_iterations_are_displayed(
    on_device, capfd
):
    settings = {"clip_gradients": 0.3, "display": 2}
    eager, made = solver(**settings), solver(**settings)
    with_graph(made)
    eager.solve(Signals())
    capfd.readouterr()
    made.solve(Signals())
    assert state(made) == state(eager) != state(unclipped())
    assert capfd.readouterr().err.count("Gradient clipping: scaling down gradients (L2 norm ") == 5  # 0, 2, 4, 6, 8


def unclipped():
    made = solver()
    made.solve(Signals())
    return made


def test_a_learned_blob_that_is_an_output_is_displayed_as_the_passes_used_it(monkeypatch):
    more = """layer { name: "own" type: "Parameter" top: "own" parameter_param { shape { dim: 4 dim: 5 } } }
      layer { name: "sum" type: "Eltwise" bottom: "f" bottom: "own" top: "sum" }
      layer { name: "loss2" type: "SoftmaxWithLoss" bottom: "sum" bottom: "label" top: "loss2" }
      layer { name: "show" type: "Split" bottom: "own" top: "show" }"""
    eager = solver(more)
    monkeypatch.setattr(DeviceUpdate, "devices", ("cuda", "cpu"))
    made = solver(more)
    with_graph(made)
    [own] = [layer.blobs[0] for layer in made.net.layers if layer.name == "own"]
    for _ in range(6):
        before = own.data.clone()
        shown = [each._forward_backward()["show"] for each in (eager, made)]
        assert torch.equal(shown[1], before) and torch.allclose(shown[0], shown[1])
        for each in (eager, made):
            each._update(False)
            each.iteration += 1
    assert made._pass.recorded and bool(own.data.any())


WITH_MEMORY = {
    "BatchNorm": """layer { name: "b" type: "BatchNorm" bottom: "f" top: "b" }
      layer { name: "loss2" type: "SoftmaxWithLoss" bottom: "b" bottom: "label" top: "loss2" }""",
    "LSTM": """layer { name: "cont" type: "DummyData" top: "cont" dummy_data_param { shape { dim: 4 dim: 1 }
      data_filler { type: "constant" value: 1 } } }
      layer { name: "r" type: "Reshape" bottom: "f" top: "r" reshape_param { shape { dim: 4 dim: 1 dim: 5 } } }
      layer { name: "lstm" type: "LSTM" bottom: "r" bottom: "cont" top: "h"
        recurrent_param { num_output: 5 weight_filler { type: "xavier" } } }
      layer { name: "s" type: "Reshape" bottom: "h" top: "s" reshape_param { shape { dim: 4 dim: 5 } } }
      layer { name: "loss2" type: "SoftmaxWithLoss" bottom: "s" bottom: "label" top: "loss2" }""",
}


@pytest.mark.parametrize("kind", WITH_MEMORY)
def test_what_layers_keep_from_batch_to_batch_is_the_same_with_a_graph(kind):
    eager, made = solver(WITH_MEMORY[kind]), solver(WITH_MEMORY[kind])

    def kept(one):
        return [state for layer in one.net.layers for state in getattr(layer, "hidden", [])]

    made._pass = Pass(made.net, lambda: Tape(made.net))
    eager.solve(Signals())
    made.solve(Signals())
    assert made._pass.recorded and state(made) == state(eager)
    assert all(torch.equal(one, other) for one, other in zip(kept(made), kept(eager), strict=True))
    assert len(kept(made)) == (2 if kind == "LSTM" else 0)


@pytest.fixture
def gpu(on_device, monkeypatch):
    """A device of which the engine thinks that it is a GPU; its tensors lie in the CPU's memory."""
    monkeypatch.setattr(Images, "_made_by_device", ("cuda", "cpu"))
    monkeypatch.setattr(resident, "device_memory", lambda _: (1 << 40, 1 << 40))
    monkeypatch.setattr(transform, "_fused_batches", lambda: None)
    monkeypatch.setattr(vision, "fused_pool", lambda: None)
    generator = torch.Generator
    monkeypatch.setattr(torch, "Generator", lambda device=None: generator())
    with OnCpu():
        yield torch.device("cuda", 0)


@pytest.mark.parametrize("iter_size", [1, 2])
def test_a_process_that_trains_on_a_gpu_records_passes_and_tests_and_writes_snapshots_beside(
    iter_size, gpu, monkeypatch
):
    settings = {"test_iter": [3], "test_interval": 3, "iter_size": iter_size}
    eager = solver(TESTED, **settings)
    eager.solve(Signals())
    tapes, measured = [], []
    monkeypatch.setattr(graph, "CudaGraph", lambda: tapes.append(Tape(made.net)) or tapes[-1])
    monkeypatch.setattr(ways, "choose", lambda net: measured.append(net) or {})
    made = Solver(param_of(TESTED, **settings), gpu, own_process=True)
    assert made._on_device and isinstance(made._beside, Beside) and measured == [made.net]
    made.solve(Signals())
    assert made._pass.recorded and len(tapes) == 1 + iter_size and all(tape.seeds for tape in tapes)
    assert state(made) == state(eager)
    assert made._pass._direct is None


def test_a_solver_used_as_a_library_on_a_gpu_and_a_traced_net_record_nothing(gpu, monkeypatch):
    def never():
        raise AssertionError("a graph")

    monkeypatch.setattr(graph, "CudaGraph", never)
    eager = solver(test_iter=[5], test_interval=3)
    eager.step(6)
    made = Solver(param_of(test_iter=[5], test_interval=3), gpu)
    made.step(6)
    assert state(made) == state(eager) and made.score() == eager.score()
    assert made._on_device and made._beside is None and made._pass._direct is None
    traced = Solver(param_of(test_iter=[5], test_interval=3, debug_info=True), gpu, own_process=True)
    assert not traced._on_device
    assert all(each._direct is not None for each in (traced._pass, *traced._test_passes))
    traced.step(6)
    traced.score()


def test_neither_an_iteration_nor_a_test_on_a_gpu_reads_a_value(gpu, monkeypatch):
    made = Solver(param_of(TESTED, test_iter=[3], test_interval=3, clip_gradients=0.3), gpu)
    made.step(2)
    run = solver_module.test_pass

    def watched(*given):
        with capturing():
            return run(*given)

    monkeypatch.setattr(solver_module, "test_pass", watched)
    for made.iteration in range(2, 6):
        with capturing():
            made._forward_backward()
            made._update(show=False)
    assert made.test(Signals("none", "none"))


def test_a_loss_that_is_nan_ends_training_on_a_gpu_where_it_is_displayed(gpu):
    made = Solver(param_of(display=4), gpu)
    made.step(1)
    made.net.learnable[0].data.detach().fill_(float("nan"))
    made.iteration = 1
    with pytest.raises(UserError, match="iteration 4: the loss is nan: training diverged"):
        made.solve(Signals())


def test_a_cuda_graph_is_captured_on_the_current_stream_into_the_memory_of_all_graphs(monkeypatch):
    seen, handles = [], itertools.count()

    class Graph:
        def register_generator_state(self, generator):
            seen.append(("generator", generator))

        def replay(self):
            seen.append("replayed")

    @contextlib.contextmanager
    def capture(made, **settings):
        assert isinstance(made, Graph)
        seen.append(settings)
        yield
        seen.append("captured")

    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", capture)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: next(handles))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: "the current stream")
    monkeypatch.setattr(graph, "_pool", functools.lru_cache(maxsize=1)(graph._pool.__wrapped__))
    generator, result = torch.Generator(), (torch.zeros(()), {})
    for _ in range(2):
        made = graph.CudaGraph()
        made.register([generator])
        assert made.record(lambda: result) is result
        made.replay()
    settings = {"pool": 0, "stream": "the current stream", "capture_error_mode": "thread_local"}
    assert seen == [("generator", generator), settings, "captured", "replayed"] * 2
