"""Read a recipe's YAML file, check it, and return a `Recipe`.

recipe = load_recipe("demo")        # or the path of a YAML file
"""

from __future__ import annotations

import math
import os
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

from transfer_caffe.experiment.own_net import ENDINGS
from transfer_caffe.experiment.recipe import (
    PACKAGE,
    TEMPLATES,
    Batch,
    Images,
    Recipe,
    SourceWeights,
    Watch,
    check_fits,
)
from transfer_caffe.experiment.slurm_settings import read_slurm
from transfer_caffe.experiment.treatment import Treatment, expand
from transfer_caffe.formats.proto import caffe_pb2
from transfer_caffe.utils.errors import UserError
from transfer_caffe.utils.strict_yaml import Section, is_whole, load_yaml, shown

RECIPES = PACKAGE / "recipes"

PRECISIONS = ["fp32", "tf32", "bf16"]

# The policies of SGDSolver::GetLearningRate; real Caffe reports an unknown one only at the first iteration.
# Each with the parameters it needs: the defaults, 0 or nothing, mean a rate of 0, or one that never changes.
LR_POLICIES: dict[str, tuple[str, ...]] = {
    "fixed": (), "step": ("stepsize", "gamma"), "exp": ("gamma",), "inv": ("gamma", "power"),
    "multistep": ("stepvalue", "gamma"), "poly": ("power",), "sigmoid": ("stepsize", "gamma"),
}  # fmt: skip

# Solver fields that are derived from the network and its folder, or that the driver relies on.
_NOT_IN_RECIPES = {
    "net", "net_param", "train_net", "test_net", "train_net_param", "test_net_param", "train_state", "test_state",
    "test_iter", "snapshot_prefix", "snapshot_format", "snapshot_after_train", "device_id", "random_seed",
    "solver_type", "weights",
}  # fmt: skip


def recipe_names() -> list[str]:
    """Return the names of the recipes that ship with the package."""
    return sorted(path.stem for path in RECIPES.glob("*.yaml"))


def load_recipe(name: str | os.PathLike[str]) -> Recipe:
    """Read and check a recipe: one of `recipe_names`, or the path of a YAML file."""
    text = os.fspath(name)
    path = Path(text)
    if text in recipe_names():
        path = RECIPES / f"{text}.yaml"
    elif not path.is_file():
        raise UserError(
            f"recipe {text}: no such file, and not one of the built-in recipes {', '.join(recipe_names())}; give one "
            "of those (RECIPE=demo, --recipe demo), or the path of a YAML file"
        )
    recipe = _recipe_of(load_yaml(path), str(path), path.parent)
    if recipe.name != path.stem:
        # a copy of a recipe that kept its name would use the networks of the original as its own
        raise UserError(
            f"{path}: the recipe's name is {recipe.name}, not that of its file; set `name: {path.stem}`, or rename "
            "the file"
        )
    return replace(recipe, given=text)


