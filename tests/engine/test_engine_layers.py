"""What single layers compute; reference values come from Caffe or from its formulas."""

import numpy as np
import pytest
import torch
from support.streams import OnCuda
from support.tape import capturing

from transfer_caffe.engine import rng
from transfer_caffe.engine.layers import LAYERS, Context, common
from transfer_caffe.engine.layers.fillers import fill
from transfer_caffe.engine.layers.vision import Convolution
from transfer_caffe.engine.net import Net
from transfer_caffe.engine.solver.rates import next_step, rate
from transfer_caffe.formats.nets import included, state_of
from transfer_caffe.formats.proto import caffe_pb2, parse_text
from transfer_caffe.formats.proto.caffe_pb2 import (
    FillerParameter,
    LayerParameter,
    NetParameter,
    NetState,
    SolverParameter,
)
from transfer_caffe.utils.errors import UserError

UNIT = 2.0**-24
"""The largest relative rounding error of a float32."""


def run(text, *bottoms, training=True, batch=0):
    """Run one layer and return the layer and its tops; bottoms that require gradients get them."""
    bottoms = [torch.as_tensor(bottom, dtype=torch.float32) for bottom in bottoms]
    names = "".join(f' bottom: "b{index}"' for index in range(len(bottoms)))
    tops = "" if " top:" in text else ' top: "t"'
    param = parse_text(f'name: "l"{names}{tops} {text}', LayerParameter(), "test")
    layer = LAYERS[param.type](param, Context(seed=1, device=torch.device("cpu"), training=training))
    shapes = [tuple(bottom.shape) for bottom in bottoms]
    layer.setup(shapes)
    foreseen, tops = layer.top_shapes(shapes), layer.forward(bottoms, batch)
    assert [tuple(top.shape) for top in tops] == [tuple(shape) for shape in foreseen]
    return layer, tops


def ramp(*shape):
    return torch.arange(float(np.prod(shape))).reshape(shape)


def test_convolution_with_groups_stride_and_pad_is_the_sum_it_says():
    x = torch.randn(2, 4, 5, 6)
    layer, (y,) = run(
        'type: "Convolution" convolution_param { num_output: 6 kernel_h: 3 kernel_w: 2 stride: 2 pad: 1 group: 2 '
        'weight_filler { type: "gaussian" std: 1 } bias_filler { type: "gaussian" std: 1 } }',
        x,
    )
    weight, bias = (blob.data.detach().numpy() for blob in layer.blobs)
    assert weight.shape == (6, 2, 3, 2) and y.shape == (2, 6, 3, 4)
    padded = np.pad(x.numpy(), ((0, 0), (0, 0), (1, 1), (1, 1)))
    for out, row, column in np.ndindex(6, 3, 4):
        channels = slice(0, 2) if out < 3 else slice(2, 4)
        window = padded[:, channels, 2 * row : 2 * row + 3, 2 * column : 2 * column + 2]
        expected = (window * weight[out]).sum((1, 2, 3)) + bias[out]
        # sums of 13 terms of order 1, each of which is rounded at every addition
        np.testing.assert_allclose(y[:, out, row, column].detach(), expected, atol=13 * 13 * UNIT)


@pytest.mark.parametrize(
    ("size", "setting", "expected"),
    [
        (6, "kernel_size: 3 stride: 2", 3),  # rounds up: floor would give 2
        (7, "kernel_size: 3 stride: 2", 3),
        (6, "kernel_size: 3 stride: 2 round_mode: FLOOR", 2),
        (6, "kernel_size: 2 stride: 2 pad: 1", 4),
        (5, "kernel_size: 2 stride: 2 pad: 1", 3),  # a fourth window would start in the padding
        (6, "global_pooling: true", 1),
    ],
)
def test_pooling_sizes_are_caffes(size, setting, expected):
    _, (y,) = run(f'type: "Pooling" pooling_param {{ pool: MAX {setting} }}', ramp(1, 1, size, size))
    assert y.shape == (1, 1, expected, expected)


