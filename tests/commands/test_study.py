"""The study: from weights, a net and a folder of photographs to an answer, and a second time for nothing."""

import argparse
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from support.own_images import NET, make_images, write_net

from transfer_caffe import study as study_module
from transfer_caffe.engine import Net
from transfer_caffe.experiment.read import load_recipe
from transfer_caffe.export.inference import load
from transfer_caffe.export.network import read_network
from transfer_caffe.formats import hdf5
from transfer_caffe.results.probes import read_probes
from transfer_caffe.study import SEARCH, main
from transfer_caffe.sweep.cost import Rate
from transfer_caffe.tools.compute_mean import write_mean
from transfer_caffe.utils.processes import environment


@pytest.fixture(autouse=True)
def photos(tmp_path, monkeypatch) -> Path:
    """A folder of three classes of photographs, a net and its weights, in the current folder."""
    monkeypatch.chdir(tmp_path)
    return make_images(tmp_path)


ARGUMENTS = [
    "--weights", "weights.caffemodel", "--net", "net.prototxt", "--images", "my photos", "--name", "pets",
    "--iterations", "8", "--jobs", "2",
]  # fmt: skip


def study(*more: str) -> int:
    return main([*ARGUMENTS, *more])


SCRIPT = """
import functools, os, sys
from transfer_caffe import probe, rates, study

def make_probes(*arguments):
    sys.stdout.flush()
    if not (pid := os.fork()):
        probe.make_probes(*arguments)
        sys.stdout.flush()
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0

study.search = functools.partial(rates.search, rates=(0.01, 0.001))
study.make_probes = make_probes
sys.exit(study.main(sys.argv[1:]))
"""


