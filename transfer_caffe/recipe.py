"""Recipes: which networks to train, on what, and how; one YAML file each, `transfer_caffe/recipes/*.yaml`.

    recipe = load_recipe("demo")        # or the path of a YAML file
    for network in recipe.networks():   # bases first
        print(network.name)             # random0-A3B+-s0

Nothing in a recipe is guessed: an unknown key, a value of another type, a key twice, a treatment that the split
cannot hold are errors that name the file, the key and what is allowed. The keys (* may be left out):

    name          of the recipe and of its file, NAME.yaml; its networks lie in runs/NAME
    dataset       a name, for data/NAME, or the path of a folder, with train.txt, val.txt and classes.csv
    images        resize: [height, width]; root*: the folder that the lists' paths start from, seen from the dataset's
                  folder, which is the default; val_root*: the same for val.txt, if it is another; encoded*: keep
                  images as files in the database; shuffle_seed*; views*: build one database of all images, of which
                  the halves are views (transfer_caffe/views.py), or copies where real Caffe is to read them;
                  on_error*: what a broken image does, `fail` (the default), `skip`, or `caffe` (tools/build_lmdb.py)
    architecture  a folder of prototxt_templates
    crop, mirror  side of the square cut from an image; whether training images are flipped at random
    batch         train, test: images a batch
    outputs*      of the last layer: `classes` (as many as there are, the default) or a number
    mean*         whose mean image a network subtracts: `target` (the half it learns, the default) or `base`
    test_images*  a test pass: `all` (the default) or a number; rounded up to whole batches
    solver        any field of Caffe's SolverParameter that does not follow from the network; max_iter must be a
                  multiple of test_interval, so that the last weights are tested
    solver_for*   split pattern, as `reduced*`: solver fields that are others there
    keep_snapshots*   how many of a network's newest snapshots are kept, while it is trained and after: a number, or
                  `all`; if left out 2 while it is trained, the final one after. An older one is removed when a newer
                  one has been read back and is whole, the final weights never. May be changed at any time
    watch*        what to call odd, in status and results (transfer_caffe/watch.py); it changes no network, and may be
                  changed at any time. chance_after*: the iteration from which on a test loss of ln(classes) is odd (by
                  default a tenth of max_iter); expect*: pattern of split-treatment, as `random*-base*`: [lowest,
                  highest] final accuracy; of several patterns that fit a network the first counts
    threads*      CPU threads a network; sums depend on it to the last bit
    precision*    what the embedded engine computes in: fp32 (the default, and all that real Caffe knows), tf32 or bf16
                  (transfer_caffe/engine/precision.py)
    seeds*        each network is trained once for each seed
    networks      split: list of treatments, as `A{1-7}B+`; bases that these need are added
    slurm*        what each network's job asks for (`sweep run --slurm`); no setting of the networks, so it may change:
                  partition*, account*; time*: the limit, in quotes ("24:00:00"); memory* (16G); cpus* (as many as
                  threads); gpus* (1 where the solver_mode is GPU, else 0); signal_seconds*: how long before the limit a
                  job writes its snapshot and is queued again (120); extra*: a list of more flags for sbatch
"""

from __future__ import annotations

import fnmatch
import hashlib
import json
import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from transfer_caffe.errors import UserError
from transfer_caffe.proto import caffe_pb2
from transfer_caffe.slurm_settings import SlurmSettings, read_slurm
from transfer_caffe.strict_yaml import Section, is_whole, load_yaml, shown
from transfer_caffe.treatment import Treatment, expand

HERE = Path(__file__).parent
RECIPES = HERE / "recipes"
TEMPLATES = HERE / "prototxt_templates"

SPLITS = "random0, random1, ... (the number is the seed), natman, whole, reduced1, reduced2, ... (images a class)"

PRECISIONS = ["fp32", "tf32", "bf16"]

# SGDSolver::GetLearningRate knows these; real Caffe finds out at the first iteration
LR_POLICIES = ("fixed", "step", "exp", "inv", "multistep", "poly", "sigmoid")

# Solver fields that follow from the network and its folder, or that the driver relies on.
_NOT_IN_RECIPES = {
    "net", "net_param", "train_net", "test_net", "train_net_param", "test_net_param", "train_state", "test_state",
    "test_iter", "snapshot_prefix", "snapshot_format", "snapshot_after_train", "device_id", "random_seed",
    "solver_type", "weights",
}  # fmt: skip


@dataclass(frozen=True)
class Images:
    """What the databases are built from: `tools.build_lmdb` gets these."""

    root: str
    val_root: str
    resize: tuple[int, int]
    encoded: bool
    shuffle_seed: int
    views: bool
    on_error: str


