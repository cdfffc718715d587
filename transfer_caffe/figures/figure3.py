"""Figure 3 of the paper: dissimilar halves (man-made/natural), random filters, and both relative to their own base.

The panels are those of figure 3 of Yosinski et al. (2014): top left, top right, and the bottom panel, which also shows
the random splits. Every network is compared with the base network of its own target: networks trained on natural
classes with the base network of the natural classes, networks with random filters with the base of all classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from transfer_caffe.figures.sources import CREDIT, Source, compared, credit_words, is_paper, legend_of, titled
from transfer_caffe.figures.style import (
    LOOKS,
    Drawn,
    Look,
    along,
    credit,
    draw_line,
    draw_markers,
    legend_clear_of,
    write_figure,
)
from transfer_caffe.results.markers import Cell, Marker, cells_of, limits

HEXAGON = Look("h", "#ff8800", "#ff8800", False, 0.0, "man-made/natural split", 12)
DIAMOND = Look("D", "#ff0000", "#ff0000", False, 0.0, "random A/B splits", 9)
TRIANGLE = LOOKS["R"]
NATMAN = {
    "B": ("man-made to natural", HEXAGON),
    "A": ("natural to man-made", Look("h", "#ffcc88", "#ffbb66", False, 0.0, "", 12)),
}
Cells = dict[tuple[str, int], Cell]
LOWEST, PAPER_HIGHEST = -0.3, 0.03
"""The y limits of the paper's bottom panel; random filters fall below them and are not visible."""
X_LABEL = "Layer n at which network is chopped and retrained"


@dataclass(frozen=True)
class _Series:
    """One line of the bottom panel."""

    source: Source
    look: Look
    cells: Cells


def draw_figure3(sources: Sequence[Source], folder: Path, metric_words: str) -> Drawn | None:
    """Draw those of the three panels that have data.

    ``sources`` hold all networks. As in the paper, only frozen transfer networks (AnB) are shown. Return None if the
    first source has neither transfer networks of the split natman nor networks with random filters.
    """
    if not any(m.kind == "R" or (m.family == "natman" and m.kind == "AnB") for m in sources[0].markers):
        return None
    natman = [source.only(lambda m: m.family == "natman" and m.kind in ("base", "AnB")) for source in sources]
    random = [_with_bases(source) for source in sources]
    similar = [source.only(lambda m: m.family == "random" and m.kind == "AnB") for source in sources]
    of_natman = any(m.kind == "AnB" for source in natman for m in source.markers)
    of_random = any(source.markers for source in random)
    series = [
        _Series(source, look, cells)
        for look, each in ((DIAMOND, similar), (HEXAGON, natman), (TRIANGLE, random))
        for source in each
        if (cells := cells_of(source.markers, "gain"))
    ]

    def make() -> Figure:
        figure = Figure(figsize=(15, 11))
        top = [(_draw_natman, natman)] * of_natman + [(_draw_random, random)] * of_random
        width = (0.9 - 0.085 * (len(top) - 1)) / len(top)
        for column, (draw, each) in enumerate(top):
            height = (0.565, 0.375) if series else (0.08, 0.86)
            draw(figure.add_axes((0.085 + column * (width + 0.085), height[0], width, height[1])), each)
        if series:
            _draw_gains(figure.add_axes((0.085, 0.075, 0.9, 0.4)), series, sources)
        credit(figure, CREDIT if is_paper(sources) else "")
        return figure

    parts = []
    if of_natman:
        parts.append("Top left: transfer between man-made and natural classes, one line for each target half.")
    if of_random:
        parts.append(
            "Random filters: the first n layers keep their random, untrained weights, and the other layers are trained."
        )
    if series:
        counts = "; ".join(f"{_whose(each)} {_counts(each.cells)}" for each in series)
        errors = (
            "Error bars are not drawn; figure3.csv has the standard errors of the means."
            if is_paper(sources)
            else "Error bars show the standard error of the mean, treating networks as independent (none for a single "
            "network)."
        )
        parts.append(
            "Bottom: mean paired differences of the frozen networks, each network minus the base network of its own "
            f"target (same split, half and seed). Networks per mean: {counts}. {errors}"
        )
        if any(end < _lowest(series) for end in _ends(series)):
            parts.append("As in the paper, random filters below the lower limit of the bottom panel are not shown.")
    drawn = Drawn(
        "figure3",
        titled("Dissimilar halves and random filters (the paper's Figure 3)", sources),
        " ".join([*parts, metric_words]) + credit_words(sources),
        "Line plots of test accuracy against n for transfer between man-made and natural classes and for random, "
        "untrained filters; below, the differences of both and of the random splits from their own base networks.",
    )
    panels = (("man-made/natural", natman), ("random filters", random), ("random A/B", similar))
    return write_figure(make, folder, drawn, _table(panels, series))


def _table(panels: Sequence[tuple[str, Sequence[Source]]], series: Sequence[_Series]) -> list[Sequence[Any]]:
    """Return the rows of the CSV: single networks by panel, then the means of the bottom panel, which have no name."""
    table: list[Sequence[Any]] = [
        ("source", "panel", "line", "network", "split", "seed", "treatment", "n", "accuracy", "accuracy_own_base",
         "gain", "networks", "standard_error")
    ]  # fmt: skip
    for panel, sources in panels:
        for source in sources:
            for m in sorted(source.markers, key=lambda m: (m.treatment.target, m.n)):
                line = f"{m.split} target {m.treatment.target or 'whole'}"
                table.append(
                    (source.name, panel, line, m.network, m.split, m.seed, str(m.treatment), m.n, m.accuracy, m.base,
                     m.gain, "", "")
                )  # fmt: skip
    for each in series:
        for (_, n), cell in each.cells.items():
            table.append(
                (each.source.name, "bottom", each.look.label, "", "", "", "", n, None, None, cell.mean, cell.count,
                 cell.se)
            )  # fmt: skip
    return table


