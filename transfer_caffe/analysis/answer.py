"""The answer of a study: how many stages to copy from existing weights, and whether to freeze them.

    for line in answers(markers_of(rows, "final")):
        print(line)

The best treatment is the one with the highest mean accuracy over seeds. Whether another one is worse is decided by
paired differences: both treatments with the same seed, split and half. With one seed nothing can be decided, and the
answer says so.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Sequence
from dataclasses import dataclass

from transfer_caffe.analysis.effects import interval
from transfer_caffe.results.markers import Marker

KINDS = ("base", "X", "X+")


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
        place: sorted(options.values(), key=lambda option: (-option.mean, option.n, option.kind))
        for place, options in found.items()
        if any(option.kind != "base" for option in options.values())
    }


def difference(one: Option, two: Option) -> tuple[float, tuple[float, float] | None]:
    """Return the mean of the paired differences of two options, and its 95% confidence interval (None: one seed)."""
    pairs = [one.by_seed[seed] - two.by_seed[seed] for seed in sorted(one.by_seed.keys() & two.by_seed.keys())]
    if not pairs:
        return one.mean - two.mean, None
    return math.fsum(pairs) / len(pairs), interval(pairs)


def answers(markers: Sequence[Marker]) -> list[str]:
    """Return the answer for each place, in sentences; an empty list if no stages come from existing weights."""
    return [_answer(place, options) for place, options in options_of(markers).items()]


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


def _answer(place: tuple[str, str, str], options: Sequence[Option]) -> str:
    _, split, target = place
    where = "" if not target else f" ({split}, half {target})"
    best = options[0]
    scratch = next((option for option in options if option.kind == "base"), None)
    text = f"Best{where}: {_words(best)}, {_percent(best.mean)}"
    if scratch is not None and scratch is not best:
        text += f" (from scratch {_percent(scratch.mean)}, {_points(*difference(best, scratch))})"
    text += "."
    if all(len(option.by_seed) < 2 for option in options):
        return (
            text
            + " Each treatment was trained with one seed only, so no difference can be told from chance: add seeds."
        )
    close = [option for option in options[1:] if not _worse(option, best)]
    if close:
        names = ", ".join(f"{option.name} ({_points(*difference(option, best))})" for option in close)
        text += f" Not distinguishable from it: {names}."
    else:
        text += " Every other treatment is worse: the 95% confidence intervals of the differences exclude zero."
    if len(options) > 2:
        text += f" (The best of {len(options)} by their test accuracies: its own accuracy is slightly too high.)"
    frozen = [option for option in options if option.kind == "X" and not _worse(option, best)]
    if frozen and best.kind != "X":
        most = max(frozen, key=lambda option: option.n)
        text += f" Freezing {_stages(most.n)} costs nothing that these seeds can show, and trains fewer weights."
    return text


def _worse(option: Option, best: Option) -> bool:
    _, ends = difference(option, best)
    return ends is not None and ends[1] < 0


def _words(option: Option) -> str:
    if option.kind == "base":
        return "train from scratch"
    what = "fine-tune them" if option.kind == "X+" else "freeze them"
    return f"{option.name}, copy {_stages(option.n)} and {what}"


def _stages(n: int) -> str:
    return "the first stage" if n == 1 else f"the first {n} stages"


def _percent(accuracy: float) -> str:
    return f"{100 * accuracy:.1f}%"


def _points(mean: float, ends: tuple[float, float] | None) -> str:
    words = f"{100 * mean:+.1f} points"
    return words if ends is None else f"{words}, 95% interval {100 * ends[0]:+.1f} to {100 * ends[1]:+.1f}"