@dataclass(frozen=True)
class Batch:
    """Images a batch."""

    train: int
    test: int


@dataclass(frozen=True)
class Watch:
    """What of a training is called odd: `transfer_caffe.watch` says more."""

    chance_after: int | None = None
    expect: Mapping[str, tuple[float, float]] = field(default_factory=dict)


@dataclass(frozen=True)
class Recipe:
    """A recipe, checked. Made by `load_recipe`; the fields are the keys of the YAML file.

    ``treatments`` holds the file's ``networks``: split -> treatments, expanded, each split's needed bases added.
    ``test_images`` is None for `all`, ``outputs`` None for `classes`.
    """

    name: str
    dataset: str
    images: Images
    architecture: str
    crop: int
    mirror: bool
    batch: Batch
    outputs: int | None
    mean: Literal["target", "base"]
    test_images: int | None
    solver: Mapping[str, Any]
    solver_for: Mapping[str, Mapping[str, Any]]
    keep_snapshots: int | Literal["all"] | None
    threads: int
    precision: str
    seeds: tuple[int, ...]
    treatments: Mapping[str, tuple[Treatment, ...]]
    slurm: SlurmSettings = field(default=SlurmSettings(), compare=False)
    watch: Watch = field(default=Watch(), compare=False)
    """No part of `settings`: it changes no network."""
    given: str = field(default="", compare=False)
    """What `load_recipe` was given: for commands in messages."""

    def __hash__(self) -> int:
        """By name: dictionaries have no hash."""
        return hash(self.name)

    def networks(self) -> list[Network]:
        """Every network of the recipe, bases first, then seed by seed in the order of the file."""
        every = [
            Network(self, split, treatment, seed)
            for seed in self.seeds
            for split, treatments in self.treatments.items()
            for treatment in treatments
        ]
        return sorted(every, key=lambda network: not network.treatment.is_base)

    def network(self, split: str, treatment: Treatment | str, seed: int = 0) -> Network:
        """One network by this recipe's settings, whether or not the recipe lists it. UserError if it means nothing."""
        if isinstance(treatment, str):
            treatment = Treatment.parse(treatment)
        _check_fits(split, treatment)
        return Network(self, split, treatment, seed)

    def dataset_folder(self, data_root: str | os.PathLike[str]) -> Path:
        """The folder of the dataset's own train.txt, val.txt and classes.csv."""
        given = Path(self.dataset).expanduser()
        return given if len(given.parts) > 1 else Path(data_root) / given

    def data_folder(self, data_root: str | os.PathLike[str], split: str, letter: str = "") -> Path:
        """The folder of the lists, databases and mean of a half (letter A or B), or of `whole` and `reducedK`."""
        return Path(data_root) / Path(self.dataset).name / split / letter

    def snapshots_kept(self, done: bool) -> int | None:
        """How many snapshots of a network that is done, or not yet, are kept; None is all."""
        if self.keep_snapshots == "all":
            return None
        # 450,000 iterations of a CaffeNet write 45 snapshots of 490 MB; with two, damage to one costs one interval
        return self.keep_snapshots or (1 if done else 2)

    def settings(self) -> dict[str, Any]:
        """The recipe as plain values in the shape of its YAML file, for provenance; without `slurm`, see there."""
        return {
            "name": self.name,
            "dataset": self.dataset,
            "images": {
                "root": self.images.root,
                "val_root": self.images.val_root,
                "resize": list(self.images.resize),
                "encoded": self.images.encoded,
                "shuffle_seed": self.images.shuffle_seed,
                "views": self.images.views,
                "on_error": self.images.on_error,
            },
            "architecture": self.architecture,
            "crop": self.crop,
            "mirror": self.mirror,
            "batch": {"train": self.batch.train, "test": self.batch.test},
            "outputs": "classes" if self.outputs is None else self.outputs,
            "mean": self.mean,
            "test_images": "all" if self.test_images is None else self.test_images,
            "solver": dict(self.solver),
            "solver_for": {pattern: dict(fields) for pattern, fields in self.solver_for.items()},
            **({} if self.keep_snapshots is None else {"keep_snapshots": self.keep_snapshots}),
            "threads": self.threads,
            **({} if self.precision == "fp32" else {"precision": self.precision}),
            "seeds": list(self.seeds),
            "networks": {split: [str(treatment) for treatment in each] for split, each in self.treatments.items()},
        }

    def sha256(self) -> str:
        """The checksum of what a recipe says about its networks: of `settings` as JSON, keys sorted, without spaces.

        How many snapshots are kept changes no network, and is left out.
        """
        settings = {key: value for key, value in self.settings().items() if key != "keep_snapshots"}
        text = json.dumps(settings, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True)