def _recipe_of(value: Any, where: str, folder: Path) -> Recipe:
    top = Section(value, where)
    name = top.text("name")
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", name):
        top.fail("name", f"{name!r} cannot be the name of a folder; use only letters, digits, `_`, `.` and `-`")
    dataset = top.text("dataset")
    images = _images_of(Section(top.take("images"), f"{where}: images"))
    architecture = _architecture_of(top, folder)
    own = architecture.endswith(ENDINGS)
    if images.gray and not own:
        raise UserError(f"{where}: images: gray: for a net of your own only; {architecture} takes colour images")
    crop, mirror = top.whole("crop", 1), top.flag("mirror")
    if crop > min(images.resize):
        top.fail("crop", f"{crop} does not fit into images of {images.resize[0]} x {images.resize[1]}")
    batches = Section(top.take("batch"), f"{where}: batch")
    batch = Batch(batches.whole("train", 1), batches.whole("test", 1))
    batches.end()
    outputs, test_images = top.whole_or("outputs", "classes"), top.whole_or("test_images", "all")
    mean = _mean_of(top, own)
    if isinstance(mean, tuple) and images.gray and len(mean) != 1:
        raise UserError(f"{where}: mean: gray images have one channel, so one number was expected, not {list(mean)}")
    own_net = _own_net_of(top, own, where)
    solver = _solver_of(top.take("solver"), f"{where}: solver")
    for key in ("base_lr", "lr_policy", "max_iter", "test_interval"):
        if key not in solver:
            raise UserError(f"{where}: solver: the key `{key}` is missing")
    others = Section(top.take("solver_for", {}), f"{where}: solver_for")
    solver_for = {str(key): _solver_of(each, f"{where}: solver_for: {key}") for key, each in others.left.items()}
    for pattern, fields in {"": {}, **solver_for}.items():
        merged = {**solver, **fields}
        if not merged["test_interval"] or merged["max_iter"] % merged["test_interval"]:
            raise UserError(
                f"{where}: solver{pattern and '_for: '}{pattern}: max_iter {merged['max_iter']} is not a multiple of "
                f"test_interval {merged['test_interval']}: the final weights would not be tested"
            )
    keep = top.take("keep_snapshots", None)
    if keep is not None and keep != "all" and not is_whole(keep, 1):
        top.fail("keep_snapshots", f"`all` or a whole number, 1 or more, was expected, not {shown(keep)}")
    threads = top.whole("threads", 1, 1)
    precision = top.one_of("precision", PRECISIONS, "fp32")
    deterministic = top.flag("deterministic", True)
    seeds = top.take("seeds", [0])
    if not isinstance(seeds, list) or not seeds or not all(is_whole(seed, 0) for seed in seeds):
        top.fail("seeds", f"a list of whole numbers, 0 or more, was expected, not {shown(seeds)}")
    if len(set(seeds)) < len(seeds):
        top.fail("seeds", f"a seed is listed twice: {seeds}")
    networks = Section(top.take("networks"), f"{where}: networks")
    treatments = {str(split): _treatments_of(str(split), each, where) for split, each in networks.left.items()}
    if not treatments:
        top.fail("networks", "no split is listed")
    slurm = read_slurm(Section(top.take("slurm", {}), f"{where}: slurm"))
    watch = _watch_of(Section(top.take("watch", {}), f"{where}: watch"))
    top.end()
    recipe = Recipe(
        name, dataset, images, architecture, crop, mirror, batch, outputs, mean, test_images, solver, solver_for, keep,
        threads, precision, deterministic, tuple(seeds), treatments, **own_net, folder=folder, slurm=slurm,
        watch=watch,
    )  # fmt: skip
    try:
        for treatment in dict.fromkeys(each for listed in treatments.values() for each in listed):
            recipe.require(treatment)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
    for network in recipe.networks():  # several patterns of solver_for may name one network
        policy = network.solver["lr_policy"]
        if missing := [key for key in LR_POLICIES[policy] if network.solver.get(key, []) == []]:
            raise UserError(
                f"{where}: solver: lr_policy: the policy {policy} needs a {' and a '.join(missing)} "
                f"({network.split}-{network.treatment})"
            )
        if network.max_iter % network.solver["test_interval"]:
            raise UserError(
                f"{where}: solver_for: {network.split}-{network.treatment}: max_iter {network.max_iter} is not a "
                f"multiple of test_interval {network.solver['test_interval']}: the final weights would not be tested"
            )
    return recipe


def _architecture_of(top: Section, folder: Path) -> str:
    """The name of a folder of templates, or the path of a prototxt that is there."""
    given = top.text("architecture")
    if given in _architectures():
        return given
    if not given.endswith(ENDINGS):
        known = ", ".join(_architectures())
        top.fail("architecture", f"one of {known}, or the path of a .prototxt or .j2, was expected, not {shown(given)}")
    if not (folder / given).is_file():
        top.fail("architecture", f"{folder / given}: no such file; paths are relative to the recipe's folder")
    return given


def _mean_of(top: Section, own: bool) -> Any:
    """`target`, `base`, or for a net of one's own the mean of each channel."""
    if own and isinstance(top.left.get("mean"), list):
        values = top.take("mean")
        if len(values) not in (1, 3) or not all(_is_number(value) for value in values):
            top.fail("mean", f"one number for each channel (blue, green, red) was expected, not {shown(values)}")
        return tuple(values)
    return "base" if top.one_of("mean", ["target", "base"], "target") == "base" else "target"


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _own_net_of(top: Section, own: bool, where: str) -> dict[str, Any]:
    """The keys that only a recipe with a net of its own may have."""
    if not own:
        for key in ("cuts", "sources", "scale", "batch_norm", "copied_rate"):
            if key in top.left:
                top.fail(key, "for a net of your own only: `architecture` has to be the path of a .prototxt or .j2")
        return {}
    cuts = top.take("cuts", [])
    if not isinstance(cuts, list) or not all(isinstance(cut, str) for cut in cuts):
        top.fail("cuts", f"a list of blobs was expected, not {shown(cuts)}")
    scale, rate = top.take("scale", 1), top.take("copied_rate", 1)
    for key, value in (("scale", scale), ("copied_rate", rate)):
        if not _is_number(value) or value <= 0:
            top.fail(key, f"a number above 0 was expected, not {shown(value)}")
    sources: dict[str, SourceWeights] = {}
    given = Section(top.take("sources", {}), f"{where}: sources")
    for letter in list(given.left):
        if not re.fullmatch(r"[A-Z]", str(letter)) or letter in ("A", "B", "R"):
            given.fail(str(letter), "a capital letter other than A, B (halves) and R (random) was expected")
        each = Section(given.take(letter), f"{where}: sources: {letter}")
        sources[letter] = SourceWeights(each.text("weights"), each.text("sha256") if "sha256" in each.left else None)
        each.end()
    batch_norm = top.one_of("batch_norm", ["stored", "batch"], "stored")
    return {"cuts": tuple(cuts), "sources": sources, "scale": scale, "batch_norm": batch_norm, "copied_rate": rate}


