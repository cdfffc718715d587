"""`sweep plan`: the networks of a recipe, in the order in which they are started, and which are done.

python -m transfer_caffe.sweep plan --recipe demo
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from transfer_caffe import driver
from transfer_caffe.errors import ArgumentParser, UserError
from transfer_caffe.recipe import Network, load_recipe
from transfer_caffe.sweep.selection import add_recipe_arguments, selected

SUMMARY = "show what there is to do, and what is done"
EXAMPLES = """examples:
  python -m transfer_caffe.sweep plan --recipe demo
"""

# An iteration with the first n layers frozen, relative to one that trains all (paper's logs, seconds on a K20): the
# backward pass stops above the frozen layers. Good enough to tell the time left, and which networks to start first.
COST = (1.0, 0.84, 0.67, 0.57, 0.47, 0.39, 0.37, 0.37)


def add_arguments(parser: ArgumentParser) -> None:
    """The options of `sweep plan`."""
    add_recipe_arguments(parser)


def done_words(network: Network, runs: Path, data: Path, done: dict[str, Any]) -> str:
    """`done`, or that it would be another network by the recipe, or by its base, as they are now."""
    try:
        driver.require_unchanged(network, runs, data, done)
    except UserError as error:
        return f"done, but not as it would be now: {error}"
    return "done"


def main(args: argparse.Namespace) -> None:
    """Print the networks in the order in which they are started, and which are done."""
    recipe, runs, data = load_recipe(args.recipe), args.runs, args.data
    print(f"{'network':24} {'takes from':20} {'frozen':>6} {'iterations':>10}")
    selection = selected(recipe, args)
    networks = selection.networks
    left = 0
    for network in networks:
        base, done = network.base.name if network.base else "-", driver.read_done(network, runs)
        left += 0 if done else network.max_iter
        state = f"  {done_words(network, runs, data, done)}" if done else ""
        print(f"{network.name:24} {base:20} {network.treatment.frozen:>6} {network.max_iter:>10}{state}")
    print(f"{len(networks)} networks, {sum(network.max_iter for network in networks)} iterations, {left} of them to do")
