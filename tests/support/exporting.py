"""Helpers of the export's tests: nets with weights, written as files, and the comparison with the engine."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch
from conformance.networks import net_text, write_data
from conformance.seeded import seeded_weights, write_weights

from transfer_caffe.compare import Case
from transfer_caffe.export.check import Report, check
from transfer_caffe.export.inference import Inference, load
from transfer_caffe.export.onnx_file import build
from transfer_caffe.formats.proto import parse_text
from transfer_caffe.formats.proto.caffe_pb2 import NetParameter


def of_case(case: Case) -> Inference:
    """Return the net of a case of the conformance suite for inference, with the case's weights."""
    used = load(case.net, None)
    for layer in used.net.layers:
        for index, blob in enumerate(layer.blobs):
            value = case.values.get(f"param/{layer.name}/{index}")
            if value is not None:
                with torch.no_grad():
                    blob.data.copy_(torch.from_numpy(np.asarray(value, np.float32).reshape(tuple(blob.data.shape))))
    return used


def exported(used: Inference, path: str | os.PathLike[str]) -> Report:
    """Export a net to ``path`` and compare it with the engine, blob by blob."""
    model = build(used)
    model.write(path)
    return check(model, path)


def write_network(name: str, folder: Path) -> tuple[Path, Path]:
    """Write a network of the conformance suite with seeded weights; return its prototxt and its weights.

    ``folder`` must be the current one: the network's data are there.
    """
    write_data(name, folder, seed=1)
    param = parse_text(net_text(name), NetParameter(), name)
    (folder / "net.prototxt").write_text(net_text(name))
    write_weights(folder / "net.caffemodel", seeded_weights(param, 1))
    return folder / "net.prototxt", folder / "net.caffemodel"
