"""The results of linear probes: runs/RECIPE/probes.json, written by `python -m transfer_caffe.probe`.

    for probe in read_probes("runs/birds"):
        print(probe.n, probe.stage, probe.accuracy)

A linear probe is a linear classifier on the features at one cut of a net with existing weights. It shows what a linear
classifier can read from the first n stages as they are, without any training of the net (Alain and Bengio,
"Understanding intermediate layers using linear classifier probes", 2016).
"""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transfer_caffe.utils.errors import UserError
from transfer_caffe.utils.files import read_json, write_json

PROBES = "probes.json"


@dataclass(frozen=True)
class Probe:
    """One linear probe.

    ``source`` is the letter of the weights in the recipe, ``target`` "A", "B" or "" (all classes) of ``split``. ``n``
    counts the stages below the probe, ``stage`` is the name of the last of them and ``cut`` the blob at its end, of
    which ``features`` numbers are used. ``accuracy`` is the fraction of ``test_images`` validation images that are
    classified correctly after training with ``train_images``; ``decay`` the chosen weight of the L2 penalty.
    """

    split: str
    target: str
    source: str
    n: int
    stage: str
    cut: str
    features: int
    train_images: int
    test_images: int
    decay: float
    accuracy: float


def write_probes(folder: str | os.PathLike[str], made_from: dict[str, Any], probes: Sequence[Probe]) -> Path:
    """Write the probes of one recipe, and what they were made from; return the path of the file."""
    path = Path(folder) / PROBES
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, {"made_from": made_from, "probes": [dataclasses.asdict(probe) for probe in probes]})
    return path


def made_from(folder: str | os.PathLike[str]) -> dict[str, Any] | None:
    """Return what a recipe's probes were made from; None if there are none."""
    path = Path(folder) / PROBES
    return _read(path)["made_from"] if path.is_file() else None


def read_probes(folder: str | os.PathLike[str]) -> list[Probe]:
    """Return the probes in the folder of a recipe's networks; an empty list if there are none.

    Raise UserError for a damaged file.
    """
    path = Path(folder) / PROBES
    return [_probe(each, path) for each in _read(path)["probes"]] if path.is_file() else []


def _read(path: Path) -> dict[str, Any]:
    content = read_json(path)
    if not isinstance(content, dict) or not isinstance(content.get("probes"), list) or "made_from" not in content:
        raise UserError(f"{path}: damaged; remove it, and python -m transfer_caffe.probe writes it again")
    return content


def _probe(values: Any, path: Path) -> Probe:
    wanted = {"split": str, "target": str, "source": str, "n": int, "stage": str, "cut": str, "features": int,
              "train_images": int, "test_images": int, "decay": float, "accuracy": float}  # fmt: skip
    if (
        not isinstance(values, dict)
        or set(values) != set(wanted)
        or not all(isinstance(values[key], kind) for key, kind in wanted.items())
        or not (math.isfinite(values["accuracy"]) and 0 <= values["accuracy"] <= 1)
    ):
        raise UserError(f"{path}: damaged; remove it, and python -m transfer_caffe.probe writes it again")
    return Probe(**values)
