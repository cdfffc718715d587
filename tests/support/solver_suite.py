"""Solvers with many settings, to compare real Caffe and the embedded engine on a small net with the same weights.

Nothing is random: no random crops, no mirroring, no dropout. It uses 40 images of the tiny data set in batches of 8.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import signal
import subprocess
from pathlib import Path

import numpy as np

from support.tiny import net_text, tiny_images, write_lmdb
from support.waiting import PATIENCE
from transfer_caffe.engine.__main__ import main
from transfer_caffe.engine.solver import solverstate
from transfer_caffe.formats.proto import array_to_blob, write_binary
from transfer_caffe.formats.proto.caffe_pb2 import NetParameter
from transfer_caffe.formats.weights import read_weights

SGD = "base_lr: 0.01 momentum: 0.9 weight_decay: 0.005 "
ADA = "base_lr: 0.005 weight_decay: 0.005 delta: 1e-4 "
RMS = "base_lr: 0.001 weight_decay: 0.005 delta: 1e-4 "
ADAM = "base_lr: 0.002 momentum: 0.9 momentum2: 0.99 weight_decay: 0.005 delta: 1e-4 "
FIXED = 'lr_policy: "fixed" '

CASES = {
    "sgd_fixed": SGD + FIXED,
    "sgd_step": SGD + 'lr_policy: "step" gamma: 0.5 stepsize: 7',
    "sgd_exp": SGD + 'lr_policy: "exp" gamma: 0.97',
    "sgd_inv": SGD + 'lr_policy: "inv" gamma: 0.05 power: 0.75',
    "sgd_multistep": SGD + 'lr_policy: "multistep" gamma: 0.5 stepvalue: 6 stepvalue: 15 stepvalue: 40',
    "sgd_multistep_unsorted": SGD + 'lr_policy: "multistep" gamma: 0.5 stepvalue: 9 stepvalue: 3 stepvalue: 9',
    "sgd_poly": SGD + 'lr_policy: "poly" power: 2',
    "sgd_sigmoid": SGD + 'lr_policy: "sigmoid" gamma: 0.1 stepsize: 20',
    "sgd_plain": "base_lr: 0.02 " + FIXED,
    "sgd_l1": SGD + FIXED + 'regularization_type: "L1"',
    "sgd_iter_size": SGD + FIXED + "iter_size: 2",
    "sgd_clip": SGD + FIXED + "clip_gradients: 0.3",
    "sgd_clip_iter_size_average": SGD + FIXED + "clip_gradients: 0.6 iter_size: 2 average_loss: 5",
    "sgd_decay_average": "base_lr: 0.01 momentum: 0.9 weight_decay: 0.2 average_loss: 3 " + FIXED,
    "nesterov": SGD + FIXED + 'type: "Nesterov"',
    "nesterov_l1_step": SGD + 'type: "Nesterov" lr_policy: "step" gamma: 0.5 stepsize: 7 regularization_type: "L1"',
    "nesterov_clip_iter_size": SGD + FIXED + 'type: "Nesterov" clip_gradients: 0.6 iter_size: 2',
    "adagrad": ADA + FIXED + 'type: "AdaGrad"',
    "adagrad_inv_l1": ADA + 'type: "AdaGrad" lr_policy: "inv" gamma: 0.05 power: 0.75 regularization_type: "L1"',
    "adagrad_clip_iter_size": ADA.replace("1e-4", "0.01") + FIXED + 'type: "AdaGrad" clip_gradients: 0.6 iter_size: 2',
    "rmsprop": RMS + FIXED + 'type: "RMSProp"',
    "rmsprop_decay_l1": RMS + FIXED + 'type: "RMSProp" rms_decay: 0.9 regularization_type: "L1"',
    "rmsprop_clip_iter_size": RMS + FIXED + 'type: "RMSProp" clip_gradients: 0.6 iter_size: 2',
    "adadelta": 'type: "AdaDelta" base_lr: 1 momentum: 0.95 delta: 1e-5 weight_decay: 0.005 ' + FIXED,
    "adadelta_l1_step": 'type: "AdaDelta" base_lr: 1 momentum: 0.9 delta: 1e-4 weight_decay: 0.005 '
    'regularization_type: "L1" lr_policy: "step" gamma: 0.5 stepsize: 7',
    "adadelta_clip_iter_size": 'type: "AdaDelta" base_lr: 1 momentum: 0.95 delta: 1e-5 weight_decay: 0.005 '
    "clip_gradients: 0.6 iter_size: 2 " + FIXED,
    "adam": ADAM + FIXED + 'type: "Adam"',
    "adam_default_momentum2": ADAM.replace("momentum2: 0.99 ", "") + FIXED + 'type: "Adam"',
    "adam_l1_exp": ADAM + 'type: "Adam" lr_policy: "exp" gamma: 0.97 regularization_type: "L1"',
    "adam_clip_iter_size": ADAM + FIXED + 'type: "Adam" clip_gradients: 0.6 iter_size: 2 average_loss: 4',
    "adam_no_momentum": ADAM.replace("momentum: 0.9 ", "momentum: 0 ") + FIXED + 'type: "Adam"',
    "adam_default_delta": ADAM.replace("delta: 1e-4 ", "") + FIXED + 'type: "Adam"',
    "old_solver_type": SGD + FIXED + "solver_type: NESTEROV",
    # nets other than the usual one: blobs that layers share, and layers that are frozen but decay
    "shared_sgd": SGD + FIXED,
    "shared_adam": ADAM + FIXED + 'type: "Adam" iter_size: 2',
    "frozen_sgd": SGD + FIXED + "clip_gradients: 0.3",
    "frozen_nesterov": SGD + FIXED + 'type: "Nesterov"',
    "frozen_adagrad": ADA + FIXED + 'type: "AdaGrad"',
    "frozen_adadelta": 'type: "AdaDelta" base_lr: 1 momentum: 0.95 delta: 1e-5 weight_decay: 0.005 ' + FIXED,
    "frozen_adam": ADAM + FIXED + 'type: "Adam"',
    # blobs without axes: real Caffe stores them without a shape
    "scalar_sgd": SGD + FIXED,
}
"""The solver settings of each case, by name."""

SHARED = """layer { name: "fc4" type: "InnerProduct" bottom: "fc3" top: "fc4" param { name: "w" } param { name: "b" }
  inner_product_param { num_output: 4 weight_filler { type: "xavier" } } }
