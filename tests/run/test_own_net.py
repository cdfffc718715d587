"""Recipes with a net and weights of one's own, from data to done, with the embedded engine and with real Caffe."""

import os
from pathlib import Path

import numpy as np
import pytest
from support.small_world import draw_shapes

from transfer_caffe.data import make_data
from transfer_caffe.driver import main as driver_main
from transfer_caffe.driver import train
from transfer_caffe.experiment.read import load_recipe
from transfer_caffe.experiment.recipe import Recipe
from transfer_caffe.formats.nets import read_net
from transfer_caffe.formats.weights import read_weights
from transfer_caffe.generate import main as generate_main
from transfer_caffe.real_caffe import programs as real_caffe
from transfer_caffe.results.table import load, write_results
from transfer_caffe.run.folder import weights_path
from transfer_caffe.sweep.__main__ import main as sweep_main
from transfer_caffe.utils.errors import UserError
from transfer_caffe.utils.files import read_json, sha256, write_text

CONV = """layer {{ name: "{name}" type: "Convolution" bottom: "{bottom}" top: "{name}"
  convolution_param {{ num_output: {outputs} kernel_size: {kernel} pad: {pad} stride: {stride} bias_term: false }} }}
layer {{ name: "bn_{name}" type: "BatchNorm" bottom: "{name}" top: "{name}" }}
layer {{ name: "scale_{name}" type: "Scale" bottom: "{name}" top: "{name}" scale_param {{ bias_term: true }} }}
"""


def conv(name: str, bottom: str, outputs: int, kernel: int = 1, stride: int = 1) -> str:
    return CONV.format(
        name=name, bottom=bottom, outputs=outputs, kernel=kernel, pad=kernel // 2, stride=stride
    )  # fmt: skip


RESNET = (
    """name: "small_resnet" input: "data" input_shape { dim: 1 dim: 3 dim: 28 dim: 28 }\n"""
    + conv("conv1", "data", 6, 3, 2)
    + """layer { name: "relu1" type: "ReLU" bottom: "conv1" top: "conv1" }\n"""
    + conv("a1", "conv1", 8)
    + conv("a2", "conv1", 4, 3)
    + """layer { name: "relu_a2" type: "ReLU" bottom: "a2" top: "a2" }\n"""
    + conv("a3", "a2", 8)
    + """layer { name: "block" type: "Eltwise" bottom: "a1" bottom: "a3" top: "block" }
layer { name: "relu_block" type: "ReLU" bottom: "block" top: "block" }
layer { name: "pool" type: "Pooling" bottom: "block" top: "pool" pooling_param { pool: AVE global_pooling: true } }
layer { name: "fc" type: "InnerProduct" bottom: "pool" top: "fc" inner_product_param { num_output: 1000 } }
layer { name: "prob" type: "Softmax" bottom: "fc" top: "prob" }
"""
)
GOOGLE = """name: "small_googlenet"
layer { name: "data" type: "Data" top: "data" top: "label" include { phase: TRAIN } }
layer { name: "data" type: "Data" top: "data" top: "label" include { phase: TEST } }
layer { name: "conv1" type: "Convolution" bottom: "data" top: "conv1" param { lr_mult: 1 } param { lr_mult: 2 }
  convolution_param { num_output: 6 kernel_size: 5 stride: 2 weight_filler { type: "xavier" } } }
layer { name: "relu1" type: "ReLU" bottom: "conv1" top: "conv1" }
layer { name: "aux_fc" type: "InnerProduct" bottom: "conv1" top: "aux_fc" inner_product_param { num_output: 1000
  weight_filler { type: "xavier" } } }
layer { name: "aux_loss" type: "SoftmaxWithLoss" bottom: "aux_fc" bottom: "label" top: "aux_loss" loss_weight: 0.3 }
layer { name: "i1" type: "Convolution" bottom: "conv1" top: "i1" convolution_param { num_output: 4 kernel_size: 1
  weight_filler { type: "xavier" } } }
layer { name: "i3" type: "Convolution" bottom: "conv1" top: "i3" convolution_param { num_output: 4 kernel_size: 3 pad: 1
  weight_filler { type: "xavier" } } }
layer { name: "inception" type: "Concat" bottom: "i1" bottom: "i3" top: "inception" }
layer { name: "fc" type: "InnerProduct" bottom: "inception" top: "fc" inner_product_param { num_output: 1000
  weight_filler { type: "xavier" } } }
layer { name: "accuracy" type: "Accuracy" bottom: "fc" bottom: "label" top: "top1" include { phase: TEST } }
layer { name: "main_loss" type: "SoftmaxWithLoss" bottom: "fc" bottom: "label" top: "main_loss" }
"""
RECIPE = """\
name: own
dataset: data/shapes
images: {resize: [32, 32]}
architecture: nets/NET.prototxt
crop: 28
mirror: true
batch: {train: 8, test: 4}
mean: [104, 117, 123]
scale: 0.01
solver: {base_lr: 0.01, lr_policy: fixed, max_iter: 8, momentum: 0.9, weight_decay: 0.0005, test_interval: 4,
         display: 1, snapshot: 4}
networks:
  random0: [baseA, baseB, A1B, A2B, A2B+, B1B]
  whole: [base]
"""
WITH_SOURCE = RECIPE.replace("name: own", "name: study").replace(
    "networks:", "copied_rate: 0.1\nsources: {P: {weights: weights/pretrained.caffemodel}}\nnetworks:"
).replace("  whole: [base]\n", "  whole: [base, P1, P2, P2+]\n").replace(
    "[baseA, baseB, A1B, A2B, A2B+, B1B]", "[baseA, P2A]")  # fmt: skip