def test_average_pooling_divides_by_the_window_clipped_to_the_padded_image():
    _, (y,) = run('type: "Pooling" pooling_param { pool: AVE kernel_size: 3 stride: 2 pad: 1 }', ramp(1, 1, 4, 4))
    # printed by Caffe 1.0: the last windows are 2 wide in the padded 6x6 image
    expected = [[1.1111112, 2.6666667, 1.6666666], [5.6666665, 10.0, 5.5], [4.1666665, 7.0, 3.75]]
    np.testing.assert_allclose(y[0, 0], expected, rtol=1e-6)


LARGEST = float(np.finfo(np.float32).max)


@pytest.mark.parametrize("setting", ["kernel_size: 2 stride: 2", "kernel_size: 3 stride: 3 pad: 2"])
def test_max_pooling_ignores_nan_and_gives_the_least_number_where_there_is_no_other(setting):
    x = torch.full((1, 2, 4, 4), torch.nan)
    x[0, 0, 1, 1], x[0, 0, 3, 2] = -7, 3
    x[0, 1] = -torch.inf
    x.requires_grad_()
    _, (top,) = run(f'type: "Pooling" pooling_param {{ {setting} }}', x)
    wanted = torch.full((2, 2, 2), -LARGEST)
    wanted[0, 1, 1] = 3
    if "pad" not in setting:  # with it, 3 is in the window of -7
        wanted[0, 0, 0] = -7
    assert top[0].tolist() == wanted.tolist()
    (gradient,) = torch.autograd.grad(top.sum(), x)
    places = gradient.nonzero().tolist()
    assert places == ([[0, 0, 3, 2]] if "pad" in setting else [[0, 0, 1, 1], [0, 0, 3, 2]])


def test_lrn_forward_and_backward_follow_the_formula():
    x = torch.randn(2, 7, 3, 3, dtype=torch.float32).mul_(3).requires_grad_()
    y = LAYERS["LRN"](
        parse_text('name: "n" type: "LRN" bottom: "x" top: "y" lrn_param { local_size: 5 alpha: 0.5 beta: 0.75 k: 2 }',
                   LayerParameter(), ""),
        Context(0, torch.device("cpu"), True),
    ).forward([x], 0)[0]  # fmt: skip
    z = x.detach().double().requires_grad_()
    sums = [(z[:, max(0, i - 2) : i + 3] ** 2).sum(1) for i in range(7)]
    expected = z / (2 + 0.5 / 5 * torch.stack(sums, 1)) ** 0.75
    # 5 squares, their sum, its product and sum, two roots and two products
    np.testing.assert_allclose(y.detach(), expected.detach(), rtol=16 * UNIT)
    toward = torch.randn_like(y)
    y.backward(toward)
    expected.backward(toward.double())
    assert x.grad is not None and z.grad is not None
    # twice as many again for a difference of two terms, neither of which is larger than the gradient from above
    np.testing.assert_allclose(x.grad, z.grad, atol=32 * UNIT * float(toward.abs().max()))


def test_dropout_scales_what_it_keeps_and_repeats_itself_for_the_same_batch_only():
    text = 'type: "Dropout" dropout_param { dropout_ratio: 0.25 }'
    _, (y,) = run(text, torch.ones(400, 50))
    assert sorted(set(y.flatten().tolist())) == [0, pytest.approx(4 / 3)]
    assert (y == 0).float().mean().item() == pytest.approx(0.25, abs=0.02)
    assert torch.equal(y, run(text, torch.ones(400, 50))[1][0])
    assert not torch.equal(y, run(text, torch.ones(400, 50), batch=1)[1][0])
    assert torch.equal(run(text, torch.ones(4, 5), training=False)[1][0], torch.ones(4, 5))


def test_a_tie_counts_against_the_label():
    scores = [[1.0, 1, 0], [0, 2, 1], [3, 3, 3]]
    assert run('type: "Accuracy"', scores, [0, 1, 2])[1][0].item() == pytest.approx(1 / 3)
    assert run('type: "Accuracy" accuracy_param { top_k: 2 }', scores, [0, 1, 2])[1][0].item() == pytest.approx(2 / 3)
    ignoring = 'type: "Accuracy" accuracy_param { ignore_label: 2 }'
    assert run(ignoring, scores, [0, 1, 2])[1][0].item() == pytest.approx(1 / 2)


