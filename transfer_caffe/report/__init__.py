"""Write an HTML report on a recipe's networks: summary, figures, differences, all networks, settings and times.

    python -m transfer_caffe.report --runs runs/demo --out report
    python -m transfer_caffe.report --runs paper --metric top10 --out report      the paper's networks

The report is report/index.html, a single file that needs no other file and no network connection. The figures and the
tables of the analysis are also written to report/figures/ and report/analysis/. The input is results.csv in the runs
folder and, if present, done.json, surgery.json, curve.csv, the prototxt files and the log in each network's folder, and
the final weights of base networks. `words` writes the sentences, `network` collects the data of one network, `curve`
draws its training curve, and `page` renders the page.
"""

from __future__ import annotations

import os
from pathlib import Path

from transfer_caffe.analysis import analyse, write_analysis
from transfer_caffe.figures.draw import draw_figures
from transfer_caffe.report.network import read_networks
from transfer_caffe.report.page import render
from transfer_caffe.results.probes import read_probes
from transfer_caffe.results.table import load
from transfer_caffe.utils.errors import UserError
from transfer_caffe.utils.files import write_text

__all__ = ["write_report"]


def write_report(
    runs: str | os.PathLike[str], out: str | os.PathLike[str], metric: str = "final", compare: bool = False
) -> Path:
    """Write out/index.html, out/figures/ and out/analysis/ about the networks in ``runs``; return the path of the page.

    ``runs`` is a folder such as runs/RECIPE, or the word paper. ``metric`` is one of
    `transfer_caffe.results.markers.METRICS`. With ``compare`` the figures show the paper's networks in the background.
    Raise UserError, without writing anything, if there is no results.csv, if no network in it has an accuracy, or if a
    file of a network is damaged.
    """
    folder = None if os.fspath(runs) == "paper" else Path(runs)
    if folder is not None and not (folder / "results.csv").is_file():
        raise UserError(
            f"{runs}: there is no results.csv in it; give the folder of a recipe's networks, such as runs/demo, and "
            "train them first: python -m transfer_caffe.sweep run --recipe RECIPE"
        )
    if folder is None and compare:
        raise UserError("--runs paper --compare paper: both are the paper's networks; give your own networks' folder")
    rows = load("paper" if folder is None else folder / "results.csv")
    if not rows:
        raise UserError(
            f"{runs}: its results.csv has no networks; train networks first: python -m transfer_caffe.sweep run"
        )
    out = Path(out)
    analyses = analyse(rows, metric, read_probes(folder) if folder is not None else ())
    networks = read_networks(rows, metric, folder)
    drawn = draw_figures(rows, out / "figures", metric, folder, load("paper") if compare else ())
    write_analysis(analyses, out / "analysis")
    page = out / "index.html"
    write_text(page, render(rows, analyses, networks, drawn, metric, folder))
    return page
