"""Snapshots: the weights (.caffemodel) and the solver's state (.solverstate), each written atomically.

Both are binary protocol buffers, or HDF5 files with the suffix .h5, depending on the solver's snapshot_format.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from transfer_caffe.engine import glog
from transfer_caffe.engine.net import Net
from transfer_caffe.engine.weights import array_of, owned_weights
from transfer_caffe.formats import hdf5
from transfer_caffe.formats.proto import array_to_blob, blob_to_array, read_binary, write_binary
from transfer_caffe.formats.proto.caffe_pb2 import SolverParameter, SolverState
from transfer_caffe.utils.errors import UserError
from transfer_caffe.utils.files import sha256


@dataclass(frozen=True)
class State:
    """The content of a .solverstate: its iteration, the weights file that belongs to it, and the solver's history."""

    iteration: int
    model: str
    step: int
    """Number of steps that lr_policy step or multistep had taken."""
    history: list[np.ndarray]
    seed: int | None
    """The seed of all random numbers; real Caffe does not record it."""
    model_sha256: str | None
    """The checksum of the weights file; real Caffe does not record it."""
    convolutions: str = ""
    """How convolutions are computed (`iteration.ways`); empty: natively."""


def save(
    param: SolverParameter, iteration: int, net: Net, history: list[Tensor], step: int, seed: int,
    convolutions: str = "", array: Callable[[Tensor], np.ndarray] = array_of, beside: bool = False,
) -> None:  # fmt: skip
    """Write PREFIX_iter_N.caffemodel, then PREFIX_iter_N.solverstate, which names it (with suffix .h5 for HDF5).

    ``array`` returns the values of a tensor. ``beside`` says that training is logging at the same time: then the line
    about the state is logged after the state is written, since readers of the log take the line that follows it as the
    end of the snapshot.
    """
    as_hdf5 = param.snapshot_format == SolverParameter.HDF5
    ending, kind = (".h5", "HDF5") if as_hdf5 else ("", "binary proto")
    model, path = (f"{param.snapshot_prefix}_iter_{iteration}.{what}{ending}" for what in ("caffemodel", "solverstate"))
    arrays = [array(values) for values in history]
    glog.info("solver.cpp:474" if as_hdf5 else "solver.cpp:464", f"Snapshotting to {kind} file {model}")
    if as_hdf5:
        hdf5.save_weights(model, owned_weights(net.layers, array))
    else:
        write_binary(model, net.to_proto(array))
    place = "sgd_solver.cpp:296" if as_hdf5 else "sgd_solver.cpp:284"
    if not beside:
        glog.info(place, f"Snapshotting solver state to {kind} file {path}")
    if as_hdf5:
        hdf5.save_state(path, iteration, model, step, arrays, seed, sha256(model), convolutions)
    else:
        state = SolverState(iter=iteration, learned_net=model, current_step=step, random_seed=seed)
        state.learned_net_sha256 = sha256(model)
        if convolutions:
            state.convolutions = convolutions
        state.history.extend(array_to_blob(values) for values in arrays)
        write_binary(path, state)
    if beside:
        glog.info(place, f"Snapshotting solver state to {kind} file {path}")


def read_state(path: str) -> State:
    """Read a .solverstate or a .solverstate.h5. Raise UserError if it is damaged."""
    if path.endswith(".h5"):
        return State(*hdf5.read_state(path))
    state = read_binary(path, SolverState())
    history = [blob_to_array(blob, f"{path}: history {index}") for index, blob in enumerate(state.history)]
    return State(
        state.iter,
        state.learned_net,
        state.current_step,
        history,
        state.random_seed if state.HasField("random_seed") else None,
        state.learned_net_sha256 or None,
        state.convolutions,
    )


def restore(path: str, state: State, net: Net, history: list[Tensor]) -> None:
    """Load a .solverstate: copy the weights that it names into ``net`` and its history into ``history``.

    Raise UserError if the state is damaged, does not match the net, or its weights file was replaced.
    """
    if state.iteration < 0:
        raise UserError(f"{path}: its iteration is {state.iteration}; the file is damaged")
    if not state.model:
        raise UserError(f"{path}: names no weights file (learned_net); the file is damaged")
    model = Path(state.model)
    # the name is relative to the folder where the run was started; the file is usually beside its state
    model = model if model.exists() else Path(path).parent / model.name
    net.copy_from(model)
    if state.model_sha256 and sha256(model) != state.model_sha256:
        raise UserError(
            f"{path}: {model} is not the weights file written with it; restore that file, or fine-tune this one with "
            "--weights"
        )
    if len(state.history) != len(history):
        raise UserError(f"{path}: has a history of {len(state.history)} blobs, the net and solver need {len(history)}")
    for index, (values, stored) in enumerate(zip(history, state.history, strict=True)):
        if stored.size != values.numel():
            raise UserError(
                f"{path}: history {index}: shape mismatch: the file has {list(stored.shape)}, "
                f"the net has {list(values.shape)}"
            )
        loaded = torch.from_numpy(stored.reshape(tuple(values.shape)).copy())
        if not torch.isfinite(loaded).all():
            raise UserError(f"{path}: history {index} holds values that are not finite; the file is damaged")
        values.copy_(loaded)


def check_prefix(prefix: str) -> None:
    """Create the snapshot folder before training starts. Raise UserError if it is not writable."""
    folder = Path(prefix).parent
    folder.mkdir(parents=True, exist_ok=True)
    if not os.access(folder, os.W_OK):
        raise UserError(f"{folder}: cannot write snapshots there: permission denied")
