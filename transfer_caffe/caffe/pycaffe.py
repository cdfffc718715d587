"""The names of pycaffe's module of this name (python/caffe/pycaffe.py), for scripts that import them from there."""

from transfer_caffe.caffe.mode import NCCL, Timer
from transfer_caffe.caffe.net import Net
from transfer_caffe.caffe.solvers import (
    AdaDeltaSolver,
    AdaGradSolver,
    AdamSolver,
    NesterovSolver,
    RMSPropSolver,
    SGDSolver,
)  # fmt: skip

__all__ = [
    "NCCL", "AdaDeltaSolver", "AdaGradSolver", "AdamSolver", "NesterovSolver", "Net", "RMSPropSolver", "SGDSolver",
    "Timer",
]  # fmt: skip
