"""Training curves: test accuracy against iteration, one panel for each kind of network."""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from pathlib import Path

import matplotlib
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, MaxNLocator

from transfer_caffe.figures.sources import CREDIT, Source, credit_words, is_paper, titled
from transfer_caffe.figures.style import LOOKS, Drawn, credit, write_figure
from transfer_caffe.formats.log import Row
from transfer_caffe.results.markers import KINDS, Marker, limits
from transfer_caffe.utils.errors import UserError

Curve = list[tuple[int, float]]
_NUMBERS = ("test_accuracy", "test_loss", "train_loss", "lr")
_FAMILIES = {"random": "random splits", "natman": "man-made/natural", "whole": "all classes"}


def read_tests(path: Path) -> dict[str, list[Row]]:
    """Read the tests of every network from a table of curves, by network name.

    The tests of a network's own curve.csv, which has no column of names, are under the name "". Empty or missing values
    are None. Raise UserError if the file is not such a table.
    """
    tests: dict[str, list[Row]] = {}
    with open(path, newline="", encoding="utf-8", errors="replace") as file:
        for line, row in enumerate(csv.DictReader(file), start=2):
            try:
                numbers = [float(row[key]) if row.get(key) else None for key in _NUMBERS]
                each = Row(int(row["iteration"]), *numbers)
                if "test_accuracy" not in row:
                    raise KeyError
            except (KeyError, TypeError, ValueError):
                raise UserError(
                    f"{path}:{line}: expected an iteration and a test_accuracy; delete the file and run the network's "
                    "driver again to rewrite it"
                ) from None
            tests.setdefault(row.get("network") or "", []).append(each)
    return tests


def curve_of(tests: Sequence[Row]) -> Curve:
    """Return (iteration, test accuracy) of the tests that have a finite accuracy."""
    return [
        (each.iteration, each.test_accuracy)
        for each in tests
        if each.test_accuracy is not None and math.isfinite(each.test_accuracy)
    ]


def read_curve(path: Path) -> Curve:
    """Read the curve of a network's curve.csv. Errors are those of `read_tests`."""
    return curve_of(read_tests(path).get("", []))


def draw_curves(source: Source, curves: dict[str, Curve], folder: Path) -> Drawn | None:
    """Draw one panel for each family and kind, with one line per network, coloured by n; None if there is no curve."""
    panels: dict[tuple[str, str], list[Marker]] = {}
    for marker in sorted(source.markers, key=lambda m: (list(_FAMILIES).index(m.family), KINDS.index(m.kind), m.n)):
        if curves.get(marker.network):
            panels.setdefault((marker.family, marker.kind), []).append(marker)
    if not panels:
        return None
    drawn_names = [m.network for each in panels.values() for m in each]
    ends = [y for name in drawn_names for _, y in curves[name]]
    colours = {n: to_hex(matplotlib.colormaps["plasma"](0.05 + 0.85 * (n - 1) / 6)) for n in range(1, 8)}
    colours[0] = "black"

    def make() -> Figure:
        columns = min(3, len(panels))
        rows = math.ceil(len(panels) / columns)
        figure = Figure(figsize=(15, 4.3 * rows + 0.9))
        grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
        for index, ((family, kind), each) in enumerate(panels.items()):
            axes = grid[index // columns][index % columns]
            for marker in each:
                x, y = zip(*curves[marker.network], strict=True)
                point = "o" if len(x) == 1 else None
                dash = "--" if marker.treatment.target == "B" else "-"
                colour = colours[marker.n]
                axes.plot(x, y, dash, color=colour, linewidth=1.4, alpha=0.9, marker=point, markersize=4)
            label = "base networks" if kind == "base" else LOOKS[kind].label
            axes.set_title(f"{label}, {_FAMILIES[family]}", fontsize=14, pad=8)
            axes.set_ylim(limits(ends, 0.01, 0.02, 0.05))
            axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
            axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
            axes.tick_params(labelsize=13, labelbottom=index + columns >= len(panels))
            if index + columns >= len(panels):
                axes.set_xlabel("Iteration", fontsize=15)
            if index % columns == 0:
                axes.set_ylabel("Top-1 test accuracy", fontsize=15)
        for index in range(len(panels), rows * columns):
            grid[index // columns][index % columns].set_visible(False)
        height = figure.get_figheight()
        figure.subplots_adjust(0.065, 0.75 / height, 0.985, 1 - 1.0 / height, 0.07, 0.2)
        present = sorted({m.n for each in panels.values() for m in each})
        figure.legend(
            [Line2D([], [], color=colours[n], linewidth=3) for n in present],
            ["base" if n == 0 else f"n = {n}" for n in present],
            loc="upper center", ncol=8, frameon=False, handlelength=1.4, columnspacing=1.6,
        )  # fmt: skip
        credit(figure, CREDIT if is_paper([source]) else "")
        return figure

    drawn = Drawn(
        "curves",
        titled("Training curves", [source]),
        "Test accuracy against iteration, one line per network, coloured by n (the number of copied layers); dashed "
        "lines have half B as the target. All panels have the same axes." + credit_words([source]),
        f"Line plots of test accuracy against training iteration for {len(drawn_names)} networks, one panel for each "
        "treatment.",
    )
    return write_figure(make, folder, drawn)
