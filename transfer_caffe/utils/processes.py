"""Child processes that end when their parent does, and signals that mean: stop in order."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO

PACKAGE_PARENT = str(Path(__file__).resolve().parent.parent.parent)
"""For PYTHONPATH: a child finds this package from any folder."""

SHARED_RECORDS = "TRANSFER_CAFFE_SHARED_RECORDS"
"""The variable by which a sweep tells engines that they share a GPU: `engine.sharing`."""


def environment() -> dict[str, str]:
    """This process's environment, in which a child finds this package from any folder."""
    paths = [PACKAGE_PARENT, *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}


def start(
    argv: Sequence[str], output: IO[bytes], folder: Path | None = None, env: dict[str, str] | None = None,
    keep_open: Sequence[int] = (),
) -> subprocess.Popen[bytes]:  # fmt: skip
    """Start a child in a process group of its own, which dies at once when this process dies, however it dies.

    A Ctrl-C at the terminal reaches this process alone, which then tells the child; so the child gets one signal,
    not two. ``keep_open``: file descriptors the child holds open as well, those of locks. Not for use in threads.
    """
    return subprocess.Popen(
        argv, cwd=folder, env=env, stdin=subprocess.DEVNULL, stdout=output, stderr=output, process_group=0,
        pass_fds=keep_open, preexec_fn=_dies_with(os.getpid()),
    )  # fmt: skip


def _dies_with(parent: int) -> Callable[[], None]:
    """A function for the child: ask Linux for SIGKILL at the parent's death. Elsewhere the lock alone protects."""
    prctl = getattr(ctypes.CDLL(None), "prctl", None)

    def ask() -> None:
        # a shell starts what runs in the background with SIGINT ignored, and children would inherit that
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        # schedulers send SIGTERM to all processes at once; an engine, which would die of it, waits for its driver
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        if prctl is not None:
            prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
            if os.getppid() != parent:  # it died before we asked
                os._exit(1)

    return ask


def interrupt_on_signals() -> None:
    """Let SIGTERM and SIGUSR1 do what Ctrl-C does: stop in order, with a snapshot. For the main thread of a command.

    They do so in the background too, where a shell has SIGINT ignored. SIGTERM and SIGUSR1 count once, however often
    they come: Slurm sends them to all processes of a job, and the job's script passes them on. Only a second Ctrl-C
    means that it is to end at once.
    """
    asked: list[int] = []

    def interrupt(number: int, _: object) -> None:
        if number != signal.SIGINT and asked:
            return
        asked.append(number)
        raise KeyboardInterrupt

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, interrupt)
