"""`sweep run` on one machine: train the networks of a recipe, several at a time, each by a separate driver process.

    python -m transfer_caffe.sweep run --recipe demo --jobs 2
    python -m transfer_caffe.sweep run --recipe paper --gpu 0,1,3

If a network fails, the others continue; networks that need it are not started. On Ctrl-C (or SIGTERM, SIGHUP) every
network writes a snapshot, and the next run resumes from there. A second Ctrl-C ends all at once. With --report DIR the
report is written early, and updated as networks finish.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import signal
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
from transfer_caffe.run.provenance import code
from transfer_caffe.run.watch import remarks_of
from transfer_caffe.sweep import mps
from transfer_caffe.sweep.display import Display, Running, State, duration, open_display
from transfer_caffe.sweep.estimate import Estimate
from transfer_caffe.sweep.progress import changed, look
from transfer_caffe.sweep.reports import Reports
from transfer_caffe.sweep.selection import Selection, add_recipe_arguments, selected
from transfer_caffe.sweep.sizes import Sizes
from transfer_caffe.sweep.slots import CpuSlots, Gpu, GpuSlots, Slot, Slots, choose, find_gpus
from transfer_caffe.sweep.slurm import submit
from transfer_caffe.utils import processes
from transfer_caffe.utils.errors import ArgumentParser, UserError
from transfer_caffe.utils.locks import lock
from transfer_caffe.utils.machine import cores

SUMMARY = "build the data, train the networks, write results.csv"
EXAMPLES = """examples:
  python -m transfer_caffe.sweep run --recipe demo --jobs 2 --report report
  python -m transfer_caffe.sweep run --recipe paper --gpu all --only 'A*B+' --split random0
  python -m transfer_caffe.sweep run --recipe paper --gpu 0,1 --jobs 3
  python -m transfer_caffe.sweep run --recipe demo_caffe --engine caffe
  python -m transfer_caffe.sweep run --recipe paper --slurm --partition gpu --time 24:00:00
"""

SECONDS_BETWEEN_ESTIMATES = 5.0


def add_arguments(parser: ArgumentParser) -> None:
    """Add the options of `sweep run`."""
    add_recipe_arguments(parser)
    parser.add_argument(
        "--engine",
        default="embedded",
        help="embedded (default), caffe (environment variable CAFFE, the PATH, or built by `make caffe`), or a program "
        "with the same command line",
    )
    parser.add_argument(
        "--gpu", metavar="N", help="GPUs to use: 0, or 0,1,3, or all (default: all, if the recipe's solver_mode is GPU)"
    )
    parser.add_argument(
        "--jobs",
        type=int,
        metavar="N",
        help="number of networks at a time (default: cores / the recipe's threads); with GPUs: per GPU (default: 1), "
        "sharing their data",
    )
    parser.add_argument(
        "--keep-going", action=argparse.BooleanOptionalAction, default=True,
        help="start further networks after one has failed (default); otherwise only finish those in training",
    )  # fmt: skip
    parser.add_argument(
        "--report", type=Path, metavar="DIR",
        help="write DIR/index.html and its figures early, and update them as networks finish (default: no report)",
    )  # fmt: skip
    submit.add_slurm_arguments(parser)


def main(args: argparse.Namespace) -> int:
    """Build the data, train the networks, write the results."""
    if args.jobs is not None and args.jobs < 1:
        raise UserError(f"--jobs {args.jobs}: must be 1 or more")
    recipe = load_recipe(args.recipe)
    selection = selected(recipe, args)
    if words := selection.words():
        _say(words)
    if args.slurm:
        return submit.main(selection, args)
    submit.refuse_without_slurm(args)
    processes.interrupt_on_signals()
    engine = Engine.find(args.engine)  # report an error once, not for every network
    options = ["--recipe", args.recipe, "--engine", args.engine, "--runs", str(args.runs), "--data", str(args.data)]
    if args.gpu is not None:
        options += ["--gpu", "0"]  # a driver only sees the GPU of its slot, as number 0
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
            forks = engine.name == "embedded" and isinstance(slots, CpuSlots)
            sweep = Sweep(selection, args.runs, args.data, options, slots, display, args.keep_going, reports, forks)
            try:
                sweep.run()
            except BaseException:  # also an output that is closed or full: drivers die with this process
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
    print(f"{len(sweep.failed)} failed; run the same command again to retry them:", file=sys.stderr)
    for name, why in sweep.failed.items():
        print(f"  {name}: {why}", file=sys.stderr)
    if sweep.waiting:
        print(f"{len(sweep.waiting)} were not started because of that", file=sys.stderr)
    return 1


def find_slots(recipe: Recipe, gpu: str | None, jobs: int | None) -> Slots:
    """Return the slots to train on: the GPUs given by --gpu; all GPUs if the recipe is for GPUs; else the CPU cores."""
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
    """Use MPS, if available, so that networks that share a GPU compute at the same time."""
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
    process: processes.Child
    slot: Slot
    output: IO[bytes]
    """The output of its driver, which gives the reason of a failure."""
    log: Path
    offset: int
    """Number of bytes of the log that have been read; the log may begin with earlier runs of the network."""
    parser: LogParser = field(default_factory=LogParser)

    def look(self) -> None:
        """Read new lines of the engine's log."""
        if self.log.exists():
            with open(self.log, "rb") as file:
                file.seek(self.offset)
                new = file.read()
            self.offset += len(new)
            self.parser.feed(new.decode(errors="replace"))

    @property
    def displayed(self) -> int | None:
        """The newest iteration with a training loss in the log; None if there is none yet."""
        return max(self.parser.log.train_losses, default=None)

    def shown(self) -> Running:
        """Return the network's progress for the display."""
        tests = [row.test_accuracy for row in self.parser.log.rows() if row.test_accuracy is not None]
        seconds = self.parser.log.seconds_per_iteration
        left = None if seconds is None else self._seconds_left(seconds)
        return Running(
            self.network.name, self.parser.log.iteration, self.network.max_iter, tests[-1] if tests else None,
            1 / seconds if seconds else None, left,
        )  # fmt: skip

    def _seconds_left(self, seconds: float) -> float:
        """Return the seconds left, given ``seconds`` per iteration."""
        left = self.network.max_iter - (self.parser.log.iteration or 0)
        tests = left / self.network.solver["test_interval"] * (self.parser.log.seconds_per_test or 0)
        return left * seconds + tests

    def failure(self) -> str:
        """Return one line of the driver's output that says why it failed."""
        self.output.seek(0)
        lines = self.output.read().decode(errors="replace").strip().splitlines()
        for line in reversed(lines):
            if ": error: " in line:
                return line.split(": error: ", 1)[1].removeprefix(f"{self.network.name}: ")
        code = self.process.wait()
        if code < 0:
            return f"its driver was terminated by {signal.Signals(-code).name}"
        return lines[-1] if lines else f"its driver ended with exit code {code}"


