"""Snapshots: the weights (.caffemodel) and the solver's state (.solverstate), each written whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from torch import Tensor

from transfer_caffe.engine import glog
from transfer_caffe.engine.net import Net
from transfer_caffe.errors import UserError
from transfer_caffe.proto import array_to_blob, blob_to_array, read_binary, write_binary
from transfer_caffe.proto.caffe_pb2 import SolverState


def save(prefix: str, iteration: int, net: Net, history: list[Tensor], current_step: int) -> None:
    """Write PREFIX_iter_N.caffemodel, then PREFIX_iter_N.solverstate, which names it."""
    model = f"{prefix}_iter_{iteration}.caffemodel"
    glog.info("solver.cpp:464", f"Snapshotting to binary proto file {model}")
    write_binary(model, net.to_proto())
    state = SolverState(iter=iteration, learned_net=model, current_step=current_step)
    state.history.extend(array_to_blob(values.cpu().numpy()) for values in history)
    path = f"{prefix}_iter_{iteration}.solverstate"
    glog.info("sgd_solver.cpp:284", f"Snapshotting solver state to binary proto file {path}")
    write_binary(path, state)


def restore(path: str, net: Net, history: list[Tensor]) -> int:
    """Load a .solverstate and the .caffemodel it names; gives the iteration to go on from."""
    if path.endswith(".h5"):
        raise UserError(f"{path}: HDF5 snapshots are not supported yet; use binary ones")
    state = read_binary(path, SolverState())
    if state.learned_net:
        model = Path(state.learned_net)
        # the name is relative to where the run was started; the file mostly lies beside its state
        net.copy_from(model if model.exists() else Path(path).parent / model.name)
    if len(state.history) != len(history):
        raise UserError(f"{path}: holds a history of {len(state.history)} blobs, the net learns {len(history)}")
    for index, (values, stored) in enumerate(zip(history, state.history, strict=True)):
        array = blob_to_array(stored, f"{path}: history {index}")
        if array.size != values.numel():
            raise UserError(f"{path}: history {index} is {list(array.shape)}, the net has {list(values.shape)}")
        loaded = torch.from_numpy(array.reshape(tuple(values.shape)).copy())
        if not torch.isfinite(loaded).all():
            raise UserError(f"{path}: history {index} holds values that are not finite; the file is damaged")
        values.copy_(loaded)
    return state.iter


def check_prefix(prefix: str) -> None:
    """Make the folder of the snapshots now: finding at the first snapshot that it is missing would be late."""
    folder = Path(prefix).parent
    folder.mkdir(parents=True, exist_ok=True)
    if not os.access(folder, os.W_OK):
        raise UserError(f"{folder}: cannot write snapshots there: permission denied")
