"""Linear probes: their features, their classifier, and when they are made again."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from support.own_images import NET, make_images, write_net

from transfer_caffe import probe as probe_module
from transfer_caffe.data import make_data
from transfer_caffe.engine import Net
from transfer_caffe.experiment.read import load_recipe
from transfer_caffe.experiment.stages import stages_of
from transfer_caffe.formats.image_list import read_list
from transfer_caffe.formats.proto import write_binary
from transfer_caffe.generate import compose
from transfer_caffe.probe import DECAYS, features_of, fit, main, make_probes, reduced
from transfer_caffe.results.probes import read_probes
from transfer_caffe.study import main as study
from transfer_caffe.utils.errors import UserError


@pytest.fixture(autouse=True)
def recipe(tmp_path, monkeypatch):
    """The recipe of a study, in the current folder; its validation images are 2 of the 10 of each class."""
    monkeypatch.chdir(tmp_path)
    make_images(tmp_path)
    arguments = ["--weights", "weights.caffemodel", "--net", "net.prototxt", "--images", "my photos", "--name", "pets"]
    assert study([*arguments, "--plan", "--base-lr", "0.01"]) == 0
    return load_recipe("pets.yaml")


def test_features_are_those_of_the_net_at_its_cuts_for_cropped_images(recipe):
    make_data(recipe, "data")
    network = recipe.network("whole", "P1")
    net = compose(network, "data", "runs").net
    stages = stages_of(net)[:-1]
    for part, count in (("train", 24), ("val", 6)):
        features, labels = features_of(network, net, Path("data"), part, stages)
        assert {cut: found.shape for cut, found in features.items()} == {
            "conv1": (count, 6 * 10 * 10), "conv2": (count, 8 * 8 * 8),
        }  # fmt: skip
        lines = read_list(f"data/pets/whole/{part}.txt")
        order = np.random.RandomState(0).permutation(count)  # of the shuffled database
        assert labels.tolist() == [lines[index][1] for index in order]
        own = Net.load("net.prototxt", "weights.caffemodel")
        for index in (0, count - 1):
            image = cv2.imread(f"data/pets/images/{lines[order[index]][0]}")
            assert image is not None
            middle = cv2.resize(image, (27, 27)).astype(np.float32)[1:25, 1:25] - (104, 117, 123)
            own.feed({"data": middle.transpose(2, 0, 1)[None]})
            own.forward(keep=True)
            for cut, found in features.items():
                np.testing.assert_allclose(found[index], own.array(cut).ravel(), rtol=1e-4, atol=1e-3)


def test_large_blobs_are_averaged_over_cells():
    blob = torch.arange(2 * 64 * 20 * 20, dtype=torch.float32).reshape(2, 64, 20, 20)
    found = reduced(blob)
    assert found.shape == (2, 64 * 8 * 8)  # 64 x 9 x 9 would be more than 4,096
    torch.testing.assert_close(reduced(blob[:, :, :16, :16]).view(2, 64, 8, 8)[0, 5, 2, 3], blob[0, 5, 4:6, 6:8].mean())
    assert torch.equal(reduced(blob[:, :, :8, :8]), blob[:, :, :8, :8].flatten(1))
    flat = torch.arange(2 * 8192, dtype=torch.float32).reshape(2, 8192)
    assert torch.equal(reduced(flat), flat.view(2, 4096, 2).mean(2))
    assert reduced(torch.zeros(2, 5000, 3, 3)).shape == (2, 4096)


def blobs_of_points(noise: float, count: int = 200) -> tuple[np.ndarray, np.ndarray]:
    """Points around three corners, each feature on a scale of its own, and one that never varies."""
    draw = np.random.RandomState(1)
    labels = np.arange(count) % 3
    points = np.eye(3)[labels] + noise * draw.standard_normal((count, 3))
    return np.hstack([points * [1000, 1, 0.001], np.full((count, 1), 7.0)]).astype(np.float32), labels


def test_the_classifier_separates_what_a_line_can_whatever_the_scale_of_the_features():
    points, labels = blobs_of_points(0.1)
    classifier = fit(points[:150], labels[:150])
    assert (classifier.classes(points[150:]) == labels[150:]).all()
    moved = points[150:].copy()
    moved[:, 3] = 8  # it never varied in training, so it says nothing
    assert (classifier.classes(moved) == labels[150:]).all()


def test_the_classifier_minimises_the_penalised_loss_and_noise_asks_for_a_stronger_penalty():
    points, labels = blobs_of_points(2.0)
    noisy, clean = fit(points, labels), fit(*blobs_of_points(0.1))
    assert noisy.decay > clean.decay and noisy.decay in DECAYS
    ready = ((points - noisy.center) * noisy.scale).astype(np.float64)

    def loss(weights: np.ndarray, bias: np.ndarray) -> float:
        scores = ready @ weights + bias
        likely = scores - np.log(np.exp(scores).sum(1, keepdims=True))
        return -likely[np.arange(len(labels)), labels].mean() + 0.5 * noisy.decay * np.square(weights).sum()

    draw = np.random.RandomState(2)
    least = loss(noisy.weights, noisy.bias)
    for _ in range(20):
        step = 0.05 * draw.standard_normal(noisy.weights.shape), 0.05 * draw.standard_normal(noisy.bias.shape)
        assert loss(noisy.weights + step[0], noisy.bias + step[1]) > least


def test_probes_are_made_once_and_again_only_if_what_they_are_made_from_changes(recipe, monkeypatch):
    made = make_probes(recipe, Path("data"), Path("runs"))
    # the features are of random weights, but the classes differ in colour and place
    assert [(p.n, p.stage, p.cut, p.train_images, p.test_images) for p in made] == [
        (1, "conv1", "conv1", 24, 6), (2, "conv2", "conv2", 24, 6),
    ]  # fmt: skip
    assert all(probe.accuracy > 0.6 for probe in made)
    before = Path("runs/pets/probes.json").read_bytes()
    text = Path("pets.yaml").read_text()
    with monkeypatch.context() as patched:
        patched.setattr(probe_module, "fit", None)  # nothing is trained
        Path("pets.yaml").write_text(text.replace("momentum: 0.9", "momentum: 0.8"))
        assert make_probes(load_recipe("pets.yaml"), Path("data"), Path("runs")) == made
        assert Path("runs/pets/probes.json").read_bytes() == before
    Path("pets.yaml").write_text(text.replace("123", "-200"))
    again = make_probes(load_recipe("pets.yaml"), Path("data"), Path("runs"))
    assert Path("runs/pets/probes.json").read_bytes() != before and [probe.n for probe in again] == [1, 2]


def test_auxiliary_classifiers_are_left_out_and_absent_weights_are_an_error(recipe):
    aux = (
        'layer { name: "aux_fc" type: "InnerProduct" bottom: "conv1" top: "aux_fc" '
        'inner_product_param { num_output: 20 weight_filler { type: "xavier" } } }\n'
        'layer { name: "aux_loss" type: "SoftmaxWithLoss" bottom: "aux_fc" bottom: "label" top: "aux_loss" '
        "loss_weight: 0.3 }\n"
    )
    label = 'layer { name: "label" type: "Input" top: "label" input_param { shape { dim: 1 } } }\n'
    text = NET.replace('layer { name: "conv1"', label + 'layer { name: "conv1"')
    text = text.replace('layer { name: "conv2"', aux + 'layer { name: "conv2"')
    text = text.replace('"Softmax" bottom: "fc"', '"SoftmaxWithLoss" bottom: "fc" bottom: "label"')
    before = make_probes(recipe, Path("data"), Path("runs"))
    write_net(Path(), text)
    with_aux = make_probes(load_recipe("pets.yaml"), Path("data"), Path("other"))
    assert [probe.cut for probe in with_aux] == [probe.cut for probe in before]
    weights = Net.load("net.prototxt", "weights.caffemodel").to_proto()
    del weights.layer[next(i for i, layer in enumerate(weights.layer) if layer.name == "conv1")]
    write_binary("weights.caffemodel", weights)
    with pytest.raises(UserError, match=r"weights\.caffemodel has no layer conv1, which stage 2"):
        make_probes(load_recipe("pets.yaml"), Path("data"), Path("third"))


def test_probes_in_groups_of_cuts_are_the_same(recipe, monkeypatch):
    made = make_probes(recipe, Path("data"), Path("runs"))
    monkeypatch.setattr(probe_module, "CUTS_AT_ONCE", 1)
    assert make_probes(recipe, Path("data"), Path("other")) == made


def test_the_command_prints_a_table_and_bad_input_is_one_line(recipe, capsys):
    assert main(["--recipe", "pets.yaml"]) == 0
    table = [line.split() for line in capsys.readouterr().out.splitlines()[-2:]]
    assert [line[:5] for line in table] == [
        ["whole", "P", "1", "conv1", "conv1"],
        ["whole", "P", "2", "conv2", "conv2"],
    ]
    assert main(["--recipe", "demo"]) == 2
    assert "none of its networks has stages from existing weights" in (error := capsys.readouterr().err)
    assert error.count("\n") == 1
    path = Path("runs/pets/probes.json")
    stored = json.loads(path.read_text())
    for damage in ("{", "[]", json.dumps({"made_from": 1, "probes": [{"n": 1}]}),
                   json.dumps(stored | {"probes": [stored["probes"][0] | {"accuracy": 7.0}]})):  # fmt: skip
        path.write_text(damage)
        with pytest.raises(Exception, match=r"probes\.json: damaged"):
            read_probes("runs/pets")
