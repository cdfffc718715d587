"""Figures of a results table, each as PNG, SVG and, where it has numbers, CSV.

    python -m transfer_caffe.figures --results runs/demo/results.csv --out report/figures

figure2_top, figure2_bottom (the paper's Figure 2), figure2_paired (each network minus its own base), figure3 (the
paper's Figure 3), and from the networks' folders beside the table conv1_filters and curves. What the table has no
networks for is left out, and said.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from transfer_caffe.errors import ArgumentParser, UserError, command
from transfer_caffe.figures.cells import METRICS, markers_of
from transfer_caffe.figures.curves import draw_curves, read_curve
from transfer_caffe.figures.figure2 import draw_bottom, draw_paired, draw_top
from transfer_caffe.figures.figure3 import draw_figure3
from transfer_caffe.figures.filters import draw_filters
from transfer_caffe.figures.style import Drawn
from transfer_caffe.results import Row, read_results
from transfer_caffe.snapshots import weights_path

METRIC_WORDS = {
    "final": "Accuracy is the one after the last iteration.",
    "top10": "Accuracy is the mean of the ten highest test accuracies of a network's training, as in the paper: a "
    "choice made on the test set, so slightly too high.",
}


NAMES = ("figure2_bottom", "figure2_top", "figure2_paired", "figure3", "conv1_filters", "curves")


def draw_figures(
    rows: Sequence[Row], out: str | os.PathLike[str], metric: str = "final", runs: str | os.PathLike[str] | None = None
) -> list[Drawn]:
    """Draw every figure the rows have networks for into the folder ``out``; ``runs`` holds the networks' folders.

    ``metric`` is one of `METRICS`. UserError if no network has an accuracy, or for another metric.
    """
    if metric not in METRICS:
        raise UserError(f"metric {metric}: unknown; known are {', '.join(METRICS)}")
    markers, folder, words = markers_of(rows, metric), Path(out), METRIC_WORDS[metric]
    random = [marker for marker in markers if marker.family == "random" and marker.kind != "R"]
    drawn: list[Drawn | None] = []
    if random:
        drawn += [draw(random, folder, words) for draw in (draw_bottom, draw_top, draw_paired)]
    drawn.append(draw_figure3(markers, folder, words))
    if runs is not None:
        weights, curves = {}, {}
        iterations = {row.network: row.max_iter for row in rows}
        for marker in markers:
            network = Path(runs) / marker.network
            path = weights_path(network, iterations[marker.network])
            if marker.kind == "base" and path.is_file():
                weights[marker.network] = path
            if (network / "curve.csv").is_file():
                curves[marker.network] = read_curve(network / "curve.csv")
        drawn += [draw_filters(markers, weights, folder), draw_curves(markers, curves, folder)]
    found = [each for each in drawn if each is not None]
    for name in set(NAMES) - {each.name for each in found}:  # of an earlier table, and not true of this one
        for ending in ("png", "svg", "csv"):
            (folder / f"{name}.{ending}").unlink(missing_ok=True)
    return found


def add_metric(parser: ArgumentParser) -> None:
    """Add --metric, which figures and report share."""
    parser.add_argument(
        "--metric",
        choices=list(METRICS),
        default="final",
        help="final: accuracy after the last iteration (default). top10: the paper's, the mean of the ten highest test "
        "accuracies of a training; it picks them on the test set, so it is slightly too high; with few tests it means "
        "little",
    )


@command
def main(argv: list[str] | None = None) -> int | None:
    """Draw the figures of one results table."""
    parser = ArgumentParser(
        prog="python -m transfer_caffe.figures",
        description="Draw the figures of a results table: PNG and SVG, and the numbers behind each as CSV.",
        epilog="example: python -m transfer_caffe.figures --results runs/demo/results.csv --out report/figures",
    )
    parser.add_argument("--results", required=True, help="results.csv; the networks' folders are looked for beside it")
    parser.add_argument("--out", required=True, help="folder for the figures; those in it are replaced")
    add_metric(parser)
    options = parser.parse_args(argv)
    results = Path(options.results)
    drawn = draw_figures(read_results(results), options.out, options.metric, results.parent)
    if not drawn:
        raise UserError(
            f"{results}: no network of a random split, of natman, or with random filters, and no curves beside the "
            "table: nothing to draw"
        )
    for each in drawn:
        print(*each.files, sep="\n")
    return 0
