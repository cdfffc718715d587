"""Child processes that end with their parent, and signals that request an orderly stop."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO

PACKAGE_PARENT = str(Path(__file__).resolve().parent.parent.parent)
"""The folder to put on PYTHONPATH, so that a child process finds this package from any folder."""

SHARED_RECORDS = "TRANSFER_CAFFE_SHARED_RECORDS"
"""The environment variable by which a sweep tells engines that they share a GPU: see `engine.batches.sharing`."""


def environment() -> dict[str, str]:
    """Return this process's environment, with PYTHONPATH set so that a child finds this package from any folder."""
    paths = [PACKAGE_PARENT, *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}


def start(
    argv: Sequence[str], output: IO[bytes], folder: Path | None = None, env: dict[str, str] | None = None,
    keep_open: Sequence[int] = (),
) -> subprocess.Popen[bytes]:  # fmt: skip
    """Start a child in its own process group. It is killed when this process dies, for whatever reason.

    Ctrl-C at the terminal reaches only this process, which then signals the child; so the child gets one signal, not
    two. ``keep_open``: file descriptors of locks that the child also holds open. Not for use in threads.
    """
    return subprocess.Popen(
        argv, cwd=folder, env=env, stdin=subprocess.DEVNULL, stdout=output, stderr=output, process_group=0,
        pass_fds=keep_open, preexec_fn=_dies_with(os.getpid()),
    )  # fmt: skip


def _dies_with(parent: int) -> Callable[[], None]:
    """Return a function that makes Linux kill the child when its parent dies. On other systems only the lock protects.

    The function is to be called in the child.
    """
    prctl = getattr(ctypes.CDLL(None), "prctl", None)

    def ask() -> None:
        # a shell starts background commands with SIGINT ignored, and children would inherit that
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        # schedulers send SIGTERM to all processes at once; an engine ignores it and waits for its driver's signal
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        if prctl is not None:
            prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
            if os.getppid() != parent:  # the parent died before the call of prctl
                os._exit(1)

    return ask


def interrupt_on_signals() -> None:
    """Make SIGTERM and SIGUSR1 act like Ctrl-C: an orderly stop, with a snapshot. Call it in a command's main thread.

    SIGINT is handled in the background too, where a shell has it ignored. Repeated SIGTERM and SIGUSR1 are ignored:
    Slurm sends them to all processes of a job, and the job's script passes them on. Only a second Ctrl-C stops the
    command at once.
    """
    asked: list[int] = []

    def interrupt(number: int, _: object) -> None:
        if number != signal.SIGINT and asked:
            return
        asked.append(number)
        raise KeyboardInterrupt

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, interrupt)
