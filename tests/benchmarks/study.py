"""Does a study answer correctly? Repeat one whose answer is known by training many more seeds than a study has.

    python -m benchmarks.study --work FOLDER            (from tests/; takes about half an hour, and resumes)

The weights are those of the demo's baseA, trained on half A of `photos`. The images are `FEW` per class of half B, and
half B's complete validation set. `SEEDS` seeds of every treatment give its long-run mean; each `STUDY` consecutive
seeds are one study. Printed are, over the studies: how often the 95% interval of the best treatment's gain over
training from scratch contains the long-run gain; how often the intervals of all treatments' gains do; and how often
the treatment with the best long-run mean is recommended, or said to be indistinguishable from the recommendation.
"""

from __future__ import annotations

import argparse
import math
import os
from collections import defaultdict
from pathlib import Path

import yaml

from transfer_caffe.analysis.answer import difference, options_of
from transfer_caffe.data import make_data
from transfer_caffe.driver import main as driver
from transfer_caffe.experiment.read import load_recipe
from transfer_caffe.formats.image_list import read_list, write_list
from transfer_caffe.formats.nets import read_net
from transfer_caffe.formats.proto import to_text
from transfer_caffe.results.markers import markers_of
from transfer_caffe.results.table import load
from transfer_caffe.run.folder import weights_path
from transfer_caffe.sweep.__main__ import main as sweep

FEW, SEEDS, STUDY = 10, 30, 3

RECIPE = {
    "name": "few", "dataset": "few", "architecture": "deploy.prototxt", "crop": 28, "mirror": True,
    "images": {"resize": [32, 32], "root": "../photos"},
    "sources": {"P": {"weights": "weights.caffemodel"}}, "copied_rate": 0.1, "scale": 0.015625,
    "batch": {"train": 32, "test": 250},
    "solver": {
        "base_lr": 0.003, "lr_policy": "poly", "power": 1, "max_iter": 800, "momentum": 0.9, "weight_decay": 0.0005,
        "clip_gradients": 10, "test_interval": 800, "test_initialization": False, "display": 100, "snapshot": 800,
    },
    "solver_for": {"P*+": {"base_lr": 0.01}},
    "networks": {"whole": ["base", "P{1,3,5,7}", "P{1,3,5,7}+"]},
}  # fmt: skip
"""As `transfer_caffe.study` writes it; the learning rates are those that it finds."""


def prepare(seeds: int) -> None:
    """Write weights, net, lists and recipe into the current folder."""
    demo = load_recipe("demo")
    make_data(demo)
    if driver(["--recipe", "demo", "--treatment", "baseA"]):
        raise SystemExit(1)
    base = demo.network("random0", "baseA")
    folder = base.folder("runs")
    if not os.path.lexists("weights.caffemodel"):
        os.symlink(weights_path(folder, base.max_iter), "weights.caffemodel")
    net = read_net(folder / "train_val.prototxt")
    for layer in net.layer:  # published deploy nets have no fillers
        if layer.type in ("Convolution", "InnerProduct"):
            kind = layer.convolution_param if layer.type == "Convolution" else layer.inner_product_param
            kind.ClearField("weight_filler")
            kind.ClearField("bias_filler")
    Path("deploy.prototxt").write_text(to_text(net))
    counts: dict[int, int] = defaultdict(int)
    few = []
    for line in read_list("data/photos/random0/B/train.txt"):
        label = line[1]
        counts[label] += 1
        if counts[label] <= FEW:
            few.append(line)
    Path("data/few").mkdir(exist_ok=True)
    write_list("data/few/train.txt", few)
    write_list("data/few/val.txt", read_list("data/photos/random0/B/val.txt"))
    Path("few.yaml").write_text(yaml.safe_dump(RECIPE | {"seeds": list(range(seeds))}, sort_keys=False))


def report(seeds: int) -> None:
    """Print how the studies of `STUDY` seeds compare with all seeds."""
    markers = markers_of(load("runs/few/results.csv"), "final")
    (long_run,) = options_of(markers).values()
    truth = {option.name: option.mean for option in long_run}
    for option in long_run:
        spread = math.sqrt(sum((x - option.mean) ** 2 for x in option.by_seed.values()) / (len(option.by_seed) - 1))
        print(f"{option.name:5} {100 * option.mean:6.2f}%  (a seed's standard deviation: {100 * spread:.2f} points)")
    studies = [range(first, first + STUDY) for first in range(0, seeds - STUDY + 1, STUDY)]
    covered = found = every = intervals = 0
    for own in studies:
        (options,) = options_of([marker for marker in markers if marker.seed in own]).values()
        best, scratch = options[0], next(option for option in options if option.kind == "base")
        gains = {option.name: difference(option, scratch) for option in options if option is not scratch}
        hits = {
            name: ends is not None and ends[0] <= truth[name] - truth["base"] <= ends[1]
            for name, (_, ends) in gains.items()
        }
        covered += hits[best.name]
        every += sum(hits.values())
        intervals += len(hits)
        close = {best.name} | {
            option.name for option in options[1:]
            if (ends := difference(option, best)[1]) is None or ends[1] >= 0
        }  # fmt: skip
        found += long_run[0].name in close
        others = ", ".join(sorted(close - {best.name})) or "none"
        print(f"seeds {own[0]}-{own[-1]}: best {best.name}, not distinguishable: {others}")
    print(
        f"gain of the recommendation covered: {covered} of {len(studies)} studies; of all gains: {every} of {intervals}"
    )
    print(f"the long-run best is recommended or not distinguishable: {found} of {len(studies)} studies")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Repeat a study whose answer is known.")
    parser.add_argument("--work", required=True, help="folder for data and networks; used again if it exists")
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--jobs", default="2")
    args = parser.parse_args()
    Path(args.work).mkdir(parents=True, exist_ok=True)
    os.chdir(args.work)
    prepare(args.seeds)
    if sweep(["run", "--recipe", "few.yaml", "--jobs", args.jobs]):
        raise SystemExit(1)
    report(args.seeds)


if __name__ == "__main__":
    main()
