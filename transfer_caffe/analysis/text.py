"""An analysis as plain text for people, and as CSV and Markdown: differences in percentage points."""

from __future__ import annotations

import csv
import io
import textwrap
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from transfer_caffe.analysis.costs import Costs
from transfer_caffe.analysis.design import SUPPORTED, Finding, half_differences, natural, ranges
from transfer_caffe.analysis.effects import RANGES, Effect, Published, groups_of, published_number
from transfer_caffe.results.markers import FAMILIES, METRICS, Marker

if TYPE_CHECKING:
    from transfer_caffe.analysis import Analysis

WIDTH = 110
CAUSES = {
    "lost co-adaptation": ("BnB - base", "own base"),
    "specificity": ("AnB - BnB", "same target"),
    "both, same networks": ("AnB - base", "targets with BnB"),
    "all frozen transfer": ("AnB - base", "own base"),
}
GAINS = {
    "selffer, all learn": ("BnB+ - base", "own base"),
    "transfer, all learn": ("AnB+ - base", "own base"),
    "from the other half": ("AnB+ - BnB+", "same target"),
    "random, frozen": ("R - base", "own base"),
}
BESIDE_TABLE_1 = {
    "AnB+_own_base": ("AnB+ - base", "own base"),
    "BnB+_own_base": ("BnB+ - base", "own base"),
    "AnB+_BnB+_own_bases": ("AnB+ - BnB+", "own bases"),
    "AnB+_BnB+_same_target": ("AnB+ - BnB+", "same target"),
}
"""The columns of table1.csv beside the published numbers: comparison and pairing."""
METRIC_WORDS = {
    "final": "after the last iteration",
    "top10": "the mean of the ten highest tests of a training, as the paper plots: picked on the test set, so slightly "
    "too high; where there are few tests it is the mean of much of the training, and says little",
}


def report_text(analyses: Sequence[Analysis]) -> str:
    """The report of all recipes, ending with how to read the intervals."""
    parts = [part for analysis in analyses if analysis.markers for part in _recipe(analysis)]
    for analysis in analyses:
        if not analysis.markers:
            parts.append(f"Recipe {analysis.recipe}: no network has {METRICS[analysis.metric]}.")
    intervals = sum(effect.low is not None for analysis in analyses for effect in analysis.effects)
    parts.append(
        _wrapped(
            "How to read it: differences in percentage points, then the 95% interval, then independent splits / "
            "differences. A network is compared with one of its own target half, split and seed. Networks of a split "
            "share classes and bases, so that the interval counts splits (Student's t over the means of the splits), "
            "or where there is one split its seeds (marked s: about other trainings on the same classes alone). [none] "
            "is a single split and seed."
            + (f" There are {intervals} intervals: about one in twenty misses." if intervals else "")
        )
    )
    return "\n\n".join(parts) + "\n"


def _recipe(analysis: Analysis) -> list[str]:
    name = f"Recipe {analysis.recipe}: " if analysis.recipe else ""
    head = f"{name}{len(analysis.markers)} networks with {METRICS[analysis.metric]} ({METRIC_WORDS[analysis.metric]})."
    reduced = sum(row.images_per_class is not None for row in analysis.rows)
    without = len(analysis.rows) - len(analysis.markers) - reduced
    head += f" Without one: {without}." if without else ""
    head += f" On reduced data, another experiment: {reduced}." if reduced else ""
    parts = [_wrapped(head), _base_table(analysis.markers)]
    for (_, family), _members in groups_of(analysis.markers).items():
        effects = [effect for effect in analysis.effects if effect.family == family]
        for title, columns in (("causes of the loss", CAUSES), ("gains, and random features", GAINS)):
            table = _effect_table(effects, columns)
            if table:
                parts.append(f"{FAMILIES[family]}: {title}\n{table}")
    if rows := table1_rows([analysis]):
        parts.append("The paper's Table 1: AnB+, as published (pooled means)\n" + _table1_text(rows))
    parts += [_findings(analysis), _wrapped(cost_words(analysis.costs))]
    return [part for part in parts if part]


