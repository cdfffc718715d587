"""MPS for a sweep whose networks share GPUs: its start, its end, and the messages if it is missing."""

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from support.waiting import wait_for

from transfer_caffe.sweep import mps
from transfer_caffe.utils import processes

FAKE = """#!/bin/sh
echo "$* $CUDA_MPS_PIPE_DIRECTORY ${CUDA_VISIBLE_DEVICES-all}" >>CALLS
[ "$1" = -d ] || cat >>CALLS
exit CODE
"""


@pytest.fixture
def calls(tmp_path, monkeypatch):
    """Install a fake MPS program and a temporary folder for the test, and return the file with the program's calls."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    monkeypatch.delenv(mps.PIPES, raising=False)
    monkeypatch.setattr(mps, "SYSTEMS_PIPES", tmp_path / "none")
    return pretend(tmp_path, 0)


def pretend(folder, code):
    program = folder / mps.PROGRAM
    program.write_text(FAKE.replace("CALLS", str(folder / "calls")).replace("CODE", str(code)))
    program.chmod(0o755)
    return folder / "calls"


def test_the_daemon_runs_as_long_as_the_sweep_in_a_folder_of_its_own(calls):
    said: list[str] = []
    with mps.service(said.append) as environment:
        folder = Path(environment[mps.PIPES])
        assert folder.is_dir() and folder.parent == calls.parent / f"transfer_caffe-{os.getuid()}"
        assert environment == {mps.PIPES: str(folder), mps.LOGS: str(folder)}
        assert calls.read_text() == f"-d {folder} all\n"  # all GPUs
    assert calls.read_text() == f"-d {folder} all\n {folder} all\nquit\n"
    assert not folder.exists()
    (line,) = said
    assert line.startswith("networks on the same GPU compute at the same time, through an MPS started for this sweep")
    assert "if one of them is killed, the others on its GPU may hang or fail" in line


def test_it_ends_when_the_sweep_is_killed(calls):
    program = "import signal, sys; from pathlib import Path; from transfer_caffe.sweep import mps\n"
    program += "mps.SYSTEMS_PIPES = Path('none')\nwith mps.service(print): print(flush=True); signal.pause()"
    sweep = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, env=processes.environment())
    assert sweep.stdout and sweep.stdout.readline()
    sweep.send_signal(signal.SIGKILL)
    sweep.communicate()
    wait_for(lambda: "quit" in calls.read_text() and not list(calls.parent.glob("*/mps-*")), "the daemon's end")


def test_a_daemon_that_does_not_start_and_one_that_is_missing_mean_turns(calls, monkeypatch):
    said: list[str] = []
    pretend(calls.parent, 1)
    with mps.service(said.append) as environment:
        assert environment == {}
    monkeypatch.setenv("PATH", "/nowhere")
    with mps.service(said.append) as environment:
        assert environment == {}
    assert said == [
        "nvidia-cuda-mps-control could not be started: networks that share a GPU take turns on it",
        "nvidia-cuda-mps-control was not found: networks that share a GPU take turns on it",
    ]
    assert not list(calls.parent.glob("*/mps-*"))


@pytest.fixture
def pipe(tmp_path, monkeypatch):
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "control").touch()
    monkeypatch.setenv(mps.PIPES, str(tmp_path / "theirs"))
    return tmp_path / "theirs"


def test_one_that_runs_already_is_asked_and_left_alone(calls, pipe):
    said: list[str] = []
    with mps.service(said.append) as environment:
        assert environment == {}
    assert calls.read_text() == f" {pipe} 1\nget_default_active_thread_percentage\n"  # neither started nor ended
    assert "through the MPS that already runs here" in said[0] and "if one of them is killed" in said[0]


def test_the_pipe_of_one_that_was_killed_counts_as_none(calls, pipe):
    program = pretend(calls.parent, 0).parent / mps.PROGRAM
    program.write_text(program.read_text().replace("exit 0", '[ "$CUDA_MPS_PIPE_DIRECTORY" != "' + str(pipe) + '" ]'))
    said: list[str] = []
    with mps.service(said.append) as environment:
        assert environment[mps.PIPES] != str(pipe)
    assert "through an MPS started for this sweep" in said[0]


def test_a_daemon_that_does_not_answer_counts_as_none(calls, pipe, monkeypatch):
    monkeypatch.setattr(mps, "SECONDS_TO_ANSWER", 0.2)
    program = calls.parent / mps.PROGRAM
    program.write_text(
        '#!/bin/sh\n[ "$1" = -d ] || [ "$CUDA_MPS_PIPE_DIRECTORY" != "' + str(pipe) + '" ] || exec sleep 60\n'
    )
    said: list[str] = []
    with mps.service(said.append) as environment:
        assert environment[mps.PIPES] != str(pipe)
    assert "through an MPS started for this sweep" in said[0]


def test_without_the_program_a_pipe_counts_as_a_daemon_that_runs(calls, pipe, monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    said: list[str] = []
    with mps.service(said.append) as environment:
        assert environment == {}
    assert "through the MPS that already runs here" in said[0]
