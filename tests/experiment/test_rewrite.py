"""Any net, rewritten for the experiment: data layers, classes, loss, frozen stages; rewritten nets can be trained."""

import pytest
import torch
from conformance.networks import FOLDER
from support.tiny import net_text

from transfer_caffe.engine.net import Net
from transfer_caffe.engine.solver.solver import Solver
from transfer_caffe.experiment.own_net import read_own_net
from transfer_caffe.experiment.read import RECIPES, load_recipe
from transfer_caffe.experiment.rewrite import Change, Source, blobs_of, rewrite
from transfer_caffe.experiment.stages import stages_of
from transfer_caffe.formats.nets import read_net
from transfer_caffe.formats.proto import parse_text
from transfer_caffe.formats.proto.caffe_pb2 import (
    TEST,
    TRAIN,
    LayerParameter,
    NetParameter,
    NetState,
    SolverParameter,
    TransformationParameter,
)
from transfer_caffe.formats.upgrade import upgrade_net
from transfer_caffe.utils.errors import UserError

CROP = TransformationParameter(crop_size=10, mean_value=[70])
CHANGE = Change(Source("train_lmdb", 8, CROP), Source("test_lmdb", 5, CROP), classes=4)
DEPLOY = """name: "deploy" input: "data" input_dim: 1 input_dim: 3 input_dim: 10 input_dim: 10
layers { name: "conv1" type: CONVOLUTION bottom: "data" top: "conv1"
  convolution_param { num_output: 6 kernel_size: 3 } }
layers { name: "relu1" type: RELU bottom: "conv1" top: "conv1" }
layers { name: "fc2" type: INNER_PRODUCT bottom: "conv1" top: "fc2" inner_product_param { num_output: 9 } }
layers { name: "fc3" type: INNER_PRODUCT bottom: "fc2" top: "fc3" inner_product_param { num_output: 1000 } }
layers { name: "prob" type: SOFTMAX bottom: "fc3" top: "prob" }
"""


def deploy() -> NetParameter:
    return upgrade_net(parse_text(DEPLOY, NetParameter(), "deploy"), "deploy")


def frozen_by(change: Change, **more) -> Change:
    return Change(**{**vars(change), **more})


def layers(net: NetParameter) -> dict[str, LayerParameter]:
    return {layer.name: layer for layer in net.layer if layer.name != "data"}


def test_a_deploy_net_gets_data_a_loss_an_accuracy_classes_and_fillers():
    new = rewrite(deploy(), CHANGE, "mine")
    assert new.name == "mine"
    assert [(layer.name, layer.type) for layer in new.layer] == [
        ("data", "Data"), ("data", "Data"), ("conv1", "Convolution"), ("relu1", "ReLU"), ("fc2", "InnerProduct"),
        ("fc3", "InnerProduct"), ("accuracy", "Accuracy"), ("loss", "SoftmaxWithLoss"),
    ]  # fmt: skip
    assert [layer.include[0].phase for layer in new.layer[:2]] == [TRAIN, TEST]
    assert layers(new)["fc3"].inner_product_param.num_output == 4
    assert layers(new)["fc2"].inner_product_param.weight_filler.type == "msra"
    assert list(layers(new)["loss"].bottom) == ["fc3", "label"]


@pytest.mark.parametrize("frozen", [0, 1, 2])
def test_a_rewritten_net_trains_and_its_frozen_stages_stay_as_they_are(tiny, frozen):
    new = rewrite(deploy(), frozen_by(CHANGE, frozen=frozen))
    param = SolverParameter(
        net_param=new, base_lr=0.01, lr_policy="fixed", max_iter=10, momentum=0.9, weight_decay=0.01, test_iter=[4],
        test_interval=10, random_seed=3, type="SGD",
    )  # fmt: skip
    solver = Solver(param, torch.device("cpu"))
    before = solver.net.weights
    solver.step(5)
    after = solver.net.weights
    moved = [name for name in before if any((a != b).any() for a, b in zip(before[name], after[name], strict=True))]
    assert moved == ["conv1", "fc2", "fc3"][frozen:]
    assert set(solver.score()) == {"accuracy", "loss"}


