"""The sweep over a recipe's networks, with a fake engine: order, failures, interruption, resuming."""

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
from support.small_world import RECIPE, fake_engine, make_world
from support.waiting import PATIENCE, wait_for

from transfer_caffe.experiment.read import load_recipe
from transfer_caffe.experiment.recipe import Network
from transfer_caffe.results.table import read_results
from transfer_caffe.sweep import mps
from transfer_caffe.sweep import run as sweep_run
from transfer_caffe.sweep.__main__ import main as sweep_main
from transfer_caffe.sweep.display import Lines, Running, State, duration
from transfer_caffe.sweep.selection import in_order
from transfer_caffe.sweep.slots import Gpu, GpuSlots, Slot
from transfer_caffe.utils import processes
from transfer_caffe.utils.files import sha256
from transfer_caffe.utils.locks import lock

RUNS = Path("runs/small")


@pytest.fixture(autouse=True)
def _world(tmp_path, monkeypatch, forked_trainings):
    make_world(tmp_path)
    monkeypatch.chdir(tmp_path)


def run(engine: str | None = None, *more: str) -> int:
    return sweep_main(["run", "--recipe", "small.yaml", "--engine", engine or fake_engine(), "--jobs", "2", *more])


def weights() -> dict[str, str]:
    return {path.parts[-3]: sha256(path) for path in RUNS.glob("*/snapshots/net_iter_8.caffemodel")}


def test_all_networks_are_trained_and_a_second_sweep_has_nothing_to_do(capsys):
    assert run() == 0
    rows = read_results(RUNS / "results.csv")
    assert [row.treatment for row in rows] == ["baseA", "baseB", "base", "A3B", "A3B+", "R2"]
    out = capsys.readouterr().out
    assert "[6/6]" in out and "6 of 6 networks of small are done" in out
    before = {path: path.stat().st_mtime_ns for path in RUNS.glob("*/*")}
    assert run(fake_engine("dies")) == 0  # an engine would fail if it were started
    assert {path: path.stat().st_mtime_ns for path in RUNS.glob("*/*")} == before


def test_a_split_comes_after_the_other_its_bases_first_then_the_frozen_networks():
    names = [str(network.treatment) for network in in_order(load_recipe("small.yaml").networks())]
    assert names == ["baseA", "baseB", "A3B", "A3B+", "base", "R2"]


def test_a_failed_network_stops_no_other_and_those_that_need_it_are_not_started(capsys):
    Path("data/pictures/random0/A/val.txt").write_text("no list\n")  # baseA cannot be rendered
    assert run() == 1
    captured = capsys.readouterr()
    assert "random0-A3B-s0: not started: its base random0-baseA-s0 failed" in captured.err
    assert "random0-baseA-s0: data/pictures/random0/A/val.txt: line 1: the label 'list'" in captured.err
    assert {row.treatment for row in read_results(RUNS / "results.csv")} == {"baseB", "base", "R2"}
    assert not (RUNS / "random0-A3B-s0").exists()


def test_the_engines_own_words_explain_a_failure(capsys):
    assert run(fake_engine("dies")) == 1
    error = capsys.readouterr().err
    assert "random0-baseB-s0: the engine was terminated by SIGABRT: Check failed: not today" in error


def test_a_network_whose_settings_have_changed_is_reported_and_the_others_go_on(capsys):
    assert run() == 0
    Path("small.yaml").write_text(
        RECIPE.replace("[baseA, baseB, A3B, A3B+]", "[baseA, A4B]").replace("lr: 0.5", "lr: 1")
    )
    assert run() == 1
    error = capsys.readouterr().err
    assert "random0-baseA-s0: done, but out of date: solver.base_lr was 0.5 and is 1; undo the change" in error
    assert "python -m transfer_caffe.driver --recipe small.yaml --split random0 --treatment baseA --restart" in error
    assert "random0-A4B-s0: not started" in error
    assert sweep_main(["plan", "--recipe", "small.yaml"]) == 0
    assert "done, but out of date" in capsys.readouterr().out