layer { name: "tanh4" type: "TanH" bottom: "fc4" top: "fc4" }
layer { name: "fc5" type: "InnerProduct" bottom: "fc4" top: "fc5" param { name: "w" lr_mult: 2 } param { name: "b" }
  inner_product_param { num_output: 4 weight_filler { type: "xavier" } } }
"""
SCALAR = """layer { name: "scale" type: "Scale" bottom: "fc3" top: "fc4" scale_param { num_axes: 0 bias_term: true } }
layer { name: "slope" type: "PReLU" bottom: "fc4" top: "fc5" prelu_param { channel_shared: true } }
"""
SHAPES = {"conv1": (6, 3, 3, 3), "conv2": (8, 3, 3, 3), "fc3": (4, 8), "fc4": (4, 4), "fc5": (4, 4)}


def net(case: str) -> str:
    """Return the prototxt of a case's net."""
    text = net_text(random=False)
    if case.startswith(("shared", "scalar")):
        head, tail = text.split('layer { name: "accuracy"')
        more = SHARED if case.startswith("shared") else SCALAR
        return head + more + 'layer { name: "accuracy"' + tail.replace('bottom: "fc3"', 'bottom: "fc5"')
    if case.startswith("frozen"):
        head, tail = text.split('layer { name: "relu1"')
        return head.replace("lr_mult: 1", "lr_mult: 0").replace("lr_mult: 2", "lr_mult: 0") + (
            'layer { name: "relu1"' + tail
        )
    return text