def _base_table(markers: Sequence[Marker]) -> str:
    bases: dict[str, dict[str, list[float]]] = {}
    for marker in markers:
        if marker.kind == "base":
            bases.setdefault(marker.split, {}).setdefault(marker.treatment.target, []).append(marker.accuracy)
    if not bases:
        return "No base network has an accuracy: nothing can be compared with one."
    harder, lines = half_differences(markers), [["split", "A", "B", "B - A", "networks"]]
    for split, halves in sorted(bases.items(), key=lambda item: (item[0][0] != "r", natural(item[0]))):
        mean = {half: sum(values) / len(values) for half, values in halves.items()}
        if "" in mean:
            lines.append([split, f"{mean['']:.4f}", "", "", f"{len(halves[''])}   error {100 * (1 - mean['']):.1f}%"])
            continue
        cells = [f"{mean[half]:.4f}" if half in mean else "-" for half in "AB"]
        pairs = harder.get(split)
        gap = _points(sum(pairs) / len(pairs)) if pairs else ""
        lines.append([split, *cells, gap, str(sum(map(len, halves.values())))])
    random = [marker.accuracy for marker in markers if marker.kind == "base" and marker.family == "random"]
    note = f"\nMean of the {len(random)} bases of random halves: {sum(random) / len(random):.4f}" if random else ""
    return "Accuracy of the bases\n" + _aligned(lines) + note


def effect_columns(effects: Sequence[Effect], titles: dict[str, tuple[str, str]]) -> dict[str, dict[str, Effect]]:
    """For each title its effects by n, those there are; of two columns about the same networks only the first."""
    columns = {
        title: {e.n: e for e in effects if (e.comparison, e.pairing) == wanted} for title, wanted in titles.items()
    }
    both, everything = (
        {n: e.networks for n, e in columns.get(title, {}).items()}
        for title in ("both, same networks", "all frozen transfer")
    )
    if both and both == everything:
        del columns["all frozen transfer"]
    return {title: column for title, column in columns.items() if column}


def lines_of(columns: dict[str, dict[str, Effect]]) -> list[str]:
    """Every n of a table of effects in its order, ranges of n last."""
    return sorted({n for column in columns.values() for n in column}, key=lambda n: ("-" in n, n))


def _effect_table(effects: Sequence[Effect], titles: dict[str, tuple[str, str]]) -> str:
    columns = effect_columns(effects, titles)
    if not columns:
        return ""
    lines = [["n", *columns], ["", *(titles[title][0] for title in columns)]]
    for n in lines_of(columns):
        lines.append([n, *(_cell(column.get(n)) for column in columns.values())])
    sure = {title: [int(n) for n, e in column.items() if n.isdigit() and e.sure] for title, column in columns.items()}
    told = [f"{title} at n = {ranges(numbers)}" for title, numbers in sure.items() if numbers]
    return _aligned(lines) + (f"\nInterval without zero: {'; '.join(told)}" if told else "")


def _cell(effect: Effect | None) -> str:
    return "-" if effect is None else f"{_points(effect.estimate):>6} {_interval(effect):>14} {_counts(effect)}"


def _interval(effect: Effect) -> str:
    if effect.low is None or effect.high is None:
        return "[none]"
    return f"[{_points(effect.low)}, {_points(effect.high)}]"


def _counts(effect: Effect) -> str:
    return f"{effect.clusters}{'s' if effect.unit == 'seed' else ''}/{effect.networks}"


