"""Helpers of the export's tests: nets with weights, written as files, and the comparison with the engine."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from conformance.networks import net_text, write_data
from conformance.seeded import seeded_weights, write_weights

from transfer_caffe.compare import Case
from transfer_caffe.export.inference import Inference, load
from transfer_caffe.formats.proto import parse_text
from transfer_caffe.formats.proto.caffe_pb2 import NetParameter

if TYPE_CHECKING:
    from transfer_caffe.export.check import Report


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


def exported(used: Inference, path: str | os.PathLike[str], values: Mapping[str, np.ndarray] | None = None) -> Report:
    """Export a net to ``path`` and compare it with the engine, blob by blob.

    ``values``: those of a case of the conformance suite (`blob/NAME`); the outputs are compared on them as well, since
    some cases have ties or large values.
    """
    # not at the top: tests of the PyTorch module do without these packages
    import onnxruntime  # pyright: ignore[reportMissingImports]

    from transfer_caffe.export.check import TOLERANCE, check, relative_difference
    from transfer_caffe.export.onnx_file import build

    model = build(used)
    model.write(path)
    report = check(model, path)
    feeds = {name: np.asarray(values[f"blob/{name}"], np.float32) for name in used.inputs} if values else {}
    if feeds:
        used.compute(feeds)
        outputs = used.net.outputs
        session = onnxruntime.InferenceSession(os.fspath(path), providers=["CPUExecutionProvider"])
        for name, found in zip(outputs, session.run([model.blobs[name] for name in outputs], feeds), strict=True):
            difference = relative_difference(np.asarray(found), used.net.array(name), 0.01)
            assert difference <= TOLERANCE, (name, difference)
    return report


def write_network(name: str, folder: Path) -> tuple[Path, Path]:
    """Write a network of the conformance suite with seeded weights; return its prototxt and its weights.

    ``folder`` must be the current one: the network's data are there.
    """
    write_data(name, folder, seed=1)
    param = parse_text(net_text(name), NetParameter(), name)
    (folder / "net.prototxt").write_text(net_text(name))
    write_weights(folder / "net.caffemodel", seeded_weights(param, 1))
    return folder / "net.prototxt", folder / "net.caffemodel"
