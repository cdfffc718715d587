"""Errors of the driver before an engine starts: data, settings and records that are damaged or have changed."""

import errno
import fcntl
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from support.driving import RUNS, arguments, done_of, drive, final, rename_engine
from support.small_world import RECIPE, database, fake_engine

from transfer_caffe import driver
from transfer_caffe.experiment.read import load_recipe
from transfer_caffe.formats.database import Database
from transfer_caffe.formats.views import write_view
from transfer_caffe.run.engines import Engine
from transfer_caffe.tools.compute_mean import write_mean
from transfer_caffe.utils.errors import UserError
from transfer_caffe.utils.files import sha256

pytestmark = pytest.mark.usefixtures("driver_world")


A = Path("data/pictures/random0/A")


def replace_database(labels: tuple[int, ...]) -> None:
    for name, content in database(labels).items():
        (A / "train_lmdb" / name).write_bytes(content)


def without_records() -> None:
    replace_database(())


def label_3_in_the_list() -> None:
    Path("small.yaml").write_text(RECIPE.replace("outputs: classes", "outputs: 3"))
    with open(A / "val.txt", "a") as file:
        file.write("7.png 3\n")


def label_3_in_the_database() -> None:
    replace_database((0, 1, 2, 3))


def mean_of_smaller_images() -> None:
    write_mean(A / "mean.binaryproto", np.full((3, 20, 20), 100, np.float32))


def mean_without_a_number() -> None:
    write_mean(A / "mean.binaryproto", np.full((3, 32, 32), np.nan, np.float32))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (without_records, "A/train_lmdb: the database has no records"),
        (mean_of_smaller_images, "A/mean.binaryproto: not a mean image of 3 channels and at least 28 x 28 pixels"),
        (mean_without_a_number, "one image of finite values was expected"),
        (label_3_in_the_list, "A/val.txt: line 7: label 3, but the last layer of random0-baseA-s0 has 3 outputs"),
        (label_3_in_the_database, "A/train_lmdb: record '00000003_3.png': label 3, but the last layer"),
    ],
)
def test_data_on_which_real_caffe_dies_or_trains_nonsense_is_named_before_the_engine_starts(damage, message, capsys):
    damage()
    assert drive("baseA") == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not (RUNS / "random0-baseA-s0" / "train.log").exists()


def test_changed_settings_are_refused_until_restart(capsys):
    assert drive("baseA") == 0
    Path("small.yaml").write_text(RECIPE.replace("base_lr: 0.5", "base_lr: 0.25"))
    assert drive("baseA") == 2
    error = capsys.readouterr().err
    assert "base_lr is 0.5 in the folder and 0.25 in the recipe" in error and "--restart" in error
    assert drive("baseA", more=("--restart",)) == 0
    assert (RUNS / "random0-baseA-s0.old1" / "done.json").exists()
    assert done_of("random0-baseA-s0")["settings"]["solver"]["base_lr"] == 0.25


def test_a_restart_that_cannot_begin_leaves_the_finished_network_in_its_place(capsys):
    assert drive("baseA") == 0
    recipe = RECIPE + "precision: bf16\n"  # the fake engine is taken for real Caffe, which only knows fp32
    Path("small.yaml").write_text(recipe)
    assert drive("baseA", more=("--restart",)) == 2
    assert "bf16" in capsys.readouterr().err
    Path("small.yaml").write_text(RECIPE)
    mean_without_a_number()
    assert drive("baseA", more=("--restart",)) == 2
    assert "one image of finite values was expected" in capsys.readouterr().err
    assert (RUNS / "random0-baseA-s0" / "done.json").exists()
    assert not (RUNS / "random0-baseA-s0.old1").exists()


