"""What the steps of the GPU check share: where they run, their data, solvers and clocks, and how they report.

A step gets a `World`. It calls ``check`` for what must hold and ``measure`` for numbers; both are written at once to a
file of JSON lines, so that nothing is lost if the step is ended by its time limit. With ``tiny`` a step runs on the
CPU in small sizes, with stand-ins for the GPU, which shows that the step itself works.
"""

from __future__ import annotations

import contextlib
import gc
import json
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from benchmarks import speed
from support.plain_pool import PlainPool
from support.tape import Tape

from transfer_caffe.engine.__main__ import _use
from transfer_caffe.engine.batches import resident
from transfer_caffe.engine.iteration import ways
from transfer_caffe.engine.iteration.graph import Pass
from transfer_caffe.engine.layers import vision
from transfer_caffe.engine.layers.data import Images
from transfer_caffe.engine.net import Net
from transfer_caffe.engine.precision import use_precision
from transfer_caffe.engine.solver.device_update import DeviceUpdate
from transfer_caffe.engine.solver.solver import Solver
from transfer_caffe.formats.proto.caffe_pb2 import NetParameter, SolverParameter

PRECISIONS = ("fp32", "tf32", "bf16")
FROZEN = (0, 3, 5, 7)


@dataclass
class World:
    """The device, the folder with the databases, the file of results, and whether sizes are tiny."""

    device: torch.device
    data: Path
    results: Path
    step: str
    tiny: bool
    earlier: dict[str, float] = field(default_factory=dict)
    """The measures of earlier steps, by name."""
    ways: dict[object, dict[str, str]] = field(default_factory=dict)
    """How the convolutions of each kind of solver are computed, as the first one of that kind has measured."""

    @classmethod
    def create(cls, step: str, data: Path, results: Path, tiny: bool) -> World:
        """Enter the device: a stream of its own on the GPU, as in the engine's commands; with ``tiny`` the CPU."""
        earlier = {}
        if results.exists():
            found = (json.loads(line) for line in results.read_text().splitlines())
            earlier = {each["measure"]: each["value"] for each in found if "measure" in each}
        device = torch.device("cpu") if tiny else _use(torch.device("cuda", 0))
        if tiny:
            torch.set_num_threads(1)
            Images._made_by_device = DeviceUpdate.devices = Net.fused_devices = ("cuda", "cpu")
            vision.fused_pool = lambda: PlainPool
        return cls(device, data, results, step, tiny, earlier)

    def check(self, what: str, holds: bool, detail: str = "") -> None:
        """Report something that must hold."""
        self._report({"check": what, "holds": bool(holds), "detail": detail})

    def measure(self, what: str, value: float, unit: str) -> None:
        """Report a number."""
        self._report({"measure": what, "value": float(value), "unit": unit})

    def _report(self, record: dict[str, Any]) -> None:
        with open(self.results, "a", encoding="utf-8") as file:
            file.write(json.dumps({"step": self.step, **record}) + "\n")
        print(" ".join(str(each) for each in record.values()), flush=True)

    @property
    def net(self) -> str:
        """The net that most steps use."""
        return "mini" if self.tiny else "caffenet"

    @property
    def batch(self) -> int:
        """The mini-batch size."""
        return 4 if self.tiny else 256

    @property
    def precisions(self) -> tuple[str, ...]:
        """The precisions that the device supports."""
        return ("fp32", "bf16") if self.tiny else PRECISIONS

    def wait(self) -> None:
        """Wait for the device."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def net_param(self, net: str = "", batch: int = 0, frozen: int = 0, data: str = "raw") -> NetParameter:
        """Return a training net that reads a database of the data folder."""
        return speed.net_of(speed.Case(net or self.net, batch or self.batch, frozen, data), self.data, True)

    def solver(
        self, precision: str = "fp32", net: str = "", batch: int = 0, frozen: int = 0, data: str = "raw",
        deterministic: bool = True, graph: bool = True, **settings: Any,
    ) -> Solver:  # fmt: skip
        """Build a solver that trains as `engine train` does; without ``graph``, without a CUDA graph."""
        gc.collect()  # an earlier solver and its memory
        given = {"base_lr": 1e-4, "lr_policy": "fixed", "momentum": 0.9, "weight_decay": 0.0005, "random_seed": 1}
        param = SolverParameter(**{**given, "snapshot_prefix": "net", **settings})
        param.net_param.CopyFrom(self.net_param(net, batch, frozen, data))
        dtype = use_precision(precision, deterministic, self.device)
        # two measurements may choose differently, and what follows compares bits; and each takes time
        kind = precision, net, batch, deterministic
        known = self.ways.get(kind)
        measure = ways.choose if known is None else lambda _: known
        with mock.patch.object(ways, "choose", measure):
            made = Solver(param, self.device, dtype=dtype, own_process=not self.tiny)
        self.ways[kind] = made._ways
        if self.tiny:
            made._pass._direct = None
        if self.tiny and graph:
            update = made._update_on_device if made.param.iter_size == 1 else None
            made._pass = Pass(made.net, lambda: Tape(made.net), update=update)
        if not graph:
            made._pass._make = None
        return made

    def iteration_ms(self, made: Solver) -> float:
        """Return the median milliseconds of a training iteration, after the warm-up and the recording of the graph."""
        made.step(5)
        each, count = [], 1
        while not each or (len(each) < 5 and not self.tiny):
            self.wait()
            since = time.perf_counter()
            made.step(count)
            self.wait()
            seconds = (time.perf_counter() - since) / count
            if not each and seconds * count < 0.1 and not self.tiny:
                count = max(2 * count, round(0.1 / max(seconds, 1e-5)) + 1)  # too short to be measured
                continue
            each.append(1000 * seconds)
        return statistics.median(each)

    def milliseconds(self, function: Callable[[], object]) -> float:
        """Return the median milliseconds of a function on the device, launched many times in a row."""
        for _ in range(1 if self.tiny else 3):
            function()
        self.wait()
        since = time.perf_counter()
        function()
        self.wait()
        # about 20 ms each time, or some algorithms would take all of a step's time
        runs = 1 if self.tiny else min(max(round(0.02 / (time.perf_counter() - since)), 1), 20)
        each = []
        for _ in range(1 if self.tiny else 3):
            if self.device.type == "cuda":
                start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
                start.record(torch.cuda.current_stream())
                for _ in range(runs):
                    function()
                end.record(torch.cuda.current_stream())
                end.synchronize()
                each.append(start.elapsed_time(end) / runs)
            else:
                since = time.perf_counter()
                for _ in range(runs):
                    function()
                each.append(1000 * (time.perf_counter() - since) / runs)
        return statistics.median(each)


@contextlib.contextmanager
def records_in(place: str, tiny: bool) -> Iterator[None]:
    """Keep records "device": where they fit; as if the device had no room, "host": in the host's memory, or "both"."""
    known = resident.device_memory
    if place == "host":
        resident.device_memory = lambda device: (0, known(device)[1])
    if place == "both":  # room for half of the records
        half = 10 * 32 * 32 * 3 if tiny else 500 * 256 * 256 * 3
        resident.device_memory = lambda device: (resident.reserve(known(device)[1]) + half, known(device)[1])
    try:
        yield
    finally:
        resident.device_memory = known


def bits(made: Solver) -> list[bytes]:
    """Return the bytes of all weights and of the history."""
    tensors = [blob.data.detach() for blob in made.net.learnable] + made.history
    return [np.ascontiguousarray(each.cpu().numpy()).tobytes() for each in tensors]
