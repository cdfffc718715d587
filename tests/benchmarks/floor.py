"""The least time of a training iteration: its matrix products and its memory traffic, at the rates of a machine.

    gflop, gigabytes = work(net, "bf16")        # of one iteration
    found = rates(torch.device("cuda", 0), ["bf16"])
    seconds(gflop, gigabytes, found, "bf16")

`cd tests && PYTHONPATH=.:.. ../.venv/bin/python -m benchmarks.floor` prints the tables in docs/benchmarks.md.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from benchmarks.data import table

from transfer_caffe.engine import glog
from transfer_caffe.engine.iteration import threads
from transfer_caffe.engine.net import Net
from transfer_caffe.experiment.read import load_recipe
from transfer_caffe.formats.proto.caffe_pb2 import TRAIN, NetParameter, NetState
from transfer_caffe.sweep.cost import Rate
from transfer_caffe.sweep.measure import synthetic
from transfer_caffe.sweep.plan import make_plan
from transfer_caffe.sweep.selection import select

NOMINAL = {
    "H100": {"GB/s": 3350.0, "GFLOP/s, fp32": 67e3, "GFLOP/s, tf32": 494.7e3, "GFLOP/s, bf16": 989.4e3},
    "H200": {"GB/s": 4800.0, "GFLOP/s, fp32": 67e3, "GFLOP/s, tf32": 494.7e3, "GFLOP/s, bf16": 989.4e3},
}  # fmt: skip
"""The rates in the data sheets of two GPUs (SXM, without sparsity), which no program reaches."""
FROZEN = (0, 3, 5, 7)
BYTES = {"fp32": 4, "tf32": 4, "bf16": 2}
"""Bytes of a value of a blob; weights and history always have 4."""


def net_in_silence(param: NetParameter) -> Net:
    """Build a training net on the CPU without a log."""
    info, glog.info = glog.info, lambda *_: None
    try:
        return Net(param, NetState(phase=TRAIN), 1, torch.device("cpu"))
    finally:
        glog.info = info


def work(net: Net, precision: str = "fp32") -> tuple[float, float]:
    """Return the GFLOP of matrix products and the GB of memory traffic of one iteration.

    The traffic counts each blob as written and read once in each direction. A weight is read once per direction; for
    its update, its gradient is written and read, the weight and its history are read and written, and in bf16 a copy
    in bf16 is written.
    """
    size = BYTES[precision]
    total = 0.0
    learning = False
    for layer in net.layers:
        below, tops = learning, sum(float(np.prod(net.shapes[top])) for top in layer.top)
        learned = any(blob.learned for blob in layer.blobs)
        learning |= learned
        if not layer.in_place:  # an in-place layer could be fused with the layer before it
            total += size * 2 * tops * (1 + learning)
        if layer.blobs:
            update = 2 * size + 4 * 4 + (size if size < 4 else 0)
            total += layer.blobs[0].data.numel() * (size * (1 + below) + learned * update)
    return threads.work(net) / 1e9, total / 1e9


def seconds(gflop: float, gigabytes: float, found: Mapping[str, float], precision: str = "") -> float:
    """Return the floor: the seconds of the products and of the traffic, at ``found`` rates (see `rates`)."""
    return gflop / found[f"GFLOP/s, {precision}" if precision else "GFLOP/s"] + gigabytes / found["GB/s"]


def rates(device: torch.device, precisions: Sequence[str] = (), tiny: bool = False) -> dict[str, float]:
    """Return the measured GFLOP/s of large matrix products and GB/s of large copies, the best of several runs.

    On a GPU there is one rate of products for each precision. ``tiny`` sizes only check that everything runs.
    """

    def best(work_of: float, function: Callable[[], object]) -> float:
        each = []
        for _ in range(8):
            if device.type == "cuda":
                torch.cuda.synchronize()
            start = time.perf_counter()
            function()
            if device.type == "cuda":
                torch.cuda.synchronize()
            each.append(time.perf_counter() - start)
        return work_of / min(each) / 1e9

    side = 64 if tiny else 8192 if device.type == "cuda" else 1536
    one = torch.randn(side, side, device=device)
    big, other = torch.zeros(2, 1 << (12 if tiny else 26), device=device)
    found = {"GB/s": best(8 * big.numel(), lambda: other.copy_(big))}
    if not precisions:
        images = torch.randn(16, 256, 26, 26).contiguous(memory_format=torch.channels_last)
        filters = torch.randn(256, 256, 3, 3)
        convolution = best(2 * 9 * 256 * 256 * 16 * 24 * 24, lambda: torch.conv2d(images, filters))
        return found | {"GFLOP/s": max(best(2 * side**3, lambda: one @ one), convolution)}
    before = torch.backends.cuda.matmul.allow_tf32
    for precision in precisions:
        torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
        factor = one.bfloat16() if precision == "bf16" else one
        found[f"GFLOP/s, {precision}"] = best(2 * side**3, lambda factor=factor: factor @ factor)
    torch.backends.cuda.matmul.allow_tf32 = before
    return found


def caffenet(frozen: int, batch: int = 256) -> Net:
    """Return a CaffeNet of the paper with its first ``frozen`` layers frozen."""
    net = synthetic(next(iter(load_recipe("paper").networks())), frozen)
    for layer in net.layer:
        for shape in layer.dummy_data_param.shape:
            shape.dim[0] = batch
    return net_in_silence(net)


def tables() -> str:
    """Return the work and the floor of an iteration, and the floor of the paper's networks, as Markdown."""
    works = {(n, p): work(net, p) for n in FROZEN for net in [caffenet(n)] for p in BYTES}
    kinds = [(gpu, precision) for gpu in NOMINAL for precision in BYTES]
    floors = {
        (gpu, precision): {n: seconds(*works[n, precision], NOMINAL[gpu], precision) for n in FROZEN}
        for gpu, precision in kinds
    }
    head = ["frozen layers", "GFLOP", "GB, fp32 or tf32", "GB, bf16"]
    head += [f"ms, {gpu}, {precision}" for gpu, precision in kinds]
    rows = []
    for n in FROZEN:
        row = [*works[n, "fp32"], works[n, "bf16"][1], *(1000 * floors[kind][n] for kind in kinds)]
        rows.append([f"n = {n}", *(f"{each:.4g}" for each in row)])
    hours = []
    for gpu, precision in kinds:
        slots = paper_hours(floors[gpu, precision], "the floor")
        hours.append([f"{gpu}, {precision}", *(f"{each:.3g}" for each in slots.values())])
    return table(head, rows) + "\n\n" + table(["hours, if iterations took the floor", "1 GPU", "8 GPUs"], hours)


def paper_hours(known: Mapping[int, float], source: str, test_image: float | None = None) -> dict[int, float]:
    """Return the hours of the recipe `paper` on 1 and 8 GPUs, by `sweep plan`, from seconds per iteration by n."""
    recipe = load_recipe("paper")
    rate = Rate.of_some(known, recipe, source, test_image)
    with tempfile.TemporaryDirectory() as nothing:
        plan = make_plan(select(recipe), Path(nothing), Path(nothing), rate, (1, 8))
    return {count: hours for count, hours in plan.slots.items() if hours is not None}


if __name__ == "__main__":
    print(tables())
