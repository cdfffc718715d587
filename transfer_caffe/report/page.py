"""Render the report page from templates/report.html.j2 and, for each network, templates/network.html.j2.

The page loads nothing from outside the file, and its Content-Security-Policy forbids that. The only script that may run
is the page's own, identified by its hash. The details of each network are stored in the page as compressed data and
unpacked when the network is opened.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import math
import re
import statistics
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import jinja2
import yaml

from transfer_caffe.analysis import Analysis
from transfer_caffe.analysis.answer import answers, export_commands
from transfer_caffe.analysis.text import cost_words, finding_words, grouped
from transfer_caffe.experiment.own_net import ENDINGS
from transfer_caffe.experiment.treatment import Treatment
from transfer_caffe.figures.style import Drawn
from transfer_caffe.report.network import Page, flat
from transfer_caffe.report.words import base_sentence, caveats, effect_sentences, effects_tables, points, table1
from transfer_caffe.results.markers import METRICS, accuracy_of
from transfer_caffe.results.table import Row
from transfer_caffe.sweep.selection import shown_shortly
from transfer_caffe.utils.errors import UserError

TEMPLATES = Path(__file__).parent / "templates"
LARGEST_SVG = 1_500_000
"""Maximum size in bytes of an embedded SVG; a larger figure is embedded as PNG."""

MOST_SPLITS = 6
"""Maximum number of splits and seeds whose missing networks are named in the warning at the top of the page."""

COLUMNS = [
    ("network", False), ("split", False), ("treatment", False), ("n", True), ("seed", True), ("accuracy", True),
    ("top 10", True), ("own base", True), ("gain", True), ("test loss", True), ("iterations", True),
    ("ms/iteration", True), ("time, s", True),
]  # fmt: skip


def render(
    rows: Sequence[Row],
    analyses: Sequence[Analysis],
    networks: Sequence[Page],
    drawn: Sequence[Drawn],
    metric: str,
    folder: Path | None,
) -> str:
    """Return the HTML of the page; ``folder`` has the networks' folders and is None for the paper's networks."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES), autoescape=True, undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True,
    )  # fmt: skip
    script = (TEMPLATES / "report.js").read_text(encoding="utf-8")
    recipes = list(dict.fromkeys(row.recipe for row in rows if row.recipe))
    paper = folder is None
    whose = "the paper's authors" if paper else f"recipe {', '.join(recipes)}" if recipes else "a recipe without a name"
    settings, warnings = _settings(networks)
    own_net = str(settings.get("architecture", "")).endswith(ENDINGS)
    missing = _missing(rows, settings, metric)
    if missing and paper:
        warnings.insert(0, f"Incomplete: {len(missing)} networks have no result (listed below the table).")
    elif missing:
        planned = len(missing) + sum(accuracy_of(row, metric) is not None for row in rows)
        warnings.insert(0, _incomplete(missing, planned))
    if guessing := [page.row.network for page in networks if page.at_chance]:
        warnings.append(
            "The final test accuracy of the following networks is at chance level, so they say nothing about the "
            f"transferability of features: {_few(guessing)}."
        )
    having = sum(accuracy_of(row, metric) is not None for row in rows)
    counted = f"{having} network{'s' * (having != 1)} of {whose}"
    detail = environment.get_template("network.html.j2")
    return environment.get_template("report.html.j2").render(
        title="How transferable are the features?" + (f" Recipe {', '.join(recipes)}" if recipes else ""),
        subtitle=_subtitle(paper, counted, len(missing), bool(settings)),
        warnings=warnings,
        lead=[
            f"{counted} {'has' if having == 1 else 'have'} a result.",
            *(answer for analysis in analyses for answer in answers(analysis.markers, analysis.rows, analysis.probes)),
            *(
                f"To use the best network in other programs: {line}"
                for analysis in analyses
                for line in export_commands(analysis.markers, str(folder))
            ),
            *(_lead(analysis, len(analyses) > 1) for analysis in analyses),
        ],
        findings=[each for analysis in analyses for each in effect_sentences(analysis, len(analyses) > 1)],
        limits=[
            (finding.status, finding_words(names, finding))
            for analysis in analyses
            for names, finding in grouped(analysis.findings)
        ],
        caveats=caveats(analyses),
        effects=[
            table for analysis in analyses for table in effects_tables(analysis, paper or own_net, len(analyses) > 1)
        ],
        table1=table1(analyses),
        paper=paper,
        own_net=own_net,
        figures=[_figure(each) for each in drawn],
        columns=COLUMNS,
        networks=[(page.anchor, _cells(page)) for page in networks],
        details=[(page.anchor, _packed(detail.render(page=page, paper=paper))) for page in networks],
        missing=missing,
        settings=yaml.safe_dump(settings, sort_keys=False, default_flow_style=None, width=100, allow_unicode=True)
        if settings
        else "",
        facts=_facts(rows, networks, paper),
        costs=[words for words in (cost_words(analysis.costs) for analysis in analyses) if words],
        style=(TEMPLATES / "report.css").read_text(encoding="utf-8"),
        script=script,
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )


