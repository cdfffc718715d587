"""A results table of fabricated networks, and a network's folder beside it."""

from __future__ import annotations

import csv
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from transfer_caffe.experiment.treatment import Treatment
from transfer_caffe.formats.proto import array_to_blob, caffe_pb2, write_binary
from transfer_caffe.results.markers import Marker, markers_of
from transfer_caffe.results.table import Row, read_results, to_csv
from transfer_caffe.utils.files import write_text

# split (reduced5: all classes, 5 images each), treatment, seed, accuracy_final
NETWORKS = [
    ("random0", "baseA", 0, 0.60), ("random0", "baseB", 0, 0.70), ("random0", "A3A", 0, 0.59),
    ("random0", "B3B", 0, 0.68), ("random0", "B3A", 0, 0.57), ("random0", "A3B", 0, 0.66),
    ("random0", "A3B+", 0, 0.71), ("random0", "baseA", 1, 0.62), ("random0", "B3A", 1, 0.58),
    ("natman", "baseA", 0, 0.50), ("natman", "baseB", 0, 0.65), ("natman", "A3B", 0, 0.55),
    ("natman", "B3A", 0, 0.45), ("whole", "base", 0, 0.50), ("whole", "R3", 0, 0.20),
]  # fmt: skip


REDUCED = [("reduced5", "base", 0, 0.02), ("reduced50", "base", 0, 0.3), ("reduced50", "base", 1, 0.4)]


def write_table(folder: Path, networks: Iterable[tuple[str, str, int, float | None]]) -> Path:
    """Write a results.csv as the results module does; accuracy_top10 is 0.01 above accuracy_final."""
    rows = []
    for split, name, seed, accuracy in networks:
        treatment = Treatment.parse(name)
        images = int(split.removeprefix("reduced")) if split.startswith("reduced") else None
        row = Row(
            network=f"{split}-{name}-s{seed}", split="whole" if images is not None else split, treatment=name,
            source="random" if treatment.is_random else treatment.source, target=treatment.target or "whole",
            n=treatment.n, finetuned=treatment.finetuned, images_per_class=images, target_classes=50, outputs=50,
            max_iter=1000, logged=True, accuracy_final=accuracy,
            accuracy_top10=None if accuracy is None else round(accuracy + 0.01, 6), accuracy_max=accuracy,
            iteration_of_max=1000, test_loss_final=1.5, train_loss_last1000=1.2, seconds_per_iteration=0.02,
            seconds_per_test=0.5, recipe="demo", seed=seed, wall_seconds=20.0,
        )  # fmt: skip
        rows.append(row)
    write_text(folder / "results.csv", to_csv(rows))
    return folder / "results.csv"


def markers(folder: Path, networks: Iterable[tuple[str, str, int, float | None]]) -> list[Marker]:
    return markers_of(read_results(write_table(folder, networks)), "final")


def table(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def add_folder(folder: Path, channels: int = 3) -> Path:
    """Write a network's folder with a curve and final weights, and return the path of the weights."""
    (folder / "snapshots").mkdir(parents=True)
    folder.joinpath("curve.csv").write_text(
        "iteration,test_accuracy,test_loss,train_loss,lr\n0,0.02,3.9,,0.02\n500,,,,\n1000,0.6,1.5,1.2,0.002\n"
    )
    net = caffe_pb2.NetParameter(name="mini")
    net.layer.add(name="data", type="Data")
    layer = net.layer.add(name="conv1", type="Convolution")
    weights = np.arange(4 * channels * 5 * 5, dtype=np.float32).reshape(4, channels, 5, 5)
    layer.blobs.append(array_to_blob(weights))
    layer.blobs.append(array_to_blob(np.zeros(4, np.float32)))
    net.layer.add(name="fc8", type="InnerProduct").blobs.append(array_to_blob(np.ones((2, 2), np.float32)))
    path = folder / "snapshots" / "net_iter_1000.caffemodel"
    write_binary(path, net)
    return path
