"""Draw a network's training curves as SVG: test accuracy with the paper's for comparison, losses, and learning rate.

    svg(tests, [("paper: A3B, random0", paper_tests)], name)

The SVG is part of the page rather than an image file, so that it follows the page's dark mode. It is kept small,
because a page may have hundreds of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from markupsafe import Markup
from matplotlib.ticker import MaxNLocator

from transfer_caffe.formats.log import Row

Points = list[tuple[float, float]]

MOST_POINTS = 200
WIDTH, LEFT, RIGHT, GAP = 720.0, 58.0, 12.0, 50.0


@dataclass(frozen=True)
class Line:
    """One line of a panel: its name, points (iteration, value) and class in the page's style sheet."""

    name: str
    points: Points
    look: str


@dataclass(frozen=True)
class Panel:
    """One panel: its title, its height in pixels, its lines, and whether its y axis is logarithmic."""

    title: str
    height: float
    lines: Sequence[Line]
    log: bool = False


def svg(tests: Sequence[Row], paper: Sequence[tuple[str, Sequence[Row]]], name: str) -> Markup:
    """Return the SVG of the ``tests`` of a network, or "" if there are none.

    ``paper`` has the label and the tests of each of the paper's networks to be drawn in the background. If such a
    network was trained for a different number of iterations, its curve is rescaled to the same length, and the label
    says so.
    """
    if not tests and not paper:
        return Markup("")
    end = (tests or paper[0][1])[-1].iteration or 1
    theirs = [(_label(label, each, end), _stretched(each, end)) for label, each in paper]
    panels = [
        Panel("Top-1 test accuracy", 230, [
            *(Line(label, _points(each, lambda row: row.test_accuracy), "paper") for label, each in theirs),
            Line(name, _points(tests, lambda row: row.test_accuracy), "own"),
        ]),
        Panel("Loss", 150, [
            *(Line(f"{label}, test", _points(each, lambda row: row.test_loss), "paper") for label, each in theirs[:1]),
            Line("test", _points(tests, lambda row: row.test_loss), "own"),
            Line("training", _points(tests, lambda row: row.train_loss), "train"),
        ]),
        Panel("Learning rate", 90, [Line("", _points(tests, lambda row: row.lr), "own")], log=True),
    ]  # fmt: skip
    panels = [panel for panel in panels if any(line.points for line in panel.lines)]
    if not panels:
        return Markup("")
    parts, top = [], 0.0
    for panel in panels:
        parts.append(_panel(panel, top, float(end), last=panel is panels[-1]))
        top += panel.height + GAP + 18 * sum(bool(line.name and line.points) for line in panel.lines)
    height = top + 10
    return Markup(
        '<svg class="curve" viewBox="0 0 {:.0f} {:.0f}" role="img" aria-label="{}">{}</svg>'
    ).format(WIDTH, height, _words(name, tests, theirs), Markup("").join(parts))  # fmt: skip


def _label(label: str, tests: Sequence[Row], end: int) -> str:
    own = tests[-1].iteration
    return label if own == end else f"{label} ({own:,} iterations, rescaled to the same length)"


def _stretched(tests: Sequence[Row], end: int) -> list[Row]:
    part = end / (tests[-1].iteration or 1)
    return [Row(round(row.iteration * part), row.test_accuracy, row.test_loss, row.train_loss, row.lr) for row in tests]


def _points(tests: Sequence[Row], value: Callable[[Row], float | None]) -> Points:
    """Return the finite values, thinned out to at most about `MOST_POINTS`, always including the last one."""
    found = [(float(row.iteration), each) for row in tests for each in [value(row)] if each is not None]
    found = [(x, y) for x, y in found if math.isfinite(y)]
    step = math.ceil(len(found) / MOST_POINTS) if found else 1
    return found[::step] + (found[-1:] if found and (len(found) - 1) % step else [])


