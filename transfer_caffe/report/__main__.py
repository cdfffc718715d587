"""Write the report of a recipe's networks; the Python function is `transfer_caffe.report.write_report`."""

from __future__ import annotations

import sys

from transfer_caffe.report import write_report
from transfer_caffe.results.arguments import add_compare, add_metric
from transfer_caffe.utils.errors import ArgumentParser, command


@command
def main(argv: list[str] | None = None) -> int | None:
    """Run the command line: write the report on one recipe's networks."""
    parser = ArgumentParser(
        prog="python -m transfer_caffe.report",
        description="Write a report on the networks of a recipe, OUT/index.html, with its figures and analysis tables.",
        epilog="examples:\n"
        "  python -m transfer_caffe.report --runs runs/demo --out report\n"
        "  python -m transfer_caffe.report --runs runs/paper --compare paper --metric top10 --out report\n"
        "  python -m transfer_caffe.report --runs paper --metric top10 --out report_of_the_paper",
    )
    parser.add_argument(
        "--runs", required=True, metavar="DIR",
        help="folder with results.csv and the networks' folders, or `paper` for the authors' networks",
    )  # fmt: skip
    parser.add_argument("--out", required=True, help="folder for the page and its figures; existing files are replaced")
    add_compare(parser)
    add_metric(parser)
    options = parser.parse_args(argv)
    print(write_report(options.runs, options.out, options.metric, options.compare is not None))
    return 0


if __name__ == "__main__":
    sys.exit(main())
