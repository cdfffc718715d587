"""The GPU's update kernel, run on the CPU by Triton's interpreter, updates as PyTorch's operations do.

It runs in a separate process, because the interpreter must be enabled before Triton is imported.
"""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

from transfer_caffe.utils.processes import environment

CODE = """
import itertools
import sys
import torch
sys.path.insert(0, sys.argv[1])
from support.guards import guarded
from support.streams import OnCpu
from transfer_caffe.engine.layers.base import Blob
from transfer_caffe.engine.solver import update_triton
from transfer_caffe.engine.solver.device_update import DeviceUpdate, plain
from transfer_caffe.formats.proto.caffe_pb2 import SolverParameter

update_triton.BLOCK = 64
for count, momentum, decay, factor, dtype, scale in itertools.product(
    (1, 64, 200), (0.0, 0.9), (0.0, 0.01), (1.0, 0.25), (torch.float32, torch.bfloat16), (None, torch.tensor(0.3))
):
    torch.manual_seed(count)
    rates = torch.tensor([7.0, 0.1, 9.0])
    found = []
    for function in (plain, update_triton.update):
        # nothing after a tensor may be read or written
        weight, history = (guarded(each, True) for each in torch.randn(2, count, generator=torch.manual_seed(1)))
        gradient = guarded(torch.randn(count, generator=torch.Generator().manual_seed(2)).to(dtype), True)
        before = gradient.clone()
        low = guarded(weight.to(dtype), True) if dtype == torch.bfloat16 else None
        function(weight, gradient, history, rates, 1, momentum, decay, factor, low, scale)
        # the interpreter truncates, so up to one unit in the last place
        assert low is None or torch.allclose(low.float(), weight, rtol=2**-7, atol=0)
        assert torch.equal(gradient, before)
        found.append((weight, history))
    for one, other in zip(*found):
        # up to 5 roundings of the history in each of both, and one of the weight
        most = 12 * 2**-24 * 4
        assert float((one - other).abs().max()) < most, (count, momentum, decay, factor, dtype)


class OnGpu(torch.Tensor):
    # says that it is on a GPU
    device = torch.device("cuda")


found = []
param = SolverParameter(type="SGD", momentum=0.9, weight_decay=0.01, iter_size=2)
for kind in (torch.Tensor, OnGpu):
    weights = torch.randn(2, 3, 4, 5, 2, generator=torch.manual_seed(1))
    blobs = [Blob(values.requires_grad_(), 2.0) for values in weights]
    # a convolution's gradient may be channels-last, the second blob has none
    gradient = torch.randn(3, 4, 5, 2, generator=torch.manual_seed(2)).contiguous(memory_format=torch.channels_last)
    blobs[0].data.grad = gradient
    assert not blobs[0].data.grad.is_contiguous()
    histories = [torch.full((3, 4, 5, 2), 0.5).as_subclass(kind) for _ in blobs]
    with OnCpu():
        update = DeviceUpdate(param, blobs, histories)
        assert (update._kernel is update_triton.update) == (kind is OnGpu)
        update.set_rate(0.1)
        update()
    found.append([each.detach().as_subclass(torch.Tensor) for each in (*(blob.data for blob in blobs), *histories)])
for one, other in zip(*found):
    assert float((one - other).abs().max()) < 12 * 2**-24 * 4
print("same")
"""


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed (pip install triton)")
def test_the_kernel_updates_as_plain_operations_do():
    env = {**environment(), "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    argv = [sys.executable, "-c", CODE, str(Path(__file__).parent.parent)]
    done = subprocess.run(argv, env=env, capture_output=True, text=True)
    assert done.stdout == "same\n", done.stderr[-3000:]