ENGINES = [
    "embedded",
    pytest.param("caffe", marks=pytest.mark.skipif(not real_caffe.program(), reason="no real Caffe")),
]


@pytest.fixture(params=["resnet", "googlenet"])
def recipe(request, tmp_path, monkeypatch, forked_trainings) -> Recipe:
    """A recipe in a folder of its own, beside its net; the current folder is another one."""
    folder, here = tmp_path / "my recipes", tmp_path / "here"
    (folder / "nets").mkdir(parents=True)
    here.mkdir()
    monkeypatch.chdir(here)
    draw_shapes()
    (folder / "nets" / "resnet.prototxt").write_text(RESNET)
    (folder / "nets" / "googlenet.prototxt").write_text(GOOGLE)
    for name, text in (("own", RECIPE), ("study", WITH_SOURCE)):
        write_text(folder / f"{name}.yaml", text.replace("NET", request.param))
    return load_recipe(folder / "own.yaml")


def final(recipe: Recipe, name: str) -> dict[str, list[np.ndarray]]:
    return read_weights(weights_path(Path("runs") / recipe.name / name, 8))


def equal(one: list[np.ndarray], two: list[np.ndarray]) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(one, two, strict=True))


@pytest.mark.parametrize("engine", ENGINES)
def test_every_treatment_trains_and_frozen_stages_are_the_bases(recipe, engine):
    assert recipe.stages == 3
    make_data(recipe, copies=engine == "caffe", say=lambda _: None)
    for name in ("baseA", "baseB", "A1B", "A2B", "A2B+", "B1B"):
        done = train(recipe.network("random0", name), engine=engine, say=lambda _: None)
        assert done["outputs"] == done["target_classes"]
    base, one, two, tuned = (final(recipe, f"random0-{name}-s0") for name in ("baseA", "A1B", "A2B", "A2B+"))
    first = [name for name in base if name.endswith("conv1")]
    second = [name for name in base if name not in first and not name.endswith("fc")]
    assert first and second
    for name in first:
        assert equal(base[name], one[name]) and equal(base[name], two[name])
    for name in second:
        assert equal(base[name], two[name]) and not equal(base[name], one[name])
    assert not equal(tuned[first[0]], base[first[0]])
    path, count = write_results(recipe)
    assert count == 6 and {row.n for row in load(path)} == {0, 1, 2}


def test_the_statistics_of_frozen_batch_norm_layers_are_compared_too(recipe):
    if "resnet" not in recipe.architecture:
        pytest.skip("no BatchNorm")
    make_data(recipe, say=lambda _: None)
    train(recipe.network("random0", "baseA"), say=lambda _: None)
    done = train(recipe.network("random0", "A2B"), say=lambda _: None)
    base, two = final(recipe, "random0-baseA-s0"), final(recipe, "random0-A2B-s0")
    assert done["frozen_layers"] == "equal to the base's"
    for name in ("bn_conv1", "bn_a1", "bn_a3"):
        assert np.any(base[name][0]) and equal(base[name], two[name])


