"""Nets written in Python, coordinates between their blobs, and their pictures."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import transfer_caffe.caffe as caffe
from transfer_caffe.caffe import layers as L
from transfer_caffe.caffe import params as P
from transfer_caffe.caffe.coord_map import coord_map_from_to, crop
from transfer_caffe.formats.proto import caffe_pb2, parse_text


def spec() -> Any:
    n = caffe.NetSpec()
    n.data, n.label = L.DummyData(shape=[{"dim": [4, 1, 8, 8]}, {"dim": [4]}], transform_param={"scale": 0.5}, ntop=2)
    n.conv = L.Convolution(n.data, kernel_size=3, num_output=2, weight_filler={"type": "xavier"}, param={"lr_mult": 2})
    n.pool = L.Pooling(n.conv, kernel_size=2, stride=2, pool=P.Pooling.AVE)
    n.fc = L.InnerProduct(n.pool, num_output=3, name="other")
    n.relu = L.ReLU(n.fc, in_place=True)
    n.loss = L.SoftmaxWithLoss(n.relu, n.label, loss_weight=2, include={"phase": caffe.TRAIN})
    return n


def test_a_spec_is_the_prototxt_that_it_says() -> None:
    expected = """
layer { type: "DummyData" top: "data" top: "label" name: "data" transform_param { scale: 0.5 }
  dummy_data_param { shape { dim: 4 dim: 1 dim: 8 dim: 8 } shape { dim: 4 } } }
layer { type: "Convolution" bottom: "data" top: "conv" name: "conv" param { lr_mult: 2 }
  convolution_param { kernel_size: 3 num_output: 2 weight_filler { type: "xavier" } } }
layer { type: "Pooling" bottom: "conv" top: "pool" name: "pool" pooling_param { kernel_size: 2 stride: 2 pool: AVE } }
layer { type: "InnerProduct" bottom: "pool" top: "fc" name: "other" inner_product_param { num_output: 3 } }
layer { type: "ReLU" bottom: "fc" top: "fc" name: "relu" }
layer { type: "SoftmaxWithLoss" bottom: "fc" bottom: "label" top: "loss" name: "loss" loss_weight: 2
  include { phase: TRAIN } }
