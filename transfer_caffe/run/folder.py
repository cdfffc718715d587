"""The files of a network's folder, runs/RECIPE/NETWORK, and reading of its done.json.

train_val.prototxt solver.prototxt init.caffemodel surgery.json started.json train.log curve.csv done.json
snapshots/net_iter_N.caffemodel snapshots/net_iter_N.solverstate
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transfer_caffe.experiment.recipe import Network
from transfer_caffe.utils.errors import UserError
from transfer_caffe.utils.files import read_record

NET, SOLVER, INIT = "train_val.prototxt", "solver.prototxt", "init.caffemodel"

STARTED, DONE, CURVE, SURGERY = "started.json", "done.json", "curve.csv", "surgery.json"

LOG = "train.log"
"""The log of all training runs in a network's folder."""

PREFIX = "snapshots/net"
"""Caffe's snapshot_prefix."""

Say = Callable[[str], None]


def weights_path(folder: Path, iteration: int) -> Path:
    """Return the path of an iteration's .caffemodel."""
    return folder / f"{PREFIX}_iter_{iteration}.caffemodel"


def state_path(folder: Path, iteration: int) -> Path:
    """Return the path of an iteration's .solverstate."""
    return folder / f"{PREFIX}_iter_{iteration}.solverstate"


def iterations(folder: Path) -> list[int]:
    """Return the iterations that have a .solverstate, in ascending order."""
    states = folder.glob(f"{PREFIX}_iter_*.solverstate")
    found = (re.fullmatch(r"net_iter_(\d+)\.solverstate", path.name) for path in states)
    return sorted(int(match[1]) for match in found if match)


def read_done(network: Network, runs: Path) -> dict[str, Any] | None:
    """Return the content of done.json, or None if the network is not done. Raise UserError if it is damaged."""
    path = network.folder(runs) / DONE
    if not path.exists():
        return None
    remedy = "retrain the network with --restart"
    kinds = {"network": str, "sha256": dict, "accuracy_final": (int, float), "wall_seconds": (int, float)}
    done = read_record(path, kinds, remedy)
    if done["network"] != network.name or not isinstance(done["sha256"].get("final"), str):
        raise UserError(
            f"{path}: damaged: it belongs to another network than {network.name}, or has no final sha256; {remedy}"
        )
    return done


def read_done_or_set_aside(network: Network, runs: Path, say: Say) -> dict[str, Any] | None:
    """Return the same as `read_done`, but rename a damaged done.json; it is then rebuilt from the last snapshot."""
    try:
        return read_done(network, runs)
    except UserError as error:
        path = network.folder(runs) / DONE
        os.replace(path, path.with_name(f"{DONE}.damaged"))
        say(f"renamed to {DONE}.damaged; it will be rebuilt: {error}")
        return None


def arguments_of(network: Network, runs: Path, data: Path | None = None) -> str:
    """Return the driver's arguments for this network, quoted for a shell."""
    words = ["--recipe", network.recipe.given, "--split", network.split, "--treatment", str(network.treatment)]
    words += ["--seed", str(network.seed)] if network.seed else []
    words += ["--runs", str(runs)] if runs != Path("runs") else []
    words += ["--data", str(data)] if data not in (None, Path("data")) else []
    return shlex.join(words)


def set_aside(folder: Path, say: Say) -> None:
    """Rename a network's folder, if it exists, so that nothing is lost."""
    if not folder.exists():
        return
    number = 1
    while (old := folder.with_name(f"{folder.name}.old{number}")).exists():
        number += 1
    os.rename(folder, old)
    say(f"the old folder was renamed to {old}")
