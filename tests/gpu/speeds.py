"""Steps of the GPU check that measure: rates, iterations, tests, snapshots, several networks, kernels."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from benchmarks import floor
from gpu.correct import start_engine, two_networks, write_solver
from gpu.world import FROZEN, World, records_in
from torch import Tensor

from transfer_caffe.engine.batches import resident
from transfer_caffe.engine.batches.staging import Buffer
from transfer_caffe.engine.layers import vision
from transfer_caffe.engine.layers.data import Images
from transfer_caffe.engine.net import Net
from transfer_caffe.engine.solver.solver import Solver
from transfer_caffe.formats.database import Database
from transfer_caffe.sweep import mps

CONVOLUTIONS = {"conv1": (3, 96, 227, 11, 4, 0, 1), "conv2": (96, 256, 27, 5, 1, 2, 2),
                "conv3": (256, 384, 13, 3, 1, 1, 1), "conv4": (384, 384, 13, 3, 1, 1, 2),
                "conv5": (384, 256, 13, 3, 1, 1, 2)}  # fmt: skip
"""Channels, filters, side, kernel, stride, pad and groups of a CaffeNet's convolutions."""


def rates(world: World) -> None:
    """Versions, and the rates of copies and matrix products."""
    print(f"Python {platform.python_version()}, PyTorch {torch.__version__}, NumPy {np.__version__}", flush=True)
    if world.device.type == "cuda":
        found = torch.cuda.get_device_properties(world.device)
        print(f"{found.name}, {found.total_memory / 2**30:.0f} GiB, cuDNN {torch.backends.cudnn.version()}", flush=True)
    for name, value in floor.rates(world.device, world.precisions, world.tiny).items():
        world.measure(name, value, name.partition(",")[0])


def smoke(world: World) -> None:
    """A CaffeNet in bf16: warm-up, recording, replays; is it one graph, is LRN a Triton kernel, is the loss finite."""
    made = world.solver("bf16")
    loss = made.step(3)
    world.check("the loss without a graph is finite", np.isfinite(loss), f"{loss:.4g}")
    loss = made.step(2 if world.tiny else 51)
    world.check("the loss by graph is finite", np.isfinite(loss), f"{loss:.4g}")
    world.check("an iteration is one CUDA graph", made._pass.recorded)
    images = next(layer for layer in made.net.layers if isinstance(layer, Images))
    world.check("records are on the device", images.resident)
    if world.device.type == "cuda":
        world.check("LRN runs as a Triton kernel", vision._fused_lrn() is not None)
        world.measure("memory of bf16 training", torch.cuda.max_memory_allocated() / 2**30, "GiB")


def speed(world: World) -> None:
    """Milliseconds of an iteration: precisions, frozen layers, records on the device and in the host's memory."""
    found = {key: value for key, value in world.earlier.items() if "/s" in key}
    cases = [(p, n, "device", True) for p in reversed(world.precisions) for n in FROZEN]
    cases += [(p, 0, "device", False) for p in reversed(world.precisions)]
    cases += [(p, n, "host", True) for p in reversed(world.precisions) for n in FROZEN]
    cases += [("bf16", 0, "both", True)]
    for precision, n, place, deterministic in cases[:2] + cases[-2:] if world.tiny else cases:
        with records_in(place, world.tiny):
            made = world.solver(precision, frozen=n, deterministic=deterministic)
            ms = world.iteration_ms(made)
        where = "both memories" if place == "both" else f"the {place}"
        what = f"{precision}, n = {n}, records in {where}{'' if deterministic else ', fastest algorithms'}"
        world.measure(what, ms, "ms")
        world.check(f"{what}: one graph", made._pass.recorded)
        if place == "device" and deterministic and found:
            least = floor.seconds(*floor.work(made.net, precision), found, precision)
            world.measure(f"floor of {precision}, n = {n}", 1000 * least, "ms")
        del made
    if not world.tiny:
        for n in (0, 7):
            world.measure(f"mini, batch 128, n = {n}", world.iteration_ms(world.solver("fp32", "mini", 128, n)), "ms")


