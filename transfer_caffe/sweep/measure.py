"""Measure how fast this machine trains a recipe's networks, with some iterations on synthetic images.

    rate = measure(select(load_recipe("demo")), Engine.find("embedded"))

The engine is run as by the driver, with the recipe's architecture, batch size, threads and solver, and with 0, 3, 5 and
7 frozen layers. The seconds are read from its log. No data is needed: the images are a small database of noise, since
constant images are computed faster (a GPU then needs less power, and keeps a higher clock). The measurement does not
include the time to read a database that does not fit in memory, nor the slowdown of several networks trained at the
same time.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from transfer_caffe.experiment.recipe import Network
from transfer_caffe.experiment.treatment import Treatment
from transfer_caffe.formats.database_writer import DatabaseWriter
from transfer_caffe.formats.datum import raw_datum
from transfer_caffe.formats.log import LogParser
from transfer_caffe.formats.proto import to_text
from transfer_caffe.formats.proto.caffe_pb2 import TEST, DataParameter, NetParameter, SolverParameter
from transfer_caffe.generate import compose
from transfer_caffe.run.engines import Engine
from transfer_caffe.sweep.cost import Rate
from transfer_caffe.sweep.display import duration
from transfer_caffe.sweep.selection import Selection
from transfer_caffe.utils import processes
from transfer_caffe.utils.errors import UserError
from transfer_caffe.utils.files import write_text

PLACES = (0, 3 / 7, 5 / 7, 1)
"""How many of the stages that can be frozen are frozen when it is measured: 0, 3, 5 and 7 of a CaffeNet's 7."""
ENOUGH = 4.0
"""Seconds of iterations after which the next number of frozen layers is measured, if there were at least `LEAST`."""
LEAST = 3
NOISE = "noise_lmdb"
RECORDS = 128
"""Number of images of noise; a mini-batch may hold each of them several times, cropped and mirrored differently."""
DISPLAY = 0.2
"""Minimum seconds between two lines of the log: shorter times are too inaccurate in the log."""


def measure(selection: Selection, engine: Engine) -> Rate:
    """Measure the rate, and print the results to standard error. Raise UserError if the engine fails."""
    recipe = selection.recipe
    network = selection.networks[0]
    began = time.monotonic()
    known: dict[int, float] = {}
    for frozen in dict.fromkeys(round(place * (recipe.stages - 1)) for place in PLACES):
        with tempfile.TemporaryDirectory() as folder:
            every = 1
            while True:
                seconds = _seconds(network, frozen, engine, Path(folder), every)
                if seconds * every >= DISPLAY or every >= 1000:
                    break
                every = max(2 * every, round(DISPLAY / max(seconds, 1e-4)) + 1)
            known[frozen] = seconds
        print(f"measured: {known[frozen]:.4g} s per iteration with {frozen} frozen layers", file=sys.stderr, flush=True)
    took = duration(time.monotonic() - began)
    print(f"the measurement took {took}", file=sys.stderr, flush=True)
    return Rate.of_some(known, recipe, f"measured here with the engine {engine.name}, {known[0]:.3g} s per iteration")


def _seconds(network: Network, frozen: int, engine: Engine, folder: Path, every: int) -> float:
    """Return the median seconds per iteration; the engine logs one line per ``every`` iterations."""
    solver = SolverParameter(
        base_lr=0, lr_policy="fixed", display=every,
        type=network.solver.get("type", "SGD"), momentum=network.solver.get("momentum", 0),
        solver_mode=network.solver.get("solver_mode", "CPU"),
    )  # fmt: skip
    flags = engine.computing_in(network.recipe.precision, network.recipe.deterministic)
    enough = ENOUGH if every > 1 else DISPLAY
    net, threads = from_noise(synthetic(network, frozen), folder), network.recipe.threads
    try:
        return statistics.median(iterations(net, solver, engine, folder, threads, enough, flags))
    except UserError as error:
        raise UserError(f"--measure: {error}") from None


