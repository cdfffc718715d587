"""Networks in the style of the well-known ones, each with data and a solver, to be trained by two engines.

    write_data("lenet", folder, seed=1)
    (folder / "net.prototxt").write_text(net_text("lenet"))
    (folder / "solver.prototxt").write_text(solver_text("lenet", max_iter=100))

Nothing in them is random, and they train without chaos: two engines that start with the same weights must report
the same losses for a hundred iterations. The nets are the files of the folder networks/.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np

FOLDER = Path(__file__).resolve().parent / "networks"

ROWS = 24
"""Rows of each data set. Some batch sizes do not divide it: their batches go on at the first row."""


@dataclass(frozen=True)
class Dataset:
    """One HDF5 dataset: the ``shape`` of a row, and what it holds.

    ``kind`` is "normal", "binary" (zeros and ones), or a number: whole numbers below it.
    """

    shape: tuple[int, ...]
    kind: str | int

    def values(self, draw: np.random.RandomState) -> np.ndarray:
        """`ROWS` rows, float32."""
        shape = (ROWS, *self.shape)
        if self.kind == "normal":
            return draw.standard_normal(shape).astype(np.float32)
        return draw.randint(0, 2 if self.kind == "binary" else int(self.kind), shape).astype(np.float32)


@dataclass(frozen=True)
class Network:
    """What a net needs to be trained: its datasets by the names of the tops, and a rate at which it is not chaotic."""

    datasets: Mapping[str, Dataset]
    base_lr: float
    weight_decay: float = 0.0005
    random_seed: int = 1
    """Of the solver. From alexnet's first ones real Caffe itself, its weights moved by one unit of the last place, goes
    other ways in one of eight draws or more (seed 1: 0.3% after 16 iterations). Caffenet's is the first from which it
    comes to its own 100th loss in 24 draws that move the weights by four units (seed 1: once 12% off in 12 draws)."""


def _images(*shape: int, classes: int) -> dict[str, Dataset]:
    return {"data": Dataset(shape, "normal"), "label": Dataset((), classes)}


NETWORKS: Mapping[str, Network] = {
    "lenet": Network(_images(1, 28, 28, classes=10), base_lr=0.005),
    "cifar10_full": Network(_images(3, 32, 32, classes=10), base_lr=0.002, weight_decay=0.004),
    "alexnet": Network(_images(3, 67, 67, classes=12), base_lr=0.002, random_seed=4),
    "caffenet": Network(_images(3, 67, 67, classes=12), base_lr=0.002, random_seed=13),
    "googlenet": Network(_images(3, 64, 64, classes=10), base_lr=0.001),
    "resnet": Network(_images(3, 48, 48, classes=10), base_lr=0.0003),
    "siamese": Network({"pair_data": Dataset((2, 28, 28), "normal"), "sim": Dataset((), "binary")}, base_lr=0.0002),
    "autoencoder": Network({"data": Dataset((1, 14, 14), "binary")}, base_lr=0.0005),
    "sharing": Network({**_images(6, 14, 14, classes=6), "target": Dataset((3,), "normal")}, base_lr=0.005),
    "segmenter": Network({"data": Dataset((3, 32, 32), "normal"), "label": Dataset((1, 32, 32), 5)}, base_lr=0.005),
}


def net_text(name: str) -> str:
    """The net, whose HDF5Data layer reads train.txt in the folder in which the engine runs."""
    return (FOLDER / f"{name}.prototxt").read_text()


def solver_text(name: str, max_iter: int, *, snapshot_after_train: bool = False) -> str:
    """A solver of net.prototxt that displays each iteration. Its snapshot, if any, is snap/net_iter_N.caffemodel."""
    network = NETWORKS[name]
    return f"""net: "net.prototxt"
base_lr: {network.base_lr} lr_policy: "fixed" momentum: 0.9 weight_decay: {network.weight_decay}
display: 1 max_iter: {max_iter} solver_mode: CPU random_seed: {network.random_seed}
snapshot: 0 snapshot_after_train: {"true" if snapshot_after_train else "false"} snapshot_prefix: "snap/net"
"""


def write_data(name: str, folder: Path, seed: int) -> None:
    """Write train.h5 and train.txt, which names it relative to ``folder``: the engine must run there."""
    draw = np.random.RandomState(seed)
    with h5py.File(folder / "train.h5", "w") as file:
        for dataset, content in NETWORKS[name].datasets.items():
            file.create_dataset(dataset, data=content.values(draw))
    (folder / "train.txt").write_text("train.h5\n")
