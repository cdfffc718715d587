"""File locks, held until the last process that has the lock file open has ended.

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
    """Another process holds the lock, and this one must not wait. One line names the holder. Exit code 75."""


@contextlib.contextmanager
def lock(path: Path, what: str, say: Callable[[str], None], wait: bool = True) -> Iterator[int]:
    """Hold the lock file ``path``, waiting until it is free; yield its descriptor, which children can inherit.

    The kernel releases the lock when all processes that hold the descriptor have ended, so a killed process leaves no
    stale lock. Without ``wait``, raise Busy if the lock is held. Raise UserError if the file system has no locks.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            _flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, path)
        except BlockingIOError:
            holder = os.pread(descriptor, 200, 0).decode(errors="replace").strip() or "another process"
            if not wait:
                raise Busy(f"{what}: {holder} is using it; not waiting") from None
            say(f"{what}: {holder} is using it; waiting until it ends")
            _flock(descriptor, fcntl.LOCK_EX, path)
        with contextlib.suppress(OSError):  # the holder's name is only informative; the lock also works on a full disk
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
        yield descriptor
    finally:
        os.close(descriptor)


_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


def _flock(descriptor: int, operation: int, path: Path) -> None:
    """Call flock. Raise UserError if the file system has no locks."""
    try:
        fcntl.flock(descriptor, operation)
    except OSError as error:
        if error.errno in _NO_LOCKS:
            raise UserError(
                f"{path}: this file system does not support locks ({error.strerror}), and without a lock two processes "
                "could train the same network; mount it with locks (Lustre: -o flock), or use another folder"
            ) from None
        raise
