"""One page about a recipe's run: what it says, what it cannot say, figures, every network, times.

    python -m transfer_caffe.report --runs runs/demo --out report
    python -m transfer_caffe.report --runs paper --metric top10 --out report      the paper's own networks

Writes report/index.html, which needs no other file and no network, report/figures/ and report/analysis/. Reads
results.csv of the runs folder, and of each network's folder done.json, surgery.json, curve.csv, the prototxts, the log
and, of bases, the final weights, as far as they are there. `words` has the sentences, `network` the page of a network.
"""

from __future__ import annotations

import os
from pathlib import Path

from transfer_caffe.analysis import analyse, write_analysis
from transfer_caffe.figures.draw import draw_figures
from transfer_caffe.report.network import read_networks
from transfer_caffe.report.page import render
from transfer_caffe.results.table import load
from transfer_caffe.utils.errors import UserError
from transfer_caffe.utils.files import write_text

__all__ = ["write_report"]


def write_report(
    runs: str | os.PathLike[str], out: str | os.PathLike[str], metric: str = "final", compare: bool = False
) -> Path:
    """Write out/index.html, out/figures/ and out/analysis/ about the run in ``runs`` (runs/RECIPE, or the word paper).

    ``metric`` is one of `figures.cells.METRICS`; with ``compare`` the figures have the paper's networks behind. Returns
    the page's path. UserError if there is no results.csv, no network in it has an accuracy, or a file of a network is
    damaged: nothing is written then.
    """
    folder = None if os.fspath(runs) == "paper" else Path(runs)
    if folder is not None and not (folder / "results.csv").is_file():
        raise UserError(
            f"{runs}: there is no results.csv in it; give the folder of a recipe's networks, as runs/demo, and train "
            "them first: python -m transfer_caffe.sweep run --recipe RECIPE"
        )
    if folder is None and compare:
        raise UserError("--runs paper --compare paper: both are the paper; give the folder of your own networks")
    rows = load("paper" if folder is None else folder / "results.csv")
    if not rows:
        raise UserError(f"{runs}: no network is in its results.csv; train some: python -m transfer_caffe.sweep run")
    out = Path(out)
    analyses = analyse(rows, metric)
    networks = read_networks(rows, metric, folder)
    drawn = draw_figures(rows, out / "figures", metric, folder, load("paper") if compare else ())
    write_analysis(analyses, out / "analysis")
    page = out / "index.html"
    write_text(page, render(rows, analyses, networks, drawn, metric, folder))
    return page
