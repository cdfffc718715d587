"""The results table: results.csv, one row a network that is done, from the networks' done.json.

    for row in read_results("runs/demo/results.csv"): print(row.treatment, row.accuracy_top10)
    rows = load("paper")                                    the paper's own table

The columns are those of the paper's own table of networks, then recipe, seed and wall_seconds; as there, a network
on reduced data has the split `whole` and its images_per_class.
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
    """One network; None is an empty field. Accuracies are fractions, top-1; times are seconds.

    ``source`` is "A", "B", "random" or "" (base); ``target`` "A", "B" or "whole"; ``accuracy_top10`` the mean of the
    ten highest test accuracies of the run (of all, where it had fewer), which is what the paper plots.
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
    """The rows of a results table, ours or one in the paper's columns.

    UserError, naming file, line and column, for a missing column, a row of another length, a value of another kind.
    """
    lines = csv.reader(io.StringIO(read_text(path), newline=""), strict=True)
    rows: list[Row] = []
    try:
        header = next(lines, [])
        if missing := [name for name in COLUMNS if name not in header and name not in _OWN]:
            hint = "; commas are expected between the columns" if len(header) == 1 else ""
            raise UserError(f"{path}:1: not a results table: the column {missing[0]} is missing{hint}")
        if len(set(header)) < len(header):
            raise UserError(f"{path}:1: a column is there twice")
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
    """The rows of the paper's own table for the word `paper` (of a file called so: `./paper`), else of that file.

    Of the paper's 170 networks 22 have no accuracies (``logged`` is False). Errors as of `read_results`.
    """
    if os.fspath(name_or_path) == "paper":
        return read_results(NETWORKS)
    require_file(
        name_or_path,
        "`python -m transfer_caffe.results --recipe RECIPE` writes the table of networks that are trained "
        "(python -m transfer_caffe.sweep run --recipe RECIPE); the word paper means the paper's own",
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
            return False  # a base is neither fine-tuned nor not
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
    """The table as text."""
    out = io.StringIO()
    table = csv.writer(out, lineterminator="\n")
    table.writerow(COLUMNS)
    for row in rows:
        values = {name: int(value) if isinstance(value, bool) else value for name, value in vars(row).items()}
        table.writerow((values | {"finetuned": values["finetuned"] if row.source else ""}).values())
    return out.getvalue()


def collect(recipe: Recipe, runs: str | os.PathLike[str]) -> list[Row]:
    """The rows of all networks that are done: those of the recipe in its order, then others trained by its name."""
    folder = Path(runs) / recipe.name
    names = [network.name for network in recipe.networks()]
    names += sorted(path.parent.name for path in folder.glob("*/done.json") if path.parent.name not in set(names))
    rows = []
    for name in names:
        path = folder / name / "done.json"
        if path.exists():
            row = _row_of(path)
            if row.network == name:  # else a folder that was set aside
                rows.append(row)
    return rows


def _row_of(path: Path) -> Row:
    try:
        done = read_record(path, {"network": str, "split": str, "accuracy_final": (int, float)}, "train it anew")
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
        raise UserError(f"{path}: not what the driver wrote ({error}); start the network anew with --restart") from None


def write_results(recipe: Recipe, runs: str | os.PathLike[str] = "runs") -> tuple[Path, int]:
    """Write runs/RECIPE/results.csv; gives its path and its number of rows.

    Of several at once, as jobs on a cluster that end together, the last one sees what all others have finished.
    """
    folder = Path(runs) / recipe.name
    path = folder / "results.csv"
    with lock(folder / ".results.lock", "the table of results", lambda _: None):
        rows = collect(recipe, runs)
        write_text(path, to_csv(rows))
    return path, len(rows)