@pytest.mark.parametrize(
    ("setting", "divisor"),
    [("", 3), ("normalization: FULL", 4), ("normalization: BATCH_SIZE", 2), ("normalization: NONE", 1),
     ("normalize: false", 2)],
)  # fmt: skip
def test_softmax_loss_is_normalised_as_asked(setting, divisor):
    scores = torch.randn(2, 5, 2)
    labels = torch.tensor([[0, 3], [4, 255]])
    text = f'type: "SoftmaxWithLoss" loss_param {{ ignore_label: 255 {setting} }}'
    logs = torch.log_softmax(scores, 1)
    total = -(logs[0, 0, 0] + logs[0, 3, 1] + logs[1, 4, 0])
    assert run(text, scores, labels)[1][0].item() == pytest.approx(total.item() / divisor, rel=1e-5)


def test_a_second_top_of_the_softmax_loss_is_the_softmax():
    scores = torch.randn(3, 4)
    _, tops = run('type: "SoftmaxWithLoss" top: "loss" top: "prob"', scores, [0, 1, 2])
    np.testing.assert_allclose(tops[1], torch.softmax(scores, 1), rtol=1e-6)


def filler(text, shape):
    return fill(shape, parse_text(text, FillerParameter(), ""), rng.torch_generator(5, text), "here")


def test_fillers_have_caffes_ranges_and_moments():
    shape = (64, 32, 5, 5)  # fan in 800, fan out 1600
    assert filler("value: 3", (2, 2)).tolist() == [[3, 3], [3, 3]]
    uniform = filler('type: "uniform" min: -1 max: 3', shape)
    assert uniform.min() >= -1 and uniform.max() <= 3 and uniform.mean().item() == pytest.approx(1, abs=0.02)
    gaussian = filler('type: "gaussian" mean: 1 std: 2', shape)
    assert gaussian.mean().item() == pytest.approx(1, abs=0.03) and gaussian.std().item() == pytest.approx(2, rel=0.02)
    sparse = filler('type: "gaussian" std: 2 sparse: 16', shape)
    assert (sparse != 0).float().mean().item() == pytest.approx(16 / 64, abs=0.01)
    ball = filler('type: "positive_unitball"', shape)
    assert ball.min() >= 0 and torch.allclose(ball.flatten(1).sum(1), torch.ones(64))
    for norm, fan in (("FAN_IN", 800), ("FAN_OUT", 1600), ("AVERAGE", 1200)):
        xavier = filler(f'type: "xavier" variance_norm: {norm}', shape)
        assert xavier.abs().max().item() == pytest.approx((3 / fan) ** 0.5, rel=1e-3)
        assert filler(f'type: "msra" variance_norm: {norm}', shape).std().item() == pytest.approx(
            (2 / fan) ** 0.5, rel=0.02
        )


def test_the_bilinear_filler_gives_caffes_values():
    # printed by Caffe 1.0
    np.testing.assert_allclose(filler('type: "bilinear"', (1, 1, 3, 3))[0, 0, 0], [0.25, 0.5, 0.25])
    np.testing.assert_allclose(filler('type: "bilinear"', (2, 1, 4, 4))[1, 0, 0], [0.0625, 0.1875, 0.1875, 0.0625])


@pytest.mark.parametrize(
    ("text", "iteration", "expected"),
    [
        ('lr_policy: "fixed"', 99, 0.5),
        ('lr_policy: "step" gamma: 0.1 stepsize: 10', 19, 0.05),
        ('lr_policy: "step" gamma: 0.1 stepsize: 10', 20, 0.005),
        ('lr_policy: "exp" gamma: 0.9', 2, 0.405),
        ('lr_policy: "inv" gamma: 0.1 power: 2', 10, 0.125),
        ('lr_policy: "multistep" gamma: 0.1 stepvalue: 5 stepvalue: 8', 4, 0.5),
        ('lr_policy: "multistep" gamma: 0.1 stepvalue: 5 stepvalue: 8', 8, 0.005),
        ('lr_policy: "poly" power: 2 max_iter: 100', 50, 0.125),
        ('lr_policy: "sigmoid" gamma: -0.1 stepsize: 10', 10, 0.25),
        ('lr_policy: "sigmoid" gamma: 1 stepsize: 1000', 0, 0),  # e^1000 overflows
    ],
)
def test_learning_rate_policies(text, iteration, expected):
    param = parse_text(f"base_lr: 0.5 {text}", SolverParameter(), "")
    step = 0
    for passed in range(iteration + 1):
        step = next_step(param, passed, step)
    assert rate(param, iteration, step) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    ("rules", "expected"),
    [
        ("", True),
        ("include { phase: TRAIN }", True),
        ("include { phase: TEST }", False),
        ('include { phase: TEST } include { stage: "a" }', True),
        ("exclude { phase: TRAIN }", False),
        ("include { min_level: 3 }", False),
        ("include { max_level: 1 }", False),
        ('include { not_stage: "a" }', False),
        ('include { stage: "a" stage: "b" }', False),
    ],
)
def test_include_and_exclude_rules_decide_which_layers_a_net_has(rules, expected):
    state = NetState(phase=caffe_pb2.TRAIN, level=2, stage=["a"])
    assert included(parse_text(rules, LayerParameter(), ""), state) is expected


