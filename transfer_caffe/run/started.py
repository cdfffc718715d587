"""The file started.json of a network's folder: what the network was started with, and each engine run since.

The resulting weights depend on engine, number of threads, precision and data, so a network can only be resumed with the
same ones. The GPU may change between runs, depending on which GPUs are free; `runs` records it.
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

_AGAIN = "retrain the network with --restart"


def require_same(network: Network, folder: Path, engine: Engine, data: Path) -> None:
    """Record what the network is started with. Raise UserError, with the difference, if it was started differently."""
    recipe = network.recipe
    now: dict[str, Any] = {"engine": engine.name, "threads": recipe.threads, "precision": recipe.precision}
    now["deterministic"] = recipe.deterministic
    checksums = provenance.data_checksums(network, data)
    path = folder / STARTED
    if not path.exists():
        write_json(path, {**now, "started": now_utc(), "data": checksums, "runs": []})
        return
    started: dict[str, Any] = {"precision": "fp32", "deterministic": True, **read(folder)}  # old records lack these
    for key, value in now.items():
        if started[key] != value:
            raise UserError(
                f"{path}: {network.name} was started with {key} {started[key]}, not {value}; resume it with the "
                "former, or retrain it with --restart"
            )
    before = started.get("data", checksums)  # old records have no data checksums
    for name in sorted({*before, *checksums}):
        if "_lmdb/" in name and not _of_one_kind(name, before, checksums):
            continue
        old, new = (each.get(name, "none")[:12] for each in (before, checksums))
        if old != new:
            raise UserError(
                f"{network.data_folder(data)}: {network.name} was started on different data: the checksum of {name} "
                f"was {old} and is {new}; restore the old data, or retrain it with --restart"
            )


def _of_one_kind(name: str, before: dict[str, str], now: dict[str, str]) -> bool:
    """Return whether both are databases or both are views.

    A copy holds the same records as a view, but their checksums cannot be compared.
    """
    table = f"{name.split('/')[0]}/records.npy"
    return (table in before) == (table in now)


def read(folder: Path) -> dict[str, Any]:
    """Return the content of started.json. Raise UserError if it is damaged."""
    return read_record(folder / STARTED, {"engine": str, "threads": int, "started": str}, _AGAIN)


def begin_run(folder: Path, iteration: int, gpu: str | None) -> None:
    """Record the start of an engine run: time, machine, GPU, iteration and code."""
    started = read(folder)
    run = {
        "began": now_utc(),
        "ended": None,  # remains None if this process is killed
        "from_iteration": iteration,
        "node": platform.node(),
        "gpu": gpu,
        "code_sha256": provenance.code()["sha256"],
    }
    write_json(folder / STARTED, started | {"runs": [*started.get("runs", []), run]})


def end_run(folder: Path) -> None:
    """Record the end of an engine run. Ignore a full disk here: the engine's own result matters more."""
    started = read(folder)
    started["runs"][-1]["ended"] = now_utc()
    with contextlib.suppress(OSError):
        write_json(folder / STARTED, started)


def now_utc() -> str:
    """Return the current UTC time in ISO format, to the second."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
