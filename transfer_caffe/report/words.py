"""What an analysis says, in sentences and small tables: for the report.

Everything is a difference between networks that share recipe, split, seed and target half, with the interval that
`transfer_caffe.analysis` gives it; what these differences cannot tell is said next to them.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from transfer_caffe.analysis import Analysis, Effect, analyse
from transfer_caffe.analysis.design import ranges
from transfer_caffe.analysis.effects import groups_of
from transfer_caffe.analysis.text import BESIDE_TABLE_1, CAUSES, GAINS, effect_columns, lines_of, table1_rows
from transfer_caffe.results.markers import FAMILIES, Cell, Marker
from transfer_caffe.results.table import load

GROUPS = {"A": "man-made", "B": "natural"}
MINUS, NO_BREAK = "\N{MINUS SIGN}", "\N{NO-BREAK SPACE}"
_SUBJECTS = (
    (("BnB - base", "own base"), "lost co-adaptation", "one's own first n layers, copied and frozen, against the base"),
    (("AnB - BnB", "same target"), "specificity", "frozen layers of the other half against frozen layers of one's own"),
    (("AnB - base", "own base"), "frozen transfer", "frozen layers of the other half against the base"),
    (("BnB+ - base", "own base"), "trained twice", "one's own layers, copied and trained on, against the base"),
    (("AnB+ - base", "own base"), "fine-tuned transfer", "layers of the other half, trained on, against the base"),
    (("AnB+ - BnB+", "same target"), "boost by the other half", "layers of the other half or one's own, trained on"),
    (("AnB+ - BnB+", "own bases"), "boost by the other half", "gains over the own bases, on whatever half"),
    (("R - base", "own base"), "random features", "frozen, untrained layers against the base"),
)  # fmt: skip


@dataclass(frozen=True)
class Estimate:
    """One cell of a table of effects: points, the interval ("" for none), what both rest on, the paper's beside it.

    ``verdict`` is above or below where the interval leaves zero out, within where it does not, unknown for none.
    """

    mean: str
    interval: str
    counts: str
    verdict: str
    paper: str


@dataclass(frozen=True)
class Effects:
    """A table of effects: (title, comparison) of each column; one row an n, None where there are no networks."""

    title: str
    columns: list[tuple[str, str]]
    rows: list[tuple[str, list[Estimate | None]]]


def points(difference: float) -> str:
    """A difference of accuracies in percentage points, with its sign: +1.23, −0.40, 0.00."""
    text = f"{100 * difference:+.2f}"
    return "0.00" if float(text) == 0 else text.replace("-", MINUS)


def interval_words(effect: Effect) -> str:
    """`−2.13 to −1.60`; "" where there is no interval."""
    return "" if effect.low is None or effect.high is None else f"{points(effect.low)} to {points(effect.high)}"


def verdict(effect: Effect) -> str:
    """above, below, within or unknown: where the interval lies, seen from zero."""
    if effect.low is None:
        return "unknown"
    if not effect.sure:
        return "within"
    return "above" if effect.estimate > 0 else "below"


def effects_tables(analysis: Analysis, paper: bool, several: bool = False) -> list[Effects]:
    """Causes and gains of each family of splits; the paper's own estimates beside, unless these are the ``paper``'s.

    Where there are ``several`` recipes, the titles name this one.
    """
    name = f"{analysis.recipe}: " if several else ""
    tables = []
    for _, family in groups_of(analysis.markers):
        effects = [effect for effect in analysis.effects if effect.family == family]
        for what, titles in (("causes of the loss", CAUSES), ("gains, and random features", GAINS)):
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
    """The paper's estimates; over a range of n those of the n alone that are among ``lines``, as one's own are."""
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
    """The accuracy of the bases of every split and half."""
    halves: dict[tuple[str, str], list[float]] = {}
    for marker in markers:
        if marker.kind == "base":
            halves.setdefault((marker.split, marker.treatment.target), []).append(marker.accuracy)
    if not halves:
        return "No base network has a result: nothing can be compared yet."
    parts: dict[str, list[str]] = {}
    for (split, target), values in sorted(halves.items(), key=lambda each: _order(*each[0])):
        cell = Cell(tuple(values))
        name = GROUPS[target] if split == "natman" else f"half {target}" if target else ""
        spread = f" (mean of {cell.count} seeds, standard deviation {100 * cell.sd:.1f})" if cell.sd is not None else ""
        where = {"whole": "all classes", "natman": "man-made/natural split"}.get(split, split)
        parts.setdefault(where, []).append(f"{name} {100 * cell.mean:.1f}%{spread}".strip())
    listed = "; ".join(f"{where}: {', '.join(each)}" for where, each in parts.items())
    return f"Accuracy of the base networks: {listed}."


def _order(split: str, target: str) -> tuple[int, int, str, str]:
    return ("natman", "whole").index(split) + 1 if split in ("natman", "whole") else 0, len(split), split, target


def effect_sentences(analysis: Analysis, several: bool = False) -> list[tuple[str, str]]:
    """(what, sentence) for each comparison there is, family by family: its mean over n, and at which n it is sure.

    Where there are ``several`` recipes, each names this one.
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
                continue  # the second best, where the first is there
            if found:
                where = "" if family == "random" else f", {FAMILIES[family].lower()}"
                sentences.append((f"{what[0].upper()}{what[1:]}{where}{name}", _sentence(wanted[0], words, found)))
    return sentences + [(f"As the paper's Table 1 has it{name}", each) for each in _published_sentence(analysis)]


