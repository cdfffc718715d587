"""Results tables for the tests of the analysis, and functions that find effects and findings in its output."""

from __future__ import annotations

import csv
from collections.abc import Iterable
from pathlib import Path

from transfer_caffe.analysis import Analysis, Effect, Finding
from transfer_caffe.analysis.__main__ import main as analysis_main
from transfer_caffe.experiment.treatment import Treatment
from transfer_caffe.results.table import Row


def row(split: str, name: str, seed: int, accuracy: float | None, recipe: str = "demo", **other) -> Row:
    """Return a row as the results module builds it; accuracy_top10 is 0.01 above accuracy_final."""
    treatment = Treatment.parse(name)
    return Row(
        **{
            "network": f"{split}-{name}-s{seed}", "split": split, "treatment": name,
            "source": "random" if treatment.is_random else treatment.source, "target": treatment.target or "whole",
            "n": treatment.n, "finetuned": treatment.finetuned, "images_per_class": None, "target_classes": 50,
            "outputs": 50, "max_iter": 1000, "logged": accuracy is not None, "accuracy_final": accuracy,
            "accuracy_top10": None if accuracy is None else accuracy + 0.01, "accuracy_max": accuracy,
            "iteration_of_max": 1000, "test_loss_final": 1.5, "train_loss_last1000": 1.2,
            "seconds_per_iteration": 0.02, "seconds_per_test": 0.5, "recipe": recipe, "seed": seed,
            "wall_seconds": 20.0,
        }
        | other
    )  # fmt: skip


def rows_of(networks: Iterable[tuple[str, str, int, float | None]]) -> list[Row]:
    return [row(*network) for network in networks]


def effect(
    analyses: list[Analysis], comparison: str, n: str, pairing: str = "own base", family: str = "random"
) -> Effect:
    (found,) = [
        each
        for one in analyses
        for each in one.effects
        if (each.comparison, each.n, each.pairing, each.family) == (comparison, n, pairing, family)
    ]
    return found


def finding(analyses: list[Analysis], comparison: str, pairing: str = "own base", family: str = "random") -> Finding:
    (found,) = [
        each
        for one in analyses
        for each in one.findings
        if (each.comparison, each.pairing, each.family) == (comparison, pairing, family)
    ]
    return found


def run(*arguments: str | Path) -> int:
    return analysis_main([str(each) for each in arguments])


def complete(split: str, level: float) -> list[tuple[str, str, int, float | None]]:
    names = ["baseA", "baseB"] + [
        f"{source}3{target}{plus}" for source in "AB" for target in "AB" for plus in ("", "+")
    ]
    return [(split, name, 0, level + 0.05 * ("B" in name.strip("+")[-1]) - 0.01 * ("3" in name)) for name in names]


def read(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))
