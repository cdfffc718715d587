"""The slots in which a sweep trains its networks: this machine's GPUs, each for one sweep at a time, or its CPU cores.

    slots = GpuSlots(choose("0,2", find_gpus()), 1, print)      # or CpuSlots(4)
    slot = slots.take()                 # None while all are in use, by this sweep or by another
    subprocess.Popen(..., env=os.environ | slot.environment, pass_fds=slot.keep_open)
    slots.give_back(slot)

A GPU is guarded by a locked file that the processes of its networks hold open. It stays locked until the last of them
has ended, even if the sweep was killed. A child only sees its own GPU, as number 0, so that a network may be resumed on
another GPU.
"""

from __future__ import annotations

import fcntl
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from transfer_caffe.utils.errors import UserError
from transfer_caffe.utils.processes import SHARED_RECORDS

VISIBLE = "CUDA_VISIBLE_DEVICES"

_BY_TORCH = "import torch; [print(torch.cuda.get_device_name(i)) for i in range(torch.cuda.device_count())]"


@dataclass(frozen=True)
class Gpu:
    """A GPU that this process may use; ``number`` counts from 0, ``key`` identifies it for CUDA_VISIBLE_DEVICES."""

    number: int
    key: str
    name: str


def find_gpus() -> list[Gpu]:
    """Return the GPUs that this process may use: those listed by `nvidia-smi` or PyTorch and CUDA_VISIBLE_DEVICES.

    PyTorch is queried in a child: importing it here would make every process that is started from here larger.
    """
    visible = os.environ.get(VISIBLE)
    wanted = None if visible is None else [word.strip() for word in visible.split(",")]
    listed = _output(["nvidia-smi", "-L"])
    if listed is not None and (found := _parse(listed)):
        if wanted is None:
            return [Gpu(number, key, name) for number, (key, name) in enumerate(found)]
        return _visible(found, wanted)
    names = (_output([sys.executable, "-c", _BY_TORCH]) or "").split("\n")[:-1]
    keys = [str(number) for number in range(len(names))] if wanted is None else wanted
    return [Gpu(number, key, name) for number, (key, name) in enumerate(zip(keys, names, strict=False))]


def _output(argv: list[str]) -> str | None:
    """Return what a program prints; None if it does not exist or fails."""
    try:
        done = subprocess.run(argv, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=120)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.decode(errors="replace") if done.returncode == 0 else None


def _parse(listed: str) -> list[tuple[str, str]]:
    """Return (UUID, name) of each GPU of `nvidia-smi -L`; a GPU partitioned into MIG devices is replaced by these."""
    found: list[tuple[str, str]] = []
    whole: tuple[str, str] | None = None
    for line in listed.splitlines():
        match = re.match(r"(\s*)(?:GPU \d+: )?(.*?)\s*\(UUID: ([^)\s]+)\)", line)
        if match and not match[1]:
            whole = (match[3], match[2])
            found.append(whole)
        elif match:
            if whole in found:
                found.remove(whole)
            found.append((match[3], match[2].strip().rstrip(":")))
    return found


def _visible(found: Sequence[tuple[str, str]], wanted: Sequence[str]) -> list[Gpu]:
    """Return the GPUs that CUDA would show: it accepts numbers and prefixes of UUIDs, and stops at an unknown one."""
    gpus: list[Gpu] = []
    for word in wanted:
        if word.isdecimal():
            fitting = [found[int(word)]] if int(word) < len(found) else []
        else:
            fitting = [each for each in found if word and each[0].startswith(word)]
        if len(fitting) != 1:
            break
        gpus.append(Gpu(len(gpus), *fitting[0]))
    return gpus


