"""`sweep status`: show the progress of each network of a recipe, and warnings about it.

The information comes from the networks' files and, on a cluster, from Slurm's queue:

python -m transfer_caffe.sweep status --recipe demo
"""

from __future__ import annotations

import argparse
from collections import Counter

from transfer_caffe.experiment.read import load_recipe
from transfer_caffe.run.watch import remarks_of
from transfer_caffe.sweep.progress import look
from transfer_caffe.sweep.selection import add_recipe_arguments, selected
from transfer_caffe.sweep.slurm import status
from transfer_caffe.utils.errors import ArgumentParser

SUMMARY = "show the progress of each network"
EXAMPLES = """examples:
  python -m transfer_caffe.sweep status --recipe demo
"""


def add_arguments(parser: ArgumentParser) -> None:
    """Add the options of `sweep status`."""
    add_recipe_arguments(parser)


def main(args: argparse.Namespace) -> None:
    """Print the progress of each network."""
    recipe = load_recipe(args.recipe)
    networks = selected(recipe, args).networks
    cluster = status.look(recipe, args.runs)
    words: Counter[str] = Counter()
    wide = max(len(network.name) for network in networks)
    done_count = 0
    for network in networks:
        state = look(network, args.runs)
        text = state.words(network)
        if state.done:
            done_count += 1
            text = f"test accuracy {state.done['accuracy_final']:.4f}, {text}"
        elif state.word == "started":
            text += f", last snapshot {state.snapshot}" if state.snapshot else ", no snapshot yet"
        if cluster and not state.done and (said := cluster.say(network)):
            words[said[0]] += 1
            text = f"{said[1]}; {text}"
        print(f"{network.name:{wide}} {text}")
        for remark in remarks_of(network, args.runs, args.data):
            print(f"{'':{wide}} ! {remark}")
    others = "".join(f", {count} {word}" for word, count in sorted(words.items()))
    print(f"{done_count} of {len(networks)} networks are done{others}")
    if cluster:
        for line in (cluster.silent and f"from files only: {cluster.silent}", cluster.data(recipe)):
            if line:
                print(line)
