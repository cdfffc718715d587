"""Search the learning rate of each kind of network of a recipe: from scratch, with frozen stages, fine-tuned.

    python -m transfer_caffe.rates --recipe my_photos.yaml --rates 0.01,0.003,0.001,0.0003

A badly chosen rate decides a comparison, and the best rates of the three kinds differ: networks that train few layers
on large features need a smaller one than networks in which all layers learn. For each rate and kind one network is
trained with half of the iterations, on four fifths of the training images, and tested on the others; the validation
images are not used. The middle n of the recipe stands for all. The command prints the accuracies, and the best rates as
the `solver_for` block of a recipe. A study does this by itself, and writes that block into its recipe.
"""

from __future__ import annotations

import argparse
import math
import os
import re
import shutil
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from transfer_caffe.data import require_lists
from transfer_caffe.experiment.read import load_recipe
from transfer_caffe.experiment.recipe import Recipe
from transfer_caffe.formats.image_list import Line, read_list, write_list
from transfer_caffe.results.table import load
from transfer_caffe.run.differences import sha256_of
from transfer_caffe.run.folder import LOG
from transfer_caffe.sweep.__main__ import main as sweep
from transfer_caffe.utils.errors import ArgumentParser, UserError, command
from transfer_caffe.utils.files import read_json, sha256, write_json, write_text

RATES = (0.01, 0.003, 0.001, 0.0003)
MARK = "made_by_rates.txt"
"""The file that tells a search's own dataset from a user's."""
HELD_OUT = 0.2
"""Fraction of the training images of each class that the rates are compared on."""

Table = Mapping[str, Mapping[float, float]]
"""Pattern of treatments -> rate -> accuracy on the images that are held out."""


def search(
    recipe: Recipe, data: Path, runs: Path, rates: Sequence[float] = RATES, options: Sequence[str] = ()
) -> dict[str, dict[float, float]]:
    """Train one network for each rate and kind of network, and return the accuracies, as `Table`.

    ``options`` are further options of `sweep run`. The result is kept in runs/RECIPE/rates.json; an interrupted search
    resumes. The networks and their data are removed at the end. Raise SystemExit if the sweep is interrupted, and
    UserError if no network could be trained.
    """
    kinds = kinds_of(recipe)
    require_lists(recipe, data)
    folder, record = runs / recipe.name / "rates", runs / recipe.name / "rates.json"
    texts = {rate: _recipe_text(recipe, data, folder, rate, list(kinds.values())) for rate in rates}
    made_from = {"recipes": list(texts.values()), "list": sha256(recipe.dataset_folder(data) / "train.txt")}
    made_from |= {
        "net": recipe.net_sha256,
        "weights": {each: sha256_of(recipe.source_file(each)) for each in recipe.sources},
    }
    known = read_json(record) if record.is_file() else None
    if isinstance(known, dict) and known.get("made_from") == made_from:
        return {kind: {float(rate): value for rate, value in each.items()} for kind, each in known["found"].items()}
    begun, dataset = folder / "made_from.json", data / _dataset(recipe)
    if dataset.exists() and not (dataset / MARK).is_file():
        raise UserError(f"{dataset} exists, and the search needs that name for its own lists; rename it")
    if folder.exists() and (not begun.is_file() or read_json(begun) != made_from):
        _remove(folder, dataset)  # of another recipe: the driver would refuse its networks
    folder.mkdir(parents=True, exist_ok=True)
    write_json(begun, made_from)
    _write_lists(recipe, data)
    found: dict[str, dict[float, float]] = {kind: {} for kind in kinds}
    for rate, text in texts.items():
        name = _name(recipe, rate)
        write_text(folder / f"{name}.yaml", text)
        print(f"search: learning rate {rate:g} for {', '.join(kinds.values())}", flush=True)
        where = ["--recipe", str(folder / f"{name}.yaml"), "--data", str(data), "--runs", str(folder)]
        if (code := sweep(["run", *where, *options])) not in (
            0,
            1,
        ):  # 1: networks failed, perhaps because they diverged
            raise SystemExit(code)
        results = folder / name / "results.csv"
        accuracies = {row.treatment: row.accuracy_final for row in load(results)} if results.is_file() else {}
        for kind, treatment in kinds.items():
            if treatment not in accuracies:
                _require_diverged(folder / name / f"whole-{treatment}-s0" / LOG)
            found[kind][rate] = accuracies.get(treatment) or 0.0
    if not any(value for each in found.values() for value in each.values()):
        raise UserError(f"recipe {recipe.name}: no network of the search for a learning rate could be trained")
    write_json(record, {"made_from": made_from, "found": found})
    _remove(folder, dataset)
    return found