def _subtitle(paper: bool, counted: str, missing: int, planned: bool) -> str:
    if paper:
        return (
            f"Yosinski, Clune, Bengio and Lipson (NIPS 2014): {counted}, from their training logs; {missing} logs are "
            "lost."
        )
    rest = f", {missing} missing" if missing else ", all that are planned" if planned else ""
    return f"Replication of the experiment of Yosinski, Clune, Bengio and Lipson (NIPS 2014): {counted}{rest}."


def _lead(analysis: Analysis, several: bool) -> str:
    """Return a sentence on the base networks of one recipe, or on their absence if it has only reduced data."""
    name = f"Recipe {analysis.recipe}: " if several else ""
    if analysis.markers:
        return name + base_sentence(analysis.markers)
    return (
        f"{name}No network has {METRICS[analysis.metric]} apart from networks trained on reduced data, so there is "
        "nothing to compare."
    )


def _packed(text: str) -> str:
    """Return the text as gzip data in base64, which browsers can unpack; the same text gives the same bytes."""
    return base64.b64encode(gzip.compress(text.encode(), 9, mtime=0)).decode()


def _figure(drawn: Drawn) -> dict[str, str]:
    """Return a figure with its embedded image: SVG, or PNG if the SVG is large or itself contains images."""
    by_ending = {path.suffix: path for path in drawn.files}
    svg = by_ending[".svg"].read_bytes()
    vector = len(svg) <= LARGEST_SVG and b"<image" not in svg
    kind, data = ("svg+xml", svg) if vector else ("png", by_ending[".png"].read_bytes())
    return {
        "source": f"data:image/{kind};base64,{base64.b64encode(data).decode()}",
        "title": drawn.title,
        "caption": drawn.caption,
        "alt": drawn.alt,
        "files": ", ".join(f"figures/{path.name}" for path in drawn.files),
    }


def _cells(page: Page) -> list[tuple[str, Any]]:
    """Return, for each of `COLUMNS`, the text to show and the value to sort by."""
    row, marker = page.row, page.marker
    base, gain = (marker.base, marker.gain) if marker else (None, None)
    per_iteration = None if row.seconds_per_iteration is None else 1000 * row.seconds_per_iteration
    split = row.split if row.images_per_class is None else f"{row.split}, {row.images_per_class} images per class"
    return [
        (row.network, row.network), (split, split), (row.treatment, row.treatment),
        _number(row.n, "d"), _number(row.seed, "d"), _number(row.accuracy_final, ".4f"),
        _number(row.accuracy_top10, ".4f"), _number(base, ".4f"),
        ("", "") if gain is None else (points(gain), gain), _number(row.test_loss_final, ".4f"),
        _number(row.max_iter, "d"), _number(per_iteration, ".1f"), _number(row.wall_seconds, ".1f"),
    ]  # fmt: skip


def _number(value: float | None, form: str) -> tuple[str, Any]:
    return ("", "") if value is None or not math.isfinite(value) else (format(value, form), value)


