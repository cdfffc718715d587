"""Command-line options shared by the figures, analysis and report commands."""

from __future__ import annotations

from transfer_caffe.results.markers import METRICS
from transfer_caffe.utils.errors import ArgumentParser


def add_metric(parser: ArgumentParser) -> None:
    """Add the option --metric."""
    parser.add_argument(
        "--metric",
        choices=list(METRICS),
        default="final",
        help="final: test accuracy after the last iteration (default). top10: the paper's metric, the mean of the ten "
        "highest test accuracies of a training run; because they are selected on the test set it is biased slightly "
        "upwards, and it is not meaningful for runs with few tests",
    )


def add_compare(parser: ArgumentParser) -> None:
    """Add the option --compare."""
    parser.add_argument("--compare", choices=["paper"], help="draw the paper's networks in pale colours behind yours")
