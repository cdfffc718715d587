"""The sentences and small tables of the report, from an analysis.

All effects are paired differences between networks of the same recipe, split, seed and target half, with the confidence
intervals of `transfer_caffe.analysis`. The report states the limitations of these differences next to them.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from transfer_caffe.analysis import Analysis, Effect, analyse
from transfer_caffe.analysis.design import ranges
from transfer_caffe.analysis.effects import groups_of
from transfer_caffe.analysis.text import (
    BESIDE_TABLE_1,
    CAUSES,
    CAUSES_TITLE,
    GAINS,
    GAINS_TITLE,
    effect_columns,
    lines_of,
    table1_rows,
)
from transfer_caffe.results.markers import FAMILIES, Cell, Marker
from transfer_caffe.results.table import load

GROUPS = {"A": "man-made", "B": "natural"}
MINUS, NO_BREAK = "\N{MINUS SIGN}", "\N{NO-BREAK SPACE}"
_SUBJECTS = (
    (("BnB - base", "own base"), "fragile co-adaptation",
     "frozen layers copied from the same half, compared with the base network"),
    (("AnB - BnB", "same target"), "representation specificity",
     "frozen layers copied from the other half, compared with frozen layers copied from the same half"),
    (("AnB - base", "own base"), "frozen transfer",
     "frozen layers copied from the other half, compared with the base network"),
    (("BnB+ - base", "own base"), "fine-tuned selffer",
     "fine-tuned layers copied from the same half, compared with the base network"),
    (("AnB+ - base", "own base"), "fine-tuned transfer",
     "fine-tuned layers copied from the other half, compared with the base network"),
    (("AnB+ - BnB+", "same target"), "boost from transfer",
     "fine-tuned layers copied from the other half, compared with fine-tuned layers copied from the same half"),
    (("AnB+ - BnB+", "own bases"), "boost from transfer",
     "gain of fine-tuned transfer networks over their own bases, compared with the gain of fine-tuned selffer networks "
     "over theirs, possibly on the other half"),
    (("R - base", "own base"), "random weights", "frozen layers with random weights, compared with the base network"),
    (("X - base", "own base"), "existing weights, frozen",
     "frozen stages copied from existing weights, compared with training from scratch"),
    (("X+ - base", "own base"), "existing weights, fine-tuned",
     "fine-tuned stages copied from existing weights, compared with training from scratch"),
)  # fmt: skip


@dataclass(frozen=True)
class Estimate:
    """One cell of a table of effects.

    ``mean`` is the estimate in points, ``interval`` its confidence interval ("" if there is none), ``counts`` the
    numbers of clusters and of paired differences, and ``paper`` the paper's estimate of the same effect. ``verdict`` is
    "above" or "below" if the interval excludes zero, "within" if it includes zero, and "unknown" without an interval.
    """

    mean: str
    interval: str
    counts: str
    verdict: str
    paper: str


@dataclass(frozen=True)
class Effects:
    """A table of effects: (title, comparison) of each column, and one row for each n, with None for missing effects."""

    title: str
    columns: list[tuple[str, str]]
    rows: list[tuple[str, list[Estimate | None]]]


def points(difference: float) -> str:
    """Return a difference of accuracies in percentage points, with its sign: +1.23, −0.40, 0.00."""
    text = f"{100 * difference:+.2f}"
    return "0.00" if float(text) == 0 else text.replace("-", MINUS)


def interval_words(effect: Effect) -> str:
    """Return the limits of the confidence interval, `−2.13 to −1.60`, or "" if there is none."""
    return "" if effect.low is None or effect.high is None else f"{points(effect.low)} to {points(effect.high)}"


def verdict(effect: Effect) -> str:
    """Return the position of the interval relative to zero: above, below, within (includes zero) or unknown."""
    if effect.low is None or effect.low == effect.high:  # one cluster, or the same difference in all
        return "unknown"
    if not effect.sure:
        return "within"
    return "above" if effect.estimate > 0 else "below"


def effects_tables(analysis: Analysis, paper: bool, several: bool = False) -> list[Effects]:
    """Return the tables of the causes and of the gains for each family of splits.

    They include the paper's estimates, unless these networks are the ``paper``'s. If there are ``several`` recipes, the
    titles name this one.
    """
    name = f"{analysis.recipe}: " if several else ""
    tables = []
    for _, family in groups_of(analysis.markers):
        effects = [effect for effect in analysis.effects if effect.family == family]
        for what, titles in ((CAUSES_TITLE, CAUSES), (GAINS_TITLE, GAINS)):
            columns = effect_columns(effects, titles)
            theirs = [{} if paper else _papers(analysis.metric, tuple(column)) for column in columns.values()]
            cells = list(zip(columns.values(), theirs, strict=True))
            rows = [(n, [_estimate(column.get(n), their) for column, their in cells]) for n in lines_of(columns)]
            if rows:
                heads = [(title, titles[title][0].replace(" - ", f" {MINUS} ")) for title in columns]
                tables.append(Effects(f"{name}{FAMILIES[family]}: {what}", heads, rows))
    return tables


@functools.cache
def _papers(metric: str, lines: tuple[str, ...]) -> dict[tuple[str, str, str, str], float]:
    """Return the paper's estimates, only for the n among ``lines`` so that the means over ranges are comparable."""
    rows = [row for row in load("paper") if not row.n or str(row.n) in lines]
    return {
        (effect.family, effect.comparison, effect.pairing, effect.n): effect.estimate
        for analysis in analyse(rows, metric)
        for effect in analysis.effects
    }


