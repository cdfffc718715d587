"""Figures of a results table, each as PNG, SVG, PDF and, where it has numbers, CSV; captions.md says what they show.

    python -m transfer_caffe.figures --results runs/demo/results.csv --out report/figures
    python -m transfer_caffe.figures --results paper --metric top10 --out paper/figures
    python -m transfer_caffe.figures --results runs/demo/results.csv --compare paper --out compared

figure1 (the paper's Figure 1, the treatments; needs no results), figure2_top, figure2_bottom (the paper's Figure 2),
figure2_paired (each network minus its own base), figure3 (the paper's Figure 3), reduced (the supplement's), and from
the networks' folders beside the table conv1_filters and curves. What the table has no networks for is left out. Beside
them lie table1.csv and table1.md, the paper's Table 1 (its numbers are those of transfer_caffe.analysis).
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

from transfer_caffe.errors import ArgumentParser, UserError, command
from transfer_caffe.figures.cells import METRICS, Marker, accuracy_of, markers_of
from transfer_caffe.figures.curves import Curve, curve_of, draw_curves, read_curve, read_tests
from transfer_caffe.figures.figure1 import TREATMENTS, draw_figure1, treatments_of
from transfer_caffe.figures.figure2 import draw_bottom, draw_paired, draw_top
from transfer_caffe.figures.figure3 import draw_figure3
from transfer_caffe.figures.filters import draw_filters
from transfer_caffe.figures.reduced import draw_reduced
from transfer_caffe.figures.sources import Source
from transfer_caffe.figures.style import Drawn
from transfer_caffe.files import write_text
from transfer_caffe.reference import CURVES, NETWORKS
from transfer_caffe.results import Row, load, read_results
from transfer_caffe.snapshots import weights_path
from transfer_caffe.treatment import LAYERS, Treatment

METRIC_WORDS = {
    "final": "Accuracy is the one after the last iteration.",
    "top10": "Accuracy is the mean of the ten highest test accuracies of a network's training, as in the paper: a "
    "choice made on the test set, so slightly too high.",
}

NAMES = ("figure1", "figure2_bottom", "figure2_top", "figure2_paired", "figure3", "reduced", "conv1_filters", "curves")
ENDINGS = ("png", "svg", "pdf", "csv")
CAPTIONS = "captions.md"


def draw_figures(
    rows: Sequence[Row],
    out: str | os.PathLike[str],
    metric: str = "final",
    runs: str | os.PathLike[str] | None = None,
    compare: Sequence[Row] = (),
    treatments: Sequence[Treatment] = (),
    layers: int = LAYERS,
) -> list[Drawn]:
    """Draw every figure the rows have networks for into the folder ``out``; ``runs`` holds the networks' folders.

    ``metric`` is one of `METRICS`; ``compare`` the paper's rows, to be drawn behind; ``treatments`` and ``layers`` are
    those of Figure 1. UserError if no network has an accuracy, or for another metric. Rows that are all the paper's are
    drawn as the paper's.
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
    random = [source.only(lambda marker: marker.family == "random" and marker.kind != "R") for source in sources]
    if random[0].markers:
        drawn += [draw(random, folder, words) for draw in (draw_bottom, draw_top, draw_paired)]
    drawn.append(draw_figure3(sources, folder, words))
    drawn.append(draw_reduced(tables, folder, metric, words))
    weights, curves = _of_folders(rows, markers, Path(runs)) if runs is not None else ({}, {})
    if name == "paper":
        curves = {network: curve_of(tests) for network, tests in read_tests(CURVES).items()}
    drawn += [draw_filters(markers, weights, folder), draw_curves(sources[0], curves, folder)]
    found = [each for each in drawn if each is not None]
    for missing in set(NAMES) - {each.name for each in found}:  # of an earlier table, and not true of this one
        for ending in ENDINGS:
            (folder / f"{missing}.{ending}").unlink(missing_ok=True)
    _write_captions(found, folder)
    return found


def folder_of(runs: Path, network: str) -> Path | None:
    """The folder of a network of a table, None if its name is none of a folder: a table may be anyone's."""
    return runs / network if re.fullmatch(r"(?!\.\.?$)[^/\\\0]{1,200}", network) else None


def _of_folders(rows: Sequence[Row], markers: Sequence[Marker], runs: Path) -> tuple[dict[str, Path], dict[str, Curve]]:
    """Final weights of the bases, and curves, as far as the networks' folders have them."""
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


