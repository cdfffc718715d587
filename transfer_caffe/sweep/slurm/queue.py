"""Slurm's commands, as far as a sweep needs them: its jobs in the queue, submitting one, cancelling some.

    for job in jobs("transfer_caffe demo /home/me/runs").values():
        print(job.name, job.state, job.node)

A sweep knows its jobs by their comment, and of those only the user's own; so nothing has to be kept in files, which
could differ from what is in the queue.
"""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from transfer_caffe.experiment.recipe import Recipe
from transfer_caffe.utils.errors import UserError

ENDED = {
    "BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED", "REVOKED",
    "TIMEOUT",
}  # fmt: skip
"""States of jobs that do not come back; a preempted one that does is PENDING."""

AT_A_TIME = 500
"""Job ids in one command line."""


class SlurmError(UserError):
    """Slurm refused something, or does not answer."""


@dataclass(frozen=True)
class Job:
    """A job of a sweep. ``name`` is its network's, or `DATA`'s; ``state`` and ``reason`` are Slurm's words."""

    id: int
    name: str
    state: str
    reason: str
    node: str
    left: str = ""
    """The time left until its limit, in Slurm's words, as 1-02:03:04."""

    @property
    def live(self) -> bool:
        """Whether it runs or is still to run; one whose dependency failed is not."""
        return self.state not in ENDED and self.reason != "DependencyNeverSatisfied"

    @property
    def launch_failed(self) -> bool:
        """Whether Slurm holds it, for ever, because a node could not start it: as after a loss of slurmctld."""
        return self.state == "PENDING" and "launch failed" in self.reason

    @property
    def held(self) -> bool:
        """Whether it waits until somebody releases it."""
        return self.state == "PENDING" and "held" in self.reason.lower()


def tag(recipe: Recipe, runs: Path) -> str:
    """The comment of a sweep's jobs: recipe and folder of the runs, which make a sweep."""
    return f"transfer_caffe {recipe.name} {runs.resolve()}"


def jobs(comment: str) -> dict[str, Job]:
    """The user's jobs with this comment, by name: the live one, or else the newest of those that Slurm remembers."""
    user = pwd.getpwuid(os.geteuid()).pw_name
    # the comment comes last: it may hold anything
    out = slurm("squeue", "--noheader", "--states=all", f"--user={user}", "--format=%i|%T|%N|%j|%r|%L|%k")
    found: dict[str, Job] = {}
    for line in out.splitlines():
        fields = line.split("|", 6)
        if len(fields) < 7 or fields[6].rstrip() != comment or not fields[0].isdecimal():
            continue
        job = Job(int(fields[0]), fields[3], fields[1], fields[4], fields[2], fields[5])
        known = found.get(job.name)
        if known is None or (job.live, job.id) > (known.live, known.id):
            found[job.name] = job
    return found


def submit(script: str, flags: Sequence[str]) -> int:
    """Give a batch script to sbatch; the job's id. SlurmError if it is refused."""
    out = slurm("sbatch", "--parsable", *flags, given=script)
    number = out.strip().split(";")[0]  # with the cluster's name behind, where there are several
    if not number.isdecimal():
        raise SlurmError(f"sbatch: said {out.strip()[:200]!r} where the number of the job was expected")
    return int(number)


def release(job: Job) -> None:
    """Let a held job go. SlurmError where only others may."""
    slurm("scontrol", "release", str(job.id))


def cancel(numbers: Iterable[int], *flags: str) -> None:
    """Give job ids to scancel. That a job has ended meanwhile is no error."""
    ids = [str(number) for number in numbers]
    for first in range(0, len(ids), AT_A_TIME):
        try:
            slurm("scancel", *flags, *ids[first : first + AT_A_TIME])
        except SlurmError as error:
            # one that ends in this moment; what is still there is seen in the queue
            if "already compl" not in str(error) and "Invalid job" not in str(error):
                raise


def require_slurm(program: str = "squeue") -> None:
    """Raise SlurmError unless this machine has Slurm's commands."""
    if shutil.which(program) is None:
        raise SlurmError(
            f"there is no {program} here; log in to a node from which Slurm's jobs are submitted, or train on this "
            "machine: leave --slurm (SLURM=1) out of `sweep run`"
        )


def slurm(program: str, *argv: str, given: str = "") -> str:
    """What one of Slurm's commands prints. SlurmError, in its own words, if it fails."""
    require_slurm(program)
    done = subprocess.run([program, *argv], input=given, capture_output=True, text=True, errors="replace", check=False)
    if done.returncode:
        lines = [line.strip().removeprefix(f"{program}: ").removeprefix("error: ") for line in done.stderr.splitlines()]
        words = "; ".join(dict.fromkeys(filter(None, lines))) or f"exit code {done.returncode}"
        raise SlurmError(f"{program}: {words}")
    return done.stdout
