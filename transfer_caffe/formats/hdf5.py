"""Snapshots in Caffe's HDF5 layout: .caffemodel.h5 and .solverstate.h5 (Net::ToHDF5, SGDSolver).

data/LAYER/INDEX                                  weights; a shared blob is stored under its first layer
iter, learned_net, current_step, history/INDEX    the solver's state
random_seed, learned_net_sha256                   more of the solver's state, which Caffe does not read
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


def is_hdf5(path: str | os.PathLike[str]) -> bool:
    """Return whether a file of weights is HDF5: by its first bytes, as in Caffe, or if its name ends in .h5."""
    if os.fspath(path).endswith(".h5"):
        return True
    with open(path, "rb") as file:
        return file.read(8) == b"\x89HDF\r\n\x1a\n"


@contextlib.contextmanager
def _new(path: str) -> Iterator[Any]:
    """Yield a new HDF5 file that is written atomically and sealed."""
    import h5py  # few runs need it

    with whole_file(path) as temporary:
        with h5py.File(temporary, "w") as file:
            file.attrs[_SEALED] = 1
            yield file
        seal.append(temporary)


@contextlib.contextmanager
def _open(path: str | os.PathLike[str]) -> Iterator[Any]:
    """Yield an HDF5 file for reading. Raise UserError, naming the file, if it is damaged or has another layout."""
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
        raise UserError(f"{path}: damaged, or not an HDF5 file in Caffe's layout ({reason})") from None


def save_weights(path: str, layers: Sequence[tuple[str, dict[int, np.ndarray]]]) -> None:
    """Write weights. ``layers``: for each layer its name and the blobs that it owns, by index."""
    with _new(path) as file:
        data = file.create_group("data")
        for name, blobs in layers:
            group = data.require_group(name)
            for index, array in blobs.items():
                group.create_dataset(str(index), data=np.asarray(array, np.float32))


def read_weights(path: str | os.PathLike[str]) -> Arrays:
    """Return the blobs of each layer by layer name and index. A layer name with slashes is a nested group."""
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
    convolutions: str = "",
) -> None:
    """Write the solver's state. ``model`` and ``model_sha256``: the file of the weights and its checksum.

    ``convolutions`` is only written if it is not empty.
    """
    with _new(path) as file:
        file.create_dataset("iter", data=np.asarray([iteration], np.int32))
        _write_string(file, "learned_net", model)
        _write_string(file, "learned_net_sha256", model_sha256)
        if convolutions:
            _write_string(file, "convolutions", convolutions)
        file.create_dataset("current_step", data=np.asarray([current_step], np.int32))
        file.create_dataset("random_seed", data=np.asarray([seed], np.int64))
        group = file.create_group("history")
        for index, array in enumerate(history):
            group.create_dataset(str(index), data=np.asarray(array, np.float32))


def _write_string(file: Any, name: str, text: str) -> None:
    """Write a string as H5LTmake_dataset_string does: of fixed length and zero-terminated."""
    from h5py import h5d, h5p, h5s, h5t  # pyright: ignore[reportAttributeAccessIssue]

    data = text.encode() + b"\0"
    kind = h5t.C_S1.copy()
    kind.set_size(len(data))
    kind.set_strpad(h5t.STR_NULLTERM)
    settings = h5p.create(h5p.DATASET_CREATE)
    settings.set_obj_track_times(False)  # without times the same state always gives the same bytes
    dataset = h5d.create(file.id, name.encode(), kind, h5s.create(h5s.SCALAR), settings)
    dataset.write(h5s.ALL, h5s.ALL, np.array(data, f"S{len(data)}"), kind)


def _read_string(file: Any, name: str) -> str:
    """Return a string dataset, or "" if there is none."""
    return bytes(file[name][()]).rstrip(b"\0").decode() if name in file else ""


def read_state(path: str | os.PathLike[str]) -> tuple[int, str, int, list[np.ndarray], int | None, str | None, str]:
    """Return the iteration, file of the weights ('' if not given), current_step, history, seed, SHA-256 of the weights.

    The last two are None if they are not recorded. In addition, return how convolutions are computed ('' if natively).
    """
    with _open(path) as file:
        names = ("learned_net", "learned_net_sha256", "convolutions")
        model, checksum, convolutions = (_read_string(file, name) for name in names)
        seed = int(file["random_seed"][0]) if "random_seed" in file else None
        group = file["history"]
        history = [np.asarray(group[str(index)], np.float32) for index in range(len(group))]
        step = int(file["current_step"][0]) if "current_step" in file else 0
        return int(file["iter"][0]), model, step, history, seed, checksum or None, convolutions
