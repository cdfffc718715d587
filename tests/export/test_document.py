"""The recipes of docs/export.md run as they are printed, and give the engine's probabilities."""

import re
import shlex
from pathlib import Path

import cv2
import numpy as np
import pytest
from support.tiny import write_tiny

from transfer_caffe.engine import Net
from transfer_caffe.export.__main__ import main
from transfer_caffe.formats.proto import write_binary
from transfer_caffe.formats.weights import read_weights

for package in ("onnx", "onnxruntime", "safetensors"):
    pytest.importorskip(package, reason="needs transfer_caffe[export]")

DOCUMENT = (Path(__file__).resolve().parents[2] / "docs" / "export.md").read_text(encoding="utf-8")
COMMANDS = [
    shlex.split(text.replace("\\\n", " "))
    for text in re.findall(r"^ {4}python -m transfer_caffe\.export ((?:.*\\\n)*.*)$", DOCUMENT, re.MULTILINE)
]
RECIPES = {
    code.splitlines()[0].removeprefix("# ").split(":")[0]: code
    for code in re.findall(r"```python\n(.*?)```", DOCUMENT, re.DOTALL)
}

NET = """
input: "data" input_dim: 10 input_dim: 3 input_dim: 227 input_dim: 227
layer { name: "conv1" type: "Convolution" bottom: "data" top: "conv1"
  convolution_param { num_output: 6 kernel_size: 11 stride: 8 weight_filler { type: "xavier" } } }
layer { name: "relu1" type: "ReLU" bottom: "conv1" top: "conv1" }
layer { name: "pool1" type: "Pooling" bottom: "conv1" top: "pool1" pooling_param { kernel_size: 3 stride: 2 } }
layer { name: "norm1" type: "LRN" bottom: "pool1" top: "norm1" }
layer { name: "fc7" type: "InnerProduct" bottom: "norm1" top: "fc7"
  inner_product_param { num_output: 12 weight_filler { type: "xavier" } } }
layer { name: "relu7" type: "ReLU" bottom: "fc7" top: "fc7" }
layer { name: "drop7" type: "Dropout" bottom: "fc7" top: "fc7" }
layer { name: "fc8" type: "InnerProduct" bottom: "fc7" top: "fc8"
  inner_product_param { num_output: 8 weight_filler { type: "xavier" } } }
layer { name: "scaled" type: "Power" bottom: "fc8" top: "scaled" power_param { scale: 2 } }
layer { name: "prob" type: "Softmax" bottom: "scaled" top: "prob" }
"""


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """The files that the document names, in the current folder."""
    monkeypatch.chdir(tmp_path)
    Path("deploy.prototxt").write_text(NET)
    write_binary("net.caffemodel", Net.load("deploy.prototxt", seed=7).to_proto())
    Path("names.txt").write_text("".join(f"class {number}\n" for number in range(8)))
    image = np.random.RandomState(1).randint(0, 256, (90, 120, 3)).astype(np.uint8)
    assert cv2.imwrite("cat.png", image)
    return tmp_path


def run(name):
    names: dict = {}
    exec(compile(RECIPES[name], name, "exec"), names)
    return names


def wanted():
    """Return the engine's probabilities of the image, prepared by hand."""
    image = cv2.imread("cat.png")
    assert image is not None
    image = np.asarray(cv2.resize(image, (256, 256)))[14 : 14 + 227, 14 : 14 + 227]
    net = Net.load("deploy.prototxt", "net.caffemodel")
    data = image.transpose(2, 0, 1)[None] - np.array([104, 117, 123], np.float32).reshape(3, 1, 1)
    net.feed({"data": np.repeat(data, 10, 0)})
    return net.forward()[1]["prob"].detach().numpy()[:1]


def require_wanted(found):
    np.testing.assert_allclose(np.asarray(found), wanted(), rtol=0, atol=1e-5)
    assert np.ptp(wanted()) > 0.01  # the classes are not all alike


def export(*words):
    [command] = [each for each in COMMANDS if set(words) <= set(each)]
    assert main(command) == 0


def test_onnxruntime(capsys):
    export("--with-preprocessing")
    require_wanted(run("onnxruntime")["probabilities"])
    assert capsys.readouterr().out.splitlines()[-1] == f"class {wanted().argmax()}"


def test_opencv():
    [command] = [each for each in COMMANDS if each[-1] == "net.onnx"]
    assert main(command) == 0
    require_wanted(run("OpenCV")["probabilities"])


def test_pytorch():
    names = run("PyTorch")
    require_wanted(names["probabilities"])
    assert names["features"]["fc7"].shape == (1, 12)
    assert read_weights(Path("tuned.caffemodel"))["fc8"][0].shape == (20, 12)


def test_safetensors():
    argv = ["deploy.prototxt", "--weights", "net.caffemodel", "--safetensors", "net.safetensors"]
    assert main(argv) == 0
    module = run("safetensors")["module"]
    np.testing.assert_array_equal(
        module.conv1.weight.detach().numpy(), read_weights(Path("net.caffemodel"))["conv1"][0]
    )


def test_data(folder, capsys):
    write_tiny(folder)
    run("a database for PyTorch")
    assert capsys.readouterr().out.startswith("torch.Size([4, 3, 12, 12]) tensor([")
