"""Solvers in many settings over the `tiny` data: what they are tested with, here and beside real Caffe."""

from pathlib import Path

import numpy as np
from conftest import net_text

from transfer_caffe.proto import array_to_blob, write_binary
from transfer_caffe.proto.caffe_pb2 import NetParameter

STEP = 'lr_policy: "step" gamma: 0.5 stepsize: 15'

SOLVER_CASES = {
    "sgd": f"base_lr: 0.01 momentum: 0.9 weight_decay: 0.005 {STEP}",
    "sgd_l1": f'base_lr: 0.01 momentum: 0.9 weight_decay: 0.005 regularization_type: "L1" {STEP}',
    "sgd_clip": f"base_lr: 0.01 momentum: 0.9 weight_decay: 0.5 clip_gradients: 0.3 {STEP}",
    "sgd_iter_size": f"base_lr: 0.01 momentum: 0.9 weight_decay: 0.05 iter_size: 3 clip_gradients: 2 {STEP}",
    "sgd_average_loss": f"base_lr: 0.01 momentum: 0.5 average_loss: 7 {STEP}",
    "fixed": 'base_lr: 0.01 momentum: 0.9 lr_policy: "fixed"',
    "exp": 'base_lr: 0.02 lr_policy: "exp" gamma: 0.97',
    "inv": 'base_lr: 0.02 lr_policy: "inv" gamma: 0.1 power: 0.75',
    "multistep": 'base_lr: 0.02 lr_policy: "multistep" gamma: 0.1 stepvalue: 6 stepvalue: 13',
    "poly": 'base_lr: 0.02 lr_policy: "poly" power: 2',
    "sigmoid": 'base_lr: 0.02 lr_policy: "sigmoid" gamma: 0.1 stepsize: 30',
    "nesterov": f'type: "Nesterov" base_lr: 0.005 momentum: 0.9 weight_decay: 0.05 {STEP}',
    "adagrad": f'type: "AdaGrad" base_lr: 0.002 weight_decay: 0.05 {STEP}',
    "adagrad_delta": f'type: "AdaGrad" base_lr: 0.01 delta: 0.1 iter_size: 2 {STEP}',
    "rmsprop": f'type: "RMSProp" base_lr: 0.0005 rms_decay: 0.95 weight_decay: 0.05 {STEP}',
    "adadelta": f'type: "AdaDelta" base_lr: 1 momentum: 0.95 delta: 1e-5 weight_decay: 0.05 {STEP}',
    "adam": f'type: "Adam" base_lr: 0.001 momentum: 0.9 momentum2: 0.999 weight_decay: 0.05 {STEP}',
    "adam_delta": 'type: "Adam" base_lr: 0.002 momentum: 0.8 momentum2: 0.95 delta: 0.01 clip_gradients: 1 '
    'lr_policy: "fixed"',
    "nesterov_old": "solver_type: NESTEROV base_lr: 0.005 momentum: 0.8 lr_policy: \"fixed\"",
}  # fmt: skip

ITERATIONS = 100
SNAPSHOT = 20


def write_solver(folder: Path, name: str, more: str = "") -> None:
    """A solver.prototxt for a case in a folder that has the `tiny` data, with a net without anything random."""
    (folder / "net.prototxt").write_text(net_text(random=False))
    (folder / "solver.prototxt").write_text(
        f'net: "net.prototxt" test_iter: 4 test_interval: 50 display: 1 max_iter: {ITERATIONS} snapshot: {SNAPSHOT}\n'
        f'snapshot_prefix: "snap/tiny" solver_mode: CPU random_seed: 7\n{SOLVER_CASES[name]}\n{more}\n'
    )
    (folder / "snap").mkdir(exist_ok=True)


def write_weights(path: str | Path) -> None:
    """Weights for the `tiny` net from a seed."""
    draw = np.random.RandomState(3)
    param = NetParameter()
    for name, shape in (("conv1", (6, 3, 3, 3)), ("conv2", (8, 3, 3, 3)), ("fc3", (4, 8))):
        layer = param.layer.add(name=name)
        layer.blobs.append(array_to_blob(draw.randn(*shape) * 0.1))
        layer.blobs.append(array_to_blob(draw.randn(shape[0]) * 0.1))
    write_binary(path, param)
