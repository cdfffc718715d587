"""How many stages of existing weights should be copied for your images, and should they be frozen?

    python -m transfer_caffe.study --weights W.caffemodel --net deploy.prototxt --images my_photos
    python -m transfer_caffe.study --weights W.caffemodel --net deploy.prototxt --images my_photos --seeds 3 --hours 2

The command writes image lists and a recipe. It trains linear classifiers on the features of the weights, searches the
learning rates, trains networks from scratch, with the first n stages of the weights frozen, and with them fine-tuned,
and prints which is best. The recipe stays and may be edited, and the other commands take it, too. Run the command again
to resume; a study that is done only prints its answer.
"""

from __future__ import annotations

import argparse
import math
import os
import re
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import yaml

from transfer_caffe.analysis.answer import answers, export_commands
from transfer_caffe.data import PHOTOS
from transfer_caffe.data_prep.folders import find_images
from transfer_caffe.data_prep.folders import main as write_lists
from transfer_caffe.experiment.own_net import read_own_net
from transfer_caffe.experiment.read import load_recipe
from transfer_caffe.experiment.recipe import Recipe
from transfer_caffe.experiment.stages import Stage, images_of, stages_of, training_layers
from transfer_caffe.formats.image_list import read_list
from transfer_caffe.formats.proto import read_mean
from transfer_caffe.formats.proto.caffe_pb2 import NetParameter, TransformationParameter
from transfer_caffe.formats.weights import read_weights
from transfer_caffe.probe import make_probes, probe_seconds
from transfer_caffe.rates import RATES, block_of, search, table_of
from transfer_caffe.results.markers import markers_of
from transfer_caffe.results.probes import read_probes
from transfer_caffe.results.table import load
from transfer_caffe.run.engines import Engine
from transfer_caffe.sweep.__main__ import main as sweep
from transfer_caffe.sweep.budget import Size, candidates, fit, listed, seconds, spread
from transfer_caffe.sweep.measure import measure
from transfer_caffe.sweep.selection import select
from transfer_caffe.utils.errors import ArgumentParser, UserError, command, require_file
from transfer_caffe.utils.files import read_text, write_text
from transfer_caffe.utils.machine import cores

HELD_OUT = 0.2
"""Fraction of the smallest class that is kept for validation, per class."""
EPOCHS, LEAST_ITERATIONS = 30, 400
BATCH = 32
TESTS = 5
"""Tests of each network: one before the training, four during it."""

HEADER = """# A study: how many stages of {weights} to copy for these images, and whether to freeze them.
#
#   python -m transfer_caffe.sweep run --recipe {file} --report {report}
#
# {stages} stages: {names}{left_out}
# Copied stages that are fine-tuned learn at a tenth of the rate of the re-initialised ones (copied_rate): at the
# full rate they lose what they have learnt, and a comparison would say more about the rate than about the features.
"""

SEARCH = "# solver_for: the study searches the learning rates, and writes them here (remove this line to skip that)"
"""The line of a recipe whose learning rates are not searched yet."""


