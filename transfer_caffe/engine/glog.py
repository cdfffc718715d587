"""Log lines as glog writes them for Caffe: what parses a real Caffe's log parses ours.

I1123 07:34:13.659520 22837 solver.cpp:239] Iteration 20 (76.9 iter/s, 0.065s/5 iters), loss = 0.5

The engine's command logs to standard error; nets and solvers that another program uses are silent.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Iterator

_logging = False


@contextlib.contextmanager
def logging() -> Iterator[None]:
    """Write the log to standard error meanwhile."""
    global _logging
    before, _logging = _logging, True
    try:
        yield
    finally:
        _logging = before


def info(place: str, message: str) -> None:
    """Write one line at level I; ``place`` is the Caffe source file and line that says the same."""
    if not _logging:
        return
    now = time.time()
    stamp = time.strftime("%m%d %H:%M:%S", time.localtime(now)) + f".{int(now % 1 * 1e6):06d}"
    sys.stderr.write(f"I{stamp} {os.getpid():5d} {place}] {message}\n")
    sys.stderr.flush()


def number(value: float) -> str:
    """A number as C++ streams print it: six significant digits."""
    return f"{value:g}"
