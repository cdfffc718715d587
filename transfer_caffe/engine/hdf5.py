"""Snapshots in HDF5, as Caffe lays them out: .caffemodel.h5 and .solverstate.h5 (Net::ToHDF5, SGDSolver).

data/LAYER/INDEX                                  weights; a blob that layers share stands under the first one
iter, learned_net, current_step, history/INDEX    the solver's state; and random_seed, which Caffe does not read
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from transfer_caffe import seal
from transfer_caffe.errors import UserError
from transfer_caffe.files import whole_file

Arrays = dict[str, dict[int, np.ndarray]]

_SEALED = "sealed"


@contextlib.contextmanager
def _new(path: str) -> Iterator[Any]:
    """A file being written, whole or not at all, with a seal."""
    import h5py  # few runs need it

    with whole_file(path) as temporary:
        with h5py.File(temporary, "w") as file:
            file.attrs[_SEALED] = 1
            yield file
        seal.append(temporary)


@contextlib.contextmanager
def _open(path: str | os.PathLike[str]) -> Iterator[Any]:
    """A file to read; whatever is wrong with it is a UserError that names it."""
    import h5py

    sealed = seal.verify(path)
    try:
        with h5py.File(path) as file:
            if file.attrs.get(_SEALED) == 1 and not sealed:
                raise UserError(f"{path}: damaged or truncated: its checksum is missing")
            yield file
    except (OSError, RuntimeError, ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, FileNotFoundError):
            raise
        reason = " ".join(str(error).split())
        raise UserError(f"{path}: damaged, or not an HDF5 file as Caffe writes it ({reason})") from None


def save_weights(path: str, layers: Sequence[tuple[str, dict[int, np.ndarray]]]) -> None:
    """Write weights: of each layer its name and the blobs that it owns, by index."""
    with _new(path) as file:
        data = file.create_group("data")
        for name, blobs in layers:
            group = data.require_group(name)
            for index, array in blobs.items():
                group.create_dataset(str(index), data=np.asarray(array, np.float32))


def read_weights(path: str | os.PathLike[str]) -> Arrays:
    """The blobs of each layer by name and index. A name with slashes is a group within a group."""
    layers: Arrays = {}

    def visit(name: str, item: Any) -> None:
        if hasattr(item, "shape"):
            layer, index = name.rsplit("/", 1)
            layers.setdefault(layer, {})[int(index)] = np.asarray(item, np.float32)
        else:
            layers.setdefault(name, {})

    with _open(path) as file:
        file["data"].visititems(visit)
    return layers


def save_state(
    path: str, iteration: int, model: str, current_step: int, history: Sequence[np.ndarray], seed: int
) -> None:
    """Write the solver's state."""
    with _new(path) as file:
        file.create_dataset("iter", data=np.asarray([iteration], np.int32))
        file.create_dataset("learned_net", data=np.bytes_(model.encode() + b"\0"))
        file.create_dataset("current_step", data=np.asarray([current_step], np.int32))
        file.create_dataset("random_seed", data=np.asarray([seed], np.int64))
        group = file.create_group("history")
        for index, array in enumerate(history):
            group.create_dataset(str(index), data=np.asarray(array, np.float32))


def read_state(path: str | os.PathLike[str]) -> tuple[int, str, list[np.ndarray], int | None]:
    """Iteration, the file of the weights ('' if none is named), the history, and the seed (None: not recorded)."""
    with _open(path) as file:
        model = file["learned_net"][()] if "learned_net" in file else b""
        seed = int(file["random_seed"][0]) if "random_seed" in file else None
        group = file["history"]
        history = [np.asarray(group[str(index)], np.float32) for index in range(len(group))]
        return int(file["iter"][0]), bytes(model).rstrip(b"\0").decode(), history, seed
