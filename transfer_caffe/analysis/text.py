"""Write an analysis as plain text, CSV and Markdown, with differences in percentage points."""

from __future__ import annotations

import csv
import io
import textwrap
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from transfer_caffe.analysis.answer import answers
from transfer_caffe.analysis.costs import Costs
from transfer_caffe.analysis.design import SUPPORTED, Finding, half_differences, natural, ranges
from transfer_caffe.analysis.effects import Effect, Published, groups_of, published_number, ranges_of
from transfer_caffe.results.markers import FAMILIES, METRICS, Marker

if TYPE_CHECKING:
    from transfer_caffe.analysis import Analysis

WIDTH = 110
CAUSES = {
    "fragile co-adaptation": ("BnB - base", "own base"),
    "representation specificity": ("AnB - BnB", "same target"),
    "both causes, same networks": ("AnB - base", "targets with BnB"),
    "all frozen transfer": ("AnB - base", "own base"),
}
GAINS = {
    "selffer, fine-tuned": ("BnB+ - base", "own base"),
    "transfer, fine-tuned": ("AnB+ - base", "own base"),
    "transfer minus selffer": ("AnB+ - BnB+", "same target"),
    "random weights, frozen": ("R - base", "own base"),
    "existing weights, frozen": ("X - base", "own base"),
    "existing weights, fine-tuned": ("X+ - base", "own base"),
}
CAUSES_TITLE = "causes of the drop in accuracy"
GAINS_TITLE = "gains from fine-tuning, and random weights"
BESIDE_TABLE_1 = {
    "AnB+_own_base": ("AnB+ - base", "own base"),
    "BnB+_own_base": ("BnB+ - base", "own base"),
    "AnB+_BnB+_own_bases": ("AnB+ - BnB+", "own bases"),
    "AnB+_BnB+_same_target": ("AnB+ - BnB+", "same target"),
}
"""The comparison and pairing of the columns of table1.csv that follow the published numbers."""
TABLE1_CSV = "recipe,layers,over_baseB,"
"""The beginning of each table1.csv."""
TABLE1_MD = "# Performance boost of AnB+ in percentage points (the paper's Table 1)\n"
"""The beginning of each table1.md."""
METRIC_WORDS = {
    "final": "after the last iteration",
    "top10": "the mean of the ten highest test accuracies of a training run, as plotted in the paper; because these "
    "are selected on the test set, it is biased slightly upwards; for a run with few tests it averages over much of "
    "the training run and is not meaningful",
}


def report_text(analyses: Sequence[Analysis]) -> str:
    """Return the text report of all recipes; its last paragraph explains how to read the intervals."""
    parts = [part for analysis in analyses if analysis.markers for part in _recipe(analysis)]
    for analysis in analyses:
        if not analysis.markers:
            parts.append(f"Recipe {analysis.recipe}: no network has {METRICS[analysis.metric]}.")
    intervals = sum(effect.low is not None for analysis in analyses for effect in analysis.effects)
    parts.append(
        _wrapped(
            "How to read the tables: mean difference in percentage points, 95% confidence interval, number of "
            "independent splits / number of paired differences. Each network is compared with a network of the same "
            "target half, split and seed. Networks of one split share classes and base networks and are not "
            "independent, so the interval is Student's t over the means of the splits. If there is only one split, the "
            "interval is over its seeds (marked s) and describes other training runs on the same classes only. [none] "
            "means that there is only one split and one seed."
            + (
                f" Of these {intervals} intervals, about one in twenty is expected not to contain the true difference."
                if intervals
                else ""
            )
        )
    )
    return "\n\n".join(parts) + "\n"


def _recipe(analysis: Analysis) -> list[str]:
    name = f"Recipe {analysis.recipe}: " if analysis.recipe else ""
    head = f"{name}{len(analysis.markers)} networks with {METRICS[analysis.metric]} ({METRIC_WORDS[analysis.metric]})."
    reduced = sum(row.images_per_class is not None for row in analysis.rows)
    without = len(analysis.rows) - len(analysis.markers) - reduced
    head += f" Networks without an accuracy: {without}." if without else ""
    head += f" Networks trained on reduced data, a separate experiment: {reduced}." if reduced else ""
    parts = [
        _wrapped(head),
        *map(_wrapped, answers(analysis.markers, analysis.rows, analysis.probes)),
        _base_table(analysis.markers),
    ]
    for (_, family), _members in groups_of(analysis.markers).items():
        effects = [effect for effect in analysis.effects if effect.family == family]
        for title, columns in ((CAUSES_TITLE, CAUSES), (GAINS_TITLE, GAINS)):
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
        return "No base network has an accuracy, so no network can be compared with its base."
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
    note = ""
    if random:
        note = f"\nMean of the {len(random)} base networks of random halves: {sum(random) / len(random):.4f}"
    return "Accuracy of the base networks\n" + _aligned(lines) + note


