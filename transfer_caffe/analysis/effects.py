"""Paired differences between networks of the same target, their means, and confidence intervals.

    for effect in effects_of(markers_of(load("paper"), "top10")):
        print(effect.comparison, effect.n, effect.estimate, effect.low, effect.high, effect.clusters)

Clusters. The networks of one split are not independent observations. All networks of one half share one base
network, whose random error enters every difference from it. A transfer network copies its layers from the base network
of the other half, so the two halves of a split are correlated as well. All networks of a split share its random
assignment of classes. Splits, in contrast, are independent, so the split is the cluster. Each split contributes one
number, the mean of its paired differences, and the 95% confidence interval is Student's t over these numbers, with
(number of splits - 1) degrees of freedom. This is suitable for a small number of splits, needs no model of the
correlation within a split, and remains valid (conservative at the 95% level) if the splits have different numbers of
networks and hence different variances (Ibragimov and Mueller, "t-statistic based correlation and heterogeneity robust
inference", J. Business & Economic Statistics 28, 2010). A bootstrap over so few splits would give intervals that are
too narrow. A mixed model would have to estimate the variance between splits from only four of them.

A single split gives no interval over splits. If it has several seeds, the interval is over seeds (``unit`` is "seed"):
it describes other training runs on the same classes, not other classes. One split with one seed gives no interval.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import stdtrit

from transfer_caffe.results.markers import Marker

RANGES = ((1, 7), (3, 7), (5, 7))
"""The ranges of n over which the paper's Table 1 pools networks."""


EQUAL = 1e-9
"""Differences of accuracies are equal if they differ by less: no validation set has a thousand million images."""


@dataclass(frozen=True)
class Comparison:
    """A difference between two kinds of networks (see `transfer_caffe.results.markers.KINDS`), and their pairing."""

    kind: str
    other: str
    pairing: str

    def __str__(self) -> str:
        """Return the comparison as the tables show it, for example `AnB - BnB`."""
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
    Comparison("X", "base", "own base"),
    Comparison("X+", "base", "own base"),
)
"""The paired comparisons. Paired networks always share recipe, split and seed, and n unless one is a base network.

- own base: a network minus the base network of its own target.
- same target: a transfer network minus the selffer network of its own target.
- targets with BnB: as "own base", but only for transfer networks whose target has a selffer network, so that the two
  causes (BnB - base, AnB - BnB) add up to it.
- own bases: the gain of a transfer network over its own base minus the mean gain of the selffer networks over their own
  bases, which may be on the other half. The difficulty of the halves cancels, but the random errors of two base
  networks remain. This is the fallback if no target has both a transfer and a selffer network.
"""


