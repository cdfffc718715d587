"""`sweep run --slurm`: a submit pass, which gives Slurm a job for each network that is neither done nor in the queue.

    python -m transfer_caffe.sweep run --recipe paper --slurm --partition gpu --time 24:00:00

A pass looks at the queue and at the files, and at nothing else: whatever happened (jobs that failed, nodes that were
lost, a pass that was killed), the same command again submits what is missing. Two at once wait for each other. Jobs
depend on their base's job by afterok; before its time limit a job writes a snapshot and goes back to the queue.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path

from transfer_caffe import data as data_stage
from transfer_caffe.experiment.recipe import Network, Recipe
from transfer_caffe.experiment.slurm_settings import SlurmSettings, flags
from transfer_caffe.run.engines import Engine
from transfer_caffe.sweep.progress import look
from transfer_caffe.sweep.selection import Selection
from transfer_caffe.sweep.slurm import job_script, queue
from transfer_caffe.utils.errors import ArgumentParser, UserError
from transfer_caffe.utils.locks import lock

DATA = "data"
"""The name of the job that makes the data; networks have other names."""


def add_slurm_arguments(parser: ArgumentParser) -> None:
    """The options of `sweep run` that are about Slurm; they win over the recipe's `slurm`."""
    group = parser.add_argument_group("on a cluster")
    group.add_argument("--slurm", action="store_true", help="submit a Slurm job for each network, and return")
    group.add_argument("--partition", help="the partition of the jobs")
    group.add_argument("--account", help="the account that the jobs are charged to")
    group.add_argument("--time", metavar="LIMIT", help="their time limit, as 24:00:00; longer networks take several")
    group.add_argument(
        "--sbatch", action="append", default=[], metavar="FLAGS",
        help="more flags for sbatch, as --sbatch='--constraint=a100 --qos=long'",
    )  # fmt: skip


def settings_of(recipe: Recipe, args: argparse.Namespace) -> SlurmSettings:
    """The recipe's `slurm`, with what the command line says instead."""
    given = {key: value for key in ("partition", "account", "time") if (value := getattr(args, key)) is not None}
    try:
        extra = [flag for each in args.sbatch for flag in shlex.split(each)]
    except ValueError as error:
        raise UserError(f"--sbatch {args.sbatch[-1]}: {error}") from None
    return replace(recipe.slurm, **given, extra=(*recipe.slurm.extra, *extra)).checked("command line")


def refuse_without_slurm(args: argparse.Namespace) -> None:
    """UserError for options that mean nothing without --slurm."""
    for name in ("partition", "account", "time", "sbatch"):
        if getattr(args, name):
            raise UserError(f"--{name} is about jobs of a cluster: it needs --slurm")


def main(selection: Selection, args: argparse.Namespace) -> int:
    """Submit what is neither done nor in the queue, and say how all stands."""
    recipe = selection.recipe
    if args.jobs is not None:
        raise UserError("--jobs: with --slurm it is Slurm that says how many networks are trained at a time")
    if args.gpu is not None:
        raise UserError("--gpu: with --slurm a job has the GPU that Slurm gives it, if the recipe's `gpus` is not 0")
    if args.report is not None:
        raise UserError("--report: with --slurm the networks are trained later; write it then: make report")
    settings, engine = settings_of(recipe, args), Engine.find(args.engine)
    queue.require_slurm()
    with submit_lock(recipe, args.runs):
        return Pass(selection, args, settings, copies=not engine.reads_views).run()


