"""Engines as programs, and what keeps them from each other's way: locks, and children that die with their parent.

And what this process has of the machine: cores, memory.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import math
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from transfer_caffe import real_caffe
from transfer_caffe.errors import UserError

PACKAGE_PARENT = str(Path(__file__).resolve().parent.parent)
"""For PYTHONPATH: a child finds this package from any folder."""

SHARED_RECORDS = "TRANSFER_CAFFE_SHARED_RECORDS"
"""The variable by which a sweep tells engines that they share a GPU: `engine.sharing`."""


def cores(root: Path = Path("/")) -> int:
    """The processors that this process may use: those of its affinity, or of a container's quota if that is less.

    A quota of one and a half is one: two threads would wait for the next period. ``root`` is where proc and sys lie.
    """
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    for group in _groups(root, "cpu"):
        count = min(count, *(max(1, math.floor(quota)) for quota in _quotas(group)), count)
    return count


def _quotas(group: Path) -> Iterator[float]:
    """The processors that a cgroup's quota allows, if it has one; of version 2, or 1."""
    with contextlib.suppress(OSError, ValueError):  # a quota of `max` is no number
        most, period = (group / "cpu.max").read_text().split()
        yield int(most) / int(period)
    with contextlib.suppress(OSError, ValueError):
        most, period = (int((group / f"cpu.cfs_{name}_us").read_text()) for name in ("quota", "period"))
        if most > 0:
            yield most / period


def _groups(root: Path, controller: str) -> Iterator[Path]:
    """The folders of the cgroups of this process that a controller may limit, up to the root; of version 2, and 1."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:  # not Linux
        return
    for line in lines:
        _, controllers, name = line.split(":", 2)
        if controllers in ("", controller) or controller in controllers.split(","):
            for place in ("sys/fs/cgroup", f"sys/fs/cgroup/{controllers}", f"sys/fs/cgroup/{controller}"):
                group = root / place / name.lstrip("/")
                yield from (group, *group.parents)


def keep_freed_memory() -> None:
    """Ask glibc to keep freed memory for the next record or iteration; else it comes again as pages to be cleared.

    That saves half of the time of writing a database. Elsewhere than on glibc nothing happens.
    """
    with contextlib.suppress(AttributeError, OSError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(-3, 1 << 30)  # M_MMAP_THRESHOLD
        mallopt(-1, 1 << 30)  # M_TRIM_THRESHOLD


def available_memory(root: Path = Path("/")) -> int:
    """The bytes of memory that may be filled without the system, or a job's limit (a cgroup's), objecting.

    Pages of files that were read do not count as used: they make room. ``root`` is where proc and sys lie.
    """
    lines = (root / "proc/meminfo").read_text().splitlines()
    found = dict(line.split(":", 1) for line in lines if ":" in line)
    available = [int(found["MemAvailable"].split()[0]) << 10]
    for line in (root / "proc/self/cgroup").read_text().splitlines():
        _, controllers, name = line.split(":", 2)
        for place, limit, used in (
            ("sys/fs/cgroup", "memory.max", "memory.current"),
            ("sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes"),
        ):
            if controllers in ("", "memory"):
                group = root / place / name.lstrip("/")
                available += [_room(each, limit, used) for each in (group, *group.parents)]
    return max(0, min(available))


def _room(group: Path, limit: str, used: str) -> int:
    """What a cgroup's limit leaves; very much where there is none, or no such cgroup can be seen."""
    try:
        most, now = int((group / limit).read_text()), int((group / used).read_text())
        statistics = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        return most - now + int(statistics.get("total_inactive_file", statistics.get("inactive_file", 0)))
    except (OSError, ValueError):  # a limit of `max` is no number
        return 1 << 62


@dataclass(frozen=True)
class Engine:
    """A program with Caffe's command line. ``name`` says in records which; ``argv`` starts it."""

    name: str
    argv: tuple[str, ...]

    @property
    def reads_views(self) -> bool:
        """Whether a Data layer may name a view (`transfer_caffe.views`) as its source."""
        return self.name == "embedded"

    @classmethod
    def find(cls, given: str) -> Engine:
        """The engine of an --engine option: `embedded`, `caffe` (`real_caffe`), or a program, with arguments."""
        if given == "embedded":
            return cls("embedded", (sys.executable, "-m", "transfer_caffe.engine"))
        if given == "caffe":
            found = real_caffe.program()
            if found is None:
                raise UserError("--engine caffe: there is no Caffe here; run `make caffe`, or set CAFFE=/path/to/caffe")
            return cls("caffe", (str(found),))
        try:
            words = [given] if shutil.which(given) else shlex.split(given)  # a path may hold spaces
        except ValueError as error:
            raise UserError(f"--engine {given}: {error}") from None
        program = shutil.which(words[0]) if words else None
        if program is None:
            raise UserError(f"--engine {given}: there is no such program; take `embedded`, or give the path of a caffe")
        # engines run in the network's folder, where a relative path would mean another program
        return cls(" ".join([Path(words[0]).name, *words[1:]]), (os.path.abspath(program), *words[1:]))

    def computing_in(self, precision: str) -> list[str]:
        """The flags by which it computes in a recipe's precision. UserError if it knows fp32 alone."""
        if precision == "fp32":
            return []
        if self.name != "embedded":
            raise UserError(
                f"the engine {self.name} computes in fp32 alone, not in {precision}; take --engine embedded, or a "
                "recipe without `precision`"
            )
        return ["--precision", precision]

    def environment(self, threads: int | None) -> dict[str, str]:
        """Return what the engine runs under: the log on standard error, ``threads`` (None: as it chooses)."""
        names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
        counts = {} if threads is None else dict.fromkeys(names, str(threads))
        return {**environment(), **counts, "GLOG_logtostderr": "1"}


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


class Busy(Exception):
    """Somebody else is at work, and this process was told not to wait: who, in one line. Exit code 75."""


@contextlib.contextmanager
def lock(path: Path, what: str, say: Callable[[str], None], wait: bool = True) -> Iterator[int]:
    """Hold the lock file ``path``, waiting for whoever holds it; yields its descriptor, for children to inherit.

    The kernel gives the lock up when all that hold the descriptor have ended, so a kill leaves no stale lock. Without
    ``wait`` a lock that is held raises Busy. UserError where the file system has no locks.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            _flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, path)
        except BlockingIOError:
            holder = os.pread(descriptor, 200, 0).decode(errors="replace").strip() or "another process"
            if not wait:
                raise Busy(f"{what}: {holder} is at work on it; not waiting") from None
            say(f"{what}: {holder} is at work on it; waiting until it ends")
            _flock(descriptor, fcntl.LOCK_EX, path)
        with contextlib.suppress(OSError):  # who holds it is a courtesy; on a full disk the lock holds all the same
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
        yield descriptor
    finally:
        os.close(descriptor)


_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


def _flock(descriptor: int, operation: int, path: Path) -> None:
    try:
        fcntl.flock(descriptor, operation)
    except OSError as error:
        if error.errno in _NO_LOCKS:
            raise UserError(
                f"{path}: this file system has no locks ({error.strerror}), and without one two processes could train "
                "the same network; have it mounted with locks (Lustre: -o flock), or take another folder"
            ) from None
        raise


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
