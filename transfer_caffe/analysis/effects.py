"""Differences between networks that share target and base, their means, and how uncertain these are.

    for effect in effects_of(markers_of(load("paper"), "top10")):
        print(effect.comparison, effect.n, effect.estimate, effect.low, effect.high, effect.clusters)

What is independent. All networks of one half share one base, whose own luck is in every difference to it; a transfer
network takes its layers from the other half's base, so the two halves of a split hang together as well; and all of
them share the draw of the classes. So networks are no independent observations, splits are. Each split gives one
number, the mean of its differences, and the interval is Student's t over these numbers: splits - 1 degrees of freedom.
This is right for few splits, needs no guess how much networks of a split have in common, and stays valid (at 95%, if
anything too wide) where splits hold different numbers of networks and so differ in variance (Ibragimov and Mueller,
"t-statistic based correlation and heterogeneity robust inference", J. Business & Economic Statistics 28, 2010).
A bootstrap over so few splits would be too narrow; a mixed model would have to estimate a variance between splits
from four of them and then trust it.

A single split gives no interval about splits. Several seeds of it give one over seeds (``unit`` is "seed"), which is
about other trainings on these very classes and about no other classes. One split and one seed give none.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import stdtrit

from transfer_caffe.results.markers import Marker

RANGES = ((1, 7), (3, 7), (5, 7))
"""The ranges of n that the paper's Table 1 pools."""


@dataclass(frozen=True)
class Comparison:
    """A kind of network minus another (kinds as in `cells.KINDS`), and how they are paired."""

    kind: str
    other: str
    pairing: str

    def __str__(self) -> str:
        """As in the tables: `AnB - BnB`."""
        return f"{self.kind} - {self.other}"


PAIRED = (
    Comparison("BnB", "base", "own base"),
    Comparison("AnB", "BnB", "same target"),
    Comparison("AnB", "base", "targets with BnB"),
    Comparison("AnB", "base", "own base"),
    Comparison("BnB+", "base", "own base"),
    Comparison("AnB+", "base", "own base"),
    Comparison("AnB+", "BnB+", "same target"),
    Comparison("AnB+", "BnB+", "own bases"),
    Comparison("R", "base", "own base"),
)
"""The paired comparisons. Networks always share recipe, split, seed and n, and

- own base: a network minus the base of its own target;
- same target: a network minus the selffer of its own target;
- targets with BnB: own base, but of the targets that have a selffer, so that the two causes add up to it;
- own bases: the gain over the own base minus the selffers' gains over theirs, be it on another half: the halves'
  difficulty is out, but two bases' luck is in. The second best where the same target has not both.
"""


@dataclass(frozen=True)
class Effect:
    """The mean of one comparison at one n or over a range of n ("1-7"). Accuracies are fractions, not points.

    ``family`` is random, natman or whole. ``pairing`` is that of a `Comparison` (``estimate`` is then the mean over
    clusters of each cluster's mean), or "as published" (a difference of pooled means, of networks on whatever halves;
    without an interval, since what it lacks is not an interval but a design). ``low`` and ``high`` are the 95% interval
    over ``clusters`` ("split" or "seed" is the ``unit``), None where there is one cluster. ``networks`` counts the
    differences (as published: the transfer networks), ``mean`` is their plain mean, ``naive_error`` its standard error
    if they were independent.
    """

    recipe: str
    family: str
    comparison: str
    n: str
    pairing: str
    estimate: float
    low: float | None
    high: float | None
    clusters: int
    unit: str
    networks: int
    mean: float
    naive_error: float | None

    @property
    def sure(self) -> bool:
        """Whether the interval leaves zero out."""
        return self.low is not None and self.high is not None and not self.low <= 0 <= self.high


@dataclass(frozen=True)
class Published:
    """The paper's Table 1, one number: pooled AnB+ minus the pooled ``other`` (base or BnB+) over a range of n.

    ``halves`` is how much of the difference comes from the targets' difficulty alone: the mean accuracy of the AnB+
    networks' own bases minus that of the others' own bases; None where one of them has no own base. What remains,
    ``difference - halves``, is the difference of the two sides' mean gains over their own bases.
    """

    other: str
    first: int
    last: int
    difference: float
    halves: float | None
    networks: int
    others: int


def groups_of(markers: Iterable[Marker]) -> dict[tuple[str, str], list[Marker]]:
    """Networks that may be pooled: by recipe and family of splits; families in the order random, natman, whole."""
    groups: dict[tuple[str, str], list[Marker]] = {}
    for marker in markers:
        groups.setdefault((marker.recipe, marker.family), []).append(marker)
    order = ("random", "natman", "whole")
    return {key: groups[key] for key in sorted(groups, key=lambda key: (key[0], order.index(key[1])))}