def test_networks_trained_with_a_recipe_that_was_edited_meanwhile_are_not_done(capsys, monkeypatch):
    start = sweep_run.Sweep._job

    def edit_and_start(sweep: sweep_run.Sweep, network: Network, slot: Slot) -> sweep_run.Job:
        if network.name == "random0-baseB-s0":
            Path("small.yaml").write_text(RECIPE.replace("lr: 0.5", "lr: 1"))
        return start(sweep, network, slot)

    monkeypatch.setattr(sweep_run.Sweep, "_job", edit_and_start)
    assert run(None, "--jobs", "1") == 1
    captured = capsys.readouterr()
    assert "1 of 6 networks of small are done" in captured.out
    for name in ("random0-baseB-s0", "whole-base-s0", "whole-R2-s0"):
        assert f"{name}: trained with other settings than this sweep's" in captured.err
    assert "meanwhile: solver.base_lr was 1 and is 0.5; undo the edit" in captured.err
    assert "A3B-s0: its base random0-baseA-s0 is out of date: solver.base_lr was 0.5 and is 1; retrain" in captured.err
    assert not (RUNS / "random0-A3B-s0" / "done.json").exists()


def test_networks_do_not_depend_on_how_many_are_trained_at_a_time():
    assert run() == 0
    two = weights()
    (RUNS).rename("runs/two")
    assert run(None, "--jobs", "1") == 0
    assert weights() == two and len(two) == 6


def start_sweep(engine: str, *training: str) -> subprocess.Popen[str]:
    """Start a sweep, and wait until these networks have written their first snapshot, where the engines wait."""
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "transfer_caffe.sweep",
            "run",
            "--recipe",
            "small.yaml",
            "--engine",
            engine,
            "--jobs",
            "2",
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    snapshots = [RUNS / name / "snapshots/net_iter_3.solverstate" for name in training]
    wait_for(lambda: all(path.exists() for path in snapshots), f"snapshots of {training}", process)
    return process


def test_an_interrupted_or_killed_sweep_ends_with_the_same_bytes_when_run_again():
    assert run() == 0
    undisturbed = weights()
    RUNS.rename("runs/undisturbed")
    slow = fake_engine("slow")

    process = start_sweep(slow, "random0-baseA-s0", "random0-baseB-s0")
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    out, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130
    assert "stopping: 2 networks write a snapshot" in out
    logs = [path.read_text() for path in RUNS.glob("*/train.log")]
    assert all("Optimization stopped early." in log for log in logs)

    process = start_sweep(
        slow, "random0-A3B-s0"
    )  # another network is in training too; which one depends on which base is done first
    process.kill()
    process.communicate()

    Path("go").touch()
    assert run(slow) == 0
    assert weights() == undisturbed


def test_a_second_interrupt_ends_all_at_once():
    process = start_sweep(fake_engine("slow", "deaf"), "random0-baseA-s0", "random0-baseB-s0")
    os.killpg(process.pid, signal.SIGINT)
    assert process.stdout is not None
    while "stopping" not in process.stdout.readline():
        pass
    os.killpg(process.pid, signal.SIGINT)
    process.communicate(timeout=PATIENCE)  # the engines ignore signals and would wait forever for a file `go`
    assert process.returncode == 130
    for name in ("random0-baseA-s0", "random0-baseB-s0"):  # no process is using them any more
        with lock(RUNS / f".{name}.lock", name, pytest.fail):
            pass


def test_a_sweep_whose_standard_output_is_closed_leaves_snapshots(monkeypatch):
    def show(*_: object) -> None:
        if len(list(RUNS.glob("*/snapshots/net_iter_3.solverstate"))) == 2:
            raise BrokenPipeError

    monkeypatch.setattr(Lines, "update", show)
    monkeypatch.setattr(Lines, "event", show)
    monkeypatch.setattr(sys, "stdout", sys.stdout)  # the command replaces it
    assert run(fake_engine("slow")) == 141
    sys.stdout.close()
    logs = [path.read_text() for path in RUNS.glob("*/train.log")]
    assert len(logs) == 2 and all("Optimization stopped early." in log for log in logs)


def gpus_of_the_machine(monkeypatch, tmp_path, count: int) -> None:
    gpus = [Gpu(number, f"GPU-{number}", "pretended") for number in range(count)]
    monkeypatch.setattr(sweep_run, "find_gpus", lambda: gpus)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))


def notes() -> list[list[str]]:
    """Return network, CUDA_VISIBLE_DEVICES and --gpu of each engine that was started."""
    return [line.split() for line in Path("notes").read_text().splitlines()]


