"""Draw the figures of a results table as PNG, SVG and PDF, with a CSV of the plotted numbers, and write captions.md.

    python -m transfer_caffe.figures --results runs/demo/results.csv --out report/figures
    python -m transfer_caffe.figures --results paper --metric top10 --out paper/figures
    python -m transfer_caffe.figures --results runs/demo/results.csv --compare paper --out compared

The figures are figure1 (the paper's Figure 1, the treatments; needs no results), figure2_top and figure2_bottom (the
paper's Figure 2), figure2_paired (each network minus its own base), figure3 (the paper's Figure 3) and reduced (the
figure of the paper's supplement). conv1_filters and curves are drawn from the networks' folders next to the table. A
figure is left out if the table has no networks for it. The command also writes the paper's Table 1 as table1.csv and
table1.md, with the numbers of transfer_caffe.analysis.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from transfer_caffe.analysis import analyse, write_table1
from transfer_caffe.experiment.treatment import LAYERS
from transfer_caffe.figures.draw import CAPTIONS, draw_figures
from transfer_caffe.figures.figure1 import TREATMENTS, draw_figure1, treatments_of
from transfer_caffe.results.arguments import add_compare, add_metric
from transfer_caffe.results.markers import accuracy_of
from transfer_caffe.results.table import Row, load
from transfer_caffe.utils.errors import ArgumentParser, UserError, command


def _write_table1(rows: Sequence[Row], metric: str, folder: Path) -> list[Path]:
    """Write the paper's Table 1 as table1.csv and table1.md and return their paths; none without AnB+ networks."""
    whole = [row for row in rows if row.images_per_class is None and accuracy_of(row, metric) is not None]
    return write_table1(analyse(whole, metric) if whole else [], folder)


@command
def main(argv: list[str] | None = None) -> int | None:
    """Run the command line: draw the figures of a results table, of the paper's table, or of both."""
    parser = ArgumentParser(
        prog="python -m transfer_caffe.figures",
        description="Draw the figures of a results table as PNG, SVG and PDF, with the plotted numbers as CSV.",
        epilog="examples:\n"
        "  python -m transfer_caffe.figures --results runs/demo/results.csv --out report/figures\n"
        "  python -m transfer_caffe.figures --results paper --metric top10 --out paper/figures\n"
        "  python -m transfer_caffe.figures --results runs/demo/results.csv --compare paper --out compared\n"
        '  python -m transfer_caffe.figures --treatments "baseA,A{1-7}B" --out figures',
    )
    parser.add_argument(
        "--results",
        metavar="CSV",
        help="results.csv, with the networks' folders next to it; or `paper` for the authors' networks. Without "
        "this option only Figure 1 is drawn",
    )
    add_compare(parser)
    parser.add_argument("--out", required=True, help="folder for the figures; existing ones are replaced")
    add_metric(parser)
    parser.add_argument(
        "--treatments",
        default=TREATMENTS,
        metavar="LIST",
        help=f"rows of Figure 1, separated by commas (default: {TREATMENTS}); --n sets the n of names such as AnB",
    )
    parser.add_argument("--n", type=int, help="number of copied layers in Figure 1 (default: 3)")
    parser.add_argument("--layers", type=int, default=LAYERS, help=f"number of layers in Figure 1 (default: {LAYERS})")
    options = parser.parse_args(argv)
    if options.layers < 2 or options.layers > 40:
        raise UserError(f"--layers {options.layers}: only networks of 2 to 40 layers can be drawn")
    treatments = treatments_of(options.treatments, options.n, options.layers)
    if options.results is None:
        if options.compare:
            raise UserError("--compare needs --results with your own table, such as runs/demo/results.csv")
        drawn = [draw_figure1(treatments, Path(options.out), options.layers)]
        print(*drawn[0].files, sep="\n")
        return 0
    paper = options.results == "paper"
    if paper and options.compare:
        raise UserError(
            "--results paper --compare paper: both are the paper's networks; give your own results.csv to --results"
        )
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
            f"{options.results}: no networks of a random split, of transfer in the split natman, on reduced data or "
            "with random filters, and no curve.csv next to the table, so there is nothing to draw but Figure 1"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