class Pass:
    """One submit pass. Only for who holds the sweep's lock."""

    def __init__(self, selection: Selection, args: argparse.Namespace, settings: SlurmSettings, copies: bool) -> None:
        """``copies``: the engine reads no views."""
        self.selection, self.recipe, self.settings, self.copies = selection, selection.recipe, settings, copies
        self.args = args
        self.runs: Path = args.runs
        self.tag = queue.tag(self.recipe, self.runs)
        self.logs = log_folder(self.recipe, self.runs)
        self.submitted = 0

    def run(self) -> int:
        """Submit in topological order; what was submitted before an error stays, and counts in the next pass."""
        jobs = queue.jobs(self.tag)  # first: a job that ends from now on has left its files by the time we look
        if dead := [job.id for job in jobs.values() if job.reason == "DependencyNeverSatisfied"]:
            queue.cancel(dead)
        for job in [job for job in jobs.values() if job.launch_failed]:
            _say(f"{job.name}: job {job.id} was held, since a node could not start it; it is let go")
            try:
                queue.release(job)
            except queue.SlurmError:  # not the user's to say, there
                queue.cancel([job.id])
                del jobs[job.name]
        live = {name: job.id for name, job in jobs.items() if job.live}
        self.logs.mkdir(parents=True, exist_ok=True)
        done: set[str] = set()
        wrong: dict[str, str] = {}
        todo: list[Network] = []
        for network in self.selection.networks:
            try:
                if network.name in live:
                    continue
                if (base := network.base) and base.name in wrong:
                    raise UserError(f"not submitted: its base {base.name} is not in order")
                state = look(network, self.runs)
                if state.word == "done":
                    done.add(network.name)
                elif state.word == "changed":
                    raise UserError(
                        f"{state.words(network)}; take that back, or start it anew by the driver's --restart"
                    )
                else:
                    todo.append(network)
            except UserError as error:
                wrong[network.name] = str(error)
        in_queue = sum(network.name in live for network in self.selection.networks)
        try:
            data_job = self._data(live) if todo else None
            for network in todo:
                parent = live.get(network.base.name) if network.base else None
                parent = data_job if parent is None else parent
                live[network.name] = self._submit(network.name, *self._network(network), parent, self._failure(network))
        except queue.SlurmError as error:
            raise UserError(
                f"{error}; {self.submitted} jobs were submitted before, and stay; put this right, and run the same "
                "command again for the rest"
            ) from None
        total = len(self.selection.networks)
        _say(
            f"{total} networks of {self.recipe.name}: {len(done)} done, {in_queue} in the queue before, {len(todo)} "
            f"submitted now; their logs: {self.logs}"
        )
        for name, why in wrong.items():
            print(f"  {name}: {why}", file=sys.stderr)
        return 1 if wrong else 0

    def _data(self, live: dict[str, int]) -> int | None:
        """The job on which networks without a base in the queue depend: the data's, where data is missing."""
        recipe, data = self.selection.narrowed(), self.args.data
        if DATA in live:
            return live[DATA]
        missing = data_stage.missing(recipe, data, self.copies)
        if not missing:
            return None
        data_stage.require_lists(recipe, data)
        _say(f"{missing[0]} is not there: a job makes the data first")
        argv = [sys.executable, "-m", "transfer_caffe.data", "--recipe", self.args.recipe, "--data", str(data)]
        return self._submit(DATA, job_script.script([*argv, *["--copies"] * self.copies], None, gpus=0), 0, None)

    def _network(self, network: Network) -> tuple[str, int]:
        """The script of a network's job, and how many GPUs it asks for."""
        args = self.args
        gpus = gpus_of(self.recipe, self.settings)
        where = ["--recipe", args.recipe, "--runs", str(args.runs)]
        argv = [sys.executable, "-m", "transfer_caffe.driver", *where, "--data", str(args.data)]
        argv += ["--engine", args.engine, "--split", network.split]
        argv += ["--treatment", str(network.treatment), "--seed", str(network.seed)]
        if gpus:  # Slurm's is the first that the job sees; if it is no good, to train on the CPU instead is no remedy
            argv += ["--gpu", "0"]
        return job_script.script(argv, [sys.executable, "-m", "transfer_caffe.results", *where], gpus), gpus

    def _failure(self, network: Network) -> str:
        """Why the last job of a network came to no end, to be said as it is submitted again; "" where there is none."""
        told = job_script.read_log(self.logs / f"{network.name}.log")
        return "" if told is None or told.why is None else f"; the one before, {told.job}: {told.why}"

    def _submit(self, name: str, script: str, gpus: int, parent: int | None, before: str = "") -> int:
        log = str(self.logs.absolute() / f"{name}.log").replace("%", "%%")  # sbatch has names for %j and its like
        argv: Sequence[str] = [
            f"--job-name={name}", f"--comment={self.tag}", f"--output={log}", "--open-mode=append", "--requeue",
            *([f"--dependency=afterok:{parent}", "--kill-on-invalid-dep=yes"] if parent else []),
            *flags(self.settings, self.recipe.threads, gpus),
        ]  # fmt: skip
        job = queue.submit(script, argv)
        self.submitted += 1
        _say(f"{name}: job {job}" + (f", after {parent}" if parent else "") + before)
        return job


def submit_lock(recipe: Recipe, runs: Path) -> AbstractContextManager[int]:
    """What keeps two passes, or a pass and a cancellation, from each other's way."""
    return lock(runs / recipe.name / ".submit.lock", f"the queue of {recipe.name}", _say)


def gpus_of(recipe: Recipe, settings: SlurmSettings) -> int:
    """How many GPUs a network's job asks for: what the settings say, or one where the recipe's solver_mode is GPU."""
    if settings.gpus is not None:
        return settings.gpus
    return 1 if recipe.solver.get("solver_mode") == "GPU" else 0


def log_folder(recipe: Recipe, runs: Path) -> Path:
    """Where the logs of a sweep's jobs are."""
    return runs / recipe.name / "slurm"


def _say(line: str) -> None:
    print(line, flush=True)
