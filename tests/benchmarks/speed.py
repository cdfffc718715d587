"""How fast training is: the embedded engine beside real Caffe and beside plain PyTorch, in one run, into the document.

    make bench-speed                # 25 minutes on two cores
    cd tests && PYTHONPATH=.:.. ../.venv/bin/python -m benchmarks.speed --only 'mini|small' --rounds 5
    ... --gpu 0 --precision fp32,tf32,bf16          # on a GPU: without real Caffe

In each round each program trains for some seconds, one after the other; what counts are ratios within a round, and of
those the median. Times are those between two lines of an engine's log. Numbers go to docs/benchmarks.json, too.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
import torch
from benchmarks.data import DOCUMENT, processor, say, table

from transfer_caffe import __version__
from transfer_caffe.data_prep import photos
from transfer_caffe.engine import glog
from transfer_caffe.engine.iteration import threads
from transfer_caffe.engine.net import Net
from transfer_caffe.engine.precision import PRECISIONS
from transfer_caffe.experiment.read import load_recipe
from transfer_caffe.formats.database_writer import DatabaseWriter
from transfer_caffe.formats.datum import raw_datum
from transfer_caffe.formats.proto import array_to_blob, write_binary
from transfer_caffe.formats.proto.caffe_pb2 import TRAIN, DataParameter, Datum, NetParameter, NetState, SolverParameter
from transfer_caffe.real_caffe import programs as real_caffe
from transfer_caffe.run.engines import Engine
from transfer_caffe.sweep.measure import iterations, synthetic
from transfer_caffe.utils.errors import UserError, command
from transfer_caffe.utils.files import write_json, write_text
from transfer_caffe.utils.machine import cores
from transfer_caffe.utils.processes import environment

BEGIN, END = "<!-- speed: from here on made by `make bench-speed` -->", "<!-- speed: end -->"
TESTS = Path(__file__).resolve().parent.parent


@dataclass
class Case:
    """A net with a batch size, so many layers frozen, and images: made up (""), or of a database of "raw" or "jpeg".

    ``busy``: beside a busy loop for each core.
    """

    net: str
    batch: int
    frozen: int = 0
    data: str = ""
    busy: bool = False
    results: dict[str, list[list[float]]] = field(default_factory=dict)
    """By program, for each round: the seconds of iterations."""

    @property
    def name(self) -> str:
        """As the table has it."""
        what = f"{self.net}, batch {self.batch}"
        if self.frozen:
            what += f", n = {self.frozen} frozen"
        what += {"": "", "raw": ", from an LMDB", "jpeg": ", from an LMDB of JPEGs"}[self.data]
        return what + ", beside busy loops" * self.busy

    def median(self, program: str) -> float:
        """The median over rounds of each round's median seconds."""
        return statistics.median(map(statistics.median, self.results[program]))

    def ratio(self, program: str, other: str) -> float:
        """Of the seconds of two programs: the median of the rounds' ratios."""
        pairs = zip(self.results[program], self.results[other], strict=True)
        return statistics.median(statistics.median(one) / statistics.median(two) for one, two in pairs)


CASES = [
    *(Case("small", 64, frozen) for frozen in (0, 3, 5, 7)),
    Case("mini", 64),
    Case("mini", 64, data="raw"),
    *(Case("caffenet", 64, frozen) for frozen in (0, 3, 5, 7)),
    Case("caffenet", 64, data="raw"),
    Case("caffenet", 64, data="jpeg"),
    *(Case("caffenet", 256, frozen) for frozen in (0, 3, 5, 7)),
    *(Case(net, 64, busy=True) for net in ("small", "mini", "caffenet")),
]
"""small: conv 16-32-48-48-32 on 28 x 28, mini in somewhat larger. The JPEGs are decoded anew for each batch."""


