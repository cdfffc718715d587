"""The figure of the paper's supplement: accuracy against the number of training images per class.

Yosinski et al. (2014), supplement: networks of all classes are trained on the first k images of each class and tested
on the complete test set. The base network of all classes is a dashed line; it is trained on all images, but often with
a different schedule.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from transfer_caffe.figures.sources import CREDIT, Source, compared, credit_words, is_paper, legend_of, titled
from transfer_caffe.figures.style import Drawn, Look, credit, draw_line, draw_markers, write_figure
from transfer_caffe.results.markers import Cell, accuracy_of, limits
from transfer_caffe.results.table import Row
from transfer_caffe.utils.errors import UserError

LOOK = Look("s", "#008844", "#008844", False, 0.0, "first k images of each class", 9)
BASE = Look("", "white", "black", False, 0.0, "base: all images", dash="--", width=1.5)
CHANCE = Look("", "white", "#888888", False, 0.0, "chance", dash=":", width=1.5)


@dataclass(frozen=True)
class _Line:
    """One source: its networks (images per class, accuracy, row), its base accuracies and its chance level."""

    source: Source
    networks: list[tuple[int, float, Row]]
    base: Cell | None
    chance: float | None

    @property
    def means(self) -> list[tuple[int, float]]:
        """The mean accuracy for each number of images per class."""
        values: dict[int, list[float]] = {}
        for images, accuracy, _ in self.networks:
            values.setdefault(images, []).append(accuracy)
        return [(images, Cell(tuple(values[images])).mean) for images in sorted(values)]


def draw_reduced(
    sources: Sequence[tuple[Source, Sequence[Row]]], folder: Path, metric: str, metric_words: str
) -> Drawn | None:
    """Draw two panels, with linear and logarithmic axes, of the networks trained on reduced data.

    ``sources`` pairs each source with its rows. Return None if the first source has no such network with an accuracy.
    Raise UserError for a network with less than one image per class.
    """
    lines = [_line(source, rows, metric) for source, rows in sources]
    if not lines[0].networks:
        return None
    only = [source for source, _ in sources]

    def make() -> Figure:
        figure = Figure(figsize=(15, 7.4))
        for column, log in enumerate((False, True)):
            axes = figure.add_axes((0.075 + 0.49 * column, 0.115, 0.42, 0.8))
            _draw(axes, lines, log)
            axes.set_title("Both axes logarithmic" if log else "Linear", fontsize=17, pad=12)
            if column == 0:
                entries = [(LOOK, LOOK.label, [each.source for each in lines if each.networks])]
                entries += [(BASE, BASE.label, base)] if (base := [each.source for each in lines if each.base]) else []
                entries.append((CHANCE, CHANCE.label, only))
                handles, labels = legend_of(entries, only, line=True)
                axes.legend(handles, labels, loc="lower right", fontsize=13)
        credit(figure, CREDIT if is_paper(only) else "")
        return figure

    table: list[Sequence[Any]] = [("source", "network", "seed", "images_per_class", "iterations", "accuracy", "chance")]
    for each in lines:
        for images, accuracy, row in sorted(each.networks, key=lambda network: network[0]):
            table.append((each.source.name, row.network, row.seed, images, row.max_iter, accuracy, each.chance))
        if each.base:
            table.append((each.source.name, "base", "", "", "", each.base.mean, each.chance))
    drawn = Drawn(
        "reduced",
        titled("Accuracy against training images per class (the paper's supplement)", only),
        "Each marker is one network of all classes, trained on only the first k images of each class and tested on the "
        f"complete test set; lines connect the means. {metric_words} The dotted line is the chance level, one divided "
        f"by the number of classes.{_chance_words(lines)} The dashed line is the base network of all classes, which "
        f"was trained on all images, possibly for a different number of iterations.{credit_words(only)}",
        "Two plots of test accuracy against training images per class, with linear and with logarithmic axes, for "
        + ", ".join(f"k = {images}" for images, _ in lines[0].means)
        + ".",
    )
    return write_figure(make, folder, drawn, table)


def _line(source: Source, rows: Sequence[Row], metric: str) -> _Line:
    networks = []
    for row in rows:
        accuracy = accuracy_of(row, metric)
        if row.images_per_class is None or accuracy is None:
            continue
        if row.images_per_class < 1:
            raise UserError(f"{row.network}: images_per_class is {row.images_per_class}; it must be at least 1")
        networks.append((row.images_per_class, accuracy, row))
    classes = [row.target_classes for _, _, row in networks if row.target_classes > 0]
    bases = tuple(m.accuracy for m in source.markers if m.family == "whole" and m.kind == "base")
    return _Line(source, networks, Cell(bases) if bases else None, 1 / max(classes) if classes else None)


def _draw(axes: Axes, lines: Sequence[_Line], log: bool) -> None:
    heights, widths = [], []
    for each in reversed(lines):
        look = each.source.look(LOOK)
        means = [(k, y) for k, y in each.means if y > 0 or not log]
        shown = [(k, y) for k, y, _ in each.networks if y > 0 or not log]
        draw_line(axes, look, [k for k, _ in means], [y for _, y in means])
        draw_markers(axes, look, [k for k, _ in shown], [y for _, y in shown])
        heights += [y for _, y in shown]
        widths += [k for k, _ in shown]
        if each.base and (each.base.mean > 0 or not log):
            _level(axes, each.source.look(BASE), each.base.mean)
            heights.append(each.base.mean)
        if each.chance:
            _level(axes, each.source.look(CHANCE), each.chance)
            heights.append(each.chance)
    axes.set_xlabel("Training images per class")
    if not log:
        axes.set_ylabel("Top-1 accuracy (higher is better)")
    if log and heights:
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xlim(min(widths, default=1) / 1.3, max(widths, default=1) * 1.3)
        axes.set_ylim(min(heights) / 1.5, max(heights) * 1.5)
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axis.set_minor_formatter(FuncFormatter(lambda *_: ""))
    elif heights:
        axes.set_xlim(-0.03 * max(widths, default=1), 1.04 * max(widths, default=1))
        low, high = limits(heights, 0.01, 0.02, 0.06)
        axes.set_ylim(max(low, -0.03), high)
        axes.xaxis.set_major_locator(MaxNLocator(7, integer=True))
    axes.grid(True, axis="both")


def _level(axes: Axes, look: Look, height: float) -> None:
    axes.axhline(height, color=look.line, linestyle=look.dash, linewidth=look.width, zorder=1.5)


def _chance_words(lines: Sequence[_Line]) -> str:
    """Return a sentence that lists the networks that are not clearly better than chance."""
    parts = []
    for each in lines:
        if each.chance:
            at = [str(images) for images, accuracy in each.means if accuracy < 1.5 * each.chance]
            if at:
                whose = f" ({each.source.name})" if compared([line.source for line in lines]) else ""
                parts.append(f" Accuracy below 1.5 times the chance level{whose}: k = {', '.join(at)}.")
    return "".join(parts)