def table1_rows(analyses: Iterable[Analysis]) -> list[dict[str, Any]]:
    """One row a recipe and range of layers: the numbers as fractions, the paired ones as `Effect`; None: not there."""
    rows = []
    for analysis in analyses:
        members = groups_of(analysis.markers).get((analysis.recipe, "random"), [])
        paired = {(e.comparison, e.pairing, e.n): e for e in analysis.effects if e.family == "random"}
        for first, last in RANGES:
            base, selffer = (published_number(members, other, first, last) for other in ("base", "BnB+"))
            if base is not None:
                n = f"{first}-{last}"
                rows.append(
                    {"recipe": analysis.recipe, "layers": n, "base": base, "selffer": selffer}
                    | {name: paired.get((*wanted, n)) for name, wanted in BESIDE_TABLE_1.items()}
                )
    return rows


def _table1_text(rows: Sequence[dict[str, Any]]) -> str:
    pooled = [["layers", "over baseB", "by easier halves", "remains", "over BnB+", "by easier halves", "remains"]]
    titles, pairings = zip(*BESIDE_TABLE_1.values(), strict=True)
    paired = [["layers", *titles], ["", *pairings]]
    for row in rows:
        numbers = [part for name in ("base", "selffer") for part in published_parts(row[name])]
        pooled.append([row["layers"], *(_points(each) or "-" for each in numbers)])
        paired.append([row["layers"], *(_cell(row[name]) for name in BESIDE_TABLE_1)])
    return f"{_aligned(pooled)}\n\nThe same layers, paired\n{_aligned(paired)}"


def published_parts(number: Published | None) -> tuple[float | None, float | None, float | None]:
    """The difference, how much of it comes from easier halves, and the rest."""
    if number is None or number.halves is None:
        return number and number.difference, None, None
    return number.difference, number.halves, number.difference - number.halves


def table1_csv(analyses: Iterable[Analysis]) -> str:
    """The paper's Table 1 and the paired numbers, points; "" where no table has AnB+ networks of random splits."""
    header = ["recipe", "layers"]
    header += [name + ending for name in ("over_baseB", "over_BnB+") for ending in ("", "_by_halves", "_remains")]
    header += [name + ending for name in BESIDE_TABLE_1 for ending in ("", "_low", "_high", "_clusters")]
    lines = []
    for row in table1_rows(analyses):
        numbers = [part for name in ("base", "selffer") for part in published_parts(row[name])]
        line = [row["recipe"], row["layers"], *(_digits(number) for number in numbers)]
        for name in BESIDE_TABLE_1:
            effect = row[name]
            line += ["", "", "", ""] if effect is None else [*_triple(effect), effect.clusters]
        lines.append(line)
    return _csv([header, *lines]) if lines else ""