def net_of(case: Case, folder: Path) -> NetParameter:
    """The training net of a case."""
    recipe = load_recipe("paper" if case.net == "caffenet" else "demo")
    net = synthetic(next(iter(recipe.networks())), case.frozen)
    filters = iter((16, 32, 48, 48, 32))
    for layer in net.layer:
        if layer.type == "DummyData":
            for shape in layer.dummy_data_param.shape:
                shape.dim[0] = case.batch
            if case.data:
                crop = layer.dummy_data_param.shape[0].dim[2]
                layer.ClearField("dummy_data_param")
                layer.type = "Data"
                layer.transform_param.crop_size, layer.transform_param.mirror = crop, True
                size = 256 if case.net == "caffenet" else 32
                layer.transform_param.mean_file = str(folder / f"mean{size}.binaryproto")
                layer.data_param.source = str(folder / f"{case.data}{size}")
                layer.data_param.batch_size, layer.data_param.backend = case.batch, DataParameter.LMDB
        if layer.type == "Convolution" and case.net == "small":
            layer.convolution_param.num_output = next(filters)
            if layer.name == "conv1":
                layer.convolution_param.ClearField("stride")
                layer.convolution_param.pad[:] = [2]
        if layer.type == "InnerProduct" and layer.name == "fc8":
            layer.inner_product_param.num_output = 1000
    return net


def make_data(folder: Path) -> None:
    """Databases of windows of the bundled photographs: 1,000 raw ones of each size, 3,500 JPEGs of 256 x 256."""
    photographs = [photos.read_photograph(path) for path in photos.photograph_paths().values()]
    draw = np.random.default_rng(0)
    for name, size, count in (("raw32", 32, 1000), ("raw256", 256, 1000), ("jpeg256", 256, 3500)):
        with DatabaseWriter(folder / name) as writer:
            for number in range(count):
                photo = photographs[number % len(photographs)]
                side = int(min(photo.shape[:2]) * draw.uniform(0.4, 1))
                top, left = (int(draw.integers(0, room + 1)) for room in np.subtract(photo.shape[:2], side))
                window = cv2.resize(photo[top : top + side, left : left + side], (size, size))
                value = raw_datum(window, number % 1000)
                if name.startswith("jpeg"):
                    encoded = cv2.imencode(".jpg", window)[1].tobytes()
                    value = Datum(encoded=True, data=encoded, label=number % 1000).SerializeToString()
                writer.put(f"{number:08d}_{number}".encode(), value)
        mean = np.full((1, 3, size, size), 110, np.float32)
        write_binary(folder / f"mean{size}.binaryproto", array_to_blob(mean))


def programs(options: argparse.Namespace) -> list[str]:
    """What is compared, each by its name in the table."""
    if options.gpu:
        return ["PyTorch as usual", *(f"embedded, {precision}" for precision in options.precision.split(","))]
    caffe = ["real Caffe", "real Caffe, one thread"] if real_caffe.program() else []
    return [*caffe, "PyTorch as usual", "embedded, one thread", "embedded"]


def run(case: Case, program: str, every: int, folder: Path, options: argparse.Namespace) -> list[float]:
    """Train for some seconds; seconds an iteration, of ``every`` each."""
    if program == "PyTorch as usual":
        argv = [sys.executable, "-m", "benchmarks.naive", f"--net={case.net}", f"--batch={case.batch}"]
        argv += [f"--frozen={case.frozen}", f"--seconds={options.seconds}", f"--every={every}", f"--gpu={options.gpu}"]
        if case.data:
            size = 256 if case.net == "caffenet" else 32
            argv += [f"--data={folder / case.data}{size}", f"--mean={folder}/mean{size}.binaryproto"]
        env = {**environment(), "PYTHONPATH": f"{TESTS}{os.pathsep}{TESTS.parent}"}
        with busy_loops(cores() * case.busy):
            done = subprocess.run(argv, env=env, capture_output=True, text=True, check=False)
        if done.returncode:
            raise UserError(f"{' '.join(argv)}: {done.stderr[-500:]}")
        return [float(line) for line in done.stdout.split()]
    engine = Engine.find("caffe" if program.startswith("real Caffe") else "embedded")
    flags = ["--gpu", options.gpu, "--precision", program.split(", ")[1]] if options.gpu else []
    solver = SolverParameter(base_lr=1e-6, lr_policy="fixed", momentum=0.9, weight_decay=0.0005, display=every)
    if not options.gpu:
        solver.solver_mode = SolverParameter.CPU
    with tempfile.TemporaryDirectory() as where:
        count = 1 if program.endswith("one thread") else None
        with busy_loops(cores() * case.busy):
            return iterations(net_of(case, folder), solver, engine, Path(where), count, options.seconds, flags)


