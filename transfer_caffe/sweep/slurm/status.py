"""The state of a sweep's networks in Slurm's queue and in the jobs' logs: running, waiting, held, failed, and why.

cluster = look(recipe, Path("runs"))        # None if no job was ever submitted
word, text = cluster.say(network)           # ("running", "running on node3 as job 12")
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from transfer_caffe.experiment.recipe import Network, Recipe
from transfer_caffe.run.folder import LOG
from transfer_caffe.sweep.slurm import job_script, queue
from transfer_caffe.sweep.slurm.queue import Job
from transfer_caffe.sweep.slurm.submit import DATA, log_folder

# Slurm's reasons for waiting, and the text shown for them; other reasons are shown unchanged
_REASONS = {
    "None": "Slurm's scheduler",
    "Priority": "jobs with higher priority",
    "Resources": "free resources",
    "BeginTime": "Slurm to restart it",
    "Cleaning": "Slurm to restart it",
}
_ENDED = {
    "OUT_OF_MEMORY": "out of memory; request more with `memory` in the recipe's slurm key",
    "TIMEOUT": "ended by its time limit; increase signal_seconds if that is too short for a snapshot",
    "NODE_FAIL": "its node failed",
    "PREEMPTED": "preempted",
    "CANCELLED": "cancelled",
}


@dataclass(frozen=True)
class Cluster:
    """The state of a sweep on a cluster. ``silent`` says why the queue could not be queried, or is None."""

    jobs: Mapping[str, Job]
    runs: Path
    silent: str | None

    def say(self, network: Network) -> tuple[str, str] | None:
        """Return a state and a description of a network that is not done; None if Slurm has no information about it."""
        job = self.jobs.get(network.name)
        if job and job.live:
            return self._live(network, job)
        if (told := self._log(network.recipe, network.name)) is None:
            if job and job.state == "CANCELLED":
                return "stopped", "cancelled before it started"
            if job and job.state in _ENDED:
                return "failed", f"FAILED before it started: {_ENDED[job.state]}"
            return None
        if self.silent:
            return None  # it may be running
        train_log = network.folder(self.runs) / LOG
        if train_log.exists() and train_log.stat().st_mtime > self._path(network).stat().st_mtime + 2:
            return None  # it has been trained without Slurm since then
        why = told.why and told.why.removeprefix(f"{network.name}: ")
        if job and job.id == told.job and job.state in _ENDED and (why is None or "without a message" in why):
            why = _ENDED[job.state]
        if why in ("cancelled", "stopped"):
            return "stopped", f"{why} (job {told.job})"
        return "failed", f"FAILED: {why or 'its job succeeded, but it is not done'} (job {told.job}, {told.node})"

    def data(self, recipe: Recipe) -> str | None:
        """Describe the state of the job that builds the data; None if there is nothing to report."""
        job = self.jobs.get(DATA)
        if job and job.live:
            return f"the data is being built by job {job.id} ({job.state.lower()})"
        told = self._log(recipe, DATA)
        if told and told.why and not self.silent:
            return f"building the data FAILED: {told.why} (job {told.job}, {told.node})"
        return None

    def _live(self, network: Network, job: Job) -> tuple[str, str]:
        if job.held:
            return "held", f"HELD ({job.reason}): release it with `scontrol release {job.id}`"
        if job.state in ("RUNNING", "COMPLETING"):
            left = f", {job.left} left until its time limit" if job.left[:1].isdigit() else ""
            return "running", f"running on {job.node} as job {job.id}{left}"
        if job.state != "PENDING":
            return "waiting", f"job {job.id} is {job.state.lower()}"
        reason = _REASONS.get(job.reason, job.reason)
        if job.reason == "Dependency":
            base = network.base.name if network.base else DATA
            reason = base if base in self.jobs and self.jobs[base].live else DATA
        return "waiting", f"waiting for {reason} (job {job.id})"

    def _path(self, network: Network) -> Path:
        return log_folder(network.recipe, self.runs) / f"{network.name}.log"

    def _log(self, recipe: Recipe, name: str) -> job_script.Told | None:
        return job_script.read_log(log_folder(recipe, self.runs) / f"{name}.log")


def look(recipe: Recipe, runs: Path) -> Cluster | None:
    """Query the queue; return None if none of the recipe's networks was ever submitted."""
    if not log_folder(recipe, runs).is_dir():
        return None
    try:
        return Cluster(queue.jobs(queue.tag(recipe, runs)), runs, None)
    except queue.SlurmError as error:
        return Cluster({}, runs, str(error))
