"""`sweep status`: how far each network of a recipe is, told from its files.

python -m transfer_caffe.sweep status --recipe demo
"""

from __future__ import annotations

import argparse

from transfer_caffe import driver, snapshots
from transfer_caffe.errors import ArgumentParser
from transfer_caffe.log import read_log
from transfer_caffe.recipe import load_recipe
from transfer_caffe.sweep.plan import done_words
from transfer_caffe.sweep.selection import add_recipe_arguments, selected

SUMMARY = "show how far each network is"
EXAMPLES = """examples:
  python -m transfer_caffe.sweep status --recipe demo
"""


def add_arguments(parser: ArgumentParser) -> None:
    """The options of `sweep status`."""
    add_recipe_arguments(parser)


def main(args: argparse.Namespace) -> None:
    """Print how far each network is."""
    recipe, runs, data = load_recipe(args.recipe), args.runs, args.data
    done_count = 0
    networks = selected(recipe, args).networks
    for network in networks:
        done = driver.read_done(network, runs)
        log = network.folder(runs) / driver.LOG
        if done:
            done_count += 1
            words = done_words(network, runs, data, done)
            text = f"test accuracy {done['accuracy_final']:.4f}, {words}"
        elif log.exists():
            found = snapshots.iterations(network.folder(runs))
            text = f"at iteration {read_log(log).iteration or 0} of {network.max_iter}, "
            text += f"last snapshot {found[-1]}" if found else "no snapshot yet"
        else:
            text = "not started"
        print(f"{network.name:24} {text}")
    print(f"{done_count} of {len(networks)} networks are done")
