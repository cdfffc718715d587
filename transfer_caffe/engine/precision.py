"""The precision in which nets compute. Weights, gradients, updates, losses and snapshots are always float32.

    python -m transfer_caffe.engine train --solver solver.prototxt --precision bf16

fp32 is Caffe's precision. With tf32 a GPU rounds the inputs of matrix products to 10 bits of mantissa and accumulates
in float32. With bf16, convolutions, inner products and the layers that pass on their values (ReLU, pooling, dropout,
...) store them with 7 bits of mantissa, which halves the memory traffic. Losses, normalisation by batch statistics and
all other layers stay in float32.
"""

from __future__ import annotations

import torch

from transfer_caffe.engine import glog
from transfer_caffe.utils.errors import UserError

PRECISIONS = ("fp32", "tf32", "bf16")


def use_precision(name: str, deterministic: bool, device: torch.device) -> torch.dtype:
    """Configure PyTorch for a precision in this process and return the dtype for `Net` and `Solver`.

    Without ``deterministic``, cuDNN benchmarks its algorithms and picks the fastest, including those that sum in a
    different order each time. Raise UserError for tf32 on a CPU.
    """
    if name == "tf32" and device.type != "cuda":
        raise UserError("--precision tf32: tf32 requires a GPU; use fp32 or bf16, or give --gpu")
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = name == "tf32"
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False  # partial sums stay float32
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = deterministic, not deterministic
    glog.info("caffe.cpp:0", f"Precision: {name}, {'' if deterministic else 'not '}deterministic.")
    return torch.bfloat16 if name == "bf16" else torch.float32
