"""The table of a net's stages."""

import re

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
    shares = [[float(share) for share in re.findall(r"([\d.]+)%", line)] for line in lines[1:9]]
    assert [sum(column) for column in zip(*shares, strict=True)] == pytest.approx([100, 100], abs=0.4)
    assert "possible cuts: data, conv1, pool1, norm1" in lines[-1]


def test_the_share_of_arithmetic_counts_the_multiplications_of_each_matrix_product(tmp_path, capsys):
    net = tmp_path / "net.prototxt"
    net.write_text(
        'layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 1 dim: 2 dim: 8 dim: 8 } } }'
        'layer { name: "grouped" type: "Convolution" bottom: "data" top: "grouped"'
        " convolution_param { num_output: 4 kernel_size: 3 group: 2 stride: 5 } }"  # 2 x 2 places
        'layer { name: "up" type: "Deconvolution" bottom: "grouped" top: "up"'
        " convolution_param { num_output: 3 kernel_size: 2 stride: 2 } }"  # 4 x 4 places
        'layer { name: "fc" type: "InnerProduct" bottom: "up" top: "fc"'
        " inner_product_param { num_output: 5 transpose: true } }"
    )
    assert main([str(net)]) == 0
    counts = [4 * 2 * 2 * 1 * 3 * 3, 4 * 2 * 2 * 3 * 2 * 2, 3 * 4 * 4 * 5]
    shares = [float(re.findall(r"([\d.]+)%", line)[1]) for line in capsys.readouterr().out.splitlines()[1:4]]
    assert shares == pytest.approx([100 * count / sum(counts) for count in counts], abs=0.051)


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
