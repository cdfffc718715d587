"""One copy of a source's records for all networks on a GPU: found, or started, by the first that needs it.

    TRANSFER_CAFFE_SHARED_RECORDS=2:/tmp/transfer_caffe-1000/records-GPU-ab12

A sweep sets that: how many networks a GPU has, and a folder. The records are kept by a process of their own
(`engine.holder`), since memory of a GPU that others see by CUDA's IPC lasts as long as the process that allocated it.
Users hold a connection to it, a socket in the folder: the kernel closes that however a user ends, and when the last one
has gone the holder ends, too. Should the holder be killed, its users end at once, with one line and exit code 2: what
they would read on is no longer theirs. The same command goes on from their snapshots. Records in the host's memory stay
mapped, and their users go on.

All that is decided (who starts a holder, what still has room, that a holder ends) is decided under one lock a folder.
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
"""Holders that this process has started; they outlive it, if others use them."""


@dataclass(frozen=True)
class Source:
    """A database or view, and how its images are decoded: `views.open_records`."""

    path: Path
    color: bool | None

    def name(self) -> str:
        """A short name, another one when the records are others."""
        files = whole_of(self.path) / "data.mdb", self.path / RECORDS
        states = [(state.st_ino, state.st_size, state.st_mtime_ns) for state in (f.stat() for f in files if f.exists())]
        return hashlib.blake2b(repr((str(self.path), self.color, states)).encode(), digest_size=8).hexdigest()


class Lost(Exception):
    """The holder has ended before it gave its records away."""


@dataclass(frozen=True)
class Share:
    """Where the networks on one GPU meet, and how many there are at a time."""

    networks: int
    folder: Path

    @classmethod
    def of_this_process(cls) -> Share | None:
        """What the environment says; None where nothing is shared."""
        given = os.environ.get(processes.SHARED_RECORDS, "")
        networks, _, folder = given.partition(":")
        return cls(int(networks), Path(folder)) if folder and networks.isdecimal() else None

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Be the only one that decides; others wait."""
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with open(self.folder / "lock", "w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def join(self, source: Source) -> User | None:
        """A connection to the holder of ``source``; None where there is none. With the `lock` held."""
        connection = socket.socket(socket.AF_UNIX)
        with self._address(source) as address:
            try:
                connection.connect(address)
                return User(connection, source)
            except (FileNotFoundError, ConnectionRefusedError, Lost):
                connection.close()  # that of one that was killed, perhaps
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(address)
                return None

    def start(self, source: Source, device: torch.device, on_device: bool) -> User:
        """Start a holder of ``source`` with memory of ``device``. With the `lock` held."""
        log = self.folder / f"{source.name()}.log"
        argv = [sys.executable, "-m", "transfer_caffe.engine.batches.holder", "--folder", str(self.folder)]
        argv += ["--source", str(source.path), "--device", str(device)] + ["--on-device"] * on_device
        if source.color is not None:
            argv += ["--color" if source.color else "--gray"]
        connection = socket.socket(socket.AF_UNIX)
        with socket.socket(socket.AF_UNIX) as listener, self._address(source) as address, open(log, "wb") as output:
            listener.bind(address)
            listener.listen(64)
            # it listens before it runs: this process need not try again and again
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
                "why; --jobs 1 does without"
            ) from None

    @contextlib.contextmanager
    def _address(self, source: Source) -> Iterator[str]:
        """The socket's path, short however long the folder's is: the kernel takes 107 bytes."""
        folder = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            yield f"/proc/self/fd/{folder}/{source.name()}.socket"
        finally:
            os.close(folder)


class User:
    """A connection to the holder of a source."""

    def __init__(self, connection: socket.socket, source: Source) -> None:
        """Wait until the holder has its memory. Lost if it ends before."""
        self.source = source
        self._connection = Connection(connection.detach())
        self._given_up = False
        _, self.pid, self.on_device, self.room = self._message()
        """``room`` is False where the memory that the holder asked for was not there."""

    def _message(self) -> tuple:
        try:
            return self._connection.recv()
        except (EOFError, OSError):
            raise Lost from None

    def receive(self) -> tuple[Tensor, np.ndarray] | str:
        """Pixels and labels, once they are decoded; or why they cannot be kept. UserError for what is damaged."""
        while True:
            try:
                kind, *rest = self._message()
            except Lost:
                raise UserError(
                    f"{self.source.path}: process {self.pid}, which keeps its records for several networks, has ended; "
                    "run the same command again"
                ) from None
            if kind == "said":
                glog.info(_PLACE, rest[0])
            elif kind == "error":
                raise UserError(rest[0])
            elif kind == "unlike":
                return rest[0]
            else:
                rebuild, arguments, labels = rest
                try:
                    pixels = rebuild(*arguments)
                except RuntimeError as error:
                    raise UserError(no_ipc(self.source, error)) from None
                if self.on_device:
                    threading.Thread(target=self._watch, daemon=True).start()
                return pixels, labels

    def _watch(self) -> None:
        """End this process when the holder ends, before it reads on from memory that is another's now."""
        with contextlib.suppress(Lost):
            self._message()
        if not self._given_up:
            say_error(
                "python -m transfer_caffe.engine",
                f"{self.source.path}: process {self.pid}, which keeps its records on the GPU for several networks, was "
                "ended; the same command goes on from the newest snapshot",
            )
            os._exit(2)

    def give_up(self) -> None:
        """Tell the holder that this user has gone."""
        self._given_up = True
        with contextlib.suppress(OSError), socket.socket(fileno=os.dup(self._connection.fileno())) as connection:
            connection.shutdown(socket.SHUT_RDWR)  # wakes who waits for a message, too


def no_ipc(source: Source, error: RuntimeError) -> str:
    """What to say where CUDA's IPC does not work: some containers and virtual machines have none."""
    why = str(error).splitlines()[0]
    return f"{source.path}: processes cannot share its records on this GPU ({why}); --jobs 1 does without"


def mapped(path: str, shape: tuple[int, ...]) -> Tensor:
    """A tensor of bytes in a file that is mapped into memory."""
    return torch.from_file(path, shared=True, size=int(np.prod(shape)), dtype=torch.uint8).view(shape)