@contextlib.contextmanager
def busy_loops(count: int) -> Iterator[None]:
    """Keep so many cores busy with something else."""
    loops = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()


def work(case: Case, folder: Path) -> tuple[float, float]:
    """GFLOP of products in an iteration, and GB: each blob written and read once each way, weights and their update."""
    case = Case(case.net, case.batch, case.frozen)
    info, glog.info = glog.info, lambda *_: None
    try:
        net = Net(net_of(case, folder), NetState(phase=TRAIN), 1, torch.device("cpu"))
    finally:
        glog.info = info
    values = 0.0
    learning = False
    for layer in net.layers:
        below, tops = learning, sum(float(np.prod(net.shapes[top])) for top in layer.top)
        learned = any(blob.learned for blob in layer.blobs)
        learning |= learned
        if not layer.in_place:  # else it can be done on the way
            values += 2 * tops * (1 + learning)
        if layer.blobs:
            weights = layer.blobs[0].data
            values += weights.numel() * (1 + learned * 6 + below)
    return threads.work(net) / 1e9, values * 4 / 1e9


def rates(options: argparse.Namespace) -> dict[str, float]:
    """GFLOP/s of large products and GB/s of large copies, the best of some."""
    device = torch.device("cuda", int(options.gpu)) if options.gpu else torch.device("cpu")

    def best(work_of: float, function) -> float:
        seconds = []
        for _ in range(8):
            if device.type == "cuda":
                torch.cuda.synchronize()
            start = time.perf_counter()
            function()
            if device.type == "cuda":
                torch.cuda.synchronize()
            seconds.append(time.perf_counter() - start)
        return work_of / min(seconds) / 1e9

    side = 8192 if options.gpu else 1536
    one = torch.randn(side, side, device=device)
    big, other = torch.zeros(2, 1 << 26, device=device)
    found = {"GB/s": best(8 * big.numel(), lambda: other.copy_(big))}
    if not options.gpu:
        images = torch.randn(16, 256, 26, 26).contiguous(memory_format=torch.channels_last)
        filters = torch.randn(256, 256, 3, 3)
        convolution = best(2 * 9 * 256 * 256 * 16 * 24 * 24, lambda: torch.conv2d(images, filters))
        return found | {"GFLOP/s": max(best(2 * side**3, lambda: one @ one), convolution)}
    for precision in options.precision.split(","):
        torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
        factor = one.bfloat16() if precision == "bf16" else one
        found[f"GFLOP/s, {precision}"] = best(2 * side**3, lambda factor=factor: factor @ factor)
    return found


def rows(cases: list[Case], names: list[str], found: dict[str, float], folder: Path) -> list[list[str]]:
    """A line of the table for each case."""
    made = []
    for case in cases:
        gflop, gigabytes = work(case, folder)
        row = [case.name]
        for name in names:
            if name not in case.results:
                row.append("")
                continue
            every = [1000 * seconds for one in case.results[name] for seconds in one]
            row.append(f"{1000 * case.median(name):.4g} ({min(every):.4g} to {max(every):.4g})")
        ours = names[-1]
        row += [f"{case.ratio(one, other):.2f}" if other in case.results else "" for one, other in compared(names)]
        product = found.get("GFLOP/s") or found["GFLOP/s" + ours.removeprefix("embedded")]
        floor = gflop / product + gigabytes / found["GB/s"]
        row += [f"{1000 * floor:.4g}", f"{case.median(ours) / floor:.2f}"]
        made.append(row)
    return made


def compared(names: list[str]) -> list[tuple[str, str]]:
    """Which of ours is compared with which other program: one thread with one thread."""
    ours = {name.endswith("one thread"): name for name in names if name.startswith("embedded")}
    return [(ours[name.endswith("one thread")], name) for name in names if not name.startswith("embedded")]


