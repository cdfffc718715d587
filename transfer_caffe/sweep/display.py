"""Display of a sweep's progress: a live table on a terminal, plain lines elsewhere."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.live import Live

SECONDS_BETWEEN_SUMMARIES = 30.0


@dataclass(frozen=True)
class Running:
    """A network in training; ``accuracy`` is that of the newest test, ``rate`` is in iterations per second."""

    name: str
    iteration: int | None
    max_iter: int
    accuracy: float | None
    rate: float | None = None
    seconds_left: float | None = None

    def words(self) -> str:
        """Return name, iteration and speed as a short text."""
        speed = self.speed()
        return f"{self.name} at {self.iteration or 0}/{self.max_iter}" + (f" ({speed})" if speed else "")

    def speed(self) -> str:
        """Return rate and time left as a short text; "" if they are unknown."""
        if self.rate is None or self.seconds_left is None:
            return ""
        return f"{self.rate:.3g} it/s, {duration(self.seconds_left)} left"


@dataclass(frozen=True)
class State:
    """The progress of a sweep."""

    total: int
    done: int
    failed: int
    running: tuple[Running, ...]
    seconds_left: float | None

    def headline(self) -> str:
        """Return the progress as one line."""
        parts = [f"{self.done} of {self.total} networks done"]
        if self.failed:
            parts.append(f"{self.failed} failed")
        if self.seconds_left is not None:
            parts.append(f"about {duration(self.seconds_left)} left")
        return ", ".join(parts)


class Display(Protocol):
    """Where a sweep reports its progress."""

    def event(self, line: str) -> None:
        """Show an event, as a line that stays on the screen."""
        ...

    def update(self, state: State) -> None:
        """Show the current progress; called several times a second."""
        ...


@contextlib.contextmanager
def open_display() -> Iterator[Display]:
    """Open a live table if standard output is a terminal, else plain lines."""
    if not sys.stdout.isatty():
        yield Lines()
        return
    from rich.console import Console
    from rich.live import Live

    console = Console()
    # without a refresh thread, because this process starts children
    with Live(console=console, auto_refresh=False, transient=True) as live:
        yield Table(console, live)


class Lines:
    """Plain lines: events, and a summary of the progress from time to time."""

    def __init__(self) -> None:
        self._last = time.monotonic()

    def event(self, line: str) -> None:
        print(line, flush=True)

    def update(self, state: State) -> None:
        now = time.monotonic()
        if state.running and now - self._last >= SECONDS_BETWEEN_SUMMARIES:
            self._last = now
            running = ", ".join(each.words() for each in state.running)
            print(f"{state.headline()}; in training: {running}", flush=True)


class Table:
    """A live table below the event lines."""

    def __init__(self, console: Console, live: Live) -> None:
        self._console, self._live = console, live
        self._last = 0.0

    def event(self, line: str) -> None:
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)

    def update(self, state: State) -> None:
        now = time.monotonic()
        if now - self._last >= 0.25:
            self._last = now
            self._live.update(self._render(state), refresh=True)

    def _render(self, state: State) -> RenderableType:
        from rich.progress_bar import ProgressBar
        from rich.table import Table as Grid
        from rich.text import Text

        grid = Grid.grid(padding=(0, 2))
        for each in state.running:
            accuracy = "" if each.accuracy is None else f"accuracy {each.accuracy:.3f}"
            iteration = each.iteration or 0
            grid.add_row(
                Text(each.name), ProgressBar(each.max_iter, iteration, width=24), Text(f"{iteration}"), Text(accuracy),
                Text(each.speed()),
            )  # fmt: skip
        grid.add_row(Text("all"), ProgressBar(state.total, state.done, width=24), Text(f"{state.done}"))
        page = Grid.grid()
        page.add_row(grid)
        page.add_row(Text(state.headline()))
        return page


def duration(seconds: float) -> str:
    """Format seconds as a rounded duration, for example `5 s`, `10 min`, `2 h` or `6 days`."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 120:
        return f"{minutes} min"
    hours = round(seconds / 3600)
    return f"{hours} h" if hours < 72 else f"{round(hours / 24)} days"
