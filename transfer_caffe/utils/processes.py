"""Child processes that end with their parent, and signals that request an orderly stop."""

from __future__ import annotations

import ctypes
import importlib
import os
import signal
import subprocess
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import IO, NoReturn

PACKAGE_PARENT = str(Path(__file__).resolve().parent.parent.parent)
"""The folder to put on PYTHONPATH, so that a child process finds this package from any folder."""

SHARED_RECORDS = "TRANSFER_CAFFE_SHARED_RECORDS"
"""The environment variable by which a sweep tells engines that they share a GPU: see `engine.batches.sharing`."""


def environment() -> dict[str, str]:
    """Return this process's environment, with PYTHONPATH set so that a child finds this package from any folder."""
    paths = [PACKAGE_PARENT, *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}


_preloaded: dict[str, Callable[[list[str]], int | None]] = {}
"""The ``main`` of commands that `start` forks, by the module's name."""
_most_threads = 0
"""The number of threads of this process when the commands were imported."""


class Forked:
    """A child that was forked: the part of subprocess.Popen that is needed here."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None
        """The exit code once it is known; the negative number of the signal that ended the child."""

    def poll(self) -> int | None:
        """Return the exit code if the child has ended, otherwise None."""
        return self._wait(os.WNOHANG)

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the end and return the exit code. Raise TimeoutExpired after ``timeout`` seconds."""
        if timeout is None:
            code = self._wait(0)
            assert code is not None
            return code
        end = time.monotonic() + timeout
        while (code := self.poll()) is None:
            if time.monotonic() > end:
                raise subprocess.TimeoutExpired(f"process {self.pid}", timeout)
            time.sleep(0.02)
        return code

    def _wait(self, options: int) -> int | None:
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, options)
            if pid:
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Send a signal to the child if it has not ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """Kill the child if it has not ended."""
        self.send_signal(signal.SIGKILL)


Child = subprocess.Popen[bytes] | Forked


def preload(*modules: str) -> None:
    """Import commands (`python -m MODULE`) into this process; `start` then forks it instead of starting Python.

    A new process needs 1.7 s of processor time to import PyTorch, a sixth of what it takes to train a network of the
    demo. Nothing is done on systems other than Linux, where libraries may not survive a fork, and in processes that may
    have computed with PyTorch already: its threads are missing in a child, which would wait for them forever. `start`
    does not fork either once there are more threads than now.
    """
    global _most_threads
    if sys.platform != "linux" or "torch" in sys.modules:
        return
    for module in modules:
        spec = find_spec(module)
        package = spec is not None and spec.submodule_search_locations is not None
        _preloaded[module] = importlib.import_module(f"{module}.__main__" if package else module).main
    _most_threads = _threads()


def _threads() -> int:
    return len(os.listdir("/proc/self/task"))


def start(
    argv: Sequence[str], output: IO[bytes], folder: Path | None = None, env: dict[str, str] | None = None,
    keep_open: Sequence[int] = (),
) -> Child:  # fmt: skip
    """Start a child in its own process group. It is killed when this process dies, for whatever reason.

    Ctrl-C at the terminal reaches only this process, which then signals the child; so the child gets one signal, not
    two. ``keep_open``: file descriptors of locks that the child also holds open. Not for use in threads.
    """
    if (
        len(argv) > 2
        and list(argv[:2]) == [sys.executable, "-m"]
        and argv[2] in _preloaded
        and _threads() <= _most_threads
    ):
        return _fork(argv[2:], output, folder, env, keep_open)
    return subprocess.Popen(
        argv, cwd=folder, env=env, stdin=subprocess.DEVNULL, stdout=output, stderr=output, process_group=0,
        pass_fds=keep_open, preexec_fn=_dies_with(os.getpid()),
    )  # fmt: skip


def _fork(
    argv: Sequence[str], output: IO[bytes], folder: Path | None, env: dict[str, str] | None, keep_open: Sequence[int]
) -> Forked:
    """Fork a child that runs a preloaded command as if Python had been started for it."""
    prepare = _dies_with(os.getpid())
    with warnings.catch_warnings():
        # of a process that has threads: those of numpy's BLAS, which are started again in the child
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = os.fork()
    if pid:
        with suppress(OSError):  # the child does the same, and one of them is first
            os.setpgid(pid, 0)
        return Forked(pid)
    _run(argv, output, folder, env, keep_open, prepare)


def _run(
    argv: Sequence[str], output: IO[bytes], folder: Path | None, env: dict[str, str] | None, keep_open: Sequence[int],
    prepare: Callable[[], None],
) -> NoReturn:  # fmt: skip
    """Run a preloaded command in a child that was just forked, and end the child."""
    code = 1
    try:
        with suppress(OSError):
            os.setpgid(0, 0)
        for number in signal.valid_signals():
            if callable(signal.getsignal(number)):  # the parent's handlers
                signal.signal(number, signal.SIG_DFL)
        prepare()
        signal.signal(signal.SIGINT, signal.default_int_handler)
        _take_files(output.fileno(), keep_open)
        if env is not None:
            os.environ.clear()
            os.environ.update(env)
        if folder is not None:
            os.chdir(folder)
        _set_threads()
        sys.argv = list(argv)
        code = _preloaded[argv[0]](list(argv[1:])) or 0
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 0 if error.code is None else 1
    except KeyboardInterrupt:
        code = 130
    except BaseException:
        traceback.print_exc()
    finally:
        with suppress(BaseException):
            sys.stdout.flush()
            sys.stderr.flush()
        # not sys.exit: nothing of the parent's, such as its open locks, may be cleaned up here
        os._exit(code)


def _take_files(output: int, keep_open: Sequence[int]) -> None:
    """Use ``output`` for the output, and close all other files of the parent but ``keep_open``."""
    null = os.open(os.devnull, os.O_RDONLY)
    for source, target in ((null, 0), (output, 1), (output, 2)):
        os.dup2(source, target)
    # not os.closerange: without a system call for it, it tries all numbers, of which there may be a billion
    for name in os.listdir("/proc/self/fd"):
        if int(name) > 2 and int(name) not in keep_open:
            with suppress(OSError):  # that of the folder itself
                os.close(int(name))
    sys.stdin = open(0, closefd=False)  # noqa: SIM115 - until the process ends
    sys.stdout = open(1, "w", encoding="utf-8", errors="backslashreplace", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", encoding="utf-8", errors="backslashreplace", closefd=False, buffering=1)  # noqa: SIM115


def _set_threads() -> None:
    """Let PyTorch, which read OMP_NUM_THREADS when it was loaded, use this process's value."""
    given = os.environ.get("OMP_NUM_THREADS", "").split(",")[0]
    if given.isdecimal() and (torch := sys.modules.get("torch")) is not None:
        torch.set_num_threads(max(1, int(given)))


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
    """Make SIGTERM, SIGUSR1 and SIGHUP act like Ctrl-C: an orderly stop, with a snapshot. Call it in the main thread.

    SIGINT is handled in the background too, where a shell has it ignored. SIGHUP, which a closed terminal sends, stays
    ignored if it was, as by nohup. Repeated SIGTERM, SIGUSR1 and SIGHUP are ignored: Slurm sends the first two to all
    processes of a job, and the job's script passes them on. Only a second Ctrl-C stops the command at once.
    """
    asked: list[int] = []

    def interrupt(number: int, _: object) -> None:
        if number != signal.SIGINT and asked:
            return
        asked.append(number)
        raise KeyboardInterrupt

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP):
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, interrupt)