def test_on_gpus_each_network_has_one_for_itself(monkeypatch, tmp_path, capsys):
    gpus_of_the_machine(monkeypatch, tmp_path, 3)
    held: list[int] = []
    really_start = processes.start

    def start(*args: Any, keep_open: tuple[int, ...], **more: Any) -> processes.Child:
        held.append(len(keep_open))
        return really_start(*args, keep_open=keep_open, **more)

    monkeypatch.setattr(sweep_run.processes, "start", start)
    argv = ["run", "--recipe", "small.yaml", "--engine", fake_engine("notes")]
    assert sweep_main([*argv, "--gpu", "0,2"]) == 0
    assert len(notes()) == 6
    assert held == [1] * 6  # each process holds the lock of its GPU
    assert {seen for _, seen, _ in notes()} == {"GPU-0", "GPU-2"}
    assert {gpu for _, _, gpu in notes()} == {"0"}  # the number among the GPUs that it sees
    assert sweep_main([*argv, "--gpu", "3"]) == 2
    assert "--gpu 3: there is no GPU '3'" in capsys.readouterr().err


def test_jobs_are_so_many_networks_a_gpu(monkeypatch, tmp_path, capsys):
    gpus_of_the_machine(monkeypatch, tmp_path, 1)
    monkeypatch.setattr(mps, "SYSTEMS_PIPES", tmp_path)
    monkeypatch.setattr(mps, "PROGRAM", "no-such-mps")
    most: list[int] = []
    job = sweep_run.Sweep._job

    def started(self: sweep_run.Sweep, network: Network, slot: Slot) -> sweep_run.Job:
        most.append(1 + len(self.running))
        return job(self, network, slot)

    monkeypatch.setattr(sweep_run.Sweep, "_job", started)
    argv = ["run", "--recipe", "small.yaml", "--engine", fake_engine("notes"), "--gpu", "all", "--jobs", "2"]
    assert sweep_main(argv) == 0
    assert len(notes()) == 6 and {seen for _, seen, _ in notes()} == {"GPU-0"} and max(most) == 2
    assert "no-such-mps was not found: networks that share a GPU take turns on it" in capsys.readouterr().out


def test_of_the_networks_that_can_start_one_with_the_data_of_its_gpu_comes_first():
    recipe = load_recipe("small.yaml")
    base, transfer, selffer = (recipe.network("random0", name) for name in ("baseA", "A3B", "B3B"))
    gpus = [Gpu(0, "GPU-0", "pretended"), Gpu(1, "GPU-1", "pretended")]
    made = sweep_run.Sweep.__new__(sweep_run.Sweep)
    made.running = [sweep_run.Job(selffer, None, Slot(gpu=gpus[1]), None, Path(), 0)]  # pyright: ignore[reportArgumentType]
    assert made._suited(Slot(gpu=gpus[1]), [base, transfer]) is transfer
    assert made._suited(Slot(gpu=gpus[1]), [base]) is base
    assert made._suited(Slot(gpu=gpus[0]), [base, transfer]) is base
    assert made._suited(Slot(), [base, transfer]) is base


def test_a_recipe_for_gpus_takes_all_there_are_and_the_processor_where_there_is_none(monkeypatch, tmp_path):
    recipe = RECIPE.replace("snapshot: 3}", "snapshot: 3, solver_mode: GPU}")
    Path("small.yaml").write_text(recipe)
    gpus_of_the_machine(monkeypatch, tmp_path, 2)
    argv = ["run", "--recipe", "small.yaml", "--engine", fake_engine("notes")]
    assert sweep_main([*argv, "--split", "random0"]) == 0
    assert {(seen, gpu) for _, seen, gpu in notes()} == {("GPU-0", "None"), ("GPU-1", "None")}
    Path("notes").unlink()
    gpus_of_the_machine(monkeypatch, tmp_path, 0)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert sweep_main(argv) == 0
    assert {(seen, gpu) for _, seen, gpu in notes()} == {("None", "None")}


def test_a_sweep_waits_for_a_gpu_that_another_one_uses(monkeypatch, tmp_path):
    gpus_of_the_machine(monkeypatch, tmp_path, 1)
    other = GpuSlots([Gpu(0, "GPU-0", "pretended")], 1, print)
    slot = other.take()
    assert slot
    said: list[str] = []

    def say(line: str) -> None:
        said.append(line)
        if "another sweep" in line:
            assert not list(RUNS.glob("*/train.log"))
            other.give_back(slot)

    monkeypatch.setattr(sweep_run, "_say", say)
    assert sweep_main(["run", "--recipe", "small.yaml", "--engine", fake_engine(), "--gpu", "0", "--only", "base"]) == 0
    assert sum(line.startswith("GPU 0 (pretended): another sweep is using it") for line in said) == 1


