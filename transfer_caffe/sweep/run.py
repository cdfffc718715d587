"""`sweep run` on one machine: the networks of a recipe, several at a time, each by a driver of its own.

    python -m transfer_caffe.sweep run --recipe demo --jobs 2
    python -m transfer_caffe.sweep run --recipe paper --gpu 0,1,3

A network that fails stops no other; those that need it are not started. Ctrl-C (or SIGTERM) lets every network write a
snapshot; the next run goes on from there. Once more Ctrl-C ends at once. With --report DIR the report is written early
and again as networks finish.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from transfer_caffe.data import make_data, require_lists
from transfer_caffe.experiment.read import load_recipe
from transfer_caffe.experiment.recipe import Network, Recipe
from transfer_caffe.formats.log import LogParser
from transfer_caffe.results.table import write_results
from transfer_caffe.run.engines import Engine
from transfer_caffe.run.folder import LOG, arguments_of, read_done
from transfer_caffe.run.watch import remarks_of
from transfer_caffe.sweep import mps
from transfer_caffe.sweep.display import Display, Running, State, duration, open_display
from transfer_caffe.sweep.estimate import Estimate
from transfer_caffe.sweep.progress import look
from transfer_caffe.sweep.reports import Reports
from transfer_caffe.sweep.selection import Selection, add_recipe_arguments, selected
from transfer_caffe.sweep.sizes import Sizes
from transfer_caffe.sweep.slots import CpuSlots, Gpu, GpuSlots, Slot, Slots, choose, find_gpus
from transfer_caffe.sweep.slurm import submit
from transfer_caffe.utils import processes
from transfer_caffe.utils.errors import ArgumentParser, UserError
from transfer_caffe.utils.locks import lock
from transfer_caffe.utils.machine import cores

SUMMARY = "make the data, train the networks, write results.csv"
EXAMPLES = """examples:
  python -m transfer_caffe.sweep run --recipe demo --jobs 2 --report report
  python -m transfer_caffe.sweep run --recipe paper --gpu all --only 'A*B+' --split random0
  python -m transfer_caffe.sweep run --recipe paper --gpu 0,1 --jobs 3
  python -m transfer_caffe.sweep run --recipe demo_caffe --engine caffe
  python -m transfer_caffe.sweep run --recipe paper --slurm --partition gpu --time 24:00:00
