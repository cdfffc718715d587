"""The GPU's LRN kernels, run on the CPU by Triton's interpreter, compute the same as the engine's LRN.

They run in a separate process, because the interpreter must be enabled before Triton is imported.
"""

import importlib.util
import os
import subprocess
import sys

import pytest

from transfer_caffe.utils.processes import environment

CODE = """
import itertools
import torch
from transfer_caffe.engine.layers import lrn_triton
from transfer_caffe.engine.layers.base import Buffer
from transfer_caffe.engine.layers.vision import _LRNAcrossChannels

lrn_triton.BLOCK = 256
for shape, size, beta, k, dtype, buffered, last in itertools.product(
    [(2, 7, 3, 5), (3, 33, 4, 4), (1, 1, 2, 2)], (1, 3, 5, 7), (0.75, 0.5), (1.0, 2.0),
    (torch.float32, torch.bfloat16), (False, True), (True, False),
):
    torch.manual_seed(1)
    x = torch.randn(shape, dtype=dtype)
    if last:
        x = x.contiguous(memory_format=torch.channels_last)
    gradient = torch.randn(shape, dtype=dtype)
    buffer = None
    if buffered:
        buffer = Buffer()
        buffer.content = torch.randn(shape, dtype=dtype)
    found = []
    for function in (_LRNAcrossChannels, lrn_triton.FusedLRN):
        bottom = x.clone(memory_format=torch.preserve_format).requires_grad_()
        y = function.apply(bottom, size, 0.7, beta, k, buffer)
        y.backward(gradient)
        assert y.dtype == bottom.grad.dtype == dtype
        found.append((y.detach().float(), bottom.grad.float()))
    for one, other in zip(*found):
        difference = float((one - other).abs().max() / one.abs().max())
        # up to 32 float32 roundings in the computation of a gradient; in bfloat16 one rounding in each of both
        most = 32 * 2**-24 if dtype == torch.float32 else 2 * 2**-8
        assert difference < most, (shape, size, beta, k, dtype, buffered, difference)
print("same")
"""


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed (pip install triton)")
def test_the_kernels_compute_what_the_layer_computes():
    env = {**environment(), "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", CODE], env=env, capture_output=True, text=True)
    assert done.stdout == "same\n", done.stderr[-3000:]
    assert os.environ.get("TRITON_INTERPRET") is None
