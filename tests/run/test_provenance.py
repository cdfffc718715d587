"""Provenance in done.json: each checksum can be reproduced manually."""

import json
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from support.driving import RUNS, done_of, drive, rename_engine, start_driver
from support.waiting import PATIENCE

from transfer_caffe.experiment.read import load_recipe
from transfer_caffe.experiment.recipe import TEMPLATES
from transfer_caffe.run import provenance
from transfer_caffe.run.engines import Engine
from transfer_caffe.utils.files import sha256, write_text

A = Path("data/pictures/random0/A")


def test_the_checksum_of_the_code_is_the_one_that_its_description_makes():
    command = re.search(r"^    cd transfer_caffe && (.*)$", provenance.__doc__ or "", re.M)
    assert command
    out = subprocess.run(command[1], shell=True, cwd=provenance.PACKAGE, capture_output=True, text=True, check=True)
    assert out.stdout.split()[0] == provenance.code_sha256()


def test_a_checkout_tells_its_commit_and_whether_files_differ_from_it_and_an_installed_copy_does_not(
    tmp_path, monkeypatch
):
    package = tmp_path / "transfer_caffe"
    write_text(package / "driver.py", "pass\n")
    monkeypatch.setattr(provenance, "PACKAGE", package)
    for name in ("code_sha256", "code"):
        monkeypatch.setattr(provenance, name, getattr(provenance, name).__wrapped__)
    assert set(provenance.code()) == {"version", "sha256"}
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b"]
    for words in (["init", "-q"], ["add", "."], ["commit", "-qm", "first"]):
        subprocess.run([*git, *words], check=True)
    assert provenance.code()["dirty"] is False and len(provenance.code()["commit"]) == 40
    write_text(package / "driver.py", "pass  # changed\n")
    assert provenance.code()["dirty"] is True


def test_an_engine_is_told_by_name_version_path_and_checksum(tmp_path):
    program = tmp_path / "caffe"
    program.write_text('#!/bin/sh\necho "caffe version 1.0.0"\n')
    program.chmod(0o755)
    assert provenance.engine_record(Engine.find(str(program))) == {
        "engine": "caffe", "engine_version": "1.0.0", "engine_path": str(program), "engine_sha256": sha256(program),
    }  # fmt: skip
    embedded = provenance.engine_record(Engine.find("embedded"))
    assert embedded["engine_version"] == provenance.__version__ and Path(embedded["engine_path"]).is_dir()


@pytest.mark.usefixtures("driver_world")
def test_done_json_alone_tells_where_a_network_comes_from():
    assert drive("baseA") == 0 and drive("A3B") == 0
    base, done = done_of("random0-baseA-s0"), done_of("random0-A3B-s0")
    recipe = load_recipe("small.yaml")
    assert done["code"]["sha256"] == provenance.code_sha256() and done["code"]["version"] == provenance.__version__
    assert done["settings"] == recipe.settings() and done["recipe_sha256"] == recipe.sha256()
    assert (done["base"], done["base_sha256"]) == ("random0-baseA-s0", base["sha256"]["final"])
    assert base["base"] is None and base["base_sha256"] is None
    files = ["train.txt", "val.txt", "mean.binaryproto", "train_lmdb/data.mdb", "val_lmdb/data.mdb"]
    assert base["data"] == {name: sha256(A / name) for name in base["data"]}
    assert set(files) <= set(base["data"])
    assert done["machine"]["cpu"] and done["machine"]["node"] and "devices" in done["machine"]
    assert done["seed"] == 0 and done["random_seed"] > 0 and done["engine"] and done["engine_path"]
    assert done["started"] <= done["runs"][0]["began"] <= done["runs"][0]["ended"] <= done["finished"]


@pytest.mark.usefixtures("driver_world")
def test_code_and_data_are_recorded_as_they_were_when_training_began(tmp_path, monkeypatch):
    """Check that pulling a new version, or rebuilding data, during training does not change the recorded provenance."""
    package = tmp_path / "checkout" / "transfer_caffe"
    shutil.copytree(provenance.PACKAGE, package, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(TEMPLATES, package.parent / "prototxt_templates")
    git = ["git", "-C", str(package.parent), "-c", "user.name=a", "-c", "user.email=a@b"]
    for words in (["init", "-q"], ["add", "."], ["commit", "-qm", "first"]):
        subprocess.run([*git, *words], check=True)
    first = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
    val = sha256(A / "val.txt")
    monkeypatch.setenv("PYTHONPATH", str(package.parent))
    process = start_driver("baseA", "slow")
    write_text(package / "__init__.py", (package / "__init__.py").read_text() + "# new\n")
    subprocess.run([*git, "commit", "-qam", "second"], check=True)
    write_text(A / "val.txt", (A / "val.txt").read_text().replace("0.png", "zero.png"))
    Path("go").touch()
    _, error = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, error
    done = done_of("random0-baseA-s0")
    assert (done["code"]["commit"], done["code"]["dirty"]) == (first, False) and done["data"]["val.txt"] == val


@pytest.mark.usefixtures("driver_world")
def test_each_run_of_an_engine_is_recorded_with_where_it_began():
    assert drive("baseA", "early") == 1
    rename_engine("random0-baseA-s0")
    assert drive("baseA") == 0
    runs = done_of("random0-baseA-s0")["runs"]
    assert [run["from_iteration"] for run in runs] == [0, 2] and all(run["ended"] for run in runs)
    assert all(run["code_sha256"] == provenance.code_sha256() for run in runs)


@pytest.mark.usefixtures("driver_world")
def test_records_of_before_runs_and_data_were_recorded_are_gone_on_with():
    assert drive("baseA", "early") == 1
    rename_engine("random0-baseA-s0")
    path = RUNS / "random0-baseA-s0" / "started.json"
    old = {key: json.loads(path.read_text())[key] for key in ("engine", "threads", "started")}
    path.write_text(json.dumps(old | {"gpu": "0"}))
    assert drive("baseA") == 0
    assert [run["from_iteration"] for run in done_of("random0-baseA-s0")["runs"]] == [2]


def test_how_many_snapshots_are_kept_is_no_part_of_the_recipes_checksum():
    recipe = load_recipe("demo")
    assert replace(recipe, keep_snapshots=5).sha256() == recipe.sha256() != replace(recipe, crop=27).sha256()