def interval(values: Sequence[float]) -> tuple[float, float] | None:
    """The 95% interval of Student's t about the mean of independent values; None for fewer than two."""
    if len(values) < 2:
        return None
    reach = float(stdtrit(len(values) - 1, 0.975)) * float(np.std(values, ddof=1)) / math.sqrt(len(values))
    mean = math.fsum(values) / len(values)
    return mean - reach, mean + reach


def cluster_means(differences: Sequence[tuple[Marker, float]]) -> tuple[str, dict[str | int, float]]:
    """The unit that is independent (split; seed where there is one split; "" where there is one of both), its means."""
    for unit in ("split", "seed", ""):
        clusters: dict[str | int, list[float]] = {}
        for marker, value in differences:
            clusters.setdefault(getattr(marker, unit or "split"), []).append(value)
        if len(clusters) > 1 or not unit:
            return unit, {name: math.fsum(each) / len(each) for name, each in sorted(clusters.items())}
    raise AssertionError


def differences_of(markers: Sequence[Marker], comparison: Comparison) -> list[tuple[Marker, float]]:
    """The networks of one recipe and family that have a partner, each with its difference."""
    members = [marker for marker in markers if marker.kind == comparison.kind]
    if comparison.pairing == "own bases":
        return _between_gains(members, [marker for marker in markers if marker.kind == comparison.other])
    if comparison.pairing == "targets with BnB":
        members = [marker for marker in members if marker.control is not None]
    found = [(m, m.over_control if comparison.pairing == "same target" else m.gain) for m in members]
    return [(marker, value) for marker, value in found if value is not None]


def _between_gains(left: Iterable[Marker], right: Iterable[Marker]) -> list[tuple[Marker, float]]:
    gains: dict[tuple[str, int, int], list[float]] = {}
    for marker in right:
        if marker.gain is not None:
            gains.setdefault((marker.split, marker.seed, marker.n), []).append(marker.gain)
    return [
        (marker, marker.gain - _mean(gains[key]))
        for marker in left
        for key in [(marker.split, marker.seed, marker.n)]
        if marker.gain is not None and key in gains
    ]


def effects_of(markers: Sequence[Marker]) -> list[Effect]:
    """Every one of `PAIRED`, per n and over `RANGES`; then those of Table 1 as published, over `RANGES`."""
    effects: list[Effect] = []
    for (recipe, family), members in groups_of(markers).items():
        for comparison in PAIRED:
            found = differences_of(members, comparison)
            ranges = [(n, n) for n in sorted({marker.n for marker, _ in found})] + list(RANGES)
            for first, last in ranges:
                part = [(marker, value) for marker, value in found if first <= marker.n <= last]
                if part:
                    effects.append(_paired(recipe, family, comparison, first, last, part))
        for other in ("base", "BnB+"):
            for first, last in RANGES:
                number = published_number(members, other, first, last)
                if number is not None:
                    effects.append(
                        Effect(
                            recipe, family, f"AnB+ - {other}", f"{first}-{last}", "as published", number.difference,
                            None, None, len({marker.split for marker in members if marker.kind == "AnB+"}), "split",
                            number.networks, number.difference, None,
                        )
                    )  # fmt: skip
    return effects


def _paired(
    recipe: str, family: str, comparison: Comparison, first: int, last: int, differences: list[tuple[Marker, float]]
) -> Effect:
    unit, means = cluster_means(differences)
    low, high = interval(list(means.values())) or (None, None)
    values = [value for _, value in differences]
    error = float(np.std(values, ddof=1)) / math.sqrt(len(values)) if len(values) > 1 else None
    return Effect(
        recipe, family, str(comparison), str(first) if first == last else f"{first}-{last}", comparison.pairing,
        _mean(list(means.values())), low, high, len(means), unit, len(values), _mean(values), error,
    )  # fmt: skip


def published_number(markers: Sequence[Marker], other: str, first: int, last: int) -> Published | None:
    """One number of the paper's Table 1 from the networks of one family; None where a side is empty.

    The individual AnB+ networks of the range are pooled (not the means per layer); ``other`` is "base", all bases
    of the family, or "BnB+", the selffers of the same range.
    """
    left = [marker for marker in markers if marker.kind == "AnB+" and first <= marker.n <= last]
    right = [marker for marker in markers if marker.kind == other and (other == "base" or first <= marker.n <= last)]
    if not left or not right:
        return None
    halves = None
    if all(marker.base is not None for marker in left + right):
        halves = _mean([marker.base or 0.0 for marker in left]) - _mean([marker.base or 0.0 for marker in right])
    difference = _mean([marker.accuracy for marker in left]) - _mean([marker.accuracy for marker in right])
    return Published(other, first, last, difference, halves, len(left), len(right))


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)
