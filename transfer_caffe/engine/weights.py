"""Load and save a net's weights: .caffemodel, binary or HDF5 (Net::CopyTrainedLayersFrom, Net::ToProto)."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from transfer_caffe.engine import glog
from transfer_caffe.engine.layers import Blob, Layer
from transfer_caffe.formats import hdf5
from transfer_caffe.formats.proto import array_to_blob, blob_to_array, read_binary
from transfer_caffe.formats.proto.caffe_pb2 import NetParameter, Phase
from transfer_caffe.formats.upgrade import upgrade_net
from transfer_caffe.utils.errors import UserError

Stored = tuple[np.ndarray, bool]
"""A blob in a weights file, and whether its shape is in the legacy format (before 2015)."""


def copy_weights(
    net_name: str, layers: Sequence[Layer], path: str | os.PathLike[str], as_hdf5: bool | None = None
) -> list[str]:
    """Copy the blobs of a .caffemodel into the layers of the same name and return these layers' names.

    ``as_hdf5`` says whether the file is HDF5; by default, its first bytes or the ending .h5 say it.

    Like Net::CopyTrainedLayersFrom, except that a file without any matching layer is a UserError (real Caffe would
    silently train from scratch), and so are values that are not finite. If several layers have one name, the first one
    in the file goes into the first one of the net, and so on (real Caffe copies all of them into the first one).
    """
    path = os.fspath(path)
    is_hdf5 = hdf5.is_hdf5(path) if as_hdf5 is None else as_hdf5
    stored_layers = _read_hdf5(layers, path) if is_hdf5 else _read_binary(path)
    own: dict[str, list[Layer]] = {}
    for layer in layers:
        own.setdefault(layer.name, []).append(layer)
    copied = []
    for name, blobs in stored_layers:
        waiting = own.get(name)
        target = waiting.pop(0) if waiting else None
        if target is None:
            glog.info("net.cpp:746", f"Ignoring source layer {name}")
            continue
        if len(blobs) != len(target.blobs):
            raise target.error(f"{path} has {len(blobs)} blobs for this layer, the net has {len(target.blobs)}")
        for index, (blob, stored) in enumerate(zip(target.blobs, blobs, strict=True)):
            if stored is not None:
                copy_blob(blob, *stored, f"{path}: layer {name!r}, blob {index}")
        if target.blobs:
            copied.append(name)
    if not copied:
        names = ", ".join(name for name, _ in stored_layers) or "no layers"
        raise UserError(f"{path}: none of its layers has the name of a layer in net {net_name!r}; it has {names}")
    return copied


def _read_binary(path: str) -> list[tuple[str, list[Stored | None]]]:
    param = upgrade_net(read_binary(path, NetParameter()), path)
    return [
        (
            layer.name,
            [
                (blob_to_array(blob, f"{path}: layer {layer.name!r}, blob {index}"), not blob.HasField("shape"))
                for index, blob in enumerate(layer.blobs)
            ],
        )
        for layer in param.layer
    ]


def _read_hdf5(layers: Sequence[Layer], path: str) -> list[tuple[str, list[Stored | None]]]:
    """Like `_read_binary`; None stands for a shared blob, which is stored with the layer that owns it."""
    found = []
    for name, blobs in hdf5.read_weights(path).items():
        layer = next((layer for layer in layers if layer.name == name), None)
        count = len(layer.blobs) if layer else len(blobs)
        for index in set(range(count)) - set(blobs):
            if layer is None or (index in _owned(layers, layer) and blobs):
                raise UserError(f"{path}: layer {name!r} has no blob {index}: the file is from another net or damaged")
        if blobs or not count:
            found.append((name, [(blobs[i], False) if i in blobs else None for i in range(max(count, len(blobs)))]))
    return found


def _owned(layers: Sequence[Layer], layer: Layer) -> list[int]:
    """Return the indices of a layer's blobs that it does not share with an earlier layer."""
    # a blob's owner may belong to another net, with which this one shares its weights
    before = [_root(blob) for other in layers[: layers.index(layer)] for blob in other.blobs]
    found = []
    for index, blob in enumerate(layer.blobs):
        if not any(_root(blob) is other for other in before):
            found.append(index)
        before.append(_root(blob))
    return found


def _root(blob: Blob) -> Blob:
    while blob.owner is not None:
        blob = blob.owner
    return blob


def array_of(tensor: Tensor) -> np.ndarray:
    """Return a tensor's values on the host."""
    return tensor.detach().cpu().numpy()


def owned_weights(
    layers: Sequence[Layer], array: Callable[[Tensor], np.ndarray] = array_of
) -> list[tuple[str, dict[int, np.ndarray]]]:
    """Return the blobs that each layer owns, by index; a shared blob belongs to the first layer that has it.

    ``array`` returns the values of a blob's tensor. Raise UserError for two layers of one name with weights: HDF5
    files, for which this is, hold layers by name.
    """
    for layer in layers:
        if layer.blobs and any(other.name == layer.name and other is not layer for other in layers):
            raise layer.error("another layer has this name: HDF5 files cannot hold both; use BINARYPROTO, or rename it")
    return [
        (layer.name, {index: array(layer.blobs[index].data) for index in _owned(layers, layer)}) for layer in layers
    ]


def copy_blob(blob: Blob, values: np.ndarray, old: bool, where: str) -> None:
    """Copy values into a blob of the same shape; ``old`` says that their shape is in the legacy format (before 2015).

    Raise UserError for a shape mismatch or values that are not finite.
    """
    shape = tuple(blob.data.shape)
    # files from before 2015 give every blob four axes, padded with leading ones (Blob::ShapeEquals)
    legacy = old and values.shape == (1,) * (4 - len(shape)) + shape
    if values.shape != shape and not legacy:
        raise UserError(
            f"{where}: cannot copy: shape mismatch: the file has {list(values.shape)}, "
            f"the net {list(shape)}; to learn this layer from scratch, rename it"
        )
    weights = torch.from_numpy(values.reshape(shape).copy())
    if not torch.isfinite(weights).all():
        raise UserError(f"{where}: holds values that are not finite numbers; the file is damaged")
    with torch.no_grad():
        blob.values.copy_(weights)
        if blob.low is not None:
            blob.low.detach().copy_(blob.values)


def to_message(
    net_name: str, layers: Sequence[Layer], phase: Phase, array: Callable[[Tensor], np.ndarray] = array_of
) -> NetParameter:
    """Return the net with its weights as the message of a .caffemodel (Net::ToProto).

    ``array`` returns the values of a blob's tensor.
    """
    param = NetParameter(name=net_name)
    for layer in layers:
        copy = param.layer.add()
        copy.CopyFrom(layer.param)
        copy.ClearField("blobs")
        if not copy.HasField("phase"):
            copy.phase = phase
        copy.blobs.extend(array_to_blob(array(blob.data)) for blob in layer.blobs)
    return param
