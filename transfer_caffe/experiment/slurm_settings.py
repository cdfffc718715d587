"""The resources that a network's job requests from Slurm: the recipe's optional key `slurm`, checked.

    slurm: {partition: gpu, account: vision, time: "24:00:00", memory: 16G, cpus: 8, gpus: 1, signal_seconds: 120,
            extra: [--constraint=a100]}

The key changes where and when networks are trained, not their results, so it is not one of a network's settings.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from transfer_caffe.utils.errors import UserError
from transfer_caffe.utils.strict_yaml import Section, is_whole, shown

TIME = '"HH:MM:SS", "D-HH:MM:SS" or minutes, in quotes, was expected'

# Flags of sbatch that the sweep sets itself and relies on, for example to find its jobs in the queue.
OURS = {
    "-a", "--array", "--comment", "-D", "--chdir", "-d", "--dependency", "-J", "--job-name", "-o", "--output",
    "--no-requeue", "--parsable", "-Q", "--quiet", "--signal", "--wrap", "-W", "--wait", "--test-only", "-H", "--hold",
    "-M", "--clusters",
}  # fmt: skip


@dataclass(frozen=True)
class SlurmSettings:
    """The resources a job requests. If ``cpus`` or ``gpus`` is None, the recipe's threads or solver_mode decide.

    ``signal_seconds``: how long before its time limit a job is signalled to write a snapshot and is requeued.
    ``extra``: further flags for sbatch, passed last so that they override the sweep's own.
    """

    partition: str | None = None
    account: str | None = None
    time: str = "24:00:00"
    memory: str = "16G"
    cpus: int | None = None
    gpus: int | None = None
    signal_seconds: int = 120
    extra: tuple[str, ...] = ()

    def checked(self, where: str) -> SlurmSettings:
        """Return these settings if they are valid; else raise UserError with a message that begins with ``where``."""
        limit = seconds_of(self.time)
        if limit is None:
            raise UserError(f"{where}: time: {TIME}, not {shown(self.time)}")
        if limit <= self.signal_seconds:
            raise UserError(
                f"{where}: time: {self.time} is not longer than signal_seconds, {self.signal_seconds} s: a job would "
                "be told to stop as soon as it starts; request more time, or lower signal_seconds"
            )
        if not re.fullmatch(r"[0-9]+[KMGT]?", self.memory):
            raise UserError(f"{where}: memory: a number with K, M, G or T was expected, not {shown(self.memory)}")
        for flag in self.extra:
            # sbatch also takes -JNAME for -J NAME, and the beginning of a long flag
            name = flag.split("=", 1)[0] if flag.startswith("--") else flag[:2]
            if name in OURS or (len(name) > 2 and any(ours.startswith(name) for ours in OURS)):
                raise UserError(f"{where}: {flag}: the sweep sets this flag of sbatch itself; remove it")
        return self


def seconds_of(time: str) -> int | None:
    """Convert a Slurm time limit (M, M:S, H:M:S, D-H, D-H:M or D-H:M:S) to seconds; None for any other text."""
    match = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", time)
    if not match:
        return None
    days, *rest = match.groups()
    parts = [int(part) for part in rest if part is not None]
    if days is None and len(parts) < 3:
        parts.insert(0, 0)  # without days and hours, the first number is minutes
    hours, minutes, seconds = (*parts, 0, 0)[:3]
    return ((int(days or 0) * 24 + hours) * 60 + minutes) * 60 + seconds


def read_slurm(section: Section) -> SlurmSettings:
    """Read the recipe's `slurm`. Raise UserError for values that sbatch would reject or flags that the sweep sets."""
    default = SlurmSettings()

    def optional(key: str) -> str | None:
        return section.text(key) if key in section.left else section.take(key, None)

    partition, account = optional("partition"), optional("account")
    time = section.take("time", default.time)
    if not isinstance(time, str):
        section.fail("time", f"{TIME}, not {shown(time)} (YAML reads 24:00:00 without quotes as a number)")
    memory = section.text("memory", default.memory)
    cpus = section.whole("cpus", 1) if "cpus" in section.left else section.take("cpus", None)
    gpus = section.whole("gpus", 0) if "gpus" in section.left else section.take("gpus", None)
    if gpus is not None and gpus > 1:
        section.fail("gpus", f"0 or 1 was expected, not {gpus}: a network is trained on one GPU")
    signal_seconds = section.whole("signal_seconds", 10, default.signal_seconds)
    if not is_whole(65535 - signal_seconds, 0):
        section.fail("signal_seconds", f"sbatch accepts at most 65535, not {signal_seconds}")
    extra = section.take("extra", [])
    if not isinstance(extra, list) or not all(isinstance(flag, str) and flag.startswith("-") for flag in extra):
        section.fail("extra", f"a list of sbatch flags, for example --qos=long, was expected, not {shown(extra)}")
    section.end()
    settings = SlurmSettings(partition, account, time, memory, cpus, gpus, signal_seconds, tuple(extra))
    return settings.checked(section.where)


def flags(settings: SlurmSettings, threads: int, gpus: int) -> Sequence[str]:
    """Return the settings as flags of sbatch, for a job with ``threads`` CPU threads and ``gpus`` GPUs."""
    given = [f"--time={settings.time}", f"--mem={settings.memory}", f"--cpus-per-task={settings.cpus or threads}"]
    given += [f"--signal=B:USR1@{settings.signal_seconds}"]
    given += [f"--gres=gpu:{gpus}"] * bool(gpus)
    given += [f"--partition={settings.partition}"] * bool(settings.partition)
    given += [f"--account={settings.account}"] * bool(settings.account)
    return [*given, *settings.extra]
