"""What a table of networks can answer and what not, however many digits its means have: `findings_of`.

    for finding in findings_of(rows, markers_of(rows, "final")):
        print(finding.status, finding.comparison, finding.why, finding.remedy)

Only which networks there are matters here, not what came out, but where a confusion has a size it is given.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from scipy.special import stdtrit

from transfer_caffe.analysis.effects import (
    PAIRED,
    RANGES,
    Comparison,
    cluster_means,
    differences_of,
    groups_of,
    published_number,
)
from transfer_caffe.experiment.treatment import Treatment
from transfer_caffe.results.markers import Marker, cells_of, pooled_sd
from transfer_caffe.results.table import Row

SUPPORTED, CONFOUNDED, IMPOSSIBLE = "supported", "confounded", "impossible"


@dataclass(frozen=True)
class Finding:
    """One comparison: ``status`` is supported, confounded or impossible; why; what to train to settle it, or "".

    ``pairing`` is as in `effects.Effect`, "" where the finding is not about one comparison of networks.
    """

    recipe: str
    family: str
    comparison: str
    pairing: str
    status: str
    why: str
    remedy: str


def findings_of(rows: Iterable[Row], markers: Sequence[Marker]) -> list[Finding]:
    """The findings of every recipe and family of splits, in the order of `effects.groups_of`.

    ``markers`` are those of ``rows``; rows without an accuracy count as planned. A comparison of kinds of networks
    of which the rows have neither is left out.
    """
    planned: dict[tuple[str, str], set[str]] = {}
    for row in rows:
        marker = Marker("", row.recipe, row.split, row.seed, Treatment.parse(row.treatment), 0.0)
        planned.setdefault((row.recipe, marker.family), set()).add(marker.kind)
    findings = []
    for (recipe, family), members in groups_of(markers).items():
        kinds = planned.get((recipe, family), set())
        found = [
            _paired(recipe, family, comparison, members)
            for comparison in PAIRED
            if kinds & {comparison.kind, comparison.other} - {"base"} and comparison.pairing != "targets with BnB"
        ]
        found = [each for each in found if each and not (each.pairing == "own bases" and _complete(members))]
        found += [_published(recipe, family, other, members) for other in ("base", "BnB+")]
        found += [_bases(recipe, family, members), _luck(recipe, family, members)]
        findings += [each for each in found if each is not None]
    return findings


def _complete(members: Sequence[Marker]) -> bool:
    """Whether every AnB+ has a BnB+ of its own target, so that nothing is to be gained from other pairs."""
    return all(marker.control is not None for marker in members if marker.kind == "AnB+")


def _paired(recipe: str, family: str, comparison: Comparison, members: Sequence[Marker]) -> Finding:
    kind, other, pairing = comparison.kind, comparison.other, comparison.pairing
    left = [marker for marker in members if marker.kind == kind]
    found = differences_of(members, comparison)
    missing = to_train(members, kind, other)
    if not found:
        right = [marker for marker in members if marker.kind == other]
        why = (
            f"no network of a kind {kind} has an accuracy"
            if not left
            else f"there is no {other} of any {kind} network's target, split and seed"
            if other == "base"
            else f"there is no {other} at all"
            if not right
            else f"no {kind} has a {other} of the same target, n, split and seed: the {len(left)} {kind} have "
            f"{_targets(left)} as target, the {len(right)} {other} {_targets(right)}"
        )
        return Finding(recipe, family, str(comparison), pairing, IMPOSSIBLE, why, missing)
    unit, means = cluster_means(found)
    markers = [marker for marker, _ in found]
    targets = sorted({marker.treatment.target for marker in markers})
    status, reasons = SUPPORTED, [f"{_count(len(found), 'difference')} in {_count(len(means), unit or 'split')}"]
    if unit == "split":
        freedom = len(means) - 1
        reasons[0] += f" ({_count(freedom, 'degree')} of freedom, t = {stdtrit(freedom, 0.975):.1f})"
    if len(found) < len(left):
        where = "split and n" if pairing == "own bases" else "target"
        reasons.append(f"{len(left) - len(found)} {kind} networks have no {other} of their {where}")
    if pairing == "own bases":
        reasons.append("the two sides may be different halves: each is minus its own base")
    if unit == "split":
        if len(targets) == 1:
            reasons.append(f"all targets are half {targets[0]}, which costs precision only: random halves are alike")
        reasons += _uneven(markers)
    elif family == "random":
        status = CONFOUNDED
        reasons.append(
            f"one split: the effect and what is peculiar to the classes of {markers[0].split} cannot be told apart; "
            + ("the interval is over seeds and says nothing about other classes" if unit else "no interval")
        )
        missing = _joined(missing, f"the same networks in other splits than {markers[0].split}")
    else:
        if family == "natman" and len(targets) == 1:
            status = CONFOUNDED
            reasons.append(f"all targets are half {targets[0]}: the effect and the direction cannot be told apart")
        if not unit:
            status = CONFOUNDED
            reasons.append("one seed: the effect and the luck of single trainings cannot be told apart; no interval")
            missing = _joined(missing, "the same networks with other seeds")
    return Finding(recipe, family, str(comparison), pairing, status, "; ".join(reasons), missing)


def _published(recipe: str, family: str, other: str, members: Sequence[Marker]) -> Finding | None:
    number = published_number(members, other, *RANGES[0])
    if number is None:
        return None
    left = [marker for marker in members if marker.kind == "AnB+"]
    right = [marker for marker in members if marker.kind == other]
    what = f"the {len(left)} AnB+ have {_targets(left)} as target, the {len(right)} {other} {_targets(right)}"
    layers = other != "base"  # selffers have an n as well
    if _shares(left, layers) == _shares(right, layers):
        paired = Comparison("AnB+", other, "own base" if other == "base" else "same target")
        status, why = (
            _paired(recipe, family, paired, members).status,
            f"{what}: the same halves in the same proportions, so that pooling says what pairs say",
        )
        return Finding(
            recipe,
            family,
            f"AnB+ - {other}",
            "as published",
            status,
            why + ("" if status == SUPPORTED else f"; that is {status} for itself"),
            "",
        )
    why = f"the treatment and the halves{' or n' * layers} it was tried on cannot be told apart: {what}"
    if number.halves is not None:
        why += (
            f"; by their own bases the halves of AnB+ are {_points(number.halves)} points easier, of a difference of "
            f"{_points(number.difference)}; what remains is {_points(number.difference - number.halves)}"
        )
    pairs = half_differences(members)
    used = sorted({marker.split for marker in left} & set(pairs), key=natural)
    if used:
        each = [f"{split} B than {split} A {_points(sum(pairs[split]) / len(pairs[split]))} points" for split in used]
        why += f"; easier by their bases: {_few(each)}"
    return Finding(recipe, family, f"AnB+ - {other}", "as published", CONFOUNDED, why, to_train(members, "AnB+", other))


def half_differences(markers: Iterable[Marker]) -> dict[str, list[float]]:
    """Accuracy of baseB minus that of baseA by split, one number a seed: by how much half B is the easier one."""
    bases = {marker.place: marker.accuracy for marker in markers if marker.kind == "base"}
    pairs: dict[str, list[float]] = {}
    for (recipe, split, seed, target), accuracy in sorted(bases.items()):
        if target == "B" and (recipe, split, seed, "A") in bases:
            pairs.setdefault(split, []).append(accuracy - bases[recipe, split, seed, "A"])
    return pairs


def _bases(recipe: str, family: str, members: Sequence[Marker]) -> Finding | None:
    lonely: dict[tuple[str, int, str], int] = {}
    for marker in members:
        if marker.base is None:
            key = marker.split, marker.seed, marker.treatment.target
            lonely[key] = lonely.get(key, 0) + 1
    if not lonely:
        return None
    listed = [
        f"{count} of {_place(*key)}"
        for key, count in sorted(lonely.items(), key=lambda item: (natural(item[0][0]), item[0]))
    ]
    needs: dict[tuple[str, int], set[Treatment]] = {}
    for split, seed, target in lonely:
        needs.setdefault((split, seed), set()).add(Treatment("", 0, target, False))
    why = f"{sum(lonely.values())} networks are compared with nothing, as the base of their own target is missing: "
    return Finding(recipe, family, "own base", "", IMPOSSIBLE, why + _few(listed), _named(needs))


def _luck(recipe: str, family: str, members: Sequence[Marker]) -> Finding | None:
    repeated = Counter((marker.split, str(marker.treatment)) for marker in members)
    if max(repeated.values()) > 1:
        return None
    spread = pooled_sd(cells_of(members, "gain").values())
    why = "each network was trained once: how far another seed (start, order of the images) would move it is unknown"
    if spread:
        why += (
            f"; within a kind and n the differences to the own base spread by {100 * spread[0]:.2f} points (standard "
            f"deviation, {spread[1]} degrees of freedom), which is luck and differences between halves together"
        )
    return Finding(
        recipe, family, "luck of one training", "", IMPOSSIBLE, why, "at least the bases with other seeds, at best all"
    )


def to_train(members: Sequence[Marker], kind: str, other: str) -> str:
    """What is missing so that ``kind`` and ``other`` are there for every split, seed, half and n in use; "" if nothing.

    In use are the splits and seeds of any network, and the n of these two kinds.
    """
    numbers = sorted({marker.n for marker in members if marker.kind in (kind, other) and marker.n}) or sorted(
        {marker.n for marker in members if marker.n}
    )
    halves = ("",) if members[0].family == "whole" else ("A", "B")
    wanted = {
        _treatment(name, n, half)
        for half in halves
        for name in (kind, other)
        for n in (numbers if name != "base" else [0])
    }
    have: dict[tuple[str, int], set[Treatment]] = {}
    for marker in members:
        have.setdefault((marker.split, marker.seed), set()).add(marker.treatment)
    return _named({place: wanted - there for place, there in have.items() if wanted - there})


def _treatment(kind: str, n: int, target: str) -> Treatment:
    if kind in ("base", "R"):
        return Treatment("" if kind == "base" else "R", n, target, False)
    source = target if kind.startswith("B") else "AB".replace(target, "")
    return Treatment(source, n, target, kind.endswith("+"))


def _named(needs: dict[tuple[str, int], set[Treatment]]) -> str:
    """Treatments by split and seed in the recipe's words: `random0, random1: A{1-7}B+; random2 seed 1: baseA`."""
    where: dict[str, list[str]] = {}
    for (split, seed), treatments in sorted(needs.items(), key=lambda item: (natural(item[0][0]), item[0][1])):
        where.setdefault(patterns(treatments), []).append(split + (f" seed {seed}" if seed else ""))
    return "; ".join(f"{', '.join(places)}: {what}" for what, places in where.items())