@dataclass(frozen=True)
class Study:
    """What a study is made of; ``images`` and ``val_images`` are numbers of images.

    ``channels`` is 3, or 1 for gray images. ``base_lr`` is None if the learning rates are to be searched. ``left_out``
    says what a budget of hours has left out.
    """

    name: str
    weights: Path
    net_file: Path
    stages: tuple[Stage, ...]
    crop: int
    channels: int
    mean: tuple[float, ...]
    scale: float
    images: int
    val_images: int
    classes: int
    seeds: int
    size: Size
    base_lr: float | None
    left_out: str = ""

    def text(self, folder: Path) -> str:
        """Return the recipe, as YAML with comments; its paths are relative to ``folder``."""
        interval = max(1, math.ceil(self.size.iterations / 4))
        numbers = ",".join(map(str, self.size.numbers))
        side = round(self.crop * 256 / 227)
        gray = {"gray": True} if self.channels == 1 else {}
        recipe = {
            "name": self.name,
            "dataset": self.name,
            "images": {"root": "images", "resize": [side, side], "encoded": True} | gray,
            "architecture": os.path.relpath(self.net_file, folder),
            "sources": {"P": {"weights": os.path.relpath(self.weights, folder)}},
            "crop": self.crop,
            "mirror": True,
            "mean": list(self.mean),
            **({} if self.scale == 1 else {"scale": self.scale}),
            "copied_rate": 0.1,
            "batch": {"train": BATCH, "test": 50},
            "solver": {
                "base_lr": self.base_lr or 0.01, "lr_policy": "poly", "power": 1, "max_iter": 4 * interval,
                "momentum": 0.9, "weight_decay": 0.0005, "clip_gradients": 10, "test_interval": interval,
                "display": max(1, interval // 10), "snapshot": interval,
            },
            "seeds": list(range(self.seeds)),
            "networks": {"whole": ["base", f"P{{{numbers}}}", f"P{{{numbers}}}+"]},
        }  # fmt: skip
        names = ", ".join(f"{stage.number} {stage.name}" for stage in self.stages)
        left_out = f"\n# {self.left_out}" if self.left_out else ""
        head = HEADER.format(
            weights=self.weights.name, file=f"{self.name}.yaml", report=f"report/{self.name}",
            stages=len(self.stages), names=names, left_out=left_out,
        )  # fmt: skip
        body = yaml.safe_dump(recipe, sort_keys=False, default_flow_style=None, width=110, allow_unicode=True)
        return head + body + (f"{SEARCH}\n" if self.base_lr is None else "")

    def within(self, hours: float, slots: int) -> Study:
        """Return the study reduced to ``hours`` on this machine, with ``slots`` networks at a time.

        Seconds per iteration are measured here. Raise UserError if not even the smallest study fits.
        """
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / f"{self.name}.yaml"
            write_text(path, self.text(Path(folder)))
            recipe = replace(load_recipe(path), outputs=1000)
            rate = measure(select(recipe), Engine.find("embedded"))
        rates = len(RATES) if self.base_lr is None else 0

        before = probe_seconds(rate, len(self.stages) - 1, self.images, self.val_images, self.classes)

        def cost(size: Size) -> float:
            return before + seconds(recipe, rate, size, self.seeds, self.val_images, TESTS, rates, slots)

        size = fit(hours, candidates(len(self.stages), self.size.iterations), cost)
        full = self.size
        changes = []
        if size.numbers != full.numbers:
            changes.append(f"n = {listed(size.numbers)} instead of {listed(full.numbers)}")
        if size.iterations != full.iterations:
            changes.append(f"{size.iterations} iterations instead of {full.iterations}")
        left_out = f"To fit {hours:g} hours: {' and '.join(changes)}." if changes else ""
        print(left_out or f"All of the study fits {hours:g} hours.", f"Expected here: {cost(size) / 3600:.2f} hours.")
        return replace(self, size=size, left_out=left_out)


def crop_of(net: NetParameter, where: str) -> int:
    """Return the side of the images that a net takes. Raise UserError if the prototxt does not say it."""
    images = images_of(training_layers(net), where)
    for layer in net.layer:
        if images in layer.top and not layer.bottom:
            if layer.type == "Input" and layer.input_param.shape:
                sides = list(layer.input_param.shape[0].dim[-2:])
                if sides[0] != sides[1]:
                    raise UserError(f"{where}: images of {sides[0]} x {sides[1]}; only square ones can be cropped")
                return sides[1]
            if layer.transform_param.crop_size:
                return layer.transform_param.crop_size
    raise UserError(f"{where} does not say the size of its images; give it with --crop")


def transform_of(net: NetParameter) -> TransformationParameter:
    """Return how the net's own data layer transforms images; the defaults for a net without one, such as a deploy net.

    Weights fit only images with the scale and the mean that they were trained with.
    """
    for layer in training_layers(net):
        if not layer.bottom and layer.HasField("transform_param"):
            return layer.transform_param
    return TransformationParameter()


def mean_of(net: NetParameter, path: str, channels: int) -> list[float]:
    """Return the mean of each channel that the net's own data layer subtracts; ImageNet's for a net without one.

    Raise UserError if the layer names a mean file that is not there.
    """
    transform = transform_of(net)
    if transform.mean_file:
        beside = Path(path).parent / transform.mean_file
        found = next((each for each in (Path(transform.mean_file), beside) if each.is_file()), None)
        if found is None:
            raise UserError(
                f"{path}: its data layer subtracts {transform.mean_file}, which is not there; copy it to {beside}, or "
                "give the mean of each channel with --mean (ImageNet's: 104,117,123)"
            )
        return [round(float(each), 3) for each in read_mean(found).mean((1, 2))]
    if transform.mean_value:
        return list(transform.mean_value)
    if transform.ByteSize():  # a data layer that subtracts nothing
        return [0.0]
    return [104, 117, 123] if channels == 3 else [117]


def channels_of(net: NetParameter, weights: str) -> int:
    """Return the number of channels of the images that a net takes: 3, or 1 for gray ones.

    It follows from the net's input, else from the weights of its first convolution.
    """
    layers = training_layers(net)
    for layer in layers:
        if layer.type == "Input" and layer.input_param.shape and len(layer.input_param.shape[0].dim) == 4:
            found = layer.input_param.shape[0].dim[1]
            break
    else:
        first = next((layer for layer in layers if layer.type == "Convolution"), None)
        blobs = read_weights(Path(weights)).get(first.name) if first is not None else None
        found = blobs[0].shape[1] * max(1, first.convolution_param.group) if first is not None and blobs else 3
    if found not in (1, 3):
        raise UserError(f"{weights}: the net takes images of {found} channels; 3, or 1 for gray images, are possible")
    return found


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
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", name) or name == PHOTOS:
        why = "is the name of the demo's images" if name == PHOTOS else "cannot be the name of a study"
        raise UserError(f"{name!r} {why}; give one of letters, digits, _, . and - with --name")
    if path.exists():
        _require_same(args, path, Path(args.data) / name / "images")
        print(f"{path}: exists already and is used as it is; edit it, or remove it to make it again")
        return path
    study = described(args, name)
    if args.hours is not None:
        study = study.within(args.hours, args.jobs or cores())
    write_text(path, study.text(Path()))
    print(f"{path}: the recipe of the study; edit it to change what is trained")
    return path


def _require_same(args: argparse.Namespace, path: Path, images: Path) -> None:
    """Raise UserError if an existing study has other weights, another net or other images than those that are given.

    ``images`` is the study's link to its images. Say it if a number of seeds is given that the study does not have.
    """
    recipe = load_recipe(path)
    used = [("--weights", args.weights, recipe.source_file(letter)) for letter in list(recipe.sources)[:1]]
    used += [("--net", args.net, recipe.net_file), ("--images", args.images, images if images.exists() else None)]
    for option, given, own in used:
        if own is not None and os.path.realpath(given) != os.path.realpath(own):
            raise UserError(
                f"{path} is a study with {option} {os.path.realpath(own)}, not {given}; give the new study another "
                "--name, or edit or remove that file"
            )
    if args.seeds not in (1, len(recipe.seeds)):
        print(f"--seeds {args.seeds} changes nothing: {path} lists its seeds; edit them there")


def described(args: argparse.Namespace, name: str) -> Study:
    """Return the study that the arguments ask for, at its full size, and write its image lists unless they exist."""
    require_file(args.weights, "give the .caffemodel that stages are to be copied from")
    require_file(args.net, "give the prototxt of the net that the weights belong to")
    if args.seeds < 1 or (args.iterations is not None and args.iterations < 4):
        raise UserError("--seeds must be 1 or more, --iterations 4 or more")
    for option, value in (("--hours", args.hours), ("--base-lr", args.base_lr), ("--scale", args.scale)):
        if value is not None and not (math.isfinite(value) and value > 0):
            raise UserError(f"{option} {value}: must be a number above 0")
    if args.jobs is not None and args.jobs < 1:
        raise UserError(f"--jobs {args.jobs}: must be 1 or more")
    if args.hours is not None and args.gpu:
        raise UserError("--hours measures this machine's processors; with --gpu, give --iterations and --seeds instead")
    net = read_own_net(args.net, args.crop)
    crop = args.crop or crop_of(net, args.net)
    stages = stages_of(net)
    if len(stages) < 2:
        raise UserError(f"{args.net} has one stage only, so there is nothing to copy; see transfer_caffe.architecture")
    require_weights(args.weights, stages)
    channels = channels_of(net, args.weights)
    mean, scale = args.mean or mean_of(net, args.net, channels), args.scale or transform_of(net).scale
    if len(mean) == 1:
        mean *= channels
    if len(mean) != channels:
        raise UserError(f"--mean: the net takes images of {channels} channels, so {channels} numbers are needed")
    lists = Path(args.data) / name
    link = lists / "images"
    if not (lists / "train.txt").is_file():
        _write_lists(args.images, lists)
    elif link.exists() and os.path.realpath(link) != os.path.realpath(args.images):
        raise UserError(
            f"{lists} was made from {os.path.realpath(link)}, not from {args.images}; give the study another --name, "
            f"or remove {lists} and {Path(args.runs) / name}"
        )
    train = read_list(lists / "train.txt")
    if args.base_lr is None and max(Counter(label for _, label in train).values()) < 2:
        raise UserError(
            f"{args.images}: each class has one training image only, which leaves none to compare learning rates on; "
            "give one with --base-lr, or more images"
        )
    images, val_images = len(train), len(read_list(lists / "val.txt"))
    iterations = args.iterations or max(LEAST_ITERATIONS, math.ceil(EPOCHS * images / BATCH))
    size = Size(tuple(spread(len(stages))), iterations)
    return Study(
        name, Path(args.weights), Path(args.net), tuple(stages), crop, channels, tuple(mean), float(f"{scale:.7g}"),
        images, val_images, len({label for _, label in train}), args.seeds, size, args.base_lr,
    )  # fmt: skip


def _write_lists(images: str, lists: Path) -> None:
    """Write the image lists of a folder of class folders, with a part of each class held out for validation."""
    found, _ = find_images(Path(images))
    smallest = min(found, key=lambda each: len(found[each]), default=None)
    if smallest is None or len(found) < 2:
        raise UserError(f"{images}: it must contain a folder of images for each of at least two classes")
    if len(found[smallest]) < 2:
        raise UserError(f"{images}: the class {smallest} has one image only; two or more are needed")
    held = max(1, int(HELD_OUT * len(found[smallest])))
    if code := write_lists([images, "--out", str(lists), "--val-images-per-class", str(held)]):
        sys.exit(code)


def is_open(text: str) -> bool:
    """Whether the learning rates of a recipe's text are to be searched."""
    return any(line.strip() == SEARCH for line in text.split("\n"))


def find_rates(path: Path, recipe: Recipe, args: argparse.Namespace, options: Sequence[str]) -> Recipe:
    """Search the learning rates if the recipe asks for it, write them into its file, and return the recipe."""
    text = read_text(path)
    if not is_open(text):
        return recipe
    found = search(recipe, Path(args.data), Path(args.runs), options=options)
    print("\n".join(["", "learning rates:", *table_of(found), ""]))
    block = block_of(found).rstrip("\n")
    write_text(path, "\n".join(block if line.strip() == SEARCH else line for line in text.split("\n")))
    return load_recipe(path)


def _numbers(text: str) -> list[float]:
    try:
        numbers = [float(each) for each in text.split(",")]
    except ValueError:
        numbers = []
    if len(numbers) not in (1, 3) or not all(map(math.isfinite, numbers)):
        raise argparse.ArgumentTypeError(
            f"three numbers, for blue, green and red, or one for gray images were expected, not {text!r}"
        )
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
        "--mean",
        type=_numbers,
        metavar="B,G,R",
        help="mean of each channel (default: that of the net's data layer, else 104,117,123, ImageNet's)",
    )
    parser.add_argument(
        "--scale", type=float, metavar="FACTOR",
        help="factor for the pixels, after the mean is subtracted (default: that of the net's data layer, else 1)",
    )  # fmt: skip
    parser.add_argument(
        "--iterations", type=int, metavar="N", help=f"iterations of each network (default: {EPOCHS} epochs)"
    )
    parser.add_argument(
        "--base-lr", type=float, metavar="RATE",
        help=f"learning rate of all networks (default: searched for each kind of network among "
        f"{', '.join(f'{rate:g}' for rate in RATES)})",
    )  # fmt: skip
    parser.add_argument(
        "--hours", type=float, metavar="H",
        help="reduce the study to this many hours on this machine: fewer n, then fewer iterations",
    )  # fmt: skip
    parser.add_argument("--data", default="data", metavar="DIR", help="where datasets are (default: data)")
    parser.add_argument("--runs", default="runs", metavar="DIR", help="where networks are (default: runs)")
    parser.add_argument("--gpu", metavar="N", help="which GPUs (default: none)")
    parser.add_argument("--jobs", type=int, metavar="K", help="networks at a time (default: one per core or GPU)")
    parser.add_argument("--plan", action="store_true", help="only write lists and recipe, and print the plan")
    args = parser.parse_args(argv)
    path = prepare(args)
    recipe = load_recipe(path)
    where = ["--recipe", str(path), "--data", args.data, "--runs", args.runs]
    if code := sweep(["plan", *where]):
        return code
    if is_open(read_text(path)):
        print(f"before that, learning rates are searched with {3 * len(RATES)} networks of half the iterations")
    if args.plan:
        return 0
    make_probes(recipe, Path(args.data), Path(args.runs))
    more = [*(["--gpu", args.gpu] if args.gpu else []), *(["--jobs", str(args.jobs)] if args.jobs else [])]
    recipe = find_rates(path, recipe, args, more)
    report = Path("report") / recipe.name
    code = sweep(["run", *where, *more, "--report", str(report)])
    results = Path(args.runs) / recipe.name / "results.csv"
    rows = [row for row in load(results) if row.accuracy_final is not None] if results.is_file() else []
    if rows and code in (0, 1):
        print()
        for answer in answers(markers_of(rows, "final"), rows, read_probes(results.parent)):
            print(answer)
        for line in export_commands(markers_of(rows, "final"), f"{args.runs}/{recipe.name}"):
            print(f"To use it in other programs: {line}")
    return code


if __name__ == "__main__":
    sys.exit(main())
