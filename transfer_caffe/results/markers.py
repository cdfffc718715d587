"""Accuracies, paired differences, means and standard errors of the networks in a results table.

    markers = markers_of(rows, "final")
    cells_of(markers, "accuracy")["AnB", 3].mean

As in the paper (Yosinski et al. 2014, section 4), the letters are pooled: BnB stands for every selffer network (A3A,
B3B), AnB for every transfer network (A3B, B3A). The halves differ in difficulty. Pooled means are therefore comparable
only if every treatment was trained on the same halves. The paired difference between a network and the base network of
its own target (same split, half and seed) does not have this problem.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from transfer_caffe.experiment.treatment import Treatment
from transfer_caffe.results.table import Row
from transfer_caffe.utils.errors import UserError

KINDS = ("base", "BnB", "BnB+", "AnB", "AnB+", "R")
FAMILIES = {"random": "Random splits", "natman": "Man-made/natural split", "whole": "All classes"}
METRICS = {"final": "accuracy_final", "top10": "accuracy_top10"}


@dataclass(frozen=True)
class Marker:
    """One network of the table and the accuracies it is compared with.

    ``base`` is the accuracy of the base network of the same target. ``control`` is the accuracy of the selffer network
    with the same target and n and the same training (frozen or fine-tuned); only transfer networks have one. Each is
    None if the table has no such network. Accuracies are fractions.
    """

    network: str
    recipe: str
    split: str
    seed: int
    treatment: Treatment
    accuracy: float
    base: float | None = None
    control: float | None = None

    @property
    def n(self) -> int:
        """The number of copied layers; 0 for a base network."""
        return self.treatment.n

    @property
    def kind(self) -> str:
        """The kind of network, one of `KINDS`, with the letters pooled as in the paper."""
        treatment = self.treatment
        if treatment.is_base or treatment.is_random:
            return "base" if treatment.is_base else "R"
        return ("BnB" if treatment.is_selffer else "AnB") + "+" * treatment.finetuned

    @property
    def family(self) -> str:
        """The family of the split: `random` for every random split, otherwise the split's name (natman or whole)."""
        return "random" if self.split.startswith("random") else self.split

    @property
    def place(self) -> tuple[str, str, int, str]:
        """The key that two networks must share to be paired: recipe, split, seed and target ("" for all classes)."""
        return self.recipe, self.split, self.seed, self.treatment.target

    @property
    def gain(self) -> float | None:
        """The accuracy minus the accuracy of the base network of the same target; None for a base network."""
        return None if self.base is None or self.kind == "base" else self.accuracy - self.base

    @property
    def over_control(self) -> float | None:
        """The accuracy of a transfer network minus the accuracy of the selffer network of the same target."""
        return None if self.control is None else self.accuracy - self.control


@dataclass(frozen=True)
class Cell:
    """The values of one kind of network and one n."""

    values: tuple[float, ...]

    @property
    def count(self) -> int:
        """The number of values."""
        return len(self.values)

    @property
    def mean(self) -> float:
        """The mean of the values."""
        return math.fsum(self.values) / len(self.values)

    @property
    def sd(self) -> float | None:
        """The sample standard deviation (divided by count - 1); None for a single value."""
        if self.count < 2:
            return None
        return math.sqrt(math.fsum((value - self.mean) ** 2 for value in self.values) / (self.count - 1))

    @property
    def se(self) -> float | None:
        """The standard error of the mean; None for a single value."""
        return None if self.sd is None else self.sd / math.sqrt(self.count)


def accuracy_of(row: Row, metric: str) -> float | None:
    """Return the accuracy of a network by one of `METRICS`, or None if it is empty or not finite.

    Raise UserError if it is not a fraction from 0 to 1.
    """
    accuracy: float | None = getattr(row, METRICS[metric])
    if accuracy is None or not math.isfinite(accuracy):
        return None
    if not 0 <= accuracy <= 1:
        raise UserError(f"{row.network}: {METRICS[metric]} is {accuracy:g}; a fraction from 0 to 1 is expected")
    return accuracy


