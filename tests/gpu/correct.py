"""Steps of the GPU check that must hold: batches, layers, graphs, resumed training, sharing."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from gpu import exact
from gpu.world import World, bits, records_in
from support.gpu import never_waiting
from support.plain_pool import PlainPool

from transfer_caffe.engine.batches import transform
from transfer_caffe.engine.layers import Context, vision
from transfer_caffe.engine.layers.data import Data
from transfer_caffe.engine.layers.neuron import Dropout
from transfer_caffe.engine.solver import device_update
from transfer_caffe.engine.solver.solver import Signals
from transfer_caffe.engine.solver.solverstate import read_state
from transfer_caffe.formats.proto import parse_text, to_text
from transfer_caffe.formats.proto.caffe_pb2 import LayerParameter, SolverParameter
from transfer_caffe.utils import processes

TRANSFORMS = ("", 'mean_file: "{mean}"', "mean_value: 100.3", "mean_value: 104 mean_value: 117 mean_value: 123")


def batches(world: World) -> None:
    """Batches made on the GPU have the bits of those that NumPy makes, from records there and in the host's memory."""
    size, crop = (32, 28) if world.tiny else (256, 227)
    for place in ("device", "host", "both"):
        for mean in TRANSFORMS if place != "both" else TRANSFORMS[1:2]:
            for more in ("mirror: true", "scale: 0.017 mirror: true"):
                transform = f"crop_size: {crop} {more} {mean.format(mean=world.data / f'mean{size}.binaryproto')}"
                text = f'name: "d" type: "Data" top: "data" top: "label" transform_param {{ {transform} }} '
                text += f'data_param {{ source: "{world.data}/raw{size}" batch_size: {world.batch} backend: LMDB }}'
                param = parse_text(text, LayerParameter(), "")
                with records_in(place, world.tiny):
                    there, here = (Data(param, Context(1, device, True)) for device in (world.device, _cpu()))
                    there.setup([])
                    here.setup([])
                    here.by_device = False
                    same = there.resident == (place == "device")
                    same &= (there._copy is not None and there._copy.split is not None) == (place == "both")
                    for batch in (0, 5):
                        for one, two in zip(there.forward([], batch), here.forward([], batch), strict=True):
                            same &= one.cpu().numpy().tobytes() == two.numpy().tobytes()
                del there, here  # so that their copy of the records is freed
                where = "both memories" if place == "both" else f"the {place}"
                world.check(f"batches from records in {where}: {mean.partition(':')[0] or 'no mean'}, {more}", same)


def _cpu() -> torch.device:
    return torch.device("cpu")


def layers(world: World) -> None:
    """Each layer of a CaffeNet, forward and backward, is float64's result up to rounding."""
    for precision in world.precisions:
        made = world.solver(precision, batch=4, deterministic=True)
        for layer in made.net.layers:
            if isinstance(layer, Dropout):  # the mask is compared as well: it must be the same in both passes
                layer.generator = None
        exact.note_shapes(made.net)
        found = list(exact.compare(made.net, precision))
        for finding in found:
            if not finding.holds:
                print(f"{precision}: {finding}", flush=True)
        worst = max(found, key=lambda each: each.ratio)
        detail = f"largest error / bound: {worst.ratio:.3g} ({worst.layer}, {worst.what}), {len(found)} compared"
        world.check(f"layers in {precision} agree with float64 to rounding", worst.holds, detail)