@pytest.mark.parametrize(
    ("old", "new", "difference"),
    [
        ("mirror: true", "mirror: true\nthreads: 2", "threads was 1 and is 2"),
        ("mirror: true", "mirror: true\nprecision: bf16", "precision was fp32 and is bf16"),
        ("mirror: true", "mirror: true\ndeterministic: false", "deterministic was True and is False"),
        ("resize: [32, 32]", "resize: [40, 40]", "images.resize was [32, 32] and is [40, 40]"),
    ],
)
def test_changed_settings_that_no_prototxt_tells_of_are_refused_of_a_done_network_too(old, new, difference, capsys):
    assert drive("baseA") == 0
    Path("small.yaml").write_text(RECIPE.replace(old, new))
    assert drive("baseA") == 2
    error = capsys.readouterr().err
    assert difference in error and "--restart" in error and error.count("\n") == 1


def test_another_engine_or_thread_count_is_refused_amid_a_network(capsys):
    assert drive("baseA", "early") == 1
    assert drive("baseA") == 2
    assert "was started with engine" in capsys.readouterr().err
    rename_engine("random0-baseA-s0")
    Path("small.yaml").write_text(RECIPE + "threads: 2\n")
    assert drive("baseA") == 2
    assert "was started with threads 1, not 2" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("key", "default", "value", "other", "flag"),
    [("precision", "fp32", "bf16", "bf16", "--precision bf16"),
     ("deterministic", "deterministic: true", "false", False, "--deterministic off")],
)  # fmt: skip
def test_another_arithmetic_is_refused_amid_a_network_and_by_engines_that_know_one_alone(
    key, default, value, other, flag, capsys
):
    embedded = Engine("embedded", Engine.find(fake_engine()).argv)

    def train():
        network = load_recipe("small.yaml").network("random0", "baseA")
        return driver.train(network, Path("runs"), Path("data"), embedded, None, False, print)

    Path("small.yaml").write_text(RECIPE + f"{key}: {value}\n")
    assert drive("baseA") == 2
    error = capsys.readouterr().err
    assert f"fake_engine.py only supports {default}, not {value}" in error and error.count("\n") == 1
    done = train()
    assert done["settings"][key] == other
    assert flag in (RUNS / "random0-baseA-s0" / "train.log").read_text()
    (RUNS / "random0-baseA-s0" / "done.json").unlink()
    Path("small.yaml").write_text(RECIPE)
    with pytest.raises(UserError, match=f"was started with {key} {other}, not "):
        train()


def test_a_network_whose_base_was_trained_anew_is_refused(capsys):
    assert drive("baseA") == 0
    assert drive("A3B") == 0
    path = RUNS / "random0-baseA-s0" / "done.json"
    done = json.loads(path.read_text())
    done["sha256"]["final"] = "0" * 64
    path.write_text(json.dumps(done))
    assert drive("A3B") == 2
    assert "its base random0-baseA-s0 has been retrained since" in capsys.readouterr().err


def test_a_network_whose_base_was_trained_with_other_settings_is_refused(capsys):
    assert drive("baseA") == 0
    Path("small.yaml").write_text(RECIPE.replace("base_lr: 0.5", "base_lr: 0.25"))
    assert drive("A3B") == 2
    error = capsys.readouterr().err
    assert "its base random0-baseA-s0 is out of date: solver.base_lr was 0.5 and is 0.25; retrain that first" in error
    assert not (RUNS / "random0-A3B-s0").exists()


@pytest.mark.parametrize("checksum", [True, False], ids=["with checksum", "without"])
@pytest.mark.parametrize("name", ["train_lmdb/data.mdb", "val_lmdb/data.mdb", "mean.binaryproto"])
def test_damaged_data_is_an_error_before_any_engine_starts(name, checksum, capsys):
    path = Path("data/pictures/random0/A") / name
    whole = path.read_bytes()
    if not checksum:
        path.with_name(f"{path.name}.sha256").unlink()
    flipped = bytes([*whole[:-5], whole[-5] ^ 1, *whole[-4:]])
    for damaged in (b"", whole[:-3], *([flipped] if checksum else [])):
        path.write_bytes(damaged)
        assert drive("baseA") == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and path.parts[-2] in error
        assert not (RUNS / "random0-baseA-s0" / "train.log").exists()


