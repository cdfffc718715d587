"""The numbered annotations 2 to 5 of the paper's Figure 2, bottom: their positions and texts.

On the paper's data, the texts are the authors' annotations (Yosinski et al. 2014, figure 2). On other data they only
name what each difference measures, because other networks need not reproduce the paper's findings.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from transfer_caffe.results.markers import Cell

Points = dict[str, list[tuple[int, Cell]]]
# number in the paper, the two lines that enclose its area, position between them (0 to 1), text
REMARKS = (
    ("4", "BnB", "AnB", 0.5, "AnB minus BnB: measures\nrepresentation specificity"),
    ("2", "base", "BnB", 0.5, "BnB minus base: measures\nfragile co-adaptation"),
    ("5", "base", "AnB+", 0.5, "AnB$^+$ minus base: measures the\neffect of transfer + fine-tuning"),
    ("3", "BnB", "BnB+", 0.75, "BnB$^+$ minus BnB: measures recovery\nof co-adapted interactions"),
)
# for the paper's data: number, text, its position, and the point that its line points to if it is not in its area
PAPER = (
    ("2", "performance drops due to\nfragile co-adaptation", (3.78, 0.6165), None),
    ("3", "fine-tuning recovers co-adapted interactions", (0.35, 0.6455), (2.9, 0.6309)),
    ("4", "performance drops\ndue to representation\nspecificity", (5.66, 0.5995), None),
    ("5", "transfer + fine-tuning improves generalization", (4.3, 0.6372), None),
)


def draw_paper_remarks(axes: Axes) -> None:
    """Draw the annotations at the positions of the paper's figure, in the areas between its lines."""
    for number, words, (x, y), target in PAPER:
        axes.text(x, y, number, zorder=5, **_BADGE)
        axes.text(x + 0.16, y, words, va="center", fontsize=14, linespacing=1.35, color="#222222", zorder=5)
        if target:
            axes.annotate(
                "", target, (x + 2.2, y - 0.003), zorder=4, arrowprops={"arrowstyle": "-", "color": "#777777"}
            )


def draw_remarks(figure: Figure, axes: Axes, lines: Points, unit: float, top: float) -> None:
    """Draw the numbers in the areas between ``lines``, and their texts right of the axes, below ``top`` (0 to 1)."""
    taken: list[tuple[float, float]] = []
    placed: list[tuple[str, str]] = []
    for number, first, second, where, words in REMARKS:
        spot = _widest(axes, lines, (first, second, where), taken, unit)
        if spot is None:
            continue
        x, y = axes.transData.transform(spot)
        taken.append((float(x), float(y)))
        axes.text(*spot, number, zorder=5, **_BADGE)
        placed.append((number, words))
    for row, (number, words) in enumerate(sorted(placed)):
        y = top - 0.06 - 0.105 * row
        figure.text(0.712, y, number, **_BADGE)
        figure.text(0.732, y, words, va="center", fontsize=14, linespacing=1.35, color="#222222")


_BADGE: dict[str, Any] = {
    "ha": "center",
    "va": "center_baseline",
    "fontsize": 15,
    "fontweight": "bold",
    "bbox": {"boxstyle": "circle,pad=0.25", "facecolor": "white", "edgecolor": "#555555", "linewidth": 1.0},
}


def between(lines: Points, first: str, second: str) -> tuple[list[int], list[float], list[float]]:
    """Return the n at which both kinds have a mean, and the means of each; all empty if a kind is missing."""
    one, two = dict(lines.get(first, [])), dict(lines.get(second, []))
    common = sorted(set(one) & set(two))
    return common, [one[n].mean for n in common], [two[n].mean for n in common]


def _widest(
    axes: Axes, lines: Points, remark: tuple[str, str, float], taken: list[tuple[float, float]], unit: float
) -> tuple[float, float] | None:
    """Return a position for the number in its area: a wide place away from lines and other numbers; None if no area."""
    first, second, where = remark
    x, low, high = between(lines, first, second)
    best, spot = -1e9, None
    for left in range(len(x) - 1):
        for part in (0.35, 0.5, 0.65):
            at = x[left] + part * (x[left + 1] - x[left])
            ends = [unit * float(np.interp(at, x, y)) for y in (low, high)]
            here = (at, ends[0] + where * (ends[1] - ends[0]))
            pixel, (_, one), (_, two) = axes.transData.transform([here, (at, ends[0]), (at, ends[1])])
            near = min((max(abs(pixel[0] - a), abs(pixel[1] - b)) for a, b in taken), default=1e9)
            others = [
                axes.transData.transform(
                    (at, unit * float(np.interp(at, [n for n, _ in each], [c.mean for _, c in each])))
                )
                for each in lines.values()
            ]
            line = min(abs(pixel[1] - other[1]) for other in others)
            # a number's circle is about 30 pixels wide
            score = min(abs(one - two), 120) - 4 * max(0, 45 - near) - 3 * max(0, 20 - line)
            if score > best:
                best, spot = score, here
    return spot