def kernels(world: World) -> None:
    """The Triton kernels compute what PyTorch's operations compute, which a CPU compares with themselves."""
    cuda = world.device.type == "cuda"
    batch = 2 if world.tiny else 64
    pool = vision.fused_pool() if cuda else PlainPool
    lrn = vision._fused_lrn() if cuda else vision._LRNAcrossChannels
    update = device_update._fused_update() if cuda else device_update.plain
    world.check("all Triton kernels can be used", None not in (pool, lrn, update) and _has_batch_kernel(world))
    for dtype, unit in ((torch.float32, 2**-24), (torch.bfloat16, 2**-8)):
        draw = torch.Generator().manual_seed(1)

        def random(*shape: int, dtype=dtype, draw=draw) -> torch.Tensor:
            made = torch.randn(shape, generator=draw).to(world.device, dtype)
            return made.contiguous(memory_format=torch.channels_last) if len(shape) == 4 else made

        x, bias = random(batch, 96, 55, 55), random(96)
        gradient, windows = random(batch, 96, 27, 27), ((3, 3), (2, 2), (0, 0), (27, 27), True)
        if pool is not None:
            settings = (*windows, None, True)
            own, plain = (_passes(function, [x, bias], gradient, *settings) for function in (pool, PlainPool))
            same = torch.equal(own[0], plain[0])
            same &= torch.equal(own[0], F.max_pool2d(x + bias[None, :, None, None], 3, 2, ceil_mode=True).relu())
            world.check(f"pooling in {dtype}: same top", same)
            ratios = [_difference(a, b) for a, b in zip(own[1:], plain[1:], strict=True)]
            # 4 gradients per element; a bias's gradient is a sum over all images and positions
            good = ratios[0] < 8 * unit and ratios[1] < batch * 27 * 27 * 2**-24 + 4 * unit
            world.check(f"pooling in {dtype}: gradients to rounding", good, str(ratios))
        if pool is not None and lrn is not None:
            joined = _passes(pool, [x, bias], gradient, *windows, LRN_SETTINGS, True)
            apart = _passes(Apart, [x, bias], gradient, pool, lrn, *windows)
            worst = max(_difference(a, b) for a, b in zip(joined, apart, strict=True))
            same = all(map(torch.equal, joined, apart))
            # the same operations: what differs is rounding, if the compiler combines them otherwise
            good = worst < (32 + batch * 27 * 27) * 2**-24 + 2 * unit
            world.check(f"pooling with LRN in {dtype}: as apart", good, f"{worst:.3g}, same bits: {same}")
        if lrn is not None:
            settings = (*LRN_SETTINGS, None)
            above = random(*x.shape)
            own, plain = (_passes(f, [x], above, *settings) for f in (lrn, vision._LRNAcrossChannels))
            worst = max(_difference(a, b) for a, b in zip(own, plain, strict=True))
            world.check(f"LRN in {dtype}: to rounding", worst < 32 * 2**-24 + 2 * unit, f"{worst:.3g}")
        if update is not None:
            results = []
            for function in (update, device_update.plain):
                weight, history = (torch.ones(1_000_003, device=world.device) * each for each in (0.3, 0.2))
                rates = torch.tensor([9.0, 0.01], device=world.device)
                above = random(1_000_003, draw=torch.Generator().manual_seed(2))
                function(weight, above, history, rates, 1, 0.9, 5e-4, 0.5, None, None)
                results.append((weight, history))
            worst = max(_difference(a, b) for a, b in zip(*results, strict=True))
            world.check(f"update with gradients in {dtype}: to rounding", worst < 12 * 2**-24, f"{worst:.3g}")


def _has_batch_kernel(world: World) -> bool:
    return world.device.type != "cuda" or transform._fused_batches() is not None


class Apart:
    """A pooling and an LRN as two operations."""

    @staticmethod
    def apply(x, bias, pool, lrn, *windows):
        return lrn.apply(pool.apply(x, bias, *windows, None, True), *LRN_SETTINGS, None)


LRN_SETTINGS = (5, 1e-4, 0.75, 1.0)
"""A CaffeNet's: size, alpha, beta, k."""


def _passes(function, leaves: list[torch.Tensor], gradient: torch.Tensor, *settings: object) -> list[torch.Tensor]:
    leaves = [each.clone(memory_format=torch.preserve_format).requires_grad_() for each in leaves]
    top = function.apply(*leaves, *settings)
    top.backward(gradient)
    return [top.detach(), *(each.grad for each in leaves if each.grad is not None)]


def _difference(one: torch.Tensor, other: torch.Tensor) -> float:
    """Return the largest difference, relative to the largest value."""
    return float((one.double() - other.double()).abs().max() / other.double().abs().max())


def graphs(world: World) -> None:
    """Training by graph gives the bits of training without one; the host does not wait; a resumed run is the same."""
    batch = 4 if world.tiny else 64
    for precision in world.precisions:
        results = []
        for graph in (True, False):
            made = world.solver(precision, batch=batch, graph=graph)
            made.step(8)
            if graph:
                world.check(f"{precision}: iterations are one graph", made._pass.recorded)
                with never_waiting(world.device):
                    for _ in range(3):
                        made._forward_backward()
                        made._update(False)
                        made.iteration += 1
            else:
                made.step(3)
            results.append(bits(made))
        world.check(f"{precision}: training by graph and without have the same bits", results[0] == results[1])


