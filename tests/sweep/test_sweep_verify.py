"""`sweep verify`: every file recorded in done.json is compared, and each difference is reported with a remedy."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from support.driving import RUNS, final
from support.small_world import RECIPE, fake_engine

from transfer_caffe.formats.database import Database
from transfer_caffe.formats.views import write_view
from transfer_caffe.run.engines import Engine
from transfer_caffe.sweep.__main__ import main as sweep_main
from transfer_caffe.utils.files import sha256

pytestmark = pytest.mark.usefixtures("driver_world")

A, B = Path("data/pictures/random0/A"), Path("data/pictures/random0/B")
TRANSFER, BASE = RUNS / "random0-A3B-s0", RUNS / "random0-baseA-s0"


def train() -> None:
    Path("small.yaml").write_text(RECIPE.replace("[baseA, baseB, A3B, A3B+]", "[baseA, A3B]").replace(", R2", ""))
    assert sweep_main(["run", "--recipe", "small.yaml", "--engine", fake_engine(), "--jobs", "2"]) == 0


def verify(capsys, *more: str) -> tuple[int, str]:
    capsys.readouterr()
    code = sweep_main(["verify", "--recipe", "small.yaml", *more])
    return code, capsys.readouterr().out


def flip(path: Path, place: int | None = None) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2 if place is None else place] ^= 1
    path.write_bytes(content)


def replace(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def another_base() -> None:
    replace(BASE / "done.json", sha256(final(BASE.name)), "0" * 64)


DAMAGES = {
    "weights": (lambda: flip(final(TRANSFER.name)), "net_iter_8.caffemodel: its checksum is"),
    "solver state": (
        lambda: flip(TRANSFER / "snapshots/net_iter_8.solverstate"),
        "net_iter_8.solverstate: damaged",
    ),
    "initial weights": (lambda: flip(TRANSFER / "init.caffemodel"), "init.caffemodel: its checksum is"),
    "net": (lambda: replace(TRANSFER / "train_val.prototxt", "lr_mult: 1", "lr_mult: 3"), "train_val.prototxt: its"),
    "image list": (lambda: flip(B / "train.txt"), "B/train.txt: its checksum is"),
    "mean": (lambda: flip(B / "mean.binaryproto"), "B/mean.binaryproto: its checksum is"),
    "database": (lambda: flip(B / "train_lmdb/data.mdb"), "B/train_lmdb/data.mdb: its checksum is"),
    "base": (another_base, "random0-baseA-s0 has been retrained since"),
    "surgery": (
        lambda: replace(TRANSFER / "surgery.json", '"base_sha256": "', '"base_sha256": "f'),
        "this is its base_sha256",
    ),
    "curve": (lambda: replace(TRANSFER / "curve.csv", "4,0.5", "4,0.75"), "curve.csv: line 3 is '4,0.75,1.5,2.5,0.5'"),
    "log": (
        lambda: replace(TRANSFER / "train.log", "accuracy = 1", "accuracy = 2"),
        "its last test accuracy is 2.0, but done.json has 1.0",
    ),
    "record": (lambda: (TRANSFER / "done.json").write_text("{}"), "done.json: damaged"),
    "record edited": (
        lambda: replace(TRANSFER / "done.json", '"random_seed": ', '"random_seed": 1'),
        "done.json: its checksum is",
    ),
    "starts": (
        lambda: replace(TRANSFER / "started.json", '"threads": ', '"threads":  '),
        "started.json: its checksum is",
    ),
    "log's times": (lambda: flip(TRANSFER / "train.log", 3), "train.log: its checksum is"),
    "recipe": (lambda: replace(Path("small.yaml"), "base_lr: 0.5", "base_lr: 0.25"), "base_lr is 0.5 in the folder"),
}


def test_what_was_trained_agrees_and_nothing_is_written(capsys):
    train()
    before = {path: path.stat().st_mtime_ns for path in Path().rglob("*")}
    code, out = verify(capsys)
    assert code == 0 and "3 networks agree, 0 differ, 0 are not done" in out and "0 files not here" in out
    assert {path: path.stat().st_mtime_ns for path in Path().rglob("*")} == before


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Train once, and return the folder; each test damages a copy of it."""
    folder, before = tmp_path_factory.mktemp("trained"), Path.cwd()
    from support.small_world import make_world

    make_world(folder)
    os.chdir(folder)
    try:
        train()
    finally:
        os.chdir(before)
    return folder


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_difference_is_exit_code_1_and_a_line_that_names_it(damage, trained, capsys):
    shutil.copytree(trained, Path.cwd(), dirs_exist_ok=True)
    harm, message = DAMAGES[damage]
    harm()
    code, out = verify(capsys)
    lines = [line for line in out.splitlines() if line.startswith("  ")]
    assert code == 1 and any(message in line for line in lines), out


