"""Waiting in tests: always for an event. The ceiling only ends a test that hangs; no verdict hangs on it."""

import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

PATIENCE = 300.0
"""Seconds: what they are waited for takes a few at most on an idle machine, and a busy or slow one is no failure."""


def wait_for(
    true: Callable[[], Any], what: str | Callable[[], str] = "it", process: subprocess.Popen[Any] | None = None
) -> None:
    """Wait until something is true; AssertionError with ``what`` when it is not in the end.

    It does not become true any more when ``process`` has ended.
    """
    end = time.monotonic() + PATIENCE
    while not true():
        ended = process is not None and process.poll() is not None
        if ended and true():  # the last that it did
            return
        assert not ended and time.monotonic() < end, f"in vain for {what() if callable(what) else what}"
        time.sleep(0.02)


def gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    # a process that ended, and whose new parent has not asked for its end, is gone too
    return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
