"""Networks in the style of well-known ones, each with data and a solver, to be trained in both engines.

    write_data("lenet", folder, seed=1)
    (folder / "net.prototxt").write_text(net_text("lenet"))
    (folder / "solver.prototxt").write_text(solver_text("lenet", max_iter=100))

They have no random layers and train stably: two engines that start with the same weights must report the same losses
for a hundred iterations. The prototxts are in the folder networks/.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np

FOLDER = Path(__file__).resolve().parent / "networks"

ROWS = 24
"""Number of rows of each dataset. Some batch sizes do not divide it; their batches wrap around to the first row."""


@dataclass(frozen=True)
class Dataset:
    """One HDF5 dataset: the ``shape`` of a row, and its kind of values.

    ``kind`` is "normal", "binary" (zeros and ones), or a number n, for integers from 0 to n - 1.
    """

    shape: tuple[int, ...]
    kind: str | int

    def values(self, draw: np.random.RandomState) -> np.ndarray:
        """Sample `ROWS` rows, float32."""
        shape = (ROWS, *self.shape)
        if self.kind == "normal":
            return draw.standard_normal(shape).astype(np.float32)
        return draw.randint(0, 2 if self.kind == "binary" else int(self.kind), shape).astype(np.float32)


@dataclass(frozen=True)
class Network:
    """What a net needs for training: its datasets by top name, and a learning rate at which training is stable."""

    datasets: Mapping[str, Dataset]
    base_lr: float
    weight_decay: float = 0.0005
    random_seed: int = 1
    """The solver's random_seed. With alexnet's first seeds, real Caffe itself diverges from its own losses in one of
    eight or more samples when its initial weights are changed by one unit in the last place (seed 1: 0.3% after 16
    iterations). Caffenet's seed is the first from which real Caffe reproduces its own 100th loss in 24 samples in which
    the weights are changed by four units (seed 1: once 12% off in 12 samples)."""


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
    """Return the net's prototxt; its HDF5Data layer reads train.txt in the folder in which the engine runs."""
    return (FOLDER / f"{name}.prototxt").read_text()


def solver_text(name: str, max_iter: int, *, snapshot_after_train: bool = False) -> str:
    """Return a solver for net.prototxt that displays every iteration; its snapshot is snap/net_iter_N.caffemodel."""
    network = NETWORKS[name]
    return f"""net: "net.prototxt"
base_lr: {network.base_lr} lr_policy: "fixed" momentum: 0.9 weight_decay: {network.weight_decay}
display: 1 max_iter: {max_iter} solver_mode: CPU random_seed: {network.random_seed}
snapshot: 0 snapshot_after_train: {"true" if snapshot_after_train else "false"} snapshot_prefix: "snap/net"
"""


def write_data(name: str, folder: Path, seed: int) -> None:
    """Write train.h5, and train.txt, which lists it relative to ``folder``, where the engine must run."""
    draw = np.random.RandomState(seed)
    with h5py.File(folder / "train.h5", "w") as file:
        for dataset, content in NETWORKS[name].datasets.items():
            file.create_dataset(dataset, data=content.values(draw))
    (folder / "train.txt").write_text("train.h5\n")
