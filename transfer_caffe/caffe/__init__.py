"""pycaffe's interface over the embedded engine: scripts that `import caffe` run without Caffe (docs/pycaffe.md).

    import transfer_caffe.caffe as caffe                        # in a script of your own
    python -m transfer_caffe.caffe script.py arguments          # an unchanged script
    python -m transfer_caffe.caffe -m pytest tests              # an unchanged module
    import transfer_caffe.caffe; transfer_caffe.caffe.install() # a notebook: `import caffe` works from there on

Installing transfer_caffe does not claim the name `caffe`: another Caffe may have it.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys

from transfer_caffe.engine.iteration import waiting  # noqa: F401 - first, since it has no effect once torch is imported

# isort: split
from transfer_caffe.caffe import coord_map, draw, io, mode, proto
from transfer_caffe.caffe._caffe import (
    NCCL,
    AdaDeltaSolver,
    AdaGradSolver,
    AdamSolver,
    Layer,
    NesterovSolver,
    Net,
    RMSPropSolver,
    SGDSolver,
    Timer,
    __version__,
    get_solver,
    has_nccl,
    init_log,
    layer_type_list,
    log,
    set_device,
    set_mode_cpu,
    set_mode_gpu,
    set_multiprocess,
    set_random_seed,
    set_solver_count,
    set_solver_rank,
    solver_count,
    solver_rank,
)
from transfer_caffe.caffe.classifier import Classifier
from transfer_caffe.caffe.detector import Detector
from transfer_caffe.caffe.errors import CaffeError
from transfer_caffe.caffe.net_spec import NetSpec, layers, params, to_proto
from transfer_caffe.formats.proto.caffe_pb2 import TEST, TRAIN
from transfer_caffe.utils.machine import keep_freed_memory

__all__ = [
    "NCCL", "TEST", "TRAIN", "AdaDeltaSolver", "AdaGradSolver", "AdamSolver", "CaffeError", "Classifier", "Detector",
    "Layer", "NesterovSolver", "Net", "NetSpec", "RMSPropSolver", "SGDSolver", "Timer", "__version__", "coord_map",
    "draw", "get_solver", "has_nccl", "init_log", "install", "io", "layer_type_list", "layers", "log", "params",
    "proto", "set_device", "set_mode_cpu", "set_mode_gpu", "set_multiprocess", "set_random_seed", "set_solver_count",
    "set_solver_rank", "solver_count", "solver_rank", "to_proto",
]  # fmt: skip

MODULES = (
    "_caffe", "classifier", "coord_map", "detector", "draw", "io", "net_spec", "proto", "pycaffe",
)  # fmt: skip
"""The modules that pycaffe has as well, so that `import caffe.io` works."""


def install(prefer_real: bool = False) -> None:
    """Let `import caffe` in this process mean this package, and log as pycaffe does (`init_log`).

    A Caffe that was imported before stays. With ``prefer_real``, so does one that could be imported.
    """
    claim_name(prefer_real)
    if sys.modules["caffe"] is sys.modules[__name__]:
        keep_freed_memory()  # otherwise small nets spend a fifth of their time on page faults
        mode.start_log()


def claim_name(prefer_real: bool = False) -> None:
    """Let `import caffe` mean this package, without a log."""
    ours = sys.modules[__name__]
    if sys.modules.get("caffe", ours) is not ours:
        return
    if prefer_real and "caffe" not in sys.modules and importlib.util.find_spec("caffe") is not None:
        importlib.import_module("caffe")
        return
    sys.modules["caffe"] = ours
    for name in MODULES:
        sys.modules[f"caffe.{name}"] = importlib.import_module(f"{__name__}.{name}")
    sys.modules["caffe.proto.caffe_pb2"] = proto.caffe_pb2