def choose(given: str, gpus: Sequence[Gpu]) -> list[Gpu]:
    """Return the GPUs of a --gpu option: `all`, or numbers such as `0,2`. Raise UserError if they do not exist."""
    if not gpus:
        hidden = f"{VISIBLE} is {os.environ[VISIBLE]!r}; " if VISIBLE in os.environ else ""
        raise UserError(f"--gpu {given}: no GPU can be used here ({hidden}omit --gpu or GPU= to train on the CPU)")
    if given == "all":
        return list(gpus)
    numbers = [word.strip() for word in given.split(",")]
    there = ", ".join(f"{gpu.number} ({gpu.name})" for gpu in gpus)
    for word in numbers:
        if not word.isdecimal() or int(word) >= len(gpus):
            raise UserError(f"--gpu {given}: there is no GPU {word!r}; use `all`, or numbers of these GPUs: {there}")
    if len(set(numbers)) < len(numbers):
        raise UserError(f"--gpu {given}: a GPU is listed twice; use --jobs to set how many networks share each")
    return [gpus[int(word)] for word in numbers]


@dataclass(frozen=True)
class Slot:
    """A slot for one network: environment variables and open files for its process."""

    environment: Mapping[str, str] = field(default_factory=dict)
    keep_open: tuple[int, ...] = ()
    gpu: Gpu | None = None


class Slots(Protocol):
    """Slots for a number of networks."""

    count: int

    def take(self) -> Slot | None:
        """Take a free slot; return None if there is none."""
        ...

    def give_back(self, slot: Slot) -> None:
        """Give a slot back after its network has ended."""
        ...


class CpuSlots:
    """A fixed number of slots on the CPU cores."""

    def __init__(self, count: int) -> None:
        self.count, self._free = count, count

    def take(self) -> Slot | None:
        if not self._free:
            return None
        self._free -= 1
        return Slot()

    def give_back(self, slot: Slot) -> None:
        self._free += 1


class GpuSlots:
    """``per_gpu`` slots on each GPU, as long as no other sweep is using that GPU.

    If several networks share a GPU, their engines keep only one copy of the same data (`engine.batches.sharing`).
    """

    def __init__(self, gpus: Sequence[Gpu], per_gpu: int, say: Callable[[str], None]) -> None:
        self.count, self.per_gpu = len(gpus) * per_gpu, per_gpu
        self.environment: dict[str, str] = {}
        """Additional environment variables for all slots."""
        self._gpus, self._say = gpus, say
        self._used = dict.fromkeys(gpus, 0)
        self._locks: dict[Gpu, int] = {}
        self._refused: set[Gpu] = set()

    def take(self) -> Slot | None:
        for gpu in sorted(self._gpus, key=lambda each: self._used[each]):
            if self._used[gpu] < self.per_gpu and self._lock(gpu):
                self._used[gpu] += 1
                shared = {SHARED_RECORDS: f"{self.per_gpu}:{_file_of(gpu, 'records')}"} if self.per_gpu > 1 else {}
                return Slot({VISIBLE: gpu.key, **shared, **self.environment}, (self._locks[gpu],), gpu)
        return None

    def give_back(self, slot: Slot) -> None:
        assert slot.gpu is not None
        self._used[slot.gpu] -= 1
        if not self._used[slot.gpu]:
            os.close(self._locks.pop(slot.gpu))

    def _lock(self, gpu: Gpu) -> bool:
        """Lock the GPU for this sweep, unless it already has; return False while another sweep is using it."""
        if gpu in self._locks:
            return True
        descriptor = os.open(_file_of(gpu, "gpu").with_suffix(".lock"), os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            if gpu not in self._refused:
                self._say(f"GPU {gpu.number} ({gpu.name}): another sweep is using it; waiting until it ends")
                self._refused.add(gpu)
            return False
        self._locks[gpu] = descriptor
        self._refused.discard(gpu)
        return True


def _file_of(gpu: Gpu, what: str) -> Path:
    return lock_folder() / f"{what}-{re.sub(r'[^A-Za-z0-9-]', '_', gpu.key)}"


def lock_folder() -> Path:
    """Return the folder of this user's GPU locks on this machine; create it if necessary."""
    folder = Path(tempfile.gettempdir()) / f"transfer_caffe-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.stat().st_uid != os.getuid():
        raise UserError(f"{folder}: belongs to another user; remove it, or set TMPDIR to one of your folders")
    return folder
