"""How far one network is, told from its files in a few milliseconds; nothing is written and no weights are read.

state = look(network, Path("runs"))
state.word          # done, changed, damaged, started, to do
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transfer_caffe.experiment.recipe import Network
from transfer_caffe.formats.log import LogParser
from transfer_caffe.run.differences import changed_setting
from transfer_caffe.run.folder import LOG, iterations, read_done
from transfer_caffe.utils.errors import UserError

TAIL = 1 << 16
"""Bytes at the end of a log in which the newest iteration is named: some hundred lines."""


@dataclass(frozen=True)
class Progress:
    """How far a network is.

    ``word``: `done`; `changed`: done, but it would be another network by the recipe, or by its base, as they are now;
    `damaged`: its done.json cannot be read; `started`; `to do`. ``note`` says more of `changed` and `damaged`.
    """

    word: str
    iteration: int = 0
    """The newest that its log speaks of."""
    snapshot: int = 0
    """The iteration from which it would go on; 0 is the start."""
    note: str = ""
    done: Mapping[str, Any] | None = None
    """What done.json says, where it can be read."""

    def words(self, network: Network) -> str:
        """In a few words."""
        if self.word == "started":
            return f"at iteration {self.iteration} of {network.max_iter}"
        if self.word == "changed":
            return f"done, but not as it would be now: {self.note}"
        return f"{self.word}: {self.note}" if self.note else self.word


def look(network: Network, runs: Path) -> Progress:
    """How far a network is. `sweep verify` looks more closely at one that is done."""
    try:
        done = read_done(network, runs)
    except UserError as error:
        return Progress("damaged", note=str(error))
    if done:
        try:
            base = read_done(network.base, runs) if network.base else None
        except UserError:
            base = None  # that is said of the base
        note = changed(network, done, base)
        return Progress("changed" if note else "done", network.max_iter, network.max_iter, note, done)
    folder = network.folder(runs)
    log = folder / LOG
    if not log.exists():
        return Progress("to do")
    there = [iteration for iteration in iterations(folder) if iteration <= network.max_iter]
    return Progress("started", newest_iteration(log), there[-1] if there else 0)


def changed(network: Network, done: Mapping[str, Any], base: Mapping[str, Any] | None) -> str:
    """What makes a network that is done another one than it would be now; nothing if it is the same."""
    if note := changed_setting(network, done):
        return note
    if base and base["sha256"]["final"] != done.get("base_sha256"):
        return f"its base {base['network']} was trained anew since"
    return ""


def newest_iteration(log: Path) -> int:
    """The newest iteration that the end of a log speaks of; 0 where it speaks of none."""
    with open(log, "rb") as file:
        file.seek(0, os.SEEK_END)
        start = max(0, file.tell() - TAIL)
        file.seek(start)
        text = file.read().decode(errors="replace")
    parser = LogParser()
    parser.feed(text.partition("\n")[2] if start else text)
    return parser.log.iteration or 0
