"""The common style of the figures: the paper's markers and colours, legends, and reproducible output files.

write_figure(make, folder, Drawn("name", "title", "caption", "alt"), table)     name.png, .svg, .pdf and .csv
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from transfer_caffe.utils.files import write_bytes, write_text

RC: Any = {
    "font.family": "DejaVu Sans",
    "font.size": 15,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#444444",
    "axes.linewidth": 1.0,
    "axes.labelsize": 17,
    "axes.labelpad": 8,
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "grid.color": "#e4e4e4",
    "grid.linewidth": 0.8,
    "xtick.color": "#444444",
    "ytick.color": "#444444",
    "legend.frameon": True,
    "legend.framealpha": 0.9,
    "legend.edgecolor": "#cccccc",
    "legend.fontsize": 15,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    "svg.hashsalt": "transfer_caffe",
    "svg.fonttype": "path",
    "pdf.fonttype": 42,
    "path.simplify": True,
}


@dataclass(frozen=True)
class Look:
    """How a kind of network is drawn.

    ``marker`` has the face colour ``face`` and the size ``size`` in points; ``plus`` draws a plus sign on it. ``edge``
    is the colour of its edge and of the plus sign. ``line``, ``dash`` and ``width`` are the colour, style and width of
    the line. ``shift`` moves the markers along the n axis, ``label`` is the text of the legend, and ``order`` is the
    drawing order (zorder).
    """

    marker: str
    face: str
    line: str
    plus: bool
    shift: float
    label: str
    size: float = 10
    edge: str = "black"
    dash: Any = "-"
    width: float = 2.5
    order: float = 3


LOOKS = {
    "base": Look("o", "white", "black", False, 0.0, "base", dash="--", width=1.5),
    "BnB": Look("o", "#0000ff", "#0000ff", False, -0.25, "selffer BnB"),
    "BnB+": Look("o", "#aaaaff", "#aaaaff", True, -0.09, "selffer BnB$^+$"),
    "AnB": Look("D", "#ff0000", "#ff0000", False, 0.09, "transfer AnB", 9),
    "AnB+": Look("D", "#ffaaaa", "#ffaaaa", True, 0.27, "transfer AnB$^+$", 9),
    "R": Look("v", "#aaaa00", "#aaaa00", False, 0.0, "random, untrained filters"),
    "X": Look("s", "#008844", "#008844", False, -0.08, "existing weights, frozen", 9),
    "X+": Look("s", "#99ddbb", "#55bb88", True, 0.08, "existing weights, fine-tuned", 9),
    "probe": Look("^", "#888888", "#888888", False, 0.0, "linear classifier on the features", 8, dash=":", width=1.5),
}


DARK = {"#0000ff": "#0000cc", "#aaaaff": "#7777ee", "#ff0000": "#dd0000", "#ffaaaa": "#ee7777"}
"""Darker colours for thin lines, by the colour of the markers: the paper's pale colours are hard to see there."""


def ghost(look: Look) -> Look:
    """Return the look of the same kind in the background: hollow, smaller, paler, shifted right, with a dashed line."""
    dark = to_rgb(DARK.get(look.line, look.line))
    red, green, blue = (0.6 * part + 0.4 for part in dark)
    pale = to_hex((red, green, blue))
    return replace(
        look, face="white", line=pale, edge=pale, shift=look.shift + 0.08, size=look.size * 0.8, width=1.6,
        dash=(0, (4, 2)) if look.dash == "-" else look.dash, order=2.2,
    )  # fmt: skip


@dataclass
class Drawn:
    """A figure that was written: name.png, name.svg, name.pdf and, if it plots numbers, name.csv."""

    name: str
    title: str
    caption: str
    alt: str
    files: list[Path] = field(default_factory=list)


def draw_markers(axes: Axes, look: Look, x: Sequence[float], y: Sequence[float], clip: bool = False) -> None:
    """Draw the markers of one kind, with a plus sign on each if it is a fine-tuned kind.

    Without ``clip``, markers at the edge of the axes are drawn completely.
    """
    size = look.size
    axes.plot(
        x, y, look.marker, markersize=size, markerfacecolor=look.face, markeredgecolor=look.edge, markeredgewidth=0.8,
        linestyle="none", zorder=look.order, clip_on=clip,
    )  # fmt: skip
    if look.plus:
        axes.plot(
            x, y, "+", markersize=size * 0.8, color=look.edge, markeredgewidth=1.2, linestyle="none",
            zorder=look.order + 0.1, clip_on=clip,
        )  # fmt: skip


