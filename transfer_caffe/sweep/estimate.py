"""Estimate the time left of a sweep from times measured while it runs.

    estimate = Estimate(slots=2, test_images=sizes.test_images)
    estimate.started(network, now)                 # its process was started
    estimate.reached(network, iteration, now)      # its log has reached this iteration
    estimate.ended(network, now, done=True)        # its process has ended
    estimate.seconds_left(waiting, now)            # None until enough has been measured

A network's time has three parts: the start (processes, data, first test), the iterations with their tests, and the end
(last test, snapshots, checks). The cost of an iteration relative to one in which all layers learn comes from a model
(`cost.relative_cost`). The seconds that such an iteration takes on this machine, and the times of starts and ends, are
measured with the wall clock, while the networks share the machine with each other and with other programs. Newer
measurements have a higher weight because the load changes: the weight of a measurement halves within a minute, or
within a quarter of the time measured so far.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from transfer_caffe.experiment.recipe import Network
from transfer_caffe.sweep.cost import Work, makespan, relative_cost

HALF_LIFE = 60.0
"""Seconds after which a measurement's weight is halved, early in a sweep."""
END = 0.3
"""Assumed time of a network's end relative to its start, until one has been measured."""

WARM = 0.6
"""Assumed time of a later start relative to the first ones, which read from disk, until one has been measured."""


class Mean:
    """A weighted mean in which older values have a lower weight."""

    def __init__(self) -> None:
        self._sum = self._weight = 0.0
        self._time: float | None = None
        self._since = 0.0

    def add(self, total: float, weight: float, now: float) -> None:
        """Add ``total``, the sum over ``weight`` units."""
        if self._time is None:
            self._since = self._time = now
        half_life = max(HALF_LIFE, (now - self._since) / 4)
        left = 0.5 ** ((now - self._time) / half_life)
        self._time = now
        self._sum = self._sum * left + total
        self._weight = self._weight * left + weight

    @property
    def value(self) -> float | None:
        """The mean per unit; None if nothing was added."""
        return self._sum / self._weight if self._weight else None


@dataclass
class _Run:
    """A network in training: its start time, and the newest iteration seen, if any, with its time."""

    network: Network
    started: float
    cold: bool
    """Whether it is one of the first networks, whose start reads the programs from disk."""
    iteration: int | None = None
    seen: float = 0.0


class Estimate:
    """Estimates the time left of a sweep from the networks measured so far."""

    def __init__(self, slots: int, test_images: Callable[[Network], int | None]) -> None:
        self._slots, self._test_images = slots, test_images
        self._runs: dict[str, _Run] = {}
        self._pace, self._start, self._cold_start, self._end = Mean(), Mean(), Mean(), Mean()
        self._count = 0

    def started(self, network: Network, now: float) -> None:
        """Record that a network's process was started."""
        self._runs[network.name] = _Run(network, now, cold=self._count < self._slots)
        self._count += 1

    def reached(self, network: Network, iteration: int, now: float) -> None:
        """Record that a network's log has reached this iteration."""
        run = self._runs[network.name]
        if run.iteration is None:
            (self._cold_start if run.cold else self._start).add(now - run.started, 1, now)
        elif iteration <= run.iteration:
            return
        else:
            self._pace.add(now - run.seen, self._units(network, iteration) - self._units(network, run.iteration), now)
        run.iteration, run.seen = iteration, now

    def ended(self, network: Network, now: float, done: bool) -> None:
        """Record that a network's process has ended; measure the time of its end if the network is ``done``."""
        run = self._runs.pop(network.name)
        pace = self._pace.value
        if done and run.iteration is not None and pace is not None:
            rest = self._units(network, network.max_iter) - self._units(network, run.iteration)
            self._end.add(max(0.0, now - run.seen - rest * pace), 1, now)

    def seconds_left(self, waiting: Sequence[Network], now: float) -> float | None:
        """Return the seconds until running and ``waiting`` networks, in this order, are done; None if unknown."""
        pace, start, cold = self._pace.value, self._start.value, self._cold_start.value
        if start is None and cold is not None:
            start = WARM * cold
        if pace is None or start is None:
            return None
        end = self._end.value if self._end.value is not None else END * start
        works = []
        for run in self._runs.values():
            passed = run.iteration or 0
            units = self._units(run.network, run.network.max_iter) - self._units(run.network, passed)
            since = now - (run.started if run.iteration is None else run.seen)
            seconds = units * pace + (start if run.iteration is None else 0) - since
            works.append(_work(run.network, max(0.0, seconds) + end))
        for network in waiting:
            works.append(_work(network, start + self._units(network, network.max_iter) * pace + end))
        return makespan(works, self._slots)

    def _units(self, network: Network, iteration: int) -> float:
        """Return the work up to an iteration, tests included, in units of an iteration in which all layers learn.

        The test before the first iteration is part of the start.
        """
        relative = relative_cost(network.recipe.architecture, network.recipe.stages)
        tests = iteration // network.solver["test_interval"]
        batches = tests * (self._test_images(network) or 0) / network.recipe.batch.train
        return iteration * relative[network.treatment.frozen] + batches * relative[-1]


def _work(network: Network, seconds: float) -> Work:
    return Work(network.name, network.base.name if network.base else None, seconds)