"""

SECONDS_BETWEEN_ESTIMATES = 5.0


def add_arguments(parser: ArgumentParser) -> None:
    """The options of `sweep run`."""
    add_recipe_arguments(parser)
    parser.add_argument(
        "--engine",
        default="embedded",
        help="embedded (default), caffe (CAFFE=PROGRAM, the PATH's, or what `make caffe` made), or a program like it",
    )
    parser.add_argument(
        "--gpu", metavar="N", help="which GPUs: 0, or 0,1,3, or all (default: all, if the recipe's solver_mode is GPU)"
    )
    parser.add_argument(
        "--jobs",
        type=int,
        metavar="N",
        help="networks at a time (default: cores / the recipe's threads); with GPUs: on each (1), sharing their data",
    )
    parser.add_argument(
        "--keep-going", action=argparse.BooleanOptionalAction, default=True,
        help="start others when a network has failed (default); without, end when those in training have",
    )  # fmt: skip
    parser.add_argument(
        "--report", type=Path, metavar="DIR",
        help="write DIR/index.html and its figures, early and again as networks finish (default: no report)",
    )  # fmt: skip
    submit.add_slurm_arguments(parser)


def main(args: argparse.Namespace) -> int:
    """Make the data, train the networks, write the results."""
    if args.jobs is not None and args.jobs < 1:
        raise UserError(f"--jobs {args.jobs}: 1 or more is needed")
    recipe = load_recipe(args.recipe)
    selection = selected(recipe, args)
    if words := selection.words():
        _say(words)
    if args.slurm:
        return submit.main(selection, args)
    submit.refuse_without_slurm(args)
    processes.interrupt_on_signals()
    engine = Engine.find(args.engine)  # an error here would be every network's
    options = ["--recipe", args.recipe, "--engine", args.engine, "--runs", str(args.runs), "--data", str(args.data)]
    if args.gpu is not None:
        options += ["--gpu", "0"]  # of those that the driver sees: its slot's alone
    began = time.monotonic()
    slots = find_slots(recipe, args.gpu, args.jobs)
    require_lists(recipe, args.data)
    with lock(args.runs / recipe.name / ".sweep.lock", f"the sweep of {recipe.name}", _say):
        make_data(selection.narrowed(), args.data, _say, copies=not engine.reads_views)
        reports = None
        with _several_on_a_gpu(slots), open_display() as display:
            if args.report is not None:
                folder, results = args.runs / recipe.name, functools.partial(write_results, recipe, args.runs)
                reports = Reports(selection.networks, folder, args.report, results, display.event)
            sweep = Sweep(selection, args.runs, args.data, options, slots, display, args.keep_going, reports)
            try:
                sweep.run()
            except KeyboardInterrupt:
                sweep.stop()
                raise
        path, _ = write_results(recipe, args.runs)
    total, elapsed = len(sweep.networks), duration(time.monotonic() - began)
    print(f"{len(sweep.done)} of {total} networks of {recipe.name} are done ({elapsed}); results: {path}", flush=True)
    for network in sweep.networks:
        if network.name in sweep.done:
            for remark in remarks_of(network, args.runs, args.data):
                print(f"! {network.name}: {remark}", flush=True)
    reported = reports is None or not sweep.done or reports.write(len(sweep.done))
    if not sweep.failed:
        return 0 if reported else 1
    print(f"{len(sweep.failed)} failed; the same command tries them again:", file=sys.stderr)
    for name, why in sweep.failed.items():
        print(f"  {name}: {why}", file=sys.stderr)
    if sweep.waiting:
        print(f"{len(sweep.waiting)} were not started after that", file=sys.stderr)
    return 1


def find_slots(recipe: Recipe, gpu: str | None, jobs: int | None) -> Slots:
    """Where to train: on the GPUs that --gpu names; on all there are if the recipe is for GPUs; else on the cores."""
    gpus: list[Gpu] = []
    if gpu is not None:
        gpus = choose(gpu, find_gpus())
    elif recipe.solver.get("solver_mode") == "GPU":
        gpus = find_gpus()
    if gpus:
        return GpuSlots(gpus, jobs or 1, _say)
    return CpuSlots(jobs or max(1, cores() // recipe.threads))


@contextlib.contextmanager
def _several_on_a_gpu(slots: Slots) -> Iterator[None]:
    """Let networks that share a GPU compute at the same time, where this machine can."""
    if isinstance(slots, GpuSlots) and slots.per_gpu > 1:
        with mps.service(_say) as slots.environment:
            yield
    else:
        yield


def _say(line: str) -> None:
    print(line, flush=True)


@dataclass
class Job:
    """A network in training."""

    network: Network
    process: subprocess.Popen[bytes]
    slot: Slot
    output: IO[bytes]
    """What its driver says: the reason, should it fail."""
    log: Path
    offset: int
    """How far the log has been read; it may begin with earlier runs of the network."""
    parser: LogParser = field(default_factory=LogParser)

    def look(self) -> None:
        """Read what is new in the engine's log."""
        if self.log.exists():
            with open(self.log, "rb") as file:
                file.seek(self.offset)
                new = file.read()
            self.offset += len(new)
            self.parser.feed(new.decode(errors="replace"))

    @property
    def displayed(self) -> int | None:
        """The newest iteration whose training loss the log names; None before the first."""
        return max(self.parser.log.train_losses, default=None)

    def shown(self) -> Running:
        """For the display."""
        tests = [row.test_accuracy for row in self.parser.log.rows() if row.test_accuracy is not None]
        seconds = self.parser.log.seconds_per_iteration
        left = None if seconds is None else self._seconds_left(seconds)
        return Running(
            self.network.name, self.parser.log.iteration, self.network.max_iter, tests[-1] if tests else None,
            1 / seconds if seconds else None, left,
        )  # fmt: skip

    def _seconds_left(self, seconds: float) -> float:
        """What is left at so many seconds an iteration."""
        left = self.network.max_iter - (self.parser.log.iteration or 0)
        tests = left / self.network.solver["test_interval"] * (self.parser.log.seconds_per_test or 0)
        return left * seconds + tests

    def failure(self) -> str:
        """Why the driver failed, in a line of its own words."""
        self.output.seek(0)
        lines = self.output.read().decode(errors="replace").strip().splitlines()
        for line in reversed(lines):
            if ": error: " in line:
                return line.split(": error: ", 1)[1].removeprefix(f"{self.network.name}: ")
        if self.process.returncode < 0:
            return f"its driver was ended by {signal.Signals(-self.process.returncode).name}"
        return lines[-1] if lines else f"its driver ended with exit code {self.process.returncode}"


def _data_of(network: Network) -> tuple[str, str]:
    """What tells whether two networks learn the same images: split and half."""
    return network.split, network.treatment.target


