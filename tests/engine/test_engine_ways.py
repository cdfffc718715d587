"""Ways to compute convolutions: they agree, the clearly fastest is chosen, and a run keeps its ways."""

from pathlib import Path

import pytest
import torch
from support.streams import Cuda

from transfer_caffe.engine.iteration import graph, ways
from transfer_caffe.engine.layers.vision import WAYS, Convolution, block_diagonal
from transfer_caffe.engine.net import Net
from transfer_caffe.engine.solver.settings import read_solver
from transfer_caffe.engine.solver.solver import Signals, Solver
from transfer_caffe.engine.solver.solverstate import read_state
from transfer_caffe.formats.proto import parse_text, read_binary
from transfer_caffe.formats.proto.caffe_pb2 import TRAIN, NetParameter, NetState, SolverState
from transfer_caffe.utils.errors import UserError

pytestmark = pytest.mark.usefixtures("logged")
CPU = torch.device("cpu")
GROUPED = WAYS[:3]
NET = """
layer { name: "in" type: "Input" top: "x" input_param { shape { dim: 2 dim: 6 dim: 7 dim: 5 } } }
layer { name: "conv" type: "Convolution" bottom: "x" top: "y" convolution_param {
  num_output: 9 kernel_size: 3 pad: 1 stride: 2 group: 3 weight_filler { type: "xavier" }
  bias_filler { type: "gaussian" std: 1 } MORE } }
"""


def net(more=""):
    return Net(parse_text(NET.replace("MORE", more), NetParameter(), ""), NetState(phase=TRAIN), 1, CPU)


