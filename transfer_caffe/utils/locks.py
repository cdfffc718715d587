"""Locks on files, held until the last process that has them open has ended.

with lock(folder / ".lock", "the network", print):
    ...
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

from transfer_caffe.utils.errors import UserError


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
