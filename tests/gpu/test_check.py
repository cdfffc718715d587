"""The GPU check, without a GPU: a dry run of all steps, time limits, what counts as a failure, and the bundle."""

import argparse
import importlib
import json
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import torch
from benchmarks import speed
from gpu import bundle, check, exact
from gpu.world import World

from transfer_caffe.engine.layers import vision
from transfer_caffe.engine.layers.data import Images
from transfer_caffe.engine.layers.neuron import Dropout
from transfer_caffe.engine.layers.vision import LRN, Convolution, Pooling
from transfer_caffe.engine.net import Net
from transfer_caffe.engine.precision import use_precision
from transfer_caffe.engine.solver.device_update import DeviceUpdate


def test_a_dry_run_of_all_steps_finds_everything_in_order(tmp_path):
    done = subprocess.run(
        [sys.executable, check.__file__, "--dry-run", "--out", str(tmp_path / "out put")],
        capture_output=True,
        text=True,
    )
    log = (tmp_path / "out put" / "log.txt").read_text()
    assert done.returncode == 0, done.stdout + log[-5000:]
    found = json.loads((tmp_path / "out put" / "results.json").read_text())
    assert found["good"] and [each["step"] for each in found["steps"]] == list(check.STEPS)
    assert len(found["checks"]) > 30
    units = {each["unit"] for each in found["measures"]}
    assert units == {"ms", "s", "images/s", "GB/s", "GFLOP/s", "hours"}
    assert all(each["value"] > 0 for each in found["measures"])
    assert all(each["measure"] in done.stdout for each in found["measures"])


def options(tmp_path, **given):
    return argparse.Namespace(**{"out": tmp_path / "out", "only": "", "dry_run": False, **given})


@pytest.fixture
def steps(monkeypatch, tmp_path):
    """Replace the script that runs one step by another one."""

    def replace(code):
        script = tmp_path / "step.py"
        script.write_text(
            "import json, subprocess, sys, time\n"
            "step, out = (sys.argv[sys.argv.index(flag) + 1] for flag in ('--step', '--out'))\n"
            "def report(**record):\n"
            "    with open(out + '/results.jsonl', 'a') as file:\n"
            "        file.write(json.dumps(dict(step=step, **record)) + '\\n')\n"
            "print('output of', step, flush=True)\n" + code
        )
        monkeypatch.setattr(check, "__file__", str(script))

    return replace


def run_anew(tmp_path, shares, total, **given):
    """Run the steps that the replaced script has, which a fork would not run."""
    return check.run_all(options(tmp_path, **given), shares, total, check.start_anew)


GOOD = "report(check='it works', holds=True, detail='')\n"


def test_a_step_that_takes_too_long_is_ended_with_its_children_and_keeps_what_it_found(tmp_path, steps, capsys):
    endless = "subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\ntime.sleep(600)\n"
    steps(GOOD + f"if step == 'rates':\n    {endless.replace(chr(10), chr(10) + '    ')}\n")
    assert run_anew(tmp_path, {"data": 2, "rates": 3, "smoke": 20}, 25) == 1
    found = json.loads((tmp_path / "out" / "results.json").read_text())
    states = [each["state"] for each in found["steps"]]
    assert states == ["done", "ended after its limit of 5 s", "done"]
    assert [each["step"] for each in found["checks"]] == ["data", "rates", "smoke"] and not found["good"]
    assert "STEP rates: ended after its limit of 5 s" in capsys.readouterr().out
    assert "output of rates" in (tmp_path / "out" / "log.txt").read_text()


@pytest.mark.parametrize(
    ("code", "line"),
    [
        ("report(check='it works', holds=False, detail='2 is not 3')", "FAILED rates: it works 2 is not 3"),
        (GOOD + "raise ValueError('broken')", "STEP rates: failed with exit code 1"),
        ("", "0 of 0 checks hold"),
    ],
)
def test_whatever_fails_makes_the_check_fail(tmp_path, steps, capsys, code, line):
    steps(code)
    assert run_anew(tmp_path, {"rates": 20}, 20) == 1
    assert line in capsys.readouterr().out


