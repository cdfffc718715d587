"""What pycaffe keeps for the process: CPU or GPU, the random seed, the log, the numbers of solvers."""

from __future__ import annotations

import os
import sys
import time

import torch

from transfer_caffe.caffe.errors import CaffeError
from transfer_caffe.engine import glog, rng

_gpu = False
_device_id = 0
_seed: int | None = None
_nets = 0
_solvers = {"count": 1, "rank": 0, "multiprocess": False}


def device() -> torch.device:
    """Return the device on which new nets are built."""
    return torch.device("cuda", _device_id) if _gpu else torch.device("cpu")


def set_mode_cpu() -> None:
    """Build the nets that follow on the CPU."""
    global _gpu
    _gpu = False


def set_mode_gpu() -> None:
    """Build the nets that follow on the GPU (`set_device`). Raise RuntimeError if PyTorch finds none."""
    global _gpu
    if not torch.cuda.is_available():
        raise CaffeError("set_mode_gpu: PyTorch finds no GPU on this machine; call caffe.set_mode_cpu() instead")
    _gpu = True


def set_device(number: int) -> None:
    """Choose the GPU on which `set_mode_gpu` builds nets. Raise RuntimeError if there is no such GPU."""
    global _device_id
    if not 0 <= number < torch.cuda.device_count():
        raise CaffeError(f"set_device({number}): this machine has {torch.cuda.device_count()} usable GPUs")
    _device_id = number


def set_random_seed(seed: int) -> None:
    """Seed the fillers, Dropout and random data of the nets that are built from here on."""
    global _seed, _nets
    _seed, _nets = int(seed), 0


def is_seeded() -> bool:
    """Return whether `set_random_seed` was called."""
    return _seed is not None


def next_seed() -> int:
    """Return the seed of the next net: after `set_random_seed` the same sequence each time."""
    global _nets
    if _seed is None:
        return int.from_bytes(os.urandom(4), "little")
    _nets += 1
    return _seed if _nets == 1 else rng.derived_seed(_seed, "net", _nets) % 2**32


def init_log(level: int = 0, stderr: bool = True) -> None:
    """Write the log to standard error from this level on: 0 is everything, 1 warnings, 2 errors only."""
    glog.set_logging(level <= 0 and stderr)


def log(message: str) -> None:
    """Write a line to the log."""
    glog.info("_caffe.cpp:0", message)


def start_log() -> None:
    """Log as pycaffe does when it is imported: unless the environment variable GLOG_minloglevel is 1 or more."""
    level = os.environ.get("GLOG_minloglevel", "0")  # noqa: SIM112 - glog's name
    init_log(int(level) if level.isdecimal() else 0)


def has_nccl() -> bool:
    """Return False: a solver computes on one device."""
    return False


def solver_count() -> int:
    """Return the number that `set_solver_count` set."""
    return _solvers["count"]


def set_solver_count(count: int) -> None:
    """Set the number of solvers that train together; it is only kept."""
    _solvers["count"] = count


def solver_rank() -> int:
    """Return the number that `set_solver_rank` set."""
    return _solvers["rank"]


def set_solver_rank(rank: int) -> None:
    """Set the number of this solver among those that train together; it is only kept."""
    _solvers["rank"] = rank


def set_multiprocess(multiprocess: bool) -> None:
    """Say whether solvers run in several processes; it is only kept."""
    _solvers["multiprocess"] = multiprocess


class NCCL:
    """Training on several GPUs is not supported."""

    def __init__(self, *_: object) -> None:
        """Raise RuntimeError."""
        raise CaffeError("NCCL: a solver computes on one device; train one network per GPU instead")


class Timer:
    """A stopwatch (caffe/util/benchmark.hpp): `start`, `stop`, and then ``ms``."""

    def __init__(self) -> None:
        """Create a stopwatch that shows 0."""
        self._since: float | None = None
        self._seconds = 0.0

    def start(self) -> None:
        """Start; a running stopwatch goes on."""
        if self._since is None:
            self._since = _now()

    def stop(self) -> None:
        """Stop."""
        if self._since is not None:
            self._seconds, self._since = _now() - self._since, None

    @property
    def ms(self) -> float:
        """The milliseconds from start to stop; 0, with a warning, if it was never started."""
        if self._since is not None:
            self.stop()
        elif not self._seconds:
            print("Timer has never been run before reading time.", file=sys.stderr)
        return self._seconds * 1000


def _now() -> float:
    if _gpu:
        torch.cuda.synchronize()
    return time.perf_counter()
