"""Time: seconds an iteration by the number of frozen layers, and days of all networks, from a results table.

    costs_of(load("paper")).frozen[3]       1.01 seconds an iteration with three layers frozen (paper: a Tesla K20)

With the first n layers frozen the backward pass stops above them: that is what the seconds show.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable
from dataclasses import dataclass

from transfer_caffe.experiment.treatment import Treatment
from transfer_caffe.results.table import Row

TEST_INTERVAL = 1000
"""Iterations between tests in the paper's solver; tables of our own have wall_seconds and do not need it."""
DAY = 86400.0


@dataclass(frozen=True)
class Costs:
    """``full`` and ``frozen`` (by n): median seconds an iteration, reduced data left out, where a machine was shared.

    ``full_days``: the median of the networks that learn everywhere. ``known_days`` is the sum over the ``known``
    networks that have times; ``all_days`` over all ``networks``, those without times at the median of those like them
    (same number of frozen layers and iterations), None where nothing is like them.
    """

    full: float | None
    frozen: dict[int, float]
    full_days: float | None
    known_days: float
    known: int
    all_days: float | None
    networks: int


def costs_of(rows: Iterable[Row]) -> Costs:
    """The costs of the networks of one recipe.

    A network's time is its wall_seconds; without these its iterations times its seconds per iteration, and a test
    every `TEST_INTERVAL` of them.
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
