"""What a results table says, in sentences and small tables: for the report.

Everything is a difference between networks that share recipe, split, seed and target half; what those differences
cannot tell is said next to them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from transfer_caffe.figures.cells import KINDS, Cell, Marker, by_place, cells_of, pooled_sd, t95, verdict

WORDS = {
    "BnB": "own features, frozen",
    "BnB+": "own features, trained on",
    "AnB": "features of the other half, frozen",
    "AnB+": "features of the other half, trained on",
    "R": "random features, frozen",
}
FAMILIES = {"random": "Random splits", "natman": "Man-made/natural split", "whole": "All classes"}
_GROUPS = {"A": "man-made", "B": "natural"}


@dataclass(frozen=True)
class Effect:
    """One mean difference in percentage points, how uncertain it is, and whether it stands out (`cells.verdict`)."""

    mean: str
    error: str
    count: int
    verdict: str


@dataclass(frozen=True)
class Effects:
    """A table of effects: one row an n, one column a comparison (None where there are no networks)."""

    title: str
    columns: list[str]
    rows: list[tuple[int, list[Effect | None]]]
    note: str


def points(difference: float) -> str:
    """A difference of accuracies in percentage points, with its sign: +1.23, −0.40, 0.00."""
    text = f"{100 * difference:+.2f}"
    return "0.00" if float(text) == 0 else text.replace("-", "\N{MINUS SIGN}")


def effects_tables(markers: Sequence[Marker]) -> list[Effects]:
    """A table a family of splits: each kind against its own base, transfers also against their selffer."""
    tables = []
    for family, title in FAMILIES.items():
        members = [marker for marker in markers if marker.family == family]
        columns: dict[str, dict[int, Cell]] = {}
        gains, over = cells_of(members, "gain"), cells_of(members, "over_control")
        for label, cells in ((" \N{MINUS SIGN} base", gains), ("", over)):
            for (kind, n), cell in cells.items():
                name = kind + (label or f" \N{MINUS SIGN} {kind.replace('A', 'B')}")
                columns.setdefault(name, {})[n] = cell
        if not columns:
            continue
        pooled = {
            name: pooled_sd((gains if name.endswith("base") else over).values()) for name in columns
        }  # fmt: skip
        numbers = sorted({n for cells in columns.values() for n in cells})
        rows = [(n, [_effect(cells.get(n), pooled[name]) for name, cells in columns.items()]) for n in numbers]
        tables.append(Effects(title, list(columns), rows, _spread_words(pooled_sd(gains.values()))))
    return tables


def _effect(cell: Cell | None, pooled: tuple[float, int] | None) -> Effect | None:
    if cell is None:
        return None
    error = "" if cell.se is None else f"{100 * cell.se:.2f}"
    return Effect(points(cell.mean), error, cell.count, verdict(cell, pooled))


def _spread_words(pooled: tuple[float, int] | None) -> str:
    if pooled is None:
        return "Every number is a single network: how far chance alone would move it is unknown."
    return (
        f"Within one cell the differences to the base spread by {100 * pooled[0]:.2f} points (standard deviation, "
        f"pooled over the table, {pooled[1]} degrees of freedom, t = {t95(pooled[1]):.2f})."
    )


def base_sentences(markers: Sequence[Marker]) -> list[str]:
    """The accuracy of the bases of every split and half."""
    halves: dict[tuple[str, str], list[float]] = {}
    for marker in markers:
        if marker.kind == "base":
            halves.setdefault((marker.split, marker.treatment.target), []).append(marker.accuracy)
    if not halves:
        return ["No base network has finished: nothing can be compared yet."]
    parts: dict[str, list[str]] = {}
    for (split, target), values in sorted(halves.items(), key=lambda each: _order(*each[0])):
        cell = Cell(tuple(values))
        name = _GROUPS[target] if split == "natman" else f"half {target}" if target else ""
        spread = f" (mean of {cell.count} seeds, standard deviation {100 * cell.sd:.1f})" if cell.sd is not None else ""
        where = {"whole": "all classes", "natman": "man-made/natural split"}.get(split, split)
        parts.setdefault(where, []).append(f"{name} {100 * cell.mean:.1f}%{spread}".strip())
    listed = "; ".join(f"{where}: {', '.join(each)}" for where, each in parts.items())
    return [f"Accuracy of the base networks: {listed}."]


def _order(split: str, target: str) -> tuple[int, str, str]:
    return ["n", "w"].index(split[0]) + 1 if split[0] in "nw" else 0, split, target


def effect_sentences(markers: Sequence[Marker]) -> list[str]:
    """A sentence a comparison on the random splits, then one for natman and one for random features."""
    random = [marker for marker in markers if marker.family == "random"]
    sentences = [
        _sentence(f"{kind} ({WORDS[kind]}) against the own base", random, kind, "gain") for kind in KINDS[1:-1]
    ]
    sentences += [
        _sentence(f"{kind} against {kind.replace('A', 'B')} of the same half", random, kind, "over_control")
        for kind in ("AnB", "AnB+")
    ]
    natman = [marker for marker in markers if marker.family == "natman"]
    untrained = [marker for marker in markers if marker.kind == "R"]
    sentences.append(_sentence("Between man-made and natural, AnB against the own base", natman, "AnB", "gain"))
    sentences.append(_sentence(f"R ({WORDS['R']}) against the own base", untrained, "R", "gain"))
    return [sentence for sentence in sentences if sentence]


def _sentence(subject: str, markers: Sequence[Marker], kind: str, what: str) -> str:
    cells = {n: cell for (each, n), cell in cells_of(markers, what).items() if each == kind}
    if not cells:
        return ""
    pooled = pooled_sd(cells_of(markers, what).values())
    places = by_place([marker for marker in markers if marker.kind == kind], what)
    mean = math.fsum(places.values()) / len(places)
    text = f"{subject}: {points(mean)} points on average over n = {_list(sorted(cells))}"
    if 1 < len(places) <= 4:
        text += " (" + ", ".join(f"{_place(place)} {points(value)}" for place, value in sorted(places.items())) + ")"
    elif len(places) > 4:
        low, high = min(places.values()), max(places.values())
        text += f" ({len(places)} halves and seeds, from {points(low)} to {points(high)})"
    verdicts = {n: verdict(cell, pooled) for n, cell in cells.items()}
    clear = [f"n = {n} ({points(cells[n].mean)})" for n, each in verdicts.items() if each in ("above", "below")]
    if clear:
        text += "; beyond the spread at " + ", ".join(clear)
    for each, words in (
        ("within", "within the spread"),
        ("unknown", "single networks without a known spread"),
    ):
        numbers = [n for n in verdicts if verdicts[n] == each]
        if numbers:
            all_n = "every n" if len(numbers) == len(cells) else f"n = {_list(numbers)}"
            text += f"; {words} at {all_n}"
    return text.replace("n = ", "n\N{NO-BREAK SPACE}=\N{NO-BREAK SPACE}") + "."


def _place(place: tuple[str, str, int, str]) -> str:
    _, split, seed, target = place
    where = f"target {_GROUPS[target]}" if split == "natman" else f"{split} {target}".strip()
    return where + (f" seed {seed}" if seed else "")


def _list(numbers: Sequence[int]) -> str:
    """1 to 7 for every number between, else 1, 3, 5, 7."""
    if len(numbers) > 2 and numbers[-1] - numbers[0] == len(numbers) - 1:
        return f"{numbers[0]} to {numbers[-1]}"
    return ", ".join(str(number) for number in numbers)


def caveats(markers: Sequence[Marker], metric: str) -> list[str]:
    """What the numbers cannot tell, as far as it follows from which networks there are."""
    seeds = len({marker.seed for marker in markers})
    comparisons = sum(len(cells_of(markers, what)) for what in ("gain", "over_control"))
    sentences = [
        "All networks of a half are compared with the same base and tested on the same images: that base's own luck "
        "moves all of their differences together, and the \N{PLUS-MINUS SIGN} does not show it."
    ]
    if seeds == 1:
        sentences.append(
            "There is one seed: how much another start and another order of the images would change any of these "
            "numbers is unknown. In the paper's experiment two networks on the same data differed by 0.3 to 0.6 points."
        )
    if any(marker.treatment.finetuned for marker in markers):
        sentences.append(
            "A fine-tuned network (+) has been trained twice, once as its base: a gain of BnB+ is what longer training "
            "gives, and only what AnB+ has beyond BnB+ can come from having seen the other half."
        )
    if comparisons > 10:
        sentences.append(
            f"There are {comparisons} comparisons: by chance alone about one in twenty would look beyond the spread."
        )
    if metric == "top10":
        sentences.append(
            "Accuracy is the paper's: the mean of the ten highest test accuracies, picked on the test set, "
            "so slightly too high."
        )
    return sentences
