"""Progress of a long loop, on standard error: a bar on a terminal, otherwise a line every few seconds."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")

SECONDS_BETWEEN_LINES = 10.0


def track(items: Iterable[T], total: int, what: str, before: int = 0) -> Iterator[T]:
    """Yield ``items`` and show how many are done, the rate, and the time left.

    ``total``: number of items, including the ``before`` items that were done earlier and are not in ``items``.
    ``what``: the name of the items.
    """
    return (_bar if sys.stderr.isatty() else _lines)(items, total, what, before)


def _bar(items: Iterable[T], total: int, what: str, before: int) -> Iterator[T]:
    """Yield ``items`` and show a progress bar."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn
    from rich.progress import TimeRemainingColumn as TimeLeft
    from rich.text import Text

    class Rate(ProgressColumn):
        def render(self, task: Task) -> Text:
            return Text(f"{task.finished_speed or task.speed or 0:.0f}/s")

    columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), Rate(), TimeLeft(elapsed_when_finished=True))
    with Progress(*columns, console=Console(file=sys.stderr)) as progress:
        yield from progress.track(items, total=total, completed=before)


def _lines(items: Iterable[T], total: int, what: str, before: int) -> Iterator[T]:
    """Yield ``items`` and print a line every `SECONDS_BETWEEN_LINES`."""
    start = last = time.monotonic()
    for done, item in enumerate(items, before + 1):
        yield item
        now = time.monotonic()
        if now - last >= SECONDS_BETWEEN_LINES and done < total:
            last = now
            rate = (done - before) / (now - start)
            left = (total - done) / rate
            print(f"{done} of {total} {what}, {rate:.0f}/s, {left:.0f} s left", file=sys.stderr, flush=True)
