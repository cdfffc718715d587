"""NVIDIA's MPS for the networks that share a GPU: with it they compute at the same time, without it by turns.

    with service(say) as environment:       # for the networks' processes

The daemon is the sweep's own, and so is the folder of its pipes. A shell that waits for the end of the sweep, however
that comes, then tells the daemon to quit and removes the folder: nothing is left behind.
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
"""Where the daemon's pipes are unless the environment says otherwise."""
SECONDS_TO_QUIT = 20

# `read` ends when the sweep closes its end of the pipe, or is gone; the program reads its commands from standard input
_GUARD = f"""
{PROGRAM} -d </dev/null && echo started || echo failed
exec >/dev/null
read line
echo quit | {PROGRAM}
rm -r "${PIPES}"
"""


@contextlib.contextmanager
def service(say: Callable[[str], None]) -> Iterator[dict[str, str]]:
    """Have MPS while the block runs; yields what the environment of its clients needs. Says what there is instead."""
    if (Path(os.environ.get(PIPES, SYSTEMS_PIPES)) / "control").exists():
        say("networks on a GPU compute at the same time, by the MPS that runs on this machine already")
        yield {}
        return
    if shutil.which(PROGRAM) is None:
        say(f"there is no {PROGRAM} here: networks that share a GPU take turns on it")
        yield {}
        return
    folder = tempfile.mkdtemp(prefix="mps-", dir=lock_folder())
    added = {PIPES: folder, LOGS: folder}
    # it serves all GPUs: which one a network sees is the network's environment's business alone
    environment = {name: value for name, value in os.environ.items() if name != VISIBLE}
    guard = subprocess.Popen(
        ["sh", "-c", _GUARD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        env={**environment, **added}, start_new_session=True,
    )  # fmt: skip
    assert guard.stdin is not None and guard.stdout is not None
    try:
        if guard.stdout.readline() == b"started\n":
            say("networks on a GPU compute at the same time, by an MPS of this sweep's own")
            yield added
        else:
            say(f"{PROGRAM} does not start: networks that share a GPU take turns on it")
            yield {}
    finally:
        guard.stdin.close()
        guard.stdout.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            guard.wait(SECONDS_TO_QUIT)
