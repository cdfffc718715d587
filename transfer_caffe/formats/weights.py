"""Reading and comparison of weights files (.caffemodel, or its HDF5 form .h5) as arrays by layer."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from transfer_caffe.formats import hdf5
from transfer_caffe.formats.proto import blob_to_array, caffe_pb2, read_binary
from transfer_caffe.formats.upgrade import upgrade_net
from transfer_caffe.utils.errors import UserError


def read_weights(path: Path) -> dict[str, list[np.ndarray]]:
    """Return the blobs of each layer that has any, by layer name. Raise UserError if one is damaged or not finite."""
    if hdf5.is_hdf5(path):
        stored = {
            name: [blobs[index] for index in sorted(blobs)] for name, blobs in hdf5.read_weights(path).items() if blobs
        }
    else:
        net = upgrade_net(read_binary(path, caffe_pb2.NetParameter()), str(path))
        stored = {
            layer.name: [
                blob_to_array(blob, f"{path}: {layer.name}: blob {index}") for index, blob in enumerate(layer.blobs)
            ]
            for layer in net.layer
            if layer.blobs
        }
    return {
        name: [finite(array, f"{path}: {name}: blob {index}") for index, array in enumerate(arrays)]
        for name, arrays in stored.items()
    }


def finite(array: np.ndarray, where: str) -> np.ndarray:
    """Return the array. Raise UserError if it has NaN or inf."""
    if not np.isfinite(array).all():
        raise UserError(f"{where} contains NaN or inf; the training diverged or the file is damaged")
    return array


def differing_layers(
    names: Iterable[str], before: dict[str, list[np.ndarray]], after: dict[str, list[np.ndarray]]
) -> list[str]:
    """Return those layers of ``names`` whose blobs are missing or not byte for byte the same."""

    def content(weights: dict[str, list[np.ndarray]], name: str) -> list[tuple[tuple[int, ...], bytes]]:
        return [(array.shape, array.tobytes()) for array in weights.get(name, [])]

    return [name for name in names if content(before, name) != content(after, name) or not content(before, name)]