@dataclass(frozen=True)
class Effect:
    """The mean difference of one comparison at one n or over a range of n ("1-7"), as a fraction (not in points).

    ``family`` is random, natman or whole. ``pairing`` is either the pairing of a `Comparison`, and ``estimate`` is then
    the mean over clusters of the cluster means; or it is "as published", and ``estimate`` is then a difference of means
    pooled over all available halves. The latter has no interval, because the halves of its two sides may differ, which
    no interval can account for. ``low`` and ``high`` are the limits of the 95% confidence interval over ``clusters``
    clusters (``unit`` is "split" or "seed"); they are None if there is only one cluster. ``networks`` is the number of
    paired differences (as published: the number of transfer networks), ``mean`` their unweighted mean, and
    ``naive_error`` the standard error that this mean would have if the differences were independent.
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
        """Whether the 95% confidence interval excludes zero; an interval without width says nothing (`decides`)."""
        return self.low is not None and self.high is not None and decides((self.low, self.high)) and not (
            self.low <= 0 <= self.high
        )  # fmt: skip


@dataclass(frozen=True)
class Published:
    """One number of the paper's Table 1: the pooled mean of AnB+ minus the pooled mean of ``other`` (base or BnB+).

    ``halves`` is the part of the difference that is due to the difficulty of the target halves alone: the mean accuracy
    of the AnB+ networks' own bases minus the mean accuracy of the other networks' own bases. It is None if a network
    has no own base. The remainder, ``difference - halves``, is the difference between the mean gains of the two sides
    over their own bases. ``networks`` and ``others`` are the numbers of networks of the two sides.
    """

    other: str
    first: int
    last: int
    difference: float
    halves: float | None
    networks: int
    others: int


def groups_of(markers: Iterable[Marker]) -> dict[tuple[str, str], list[Marker]]:
    """Group the networks that may be pooled, by recipe and family of splits (in the order random, natman, whole)."""
    groups: dict[tuple[str, str], list[Marker]] = {}
    for marker in markers:
        groups.setdefault((marker.recipe, marker.family), []).append(marker)
    order = ("random", "natman", "whole")
    return {key: groups[key] for key in sorted(groups, key=lambda key: (key[0], order.index(key[1])))}


def interval(values: Sequence[float]) -> tuple[float, float] | None:
    """Return the 95% confidence interval (Student's t) of the mean of independent values; None for fewer than two.

    The limits of equal values, up to the rounding of their differences, are equal.
    """
    if len(values) < 2:
        return None
    if max(values) - min(values) < EQUAL:
        return values[0], values[0]
    reach = float(stdtrit(len(values) - 1, 0.975)) * float(np.std(values, ddof=1)) / math.sqrt(len(values))
    mean = math.fsum(values) / len(values)
    return mean - reach, mean + reach


def decides(ends: tuple[float, float] | None) -> bool:
    """Whether an interval says anything: it needs two values, and an equal difference in all of them is chance.

    Accuracies on a small validation set have few values, so that differences are easily equal.
    """
    return ends is not None and ends[0] < ends[1]


def cluster_means(differences: Sequence[tuple[Marker, float]]) -> tuple[str, dict[str | int, float]]:
    """Return the unit of the clusters and the mean of the differences in each cluster.

    The unit is "split", or "seed" if there is only one split, or "" if there is only one split and one seed.
    """
    for unit in ("split", "seed", ""):
        clusters: dict[str | int, list[float]] = {}
        for marker, value in differences:
            clusters.setdefault(getattr(marker, unit or "split"), []).append(value)
        if len(clusters) > 1 or not unit:
            return unit, {name: math.fsum(each) / len(each) for name, each in sorted(clusters.items())}
    raise AssertionError


def differences_of(markers: Sequence[Marker], comparison: Comparison) -> list[tuple[Marker, float]]:
    """Return the networks that can be paired for ``comparison``, each with its difference.

    ``markers`` are the networks of one recipe and family.
    """
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
    """Return the effects of all `PAIRED` comparisons for each n and each of `ranges_of`, then Table 1 as published."""
    effects: list[Effect] = []
    for (recipe, family), members in groups_of(markers).items():
        for comparison in PAIRED:
            found = differences_of(members, comparison)
            ranges = [(n, n) for n in sorted({marker.n for marker, _ in found})] + ranges_of(members)
            for first, last in ranges:
                part = [(marker, value) for marker, value in found if first <= marker.n <= last]
                if part:
                    effects.append(_paired(recipe, family, comparison, first, last, part))
        for other in ("base", "BnB+"):
            for first, last in ranges_of(members):
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


def ranges_of(markers: Iterable[Marker]) -> list[tuple[int, int]]:
    """Return the ranges of n that are pooled: the paper's; for deeper networks their own, all and the upper half."""
    most = max((marker.n for marker in markers), default=0)
    return list(RANGES) if most <= RANGES[0][1] else [(1, most), (most // 2 + 1, most)]


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
    """Compute one number of the paper's Table 1 from the networks of one family; None if one side has no networks.

    The individual AnB+ networks of the range of n are pooled, not the means for each n. ``other`` is "base", for all
    base networks of the family, or "BnB+", for the selffer networks of the same range.
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
