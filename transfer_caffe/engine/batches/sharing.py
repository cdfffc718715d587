"""Share one copy of a source's records among all networks on a GPU; the first network that needs it starts a holder.

    TRANSFER_CAFFE_SHARED_RECORDS=2:/tmp/transfer_caffe-1000/records-GPU-ab12

A sweep sets this variable to the number of networks per GPU and a folder. A separate process, the holder
(`batches.holder`), keeps the records, since GPU memory shared through CUDA IPC lasts only as long as the process that
allocated it. Users hold a connection to the holder through a socket in the folder. The kernel closes it however a user
ends, and when the last user has gone, the holder ends as well. If the holder is killed, its users end at once with one
line and exit code 2, because the memory is no longer theirs; the same command resumes from their snapshots. Records in
the host's memory stay mapped, so their users continue.

All decisions (who starts a holder, what fits in memory, whether a holder ends) are made under one lock per folder.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from transfer_caffe.engine import glog
from transfer_caffe.formats.views import RECORDS, whole_of
from transfer_caffe.utils import processes
from transfer_caffe.utils.errors import UserError, say_error

_PLACE = "data_layer.cpp:45"
_started: list[subprocess.Popen[bytes]] = []
"""Holders that this process has started; they outlive it if other processes use them."""


@dataclass(frozen=True)
class Source:
    """A database or view, and how its images are decoded (see `formats.views.open_records`)."""

    path: Path
    color: bool | None

    def name(self) -> str:
        """Return a short name, which changes when the records change."""
        files = whole_of(self.path) / "data.mdb", self.path / RECORDS
        states = [(state.st_ino, state.st_size, state.st_mtime_ns) for state in (f.stat() for f in files if f.exists())]
        return hashlib.blake2b(repr((str(self.path), self.color, states)).encode(), digest_size=8).hexdigest()


class Lost(Exception):
    """Raised if the holder ended before it shared its records."""


@dataclass(frozen=True)
class Share:
    """The folder that the networks on one GPU share, and the number of networks that run at a time."""

    networks: int
    folder: Path

    @classmethod
    def of_this_process(cls) -> Share | None:
        """Return the setting of the environment variable; None if nothing is shared."""
        given = os.environ.get(processes.SHARED_RECORDS, "")
        networks, _, folder = given.partition(":")
        return cls(int(networks), Path(folder)) if folder and networks.isdecimal() else None

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the folder's lock; other processes wait."""
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with open(self.folder / "lock", "w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def join(self, source: Source) -> User | None:
        """Return a connection to the holder of ``source``; None if there is none. The `lock` must be held."""
        connection = socket.socket(socket.AF_UNIX)
        with self._address(source) as address:
            try:
                connection.connect(address)
                return User(connection, source)
            except (FileNotFoundError, ConnectionRefusedError, Lost):
                connection.close()  # the socket may be left over from a holder that was killed
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(address)
                return None

    def start(self, source: Source, device: torch.device, on_device: int) -> User:
        """Start a holder of ``source``, with ``on_device`` records in memory of ``device``, the others in the host's.

        The `lock` must be held.
        """
        log = self.folder / f"{source.name()}.log"
        argv = [sys.executable, "-m", "transfer_caffe.engine.batches.holder", "--folder", str(self.folder)]
        argv += ["--source", str(source.path), "--device", str(device), "--on-device", str(on_device)]
        if source.color is not None:
            argv += ["--color" if source.color else "--gray"]
        connection = socket.socket(socket.AF_UNIX)
        with socket.socket(socket.AF_UNIX) as listener, self._address(source) as address, open(log, "wb") as output:
            listener.bind(address)
            listener.listen(64)
            # the socket listens before the holder runs, so this process does not have to retry
            argv += ["--listen", str(listener.fileno())]
            _started.append(
                subprocess.Popen(
                    argv, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=processes.environment(),
                    pass_fds=[listener.fileno()], start_new_session=True,
                )
            )  # fmt: skip
            connection.connect(address)
        try:
            return User(connection, source)
        except Lost:
            raise UserError(
                f"{source.path}: the process that keeps its records for several networks could not start; {log} says "
                "why; with --jobs 1 it is not needed"
            ) from None

    @contextlib.contextmanager
    def _address(self, source: Source) -> Iterator[str]:
        """Yield a short path of the socket, however long the folder's path is: the kernel's limit is 107 bytes."""
        folder = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            yield f"/proc/self/fd/{folder}/{source.name()}.socket"
        finally:
            os.close(folder)


class User:
    """A connection to the holder of a source."""

    def __init__(self, connection: socket.socket, source: Source) -> None:
        """Wait until the holder has allocated its memory. Raise Lost if it ends before."""
        self.source = source
        self._connection = Connection(connection.detach())
        self._given_up = False
        _, self.pid, self.on_device, self.room = self._message()
        """``room`` is False if the holder could not allocate its memory."""

    def _message(self) -> tuple:
        try:
            return self._connection.recv()
        except (EOFError, OSError):
            raise Lost from None

    def receive(self) -> tuple[Tensor, Tensor | None, np.ndarray] | str:
        """Wait for the records; return pixels and labels, or the reason why they cannot be kept.

        If a part of the records is on the device, the second tensor is the pixels of the others (`resident.Copy.rest`).

        Raise UserError for damaged records, or if the holder ended.
        """
        while True:
            try:
                kind, *rest = self._message()
            except Lost:
                raise self._ended() from None
            if kind == "said":
                glog.info(_PLACE, rest[0])
            elif kind == "error":
                raise UserError(rest[0])
            elif kind == "unlike":
                return rest[0]
            else:
                *exports, labels = rest
                try:
                    pixels, others = (each and each[0](*each[1]) for each in exports)
                except RuntimeError as error:
                    if self._connection.poll():  # nothing more is sent, so this is the end
                        raise self._ended() from None
                    raise UserError(no_ipc(self.source, error)) from None
                if self.on_device:
                    threading.Thread(target=self._watch, daemon=True).start()
                return pixels, others, labels

    def _ended(self) -> UserError:
        return UserError(
            f"{self.source.path}: process {self.pid}, which keeps its records for several networks, has ended; "
            "run the same command again"
        )

    def _watch(self) -> None:
        """End this process when the holder ends, since the shared memory is freed then."""
        with contextlib.suppress(Lost):
            self._message()
        if not self._given_up:
            say_error(
                "python -m transfer_caffe.engine",
                f"{self.source.path}: process {self.pid}, which keeps its records on the GPU for several networks, has "
                "ended; run the same command again to resume from the newest snapshot",
            )
            os._exit(2)

    def give_up(self) -> None:
        """Disconnect from the holder."""
        self._given_up = True
        with contextlib.suppress(OSError), socket.socket(fileno=os.dup(self._connection.fileno())) as connection:
            connection.shutdown(socket.SHUT_RDWR)  # also wakes a thread that waits for a message


def no_ipc(source: Source, error: RuntimeError) -> str:
    """Return the error message for machines without CUDA IPC (some containers and virtual machines)."""
    why = str(error).splitlines()[0]
    return f"{source.path}: processes cannot share its records on this GPU ({why}); use --jobs 1"


def mapped(path: str, shape: tuple[int, ...]) -> Tensor:
    """Return a tensor of bytes backed by a memory-mapped file."""
    return torch.from_file(path, shared=True, size=int(np.prod(shape)), dtype=torch.uint8).view(shape)