def _estimate(effect: Effect | None, paper: dict[tuple[str, str, str, str], float]) -> Estimate | None:
    if effect is None:
        return None
    theirs = paper.get((effect.family, effect.comparison, effect.pairing, effect.n))
    counts = f"{effect.clusters} {effect.unit}s, {effect.networks}" if effect.unit else f"{effect.networks}"
    return Estimate(
        points(effect.estimate), interval_words(effect), counts, verdict(effect),
        "" if theirs is None else points(theirs),
    )  # fmt: skip


def base_sentence(markers: Sequence[Marker]) -> str:
    """Return a sentence with the accuracy of the base networks of every split and half."""
    halves: dict[tuple[str, str], list[float]] = {}
    for marker in markers:
        if marker.kind == "base":
            halves.setdefault((marker.split, marker.treatment.target), []).append(marker.accuracy)
    if not halves:
        return "No base network has a result, so no comparison is possible yet."
    parts: dict[str, list[str]] = {}
    for (split, target), values in sorted(halves.items(), key=lambda each: _order(*each[0])):
        cell = Cell(tuple(values))
        name = GROUPS[target] if split == "natman" else f"half {target}" if target else ""
        spread = ""
        if cell.sd is not None:
            spread = f" (mean of {cell.count} seeds, standard deviation {100 * cell.sd:.1f} points)"
        where = {"whole": "all classes", "natman": "man-made/natural split"}.get(split, split)
        parts.setdefault(where, []).append(f"{name} {100 * cell.mean:.1f}%{spread}".strip())
    listed = "; ".join(f"{where}: {', '.join(each)}" for where, each in parts.items())
    return f"Accuracy of the base networks: {listed}."


def _order(split: str, target: str) -> tuple[int, int, str, str]:
    return ("natman", "whole").index(split) + 1 if split in ("natman", "whole") else 0, len(split), split, target


def effect_sentences(analysis: Analysis, several: bool = False) -> list[tuple[str, str]]:
    """Return (heading, sentence) for each available comparison, by family of splits.

    A sentence gives the mean over n, and the n at which the interval excludes zero. If there are ``several`` recipes,
    each heading names this one.
    """
    name = f" ({analysis.recipe})" if several else ""
    sentences = []
    for _, family in groups_of(analysis.markers):
        members = [effect for effect in analysis.effects if effect.family == family]
        for wanted, what, words in _SUBJECTS:
            found = [effect for effect in members if (effect.comparison, effect.pairing) == wanted]
            if wanted[1] == "own bases" and any(
                e.pairing == "same target" and e.comparison == wanted[0] for e in members
            ):
                continue  # a fallback that is not needed if there are pairs of the same target
            if found:
                where = "" if family == "random" else f", {FAMILIES[family].lower()}"
                sentences.append((f"{what[0].upper()}{what[1:]}{where}{name}", _sentence(wanted[0], words, found)))
    return sentences + [(f"Pooled as in the paper's Table 1{name}", each) for each in _published_sentence(analysis)]


def _published_sentence(analysis: Analysis) -> list[str]:
    """Return how much of the pooled difference between AnB+ and BnB+ is due to the difficulty of the target halves."""
    for row in table1_rows([analysis]):
        number = row["selffer"]
        if number is not None and number.halves is not None:
            rest = number.difference - number.halves
            return [
                f"pooled over layers {number.first} to {number.last}, AnB+ is {points(number.difference)} points above "
                f"BnB+; {points(number.halves)} points of this are due to AnB+ having been trained on easier target "
                f"halves, as measured by their base networks; the remainder is {points(rest)} points."
            ]
    return []


