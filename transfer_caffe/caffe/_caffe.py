"""The names of pycaffe's compiled module, for scripts that import them from there."""

from transfer_caffe.caffe.mode import (
    NCCL,
    Timer,
    has_nccl,
    init_log,
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
from transfer_caffe.caffe.net import Net
from transfer_caffe.caffe.solvers import (
    AdaDeltaSolver,
    AdaGradSolver,
    AdamSolver,
    NesterovSolver,
    RMSPropSolver,
    SGDSolver,
    Solver,
    get_solver,
)
from transfer_caffe.engine.layers import LAYERS
from transfer_caffe.engine.layers.python_layer import PythonLayer as Layer
from transfer_caffe.engine.layers.views import Blob, BlobVec, Vector
from transfer_caffe.formats.proto.caffe_pb2 import LayerParameter, SolverParameter

__all__ = [
    "NCCL", "AdaDeltaSolver", "AdaGradSolver", "AdamSolver", "Blob", "BlobVec", "BoolVec", "DtypeVec", "IntVec",
    "Layer", "LayerParameter", "LayerVec", "NesterovSolver", "Net", "NetVec", "RMSPropSolver", "RawBlobVec",
    "SGDSolver", "Solver", "SolverParameter", "StringVec", "Timer", "__version__", "get_solver", "has_nccl",
    "init_log", "layer_type_list", "log", "set_device", "set_mode_cpu", "set_mode_gpu", "set_multiprocess",
    "set_random_seed", "set_solver_count", "set_solver_rank", "solver_count", "solver_rank",
]  # fmt: skip

__version__ = "1.0.0"
"""The version of Caffe whose interface this is."""

RawBlobVec = LayerVec = StringVec = IntVec = DtypeVec = NetVec = BoolVec = Vector


def layer_type_list() -> list[str]:
    """Return the names of all layer types, sorted."""
    return Vector(sorted(LAYERS))
