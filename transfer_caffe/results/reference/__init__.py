"""The paper's own results as data: 170 networks of Yosinski, Clune, Bengio and Lipson (2014), 148 with their numbers.

    from transfer_caffe.reference import NETWORKS, CURVES
    rows = read_results(NETWORKS)       # transfer_caffe.results.table

README.md in this folder describes the columns and says where the numbers come from.
"""

from __future__ import annotations

from pathlib import Path

NETWORKS = Path(__file__).parent / "paper_networks.csv"
"""One row a network, in the columns of `transfer_caffe.results.table.Row`."""

CURVES = Path(__file__).parent / "paper_curves.csv"
"""network, iteration, test_accuracy, test_loss every 5,000 iterations; networks by the names in `NETWORKS`."""
