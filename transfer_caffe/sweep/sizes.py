"""Number of classes and images of a recipe's networks, and disk space of data and snapshots.

    sizes = Sizes(recipe, Path("data"))
    sizes.images(network.data_folder("data"), "train")    # about 640,000; None if unknown

The numbers come from the image lists if these exist. Otherwise they are estimated from known totals of the dataset,
divided as the split does it.
"""

from __future__ import annotations

import functools
import math
import re
from dataclasses import dataclass, replace
from pathlib import Path

from transfer_caffe import data as data_stage
from transfer_caffe.data_prep.classes import read_classes
from transfer_caffe.experiment.architecture import weight_shapes
from transfer_caffe.experiment.recipe import Network, Recipe
from transfer_caffe.experiment.stages import stages_of
from transfer_caffe.generate import compose

PAGE = 4096  # page size of an LMDB, in bytes
JPEG = 0.17
"""Size of a stored JPEG relative to its pixels: ImageNet at 256 x 256 takes 45 GB as JPEG, and 262 GB as pixels."""

_HISTORIES = {"Adam": 2, "AdaDelta": 2}
"""Number of history blobs per weight blob, for solver types that need more than one."""


@dataclass(frozen=True)
class Dataset:
    """Known totals of a dataset, used before its lists exist."""

    classes: int
    images: dict[str, int]
    man_made: int


# photos: data_prep/photos.py; ilsvrc2012: its 1,000 classes, grouped in data_prep/classes.csv
KNOWN = {
    "photos": Dataset(100, {"train": 20_000, "val": 10_000}, 50),
    "ilsvrc2012": Dataset(1000, {"train": 1_281_167, "val": 50_000}, 551),
}


@dataclass(frozen=True)
class Room:
    """Bytes on disk, and whether they are estimated (else they were counted, or computed from the architecture)."""

    bytes: int
    estimated: bool


