"""Decide which comparisons the networks of a results table support, and which are confounded or impossible.

    for finding in findings_of(rows, markers_of(rows, "final")):
        print(finding.status, finding.comparison, finding.why, finding.remedy)

The decision depends only on which networks have an accuracy, not on the accuracies themselves. Where the size of a
confounding effect can be estimated, the finding states it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from scipy.special import stdtrit

from transfer_caffe.analysis.effects import (
    PAIRED,
    Comparison,
    cluster_means,
    differences_of,
    groups_of,
    published_number,
    ranges_of,
)
from transfer_caffe.experiment.treatment import Treatment
from transfer_caffe.results.markers import Marker, cells_of, pooled_sd
from transfer_caffe.results.table import Row

SUPPORTED, CONFOUNDED, IMPOSSIBLE = "supported", "confounded", "impossible"


@dataclass(frozen=True)
class Finding:
    """What the design of the experiment allows to conclude about one comparison.

    ``status`` is supported, confounded or impossible, and ``why`` gives the reasons. ``remedy`` names the networks to
    train to resolve the problem, or is "". ``pairing`` is as in `effects.Effect`; it is "" if the finding is not about
    a comparison of two kinds of networks.
    """

    recipe: str
    family: str
    comparison: str
    pairing: str
    status: str
    why: str
    remedy: str


def findings_of(rows: Iterable[Row], markers: Sequence[Marker]) -> list[Finding]:
    """Return the findings for each recipe and family of splits, in the order of `effects.groups_of`.

    ``markers`` are the networks of ``rows`` that have an accuracy. Rows without an accuracy count as planned networks.
    A comparison is left out if the rows have neither of its two kinds of networks.
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
    """Return whether every AnB+ has a BnB+ of the same target; the fallback pairing "own bases" is then not needed."""
    return all(marker.control is not None for marker in members if marker.kind == "AnB+")


def _paired(recipe: str, family: str, comparison: Comparison, members: Sequence[Marker]) -> Finding:
    kind, other, pairing = comparison.kind, comparison.other, comparison.pairing
    left = [marker for marker in members if marker.kind == kind]
    found = differences_of(members, comparison)
    missing = to_train(members, kind, other)
    if not found:
        right = [marker for marker in members if marker.kind == other]
        why = (
            f"no {kind} network has an accuracy"
            if not left
            else f"no {kind} network has a base network of the same target, split and seed"
            if other == "base"
            else f"no {other} network has an accuracy"
            if not right
            else f"no {kind} network has a {other} network of the same target, n, split and seed: "
            f"{_sides(kind, left, other, right)}"
        )
        return Finding(recipe, family, str(comparison), pairing, IMPOSSIBLE, why, missing)
    unit, means = cluster_means(found)
    markers = [marker for marker, _ in found]
    targets = sorted({marker.treatment.target for marker in markers})
    status, reasons = SUPPORTED, [f"{_count(len(found), 'paired difference')} in {_count(len(means), unit or 'split')}"]
    if unit == "split":
        freedom = len(means) - 1
        reasons[0] += f" ({_count(freedom, 'degree')} of freedom, critical value t = {stdtrit(freedom, 0.975):.1f})"
    if len(found) < len(left):
        where = "split and n" if pairing == "own bases" else "target" if other == "base" else "target and n"
        reasons.append(f"{len(left) - len(found)} {kind} networks have no {other} network of the same {where}")
    if pairing == "own bases":
        reasons.append("the two networks may have different target halves: each is compared with its own base")
    if unit == "split":
        if len(targets) == 1:
            reasons.append(
                f"all targets are half {targets[0]}; as random halves are exchangeable, this reduces the precision but "
                "causes no bias"
            )
        reasons += _uneven(markers)
    elif family == "random":
        status = CONFOUNDED
        reasons.append(
            f"only one split: the effect cannot be distinguished from properties peculiar to the classes of "
            f"{markers[0].split}; "
            + ("the interval is over seeds and says nothing about other classes" if unit else "no interval")
        )
        missing = _joined(missing, f"the same networks in other splits besides {markers[0].split}")
    else:
        if family == "natman" and len(targets) == 1:
            status = CONFOUNDED
            reasons.append(
                f"all targets are half {targets[0]}: the effect cannot be distinguished from that of the direction of "
                "transfer"
            )
        if not unit:
            status = CONFOUNDED
            reasons.append(
                "only one seed: the effect cannot be distinguished from random variation between training runs; no "
                "interval"
            )
            missing = _joined(missing, "the same networks with other seeds")
    return Finding(recipe, family, str(comparison), pairing, status, "; ".join(reasons), missing)