def prepare(folder: Path, case: str, more: str = "", iterations: int = 100) -> None:
    """Write all files of a case: databases, mean image, net.prototxt, solver.prototxt and w.caffemodel."""
    folder.mkdir(parents=True, exist_ok=True)
    write_lmdb(folder / "train_lmdb", *tiny_images(40, 1))
    write_lmdb(folder / "test_lmdb", *tiny_images(20, 2))
    write_binary(folder / "mean.binaryproto", array_to_blob(np.full((1, 3, 12, 12), 70, np.float32)))
    # scale 1/64: the gradients of all layers have the same order of magnitude
    text = net(case).replace("transform_param { ", "transform_param { scale: 0.015625 ")
    (folder / "net.prototxt").write_text(text)
    (folder / "snap").mkdir(exist_ok=True)
    (folder / "solver.prototxt").write_text(
        f'net: "net.prototxt" test_iter: 3 test_interval: 10 display: 1 max_iter: {iterations} snapshot: 20\n'
        f'snapshot_prefix: "snap/tiny" solver_mode: CPU random_seed: 7\n{CASES[case]}\n{more}\n'
    )
    write_binary(folder / "w.caffemodel", weights(case))


def weights(case: str) -> NetParameter:
    """Return weights for the net of a case, including some layers that it does not have."""
    draw = np.random.RandomState(3)
    param = NetParameter()
    for name, shape in SHAPES.items():
        layer = param.layer.add(name=name)
        layer.blobs.append(array_to_blob(draw.randn(*shape) * 0.2))
        layer.blobs.append(array_to_blob(draw.randn(shape[0]) * 0.1))
    if case.startswith("shared"):
        for index in (0, 1):
            param.layer[4].blobs[index].CopyFrom(param.layer[3].blobs[index])
    return param


def losses(log: str) -> list[float]:
    """Return the loss displayed at each iteration, including the last one."""
    return [float(value) for value in re.findall(r"Iteration \d+(?: \(.*\))?, loss = (\S+)", log)]


def scores(log: str) -> list[float]:
    """Return all accuracies and losses of the test passes, in the order of the log."""
    return [float(value) for value in re.findall(r"Test net output #\d+: \w+ = (\S+)", log)]


def blobs(folder: Path, iteration: int, ending: str = "") -> dict[str, np.ndarray]:
    """Read the weights (LAYER/INDEX) and histories (history/INDEX) of a snapshot; ``ending`` is .h5 for HDF5."""
    weights, state = (f"{folder}/snap/tiny_iter_{iteration}.{what}{ending}" for what in ("caffemodel", "solverstate"))
    layers = read_weights(Path(weights))
    found = {f"{name}/{index}": array for name, arrays in layers.items() for index, array in enumerate(arrays)}
    return found | {f"history/{index}": array for index, array in enumerate(solverstate.read_state(state).history)}


def difference(ours: dict[str, np.ndarray], real: dict[str, np.ndarray], histories: bool) -> float:
    """Return the largest difference of any weight (or history), relative to the largest value in real Caffe's blob."""
    assert list(ours) == list(real)
    assert all(ours[name].shape == real[name].shape for name in ours)
    return max(
        float(np.abs(ours[name] - real[name]).max() / (np.abs(real[name]).max() or 1))
        for name in ours
        if name.startswith("history/") == histories
    )


def run_ours(folder: Path, *argv: str) -> str:
    """Run the embedded engine in a folder, check that it succeeds, and return its log."""
    signals = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGHUP)}
    log = io.StringIO()
    try:
        with contextlib.chdir(folder), contextlib.redirect_stderr(log):
            code = main(list(argv))
    finally:
        for number, handler in signals.items():
            signal.signal(number, handler)
    assert code == 0, log.getvalue()[-2000:]
    return log.getvalue()


def run_real(folder: Path, *argv: str) -> str:
    """Run real Caffe in a folder, check that it succeeds, and return its log."""
    from transfer_caffe.real_caffe import programs as real_caffe  # tests that only use the engine do not need it

    environment = {**os.environ, "GLOG_logtostderr": "1", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    argv = (str(real_caffe.program()), *argv)
    done = subprocess.run(argv, cwd=folder, env=environment, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stderr


TRAIN = ("train", "--solver", "solver.prototxt")
FINETUNE = (*TRAIN, "--weights", "w.caffemodel")
