"""How a sweep shows how far it is: a live table on a terminal, plain lines elsewhere."""

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
    """A network in training; ``accuracy`` is the newest test's, ``rate`` iterations a second."""

    name: str
    iteration: int | None
    max_iter: int
    accuracy: float | None
    rate: float | None = None
    seconds_left: float | None = None

    def words(self) -> str:
        """In a few words."""
        speed = self.speed()
        return f"{self.name} at {self.iteration or 0}/{self.max_iter}" + (f" ({speed})" if speed else "")

    def speed(self) -> str:
        """Rate and time left in words, as far as they are known."""
        if self.rate is None or self.seconds_left is None:
            return ""
        return f"{self.rate:.3g} it/s, {duration(self.seconds_left)} left"


@dataclass(frozen=True)
class State:
    """How far a sweep is."""

    total: int
    done: int
    failed: int
    running: tuple[Running, ...]
    seconds_left: float | None

    def headline(self) -> str:
        """In one line."""
        parts = [f"{self.done} of {self.total} networks done"]
        if self.failed:
            parts.append(f"{self.failed} failed")
        if self.seconds_left is not None:
            parts.append(f"about {duration(self.seconds_left)} left")
        return ", ".join(parts)


class Display(Protocol):
    """What the sweep tells."""

    def event(self, line: str) -> None:
        """Something that happened, to be kept on the screen."""
        ...

    def update(self, state: State) -> None:
        """How far it is now; called several times a second."""
        ...


@contextlib.contextmanager
def open_display() -> Iterator[Display]:
    """The display that fits where standard output goes."""
    if not sys.stdout.isatty():
        yield Lines()
        return
    from rich.console import Console
    from rich.live import Live

    console = Console()
    # without a thread of its own: this process starts children
    with Live(console=console, auto_refresh=False, transient=True) as live:
        yield Table(console, live)


class Lines:
    """Plain lines: what happened, and now and then how far it is."""

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
    """A live table below the lines."""

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
    """Seconds in words, as roughly as one wants to know them."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 120:
        return f"{minutes} min"
    hours = round(seconds / 3600)
    return f"{hours} h" if hours < 72 else f"{round(hours / 24)} days"