def test_the_other_layers_keep_their_own_multipliers():
    net = parse_text(net_text(), NetParameter(), "tiny")
    new = rewrite(net, frozen_by(CHANGE, frozen=1))
    conv1, conv2, fc3 = (layers(new)[name] for name in ("conv1", "conv2", "fc3"))
    assert [(spec.lr_mult, spec.decay_mult) for spec in conv1.param] == [(0, 0), (0, 0)]
    assert [(spec.lr_mult, spec.decay_mult) for spec in conv2.param] == [(1, 1), (2, 0)]
    assert [(spec.lr_mult, spec.decay_mult) for spec in fc3.param] == [(1, 1), (2, 0)]


def test_rates_multiply_a_stages_own_multipliers():
    new = rewrite(deploy(), frozen_by(CHANGE, rates={1: 0.1}))
    assert [spec.lr_mult for spec in layers(new)["conv1"].param] == pytest.approx([0.1, 0.1])
    assert not layers(new)["fc2"].param


def test_every_classifier_of_a_net_with_auxiliary_losses_gets_the_classes():
    new = layers(rewrite(read_net(FOLDER / "googlenet.prototxt"), CHANGE))
    outputs = {name: layer.inner_product_param.num_output for name, layer in new.items() if "classifier" in name}
    assert len(outputs) >= 2 and set(outputs.values()) == {4}
    assert [layer.name for layer in new.values() if "loss" in layer.top] == ["loss3/loss"]


def test_frozen_batch_norm_uses_its_statistics_unless_a_recipe_says_otherwise():
    net = read_net(FOLDER / "resnet.prototxt")
    new = layers(rewrite(net, frozen_by(CHANGE, frozen=2)))
    assert new["bn_conv1"].batch_norm_param.use_global_stats and len(new["bn_conv1"].param) == 3
    assert not new["bn_res2b_branch2a"].batch_norm_param.HasField("use_global_stats")
    new = layers(rewrite(net, frozen_by(CHANGE, frozen=2, global_stats=False)))
    assert not new["bn_conv1"].batch_norm_param.HasField("use_global_stats")


def test_the_number_of_blobs_is_the_engines():
    for name in ("caffenet", "googlenet", "resnet", "lenet"):
        net = read_net(FOLDER / f"{name}.prototxt")
        source = LayerParameter(name="data", type="Input", top=["data", "label"])
        source.input_param.shape.add(dim=[2, 1 if name == "lenet" else 3, 68, 68])
        source.input_param.shape.add(dim=[2])
        with_input = NetParameter(name=name, layer=[source, *net.layer[1:]])
        if name == "googlenet":
            source.input_param.shape[0].dim[2:] = [224, 224]
            with_input.layer[0].CopyFrom(source)
            for layer in with_input.layer:  # global poolings of the small net
                if layer.name.endswith("global"):
                    layer.pooling_param.ClearField("kernel_size")
                    layer.pooling_param.global_pooling = True
        made = Net(with_input, NetState(phase=TRAIN), 1, torch.device("cpu"))
        for layer in made.layers:
            assert (layer.name, len(layer.blobs)) == (layer.name, blobs_of(layer.param))


SHARED = """name: "shared" layer { name: "data" type: "Data" top: "data" top: "label" }
layer { name: "a" type: "InnerProduct" bottom: "data" top: "a" param { name: "w" }
  inner_product_param { num_output: 5 } }
layer { name: "b" type: "InnerProduct" bottom: "a" top: "b" inner_product_param { num_output: 300 } }
layer { name: "c" type: "InnerProduct" bottom: "b" top: "c" param { name: "w" } inner_product_param { num_output: 5 } }
layer { name: "d" type: "InnerProduct" bottom: "c" top: "d" inner_product_param { num_output: 5 } }
layer { name: "loss" type: "SoftmaxWithLoss" bottom: "d" bottom: "label" top: "loss" }
"""


@pytest.mark.parametrize(
    "net, change, words",
    [
        (parse_text(SHARED, NetParameter(), "s"), frozen_by(CHANGE, frozen=2), "'a' and 'c' share the weights 'w'"),
        (read_net(FOLDER / "siamese.prototxt"), CHANGE, "is a ContrastiveLoss; the loss of a classifier is needed"),
        (read_net(FOLDER / "segmenter.prototxt"), CHANGE, "'upscore', a Deconvolution: its outputs cannot be set"),
        (deploy(), frozen_by(CHANGE, frozen=3), "it has 3 stages; 3 of them cannot be frozen"),
    ],
)
def test_nets_that_cannot_be_used_are_refused_in_a_line(net, change, words):
    with pytest.raises(UserError, match=words):
        rewrite(net, change)