@pytest.mark.parametrize("more", ["", "bias_term: false", "dilation: 2"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_all_ways_compute_the_same_up_to_rounding(more, dtype):
    results = {}
    for way in GROUPED:
        layer = net(more).layers[1]
        assert isinstance(layer, Convolution) and layer.ways == GROUPED
        layer.way = way
        x = torch.randn(2, 6, 7, 5, generator=torch.Generator().manual_seed(1)).to(dtype).requires_grad_()
        (top,) = layer.forward([x], 0)
        top.backward(torch.randn(top.shape, generator=torch.Generator().manual_seed(2)).to(dtype))
        results[way] = [top.detach(), x.grad, *(blob.data.grad for blob in layer.blobs)]
    # sums of at most 27 products (or 24 positions of a weight), and in bf16 some roundings of the results
    unit = 2**-24 * 60 if dtype == torch.float32 else 2**-8 * 4
    for way in GROUPED[1:]:
        for one, other in zip(results[way], results["native"], strict=True):
            assert one.shape == other.shape and one.dtype == other.dtype
            assert torch.allclose(one.float(), other.float(), rtol=0, atol=unit * float(other.abs().max()))


def strided(channels, stride, kernel, pad=(0, 0), sides=(23, 18), more=""):
    """Return a Convolution of images with few channels and a stride."""
    settings = f"stride_h: {stride[0]} stride_w: {stride[1]} kernel_h: {kernel[0]} kernel_w: {kernel[1]} "
    settings += f"pad_h: {pad[0]} pad_w: {pad[1]} {more}"
    text = f"""
    layer {{ name: "in" type: "Input" top: "x"
      input_param {{ shape {{ dim: 2 dim: {channels} dim: {sides[0]} dim: {sides[1]} }} }} }}
    layer {{ name: "conv" type: "Convolution" bottom: "x" top: "y" convolution_param {{ num_output: 5 {settings}
      weight_filler {{ type: "xavier" }} bias_filler {{ type: "gaussian" std: 1 }} }} }}
    """
    made = Net(parse_text(text, NetParameter(), ""), NetState(phase=TRAIN), 1, CPU)
    assert isinstance(made.layers[1], Convolution)
    return made


@pytest.mark.parametrize(
    ("channels", "stride", "kernel", "pad", "sides"),
    [
        (3, (4, 4), (11, 11), (0, 0), (227 // 4, 227 // 4)),  # conv1 of a CaffeNet, on a smaller image
        (3, (4, 4), (11, 11), (2, 2), (31, 30)),
        (3, (2, 2), (7, 7), (3, 3), (23, 18)),
        (1, (2, 3), (5, 4), (1, 0), (23, 18)),  # every axis different
        (4, (3, 2), (3, 2), (0, 1), (20, 17)),  # the kernel is one block; rows that no window reaches
        (3, (4, 4), (2, 3), (0, 0), (23, 18)),  # a kernel smaller than the stride
        (3, (4, 4), (11, 11), (0, 0), (11, 14)),  # one window
        (3, (1, 2), (3, 3), (1, 1), (9, 9)),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("more", ["", "bias_term: false"])
def test_a_stride_over_pixels_is_the_same_as_none_over_blocks(channels, stride, kernel, pad, sides, dtype, more):
    results = []
    for way in ("native", "blocks"):
        layer = strided(channels, stride, kernel, pad, sides, more).layers[1]
        assert isinstance(layer, Convolution) and layer.ways == ("native", "blocks")
        layer.way, layer.method = way, None  # without a CPU's own ways
        x = torch.randn(2, channels, *sides, generator=torch.Generator().manual_seed(1)).to(dtype).requires_grad_()
        (top,) = layer.forward([x], 0)
        top.backward(torch.randn(top.shape, generator=torch.Generator().manual_seed(2)).to(dtype))
        results.append([top.detach(), x.grad, *(blob.data.grad for blob in layer.blobs)])
    # sums of at most 363 products, or 2 * 216 positions of a weight, relative to the largest; weights' gradients are
    # float32, and in bf16 some roundings of the results
    unit = {torch.float64: 2**-23, torch.float32: 2**-24 * 60, torch.bfloat16: 2**-8 * 4}[dtype]
    for one, other in zip(*results, strict=True):
        assert one.shape == other.shape and one.dtype == other.dtype
        assert torch.allclose(one.double(), other.double(), rtol=0, atol=unit * float(other.abs().max()))
    if dtype == torch.float64:
        assert torch.allclose(results[0][0], results[1][0], rtol=0, atol=1e-12)
        assert torch.allclose(results[0][1], results[1][1], rtol=0, atol=1e-12)


def test_only_strides_over_few_channels_without_dilation_are_tried_over_blocks():
    for made in (
        strided(3, (1, 1), (3, 3)), strided(8, (2, 2), (3, 3)), strided(3, (2, 2), (3, 3), more="dilation: 2"),
    ):  # fmt: skip
        assert isinstance(made.layers[1], Convolution) and made.layers[1].ways == ("native",)


@pytest.mark.parametrize(
    ("kind", "dims"),
    [("Deconvolution", "dim: 7 dim: 5"), ("Convolution", "dim: 7 dim: 5 dim: 6"), ("Convolution", "dim: 7")],
)
def test_groups_of_a_deconvolution_and_of_other_than_two_axes_are_computed_natively(kind, dims):
    text = NET.replace('"Convolution"', f'"{kind}"').replace("dim: 7 dim: 5", dims).replace("MORE", "")
    made = Net(parse_text(text, NetParameter(), ""), NetState(phase=TRAIN), 1, CPU)
    assert isinstance(made.layers[1], Convolution) and made.layers[1].ways == ("native",)


def test_a_stride_over_blocks_is_chosen_where_it_is_faster(monkeypatch, capfd):
    monkeypatch.setattr(ways.Devices, "types", ("cpu",))
    monkeypatch.setattr(ways, "milliseconds", lambda layer, way, *_: {"native": 0.9, "blocks": 0.4}[way])
    made = strided(3, (4, 4), (11, 11))
    assert ways.choose(made) == {"conv": "blocks"}
    assert "conv: stride 4 is computed by blocks (native 0.9 ms, blocks 0.4 ms)" in capfd.readouterr().err
    ways.use([made], {"conv": "blocks"})
    assert isinstance(made.layers[1], Convolution) and made.layers[1].way == "blocks"
    ways.use([made], {"conv": "halves"})  # the net has changed since
    assert made.layers[1].way == "native"


def test_the_gradient_of_the_bottom_is_measured_only_where_training_computes_it(monkeypatch):
    monkeypatch.setattr(ways.Devices, "types", ("cpu",))
    measured = {}

    def milliseconds(layer, way, shape, dtype, below):
        assert shape == ((2, 6, 7, 5) if layer.name == "conv" else (2, 9, 4, 3)) and dtype == torch.bfloat16
        measured[layer.name] = below
        return 1.0

    monkeypatch.setattr(ways, "milliseconds", milliseconds)
    second = """layer { name: "relu" type: "ReLU" bottom: "y" top: "y" }
    layer { name: "conv2" type: "Convolution" bottom: "y" top: "z" convolution_param {
      num_output: 9 kernel_size: 3 group: 3 } }"""
    for rate, expected in (("1", True), ("0", False)):
        text = NET.replace(
            "convolution_param", f"param {{ lr_mult: {rate} }} param {{ lr_mult: {rate} }} convolution_param"
        )
        param = parse_text(text.replace("MORE", "") + second, NetParameter(), "")
        ways.choose(Net(param, NetState(phase=TRAIN), 1, CPU, dtype=torch.bfloat16))
        assert measured == {"conv": False, "conv2": expected}


@pytest.mark.parametrize("below", [False, True])
@pytest.mark.parametrize("frozen", [False, True])
def test_what_is_measured_runs_for_learning_and_for_frozen_layers_and_leaves_no_gradients(frozen, below, monkeypatch):
    text = NET.replace("convolution_param", "param { lr_mult: 0 } convolution_param" if frozen else "convolution_param")
    made = Net(parse_text(text.replace("MORE", ""), NetParameter(), ""), NetState(phase=TRAIN), 1, CPU)
    layer, backward = made.layers[1], []
    assert isinstance(layer, Convolution)
    grad = torch.autograd.grad
    monkeypatch.setattr(torch.autograd, "grad", lambda *given: backward.append(grad(*given)))
    for way in layer.ways:
        layer.way = way
        ways.passes(layer, torch.randn(2, 6, 7, 5), below)
    assert [len(each) for each in backward] == [below + (not frozen)] * (3 if below or not frozen else 0)
    assert all(blob.data.grad is None for blob in layer.blobs)


def test_a_way_is_timed_by_the_devices_clock_without_its_first_runs_and_is_not_kept(monkeypatch):
    cuda, seen = Cuda(monkeypatch), []
    durations = iter([90.0, 80.0, 70.0, 5.0, 1.0, 4.0, 2.0, 3.0])
    layer = net().layers[1]
    assert isinstance(layer, Convolution)

    def passes(layer, images, below):
        assert tuple(images.shape) == (2, 6, 7, 5) and images.is_contiguous(memory_format=torch.channels_last)
        seen.append((layer.way, images.dtype, below))
        cuda.clock += next(durations)

    monkeypatch.setattr(ways, "passes", passes)
    assert ways.milliseconds(layer, "dense", [2, 6, 7, 5], torch.bfloat16, False) == 3.0
    assert seen == [("dense", torch.bfloat16, False)] * 8 and layer.way == "native"


def test_weights_of_other_groups_are_zero():
    weight = torch.ones(4, 1, 2, 2)
    made = block_diagonal(weight, 2)
    assert made.shape == (4, 2, 2, 2)
    assert made[:2, 0].eq(1).all() and made[:2, 1].eq(0).all() and made[2:, 1].eq(1).all() and made[2:, 0].eq(0).all()


@pytest.mark.parametrize(
    ("times", "chosen"),
    [
        ((1.0, 0.9, 0.8), {}),  # not clearly faster
        ((1.0, 0.5, 0.7), {"conv": "halves"}),
        ((30.0, 2.0, 1.5), {"conv": "dense"}),
        ((1.0, 2.0, 3.0), {}),
    ],
)
def test_a_way_that_is_clearly_faster_is_chosen_and_logged(times, chosen, monkeypatch, capfd):
    monkeypatch.setattr(ways.Devices, "types", ("cpu",))
    monkeypatch.setattr(ways, "milliseconds", lambda layer, way, *_: dict(zip(GROUPED, times, strict=True))[way])
    assert ways.choose(net()) == chosen
    line = f"conv: 3 groups are computed by {chosen.get('conv', 'native')} (native {times[0]:.3g} ms, halves"
    assert line in capfd.readouterr().err


def test_nothing_is_measured_on_a_cpu_or_where_there_is_one_way(monkeypatch):
    def never(*_):
        raise AssertionError

    monkeypatch.setattr(ways, "milliseconds", never)
    assert ways.choose(net()) == {}
    monkeypatch.setattr(ways.Devices, "types", ("cpu",))
    text = NET.replace("group: 3", "").replace("stride: 2", "").replace("MORE", "")
    assert ways.choose(Net(parse_text(text, NetParameter(), ""), NetState(phase=TRAIN), 1, CPU)) == {}


@pytest.fixture
def choosing(tiny, monkeypatch):
    """A function that sets which way a measurement finds the fastest; conv2 of the current folder's net has groups."""
    assert "group: 2" in (tiny / "net.prototxt").read_text()
    monkeypatch.setattr(ways.Devices, "types", ("cpu",))

    def finds(fastest):
        monkeypatch.setattr(ways, "milliseconds", lambda layer, way, *_: 1.0 if way == fastest else 9.0)

    return finds


def solver(max_iter):
    param = read_solver("solver.prototxt")
    param.max_iter = max_iter
    made = Solver(param, CPU)
    made._ways = ways.choose(made.net)  # as in a process of its own
    ways.use([made.net, *made.test_nets], made._ways)
    made._pass._direct = None  # as on a GPU
    return made


@pytest.mark.parametrize("kind", ["BINARYPROTO", "HDF5"])
def test_a_resumed_run_keeps_its_ways_whatever_a_new_measurement_finds(choosing, kind):
    ending = ".h5" if kind == "HDF5" else ""
    choosing("halves")
    Path("solver.prototxt").write_text(Path("solver.prototxt").read_text() + f"\nsnapshot_format: {kind}\n")
    whole = solver(12)
    whole.solve(Signals("none", "none"))
    solver(7).solve(Signals("none", "none"))
    path = f"snap/tiny_iter_7.solverstate{ending}"
    assert read_state(path).convolutions == "conv2=halves"
    choosing("dense")
    second = solver(12)
    assert second._ways == {"conv2": "dense"}
    second.restore(path, read_state(path))
    assert second._ways == {"conv2": "halves"}
    layers = [layer for each in (second.net, *second.test_nets) for layer in each.layers if layer.name == "conv2"]
    assert len(layers) == 2 and all(layer.way == "halves" for layer in layers if isinstance(layer, Convolution))
    second.solve(Signals("none", "none"))
    for one, two in zip(second.net.learnable, whole.net.learnable, strict=True):
        assert torch.equal(one.data, two.data)


def test_a_process_that_trains_uses_the_chosen_ways_in_all_nets(tiny, monkeypatch):
    monkeypatch.setattr(ways, "choose", lambda _: {"conv2": "halves"})
    monkeypatch.setattr(graph, "direct_of", lambda *_: None)
    made = Solver(read_solver("solver.prototxt"), CPU, own_process=True)
    used = {layer.name: layer.way for net in made.test_nets for layer in net.layers if isinstance(layer, Convolution)}
    assert used == {"conv1": "native", "conv2": "halves"} and made._ways == {"conv2": "halves"}
    used = {layer.name: layer.way for layer in made.net.layers if isinstance(layer, Convolution)}
    assert used["conv2"] == "halves"


def test_a_state_without_ways_means_native_ones(choosing):
    choosing("native")
    made = solver(3)
    made.solve(Signals("none", "none"))
    state = read_binary("snap/tiny_iter_3.solverstate", SolverState())
    assert not state.HasField("convolutions")
    choosing("dense")
    second = solver(3)
    second.restore("snap/tiny_iter_3.solverstate", read_state("snap/tiny_iter_3.solverstate"))
    assert second._ways == {}
    ways_of = [
        layer.way for net in (second.net, *second.test_nets) for layer in net.layers if isinstance(layer, Convolution)
    ]
    assert set(ways_of) == {"native"}


def test_an_unknown_way_in_a_state_is_an_error_in_one_line():
    assert ways.of_text("conv2=halves ab=dense", "x") == {"conv2": "halves", "ab": "dense"}
    assert ways.to_text({"conv2": "halves", "conv4": "dense"}) == "conv2=halves conv4=dense"
    with pytest.raises(UserError, match=r"^net\.solverstate: 'winograd' is not a way to compute a convolution"):
        ways.of_text("conv2=winograd", "net.solverstate")


@pytest.mark.parametrize("name", ["conv1/7x7_s2", "a b", "a=b c", "100%", "%20", "ä", " "])
def test_a_state_records_ways_for_any_name_of_a_layer(name):
    chosen = {"conv2": "dense", name: "halves", "conv4": "blocks"}
    assert ways.of_text(ways.to_text(chosen), "x") == chosen
    assert ways.of_text("a=b=dense", "x") == {"a=b": "dense"}  # as earlier versions have written it


def test_a_solver_used_as_a_library_measures_nothing(tiny, monkeypatch):
    monkeypatch.setattr(ways, "choose", None)  # calling it would fail
    assert Solver(read_solver("solver.prototxt"), CPU)._ways == {}