@pytest.mark.parametrize("engine", ENGINES)
def test_stages_are_copied_from_weights_that_exist(recipe, engine):
    make_data(recipe, copies=engine == "caffe", say=lambda _: None)
    train(recipe.network("whole", "base"), engine=engine, say=lambda _: None)
    pretrained = weights_path(Path("runs/own/whole-base-s0"), 8)
    target = recipe.folder / "weights" / "pretrained.caffemodel"
    target.parent.mkdir()
    os.replace(pretrained, target)
    study = load_recipe(recipe.folder / "study.yaml")
    start = read_weights(target)
    for split, name, n in (("whole", "P1", 1), ("whole", "P2", 2), ("whole", "P2+", 0), ("random0", "P2A", 2)):
        done = train(study.network(split, name), engine=engine, say=lambda _: None)
        assert done["base_sha256"] == sha256(target) and done["base"].endswith("pretrained.caffemodel")
        after = final(study, f"{split}-{name}-s0")
        frozen = {stage for stage in start if equal(start[stage], after[stage])} if n else set()
        net = study.network(split, name)
        assert ("conv1" in frozen) == (n >= 1), net.name
        assert any("a3" in each or "i3" in each for each in frozen) == (n >= 2)
    made = read_json(Path("runs/study/whole-P2-s0/surgery.json"))
    assert {row["layer"] for row in made["layers"] if row["start"] == "copied"} >= {"conv1"}


def test_a_sweep_plans_trains_and_reports_them_and_does_nothing_twice(recipe, capsys):
    path = str(recipe.folder / "own.yaml")
    assert sweep_main(["run", "--recipe", path, "--jobs", "2", "--report", "report"]) == 0
    assert "7 of 7 networks" in capsys.readouterr().err.replace("\n", " ") or Path("report/index.html").exists()
    before = {file: file.stat().st_mtime_ns for file in Path("runs").rglob("*.caffemodel")}
    assert sweep_main(["run", "--recipe", path, "--jobs", "2"]) == 0
    assert {file: file.stat().st_mtime_ns for file in Path("runs").rglob("*.caffemodel")} == before
    assert sweep_main(["plan", "--recipe", path]) == 0
    assert sweep_main(["verify", "--recipe", path]) == 0


@pytest.mark.parametrize(
    "old, new, words",
    [
        ("nets/NET.prototxt", "nets/nowhere.prototxt", "nowhere.prototxt: no such file; paths are relative"),
        ("nets/NET.prototxt", "resnet", "one of caffenet, mini, or the path of a .prototxt or .j2, was expected"),
        ("A2B+", "A3B+", "treatment A3B.: n = 3 copies all stages"),
        ("A2B+", "A7B+", "the network has 3 stages and n is 1 to 2"),
        ("[base]", "[P1]", "there is no source P; its sources are: none"),
        ("scale: 0.01", "cuts: [nowhere]", "there is no blob 'nowhere'; cuts are conv1"),
        ("scale: 0.01", "sources: {A: {weights: x}}", "a capital letter other than A, B"),
        ("scale: 0.01", "sources: {P: {weight: x}}", "weight"),
        ("scale: 0.01", "scale: 0", "a number above 0 was expected"),
        ("mean: [104, 117, 123]", "mean: [1, 2]", "one number for each channel"),
        ("nets/NET.prototxt", "mini", "mean"),
    ],
)
def test_what_a_recipe_with_its_own_net_cannot_mean_is_refused_in_a_line(recipe, old, new, words):
    net = Path(recipe.architecture).name
    text = RECIPE.replace(old, new).replace("NET.prototxt", net)
    write_text(recipe.folder / "own.yaml", text)
    with pytest.raises(UserError, match=words):
        load_recipe(recipe.folder / "own.yaml")


