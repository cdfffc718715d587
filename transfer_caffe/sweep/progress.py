"""Determine the progress of one network from its files, in a few milliseconds, without writing or reading weights.

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
from transfer_caffe.run.differences import changed_setting, changed_source
from transfer_caffe.run.folder import LOG, iterations, read_done
from transfer_caffe.utils.errors import UserError

TAIL = 1 << 16
"""Number of bytes at the end of a log that are searched for the newest iteration: some hundred lines."""


@dataclass(frozen=True)
class Progress:
    """The progress of a network.

    ``word``: `done`; `changed`: done, but the recipe or its base have changed since; `damaged`: its done.json cannot be
    read; `started`; `to do`. ``note`` explains `changed` and `damaged`.
    """

    word: str
    iteration: int = 0
    """The newest iteration in its log."""
    snapshot: int = 0
    """The iteration from which it would be resumed; 0 is the start."""
    note: str = ""
    done: Mapping[str, Any] | None = None
    """The content of done.json, if it can be read."""

    def words(self, network: Network) -> str:
        """Return the progress as a short text."""
        if self.word == "started":
            return f"at iteration {self.iteration} of {network.max_iter}"
        if self.word == "changed":
            return f"done, but out of date: {self.note}"
        return f"{self.word}: {self.note}" if self.note else self.word


def look(network: Network, runs: Path) -> Progress:
    """Return the progress of a network. `sweep verify` checks finished networks more thoroughly."""
    try:
        done = read_done(network, runs)
    except UserError as error:
        return Progress("damaged", note=str(error))
    if done:
        try:
            base = read_done(network.base, runs) if network.base else None
        except UserError:
            base = None  # reported for the base itself
        note = changed(network, done, base)
        return Progress("changed" if note else "done", network.max_iter, network.max_iter, note, done)
    folder = network.folder(runs)
    log = folder / LOG
    if not log.exists():
        return Progress("to do")
    there = [iteration for iteration in iterations(folder) if iteration <= network.max_iter]
    return Progress("started", newest_iteration(log), there[-1] if there else 0)


def changed(network: Network, done: Mapping[str, Any], base: Mapping[str, Any] | None) -> str:
    """Describe what has changed since a finished network was trained; "" if nothing has."""
    if note := changed_setting(network, done):
        return note
    if note := changed_source(network, done):
        return note
    if base and base["sha256"]["final"] != done.get("base_sha256"):
        return f"its base {base['network']} has been retrained since"
    return ""


def newest_iteration(log: Path) -> int:
    """Return the newest iteration at the end of a log; 0 if there is none."""
    with open(log, "rb") as file:
        file.seek(0, os.SEEK_END)
        start = max(0, file.tell() - TAIL)
        file.seek(start)
        text = file.read().decode(errors="replace")
    parser = LogParser()
    parser.feed(text.partition("\n")[2] if start else text)
    return parser.log.iteration or 0
