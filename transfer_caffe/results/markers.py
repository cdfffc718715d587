"""The numbers behind the figures: every network with its kind, its own base and its own control; means and errors.

    markers = markers_of(rows, "final")
    cells_of(markers, "accuracy")["AnB", 3].mean

The paper pools letters: BnB is every selffer, AnB every transfer (Yosinski et al. 2014, section 4). Halves differ in
difficulty, so a mean over halves says nothing about a treatment unless every treatment was trained on every half.
What is safe is the difference between a network and the base of its own target: same split, half and seed.
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
    """One network. ``base`` is the accuracy of its own target's base, ``control`` that of the selffer of its own

    target, n and kind of training; both None where there is none. Accuracies are fractions.
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
        """The number of layers taken over; 0 for a base."""
        return self.treatment.n

    @property
    def kind(self) -> str:
        """One of `KINDS`: letters pooled as in the paper."""
        treatment = self.treatment
        if treatment.is_base or treatment.is_random:
            return "base" if treatment.is_base else "R"
        return ("BnB" if treatment.is_selffer else "AnB") + "+" * treatment.finetuned

    @property
    def family(self) -> str:
        """`random` for every random split, else the split itself: natman or whole."""
        return "random" if self.split.startswith("random") else self.split

    @property
    def place(self) -> tuple[str, str, int, str]:
        """What two networks must share to be compared: recipe, split, seed and the half (or whole) of the target."""
        return self.recipe, self.split, self.seed, self.treatment.target

    @property
    def gain(self) -> float | None:
        """Accuracy minus that of the own target's base."""
        return None if self.base is None or self.kind == "base" else self.accuracy - self.base

    @property
    def over_control(self) -> float | None:
        """Accuracy of a transfer network minus that of the selffer of the same target."""
        return None if self.control is None else self.accuracy - self.control


@dataclass(frozen=True)
class Cell:
    """Several numbers that belong to one kind and n."""

    values: tuple[float, ...]

    @property
    def count(self) -> int:
        """How many numbers."""
        return len(self.values)

    @property
    def mean(self) -> float:
        """Their mean."""
        return math.fsum(self.values) / len(self.values)

    @property
    def sd(self) -> float | None:
        """Their standard deviation (divided by count - 1); None for a single one."""
        if self.count < 2:
            return None
        return math.sqrt(math.fsum((value - self.mean) ** 2 for value in self.values) / (self.count - 1))

    @property
    def se(self) -> float | None:
        """The standard error of the mean; None for a single one."""
        return None if self.sd is None else self.sd / math.sqrt(self.count)


def accuracy_of(row: Row, metric: str) -> float | None:
    """The accuracy of a network by one of `METRICS`; None if it is empty or NaN. UserError if it is no fraction."""
    accuracy: float | None = getattr(row, METRICS[metric])
    if accuracy is None or not math.isfinite(accuracy):
        return None
    if not 0 <= accuracy <= 1:
        raise UserError(f"{row.network}: {METRICS[metric]} is {accuracy:g}; a fraction from 0 to 1 is expected")
    return accuracy


def markers_of(rows: Iterable[Row], metric: str) -> list[Marker]:
    """The networks that have an accuracy, each with its own base and control. Reduced data are another experiment.

    UserError if no row at all has an accuracy, if one is no fraction, or if two networks answer to the same recipe,
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
            raise UserError(f"{row.network}: there is no split {row.split!r}: random0, random1, ..., natman or whole")
        marker = Marker(row.network, row.recipe, row.split, row.seed, Treatment.parse(row.treatment), accuracy)
        key = marker.place, marker.treatment
        if key in found:
            raise UserError(
                f"{marker.network} and {found[key].network} are both treatment {marker.treatment} of split "
                f"{marker.split}, seed {marker.seed}: one network a row is expected; remove one of them"
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
    """Cells by (kind, n), in the order of `KINDS` and n. ``what`` is accuracy, gain or over_control (where known)."""
    values: dict[tuple[str, int], list[float]] = {}
    for marker in markers:
        value = getattr(marker, what)
        if value is not None:
            values.setdefault((marker.kind, marker.n), []).append(value)
    order = sorted(values, key=lambda key: (KINDS.index(key[0]), key[1]))
    return {key: Cell(tuple(values[key])) for key in order}


def pooled_sd(cells: Iterable[Cell]) -> tuple[float, int] | None:
    """The standard deviation within a cell, pooled over all, and its degrees of freedom; None without any pair."""
    squares = [(cell.sd**2 * (cell.count - 1), cell.count - 1) for cell in cells if cell.sd is not None]
    freedom = sum(each for _, each in squares)
    return (math.sqrt(math.fsum(each for each, _ in squares) / freedom), freedom) if freedom else None


def limits(values: Sequence[float], step: float, least: float, pad: float = 0.1) -> tuple[float, float]:
    """Axis limits around ``values``: ``pad`` of their range (at least ``least``) on either side, rounded to ``step``.

    For the paper's own numbers this gives the paper's own axes, within a step.
    """
    low, high = min(values), max(values)
    if high - low < least:
        low, high = (low + high - least) / 2, (low + high + least) / 2
    room = (high - low) * pad
    return math.floor((low - room) / step + 1e-9) * step, math.ceil((high + room) / step - 1e-9) * step
