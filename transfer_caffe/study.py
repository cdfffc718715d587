"""How many stages of existing weights should be copied for your images, and should they be frozen?

    python -m transfer_caffe.study --weights W.caffemodel --net deploy.prototxt --images my_photos
    python -m transfer_caffe.study --weights W.caffemodel --net deploy.prototxt --images my_photos --seeds 3 --gpu 0

The command writes image lists and a recipe, trains networks from scratch, with the first n stages of the weights
frozen, and with them fine-tuned, and prints which is best. The recipe stays and may be edited, and the other commands
take it, too. Run the command again to resume; a study that is done only prints its answer.
"""

from __future__ import annotations

import argparse
import math
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import yaml

from transfer_caffe.analysis.answer import answers, export_commands
from transfer_caffe.data_prep.folders import find_images
from transfer_caffe.data_prep.folders import main as write_lists
from transfer_caffe.experiment.read import load_recipe
from transfer_caffe.experiment.stages import Stage, images_of, stages_of, training_layers
from transfer_caffe.formats.nets import read_net
from transfer_caffe.formats.proto.caffe_pb2 import NetParameter
from transfer_caffe.formats.weights import read_weights
from transfer_caffe.results.markers import markers_of
from transfer_caffe.results.table import load
from transfer_caffe.sweep.__main__ import main as sweep
from transfer_caffe.utils.errors import ArgumentParser, UserError, command, require_file
from transfer_caffe.utils.files import write_text

HELD_OUT = 0.2
"""Fraction of the smallest class that is kept for validation, per class."""
MOST_CUTS = 7
"""At most this many n are tried, spread over the stages; all of them if there are not more."""
EPOCHS, LEAST_ITERATIONS = 30, 400
BATCH = 32

HEADER = """# A study: how many stages of {weights} to copy for these images, and whether to freeze them.
#
#   python -m transfer_caffe.sweep run --recipe {file} --report {report}
#
# {stages} stages: {names}
# Copied stages that are fine-tuned learn at a tenth of the rate of the re-initialised ones (copied_rate): at the full
# rate they lose what they have learnt, and a comparison would say more about the rate than about the features.
"""


def crop_of(net: NetParameter, where: str) -> int:
    """Return the side of the images that a net takes. Raise UserError if the prototxt does not say it."""
    images = images_of(training_layers(net), where)
    for layer in net.layer:
        if images in layer.top and not layer.bottom:
            if layer.type == "Input" and layer.input_param.shape:
                return layer.input_param.shape[0].dim[-1]
            if layer.transform_param.crop_size:
                return layer.transform_param.crop_size
    raise UserError(f"{where} does not say the size of its images; give it with --crop")


def spread(stages: int, most: int = MOST_CUTS) -> list[int]:
    """Return the n to try: all from 1 to stages - 1, or ``most`` of them at equal distances, with both ends."""
    last = stages - 1
    if last <= most:
        return list(range(1, last + 1))
    return sorted({round(1 + place * (last - 1) / (most - 1)) for place in range(most)})