def test_without_keep_going_nothing_is_started_after_a_failure(capsys):
    argv = ["run", "--recipe", "small.yaml", "--engine", fake_engine("dies"), "--jobs", "1"]
    assert sweep_main([*argv, "--no-keep-going"]) == 1
    captured = capsys.readouterr()
    assert captured.out.count("FAILED") == 1
    assert "5 were not started because of that" in captured.err
    assert sweep_main(argv) == 1
    assert capsys.readouterr().out.count("FAILED") == 6


def test_status_tells_what_is_done_and_what_is_not_started(capsys):
    assert sweep_main(["status", "--recipe", "small.yaml"]) == 0
    assert "0 of 6 networks are done" in capsys.readouterr().out
    assert run(fake_engine("early")) == 1
    assert sweep_main(["status", "--recipe", "small.yaml"]) == 0
    assert "at iteration 1 of 8, last snapshot 2" in capsys.readouterr().out


@pytest.mark.parametrize("wrong", [["--jobs", "0"], ["--engine", "no-such-caffe"], ["--recipe", "no-such-recipe"]])
def test_bad_usage_is_one_line_and_2(wrong, capsys):
    assert run(None, *wrong) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_times_are_told_as_roughly_as_one_wants_to_know_them():
    assert [duration(s) for s in (5.4, 59, 600, 7300, 5e5)] == ["5 s", "59 s", "10 min", "2 h", "6 days"]
    running = Running("a", 250, 1000, 0.5, rate=12.5, seconds_left=60)
    assert running.words() == "a at 250/1000 (12.5 it/s, 1 min left)"
    assert Running("a", None, 1000, None).words() == "a at 0/1000"
    assert State(54, 12, 1, (), 600).headline() == "12 of 54 networks done, 1 failed, about 10 min left"


def test_a_selection_trains_what_it_chooses_and_the_bases_of_that_alone(capsys):
    assert run(None, "--only", "A3B") == 0
    assert "added as bases: random0-baseA-s0" in capsys.readouterr().out
    assert sorted(path.parent.name for path in RUNS.glob("*/done.json")) == ["random0-A3B-s0", "random0-baseA-s0"]
    assert sweep_main(["status", "--recipe", "small.yaml", "--only", "A3B"]) == 0
    assert "2 of 2 networks are done" in capsys.readouterr().out


def test_rate_and_time_left_come_from_the_log():
    network = load_recipe("small.yaml").network("random0", "A3B")  # 8 iterations, a test every 4
    job = sweep_run.Job(network, *[None] * 3, Path("log"), 0)  # pyright: ignore[reportArgumentType, reportCallIssue]
    lines = [
        ("00", "solver.cpp:239] Iteration 0, loss = 1"),
        ("02", "solver.cpp:239] Iteration 1, loss = 1"),
        ("02", "solver.cpp:347] Iteration 1, Testing net (#0)"),
        ("12", "solver.cpp:414]     Test net output #0: accuracy = 0.25"),
        ("14", "solver.cpp:239] Iteration 2, loss = 1"),
        ("16", "solver.cpp:239] Iteration 3, loss = 1"),
    ]
    Path("log").write_text("".join(f"I1123 13:41:{second}.000000  9956 {line}\n" for second, line in lines))
    job.look()
    shown = job.shown()
    assert (shown.iteration, shown.accuracy, shown.rate) == (3, 0.25, 0.5)
    assert shown.seconds_left == 5 * 2 + 5 / 4 * 10
    assert job.displayed == 3


def test_with_a_folder_for_it_the_sweep_ends_with_a_report(capsys):
    assert run(None, "--report", "out") == 0
    captured = capsys.readouterr().out
    assert captured.splitlines()[-1] == "report: out/index.html (6 of 6 networks)"
    assert "Incomplete" not in Path("out/index.html").read_text()
    again = Path("out/index.html").read_bytes()
    assert run(fake_engine("dies"), "--report", "out") == 0  # nothing is trained
    assert Path("out/index.html").read_bytes() == again


def test_networks_that_failed_leave_a_report_of_the_others(capsys):
    Path("data/pictures/random0/A/val.txt").write_text("no list\n")  # baseA cannot be rendered
    assert run(None, "--report", "out") == 1
    assert "report: out/index.html (3 of 6 networks)" in capsys.readouterr().out
    assert "Incomplete: 3 of 6 planned networks have a result." in Path("out/index.html").read_text()


def test_a_report_that_cannot_be_written_is_said_and_exit_1(capsys):
    Path("out").write_text("a file")
    assert run(None, "--report", "out") == 1
    assert "report: not written: " in capsys.readouterr().out
