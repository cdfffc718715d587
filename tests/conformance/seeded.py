"""Weights for a net from a seed, identical on all machines: sampled with NumPy's RandomState, not by an engine."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

import numpy as np

from transfer_caffe.compare import build
from transfer_caffe.formats.proto import array_to_blob, write_binary
from transfer_caffe.formats.proto.caffe_pb2 import NetParameter

NETWORKS_FILE = Path(__file__).resolve().parent.parent / "golden" / "networks.json"


def recorded(name: str) -> dict:
    """Return real Caffe's recorded results for a network: the seed of its weights, its spread, losses and norms."""
    return json.loads(NETWORKS_FILE.read_text())[name]


def seeded_weights(param: NetParameter, seed: int) -> dict[str, np.ndarray]:
    """Return `param/LAYER/INDEX` for all blobs of a net, whose data must be in the current folder.

    Weights are scaled by their number of inputs, biases are small, scales are near 1, and batch statistics are empty.
    """
    draw, values = np.random.RandomState(seed), {}
    net = build(param, "TRAIN")
    named: dict[str, np.ndarray] = {}
    for layer in net.layers:
        for index, blob in enumerate(layer.blobs):
            shape = tuple(blob.data.shape)
            spec = layer.param.param[index].name if index < len(layer.param.param) else ""
            if layer.type == "BatchNorm":
                array = np.zeros(shape)
            elif layer.type == "Scale" and index == 0:
                array = 1 + 0.1 * draw.standard_normal(shape)
            elif len(shape) > 1:
                array = draw.standard_normal(shape) * math.sqrt(2 / math.prod(shape[1:]))
            else:
                array = 0.01 * draw.standard_normal(shape)
            array = named.setdefault(spec, array) if spec else array
            values[f"param/{layer.name}/{index}"] = array.reshape(shape).astype(np.float32)
    return values


def write_weights(path: str | os.PathLike[str], values: dict[str, np.ndarray]) -> None:
    """Write the weights as a .caffemodel."""
    param = NetParameter()
    layers: dict[str, list[np.ndarray]] = {}
    for key, array in values.items():
        layers.setdefault(key.removeprefix("param/").rsplit("/", 1)[0], []).append(array)
    for name, arrays in layers.items():
        param.layer.add(name=name).blobs.extend(array_to_blob(array) for array in arrays)
    write_binary(path, param)
