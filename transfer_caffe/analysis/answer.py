"""The answer of a study: how many stages to copy from existing weights, and whether to freeze them.

    for line in answers(markers_of(rows, "final"), rows, read_probes("runs/birds")):
        print(line)

The best treatment is the one with the highest mean accuracy over seeds. Whether another one is worse is decided by
paired differences: both treatments with the same seed, split and half. With one seed nothing can be decided, and the
answer says so.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.special import stdtrit

from transfer_caffe.analysis.costs import Costs, costs_of
from transfer_caffe.analysis.effects import decides, interval
from transfer_caffe.results.markers import Marker
from transfer_caffe.results.probes import Probe
from transfer_caffe.results.table import Row

KINDS = ("base", "X", "X+")
LEAST_CLASSES = 4
"""Halves of fewer classes have only one."""
MOST_SEEDS = 50
"""The answer names the number of seeds that would decide up to this many."""


@dataclass(frozen=True)
class Option:
    """One treatment on one place: its name, its networks' accuracies by seed, and their mean."""

    name: str
    kind: str
    n: int
    by_seed: dict[int, float]

    @property
    def mean(self) -> float:
        """The mean accuracy over the seeds."""
        return math.fsum(self.by_seed.values()) / len(self.by_seed)

    def only(self, seeds: Iterable[int]) -> Option:
        """Return the option with these seeds only; with its own if it has none of them."""
        common = {seed: self.by_seed[seed] for seed in seeds if seed in self.by_seed}
        return replace(self, by_seed=common or self.by_seed)


def options_of(markers: Sequence[Marker]) -> dict[tuple[str, str, str], list[Option]]:
    """Return the treatments that a study compares, by recipe, split and target, best first.

    Only places that have networks with stages from existing weights.
    """
    found: dict[tuple[str, str, str], dict[str, Option]] = {}
    for marker in markers:
        if marker.kind in KINDS:
            place = marker.recipe, marker.split, marker.treatment.target
            name = str(marker.treatment)
            option = found.setdefault(place, {}).setdefault(name, Option(name, marker.kind, marker.n, {}))
            option.by_seed[marker.seed] = marker.accuracy
    return {
        place: _best_first(list(options.values()))
        for place, options in found.items()
        if any(option.kind != "base" for option in options.values())
    }


def _best_first(options: list[Option]) -> list[Option]:
    """Sort options by what they gain over training from scratch with the same seeds, then by n and kind.

    Without such seeds, by their means. Seeds differ: while networks are missing, the means of all seeds that an option
    has would favour those with good seeds.
    """
    base = next((option for option in options if option.kind == "base"), None)

    def gain(option: Option) -> float:
        return option.mean if base is None else base.mean + difference(option, base)[0]

    return sorted(options, key=lambda option: (-gain(option), option.n, option.kind))


def difference(one: Option, two: Option) -> tuple[float, tuple[float, float] | None]:
    """Return the mean of the paired differences of two options, and its 95% confidence interval (None: one seed)."""
    pairs = [one.by_seed[seed] - two.by_seed[seed] for seed in sorted(one.by_seed.keys() & two.by_seed.keys())]
    if not pairs:
        return one.mean - two.mean, None
    return math.fsum(pairs) / len(pairs), interval(pairs)


def seeds_to_decide(one: Option, two: Option) -> int | None:
    """Return how many seeds in all would tell two options apart if their difference and its spread stay as they are.

    That many make the 95% interval exclude zero. None if `MOST_SEEDS` would not, or if fewer than two seeds are there.
    """
    pairs = [one.by_seed[seed] - two.by_seed[seed] for seed in one.by_seed.keys() & two.by_seed.keys()]
    if len(pairs) < 2:
        return None
    mean, spread = abs(math.fsum(pairs) / len(pairs)), float(np.std(pairs, ddof=1))
    for seeds in range(len(pairs) + 1, MOST_SEEDS + 1):
        if float(stdtrit(seeds - 1, 0.975)) * spread / math.sqrt(seeds) < mean:
            return seeds
    return None


