"""Figure 1 of the paper: the treatments drawn as rows of layers, from the treatment names alone.

    python -m transfer_caffe.figures --treatments "baseA,baseB,A3B,B3B,A3B+,B3B+" --n 3 --out figures

As in figure 1 of Yosinski et al. (2014), a box stands for the weights of a layer, its colour shows where the weights
come from, and a padlock marks a frozen layer.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Arc, FancyBboxPatch, Rectangle

from transfer_caffe.experiment.treatment import LAYERS, Treatment, expand
from transfer_caffe.figures.style import Drawn, write_figure
from transfer_caffe.utils.errors import UserError

TREATMENTS = "baseA,baseB,AnB,BnB,AnB+,BnB+"
COLOURS = {"A": "#f4b0a4", "B": "#a9bdf5", "": "#cfcfcf", "random": "#dcdc9a", "fresh": "white"}
_NAMES = {"A": "A", "B": "B", "": "all"}
_PITCH, _LEFT, _END, _RIGHT = (
    1.12,
    4.05,
    1.0,
    14.85,
)  # inches: row height, left edge of the drawing, width of an end box, right edge


def treatments_of(text: str, n: int | None = None, layers: int = LAYERS) -> list[Treatment]:
    """Parse a comma-separated list of treatments, such as `baseA,A3B,A{1-7}B+`, and remove duplicates.

    In a name such as `AnB`, n is replaced by ``n`` (3 if None). Raise UserError for an invalid treatment, for an ``n``
    that no treatment of the list has, and for an n of ``layers`` or more.
    """
    names = [each.strip() for each in re.split(r",(?![^{]*\})", text) if each.strip()]
    if not names:
        raise UserError("--treatments: the list is empty; give treatments such as baseA,A3B,B3B+")
    found: list[Treatment] = []
    for name in names:
        found += expand(re.sub(r"^([ABR])n(?=[AB]?\+?$)", rf"\g<1>{3 if n is None else n}", name))
    if n is not None and n not in {each.n for each in found}:
        raise UserError(
            f"--n {n}: no treatment of the list has this n; write AnB for a treatment that takes n from --n"
        )
    if too_deep := next((each for each in found if each.n >= layers), None):
        raise UserError(f"treatment {too_deep}: a network of {layers} layers has no layer left to re-initialise")
    return list(dict.fromkeys(found))


def draw_figure1(treatments: Sequence[Treatment], folder: Path, layers: int = LAYERS) -> Drawn:
    """Draw one row for each treatment: its images, one box for each of ``layers`` layers, and its labels."""
    table: list[Sequence[Any]] = [("treatment", "layer", "weights", "learns", "images", "labels")]
    for each in treatments:
        data = _NAMES[each.target]
        for layer in range(1, layers + 1):
            start = weights_of(each, layer)
            table.append((str(each), layer, start or "all", int(layer > each.frozen), data, data))

    drawn = Drawn(
        "figure1",
        "Overview of the treatments (the paper's Figure 1)",
        "Each row is a network and each box the weights of one layer, numbered from the input. The colour shows where "
        "the weights come from: trained in a base network on A or B, or re-initialised. The base networks are the "
        "sources of the copied layers. A padlock marks a frozen layer, a round arrow a layer that learns on the row's "
        "images and labels. A selffer network copies layers from the base network of its own half and is the control "
        "for the transfer network of the same target. + means that the copied layers are fine-tuned.",
        "Diagram: one row of boxes, its layers, for each of the treatments " + ", ".join(map(str, treatments)) + ".",
    )
    return write_figure(lambda: _draw(treatments, layers), folder, drawn, table)


def weights_of(treatment: Treatment, layer: int) -> str:
    """Return where a layer's weights come from: "A", "B", "" (base network of all classes), "random" or "fresh".

    "random" weights are never trained; "fresh" weights are re-initialised and then trained.
    """
    if treatment.is_base:
        return treatment.target
    if layer > treatment.n:
        return "fresh"
    return "random" if treatment.is_random else treatment.source


def _draw(treatments: Sequence[Treatment], layers: int) -> Figure:
    height = _PITCH * len(treatments) + 1.3
    figure = Figure(figsize=(15, height))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_xlim(0, 15)
    axes.set_ylim(0, height)
    axes.axis("off")
    first = _LEFT + _END + 0.25
    pitch = (_RIGHT - _END - 0.15 - first) / layers
    for layer in range(1, layers + 1):
        axes.text(first + (layer - 0.55) * pitch, height - 0.32, f"{layer}", ha="center", va="center", fontsize=14)
    axes.text(first - 0.2, height - 0.32, "layer", ha="right", va="center", fontsize=14)
    for row, treatment in enumerate(treatments):
        middle = height - 0.6 - _PITCH * (row + 0.5)
        name = str(treatment).replace("+", "$^+$")
        kind, words = _words(treatment)
        axes.text(0.25, middle, name, ha="left", va="center", fontsize=20, fontweight="bold")
        axes.text(1.45, middle + 0.16, kind, ha="left", va="center", fontsize=13)
        axes.text(1.45, middle - 0.16, words, ha="left", va="center", fontsize=11, color="#444444")
        axes.plot([_LEFT + _END, _RIGHT - _END], [middle, middle], color="#777777", linewidth=1.5, zorder=1)
        for x, what in ((_LEFT, "images"), (_RIGHT - _END, "labels")):
            _draw_end(axes, x, middle, what, treatment.target)
        for layer in range(1, layers + 1):
            _draw_box(axes, first + (layer - 1) * pitch, middle, pitch * 0.9, treatment, layer)
    _draw_legend(axes, treatments)
    return figure


def _draw_end(axes: Axes, x: float, middle: float, what: str, target: str) -> None:
    """Draw the box for the images or for the labels of a row."""
    axes.add_patch(
        FancyBboxPatch(
            (x + 0.08, middle - 0.3),
            _END - 0.16,
            0.6,
            boxstyle="round,pad=0,rounding_size=0.22",
            facecolor=COLOURS[target],
            edgecolor="#555555",
            linewidth=1.2,
            zorder=2,
        )
    )
    axes.text(x + _END / 2, middle, f"{what}\n{_NAMES[target]}", ha="center", va="center", fontsize=11, zorder=3)


def _draw_box(axes: Axes, x: float, middle: float, width: float, treatment: Treatment, layer: int) -> None:
    """Draw a layer: its coloured box and label, and below the label the padlock or the arrow."""
    start = weights_of(treatment, layer)
    axes.add_patch(
        Rectangle(
            (x, middle - 0.43),
            width,
            0.86,
            facecolor=COLOURS[start],
            edgecolor="#555555",
            linewidth=1.2,
            zorder=2,
            linestyle="--" if start == "fresh" else "-",
        )
    )
    if width > 0.5:
        words = {"fresh": "re-init", "random": "random"}.get(start, f"$W_{{{start}{layer}}}$")
        size = 15 if words.startswith("$") else min(12, 15 * width)
        axes.text(x + width / 2, middle + 0.17, words, ha="center", va="center", fontsize=size, zorder=3)
    _draw_state(axes, x + width / 2, middle - 0.2, layer <= treatment.frozen, min(1.0, width / 0.45))


def _draw_state(axes: Axes, x: float, y: float, frozen: bool, size: float = 1.0) -> None:
    """Draw a padlock for frozen weights or a round arrow for learning ones, centred at ``x``, ``y`` (inches)."""
    if not frozen:
        axes.text(x, y, "\N{CLOCKWISE OPEN CIRCLE ARROW}", ha="center", va="center", fontsize=17 * size, zorder=4)
        return
    axes.add_patch(
        Rectangle(
            (x - 0.1 * size, y - 0.13 * size), 0.2 * size, 0.16 * size, facecolor="#222222", linewidth=0, zorder=4
        )
    )
    axes.add_patch(
        Arc(
            (x, y + 0.03 * size),
            0.13 * size,
            0.2 * size,
            theta1=0,
            theta2=180,
            edgecolor="#222222",
            linewidth=2.2 * size,
            zorder=4,
        )
    )


def _draw_legend(axes: Axes, treatments: Sequence[Treatment]) -> None:
    """Draw the legend of the colours and symbols that occur in the figure."""
    starts = {weights_of(each, layer) for each in treatments for layer in (1, LAYERS)}
    words = {
        "A": "trained on half A", "B": "trained on half B", "": "trained on all", "random": "random, untrained",
        "fresh": "re-initialised",
    }  # fmt: skip
    x, y = 0.3, 0.36
    for start in (each for each in words if each in starts):
        axes.add_patch(
            Rectangle(
                (x, y - 0.14),
                0.34,
                0.28,
                facecolor=COLOURS[start],
                edgecolor="#555555",
                linestyle="--" if start == "fresh" else "-",
            )
        )
        axes.text(x + 0.46, y, words[start], ha="left", va="center", fontsize=13)
        x += 0.46 + 0.09 * len(words[start]) + 0.38
    for frozen, label in ((True, "frozen"), (False, "learning")):
        _draw_state(axes, x + 0.12, y, frozen)
        axes.text(x + 0.36, y, label, ha="left", va="center", fontsize=13)
        x += 0.36 + 0.09 * len(label) + 0.38


def _words(treatment: Treatment) -> tuple[str, str]:
    """Return the name of the kind of treatment, and a description of its first layers."""
    if treatment.is_base:
        return "base", "trained from random weights"
    layers = "layer 1" if treatment.n == 1 else f"layers 1-{treatment.n}"
    if treatment.is_random:
        return "random filters", f"{layers} untrained"
    kind = "selffer" if treatment.is_selffer else "transfer"
    after = "fine-tuned" if treatment.finetuned else "frozen"
    return kind + (", fine-tuned" if treatment.finetuned else ""), f"{layers} of {treatment.base}, {after}"
