"""Analyse a results table: paired effects with confidence intervals, and which comparisons its design supports.

    python -m transfer_caffe.analysis --results paper
    python -m transfer_caffe.analysis --results runs/demo/results.csv --out report/analysis

The paper (Yosinski et al. 2014, section 4.1) names two causes for the drop in accuracy of networks with frozen, copied
layers: fragile co-adaptation between the layers that are split (BnB minus its base network), and representation
specificity, features that are specific to the classes on which they were trained (AnB minus BnB). Here both are paired
differences between networks of the same target half, split and seed. The paper's method, differences of means pooled
over all available halves, is given next to them and labelled "as published". `effects` computes the differences and
their intervals, `design` decides which comparisons the networks of a table support, `costs` sums up training times, and
`text` writes the results as text, CSV and Markdown.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from transfer_caffe.analysis.costs import Costs, costs_of
from transfer_caffe.analysis.design import Finding, findings_of
from transfer_caffe.analysis.effects import Effect, Published, effects_of, interval, published_number
from transfer_caffe.analysis.text import TABLE1_CSV, TABLE1_MD, effects_csv, findings_csv, table1_csv, table1_md
from transfer_caffe.results.markers import METRICS, Marker, markers_of
from transfer_caffe.results.probes import Probe
from transfer_caffe.results.table import Row
from transfer_caffe.utils.errors import UserError
from transfer_caffe.utils.files import write_text

__all__ = [
    "Analysis", "Costs", "Effect", "Finding", "Published", "analyse", "costs_of", "effects_of", "findings_of",
    "interval", "published_number", "table1_csv", "table1_md", "write_analysis", "write_table1",
]  # fmt: skip


@dataclass(frozen=True)
class Analysis:
    """The analysis of one recipe's networks.

    ``rows`` are all rows of the recipe, ``probes`` its linear probes. ``markers`` are the networks that have an
    accuracy, without those trained on reduced data.
    """

    recipe: str
    metric: str
    rows: list[Row]
    markers: list[Marker]
    effects: list[Effect]
    findings: list[Finding]
    costs: Costs
    probes: Sequence[Probe] = ()


def analyse(rows: Sequence[Row], metric: str = "final", probes: Sequence[Probe] = ()) -> list[Analysis]:
    """Return one `Analysis` for each recipe of the table, in the order of the table.

    ``metric`` is one of `transfer_caffe.results.markers.METRICS`. ``probes`` are the linear probes of the recipe. Raise
    UserError for an unknown metric, if no network has an accuracy, if an accuracy is not a fraction, or if two rows
    describe the same network.
    """
    if metric not in METRICS:
        raise UserError(f"metric {metric}: unknown; known are {', '.join(METRICS)}")
    markers = markers_of(rows, metric)
    analyses = []
    for recipe in dict.fromkeys(row.recipe for row in rows):
        own = [row for row in rows if row.recipe == recipe]
        members = [marker for marker in markers if marker.recipe == recipe]
        findings = findings_of(own, members)
        analyses.append(Analysis(recipe, metric, own, members, effects_of(members), findings, costs_of(own), probes))
    return analyses


def write_analysis(analyses: Sequence[Analysis], out: str | os.PathLike[str]) -> list[Path]:
    """Write effects.csv, findings.csv and, if there are AnB+ networks, table1.csv and table1.md; return their paths."""
    folder = Path(out)
    written = []
    for name, text in (("effects.csv", effects_csv(analyses)), ("findings.csv", findings_csv(analyses))):
        write_text(folder / name, text)
        written.append(folder / name)
    return written + write_table1(analyses, folder)


def write_table1(analyses: Sequence[Analysis], folder: Path) -> list[Path]:
    """Write the paper's Table 1 as table1.csv and table1.md and return their paths; none without AnB+ networks.

    Without these networks, remove the tables of an earlier results table, known by their beginning.
    """
    written = []
    for name, beginning, text in (
        ("table1.csv", TABLE1_CSV, table1_csv(analyses)),
        ("table1.md", TABLE1_MD, table1_md(analyses)),
    ):
        path = folder / name
        if text:
            write_text(path, text)
            written.append(path)
        elif path.is_file() and path.read_bytes().startswith(beginning.encode()):
            path.unlink()
    return written
