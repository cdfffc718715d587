"""The paper's results as data: the 170 networks of Yosinski, Clune, Bengio and Lipson (2014), 148 with accuracies.

    from transfer_caffe.results.reference import CURVES, NETWORKS
    rows = read_results(NETWORKS)       # transfer_caffe.results.table

README.md in this folder describes the columns and the source of the numbers.
"""

from __future__ import annotations

from pathlib import Path

NETWORKS = Path(__file__).parent / "paper_networks.csv"
"""One row per network, with the columns of `transfer_caffe.results.table.Row` except the last three."""

CURVES = Path(__file__).parent / "paper_curves.csv"
"""network, iteration, test_accuracy and test_loss every 5,000 iterations; the network names are those of `NETWORKS`."""