def _write_captions(drawn: Sequence[Drawn], folder: Path) -> None:
    """Title, caption and files of every figure, for people who have only the pictures."""
    parts = ["# Figures\n"]
    for each in drawn:
        files = ", ".join(path.name for path in each.files)
        parts.append(f"## {each.title}\n\n{each.caption}\n\nFiles: {files}\n")
    write_text(folder / CAPTIONS, "\n".join(parts))


def _write_table1(rows: Sequence[Row], metric: str, folder: Path) -> list[Path]:
    """The paper's Table 1 as table1.csv and table1.md; nothing without AnB+ networks."""
    from transfer_caffe.analysis import analyse, table1_csv, table1_md  # which reads its numbers from this package

    whole = [row for row in rows if row.images_per_class is None and accuracy_of(row, metric) is not None]
    analyses = analyse(whole, metric) if whole else []
    texts = {"table1.csv": table1_csv(analyses), "table1.md": table1_md(analyses)} if analyses else {}
    for name in ("table1.csv", "table1.md"):
        if text := texts.get(name):
            write_text(folder / name, text)
        else:  # of an earlier table, and not true of this one
            (folder / name).unlink(missing_ok=True)
    return [folder / name for name, text in texts.items() if text]


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


def add_compare(parser: ArgumentParser) -> None:
    """Add --compare, which figures and report share."""
    parser.add_argument("--compare", choices=["paper"], help="draw the paper's networks pale behind yours")


@command
def main(argv: list[str] | None = None) -> int | None:
    """Draw the figures of one results table, of the paper's, or of both; without a table only Figure 1."""
    parser = ArgumentParser(
        prog="python -m transfer_caffe.figures",
        description="Draw the figures of a results table: PNG, SVG and PDF, and the numbers behind each as CSV.",
        epilog="examples:\n"
        "  python -m transfer_caffe.figures --results runs/demo/results.csv --out report/figures\n"
        "  python -m transfer_caffe.figures --results paper --metric top10 --out paper/figures\n"
        "  python -m transfer_caffe.figures --results runs/demo/results.csv --compare paper --out compared\n"
        '  python -m transfer_caffe.figures --treatments "baseA,A{1-7}B" --out figures',
    )
    parser.add_argument(
        "--results",
        metavar="CSV",
        help="results.csv; the networks' folders are looked for beside it. The word paper: the authors' own networks. "
        "Without it only Figure 1 is drawn",
    )
    add_compare(parser)
    parser.add_argument("--out", required=True, help="folder for the figures; those in it are replaced")
    add_metric(parser)
    parser.add_argument(
        "--treatments",
        default=TREATMENTS,
        metavar="LIST",
        help=f"rows of Figure 1, with commas (default: {TREATMENTS}); AnB takes its n from --n",
    )
    parser.add_argument("--n", type=int, help="layers taken over in Figure 1 (default: 3)")
    parser.add_argument("--layers", type=int, default=LAYERS, help=f"layers of Figure 1's networks (default: {LAYERS})")
    options = parser.parse_args(argv)
    if options.layers < 2 or options.layers > 40:
        raise UserError(f"--layers {options.layers}: 2 to 40 can be drawn")
    treatments = treatments_of(options.treatments, options.n, options.layers)
    if options.results is None:
        if options.compare:
            raise UserError("--compare needs --results: your table, as runs/demo/results.csv")
        drawn = [draw_figure1(treatments, Path(options.out), options.layers)]
        print(*drawn[0].files, sep="\n")
        return 0
    paper = options.results == "paper"
    if paper and options.compare:
        raise UserError("--results paper --compare paper: both are the paper; give your own results.csv to --results")
    rows = load(options.results)
    drawn = draw_figures(
        rows,
        options.out,
        options.metric,
        None if paper else Path(options.results).parent,
        load(options.compare) if options.compare else (),
        treatments,
        options.layers,
    )
    for each in drawn:
        print(*each.files, sep="\n")
    print(Path(options.out) / CAPTIONS)
    for path in _write_table1(rows, options.metric, Path(options.out)):
        print(path)
    if {each.name for each in drawn} == {"figure1"}:
        raise UserError(
            f"{options.results}: no network of a random split, of natman, on reduced data, or with random filters, and "
            "no curves beside the table: nothing to draw but Figure 1"
        )
    return 0