def _settings(networks: Sequence[Page]) -> tuple[dict[str, Any], list[str]]:
    """Return the recipe's settings as recorded by the networks, and a warning if the networks' settings differ.

    The lists of networks and seeds to train may differ.
    """
    found = [
        (page.row.network, str(page.record.get("finished")), page.record["settings"])
        for page in networks
        if isinstance(page.record.get("settings"), dict)
    ]
    if not found:
        return {}, []
    plan = ("networks", "seeds")
    _, _, latest = max(found, key=lambda each: each[1])
    same = {key: value for key, value in latest.items() if key not in plan}
    others = [name for name, _, each in found if {key: value for key, value in each.items() if key not in plan} != same]
    if others:
        return latest, [
            f"{len(others)} networks were trained with other settings than those shown below ({_few(others)}), so "
            "differences between them and the other networks may not be due to the treatment."
        ]
    return latest, []


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _missing(rows: Sequence[Row], settings: dict[str, Any], metric: str) -> list[str]:
    """Return the names of networks without an accuracy that the table lists or the recorded recipe plans."""
    have = {row.network for row in rows if accuracy_of(row, metric) is not None}
    missing = [row.network for row in rows if row.network not in have]
    networks, seeds = settings.get("networks"), settings.get("seeds")
    if isinstance(networks, dict) and isinstance(seeds, list):
        planned = [f"{split}-{each}-s{seed}" for seed in seeds for split, named in networks.items() for each in named]
        missing += [name for name in planned if name not in have and name not in missing]
    return missing


def _incomplete(missing: Sequence[str], planned: int) -> str:
    """Return the warning for an incomplete run: how many networks have a result, which are missing, and what to do."""
    return (
        f"Incomplete: {planned - len(missing)} of {planned} planned networks have a result. Missing: "
        f"{missing_words(missing)}. While the sweep is running, it rewrites this page as networks finish: reload it to "
        "see them. If no sweep is running, start it again with the same command: it continues where it stopped."
    )


def missing_words(names: Sequence[str]) -> str:
    """Return the names of networks by split, with seeds unless all are 0: `random0: A{3,5}B, B3A; natman: baseA`."""
    groups: dict[tuple[str, str], list[Treatment]] = {}
    others: list[str] = []
    for name in names:
        match = re.fullmatch(r"([a-z]+[0-9]*)-([^-]+)-s([0-9]+)", name)
        try:
            treatment = Treatment.parse(match[2]) if match else None
        except UserError:
            treatment = None
        if match and treatment:
            groups.setdefault((match[1], match[3]), []).append(treatment)
        else:
            others.append(name)
    seeds = {seed for _, seed in groups}
    parts = [
        f"{split}{'' if seeds == {'0'} else f' (seed {seed})'}: {shown_shortly(treatments)}"
        for (split, seed), treatments in groups.items()
    ]
    more = len(parts) - MOST_SPLITS
    if more > 0:
        parts = [*parts[:MOST_SPLITS], f"and networks of {more} more splits or seeds, listed below the table"]
    return "; ".join([*parts, *([_few(others)] if others else [])])


def _facts(rows: Sequence[Row], networks: Sequence[Page], paper: bool) -> list[tuple[str, str]]:
    """Return (name, value) pairs on times, machine and versions, as far as they were recorded."""
    facts = []
    times = [row.wall_seconds for row in rows if row.wall_seconds is not None and math.isfinite(row.wall_seconds)]
    if times:
        facts.append(("total time of all networks", f"{_duration(sum(times))} ({len(times)} networks)"))
        facts.append(
            ("time per network",
             f"median {_duration(statistics.median(times))}, from {_duration(min(times))} to {_duration(max(times))}")
        )  # fmt: skip
    records = [page.record for page in networks if page.record]
    stamps = [_moment(record.get(key)) for record in records for key in ("started", "finished")]
    moments = sorted(each for each in stamps if each is not None)
    if moments:
        facts.append(("from the first start to the last finish", _duration((moments[-1] - moments[0]).total_seconds())))
        facts.append(("finished", moments[-1].isoformat(sep=" ", timespec="seconds")))
    for key in ("engine", "machine", "versions"):
        values = list(dict.fromkeys(flat(record[key]) for record in records if record.get(key)))
        if values:
            facts.append((key, "; ".join(values[:3]) + (f" (and {len(values) - 3} more)" if len(values) > 3 else "")))
    if paper:
        facts.append(("machine", "Tesla K20, one per network; Caffe versions of 2013 and 2014"))
    return facts or [("recorded", "nothing: there is no done.json next to the results")]


def _moment(value: Any) -> datetime | None:
    try:
        moment = datetime.fromisoformat(str(value))
    except ValueError:
        return None
    return moment.astimezone() if moment.tzinfo is None else moment


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
