"""One static page about a recipe's run: figures, numbers, networks, settings, times.

    python -m transfer_caffe.report --runs runs/demo --out report

Writes report/index.html, which needs no other file and no network, and report/figures/. Reads results.csv of the runs
folder, and of each network's folder done.json, curve.csv and the final weights, as far as they are there.
"""

from __future__ import annotations

import base64
import math
import os
import statistics
import sys
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import jinja2
import yaml

from transfer_caffe.errors import ArgumentParser, UserError, command
from transfer_caffe.figures import add_metric, draw_figures
from transfer_caffe.figures.cells import Marker, markers_of
from transfer_caffe.figures.style import Drawn
from transfer_caffe.files import read_json, write_text
from transfer_caffe.results import Row, read_results
from transfer_caffe.summary import base_sentences, caveats, effect_sentences, effects_tables, points

TEMPLATES = Path(__file__).parent / "templates"
LARGEST_SVG = 1_500_000
"""Bytes: a figure with more than that goes into the page as PNG."""

COLUMNS = [
    ("network", False), ("split", False), ("treatment", False), ("n", True), ("seed", True), ("accuracy", True),
    ("top 10", True), ("own base", True), ("gain", True), ("test loss", True), ("iterations", True),
    ("ms/iteration", True), ("time, s", True),
]  # fmt: skip


def write_report(runs: str | os.PathLike[str], out: str | os.PathLike[str], metric: str = "final") -> Path:
    """Write out/index.html and out/figures/ about the run in ``runs`` (runs/RECIPE); return the page's path.

    UserError if there is no results.csv or no network in it has an accuracy.
    """
    runs, out = Path(runs), Path(out)
    if not (runs / "results.csv").is_file():
        raise UserError(
            f"{runs}: there is no results.csv in it; give the folder of a recipe's networks, as runs/demo, and train "
            "them first (python -m transfer_caffe.sweep run)"
        )
    rows = read_results(runs / "results.csv")
    markers = markers_of(rows, metric)
    records = _records(runs, rows)
    drawn = draw_figures(rows, out / "figures", metric, runs)
    page = out / "index.html"
    write_text(page, _render(rows, markers, drawn, records, metric))
    return page


def _records(runs: Path, rows: Sequence[Row]) -> dict[str, dict[str, Any]]:
    """done.json of each network that has one."""
    records = {}
    for row in rows:
        path = runs / row.network / "done.json"
        if path.is_file():
            record = read_json(path)
            if not isinstance(record, dict):
                raise UserError(f"{path}: not a JSON object; remove the file and run this network's driver again")
            records[row.network] = record
    return records


def _render(
    rows: Sequence[Row], markers: Sequence[Marker], drawn: Sequence[Drawn], records: dict[str, dict], metric: str
) -> str:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES), autoescape=True, undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True,
    )  # fmt: skip
    recipes = list(dict.fromkeys(row.recipe for row in rows if row.recipe))
    recipe = f"recipe {', '.join(recipes)}" if recipes else "a recipe without a name"
    settings, warnings = _settings(records)
    missing = _missing(rows, settings)
    if missing:
        warnings.insert(0, f"Not complete: {len(missing)} planned networks have no result (listed below the table).")
    counted = f"{len(markers)} networks of {recipe}"
    return environment.get_template("report.html.j2").render(
        title="How transferable are the features?" + (f" Recipe {', '.join(recipes)}" if recipes else ""),
        subtitle="The experiment of Yosinski, Clune, Bengio and Lipson (NIPS 2014), repeated: "
        + f"{counted}, "
        + (f"{len(missing)} missing." if missing else "all that the recipe plans." if settings else "as found."),
        warnings=warnings,
        lead=" ".join([f"{counted} have a result.", *base_sentences(markers)]),
        findings=effect_sentences(markers),
        caveats=caveats(markers, metric),
        effects=effects_tables(markers),
        figures=[_figure(each) for each in drawn],
        columns=COLUMNS,
        networks=_network_rows(rows, markers),
        missing=missing,
        settings=yaml.safe_dump(settings, sort_keys=False, default_flow_style=None, width=100, allow_unicode=True)
        if settings
        else "",
        facts=_facts(rows, records),
    )


def _figure(drawn: Drawn) -> dict[str, str]:
    """A figure with its picture inside: SVG, but PNG where the SVG is large or itself holds pictures."""
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