def test_what_is_not_on_this_machine_is_counted_and_no_error(trained, capsys):
    shutil.copytree(trained, Path.cwd(), dirs_exist_ok=True)
    shutil.rmtree("data")
    shutil.rmtree(TRANSFER / "snapshots")
    shutil.rmtree(RUNS / "whole-base-s0")
    code, out = verify(capsys)
    assert code == 0 and "2 networks agree, 0 differ, 1 are not done" in out
    assert ", 7 not here" in out  # weights, state, 2 lists, 2 databases, mean


def test_quick_leaves_the_databases_out_and_a_choice_the_other_networks(trained, capsys):
    shutil.copytree(trained, Path.cwd(), dirs_exist_ok=True)
    flip(B / "train_lmdb/data.mdb")
    code, out = verify(capsys, "--quick")
    assert code == 0 and "databases skipped" in out
    code, out = verify(capsys, "--only", "baseA")
    assert code == 0 and "1 networks agree" in out


def test_records_of_before_the_data_was_recorded_are_read(trained, capsys):
    shutil.copytree(trained, Path.cwd(), dirs_exist_ok=True)
    for path in RUNS.glob("*/done.json"):
        done = json.loads(path.read_text())
        for key in (
            "data",
            "code",
            "runs",
            "recipe_sha256",
            "base",
            "engine_version",
            "engine_path",
            "engine_sha256",
            "record_sha256",
        ):
            done.pop(key, None)
        path.write_text(json.dumps(done))
    assert verify(capsys)[0] == 0
    flip(B / "val.txt")
    assert verify(capsys)[0] == 1


def test_a_view_is_compared_with_its_table_and_with_the_database_under_it(capsys, monkeypatch):
    monkeypatch.setattr(Engine, "reads_views", True)
    for part in ("train", "val"):
        os.rename(A / f"{part}_lmdb", f"data/{part}_lmdb")
        entries = np.array([(number, number % 3) for number in range(6)])
        made = {"list_sha256": sha256(A / f"{part}.txt")}
        write_view(A / f"{part}_lmdb", Database(f"data/{part}_lmdb"), entries, made)
    from support.driving import drive

    assert drive("baseA") == 0
    data = json.loads((BASE / "done.json").read_text())["data"]
    assert data["train_lmdb/data.mdb"] == sha256("data/train_lmdb/data.mdb")
    assert verify(capsys)[0] == 0
    flip(Path("data/val_lmdb/data.mdb"))
    code, out = verify(capsys)
    assert code == 1 and "data/val_lmdb/data.mdb: its checksum is" in out
    shutil.rmtree("data/val_lmdb")
    flip(A / "train_lmdb/records.npy")
    code, out = verify(capsys)
    assert code == 1 and "A/train_lmdb/records.npy: its checksum is" in out and "1 files not here" in out


def test_a_copy_in_the_place_of_the_view_that_was_trained_on_is_no_difference(capsys, monkeypatch):
    """Check a copy as real Caffe needs it: it has the same records, but different checksums than the view."""
    monkeypatch.setattr(Engine, "reads_views", True)
    from support.driving import drive

    for part in ("train", "val"):
        os.rename(A / f"{part}_lmdb", f"data/{part}_lmdb")
        entries = np.array([(number, number % 3) for number in range(6)])
        write_view(A / f"{part}_lmdb", Database(f"data/{part}_lmdb"), entries, {"list_sha256": "none"})
    assert drive("baseA") == 0
    shutil.rmtree(A / "train_lmdb")
    os.rename("data/train_lmdb", A / "train_lmdb")
    flip(A / "train_lmdb/data.mdb")  # differs from the database that the view used
    shutil.copytree("data/val_lmdb", "data/train_lmdb")
    code, out = verify(capsys)
    assert code == 0 and "2 files not here" in out  # the table of the view, and its database
