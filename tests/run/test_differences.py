"""Descriptions of how two settings differ."""

import pytest

from transfer_caffe.formats.proto import parse_text
from transfer_caffe.formats.proto.caffe_pb2 import NetParameter, SolverParameter
from transfer_caffe.run.differences import differences, in_short


@pytest.mark.parametrize(
    ("there", "now", "words"),
    [
        ("base_lr: 0.01", "base_lr: 0.02", ["base_lr is 0.01 in the folder and 0.02 in the recipe"]),
        ("base_lr: 1", "base_lr: 1.5", ["base_lr is 1 in the folder and 1.5 in the recipe"]),
        ("gamma: 0.1", "", ["gamma is 0.1 in the folder and not set in the recipe"]),
        ("solver_mode: CPU", "solver_mode: GPU", ["solver_mode is CPU in the folder and GPU in the recipe"]),
        ("stepvalue: [1, 2]", "stepvalue: [1]", ["stepvalue is [1, 2] in the folder and [1] in the recipe"]),
        ('type: "SGD"', 'type: "Adam"', ['type is "SGD" in the folder and "Adam" in the recipe']),
        ("debug_info: true", "debug_info: false", ["debug_info is true in the folder and false in the recipe"]),
        ("max_iter: 7 gamma: 1", "gamma: 1 max_iter: 7", []),
    ],
)
def test_solvers_differ_field_by_field(there, now, words):
    assert differences(parse_text(there, SolverParameter(), "a"), parse_text(now, SolverParameter(), "b")) == words


def net(text: str) -> NetParameter:
    return parse_text(text, NetParameter(), "net")


def test_what_lies_deep_in_a_net_is_named_with_all_that_it_lies_in():
    conv = 'layer { name: "conv1" param { lr_mult: 1 } param { lr_mult: 2 } convolution_param { num_output: %d } }'
    there = net(conv % 3 + ' layer { name: "old" }')
    now = net((conv % 4).replace("lr_mult: 2", "lr_mult: 0"))
    assert differences(there, now) == [
        "layer conv1: param 1: lr_mult is 2 in the folder and 0 in the recipe",
        "layer conv1: convolution_param.num_output is 3 in the folder and 4 in the recipe",
        'layer old is { name: "old" } in the folder and not set in the recipe',
    ]


def test_of_many_differences_the_first_few_are_told_and_the_number_of_the_others():
    assert in_short([*"abcde"]) == "a, b, c, and 2 more"
    assert in_short([*"abc"]) == "a, b, c"