class Sweep:
    """The networks of a recipe, on their way to done."""

    def __init__(
        self, selection: Selection, runs: Path, data: Path, options: Sequence[str], slots: Slots, display: Display,
        keep_going: bool = True, reports: Reports | None = None,
    ) -> None:  # fmt: skip
        """``options`` are the driver's that all networks share; ``slots`` is where they are trained.

        Without ``keep_going`` no network is started any more when one has failed. ``reports``: the report to write.
        """
        self.runs, self.data, self.keep_going = runs, data, keep_going
        self.options, self.slots, self.display = options, slots, display
        self.networks = selection.networks
        self.waiting: list[Network] = []
        self.running: list[Job] = []
        self.done: set[str] = set()
        self.failed: dict[str, str] = {}  # network -> why
        self.reports = reports
        self._estimate = Estimate(slots.count, Sizes(selection.narrowed(), data).test_images)
        self._left: tuple[float, float | None] = (-1e9, None)  # when it was computed, and what came out

    def run(self) -> None:
        """Train until nothing is left that can be."""
        for network in self.networks:
            state = look(network, self.runs)
            if state.word == "done":
                self.done.add(network.name)
            elif state.word == "changed":
                again = f"python -m transfer_caffe.driver {arguments_of(network, self.runs, self.data)} --restart"
                self._fail(network, f"{state.words(network)}; take that back, or set it aside and train anew: {again}")
            else:  # a damaged record is made anew by the driver
                self.waiting.append(network)
        if self.done and self.waiting:
            self.display.event(f"{len(self.done)} of {len(self.networks)} networks are done already")
        while True:
            self._start()
            if not self.running and (not self.waiting or (self.failed and not self.keep_going)):
                break
            time.sleep(0.1)
            for job in list(self.running):
                ended = job.process.poll() is not None  # asked first: the log is complete then
                job.look()
                if (iteration := job.displayed) is not None:
                    self._estimate.reached(job.network, iteration, time.monotonic())
                if ended:
                    self._end(job)
            self.display.update(self.state())
            if self.reports is not None and (self.running or self.waiting):
                self.reports.update(self.done, self.failed, time.monotonic())

    def _start(self) -> None:
        """Start those that can be, as many as there is room for; drop those whose base failed."""
        ready: list[Network] = []
        for network in list(self.waiting):
            base = network.base.name if network.base else None
            if base in self.failed:
                self.waiting.remove(network)
                self._fail(network, f"not started: its base {base} failed")
            elif self.failed and not self.keep_going:
                return
            elif base is None or base in self.done:
                ready.append(network)
        while ready and (slot := self.slots.take()) is not None:
            network = self._suited(slot, ready)
            ready.remove(network)
            self.waiting.remove(network)
            self.running.append(self._job(network, slot))

    def _suited(self, slot: Slot, ready: Sequence[Network]) -> Network:
        """The first whose data is on this slot's GPU already, for another network there; else the first."""
        there = {_data_of(job.network) for job in self.running if slot.gpu is not None and job.slot.gpu == slot.gpu}
        return next((network for network in ready if _data_of(network) in there), ready[0])

    def _job(self, network: Network, slot: Slot) -> Job:
        argv = [sys.executable, "-m", "transfer_caffe.driver", *self.options, "--split", network.split]
        argv += ["--treatment", str(network.treatment), "--seed", str(network.seed)]
        output = tempfile.TemporaryFile()  # noqa: SIM115 - closed when the job ends
        log = network.folder(self.runs) / LOG
        environment = {**processes.environment(), **slot.environment}
        process = processes.start(argv, output, env=environment, keep_open=slot.keep_open)
        self._estimate.started(network, time.monotonic())
        return Job(network, process, slot, output, log, log.stat().st_size if log.exists() else 0)

    def _end(self, job: Job) -> None:
        self.running.remove(job)
        self.slots.give_back(job.slot)
        try:
            done = read_done(job.network, self.runs) if job.process.returncode == 0 else None
        except UserError as error:
            done = None
            self._fail(job.network, str(error))
        self._estimate.ended(job.network, time.monotonic(), done is not None)
        if done:
            self.done.add(job.network.name)
            place = f"[{len(self.done):{len(str(len(self.networks)))}}/{len(self.networks)}]"
            self.display.event(
                f"{place} {job.network.name}: test accuracy {done['accuracy_final']:.4f}, "
                f"{duration(done['wall_seconds'])}"
            )
        elif job.network.name not in self.failed:
            self._fail(job.network, job.failure())
        job.output.close()

    def _fail(self, network: Network, why: str) -> None:
        self.failed[network.name] = why
        self.display.event(f"FAILED {network.name}: {why}")

    def stop(self) -> None:
        """Tell all that are running to write a snapshot and end, and wait for them."""
        try:
            if self.reports is not None:
                self.reports.stop()
            for job in self.running:
                job.process.send_signal(signal.SIGINT)
            if self.running:
                self.display.event(
                    f"stopping: {len(self.running)} networks write a snapshot (once more Ctrl-C ends them without)"
                )
            for job in self.running:
                job.process.wait()
        except KeyboardInterrupt:
            for job in self.running:  # their engines die with them
                job.process.kill()
            for job in self.running:
                job.process.wait()

    def state(self) -> State:
        """For the display."""
        running = tuple(job.shown() for job in self.running)
        now = time.monotonic()
        if now - self._left[0] > SECONDS_BETWEEN_ESTIMATES or not self.running:
            self._left = (now, self._seconds_left())
        return State(len(self.networks), len(self.done), len(self.failed), running, self._left[1])

    def _seconds_left(self) -> float | None:
        """Return when all will be done, the last report included; None while nothing is known."""
        left = self._estimate.seconds_left(self.waiting, time.monotonic()) if self.running or self.waiting else None
        return left if left is None or self.reports is None else left + self.reports.seconds
