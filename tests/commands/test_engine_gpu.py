"""Compare the engine on a GPU with the engine on the CPU.

python -m pytest tests/commands/test_engine_gpu.py        # on a machine with a GPU

Without a GPU the tests themselves are checked, by the CPU and by a stand-in: a CPU that takes the GPU's path through
the engine, with a `Tape` instead of a CUDA graph and without Triton's kernels.
"""

from unittest import mock

import lmdb
import numpy as np
import pytest
import torch
from support.gpu import never_waiting
from support.tape import Tape

from transfer_caffe.engine.iteration.graph import Pass
from transfer_caffe.engine.layers.data import Images
from transfer_caffe.engine.layers.neuron import Dropout
from transfer_caffe.engine.precision import use_precision
from transfer_caffe.engine.solver.device_update import DeviceUpdate
from transfer_caffe.engine.solver.solver import Signals, Solver
from transfer_caffe.engine.solver.solverstate import read_state
from transfer_caffe.experiment.read import load_recipe
from transfer_caffe.formats.datum import raw_datum
from transfer_caffe.formats.proto.caffe_pb2 import DataParameter, SolverParameter
from transfer_caffe.sweep.measure import synthetic

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
DEVICES = ["cpu", "stand-in", pytest.param("cuda", marks=needs_gpu)]
CPU, STAND_IN = torch.device("cpu"), torch.device("cpu", 0)
RECIPES = {"mini": "demo", "caffenet": "paper"}

BOUNDS = {"mini": {"": 1e-3}, "caffenet": {"conv": 0.15, "fc": 1e-4}}
"""The largest relative difference of a layer's gradients, by the start of its name.

Two libraries for one CPU, which round differently, agree to 1e-6 in fc6 to fc8 of a CaffeNet, but differ by up to 6e-3
in its convolutions: rounding moves a few of its many units across the kink of a ReLU or to another maximum in a
pooling, and each of them carries a complete gradient. `mini` has few units, and none of them moved.

On one CPU, noise in each top of a fraction 1e-6 of its values, by which sums of thousands of products on a GPU may well
differ, moves the gradients of convolutions by up to 2.2e-2; noise of 2e-5 moves them by 8e-2. `make gpu-check` compares
each layer on its own, within its own rounding errors.
"""


@pytest.fixture(params=DEVICES)
def device(request):
    """Each device; on a GPU with a separate stream, as in the engine's commands."""
    if request.param != "cuda":
        yield {"cpu": CPU, "stand-in": STAND_IN}[request.param]
        return
    device = torch.device("cuda", 0)
    with torch.cuda.stream(torch.cuda.Stream(device)):
        yield device


