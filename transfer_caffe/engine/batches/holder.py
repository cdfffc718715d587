"""The process that keeps a source's records for all networks on a GPU; the networks start it.

python -m transfer_caffe.engine.batches.holder --folder F --source random0/A/train_lmdb --device cuda:0 --listen 5

This command is not meant for users; see `sharing`. The process ends when its last user disconnects, or if none connects
within a minute. Its output goes to a log in the folder, which it removes if no error occurred.
"""

from __future__ import annotations

import argparse
import fcntl
import os
import select
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.multiprocessing.reductions import reduce_tensor

from transfer_caffe.engine.batches import resident
from transfer_caffe.engine.batches.sharing import Source, mapped, no_ipc
from transfer_caffe.formats.views import open_records
from transfer_caffe.utils.errors import ArgumentParser, UserError, command, os_error_line

SECONDS_FOR_A_FIRST_USER = 60.0
SECONDS_BETWEEN_LOOKS = 0.2


@command
def main(argv: list[str] | None = None) -> int:
    """Allocate memory, decode the records, share them, and end after the last user."""
    parser = ArgumentParser(prog="python -m transfer_caffe.engine.batches.holder", description=__doc__)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--source", type=Path, required=True)
    parser.add_argument("--device", type=torch.device, required=True)
    parser.add_argument("--on-device", type=int, required=True, metavar="RECORDS")
    parser.add_argument("--color", dest="color", action="store_const", const=True)
    parser.add_argument("--gray", dest="color", action="store_const", const=False)
    parser.add_argument("--listen", type=int, required=True, metavar="FD")
    args = parser.parse_args(argv)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # an engine ignores SIGTERM, and children inherit that
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    Holder(args).run()
    return 0


class Holder:
    """The records, their users, and the messages for the users."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.source = Source(args.source, args.color)
        self.name = self.source.name()  # computed once, at the start: the files may change later
        self.listener = socket.socket(fileno=args.listen)
        self.users, self.came = 0, False
        self.changed = threading.Condition()
        self.said: list[str] = []
        self.answer: Callable[[], tuple[Any, ...]] | None = None
        """Creates the final message to a user; called for each user, since CUDA counts the users of each handle."""

    def run(self) -> None:
        """Serve users until nobody uses the records any more."""
        records = open_records(self.args.source, self.args.color)
        count, *one = resident.shape_of(records)
        on_device, host = self.args.on_device, torch.device("cpu")
        parts = [(on_device, self.args.device), (count - on_device, host)] if on_device else [(count, host)]
        memory: list[Memory] | None = None
        try:
            memory = [allocate((number, *one), device) for number, device in parts if number]
        except (torch.OutOfMemoryError, OSError) as error:
            print(f"no room: {error}", flush=True)
        if memory is not None:
            threading.Thread(target=self._load, args=(records, memory), daemon=True).start()
        began = time.monotonic()
        while True:
            if select.select([self.listener], [], [], SECONDS_BETWEEN_LOOKS)[0]:
                self._accept(memory is not None)
            idle = not self.users and (self.came or time.monotonic() - began > SECONDS_FOR_A_FIRST_USER)
            if idle and self._end():
                break
        if self.answer is None:
            os._exit(0)  # still decoding, but nobody is waiting for the records

    def _accept(self, room: bool) -> None:
        connection = Connection(self.listener.accept()[0].detach())
        with self.changed:
            self.users, self.came = self.users + 1, True
        threading.Thread(target=self._serve, args=(connection, room), daemon=True).start()

    def _end(self) -> bool:
        """Return whether the process may end: with the lock, under which users connect, none is about to connect.

        The lock is held until this process has ended and its memory is free; the next process that decides where to
        put records relies on that.
        """
        lock = os.open(self.args.folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            return False
        for kind in ("socket", "log"):
            (self.args.folder / f"{self.name}.{kind}").unlink(missing_ok=True)
        return True

    def _load(self, records: Any, memory: list[Memory]) -> None:
        try:
            pixels, rest = memory[0][0], memory[1][0] if len(memory) > 1 else None
            labels = resident.load(records, pixels, str(self.args.source), self._say, rest)
            self._settle(lambda: ("records", memory[0][1](), memory[1][1]() if len(memory) > 1 else None, labels))
        except (resident.Unlike, UserError, OSError) as error:
            text = os_error_line(error) if isinstance(error, OSError) else str(error)
            answer = "unlike" if isinstance(error, resident.Unlike) else "error", text
            self._settle(lambda: answer)
        except BaseException:
            traceback.print_exc()  # into the log; exit, because users would wait forever otherwise
            os._exit(1)

    def _say(self, line: str) -> None:
        with self.changed:
            self.said.append(line)
            self.changed.notify_all()

    def _settle(self, answer: Callable[[], tuple[Any, ...]]) -> None:
        with self.changed:
            self.answer = answer
            self.changed.notify_all()

    def _serve(self, connection: Connection, room: bool) -> None:
        """Send all messages to one user, and wait until it disconnects. Users send nothing."""
        try:
            told = len(self.said)
            connection.send(("allocated", os.getpid(), self.args.on_device > 0, room))
            while room and self.answer is None and not connection.poll():
                with self.changed:
                    self.changed.wait(1)
                    lines, told = self.said[told:], len(self.said)
                for line in lines:
                    connection.send(("said", line))
            if self.answer is not None:
                connection.send(self._answer(self.answer))
            connection.recv()
        except (EOFError, OSError):
            pass
        finally:
            connection.close()
            with self.changed:
                self.users -= 1

    def _answer(self, make: Callable[[], tuple[Any, ...]]) -> tuple[Any, ...]:
        try:
            return make()
        except RuntimeError as error:
            return "error", no_ipc(self.source, error)


Memory = tuple[Tensor, Callable[[], tuple[Any, ...]]]
"""Memory that other processes can map, and a function that returns how to map it: a function and its arguments."""


def allocate(shape: tuple[int, ...], device: torch.device) -> Memory:
    """Allocate memory that other processes can map; return it and a function that returns how to map it."""
    if device.type == "cuda":
        pixels = torch.empty(shape, dtype=torch.uint8, device=device)
        return pixels, lambda: reduce_tensor(pixels)
    size = int(np.prod(shape))
    # an anonymous file cannot be left behind; other processes open it through this process's /proc entry
    file = os.memfd_create("records")
    os.posix_fallocate(file, 0, size)
    return mapped(f"/proc/self/fd/{file}", shape), lambda: (mapped, (f"/proc/{os.getpid()}/fd/{file}", shape))


if __name__ == "__main__":
    sys.exit(main())