def _network_rows(rows: Sequence[Row], markers: Sequence[Marker]) -> list[list[tuple[str, Any]]]:
    """For each row, for each of `COLUMNS`: the text to show and the value to sort by."""
    known = {marker.network: marker for marker in markers}
    table = []
    for row in rows:
        marker = known.get(row.network)
        base, gain = (marker.base, marker.gain) if marker else (None, None)
        per_iteration = None if row.seconds_per_iteration is None else 1000 * row.seconds_per_iteration
        n = marker.n if marker else None
        table.append(
            [
                (row.network, row.network), (row.split, row.split), (row.treatment, row.treatment),
                _number(n, "d"), _number(row.seed, "d"), _number(row.accuracy_final, ".4f"),
                _number(row.accuracy_top10, ".4f"), _number(base, ".4f"),
                ("", "") if gain is None else (points(gain), gain), _number(row.test_loss_final, ".4f"),
                _number(row.max_iter, "d"), _number(per_iteration, ".1f"), _number(row.wall_seconds, ".1f"),
            ]
        )  # fmt: skip
    return table


def _number(value: float | None, form: str) -> tuple[str, Any]:
    return ("", "") if value is None or not math.isfinite(value) else (format(value, form), value)


def _settings(records: dict[str, dict]) -> tuple[dict[str, Any], list[str]]:
    """The recipe as the networks recorded it, and a warning if they do not agree (on more than which to train)."""
    found = [(name, each["settings"]) for name, each in records.items() if isinstance(each.get("settings"), dict)]
    if not found:
        return {}, []
    plan = ("networks", "seeds")
    _, latest = max(found, key=lambda item: str(records[item[0]].get("finished")))
    same = {key: value for key, value in latest.items() if key not in plan}
    others = [name for name, each in found if {key: value for key, value in each.items() if key not in plan} != same]
    if others:
        few = ", ".join(others[:5]) + (" and others" if len(others) > 5 else "")
        return latest, [
            f"{len(others)} networks were trained with other settings than the ones shown below ({few}): "
            "differences between them and the rest need not come from the treatment."
        ]
    return latest, []


def _missing(rows: Sequence[Row], settings: dict[str, Any]) -> list[str]:
    """Names of networks that the recorded recipe plans and that have no accuracy."""
    have = {row.network for row in rows if row.accuracy_final is not None}
    missing = [row.network for row in rows if row.network not in have]
    networks, seeds = settings.get("networks"), settings.get("seeds")
    if isinstance(networks, dict) and isinstance(seeds, list):
        planned = [f"{split}-{each}-s{seed}" for seed in seeds for split, named in networks.items() for each in named]
        missing += [name for name in planned if name not in have and name not in missing]
    return missing


def _facts(rows: Sequence[Row], records: dict[str, dict]) -> list[tuple[str, str]]:
    """What the page says about time, machine and versions, as far as it was recorded."""
    facts = []
    times = [row.wall_seconds for row in rows if row.wall_seconds is not None]
    if times:
        facts.append(("time of all networks together", f"{_duration(sum(times))} ({len(times)} networks)"))
        facts.append(
            ("time of a network",
             f"median {_duration(statistics.median(times))}, from {_duration(min(times))} to {_duration(max(times))}")
        )  # fmt: skip
    stamps = [_moment(record.get(key)) for record in records.values() for key in ("started", "finished")]
    moments = sorted(each for each in stamps if each is not None)
    if moments:
        facts.append(("from the first start to the last end", _duration((moments[-1] - moments[0]).total_seconds())))
        facts.append(("finished", moments[-1].isoformat(sep=" ", timespec="seconds")))
    for key in ("engine", "machine", "versions"):
        values = list(dict.fromkeys(_flat(record[key]) for record in records.values() if record.get(key)))
        if values:
            facts.append((key, "; ".join(values[:3]) + (f" (and {len(values) - 3} more)" if len(values) > 3 else "")))
    return facts or [("recorded", "nothing: no done.json lies beside the results")]


def _flat(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_flat(each)}" for key, each in value.items() if each not in (None, ""))
    return " ".join(_flat(each) for each in value) if isinstance(value, list) else str(value)


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


@command
def main(argv: list[str] | None = None) -> int | None:
    """Write the report of one recipe's run."""
    parser = ArgumentParser(
        prog="python -m transfer_caffe.report",
        description="Write one static page, OUT/index.html, about the networks of a recipe, and its figures.",
        epilog="example: python -m transfer_caffe.report --runs runs/demo --out report",
    )
    parser.add_argument("--runs", required=True, help="folder with results.csv and the networks' folders")
    parser.add_argument("--out", required=True, help="folder for index.html and figures/; what it holds is replaced")
    add_metric(parser)
    options = parser.parse_args(argv)
    print(write_report(options.runs, options.out, options.metric))
    return 0


if __name__ == "__main__":
    sys.exit(main())