def resume(world: World) -> None:
    """Training that was stopped at iteration 7 of 12 and resumed gives the bits of an uninterrupted one."""
    # writing and reading the snapshots of a CaffeNet takes most of the time
    for precision, net, part in (("bf16", world.net, 1), ("fp32", "mini", 1), ("fp32", "mini", 2)):
        settings = {"precision": precision, "net": net, "batch": 4 if world.tiny else 64, "iter_size": part}
        settings |= {"test_interval": 0, "snapshot_after_train": False}
        with tempfile.TemporaryDirectory() as folder:
            prefix = f"{folder}/net"
            whole = world.solver(max_iter=12, snapshot_prefix=f"{folder}/whole", **settings)
            whole.solve(Signals("none", "none"))
            first = world.solver(max_iter=7, snapshot_prefix=prefix, **{**settings, "snapshot_after_train": True})
            first.solve(Signals("none", "none"))
            second = world.solver(max_iter=12, snapshot_prefix=f"{folder}/second", **settings)
            second.restore(f"{prefix}_iter_7.solverstate", read_state(f"{prefix}_iter_7.solverstate"))
            second.solve(Signals("none", "none"))
            same = whole.iteration == second.iteration == 12 and bits(whole) == bits(second)
        what = f"{net}, {precision}, iter_size {part}"
        world.check(f"{what}: a run resumed at 7 of 12 ends with the same bits", same)


