"""Whether the GPU's Triton kernels can be used; if not, PyTorch's operations compute the same."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from typing import TypeVar

import torch

from transfer_caffe.engine import glog

Made = TypeVar("Made")


def usable(place: str, what: str, probe: Callable[[], Made]) -> Made | None:
    """Return what ``probe`` returns after it has run a kernel; None, and a line in the log, if it raises anything.

    Triton may be missing, or what it needs to compile (a C compiler). ``place`` as in `glog.info`; ``what`` says what
    runs without kernels.
    """
    # Triton 3.9 warns, where this is not set, that its default will change
    os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")
    try:
        with torch.enable_grad(), warnings.catch_warnings():  # the first call may come from a test pass
            warnings.simplefilter("ignore")
            return probe()
    except Exception as error:
        # the reason why a kernel does not compile is in the last line
        lines = [line.strip().rstrip(":") for line in str(error).splitlines() if line.strip()]
        why = ": ".join(dict.fromkeys([type(error).__name__, *lines[:1], *lines[-1:]]))
        glog.info(place, f"{what}: {why}")
        return None
