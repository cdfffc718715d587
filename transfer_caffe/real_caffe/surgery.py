"""Weight surgery by pycaffe: it loads the base's weights into a net and returns the net's blobs.

    python -m transfer_caffe.surgery ... --with pycaffe

The result is byte-identical to that of `transfer_caffe.surgery`; use it to let Caffe itself copy the layers. Without
real Caffe, the same script runs on the embedded engine's pycaffe interface (`transfer_caffe.caffe`).
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from transfer_caffe.formats.proto import to_text
from transfer_caffe.formats.proto.caffe_pb2 import NetParameter
from transfer_caffe.real_caffe import programs as real_caffe
from transfer_caffe.utils.errors import UserError
from transfer_caffe.utils.files import write_text
from transfer_caffe.utils.processes import environment

EMBEDDED = (sys.executable, "-m", "transfer_caffe.caffe")
"""The argv of a Python in which `import caffe` is the embedded engine's interface."""

SCRIPT = Path(__file__).parent / "scripts" / "take_over.py"


def blobs_by_pycaffe(
    base: str | os.PathLike[str], net: NetParameter, image: Sequence[int], layers: Sequence[str]
) -> dict[str, list[np.ndarray]]:
    """Return the blobs of ``layers`` in ``net`` after pycaffe's Net.copy_from(base), float32 in the net's shapes.

    ``image`` is channels, height and width of the net's input. Raise UserError, with pycaffe's error message, if it
    rejects the weights.
    """
    python = real_caffe.pycaffe() or EMBEDDED
    with tempfile.TemporaryDirectory() as folder:
        prototxt, out = Path(folder, "net.prototxt"), Path(folder, "blobs.npz")
        write_text(prototxt, to_text(without_data(net, image)))
        argv = [*python, str(SCRIPT), str(prototxt), os.path.abspath(base), str(out), *layers]
        # real Caffe's Python is another one: it must not find this one's packages
        own = environment() if python is EMBEDDED else os.environ
        env = {**own, "GLOG_logtostderr": "1", "GLOG_minloglevel": "2"}
        result = subprocess.run(argv, cwd=folder, env=env, capture_output=True, text=True, errors="replace")
        if result.returncode or not out.exists():
            why = real_caffe.last_words(result.stderr).removeprefix("transfer_caffe.caffe.errors.CaffeError: ")
            raise UserError(f"{os.fspath(base)}: pycaffe cannot load it: {why}")
        with np.load(out) as blobs:
            taken: dict[str, list[np.ndarray]] = {name: [] for name in layers}
            for key in sorted(blobs.files, key=lambda key: int(key.rsplit("/", 1)[1])):
                taken[key.rsplit("/", 1)[0]].append(blobs[key])
    return taken


def without_data(net: NetParameter, image: Sequence[int]) -> NetParameter:
    """Return the net with an Input layer in place of its data layers, and without layers that need labels."""
    out = NetParameter(name=net.name)
    fed = next(layer for layer in net.layer if not layer.bottom)
    source = out.layer.add(name=fed.name, type="Input", top=[fed.top[0]])
    source.input_param.shape.add().dim.extend([1, *image])
    there = {fed.top[0]}
    for layer in net.layer:
        if layer.bottom and there.issuperset(layer.bottom):
            there.update(layer.top)
            copy = out.layer.add()
            copy.CopyFrom(layer)
            for param in (copy.convolution_param, copy.inner_product_param):
                if param.HasField("weight_filler"):  # the initial values are not used
                    param.ClearField("weight_filler")
    return out
