"""Run the driver on networks of the small world (`small_world`, fixture `driver_world`) with the fake engine."""

import json
import subprocess
import sys
from pathlib import Path

from support.small_world import fake_engine
from support.waiting import wait_for
from transfer_caffe import driver
from transfer_caffe.run.engines import Engine

RUNS = Path("runs/small")
STARTED: list[subprocess.Popen[str]] = []
"""Drivers started by `start_driver`; the fixture `driver_world` ends those that a test leaves running."""


def arguments(treatment: str, engine: str = "", *more: str) -> list[str]:
    return ["--recipe", "small.yaml", "--treatment", treatment, "--engine", engine or fake_engine(), *more]


def drive(treatment: str, *misbehaviours: str, more: tuple[str, ...] = ()) -> int:
    return driver.main(arguments(treatment, fake_engine(*misbehaviours), *more))


def done_of(name: str) -> dict:
    return json.loads((RUNS / name / "done.json").read_text())


def final(name: str) -> Path:
    return RUNS / name / "snapshots" / "net_iter_8.caffemodel"


def rename_engine(name: str) -> None:
    path = RUNS / name / "started.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"engine": Engine.find(fake_engine()).name}))


def start_driver(treatment: str, *misbehaviours: str, engine: str = "", newest: int = 3) -> subprocess.Popen[str]:
    """Start a driver as a separate process, and wait until its engine has written the snapshot ``newest``.

    The engine then waits in the middle of the training.
    """
    engine = engine or fake_engine(*misbehaviours)
    process = subprocess.Popen(
        [sys.executable, "-m", "transfer_caffe.driver", *arguments(treatment, engine)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    STARTED.append(process)
    wait_for(lambda: list(RUNS.glob(f"*/snapshots/net_iter_{newest}.solverstate")), f"snapshot {newest}", process)
    return process


def engine_pid() -> int:
    """Return the process id of the engine that is writing the log."""
    line = (RUNS / "random0-baseA-s0" / "train.log").read_text().splitlines()[-1]
    return int(line.split()[2])
