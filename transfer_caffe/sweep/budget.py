"""Fit a study into a number of hours: how many n are tried, and for how many iterations.

    size = fit(hours=2, candidates(stages=8, iterations=900), cost)

The largest size that fits is chosen. n are given up before iterations, because a curve of three points from networks
that were trained long enough says more than seven points from networks that were not.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from transfer_caffe.experiment.recipe import Network, Recipe
from transfer_caffe.experiment.treatment import Treatment
from transfer_caffe.sweep.cost import Rate, Work, makespan
from transfer_caffe.sweep.display import duration
from transfer_caffe.utils.errors import UserError

MOST_CUTS = 7
"""At most this many n are tried, spread over the stages; all of them if there are not more."""
SHORTENED = (1.0, 0.5, 0.25)
"""Parts of the intended iterations that a budget may reduce them to."""
STARTS = 6.0
"""Seconds that a network takes in addition to its iterations: processes, surgery, snapshots."""


@dataclass(frozen=True)
class Size:
    """The size of a study: the n that are tried, and the iterations of each network."""

    numbers: tuple[int, ...]
    iterations: int


def spread(stages: int, most: int = MOST_CUTS) -> list[int]:
    """Return the n to try: all from 1 to stages - 1, or ``most`` of them at equal distances, with both ends."""
    last = stages - 1
    if last <= most:
        return list(range(1, last + 1))
    if most == 1:
        return [(last + 1) // 2]
    return sorted({round(1 + place * (last - 1) / (most - 1)) for place in range(most)})


def candidates(stages: int, iterations: int) -> list[Size]:
    """Return the sizes of a study, the largest first: all n of `spread`, then 5, 3, 2; then fewer iterations."""
    cuts = list(dict.fromkeys(tuple(spread(stages, most)) for most in (MOST_CUTS, 5, 3, 2)))
    full = [Size(numbers, iterations) for numbers in cuts]
    return full + [Size(cuts[-1], max(4, round(part * iterations))) for part in SHORTENED[1:]]


def seconds(
    recipe: Recipe, rate: Rate, size: Size, seeds: int, test_images: int, tests: int, searched: int, slots: int
) -> float:
    """Return the seconds that a study takes with ``slots`` networks at a time.

    ``recipe`` is any with the study's net; ``tests`` is the number of tests of each network, with ``test_images``
    images each. ``searched`` is the number of learning rates that are tried before, each by three networks of half
    the iterations.
    """

    def work(n: int, finetuned: bool, iterations: int, passes: int, name: str) -> Work:
        treatment = Treatment("R" if n and not finetuned else "", 0 if finetuned else n, "", False)
        network = Network(recipe, "whole", treatment, 0)
        return Work(name, None, STARTS + rate.seconds(network, iterations, passes * test_images))

    kinds = [(0, False), *itertools.product(size.numbers, (False, True))]
    works = [
        work(n, finetuned, size.iterations, tests, f"{n} {finetuned} {seed}")
        for seed in range(seeds)
        for n, finetuned in kinds
    ]
    middle = size.numbers[len(size.numbers) // 2]
    three = [
        work(n, finetuned, size.iterations // 2, 1, f"{n} {finetuned}")
        for n, finetuned in ((0, False), (middle, False), (middle, True))
    ]
    return makespan(works, slots) + searched * makespan(three, slots)


def fit(hours: float, sizes: Sequence[Size], cost: Callable[[Size], float]) -> Size:
    """Return the first of ``sizes`` whose ``cost`` in seconds is within ``hours``. UserError if none is."""
    costs = {size: cost(size) for size in sizes}
    for size in sizes:
        if costs[size] <= 3600 * hours:
            return size
    least = min(sizes, key=lambda size: costs[size])
    raise UserError(
        f"--hours {hours:g}: too small for any study: n = {listed(least.numbers)} with {least.iterations} iterations "
        f"would take about {duration(costs[least])} here; give more hours, fewer --seeds, or --base-lr, which skips "
        "the search for learning rates"
    )


def listed(numbers: Iterable[int]) -> str:
    """Return numbers as words: `1, 4, 7`."""
    return ", ".join(map(str, numbers))
