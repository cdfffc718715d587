"""Weights as a safetensors file, under the names of the PyTorch module, with the net in its metadata; and back.

    write_safetensors("net.safetensors", used, "net.caffemodel", preprocessing)
    write_original("net.safetensors", "net.caffemodel")

Metadata (all of them text): `caffe.prototxt`, the net as it was given; `caffe.deploy`, the net for inference; the
preprocessing as in an ONNX file; `caffe.original`, what else the .caffemodel contained: its message without the values
of the tensors. The way back puts these values in again, which gives the same bytes for files that this program wrote.
"""

from __future__ import annotations

import base64
import json
import os
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from transfer_caffe.engine.layers import Layer
from transfer_caffe.export.inference import Inference, load
from transfer_caffe.export.module import RESERVED, require_binary
from transfer_caffe.export.preprocessing import Preprocessing
from transfer_caffe.export.state import blobs_of, module_names, tensors_of
from transfer_caffe.formats.hdf5 import is_hdf5
from transfer_caffe.formats.proto import array_to_blob, blob_to_array, parse_text, read_binary, to_text, write_binary
from transfer_caffe.formats.proto.caffe_pb2 import LayerParameter, NetParameter
from transfer_caffe.formats.upgrade import upgrade_net
from transfer_caffe.utils.errors import UserError
from transfer_caffe.utils.files import sha256, write_bytes

MOST_METADATA = 90 << 20
"""The format limits its header to 100 MB."""

Tensors = Mapping[str, np.ndarray]


def write_safetensors(
    path: str | os.PathLike[str], used: Inference, net: NetParameter, weights: str | os.PathLike[str] | None,
    preprocessing: Preprocessing | None = None, classes: Sequence[str] = (),
) -> int:  # fmt: skip
    """Write the weights of a net and return the number of tensors.

    ``net`` is the net as it was given, ``weights`` the file that its weights are from; None if they are in ``net``.
    """
    from safetensors.numpy import save  # pyright: ignore[reportMissingImports]

    by_module = modules_of(used)
    names: set[str] = set()
    for layer in by_module.values():
        if layer.blobs and layer.name in names:
            raise layer.error("has the name of an earlier layer; rename one of them in the net and its weights")
        names |= {layer.name} if layer.blobs else set()
        if any(blob.owner is not None for blob in layer.blobs):
            raise layer.error("shares weights in another shape, which a safetensors file cannot store")
    tensors = {
        f"{module}.{name}": np.asarray(array, order="C")  # unlike ascontiguousarray, this keeps scalars
        for module, layer in by_module.items()
        for name, array in tensors_of(layer).items()
    }
    metadata = {"format": "pt", "caffe.prototxt": _text(net), "caffe.deploy": _text(used.param)}
    found: dict[str, Any] = preprocessing.metadata() if preprocessing is not None else {}
    if classes:
        found["classes"] = list(classes)
    metadata |= {f"caffe.{key}": each if isinstance(each, str) else json.dumps(each) for key, each in found.items()}
    original = _original(used, by_module, weights)
    metadata["caffe.original"] = base64.b64encode(zlib.compress(original.SerializeToString())).decode()
    if weights is not None:
        metadata["caffe.original_sha256"] = sha256(weights)
    if sum(map(len, metadata.values())) > MOST_METADATA:
        raise UserError(
            f"{os.fspath(weights or path)}: most of its layers are not in the net; give the net they are of"
        )
    write_bytes(path, save(tensors, metadata))  # its save_file reports no errors of the system
    return len(tensors)


def modules_of(used: Inference) -> dict[str, Layer]:
    """Return the layers by the names of their modules."""
    layers = [layer for layer in used.net.layers if layer.type != "Input"]
    return dict(zip(module_names(layers, RESERVED), layers, strict=True))


def _text(net: NetParameter) -> str:
    """Return a net without the blobs that it may have, as text."""
    copy = NetParameter()
    copy.CopyFrom(net)
    for layer in copy.layer:
        layer.ClearField("blobs")
    return to_text(copy)


