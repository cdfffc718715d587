"""The numbered remarks 2 to 5 of the paper's Figure 2, bottom: where their numbers go, and what stands beside them.

Beside the paper's own numbers stands what its authors read from them (Yosinski et al. 2014, section 4.1, in our words);
beside others only what the areas are, for these need not show what the paper found.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from transfer_caffe.results.markers import Cell

Points = dict[str, list[tuple[int, Cell]]]
# number in the paper, the two lines whose area it names, where between them (0 to 1), words: what the area is
REMARKS = (
    ("4", "BnB", "AnB", 0.5, "from BnB to AnB: features of the\nother half instead of one's own"),
    ("2", "base", "BnB", 0.5, "from base to BnB: one's own features,\nfrozen, the layers above fresh"),
    ("5", "base", "AnB+", 0.5, "from base to AnB$^+$: features of the\nother half, all layers trained on"),
    ("3", "BnB", "BnB+", 0.75, "from BnB to BnB$^+$: one's own\nfeatures, no longer frozen"),
)
# the paper's: number, words, where they stand, and where their line points, if they stand away from their area
PAPER = (
    ("2", "own features, frozen, do worse:\nco-adapted layers were parted", (3.78, 0.6165), None),
    ("3", "trained on, they find each other again", (0.35, 0.6455), (2.9, 0.6309)),
    ("4", "the other half's\nfeatures do worse:\nspecific to its task", (5.66, 0.5995), None),
    ("5", "the other half's features, trained on, serve best", (4.3, 0.6372), None),
)


def draw_paper_remarks(axes: Axes) -> None:
    """The remarks where the paper has them: in the areas of its own lines."""
    for number, words, (x, y), target in PAPER:
        axes.text(x, y, number, zorder=5, **_BADGE)
        axes.text(x + 0.16, y, words, va="center", fontsize=14, linespacing=1.35, color="#222222", zorder=5)
        if target:
            axes.annotate(
                "", target, (x + 2.2, y - 0.003), zorder=4, arrowprops={"arrowstyle": "-", "color": "#777777"}
            )


def draw_remarks(figure: Figure, axes: Axes, lines: Points, unit: float, top: float) -> None:
    """Numbers in the areas between ``lines``; their words right of the axes, from ``top`` (0 to 1) downwards."""
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
    """n, and the means of two kinds, where both have one; empty if either is missing."""
    one, two = dict(lines.get(first, [])), dict(lines.get(second, []))
    common = sorted(set(one) & set(two))
    return common, [one[n].mean for n in common], [two[n].mean for n in common]


def _widest(
    axes: Axes, lines: Points, remark: tuple[str, str, float], taken: list[tuple[float, float]], unit: float
) -> tuple[float, float] | None:
    """The place in an area for its number: where it is wide, upon no line and no other number. None for no area."""
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
