"""What lies in a network's folder, runs/RECIPE/NETWORK: the names of its files, and what done.json says.

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


PREFIX = "snapshots/net"


def weights_path(folder: Path, iteration: int) -> Path:
    """The .caffemodel of an iteration."""
    return folder / f"{PREFIX}_iter_{iteration}.caffemodel"


def state_path(folder: Path, iteration: int) -> Path:
    """The .solverstate of an iteration."""
    return folder / f"{PREFIX}_iter_{iteration}.solverstate"


def iterations(folder: Path) -> list[int]:
    """The iterations that have a .solverstate, ascending."""
    found = (re.fullmatch(r"net_iter_(\d+)\.solverstate", path.name) for path in (folder / PREFIX).parent.glob("*"))
    return sorted(int(match[1]) for match in found if match)


DONE, CURVE, SURGERY = "done.json", "curve.csv", "surgery.json"


Say = Callable[[str], None]


def read_done(network: Network, runs: Path) -> dict[str, Any] | None:
    """What done.json says, or None if the network is not done."""
    path = network.folder(runs) / DONE
    if not path.exists():
        return None
    remedy = "start the network anew with --restart"
    kinds = {"network": str, "sha256": dict, "accuracy_final": (int, float), "wall_seconds": (int, float)}
    done = read_record(path, kinds, remedy)
    if done["network"] != network.name or not isinstance(done["sha256"].get("final"), str):
        raise UserError(f"{path}: damaged: it is not of {network.name}, or names no weights; {remedy}")
    return done


def read_done_or_set_aside(network: Network, runs: Path, say: Say) -> dict[str, Any] | None:
    """As `read_done`, but one that is damaged is set aside, to be made anew from the last snapshot."""
    try:
        return read_done(network, runs)
    except UserError as error:
        path = network.folder(runs) / DONE
        os.replace(path, path.with_name(f"{DONE}.damaged"))
        say(f"set aside as {DONE}.damaged, and made anew: {error}")
        return None


def arguments_of(network: Network, runs: Path, data: Path | None = None) -> str:
    """The driver's arguments that mean this network, for a shell."""
    words = ["--recipe", network.recipe.given, "--split", network.split, "--treatment", str(network.treatment)]
    words += ["--seed", str(network.seed)] if network.seed else []
    words += ["--runs", str(runs)] if runs != Path("runs") else []
    words += ["--data", str(data)] if data not in (None, Path("data")) else []
    return shlex.join(words)


def set_aside(folder: Path, say: Say) -> None:
    """Rename a network's folder, if there is one, so that nothing of it is lost."""
    if not folder.exists():
        return
    number = 1
    while (old := folder.with_name(f"{folder.name}.old{number}")).exists():
        number += 1
    os.rename(folder, old)
    say(f"the old folder is now {old}")


LOG = "train.log"
"""The log in a network's folder, of all its runs."""


STARTED = "started.json"
