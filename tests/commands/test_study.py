"""The study: from weights, a net and a folder of photographs to an answer, and a second time for nothing."""

from pathlib import Path

import cv2
import numpy as np
import pytest

from transfer_caffe.engine import Net
from transfer_caffe.experiment.read import load_recipe
from transfer_caffe.formats import hdf5
from transfer_caffe.formats.proto import write_binary
from transfer_caffe.study import main, spread

NET = """name: "pretrained" input: "data" input_shape { dim: 1 dim: 3 dim: 24 dim: 24 }
layer { name: "conv1" type: "Convolution" bottom: "data" top: "conv1" convolution_param { num_output: 6 kernel_size: 5
  stride: 2 weight_filler { type: "xavier" } } }
layer { name: "relu1" type: "ReLU" bottom: "conv1" top: "conv1" }
layer { name: "conv2" type: "Convolution" bottom: "conv1" top: "conv2" convolution_param { num_output: 8 kernel_size: 3
  weight_filler { type: "xavier" } } }
layer { name: "relu2" type: "ReLU" bottom: "conv2" top: "conv2" }
layer { name: "fc" type: "InnerProduct" bottom: "conv2" top: "fc" inner_product_param { num_output: 1000
  weight_filler { type: "xavier" } } }
layer { name: "prob" type: "Softmax" bottom: "fc" top: "prob" }
"""


@pytest.fixture(autouse=True)
def photos(tmp_path, monkeypatch) -> Path:
    """A folder of three classes of photographs, a net and its weights, in the current folder."""
    monkeypatch.chdir(tmp_path)
    draw = np.random.RandomState(0)
    for label, name in enumerate(("cat", "dog", "old car")):
        (tmp_path / "my photos" / name).mkdir(parents=True)
        for number in range(10):
            image = draw.randint(0, 100, (40, 30, 3))
            image[8 * label : 8 * label + 12, :, label] += 120
            assert cv2.imwrite(f"my photos/{name}/{number}.png", image.astype(np.uint8))
    Path("net.prototxt").write_text(NET)
    write_binary("weights.caffemodel", Net.load("net.prototxt", seed=5).to_proto())
    return tmp_path / "my photos"


def study(*more: str) -> int:
    arguments = ["--weights", "weights.caffemodel", "--net", "net.prototxt", "--images", "my photos"]
    return main([*arguments, "--name", "pets", "--iterations", "8", "--jobs", "2", *more])


def test_a_study_ends_with_an_answer_and_a_second_one_trains_nothing(capsys):
    assert study("--seeds", "2") == 0
    out = capsys.readouterr().out
    assert "Best: " in out and "pets.yaml: the recipe of the study" in out
    recipe = load_recipe("pets.yaml")
    assert [str(each) for each in recipe.treatments["whole"]] == ["base", "P1", "P2", "P1+", "P2+"]
    assert (recipe.crop, recipe.seeds, recipe.stages) == (24, (0, 1), 3)
    command = "python -m transfer_caffe.export --network runs/pets/whole-"
    assert f"To use it in other programs: {command}" in out
    assert "Best: " in (page := Path("report/pets/index.html").read_text()) and command in page
    assert (Path("report/pets/figures/study.png")).exists()
    before = {path: path.stat().st_mtime_ns for path in Path("runs").rglob("*.caffemodel")}
    assert len(before) == 10 + 8  # final weights of all, initial ones of those that copy
    assert study("--seeds", "2") == 0
    assert "exists already and is used as it is" in (out := capsys.readouterr().out) and "Best: " in out
    assert {path: path.stat().st_mtime_ns for path in Path("runs").rglob("*.caffemodel")} == before


def test_a_plan_trains_nothing(capsys):
    assert study("--plan") == 0
    assert "whole" in capsys.readouterr().out and not Path("runs").exists()


def test_n_are_spread_over_deep_nets():
    assert spread(8) == [1, 2, 3, 4, 5, 6, 7]
    assert spread(17) == [1, 4, 6, 8, 11, 14, 16]
    assert spread(60)[0] == 1 and spread(60)[-1] == 59 and len(spread(60)) == 7


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda: Path("weights.caffemodel").unlink(), "weights.caffemodel: no such file"),
        (lambda: Path("net.prototxt").unlink(), "net.prototxt: no such file"),
        (lambda: [Path(f"my photos/{name}").rename(name) for name in ("cat", "dog")], "at least two classes"),
        (lambda: [path.unlink() for path in Path("my photos/cat").glob("[1-9].png")], "cat has one image only"),
        (lambda: Path("net.prototxt").write_text(NET.replace("input_shape { dim: 1 dim: 3 dim: 24 dim: 24 }", "")),
         "no layer reads images"),
        (lambda: Path("net.prototxt").write_text(NET.replace('"conv2"', '"other"')), "has no layer other"),
        (lambda: Path("weights.caffemodel").write_bytes(b"no weights"), "weights.caffemodel"),
    ],
)  # fmt: skip
def test_bad_input_is_one_line_and_exit_code_2(change, words, capsys):
    change()
    assert study() == 2
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1
    assert not Path("runs").exists() and not Path("pets.yaml").exists()


def test_weights_may_be_in_hdf5_and_are_checked_as_well(capsys):
    net = Net.load("net.prototxt", seed=5)
    hdf5.save_weights("weights.h5", [(name, dict(enumerate(blobs))) for name, blobs in net.weights.items()])
    assert study("--plan", "--weights", "weights.h5") == 0
    Path("pets.yaml").unlink()
    Path("net.prototxt").write_text(NET.replace('"conv2"', '"other"'))
    capsys.readouterr()
    assert study("--plan", "--weights", "weights.h5") == 2
    assert "weights.h5 has no layer other" in capsys.readouterr().err


def test_wrong_options_are_refused(capsys):
    assert study("--seeds", "0") == 2
    assert "--seeds must be 1 or more" in capsys.readouterr().err
    for mean in ("1,two,3", "", "1,2"):
        assert study("--mean", mean) == 2
        assert "--mean" in (error := capsys.readouterr().err) and "blue, green and red" in error
    assert main(["--weights", "w", "--net", "n", "--images", "i", "--name", "../x"]) == 2
    assert "cannot be the name of a study" in capsys.readouterr().err
