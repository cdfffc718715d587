"""The snapshots of a network: find the newest intact one, check it, and remove old ones.

An engine writes snapshots/net_iter_N.caffemodel (weights), then snapshots/net_iter_N.solverstate (momentum). Real Caffe
writes them in place and without checksums, so that a kill can leave an incomplete file. Resuming from such a file would
fail, or silently continue with wrong weights. The driver writes checksums beside both files as soon as the log reports
that they are complete, and removes older pairs once a newer one has been read back and is intact.
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
from transfer_caffe.formats.proto import blob_to_array, caffe_pb2, read_binary
from transfer_caffe.formats.weights import finite, read_weights
from transfer_caffe.run.folder import PREFIX, iterations, state_path, weights_path
from transfer_caffe.utils.errors import UserError
from transfer_caffe.utils.files import checksum_path, sha256, sync, write_checksum


@dataclass(frozen=True)
class Expected:
    """Properties that distinguish a network's own snapshots from those of another network."""

    outputs: Mapping[str, int]
    """Number of outputs of each layer with weights; an engine would re-initialise layers that are missing in a file."""
    random_seed: int
    max_iter: int


def newest(folder: Path, expected: Expected, say: Callable[[str], None]) -> int | None:
    """Return the newest iteration whose pair of files is intact, or None; rename damaged pairs to *.damaged."""
    for iteration in reversed(iterations(folder)):
        try:
            check_pair(folder, iteration, expected)
            return iteration
        except (UserError, FileNotFoundError) as error:
            say(f"the snapshot of iteration {iteration} is damaged and renamed to *.damaged: {error}")
            for path in (weights_path(folder, iteration), state_path(folder, iteration)):
                checksum_path(path).unlink(missing_ok=True)
                if path.exists():
                    os.replace(path, path.with_name(path.name + ".damaged"))
    return None


def keep_checksums(folder: Path, these: Iterable[int] | None = None) -> None:
    """Write checksum files for intact pairs without a seal (as real Caffe writes them), to detect later damage.

    ``these``: the iterations whose files have just been written; by default the newest one, unless it has checksums.
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
    """Raise UserError unless both files are intact, belong together, and hold only finite numbers.

    With ``expected``, also raise it if they belong to another network, as far as the files show (real Caffe records no
    seed).
    """
    weights, state_file = weights_path(folder, iteration), state_path(folder, iteration)
    blobs = read_weights(weights)
    if expected:
        _require_own_weights(weights, iteration, blobs, expected)
    shapes = [array.shape for arrays in blobs.values() for array in arrays]
    state = read_binary(state_file, caffe_pb2.SolverState())
    if state.iter != iteration:
        raise UserError(f"{state_file}: belongs to iteration {state.iter}, not to the one in its name")
    if Path(state.learned_net).name != weights.name:  # without a name, real Caffe resumes from untrained weights
        raise UserError(f"{state_file}: belongs to the weights {state.learned_net!r}, not to {weights.name}")
    if state.learned_net_sha256 and state.learned_net_sha256 != sha256(weights):
        raise UserError(f"{state_file}: was written with different weights than those in {weights.name}")
    if expected and state.HasField("random_seed") and state.random_seed != expected.random_seed:
        raise UserError(f"{state_file}: belongs to another network: its random_seed is not {expected.random_seed}")
    history = []
    for index, blob in enumerate(state.history):
        where = f"{state_file}: history {index}"
        history.append(finite(blob_to_array(blob, where), where).shape)
    if history != shapes:
        raise UserError(f"{state_file}: holds a history of {len(history)} blobs, {weights.name} has {len(shapes)}")


def _require_own_weights(path: Path, iteration: int, blobs: Mapping[str, list[np.ndarray]], expected: Expected) -> None:
    if iteration > expected.max_iter:
        raise UserError(f"{path}: belongs to another network: this one only has {expected.max_iter} iterations")
    for name, outputs in expected.outputs.items():
        if name not in blobs:
            raise UserError(f"{path}: layer {name} is missing")
        # the number of outputs is the first dimension of a shape; before 2015 it was the third one for InnerProduct
        if outputs not in blobs[name][0].shape:
            raise UserError(f"{path}: shape mismatch: layer {name} does not have {outputs} outputs")


def thin(folder: Path, whole: int, count: int | None, first: bool = False) -> None:
    """Remove snapshots older than the pair of iteration ``whole``, which is known to be intact.

    Keep the newest ``count`` pairs (None: all of them), with ``first`` also the oldest pair, and all files newer than
    ``whole``, which an engine may be writing. Files renamed to *.damaged are removed.
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
            sync(path)  # real Caffe does not sync: after a power failure, only the older pair might be intact
    # remove states first: weights without a state are not a snapshot, a state without weights is a damaged one
    for path in sorted(old, key=lambda path: "solverstate" not in path.name):
        path.unlink()


def remove_partial(folder: Path) -> None:
    """Remove temporary files of writers that were killed. The caller must hold the folder's lock."""
    for path in [*folder.glob(".*.tmp"), *(folder / PREFIX).parent.glob(".*.tmp")]:
        if path.is_file():
            path.unlink()
