"""Drivers and engines that are forked, as a sweep's are, for tests that train networks in this process.

A sweep imports PyTorch once and forks (`processes.preload`). The tests' process cannot: it has computed with PyTorch
and has threads. So another process, which has only preloaded driver and engine, forks for it. It uses
`processes.start`, and gets the files of output and locks. The fixture `forked_trainings` uses this; fixtures that
serve a whole module use `forked`.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from transfer_caffe.utils import processes

COMMANDS = ("transfer_caffe.driver", "transfer_caffe.engine")
_start = processes.start


class _Server:
    def __init__(self) -> None:
        self.owner = os.getpid()
        self.socket, other = socket.socketpair()
        with other:
            self.process = subprocess.Popen(
                [sys.executable, __file__, str(other.fileno())], pass_fds=[other.fileno()],
                env=processes.environment(), start_new_session=True,
            )  # fmt: skip
        atexit.register(self.stop)

    def stop(self) -> None:
        if os.getpid() == self.owner:  # not in a process that a test has forked
            self.process.kill()
            self.process.wait()
            self.socket.close()

    def ask(self, request: dict[str, Any], files: Sequence[int] = ()) -> int | None:
        message = json.dumps(request).encode()
        socket.send_fds(self.socket, [b"%12d" % len(message)], files)
        self.socket.sendall(message)
        return json.loads(self.socket.recv(100))


_servers: list[_Server] = []


class Child:
    """A child of the server: the part of subprocess.Popen that `processes.Forked` has."""

    def __init__(self, server: _Server, pid: int) -> None:
        self.server, self.pid = server, pid
        self.returncode: int | None = None

    def poll(self) -> int | None:
        if self.returncode is None:
            self.returncode = self.server.ask({"poll": self.pid})
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        end = time.monotonic() + (timeout or 1e9)
        while (code := self.poll()) is None:
            if time.monotonic() > end:
                raise subprocess.TimeoutExpired(f"process {self.pid}", timeout or 0)
            time.sleep(0.02)
        return code

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def start(
    argv: Sequence[str], output: IO[bytes], folder: Path | None = None, env: dict[str, str] | None = None,
    keep_open: Sequence[int] = (),
) -> processes.Child | Child:  # fmt: skip
    """Do what `processes.start` does, with drivers and engines as the server's children."""
    if list(argv[:2]) != [sys.executable, "-m"] or argv[2] not in COMMANDS:
        return _start(argv, output, folder, env, keep_open)
    if not _servers or _servers[0].owner != os.getpid() or _servers[0].process.poll() is not None:
        _servers[:] = [_Server()]
    request = {
        "argv": list(argv), "folder": os.path.abspath(folder or "."), "env": dict(os.environ if env is None else env)
    }  # fmt: skip
    pid = _servers[0].ask(request, [output.fileno(), *keep_open])
    assert pid is not None
    return Child(_servers[0], pid)


@contextlib.contextmanager
def forked() -> Iterator[None]:
    """Let `processes.start` be `start` in the block."""
    processes.start = start
    try:
        yield
    finally:
        processes.start = _start


def _serve(requests: socket.socket) -> None:
    children: dict[int, processes.Child] = {}
    while True:
        head, files, _, _ = socket.recv_fds(requests, 12, 100)
        if not head:
            return
        request = json.loads(requests.recv(int(head), socket.MSG_WAITALL))
        if "poll" in request:
            answer = children[request["poll"]].poll()
        else:
            with open(files[0], "wb", closefd=False) as output:
                child = _start(request["argv"], output, Path(request["folder"]), request["env"], files[1:])
            children[child.pid] = child
            answer = child.pid
        for file in files:
            os.close(file)
        requests.sendall(json.dumps(answer).encode())


if __name__ == "__main__":
    processes.preload(*COMMANDS)
    _serve(socket.socket(fileno=int(sys.argv[1])))
