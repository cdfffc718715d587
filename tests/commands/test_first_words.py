"""What the commands say if their input is missing: one line that names it and how to create it. They write no files."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from transfer_caffe import cli
from transfer_caffe.real_caffe import programs as real_caffe
from transfer_caffe.sweep import run as sweep_run

REPOSITORY = Path(__file__).resolve().parent.parent.parent

SWEEP_DEMO = "python -m transfer_caffe.sweep run --recipe demo"
GENERATE = "python -m transfer_caffe.generate --treatment"
LISTS = ("make ilsvrc ARCHIVES=", "TRAIN=", "VAL=", "make data RECIPE=demo", "TRAIN=data/photos/train.txt")

COMMANDS = {
    "split random --seed 1 --train train.txt --out random1": LISTS,
    "split natman --train train.txt --val val.txt --out natman": LISTS,
    "split reduced --images-per-class 5 --train train.txt --out reduced5": LISTS,
    "ilsvrc downloads --out data/ilsvrc2012": ("image-net.org", "make ilsvrc ARCHIVES=", "_devkit_t12.tar.gz"),
    "ilsvrc --out data/ilsvrc2012": ("image-net.org", "python -m data_prep.ilsvrc FOLDER"),
    "ilsvrc --train train --val val --out data/ilsvrc2012": ("train: no such", "--train needs"),
    "folders photos --out data/birds --val-images-per-class 3": (
        "photos: no such folder",
        "a folder of images for each",
    ),
    "verify": ("data/ilsvrc2012", "make imagenet ARCHIVES="),
    "wordnet --explain n02123045": ("make wordnet",),
    "wordnet --ids synset_words.txt --out classes.csv": ("synset_words.txt: no such file", "--ids needs"),
    "build-lmdb images/ train.txt whole_lmdb": ("train.txt: no such file", "python -m data_prep.folders"),
    "split-lmdb whole train.txt train_lmdb": ("train.txt: no such file", "python -m data_prep.folders"),
    "compute-mean train_lmdb mean.binaryproto": ("train_lmdb: no such database", "python -m tools.build_lmdb"),
    "inspect train_lmdb --sheet sheet.png": ("train_lmdb: no such database", "python -m tools.build_lmdb"),
    "upgrade-proto net_text old.prototxt new.prototxt": ("old.prototxt: no such file",),
    "data --recipe paper": ("data/ilsvrc2012/train.txt", "make ilsvrc ARCHIVES="),
    "data --recipe nothing": ("balanced, demo, demo_caffe, paper", "--recipe demo"),
    "generate --treatment A3B --recipe nothing": ("balanced, demo, demo_caffe, paper", "--recipe demo"),
    "surgery --treatment A3B --base a.caffemodel --net net.prototxt --out i.caffemodel": ("net.prototxt", GENERATE),
    "engine train --solver solver.prototxt": ("solver.prototxt: no such file", GENERATE),
    "engine test --model net.prototxt --weights net.caffemodel": ("net.prototxt: no such file", GENERATE),
    "engine time --model net.prototxt": ("net.prototxt: no such file", GENERATE),
    "engine device_query --gpu 99": ("usable GPUs", "leave --gpu out"),
    "compare net.prototxt": ("net.prototxt: no such file", GENERATE),
    "driver --treatment baseA --recipe demo --split random0": ("python -m transfer_caffe.data --recipe demo",),
    "driver --treatment A3B --recipe paper --split random0": ("python -m transfer_caffe.data --recipe paper",),
    "driver --treatment baseA --recipe demo --split random0 --engine caffe": ("make caffe", "CAFFE="),
    "sweep plan --recipe nothing": ("balanced, demo, demo_caffe, paper", "--recipe demo"),
    "sweep run --recipe paper": ("data/ilsvrc2012/train.txt", "make ilsvrc ARCHIVES="),
    "sweep run --recipe demo --engine caffe": ("make caffe", "CAFFE="),
    "sweep run --recipe demo --gpu 0": ("no GPU", "omit --gpu or GPU="),
    "sweep run --recipe demo --slurm": ("no squeue", "omit --slurm (SLURM=1)"),
    "sweep verify --recipe demo": ("none of the 49 networks is done", SWEEP_DEMO),
    "sweep cancel --recipe demo": ("no jobs of demo", f"{SWEEP_DEMO} --slurm"),
    "results --recipe demo": ("runs/demo", SWEEP_DEMO),
    "analysis --results runs/demo/results.csv": ("runs/demo/results.csv", "python -m transfer_caffe.results --recipe"),
    "figures --results runs/demo/results.csv --out report": ("python -m transfer_caffe.results --recipe",),
    "report --runs runs/demo --out report": ("runs/demo", "python -m transfer_caffe.sweep run --recipe"),
}
"""Command lines of `transfer-caffe`, and what their error line must name."""

TARGETS = {
    "split-random SEED=1": LISTS,
    "split-natman": LISTS,
    "split-reduced K=10": LISTS,
    "split-random TRAIN=my/train.txt": ("my/train.txt: no such file", *LISTS),
    "ilsvrc": ("data/archives", "make ilsvrc ARCHIVES="),
    "imagenet ARCHIVES=downloads": ("downloads", "make ilsvrc ARCHIVES="),
    "verify": ("make imagenet ARCHIVES=",),
    "lmdb RECIPE=paper": ("data/ilsvrc2012/train.txt", "make ilsvrc ARCHIVES="),
    "sweep RECIPE=nothing": ("balanced, demo, demo_caffe, paper", "RECIPE=demo"),
    "results": ("runs/demo", SWEEP_DEMO),
    "figures": ("runs/demo", SWEEP_DEMO),
    "analysis": ("runs/demo", SWEEP_DEMO),
    "report": ("runs/demo", SWEEP_DEMO),
    "proto PROTOC_PYTHON=no-such-python": ("no-such-python has no grpc_tools", "PROTOC_PYTHON=python make proto"),
    "caffe PYTHON=no-such-python": ("no-such-python is not Python 3.11", "PYTHON=python3.11"),
}
"""Targets of make, and what the error line, besides make's own, must name."""