def answers(markers: Sequence[Marker], rows: Sequence[Row] = (), probes: Sequence[Probe] = ()) -> list[str]:
    """Return the answer for each place, in sentences; an empty list if no stages come from existing weights.

    ``rows`` are the rows of the markers, for times, and ``probes`` the linear probes; both may be left out.
    """
    found = []
    for place, options in options_of(markers).items():
        recipe, split, target = place
        own = [probe for probe in probes if (probe.split, probe.target) == (split, target)]
        of_recipe = [row for row in rows if row.recipe == recipe]
        classes = max((row.target_classes for row in of_recipe), default=None)
        found += _Answer(place, options, costs_of(of_recipe), own, classes).sentences()
    return found


def export_commands(markers: Sequence[Marker], runs: str) -> list[str]:
    """Return, for each place, the command that makes a file for other programs from its best network.

    ``runs`` is the folder of the recipe's networks. Of several seeds of the best treatment, the most accurate one.
    """
    commands = []
    for (recipe, split, target), options in options_of(markers).items():
        best = max(
            (each for each in markers if (each.recipe, each.split, each.treatment.target) == (recipe, split, target)
             and str(each.treatment) == options[0].name),
            key=lambda each: (each.accuracy, -each.seed),
        )  # fmt: skip
        words = ["--network", f"{runs}/{best.network}", "--onnx", f"{recipe or 'net'}.onnx"]
        commands.append(f"python -m transfer_caffe.export {shlex.join(words)}")
    return commands