def _original(used: Inference, by_module: Mapping[str, Layer], weights: str | os.PathLike[str] | None) -> NetParameter:
    """Return the message of the weights file, without the values that the tensors give back."""
    if weights is None or is_hdf5(weights):
        message = used.net.to_proto()
    else:
        message = upgrade_net(read_binary(weights, NetParameter()), os.fspath(weights))
    layers = {layer.name: (module, layer) for module, layer in by_module.items()}
    for stored in message.layer:
        if stored.name not in layers:
            continue
        layer = layers[stored.name][1]
        arrays = [blob_to_array(blob, f"layer {stored.name!r}") for blob in stored.blobs]
        # the engine's layer says how the blobs became tensors
        again = blobs_of(layer.param, tensors_of(layer)) if layer.blobs else []
        # all or none: what a BatchNorm's tensors do not give back are sums, which belong together
        if [array.tobytes() for array in arrays] == [array.tobytes() for array in again]:
            for blob in stored.blobs:
                blob.ClearField("data")
                blob.ClearField("double_data")
    return message


def read_safetensors(path: str | os.PathLike[str]) -> tuple[dict[str, str], dict[str, np.ndarray]]:
    """Return the metadata and the tensors of a file that `write_safetensors` wrote; UserError for another one."""
    from safetensors import SafetensorError, safe_open  # pyright: ignore[reportMissingImports]

    with open(path, "rb"):  # what cannot be read is not named by the package
        pass
    try:
        with safe_open(os.fspath(path), framework="numpy") as file:
            metadata = dict(file.metadata() or {})
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no dict
    except (SafetensorError, ValueError) as error:
        raise UserError(f"{os.fspath(path)}: damaged, or not a safetensors file ({error})") from None
    if not {"caffe.deploy", "caffe.original"} <= metadata.keys():
        raise UserError(f"{os.fspath(path)}: was not written by this program: it has no Caffe net in its metadata")
    return metadata, tensors


def load_safetensors(path: str | os.PathLike[str]) -> Inference:
    """Return the net for inference with the weights of a safetensors file."""
    metadata, tensors = read_safetensors(path)
    where = os.fspath(path)
    param = parse_text(metadata["caffe.deploy"], NetParameter(), where)
    used = load(param, None)
    for module, layer in modules_of(used).items():
        names = tensors_of(layer)
        own = {name: _tensor(tensors, f"{module}.{name}", array, where) for name, array in names.items()}
        if own:
            used.net.set_weights({layer.name: blobs_of(layer.param, own)})
    return used


def _tensor(tensors: Tensors, name: str, like: np.ndarray, where: str) -> np.ndarray:
    if name not in tensors or tensors[name].shape != like.shape:
        raise UserError(f"{where}: tensor {name} of shape {list(like.shape)} is missing")
    return tensors[name]


def write_original(path: str | os.PathLike[str], out: str | os.PathLike[str]) -> bool:
    """Write the .caffemodel that a safetensors file was made from; return whether it has the same bytes.

    The tensors may have been changed. UserError for a tensor that is missing or has another shape.
    """
    require_binary(out)
    metadata, tensors = read_safetensors(path)
    where = os.fspath(path)
    try:
        message = NetParameter.FromString(zlib.decompress(base64.b64decode(metadata["caffe.original"])))
    except (ValueError, zlib.error) as error:
        raise UserError(f"{where}: damaged: its caffe.original cannot be read ({error})") from None
    used = load(parse_text(metadata["caffe.deploy"], NetParameter(), where), None)
    layers = {layer.name: (module, layer) for module, layer in modules_of(used).items()}
    for stored in message.layer:
        if stored.name in layers and stored.blobs:
            module, layer = layers[stored.name]
            own = {name: _tensor(tensors, f"{module}.{name}", like, where) for name, like in tensors_of(layer).items()}
            _restore(stored, layer, own)
    write_binary(out, message)
    return sha256(out) == metadata.get("caffe.original_sha256")


def _restore(stored: LayerParameter, layer: Layer, tensors: Tensors) -> None:
    """Put the values of tensors into the blobs of a layer."""
    sums = [blob_to_array(blob, "") for blob in stored.blobs if blob.data or blob.double_data]
    for blob, array in zip(stored.blobs, blobs_of(layer.param, tensors, sums), strict=True):
        if sums and np.array_equal(blob_to_array(blob, ""), array):
            continue
        blob.ClearField("data")
        blob.ClearField("double_data")
        # only the values: the file's own shape, which may be of the format before 2015, stays
        values = array_to_blob(array)
        values.ClearField("shape")
        blob.MergeFrom(values)