def test_missing_data_is_an_error_that_names_the_command(capsys):
    shutil.rmtree("data/pictures/random0/A/val_lmdb")
    assert drive("baseA") == 2
    assert "python -m transfer_caffe.data --recipe small" in capsys.readouterr().err


def test_real_caffe_is_not_started_on_a_view(capsys, monkeypatch):
    database = Path("data/pictures/random0/A/train_lmdb")
    whole = Database(database)
    os.rename(database, "whole_lmdb")
    entries = np.array([(number, number % 3) for number in range(len(whole))])
    write_view(database, Database("whole_lmdb"), entries, {"list_sha256": sha256("data/pictures/random0/A/train.txt")})
    assert drive("baseA") == 2
    said = capsys.readouterr().err
    assert "train_lmdb is a view, which real Caffe cannot read" in said and "--recipe small.yaml --copies" in said
    monkeypatch.setattr(Engine, "reads_views", True)  # like the embedded engine
    assert drive("baseA") == 0


DAMAGED = ["null", "[]", "3", '"x"', "{}", "[" * 100_000, '{"sha256": {"final": null}}', ""]


@pytest.mark.parametrize("content", DAMAGED)
def test_a_damaged_record_of_a_start_is_an_error_in_one_line(content, capsys):
    assert drive("baseA") == 0
    (RUNS / "random0-baseA-s0" / "started.json").write_text(content)
    (RUNS / "random0-baseA-s0" / "done.json").unlink()
    capsys.readouterr()
    assert drive("baseA") == 2
    error = capsys.readouterr().err
    assert ("started.json" in error and "--restart" in error) or "not valid JSON" in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("content", DAMAGED)
def test_a_damaged_record_of_a_done_network_is_set_aside_and_made_anew(content, capsys):
    assert drive("baseA") == 0
    done, weights = RUNS / "random0-baseA-s0" / "done.json", final("random0-baseA-s0").read_bytes()
    before = json.loads(done.read_text())
    done.write_text(content)
    capsys.readouterr()
    assert drive("baseA") == 0
    assert "renamed to done.json.damaged" in capsys.readouterr().out
    assert done.with_name("done.json.damaged").read_text() == content
    after = json.loads(done.read_text())
    same = ("accuracy_final", "random_seed", "settings", "data")
    assert [after[key] for key in same] == [before[key] for key in same]
    assert after["sha256"]["final"] == before["sha256"]["final"]
    assert final("random0-baseA-s0").read_bytes() == weights


def test_a_done_network_whose_weights_are_damaged_or_whose_record_is_anothers_is_not_taken_for_done(capsys):
    assert drive("baseA") == 0 and drive("baseB") == 0
    done = RUNS / "random0-baseA-s0" / "done.json"
    whole = done.read_text()
    done.write_text((RUNS / "random0-baseB-s0" / "done.json").read_text())
    assert drive("baseA") == 0 and "it belongs to another network than random0-baseA-s0" in capsys.readouterr().out
    assert json.loads(done.read_text())["network"] == "random0-baseA-s0" == json.loads(whole)["network"]
    weights = final("random0-baseA-s0")
    weights.write_bytes(weights.read_bytes()[:-1])
    assert drive("baseA") == 2 and "its sha256 is not the one in done.json" in capsys.readouterr().err


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_named_before_any_engine_starts(number, capsys, monkeypatch):
    """Simulate NFS mounted with nolock, or Lustre mounted without -o flock."""

    def no_locks(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", no_locks)
    assert drive("baseA") == 2
    error = capsys.readouterr().err
    assert ".random0-baseA-s0.lock: this file system does not support locks" in error and error.count("\n") == 1
    assert not (RUNS / "random0-baseA-s0").exists()


def test_a_treatment_that_means_nothing_is_an_error(capsys):
    assert drive("A9B") == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_an_engine_that_does_not_exist_is_an_error(capsys):
    assert driver.main(arguments("baseA", "no-such-caffe")) == 2
    assert "no-such-caffe: there is no such program" in capsys.readouterr().err