def patterns(treatments: Iterable[Treatment]) -> str:
    """Treatments as a recipe would name them: `baseA, A{1-3,5}B+`; the inverse of `treatment.expand`."""
    groups: dict[tuple[str, str, bool], list[int]] = {}
    for each in sorted(treatments, key=lambda each: (each.finetuned, each.source, each.target, each.n)):
        groups.setdefault((each.source, each.target, each.finetuned), []).append(each.n)
    names = []
    for (source, target, finetuned), numbers in groups.items():
        if len(numbers) == 1:
            names.append(str(Treatment(source, numbers[0], target, finetuned)))
        else:
            names.append(f"{source}{{{ranges(numbers)}}}{target}{'+' * finetuned}")
    return ", ".join(names)


def ranges(numbers: Sequence[int]) -> str:
    """1, 2, 3, 5 as `1-3,5`."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)


def _uneven(markers: Sequence[Marker]) -> list[str]:
    """That splits have other n than others, so that their means over a range of n are of other layers."""
    numbers: dict[str, set[int]] = {}
    for marker in markers:
        numbers.setdefault(marker.split, set()).add(marker.n)
    if len({frozenset(each) for each in numbers.values()}) == 1:
        return []
    listed = [
        f"{split} n = {ranges(sorted(each))}"
        for split, each in sorted(numbers.items(), key=lambda item: natural(item[0]))
    ]
    return [f"splits have different n, so that their means over a range are of different layers: {_few(listed)}"]


def _shares(markers: Sequence[Marker], layers: bool) -> dict[tuple, float]:
    """How large a part of the networks each target is, each n of it apart if ``layers``."""
    counts = Counter((marker.place, marker.n * layers) for marker in markers)
    return {place: round(count / len(markers), 9) for place, count in counts.items()}


def _targets(markers: Sequence[Marker]) -> str:
    """`A (3) and B (4) of random0 and random1`."""
    halves = Counter(marker.treatment.target or "whole" for marker in markers)
    splits = sorted({marker.split for marker in markers}, key=natural)
    return f"{' and '.join(f'{half} ({count})' for half, count in sorted(halves.items()))} of {_few(splits)}"


def natural(split: str) -> tuple[int, str]:
    """A key for sorting that puts random2 before random10."""
    return len(split), split


def _place(split: str, seed: int, target: str) -> str:
    return " ".join([split, *[target] * bool(target), *[f"seed {seed}"] * bool(seed)])


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")


def _joined(*needs: str) -> str:
    return "; ".join(need for need in needs if need)


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'s' * (number != 1)}"


def _points(fraction: float) -> str:
    return f"{round(100 * fraction, 2) + 0.0:+.2f}"