def test_include_and_exclude_together_are_an_error():
    with pytest.raises(UserError, match="both include and exclude"):
        included(parse_text("include { phase: TEST } exclude { phase: TEST }", LayerParameter(), ""), NetState())


@pytest.mark.parametrize("kind", sorted(LAYERS))
def test_bottoms_that_a_layer_cannot_work_on_are_refused_by_name(kind):
    bottoms = "".join(f' bottom: "b{index}"' for index in range(LAYERS[kind].bottoms[0]))
    if not bottoms:
        return
    text = "".join(
        f'layer {{ name: "i{index}" type: "Input" top: "b{index}" input_param {{ shape {{ }} }} }}'
        for index in range(3)
    )
    tops = "".join(f' top: "t{index}"' for index in range(max(LAYERS[kind].tops[0], 0)))
    text += f'layer {{ name: "l" type: "{kind}"{bottoms}{tops} }}'
    try:
        net = Net(parse_text(text, NetParameter(), "test"), NetState(), 0, torch.device("cpu"))
        net.forward(0)
    except UserError as error:
        assert "layer 'l' (" in str(error) and "\n" not in str(error)


def net_of(text):
    """Build a net in the TEST phase from layers without data."""
    param = parse_text(text, NetParameter(), "test")
    return Net(param, state_of(param, caffe_pb2.TEST), 0, torch.device("cpu"))


def test_a_loss_is_cut_at_caffes_value_however_large_it_is():
    # printed by Caffe 1.0: 87.3365, that is -log(FLT_MIN)
    for score in (1e3, 2.1e7, 1e30):
        assert run('type: "SoftmaxWithLoss"', [[0.0, score]], [0])[1][0].item() == pytest.approx(87.3365, abs=1e-4)


def test_a_layer_starts_from_the_blobs_in_its_prototxt():
    text = """layer { name: "in" type: "Input" top: "x" input_param { shape { dim: 2 dim: 3 } } }
    layer { name: "ip" type: "InnerProduct" bottom: "x" top: "y"
      blobs { shape { dim: 2 dim: 3 } data: [1, 2, 3, 4, 5, 6] } blobs { shape { dim: 2 } data: [7, 8] }
      inner_product_param { num_output: 2 weight_filler { type: "xavier" } } }"""
    blobs = [blob.data.tolist() for blob in net_of(text).layers[1].blobs]
    assert blobs == [[[1, 2, 3], [4, 5, 6]], [7, 8]]
    with pytest.raises(UserError, match="its prototxt has 1 blobs, but the layer has 2"):
        net_of(text.replace("blobs { shape { dim: 2 } data: [7, 8] }", ""))


def test_the_stages_that_a_net_names_itself_count():
    text = """state { stage: "x" } layer { name: "in" type: "Input" top: "a" input_param { shape { dim: 2 } } }
    layer { name: "p" type: "Power" bottom: "a" top: "b" include { stage: "x" } }"""
    assert [layer.name for layer in net_of(text).layers] == ["in", "p"]
    assert [layer.name for layer in net_of(text.replace('state { stage: "x" }', "")).layers] == ["in"]