def _data_of(network: Network) -> tuple[str, str]:
    """Return split and half of a network; networks with the same ones are trained on the same images."""
    return network.split, network.treatment.target


class Sweep:
    """Trains the networks of a selection."""

    def __init__(
        self, selection: Selection, runs: Path, data: Path, options: Sequence[str], slots: Slots, display: Display,
        keep_going: bool = True, reports: Reports | None = None, forks: bool = False,
    ) -> None:  # fmt: skip
        """``options`` are the driver's options shared by all networks; ``slots`` is where they are trained.

        Without ``keep_going`` no further network is started once one has failed. ``reports`` writes the report.
        With ``forks``, PyTorch is imported here, and drivers and engines are forked (`processes.preload`).
        """
        self.forks = forks
        self.runs, self.data, self.keep_going = runs, data, keep_going
        self.options, self.slots, self.display = options, slots, display
        self.networks = selection.networks
        self.waiting: list[Network] = []
        self.running: list[Job] = []
        self.done: set[str] = set()
        self.failed: dict[str, str] = {}  # network -> reason
        self.reports = reports
        self._estimate = Estimate(slots.count, Sizes(selection.narrowed(), data).test_images)
        self._left: tuple[float, float | None] = (-1e9, None)  # time of computation, result

    def run(self) -> None:
        """Train until no network is left that can be trained."""
        for network in self.networks:
            state = look(network, self.runs)
            if state.word == "done":
                self.done.add(network.name)
            elif state.word == "changed":
                again = f"python -m transfer_caffe.driver {arguments_of(network, self.runs, self.data)} --restart"
                self._fail(network, f"{state.words(network)}; undo the change, or retrain the network: {again}")
            else:  # the driver rebuilds a damaged record
                self.waiting.append(network)
        if self.forks and len(self.waiting) > 1:
            code()  # the version that is about to be imported is the one to record
            processes.preload("transfer_caffe.driver", "transfer_caffe.engine")
        if self.done and self.waiting:
            self.display.event(f"{len(self.done)} of {len(self.networks)} networks are already done")
        while True:
            self._start()
            if not self.running and (not self.waiting or (self.failed and not self.keep_going)):
                break
            time.sleep(0.1)
            for job in list(self.running):
                ended = job.process.poll() is not None  # polled before reading: the log is complete if it has ended
                job.look()
                if (iteration := job.displayed) is not None:
                    self._estimate.reached(job.network, iteration, time.monotonic())
                if ended:
                    self._end(job)
            self.display.update(self.state())
            if self.reports is not None and (self.running or self.waiting):
                self.reports.update(self.done, self.failed, time.monotonic())

    def _start(self) -> None:
        """Start as many ready networks as there are free slots; drop those whose base failed."""
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
        """Return the first network whose data another network on this slot's GPU already uses; else the first one."""
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
        if done and (note := changed(job.network, done, None)):  # its driver read the recipe later than this sweep
            done = None
            again = f"python -m transfer_caffe.driver {arguments_of(job.network, self.runs, self.data)} --restart"
            self._fail(
                job.network,
                f"trained with other settings than this sweep's, as the recipe was edited meanwhile: {note}; undo the "
                f"edit and retrain it: {again}",
            )
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
        """Tell all running networks to write a snapshot and end, and wait for them."""
        try:
            if self.reports is not None:
                self.reports.stop()
            for job in self.running:
                job.process.send_signal(signal.SIGINT)
            if self.running:
                with contextlib.suppress(OSError):
                    self.display.event(
                        f"stopping: {len(self.running)} networks write a snapshot "
                        "(press Ctrl-C again to end without one)"
                    )
            for job in self.running:
                job.process.wait()
        except KeyboardInterrupt:
            for job in self.running:  # the engines end with their drivers
                job.process.kill()
            for job in self.running:
                job.process.wait()
        for job in self.running:
            job.output.close()

    def state(self) -> State:
        """Return the sweep's progress for the display."""
        running = tuple(job.shown() for job in self.running)
        now = time.monotonic()
        if now - self._left[0] > SECONDS_BETWEEN_ESTIMATES or not self.running:
            self._left = (now, self._seconds_left())
        return State(len(self.networks), len(self.done), len(self.failed), running, self._left[1])

    def _seconds_left(self) -> float | None:
        """Return the seconds until all networks and the last report are done; None if unknown."""
        left = self._estimate.seconds_left(self.waiting, time.monotonic()) if self.running or self.waiting else None
        return left if left is None or self.reports is None else left + self.reports.seconds