@pytest.fixture(autouse=True)
def _database(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    draw = np.random.RandomState(0)
    for size in (32, 256):
        with lmdb.open(f"db{size}", map_size=1 << 26) as env, env.begin(write=True) as transaction:
            for index in range(24):
                image = draw.randint(0, 256, (size, size, 3)).astype(np.uint8)
                transaction.put(f"{index:08d}_x".encode(), raw_datum(image, index % 5))


def solver(net, device, frozen=0, precision="fp32", batch=8, **settings):
    """Build a solver for a recipe's architecture that reads the database."""
    param = SolverParameter(
        base_lr=0.001, lr_policy="fixed", momentum=0.9, weight_decay=0.0005, random_seed=1, display=1,
        test_iter=[1], test_interval=5,
        snapshot_prefix="net", **{"max_iter": 12, "snapshot_after_train": True, **settings},
    )  # fmt: skip
    network = next(iter(load_recipe(RECIPES[net]).networks()))
    param.net_param.CopyFrom(synthetic(network, frozen))
    data = param.net_param.layer[0]
    crop = data.dummy_data_param.shape[0].dim[2]
    data.ClearField("dummy_data_param")
    data.type = "Data"
    data.transform_param.crop_size, data.transform_param.mirror, data.transform_param.scale = crop, True, 0.01
    data.data_param.source = "db32" if net == "mini" else "db256"
    data.data_param.batch_size, data.data_param.backend = batch, DataParameter.LMDB
    dtype = use_precision(precision, True, device)
    if device != STAND_IN:
        # on a GPU as in `engine train`: with CUDA graphs
        return Solver(param, device, dtype=dtype, own_process=device.type == "cuda")
    both = ("cuda", "cpu")
    with mock.patch.object(Images, "_made_by_device", both), mock.patch.object(DeviceUpdate, "devices", both):
        made = Solver(param, device, dtype=dtype)
    made._pass = Pass(made.net, lambda: Tape(made.net), update=made._update_on_device)
    return made


def first_loss(made):
    """Return the loss of the first batch, and leave its gradients in the blobs, without an update."""
    made._pass._update = None
    return made._pass(0)[0]


def relative(one, two):
    one, two = one.detach().cpu(), two.detach().cpu()
    return float((one - two).abs().max() / two.abs().max().clamp(min=1e-20))


@pytest.mark.parametrize("net", ["mini", "caffenet"])
@pytest.mark.parametrize("frozen", [0, 5])
def test_losses_and_gradients_are_the_cpus_to_rounding(device, net, frozen, monkeypatch):
    """All layers except Dropout, which samples different numbers on a GPU. Without a GPU two CPU libraries compare."""
    made = [solver(net, each, frozen, batch=4) for each in (device, CPU)]
    losses = []
    for index, each in enumerate(made):
        for layer in each.net.layers:
            if isinstance(layer, Dropout):
                layer.ratio = 0.0
        for there, here in zip(each.net.learnable, made[1].net.learnable, strict=True):
            there.data.detach().copy_(here.data.detach())
        monkeypatch.setattr(torch.backends.mkldnn, "enabled", index == 1)  # the other CPU library, without a GPU
        losses.append(first_loss(each))
    assert relative(*losses) < 1e-3
    for here_layer, there_layer in zip(made[1].net.layers, made[0].net.layers, strict=True):
        for here, there in zip(here_layer.blobs, there_layer.blobs, strict=True):
            assert (there.data.grad is None) == (here.data.grad is None)
            if there.data.grad is not None and here.data.grad is not None:
                most = next(bound for name, bound in BOUNDS[net].items() if here_layer.name.startswith(name))
                assert relative(there.data.grad, here.data.grad) < most, here_layer.name


@pytest.mark.parametrize("frozen", [0, 5])
def test_a_graph_changes_nothing(device, frozen):
    results = []
    for graph in (True, False):
        made = solver("mini", device, frozen)
        if not graph:
            made._pass._make = None
        made.solve(Signals())
        assert made._pass.recorded == (graph and device != CPU)
        results.append([blob.data.detach().cpu().numpy().tobytes() for blob in made.net.learnable])
    assert results[0] == results[1]


def test_training_goes_on_from_a_snapshot_as_if_it_had_not_stopped(device):
    whole = solver("mini", device)
    whole.solve(Signals())
    solver("mini", device, max_iter=7).solve(Signals())
    second = solver("mini", device)
    second.restore("net_iter_7.solverstate", read_state("net_iter_7.solverstate"))
    second.solve(Signals())
    for one, two in zip(second.net.learnable, whole.net.learnable, strict=True):
        assert torch.equal(one.data, two.data)


def test_the_host_does_not_wait_within_an_iteration(device):
    made = solver("mini", device)
    for made.iteration in range(6):
        made._forward_backward()
        made._update(False)
    with never_waiting(device):
        for made.iteration in range(6, 12):
            made._forward_backward()
            made._update(False)


def loss_in(device, precision):
    """Return the loss of the first batch, and whether products used TF32 when it was computed."""
    made = solver("mini", device, precision=precision)  # sets the precision for the whole process
    return first_loss(made), torch.backends.cudnn.allow_tf32


@pytest.mark.parametrize("precision", ["bf16", pytest.param("tf32", marks=needs_gpu)])
def test_less_precision_is_near(device, precision):
    if precision == "tf32" and device.type == "cpu":
        pytest.skip("tf32 requires a GPU")
    (exact, exactly), (near, nearly) = loss_in(device, "fp32"), loss_in(device, precision)
    assert not exactly and nearly == (precision == "tf32")
    assert near.dtype == torch.float32
    assert 0 < relative(near, exact) < 0.02  # the same bits would mean that the precision was not used
