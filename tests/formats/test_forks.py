"""Fields of other versions of Caffe: read where BVLC Caffe 1.0 has the same, otherwise named with what to write."""

import pytest

from transfer_caffe.formats.nets import read_net
from transfer_caffe.formats.proto import caffe_pb2, parse_text
from transfer_caffe.utils.errors import UserError


def parsed(text):
    return parse_text(text, caffe_pb2.NetParameter(), "net.prototxt")


@pytest.mark.parametrize(
    "given, wanted",
    [
        ("pooling_param { ceil_mode: false }", "pooling_param { round_mode: FLOOR }"),
        ("pooling_param { pad: 1 ceil_mode : 1 # rounds up\n }", "pooling_param { pad: 1 round_mode: CEIL }"),
        ("pooling_param { torch_pooling: true }", "pooling_param { round_mode: FLOOR }"),
        ("convolution_param { hole: 4\n\tengine: MKL2017 }", "convolution_param { dilation: 4 engine: DEFAULT }"),
        ("dropout_param { scale_train: true }", "dropout_param { }"),
        ("batch_norm_param { scale_bias: false engine: CUDNN }", "batch_norm_param { }"),
    ],
)  # fmt: skip
def test_fields_with_a_plain_meaning_are_read(given, wanted):
    twice = f'name: "ceil_mode: false"\nlayer {{ name: "a" {given} }} layer {{ name: "b"\n{given} }}'
    assert parsed(twice) == parsed(
        f'name: "ceil_mode: false" layer {{ name: "a" {wanted} }} layer {{ name: "b" {wanted} }}'
    )


@pytest.mark.parametrize(
    "given, place, todo",
    [
        ("batch_norm_param { scale_bias: true }", "2:20", 'a layer of type "Scale"'),
        ("dropout_param { scale_train: false }", "2:17", "1 - dropout_ratio"),
        ("convolution_param { hole_h: 2 }", "2:21", "dilation: H"),
        ("bn_param { frozen: true }", "2:1", '"BatchNorm" and "Scale"'),
        ("roi_pooling_param { pooled_w: 7 }", "2:1", "another version of Caffe"),
    ],
)
def test_others_are_named_with_file_line_and_what_to_write(given, place, todo):
    with pytest.raises(UserError) as error:
        parsed(f'layer {{ name: "a"\n{given} }}')
    assert str(error.value).startswith(f"net.prototxt: line {place} : ") and todo in str(error.value)


@pytest.mark.parametrize("given", ["pooling_param { ceil_mode: maybe }", "pooling_param { cell_mode: false }"])
def test_what_is_neither_is_an_error_as_before(given):
    with pytest.raises(UserError, match=r"not a valid NetParameter prototxt: line 1:25 : .*has no field"):
        parsed(f"layer {{ {given} }}")


def test_files_are_read_alike(tmp_path):
    path = tmp_path / "net.prototxt"
    path.write_text('layers { name: "p" type: POOLING pooling_param { ceil_mode: false } }\n')
    assert read_net(path).layer[0].pooling_param.round_mode == caffe_pb2.PoolingParameter.FLOOR
