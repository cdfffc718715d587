"""Check whether a training run succeeded, from the engine's log and its final weights.

The exit code is not enough. Real Caffe also exits with 0 after a NaN loss, if layers were not copied, or if there was
no test at the end.
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
"""If an engine fails without a message and fewer bytes than this are free, a full disk is reported as the cause."""


class RunFailed(Exception):
    """The training was started and failed; the message gives the reason in one line. Exit code 1."""


def require_finished(log: Log, code: int, folder: Path, max_iter: int) -> None:
    """Raise RunFailed unless the engine finished the training and its last test, with finite losses and accuracies."""
    why = f": {log.errors[0]}" if log.errors else ""
    if not why and shutil.disk_usage(folder).free < FULL:  # too full even to write the error to the log
        why = ": no space left on the device; free some, then run the same command again"
    if "CPU-only" in why:
        why += " (omit --gpu, and set solver_mode: CPU in the recipe)"
    if (
        log.bad_number
    ):  # checked first: with NaN, real Caffe exits with 0, or crashes (max pooling writes out of bounds)
        raise RunFailed(f"training diverged: {log.bad_number}; lower base_lr ({folder / LOG})")
    if code < 0:
        name = signal.Signals(-code).name
        hint = " (out of memory?)" if name == "SIGKILL" else ""
        raise RunFailed(f"the engine was terminated by {name}{hint}{why}; its log is {folder / LOG}")
    if code > 0:
        raise RunFailed(f"the engine failed with exit code {code}{why}; its log is {folder / LOG}")
    if log.stopped_early:
        raise RunFailed(
            "the engine was stopped early and wrote a snapshot; run the same command again to resume from it"
        )
    if not log.done:
        raise RunFailed(f"the engine ended without `Optimization Done.`{why}; its log is {folder / LOG}")
    rows = log.rows()
    if not rows or rows[-1].test_accuracy is None:
        raise RunFailed(
            f"{folder / LOG} has no test accuracy; check that the net has an output `accuracy` in phase TEST"
        )
    if rows[-1].iteration != max_iter:
        raise RunFailed(f"the last test was at iteration {rows[-1].iteration} of {max_iter}; its log is {folder / LOG}")


def require_sound(network: Network, folder: Path, log: Log, final: Path, layers: list[str], frozen: list[str]) -> str:
    """Raise RunFailed unless all layers were copied that should be, and frozen layers have not changed.

    ``layers``: all layers with weights; ``frozen``: those of the frozen stages. Return what the frozen layers were
    compared with, as recorded in done.json.
    """
    if not final.exists():
        raise RunFailed(f"{final} is missing, although the engine reported that it is done")
    try:
        after = read_weights(final)
    except UserError as error:
        raise RunFailed(f"the final weights are invalid: {error}") from None
    if missing := [name for name in layers if name not in after]:
        raise RunFailed(f"{final}: layer {missing[0]} is missing")
    if network.treatment.copies:
        init = read_weights(folder / INIT)
        for name, blobs in init.items():
            if name in log.ignored_layers:
                raise RunFailed(
                    f"layer {name} should be copied from the base, but the engine ignored it ({folder / LOG})"
                )
            if [blob.shape for blob in after.get(name, [])] != [blob.shape for blob in blobs]:
                raise RunFailed(f"{final}: shape mismatch: layer {name} differs in shape from the base's")
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
