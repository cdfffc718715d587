"""`sweep run --slurm`: a submit pass, which submits a Slurm job for each network that is neither done nor in the queue.

    python -m transfer_caffe.sweep run --recipe paper --slurm --partition gpu --time 24:00:00

A pass only depends on the queue and the networks' files. After any failure (failed jobs, lost nodes, a killed pass),
run the same command again to submit the missing jobs. Concurrent passes wait for each other. A job depends on its
base's job with afterok. Before its time limit, a job writes a snapshot and is requeued.
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
"""The name of the job that builds the data; no network has this name."""


def add_slurm_arguments(parser: ArgumentParser) -> None:
    """Add the options of `sweep run` for Slurm; they override the recipe's `slurm`."""
    group = parser.add_argument_group("on a cluster")
    group.add_argument("--slurm", action="store_true", help="submit a Slurm job for each network, and return")
    group.add_argument("--partition", help="the partition of the jobs")
    group.add_argument("--account", help="the account that the jobs are charged to")
    group.add_argument(
        "--time",
        metavar="LIMIT",
        help="the time limit of the jobs, for example 24:00:00; a job that reaches it is requeued and resumed",
    )
    group.add_argument(
        "--sbatch", action="append", default=[], metavar="FLAGS",
        help="further flags for sbatch, for example --sbatch='--constraint=a100 --qos=long'",
    )  # fmt: skip


def settings_of(recipe: Recipe, args: argparse.Namespace) -> SlurmSettings:
    """Return the recipe's `slurm`, with the command line's options in place of its values."""
    given = {key: value for key in ("partition", "account", "time") if (value := getattr(args, key)) is not None}
    try:
        extra = [flag for each in args.sbatch for flag in shlex.split(each)]
    except ValueError as error:
        raise UserError(f"--sbatch {args.sbatch[-1]}: {error}") from None
    return replace(recipe.slurm, **given, extra=(*recipe.slurm.extra, *extra)).checked("command line")


def refuse_without_slurm(args: argparse.Namespace) -> None:
    """Raise UserError for options that need --slurm."""
    for name in ("partition", "account", "time", "sbatch"):
        if getattr(args, name):
            raise UserError(f"--{name} is only for jobs on a cluster: it needs --slurm")


def main(selection: Selection, args: argparse.Namespace) -> int:
    """Submit networks that are neither done nor in the queue, print a summary, and return the exit code."""
    recipe = selection.recipe
    if args.jobs is not None:
        raise UserError("--jobs: with --slurm, Slurm decides how many networks are trained at a time; omit --jobs")
    if args.gpu is not None:
        raise UserError("--gpu: with --slurm, Slurm assigns the GPU, if the recipe's `gpus` is not 0; omit --gpu")
    if args.report is not None:
        raise UserError("--report: with --slurm the networks are trained later; write the report then, by make report")
    settings, engine = settings_of(recipe, args), Engine.find(args.engine)
    queue.require_slurm()
    with submit_lock(recipe, args.runs):
        return Pass(selection, args, settings, copies=not engine.reads_views).run()


