"""The GPU's update kernel, run on the CPU by Triton's interpreter, updates as PyTorch's operations do.

It runs in a separate process, because the interpreter must be enabled before Triton is imported.
"""

import importlib.util
import subprocess
import sys

import pytest

from transfer_caffe.utils.processes import environment

CODE = """
import itertools
import torch
from transfer_caffe.engine.solver import update_triton
from transfer_caffe.engine.solver.device_update import plain

update_triton.BLOCK = 64
for count, momentum, decay, factor, dtype, scale in itertools.product(
    (1, 64, 200), (0.0, 0.9), (0.0, 0.01), (1.0, 0.25), (torch.float32, torch.bfloat16), (None, torch.tensor(0.3))
):
    torch.manual_seed(count)
    rates = torch.tensor([7.0, 0.1, 9.0])
    found = []
    for function in (plain, update_triton.update):
        weight, history = torch.randn(2, count, generator=torch.Generator().manual_seed(1))
        gradient = torch.randn(count, generator=torch.Generator().manual_seed(2)).to(dtype)
        before = gradient.clone()
        low = weight.to(dtype) if dtype == torch.bfloat16 else None
        function(weight, gradient, history, rates, 1, momentum, decay, factor, low, scale)
        # the interpreter truncates, so up to one unit in the last place
        assert low is None or torch.allclose(low.float(), weight, rtol=2**-7, atol=0)
        assert torch.equal(gradient, before)
        found.append((weight, history))
    for one, other in zip(*found):
        # up to 5 roundings of the history in each of both, and one of the weight
        most = 12 * 2**-24 * 4
        assert float((one - other).abs().max()) < most, (count, momentum, decay, factor, dtype)
print("same")
"""


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed (pip install triton)")
def test_the_kernel_updates_as_plain_operations_do():
    env = {**environment(), "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", CODE], env=env, capture_output=True, text=True)
    assert done.stdout == "same\n", done.stderr[-3000:]
