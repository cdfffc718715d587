"""Snapshots in HDF5, as Caffe lays them out: .caffemodel.h5 and .solverstate.h5 (Net::ToHDF5, SGDSolver).

data/LAYER/INDEX                                  weights; a blob that layers share stands under the first one
iter, learned_net, current_step, history/INDEX    the solver's state; random_seed and learned_net_sha256,
                                                      which Caffe does not read
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from transfer_caffe.formats import seal
from transfer_caffe.utils.errors import UserError
from transfer_caffe.utils.files import whole_file

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
    path: str,
    iteration: int,
    model: str,
    current_step: int,
    history: Sequence[np.ndarray],
    seed: int,
    model_sha256: str,
) -> None:
    """Write the solver's state."""
    with _new(path) as file:
        file.create_dataset("iter", data=np.asarray([iteration], np.int32))
        _write_string(file, "learned_net", model)
        _write_string(file, "learned_net_sha256", model_sha256)
        file.create_dataset("current_step", data=np.asarray([current_step], np.int32))
        file.create_dataset("random_seed", data=np.asarray([seed], np.int64))
        group = file.create_group("history")
        for index, array in enumerate(history):
            group.create_dataset(str(index), data=np.asarray(array, np.float32))


def _write_string(file: Any, name: str, text: str) -> None:
    """A string as H5LTmake_dataset_string writes it: of fixed length, and with a zero behind it."""
    from h5py import h5d, h5p, h5s, h5t  # pyright: ignore[reportAttributeAccessIssue]

    data = text.encode() + b"\0"
    kind = h5t.C_S1.copy()
    kind.set_size(len(data))
    kind.set_strpad(h5t.STR_NULLTERM)
    settings = h5p.create(h5p.DATASET_CREATE)
    settings.set_obj_track_times(False)  # the same state gives the same bytes at any time
    dataset = h5d.create(file.id, name.encode(), kind, h5s.create(h5s.SCALAR), settings)
    dataset.write(h5s.ALL, h5s.ALL, np.array(data, f"S{len(data)}"), kind)


def _read_string(file: Any, name: str) -> str:
    return bytes(file[name][()]).rstrip(b"\0").decode() if name in file else ""


def read_state(path: str | os.PathLike[str]) -> tuple[int, str, int, list[np.ndarray], int | None, str | None]:
    """Iteration, file of the weights ('': none is named), current_step, history, seed, and the weights' sha256.

    The last two are None where they are not recorded.
    """
    with _open(path) as file:
        model, checksum = (_read_string(file, name) for name in ("learned_net", "learned_net_sha256"))
        seed = int(file["random_seed"][0]) if "random_seed" in file else None
        group = file["history"]
        history = [np.asarray(group[str(index)], np.float32) for index in range(len(group))]
        step = int(file["current_step"][0]) if "current_step" in file else 0
        return int(file["iter"][0]), model, step, history, seed, checksum or None