def test_a_rewritten_net_has_the_stages_of_the_net():
    for name in ("caffenet", "googlenet", "resnet"):
        net = read_net(FOLDER / f"{name}.prototxt")
        before = [(stage.name, stage.weighted) for stage in stages_of(net)]
        assert [(stage.name, stage.weighted) for stage in stages_of(rewrite(net, CHANGE))] == before


def test_stored_statistics_of_a_deploy_net_are_for_frozen_layers_alone():
    text = DEPLOY.replace('layers { name: "relu1"', 'layers { name: "relu1"')
    net = upgrade_net(parse_text(text, NetParameter(), "deploy"), "deploy")
    for place in (2, 1):  # after conv1
        layer = LayerParameter(name=f"bn{place}", type="BatchNorm", bottom=["conv1"], top=["conv1"])
        layer.batch_norm_param.use_global_stats = True
        net.layer.insert(place + 1, layer)
    learning = layers(rewrite(net, CHANGE))
    assert not any(layer.batch_norm_param.use_global_stats for layer in learning.values())
    frozen = layers(rewrite(net, frozen_by(CHANGE, frozen=1)))
    assert frozen["bn1"].batch_norm_param.use_global_stats and frozen["bn2"].batch_norm_param.use_global_stats


def test_layers_that_are_frozen_in_the_net_itself_learn_in_the_experiment():
    net = deploy()
    conv1 = next(layer for layer in net.layer if layer.name == "conv1")
    conv1.param.add(lr_mult=0)
    conv1.param.add(lr_mult=0)
    assert [spec.lr_mult for spec in layers(rewrite(net, CHANGE))["conv1"].param] == [1, 1]
    assert [spec.lr_mult for spec in layers(rewrite(net, frozen_by(CHANGE, frozen=1)))["conv1"].param] == [0, 0]


def test_inserted_layers_and_blobs_get_names_that_the_net_does_not_have():
    text = (
        DEPLOY.replace('"relu1"', '"accuracy"')
        .replace('name: "fc2"', 'name: "loss"')
        .replace('name: "conv1"', 'name: "data"')
    )
    new = rewrite(upgrade_net(parse_text(text, NetParameter(), "deploy"), "deploy"), CHANGE)
    names = [layer.name for layer in new.layer]
    assert len(set(names)) == len(names) - 1  # the two data layers, of two phases, share a name
    assert {"accuracy", "loss"} <= {top for layer in new.layer for top in layer.top}


@pytest.mark.parametrize(
    "more, words",
    [
        ('layers { name: "box" type: INNER_PRODUCT bottom: "fc2" top: "box" inner_product_param { num_output: 4 } }',
         "needs one output, the class scores; its outputs are 'prob', 'box'"),
        ('layers { name: "best" type: ARGMAX bottom: "prob" top: "best" }', "'best' is an ArgMax, not class scores"),
    ],
)  # fmt: skip
def test_deploy_nets_without_one_output_of_class_scores_are_refused(more, words):
    with pytest.raises(UserError, match=words):
        rewrite(upgrade_net(parse_text(DEPLOY + more, NetParameter(), "deploy"), "deploy"), CHANGE)


def test_weights_that_cross_the_last_copied_stage_are_refused_when_they_are_fine_tuned_too():
    net = parse_text(SHARED, NetParameter(), "s")
    with pytest.raises(UserError, match="share the weights 'w', but only one is in the first 2 stages"):
        rewrite(net, frozen_by(CHANGE, copied=2))