def test_no_step_starts_when_no_time_is_left(tmp_path, steps, capsys):
    steps(GOOD)
    assert run_anew(tmp_path, {"rates": 20, "smoke": 20}, 1) == 1
    assert "STEP smoke: not run: no time was left" in capsys.readouterr().out


def test_a_chosen_step_alone_is_enough(tmp_path, steps):
    steps(GOOD)
    assert run_anew(tmp_path, {"data": 20, "rates": 20, "smoke": 20}, 60, only="^smoke$") == 0
    found = json.loads((tmp_path / "out" / "results.json").read_text())
    assert [each["step"] for each in found["steps"]] == ["data", "smoke"]


def test_the_shares_of_the_steps_leave_time_for_the_table_within_eight_minutes():
    assert sum(check.STEPS.values()) <= check.TOTAL <= 8 * 60 - 5


def test_a_step_may_use_what_earlier_ones_have_left_but_not_what_later_ones_need(tmp_path, steps):
    steps(GOOD + "time.sleep({'data': 0, 'rates': 3, 'smoke': 600, 'kernels': 2}[step])\n")
    assert run_anew(tmp_path, {"data": 5, "rates": 1, "smoke": 1, "kernels": 5}, 12) == 1
    found = json.loads((tmp_path / "out" / "results.json").read_text())
    states = [each["state"] for each in found["steps"]]
    assert states[:2] == ["done", "done"] and states[2].startswith("ended after") and states[3] == "done"
    assert found["seconds"] < 13


def test_if_a_forked_process_cannot_use_the_device_all_steps_run_in_processes_of_their_own(
    tmp_path, steps, monkeypatch
):
    steps(GOOD)
    anew = []

    def fork(argv, output, folder):
        if "data" in argv:
            return check.start_anew(argv, output, folder)
        return subprocess.Popen(["false"], start_new_session=True)

    start_anew = check.start_anew
    monkeypatch.setattr(check, "start_by_fork", fork)
    monkeypatch.setattr(check, "start_anew", lambda argv, *rest: anew.append(argv[1]) or start_anew(argv, *rest))
    assert check.run_all(options(tmp_path), {"data": 9, "rates": 9, "smoke": 9}, 30) == 0
    assert anew == ["data", "rates", "smoke"]


