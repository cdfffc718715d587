"""In what precision nets compute. Weights, gradients, updates and losses are float32 always, and so are snapshots.

    python -m transfer_caffe.engine train --solver solver.prototxt --precision bf16

fp32 is Caffe's own. tf32 lets a GPU round the factors of products to 10 bits of mantissa and sum in float32. bf16 lets
convolutions and inner products, and the layers that pass their values on, hold them with 7 bits of mantissa: half the
memory to read and write. Losses, normalisations by statistics, and all that is not simple stay float32.
"""

from __future__ import annotations

import torch

from transfer_caffe.engine import glog
from transfer_caffe.utils.errors import UserError

PRECISIONS = ("fp32", "tf32", "bf16")


def use_precision(name: str, deterministic: bool, device: torch.device) -> torch.dtype:
    """Set PyTorch up for a precision in this process; gives the dtype for `Net` and `Solver`. UserError: tf32 on a CPU.

    Not ``deterministic`` lets cuDNN measure which of its algorithms is the fastest, and take those as well whose sums
    come out in another order each time.
    """
    if name == "tf32" and device.type != "cuda":
        raise UserError("--precision tf32: only GPUs compute in it; take fp32 or bf16 here, or give --gpu")
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = name == "tf32"
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False  # partial sums stay float32
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = deterministic, not deterministic
    glog.info("caffe.cpp:0", f"Precision: {name}, {'' if deterministic else 'not '}deterministic.")
    return torch.bfloat16 if name == "bf16" else torch.float32