"""
    assert spec().to_proto() == parse_text(expected, caffe_pb2.NetParameter(), "expected")


def test_blobs_without_names_are_named_by_their_types(tmp_path: Path) -> None:
    data = L.Input(shape={"dim": [1, 2]})
    first = L.InnerProduct(data, num_output=2)
    net = L.Eltwise(first, L.InnerProduct(first, num_output=2), operation=P.Eltwise.MAX).to_proto()
    assert [layer.name for layer in net.layer] == ["Input1", "InnerProduct1", "InnerProduct2", "Eltwise1"]
    assert caffe.to_proto(first).layer[1].top == ["InnerProduct1"]
    path = tmp_path / "net.prototxt"
    path.write_text(str(net))
    assert list(caffe.Net(str(path), caffe.TEST).blobs)[2:4] == [
        "InnerProduct1_InnerProduct1_0_split_0", "InnerProduct1_InnerProduct1_0_split_1",
    ]  # fmt: skip


def test_layers_without_tops_and_items() -> None:
    n = caffe.NetSpec()
    n["a/b"] = L.Input(shape={"dim": 3})
    n.silence = L.Silence(n["a/b"], ntop=0)
    n.other = L.Python(n["a/b"], module="m", layer="l", param_str="1")
    proto = n.to_proto()
    assert [layer.name for layer in proto.layer] == ["a/b", "silence", "other"]
    assert proto.layer[2].python_param.param_str == "1"
    with pytest.raises(AttributeError, match="no blob 'missing'"):
        _ = n.missing
    del n.other
    assert len(n.to_proto().layer) == 2


def test_wrong_specs_raise() -> None:
    two = L.DummyData(ntop=2)
    with pytest.raises(TypeError, match=r"^Silence input 0 is not a Top \(type is <class 'tuple'>\)$"):
        L.Silence(two, ntop=0)
    n = caffe.NetSpec()
    n.data = L.Input(shape={"dim": 3}, kernel_sise=2)
    with pytest.raises(AttributeError, match="kernel_sise"):
        n.to_proto()
    with pytest.raises(AttributeError, match="NoParameter"):
        _ = P.No
    with pytest.raises(AttributeError, match="MIN"):
        _ = P.Pooling.MIN


def upscaled(kernel: Any = 3, stride: Any = 1, pad: Any = 0, pool: int = 2, factor: int = 2, cut: int = 0) -> Any:
    n = caffe.NetSpec()
    n.data = L.Input(shape={"dim": [1, 1, 40, 40]})
    n.conv = L.Convolution(n.data, num_output=2, kernel_size=kernel, stride=stride, pad=pad)
    n.pool = L.Pooling(n.conv, kernel_size=pool, stride=pool)
    n.relu = L.ReLU(n.pool)
    n.up = L.Deconvolution(n.relu, convolution_param={"num_output": 2, "kernel_size": 2 * factor, "stride": factor,
                                                      "pad": cut})  # fmt: skip
    return n


def test_positions_are_mapped_through_convolution_pooling_and_deconvolution() -> None:
    for made, scale, shift in (
        (upscaled(), 1, 0), (upscaled(pool=4, factor=4), 1, -1), (upscaled(pad=3), 1, -3), (upscaled(cut=2), 1, 2),
        (upscaled(stride=2), 2, -1),
    ):  # fmt: skip
        axis, a, b = coord_map_from_to(made.up, made.data)
        assert (axis, float(a[0]), float(b[0])) == (1, scale, shift)
    # each axis is mapped as if the other were not there
    made = upscaled([3, 5], [1, 2], [0, 6])
    _, a, b = coord_map_from_to(made.up, made.data)
    for index, alone in enumerate((upscaled(3, 1, 0), upscaled(5, 2, 6))):
        _, one, other = coord_map_from_to(alone.up, alone.data)
        assert (a[index], b[index]) == (one[0], other[0])


def test_a_crop_aligns_two_blobs(tmp_path: Path) -> None:
    n = upscaled(pad=5)
    n.score = crop(n.up, n.data)
    layer = n.to_proto().layer[-1]
    assert (layer.type, layer.crop_param.axis, list(layer.crop_param.offset)) == ("Crop", 2, [5])
    (tmp_path / "crop.prototxt").write_text(str(n.to_proto()))
    net = caffe.Net(str(tmp_path / "crop.prototxt"), caffe.TEST)
    assert net.blobs["score"].data.shape == (1, 2, 40, 40)
    n.again = L.Crop(n.score, n.data, axis=2, offset=3)
    _, _, shift = coord_map_from_to(n.again, n.data)
    assert np.all(shift == 3)


def test_crops_that_are_impossible_raise() -> None:
    with pytest.raises(AssertionError, match="scale mismatch"):
        crop(*_ends(upscaled(pool=3)))
    with pytest.raises(AssertionError, match="negative offset"):
        crop(*_ends(upscaled(cut=9)))
    n = upscaled()
    n.fc = L.InnerProduct(n.up, num_output=2)
    with pytest.raises(RuntimeError, match="Could not compute map"):
        coord_map_from_to(n.fc, n.data)
    n.legacy = L.Convolution(n.data, kernel_h=3, kernel_w=3, num_output=1)
    with pytest.raises(AssertionError, match="legacy _h/_w"):
        coord_map_from_to(n.legacy, n.data)


def _ends(n: Any) -> tuple[Any, Any]:
    return n.up, n.data


def test_a_net_is_drawn_as_text_without_any_program(tmp_path: Path) -> None:
    net = spec().to_proto()
    net.name = 'a "net"'
    caffe.draw.draw_net_to_file(net, str(tmp_path / "net.dot"), "TB", display_lrm=True)
    text = (tmp_path / "net.dot").read_text()
    assert text.startswith('digraph "a \\"net\\""')
    assert "conv (Convolution) kernel size: 3 stride: 1 pad: 0 lr mult: 2.0, 1.0" in text
    assert "(Pooling AVE)" in text
    assert "SoftmaxWithLoss" in text
    assert "SoftmaxWithLoss" not in caffe.draw.draw_net(net, "LR", "dot", phase=caffe.TEST).decode()
    assert text.count("shape=") == text.count(" [label=") - text.count("->")


def test_a_picture_needs_graphviz(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if shutil.which("dot"):
        assert caffe.draw.draw_net(spec().to_proto(), "LR", "svg").lstrip().startswith(b"<?xml")
        with pytest.raises(RuntimeError, match="dot -Tnope"):
            caffe.draw.draw_net(spec().to_proto(), "LR", "nope")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(RuntimeError, match="needs the program dot"):
        caffe.draw.draw_net_to_file(spec().to_proto(), str(tmp_path / "net.png"))
    assert not list(tmp_path.iterdir())


def test_learning_rates_in_pictures() -> None:
    layer = caffe_pb2.LayerParameter(type="InnerProduct")
    assert caffe.draw.get_layer_lr_mult(layer) == (1, 1)
    layer.param.add(lr_mult=0)
    assert caffe.draw.get_layer_lr_mult(layer) == (0, 1)
    with pytest.raises(ValueError, match="do not have a learning rate"):
        caffe.draw.get_layer_lr_mult(caffe_pb2.LayerParameter(type="ReLU"))