@dataclass(frozen=True)
class _Answer:
    """The answer for one place: its options, best first, the training times, and the linear probes."""

    place: tuple[str, str, str]
    options: Sequence[Option]
    costs: Costs
    probes: Sequence[Probe]
    classes: int | None
    """The number of classes, if it is known."""

    def sentences(self) -> list[str]:
        best = self.options[0]
        lines = [self._best()]
        if max(len(option.by_seed) for option in self.options) > 1:
            lines += [self._close(), self._frozen()]
        lines.append(self._probed())
        if any(option.kind == "X" for option in self.options) and best.kind != "X":
            lines.append(self._causes())
        return [line for line in lines if line]

    def _best(self) -> str:
        _, split, target = self.place
        where = "" if not target else f" ({split}, half {target})"
        best = self.options[0]
        scratch = next((option for option in self.options if option.kind == "base"), None)
        own = best if scratch is None else best.only(scratch.by_seed)
        text = f"Best{where}: {self._words(best)}, {_percent(own.mean)}"
        if scratch is not None and scratch is not best:
            same = scratch.only(best.by_seed)
            text += f" (from scratch {_percent(same.mean)}, {_points(*difference(best, scratch))})"
        text += "."
        if all(len(option.by_seed) < 2 for option in self.options):
            return (
                f"{text} Each treatment was trained with one seed only, so no difference can be told from chance: add "
                "seeds."
            )
        if len(self.options) > 2:
            text += (
                f" (The best of {len(self.options)} by their test accuracies: its own accuracy is slightly too high.)"
            )
        return text

    def _close(self) -> str:
        best = self.options[0]
        decided = [option for option in self.options[1:] if decides(difference(option, best)[1])]
        unknown = [option.name for option in self.options[1:] if option not in decided]
        few = (
            f" Too few seeds, or too few validation images, to compare it with {', '.join(unknown)}." if unknown else ""
        )
        close = [option for option in decided if not _worse(option, best)]
        if not close and not decided:
            return few.strip()
        if not close:
            others = "Every other treatment" if not unknown else "Every treatment that can be compared"
            return f"{others} is worse: the 95% confidence intervals of the differences exclude zero.{few}"
        names = ", ".join(f"{option.name} ({_points(*difference(option, best))})" for option in close)
        needed = {option.name: seeds_to_decide(option, best) for option in close}
        known = {name: seeds for name, seeds in needed.items() if seeds is not None}
        text = f"Not distinguishable from {best.name}: {names}."
        if known:
            name = min(known, key=lambda name: known[name])
            pairs = next(option for option in close if option.name == name).by_seed.keys() & best.by_seed.keys()
            more = known[name] - len(pairs)
            text += f" About {more} more seed{'s' * (more != 1)} would decide for {name}" + (
                f"; more than {MOST_SEEDS} seeds would be needed for the others." if len(known) < len(needed) else "."
            )
        else:
            text += f" Not even {MOST_SEEDS} seeds would decide, if the differences stay as they are."
        return text + few

    def _frozen(self) -> str:
        best = self.options[0]
        frozen = [
            option
            for option in self.options
            if option.kind == "X" and decides(difference(option, best)[1]) and not _worse(option, best)
        ]
        if not frozen or best.kind == "X":
            return ""
        most = max(frozen, key=lambda option: option.n)
        seconds = self.costs.frozen.get(most.n)
        faster = (
            f"; an iteration is {self.costs.full / seconds:.1f} times as fast" if self.costs.full and seconds else ""
        )
        return f"Freezing {self._stages(most)} costs nothing that these seeds can show{faster}."

    def _probed(self) -> str:
        if not self.probes:
            return ""
        best = max(self.probes, key=lambda probe: probe.accuracy)
        whose = f" of {best.source}" if len({probe.source for probe in self.probes}) > 1 else ""
        return (
            f"Without training the net: a linear classifier on the features of {_counted(best.n, best.stage)}{whose} "
            f"reaches {_percent(best.accuracy)}, the best of {len(self.probes)} cuts."
        )

    def _causes(self) -> str:
        """What would separate the two causes of a loss by freezing, and at what cost."""
        frozen = [option for option in self.options if option.kind == "X"]
        worst = min(frozen, key=lambda option: option.mean)
        twin = next((option for option in self.options if option.name == f"{worst.name}+"), None)
        if twin is None or not _worse(worst, twin) or (self.classes or LEAST_CLASSES) < LEAST_CLASSES:
            return ""
        numbers = sorted({option.n for option in frozen})
        seconds = self.costs.full_days
        networks = 1 + len(numbers)
        cost = "" if seconds is None else f", at most {_hours(24 * seconds * networks)} of training"
        return (
            f"Freezing {self._stages(worst)} costs {_points(*difference(twin, worst))} against fine-tuning. Frozen "
            "stages lose accuracy for two reasons: their features are specific to other images, or neurons that had "
            "adapted to each other were separated. The second is measured on your own images by "
            f'`random0: ["A{{{",".join(map(str, numbers))}}}A"]` under `networks` ({networks} networks per seed{cost}).'
        )

    def _words(self, option: Option) -> str:
        if option.kind == "base":
            return "train from scratch"
        what = "fine-tune them" if option.kind == "X+" else "freeze them"
        return f"{option.name}, copy {self._stages(option)} and {what}"

    def _stages(self, option: Option) -> str:
        return _counted(option.n, next((probe.stage for probe in self.probes if probe.n == option.n), ""))


def _counted(n: int, name: str) -> str:
    words = "the first stage" if n == 1 else f"the first {n} stages"
    return f"{words} (up to {name})" if name else words


def _worse(option: Option, best: Option) -> bool:
    """Whether an option is worse than the best one for sure."""
    ends = difference(option, best)[1]
    return decides(ends) and ends is not None and ends[1] < 0


def _percent(accuracy: float) -> str:
    return f"{100 * accuracy:.1f}%"


def _hours(hours: float) -> str:
    return f"{hours:.1f} hours" if hours >= 1 else f"{max(1, round(60 * hours))} minutes"


def _points(mean: float, ends: tuple[float, float] | None) -> str:
    words = f"{100 * mean:+.1f} points"
    return words if ends is None else f"{words}, 95% interval {100 * ends[0]:+.1f} to {100 * ends[1]:+.1f}"