def end_to_end(cases: list[Case], ours: str) -> list[str]:
    """How much longer an iteration takes when its images come from a database."""
    alone = {(case.net, case.batch): case for case in cases if not (case.data or case.frozen or case.busy)}
    lines = []
    for case in cases:
        other = alone.get((case.net, case.batch))
        if case.data and other:
            pairs = zip(case.results[ours], other.results[ours], strict=True)
            ratio = statistics.median(statistics.median(one) / statistics.median(two) for one, two in pairs)
            lines.append(f"- {case.name}: {ratio:.3f} times an iteration without")
    return lines


def chosen(options: argparse.Namespace) -> list[Case]:
    """The cases to measure. UserError for options that cannot be."""
    try:
        cases = [case for case in CASES if re.search(options.only, case.name)]
    except re.error as error:
        raise UserError(f"--only {options.only}: no regular expression: {error}") from None
    if not cases:
        raise UserError(f"--only {options.only}: finds none of {'; '.join(case.name for case in CASES)}")
    if options.rounds < 1 or not options.seconds > 0:
        raise UserError("--rounds must be at least 1, and --seconds more than 0")
    if options.gpu and not (options.gpu.isdecimal() and int(options.gpu) < torch.cuda.device_count()):
        raise UserError(f"--gpu {options.gpu}: this machine has {torch.cuda.device_count()} usable GPUs")
    if unknown := set(options.precision.split(",")) - set(PRECISIONS):
        raise UserError(f"--precision: {sorted(unknown)[0]!r} is not one of {', '.join(PRECISIONS)}")
    return cases


@command
def main(argv: list[str] | None = None) -> int | None:
    """Measure, and write the document."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="cases whose name this regular expression finds")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=6, help="of iterations, for each program in each round")
    parser.add_argument("--gpu", default="", help="measure on this GPU")
    parser.add_argument("--precision", default="fp32,tf32,bf16", help="with --gpu")
    parser.add_argument("--no-write", action="store_true", help="print, and leave the document as it is")
    options = parser.parse_args(argv)
    cases = chosen(options)
    names = programs(options)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        say("making databases")
        make_data(folder)
        found = rates(options)
        for number in range(options.rounds):
            for case in cases:
                if number and case.batch > 64:
                    continue  # minutes each: once is enough
                told = []
                for program in names:
                    if program.endswith("one thread") and case.batch > 64:
                        continue  # half a minute an iteration
                    # short iterations are told by tens, and on a GPU by hundreds
                    every = (200 if options.gpu else 20) if case.net != "caffenet" else 50 if options.gpu else 1
                    seconds = run(case, program, every, folder, options)
                    case.results.setdefault(program, []).append(seconds)
                    told.append(f"{program} {1000 * statistics.median(seconds):.4g} ms")
                say(f"round {number + 1}: {case.name}: {', '.join(told)}")
        machine = torch.cuda.get_device_name(int(options.gpu)) if options.gpu else f"{cores()} cores ({processor()})"
        head = ["ms an iteration (from to)", *names]
        head += [f"ours / {other}" for _, other in compared(names)]
        text = [
            f"Version {__version__}, PyTorch {torch.__version__}, Python {platform.python_version()}, {machine}, "
            f"{time.strftime('%Y-%m-%d')}; medians of {options.rounds} rounds (of batch 256 one). Measured rates: "
            + ", ".join(f"{value:.4g} {unit}" for unit, value in sorted(found.items()))
            + ".",
            table([*head, "floor", "ours / floor"], rows(cases, names, found, folder)),
        ]
        if lines := end_to_end(cases, names[-1]):
            text += ["Iterations with images from a database, beside those with images that are there already:"]
            text += ["\n".join(lines)]
    if options.no_write:
        print("\n\n".join(text))
        return
    before, rest = DOCUMENT.read_text(encoding="utf-8").split(BEGIN)
    write_text(DOCUMENT, "\n\n".join([before + BEGIN, *text, END]) + rest.split(END)[1])
    raw = [{"case": case.name, "seconds": case.results} for case in cases]
    write_json(DOCUMENT.with_suffix(".json"), {"machine": machine, "rates": found, "cases": raw})
    print(f"wrote {DOCUMENT} and {DOCUMENT.with_suffix('.json')}")


if __name__ == "__main__":
    sys.exit(main())