def iterations(
    net: NetParameter, solver: SolverParameter, engine: Engine, folder: Path, threads: int | None, enough: float,
    flags: Sequence[str] = (),
) -> list[float]:  # fmt: skip
    """Train ``net`` in an empty folder and return the seconds per iteration between each two lines of the log.

    The engine is ended after ``enough`` seconds of iterations, if there were `LEAST` lines. Raise UserError if it
    fails.
    """
    write_text(folder / "net.prototxt", to_text(net))
    param = SolverParameter(net="net.prototxt", max_iter=10**9, random_seed=1, snapshot_after_train=False)
    param.MergeFrom(solver)
    write_text(folder / "solver.prototxt", to_text(param))
    parser = LogParser()
    with open(folder / "log", "wb") as output:
        argv = [*engine.argv, "train", "--solver", "solver.prototxt", *flags]
        process = processes.start(argv, output, folder, engine.environment(threads))
    try:
        with open(folder / "log", encoding="utf-8", errors="replace") as log:
            while process.poll() is None:
                time.sleep(0.05)
                parser.feed(log.read())
                intervals = parser.log.display_seconds[1:]  # the first one includes one-time work
                if len(intervals) >= LEAST and param.display * sum(intervals) >= enough:
                    return intervals
            parser.feed(log.read())
    finally:
        process.kill()
        process.wait()
    why = parser.log.errors[-1] if parser.log.errors else f"exit code {process.returncode}"
    raise UserError(f"the engine {engine.name} failed: {why}")


def synthetic(network: Network, frozen: int) -> NetParameter:
    """Return the training net of a network's recipe with ``frozen`` frozen layers, and gray images as its data."""
    recipe = replace(network.recipe, outputs=network.recipe.outputs or 1000, test_images=1)
    treatment = Treatment("R", frozen, "A", False) if frozen else Treatment("", 0, "A", False)
    composed = compose(Network(recipe, "random0", treatment, 0), "data", "runs").net
    net = NetParameter(name=composed.name)
    for layer in composed.layer:
        if any(rule.phase == TEST for rule in layer.include if rule.HasField("phase")):
            continue
        if layer.type != "Data":
            net.layer.add().CopyFrom(layer)
            continue
        made = net.layer.add(name=layer.name, type="DummyData", top=layer.top)
        crop, batch = layer.transform_param.crop_size, layer.data_param.batch_size
        channels = 1 if layer.transform_param.force_gray else 3
        made.dummy_data_param.shape.add(dim=[batch, channels, crop, crop])
        made.dummy_data_param.shape.add(dim=[batch])
        made.dummy_data_param.data_filler.add(type="constant", value=1)
        made.dummy_data_param.data_filler.add(type="constant", value=0)
    return net


def from_noise(net: NetParameter, folder: Path) -> NetParameter:
    """Let a net of `synthetic` read, crop and mirror images of noise from a database, which is written to ``folder``.

    The database's path is relative to that folder. Its images are larger than the crop by an eighth, as in the paper.
    """
    draw = np.random.default_rng(0)
    found = NetParameter()
    found.CopyFrom(net)
    for layer in found.layer:
        if layer.type != "DummyData":
            continue
        batch, channels, crop, _ = layer.dummy_data_param.shape[0].dim
        side = crop * 256 // 227
        if not (folder / NOISE).exists():
            with DatabaseWriter(folder / NOISE) as writer:
                for number in range(RECORDS):
                    image = draw.integers(0, 256, (side, side, channels), np.uint8)
                    writer.put(f"{number:08d}".encode(), raw_datum(image, 0))
        layer.type = "Data"
        layer.ClearField("dummy_data_param")
        layer.transform_param.crop_size, layer.transform_param.mirror = crop, True
        layer.transform_param.mean_value.append(128)
        layer.data_param.source, layer.data_param.batch_size = NOISE, batch
        layer.data_param.backend = DataParameter.LMDB
    return found