def effect_columns(effects: Sequence[Effect], titles: dict[str, tuple[str, str]]) -> dict[str, dict[str, Effect]]:
    """Return, for each title, the available effects by n; columns without effects are left out.

    If the columns "both causes, same networks" and "all frozen transfer" cover the same networks, only the first is
    kept.
    """
    columns = {
        title: {e.n: e for e in effects if (e.comparison, e.pairing) == wanted} for title, wanted in titles.items()
    }
    both, everything = (
        {n: e.networks for n, e in columns.get(title, {}).items()}
        for title in ("both causes, same networks", "all frozen transfer")
    )
    if both and both == everything:
        del columns["all frozen transfer"]
    return {title: column for title, column in columns.items() if column}


def lines_of(columns: dict[str, dict[str, Effect]]) -> list[str]:
    """Return every n of a table of effects in order, with the ranges of n last."""
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
    return _aligned(lines) + ("\n" + _wrapped(f"95% interval excludes zero: {'; '.join(told)}") if told else "")


def _cell(effect: Effect | None) -> str:
    return "-" if effect is None else f"{_points(effect.estimate):>6} {_interval(effect):>14} {_counts(effect)}"


def _interval(effect: Effect) -> str:
    if effect.low is None or effect.high is None:
        return "[none]"
    return f"[{_points(effect.low)}, {_points(effect.high)}]"


def _counts(effect: Effect) -> str:
    return f"{effect.clusters}{'s' if effect.unit == 'seed' else ''}/{effect.networks}"


def table1_rows(analyses: Iterable[Analysis]) -> list[dict[str, Any]]:
    """Return one row for each recipe and range of layers of Table 1.

    A row has the published numbers as `Published` and the paired ones as `Effect`, or None where there is none.
    """
    rows = []
    for analysis in analyses:
        members = groups_of(analysis.markers).get((analysis.recipe, "random"), [])
        paired = {(e.comparison, e.pairing, e.n): e for e in analysis.effects if e.family == "random"}
        for first, last in ranges_of(members):
            base, selffer = (published_number(members, other, first, last) for other in ("base", "BnB+"))
            if base is not None:
                n = f"{first}-{last}"
                rows.append(
                    {"recipe": analysis.recipe, "layers": n, "base": base, "selffer": selffer}
                    | {name: paired.get((*wanted, n)) for name, wanted in BESIDE_TABLE_1.items()}
                )
    return rows


def _table1_text(rows: Sequence[dict[str, Any]]) -> str:
    pooled = [["layers", "over baseB", "due to halves", "remainder", "over BnB+", "due to halves", "remainder"]]
    titles, pairings = zip(*BESIDE_TABLE_1.values(), strict=True)
    paired = [["layers", *titles], ["", *pairings]]
    for row in rows:
        numbers = [part for name in ("base", "selffer") for part in published_parts(row[name])]
        pooled.append([row["layers"], *(_points(each) or "-" for each in numbers)])
        paired.append([row["layers"], *(_cell(row[name]) for name in BESIDE_TABLE_1)])
    return (
        f"{_aligned(pooled)}\nDue to halves: part of the difference that is due to AnB+ having been trained on easier "
        f"target halves.\n\nThe same layers, paired differences\n{_aligned(paired)}"
    )


def published_parts(number: Published | None) -> tuple[float | None, float | None, float | None]:
    """Return the pooled difference, the part of it that is due to easier target halves, and the remainder."""
    if number is None or number.halves is None:
        return number and number.difference, None, None
    return number.difference, number.halves, number.difference - number.halves


