"""Run NVIDIA's MPS for networks that share a GPU: with MPS they compute at the same time, without it they take turns.

    with service(say) as environment:       # for the networks' processes

The daemon belongs to one sweep, and so does the folder of its pipes. A shell waits for the end of the sweep, even if
the sweep is killed. It then tells the daemon to quit and removes the folder, so that nothing is left behind.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from transfer_caffe.sweep.slots import VISIBLE, lock_folder

PROGRAM = "nvidia-cuda-mps-control"
PIPES, LOGS = "CUDA_MPS_PIPE_DIRECTORY", "CUDA_MPS_LOG_DIRECTORY"
SYSTEMS_PIPES = Path("/tmp/nvidia-mps")
"""Default folder of the daemon's pipes."""
SECONDS_TO_QUIT = 20
SECONDS_TO_ANSWER = 10

# `read` returns when the sweep closes its end of the pipe or has ended; the program reads commands from standard input
_GUARD = f"""
{PROGRAM} -d </dev/null && echo started || echo failed
exec >/dev/null
read line
echo quit | {PROGRAM}
rm -r "${PIPES}"
"""


_CAUTION = "if one of them is killed, the others on its GPU may hang or fail, and resume when the sweep is run again"
"""Clients of MPS share one context on the GPU, and an abrupt end of one may leave it unusable for the others."""


def _runs() -> bool:
    """Return whether an MPS already serves this machine: its pipe exists, and its daemon answers.

    The pipe alone may be left over from a daemon that was killed. Without the program there is no way to ask.
    """
    if not (Path(os.environ.get(PIPES, SYSTEMS_PIPES)) / "control").exists():
        return False
    if shutil.which(PROGRAM) is None:
        return True
    try:
        asked = subprocess.run(
            [PROGRAM], input=b"get_default_active_thread_percentage\n", stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL, timeout=SECONDS_TO_ANSWER,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return False
    return asked.returncode == 0


@contextlib.contextmanager
def service(say: Callable[[str], None]) -> Iterator[dict[str, str]]:
    """Run MPS during the block, and yield the environment variables for its clients; report whether MPS is used."""
    if _runs():
        say(f"networks on the same GPU compute at the same time, through the MPS that already runs here; {_CAUTION}")
        yield {}
        return
    if shutil.which(PROGRAM) is None:
        say(f"{PROGRAM} was not found: networks that share a GPU take turns on it")
        yield {}
        return
    folder = tempfile.mkdtemp(prefix="mps-", dir=lock_folder())
    added = {PIPES: folder, LOGS: folder}
    # the daemon serves all GPUs; the environment of each network decides which one it sees
    environment = {name: value for name, value in os.environ.items() if name != VISIBLE}
    guard = subprocess.Popen(
        ["sh", "-c", _GUARD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        env={**environment, **added}, start_new_session=True,
    )  # fmt: skip
    assert guard.stdin is not None and guard.stdout is not None
    try:
        if guard.stdout.readline() == b"started\n":
            say(f"networks on the same GPU compute at the same time, through an MPS started for this sweep; {_CAUTION}")
            yield added
        else:
            say(f"{PROGRAM} could not be started: networks that share a GPU take turns on it")
            yield {}
    finally:
        guard.stdin.close()
        guard.stdout.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            guard.wait(SECONDS_TO_QUIT)
