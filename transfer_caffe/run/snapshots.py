"""The snapshots of a network's folder: the newest one that is whole, and what the last one must hold.

An engine writes snapshots/net_iter_N.caffemodel (weights), then snapshots/net_iter_N.solverstate (momentum). Real
Caffe writes them in place, so that a kill can leave a part of one, and without checksums; resuming from such a part
would fail, or worse. The driver writes checksums beside both files as soon as the log tells that they are whole, and
removes older pairs once a newer one has been read back and found whole.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from transfer_caffe.formats import seal
from transfer_caffe.formats.proto import caffe_pb2, read_binary
from transfer_caffe.formats.weights import _finite, read_weights
from transfer_caffe.run.folder import PREFIX, iterations, state_path, weights_path
from transfer_caffe.utils.errors import UserError
from transfer_caffe.utils.files import checksum_path, sha256, sync, write_checksum


@dataclass(frozen=True)
class Expected:
    """What tells a network's own snapshots from those of another one."""

    outputs: Mapping[str, int]
    """The layers that have weights, and how many outputs each has; an engine would draw anew those that are missing."""
    random_seed: int
    max_iter: int


def newest(folder: Path, expected: Expected, say: Callable[[str], None]) -> int | None:
    """The newest iteration whose pair of files is whole; None if there is none. Damaged pairs are set aside."""
    for iteration in reversed(iterations(folder)):
        try:
            check_pair(folder, iteration, expected)
            return iteration
        except (UserError, FileNotFoundError) as error:
            say(f"the snapshot of iteration {iteration} is damaged and set aside as *.damaged: {error}")
            for path in (weights_path(folder, iteration), state_path(folder, iteration)):
                checksum_path(path).unlink(missing_ok=True)
                if path.exists():
                    os.replace(path, path.with_name(path.name + ".damaged"))
    return None


def keep_checksums(folder: Path, these: Iterable[int] | None = None) -> None:
    """Give pairs that are whole and have no seal checksums beside them: real Caffe writes none.

    ``these``: the iterations, whose files were written just now; by default the newest, if it has no checksums yet.
    Damage that comes later is then seen.
    """
    for iteration in iterations(folder)[-1:] if these is None else these:
        paths = [weights_path(folder, iteration), state_path(folder, iteration)]
        if these is None and all(checksum_path(path).exists() for path in paths):
            continue
        for path in paths:
            checksum_path(path).unlink(missing_ok=True)
        with contextlib.suppress(UserError, OSError):
            if not all(map(seal.verify, paths)):
                check_pair(folder, iteration)
                for path in paths:
                    write_checksum(path)


def check_pair(folder: Path, iteration: int, expected: Expected | None = None) -> None:
    """UserError unless both files are whole, belong together, and hold finite numbers only.

    With ``expected``, unless they are this network's, too, as far as they tell (real Caffe records no seed).
    """
    weights, state_file = weights_path(folder, iteration), state_path(folder, iteration)
    blobs = read_weights(weights)
    if expected:
        _require_own_weights(weights, iteration, blobs, expected)
    shapes = [array.shape for arrays in blobs.values() for array in arrays]
    state = read_binary(state_file, caffe_pb2.SolverState())
    if state.iter != iteration:
        raise UserError(f"{state_file}: says that it is of iteration {state.iter}")
    if Path(state.learned_net).name != weights.name:  # without a name, real Caffe goes on from untrained weights
        raise UserError(f"{state_file}: belongs to the weights {state.learned_net!r}, not to {weights.name}")
    if state.learned_net_sha256 and state.learned_net_sha256 != sha256(weights):
        raise UserError(f"{state_file}: was written with other weights than {weights.name} holds")
    if expected and state.HasField("random_seed") and state.random_seed != expected.random_seed:
        raise UserError(f"{state_file}: of another network: its random_seed is not {expected.random_seed}")
    history = [_finite(blob, f"{state_file}: history {index}").shape for index, blob in enumerate(state.history)]
    if history != shapes:
        raise UserError(f"{state_file}: holds a history of {len(history)} blobs, {weights.name} has {len(shapes)}")


def _require_own_weights(path: Path, iteration: int, blobs: Mapping[str, list[np.ndarray]], expected: Expected) -> None:
    if iteration > expected.max_iter:
        raise UserError(f"{path}: of another network: this one has {expected.max_iter} iterations")
    for name, outputs in expected.outputs.items():
        if name not in blobs:
            raise UserError(f"{path}: layer {name} is missing")
        # the outputs are the first side of a shape; before 2015 they were the third of an InnerProduct's
        if outputs not in blobs[name][0].shape:
            raise UserError(f"{path}: of another network: layer {name} has not {outputs} outputs")


def thin(folder: Path, whole: int, count: int | None, first: bool = False) -> None:
    """Remove snapshots older than the pair of iteration ``whole``, which is known to be whole.

    The newest ``count`` pairs are left (None: all of them), with ``first`` the very first one, too; and whatever is
    newer than ``whole``: an engine may be at work on it. Damaged ones that were set aside are removed.
    """
    there = [iteration for iteration in iterations(folder) if iteration <= whole]
    kept = {whole, *(there if count is None else there[-count:]), *there[: int(first)]}
    names = {path.name for each in kept for path in (weights_path(folder, each), state_path(folder, each))}
    names |= {checksum_path(name).name for name in names}
    old = []
    for path in (folder / PREFIX).parent.glob("*"):
        match = re.fullmatch(r"\.?net_iter_(\d+)\.(caffemodel|solverstate)(\..+)?", path.name)
        if match and int(match[1]) <= whole and path.name not in names:
            old.append(path)
    if not old:
        return
    for path in (weights_path(folder, whole), state_path(folder, whole)):
        if path.exists():
            sync(path)  # real Caffe does not: after a loss of power the older pair might be the only whole one
    # a pair without its state is no snapshot any more, a pair without its weights a damaged one: states go first
    for path in sorted(old, key=lambda path: "solverstate" not in path.name):
        path.unlink()


def remove_partial(folder: Path) -> None:
    """Remove the temporary files of writers that were killed. Only for who holds the folder's lock."""
    for path in [*folder.glob(".*.tmp"), *(folder / PREFIX).parent.glob(".*.tmp")]:
        if path.is_file():
            path.unlink()
