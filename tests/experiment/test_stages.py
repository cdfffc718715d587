"""The stages of nets: chains, inception modules, residual blocks, BatchNorm and Scale, cuts that a recipe names."""

import pytest
from conformance.networks import FOLDER

from transfer_caffe.experiment.stages import cuts_of, stages_of
from transfer_caffe.formats.nets import read_net
from transfer_caffe.formats.proto import parse_text
from transfer_caffe.formats.proto.caffe_pb2 import NetParameter
from transfer_caffe.utils.errors import UserError


def net(text: str) -> NetParameter:
    return parse_text(text, NetParameter(), "net")


def layer(name: str, kind: str, bottoms: str, top: str = "", more: str = "") -> str:
    lines = "".join(f' bottom: "{bottom}"' for bottom in bottoms.split())
    return f'layer {{ name: "{name}" type: "{kind}"{lines} top: "{top or name}" {more} }}\n'


INPUT = 'name: "n" layer { name: "data" type: "Input" top: "data" }\n'
SQUEEZE = (
    INPUT
    + layer("conv1", "Convolution", "data")
    + layer("relu1", "ReLU", "conv1", "conv1")
    + layer("squeeze", "Convolution", "conv1")
    + layer("e1", "Convolution", "squeeze")
    + layer("e3", "Convolution", "squeeze")
    + layer("fire", "Concat", "e1 e3")
    + layer("conv10", "Convolution", "fire")
    + layer("pool10", "Pooling", "conv10")
    + layer("prob", "Softmax", "pool10")
)


@pytest.mark.parametrize(
    "name, names",
    [
        ("caffenet", ["conv1", "conv2", "conv3", "conv4", "conv5", "fc6", "fc7", "fc8"]),
        ("alexnet", ["conv1", "conv2", "conv3", "conv4", "conv5", "fc6", "fc7", "fc8"]),
        ("lenet", ["conv1", "conv2", "ip1", "ip2"]),
        ("cifar10_full", ["conv1", "conv2", "conv3", "ip1"]),
        (
            "googlenet",
            ["conv1/7x7_s2", "conv2/3x3_reduce", "conv2/3x3", "inception_a/1x1", "inception_b/1x1", "inception_c/1x1",
             "loss3/classifier"],
        ),
        ("resnet", ["conv1", "res2a_branch1", "res2b_branch2a", "res3a_branch1", "fc10"]),
    ],
)  # fmt: skip
def test_well_known_nets_have_the_stages_that_people_name(name, names):
    stages = stages_of(read_net(FOLDER / f"{name}.prototxt"))
    assert [stage.name for stage in stages] == names
    assert [stage.number for stage in stages] == list(range(1, len(names) + 1))


def test_the_halves_of_a_sliced_blob_are_no_cuts_as_each_holds_only_a_part():
    sliced = (
        INPUT
        + layer("conv1", "Convolution", "data")
        + layer("parts", "Slice", "conv1", "left", 'top: "right"')
        + layer("conv2", "Convolution", "left")
        + layer("conv3", "Convolution", "right")
        + layer("both", "Concat", "conv2 conv3")
        + layer("fc", "InnerProduct", "both")
    )
    assert cuts_of(net(sliced)) == ["data", "conv1", "both"]
    assert [stage.weighted for stage in stages_of(net(sliced))] == [("conv1",), ("conv2", "conv3"), ("fc",)]


def test_a_residual_block_is_one_stage_with_its_companions():
    stages = stages_of(read_net(FOLDER / "resnet.prototxt"))
    assert stages[0].weighted == ("conv1", "bn_conv1", "scale_conv1") and stages[0].cut == "pool1"
    assert stages[1].cut == "res2a" and len(stages[1].weighted) == 12
    assert stages[1].layers[-1] == "res2a_relu"


def test_auxiliary_classifiers_are_in_no_stage():
    every = [name for stage in stages_of(read_net(FOLDER / "googlenet.prototxt")) for name in stage.layers]
    assert not [name for name in every if name.startswith(("loss1", "loss2"))]
    assert "loss3/classifier" in every


def test_a_squeezenets_fire_module_is_reached_by_way_of_its_squeeze_layer():
    stages = stages_of(net(SQUEEZE))
    assert [(stage.name, stage.cut) for stage in stages] == [
        ("conv1", "conv1"), ("squeeze", "squeeze"), ("e1", "fire"), ("conv10", "prob"),
    ]  # fmt: skip
    assert [stage.name for stage in stages_of(net(SQUEEZE), ["conv1", "fire"])] == ["conv1", "squeeze", "conv10"]


def test_layers_before_the_first_weights_belong_to_the_first_stage():
    text = INPUT + layer("bn", "BatchNorm", "data", "bn") + layer("conv1", "Convolution", "bn")
    text += layer("fc", "InnerProduct", "conv1")
    assert [stage.weighted for stage in stages_of(net(text))] == [("bn", "conv1"), ("fc",)]


def test_named_cuts_join_stages_and_a_blob_changed_in_place_ends_with_its_last_change():
    stages = stages_of(read_net(FOLDER / "caffenet.prototxt"), ["conv3", "fc6"])
    assert [stage.weighted for stage in stages] == [
        ("conv1", "conv2", "conv3"),
        ("conv4", "conv5", "fc6"),
        ("fc7", "fc8"),
    ]
    assert stages[0].layers[-1] == "relu3"


@pytest.mark.parametrize(
    "cuts, words",
    [
        (
            ["res2a_branch1"],
            "'res2a_branch1' is not a cut: some paths bypass it; cuts are data, conv1, pool1, res2a",
        ),
        (["res2b", "res2a"], "are not in the net's order"),
        (["data"], "no layer with weights before the cut 'data'"),
    ],
)
def test_a_cut_that_is_none_is_refused_with_those_that_are(cuts, words):
    with pytest.raises(UserError, match=words):
        stages_of(read_net(FOLDER / "resnet.prototxt"), cuts)


@pytest.mark.parametrize(
    "text, words",
    [
        (layer("conv1", "Convolution", "data"), "no layer reads images"),
        (INPUT + 'layer { name: "more" type: "Data" top: "other" }\n' + layer("add", "Eltwise", "data other"),
         "2 layers read images"),
        (INPUT + 'layer { name: "p" type: "Parameter" top: "p" }\n' + layer("loss", "EuclideanLoss", "p p", "loss"),
         "does not depend on the images"),
    ],
)  # fmt: skip
def test_nets_without_a_way_from_images_to_a_loss_are_refused(text, words):
    with pytest.raises(UserError, match=words):
        stages_of(net(text))


def test_nets_whose_branches_never_meet_before_the_loss_have_one_stage():
    assert len(stages_of(read_net(FOLDER / "siamese.prototxt"))) == 1


def test_cuts_are_listed_from_the_images_upwards():
    assert cuts_of(read_net(FOLDER / "lenet.prototxt")) == ["data", "conv1", "pool1", "conv2", "pool2", "ip1", "ip2"]