class Network:
    """One training run: a treatment of a recipe on a split, with a seed."""

    recipe: Recipe
    split: str
    treatment: Treatment
    seed: int

    @property
    def name(self) -> str:
        """`random0-A3B+-s0`: unique in its recipe, and the name of its folder."""
        return f"{self.split}-{self.treatment}-s{self.seed}"

    @property
    def random_seed(self) -> int:
        """Caffe's random_seed, 1 to 2^31-1, of this network alone.

        A selffer that shared its base's seed would draw the base's own initial values and see its crops again.
        """
        text = f"{self.recipe.name}/{self.split}/{self.treatment}/{self.seed}"
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") & 0x7FFFFFFF or 1

    @property
    def base(self) -> Network | None:
        """The network whose weights this one takes over, of the same split and seed; None if it takes none."""
        base = self.treatment.base
        return None if base is None else Network(self.recipe, self.split, base, self.seed)

    @property
    def solver(self) -> dict[str, Any]:
        """The recipe's solver fields, with what `solver_for` says about this network's split."""
        fields = dict(self.recipe.solver)
        for pattern, others in self.recipe.solver_for.items():
            if fnmatch.fnmatchcase(self.split, pattern):
                fields.update(others)
        return fields

    @property
    def max_iter(self) -> int:
        """The iterations this network trains."""
        return self.solver["max_iter"]

    @property
    def chance_after(self) -> int:
        """The iteration from which it is odd that this network knows no more than by guessing."""
        given = self.recipe.watch.chance_after
        return max(1, self.max_iter // 10) if given is None else given

    @property
    def expected_accuracy(self) -> tuple[float, float] | None:
        """The lowest and highest final accuracy that the recipe expects; None where it says nothing."""
        name = f"{self.split}-{self.treatment}"
        ranges = self.recipe.watch.expect.items()
        return next((each for pattern, each in ranges if fnmatch.fnmatchcase(name, pattern)), None)

    def folder(self, runs_root: str | os.PathLike[str]) -> Path:
        """runs_root/RECIPE/NETWORK."""
        return Path(runs_root) / self.recipe.name / self.name

    def data_folder(self, data_root: str | os.PathLike[str]) -> Path:
        """Where the lists and databases are that this network is trained and tested on."""
        return self.recipe.data_folder(data_root, self.split, self.treatment.target)

    def mean_folder(self, data_root: str | os.PathLike[str]) -> Path:
        """Where the mean image is that this network subtracts: its target's, or by `mean: base` its base's."""
        base = self.base
        return (base if base is not None and self.recipe.mean == "base" else self).data_folder(data_root)


def recipe_names() -> list[str]:
    """The recipes that ship with the package."""
    return sorted(path.stem for path in RECIPES.glob("*.yaml"))


def load_recipe(name: str | os.PathLike[str]) -> Recipe:
    """Read and check a recipe: one of `recipe_names`, or the path of a YAML file."""
    text = os.fspath(name)
    path = Path(text)
    if text in recipe_names():
        path = RECIPES / f"{text}.yaml"
    elif not path.is_file():
        raise UserError(
            f"recipe {text}: no such file, and not one of the built-in recipes {', '.join(recipe_names())}; name one "
            "of those (RECIPE=demo, --recipe demo), or the path of a YAML file"
        )
    recipe = _recipe_of(load_yaml(path), str(path))
    if recipe.name != path.stem:
        # a copy of a recipe that keeps its name would take the other's networks for its own
        raise UserError(f"{path}: its name is {recipe.name}; name it {path.stem}, as its file, or rename the file")
    return replace(recipe, given=text)


def _recipe_of(value: Any, where: str) -> Recipe:
    top = Section(value, where)
    name = top.text("name")
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", name):
        top.fail("name", f"letters, digits, `_`, `.` and `-` only: it names a folder; not {name!r}")
    dataset = top.text("dataset")
    images = _images_of(Section(top.take("images"), f"{where}: images"))
    architecture = top.one_of("architecture", _architectures())
    crop, mirror = top.whole("crop", 1), top.flag("mirror")
    if crop > min(images.resize):
        top.fail("crop", f"{crop} does not fit into images of {images.resize[0]} x {images.resize[1]}")
    batches = Section(top.take("batch"), f"{where}: batch")
    batch = Batch(batches.whole("train", 1), batches.whole("test", 1))
    batches.end()
    outputs, test_images = top.whole_or("outputs", "classes"), top.whole_or("test_images", "all")
    mean = "base" if top.one_of("mean", ["target", "base"], "target") == "base" else "target"
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
                f"test_interval {merged['test_interval']}: the last weights would not be tested"
            )
    keep = top.take("keep_snapshots", None)
    if keep is not None and keep != "all" and not is_whole(keep, 1):
        top.fail("keep_snapshots", f"`all` or a whole number, 1 or more, was expected, not {shown(keep)}")
    threads = top.whole("threads", 1, 1)
    precision = top.one_of("precision", PRECISIONS, "fp32")
    seeds = top.take("seeds", [0])
    if not isinstance(seeds, list) or not seeds or not all(is_whole(seed, 0) for seed in seeds):
        top.fail("seeds", f"a list of whole numbers, 0 or more, was expected, not {shown(seeds)}")
    if len(set(seeds)) < len(seeds):
        top.fail("seeds", f"a seed is there twice: {seeds}")
    networks = Section(top.take("networks"), f"{where}: networks")
    treatments = {str(split): _treatments_of(str(split), each, where) for split, each in networks.left.items()}
    if not treatments:
        top.fail("networks", "no split is listed")
    slurm = read_slurm(Section(top.take("slurm", {}), f"{where}: slurm"))
    watch = _watch_of(Section(top.take("watch", {}), f"{where}: watch"))
    top.end()
    return Recipe(
        name, dataset, images, architecture, crop, mirror, batch, outputs, mean, test_images, solver, solver_for, keep,
        threads, precision, tuple(seeds), treatments, slurm, watch,
    )  # fmt: skip


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
    """Solver fields, each checked against Caffe's SolverParameter."""
    fields = {
        field.name: field
        for field in caffe_pb2.SolverParameter.DESCRIPTOR.fields
        if field.name not in _NOT_IN_RECIPES and field.message_type is None
    }
    section = Section(value, where)
    for key, each in section.left.items():
        key = str(key)
        if key in _NOT_IN_RECIPES:
            section.fail(key, "not a recipe's to say: it follows from the network, or is given to the engine")
        if key not in fields:
            raise UserError(f"{where}: unknown key {key}; known are {', '.join(sorted(fields))}")
        field = fields[key]
        repeated = key == "stepvalue"
        if repeated and not isinstance(each, list):
            section.fail(key, f"a list of whole numbers was expected, not {shown(each)}")
        if key == "lr_policy" and each not in LR_POLICIES:
            section.fail(key, f"one of {', '.join(LR_POLICIES)} was expected, not {shown(each)}")
        for item in each if repeated else [each]:
            problem = _not_a(field, item)
            if problem:
                section.fail(key, f"{problem} was expected, not {shown(item)}")
    solver = dict(section.left)
    for key, least in (("max_iter", 1), ("test_interval", 0), ("display", 0), ("snapshot", 0), ("stepsize", 1)):
        if key in solver and solver[key] < least:
            section.fail(key, f"{least} or more was expected, not {solver[key]}")
    if solver.get("lr_policy") == "step" and "stepsize" not in solver:
        section.fail("lr_policy", "the policy step needs a stepsize")
    return solver