def test_layers_after_a_filter_take_what_it_left():
    net = net_of("""layer { name: "in" type: "Input" top: "x" top: "s" top: "l"
      input_param { shape { dim: 4 dim: 6 } shape { dim: 4 } shape { dim: 4 } } }
    layer { name: "f" type: "Filter" bottom: "x" bottom: "l" bottom: "s" top: "fx" top: "fl" }
    layer { name: "r" type: "Reshape" bottom: "fx" top: "r" reshape_param { shape { dim: 0 dim: 2 dim: 3 } } }
    layer { name: "loss" type: "SoftmaxWithLoss" bottom: "fx" bottom: "fl" top: "loss"
      loss_param { normalization: BATCH_SIZE } }""")
    net.feed({"s": np.array([1, 0, 0, 1])})
    _, outputs = net.forward(0)
    assert outputs["r"].shape == (2, 2, 3)
    assert outputs["loss"].item() == pytest.approx(np.log(6))  # over two images, not four


RELU_BEFORE_POOLING = """
layer { name: "data" type: "DummyData" top: "data" top: "label" dummy_data_param { shape { dim: 4 dim: 3 dim: 9 dim: 9 }
        shape { dim: 4 } data_filler { type: "gaussian" std: 1 } data_filler { type: "constant" value: 2 } } }
layer { name: "conv" type: "Convolution" bottom: "data" top: "c"
        convolution_param { num_output: 6 kernel_size: 3 weight_filler { type: "xavier" } } }
layer { name: "relu" type: "ReLU" bottom: "c" top: "c" RELU }
layer { name: "pool" type: "Pooling" bottom: "c" top: "p" POOL }
layer { name: "fc" type: "InnerProduct" bottom: "p" top: "f"
        inner_product_param { num_output: 5 weight_filler { type: "xavier" } } }
layer { name: "loss" type: "SoftmaxWithLoss" bottom: "f" bottom: "label" top: "loss" }
MORE
"""
MAXIMUM = "pooling_param { pool: MAX kernel_size: 3 stride: 2 pad: 1 }"


@pytest.mark.parametrize(
    ("relu", "pool", "more", "postponed"),
    [
        ("", MAXIMUM, "", True),
        ("", MAXIMUM, 'layer { name: "x" type: "Reduction" bottom: "p" top: "x" loss_weight: 0.1 }', True),
        ("loss_weight: 0.3", MAXIMUM, "", False),
        ("relu_param { negative_slope: 0.1 }", MAXIMUM, "", False),
        ("", MAXIMUM.replace("MAX", "AVE"), "", False),
        ("", MAXIMUM, 'layer { name: "x" type: "Reduction" bottom: "c" top: "x" loss_weight: 0.1 }', False),
        ("propagate_down: false", MAXIMUM, "", False),
    ],
)
def test_a_relu_that_is_postponed_changes_no_loss_and_no_gradient(relu, pool, more, postponed):
    text = RELU_BEFORE_POOLING.replace("RELU", relu).replace("POOL", pool).replace("MORE", more)
    net = Net(parse_text(text, NetParameter(), ""), NetState(phase=caffe_pb2.TRAIN), 1, torch.device("cpu"))
    assert bool(net.relu_after) is postponed
    found = []
    for keep in (True, False):  # with keep, no ReLU is postponed
        for blob in net.learnable:
            blob.data.grad = None
        loss = net.forward(0, keep)[0]
        loss.backward()
        found.append([loss.detach(), *(blob.data.grad for blob in net.learnable)])
    for one, two in zip(*found, strict=True):
        assert (one is None) == (two is None) and (one is None or torch.equal(one, two))