def tests_and_snapshots(world: World) -> None:
    """A test of 200 batches, a snapshot, and a complete `engine train` with both."""
    tests = 2 if world.tiny else 200
    for precision in ("bf16", "fp32"):
        made = world.solver(precision, test_iter=[tests], test_interval=1000)
        made.score()
        world.wait()
        since = time.perf_counter()
        made.score()
        world.wait()
        world.measure(f"{precision}: a test batch", 1000 * (time.perf_counter() - since) / tests, "ms")
        if precision == "bf16":
            with tempfile.TemporaryDirectory() as folder:
                _snapshot(world, made, folder)
        del made
    for frozen in (0,) if world.tiny else (0, 7):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            iterations = 4 if world.tiny else 400
            write_solver(
                world, folder, frozen, max_iter=iterations, display=2 if world.tiny else 100, test_iter=[tests],
                test_interval=iterations, snapshot=iterations // 2, test_initialization=False,
            )  # fmt: skip
            since = time.perf_counter()
            code = start_engine(world, folder, "log", "--precision", "bf16").wait()
            seconds = time.perf_counter() - since
            log = (folder / "log").read_text()
            world.check(f"engine train, n = {frozen}, ends with code 0", code == 0, "" if code == 0 else log[-2000:])
            world.measure(f"engine train, n = {frozen}: {iterations} iterations, a test, snapshots", seconds, "s")
            speeds = [float(each) for each in re.findall(r"\((\S+) iter/s", log)]
            if speeds:
                world.measure(f"engine train, n = {frozen}", speeds[-1] * world.batch, "images/s")


def _snapshot(world: World, made: Solver, folder: str) -> None:
    made.param.snapshot_prefix = f"{folder}/net"
    made.step(4)
    world.wait()
    since = time.perf_counter()
    made.save()
    seconds = time.perf_counter() - since
    world.measure("a snapshot, until training resumes", seconds, "s")
    finish = getattr(made, "finish_snapshots", None)
    if finish:
        finish()
        world.measure("a snapshot, until it is written", time.perf_counter() - since, "s")


def by_mps(world: World) -> None:
    """Two networks on one GPU through MPS, if it is there; `sharing` measures them without."""
    said: list[str] = []
    with mps.service(said.append) as environment, tempfile.TemporaryDirectory() as name:
        print(said, flush=True)
        if environment:
            write_solver(world, Path(name), 7, max_iter=200, display=50)
            two_networks(world, Path(name), "MPS", environment)


def profile(world: World) -> None:
    """The kernels of one bf16 iteration without a graph, by their time on the device."""
    made = world.solver("bf16", graph=False)
    made.step(4)
    world.wait()
    activities = [torch.profiler.ProfilerActivity.CPU]
    if world.device.type == "cuda":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities) as found:
        made.step(1)
        world.wait()
    averages = found.key_averages()
    key = "self_device_time_total" if world.device.type == "cuda" else "self_cpu_time_total"
    print(averages.table(sort_by=key, row_limit=40, max_name_column_width=90), flush=True)
    ordered = sorted(averages, key=lambda each: -getattr(each, key))
    for each in ordered[:3] if world.tiny else ordered[:12]:
        world.measure(f"kernel {each.key[:70]}", getattr(each, key) / 1000, "ms")