class Pass:
    """One submit pass. The caller must hold the sweep's lock."""

    def __init__(self, selection: Selection, args: argparse.Namespace, settings: SlurmSettings, copies: bool) -> None:
        """``copies``: build databases instead of views, for an engine that cannot read views."""
        self.selection, self.recipe, self.settings, self.copies = selection, selection.recipe, settings, copies
        self.args = args
        self.runs: Path = args.runs
        self.tag = queue.tag(self.recipe, self.runs)
        self.logs = log_folder(self.recipe, self.runs)
        self.submitted = 0

    def run(self) -> int:
        """Submit jobs in topological order; jobs submitted before an error stay, and the next pass finds them."""
        jobs = queue.jobs(
            self.tag
        )  # queried first: a job that ends after this has written its files before they are read
        if dead := [job.id for job in jobs.values() if job.reason == "DependencyNeverSatisfied"]:
            queue.cancel(dead)
        for job in [job for job in jobs.values() if job.launch_failed]:
            _say(f"{job.name}: job {job.id} was held because a node could not start it; it is released")
            try:
                queue.release(job)
            except queue.SlurmError:  # on this cluster, users may not release jobs: replace it
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
                    raise UserError(f"not submitted: there is a problem with its base {base.name}")
                state = look(network, self.runs)
                if state.word == "done":
                    done.add(network.name)
                elif state.word == "changed":
                    raise UserError(
                        f"{state.words(network)}; undo the change, or retrain it with the driver's --restart"
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
                f"{error}; {self.submitted} jobs were submitted before that, and stay; fix the problem, and run the "
                "same command again to submit the others"
            ) from None
        total = len(self.selection.networks)
        _say(
            f"{total} networks of {self.recipe.name}: {len(done)} done, {in_queue} already in the queue, {len(todo)} "
            f"submitted now; their logs: {self.logs}"
        )
        for name, why in wrong.items():
            print(f"  {name}: {why}", file=sys.stderr)
        return 1 if wrong else 0

    def _data(self, live: dict[str, int]) -> int | None:
        """Return the job that networks without a base in the queue depend on: the data job, or None if data exists."""
        recipe, data = self.selection.narrowed(), self.args.data
        if DATA in live:
            return live[DATA]
        missing = data_stage.missing(recipe, data, self.copies)
        if not missing:
            return None
        data_stage.require_lists(recipe, data)
        _say(f"{missing[0]} does not exist: a job builds the data first")
        argv = [sys.executable, "-m", "transfer_caffe.data", "--recipe", self.args.recipe, "--data", str(data)]
        return self._submit(DATA, job_script.script([*argv, *["--copies"] * self.copies], None, gpus=0), 0, None)

    def _network(self, network: Network) -> tuple[str, int]:
        """Return the script of a network's job, and the number of GPUs it requests."""
        args = self.args
        gpus = gpus_of(self.recipe, self.settings)
        where = ["--recipe", args.recipe, "--runs", str(args.runs)]
        argv = [sys.executable, "-m", "transfer_caffe.driver", *where, "--data", str(args.data)]
        argv += ["--engine", args.engine, "--split", network.split]
        argv += ["--treatment", str(network.treatment), "--seed", str(network.seed)]
        if gpus:  # the GPU assigned by Slurm is number 0 in the job; if it is unusable, fail and do not use the CPU
            argv += ["--gpu", "0"]
        return job_script.script(argv, [sys.executable, "-m", "transfer_caffe.results", *where], gpus), gpus

    def _failure(self, network: Network) -> str:
        """Describe why the last job of a network failed, for the message on its new job; "" if none failed."""
        told = job_script.read_log(self.logs / f"{network.name}.log")
        return "" if told is None or told.why is None else f"; the previous job, {told.job}: {told.why}"

    def _submit(self, name: str, script: str, gpus: int, parent: int | None, before: str = "") -> int:
        log = str(self.logs.absolute() / f"{name}.log").replace("%", "%%")  # sbatch replaces %j and similar patterns
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
    """Return the lock that prevents concurrent submit passes and cancellations."""
    return lock(runs / recipe.name / ".submit.lock", f"the queue of {recipe.name}", _say)


def gpus_of(recipe: Recipe, settings: SlurmSettings) -> int:
    """Return the number of GPUs a job requests: from the settings, or 1 if the recipe's solver_mode is GPU, else 0."""
    if settings.gpus is not None:
        return settings.gpus
    return 1 if recipe.solver.get("solver_mode") == "GPU" else 0


def log_folder(recipe: Recipe, runs: Path) -> Path:
    """Return the folder of the logs of a sweep's jobs."""
    return runs / recipe.name / "slurm"


def _say(line: str) -> None:
    print(line, flush=True)