def large(world: World) -> None:
    """Records beyond offsets of 32 bits are exact: a tensor of 60 GiB, whose last records are marked."""
    side = 32 if world.tiny else 256
    count = 100 if world.tiny else (60 << 30) // (side * side * 3)
    pixels = torch.zeros((count, side, side, 3), dtype=torch.uint8, device=world.device)
    marks = torch.randint(0, 256, (4, side, side, 3), dtype=torch.uint8)
    places = [0, count // 3, count - 2, count - 1]
    pixels[places] = marks.to(world.device)
    size, crop = (32, 28) if world.tiny else (256, 227)
    text = f'name: "d" type: "Data" top: "data" transform_param {{ crop_size: {crop} mirror: true mean_value: 7 }} '
    text += f'data_param {{ source: "{world.data}/raw{size}" batch_size: 4 backend: LMDB }}'
    layer = Data(parse_text(text, LayerParameter(), ""), Context(1, world.device, True))
    layer.setup([])
    drawn = torch.tensor([[1, 2, 3, 0], [4, 3, 2, 1], [0, 1, 1, 0]])
    made = layer._batches()._transform.cut(pixels, torch.tensor(places, device=world.device), drawn.to(world.device))
    windows = layer.transformer.cut(marks.numpy(), np.arange(4), drawn.numpy())
    expected = layer.transformer.finish(windows, drawn.numpy())
    same = made.cpu().contiguous().numpy().tobytes() == np.ascontiguousarray(expected).tobytes()
    world.check(f"records up to offset {pixels.numel()} are exact", same)


ENGINE = """
import sys, torch
if sys.argv[1] == "tiny":
    from transfer_caffe.engine.layers.data import Images
    Images._made_by_device = ("cuda", "cpu")
from transfer_caffe.engine.__main__ import main
sys.exit(main(sys.argv[2:]))
"""


def write_solver(world: World, folder: Path, frozen: int = 0, **settings: object) -> None:
    """Write net.prototxt and solver.prototxt of a training into a folder."""
    (folder / "net.prototxt").write_text(to_text(world.net_param(frozen=frozen)))
    given = {"base_lr": 1e-4, "lr_policy": "fixed", "momentum": 0.9, "weight_decay": 0.0005, "random_seed": 1}
    param = SolverParameter(net="net.prototxt", snapshot_prefix="net", snapshot_after_train=False)
    param.MergeFrom(SolverParameter(**{**given, **settings}))
    (folder / "solver.prototxt").write_text(to_text(param))


def start_engine(world: World, folder: Path, log: str, *flags: str, **more: str) -> subprocess.Popen[bytes]:
    """Start `engine train` in a folder; its log goes to the file ``log`` there."""
    gpu = [] if world.tiny else ["--gpu", "0"]
    argv = [sys.executable, "-c", ENGINE, "tiny" if world.tiny else "full"]
    argv += ["train", "--solver", "solver.prototxt", *gpu, *flags]
    with open(folder / log, "wb") as output:
        env = {**processes.environment(), **more, **({"OMP_NUM_THREADS": "1"} if world.tiny else {})}
        return subprocess.Popen(argv, cwd=folder, stdout=output, stderr=output, env=env)


def losses(log: str) -> list[str]:
    """Return the losses that a log shows."""
    return re.findall(r"Iteration \d+.*, loss = (\S+)", log)


def sharing(world: World) -> None:
    """Two engines on one GPU share records and train like one alone; if the holder is killed, they end with code 2."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_solver(world, folder, 7, max_iter=3 if world.tiny else 200, display=1 if world.tiny else 50)
        alone = start_engine(world, folder, "alone.log", "--precision", "bf16")
        code = alone.wait()
        world.check("an engine alone ends with code 0", code == 0, f"code {code}")
        if code:
            show_logs(folder)
        logs = two_networks(world, folder, "turns", {})
        first = (folder / "alone.log").read_text()
        found = [losses(log) for log in (first, *logs)]
        # each engine has measured how to compute its convolutions, and two at a time disturb each other
        chosen = [re.findall(r"(\S+: .* computed by \S+) \(", log) for log in (first, *logs)]
        most = 0.0 if chosen[0] == chosen[1] == chosen[2] else 0.02
        same = all(near(found[0], each, most) for each in found[1:])
        world.check("their losses are those of one alone", bool(found[0]) and same, f"{found}")
        shares = [log for log in logs if "shares the records" in log]
        world.check("one of them uses the records of the other's holder", len(shares) == 1)
        if world.device.type == "cuda":  # on a CPU the memory outlives the holder
            _kill_holder(world, folder, {processes.SHARED_RECORDS: f"2:{folder}/killed"})


def near(one: list[str], other: list[str], most: float) -> bool:
    """Return whether two lists of losses differ by at most a fraction ``most``."""
    pairs = zip(map(float, one), map(float, other), strict=False)
    return len(one) == len(other) and all(abs(a - b) <= most * abs(b) for a, b in pairs)


def two_networks(world: World, folder: Path, word: str, environment: dict[str, str]) -> list[str]:
    """Train the folder's net twice at the same time with shared records, measure both, and return their logs."""
    share = {processes.SHARED_RECORDS: f"2:{folder}/records", **environment}
    both = [start_engine(world, folder, f"{i}.log", "--precision", "bf16", **share) for i in range(2)]
    codes = [each.wait() for each in both]
    logs = [(folder / f"{i}.log").read_text() for i in range(2)]
    world.check(f"two networks by {word} end with code 0", codes == [0, 0], f"codes {codes}")
    if codes != [0, 0]:
        show_logs(folder)
    speeds = [re.findall(r"\((\S+) iter/s", log) for log in logs]
    if all(speeds):
        total = sum(float(each[-1]) for each in speeds) * world.batch
        world.measure(f"two networks, n = 7, bf16, by {word}, together", total, "images/s")
    return logs


def _kill_holder(world: World, folder: Path, share: dict[str, str]) -> None:
    write_solver(world, folder, max_iter=100000, display=10)
    both = [start_engine(world, folder, f"k{i}.log", "--precision", "bf16", **share) for i in range(2)]
    end = time.monotonic() + 30  # an engine imports PyTorch, and then its holder does
    holder = None
    while time.monotonic() < end and (holder is None or not all(losses(_text(folder, i)) for i in range(2))):
        time.sleep(0.2)
        pids = re.findall(r"kept by process (\d+)", _text(folder, 0) + _text(folder, 1))
        holder = int(pids[0]) if pids else None
    world.check("two networks that share records have started", holder is not None)
    if holder is not None:
        os.kill(holder, signal.SIGKILL)
    codes = []
    for each in both:
        try:
            codes.append(each.wait(10))
        except subprocess.TimeoutExpired:
            each.kill()
            codes.append(each.wait())
    world.check("engines end with code 2 when the holder is killed", codes == [2, 2], f"codes {codes}")
    if codes != [2, 2]:
        show_logs(folder)


def show_logs(folder: Path) -> None:
    """Print the ends of a folder's logs, those of holders too, before the folder is deleted."""
    for path in sorted(folder.rglob("*.log")):
        print(f"-- {path.relative_to(folder)}\n{path.read_text(errors='replace')[-2000:]}", flush=True)


def _text(folder: Path, number: int) -> str:
    return (folder / f"k{number}.log").read_text()