def _published(recipe: str, family: str, other: str, members: Sequence[Marker]) -> Finding | None:
    number = published_number(members, other, *ranges_of(members)[0])
    if number is None:
        return None
    left = [marker for marker in members if marker.kind == "AnB+"]
    right = [marker for marker in members if marker.kind == other]
    what = _sides("AnB+", left, other, right)
    layers = other != "base"  # selffer networks also have an n
    if _shares(left, layers) == _shares(right, layers):
        paired = Comparison("AnB+", other, "own base" if other == "base" else "same target")
        status, why = (
            _paired(recipe, family, paired, members).status,
            f"{what}; these are the same halves in the same proportions, so pooling causes no bias",
        )
        return Finding(
            recipe,
            family,
            f"AnB+ - {other}",
            "as published",
            status,
            why + ("" if status == SUPPORTED else f"; the paired comparison itself is {status}"),
            "",
        )
    why = f"the treatment is confounded with the target halves{' or n' * layers}: {what}"
    if number.halves is not None:
        others = "the BnB+ networks' own bases" if layers else "the pooled base networks"
        why += (
            f"; the AnB+ networks' own bases are {_points(number.halves)} points more accurate than "
            f"{others}, which is part of the pooled "
            f"difference of {_points(number.difference)} points; the remainder is "
            f"{_points(number.difference - number.halves)} points"
        )
    pairs = half_differences(members)
    used = sorted({marker.split for marker in left} & set(pairs), key=natural)
    if used:
        each = [f"{split} {_points(sum(pairs[split]) / len(pairs[split]))} points" for split in used]
        why += f"; accuracy of baseB minus accuracy of baseA: {_few(each)}"
    return Finding(recipe, family, f"AnB+ - {other}", "as published", CONFOUNDED, why, to_train(members, "AnB+", other))


def half_differences(markers: Iterable[Marker]) -> dict[str, list[float]]:
    """Return, for each split, the accuracy of baseB minus the accuracy of baseA, one number per seed.

    A positive number means that half B is the easier one.
    """
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
    why = f"{sum(lonely.values())} networks cannot be compared, because the base network of their target is missing: "
    return Finding(recipe, family, "own base", "", IMPOSSIBLE, why + _few(listed), _named(needs))


def _luck(recipe: str, family: str, members: Sequence[Marker]) -> Finding | None:
    repeated = Counter((marker.split, str(marker.treatment)) for marker in members)
    if max(repeated.values()) > 1:
        return None
    spread = pooled_sd(cells_of(members, "gain").values())
    why = (
        "each network was trained with one seed only, so the variation between seeds (initial weights, order of the "
        "images) is unknown"
    )
    if spread:
        why += (
            "; the pooled standard deviation of the differences from the own base among networks of the same treatment "
            f"and n is {100 * spread[0]:.2f} points ({spread[1]} degrees of freedom), which includes the variation "
            "between seeds and the variation between halves"
        )
    remedy = "at least the base networks with other seeds, preferably all networks"
    return Finding(recipe, family, "variation between seeds", "", IMPOSSIBLE, why, remedy)


def to_train(members: Sequence[Marker], kind: str, other: str) -> str:
    """Name the missing networks of ``kind`` and ``other`` for every split, seed, half and n in use; "" if none is.

    The splits and seeds in use are those of any network of ``members``. The n in use are those of the two kinds, or of
    all networks if the two kinds have none.
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
    if kind in ("X", "X+"):
        return Treatment("P", n, target, kind.endswith("+"))  # by convention: the table does not name the source
    source = target if kind.startswith("B") else "AB".replace(target, "")
    return Treatment(source, n, target, kind.endswith("+"))


def _named(needs: dict[tuple[str, int], set[Treatment]]) -> str:
    """Return the treatments by split and seed in a recipe's notation: `random0: A{1-7}B+; random2 seed 1: baseA`."""
    where: dict[str, list[str]] = {}
    for (split, seed), treatments in sorted(needs.items(), key=lambda item: (natural(item[0][0]), item[0][1])):
        where.setdefault(patterns(treatments), []).append(split + (f" seed {seed}" if seed else ""))
    return "; ".join(f"{', '.join(places)}: {what}" for what, places in where.items())


def patterns(treatments: Iterable[Treatment]) -> str:
    """Return the treatments in a recipe's notation, such as `baseA, A{1-3,5}B+`; the inverse of `treatment.expand`."""
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
    """Return sorted numbers as ranges: 1, 2, 3, 5 gives `1-3,5`."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)


def _uneven(markers: Sequence[Marker]) -> list[str]:
    """Return a reason if the splits have networks of different n, so that their means over a range of n differ in n."""
    numbers: dict[str, set[int]] = {}
    for marker in markers:
        numbers.setdefault(marker.split, set()).add(marker.n)
    if len({frozenset(each) for each in numbers.values()}) == 1:
        return []
    listed = [
        f"{split} n = {ranges(sorted(each))}"
        for split, each in sorted(numbers.items(), key=lambda item: natural(item[0]))
    ]
    return [f"the splits have different n, so their means over a range of n cover different layers: {_few(listed)}"]


def _shares(markers: Sequence[Marker], layers: bool) -> dict[tuple, float]:
    """Return the share of the networks that has each target, or each target and n if ``layers``."""
    counts = Counter((marker.place, marker.n * layers) for marker in markers)
    return {place: round(count / len(markers), 9) for place, count in counts.items()}


def _sides(kind: str, left: Sequence[Marker], other: str, right: Sequence[Marker]) -> str:
    """Return the targets of the networks on the two sides of a comparison."""
    return (
        f"the targets of the {len(left)} {kind} networks are {_targets(left)}, the targets of the {len(right)} {other} "
        f"networks are {_targets(right)}"
    )


def _targets(markers: Sequence[Marker]) -> str:
    """Return the targets with their numbers of networks: `A (3) and B (4) of random0, random1`."""
    halves = Counter(marker.treatment.target or "whole" for marker in markers)
    splits = sorted({marker.split for marker in markers}, key=natural)
    return f"{' and '.join(f'{half} ({count})' for half, count in sorted(halves.items()))} of {_few(splits)}"


def natural(split: str) -> tuple[int, str]:
    """Return a sort key that puts random2 before random10."""
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
