"""The record of a finished network: its test curve, and done.json with results and provenance."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import statistics
from pathlib import Path
from typing import Any

from transfer_caffe.experiment.architecture import classes_of
from transfer_caffe.experiment.recipe import Network
from transfer_caffe.formats.log import Log, Row
from transfer_caffe.formats.proto import read_text
from transfer_caffe.formats.proto.caffe_pb2 import NetParameter
from transfer_caffe.run import provenance
from transfer_caffe.run.engines import Engine
from transfer_caffe.run.folder import INIT, LOG, NET, SOLVER, weights_path
from transfer_caffe.run.inputs import count_classes
from transfer_caffe.run.started import now_utc
from transfer_caffe.utils.files import sha256

BESIDE = ("surgery.json", "curve.csv", "started.json", LOG)
"""Further files of a network's folder with a checksum in the record; they do not change after it is written."""


def curve_csv(rows: list[Row]) -> str:
    """Return the curve as CSV, one line per test; unknown values are empty."""
    out = io.StringIO()
    table = csv.writer(out, lineterminator="\n")
    table.writerow(["iteration", "test_accuracy", "test_loss", "train_loss", "lr"])
    table.writerows([row.iteration, row.test_accuracy, row.test_loss, row.train_loss, row.lr] for row in rows)
    return out.getvalue()


def record(
    network: Network, folder: Path, data: Path, engine: Engine, started: dict[str, Any], log: Log
) -> dict[str, Any]:
    """Return the content of done.json: the results and their provenance.

    ``started`` is the content of started.json, ``log`` is the log of a finished run.
    """
    recipe, treatment, rows = network.recipe, network.treatment, log.rows()
    tests = [(row.test_accuracy, row.iteration) for row in rows if row.test_accuracy is not None]
    net = read_text(folder / NET, NetParameter())
    best, best_iteration = max(tests, key=lambda test: test[0])  # the first one in case of a tie
    data_folder = network.data_folder(data)
    final = weights_path(folder, network.max_iter)
    files = {
        "init": folder / INIT,
        "final": final,
        NET: folder / NET,
        SOLVER: folder / SOLVER,
        "train.txt": data_folder / "train.txt",
        "val.txt": data_folder / "val.txt",
        "mean.binaryproto": network.mean_folder(data) / "mean.binaryproto",
        **{name: folder / name for name in BESIDE},
    }
    return {
        "network": network.name,
        "recipe": recipe.name,
        "split": network.split,
        "treatment": str(treatment),
        "source": treatment.source,
        "target": treatment.target,
        "n": treatment.n,
        "finetuned": treatment.finetuned,
        "seed": network.seed,
        "random_seed": network.random_seed,
        "accuracy_final": tests[-1][0],
        "accuracy_top10": top10([accuracy for accuracy, _ in tests]),
        "accuracy_max": best,
        "iteration_of_max": best_iteration,
        "tests": len(tests),
        "test_loss_final": rows[-1].test_loss,
        "train_loss_last1000": _rounded(log.train_loss_over_last(1000)),
        "max_iter": network.max_iter,
        "outputs": classes_of(net),
        "target_classes": count_classes(data_folder / "train.txt"),
        "wall_seconds": round(log.seconds, 3),
        "seconds_per_iteration": _rounded(log.seconds_per_iteration),
        "seconds_per_test": _rounded(log.seconds_per_test),
        **provenance.engine_record(engine),
        "versions": provenance.versions(),
        "code": provenance.code(),
        "machine": {**provenance.machine(), "devices": log.devices},
        "settings": recipe.settings(),
        "recipe_sha256": recipe.sha256(),
        "sha256": {name: sha256(path) for name, path in files.items() if path.exists()},
        "data": started.get("data") or provenance.data_checksums(network, data),
        "base": network.base.name if network.base else str(network.source) if network.source else None,
        "started": started["started"],
        "finished": now_utc(),
        "runs": started.get("runs", []),
        "resumed_from": log.resumed_from,
    }


def record_sha256(done: dict[str, Any]) -> str:
    """Return the sha256 of a record: of its JSON on one line, with sorted keys and without this checksum."""
    text = json.dumps({key: value for key, value in done.items() if key != "record_sha256"}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def top10(accuracies: list[float]) -> float:
    """Return the mean of the ten highest test accuracies (of all if there are fewer), which the paper plots."""
    return round(statistics.fmean(sorted(accuracies, reverse=True)[:10]), 6)


def _rounded(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.6g}")