def draw_line(axes: Axes, look: Look, x: Sequence[float], y: Sequence[float]) -> None:
    """Draw the line of one kind, below its markers."""
    axes.plot(x, y, color=look.line, linewidth=look.width, linestyle=look.dash, zorder=look.order - 0.5)


def handle(look: Look, line: bool = False) -> Any:
    """Return the legend handle of one kind: its marker, the plus sign if it has one, and its line if ``line``."""
    marker = Line2D(
        [], [], marker=look.marker, markersize=look.size, markerfacecolor=look.face, markeredgecolor=look.edge,
        markeredgewidth=0.8, color=look.line, linewidth=look.width, linestyle=look.dash if line else "none",
    )  # fmt: skip
    plus = Line2D(
        [], [], marker="+", markersize=look.size * 0.8, color=look.edge, markeredgewidth=1.2, linestyle="none"
    )
    return (marker, plus) if look.plus else (marker,)


def legend_clear_of(axes: Axes, handles: Sequence[Any], labels: Sequence[str], points: Sequence[tuple[float, float]]):
    """Add a legend at the lower left, as in the paper, or at another place where it hides none of ``points``.

    If there is no such place, the lower limit of the y axis is reduced to make room. To keep the legend off lines as
    well, include the points of `along`.
    """
    figure = axes.get_figure()
    assert figure is not None
    for place in ("lower left", "lower right", "upper right", "upper left", "lower center", "upper center"):
        legend = axes.legend(handles, labels, loc=place, borderpad=0.6, labelspacing=0.5, handletextpad=0.6)
        box = legend.get_window_extent().transformed(axes.transData.inverted())
        margin_x, margin_y = 0.12, 0.02 * (axes.get_ylim()[1] - axes.get_ylim()[0])
        if not any(
            box.x0 - margin_x < x < box.x1 + margin_x and box.y0 - margin_y < y < box.y1 + margin_y for x, y in points
        ):
            return legend
    low, high = axes.get_ylim()
    axes.set_ylim(low - (box.y1 - box.y0) * 1.15, high)
    return axes.legend(handles, labels, loc="lower left", borderpad=0.6, labelspacing=0.5, handletextpad=0.6)


def along(x: Sequence[float], y: Sequence[float]) -> list[tuple[float, float]]:
    """Return points along the line through (``x``, ``y``), ten for each segment."""
    parts = [each / 10 for each in range(10)]
    return [
        (x[i] + part * (x[i + 1] - x[i]), y[i] + part * (y[i + 1] - y[i])) for i in range(len(x) - 1) for part in parts
    ]


def write_figure(make: Callable[[], Figure], folder: Path, drawn: Drawn, table: Iterable[Sequence[Any]] = ()) -> Drawn:
    """Draw a figure in the common style and write it as PNG, SVG and PDF, and ``table`` as CSV; return ``drawn``.

    The same data give the same bytes. Title and caption are also written into the metadata of the images, so that an
    image that is copied elsewhere keeps its description and credit.
    """
    title, caption = drawn.title, drawn.caption
    formats: dict[str, dict[str, Any]] = {
        "png": {"Software": None, "Title": title, "Description": caption},
        "svg": {"Date": None, "Creator": None, "Title": title, "Description": caption},
        "pdf": {"CreationDate": None, "Creator": None, "Producer": None, "Title": title, "Subject": caption},
    }
    with matplotlib.rc_context({**matplotlib.rcParamsDefault, **RC}):
        figure = make()
        for ending, metadata in formats.items():
            buffer = io.BytesIO()
            figure.savefig(buffer, format=ending, dpi=100, metadata=metadata)
            path = folder / f"{drawn.name}.{ending}"
            write_bytes(path, buffer.getvalue())
            drawn.files.append(path)
    rows = list(table)
    if rows:
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows([shown(value) for value in row] for row in rows)
        path = folder / f"{drawn.name}.csv"
        write_text(path, text.getvalue())
        drawn.files.append(path)
    return drawn


def credit(figure: Figure, words: str) -> None:
    """Write a small credit line for the data into the lower right corner."""
    if words:
        figure.text(0.995, 0.008, words, ha="right", va="bottom", fontsize=10, color="#666666")


def signed(value: float, _position: int = 0) -> str:
    """Return a tick label with its sign, using the Unicode minus sign."""
    return f"{value:+g}".replace("-", "\N{MINUS SIGN}") if abs(value) > 1e-9 else "0"


def shown(value: Any) -> Any:
    """Return a value as written to the CSV files: floats with six decimals, None as an empty field."""
    return "" if value is None else f"{value:.6f}" if isinstance(value, float) else value