def table1_md(analyses: Iterable[Analysis]) -> str:
    """As `table1_csv`, for people: the boost in percent with the paper's one digit, the paired ones beside."""
    rows = table1_rows(analyses)
    if not rows:
        return ""
    columns = ["layers", "over baseB, as published", "over BnB+, as published"]
    columns += [f"{comparison} ({pairing})" for comparison, pairing in BESIDE_TABLE_1.values()]
    lines = ["# Boost of AnB+, percentage points (the paper's Table 1)", ""]
    lines += ["| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
    several = len({row["recipe"] for row in rows}) > 1
    for row in rows:
        cells = [(row["recipe"] + " " if several else "") + row["layers"]]
        for name in ("base", "selffer"):
            difference, halves, _ = published_parts(row[name])
            cells.append("-" if difference is None else f"{100 * difference:.1f}")
            if halves is not None:
                cells[-1] += f" ({100 * halves + 0.0:.1f} of it: easier halves)"
        for name in BESIDE_TABLE_1:
            effect = row[name]
            cells.append("no such pair" if effect is None else f"{_points(effect.estimate)} {_interval(effect)}")
        lines.append("| " + " | ".join(cells) + " |")
    lines += ["", "In brackets: 95% intervals over splits, or over seeds where there is one split; none: one of both."]
    return "\n".join(lines) + "\n"


def effects_csv(analyses: Iterable[Analysis]) -> str:
    """All effects, points; empty where there is no interval."""
    header = ["recipe", "family", "comparison", "n", "estimate", "low", "high", "clusters", "cluster_unit", "networks"]
    lines: list[list[Any]] = [[*header, "pairing", "mean_of_networks", "error_if_independent"]]
    for analysis in analyses:
        for e in analysis.effects:
            numbers = [*_triple(e), e.clusters, e.unit, e.networks, e.pairing, _digits(e.mean), _digits(e.naive_error)]
            lines.append([e.recipe, e.family, e.comparison, e.n, *numbers])
    return _csv(lines)


def findings_csv(analyses: Iterable[Analysis]) -> str:
    """All findings, one a line."""
    lines = [["recipe", "family", "comparison", "pairing", "status", "why", "remedy"]]
    lines += [[str(each) for each in vars(finding).values()] for analysis in analyses for finding in analysis.findings]
    return _csv(lines)


def grouped(findings: Iterable[Finding]) -> list[tuple[list[str], Finding]]:
    """Findings that differ in nothing but their comparison together, with the names of their comparisons."""
    together: dict[tuple[str, str, str, str], tuple[list[str], Finding]] = {}
    for each in findings:
        name = each.comparison + (f" ({each.pairing})" if each.pairing else "")
        together.setdefault((each.family, each.status, each.why, each.remedy), ([], each))[0].append(name)
    return list(together.values())


def finding_words(names: Sequence[str], finding: Finding) -> str:
    """What a finding, and those like it, say: the comparisons, why, and what would settle it."""
    text = f"{finding.family}: {', '.join(names)}: {finding.why}."
    if finding.remedy and finding.status != SUPPORTED:
        remedy = textwrap.shorten(finding.remedy, 400, placeholder=" ... (findings.csv has all)")
        text += f" To settle it, train {remedy}."
    return text


def _findings(analysis: Analysis) -> str:
    lines = ["What these networks can tell"]
    for names, finding in grouped(analysis.findings):
        text = f"{finding.status.upper()}  {finding_words(names, finding)}"
        lines.append(textwrap.fill(text, WIDTH, initial_indent="- ", subsequent_indent="  "))
    return "\n".join(lines) if analysis.findings else ""


def cost_words(costs: Costs) -> str:
    """Seconds an iteration and days, as far as the table has times; "" where it has none."""
    text = []
    if costs.full is not None or costs.frozen:
        frozen = ", ".join(f"{seconds:.3g} (n = {n})" for n, seconds in costs.frozen.items())
        full = f"{costs.full:.3g} where all layers learn" if costs.full is not None else ""
        text.append(f"Seconds an iteration: {'; '.join(filter(None, [full, frozen and f'frozen {frozen}']))}.")
    if costs.known:
        text.append(f"The {costs.known} networks with times took {_duration(costs.known_days)} together")
        text[-1] += f", one that learns everywhere {_duration(costs.full_days)}" if costs.full_days else ""
        if costs.all_days is not None and costs.known < costs.networks:
            text[-1] += f"; all {costs.networks} would take {_duration(costs.all_days)}"
        text[-1] += "."
    return " ".join(text)


def _duration(days: float) -> str:
    seconds = days * 86400
    for unit, size in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:,.1f} {unit}"
    return f"{seconds:.1f} seconds"


def _triple(effect: Effect) -> list[str]:
    return [_digits(effect.estimate), _digits(effect.low), _digits(effect.high)]


def _digits(fraction: float | None) -> str:
    return "" if fraction is None else f"{round(100 * fraction, 4) + 0.0:.4f}"


def _points(fraction: float | None) -> str:
    return "" if fraction is None else f"{round(100 * fraction, 2) + 0.0:+.2f}"


def _csv(lines: Iterable[Sequence[Any]]) -> str:
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows(lines)
    return out.getvalue()


def _aligned(lines: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    padded = ("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in lines)
    return "\n".join(line.rstrip() for line in padded)


def _wrapped(text: str) -> str:
    return textwrap.fill(text, WIDTH) if text else ""
