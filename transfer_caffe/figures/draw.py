"""Draw all figures of a results table and write their captions.

draw_figures(load("paper"), "paper/figures", metric="top10")
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

from transfer_caffe.experiment.treatment import LAYERS, Treatment
from transfer_caffe.figures.curves import Curve, curve_of, draw_curves, read_curve, read_tests
from transfer_caffe.figures.figure1 import TREATMENTS, draw_figure1, treatments_of
from transfer_caffe.figures.figure2 import KINDS, draw_bottom, draw_paired, draw_top
from transfer_caffe.figures.figure3 import draw_figure3
from transfer_caffe.figures.filters import draw_filters
from transfer_caffe.figures.reduced import draw_reduced
from transfer_caffe.figures.sources import Source
from transfer_caffe.figures.study import draw_study
from transfer_caffe.figures.style import Drawn
from transfer_caffe.results.markers import METRICS, Marker, markers_of
from transfer_caffe.results.probes import read_probes
from transfer_caffe.results.reference import CURVES, NETWORKS
from transfer_caffe.results.table import Row, read_results
from transfer_caffe.run.folder import weights_path
from transfer_caffe.utils.errors import UserError
from transfer_caffe.utils.files import write_text

METRIC_WORDS = {
    "final": "Accuracy is the test accuracy after the last iteration.",
    "top10": "Accuracy is the mean of the ten highest test accuracies of a training run, as in the paper; because "
    "these are selected on the test set, it is biased slightly upwards.",
}


NAMES = (
    "figure1",
    "figure2_bottom",
    "figure2_top",
    "figure2_paired",
    "figure3",
    "reduced",
    "study",
    "conv1_filters",
    "curves",
)


ENDINGS = ("png", "svg", "pdf", "csv")


CAPTIONS = "captions.md"
HEADING = "# Figures\n"


def draw_figures(
    rows: Sequence[Row],
    out: str | os.PathLike[str],
    metric: str = "final",
    runs: str | os.PathLike[str] | None = None,
    compare: Sequence[Row] = (),
    treatments: Sequence[Treatment] = (),
    layers: int = LAYERS,
) -> list[Drawn]:
    """Draw every figure for which the rows have networks into the folder ``out`` and return the figures.

    ``metric`` is one of `transfer_caffe.results.markers.METRICS`. ``runs`` is the folder with the networks' folders.
    ``compare`` are the paper's rows, to be drawn in the background. ``treatments`` and ``layers`` are the rows and the
    number of layers of Figure 1. If all rows are the paper's, the figures look like the paper's. Raise UserError for an
    unknown metric or if no network has an accuracy.
    """
    if metric not in METRICS:
        raise UserError(f"metric {metric}: unknown; known are {', '.join(METRICS)}")
    folder, words = Path(out), METRIC_WORDS[metric]
    name = "paper" if set(rows) <= set(read_results(NETWORKS)) else "yours"
    tables = [(Source(name, markers_of(rows, metric)), rows)]
    if compare:
        tables.append((Source("paper", markers_of(compare, metric), behind=True), compare))
    sources = [source for source, _ in tables]
    markers = sources[0].markers
    drawn: list[Drawn | None] = [draw_figure1(treatments or treatments_of(TREATMENTS), folder, layers)]
    random = [source.only(lambda marker: marker.family == "random" and marker.kind in KINDS) for source in sources]
    if random[0].markers:
        drawn += [draw(random, folder, words) for draw in (draw_bottom, draw_top, draw_paired)]
    drawn.append(draw_figure3(sources, folder, words))
    drawn.append(draw_reduced(tables, folder, metric, words))
    drawn.append(draw_study(sources, folder, words, read_probes(runs) if runs is not None else ()))
    weights, curves = _of_folders(rows, markers, Path(runs)) if runs is not None else ({}, {})
    if name == "paper":
        curves = {network: curve_of(tests) for network, tests in read_tests(CURVES).items()}
    drawn += [draw_filters(markers, weights, folder), draw_curves(sources[0], curves, folder)]
    found = [each for each in drawn if each is not None]
    captioned = _captioned_files(folder)
    for missing in set(NAMES) - {each.name for each in found}:  # files left over from an earlier results table
        for name in captioned.intersection(f"{missing}.{ending}" for ending in ENDINGS):
            (folder / name).unlink(missing_ok=True)
    _write_captions(found, folder)
    return found


def folder_of(runs: Path, network: str) -> Path | None:
    """Return the folder of a network, or None if its name in the table is not a plain folder name.

    The check keeps a table from an untrusted source from referring to other folders.
    """
    return runs / network if re.fullmatch(r"(?!\.\.?$)[^/\\\0]{1,200}", network) else None


def _of_folders(rows: Sequence[Row], markers: Sequence[Marker], runs: Path) -> tuple[dict[str, Path], dict[str, Curve]]:
    """Return the paths of the base networks' final weights and the training curves found in the networks' folders."""
    weights: dict[str, Path] = {}
    curves: dict[str, Curve] = {}
    iterations = {row.network: row.max_iter for row in rows}
    for marker in markers:
        network = folder_of(runs, marker.network)
        if network is None:
            continue
        path = weights_path(network, iterations[marker.network])
        if marker.kind == "base" and path.is_file():
            weights[marker.network] = path
        if (network / "curve.csv").is_file():
            curves[marker.network] = read_curve(network / "curve.csv")
    return weights, curves


def _captioned_files(folder: Path) -> set[str]:
    """Return the files that the folder's captions.md lists; none if `_write_captions` did not write that file."""
    try:
        text = (folder / CAPTIONS).read_text(encoding="utf-8")
    except (FileNotFoundError, UnicodeDecodeError):
        return set()
    lists = re.findall(r"^Files: (.+)$", text, re.MULTILINE) if text.startswith(HEADING) else []
    return {name for files in lists for name in files.split(", ")}


def _write_captions(drawn: Sequence[Drawn], folder: Path) -> None:
    """Write captions.md with the title, caption and files of every figure."""
    parts = [HEADING]
    for each in drawn:
        files = ", ".join(path.name for path in each.files)
        parts.append(f"## {each.title}\n\n{each.caption}\n\nFiles: {files}\n")
    write_text(folder / CAPTIONS, "\n".join(parts))
