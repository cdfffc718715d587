"""Print the analysis of a results table; the Python function is `transfer_caffe.analysis.analyse`."""

from __future__ import annotations

import sys
from pathlib import Path

from transfer_caffe.analysis import analyse, write_analysis
from transfer_caffe.analysis.text import report_text
from transfer_caffe.results.arguments import add_metric
from transfer_caffe.results.markers import METRICS
from transfer_caffe.results.probes import read_probes
from transfer_caffe.results.table import load
from transfer_caffe.utils.errors import ArgumentParser, UserError, command


@command
def main(argv: list[str] | None = None) -> int | None:
    """Run the command line: analyse one results table."""
    parser = ArgumentParser(
        prog="python -m transfer_caffe.analysis",
        description="Analyse a results table: paired differences with 95% confidence intervals, the paper's Table 1 as "
        "published and with paired differences, which comparisons are confounded, and training times.",
        epilog="examples: python -m transfer_caffe.analysis --results paper --metric top10\n"
        "          python -m transfer_caffe.analysis --results runs/demo/results.csv --out report/analysis",
    )
    parser.add_argument("--results", required=True, help="results.csv, or `paper` for the paper's networks")
    parser.add_argument(
        "--out",
        metavar="DIR",
        help="folder for effects.csv, findings.csv, table1.csv and table1.md; existing files are replaced",
    )
    add_metric(parser)
    options = parser.parse_args(argv)
    rows = load(options.results)
    if not rows:
        raise UserError(
            f"{options.results}: no networks in it; train networks first: python -m transfer_caffe.sweep run"
        )
    probes = [] if options.results == "paper" else read_probes(Path(options.results).parent)
    analyses = analyse(rows, options.metric, probes)
    if not any(analysis.markers for analysis in analyses):
        raise UserError(
            f"{options.results}: no network has {METRICS[options.metric]} apart from networks trained on reduced data, "
            "so there is nothing to compare; train networks first (make sweep)"
        )
    print(report_text(analyses), end="")
    if options.out is not None:
        print("\nwrote " + "\n      ".join(str(path) for path in write_analysis(analyses, options.out)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