def _not_a(field: Any, value: Any) -> str:
    """What should have been there, or nothing where the value is right."""
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
                _check_fits(split, treatment)
        except UserError as error:
            raise UserError(f"{where}: {error}") from None
        for treatment in expanded:
            if treatment in listed:
                raise UserError(f"{where}: {treatment} is listed twice (again in {pattern!r})")
            listed.append(treatment)
    # a treatment without its base cannot be trained: what is needed is added, in front
    needed = [treatment.base for treatment in listed if treatment.base is not None]
    added = [base for base in dict.fromkeys(needed) if base not in listed]
    return tuple(sorted([*added, *listed], key=lambda treatment: not treatment.is_base))


def _check_fits(split: str, treatment: Treatment) -> None:
    """UserError if there is no such split, or the treatment means nothing on it."""
    if split == "whole":
        allowed, fits = "base and R1 to R7", treatment.target == ""
    elif re.fullmatch(r"reduced[1-9][0-9]*", split):
        allowed, fits = "base", treatment.is_base and treatment.target == ""
    elif split == "natman" or re.fullmatch(r"random(0|[1-9][0-9]*)", split):
        allowed, fits = "treatments that end in a half, as baseA, A3B, R3B", treatment.target != ""
    else:
        raise UserError(f"there is no split {split!r}; splits are {SPLITS}")
    if not fits:
        raise UserError(f"treatment {treatment}: the split {split} takes {allowed}")