def test_a_template_is_rendered_with_the_side_of_the_images_and_rewritten_like_any_net(tmp_path):
    blocks = (
        'name: "blocks" input: "data" input_shape { dim: 1 dim: 3 dim: {{ crop }} dim: {{ crop }} }\n'
        '{% for n in range(1, 4) %}layer { name: "conv{{ n }}" type: "Convolution" top: "conv{{ n }}" '
        'bottom: "{{ "data" if loop.first else "conv%d" % (n - 1) }}" convolution_param { num_output: {{ 4 * n }} '
        "kernel_size: 3 } }\n{% endfor %}"
        'layer { name: "fc" type: "InnerProduct" bottom: "conv3" top: "fc" inner_product_param { num_output: 9 } }\n'
    )
    (tmp_path / "blocks.prototxt.j2").write_text(blocks)
    net = read_own_net(tmp_path / "blocks.prototxt.j2", crop=24)
    assert list(net.layer[0].input_param.shape[0].dim) == [1, 3, 24, 24]
    assert [stage.name for stage in stages_of(net)] == ["conv1", "conv2", "conv3", "fc"]
    recipe = (RECIPES / "demo.yaml").read_text().replace("name: demo\n", "name: own\n").split("networks:")[0]
    recipe = recipe.replace("architecture: mini", "architecture: blocks.prototxt.j2").replace("crop: 28", "crop: 24")
    (tmp_path / "own.yaml").write_text(recipe + "networks: {random0: [baseA, A3B]}\n")
    assert load_recipe(tmp_path / "own.yaml").stages == 4
    digest = load_recipe(tmp_path / "own.yaml").sha256()
    (tmp_path / "blocks.prototxt.j2").write_text(blocks.replace("4 * n", "5 * n"))
    assert load_recipe(tmp_path / "own.yaml").sha256() != digest  # another net: its networks are out of date
    for wrong, words in (
        ("{% for n in %}", r"blocks\.prototxt\.j2:1: "),
        ("{{ sides }}", r"'sides' is undefined; templates may use `crop`"),
        ("layer {", "blocks"),
        ("{{ crop // 0 }}", r"blocks\.prototxt\.j2: the template cannot be rendered: ZeroDivisionError: "),
        ("{{ crop + 'x' }}", "cannot be rendered: TypeError: "),
        ("{% include 'missing.j2' %}", r"cannot be rendered: TemplateNotFound: .*missing\.j2"),
        ("{% include 'blocks.prototxt.j2' %}", "cannot be rendered: RecursionError: "),
        ("name: '\xe9'", "cannot be rendered: UnicodeDecodeError: "),
    ):
        (tmp_path / "blocks.prototxt.j2").write_text(wrong, encoding="latin-1")
        with pytest.raises(UserError, match=words):
            read_own_net(tmp_path / "blocks.prototxt.j2", crop=24)


def test_a_classifier_without_a_filler_starts_with_small_weights_and_one_with_a_filler_keeps_it():
    filler = layers(rewrite(deploy(), CHANGE))["fc3"].inner_product_param.weight_filler
    assert (filler.type, round(filler.std, 6)) == ("gaussian", 0.01)
    given = deploy()
    given.layer[-2].inner_product_param.weight_filler.type = "xavier"
    assert layers(rewrite(given, CHANGE))["fc3"].inner_product_param.weight_filler.type == "xavier"


def test_a_net_with_batch_norm_is_not_tested_before_it_has_statistics(tmp_path):
    (tmp_path / "plain.prototxt").write_text(DEPLOY)
    (tmp_path / "normed.prototxt").write_text(
        'input: "data" input_shape { dim: 1 dim: 3 dim: 10 dim: 10 }\n'
        'layer { name: "conv" type: "Convolution" bottom: "data" top: "conv" convolution_param { num_output: 4 '
        'kernel_size: 3 } }\nlayer { name: "bn" type: "BatchNorm" bottom: "conv" top: "conv" }\n'
        'layer { name: "fc" type: "InnerProduct" bottom: "conv" top: "fc" inner_product_param { num_output: 9 } }\n'
    )
    recipe = (RECIPES / "demo.yaml").read_text().replace("name: demo\n", "name: own\n").split("networks:")[0]
    recipe = recipe.replace("crop: 28", "crop: 10") + "networks: {random0: [baseA]}\n"
    for net, given, expected in (
        ("plain", "", None), ("normed", "", False), ("normed", "  test_initialization: true\n", True),
    ):  # fmt: skip
        own = recipe.replace("architecture: mini", f"architecture: {net}.prototxt")
        (tmp_path / "own.yaml").write_text(own.replace("solver:\n", f"solver:\n{given}"))
        assert (
            load_recipe(tmp_path / "own.yaml").network("random0", "baseA").solver.get("test_initialization") == expected
        )