def _sentence(comparison: str, words: str, effects: Sequence[Effect]) -> str:
    """Return a sentence on one comparison at every n of one family of splits."""
    single = [effect for effect in effects if "-" not in effect.n]
    over = max((effect for effect in effects if "-" in effect.n), key=lambda effect: effect.networks)
    text = f"{words} ({comparison.replace(' - ', f' {MINUS} ')}): {points(over.estimate)} points on average over n = "
    text += ranges([int(effect.n) for effect in single]).replace("-", "\N{EN DASH}").replace(",", ", ")
    if over.low is not None:
        text += f" (95% confidence interval {interval_words(over)}; {_basis(over)})"
    else:
        text += f" ({_basis(over)})"
    sure = [effect for effect in single if effect.sure]
    if sure:
        text += "; interval excludes zero at " + ", ".join(f"n = {e.n} ({points(e.estimate)})" for e in sure)
    for title, numbers in (
        ("interval includes zero", [int(e.n) for e in single if verdict(e) == "within"]),
        ("without an interval", [int(e.n) for e in single if verdict(e) == "unknown"]),
    ):
        if len(numbers) == len(single) and title.startswith("without"):
            text += "; " + ", ".join(f"n = {e.n}: {points(e.estimate)}" for e in single)
        elif numbers:
            text += f"; {title} at n = {ranges(numbers)}".replace("-", "\N{EN DASH}").replace(",", ", ")
    return text.replace("n = ", f"n{NO_BREAK}={NO_BREAK}") + "."


def _basis(effect: Effect) -> str:
    """Return the numbers behind an effect, `4 splits, 28 paired differences`; without an interval, the reason."""
    differences = f"{effect.networks} paired difference{'s' * (effect.networks != 1)}"
    if effect.low is None:
        return f"{differences}, no interval because there is only one split and one seed"
    return f"{effect.clusters} {effect.unit}s{' of one split' * (effect.unit == 'seed')}, {differences}"


def caveats(analyses: Iterable[Analysis]) -> list[str]:
    """Return sentences on how the intervals are computed and on the limitations that apply to these networks."""
    analyses = list(analyses)
    markers = [marker for analysis in analyses for marker in analysis.markers]
    intervals = sum(effect.low is not None for analysis in analyses for effect in analysis.effects)
    sentences = []
    if intervals:
        sentences.append(
            "Networks of one split share classes and base networks and are not independent observations, so the "
            "intervals are Student's t over the means of the splits. If there is only one split, they are over its "
            "seeds and describe other training runs on the same classes only."
        )
    if any(effect.low is None and effect.pairing != "as published" for each in analyses for effect in each.effects):
        sentences.append(
            "A number without an interval is from a single split and seed. The random error of its base network shifts "
            "all differences from that base by the same amount. In the paper's experiment two networks on the same "
            "data differed by 0.3 to 0.6 points."
        )
    if any(marker.treatment.finetuned for marker in markers):
        sentences.append(
            "The copied layers of a fine-tuned network (+) have been trained twice, first in the base network. A gain "
            "of BnB+ over its base can therefore be an effect of longer training; only the difference between AnB+ and "
            "BnB+ can be attributed to training on the other half."
        )
    if intervals > 10:
        sentences.append(
            f"Of the {intervals} intervals, about one in twenty is expected not to contain the true difference."
        )
    if any(analysis.metric == "top10" for analysis in analyses):
        sentences.append(
            "Accuracy is the paper's metric, the mean of the ten highest test accuracies of a training run. Because "
            "these are selected on the test set, it is biased slightly upwards if there are hundreds of tests, such as "
            "the paper's 450. For a network with few tests it averages over much of the training run and says little "
            "about the final accuracy."
        )
    return sentences


@dataclass(frozen=True)
class Table1:
    """The paper's Table 1: the headings of the columns, and one row of cells for each range of layers."""

    columns: list[str]
    rows: list[list[str]]


def table1(analyses: Sequence[Analysis]) -> Table1 | None:
    """Return the boost of AnB+ as published, its part due to easier halves, and paired differences.

    Return None if there are no AnB+ networks.
    """
    rows = table1_rows(analyses)
    if not rows:
        return None
    columns = ["layers"]
    columns += [f"over {other}, as published (of which due to easier halves)" for other in ("baseB", "BnB+")]
    columns += [f"{each.replace(' - ', f' {MINUS} ')}, {pairing}" for each, pairing in BESIDE_TABLE_1.values()]
    several = len({row["recipe"] for row in rows}) > 1
    lines = []
    for row in rows:
        cells = [(row["recipe"] + " " if several else "") + row["layers"].replace("-", "\N{EN DASH}")]
        for name in ("base", "selffer"):
            number = row[name]
            cells.append("\N{EN DASH}" if number is None else f"{100 * number.difference:.1f}")
            if number is not None and number.halves is not None:
                cells[-1] += f" ({points(number.halves)})"
        for name in BESIDE_TABLE_1:
            effect = row[name]
            cells.append("no pairs" if effect is None else points(effect.estimate))
            if effect is not None and effect.low is not None:
                cells[-1] += f" ({interval_words(effect)})"
        lines.append(cells)
    return Table1(columns, lines)
