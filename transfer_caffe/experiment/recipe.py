"""Recipes: which networks to train, on which data, and how; one YAML file each, `transfer_caffe/recipes/*.yaml`.

    recipe = load_recipe("demo")        # or the path of a YAML file
    for network in recipe.networks():   # bases first
        print(network.name)             # random0-A3B+-s0

Recipes are checked strictly. An unknown key, a value of the wrong type, a duplicate key or a treatment that the split
does not support is an error that names the file, the key and the allowed values. The keys (* marks an optional key):

    name          name of the recipe and of its file, NAME.yaml; its networks are stored in runs/NAME
    dataset       a name (the dataset is then data/NAME) or the path of a folder; the folder holds train.txt, val.txt
                  and classes.csv
    images        resize: [height, width]; root*: the folder that the paths in the lists are relative to, itself
                  relative to the dataset's folder (default: that folder); val_root*: the same for val.txt, if it
                  differs; encoded*: store the image files undecoded in the database; shuffle_seed*; views*: build one
                  database of all images, with the halves as views of it (transfer_caffe/formats/views.py), or as
                  copies if real Caffe has to read them; gray*: one channel instead of three (your own net);
                  on_error*: how to treat a broken image: `fail` (the default), `skip`, or `caffe`
                  (transfer_caffe/tools/build_lmdb.py)
    architecture  a folder of prototxt_templates, or a net of your own: the path of a train_val.prototxt or
                  deploy.prototxt of any age, or of a template of one (.j2), relative to the recipe's folder. It is
                  rewritten for the experiment (transfer_caffe/experiment/rewrite.py)
    cuts*         blobs where the stages of your own net end, for example [pool1, pool2, pool5, fc6]; by default every
                  blob that all paths pass (`python -m transfer_caffe.architecture NET` lists them)
    sources*      letter: weights to copy stages from, for treatments like `P3` and `P3+`, with the keys weights (a
                  .caffemodel, relative to the recipe's folder) and sha256*
    crop, mirror  side of the square crop, in pixels; whether training images are mirrored at random
    batch         train, test: number of images per mini-batch
    outputs*      number of outputs of the last layer: `classes` (the number of classes, the default) or a number
    mean*         which mean image a network subtracts: `target` (that of its own half, the default) or `base`; for your
                  own net also a list, the mean of each channel (blue, green, red), for example [104, 117, 123]
    scale*        your own net: factor for the pixels, after the mean is subtracted (default: 1)
    batch_norm*   your own net: whether frozen BatchNorm layers use the `stored` statistics in training (the default) or
                  those of the `batch`
    copied_rate*  your own net: factor for the learning rate of copied stages that are fine-tuned (default: 1)
    test_images*  number of images per test pass: `all` (the default) or a number; rounded up to full batches
    solver        any field of Caffe's SolverParameter that is not derived from the network; max_iter must be a
                  multiple of test_interval, so that the final weights are tested
    solver_for*   pattern of splits, treatments or SPLIT-TREATMENT, for example `reduced*`, `P*+` or `random*-A?B+`:
                  solver fields that differ for these networks; a later pattern overrides an earlier one
    keep_snapshots*   how many of a network's newest snapshots are kept, during and after training: a number, or `all`
                  (default: 2 during training, only the final one afterwards). An older snapshot is removed once a
                  newer one has been read back and is intact. The final weights are never removed. May be changed at
                  any time
    watch*        what status and results warn about (transfer_caffe/run/watch.py); it does not affect training, and
                  may be changed at any time. chance_after*: the iteration from which a test loss of ln(classes) causes
                  a warning (default: a tenth of max_iter); expect*: pattern of SPLIT-TREATMENT, for example
                  `random*-base*`: [lowest, highest] expected final accuracy; the first matching pattern applies
    threads*      CPU threads per network; floating-point results depend on it in the last bits
    precision*    arithmetic of the embedded engine: fp32 (the default, and the only one that real Caffe supports),
                  tf32 or bf16 (transfer_caffe/engine/precision.py)
    deterministic*  false: on a GPU, the embedded engine lets cuDNN measure its algorithms and use the fastest, so that
                  two runs of a network may differ in the last bits (default: true)
    seeds*        each network is trained once per seed
    networks      split: list of treatments, for example `A{1-7}B+`; the bases that they need are added
    slurm*        resources that each network's job requests (`sweep run --slurm`); they are not settings of the
                  networks and may be changed: partition*, account*; time*: the time limit, in quotes ("24:00:00");
                  memory* (16G); cpus* (default: threads); gpus* (default: 1 if solver_mode is GPU, else 0);
                  signal_seconds*: how long before the time limit a job writes a snapshot and is requeued (120);
                  extra*: a list of further flags for sbatch
"""

