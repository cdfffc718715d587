"""The estimate of the time left, in simulated sweeps with a fake clock and known rates."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from transfer_caffe.experiment.read import load_recipe
from transfer_caffe.experiment.recipe import Network
from transfer_caffe.sweep.cost import relative_cost
from transfer_caffe.sweep.estimate import Estimate, Mean
from transfer_caffe.sweep.selection import in_order

TICK = 0.25
SHOWN = 5.0
"""Seconds between two estimates that are checked."""
Load = Callable[[float], float]
"""The factor by which everything takes longer, as a function of the time."""


def test_images(network: Network) -> int:
    return 10_000 if network.split == "whole" else 5_000


test_images.__test__ = False  # pyright: ignore[reportFunctionMemberAccess]


@dataclass
class Machine:
    """Times of the simulated machine when nothing else runs on it."""

    iteration: float = 0.012
    """Seconds of an iteration in which all layers learn."""
    start: float = 3.0
    end: float = 0.8
    cold: float = 3.0
    """The factor by which the first starts take longer, because files are read from disk."""
    frozen: float = 1.0
    """The cost of networks with frozen layers, relative to the model."""
    noise: float = 0.1
    alone: float = 1.0
    """The speed of a network that runs alone, relative to one that runs beside others."""


class Simulation:
    """A sweep of the demo on a simulated machine, with the estimates that it would show."""

    def __init__(self, load: Load, machine: Machine, slots: int = 2) -> None:
        self.load, self.machine, self.slots = load, machine, slots
        self.shown: list[tuple[float, float | None]] = []
        self.end = 0.0
        self._run(in_order(load_recipe("demo").networks()))

    def _work(self, network: Network) -> tuple[float, float]:
        """Return the seconds of an iteration and of a test of a network that runs alone on the machine."""
        machine, relative = self.machine, relative_cost("mini")
        ratio = relative[network.treatment.frozen] * (machine.frozen if network.treatment.frozen else 1)
        return machine.iteration * ratio, test_images(network) / 192 * machine.iteration * relative[7]

    def _run(self, waiting: list[Network]) -> None:
        draw, machine = random.Random(1), self.machine
        estimate = Estimate(self.slots, test_images)
        running: dict[str, tuple[Network, list[tuple[int | None, float]]]] = {}
        done: set[str] = set()
        now = 0.0
        while waiting or running:
            for network in list(waiting):
                if len(running) < self.slots and (network.base is None or network.base.name in done):
                    waiting.remove(network)
                    estimate.started(network, now)
                    running[network.name] = (network, self._steps(network, len(done) < self.slots, draw))
            speed = TICK / self.load(now) * (machine.alone if len(running) == 1 else 1)
            now += TICK
            for name, (network, steps) in list(running.items()):
                left = speed
                while steps and left > 0:
                    iteration, seconds = steps[0]
                    if seconds > left:
                        steps[0] = (iteration, seconds - left)
                        break
                    left -= seconds
                    steps.pop(0)
                    if iteration is not None:
                        estimate.reached(network, iteration, now)
                if not steps:
                    estimate.ended(network, now, done=True)
                    del running[name]
                    done.add(name)
            if running and now % SHOWN == 0:
                self.shown.append((now, estimate.seconds_left(waiting, now)))
        self.end = now

    def _steps(self, network: Network, cold: bool, draw: random.Random) -> list[tuple[int | None, float]]:
        """Return the steps of a network: (iteration in the log after the step or None, seconds of the step)."""
        machine, solver = self.machine, network.solver
        each, test = self._work(network)
        vary = 1 + draw.uniform(-machine.noise, machine.noise)
        steps: list[tuple[int | None, float]] = [(0, machine.start * (machine.cold if cold else 1) + test)]
        for iteration in range(solver["display"], network.max_iter, solver["display"]):
            tested = iteration % solver["test_interval"] == 0
            steps.append((iteration, vary * each * solver["display"] + tested * test))
        return [*steps, (None, vary * each * solver["display"] + test + machine.end)]

    def errors(self, since: float, least: float = 60.0) -> list[float]:
        """Return estimate / truth - 1 from time ``since`` on, as long as at least ``least`` seconds are left."""
        shown = [(now, left) for now, left in self.shown if since <= now and self.end - now >= least]
        assert shown and all(left is not None for _, left in shown)
        return [left / (self.end - now) - 1 for now, left in shown if left is not None]


LOADS: dict[str, Load] = {
    "idle": lambda now: 1.0,
    "beside a busy program": lambda now: 2.4,
    "beside programs that come and go": lambda now: 2.2 if now % 20 < 11 else 1.0,
    "beside short bursts": lambda now: 5.0 if now % 15 < 3 else 1.2,
}
MACHINES = {
    "as the model": Machine(),
    "slow": Machine(iteration=0.04, start=5),
    "fast, so that starts are much of it": Machine(iteration=0.004, start=2.5),
    "frozen networks are dearer than the model says": Machine(frozen=1.2),
    "frozen networks are cheaper than the model says": Machine(frozen=0.8),
    "half as fast again alone": Machine(alone=1.5),
}


@pytest.mark.parametrize("load", LOADS)
@pytest.mark.parametrize("machine", MACHINES)
def test_after_the_first_minute_the_time_left_is_right_within_30_percent(load, machine):
    found = Simulation(LOADS[load], MACHINES[machine]).errors(since=60)
    assert min(found) > -0.3 and max(found) < 0.3


@pytest.mark.parametrize("slots", [1, 4])
def test_it_is_right_with_other_numbers_of_networks_at_a_time(slots):
    found = Simulation(LOADS["idle"], Machine(iteration=0.025), slots).errors(since=60)
    assert min(found) > -0.3 and max(found) < 0.3


@pytest.mark.parametrize(("before", "after"), [(1.0, 2.5), (2.5, 1.0)])
def test_two_minutes_after_the_load_has_changed_for_good_it_is_right_again(before, after):
    change = 180.0
    found = Simulation(lambda now: before if now < change else after, Machine(iteration=0.025)).errors(change + 120)
    assert min(found) > -0.3 and max(found) < 0.3


def test_nothing_is_estimated_before_something_was_measured():
    network = load_recipe("demo").network("random0", "baseA")
    estimate = Estimate(2, test_images)
    assert estimate.seconds_left([network], 0.0) is None
    estimate.started(network, 0.0)
    estimate.reached(network, 0, 3.0)
    assert estimate.seconds_left([], 3.0) is None
    estimate.reached(network, 50, 4.0)
    left = estimate.seconds_left([], 4.0)
    assert left == pytest.approx((network.max_iter - 50) / 50, rel=0.1)


def test_a_network_that_goes_on_from_a_snapshot_costs_what_is_left_of_it():
    network = load_recipe("demo").network("random0", "baseA")
    estimate = Estimate(1, test_images)
    estimate.started(network, 0.0)
    estimate.reached(network, network.max_iter - 200, 3.0)
    estimate.reached(network, network.max_iter - 150, 4.0)
    left = estimate.seconds_left([], 4.0)
    assert left is not None and left < 10


def test_a_network_that_failed_says_nothing_about_how_long_an_end_takes():
    network = load_recipe("demo").network("random0", "baseA")
    lefts = []
    for done in (True, False):
        estimate = Estimate(1, test_images)
        estimate.started(network, 0.0)
        estimate.reached(network, 0, 3.0)
        estimate.reached(network, 50, 4.0)
        estimate.ended(network, 1000.0, done)
        lefts.append(estimate.seconds_left([network], 1000.0))
    assert lefts[0] > 800 > lefts[1] > 0


def test_of_a_mean_the_older_part_counts_half_after_a_minute():
    mean = Mean()
    assert mean.value is None
    mean.add(1, 1, now=0)
    mean.add(4, 1, now=60)
    assert mean.value == pytest.approx((0.5 * 1 + 4) / 1.5)
