"""Runs of the nets in networks/: weights that any machine can make again, a training run's losses, one iteration.

prepare("lenet", folder, iterations=100)
write_weights(weights("lenet", seed=1), folder / "w.caffemodel")
losses([caffe], folder, "w.caffemodel")
"""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from conformance.networks import net_text, solver_text, write_data

from transfer_caffe import real_caffe
from transfer_caffe.compare import Arrays, Case
from transfer_caffe.engine import glog
from transfer_caffe.engine.net import Net
from transfer_caffe.log import parse_log
from transfer_caffe.proto import array_to_blob, parse_text, write_binary
from transfer_caffe.proto.caffe_pb2 import TRAIN, NetParameter, NetState

EARLY = 20
ITERATIONS = 100


def prepare(name: str, folder: Path, iterations: int) -> None:
    """Data, net and solver of a network in ``folder``."""
    write_data(name, folder, seed=1)
    (folder / "net.prototxt").write_text(net_text(name))
    (folder / "solver.prototxt").write_text(solver_text(name, max_iter=iterations))


def net_param(name: str) -> NetParameter:
    """The message of a network."""
    return parse_text(net_text(name), NetParameter(), name)


def weights(name: str, seed: int, folder: Path) -> Arrays:
    """Weights as `param/LAYER/INDEX`, of a network that was prepared in ``folder``.

    Constants and other weights without chance are as the fillers say; the rest is drawn by numpy from ``seed``, whose
    RandomState gives the same numbers everywhere: normal, of variance 1 / (inputs of an output).
    """
    with contextlib.chdir(folder), glog.silence():
        nets = [Net(net_param(name), NetState(phase=TRAIN), other, torch.device("cpu")) for other in (1, 2)]
    draw = np.random.RandomState(seed)
    with torch.no_grad():
        for blob, other in zip(*(net.learnable for net in nets), strict=True):
            if not torch.equal(blob.data, other.data):
                shape = tuple(blob.data.shape)
                values = draw.standard_normal(shape) * np.sqrt(shape[0] / blob.data.numel())
                blob.data.copy_(torch.from_numpy(values.astype(np.float32)))
    return {
        f"param/{layer.name}/{index}": blob.data.detach().numpy().copy()
        for layer in nets[0].layers
        for index, blob in enumerate(layer.blobs)
    }


def nudged(values: Arrays, seed: int) -> Arrays:
    """The weights, each moved to the float32 next above or below."""
    draw = np.random.RandomState(seed)
    moved: Arrays = {}
    for key, array in values.items():
        ways = np.where(draw.random_sample(array.shape) < 0.5, np.inf, -np.inf).astype(np.float32)
        moved[key] = np.nextafter(array, ways)
    return moved


def write_weights(values: Arrays, path: Path) -> None:
    """Write weights as a .caffemodel."""
    param = NetParameter()
    layers = {}
    for key, array in values.items():
        name = key.removeprefix("param/").rsplit("/", 1)[0]
        if name not in layers:
            layers[name] = param.layer.add(name=name)
        layers[name].blobs.append(array_to_blob(array))
    write_binary(path, param)


def losses(program: Sequence[str], folder: Path, weights_file: str) -> np.ndarray:
    """The losses that ``program train`` prints, one an iteration, and of the trained net at the end."""
    argv = [*program, "train", "--solver=solver.prototxt", f"--weights={weights_file}"]
    # the package of this repository, from whatever folder the engine runs in
    package = os.fspath(Path(real_caffe.__file__).resolve().parent.parent)
    # one thread: sums in another order are enough to send a unit at 0 to the other side of a ReLU
    environment = {**os.environ, "GLOG_logtostderr": "1", "PYTHONPATH": package, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(argv, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    found = parse_log(done.stderr).train_losses
    return np.array([found[iteration] for iteration in sorted(found)])


def first_iteration(name: str, values: Arrays, folder: Path) -> Case:
    """Iteration 0 of training as a case of transfer_caffe.compare."""
    return Case(net_param(name), "TRAIN", values, folder=folder)


def relative(ours: np.ndarray, real: np.ndarray) -> np.ndarray:
    """The difference of losses, relative to real Caffe's."""
    return np.abs(ours - real) / np.abs(real)