from __future__ import annotations

import fnmatch
import functools
import hashlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from transfer_caffe.experiment.own_net import ENDINGS, read_own_net
from transfer_caffe.experiment.slurm_settings import SlurmSettings
from transfer_caffe.experiment.stages import stages_of
from transfer_caffe.experiment.treatment import LAYERS, Treatment, describe
from transfer_caffe.formats.proto.caffe_pb2 import NetParameter
from transfer_caffe.utils.errors import UserError

PACKAGE = Path(__file__).resolve().parent.parent
_BESIDE = PACKAGE.parent / "prototxt_templates"
TEMPLATES = _BESIDE if (_BESIDE / "layers.j2").is_file() else PACKAGE / "prototxt_templates"
"""The folder of the templates: at the top of a checkout, or inside an installed package."""

SPLITS = "random0, random1, ... (the number is the seed), natman, whole, reduced1, reduced2, ... (images per class)"


@dataclass(frozen=True)
class Images:
    """How the databases are built: the settings passed to `tools.build_lmdb`."""

    root: str
    val_root: str
    resize: tuple[int, int]
    encoded: bool
    shuffle_seed: int
    views: bool
    on_error: str
    gray: bool = False


@dataclass(frozen=True)
class Batch:
    """Number of images per mini-batch."""

    train: int
    test: int


@dataclass(frozen=True)
class SourceWeights:
    """Weights that exist, to copy stages from: a .caffemodel, as the recipe names it, and its sha256 if given."""

    weights: str
    sha256: str | None = None


@dataclass(frozen=True)
class Watch:
    """When a training run causes a warning: see `transfer_caffe.run.watch`."""

    chance_after: int | None = None
    expect: Mapping[str, tuple[float, float]] = field(default_factory=dict)


