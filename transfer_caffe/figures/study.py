"""The figure of a study: accuracy against the number of stages copied from existing weights, frozen or fine-tuned.

One panel for all classes and one for each half that has such networks. The dashed line is the network trained from
scratch on the same images, the dotted line a linear classifier on the features of the first n stages.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from transfer_caffe.figures.sources import Source, credit_words, titled
from transfer_caffe.figures.style import LOOKS, Drawn, draw_line, draw_markers, handle, write_figure
from transfer_caffe.results.markers import Marker, cells_of, limits
from transfer_caffe.results.probes import Probe

KINDS = ("X", "X+")


MOST_NAMES = 12
"""The axis shows the names of the stages if there are at most this many."""


def draw_study(
    sources: Sequence[Source], folder: Path, metric_words: str, probes: Sequence[Probe] = ()
) -> Drawn | None:  # fmt: skip
    """Draw the networks with stages from existing weights, and the probes; None if the first source has none."""
    panels: dict[tuple[str, str], list[Marker]] = {}
    for marker in sources[0].markers:
        if marker.kind in KINDS:
            panels.setdefault((marker.split, marker.treatment.target), []).append(marker)
    if not panels:
        return None
    bases = {place: _bases(sources[0].markers, *place) for place in panels}
    values = [marker.accuracy for each in panels.values() for marker in each]
    values += [value for each in bases.values() for value in each]
    values += [probe.accuracy for probe in probes if (probe.split, probe.target) in panels]

    def make() -> Figure:
        figure = Figure(figsize=(max(8.0, 7.0 * len(panels)), 6.4))
        grid = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
        for axes, (place, members) in zip(grid, panels.items(), strict=True):
            _draw(axes, members, bases[place], [probe for probe in probes if (probe.split, probe.target) == place])
            axes.set_title(_title(*place), fontsize=16, pad=10)
            axes.set_ylim(limits(values, 0.01, 0.02))
        grid[0].set_ylabel("Top-1 accuracy (higher is better)")
        figure.tight_layout()
        return figure

    table: list[Sequence[Any]] = [("source", "network", "split", "seed", "kind", "n", "accuracy", "from_scratch")]
    for members in panels.values():
        for marker in sorted(members, key=lambda each: (each.kind, each.n, each.seed)):
            table.append(
                (sources[0].name, marker.network, marker.split, marker.seed, marker.kind, marker.n, marker.accuracy,
                 marker.base)
            )  # fmt: skip
    for probe in probes:
        if (probe.split, probe.target) in panels:
            table.append((sources[0].name, probe.stage, probe.split, "", "probe", probe.n, probe.accuracy, ""))
    numbers = sorted({marker.n for each in panels.values() for marker in each})
    drawn = Drawn(
        "study",
        titled("Copying from existing weights: accuracy against the number of copied stages", sources),
        "Each marker is one network: its first n stages are copied from existing weights and frozen (dark) or "
        "fine-tuned (light, plus sign), and the others are re-initialised and trained. Lines connect the means over "
        "seeds. The dashed line is the mean of the networks trained from scratch on the same images. "
        + ("Triangles: a linear classifier on the features of the first n stages as they are. " if probes else "")
        + f"{metric_words}"
        f"{credit_words(sources)}",
        "Plot of test accuracy against the number of stages copied from existing weights, frozen and fine-tuned, for "
        + ", ".join(f"n = {n}" for n in numbers)
        + ", beside the accuracy of training from scratch.",
    )
    return write_figure(make, folder, drawn, table)


def _bases(markers: Sequence[Marker], split: str, target: str) -> list[float]:
    return [m.accuracy for m in markers if m.kind == "base" and (m.split, m.treatment.target) == (split, target)]


def _title(split: str, target: str) -> str:
    return "All classes" if not target else f"{split}, half {target}"


def _draw(axes: Axes, members: Sequence[Marker], bases: Sequence[float], probes: Sequence[Probe]) -> None:
    last = max(each.n for each in (*members, *probes))
    if bases:
        look = LOOKS["base"]
        axes.axhline(sum(bases) / len(bases), color=look.line, linestyle=look.dash, linewidth=look.width, zorder=1.5)
    entries = []
    for kind in KINDS:
        of_kind = [marker for marker in members if marker.kind == kind]
        if not of_kind:
            continue
        look = LOOKS[kind]
        for source in dict.fromkeys(marker.treatment.source for marker in of_kind):
            own = [marker for marker in of_kind if marker.treatment.source == source]
            means = {n: cell.mean for (_, n), cell in cells_of(own, "accuracy").items()}
            draw_line(axes, look, [n + look.shift for n in means], list(means.values()))
        draw_markers(axes, look, [marker.n + look.shift for marker in of_kind], [marker.accuracy for marker in of_kind])
        entries.append((handle(look, line=True), look.label))
    if probes:
        look = LOOKS["probe"]
        for source in dict.fromkeys(probe.source for probe in probes):
            own = sorted((probe for probe in probes if probe.source == source), key=lambda probe: probe.n)
            draw_line(axes, look, [probe.n for probe in own], [probe.accuracy for probe in own])
            draw_markers(axes, look, [probe.n for probe in own], [probe.accuracy for probe in own])
        entries.append((handle(look, line=True), look.label))
    if bases:
        entries.append((handle(LOOKS["base"], line=True), "trained from scratch"))
    axes.legend(*zip(*entries, strict=True), fontsize=13, loc="best")
    axes.set_xlim(0.5, last + 0.5)
    axes.set_xlabel("Number of copied stages, n")
    names = {probe.n: probe.stage for probe in probes}
    if names and last <= MOST_NAMES:
        ticks = [(n, f"{n}\n{_short(names[n])}" if n in names else str(n)) for n in range(1, last + 1)]
        axes.set_xticks([n for n, _ in ticks], [text for _, text in ticks], fontsize=12 if last <= 8 else 9)
    else:
        axes.xaxis.set_major_locator(MaxNLocator(min(last, 12), integer=True))


def _short(name: str) -> str:
    """A stage's name for the axis: `inception_3a/1x1` is shown as `inception_3a`, and long names are cut."""
    name = name.split("/")[0]
    return name if len(name) <= 12 else f"{name[:11]}\N{HORIZONTAL ELLIPSIS}"
