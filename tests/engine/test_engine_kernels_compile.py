"""The GPU's kernels compile for a GPU (sm_90), which Triton can do on a machine without one; nothing is run.

Triton's interpreter, with which the other tests run the kernels, accepts more than its compiler. This runs in a
separate process, because the interpreter must not be enabled there.
"""

import importlib.util
import subprocess
import sys

import pytest

from transfer_caffe.utils.processes import environment

CODE = """
import sys
import warnings
import torch
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile
from triton.runtime.jit import JITFunction

warnings.simplefilter("ignore")  # Triton announces changes of its defaults
TYPES = {torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.uint8: "*u8", torch.int64: "*i64"}
compiled = {}


def launch(kernel, *given):
    # as Triton does: an int of 1 is a constant, multiples of 16 are known as such
    signature, constants, known = {}, {}, {}
    for index, (param, value) in enumerate(zip(kernel.params, given, strict=True)):
        if param.is_constexpr or (type(value) is int and value == 1):
            signature[param.name], constants[index,] = "constexpr", value
        elif isinstance(value, torch.Tensor):
            signature[param.name], known[index,] = TYPES[value.dtype], [["tt.divisibility", 16]]
        elif type(value) is int:
            signature[param.name] = "i32" if value < 2**31 else "i64"
            if value % 16 == 0:
                known[index,] = [["tt.divisibility", 16]]
        else:
            assert type(value) is float, (param.name, value)
            signature[param.name] = "fp32"
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=known)
    made = compile(source, target=GPUTarget("cuda", 90, 32))
    assert made.asm["cubin"]
    name = f"{kernel.fn.__module__.rpartition('.')[2]}.{kernel.fn.__name__}"
    compiled[name] = compiled.get(name, 0) + 1
    if name == "pool_triton._forward" and dict(zip([param.name for param in kernel.params], given))["NORM"]:
        # LRN reads what other threads have stored: after a barrier, and not by the cache for constant values
        code = made.asm["ptx"]
        first = code.index("st.global")
        barrier = code.index("bar.sync", first)
        assert "ld.global" not in code[first:barrier] and "ld.global" in code[barrier:]
        assert "ld.global.nc" not in code


JITFunction.__getitem__ = lambda kernel, grid: lambda *given: launch(kernel, *given)

from transfer_caffe.engine.batches import batch_triton
from transfer_caffe.engine.layers import lrn_triton, pool_triton
from transfer_caffe.engine.solver import update_triton

rates = torch.zeros(8)
for dtype in (torch.float32, torch.bfloat16):
    x = torch.zeros(2, 96, 13, 13, dtype=dtype).requires_grad_()
    bias = torch.zeros(96).requires_grad_()
    for added, stride, norm in (
        (bias, (2, 2), None), (None, (2, 2), None), (bias, (1, 1), None), (bias, (2, 2), (5, 1e-4, 0.75, 1.0)),
        (None, (2, 2), (5, 1e-4, 0.75, 1.0)), (bias, (2, 2), (3, 0.5, 0.5, 2.0)),
    ):
        size = (6, 6) if stride == (2, 2) else (11, 11)
        settings = (3, 3), stride, (0, 0), size, added is not None, norm
        if added is not None and norm is None and stride == (1, 1):
            alone = (1, 1), (1, 1), (0, 0), (13, 13), True, None
            pool_triton.FusedPool.apply(x, added, *alone, True).sum().backward()
        pool_triton.FusedPool.apply(x, added, *settings, True).sum().backward()
        pool_triton.FusedPool.apply(x, added, *settings, False)
    for beta in (0.75, 0.5):
        lrn_triton.FusedLRN.apply(x, 5, 1e-4, beta, 1.0, None).sum().backward()
    weight, history = torch.zeros(2, 64)
    low = None if dtype == torch.float32 else torch.zeros(64, dtype=dtype)
    for index, scale in ((0, None), (1, None), (3, None), (3, rates[0])):
        update_triton.update(weight, torch.zeros(64, dtype=dtype), history, rates, index, 0.9, 5e-4, 1.0, low, scale)
    records, drawn = torch.zeros(4, 32, 32, 3, dtype=torch.uint8), torch.zeros(3, 2, dtype=torch.int64)
    windows = torch.zeros(2, 27, 27, 3, dtype=torch.uint8)
    for mean, scale in ((torch.zeros(32, 32, 3), 0.5), (torch.zeros(1, 27, 3), 1.0), (None, 1.0)):
        rest = (drawn, mean, scale != 1.0, scale, (27, 27), dtype)
        batch_triton.make(records, None, drawn[0], *rest)
        batch_triton.make(None, windows, None, *rest)
        batch_triton.make(records, windows, drawn[0], *rest)
print(sorted(compiled.items()))

# what decides whether a kernel is used: it runs on tensors of one value
for name in ("ones", "zeros"):
    made = getattr(torch, name)
    setattr(torch, name, lambda *sizes, device=None, made=made, **more: made(*sizes, **more))
from transfer_caffe.engine.batches import transform
from transfer_caffe.engine.layers import vision
from transfer_caffe.engine.solver import device_update

assert vision.MOST_JOINED == pool_triton.BLOCK
assert vision.fused_pool() and vision._fused_lrn() and device_update._fused_update() and transform._fused_batches()
"""
EXPECTED = [
    ("batch_triton._make", 18), ("lrn_triton._backward", 4), ("lrn_triton._forward", 4), ("pool_triton._backward", 2),
    ("pool_triton._backward_by_two", 10), ("pool_triton._below", 12), ("pool_triton._forward", 26),
    ("update_triton._update", 8),
]  # fmt: skip


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed (pip install triton)")
def test_the_kernels_compile_for_a_gpu(tmp_path):
    env = {**environment(), "OMP_NUM_THREADS": "1", "TRITON_CACHE_DIR": str(tmp_path)}
    env.pop("TRITON_INTERPRET", None)
    done = subprocess.run([sys.executable, "-c", CODE], env=env, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout == f"{EXPECTED}\n", done.stderr[-3000:]
