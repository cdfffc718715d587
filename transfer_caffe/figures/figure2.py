"""Figure 2 of the paper, top and bottom, and the paired differences between the same networks and their own bases.

As in figure 2 of Yosinski et al. (2014), only random splits are shown and the letters are pooled: BnB stands for every
selffer network, AnB for every transfer network. The paper's data are drawn with the axis limits of the paper's figure.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from transfer_caffe.figures.remarks import Points, between, draw_paper_remarks, draw_remarks
from transfer_caffe.figures.sources import (
    CREDIT,
    Source,
    compared,
    credit_words,
    is_paper,
    kinds_of,
    last_n,
    legend_of,
    titled,
)
from transfer_caffe.figures.style import (
    DARK,
    LOOKS,
    Drawn,
    credit,
    draw_line,
    draw_markers,
    legend_clear_of,
    signed,
    write_figure,
)
from transfer_caffe.results.markers import Cell, Marker, cells_of, limits

KINDS = ("base", "BnB", "BnB+", "AnB", "AnB+")
X_LABEL = "Layer n at which network is chopped and retrained"
SHADES = (("base", "AnB+", "#ffeeee"), ("base", "BnB", "#eeeeff"), ("BnB", "AnB", "#ffcccc"))
PAPER_TOP, PAPER_BOTTOM = (0.52, 0.66), (0.54, 0.655)
"""The y limits of the paper's figure."""
_WIDE = (0.075, 0.105, 0.905, 0.865)


@dataclass(frozen=True)
class _Lines:
    """The cells of one source in the bottom panel, and the point at n = 0 at which its lines start."""

    source: Source
    cells: dict[tuple[str, int], Cell]
    base: Cell | None

    @property
    def points(self) -> Points:
        """The means of each kind by n."""
        start = [] if self.base is None else [(0, self.base)]
        kinds = [kind for kind in KINDS[1:] if any(each == kind for each, _ in self.cells)]
        return {kind: start + [(n, cell) for (each, n), cell in self.cells.items() if each == kind] for kind in kinds}


def draw_top(sources: Sequence[Source], folder: Path, metric_words: str) -> Drawn:
    """Draw every network as one marker.

    ``sources`` hold the networks of the random splits, without those that have random, untrained filters.
    """
    kinds = kinds_of(sources, KINDS)
    alone = is_paper(sources)

    def make() -> Figure:
        figure = Figure(figsize=(15, 8))
        axes = figure.add_axes(_WIDE)
        points = []
        for source in sources:
            for kind in kinds_of([source], kinds):
                look = source.look(LOOKS[kind])
                xy = [(m.n + look.shift, m.accuracy) for m in source.markers if m.kind == kind]
                draw_markers(axes, look, [x for x, _ in xy], [y for _, y in xy])
                points += xy
        _n_axis(axes, sources)
        heights = [y for _, y in points]
        axes.set_ylim(_paper_axis(PAPER_TOP, heights, sources) or limits(heights, 0.01, 0.02))
        axes.set_ylabel("Top-1 accuracy (higher is better)")
        legend_clear_of(axes, *legend_of(_entries(sources, kinds), sources), points)
        credit(figure, CREDIT if alone else "")
        return figure

    header = (
        "source",
        "network",
        "split",
        "seed",
        "treatment",
        "kind",
        "n",
        "x",
        "accuracy",
        "accuracy_own_base",
        "gain",
    )
    table: list[Sequence[Any]] = [header]
    for source in sources:
        for marker in sorted(source.markers, key=lambda m: (KINDS.index(m.kind), m.n)):
            x = marker.n + source.look(LOOKS[marker.kind]).shift
            table.append(
                (source.name, marker.network, marker.split, marker.seed, str(marker.treatment), marker.kind, marker.n,
                 x, marker.accuracy, marker.base, marker.gain)
            )  # fmt: skip
    drawn = Drawn(
        "figure2_top",
        titled("Every network (the paper's Figure 2, top)", sources),
        f"Each marker is one network of the random splits: {_counts(sources, kinds)}. {metric_words} Letters are "
        "pooled as in the paper: BnB stands for every selffer network and AnB for every transfer network, whichever "
        "half is the target, so each column contains halves of different difficulty. Markers of the same n are shifted "
        f"sideways to avoid overlap.{credit_words(sources)}",
        "Scatter plot of test accuracy against n, the layer at which a network is chopped and retrained, for "
        f"{sum(len(source.markers) for source in sources)} networks, by treatment.",
    )
    return write_figure(make, folder, drawn, table)