class Sizes:
    """Cached counts and sizes of one recipe's data and snapshots."""

    def __init__(self, recipe: Recipe, data: Path) -> None:
        self.recipe, self.data = recipe, data
        self.known = KNOWN.get(Path(recipe.dataset).name)
        self.classes = functools.cache(self._classes)
        self.images = functools.cache(self._images)
        self._weights = functools.cache(self._weights_of)

    def _classes(self, folder: Path) -> int | None:
        """Return the number of classes of a data folder (`Recipe.data_folder`); None if unknown."""
        if (folder / "classes.txt").is_file():
            lines = (folder / "classes.txt").read_text(errors="replace").splitlines()
            return sum(1 for line in lines if line.strip() and not line.startswith("#"))
        if (folder / "train.txt").is_file():
            return _highest_label(folder / "train.txt") + 1
        total = self._whole_classes()
        if total is None:
            return None
        split, half = self._split_of(folder)
        if not half:
            return total
        if split == "natman":
            man_made = self._man_made()
            return man_made if man_made is None or half == "A" else total - man_made
        return total // 2 if half == "A" else total - total // 2

    def _whole_classes(self) -> int | None:
        source = self.recipe.dataset_folder(self.data)
        if (source / "train.txt").is_file():
            return _highest_label(source / "train.txt") + 1
        return self.known.classes if self.known else None

    def _man_made(self) -> int | None:
        beside = self.recipe.dataset_folder(self.data) / "classes.csv"
        if beside.is_file():
            return sum(each.group == "man-made" for each in read_classes(beside))
        return self.known.man_made if self.known else None

    def _images(self, folder: Path, part: str) -> int | None:
        """Return the number of images of a data folder's ``part``, train or val; None if unknown."""
        if (folder / f"{part}.txt").is_file():
            return _lines(folder / f"{part}.txt")
        source = self.recipe.dataset_folder(self.data) / f"{part}.txt"
        if source.is_file():
            total: int | None = _lines(source)
        else:
            total = self.known.images[part] if self.known else None
        classes, every = self.classes(folder), self._whole_classes()
        if total is None or not classes or not every:
            return total if total is not None and not self._split_of(folder)[1] else None
        split, _ = self._split_of(folder)
        if part == "train" and (match := re.fullmatch(r"reduced(\d+)", split)):
            return min(total, int(match[1]) * every)
        return round(total * classes / every)

    def _split_of(self, folder: Path) -> tuple[str, str]:
        """Return the split and the half that a data folder belongs to."""
        names = folder.relative_to(self.data / Path(self.recipe.dataset).name).parts
        return names[0], names[1] if len(names) > 1 else ""

    def outputs(self, network: Network) -> int | None:
        """Return the number of outputs of a network's last layer; None if unknown."""
        return self.recipe.outputs or self.classes(network.data_folder(self.data))

    def test_images(self, network: Network) -> int | None:
        """Return the number of images of one test pass of a network, in full batches; None if unknown."""
        count = self.recipe.test_images
        if count is None:  # the batch size then divides the number of images
            return self.images(network.data_folder(self.data), "val")
        return -(-count // self.recipe.batch.test) * self.recipe.batch.test

    def databases(self, copies: bool) -> Room | None:
        """Return the disk space of databases, views and mean images; None if the number of images is unknown.

        ``copies``: LMDBs instead of views, for real Caffe. Image files that are unpacked for them are not counted.
        """
        whole = self.recipe.data_folder(self.data, "whole")
        folders = data_stage.folders(self.recipe, self.data)
        if self.recipe.images.views and whole not in folders:
            folders = [whole, *folders]
        total, estimated = 0, False
        for folder in folders:
            for part in ("train", "val"):
                database = folder / f"{part}_lmdb"
                if database.is_dir():
                    total += sum(path.stat().st_size for path in database.iterdir() if path.is_file())
                    continue
                count = self.images(folder, part)
                if count is None:
                    return None
                estimated = True
                view = self.recipe.images.views and not copies and folder != whole
                total += 8 * count if view else self._database(count)
            total += 3 * math.prod(self.recipe.images.resize) * 4
        return Room(total, estimated)

    def _database(self, count: int) -> int:
        """Estimate the size of an LMDB of ``count`` images: records larger than half a page use separate pages."""
        pixels = 3 * math.prod(self.recipe.images.resize)
        record = pixels * JPEG if self.recipe.images.encoded else pixels + 32
        each = record if record < PAGE / 2 else math.ceil((record + 16) / PAGE) * PAGE
        return round(count * (each + 64))

    def weights(self, network: Network) -> tuple[int, int] | None:
        """Return the bytes of a network's .caffemodel and of its init.caffemodel; None if its outputs are unknown."""
        outputs = self.outputs(network)
        if outputs is None:
            return None
        total, stages = self._weights(outputs)
        return total, sum(stages[: network.treatment.n]) if network.treatment.copies else 0

    def _weights_of(self, outputs: int) -> tuple[int, list[int]]:
        """Return the bytes of all weights, and of those of each stage."""
        recipe = replace(self.recipe, outputs=outputs, test_images=1)
        network = replace(recipe.networks()[0], recipe=recipe)
        net = compose(network, self.data, network.folder("runs")).net
        sizes = {name: 4 * sum(map(math.prod, shapes)) for name, shapes in weight_shapes(net).items()}
        stages = [sum(sizes[name] for name in stage.weighted) for stage in stages_of(net, recipe.cuts)]
        return sum(sizes.values()), stages

    def snapshot(self, network: Network) -> int | None:
        """Return the bytes of one snapshot of a network, weights and history; None if unknown."""
        weights = self.weights(network)
        histories = _HISTORIES.get(self.recipe.solver.get("type", "SGD"), 1)
        return None if weights is None else weights[0] * (1 + histories)


def snapshots_kept(network: Network, done: bool) -> int:
    """Return the maximum number of a network's snapshots on disk, once it is ``done`` or during training."""
    interval = network.solver.get("snapshot", 0)
    written = math.ceil(network.max_iter / interval) if interval else 1
    kept = network.recipe.snapshots_kept(done)
    if not done and kept is not None:
        kept += (
            1 + network.treatment.is_random
        )  # a new one is written before an old one is removed; random: the first is kept
    return written if kept is None else min(written, kept)


def _lines(path: Path) -> int:
    """Return the number of lines of a list, without parsing them."""
    content = path.read_bytes()
    return content.count(b"\n") + (not content.endswith(b"\n") and bool(content))


def _highest_label(path: Path) -> int:
    """Return the highest label of an image list; damaged lines are ignored here and reported elsewhere."""
    labels = (line.rpartition(b" ")[2] for line in path.read_bytes().splitlines())
    return max((int(label) for label in labels if label.isdigit()), default=-1)
