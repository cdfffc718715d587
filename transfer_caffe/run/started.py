"""started.json of a network's folder: what the network was started with, and each run of an engine on it since.

Its bytes depend on engine, number of threads, precision and data, so that it may go on with the same ones only. On
which GPU it is trained may change, as the GPUs there are free: `runs` tells.
"""

from __future__ import annotations

import contextlib
import datetime
import platform
from pathlib import Path
from typing import Any

from transfer_caffe.experiment.recipe import Network
from transfer_caffe.run import provenance
from transfer_caffe.run.engines import Engine
from transfer_caffe.run.folder import STARTED
from transfer_caffe.utils.errors import UserError
from transfer_caffe.utils.files import read_record, write_json

_AGAIN = "start the network anew with --restart"


def require_same(network: Network, folder: Path, engine: Engine, data: Path) -> None:
    """Note what the network is started with; UserError, with the difference, if it was started with something else."""
    now = {"engine": engine.name, "threads": network.recipe.threads, "precision": network.recipe.precision}
    checksums = provenance.data_checksums(network, data)
    path = folder / STARTED
    if not path.exists():
        write_json(path, {**now, "started": now_utc(), "data": checksums, "runs": []})
        return
    started: dict[str, Any] = {"precision": "fp32", **read(folder)}  # records were once without
    for key, value in now.items():
        if started[key] != value:
            raise UserError(
                f"{path}: {network.name} was started with {key} {started[key]}, not {value}; go on with that, "
                "or start it anew with --restart"
            )
    before = started.get("data", checksums)  # records were once without
    for name in sorted({*before, *checksums}):
        if "_lmdb/" in name and not _of_one_kind(name, before, checksums):
            continue
        old, new = (each.get(name, "none")[:12] for each in (before, checksums))
        if old != new:
            raise UserError(
                f"{network.data_folder(data)}: {network.name} was started on other data: the checksum of {name} was "
                f"{old} and is {new}; take that data back, or start it anew with --restart"
            )


def _of_one_kind(name: str, before: dict[str, str], now: dict[str, str]) -> bool:
    """Whether both are databases, or both views: a copy has a view's records, but no checksum in common with it."""
    table = f"{name.split('/')[0]}/records.npy"
    return (table in before) == (table in now)


def read(folder: Path) -> dict[str, Any]:
    """What started.json says. UserError if it is damaged."""
    return read_record(folder / STARTED, {"engine": str, "threads": int, "started": str}, _AGAIN)


def begin_run(folder: Path, iteration: int, gpu: str | None) -> None:
    """Note that an engine is started on the network: when, where, from which iteration, by which code."""
    started = read(folder)
    run = {
        "began": now_utc(),
        "ended": None,  # stays so if this process is killed
        "from_iteration": iteration,
        "node": platform.node(),
        "gpu": gpu,
        "code_sha256": provenance.code()["sha256"],
    }
    write_json(folder / STARTED, started | {"runs": [*started.get("runs", []), run]})


def end_run(folder: Path) -> None:
    """Note that the engine has ended. On a full disk that goes unnoted: the engine's own end matters more."""
    started = read(folder)
    started["runs"][-1]["ended"] = now_utc()
    with contextlib.suppress(OSError):
        write_json(folder / STARTED, started)


def now_utc() -> str:
    """The time, in ISO format, to the second."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
