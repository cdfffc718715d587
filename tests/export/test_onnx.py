"""ONNX files compute the engine's blobs, in onnxruntime: all layer types, networks, random settings."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

onnx = pytest.importorskip("onnx", reason="needs transfer_caffe[export]")
pytest.importorskip("onnxruntime", reason="needs transfer_caffe[export]")

from conformance.graph_cases import GRAPH_CASES  # noqa: E402
from conformance.layer_cases import LAYER_CASES  # noqa: E402
from conformance.networks import NETWORKS  # noqa: E402
from conformance.random_layers import random_cases  # noqa: E402
from conformance.suite import as_case  # noqa: E402
from onnx import numpy_helper  # noqa: E402  # pyright: ignore[reportMissingImports]
from support.exporting import exported, of_case, write_network  # noqa: E402

from transfer_caffe.engine.layers import LAYERS  # noqa: E402
from transfer_caffe.export import Differs  # noqa: E402
from transfer_caffe.export.__main__ import main  # noqa: E402
from transfer_caffe.export.check import check  # noqa: E402
from transfer_caffe.export.inference import load  # noqa: E402
from transfer_caffe.export.onnx_file import build  # noqa: E402
from transfer_caffe.export.operators import OPERATORS  # noqa: E402
from transfer_caffe.formats.proto import parse_text, write_binary  # noqa: E402
from transfer_caffe.formats.proto.caffe_pb2 import NetParameter  # noqa: E402
from transfer_caffe.utils.errors import UserError  # noqa: E402

NOT_EXPORTED = {"Python"}
"""Layer types without an equivalent: code in Python may do anything."""

LOSSES = {name for name, layer in LAYERS.items() if layer.is_loss} | {"Accuracy"}
SOURCES = {"Data", "ImageData", "HDF5Data", "MemoryData", "WindowData", "Input"}
"""Layer types that are replaced or left out; all others must be exported."""


def net_of(text):
    return parse_text(text, NetParameter(), "test")


INPUT = 'layer { name: "in" type: "Input" top: "x" input_param { shape { dim: 2 dim: 4 dim: 6 dim: 5 } } }'


def layer(kind, settings="", bottom="x", top="y", name="l"):
    return f'layer {{ name: "{name}" type: "{kind}" bottom: "{bottom}" top: "{top}" {settings} }}'


@pytest.mark.parametrize("kind", [kind for kind in LAYER_CASES if kind in OPERATORS])
def test_all_settings_of_a_layer_type(kind, tmp_path):
    for seed, case in enumerate(LAYER_CASES[kind]):
        if "nan" in case.kinds.values():  # other programs may treat NaN otherwise
            continue
        given = as_case(case, seed)
        try:
            exported(of_case(given), tmp_path / "net.onnx", given.values)
        except UserError as error:
            # other programs have convolutions over 1 to 3 axes
            assert re.fullmatch(r"layer 'l' \(\w+\): cannot be exported: it has [4-9] spatial axes.*", str(error)), (
                error
            )


OUTSIDE = layer("Pooling", "pooling_param { pool: MAX kernel_size: 1 stride: 3 }")
"""A pooling whose last windows lie outside of the image of 6 x 5; Caffe gives the lowest float for them."""


def test_windows_outside_of_the_image(tmp_path):
    used = load(net_of(INPUT + OUTSIDE), None)
    exported(used, tmp_path / "net.onnx", {"blob/x": np.ones((2, 4, 6, 5))})
    assert used.net.array("y").min() == np.finfo(np.float32).min
    with pytest.raises(UserError, match=r"^layer 'l' \(Pooling\): cannot be exported: its second top has windows"):
        build(load(net_of(INPUT + OUTSIDE.replace('top: "y"', 'top: "y" top: "places"')), None))


def test_every_layer_type_with_a_meaning_is_exported():
    silent = {name for name, layer in LAYERS.items() if layer.tops == (0, 0)}
    assert set(LAYERS) - LOSSES - SOURCES - silent - NOT_EXPORTED <= set(OPERATORS)


@pytest.mark.parametrize("kind", sorted(LOSSES - {"SoftmaxWithLoss"}))
def test_a_net_of_a_loss_alone_is_refused_by_name(kind):
    with pytest.raises(UserError, match=rf"^layer 'l' \({kind}\): has no meaning without labels[^\n]*$"):
        load(LAYER_CASES[kind][0].net, None)


@pytest.mark.parametrize("name", GRAPH_CASES)
def test_small_graphs(name, tmp_path):
    try:
        used = of_case(GRAPH_CASES[name])
    except UserError:
        assert name == "in place: AbsVal"  # the engine refuses it
        return
    exported(used, tmp_path / "net.onnx")


@pytest.mark.parametrize("seed", range(3))
def test_random_settings_are_exported_or_refused_by_name(seed, tmp_path):
    done = 0
    for case in random_cases(seed, 100):
        try:
            given = as_case(case, seed)
            exported(of_case(given), tmp_path / "net.onnx", given.values)
            done += 1
        except UserError as error:
            assert "layer 'l' (" in str(error) and "\n" not in str(error)
    assert 50 < done < 100


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_by_the_command(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    net, weights = write_network(name, tmp_path)
    assert main([str(net), "--weights", str(weights), "--onnx", "it is.onnx"]) == 0
    out = capsys.readouterr().out
    assert "left out: " in out and "blobs are the engine's on random values" in out
    model = onnx.load("it is.onnx")
    assert {each.domain for each in model.opset_import} == {""}
    assert not [node for node in model.graph.node if node.domain]
    assert all(attribute.name != "ceil_mode" for node in model.graph.node for attribute in node.attribute)


def test_names_are_caffes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    net, weights = write_network("caffenet", tmp_path)
    model = build(load(net, weights)).proto.graph
    nodes = {node.name: node for node in model.node}
    assert [nodes["conv1"].output[0], *nodes["relu1"].output, *nodes["pool1"].input] == [
        "conv1@conv1",
        "conv1",
        "conv1",
    ]
    assert list(nodes["conv1"].input) == ["data", "conv1.weight", "conv1.bias"]
    assert [each.name for each in model.input] == ["data"]
    assert [each.name for each in model.output] == ["prob"]


@pytest.mark.parametrize(
    ("text", "opens"),
    [
        (layer("Pooling", "pooling_param { pool: AVE kernel_size: 3 stride: 2 }"), True),
        (layer("InnerProduct", "inner_product_param { num_output: 3 axis: 2 }"), True),
        (layer("InnerProduct", "inner_product_param { num_output: 3 axis: 0 }"), False),
        (layer("Reshape", "reshape_param { shape { dim: 0 dim: -1 } }"), True),
        (layer("Reshape", "reshape_param { shape { dim: 2 dim: -1 } }"), False),
        (layer("Slice", "slice_param { axis: 0 }", top='y" top: "z'), True),
        (layer("Slice", "slice_param { axis: 0 slice_point: 1 }", top='y" top: "z'), False),
        (layer("Scale", "scale_param { axis: 0 num_axes: 2 }"), False),
        (layer("Softmax", "softmax_param { axis: 0 }"), True),
    ],
)
def test_the_batch_size_is_open_where_the_net_allows_it(text, opens, tmp_path):
    model = build(load(net_of(INPUT + text), None))
    assert model.open_batch == opens
    model.write(tmp_path / "net.onnx")
    found = check(model, tmp_path / "net.onnx")
    assert len(found.inputs) == (2 if opens else 1)
    first = model.proto.graph.input[0].type.tensor_type.shape.dim[0]
    assert (first.dim_param, first.dim_value) == (("batch", 0) if opens else ("", 2))


def test_the_check_names_the_first_blob_that_differs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    net, weights = write_network("lenet", tmp_path)
    model = build(load(net, weights))
    [weight] = [each for each in model.proto.graph.initializer if each.name == "ip1.bias"]
    array = numpy_helper.to_array(weight).copy()
    array[3] += 0.01
    weight.CopyFrom(numpy_helper.from_array(array, weight.name))
    model.write("net.onnx")
    with pytest.raises(Differs, match=r"^blob 'ip1' of layer 'relu1' \(ReLU\) differs from the engine's on random"):
        check(model, "net.onnx")


def test_a_file_that_differs_is_not_written(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    net, weights = write_network("lenet", tmp_path)
    monkeypatch.setitem(OPERATORS, "Pooling", lambda place: place.node("Identity", place.bottoms, place.tops[0]))
    assert main([str(net), "--weights", str(weights), "--onnx", "net.onnx"]) == 1
    error = capsys.readouterr().err
    assert error.startswith("python -m transfer_caffe.export: error: net.onnx was not written: ")
    assert error.count("\n") == 1
    assert not [name for name in os.listdir() if "onnx" in name]


OTHER = layer("InnerProduct", "inner_product_param { num_output: 1 }", name="other", top="other")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (layer("Dropout", "phase: TRAIN"), r"layer 'l' \(Dropout\): cannot be exported"),
        (layer("Pooling", "pooling_param { pool: STOCHASTIC kernel_size: 2 }"), r"layer 'l' \(Pooling\): "),
        (layer("Python"), r"layer 'l' \(Python\): python_param needs a module and a layer"),
        (OTHER + layer("InnerProduct", "inner_product_param { num_output: 3 }"), r"layer 'l' .*has no weights for it"),
    ],
)
def test_what_cannot_be_exported_is_one_line_with_the_layers_name(text, words, tmp_path, capsys):
    (tmp_path / "net.prototxt").write_text(INPUT + text)
    write_binary(tmp_path / "net.caffemodel", load(net_of(INPUT + OTHER), None).net.to_proto())
    argv = [str(tmp_path / "net.prototxt"), "--weights", str(tmp_path / "net.caffemodel")]
    assert main([*argv, "--onnx", str(tmp_path / "net.onnx")]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert re.search(words, error), error
    assert not (tmp_path / "net.onnx").exists()


def test_without_the_packages_the_command_says_what_to_install(tmp_path):
    (tmp_path / "net.prototxt").write_text(INPUT + layer("ReLU"))
    code = (
        "import importlib.util, sys\nfind = importlib.util.find_spec\n"
        "importlib.util.find_spec = lambda name, *more: None if name.startswith('onnx') else find(name, *more)\n"
        "from transfer_caffe.export.__main__ import main\n"
        f"sys.exit(main([{str(tmp_path / 'net.prototxt')!r}, '--onnx', 'net.onnx']))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2
    assert "not installed: onnx and onnxruntime; run: " in done.stderr and "transfer_caffe[export]" in done.stderr


def test_shared_weights_are_stored_once():
    shared = 'param { name: "w" } convolution_param { num_output: 4 kernel_size: 1 bias_term: false }'
    text = INPUT + layer("Convolution", shared) + layer("Convolution", shared, "y", "z", "m")
    model = build(load(net_of(text), None)).proto.graph
    assert [each.name for each in model.initializer] == ["l.weight"]
    assert [node.input[1] for node in model.node] == ["l.weight", "l.weight"]


def test_of_several_classifiers_the_last_one_gives_the_probabilities():
    label = 'layer { name: "label" type: "Input" top: "label" input_param { shape { dim: 2 } } }'
    fc = "inner_product_param { num_output: 3 }"
    text = INPUT + label + layer("InnerProduct", fc, name="a", top="a") + layer("InnerProduct", fc, name="b", top="b")
    for name in "ab":
        text += layer("SoftmaxWithLoss", 'bottom: "label"', name, f"loss_{name}", f"loss_{name}")
    used = load(net_of(text), None)
    assert used.left_out == ["loss_a (SoftmaxWithLoss)", "loss_b (SoftmaxWithLoss)"]
    assert used.net.outputs == ["a", "prob"] and list(used.inputs) == ["x"]
    assert used.param.layer[-1].bottom == ["b"]


def test_memory_of_an_export_of_a_caffenet(tmp_path):
    """61 M weights: the peak is below 2 GiB.

    They are 233 MiB as float32. At the peak there are at most five copies: the engine's, the message's, the file's
    bytes, and two in onnxruntime; with PyTorch's and onnxruntime's libraries (0.3 GiB) that is 1.5 GiB, measured.
    """
    if not Path("/proc/self/status").exists():
        pytest.skip("the peak of a process's memory is read from /proc")
    text = """
    input: "data" input_dim: 1 input_dim: 3 input_dim: 227 input_dim: 227
    layer { name: "pool" type: "Pooling" bottom: "data" top: "p" pooling_param { kernel_size: 25 stride: 25 } }
    layer { name: "fc6" type: "InnerProduct" bottom: "p" top: "fc6" inner_product_param { num_output: 145000 } }
    layer { name: "fc7" type: "InnerProduct" bottom: "fc6" top: "fc7" inner_product_param { num_output: 110 } }
    """
    (tmp_path / "net.prototxt").write_text(text)
    code = """
import re, sys
from transfer_caffe.export.__main__ import main
from transfer_caffe.export.inference import load
from transfer_caffe.formats.proto import write_binary
if sys.argv[1] == "make":
    used = load("net.prototxt", None)
    for layer in used.net.layers:
        for blob in layer.blobs:
            blob.data.data.uniform_(-0.01, 0.01)
    print(sum(blob.data.numel() for blob in used.net.learnable))
    write_binary("net.caffemodel", used.net.to_proto())
else:
    assert main(["net.prototxt", "--weights", "net.caffemodel", "--onnx", "net.onnx"]) == 0
    # not ru_maxrss: it begins with the memory of the parent, the whole test run
    print(re.search(r"VmHWM:\\s*(\\d+)", open("/proc/self/status").read())[1])
"""
    numbers = []
    for what in ("make", "export"):
        done = subprocess.run([sys.executable, "-c", code, what], cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-1000:]
        numbers.append(int(done.stdout.split()[-1]))
    assert numbers[0] > 50_000_000
    assert numbers[1] * 1024 < 2 << 30
