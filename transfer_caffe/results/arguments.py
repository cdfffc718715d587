"""Command-line options that figures, analysis and report have in common."""

from __future__ import annotations

from transfer_caffe.results.markers import METRICS
from transfer_caffe.utils.errors import ArgumentParser


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