def _panel(panel: Panel, top: float, end: float, last: bool) -> Markup:
    lines = [line for line in panel.lines if line.points]
    values = [y for line in lines for _, y in line.points]
    if panel.log:
        values = [y for y in values if y > 0] or [1.0]
        low, high = math.log10(min(values)) - 0.2, math.log10(max(values)) + 0.2
        ticks = [(float(power), f"{10.0**power:g}") for power in range(math.ceil(low), math.floor(high) + 1)]
        if not ticks:
            ticks = [((low + high) / 2, f"{10 ** ((low + high) / 2):.3g}")]
    else:
        low, high = min(0.0, *values), max(values)
        found = MaxNLocator(4).tick_values(low, high if high > low else low + 1)
        low, high = float(found[0]), float(found[-1])
        ticks = [(float(each), f"{each:.10g}") for each in found]
    legend = [line for line in lines if line.name]
    floor = top + 30 + 18 * len(legend) + panel.height

    def at(x: float, y: float) -> tuple[float, float]:
        y = math.log10(y) if panel.log else y
        return LEFT + x / end * (WIDTH - LEFT - RIGHT), floor - panel.height * (y - low) / (high - low)

    parts = [Markup('<text class="title" x="{:.0f}" y="{:.0f}">{}</text>').format(LEFT, top + 14, panel.title)]
    for index, line in enumerate(legend):
        y = top + 32 + 18 * index
        parts.append(
            Markup('<path class="{}" d="M{:.0f} {:.0f}h26"/><text x="{:.0f}" y="{:.0f}">{}</text>').format(
                line.look, LEFT, y - 4, LEFT + 34, y, line.name
            )
        )
    for value, text in ticks:
        y = floor - panel.height * (value - low) / (high - low)
        parts.append(
            Markup(
                '<path class="grid" d="M{:.0f} {:.1f}H{:.0f}"/><text class="y" x="{:.0f}" y="{:.1f}">{}</text>'
            ).format(LEFT, y, WIDTH - RIGHT, LEFT - 7, y + 4, text)
        )
    for value in MaxNLocator(5, integer=True).tick_values(0, end):
        if 0 <= value <= end:
            x = at(float(value), 1.0)[0]
            parts.append(Markup('<path class="grid" d="M{:.1f} {:.1f}v5"/>').format(x, floor))
            if last:
                anchor = "end" if value > 0.97 * end else "middle"
                parts.append(
                    Markup('<text style="text-anchor:{}" x="{:.1f}" y="{:.1f}">{:,.0f}</text>').format(
                        anchor, x, floor + 19, value
                    )
                )
    for line in lines:
        places = [at(x, y) for x, y in line.points if not panel.log or y > 0]
        if len(places) == 1:
            parts.append(Markup('<circle class="{}" cx="{:.1f}" cy="{:.1f}" r="3"/>').format(line.look, *places[0]))
        elif (
            panel.log
        ):  # a step plot: the learning rate changes at the iteration at which its new value is first logged
            steps = f"M{places[0][0]:.1f} {places[0][1]:.1f}" + "".join(f"H{x:.1f}V{y:.1f}" for x, y in places[1:])
            steps += f"H{WIDTH - RIGHT:.1f}"
            parts.append(Markup('<path class="{}" d="{}"/>').format(line.look, steps))
        else:
            joined = "M" + " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
            parts.append(Markup('<path class="{}" d="{}"/>').format(line.look, joined))
    return Markup("").join(parts)


def _words(name: str, tests: Sequence[Row], paper: Sequence[tuple[str, Sequence[Row]]]) -> str:
    """Return a text description of the curves for screen readers."""
    words = []
    for label, each in [(name, tests), *paper]:
        points = _points(each, lambda row: row.test_accuracy)
        if points:
            words.append(f"{label}: from {points[0][1]:.3f} to {points[-1][1]:.3f} at iteration {points[-1][0]:,.0f}")
    return "Test accuracy during training. " + "; ".join(words) + "." if words else "Training without tests."