def markers_of(rows: Iterable[Row], metric: str) -> list[Marker]:
    """Return the networks that have an accuracy, each with the accuracies of its base and its control.

    Networks trained on reduced data are left out: they belong to a separate experiment. Raise UserError if no row has
    an accuracy, if an accuracy is not a fraction, if a split is unknown, or if two networks have the same recipe,
    split, seed and treatment.
    """
    found: dict[tuple[tuple[str, str, int, str], Treatment], Marker] = {}
    reduced = 0
    for row in rows:
        accuracy = accuracy_of(row, metric)
        if accuracy is None:
            continue
        if row.images_per_class is not None or row.split.startswith("reduced"):
            reduced += 1
            continue
        if not re.fullmatch(r"random\d+|natman|whole", row.split):
            raise UserError(
                f"{row.network}: there is no split {row.split!r}; expected random0, random1, ..., natman or whole"
            )
        marker = Marker(row.network, row.recipe, row.split, row.seed, Treatment.parse(row.treatment), accuracy)
        key = marker.place, marker.treatment
        if key in found:
            raise UserError(
                f"{marker.network} and {found[key].network} are both treatment {marker.treatment} of split "
                f"{marker.split}, seed {marker.seed}; only one network is expected for each: remove one of the rows"
            )
        found[key] = marker
    if not found and not reduced:
        raise UserError(f"no network has {METRICS[metric]}; train networks first (make sweep)")
    return [_with_pairs(marker, found) for marker in found.values()]


def _with_pairs(marker: Marker, found: dict) -> Marker:
    treatment = marker.treatment
    base = found.get((marker.place, Treatment("", 0, treatment.target, False)))
    control = None
    if treatment.is_transfer:
        selffer = Treatment(treatment.target, treatment.n, treatment.target, treatment.finetuned)
        control = found.get((marker.place, selffer))
    return Marker(
        marker.network, marker.recipe, marker.split, marker.seed, treatment, marker.accuracy,
        base and base.accuracy, control and control.accuracy,
    )  # fmt: skip


def cells_of(markers: Iterable[Marker], what: str) -> dict[tuple[str, int], Cell]:
    """Return the cells by (kind, n), in the order of `KINDS` and n.

    ``what`` names the property of `Marker` to collect: accuracy, gain or over_control. Networks without it are left
    out.
    """
    values: dict[tuple[str, int], list[float]] = {}
    for marker in markers:
        value = getattr(marker, what)
        if value is not None:
            values.setdefault((marker.kind, marker.n), []).append(value)
    order = sorted(values, key=lambda key: (KINDS.index(key[0]), key[1]))
    return {key: Cell(tuple(values[key])) for key in order}


def pooled_sd(cells: Iterable[Cell]) -> tuple[float, int] | None:
    """Return the pooled within-cell standard deviation and its degrees of freedom.

    Return None if no cell has two or more values.
    """
    squares = [(cell.sd**2 * (cell.count - 1), cell.count - 1) for cell in cells if cell.sd is not None]
    freedom = sum(each for _, each in squares)
    return (math.sqrt(math.fsum(each for each, _ in squares) / freedom), freedom) if freedom else None


def limits(values: Sequence[float], step: float, least: float, pad: float = 0.1) -> tuple[float, float]:
    """Return axis limits around ``values``, padded on either side and rounded outwards to a multiple of ``step``.

    The padding is the fraction ``pad`` of the range of the values; a range below ``least`` is widened to ``least``. For
    the paper's numbers the result agrees with the axes of the paper's figures to within one step.
    """
    low, high = min(values), max(values)
    if high - low < least:
        low, high = (low + high - least) / 2, (low + high + least) / 2
    room = (high - low) * pad
    return math.floor((low - room) / step + 1e-9) * step, math.ceil((high + room) / step - 1e-9) * step
