"""Render one network's train_val.prototxt and solver.prototxt from the templates.

    python -m transfer_caffe.generate --treatment A3B+                      the paper's network, on random0
    python -m transfer_caffe.generate --treatment R3 --recipe demo          a small network, on all classes

The templates are prototxt_templates/ARCHITECTURE/*.j2. Undefined variables are errors, strings are quoted as prototxt
requires, and the result is parsed and checked before anything is written. Paths in the files are relative to the
network's folder, in which the engine runs, so the complete tree can be moved.
"""

from __future__ import annotations

import functools
import os
import re
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2

from transfer_caffe.experiment.architecture import require_frozen, shapes_by_engine
from transfer_caffe.experiment.read import load_recipe
from transfer_caffe.experiment.recipe import TEMPLATES, Network
from transfer_caffe.experiment.rewrite import Change, Source, rewrite
from transfer_caffe.experiment.treatment import Treatment
from transfer_caffe.formats.proto import parse_text, to_text
from transfer_caffe.formats.proto import read_text as read_message
from transfer_caffe.formats.proto.caffe_pb2 import NetParameter, SolverParameter, TransformationParameter
from transfer_caffe.run.differences import differences, in_short
from transfer_caffe.run.folder import INIT, NET, SOLVER, weights_path
from transfer_caffe.run.inputs import count_classes, count_images
from transfer_caffe.utils.errors import ArgumentParser, UserError, command
from transfer_caffe.utils.files import write_text


@dataclass(frozen=True)
class Prototxts:
    """A network's two files, as text and as parsed messages."""

    net: NetParameter
    solver: SolverParameter
    net_text: str
    solver_text: str


class SettingsDiffer(UserError):
    """Raised if existing files have other settings than the recipe has now. ``what`` says where and how they differ."""

    def __init__(self, network: Network, differing: dict[Path, list[str]]) -> None:
        """``differing`` holds the differences of each such file."""
        first = next(iter(differing))
        others = "".join(f" and {path.name}" for path in list(differing)[1:])
        verbs = "exist and differ" if others else "exists and differs"
        every = [each for differences in differing.values() for each in differences]
        self.what = f"{first}{others} {verbs} from the current recipe of {network.name}: {in_short(every)}"
        super().__init__(
            f"{self.what}; move the folder away, or rewrite the files with `python -m transfer_caffe.generate --force`"
        )


def render(
    network: Network, data_root: str | os.PathLike[str], folder: str | os.PathLike[str], force: bool = False
) -> Prototxts:
    """Write a network's files into its folder, which is created together with its snapshot folder, and return them.

    Existing files are kept if they parse to the same message (comments may differ). If they do not, raise
    SettingsDiffer, or overwrite them with ``force``.
    """
    folder = Path(folder)
    prototxts = compose(network, data_root, folder)
    if network.recipe.net_file:
        shapes_by_engine(prototxts.net)  # what the engine would refuse is refused before anything is written
    files = (
        (folder / NET, prototxts.net_text, prototxts.net, NetParameter()),
        (folder / SOLVER, prototxts.solver_text, prototxts.solver, SolverParameter()),
    )
    if not force:
        differing: dict[Path, list[str]] = {}
        for path, _, now, empty in files:
            if os.path.lexists(path) and (there := read_message(path, empty)) != now:
                differing[path] = differences(there, now)
        if differing:
            raise SettingsDiffer(network, differing)
    (folder / "snapshots").mkdir(parents=True, exist_ok=True)  # Caffe does not create it, and fails without it
    for path, text, *_ in files:
        if force or not path.exists():
            write_text(path, text)
    return prototxts