def kinds_of(recipe: Recipe) -> dict[str, str]:
    """Return the kinds of networks whose rates are searched: pattern of treatments -> the treatment that is trained.

    A later pattern overrides an earlier one, as in a recipe's `solver_for`. Raise UserError for a recipe without
    networks on all classes.
    """
    treatments = recipe.treatments.get("whole", ())
    copied = [treatment for treatment in treatments if treatment.is_external]
    if not copied:
        raise UserError(
            f"recipe {recipe.name}: the split `whole` has no networks with stages from existing weights, such as P3 or "
            "P3+, so there are no kinds of networks to compare"
        )
    kinds = {"base*": "base"} if any(treatment.is_base for treatment in treatments) else {}
    for source in dict.fromkeys(each.source for each in copied):
        # what is copied from a base of the halves gets the rates of the first source
        letters = f"[{source}AB]" if source == copied[0].source else source
        for plus in (False, True):
            numbers = sorted(each.n for each in copied if each.source == source and each.finetuned == plus)
            if numbers:
                kinds[f"{letters}[0-9]*{'+' * plus}"] = f"{source}{numbers[len(numbers) // 2]}{'+' * plus}"
    return kinds


def best_of(found: Table) -> dict[str, float]:
    """Return the rate with the highest accuracy for each kind; the larger one of equals.

    Raise UserError for a kind that diverged with every rate.
    """
    for kind, each in found.items():
        if not any(each.values()):
            raise UserError(
                f"networks {kind} diverged with every rate; try smaller ones than {min(each):g} with --rates"
            )
    return {kind: max(each, key=lambda rate: (each[rate], rate)) for kind, each in found.items()}


def block_of(found: Table) -> str:
    """Return the `solver_for` block of a recipe with the best rates, as YAML that ends with a newline."""
    best = best_of(found)
    lines = [f'  "{kind}": {{base_lr: {rate:g}}}' for kind, rate in best.items()]
    tried = ", ".join(f"{rate:g}" for rate in next(iter(found.values())))
    return "\n".join([f"solver_for:   # the best of {tried} for each kind, found by transfer_caffe.rates", *lines, ""])


def table_of(found: Table) -> list[str]:
    """Return the accuracies as lines of text: a row for each kind, a column for each rate."""
    rates = list(next(iter(found.values())))
    best = best_of(found)
    wide = max(map(len, found))
    lines = [f"{'':{wide}}  " + "  ".join(f"{rate:>8g}" for rate in rates)]
    for kind, each in found.items():
        cells = [f"{100 * each[rate]:.1f}%" + ("*" if rate == best[kind] else " ") for rate in rates]
        lines.append(f"{kind:{wide}}  " + "  ".join(f"{cell:>8}" for cell in cells))
    ends = [kind for kind, rate in best.items() if rate in (min(rates), max(rates)) and len(rates) > 1]
    lines.append("* the best rate, by accuracy on a fifth of the training images that is held out")
    if ends:
        lines.append(f"the best rate is at the end of what was tried for {', '.join(ends)}: try more with --rates")
    return lines


def _require_diverged(log: Path) -> None:
    """Raise UserError unless a network failed because it diverged, which says that its rate is too high."""
    text = log.read_text(encoding="utf-8", errors="replace") if log.is_file() else ""
    if not re.search(r"training diverged|loss = -?(nan|inf)", text):
        raise UserError(f"{log}: a network of the search failed, and it did not diverge; run the command again")


def _dataset(recipe: Recipe) -> str:
    return f"{recipe.name}-rates"


def _name(recipe: Recipe, rate: float) -> str:
    return f"{recipe.name}-lr{rate:g}"


def _remove(*folders: Path) -> None:
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)


