"""The cost of training: seconds per iteration by number of frozen layers, hours per network, and makespan on k slots.

rate = Rate.of_seconds(1.77, recipe)            # seconds of an iteration in which all layers learn
hours = rate.seconds(network, 450000, test_images) / 3600
hours_on_8 = makespan(works, 8) / 3600
"""

from __future__ import annotations

import heapq
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from transfer_caffe.experiment.recipe import Network, Recipe
from transfer_caffe.experiment.treatment import LAYERS

# Time of an iteration with the first n layers frozen, relative to one in which all layers learn (from the paper's logs,
# on a Tesla K20): the backward pass stops above the frozen layers. Accurate enough to estimate the time left.
COST = (1.0, 0.84, 0.67, 0.57, 0.47, 0.39, 0.37, 0.37)

# The same for the architecture `mini`, measured with the embedded engine on one core. Its operations are so small that
# much of an iteration's time does not depend on the backward pass.
MINI_COST = (1.0, 0.86, 0.76, 0.68, 0.60, 0.54, 0.52, 0.50)


def relative_cost(architecture: str, stages: int = LAYERS) -> tuple[float, ...]:
    """Return the cost of an iteration with the first 0, 1, ... stages frozen, relative to one in which all learn.


    The last number is also used for the cost of a test image relative to a training image, since both have almost no
    backward pass. In the paper's logs a test image takes 2.6 ms and a training image 6.9 ms, a ratio of 0.38.
    """
    known = MINI_COST if architecture == "mini" else COST
    if stages == len(known):
        return known
    # another net: by the place of n between the first and the last stage
    ratios = dict(enumerate(known))
    return tuple(_interpolated(ratios, n * (len(known) - 1) / max(stages - 1, 1)) for n in range(stages))


@dataclass(frozen=True)
class Rate:
    """How fast a machine trains and tests one network of a recipe; ``source`` describes where the numbers come from."""

    iteration: tuple[float, ...]
    """Seconds per iteration (of a full mini-batch) with the first 0, 1, ... 7 layers frozen."""
    test_image: float
    """Seconds per test image."""
    source: str

    @classmethod
    def of_seconds(cls, seconds: float, recipe: Recipe) -> Rate:
        """Return a rate computed from one number: the seconds of an iteration in which all layers learn."""
        return cls.of_some({0: seconds}, recipe, f"{seconds:g} s per iteration, as given")

    @classmethod
    def of_some(
        cls, known: Mapping[int, float], recipe: Recipe, source: str, test_image: float | None = None
    ) -> Rate:  # fmt: skip
        """Return a rate computed from the seconds per iteration that are ``known`` for some numbers of frozen layers.

        The other numbers follow from `relative_cost`; between two known ones, the ratio to it is interpolated.
        """
        relative = relative_cost(recipe.architecture, recipe.stages)
        ratios = {n: seconds / relative[n] for n, seconds in sorted(known.items())}
        iteration = tuple(_interpolated(ratios, n) * relative[n] for n in range(len(relative)))
        return cls(iteration, test_image or iteration[-1] / recipe.batch.train, source)

    @classmethod
    def of_done(cls, recipe: Recipe, networks: Sequence[tuple[Network, Mapping[str, Any]]]) -> Rate | None:
        """Return the rate of finished networks, given with their done.json; None if these record no times."""
        seconds: dict[int, list[float]] = {}
        tests: list[float] = []
        for network, done in networks:
            if isinstance(each := done.get("seconds_per_iteration"), int | float) and each > 0:
                seconds.setdefault(network.treatment.frozen, []).append(each)
                if recipe.test_images and isinstance(test := done.get("seconds_per_test"), int | float):
                    tests.append(test / recipe.test_images)
        if not seconds:
            return None
        known = {n: statistics.median(each) for n, each in seconds.items()}
        count = sum(map(len, seconds.values()))
        words = (
            f"measured on the {count} networks that are done" if count > 1 else "measured on the network that is done"
        )
        return cls.of_some(known, recipe, words, statistics.median(tests) if tests else None)

    def seconds(self, network: Network, iterations: int, test_images: int) -> float:
        """Return the seconds that ``iterations`` training iterations and ``test_images`` test images take."""
        return iterations * self.iteration[network.treatment.frozen] + test_images * self.test_image


def _interpolated(known: Mapping[int, float], n: float) -> float:
    """Return the value at n, interpolated between the known ones; outside of them, the nearest known one."""
    below = [each for each in known if each <= n]
    above = [each for each in known if each >= n]
    if not below or not above:
        return known[above[0] if above else below[-1]]
    a, b = below[-1], above[0]
    return known[a] if a == b else known[a] + (known[b] - known[a]) * (n - a) / (b - a)


@dataclass(frozen=True)
class Work:
    """One network to train: its name, the name of its base if that must be trained first, and its time in seconds."""

    name: str
    base: str | None
    seconds: float


def makespan(works: Sequence[Work], slots: int) -> float:
    """Return the makespan in seconds on this number of slots, by list scheduling as in `sweep run`.

    Whenever a slot is free, the first network whose base is done is started.
    """
    waiting = list(works)
    undone = {work.name for work in works}
    running: list[tuple[float, str]] = []
    now = 0.0
    while waiting or running:
        left = []
        for work in waiting:
            if len(running) < slots and work.base not in undone:
                heapq.heappush(running, (now + work.seconds, work.name))
            else:
                left.append(work)
        waiting = left
        if not running:
            raise ValueError(f"bases are missing for these networks: {', '.join(work.name for work in waiting)}")
        now, name = heapq.heappop(running)
        undone.discard(name)
    return now