def convolutions(world: World) -> None:
    """Each convolution apart, forward and backward: groups natively, as halves, as one block-diagonal; formats."""
    batch = 2 if world.tiny else 256
    kinds = [("bf16", torch.bfloat16, False), ("tf32", torch.float32, True), ("fp32", torch.float32, False)]
    for precision, dtype, tf32 in kinds[:1] if world.tiny else kinds:
        torch.backends.cudnn.allow_tf32 = tf32
        for name, (channels, filters, side, kernel, stride, pad, groups) in CONVOLUTIONS.items():
            if world.tiny and name not in ("conv1", "conv4"):
                continue
            ways: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
                "native": lambda x, w, s=stride, p=pad, g=groups: F.conv2d(x, w, None, s, p, 1, g)
            }
            if groups > 1:
                ways["halves"] = lambda x, w, s=stride, p=pad, g=groups: torch.cat(
                    [F.conv2d(a, b, None, s, p) for a, b in zip(x.chunk(g, 1), w.chunk(g), strict=True)], 1
                )
                ways["block-diagonal"] = lambda x, w, s=stride, p=pad, g=groups: F.conv2d(
                    x, _block_diagonal(w, g), None, s, p
                )
            if stride > 1:
                ways["blocks"] = lambda x, w, s=stride, p=pad: vision.by_blocks(x, w, None, (s, s), (p, p))
            for way, function in ways.items():
                for form, memory in (("NHWC", torch.channels_last), ("NCHW", torch.contiguous_format)):
                    x = torch.randn(batch, channels, side, side, device=world.device, dtype=dtype)
                    w = torch.randn(filters, channels // groups, kernel, kernel, device=world.device, dtype=dtype)
                    x, w = x.contiguous(memory_format=memory), w.contiguous(memory_format=memory)
                    ms = _both_passes(world, function, x.requires_grad_(name != "conv1"), w.requires_grad_())
                    world.measure(f"{name}, {precision}, {way}, {form}", ms, "ms")
    torch.backends.cudnn.allow_tf32 = False
    for channels, side, kernel, stride in ((3, 227, 11, 4), (8, 227, 11, 4), (48, 57, 3, 1)):
        if world.tiny:
            side = 57 if channels == 48 else 35
        x = torch.randn(batch, channels, side, side, device=world.device, dtype=torch.bfloat16)
        w = torch.randn(96, channels, kernel, kernel, device=world.device, dtype=torch.bfloat16).requires_grad_()
        x = x.contiguous(memory_format=torch.channels_last)
        ms = _both_passes(world, lambda a, b, s=stride: F.conv2d(a, b, None, s), x, w)
        world.measure(f"conv1 with {channels} channels, bf16", ms, "ms")


def _block_diagonal(weight: Tensor, groups: int) -> Tensor:
    rows = []
    for index, part in enumerate(weight.chunk(groups)):
        zeros = [torch.zeros_like(part) for _ in range(groups)]
        zeros[index] = part
        rows.append(torch.cat(zeros, 1))
    return torch.cat(rows)


def _both_passes(world: World, function: Callable[[Tensor, Tensor], Tensor], x: Tensor, w: Tensor) -> float:
    top = function(x, w)
    gradient = torch.randn_like(top)

    def passes() -> None:
        torch.autograd.grad(function(x, w), [each for each in (x, w) if each.requires_grad], gradient)

    return world.milliseconds(passes)


def parts(world: World) -> None:
    """The other parts of an iteration apart: each layer type, batch making, the update."""
    made = world.solver("bf16", graph=False)
    net = made.net
    made.step(2)
    blobs: dict[str, Tensor] = {}
    for layer in net.layers:
        bottoms = [blobs[name].detach() for name in layer.param.bottom]
        given = [each.clone(memory_format=torch.preserve_format) for each in layer.cast(bottoms)]
        for index, each in enumerate(given):
            each.requires_grad_(index != layer.label_bottom)
        tops = layer.forward(given, 0)
        if layer.buffer is not None:
            layer.buffer.content = tops[0].detach()
        up = torch.randn_like(tops[0])

        def passes(layer=layer, given=given, up=up) -> None:
            top = layer.forward(given, 0)[0]
            if top.requires_grad:
                top.backward(up)

        world.measure(f"layer {layer.name}, bf16, both passes", world.milliseconds(passes), "ms")
        blobs.update(zip(layer.top, (top.detach() for top in tops), strict=True))
    _joined_parts(world, net)
    made.step(1)
    update = made._device_update or (lambda: made._update(False))
    world.measure("update", world.milliseconds(update), "ms")


def _joined_parts(world: World, net: Net) -> None:
    """Bias, pooling, ReLU and LRN as the net computes them, and with LRN apart."""
    for pooling, norm in net.norm_after.items():
        assert isinstance(pooling, vision.Pooling)
        bias, function = net.bias_later[pooling].blobs[1].data, net.fused_pools[pooling]
        x = torch.randn(net.shapes[pooling.param.bottom[0]], device=world.device, dtype=torch.bfloat16)
        x = x.contiguous(memory_format=torch.channels_last).requires_grad_()
        gradient = torch.randn_like(norm.forward([pooling.fused(function, x, bias, True)], 0)[0])
        for what, settings in (("one operation", norm.settings), ("LRN apart", None)):

            def passes(pooling=pooling, norm=norm, x=x, bias=bias, settings=settings, gradient=gradient) -> None:
                top = pooling.fused(net.fused_pools[pooling], x, bias, True, settings)
                torch.autograd.grad(top if settings else norm.forward([top], 0)[0], [x, bias], gradient)

            world.measure(f"{pooling.name} with bias, ReLU and LRN, bf16, {what}", world.milliseconds(passes), "ms")


def memory(world: World) -> None:
    """Rates of decoding JPEGs and of pinned copies."""
    count = 100 if world.tiny else 3500
    records = Database(str(world.data / f"jpeg{256}"))
    pixels = torch.empty((min(count, len(records)), 256, 256, 3), dtype=torch.uint8)
    since = time.perf_counter()
    resident.load(_First(records, len(pixels)), pixels, "jpeg256", print)
    world.measure("JPEGs decoded", len(pixels) / (time.perf_counter() - since), "images/s")
    target = torch.empty((1 << 20) if world.tiny else (1 << 28), dtype=torch.uint8, device=world.device)
    buffer = Buffer([target])
    ms = world.milliseconds(lambda: buffer.send([target]))
    world.measure("pinned copy to the device", target.numel() / ms / 1e6, "GB/s")


class _First:
    """The first records of a database."""

    def __init__(self, records: Database, count: int) -> None:
        self._records, self._count = records, count
        self.shape = records.record(0)[0].shape

    def __len__(self) -> int:
        return self._count

    def record(self, index: int) -> tuple[np.ndarray, int]:
        return self._records.record(index)


def cudnn(world: World) -> None:
    """An iteration with cuDNN's other heuristic, and with the fastest of all its algorithms, not of the first ten."""
    os.environ["TORCH_CUDNN_USE_HEURISTIC_MODE_B"] = "1"  # read once, when this process first computes a convolution
    if world.device.type == "cuda":
        torch.backends.cudnn.benchmark_limit = 0
    for deterministic, what in ((True, "heuristic mode B"), (False, "fastest of all algorithms")):
        world.measure(
            f"bf16, n = 0, {what}", world.iteration_ms(world.solver("bf16", deterministic=deterministic)), "ms"
        )


def paper(world: World) -> None:
    """The hours of the recipe `paper` on 1 and 8 GPUs, by `sweep plan`, from the measured iterations and tests."""
    for precision in world.precisions:
        for place in ("device", "host"):
            name = f"{precision}, n = {{}}, records in the {place}"
            known = {n: world.earlier[name.format(n)] / 1000 for n in FROZEN if name.format(n) in world.earlier}
            if (len(known) < len(FROZEN) and not world.tiny) or not known:
                continue
            tests = world.earlier.get(f"{precision}: a test batch")
            slots = floor.paper_hours(known, "measured", tests and tests / 1000 / world.batch)
            for count, hours in slots.items():
                world.measure(f"the paper on {count} GPUs, {precision}, records in the {place}", hours, "hours")


def gpu_tests(world: World) -> None:
    """The tests that compare the engine on a GPU with the engine on the CPU."""
    import sys

    folder = Path(__file__).resolve().parent.parent
    argv = [sys.executable, "-m", "pytest", "-q", "-rA", "-p", "no:cacheprovider", "commands/test_engine_gpu.py"]
    argv += ["-k", "cpu and mini and waiting or does_not_wait" if world.tiny else "cuda"]
    done = subprocess.run(argv, cwd=folder, env=dict(os.environ), check=False)
    world.check("the tests on the GPU pass", done.returncode == 0)
