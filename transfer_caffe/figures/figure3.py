"""Figure 3 of the paper: dissimilar halves (man-made/natural), random filters, and both minus their own base.

Yosinski et al. (2014), figure 3: top left, top right, and the bottom panel with the random splits beside them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from transfer_caffe.figures.cells import Cell, Marker, cells_of, limits
from transfer_caffe.figures.style import LOOKS, Drawn, Look, draw_markers, handle, legend_clear_of, write_figure

HEXAGON = Look("h", "#ff8800", "#ff8800", False, 0.0, "man-made/natural split", 12)
DIAMOND = Look("D", "#ff0000", "#ff0000", False, 0.0, "random A/B splits", 9)
TRIANGLE = LOOKS["R"]
NATMAN = {
    "B": ("man-made to natural", HEXAGON),
    "A": ("natural to man-made", Look("h", "#ffcc88", "#ffbb66", False, 0.0, "", 12)),
}
Cells = dict[tuple[str, int], Cell]
LOWEST = -0.3  # the paper's bottom panel ends here: random filters fall below it and out of the picture
X_LABEL = "Layer n at which network is chopped and retrained"


def draw_figure3(markers: Sequence[Marker], folder: Path, metric_words: str) -> Drawn | None:
    """Draw what there is of the three panels; None where there are neither natman nor random filters.

    ``markers`` are all networks. Only frozen transfers enter (AnB), as in the paper.
    """
    natman = [m for m in markers if m.family == "natman" and m.kind in ("base", "AnB")]
    places = {m.place for m in markers if m.kind == "R"}
    random = [m for m in markers if m.kind == "R" or (m.kind == "base" and m.place in places)]
    if not any(m.kind == "AnB" for m in natman) and not places:
        return None
    similar = [m for m in markers if m.family == "random" and m.kind == "AnB"]
    series = [(DIAMOND, similar), (HEXAGON, [m for m in natman if m.kind == "AnB"]),
              (TRIANGLE, [m for m in random if m.kind == "R"])]  # fmt: skip
    gains = [(look, cells) for look, each in series if (cells := cells_of(each, "gain"))]

    def make() -> Figure:
        figure = Figure(figsize=(15, 11))
        top = [(_draw_natman, natman)] * any(m.kind == "AnB" for m in natman) + [(_draw_random, random)] * bool(places)
        width = (0.9 - 0.085 * (len(top) - 1)) / len(top)
        for column, (draw, each) in enumerate(top):
            height = (0.565, 0.375) if gains else (0.08, 0.86)
            draw(figure.add_axes((0.085 + column * (width + 0.085), height[0], width, height[1])), each)
        if gains:
            _draw_gains(figure.add_axes((0.085, 0.075, 0.9, 0.4)), gains)
        return figure

    table: list[Sequence[Any]] = [
        ("panel", "line", "network", "split", "seed", "treatment", "n", "accuracy", "accuracy_own_base", "gain")
    ]
    for panel, each in (("man-made/natural", natman), ("random filters", random), ("random A/B", similar)):
        for m in sorted(each, key=lambda m: (m.treatment.target, m.n)):
            line = f"{m.split} target {m.treatment.target or 'whole'}"
            table.append((panel, line, m.network, m.split, m.seed, str(m.treatment), m.n, m.accuracy, m.base, m.gain))
    parts = []
    if any(m.kind == "AnB" for m in natman):
        parts.append("Top left: transfer between man-made and natural classes, one line a target half.")
    if places:
        parts.append("Random filters: the first n layers keep their untrained random weights, the others learn.")
    if gains:
        counts = "; ".join(f"{look.label} {_counts(cells)}" for look, cells in gains)
        parts.append(
            "Bottom: means of the frozen networks, each minus the base of its own target (same split, half and seed). "
            f"Networks a mean: {counts}. Error bars: standard error of the mean, where there are several; lines "
            "without bars are single networks."
        )
        if any(end < _lowest(gains) for end in _ends(gains)):
            parts.append("Random filters that fall below the bottom panel are not shown there, as in the paper.")
    drawn = Drawn(
        "figure3",
        "Dissimilar halves and random filters (the paper's Figure 3)",
        " ".join([*parts, metric_words]),
        "Line plots of test accuracy against n for transfer between man-made and natural classes and for random "
        "untrained filters; below, both and the random splits minus their own base.",
    )
    return write_figure(make, folder, drawn, table)


def _counts(cells: Cells) -> str:
    counts = sorted({cell.count for cell in cells.values()})
    return str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"


def _draw_natman(axes: Axes, markers: Sequence[Marker]) -> None:
    lines = {}
    for target, (label, look) in NATMAN.items():
        each = [m for m in markers if m.treatment.target == target]
        if any(m.kind == "AnB" for m in each):
            lines[label] = (look, each)
    _draw_lines(axes, lines, "Man-made/natural split")


def _draw_random(axes: Axes, markers: Sequence[Marker]) -> None:
    keys = sorted({(m.split, m.treatment.target) for m in markers})
    lines = {
        f"{split} {target}": (TRIANGLE, [m for m in markers if (m.split, m.treatment.target) == (split, target)])
        for split, target in keys
    }
    _draw_lines(axes, lines, "Random, untrained filters")


def _draw_lines(axes: Axes, lines: dict[str, tuple[Look, list[Marker]]], title: str) -> None:
    """Lines through the means of each n, a marker a network, white circles for the bases."""
    for look, markers in lines.values():
        cells = sorted((n, cell) for (_, n), cell in cells_of(markers, "accuracy").items())
        axes.plot([n for n, _ in cells], [cell.mean for _, cell in cells], color=look.line, linewidth=2.5, zorder=2.5)
        for m in markers:
            draw_markers(axes, LOOKS["base"] if m.kind == "base" else look, [m.n], [m.accuracy])
    points = [(float(m.n), m.accuracy) for _, markers in lines.values() for m in markers]
    _finish(axes, [max(0.0, low) for low in limits([y for _, y in points], 0.01, 0.02)], "Top-1 accuracy")
    axes.set_title(title, fontsize=17, pad=12)
    if len(lines) > 1:
        legend_clear_of(axes, [handle(look, line=True) for look, _ in lines.values()], list(lines), points)


def _draw_gains(axes: Axes, gains: Sequence[tuple[Look, Cells]]) -> None:
    axes.axhline(0, color="black", linestyle="--", linewidth=1.5, zorder=1.5)
    for look, cells in gains:
        x, y = [0, *(n for _, n in cells)], [0.0, *(cell.mean for cell in cells.values())]
        axes.plot(x, y, color=look.line, linewidth=2.5, zorder=2.5)
        for (_, n), cell in cells.items():
            if cell.se is not None:
                axes.errorbar(n, cell.mean, cell.se, color="#333333", linewidth=1.2, capsize=4, zorder=2.7)
        draw_markers(axes, look, x[1:], y[1:], clip=True)
    draw_markers(axes, LOOKS["base"], [0], [0.0])
    lowest = _lowest(gains)
    low, high = limits([max(end, lowest) for end in (0.0, *_ends(gains))], 0.01, 0.02)
    _finish(axes, (max(low, lowest), high), "Relative top-1 accuracy")
    axes.set_xlabel(X_LABEL)
    axes.legend([handle(look, line=True) for look, _ in gains], [look.label for look, _ in gains], loc="lower left")


def _ends(gains: Sequence[tuple[Look, Cells]]) -> list[float]:
    return [c.mean + side * (c.se or 0.0) for _, cells in gains for c in cells.values() for side in (-1, 1)]


def _lowest(gains: Sequence[tuple[Look, Cells]]) -> float:
    """Where the bottom panel ends at the latest: as the paper's if random filters fall far below, never above AnB."""
    transfers = _ends([each for each in gains if each[0] is not TRIANGLE])
    if not transfers or min(_ends(gains)) > LOWEST - 0.1:
        return -1.0
    return min(LOWEST, limits(transfers, 0.01, 0.02)[0])


def _finish(axes: Axes, ends: Sequence[float], label: str) -> None:
    axes.set_xlim(-0.2, 7.3)
    axes.set_xticks(range(8))
    axes.set_ylim(*ends)
    axes.set_ylabel(label)
    axes.yaxis.set_major_locator(MaxNLocator(7, steps=[1, 2, 2.5, 5, 10]))