def test_wrong_weights_are_refused_before_anything_is_trained(recipe, capsys):
    path = str(recipe.folder / "study.yaml")
    study = load_recipe(path)
    make_data(study, say=lambda _: None)
    arguments = ["--recipe", path, "--split", "whole", "--treatment", "P2"]
    assert driver_main(arguments) == 2
    assert "pretrained.caffemodel: no such file; the recipe's source P names it" in capsys.readouterr().err
    other = recipe.folder / "weights" / "pretrained.caffemodel"
    other.parent.mkdir()
    train(load_recipe(recipe.folder / "own.yaml").network("whole", "base"), say=lambda _: None)
    weights = weights_path(Path("runs/own/whole-base-s0"), 8)
    other.write_bytes(weights.read_bytes())
    text = Path(path).read_text()
    write_text(path, text.replace("pretrained.caffemodel}", f"pretrained.caffemodel, sha256: {'f' * 64}}}"))
    assert driver_main(arguments) == 2
    assert f"its sha256 is {sha256(weights)}, but the recipe's source P has fff" in capsys.readouterr().err
    # weights of a net with other layers
    write_text(path, text)
    assert study.net_file is not None
    net = read_net(study.net_file)
    renamed = study.net_file.read_text().replace('"conv1"', '"first"')
    assert net.name
    study.net_file.write_text(renamed)
    assert driver_main([*arguments, "--restart"]) == 2
    assert "layer first is missing" in capsys.readouterr().err


def test_what_changes_after_the_training_is_noticed(recipe, capsys):
    study = load_recipe(recipe.folder / "study.yaml")
    path = str(recipe.folder / "study.yaml")
    make_data(recipe, say=lambda _: None)
    train(recipe.network("whole", "base"), say=lambda _: None)
    target = recipe.folder / "weights" / "pretrained.caffemodel"
    target.parent.mkdir()
    target.write_bytes(weights_path(Path("runs/own/whole-base-s0"), 8).read_bytes())
    train(study.network("whole", "P1"), say=lambda _: None)
    arguments = ["--recipe", path, "--split", "whole", "--treatment", "P1"]
    assert driver_main(arguments) == 0
    # another source
    weights = target.read_bytes()
    target.write_bytes(weights_path(Path("runs/study/whole-P1-s0"), 8).read_bytes())
    capsys.readouterr()
    assert driver_main(arguments) == 2
    assert "its source P" in (error := capsys.readouterr().err) and "has changed since" in error
    assert sweep_main(["plan", "--recipe", path]) == 0
    assert "has changed since" in capsys.readouterr().out
    assert sweep_main(["verify", "--recipe", path]) != 0
    target.write_bytes(weights)
    assert driver_main(arguments) == 0
    # another net, of which a base of another form would be left
    assert study.net_file is not None
    make_data(study, say=lambda _: None)
    train(recipe.network("random0", "baseA"), say=lambda _: None)
    text = study.net_file.read_text()
    study.net_file.write_text(
        text.replace("num_output: 6 ", "num_output: 7 ").replace("num_output: 6\n", "num_output: 7\n")
    )
    assert study.net_file.read_text() != text
    own = str(recipe.folder / "own.yaml")
    capsys.readouterr()
    assert sweep_main(["status", "--recipe", own]) == 0
    assert "net_sha256 was" in capsys.readouterr().out
    assert driver_main(["--recipe", own, "--treatment", "A1B"]) == 2
    assert "its base random0-baseA-s0 is out of date" in capsys.readouterr().err


def test_statistics_of_the_batch_and_random_stages_train_to_done(recipe):
    if "resnet" not in recipe.architecture:
        pytest.skip("no BatchNorm")
    path = recipe.folder / "own.yaml"
    write_text(
        path, path.read_text().replace("scale: 0.01", "scale: 0.01\nbatch_norm: batch").replace("[base]", "[base, R1]")
    )
    own = load_recipe(path)
    make_data(own, say=lambda _: None)
    for split, name in (("random0", "baseA"), ("random0", "A1B"), ("whole", "R1")):
        train(own.network(split, name), say=lambda _: None)
    write_text(path, path.read_text().replace("batch_norm: batch", "batch_norm: stored"))
    train(load_recipe(path).network("whole", "R2"), say=lambda _: None)


def test_generate_prints_how_to_copy_from_the_source(recipe, capsys):
    path = str(recipe.folder / "study.yaml")
    make_data(load_recipe(path), say=lambda _: None)
    assert generate_main(["--recipe", path, "--treatment", "P1"]) == 0
    said = capsys.readouterr().out
    assert "whole-P1-s0: stage 1 copied from the source P and frozen; the others re-initialised" in said
    assert "transfer_caffe.surgery --treatment P1 --base" in said and "pretrained.caffemodel" in said
    assert "--weights init.caffemodel" in said