@dataclass(frozen=True)
class Recipe:
    """A checked recipe, as returned by `load_recipe`; the fields are the keys of the YAML file.

    ``treatments`` holds the file's ``networks``: split -> expanded treatments, including the bases that they need.
    ``test_images`` is None for `all`, ``outputs`` is None for `classes`.
    """

    name: str
    dataset: str
    images: Images
    architecture: str
    crop: int
    mirror: bool
    batch: Batch
    outputs: int | None
    mean: Literal["target", "base"] | tuple[float, ...]
    test_images: int | None
    solver: Mapping[str, Any]
    solver_for: Mapping[str, Mapping[str, Any]]
    keep_snapshots: int | Literal["all"] | None
    threads: int
    precision: str
    deterministic: bool
    seeds: tuple[int, ...]
    treatments: Mapping[str, tuple[Treatment, ...]]
    cuts: tuple[str, ...] = ()
    sources: Mapping[str, SourceWeights] = field(default_factory=dict)
    scale: float = 1
    batch_norm: Literal["stored", "batch"] = "stored"
    copied_rate: float = 1
    folder: Path = field(default=Path(), compare=False)
    """The folder of the recipe's file, which the paths of nets and weights are relative to."""
    slurm: SlurmSettings = field(default=SlurmSettings(), compare=False)
    watch: Watch = field(default=Watch(), compare=False)
    """Not part of `settings`: it does not affect training."""
    given: str = field(default="", compare=False)
    """The argument of `load_recipe`, used for commands in messages."""

    def __hash__(self) -> int:
        """Hash the name: dictionaries are not hashable."""
        return hash(self.name)

    @property
    def net_file(self) -> Path | None:
        """The prototxt or template of a net of one's own; None for an architecture of prototxt_templates."""
        return self.folder / self.architecture if self.architecture.endswith(ENDINGS) else None

    @functools.cached_property
    def own_net(self) -> NetParameter | None:
        """The net of `net_file`; None if there is none. Raise UserError for a file that is no net."""
        return None if self.net_file is None else read_own_net(self.net_file, self.crop)

    @functools.cached_property
    def has_batch_norm(self) -> bool:
        """Whether the net of one's own has BatchNorm layers."""
        return self.own_net is not None and any(layer.type == "BatchNorm" for layer in self.own_net.layer)

    @functools.cached_property
    def stages(self) -> int:
        """The number of stages, which n counts. Raise UserError for a net that cannot be used."""
        return LAYERS if self.own_net is None else len(stages_of(self.own_net, self.cuts))

    @functools.cached_property
    def net_sha256(self) -> str | None:
        """The checksum of the message of a net of one's own: comments and the order of fields do not matter."""
        if self.own_net is None:
            return None
        return hashlib.sha256(self.own_net.SerializeToString(deterministic=True)).hexdigest()

    def source_file(self, letter: str) -> Path:
        """Return the path of a source's weights. Raise UserError for a letter that the recipe does not have."""
        if letter not in self.sources:
            known = ", ".join(self.sources) or "none"
            raise UserError(f"recipe {self.name}: there is no source {letter}; its sources are: {known}")
        return self.folder / self.sources[letter].weights

    def networks(self) -> list[Network]:
        """Return every network of the recipe: bases first, then seed by seed in the order of the file."""
        every = [
            Network(self, split, treatment, seed)
            for seed in self.seeds
            for split, treatments in self.treatments.items()
            for treatment in treatments
        ]
        return sorted(every, key=lambda network: not network.treatment.is_base)

    def network(self, split: str, treatment: Treatment | str, seed: int = 0) -> Network:
        """Return a network with this recipe's settings, whether or not the recipe lists it.

        Raise UserError if the split does not exist or does not support the treatment.
        """
        if isinstance(treatment, str):
            treatment = Treatment.parse(treatment)
        if not isinstance(seed, int) or seed < 0:
            raise UserError(f"seed {seed!r}: a whole number, 0 or more, was expected")
        check_fits(split, treatment)
        self.require(treatment)
        return Network(self, split, treatment, seed)

    def require(self, treatment: Treatment) -> None:
        """Raise UserError unless the recipe has the stages and the source that a treatment needs."""
        treatment.require_stages(self.stages)
        if treatment.is_external:
            self.source_file(treatment.source)

    def dataset_folder(self, data_root: str | os.PathLike[str]) -> Path:
        """Return the folder that holds the dataset's train.txt, val.txt and classes.csv."""
        given = Path(self.dataset).expanduser()
        return given if len(given.parts) > 1 else Path(data_root) / given

    def data_folder(self, data_root: str | os.PathLike[str], split: str, letter: str = "") -> Path:
        """Return the folder of the lists, databases and mean image of a half (letter A or B), `whole` or `reducedK`."""
        return Path(data_root) / Path(self.dataset).name / split / letter

    def snapshots_kept(self, done: bool) -> int | None:
        """Return how many snapshots of a network are kept, once it is ``done`` or before; None means all."""
        if self.keep_snapshots == "all":
            return None
        # 450,000 iterations of a CaffeNet write 45 snapshots of 490 MB each. With two of them kept, a damaged one costs
        # one snapshot interval.
        return self.keep_snapshots or (1 if done else 2)

    def settings(self) -> dict[str, Any]:
        """Return the recipe as plain values in the structure of its YAML file, for provenance.

        `slurm` and `watch` are left out because they do not affect training.
        """
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
                **({"gray": True} if self.images.gray else {}),
            },
            "architecture": self.architecture,
            "crop": self.crop,
            "mirror": self.mirror,
            "batch": {"train": self.batch.train, "test": self.batch.test},
            "outputs": "classes" if self.outputs is None else self.outputs,
            "mean": list(self.mean) if isinstance(self.mean, tuple) else self.mean,
            "test_images": "all" if self.test_images is None else self.test_images,
            "solver": dict(self.solver),
            "solver_for": {pattern: dict(fields) for pattern, fields in self.solver_for.items()},
            **self._own_net(),
            **({} if self.keep_snapshots is None else {"keep_snapshots": self.keep_snapshots}),
            "threads": self.threads,
            **({} if self.precision == "fp32" else {"precision": self.precision}),
            **({} if self.deterministic else {"deterministic": False}),
            "seeds": list(self.seeds),
            "networks": {split: [str(treatment) for treatment in each] for split, each in self.treatments.items()},
        }

    def _own_net(self) -> dict[str, Any]:
        """The settings that only recipes with a net of their own have: what is left out is at its default."""
        given = {
            "net_sha256": self.net_sha256,
            "cuts": list(self.cuts),
            "sources": {letter: dict(vars(each)) for letter, each in self.sources.items()},
            "scale": self.scale,
            "batch_norm": self.batch_norm,
            "copied_rate": self.copied_rate,
        }
        default = {"net_sha256": None, "cuts": [], "sources": {}, "scale": 1, "batch_norm": "stored", "copied_rate": 1}
        return {name: value for name, value in given.items() if value != default[name]}

    def sha256(self) -> str:
        """Return the sha256 of the recipe's `settings`, as JSON with sorted keys and without spaces.

        `keep_snapshots` is left out because it does not affect training.
        """
        settings = {key: value for key, value in self.settings().items() if key != "keep_snapshots"}
        text = json.dumps(settings, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        return hashlib.sha256(text.encode()).hexdigest()


def solver_of(
    solver: Mapping[str, Any], solver_for: Mapping[str, Mapping[str, Any]], split: str, treatment: str
) -> dict[str, Any]:
    """Return a recipe's solver fields for one network: ``solver``, updated by each pattern that names the network."""
    fields = dict(solver)
    for pattern, others in solver_for.items():
        if any(fnmatch.fnmatchcase(name, pattern) for name in (split, treatment, f"{split}-{treatment}")):
            fields.update(others)
    return fields


@dataclass(frozen=True)
class Network:
    """One training run: a treatment of a recipe on a split, with a seed."""

    recipe: Recipe
    split: str
    treatment: Treatment
    seed: int

    @property
    def name(self) -> str:
        """The network's name, unique in its recipe, for example `random0-A3B+-s0`; also the name of its folder."""
        return f"{self.split}-{self.treatment}-s{self.seed}"

    @property
    def description(self) -> str:
        """The treatment in words; n counts stages in a net of one's own."""
        return describe(self.treatment, "stage" if self.recipe.net_file else "layer")

    @property
    def random_seed(self) -> int:
        """Caffe's random_seed for this network, 1 to 2^31-1, different for each network.

        A selffer with its base's seed would be initialised with the same values and trained on the same crops.
        """
        text = f"{self.recipe.name}/{self.split}/{self.treatment}/{self.seed}"
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") & 0x7FFFFFFF or 1

    @property
    def base(self) -> Network | None:
        """The network of the same split and seed that layers are copied from; None if no layers are copied."""
        base = self.treatment.base
        return None if base is None else Network(self.recipe, self.split, base, self.seed)

    @property
    def solver(self) -> dict[str, Any]:
        """The recipe's solver fields, updated with those that `solver_for` sets for this network.

        A net with BatchNorm is not tested before the training unless the recipe says so: re-initialised layers have no
        statistics yet, and dividing by their zero variances in every layer soon gives NaN, in real Caffe, too.
        """
        fields = solver_of(self.recipe.solver, self.recipe.solver_for, self.split, str(self.treatment))
        return {"test_initialization": False} | fields if self.recipe.has_batch_norm else fields

    @property
    def max_iter(self) -> int:
        """The number of training iterations."""
        return self.solver["max_iter"]

    @property
    def chance_after(self) -> int:
        """The iteration from which a test result at chance level causes a warning."""
        given = self.recipe.watch.chance_after
        return max(1, self.max_iter // 10) if given is None else given

    @property
    def expected_accuracy(self) -> tuple[float, float] | None:
        """The lowest and highest final accuracy that the recipe expects; None if it sets no expectation."""
        name = f"{self.split}-{self.treatment}"
        ranges = self.recipe.watch.expect.items()
        return next((each for pattern, each in ranges if fnmatch.fnmatchcase(name, pattern)), None)

    def folder(self, runs_root: str | os.PathLike[str]) -> Path:
        """Return the network's folder, runs_root/RECIPE/NETWORK."""
        return Path(runs_root) / self.recipe.name / self.name

    def data_folder(self, data_root: str | os.PathLike[str]) -> Path:
        """Return the folder of the lists and databases that this network is trained and tested on."""
        return self.recipe.data_folder(data_root, self.split, self.treatment.target)

    @property
    def source(self) -> Path | None:
        """The weights that stages are copied from, for a treatment with an external source; else None."""
        return self.recipe.source_file(self.treatment.source) if self.treatment.is_external else None

    def mean_folder(self, data_root: str | os.PathLike[str]) -> Path:
        """Return the folder of the mean image that this network subtracts (see the recipe's key `mean`)."""
        base = self.base
        return (base if base is not None and self.recipe.mean == "base" else self).data_folder(data_root)


def check_fits(split: str, treatment: Treatment) -> None:
    """Raise UserError if the split does not exist or does not support the treatment."""
    if split == "whole":
        allowed, fits = "treatments without a half, for example base, R3, P3", treatment.target == ""
    elif re.fullmatch(r"reduced[1-9][0-9]*", split):
        allowed, fits = "base", treatment.is_base and treatment.target == ""
    elif split == "natman" or re.fullmatch(r"random(0|[1-9][0-9]*)", split):
        allowed, fits = "treatments that end in a half, for example baseA, A3B, R3B", treatment.target != ""
    else:
        raise UserError(f"there is no split {split!r}; splits are {SPLITS}")
    if not fits:
        raise UserError(f"treatment {treatment}: the split {split} only supports {allowed}")