@pytest.fixture
def nothing(tmp_path, monkeypatch):
    """Change to an empty folder with a space in its name; hide Slurm, real Caffe, GPUs and WordNet."""
    folder = tmp_path / "a folder"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setattr(real_caffe, "program", lambda: None)
    monkeypatch.setattr(real_caffe, "pycaffe", lambda: None)
    monkeypatch.setattr(sweep_run, "find_gpus", list)
    monkeypatch.setenv("WORDNET", "wordnet")
    return folder


def one_line(error: str, names: tuple[str, ...]) -> None:
    [line] = [line for line in error.splitlines() if not line.startswith(("make: ***", "make[1]: ***"))]
    assert ": error: " in line
    for name in names:
        assert name in line


@pytest.mark.parametrize("line", COMMANDS)
def test_a_command_names_what_is_missing_and_what_makes_it(line, nothing, monkeypatch, capsys):
    monkeypatch.setenv("PATH", os.fspath(nothing))
    assert cli.main(line.split()) == 2
    one_line(capsys.readouterr().err, COMMANDS[line])
    assert not list(nothing.iterdir())


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
@pytest.mark.parametrize("line", TARGETS)
def test_make_passes_that_line_on(line, nothing):
    argv = ["make", "-f", os.fspath(REPOSITORY / "Makefile"), f"PY={sys.executable}", "READY=", *line.split()]
    env = {name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS")}
    done = subprocess.run(
        argv, cwd=nothing, env={**env, "PYTHONPATH": os.fspath(REPOSITORY)}, capture_output=True, text=True
    )
    assert done.returncode == 2
    one_line(done.stderr, TARGETS[line])
    assert not list(nothing.iterdir())


def test_the_demos_lists_can_be_cut_as_that_line_says(nothing, capsys):
    lists = nothing / "data/photos"
    assert cli.main(["photos", "--out", os.fspath(lists), "--size", "32", "--train", "2", "--val", "1"]) == 0
    both = ["--train", "data/photos/train.txt", "--val", "data/photos/val.txt"]
    for words in (["random", "--seed", "1"], ["natman"], ["reduced", "--images-per-class", "1"]):
        assert cli.main(["split", *words, *both, "--out", f"data/photos/{words[0]}"]) == 0
    assert (lists / "natman/B/val.txt").read_text()


@pytest.mark.parametrize("module", ["transfer_caffe.data", "transfer_caffe.engine", "data_prep.split", "tools.inspect"])
def test_a_python_without_the_packages_is_told_where_they_are(module, nothing):
    argv = [sys.executable, "-S", "-m", module]  # -S: no site-packages
    done = subprocess.run(argv, env={"PYTHONPATH": os.fspath(REPOSITORY)}, capture_output=True, text=True)
    assert done.returncode == 2
    [line] = done.stderr.splitlines()
    assert "is not installed for" in line and "make setup" in line and ". .venv/bin/activate" in line