@pytest.mark.parametrize("transpose", [False, True])
@pytest.mark.parametrize("bias", [True, False])
def test_large_inner_products_and_their_gradients_are_pytorchs_own(transpose, bias):
    text = f"""name: "fc" type: "InnerProduct" bottom: "x" top: "y" inner_product_param {{ num_output: 1024
        transpose: {str(transpose).lower()} bias_term: {str(bias).lower()} weight_filler {{ type: "xavier" }} }}"""
    layer = common.InnerProduct(parse_text(text, LayerParameter(), ""), Context(1, torch.device("cpu"), True))
    layer.setup([(3, 1024)])
    assert layer.blobs[0].data.numel() >= common.LARGE
    x = torch.randn(3, 1024, requires_grad=True, generator=torch.Generator().manual_seed(1))
    inputs = [x, *(blob.data for blob in layer.blobs)]
    weight = layer.blobs[0].data.t() if transpose else layer.blobs[0].data
    expected = torch.nn.functional.linear(x, weight, layer.blobs[1].data if bias else None)
    made = layer.forward([x], 0)[0]
    gradient = torch.randn(expected.shape, generator=torch.Generator().manual_seed(2))
    both = [[top.detach(), *torch.autograd.grad(top, inputs, gradient)] for top in (made, expected)]
    # sums of 1024 terms in another order: random rounding errors grow with the root of their number; 4 standard
    # deviations for the largest of 3000
    for one, two in zip(*both, strict=True):
        assert float((one - two).abs().max() / two.abs().max()) < 4 * 1024**0.5 * UNIT


ON_A_GPU = {
    "a convolution with a method for a CPU": (
        'type: "Convolution" convolution_param { num_output: 64 kernel_size: 1 pad: 1 }', [(8, 64, 16, 16)], {}
    ),
    "a large InnerProduct": ('type: "InnerProduct" inner_product_param { num_output: 1024 }', [(2, 1024)], {}),
    "Embed": ('type: "Embed" embed_param { num_output: 3 input_dim: 7 }', [(5,)], {0: 6}),
    "BatchReindex": ('type: "BatchReindex"', [(4, 3), (6,)], {1: 3}),
    "SoftmaxWithLoss": ('type: "SoftmaxWithLoss"', [(4, 3), (4,)], {1: 2}),
}  # fmt: skip


@pytest.mark.parametrize("case", ON_A_GPU)
def test_on_a_gpu_a_layer_takes_no_operation_of_a_cpu_and_reads_no_value(case, monkeypatch):
    text, shapes, most = ON_A_GPU[case]
    bottoms = [torch.full(shape, float(most[i])) if i in most else torch.randn(shape) for i, shape in enumerate(shapes)]
    layer, (expected,) = run(text, *bottoms)
    layer.check_labels = True

    def never(*_):
        raise AssertionError("an operation of a CPU")

    monkeypatch.setattr(common, "_onednn", never)
    if isinstance(layer, Convolution):
        assert layer.method is not None and layer.method.special
        monkeypatch.setattr(layer.method, "apply", never)
    with torch.no_grad(), capturing():
        (top,) = layer.forward([bottom.as_subclass(OnCuda) for bottom in bottoms], 0)
    most_apart = 2 * 1024 * UNIT * float(expected.detach().abs().max())  # sums of up to 1024 products
    assert torch.allclose(top.as_subclass(torch.Tensor), expected, rtol=0, atol=most_apart)


def test_a_convolution_of_images_is_channels_last_from_there_on():
    text = 'type: "Convolution" convolution_param { num_output: 6 kernel_size: 3 weight_filler { type: "xavier" } }'
    for kind in (torch.Tensor, OnCuda):
        layer, _ = run(text, torch.randn(2, 3, 8, 8))
        with torch.no_grad():
            (top,) = layer.forward([torch.randn(2, 3, 8, 8).as_subclass(kind)], 0)
        assert top.is_contiguous(memory_format=torch.channels_last) and not top.is_contiguous()


def test_what_a_layer_creates_lies_on_its_device():
    meta = Context(seed=1, device=torch.device("meta"), training=True)
    param = parse_text('name: "l" type: "LSTM" bottom: "x" bottom: "c" top: "t" recurrent_param { num_output: 3 }',
                       LayerParameter(), "test")  # fmt: skip
    layer = LAYERS["LSTM"](param, meta)
    layer.setup([(2, 4, 5), (2, 4)])
    held = [each for value in vars(layer).values() if isinstance(value, list) for each in value]
    tensors = [each for each in held if isinstance(each, torch.Tensor)] + [blob.data for blob in layer.blobs]
    assert len(tensors) == 2 + 3 and all(tensor.is_meta for tensor in tensors)


def test_a_dropout_gives_the_type_that_it_takes():
    layer, _ = run('type: "Dropout"', torch.randn(4, 5))
    assert layer.forward([torch.randn(4, 5).bfloat16()], 0)[0].dtype == torch.bfloat16
