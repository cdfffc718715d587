"""Read a results table (temporary: until transfer_caffe.results is there)."""

from __future__ import annotations

import csv
import os
from dataclasses import dataclass
from pathlib import Path

from transfer_caffe.errors import UserError


@dataclass(frozen=True)
class Row:
    """One network."""

    network: str
    split: str
    treatment: str
    images_per_class: int | None
    accuracy_final: float | None
    accuracy_top10: float | None
    recipe: str
    seed: int
    max_iter: int | None
    seconds_per_iteration: float | None
    wall_seconds: float | None
    test_loss_final: float | None


def _float(text: str | None) -> float | None:
    return float(text) if text else None


def read_results(path: str | os.PathLike[str]) -> list[Row]:
    """Rows of a results.csv."""
    if not Path(path).is_file():
        raise UserError(f"{path}: no such file")
    with open(path, newline="", encoding="utf-8") as file:
        rows = []
        for each in csv.DictReader(file):
            rows.append(
                Row(
                    each["network"],
                    each["split"],
                    each["treatment"],
                    int(each["images_per_class"]) if each["images_per_class"] else None,
                    _float(each["accuracy_final"]),
                    _float(each["accuracy_top10"]),
                    each.get("recipe") or "",
                    int(each.get("seed") or 0),
                    int(each["max_iter"]) if each["max_iter"] else None,
                    _float(each["seconds_per_iteration"]),
                    _float(each.get("wall_seconds")),
                    _float(each["test_loss_final"]),
                )
            )
        return rows
