"""Log lines in the format that glog writes for Caffe, so that parsers of real Caffe's logs can read them.

I1123 07:34:13.659520 22837 solver.cpp:239] Iteration 20 (76.9 iter/s, 0.065s/5 iters), loss = 0.5

The engine's command logs to standard error. Nets and solvers that another program uses do not log.
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
    """Write the log to standard error inside this context."""
    global _logging
    before, _logging = _logging, True
    try:
        yield
    finally:
        _logging = before


def is_logging() -> bool:
    """Return whether the log is written."""
    return _logging


def set_logging(on: bool) -> None:
    """Write the log to standard error from here on, or stop that."""
    global _logging
    _logging = on


def info(place: str, message: str) -> None:
    """Write one line at level I (INFO); ``place`` is the Caffe source file and line that logs the same message."""
    _write("I", place, message)


def error(place: str, message: str) -> None:
    """Write one line at level E (ERROR), as `info`."""
    _write("E", place, message)


def _write(level: str, place: str, message: str) -> None:
    if not _logging:
        return
    now = time.time()
    stamp = time.strftime("%m%d %H:%M:%S", time.localtime(now)) + f".{int(now % 1 * 1e6):06d}"
    sys.stderr.write(f"{level}{stamp} {os.getpid():5d} {place}] {message}\n")
    sys.stderr.flush()


def number(value: float) -> str:
    """Format a number as C++ streams do: with six significant digits."""
    return f"{value:g}"