def compose(network: Network, data_root: str | os.PathLike[str], folder: str | os.PathLike[str]) -> Prototxts:
    """Return what `render` writes. Image lists are only read for `outputs: classes` and `test_images: all`."""
    recipe, treatment = network.recipe, network.treatment
    data = network.data_folder(data_root)
    every = count_images(data / "val.txt") if recipe.test_images is None else None
    # to test all images, the batch size must divide their number: otherwise some images would be tested twice
    test_batch = max(size for size in range(1, recipe.batch.test + 1) if every is None or every % size == 0)
    test_images = recipe.test_images if every is None else every
    assert test_images is not None
    values: dict[str, Any] = {
        "network": network,
        "recipe": recipe,
        "treatment": treatment,
        "solver": {"solver_mode": "CPU"} | network.solver,  # `caffe train --gpu` overrides it
        "outputs": recipe.outputs or count_classes(data / "train.txt"),
        "test_images": test_images,
        "test_batch": test_batch,
        "test_iter": -(-test_images // test_batch),
        "train_source": _relative(data / "train_lmdb", folder),
        "test_source": _relative(data / "val_lmdb", folder),
        "mean_file": _relative(network.mean_folder(data_root) / "mean.binaryproto", folder),
        "mean_of_base": network.mean_folder(data_root) != data,
        "description": network.description,
        "command": _command_line(network),
    }
    origin = f"{recipe.architecture} for {network.name}"
    if recipe.own_net is None:
        folder_of_templates = recipe.architecture
        text = _rendered(f"{recipe.architecture}/{NET}.j2", values)
        net = parse_text(text, NetParameter(), f"{NET} of {origin}")
    else:
        folder_of_templates = ""
        net = _rewritten(network, recipe.own_net, values)
        text = _HEADER.format(**values) + to_text(net)
    solver_text = _rendered(f"{folder_of_templates}/{SOLVER}.j2".lstrip("/"), values)
    solver = parse_text(solver_text, SolverParameter(), f"{SOLVER} of {origin}")
    require_frozen(net, treatment, recipe.cuts)
    return Prototxts(net, solver, text, solver_text)


_HEADER = """# {network.name}, recipe {recipe.name}: {description}.
# Made by: {command}
# From {recipe.architecture}, rewritten: data layers, classes, loss, and which stages learn.
"""


def _rendered(template: str, values: dict[str, Any]) -> str:
    try:
        return _templates(TEMPLATES).get_template(template).render(values)
    except jinja2.TemplateError as error:
        raise UserError(f"template {template}: {error}") from None


def _rewritten(network: Network, net: NetParameter, values: dict[str, Any]) -> NetParameter:
    """A net of one's own for a network: `rewrite`, by the recipe's settings."""
    recipe, treatment = network.recipe, network.treatment

    def source(part: str, batch: int, mirror: bool) -> Source:
        transform = TransformationParameter(crop_size=recipe.crop)
        if mirror:
            transform.mirror = True
        if recipe.images.gray:
            transform.force_gray = True  # decides how encoded images are decoded, and says how many channels there are
        if recipe.scale != 1:
            transform.scale = recipe.scale
        if isinstance(recipe.mean, tuple):
            transform.mean_value.extend(recipe.mean)
        else:
            transform.mean_file = values["mean_file"]
        return Source(values[f"{part}_source"], batch, transform)

    copied = range(1, treatment.n + 1) if treatment.finetuned and recipe.copied_rate != 1 else ()
    change = Change(
        train=source("train", recipe.batch.train, recipe.mirror),
        test=source("test", values["test_batch"], mirror=False),
        classes=values["outputs"],
        frozen=treatment.frozen,
        copied=treatment.n if treatment.copies else 0,
        cuts=recipe.cuts,
        # the statistics of random layers are zero
        global_stats=recipe.batch_norm == "stored" and not treatment.is_random,
        rates=dict.fromkeys(copied, recipe.copied_rate),
    )
    return rewrite(net, change, network.name)


@functools.cache
def _templates(folder: Path) -> jinja2.Environment:
    """Return the template environment, cached: compiling the templates takes ten times as long as rendering them."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(folder), undefined=jinja2.StrictUndefined, keep_trailing_newline=True
    )
    environment.filters |= {"quoted": quoted, "solver_value": solver_value}
    return environment


def quoted(text: str) -> str:
    """Quote a string for a prototxt: in double quotes, with C escapes; non-ASCII characters stay UTF-8."""
    text = text.replace("\\", "\\\\").replace('"', '\\"')
    return '"' + re.sub(r"[\x00-\x1f\x7f]", lambda match: f"\\{ord(match[0]):03o}", text) + '"'


def solver_value(value: Any, name: str) -> str:
    """Format the value of a SolverParameter field for a prototxt."""
    if isinstance(value, bool):
        return "true" if value else "false"
    field = SolverParameter.DESCRIPTOR.fields_by_name[name]
    return quoted(value) if field.type == field.TYPE_STRING else str(value)


def _relative(path: Path, folder: str | os.PathLike[str]) -> str:
    """Return the path from a network's folder to ``path``, as the engine will resolve it."""
    plain = os.path.relpath(path, folder)
    resolved = os.path.realpath(folder)
    # inside a symlinked folder, `..` is the parent of the link's target; only then use the resolved paths
    if os.path.realpath(os.path.join(resolved, plain)) != os.path.realpath(path):
        plain = os.path.relpath(os.path.realpath(path), resolved)
    return Path(plain).as_posix()


def _command_line(network: Network) -> str:
    # contains no folders, so that it is the same for everyone who renders this network
    return (
        f"python -m transfer_caffe.generate --recipe {network.recipe.name} --split {network.split} "
        f"--treatment {network.treatment} --seed {network.seed}"
    )


EXAMPLES = """examples:
  python -m transfer_caffe.generate --treatment A3B+
  python -m transfer_caffe.generate --treatment A3B --recipe demo --split natman --out /tmp/A3B
"""


@command
def main(argv: list[str] | None = None) -> int | None:
    """Run the command line."""
    parser = ArgumentParser(
        prog="python -m transfer_caffe.generate",
        description="Write one network's train_val.prototxt and solver.prototxt.",
        epilog=EXAMPLES,
    )
    parser.add_argument("--treatment", required=True, help="base, baseA, A3B, B3B, A3B+, R3, ...")
    parser.add_argument("--recipe", default="paper", help="a recipe's name or its YAML file (default: paper)")
    parser.add_argument("--split", help="random0, natman, ... (default: random0; whole for base and R3)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the network (default: 0)")
    parser.add_argument("--data", default="data", metavar="DIR", help="where the datasets are (default: data)")
    parser.add_argument("--out", metavar="DIR", help="the network's folder (default: runs/RECIPE/NETWORK)")
    parser.add_argument("--force", action="store_true", help="overwrite files that differ")
    args = parser.parse_args(argv)
    treatment = Treatment.parse(args.treatment)
    if args.seed < 0:
        raise UserError(f"--seed {args.seed}: the seed must be 0 or more")
    split = args.split or ("random0" if treatment.target else "whole")
    network = load_recipe(args.recipe).network(split, treatment, args.seed)
    folder = Path(args.out) if args.out else network.folder("runs")
    render(network, args.data, folder, args.force)
    print(f"{network.name}: {network.description}\nwrote {folder / NET}\nwrote {folder / SOLVER}\nnext:")
    weights = ""
    if treatment.copies:
        base = network.source
        if network.base:
            base = weights_path(network.base.folder("runs"), network.base.max_iter)
        surgery = ["--treatment", str(treatment), "--base", base, "--net", folder / NET, "--out", folder / INIT]
        surgery += ["--cuts", ",".join(network.recipe.cuts)] if network.recipe.cuts else []
        print("  python -m transfer_caffe.surgery", shlex.join(str(word) for word in surgery))
        weights = f" --weights {INIT}"
    print(f"  cd {shlex.quote(str(folder))} && caffe train --solver {SOLVER}{weights}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