def test_forked_steps_can_import_what_a_bundle_contains(tmp_path, monkeypatch):
    (tmp_path / "only_in_a_bundle.py").write_text("")
    monkeypatch.setattr(check, "UNPACKED", tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    check.import_all()
    importlib.import_module("only_in_a_bundle")


def test_if_something_cannot_be_imported_each_step_runs_in_a_process_of_its_own(tmp_path, steps, monkeypatch, capfd):
    def fails():
        raise ModuleNotFoundError("No module named 'lmdb'")

    steps(GOOD)
    monkeypatch.setattr(check, "import_all", fails)
    assert check.run_all(options(tmp_path), {"data": 9, "rates": 9}, 20) == 0
    assert "No module named 'lmdb'" in capfd.readouterr().err


def test_what_the_steps_import_does_not_use_the_gpu():
    """A process that was forked after CUDA had been used could not use it."""
    code = """if True:
        import sys, torch
        def never(*_):
            raise AssertionError("the GPU was used")
        for name in ("is_available", "device_count", "_lazy_init"):
            setattr(torch.cuda, name, never)
        from gpu import check
        check.import_all()
        assert not torch.cuda.is_initialized()
    """
    tests = str(Path(check.__file__).parent.parent)
    done = subprocess.run(
        [sys.executable, "-c", code], env=check.environment(), cwd=tests, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


@pytest.fixture
def net(tmp_path, monkeypatch):
    """The net of the demo in a precision, as the check builds it."""
    monkeypatch.setattr(Images, "_made_by_device", Images._made_by_device)
    monkeypatch.setattr(DeviceUpdate, "devices", DeviceUpdate.devices)
    monkeypatch.setattr(Net, "fused_devices", Net.fused_devices)
    monkeypatch.setattr(vision, "fused_pool", vision.fused_pool)
    monkeypatch.chdir(tmp_path)
    speed.make_data(tmp_path, 1 / 50)

    def build(precision):
        world = World.create("layers", tmp_path, tmp_path / "results", True)
        made = world.solver(precision).net
        exact.note_shapes(made)
        return made

    yield build
    use_precision("fp32", True, torch.device("cpu"))


def broken(net, precision):
    return {each.layer for each in exact.compare(net, precision) if not each.holds}


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_an_error_in_a_layer_is_found_in_that_layer(net, precision, monkeypatch):
    made = net(precision)
    assert broken(made, precision) == set()
    layers = {layer.name: layer for layer in made.layers}
    for name, kind, change in (
        ("conv2", Convolution, lambda top: top * (1 + 2**-5)),
        ("pool1", Pooling, lambda top: top.roll(1, 3)),
        ("norm2", LRN, lambda top: top * (1 + 2**-4)),
        ("drop7", Dropout, lambda top: top.roll(1, 0)),
    ):
        layer = layers[name]
        assert isinstance(layer, kind)
        forward = layer.forward
        monkeypatch.setattr(layer, "forward", lambda x, b, f=forward, c=change: [c(top) for top in f(x, b)])
        assert broken(made, precision) == {name}
        monkeypatch.undo()


def test_the_bundle_has_the_checkout_and_the_wheels_that_are_missing_there(tmp_path):
    pinned = bundle.missing((bundle.ROOT / "requirements.txt").read_text())
    assert [line.partition("==")[0] for line in pinned] == ["lmdb"]
    (tmp_path / "wheels").mkdir()
    (tmp_path / "wheels" / "lmdb-1-cp312.whl").write_bytes(b"wheel")
    names = bundle.files()
    assert Path("tests/gpu/check.py") in names and not [name for name in names if name.parts[0] in (".venv", "runs")]
    bundle.write(tmp_path / "made.tar.gz", names, tmp_path / "wheels")
    with tarfile.open(tmp_path / "made.tar.gz") as archive:
        archive.extractall(tmp_path / "there", filter="data")
    there = tmp_path / "there" / bundle.NAME
    assert (there / "wheels" / "lmdb-1-cp312.whl").exists()
    assert (there / "tests/gpu/check.py").read_bytes() == Path(check.__file__).read_bytes()
    assert (tmp_path / "made.tar.gz").stat().st_size < bundle.MOST_BYTES


def test_a_wheel_is_unpacked_where_its_package_is_missing(tmp_path, monkeypatch):
    import zipfile

    (tmp_path / "wheels").mkdir()
    for package in ("json", "no_such_package"):
        with zipfile.ZipFile(tmp_path / "wheels" / f"{package}-1.0-py3-none-any.whl", "w") as archive:
            archive.writestr(f"{package}/__init__.py", "there = 1\n")
    monkeypatch.setattr(check, "WHEELS", tmp_path / "wheels")
    monkeypatch.setattr(check, "UNPACKED", tmp_path / "unpacked here")
    check.unpack_wheels()
    assert sorted(path.name for path in (tmp_path / "unpacked here").iterdir()) == ["no_such_package"]
    code = "import no_such_package, json; print(no_such_package.there, hasattr(json, 'there'))"
    done = subprocess.run([sys.executable, "-c", code], env=check.environment(), capture_output=True, text=True)
    assert done.stdout == "1 False\n"


def test_every_step_has_a_function():
    modules = [importlib.import_module(name) for name in ("gpu.correct", "gpu.speeds")]
    for step in check.STEPS:
        assert step == "data" or sum(callable(getattr(module, step, None)) for module in modules) >= 1
