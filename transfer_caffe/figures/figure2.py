"""Figure 2 of the paper, top and bottom, and the same networks each minus the base of its own target.

Yosinski et al. (2014), figure 2: random splits only, all letters pooled: BnB is every selffer, AnB every transfer.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from transfer_caffe.figures.cells import Cell, Marker, cells_of, limits
from transfer_caffe.figures.style import LOOKS, Drawn, draw_markers, handle, legend_clear_of, signed, write_figure

KINDS = ("base", "BnB", "BnB+", "AnB", "AnB+")
X_LABEL = "Layer n at which network is chopped and retrained"
SHADES = (("base", "AnB+", "#ffeeee"), ("base", "BnB", "#eeeeff"), ("BnB", "AnB", "#ffcccc"))
# number in the paper, the two lines whose area it names, where between them (0 to 1), words: what the area is, not
# what the paper found in it, for these need not be the paper's data
REMARKS = (
    ("4", "BnB", "AnB", 0.5, "from BnB to AnB: features of the\nother half instead of one's own"),
    ("2", "base", "BnB", 0.5, "from base to BnB: one's own features,\nfrozen, the layers above fresh"),
    ("5", "base", "AnB+", 0.5, "from base to AnB$^+$: features of the\nother half, all layers trained on"),
    ("3", "BnB", "BnB+", 0.75, "from BnB to BnB$^+$: one's own\nfeatures, no longer frozen"),
)
# the pale colours are too pale for thin lines
_DARK = {"#0000ff": "#0000cc", "#aaaaff": "#7777ee", "#ff0000": "#dd0000", "#ffaaaa": "#ee7777"}
Points = dict[str, list[tuple[int, Cell]]]


def draw_top(markers: Sequence[Marker], folder: Path, metric_words: str) -> Drawn:
    """Every network as one marker. ``markers`` are those of the random splits, without random features."""
    kinds = [kind for kind in KINDS if any(marker.kind == kind for marker in markers)]
    counts = ", ".join(f"{sum(m.kind == kind for m in markers)} {_plain(kind)}" for kind in kinds)

    def make() -> Figure:
        figure = Figure(figsize=(15, 8))
        axes = figure.add_axes((0.075, 0.105, 0.905, 0.865))
        points = []
        for kind in kinds:
            xy = [(marker.n + LOOKS[kind].shift, marker.accuracy) for marker in markers if marker.kind == kind]
            draw_markers(axes, LOOKS[kind], [x for x, _ in xy], [y for _, y in xy])
            points += xy
        _n_axis(axes)
        axes.set_ylim(limits([y for _, y in points], 0.01, 0.02))
        axes.set_ylabel("Top-1 accuracy (higher is better)")
        legend_clear_of(axes, [handle(LOOKS[kind]) for kind in kinds], [_label(kind) for kind in kinds], points)
        return figure

    header = ("network", "split", "seed", "treatment", "kind", "n", "x", "accuracy", "accuracy_own_base", "gain")
    table: list[Sequence[Any]] = [header]
    for marker in sorted(markers, key=lambda m: (KINDS.index(m.kind), m.n)):
        x = marker.n + LOOKS[marker.kind].shift
        table.append(
            (marker.network, marker.split, marker.seed, str(marker.treatment), marker.kind, marker.n, x,
             marker.accuracy, marker.base, marker.gain)
        )  # fmt: skip
    drawn = Drawn(
        "figure2_top",
        "Every network (the paper's Figure 2, top)",
        f"Each marker is one network of the random splits: {counts}. {metric_words} Letters are pooled as in the "
        "paper: BnB is every selffer, AnB every transfer, whichever half is the target, so a column mixes halves "
        "of different difficulty. Markers of one n are shifted sideways so that they do not hide each other.",
        f"Scatter plot of test accuracy against n, the layer at which a network is chopped, for {len(markers)} "
        "networks, by treatment.",
    )
    return write_figure(make, folder, drawn, table)


def draw_bottom(markers: Sequence[Marker], folder: Path, metric_words: str) -> Drawn:
    """Lines through the means of each kind and n, all starting at the mean of the bases."""
    cells = cells_of(markers, "accuracy")
    base = cells.get(("base", 0))
    title = "Means over networks (the paper's Figure 2, bottom)"
    caption = (
        "Random splits: lines through the mean of each treatment, all starting at the mean of the bases. "
        f"{metric_words} "
        + _errors_words([cell for (kind, _), cell in cells.items() if kind != "base"])
        + " The numbers are the paper's; what they stand for is written beside the figure. "
        + _balance_words(markers)
    )
    alt = "Line plot of mean test accuracy against n for " + _kinds_words(cells) + "."
    drawn = Drawn("figure2_bottom", title, caption, alt)
    return write_figure(lambda: _lines(cells, base, [], False), folder, drawn, _table_of(cells))


def draw_paired(markers: Sequence[Marker], folder: Path, metric_words: str) -> Drawn | None:
    """Every network minus the base of its own split, half and seed. None where no network has its base."""
    cells = cells_of(markers, "gain")
    if not cells:
        return None
    left_out = sum(marker.kind != "base" and marker.gain is None for marker in markers)
    caption = (
        f"Each network minus the base network of its own target (same split, half and seed), in percentage points: "
        f"small markers are networks, lines go through their means. {metric_words} "
        + _errors_words(list(cells.values()))
        + " All networks of a half are compared with the same base, so that base's own luck moves them together."
        + (f" Left out for want of their base: {left_out} networks." if left_out else "")
    )
    drawn = Drawn(
        "figure2_paired",
        "Every network minus its own base",
        caption,
        "Line plot of the difference in accuracy to the own base network against n, for " + _kinds_words(cells) + ".",
    )
    paired = [marker for marker in markers if marker.gain is not None]
    zero = Cell((0.0,))
    return write_figure(lambda: _lines(cells, zero, paired, True), folder, drawn, _table_of(cells))


def _lines(cells: dict[tuple[str, int], Cell], base: Cell | None, networks: Sequence[Marker], gains: bool) -> Figure:
    """The bottom panel: of accuracies, or of gains in points with the networks behind the means."""
    unit = 100.0 if gains else 1.0
    start = [] if base is None else [(0, base)]
    lines: Points = {
        kind: start + [(n, cell) for (each, n), cell in cells.items() if each == kind]
        for kind in KINDS[1:]
        if any(each == kind for each, _ in cells)
    }
    figure = Figure(figsize=(15, 8))
    axes = figure.add_axes((0.085, 0.105, 0.6, 0.865))
    _n_axis(axes)
    ends = [unit * (cell.mean + side * (cell.se or 0)) for cell in cells.values() for side in (-1, 1)]
    ends += [unit * base.mean] if base else []
    ends += [unit * marker.gain for marker in networks if marker.gain is not None]
    axes.set_ylim(limits(ends, 0.5 if gains else 0.005, 2.0 if gains else 0.02, 0.05))
    if base is not None:
        axes.axhline(unit * base.mean, color="black", linestyle="--", linewidth=1.5, zorder=1.5)
        lines_and_base: Points = {"base": [(n, base) for n in range(8)], **lines}
    else:
        lines_and_base = lines
    for first, second, colour in SHADES:
        x, low, high = _between(lines_and_base, first, second)
        axes.fill_between(x, [unit * y for y in low], [unit * y for y in high], color=colour, linewidth=0, zorder=1)
    for marker in networks:
        look = LOOKS[marker.kind]
        x, y = marker.n + look.shift / 2, unit * (marker.gain or 0.0)
        axes.plot(x, y, look.marker, markersize=5, markerfacecolor="white", markeredgecolor=_DARK[look.line], zorder=2)
    for kind, each in lines.items():
        look, x, y = LOOKS[kind], [n for n, _ in each], [unit * cell.mean for _, cell in each]
        axes.plot(x, y, color=look.line, linewidth=2.5, zorder=2.5)
        for n, cell in each[len(start) :]:
            if cell.se is not None:
                x_bar, colour = n + look.shift / 3, _DARK[look.line]
                axes.errorbar(
                    x_bar, unit * cell.mean, unit * cell.se, color=colour, linewidth=1.2, capsize=4, zorder=2.7
                )
        draw_markers(axes, look, x[len(start) :], y[len(start) :])
    if base is not None:
        draw_markers(axes, LOOKS["base"], [0], [unit * base.mean])
    if gains:
        axes.set_ylabel("Top-1 accuracy minus own base (points)")
        axes.yaxis.set_major_formatter(FuncFormatter(signed))
    else:
        axes.set_ylabel("Top-1 accuracy (higher is better)")
    _key_and_remarks(figure, axes, lines_and_base, unit, "own base" if gains else _label("base"))
    return figure


def _key_and_remarks(figure: Figure, axes: Axes, lines: Points, unit: float, base: str) -> None:
    """Right of the axes: what the lines are, then the remarks; their numbers stand in the areas."""
    kinds = [kind for kind in KINDS if kind in lines]
    legend = figure.legend(
        [handle(LOOKS[kind], line=True) for kind in kinds],
        [base if kind == "base" else _label(kind) for kind in kinds],
        loc="upper left", bbox_to_anchor=(0.695, 0.985), frameon=False, handlelength=2.6, labelspacing=0.6,
    )  # fmt: skip
    bottom = legend.get_window_extent().transformed(figure.transFigure.inverted()).y0
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
        y = bottom - 0.06 - 0.105 * row
        figure.text(0.712, y, number, **_BADGE)
        figure.text(0.732, y, words, va="center", fontsize=14, linespacing=1.35, color="#222222")


_BADGE: dict[str, Any] = {
    "ha": "center",
    "va": "center_baseline",
    "fontsize": 15,
    "fontweight": "bold",
    "bbox": {"boxstyle": "circle,pad=0.25", "facecolor": "white", "edgecolor": "#555555", "linewidth": 1.0},
}


def _between(lines: Points, first: str, second: str) -> tuple[list[int], list[float], list[float]]:
    """n, and the means of two kinds, where both have one; empty if either is missing."""
    one, two = dict(lines.get(first, [])), dict(lines.get(second, []))
    common = sorted(set(one) & set(two))
    return common, [one[n].mean for n in common], [two[n].mean for n in common]


def _widest(
    axes: Axes, lines: Points, remark: tuple[str, str, float], taken: list[tuple[float, float]], unit: float
) -> tuple[float, float] | None:
    """The place in an area for its number: where it is wide, upon no line and no other number. None for no area."""
    first, second, where = remark
    x, low, high = _between(lines, first, second)
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


def _n_axis(axes: Axes) -> None:
    axes.set_xlim(-0.2, 7.3)
    axes.set_xticks(range(8))
    axes.set_xlabel(X_LABEL)
    axes.yaxis.set_major_locator(MaxNLocator(8, steps=[1, 2, 2.5, 5, 10]))


def _label(kind: str) -> str:
    return "base (baseA, baseB)" if kind == "base" else LOOKS[kind].label


def _plain(kind: str) -> str:
    return {"base": "bases", "R": "with random filters"}.get(kind, kind)


def _kinds_words(cells: dict[tuple[str, int], Cell]) -> str:
    return ", ".join(dict.fromkeys(_plain(kind) for kind, _ in cells))


def _errors_words(cells: Sequence[Cell]) -> str:
    """What the error bars are and how many networks are behind a mean."""
    if not cells:
        return "There are only base networks so far."
    counts = sorted({cell.count for cell in cells})
    many = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    if counts[-1] == 1:
        return (
            "Every mean is a single network: there is no error bar, and how far chance alone would move it is unknown."
        )
    return f"Error bars, a little to the side: standard error of the mean, where it has several networks ({many})."


def _balance_words(markers: Sequence[Marker]) -> str:
    """Whether pooling is fair: every treatment on the same halves."""
    places: dict[tuple[str, int], set] = {}
    for marker in markers:
        if marker.kind != "base":
            places.setdefault((marker.kind, marker.n), set()).add(marker.place)
    halves = {marker.place for marker in markers}
    if not places or all(each == halves for each in places.values()):
        return (
            "Every mean covers the same halves; the error bars hold the halves' difference in difficulty, which the "
            "figure of differences to the own base does without."
        )
    return (
        "The means do not all cover the same halves, and halves differ in difficulty: part of the distance between "
        "two lines is the difference between halves. The figure of differences to the own base is free of that."
    )


def _table_of(cells: dict[tuple[str, int], Cell]) -> list[Sequence[Any]]:
    table: list[Sequence[Any]] = [("kind", "n", "networks", "mean", "standard_deviation", "standard_error")]
    return table + [(kind, n, cell.count, cell.mean, cell.sd, cell.se) for (kind, n), cell in cells.items()]
