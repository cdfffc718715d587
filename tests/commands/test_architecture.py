"""The table of a net's stages."""

import pytest
from conformance.networks import FOLDER

from transfer_caffe.architecture import main


def test_the_table_has_a_line_for_each_stage_with_its_share_of_the_weights(capsys):
    assert main([str(FOLDER / "caffenet.prototxt"), "--crop", "67"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:3] for line in lines[1:9]] == [
        ["1", "conv1", "norm1"], ["2", "conv2", "norm2"], ["3", "conv3", "conv3"], ["4", "conv4", "conv4"],
        ["5", "conv5", "pool5"], ["6", "fc6", "fc6"], ["7", "fc7", "fc7"], ["8", "fc8", "loss"],
    ]  # fmt: skip
    shares = [float(line.split("(")[1].split("%")[0]) for line in lines[1:9]]
    assert sum(shares) == pytest.approx(100, abs=0.4)
    assert "possible cuts: data, conv1, pool1, norm1" in lines[-1]


def test_cuts_join_stages_and_auxiliary_classifiers_are_listed_apart(capsys):
    net = str(FOLDER / "googlenet.prototxt")
    assert main([net, "--crop", "64", "--cuts", "pool2/3x3_s2,pool4/global"]) == 0
    out = capsys.readouterr().out
    assert [line.split()[2] for line in out.splitlines()[1:4]] == ["pool2/3x3_s2", "pool4/global", "loss3/loss"]
    assert "in no stage, and never copied: loss1/ave_pool" in out


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["nowhere.prototxt"], "nowhere.prototxt: no such file"),
        ([str(FOLDER / "lenet.prototxt")], "without a crop_size"),
        ([str(FOLDER / "lenet.prototxt"), "--crop", "0"], "--crop 0: a number of pixels"),
        ([str(FOLDER / "lenet.prototxt"), "--crop", "28", "--cuts", "relu1"], "there is no blob 'relu1'"),
    ],
)
def test_bad_input_is_one_line(arguments, words, capsys):
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1