def draw_bottom(sources: Sequence[Source], folder: Path, metric_words: str) -> Drawn:
    """Draw lines through the means of each kind and n, starting at the mean of the base networks."""
    all_cells = [cells_of(source.markers, "accuracy") for source in sources]
    lines = [_Lines(source, cells, cells.get(("base", 0))) for source, cells in zip(sources, all_cells, strict=True)]
    if is_paper(sources):
        errors = "Error bars are not drawn; figure2_bottom.csv has the standard errors of the means."
        remarks = "The numbered annotations are those of the paper's figure."
    else:
        errors = _errors_words([cell for (kind, _), cell in all_cells[0].items() if kind != "base"])
        remarks = "The numbered areas are those of the paper's figure; the text on the right says what each measures."
    caption = (
        f"Random splits: lines connect the means of each treatment and start at the mean of the base networks. "
        f"{metric_words} {errors} {remarks} {_balance_words(sources[0].markers)}{credit_words(sources)}"
    )
    drawn = Drawn(
        "figure2_bottom",
        titled("Means over networks (the paper's Figure 2, bottom)", sources),
        caption,
        f"Line plot of mean test accuracy against n for {_kinds_words(sources)}.",
    )
    return write_figure(lambda: _draw_lines(lines, False), folder, drawn, _table_of(lines))


def draw_paired(sources: Sequence[Source], folder: Path, metric_words: str) -> Drawn | None:
    """Draw every network minus the base network of its own split, half and seed; None if no network has its base."""
    lines = [_Lines(source, cells_of(source.markers, "gain"), Cell((0.0,))) for source in sources]
    if not lines[0].cells:
        return None
    left_out = sum(m.kind != "base" and m.gain is None for source in sources for m in source.markers)
    caption = (
        "Paired differences in percentage points: each network minus the base network of its own target (same split, "
        "half and seed). Small markers are single networks (their values are in figure2_top.csv), lines connect the "
        f"means. {metric_words} {_errors_words(list(lines[0].cells.values()))}"
        " All networks of a half are compared with the same base network, so the random error of that base network "
        "shifts all of them by the same amount."
        + (f" {left_out} networks are left out because they have no base network." if left_out else "")
        + credit_words(sources)
    )
    drawn = Drawn(
        "figure2_paired",
        titled("Every network minus its own base", sources),
        caption,
        f"Line plot of accuracy minus the accuracy of the own base against n, for {_kinds_words(sources)}.",
    )
    return write_figure(lambda: _draw_lines(lines, True), folder, drawn, _table_of(lines))


def _draw_lines(lines: Sequence[_Lines], gains: bool) -> Figure:
    """Draw the bottom panel, of accuracies or of gains in points; the latter also shows the single networks."""
    unit = 100.0 if gains else 1.0
    sources = [each.source for each in lines]
    as_paper = is_paper(sources) and not gains
    figure = Figure(figsize=(15, 8))
    axes = figure.add_axes(_WIDE if as_paper else (0.085, 0.105, 0.6, 0.865))
    _n_axis(axes, sources)
    ends = []
    for each in lines:
        bars = not (as_paper or each.source.behind)
        ends += [unit * (c.mean + side * (c.se or 0) * bars) for c in each.cells.values() for side in (-1, 1)]
        ends += [unit * each.base.mean] if each.base else []
        ends += [unit * m.gain for m in _singles(each.source, gains) if m.gain is not None]
    on_paper = _paper_axis(PAPER_BOTTOM, ends, sources) if as_paper else None
    axes.set_ylim(on_paper or limits(ends, 0.5 if gains else 0.005, 2.0 if gains else 0.02, 0.05))
    first = lines[0]
    shaded: Points = {"base": [(n, first.base) for n in range(last_n(sources) + 1)]} if first.base else {}
    shaded |= first.points
    for one, two, colour in SHADES:
        x, low, high = between(shaded, one, two)
        axes.fill_between(x, [unit * y for y in low], [unit * y for y in high], color=colour, linewidth=0, zorder=1)
    for each in reversed(lines):
        if each.base is not None and not (gains and each.source.behind):
            look = each.source.look(LOOKS["base"])
            axes.axhline(unit * each.base.mean, color=look.line, linestyle="--", linewidth=1.5, zorder=1.5)
        _draw_singles(axes, each.source, unit, gains)
        _draw_means(axes, each, unit, bars=not (as_paper or each.source.behind))
    if gains:
        axes.set_ylabel("Top-1 accuracy minus own base (points)")
        axes.yaxis.set_major_formatter(FuncFormatter(signed))
    else:
        axes.set_ylabel("Top-1 accuracy (higher is better)")
    kinds = [kind for kind in KINDS if any(kind in each.points or (kind == "base" and each.base) for each in lines)]
    handles, labels = legend_of(_entries(sources, kinds, "own base" if gains else ""), sources, line=True)
    if as_paper and on_paper:
        axes.legend(handles, labels, loc="lower left", handlelength=2.6)
        draw_paper_remarks(axes)
    else:
        legend = figure.legend(
            handles, labels, loc="upper left", bbox_to_anchor=(0.695, 0.985), frameon=False, handlelength=2.6,
            labelspacing=0.6,
        )  # fmt: skip
        bottom = legend.get_window_extent().transformed(figure.transFigure.inverted()).y0
        draw_remarks(figure, axes, shaded, unit, bottom)
    credit(figure, CREDIT if is_paper(sources) else "")
    return figure


def _singles(source: Source, gains: bool) -> list[Marker]:
    """Return the networks that are drawn as small markers behind the means."""
    return [m for m in source.markers if m.gain is not None] if gains and not source.behind else []


