"""Training times from a results table: seconds per iteration by the number of frozen layers, and total days.

    costs_of(load("paper")).frozen[3]       1.01 seconds per iteration with three layers frozen (paper: a Tesla K20)

With the first n layers frozen, the backward pass stops above them, so an iteration takes less time the larger n is.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable
from dataclasses import dataclass

from transfer_caffe.experiment.treatment import Treatment
from transfer_caffe.results.table import Row

TEST_INTERVAL = 1000
"""Iterations between tests in the paper's solver. Only used for tables without wall_seconds, such as the paper's."""
DAY = 86400.0


@dataclass(frozen=True)
class Costs:
    """The training times of a set of networks.

    ``full`` is the median number of seconds per iteration of networks in which all layers learn, and ``frozen`` the
    same by the number of frozen layers; both exclude networks on reduced data, which were timed on shared machines.
    ``full_days`` is the median duration of a network in which all layers learn. ``known_days`` is the total duration of
    the ``known`` networks that have times. ``all_days`` is the estimated total of all ``networks``: a network without a
    time counts with the median of the networks with the same number of frozen layers and iterations. It is None if
    there is no such median for one of them.
    """

    full: float | None
    frozen: dict[int, float]
    full_days: float | None
    known_days: float
    known: int
    all_days: float | None
    networks: int


def costs_of(rows: Iterable[Row]) -> Costs:
    """Return the training times of the networks of one recipe.

    A network's duration is its wall_seconds. If the table has none, it is computed from the number of iterations, the
    seconds per iteration, and one test every `TEST_INTERVAL` iterations.
    """
    rows = list(rows)
    iterations: dict[int, list[float]] = {}
    times: dict[tuple[int, int], list[float]] = {}
    known = 0.0
    unknown: list[tuple[int, int]] = []
    for row in rows:
        frozen, seconds = Treatment.parse(row.treatment).frozen, _seconds(row)
        each = row.seconds_per_iteration
        if row.images_per_class is None and each is not None and math.isfinite(each):
            iterations.setdefault(frozen, []).append(each)
        if seconds is None:
            unknown.append((frozen, row.max_iter))
        else:
            known += seconds
            times.setdefault((frozen, row.max_iter), []).append(seconds)
    medians = {frozen: statistics.median(each) for frozen, each in sorted(iterations.items())}
    full = [
        seconds
        for row in rows
        if row.images_per_class is None and Treatment.parse(row.treatment).frozen == 0
        for seconds in [_seconds(row)]
        if seconds is not None
    ]
    guessed = all(key in times for key in unknown)
    return Costs(
        full=medians.pop(0, None),
        frozen=medians,
        full_days=statistics.median(full) / DAY if full else None,
        known_days=known / DAY,
        known=len(rows) - len(unknown),
        all_days=(known + sum(statistics.median(times[key]) for key in unknown)) / DAY if guessed else None,
        networks=len(rows),
    )


def _seconds(row: Row) -> float | None:
    if row.wall_seconds is not None:
        return row.wall_seconds if math.isfinite(row.wall_seconds) else None
    if row.seconds_per_iteration is None:
        return None
    seconds = row.max_iter * (row.seconds_per_iteration + (row.seconds_per_test or 0.0) / TEST_INTERVAL)
    return seconds if math.isfinite(seconds) else None
