"""What a network's job asks of Slurm: the recipe's optional key `slurm`, checked.

    slurm: {partition: gpu, account: vision, time: "24:00:00", memory: 16G, cpus: 8, gpus: 1, signal_seconds: 120,
            extra: [--constraint=a100]}

It changes where and when networks are trained, not what becomes of them: it is no setting of a network.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from transfer_caffe.utils.errors import UserError
from transfer_caffe.utils.strict_yaml import Section, is_whole, shown

TIME = '"HH:MM:SS", "D-HH:MM:SS" or minutes, in quotes, was expected'

# Flags of sbatch on which the sweep relies: it gives them itself, and finds its jobs again by some of them.
OURS = {
    "-a", "--array", "--comment", "-D", "--chdir", "-d", "--dependency", "-J", "--job-name", "-o", "--output",
    "--no-requeue", "--parsable", "-Q", "--quiet", "--signal", "--wrap", "-W", "--wait", "--test-only", "-H", "--hold",
}  # fmt: skip


@dataclass(frozen=True)
class SlurmSettings:
    """What a job asks for. ``cpus`` and ``gpus`` are None where they follow from the recipe's threads and solver.

    ``signal_seconds``: so long before its time limit a job is told to write a snapshot, and is queued again.
    ``extra``: more flags of sbatch, which come last and so win over ours.
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
        """This, if it makes sense; else UserError that begins with ``where``."""
        limit = seconds_of(self.time)
        if limit is None:
            raise UserError(f"{where}: time: {TIME}, not {shown(self.time)}")
        if limit <= self.signal_seconds:
            raise UserError(
                f"{where}: time: {self.time} is not more than the {self.signal_seconds} signal_seconds: a job would be "
                "told to stop as soon as it starts; ask for more time, or set signal_seconds"
            )
        if not re.fullmatch(r"[0-9]+[KMGT]?", self.memory):
            raise UserError(f"{where}: memory: a number with K, M, G or T was expected, not {shown(self.memory)}")
        for flag in self.extra:
            name = flag.split("=", 1)[0]
            if name in OURS:
                raise UserError(f"{where}: {flag}: the sweep itself says that to sbatch, and relies on it")
        return self


def seconds_of(time: str) -> int | None:
    """Slurm's time limits in seconds: M, M:S, H:M:S, D-H, D-H:M, D-H:M:S; None for what is none of these."""
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
    """The recipe's `slurm`. UserError for what sbatch would not take, or the sweep says itself."""
    default = SlurmSettings()

    def optional(key: str) -> str | None:
        return section.text(key) if key in section.left else section.take(key, None)

    partition, account = optional("partition"), optional("account")
    time = section.take("time", default.time)
    if not isinstance(time, str):
        section.fail("time", f"{TIME}, not {shown(time)} (YAML takes 24:00:00 without quotes for a number)")
    memory = section.text("memory", default.memory)
    cpus = section.whole("cpus", 1) if "cpus" in section.left else section.take("cpus", None)
    gpus = section.whole("gpus", 0) if "gpus" in section.left else section.take("gpus", None)
    if gpus is not None and gpus > 1:
        section.fail("gpus", f"0 or 1 was expected, not {gpus}: a network is trained on one GPU")
    signal_seconds = section.whole("signal_seconds", 10, default.signal_seconds)
    if not is_whole(65535 - signal_seconds, 0):
        section.fail("signal_seconds", f"65535 is the most that sbatch takes, not {signal_seconds}")
    extra = section.take("extra", [])
    if not isinstance(extra, list) or not all(isinstance(flag, str) and flag.startswith("-") for flag in extra):
        section.fail("extra", f"a list of flags of sbatch, as --qos=long, was expected, not {shown(extra)}")
    section.end()
    settings = SlurmSettings(partition, account, time, memory, cpus, gpus, signal_seconds, tuple(extra))
    return settings.checked(section.where)


def flags(settings: SlurmSettings, threads: int, gpus: int) -> Sequence[str]:
    """What the settings are as flags of sbatch, for a job of so many threads and GPUs."""
    given = [f"--time={settings.time}", f"--mem={settings.memory}", f"--cpus-per-task={settings.cpus or threads}"]
    given += [f"--signal=B:USR1@{settings.signal_seconds}"]
    given += [f"--gres=gpu:{gpus}"] * bool(gpus)
    given += [f"--partition={settings.partition}"] * bool(settings.partition)
    given += [f"--account={settings.account}"] * bool(settings.account)
    return [*given, *settings.extra]
