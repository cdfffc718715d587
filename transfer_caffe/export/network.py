"""A network that this program has trained, runs/RECIPE/NETWORK: its net, weights, preprocessing and class names.

    found = read_network("runs/birds/whole-P5+-s0")

Only the files in the network's folder, and the lists that its prototxt refers to, are read.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from transfer_caffe.formats.image_list import read_class_map
from transfer_caffe.formats.nets import included, read_net, state_of
from transfer_caffe.formats.proto.caffe_pb2 import TEST, NetParameter
from transfer_caffe.utils.errors import UserError, require_file
from transfer_caffe.utils.files import read_record, read_text, sha256

REMEDY = "only finished networks can be exported; run its driver again"


@dataclass(frozen=True)
class TrainedNetwork:
    """A trained network. ``resize``: height and width of its images before the crop; ``classes``: [] if unknown."""

    net: NetParameter
    weights: Path
    shape: tuple[int, int, int]
    resize: list[int]
    classes: list[str]


def read_network(folder: str | os.PathLike[str]) -> TrainedNetwork:
    """Read a network's folder. Raise UserError unless the network is finished and its files are intact."""
    folder = Path(folder)
    require_file(folder, "give a network's folder, runs/RECIPE/NETWORK")
    require_file(folder / "done.json", REMEDY)
    kinds = {"network": str, "max_iter": int, "sha256": dict, "settings": dict}
    done = read_record(folder / "done.json", kinds, REMEDY)
    weights = folder / "snapshots" / f"net_iter_{done['max_iter']}.caffemodel"
    require_file(weights, "the network's final weights are missing; run its driver again")
    if sha256(weights) != done["sha256"].get("final"):
        raise UserError(f"{weights}: damaged or replaced: its checksum differs from that in done.json")
    net = read_net(folder / "train_val.prototxt")
    state = state_of(net, TEST)
    data = next((layer for layer in net.layer if layer.type == "Data" and included(layer, state)), None)
    if data is None or not data.transform_param.crop_size:
        raise UserError(f"{folder / 'train_val.prototxt'}: has no data layer with a crop_size in phase TEST")
    for layer in net.layer:
        # relative to the network's folder, where engines run
        if layer.transform_param.mean_file:
            layer.transform_param.mean_file = os.path.normpath(folder / layer.transform_param.mean_file)
    crop = data.transform_param.crop_size
    resize = [int(side) for side in done["settings"].get("images", {}).get("resize", [])]
    classes = class_names(Path(os.path.normpath(folder / data.data_param.source)).parent)
    channels = 1 if data.transform_param.force_gray else 3
    return TrainedNetwork(net, weights, (channels, crop, crop), resize, classes)


def class_names(folder: Path) -> list[str]:
    """Return the names of the classes of a half (or of all classes), whose lists are in ``folder``; [] if unknown."""
    if not (folder / "classes.txt").is_file():
        return []
    numbers = read_class_map(folder / "classes.txt")
    # DATASET/SPLIT/HALF or DATASET/SPLIT
    names = next((found for above in folder.parents[:2] if (found := _names_in(above))), [])
    return [names[number] for number in numbers] if names and max(numbers, default=0) < len(names) else []


def _names_in(dataset: Path) -> Sequence[str]:
    """Return the names in a dataset's class file: the words of classes.csv, or the names of classes.txt."""
    if (dataset / "classes.csv").is_file():
        rows = list(csv.DictReader(read_text(dataset / "classes.csv").splitlines()))
        return [row.get("words") or row.get("name") or row.get("wnid") or "" for row in rows]
    if (dataset / "classes.txt").is_file():
        lines = read_text(dataset / "classes.txt").splitlines()
        if not lines or lines[0].startswith("#"):
            return []  # the class map of a half
        return [line.partition(" ")[2] for line in lines]
    return []
