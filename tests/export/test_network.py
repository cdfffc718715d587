"""Export of a trained network's folder, and preprocessing inside the graph."""

import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from support.preloaded import forked
from support.small_world import draw_shapes, experiment

from transfer_caffe.data import make_data
from transfer_caffe.driver import train
from transfer_caffe.engine.net import Net
from transfer_caffe.experiment.read import load_recipe
from transfer_caffe.export.__main__ import main
from transfer_caffe.export.network import class_names, read_network
from transfer_caffe.formats.database import Database
from transfer_caffe.utils.files import write_text

onnx = pytest.importorskip("onnx", reason="needs transfer_caffe[export]")
onnxruntime = pytest.importorskip("onnxruntime", reason="needs transfer_caffe[export]")

FOLDER = Path("runs/tiny/random0-baseA-s0")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with a space in its name, with a recipe's data and one trained network."""
    folder = tmp_path_factory.mktemp("a folder")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        draw_shapes()
        write_text("data/shapes/classes.txt", "".join(f"{number} shape {number}\n" for number in range(6)))
        write_text("tiny.yaml", experiment("{random0: [baseA]}"))
        recipe = load_recipe("tiny.yaml")
        make_data(recipe)
        with forked():
            train(recipe.network("random0", "baseA"))
    return folder


@pytest.fixture
def here(trained, tmp_path, monkeypatch):
    shutil.copytree(trained, tmp_path / "a copy")
    monkeypatch.chdir(tmp_path / "a copy")
    return tmp_path / "a copy"


def properties(path):
    return {each.key: each.value for each in onnx.load(path).metadata_props}


def test_a_network_has_its_preprocessing_and_the_names_of_its_half(here):
    assert main(["--network", str(FOLDER), "--onnx", "net.onnx", "--images", "data/shapes/images/val_0_0.png"]) == 0
    found = properties("net.onnx")
    assert json.loads(found["caffe.resize"]) == [32, 32] and json.loads(found["caffe.crop"]) == [28, 28]
    mean = np.frombuffer(__import__("base64").b64decode(found["caffe.mean_image"]), "<f4")
    assert mean.size == 3 * 28 * 28
    half = [line.split()[0] for line in Path("data/shapes/random0/A/classes.txt").read_text().splitlines()[1:]]
    assert json.loads(found["caffe.classes"]) == [f"shape {number}" for number in half]


@pytest.mark.parametrize("size", [1, 4])
def test_bytes_of_records_give_the_blobs_of_the_data_layer(here, monkeypatch, size):
    """RGB bytes, as decoders give them, become what Caffe's data layer makes of the same records."""
    argv = ["--network", str(FOLDER), "--onnx", "net.onnx", "--with-preprocessing"]
    assert main(argv) == 0
    assert properties("net.onnx")["caffe.image_input"] == "image"
    records = [Database("data/shapes/random0/A/val_lmdb").record(index)[0] for index in range(size)]
    pixels = np.stack([record.transpose(1, 2, 0)[..., ::-1] for record in records])
    monkeypatch.chdir(FOLDER)
    net = Net.load("train_val.prototxt", read_network(".").weights)
    with torch.no_grad():
        net.forward(0, keep=True)
    [scores] = [layer.param.bottom[0] for layer in net.layers if layer.type == "SoftmaxWithLoss"]
    wanted = torch.softmax(torch.from_numpy(net.array(scores)[:size]), 1).numpy()
    session = onnxruntime.InferenceSession(str(here / "net.onnx"), providers=["CPUExecutionProvider"])
    [found] = session.run(["prob"], {"image": pixels})
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5)
    # with channels in the other order it would be another result
    [other] = session.run(["prob"], {"image": np.ascontiguousarray(pixels[..., ::-1])})
    assert np.abs(other - wanted).max() > 1e-4


def test_images_are_resized_before_the_crop(here):
    image = np.random.RandomState(0).randint(0, 256, (50, 70, 3)).astype(np.uint8)
    assert cv2.imwrite("big.png", image)
    assert main(["--network", str(FOLDER), "--onnx", "net.onnx", "--with-preprocessing", "--images", "big.png"]) == 0
    write_text("no image.png", "text")
    assert main(["--network", str(FOLDER), "--onnx", "other.onnx", "--images", "no image.png"]) == 2
    assert not Path("other.onnx").exists()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda: (FOLDER / "done.json").unlink(), "only finished networks can be exported"),
        (lambda: shutil.rmtree(FOLDER), "give a network's folder, runs/RECIPE/NETWORK"),
        (lambda: shutil.rmtree(FOLDER / "snapshots"), "final weights are missing"),
        (lambda: next((FOLDER / "snapshots").glob("*.caffemodel")).write_bytes(b"x"), "damaged or replaced"),
        (lambda: Path("data/shapes/random0/A/mean.binaryproto").unlink(), "no such mean image"),
    ],
)
def test_what_is_missing_is_one_line(here, change, words, capsys):
    change()
    capsys.readouterr()
    assert main(["--network", str(FOLDER), "--onnx", "net.onnx"]) == 2
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1
    assert not Path("net.onnx").exists()


def test_class_files_give_their_words(tmp_path):
    write_text(tmp_path / "classes.csv", 'index,wnid,words,group\n0,n1,"a, b",natural\n1,n2,c,natural\n2,n3,,natural\n')
    write_text(tmp_path / "random0/A/classes.txt", "# Orig_idx new_idx\n2 0\n0 1\n")
    assert class_names(tmp_path / "random0" / "A") == ["n3", "a, b"]
    assert class_names(tmp_path / "elsewhere") == []