def table1_csv(analyses: Iterable[Analysis]) -> str:
    """Return Table 1 as published and with paired differences, in points, as CSV; "" without AnB+ on random splits."""
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
    """Return Table 1 as Markdown: published numbers with one decimal as in the paper, paired differences with two."""
    rows = table1_rows(analyses)
    if not rows:
        return ""
    columns = ["layers", "over baseB, as published", "over BnB+, as published"]
    columns += [f"{comparison} ({pairing})" for comparison, pairing in BESIDE_TABLE_1.values()]
    lines = [TABLE1_MD, "| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
    several = len({row["recipe"] for row in rows}) > 1
    for row in rows:
        cells = [(row["recipe"] + " " if several else "") + row["layers"]]
        for name in ("base", "selffer"):
            difference, halves, _ = published_parts(row[name])
            cells.append("-" if difference is None else f"{100 * difference:.1f}")
            if halves is not None:
                cells[-1] += f" ({100 * halves + 0.0:.1f} due to easier halves)"
        for name in BESIDE_TABLE_1:
            effect = row[name]
            cells.append("no pairs" if effect is None else f"{_points(effect.estimate)} {_interval(effect)}")
        lines.append("| " + " | ".join(cells) + " |")
    lines += [
        "",
        "In brackets: 95% confidence interval over splits, or over seeds if there is only one split; [none] if there "
        "is only one split and one seed.",
    ]
    return "\n".join(lines) + "\n"


def effects_csv(analyses: Iterable[Analysis]) -> str:
    """Return all effects as CSV, in points; the limits are empty if there is no interval."""
    header = ["recipe", "family", "comparison", "n", "estimate", "low", "high", "clusters", "cluster_unit", "networks"]
    lines: list[list[Any]] = [[*header, "pairing", "mean_of_networks", "error_if_independent"]]
    for analysis in analyses:
        for e in analysis.effects:
            numbers = [*_triple(e), e.clusters, e.unit, e.networks, e.pairing, _digits(e.mean), _digits(e.naive_error)]
            lines.append([e.recipe, e.family, e.comparison, e.n, *numbers])
    return _csv(lines)


def findings_csv(analyses: Iterable[Analysis]) -> str:
    """Return all findings as CSV, one per line."""
    lines = [["recipe", "family", "comparison", "pairing", "status", "why", "remedy"]]
    lines += [[str(each) for each in vars(finding).values()] for analysis in analyses for finding in analysis.findings]
    return _csv(lines)


def grouped(findings: Iterable[Finding]) -> list[tuple[list[str], Finding]]:
    """Group the findings that differ only in their comparison; return the names of the comparisons with each group."""
    together: dict[tuple[str, str, str, str], tuple[list[str], Finding]] = {}
    for each in findings:
        name = each.comparison + (f" ({each.pairing})" if each.pairing else "")
        together.setdefault((each.family, each.status, each.why, each.remedy), ([], each))[0].append(name)
    return list(together.values())


def finding_words(names: Sequence[str], finding: Finding) -> str:
    """Return a group of findings as text: the comparisons, the reasons, and what to train to resolve the problem."""
    text = f"{finding.family}: {', '.join(names)}: {finding.why}."
    if finding.remedy and finding.status != SUPPORTED:
        remedy = textwrap.shorten(finding.remedy, 400, placeholder=" ... (complete list in findings.csv)")
        text += f" To resolve this, train {remedy}."
    return text


def _findings(analysis: Analysis) -> str:
    lines = ["Which comparisons these networks support"]
    for names, finding in grouped(analysis.findings):
        text = f"{finding.status.upper()}  {finding_words(names, finding)}"
        lines.append(textwrap.fill(text, WIDTH, initial_indent="- ", subsequent_indent="  "))
    return "\n".join(lines) if analysis.findings else ""


def cost_words(costs: Costs) -> str:
    """Return the seconds per iteration and the total durations as text, as far as the table has times, or ""."""
    text = []
    if costs.full is not None or costs.frozen:
        frozen = ", ".join(f"{seconds:.3g} (n = {n})" for n, seconds in costs.frozen.items())
        full = f"{costs.full:.3g} with all layers learning" if costs.full is not None else ""
        frozen = frozen and f"with the first n layers frozen {frozen}"
        text.append(f"Median seconds per iteration: {'; '.join(filter(None, [full, frozen]))}.")
    if costs.known:
        text.append(f"The {costs.known} networks with recorded times took {_duration(costs.known_days)} in total")
        if costs.full_days:
            text[-1] += f"; the median for a network with all layers learning is {_duration(costs.full_days)}"
        if costs.all_days is not None and costs.known < costs.networks:
            text[-1] += f"; the estimate for all {costs.networks} networks is {_duration(costs.all_days)}"
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
