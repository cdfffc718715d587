"""The Slurm commands that a sweep needs: list its jobs in the queue, submit a job, release and cancel jobs.

    for job in jobs("transfer_caffe demo /home/me/runs").values():
        print(job.name, job.state, job.node)

A sweep finds its jobs by their comment and user. So no job ids are stored in files, which could differ from the queue.
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
"""Final states of jobs; a preempted job that is requeued is PENDING."""

AT_A_TIME = 500
"""Maximum number of job ids in one command line."""


class SlurmError(UserError):
    """Slurm refused a request, or does not answer."""


@dataclass(frozen=True)
class Job:
    """A job of a sweep. ``name`` is its network's name, or `submit.DATA`; ``state`` and ``reason`` are Slurm's."""

    id: int
    name: str
    state: str
    reason: str
    node: str
    left: str = ""
    """The time left until its limit, in Slurm's format, for example 1-02:03:04."""

    @property
    def live(self) -> bool:
        """Whether the job is running or may still run; False if its dependency failed."""
        return self.state not in ENDED and self.reason != "DependencyNeverSatisfied"

    @property
    def launch_failed(self) -> bool:
        """Whether Slurm holds the job because a node could not start it, for example after a crash of slurmctld."""
        return self.state == "PENDING" and "launch failed" in self.reason

    @property
    def held(self) -> bool:
        """Whether the job waits until it is released."""
        return self.state == "PENDING" and "held" in self.reason.lower()


def tag(recipe: Recipe, runs: Path) -> str:
    """Return the comment of a sweep's jobs: recipe and runs folder, which identify the sweep."""
    return f"transfer_caffe {recipe.name} {runs.resolve()}"


def jobs(comment: str) -> dict[str, Job]:
    """Return the user's jobs with this comment, by name: the live one, else the newest one that Slurm still lists."""
    user = pwd.getpwuid(os.geteuid()).pw_name
    # the comment comes last because it may contain any character
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
    """Submit a batch script with sbatch and return the job id. Raise SlurmError if it is refused."""
    out = slurm("sbatch", "--parsable", *flags, given=script)
    number = out.strip().split(";")[0]  # with several clusters, the cluster's name follows
    if not number.isdecimal():
        raise SlurmError(f"sbatch: printed {out.strip()[:200]!r}, but a job id was expected")
    return int(number)


def release(job: Job) -> None:
    """Release a held job. Raise SlurmError if the user is not allowed to."""
    slurm("scontrol", "release", str(job.id))


def cancel(numbers: Iterable[int], *flags: str) -> None:
    """Cancel jobs with scancel. A job that has ended in the meantime is not an error."""
    ids = [str(number) for number in numbers]
    for first in range(0, len(ids), AT_A_TIME):
        try:
            slurm("scancel", *flags, *ids[first : first + AT_A_TIME])
        except SlurmError as error:
            # a job that has just ended; jobs that are still live are seen in the queue
            if "already compl" not in str(error) and "Invalid job" not in str(error):
                raise


def require_slurm(program: str = "squeue") -> None:
    """Raise SlurmError unless this machine has Slurm's commands."""
    if shutil.which(program) is None:
        raise SlurmError(
            f"there is no {program} here; log in to a node from which Slurm jobs can be submitted, or train on this "
            "machine: omit --slurm (SLURM=1) from `sweep run`"
        )


def slurm(program: str, *argv: str, given: str = "") -> str:
    """Run a Slurm command and return its output. Raise SlurmError with its error message if it fails."""
    require_slurm(program)
    done = subprocess.run([program, *argv], input=given, capture_output=True, text=True, errors="replace", check=False)
    if done.returncode:
        lines = [line.strip().removeprefix(f"{program}: ").removeprefix("error: ") for line in done.stderr.splitlines()]
        words = "; ".join(dict.fromkeys(filter(None, lines))) or f"exit code {done.returncode}"
        raise SlurmError(f"{program}: {words}")
    return done.stdout