def _draw_singles(axes: Axes, source: Source, unit: float, gains: bool) -> None:
    singles = _singles(source, gains)
    for kind in kinds_of([source], KINDS):
        look = LOOKS[kind]
        x, y = [m.n + look.shift / 2 for m in singles if m.kind == kind], [m.gain for m in singles if m.kind == kind]
        axes.plot(
            x, [unit * (each or 0.0) for each in y], look.marker, markersize=5, markerfacecolor="white",
            markeredgecolor=DARK.get(look.line, look.line), zorder=2, linestyle="none",
        )  # fmt: skip


def _draw_means(axes: Axes, lines: _Lines, unit: float, bars: bool) -> None:
    """Draw the lines of one source, starting at its base, with markers at the means and error bars next to them."""
    for kind, each in lines.points.items():
        look = lines.source.look(LOOKS[kind])
        x, y = [n for n, _ in each], [unit * cell.mean for _, cell in each]
        start = int(lines.base is not None)
        draw_line(axes, look, x, y)
        for n, cell in each[start:]:
            if bars and cell.se is not None:
                axes.errorbar(
                    n + look.shift / 3, unit * cell.mean, unit * cell.se, color=DARK[look.line], linewidth=1.2,
                    capsize=4, zorder=2.7,
                )  # fmt: skip
        draw_markers(axes, look, x[start:], y[start:])
    if lines.base is not None:
        draw_markers(axes, lines.source.look(LOOKS["base"]), [0], [unit * lines.base.mean])


def _paper_axis(
    axis: tuple[float, float], heights: Sequence[float], sources: Sequence[Source]
) -> tuple[float, float] | None:
    """Return the paper's axis limits if only the paper's networks are shown and fit on the axis, otherwise None."""
    return axis if is_paper(sources) and axis[0] < min(heights) and max(heights) < axis[1] else None


def _n_axis(axes: Axes, sources: Sequence[Source]) -> None:
    last = last_n(sources)
    axes.set_xlim(-0.2, last + (0.4 if compared(sources) else 0.3))
    axes.set_xticks(range(last + 1))
    axes.set_xlabel(X_LABEL)
    axes.yaxis.set_major_locator(MaxNLocator(8, steps=[1, 2, 2.5, 5, 10]))


def _entries(sources: Sequence[Source], kinds: Sequence[str], base: str = "") -> list[tuple]:
    """Return the entries for `legend_of`: the look, the label and the sources of each kind."""
    words = {"base": base or ("baseB" if is_paper(sources) else "base (baseA, baseB)")}
    return [
        (
            LOOKS[kind],
            words.get(kind, LOOKS[kind].label),
            [s for s in sources if any(m.kind == kind for m in s.markers)],
        )
        for kind in kinds
    ]


def _plain(kind: str) -> str:
    return {"base": "base networks", "R": "with random filters"}.get(kind, kind)


def _counts(sources: Sequence[Source], kinds: Sequence[str]) -> str:
    """Return the number of networks of each kind, "8 base networks, 28 BnB", for each source if there are two."""
    parts = []
    for source in sources:
        counts = {kind: sum(m.kind == kind for m in source.markers) for kind in kinds}
        words = ", ".join(f"{count} {_plain(kind)}" for kind, count in counts.items() if count)
        parts.append(f"{words} ({source.name})" if compared(sources) else words)
    return "; ".join(parts)


def _kinds_words(sources: Sequence[Source]) -> str:
    return ", ".join(_plain(kind) for kind in kinds_of(sources, KINDS))


def _errors_words(cells: Sequence[Cell]) -> str:
    """Return a sentence on what the error bars show and how many networks a mean has."""
    if not cells:
        return "There are only base networks."
    counts = sorted({cell.count for cell in cells})
    many = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    if counts[-1] == 1:
        return (
            "Each mean is the value of a single network, so there are no error bars and the standard error is unknown."
        )
    return (
        f"Error bars, shifted slightly sideways, show the standard error of the mean, treating networks as independent "
        f"({many} networks per mean; none for a single network)."
    )


def _balance_words(markers: Sequence[Marker]) -> str:
    """Return a sentence on whether all treatments were trained on the same halves, so that pooling causes no bias."""
    places: dict[tuple[str, int], set] = {}
    for marker in markers:
        if marker.kind != "base":
            places.setdefault((marker.kind, marker.n), set()).add(marker.place)
    halves = {marker.place for marker in markers}
    if not places or all(each == halves for each in places.values()):
        return (
            "Every mean covers the same halves. The error bars include the variation in difficulty between halves; the "
            "paired differences in figure2_paired do not."
        )
    return (
        "The means do not all cover the same halves, and halves differ in difficulty, so part of the distance between "
        "two lines is due to the halves. The paired differences in figure2_paired do not have this bias."
    )


def _table_of(lines: Sequence[_Lines]) -> list[Sequence[Any]]:
    table: list[Sequence[Any]] = [("source", "kind", "n", "networks", "mean", "standard_deviation", "standard_error")]
    for each in lines:
        table += [(each.source.name, kind, n, c.count, c.mean, c.sd, c.se) for (kind, n), c in each.cells.items()]
    return table
