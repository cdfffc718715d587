"""What a results table says: effects with intervals, the two causes of the loss apart, and what it cannot say.

    python -m transfer_caffe.analysis --results paper
    python -m transfer_caffe.analysis --results runs/demo/results.csv --out report/analysis

The paper (Yosinski et al. 2014, section 4.1) names two causes why frozen features of another network lose accuracy:
layers that had learned to work together are parted (BnB minus its base), and features are special to the classes they
were learned on (AnB minus BnB). Here both are differences between networks of the same target half, split and seed;
the paper's own way, pooled means of whatever halves there are, stands beside them as "as published". `effects` says how
the intervals are made, `design` which comparisons the networks of a table allow at all, `costs` what they took.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from transfer_caffe.analysis.costs import Costs, costs_of
from transfer_caffe.analysis.design import Finding, findings_of
from transfer_caffe.analysis.effects import Effect, Published, effects_of, interval, published_number
from transfer_caffe.analysis.text import effects_csv, findings_csv, table1_csv, table1_md
from transfer_caffe.results.markers import METRICS, Marker, markers_of
from transfer_caffe.results.table import Row
from transfer_caffe.utils.errors import UserError
from transfer_caffe.utils.files import write_text

__all__ = [
    "Analysis", "Costs", "Effect", "Finding", "Published", "analyse", "costs_of", "effects_of", "findings_of",
    "interval", "published_number", "table1_csv", "table1_md", "write_analysis",
]  # fmt: skip


@dataclass(frozen=True)
class Analysis:
    """Everything about one recipe's networks; ``rows`` with those that have no accuracy, ``markers`` without."""

    recipe: str
    metric: str
    rows: list[Row]
    markers: list[Marker]
    effects: list[Effect]
    findings: list[Finding]
    costs: Costs


def analyse(rows: Sequence[Row], metric: str = "final") -> list[Analysis]:
    """One `Analysis` for each recipe of the table, in the order of the table; ``metric`` is one of `cells.METRICS`.

    UserError where no network has an accuracy, one has an accuracy that is no fraction, or two are the same network.
    """
    if metric not in METRICS:
        raise UserError(f"metric {metric}: unknown; known are {', '.join(METRICS)}")
    markers = markers_of(rows, metric)
    analyses = []
    for recipe in dict.fromkeys(row.recipe for row in rows):
        own = [row for row in rows if row.recipe == recipe]
        members = [marker for marker in markers if marker.recipe == recipe]
        findings = findings_of(own, members)
        analyses.append(Analysis(recipe, metric, own, members, effects_of(members), findings, costs_of(own)))
    return analyses


def write_analysis(analyses: Sequence[Analysis], out: str | os.PathLike[str]) -> list[Path]:
    """Write effects.csv, findings.csv and, where there are AnB+ networks, table1.csv and table1.md; the paths."""
    texts = {
        "effects.csv": effects_csv(analyses),
        "findings.csv": findings_csv(analyses),
        "table1.csv": table1_csv(analyses),
        "table1.md": table1_md(analyses),
    }
    for name, text in texts.items():
        if text:
            write_text(Path(out) / name, text)
        else:  # of an earlier table, and not true of this one
            (Path(out) / name).unlink(missing_ok=True)
    return [Path(out) / name for name, text in texts.items() if text]
