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
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from transfer_caffe.experiment.slurm_settings import SlurmSettings
from transfer_caffe.experiment.treatment import Treatment
from transfer_caffe.utils.errors import UserError

PACKAGE = Path(__file__).resolve().parent.parent
_BESIDE = PACKAGE.parent / "prototxt_templates"
TEMPLATES = _BESIDE if (_BESIDE / "layers.j2").is_file() else PACKAGE / "prototxt_templates"
"""At the top of a checkout, where people look for it; inside an installed package."""

SPLITS = "random0, random1, ... (the number is the seed), natman, whole, reduced1, reduced2, ... (images a class)"


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
    """What of a training is called odd: `transfer_caffe.run.watch` says more."""

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
        check_fits(split, treatment)
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


def check_fits(split: str, treatment: Treatment) -> None:
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
