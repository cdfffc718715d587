"""Whether a training came to its proper end: what the driver asks of an engine's log and last weights.

Real Caffe exits with 0 for far less: a loss that is no number, layers that were not taken over, no test at the end.
"""

from __future__ import annotations

import shutil
import signal
from pathlib import Path
from typing import Any

from transfer_caffe.experiment.recipe import Network
from transfer_caffe.formats.log import Log
from transfer_caffe.formats.weights import differing_layers, read_weights
from transfer_caffe.run.folder import INIT, LOG, iterations, weights_path
from transfer_caffe.utils.errors import UserError

FULL = 1 << 20
"""A disk with fewer bytes free is full, where an engine has failed without a word."""


class RunFailed(Exception):
    """The network was trained, or begun, and is not good: why, in one line. Exit code 1."""


def require_finished(log: Log, code: int, folder: Path, max_iter: int) -> None:
    """RunFailed unless the engine came to its proper end with finite numbers; real Caffe exits 0 for far less."""
    why = f": {log.errors[0]}" if log.errors else ""
    if not why and shutil.disk_usage(folder).free < FULL:  # so full that the log could not say it
        why = ": no space left on the device; free some, then run the same command again"
    if "CPU-only" in why:
        why += " (leave --gpu away, and set solver_mode: CPU in the recipe)"
    if log.bad_number:  # first: real Caffe exits with 0 then, or dies of it (max pooling writes beyond its memory)
        raise RunFailed(f"training diverged: {log.bad_number}; lower base_lr ({folder / LOG})")
    if code < 0:
        name = signal.Signals(-code).name
        hint = " (out of memory?)" if name == "SIGKILL" else ""
        raise RunFailed(f"the engine was ended by {name}{hint}{why}; its log is {folder / LOG}")
    if code > 0:
        raise RunFailed(f"the engine failed with exit code {code}{why}; its log is {folder / LOG}")
    if log.stopped_early:
        raise RunFailed("the engine was stopped before its end, and wrote a snapshot; the same command goes on from it")
    if not log.done:
        raise RunFailed(f"the engine ended without `Optimization Done.`{why}; its log is {folder / LOG}")
    rows = log.rows()
    if not rows or rows[-1].test_accuracy is None:
        raise RunFailed(f"no test accuracy is in {folder / LOG}; does the net have an output `accuracy` in TEST?")
    if rows[-1].iteration != max_iter:
        raise RunFailed(f"the last test was at iteration {rows[-1].iteration} of {max_iter}; its log is {folder / LOG}")


def require_sound(network: Network, folder: Path, log: Log, final: Path, layers: list[str]) -> str:
    """RunFailed unless all layers to be taken over were, and the frozen ones did not move; says what was compared."""
    if not final.exists():
        raise RunFailed(f"{final} is missing, though the engine says that it is done")
    try:
        after = read_weights(final)
    except UserError as error:
        raise RunFailed(f"the training ended with weights that are no good: {error}") from None
    if missing := [name for name in layers if name not in after]:
        raise RunFailed(f"{final}: layer {missing[0]} is missing")
    frozen = layers[: network.treatment.frozen]
    if network.base:
        init = read_weights(folder / INIT)
        for name, blobs in init.items():
            if name in log.ignored_layers:
                raise RunFailed(f"layer {name} was to be taken over, but the engine ignored it ({folder / LOG})")
            if [blob.shape for blob in after.get(name, [])] != [blob.shape for blob in blobs]:
                raise RunFailed(f"{final}: layer {name} was to be taken over, but has another shape")
        _require_unmoved(frozen, init, after, f"{folder / INIT}, its base's")
        return "equal to the base's" if frozen else "none"
    if not frozen:
        return "none"
    earlier = [iteration for iteration in iterations(folder) if iteration < network.max_iter]
    if not earlier:
        return "not compared: an engine writes no snapshot of the untrained network, and this run left but its last one"
    before = read_weights(weights_path(folder, earlier[0]))
    _require_unmoved(frozen, before, after, f"the snapshot of iteration {earlier[0]}")
    return f"equal to those of iteration {earlier[0]}"


def _require_unmoved(names: list[str], before: dict[str, Any], after: dict[str, Any], what: str) -> None:
    if moved := differing_layers(names, before, after):
        raise RunFailed(f"layer {moved[0]} was frozen, but its weights differ from those in {what}")