def study_as_command(*more: str) -> str:
    """Run a study, which searches among two learning rates, as a command; return its output.

    Unlike this process, the command imports PyTorch once for all networks. Its probes have a separate process, because
    a process that has computed with PyTorch does not fork.
    """
    argv = [sys.executable, "-c", SCRIPT, *ARGUMENTS, *more]
    done = subprocess.run(argv, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_a_study_ends_with_an_answer_and_a_second_one_trains_nothing(capsys):
    out = study_as_command("--seeds", "2")
    assert "Best: " in out and "pets.yaml: the recipe of the study" in out
    recipe = load_recipe("pets.yaml")
    assert [str(each) for each in recipe.treatments["whole"]] == ["base", "P1", "P2", "P1+", "P2+"]
    assert (recipe.crop, recipe.seeds, recipe.stages) == (24, (0, 1), 3)
    command = "python -m transfer_caffe.export --network runs/pets/whole-"
    assert f"To use it in other programs: {command}" in out
    assert "Best: " in (page := Path("report/pets/index.html").read_text()) and command in page
    assert (Path("report/pets/figures/study.png")).exists()
    # learning rates were searched once, each kind has one, and what the search has made is gone
    assert out.count("search: learning rate") == 2 and SEARCH not in Path("pets.yaml").read_text()
    assert set(recipe.solver_for) == {"base*", "[PAB][0-9]*", "[PAB][0-9]*+"}
    assert not Path("runs/pets/rates").exists() and not Path("data/pets-rates").exists()
    # the linear probes: their lines, their curve and their sentence
    assert [(probe.n, probe.cut) for probe in read_probes("runs/pets")] == [(1, "conv1"), (2, "conv2")]
    assert "a linear classifier on the features of" in out
    assert "probe" in Path("report/pets/figures/study.csv").read_text()
    before = {path: path.stat().st_mtime_ns for path in Path("runs").rglob("*.caffemodel")}
    assert len(before) == 10 + 8  # final weights of all, initial ones of those that copy
    assert study("--seeds", "2") == 0
    assert "exists already and is used as it is" in (out := capsys.readouterr().out) and "Best: " in out
    assert "search: " not in out and "probe: n" not in out
    assert {path: path.stat().st_mtime_ns for path in Path("runs").rglob("*.caffemodel")} == before


def test_a_study_of_gray_images_trains(capsys):
    write_net(Path(), NET.replace("dim: 3 dim: 24", "dim: 1 dim: 24"))
    out = study_as_command("--base-lr", "0.001")
    recipe = load_recipe("pets.yaml")
    assert recipe.images.gray and recipe.mean == (117,) and SEARCH not in Path("pets.yaml").read_text()
    assert "Best: " in out
    for name in ("base", "P1+"):  # as the export does that the answer names
        network = read_network(f"runs/pets/whole-{name}-s0")
        assert load(network.net, network.weights, network.shape).inputs["data"][1:] == (1, 24, 24)
    assert study("--mean", "1,2,3", "--name", "other") == 2
    assert "the net takes images of 1 channels, so 1 numbers are needed" in capsys.readouterr().err


def test_scale_and_mean_are_those_of_the_nets_own_data_layer(capsys):
    data = 'layer { name: "data" type: "Data" top: "data" top: "label" transform_param { crop_size: 24 scale: 0.017 '
    text = NET.replace(
        NET[: NET.index("layer")], 'name: "trained" ' + data + "mean_value: 50 mean_value: 60 mean_value: 70 } }\n"
    )
    Path("net.prototxt").write_text(
        text.replace('"Softmax" bottom: "fc"', '"SoftmaxWithLoss" bottom: "fc" bottom: "label"')
    )
    assert study("--plan") == 0
    recipe = load_recipe("pets.yaml")
    assert (recipe.crop, recipe.scale, recipe.mean) == (24, 0.017, (50, 60, 70))
    Path("pets.yaml").unlink()
    assert study("--plan", "--scale", "0.5", "--mean", "1,2,3") == 0
    assert (load_recipe("pets.yaml").scale, load_recipe("pets.yaml").mean) == (0.5, (1, 2, 3))


def test_a_mean_file_is_read_beside_the_net_and_required(capsys):
    data = 'layer { name: "data" type: "Data" top: "data" top: "label" transform_param { crop_size: 24 '
    text = NET.replace('"Softmax" bottom: "fc"', '"SoftmaxWithLoss" bottom: "fc" bottom: "label"')
    header = text[: text.index("layer")]
    Path("net.prototxt").write_text(text.replace(header, 'name: "m" ' + data + 'mean_file: "mean.binaryproto" } }\n'))
    assert study("--plan") == 2
    assert "subtracts mean.binaryproto, which is not there" in (error := capsys.readouterr().err)
    assert error.count("\n") == 1 and not Path("pets.yaml").exists()
    write_mean("mean.binaryproto", np.ones((3, 30, 30)) * np.array([10, 20, 30])[:, None, None])
    assert study("--plan") == 0 and load_recipe("pets.yaml").mean == (10, 20, 30)
    Path("pets.yaml").unlink()
    Path("net.prototxt").write_text(text.replace(header, 'name: "m" ' + data + "scale: 0.5 } }\n"))  # subtracts nothing
    assert study("--plan") == 0 and load_recipe("pets.yaml").mean == (0, 0, 0)


def test_images_of_another_folder_are_not_mixed_up(tmp_path, capsys):
    assert study("--plan") == 0
    Path("pets.yaml").unlink()
    make_images(tmp_path / "other")
    assert study("--plan", "--images", "other/my photos") == 2
    assert "give the study another --name" in (error := capsys.readouterr().err) and error.count("\n") == 1
    assert study("--plan", "--images", "my photos/../my photos") == 0  # the same folder


def test_a_study_is_not_taken_for_one_of_other_weights_nets_or_images(tmp_path, capsys):
    assert study("--plan") == 0
    make_images(tmp_path / "other")
    for change in (("--weights", "other.caffemodel"), ("--net", "other.prototxt"), ("--images", "other/my photos")):
        capsys.readouterr()
        assert study("--plan", *change) == 2
        error = capsys.readouterr().err
        assert f"pets.yaml is a study with {change[0]} " in error and f", not {change[1]}; give the new" in error
        assert error.count("\n") == 1
    assert study("--plan", "--seeds", "3", "--weights", str(Path("weights.caffemodel").resolve())) == 0
    assert "--seeds 3 changes nothing: pets.yaml lists its seeds; edit them there" in capsys.readouterr().out
    Path("pets.yaml").write_text(Path("pets.yaml").read_text().replace("seeds: [0]", "seeds: [0, 1, 2]"))
    assert study("--plan", "--seeds", "3") == 0 and "changes nothing" not in capsys.readouterr().out


def test_rates_are_written_also_into_a_recipe_without_a_last_line_end(monkeypatch):
    assert study("--plan") == 0
    path = Path("pets.yaml")
    path.write_text(path.read_text().rstrip("\n"))
    found = {"base*": {0.01: 0.1, 0.001: 0.2}}
    monkeypatch.setattr(study_module, "search", lambda *more, **options: found)
    recipe = study_module.find_rates(path, load_recipe(path), argparse.Namespace(data="data", runs="runs"), [])
    assert recipe.solver_for == {"base*": {"base_lr": 0.001}} and SEARCH not in path.read_text()


def test_what_cannot_end_well_is_refused_at_the_start(capsys):
    for path in Path("my photos").glob("*/[2-9].png"):
        path.unlink()
    assert study("--plan") == 2 and "--base-lr" in capsys.readouterr().err and not Path("pets.yaml").exists()
    assert study("--plan", "--base-lr", "0.01") == 0
    for name in ("photos", "fot\xf6s", ".x"):
        assert study("--plan", "--name", name) == 2 and "with --name" in capsys.readouterr().err
    for jobs in ("abc", "0"):
        assert study("--jobs", jobs, "--name", "other") == 2 and "--jobs" in capsys.readouterr().err
    Path("net.prototxt").write_text(NET.replace("dim: 24 }", "dim: 32 }"))
    assert study("--plan", "--name", "other") == 2 and "24 x 32" in capsys.readouterr().err


def test_hours_reduce_the_study_and_say_what_is_left_out(capsys, monkeypatch):
    deep = NET.replace('bottom: "conv2" top: "fc"', 'bottom: "c7" top: "fc"')
    more = "".join(
        f'layer {{ name: "c{n}" type: "Convolution" bottom: "{below}" top: "c{n}" convolution_param {{ num_output: 4 '
        'kernel_size: 1 weight_filler { type: "xavier" } } }\n'
        for n, below in ((3, "conv2"), (4, "c3"), (5, "c4"), (6, "c5"), (7, "c6"))
    )
    write_net(Path(), deep.replace('layer { name: "fc"', more + 'layer { name: "fc"'))
    monkeypatch.setattr(study_module, "measure", lambda selection, engine: Rate((1.0,) * 8, 0.0, "as given"))
    options = ["--plan", "--iterations", "400", "--base-lr", "0.01", "--jobs", "1"]
    monkeypatch.setattr(study_module, "probe_seconds", lambda *more: 0.0)
    # from scratch, and frozen and fine-tuned for each n: 15 networks of 400 s and 6 s to start, 11 for 5 n, 7 for 3 n
    for networks, n in ((15, "1,2,3,4,5,6,7"), (11, "1,2,4,6,7"), (7, "1,4,7")):
        assert study(*options, "--hours", f"{networks * 406.1 / 3600:.6f}") == 0
        out, text = capsys.readouterr().out, Path("pets.yaml").read_text()
        assert f"P{{{n}}}+" in text
        assert ("All of the study fits" in out) == (networks == 15)
        assert ("# To fit" in text) == (networks != 15)
        Path("pets.yaml").unlink()
    assert study(*options, "--hours", "0.3") == 0
    assert "n = 1, 7 instead of 1, 2, 3, 4, 5, 6, 7 and 200 iterations instead of 400" in capsys.readouterr().out
    Path("pets.yaml").unlink()
    assert study(*options, "--hours", "0.01") == 2
    error = capsys.readouterr().err
    assert "too small for any study" in error and error.count("\n") == 1 and not Path("pets.yaml").exists()
    assert study("--hours", "1", "--gpu", "0") == 2 and "--hours measures" in capsys.readouterr().err
    assert study("--hours", "-1") == 2 and "--hours -1.0" in capsys.readouterr().err


def test_a_plan_trains_nothing(capsys):
    assert study("--plan") == 0
    assert "whole" in capsys.readouterr().out and not Path("runs").exists()


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
    assert study("--base-lr", "0") == 2 and "--base-lr 0.0: must be" in capsys.readouterr().err
    for mean in ("1,two,3", "", "1,2"):
        assert study("--mean", mean) == 2
        assert "--mean" in (error := capsys.readouterr().err) and "blue, green and red" in error
    assert main(["--weights", "w", "--net", "n", "--images", "i", "--name", "../x"]) == 2
    assert "cannot be the name of a study" in capsys.readouterr().err
