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

import sys
from collections.abc import Sequence
from pathlib import Path

from transfer_caffe.analysis import analyse, table1_csv, table1_md
from transfer_caffe.experiment.treatment import LAYERS
from transfer_caffe.figures.draw import CAPTIONS, draw_figures
from transfer_caffe.figures.figure1 import TREATMENTS, draw_figure1, treatments_of
from transfer_caffe.results.arguments import add_compare, add_metric
from transfer_caffe.results.markers import accuracy_of
from transfer_caffe.results.table import Row, load
from transfer_caffe.utils.errors import ArgumentParser, UserError, command
from transfer_caffe.utils.files import write_text


def _write_table1(rows: Sequence[Row], metric: str, folder: Path) -> list[Path]:
    """The paper's Table 1 as table1.csv and table1.md; nothing without AnB+ networks."""

    whole = [row for row in rows if row.images_per_class is None and accuracy_of(row, metric) is not None]
    analyses = analyse(whole, metric) if whole else []
    texts = {"table1.csv": table1_csv(analyses), "table1.md": table1_md(analyses)} if analyses else {}
    for name in ("table1.csv", "table1.md"):
        if text := texts.get(name):
            write_text(folder / name, text)
        else:  # of an earlier table, and not true of this one
            (folder / name).unlink(missing_ok=True)
    return [folder / name for name, text in texts.items() if text]


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


if __name__ == "__main__":
    sys.exit(main())