def _write_lists(recipe: Recipe, data: Path) -> None:
    """Cut the training list in two: the last fifth of each class is held out; a class of one image is not."""
    lines = read_list(recipe.dataset_folder(data) / "train.txt")
    counts = Counter(label for _, label in lines)
    seen: Counter[int] = Counter()
    parts: dict[str, list[Line]] = {"train": [], "val": []}
    for path, label in lines:
        held = min(math.ceil(HELD_OUT * counts[label]), counts[label] - 1)
        parts["val" if seen[label] >= counts[label] - held else "train"].append((path, label))
        seen[label] += 1
    if not parts["val"]:
        raise UserError(f"recipe {recipe.name}: every class has one training image only; a search needs two or more")
    folder = data / _dataset(recipe)
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / MARK, f"transfer_caffe.rates made this folder for the recipe {recipe.name}, and removes it.\n")
    for part, chosen in parts.items():
        write_list(folder / f"{part}.txt", chosen)


def _recipe_text(recipe: Recipe, data: Path, folder: Path, rate: float, treatments: Sequence[str]) -> str:
    """The recipe of the networks with one rate, as YAML; its paths are relative to ``folder``."""
    settings: dict[str, Any] = recipe.settings()
    settings.pop("net_sha256", None)
    root = _relative(recipe.dataset_folder(data) / recipe.images.root, data / _dataset(recipe))
    solver = dict(settings["solver"])
    iterations = solver["max_iter"]
    if solver["lr_policy"] in ("fixed", "poly"):  # the others have steps that would have to be moved
        iterations = max(1, iterations // 2)
    solver |= {
        "base_lr": rate, "max_iter": iterations, "test_interval": iterations, "snapshot": iterations,
        "test_initialization": False,
    }  # fmt: skip
    assert recipe.net_file is not None  # only recipes with a net of their own have sources
    sources = {letter: {"weights": _relative(recipe.source_file(letter), folder)} for letter in recipe.sources}
    settings |= {
        "name": _name(recipe, rate), "dataset": _dataset(recipe),
        "images": {**settings["images"], "root": root, "val_root": root},
        "architecture": _relative(recipe.net_file, folder), "sources": sources, "solver": solver,
        "solver_for": {}, "seeds": [0], "keep_snapshots": 1, "networks": {"whole": list(treatments)},
    }  # fmt: skip
    return yaml.safe_dump(settings, sort_keys=False, allow_unicode=True)


def _relative(path: Path, folder: Path) -> str:
    """Return the path from ``folder``, which may be behind a link, such as runs/ on another disk: `..` leads elsewhere.

    A link at the end of the path is kept: it has the name that the recipe gives.
    """
    return os.path.relpath(path.parent.resolve() / path.name, folder.resolve())


def rates_of(text: str) -> list[float]:
    """Return the numbers of a list with commas: the argparse ``type`` of --rates."""
    try:
        rates = [float(each) for each in text.split(",")]
    except ValueError:
        rates = []
    if not rates or not all(math.isfinite(rate) and rate > 0 for rate in rates) or len(set(rates)) < len(rates):
        raise argparse.ArgumentTypeError(f"different numbers above 0, with commas, were expected, not {text!r}")
    return rates


@command
def main(argv: list[str] | None = None) -> int | None:
    """The command line."""
    parser = ArgumentParser(
        prog="python -m transfer_caffe.rates",
        description="Search the learning rate of networks from scratch, with frozen stages, and fine-tuned.",
        epilog="example: python -m transfer_caffe.rates --recipe my_photos.yaml --rates 0.03,0.01,0.003",
    )
    parser.add_argument("--recipe", required=True, help="the YAML file of a recipe with `sources`")
    parser.add_argument(
        "--rates", type=rates_of, default=list(RATES), metavar="LIST",
        help=f"rates to try, with commas (default: {','.join(f'{rate:g}' for rate in RATES)})",
    )  # fmt: skip
    parser.add_argument("--data", default="data", type=Path, metavar="DIR", help="where datasets are (default: data)")
    parser.add_argument("--runs", default="runs", type=Path, metavar="DIR", help="where networks are (default: runs)")
    parser.add_argument("--gpu", metavar="N", help="which GPUs (default: none)")
    parser.add_argument("--jobs", metavar="K", help="networks at a time (default: one per core or GPU)")
    args = parser.parse_args(argv)
    more = [*(["--gpu", args.gpu] if args.gpu else []), *(["--jobs", args.jobs] if args.jobs else [])]
    found = search(load_recipe(args.recipe), args.data, args.runs, args.rates, more)
    print("\n".join(["", *table_of(found), "", "for the recipe:", "", block_of(found)]), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