def _architectures() -> list[str]:
    return sorted(path.parent.name for path in TEMPLATES.glob("*/train_val.prototxt.j2"))


def _images_of(section: Section) -> Images:
    root = section.text("root", ".")
    val_root = section.text("val_root", root)
    resize = section.take("resize")
    if not isinstance(resize, list) or len(resize) != 2 or not all(is_whole(side, 1) for side in resize):
        section.fail("resize", f"[height, width] in pixels was expected, not {shown(resize)}")
    images = Images(
        root, val_root, (resize[0], resize[1]), section.flag("encoded", False), section.whole("shuffle_seed", 0, 0),
        section.flag("views", False), section.one_of("on_error", ["fail", "skip", "caffe"], "fail"),
        section.flag("gray", False),
    )  # fmt: skip
    section.end()
    return images


def _watch_of(section: Section) -> Watch:
    after = section.whole("chance_after", 0) if "chance_after" in section.left else None
    expect = Section(section.take("expect", {}), f"{section.where}: expect")
    section.end()
    for pattern, each in expect.left.items():
        numbers = isinstance(each, list) and len(each) == 2 and all(
            isinstance(end, int | float) and not isinstance(end, bool) for end in each
        )  # fmt: skip
        if not numbers or not 0 <= each[0] < each[1] <= 1:
            expect.fail(str(pattern), f"[lowest, highest] accuracy, from 0 to 1, was expected, not {shown(each)}")
    return Watch(after, {str(pattern): (each[0], each[1]) for pattern, each in expect.left.items()})


def _solver_of(value: Any, where: str) -> dict[str, Any]:
    """Return the solver fields of a recipe, each checked against Caffe's SolverParameter."""
    fields = {
        field.name: field
        for field in caffe_pb2.SolverParameter.DESCRIPTOR.fields
        if field.name not in _NOT_IN_RECIPES and field.message_type is None
    }
    section = Section(value, where)
    for key, each in section.left.items():
        key = str(key)
        if key in _NOT_IN_RECIPES:
            section.fail(key, "cannot be set in a recipe: it is derived from the network, or passed to the engine")
        if key not in fields:
            raise UserError(f"{where}: unknown key {key}; known are {', '.join(sorted(fields))}")
        field = fields[key]
        repeated = key == "stepvalue"
        if repeated and not isinstance(each, list):
            section.fail(key, f"a list of whole numbers was expected, not {shown(each)}")
        if key == "lr_policy" and (not isinstance(each, str) or each not in LR_POLICIES):
            section.fail(key, f"one of {', '.join(LR_POLICIES)} was expected, not {shown(each)}")
        for item in each if repeated else [each]:
            problem = _not_a(field, item)
            if problem:
                section.fail(key, f"{problem} was expected, not {shown(item)}")
    solver = dict(section.left)
    for key, least in (("max_iter", 1), ("test_interval", 0), ("display", 0), ("snapshot", 0), ("stepsize", 1)):
        if key in solver and solver[key] < least:
            section.fail(key, f"{least} or more was expected, not {solver[key]}")
    return solver


def _not_a(field: Any, value: Any) -> str:
    """Return what kind of value the field expects, or "" if ``value`` is valid."""
    if field.cpp_type in (field.CPPTYPE_FLOAT, field.CPPTYPE_DOUBLE):
        number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
        return "" if number else "a number"
    if field.cpp_type in (field.CPPTYPE_INT32, field.CPPTYPE_INT64):
        return "" if is_whole(value, -(2**31)) and value < 2**31 else "a whole number"
    if field.cpp_type == field.CPPTYPE_BOOL:
        return "" if isinstance(value, bool) else "true or false"
    if field.cpp_type == field.CPPTYPE_ENUM:
        names = [each.name for each in field.enum_type.values]
        return "" if value in names else f"one of {', '.join(names)}"
    return "" if isinstance(value, str) else "text"


def _treatments_of(split: str, patterns: Any, where: str) -> tuple[Treatment, ...]:
    where = f"{where}: networks: {split}"
    if isinstance(patterns, str):
        patterns = [patterns]
    if not isinstance(patterns, list) or not patterns:
        raise UserError(f"{where}: a list of treatments was expected, not {shown(patterns)}")
    listed: list[Treatment] = []
    for pattern in patterns:
        if not isinstance(pattern, str):
            raise UserError(f"{where}: the name of a treatment was expected, not {shown(pattern)}")
        try:
            expanded = expand(pattern)
            for treatment in expanded:
                check_fits(split, treatment)
        except UserError as error:
            raise UserError(f"{where}: {error}") from None
        for treatment in expanded:
            if treatment in listed:
                raise UserError(f"{where}: {treatment} is listed twice (again in {pattern!r})")
            listed.append(treatment)
    # a treatment cannot be trained without its base: missing bases are added, in front
    needed = [treatment.base for treatment in listed if treatment.base is not None]
    added = [base for base in dict.fromkeys(needed) if base not in listed]
    return tuple(sorted([*added, *listed], key=lambda treatment: not treatment.is_base))