def _with_bases(source: Source) -> Source:
    """Return a source with only the networks with random filters and the base networks they are compared with."""
    places = {m.place for m in source.markers if m.kind == "R"}
    return source.only(lambda m: m.kind == "R" or (m.kind == "base" and m.place in places))


def _whose(series: _Series) -> str:
    return series.look.label + (" of the paper" if series.source.behind else "")


def _counts(cells: Cells) -> str:
    counts = sorted({cell.count for cell in cells.values()})
    return str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"


def _draw_natman(axes: Axes, sources: Sequence[Source]) -> None:
    lines = []
    for target, (label, look) in NATMAN.items():
        for source in sources:
            each = [m for m in source.markers if m.treatment.target == target]
            if any(m.kind == "AnB" for m in each):
                lines.append((label, look, source, each))
    _draw_lines(axes, lines, "Man-made/natural split", sources)


def _draw_random(axes: Axes, sources: Sequence[Source]) -> None:
    lines = []
    for source in sources:
        keys = sorted({(m.split, m.treatment.target) for m in source.markers})
        for split, target in keys:
            each = [m for m in source.markers if (m.split, m.treatment.target) == (split, target)]
            lines.append((f"{split} {target}".strip(), TRIANGLE, source, each))
    _draw_lines(axes, lines, "Random, untrained filters", sources)


def _draw_lines(
    axes: Axes, lines: Sequence[tuple[str, Look, Source, list[Marker]]], title: str, sources: Sequence[Source]
) -> None:
    """Draw lines through the means for each n, one marker per network, and white circles for the base networks."""
    points, lines_at = [], []
    for _, look, source, markers in lines:
        cells = sorted((n, cell) for (_, n), cell in cells_of(markers, "accuracy").items())
        own, white = source.look(look), source.look(LOOKS["base"])
        x, y = [n for n, _ in cells], [cell.mean for _, cell in cells]
        draw_line(axes, own, x, y)
        lines_at += along(x, y)
        for each, of_base in ((own, False), (white, True)):
            xy = [(float(m.n), m.accuracy) for m in markers if (m.kind == "base") == of_base]
            draw_markers(axes, each, [x for x, _ in xy], [y for _, y in xy])
            points += xy
    _finish(axes, [max(0.0, low) for low in limits([y for _, y in points], 0.01, 0.02)], "Top-1 accuracy")
    axes.set_title(title, fontsize=17, pad=12)
    labels = list(dict.fromkeys(label for label, _, _, _ in lines))
    if len(labels) > 1 or compared(sources):
        entries = []
        for label in labels:
            look = next(look for each, look, _, _ in lines if each == label)
            entries.append((look, label, [source for each, _, source, _ in lines if each == label]))
        legend_clear_of(axes, *legend_of(entries, sources, line=True), points + lines_at)


def _draw_gains(axes: Axes, series: Sequence[_Series], sources: Sequence[Source]) -> None:
    axes.axhline(0, color="black", linestyle="--", linewidth=1.5, zorder=1.5)
    points = []
    for each in series:
        look, cells = each.source.look(each.look), each.cells
        x, y = [0, *(n for _, n in cells)], [0.0, *(cell.mean for cell in cells.values())]
        draw_line(axes, look, x, y)
        points += [*zip(x, y, strict=True), *along(x, y)]
        for (_, n), cell in cells.items():
            if cell.se is not None and not each.source.behind and not is_paper(sources):
                axes.errorbar(n, cell.mean, cell.se, color="#333333", linewidth=1.2, capsize=4, zorder=2.7)
        draw_markers(axes, look, x[1:], y[1:], clip=True)
    draw_markers(axes, LOOKS["base"], [0], [0.0])
    lowest = _lowest(series)
    low, high = limits([max(end, lowest) for end in (0.0, *_ends(series))], 0.01, 0.02)
    means = [cell.mean for each in series if each.look is not TRIANGLE for cell in each.cells.values()]
    if is_paper(sources) and means and min(means) > LOWEST and max(means) < PAPER_HIGHEST:
        low, high = LOWEST, PAPER_HIGHEST
    _finish(axes, (max(low, lowest), high), "Relative top-1 accuracy")
    axes.set_xlabel(X_LABEL)
    looks = list({each.look.label: each.look for each in series}.values())
    entries = [(look, look.label, [each.source for each in series if each.look is look]) for look in looks]
    legend_clear_of(axes, *legend_of(entries, sources, line=True), points)


def _ends(series: Sequence[_Series]) -> list[float]:
    return [c.mean + side * (c.se or 0.0) for each in series for c in each.cells.values() for side in (-1, 1)]


def _lowest(series: Sequence[_Series]) -> float:
    """Return the lowest allowed lower limit of the bottom panel.

    It is the paper's limit if random filters fall far below it, but low enough for all transfer networks.
    """
    transfers = _ends([each for each in series if each.look is not TRIANGLE])
    if not transfers or min(_ends(series)) > LOWEST - 0.1:
        return -1.0
    return min(LOWEST, limits(transfers, 0.01, 0.02)[0])


def _finish(axes: Axes, ends: Sequence[float], label: str) -> None:
    axes.set_xlim(-0.2, 7.3)
    axes.set_xticks(range(8))
    axes.set_ylim(*ends)
    axes.set_ylabel(label)
    axes.yaxis.set_major_locator(MaxNLocator(7, steps=[1, 2, 2.5, 5, 10]))