def _published_sentence(analysis: Analysis) -> list[str]:
    """How much of the pooled difference between AnB+ and BnB+ is a difference between the halves they were tried on."""
    for row in table1_rows([analysis]):
        number = row["selffer"]
        if number is not None and number.halves is not None:
            rest = number.difference - number.halves
            return [
                f"pooled over layers {number.first} to {number.last}, AnB+ is {points(number.difference)} points above "
                f"BnB+; {points(number.halves)} of it come from the halves that AnB+ was tried on being easier, by "
                f"their own bases; {points(rest)} remain."
            ]
    return []


def _sentence(comparison: str, words: str, effects: Sequence[Effect]) -> str:
    """One comparison at every n of one family."""
    single = [effect for effect in effects if "-" not in effect.n]
    over = max((effect for effect in effects if "-" in effect.n), key=lambda effect: effect.networks)
    text = f"{words} ({comparison.replace(' - ', f' {MINUS} ')}): {points(over.estimate)} points on average over n = "
    text += ranges([int(effect.n) for effect in single]).replace("-", "\N{EN DASH}").replace(",", ", ")
    text += f" (95%: {interval_words(over)}; {_basis(over)})" if over.low is not None else f" ({_basis(over)})"
    sure = [effect for effect in single if effect.sure]
    if sure:
        text += "; clearly not zero at " + ", ".join(f"n = {e.n} ({points(e.estimate)})" for e in sure)
    for title, numbers in (
        ("not to be told from zero", [int(e.n) for e in single if verdict(e) == "within"]),
        ("without an interval", [int(e.n) for e in single if verdict(e) == "unknown"]),
    ):
        if len(numbers) == len(single) and title.startswith("without"):
            text += "; " + ", ".join(f"n = {e.n}: {points(e.estimate)}" for e in single)
        elif numbers:
            text += f"; {title} at n = {ranges(numbers)}".replace("-", "\N{EN DASH}").replace(",", ", ")
    return text.replace("n = ", f"n{NO_BREAK}={NO_BREAK}") + "."


def _basis(effect: Effect) -> str:
    """What an effect rests on: `4 splits, 28 differences`; without an interval, why it has none."""
    differences = f"{effect.networks} difference{'s' * (effect.networks != 1)}"
    if effect.low is None:
        return f"{differences}, one split and one seed: no interval"
    return f"{effect.clusters} {effect.unit}s{' of one split' * (effect.unit == 'seed')}, {differences}"


def caveats(analyses: Iterable[Analysis]) -> list[str]:
    """How the intervals are made, and what no interval holds, as far as it follows from which networks there are."""
    analyses = list(analyses)
    markers = [marker for analysis in analyses for marker in analysis.markers]
    intervals = sum(effect.low is not None for analysis in analyses for effect in analysis.effects)
    sentences = []
    if intervals:
        sentences.append(
            "Networks of one split share classes and bases and so are no independent observations: an interval counts "
            "splits, or where there is one split its seeds, and is then about other trainings on these classes alone."
        )
    if any(effect.low is None and effect.pairing != "as published" for each in analyses for effect in each.effects):
        sentences.append(
            "A number without an interval is of a single split and seed. That base's own luck moves all differences to "
            "it together. In the paper's experiment two networks on the same data differed by 0.3 to 0.6 points."
        )
    if any(marker.treatment.finetuned for marker in markers):
        sentences.append(
            "A fine-tuned network (+) has been trained twice, once as its base: a gain of BnB+ is what longer training "
            "gives, and only what AnB+ has beyond BnB+ can come from having seen the other half."
        )
    if intervals > 10:
        sentences.append(f"There are {intervals} intervals: about one in twenty misses the truth.")
    if any(analysis.metric == "top10" for analysis in analyses):
        sentences.append(
            "Accuracy is the paper's: the mean of the ten highest test accuracies, picked on the test set, "
            "so slightly too high where there are hundreds, as the paper's 450. Of a network with few tests "
            "it is the mean of much of the training, and says little about its end."
        )
    return sentences


@dataclass(frozen=True)
class Table1:
    """The paper's Table 1: headings, and rows of cells, one a range of layers."""

    columns: list[str]
    rows: list[list[str]]


def table1(analyses: Sequence[Analysis]) -> Table1 | None:
    """Boost of AnB+ as published, what of it comes from easier halves, and paired; None without AnB+ networks."""
    rows = table1_rows(analyses)
    if not rows:
        return None
    columns = ["layers", "over baseB, as published (of it by easier halves)", "over BnB+, as published (of it)"]
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
            cells.append("no such pair" if effect is None else points(effect.estimate))
            if effect is not None and effect.low is not None:
                cells[-1] += f" ({interval_words(effect)})"
        lines.append(cells)
    return Table1(columns, lines)