def recipe_text(
    name: str, weights: Path, net_file: Path, crop: int, mean: Sequence[float], images: int, seeds: int,
    iterations: int | None, folder: Path,
) -> str:  # fmt: skip
    """Return the recipe of a study, as YAML with comments; ``images`` is the number of training images."""
    net = read_net(net_file)
    stages = stages_of(net)
    if len(stages) < 2:
        raise UserError(f"{net_file} has one stage only, so there is nothing to copy; see transfer_caffe.architecture")
    steps = iterations or max(LEAST_ITERATIONS, math.ceil(EPOCHS * images / BATCH))
    interval = max(1, math.ceil(steps / 4))
    numbers = ",".join(map(str, spread(len(stages))))
    side = round(crop * 256 / 227)
    recipe = {
        "name": name,
        "dataset": name,
        "images": {"root": "images", "resize": [side, side], "encoded": True},
        "architecture": os.path.relpath(net_file, folder),
        "sources": {"P": {"weights": os.path.relpath(weights, folder)}},
        "crop": crop,
        "mirror": True,
        "mean": list(mean),
        "copied_rate": 0.1,
        "batch": {"train": BATCH, "test": 50},
        "solver": {
            "base_lr": 0.01, "lr_policy": "poly", "power": 1, "max_iter": 4 * interval, "momentum": 0.9,
            "weight_decay": 0.0005, "clip_gradients": 10, "test_interval": interval, "display": max(1, interval // 10),
            "snapshot": interval,
        },
        "seeds": list(range(seeds)),
        "networks": {"whole": ["base", f"P{{{numbers}}}", f"P{{{numbers}}}+"]},
    }  # fmt: skip
    names = ", ".join(f"{stage.number} {stage.name}" for stage in stages)
    head = HEADER.format(
        weights=weights.name, file=f"{name}.yaml", report=f"report/{name}", stages=len(stages), names=names
    )
    return head + yaml.safe_dump(recipe, sort_keys=False, default_flow_style=None, width=110, allow_unicode=True)


def require_weights(path: str, stages: Sequence[Stage]) -> None:
    """Raise UserError unless a weights file is intact and has the layers of all stages but the last."""
    there = read_weights(Path(path))
    for stage in stages[:-1]:
        for name in stage.weighted:
            if name not in there:
                has = ", ".join(list(there)[:8]) or "none"
                raise UserError(f"{path} has no layer {name}, which the net has; its layers with weights: {has}")


def prepare(args: argparse.Namespace) -> Path:
    """Write the lists and the recipe, unless they exist; return the recipe's path."""
    name = args.name or Path(os.path.abspath(args.images)).name
    path = Path(f"{name}.yaml")
    if not all(character.isalnum() or character in "_.-" for character in name) or not name[:1].isalnum():
        raise UserError(f"{name!r} cannot be the name of a study; give one of letters, digits, _, . and - with --name")
    if path.exists():
        print(f"{path}: exists already and is used as it is; edit it, or remove it to make it again")
        return path
    require_file(args.weights, "give the .caffemodel that stages are to be copied from")
    require_file(args.net, "give the prototxt of the net that the weights belong to")
    if args.seeds < 1 or (args.iterations is not None and args.iterations < 4):
        raise UserError("--seeds must be 1 or more, --iterations 4 or more")
    net = read_net(args.net)
    crop = args.crop or crop_of(net, args.net)
    require_weights(args.weights, stages_of(net))
    lists = Path(args.data) / name
    if not (lists / "train.txt").is_file():
        found, _ = find_images(Path(args.images))
        smallest = min(found, key=lambda each: len(found[each]), default=None)
        if smallest is None or len(found) < 2:
            raise UserError(f"{args.images}: it must contain a folder of images for each of at least two classes")
        if len(found[smallest]) < 2:
            raise UserError(f"{args.images}: the class {smallest} has one image only; two or more are needed")
        held = max(1, int(HELD_OUT * len(found[smallest])))
        if code := write_lists([str(args.images), "--out", str(lists), "--val-images-per-class", str(held)]):
            sys.exit(code)
    images = len((lists / "train.txt").read_text(encoding="utf-8").splitlines())
    mean = args.mean or [104, 117, 123]
    text = recipe_text(
        name, Path(args.weights), Path(args.net), crop, mean, images, args.seeds, args.iterations, Path()
    )  # fmt: skip
    write_text(path, text)
    print(f"{path}: the recipe of the study; edit it to change what is trained")
    return path


def _numbers(text: str) -> list[float]:
    try:
        numbers = [float(each) for each in text.split(",")]
    except ValueError:
        numbers = []
    if len(numbers) != 3 or not all(map(math.isfinite, numbers)):
        raise argparse.ArgumentTypeError(f"three numbers, for blue, green and red, were expected, not {text!r}")
    return numbers


@command
def main(argv: list[str] | None = None) -> int | None:
    """The command line."""
    parser = ArgumentParser(
        prog="python -m transfer_caffe.study",
        description="Train with the first n stages of existing weights frozen, fine-tuned, and from scratch, and say "
        "which is best for your images.",
        epilog="example: python -m transfer_caffe.study --weights W.caffemodel --net deploy.prototxt --images photos",
    )
    parser.add_argument("--weights", required=True, metavar="FILE", help="the .caffemodel to copy stages from")
    parser.add_argument("--net", required=True, metavar="FILE", help="its train_val.prototxt or deploy.prototxt")
    parser.add_argument("--images", required=True, metavar="DIR", help="folder with a folder of images for each class")
    parser.add_argument("--name", help="name of the study (default: that of the images' folder)")
    parser.add_argument("--seeds", type=int, default=1, metavar="K", help="train every network K times (default: 1)")
    parser.add_argument("--crop", type=int, metavar="PIXELS", help="side of the images (default: what the net says)")
    parser.add_argument(
        "--mean", type=_numbers, metavar="B,G,R", help="mean of each channel (default: 104,117,123, ImageNet's)"
    )
    parser.add_argument(
        "--iterations", type=int, metavar="N", help=f"iterations of each network (default: {EPOCHS} epochs)"
    )
    parser.add_argument("--data", default="data", metavar="DIR", help="where datasets are (default: data)")
    parser.add_argument("--runs", default="runs", metavar="DIR", help="where networks are (default: runs)")
    parser.add_argument("--gpu", metavar="N", help="which GPUs (default: none)")
    parser.add_argument("--jobs", metavar="K", help="networks at a time (default: one per core or GPU)")
    parser.add_argument("--plan", action="store_true", help="only write lists and recipe, and print the plan")
    args = parser.parse_args(argv)
    path = prepare(args)
    recipe = load_recipe(path)
    where = ["--recipe", str(path), "--data", args.data, "--runs", args.runs]
    if code := sweep(["plan", *where]):
        return code
    if args.plan:
        return 0
    more = [*(["--gpu", args.gpu] if args.gpu else []), *(["--jobs", args.jobs] if args.jobs else [])]
    report = Path("report") / recipe.name
    code = sweep(["run", *where, *more, "--report", str(report)])
    results = Path(args.runs) / recipe.name / "results.csv"
    if results.is_file():
        print()
        markers = markers_of(load(results), "final")
        for answer in answers(markers):
            print(answer)
        for line in export_commands(markers, f"{args.runs}/{recipe.name}"):
            print(f"To use it in other programs: {line}")
    return code


if __name__ == "__main__":
    sys.exit(main())
