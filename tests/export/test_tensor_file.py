"""safetensors files: the module's state_dict, the net and its preprocessing, and the way back to the .caffemodel."""

import json
from typing import Any

import numpy as np
import pytest
import torch
from conformance.networks import NETWORKS
from support.exporting import of_case, write_network

import transfer_caffe as tc
from transfer_caffe.export.__main__ import main
from transfer_caffe.export.inference import load
from transfer_caffe.export.preprocessing import Preprocessing, preprocessing_of
from transfer_caffe.formats import hdf5
from transfer_caffe.formats.nets import read_net
from transfer_caffe.formats.proto import parse_text, read_binary, write_binary
from transfer_caffe.formats.proto.caffe_pb2 import NetParameter
from transfer_caffe.formats.weights import read_weights
from transfer_caffe.utils.errors import UserError

pytest.importorskip("safetensors", reason="needs transfer_caffe[export]")

from safetensors import safe_open
from safetensors.numpy import load_file, save_file


def metadata_of(path):
    with safe_open(str(path), framework="numpy") as file:
        return file.metadata()


@pytest.mark.parametrize("name", NETWORKS)
def test_there_and_back(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    net, _ = write_network(name, tmp_path)
    # as the engine writes it: with all layers, and not empty statistics
    used = load(net, "net.caffemodel")
    for layer in used.net.layers:
        if layer.type == "BatchNorm":
            for blob in layer.blobs:
                blob.data.uniform_(0.5, 3)
    write_binary("made.caffemodel", used.net.to_proto())
    assert main([str(net), "--weights", "made.caffemodel", "--safetensors", "net.safetensors"]) == 0
    assert main(["net.safetensors", "--caffemodel", "back.caffemodel"]) == 0
    assert "the same bytes as" in capsys.readouterr().out
    assert (tmp_path / "back.caffemodel").read_bytes() == (tmp_path / "made.caffemodel").read_bytes()
    module = tc.as_module(net)
    module.load_state_dict(
        {key: torch.from_numpy(each) for key, each in load_file("net.safetensors").items()}, strict=True
    )
    wanted = tc.as_module(net, "made.caffemodel").state_dict()
    assert all(torch.equal(each, wanted[key]) for key, each in module.state_dict().items())
    assert parse_text(metadata_of("net.safetensors")["caffe.prototxt"], NetParameter(), "x") == read_net(net)


def test_layers_that_the_net_does_not_have_come_back(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    net, weights = write_network("lenet", tmp_path)
    more = read_binary(weights, NetParameter())
    more.layer.add(name="elsewhere").blobs.add(data=[1.5, 2.5]).shape.dim.append(2)
    write_binary("more.caffemodel", more)
    assert main([str(net), "--weights", "more.caffemodel", "--safetensors", "net.safetensors"]) == 0
    assert not [name for name in load_file("net.safetensors") if name.startswith("elsewhere")]
    assert main(["net.safetensors", "--caffemodel", "back.caffemodel"]) == 0
    assert (tmp_path / "back.caffemodel").read_bytes() == (tmp_path / "more.caffemodel").read_bytes()


def test_old_files_come_back_with_their_values(tmp_path, capsys):
    """A file of 2014: layers of the old format, blobs of four axes."""
    old = parse_text(
        'layers { name: "fc" type: INNER_PRODUCT blobs { num: 1 channels: 1 height: 2 width: 3 data: 1 data: 2 data: 3'
        " data: 4 data: 5 data: 6 } blobs { num: 1 channels: 1 height: 1 width: 2 data: 7 data: 8 }"
        " inner_product_param { num_output: 2 } }",
        NetParameter(), "old",
    )  # fmt: skip
    (tmp_path / "old.caffemodel").write_bytes(old.SerializeToString())
    (tmp_path / "net.prototxt").write_text(
        'input: "data" input_dim: 1 input_dim: 3 input_dim: 1 input_dim: 1\n'
        'layers { name: "fc" type: INNER_PRODUCT bottom: "data" top: "fc" inner_product_param { num_output: 2 } }'
    )
    there = tmp_path / "net.safetensors"
    argv = [str(tmp_path / "net.prototxt"), "--weights", str(tmp_path / "old.caffemodel")]
    assert main([*argv, "--safetensors", str(there)]) == 0
    np.testing.assert_array_equal(load_file(there)["fc.weight"], [[1, 2, 3], [4, 5, 6]])
    assert main([str(there), "--caffemodel", str(tmp_path / "back.caffemodel")]) == 0
    assert "the weights of" in capsys.readouterr().out
    before, after = (read_weights(tmp_path / f"{name}.caffemodel") for name in ("old", "back"))
    for one, two in zip(before["fc"], after["fc"], strict=True):
        np.testing.assert_array_equal(one, two)


def test_preprocessing_and_classes_are_metadata(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    net, weights = write_network("lenet", tmp_path)
    (tmp_path / "names.txt").write_text("".join(f"digit {number}\n" for number in range(10)))
    argv = [str(net), "--weights", str(weights), "--mean", "33.5", "--scale", "0.00390625", "--resize", "32,30"]
    assert main([*argv, "--classes", "names.txt", "--safetensors", "net.safetensors"]) == 0
    found = {key: each for key, each in metadata_of("net.safetensors").items() if key.startswith("caffe.")}
    assert found["caffe.channels"] == "gray" and json.loads(found["caffe.mean"]) == [33.5]
    assert json.loads(found["caffe.resize"]) == [32, 30] and json.loads(found["caffe.crop"]) == [28, 28]
    assert json.loads(found["caffe.scale"]) == 0.00390625
    assert json.loads(found["caffe.classes"])[3] == "digit 3"


def test_changed_tensors_are_written_to_the_caffemodel(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    net, weights = write_network("resnet", tmp_path)
    assert main([str(net), "--weights", str(weights), "--safetensors", "net.safetensors"]) == 0
    tensors, metadata = load_file("net.safetensors"), metadata_of("net.safetensors")
    tensors["conv1.weight"] = tensors["conv1.weight"] + 1
    tensors["bn_conv1.running_mean"] = tensors["bn_conv1.running_mean"] + 1
    save_file(tensors, "changed.safetensors", metadata)
    assert main(["changed.safetensors", "--caffemodel", "changed.caffemodel"]) == 0
    assert "the weights of" in capsys.readouterr().out
    changed = read_weights(tmp_path / "changed.caffemodel")
    np.testing.assert_array_equal(changed["conv1"][0], read_weights(weights)["conv1"][0] + 1)
    assert (changed["bn_conv1"][0] == 1).all() and changed["bn_conv1"][2] == [1]


def test_other_files_are_refused_in_one_line(tmp_path, capsys):
    save_file({"x": np.zeros(3, np.float32)}, tmp_path / "other.safetensors")
    (tmp_path / "damaged.safetensors").write_bytes(b"\xff" * 100)
    for name, words in (("other", "was not written by this program"), ("damaged", "not a safetensors file")):
        argv = [str(tmp_path / f"{name}.safetensors"), "--caffemodel", str(tmp_path / "net.caffemodel")]
        assert main(argv) == 2
        error = capsys.readouterr().err
        assert words in error and error.count("\n") == 1
    assert not (tmp_path / "net.caffemodel").exists()


def test_weights_shared_in_another_shape_are_refused_by_name(tmp_path):
    from conformance.graph_cases import GRAPH_CASES

    from transfer_caffe.export.tensor_file import write_safetensors

    case = GRAPH_CASES["shared weights in another shape"]
    with pytest.raises(UserError, match=r"^layer 'two' \(InnerProduct\): shares weights"):
        write_safetensors(tmp_path / "net.safetensors", of_case(case), case.net, None)


def test_what_is_given_replaces_only_that_part_of_the_preprocessing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    net, weights = write_network("lenet", tmp_path)
    argv = [str(net), "--weights", str(weights), "--mean", "33", "--scale", "0.5", "--resize", "32,40"]
    assert main([*argv, "--safetensors", "a.safetensors"]) == 0
    known = Preprocessing.from_metadata(metadata_of("a.safetensors"), "a")
    used = load(net, weights)
    assert known is not None
    cases: tuple[tuple[dict[str, Any], str], ...]
    cases = (({"scale": 0.25}, "scale"), ({"mean": [7]}, "mean"), ({"resize": (30, 30)}, "size"))
    for given, changed in cases:
        found = preprocessing_of(used, known=known, **given)
        assert found is not None
        same = {"scale": found.scale == 0.5, "mean": found.mean == 33, "size": found.size == (32, 40)}
        assert same == {each: each != changed for each in same}


def test_a_file_with_doubles_comes_back_changed_or_not(tmp_path, monkeypatch):
    """Real Caffe in double precision writes double_data, which readers prefer to data."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.prototxt").write_text(
        'layer { name: "in" type: "Input" top: "x" input_param { shape { dim: 2 dim: 2 dim: 3 dim: 3 } } }'
        'layer { name: "norm" type: "BatchNorm" bottom: "x" top: "y" }'
    )
    param = NetParameter()
    layer = param.layer.add(name="norm", type="BatchNorm")
    for values in ([1.1, 2.2], [3.3, 4.4], [1.7]):
        layer.blobs.add(double_data=values).shape.dim.append(len(values))
    write_binary("net.caffemodel", param)
    assert main(["net.prototxt", "--weights", "net.caffemodel", "--safetensors", "a.safetensors"]) == 0
    assert main(["a.safetensors", "--caffemodel", "back.caffemodel"]) == 0
    assert (tmp_path / "back.caffemodel").read_bytes() == (tmp_path / "net.caffemodel").read_bytes()
    tensors, metadata = load_file("a.safetensors"), metadata_of("a.safetensors")
    tensors["norm.running_mean"] = np.array([5, 6], np.float32)
    save_file(tensors, "b.safetensors", metadata)
    assert main(["b.safetensors", "--caffemodel", "changed.caffemodel"]) == 0
    mean, _, total = read_weights(tmp_path / "changed.caffemodel")["norm"]
    np.testing.assert_allclose(mean / total, [5, 6], rtol=1e-6)


def test_layers_of_one_name_are_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    fc = "inner_product_param { num_output: 3 }"
    (tmp_path / "net.prototxt").write_text(
        'layer { name: "in" type: "Input" top: "x" input_param { shape { dim: 2 dim: 3 } } }'
        f'layer {{ name: "a" type: "InnerProduct" bottom: "x" top: "y" {fc} }}'
        f'layer {{ name: "a" type: "InnerProduct" bottom: "y" top: "z" {fc} }}'
    )
    write_binary("net.caffemodel", load("net.prototxt", None).net.to_proto())
    assert main(["net.prototxt", "--weights", "net.caffemodel", "--safetensors", "a.safetensors"]) == 2
    assert "layer 'a' (InnerProduct): has the name of an earlier layer" in capsys.readouterr().err


def test_files_are_written_and_read_as_all_others(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    net, weights = write_network("lenet", tmp_path)
    argv = [str(net), "--weights", str(weights), "--safetensors"]
    assert main([*argv, "a.safetensors"]) == 0
    (tmp_path / "other").touch()
    assert (tmp_path / "a.safetensors").stat().st_mode == (tmp_path / "other").stat().st_mode
    (tmp_path / "folder.safetensors").mkdir()
    for command in (
        [*argv, f"{weights}/a.safetensors"], ["folder.safetensors", "--caffemodel", "b.caffemodel"],
        ["a.safetensors", "--caffemodel", "b.caffemodel.h5"], ["a.safetensors", "--caffemodel", "a.safetensors"],
        [*argv, str(weights)], [*argv[:-1], "--onnx", "x.bin", "--safetensors", "./x.bin"],
    ):  # fmt: skip
        capsys.readouterr()
        assert main(command) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and "Traceback" not in error
        assert any(str(word) in error for word in (weights, *command) if not str(word).startswith("-"))
    assert read_weights(weights)


def test_damaged_preprocessing_is_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    net, weights = write_network("lenet", tmp_path)
    assert main([str(net), "--weights", str(weights), "--scale", "0.5", "--safetensors", "a.safetensors"]) == 0
    for key, value in (("caffe.channels", None), ("caffe.crop", "[1"), ("caffe.scale", '"much"')):
        metadata = metadata_of("a.safetensors")
        if value is None:
            del metadata[key]
        else:
            metadata[key] = value
        save_file(load_file("a.safetensors"), "b.safetensors", metadata)
        assert main(["b.safetensors", "--safetensors", "c.safetensors"]) == 2
        assert main(["b.safetensors", "--onnx", "c.onnx", "--no-check"]) == 2
        assert "b.safetensors: the preprocessing in its metadata is damaged" in capsys.readouterr().err


def test_hdf5_is_known_by_its_content(tmp_path, monkeypatch):
    """As Net::CopyTrainedLayersFrom does it."""
    monkeypatch.chdir(tmp_path)
    net, weights = write_network("lenet", tmp_path)
    engine = load(net, weights).net
    stored = [(layer.name, {i: blob.data.detach().numpy() for i, blob in enumerate(layer.blobs)}) for layer in
              engine.layers if layer.blobs]  # fmt: skip
    hdf5.save_weights("net.h5", stored)
    (tmp_path / "net.h5").rename("renamed.caffemodel")
    one, two = (load(net, path).net for path in (weights, "renamed.caffemodel"))
    assert all(torch.equal(a.data, b.data) for a, b in zip(one.learnable, two.learnable, strict=True))
    assert read_weights(tmp_path / "renamed.caffemodel").keys() == read_weights(weights).keys()


def test_an_onnx_file_is_made_from_a_safetensors_file(tmp_path, monkeypatch):
    onnx = pytest.importorskip("onnx", reason="needs transfer_caffe[export]")
    pytest.importorskip("onnxruntime", reason="needs transfer_caffe[export]")
    monkeypatch.chdir(tmp_path)
    net, weights = write_network("resnet", tmp_path)
    argv = [str(net), "--weights", str(weights), "--mean", "104,117,123"]
    assert main([*argv, "--safetensors", "net.safetensors", "--onnx", "one.onnx"]) == 0
    assert main(["net.safetensors", "--onnx", "two.onnx"]) == 0
    one, two = onnx.load("one.onnx"), onnx.load("two.onnx")
    assert one.graph.node == two.graph.node and one.metadata_props == two.metadata_props
    assert [each.raw_data for each in one.graph.initializer] == [each.raw_data for each in two.graph.initializer]
