"""The results table, results.csv: one row for each finished network, collected from the networks' done.json files.

    for row in read_results("runs/demo/results.csv"): print(row.treatment, row.accuracy_top10)
    rows = load("paper")                                    the paper's table

The columns are those of the paper's table of networks, followed by recipe, seed and wall_seconds. As in the paper's
table, a network trained on reduced data has the split `whole` and a value in images_per_class.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transfer_caffe.experiment.recipe import Recipe
from transfer_caffe.experiment.treatment import Treatment
from transfer_caffe.results.reference import NETWORKS
from transfer_caffe.utils.errors import UserError, require_file
from transfer_caffe.utils.files import read_record, read_text, write_text
from transfer_caffe.utils.locks import lock


@dataclass(frozen=True)
class Row:
    """One network; None stands for an empty field. Accuracies are top-1 fractions; times are in seconds.

    ``source`` is "A", "B", "random" or "" (base network). ``target`` is "A", "B" or "whole". ``accuracy_top10`` is the
    mean of the ten highest test accuracies of the run (of all of them if there are fewer than ten), the metric that the
    paper plots.
    """

    network: str
    split: str
    treatment: str
    source: str
    target: str
    n: int
    finetuned: bool
    images_per_class: int | None
    target_classes: int
    outputs: int
    max_iter: int
    logged: bool
    accuracy_final: float | None
    accuracy_top10: float | None
    accuracy_max: float | None
    iteration_of_max: int | None
    test_loss_final: float | None
    train_loss_last1000: float | None
    seconds_per_iteration: float | None
    seconds_per_test: float | None
    recipe: str = ""
    seed: int = 0
    wall_seconds: float | None = None


_FIELDS = dataclasses.fields(Row)
COLUMNS = [field.name for field in _FIELDS]
_OWN = ("recipe", "seed", "wall_seconds")  # columns that the paper's table does not have


def read_results(path: str | os.PathLike[str]) -> list[Row]:
    """Read the rows of a results table; recipe, seed and wall_seconds may be missing, as in the paper's table.

    Raise UserError, naming file, line and column, for a missing column, a row of the wrong length or a value of the
    wrong type.
    """
    lines = csv.reader(io.StringIO(read_text(path), newline=""), strict=True)
    rows: list[Row] = []
    try:
        header = next(lines, [])
        if missing := [name for name in COLUMNS if name not in header and name not in _OWN]:
            hint = "; commas are expected between the columns" if len(header) == 1 else ""
            raise UserError(f"{path}:1: not a results table: the column {missing[0]} is missing{hint}")
        if len(set(header)) < len(header):
            raise UserError(f"{path}:1: a column name occurs twice; remove one of the two columns")
        for values in lines:
            if not values:
                continue
            if len(values) != len(header):
                raise UserError(f"{path}:{lines.line_num}: {len(values)} fields, the header has {len(header)}")
            rows.append(_row(dict(zip(header, values, strict=True)), f"{path}:{lines.line_num}"))
    except csv.Error as error:
        raise UserError(f"{path}:{lines.line_num}: not valid CSV: {error}") from None
    return rows


def load(name_or_path: str | os.PathLike[str]) -> list[Row]:
    """Return the rows of the paper's table for the word `paper`, otherwise the rows of the file of that name.

    A file that is itself called paper can be read as `./paper`. 22 of the paper's 170 networks have no accuracies
    (``logged`` is False). Errors are those of `read_results`.
    """
    if os.fspath(name_or_path) == "paper":
        return read_results(NETWORKS)
    require_file(
        name_or_path,
        "`python -m transfer_caffe.results --recipe RECIPE` writes the table of the trained networks "
        "(python -m transfer_caffe.sweep run --recipe RECIPE trains them); the word paper stands for the paper's table",
    )
    return read_results(name_or_path)


def _row(values: dict[str, str], where: str) -> Row:
    typed: dict[str, Any] = {}
    for field in _FIELDS:
        if field.name in values:
            try:
                typed[field.name] = _value(values[field.name], str(field.type))
            except ValueError as error:
                raise UserError(f"{where}: {field.name}: {error}") from None
    try:
        treatment = Treatment.parse(typed["treatment"])
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
    if typed["n"] != treatment.n:
        raise UserError(f"{where}: n is {typed['n']}, but the treatment is {treatment}")
    return Row(**typed)


def _value(text: str, kind: str) -> Any:
    if kind == "str":
        return text
    if text == "":
        if kind.endswith("| None"):
            return None
        if kind == "bool":
            return False  # the field is empty for a base network
        raise ValueError("is empty")
    kind = kind.split(" ")[0]
    if kind == "bool":
        if text not in ("0", "1"):
            raise ValueError(f"0 or 1 was expected, not {text!r}")
        return text == "1"
    try:
        return int(text) if kind == "int" else float(text)
    except ValueError:
        raise ValueError(f"a {'whole ' * (kind == 'int')}number was expected, not {text!r}") from None


def to_csv(rows: list[Row]) -> str:
    """Return the table as CSV text."""
    out = io.StringIO()
    table = csv.writer(out, lineterminator="\n")
    table.writerow(COLUMNS)
    for row in rows:
        values = {name: int(value) if isinstance(value, bool) else value for name, value in vars(row).items()}
        table.writerow((values | {"finetuned": values["finetuned"] if row.source else ""}).values())
    return out.getvalue()


def collect(recipe: Recipe, runs: str | os.PathLike[str]) -> list[Row]:
    """Return the rows of all finished networks: first the recipe's networks in its order, then any other in its folder.

    The folder is runs/RECIPE.
    """
    folder = Path(runs) / recipe.name
    names = [network.name for network in recipe.networks()]
    names += sorted(path.parent.name for path in folder.glob("*/done.json") if path.parent.name not in set(names))
    rows = []
    for name in names:
        path = folder / name / "done.json"
        if path.exists():
            row = _row_of(path)
            if row.network == name:  # otherwise a folder that was renamed to keep an earlier run
                rows.append(row)
    return rows


def _row_of(path: Path) -> Row:
    try:
        done = read_record(path, {"network": str, "split": str, "accuracy_final": (int, float)}, "train it again")
        split: str = done["split"]
        reduced = split.startswith("reduced")
        same = {name: done[name] for name in COLUMNS if name in done}
        return Row(
            **same
            | {
                "split": "whole" if reduced else split,
                "source": {"R": "random"}.get(done["source"], done["source"]),
                "target": done["target"] or "whole",
                "images_per_class": int(split.removeprefix("reduced")) if reduced else None,
                "logged": True,
            }
        )
    except (ValueError, LookupError, TypeError) as error:
        raise UserError(
            f"{path}: not in the form that the driver writes ({error}); retrain the network with --restart"
        ) from None


def write_results(recipe: Recipe, runs: str | os.PathLike[str] = "runs") -> tuple[Path, int]:
    """Write runs/RECIPE/results.csv and return its path and its number of rows.

    Several processes may call this at the same time, for example cluster jobs that end together. A lock makes them
    write one after the other, so that the last one includes all networks that the others have finished.
    """
    folder = Path(runs) / recipe.name
    path = folder / "results.csv"
    with lock(folder / ".results.lock", "the results table", lambda _: None):
        rows = collect(recipe, runs)
        write_text(path, to_csv(rows))
    return path, len(rows)
