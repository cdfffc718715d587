"""Waiting for events in tests. The time limit only ends tests that hang; no result depends on it otherwise."""

import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

PATIENCE = 300.0
"""Time limit in seconds. Events take a few seconds on an idle machine; a busy or slow machine is not a failure."""


def wait_for(
    true: Callable[[], Any], what: str | Callable[[], str] = "it", process: subprocess.Popen[Any] | None = None
) -> None:
    """Wait until ``true()`` is true; raise AssertionError with ``what`` after the time limit.

    Also raise it if ``process`` has ended and the condition is still false.
    """
    end = time.monotonic() + PATIENCE
    while not true():
        ended = process is not None and process.poll() is not None
        if ended and true():  # the last action of the process may have made it true
            return
        assert not ended and time.monotonic() < end, f"waited without success for {what() if callable(what) else what}"
        time.sleep(0.02)


def gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    # a zombie, which has ended but has not been waited for by its new parent, counts as gone
    return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
