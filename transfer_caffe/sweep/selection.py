"""Select networks of a recipe for a command: all of them, or those that match some patterns.

    python -m transfer_caffe.sweep plan --recipe paper --only 'A*B+' --split 'random*' --layers 3-5

The bases that the selected networks copy layers from are added, since they must be trained first.
"""

from __future__ import annotations

import argparse
import fnmatch
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from transfer_caffe.experiment.recipe import Network, Recipe
from transfer_caffe.experiment.treatment import Treatment, expand
from transfer_caffe.utils.errors import ArgumentParser, UserError


@dataclass(frozen=True)
class Selection:
    """Networks of a recipe in the order in which they are started, and which of them were added as bases."""

    recipe: Recipe
    networks: list[Network]
    added: list[Network]
    """The bases among ``networks`` that were not selected, but are needed by selected ones."""

    def narrowed(self) -> Recipe:
        """Return the recipe restricted to these networks' splits and treatments, to build only their data."""
        treatments: dict[str, tuple[Treatment, ...]] = {}
        for split in dict.fromkeys(network.split for network in self.networks):
            of_split = (network.treatment for network in self.networks if network.split == split)
            treatments[split] = tuple(dict.fromkeys(of_split))
        return replace(self.recipe, treatments=treatments)

    def words(self) -> str | None:
        """Describe the selection in words; None if it is the complete recipe."""
        total = len(self.recipe.networks())
        if len(self.networks) == total:
            return None
        chosen = len(self.networks) - len(self.added)
        text = f"{chosen} of the {total} networks of {self.recipe.name} are selected"
        return f"{text}, and added as bases: {', '.join(each.name for each in self.added)}" if self.added else text


def add_recipe_arguments(parser: ArgumentParser) -> None:
    """Add the options for the recipe, the selection of networks, and the folders of networks and data."""
    parser.add_argument("--recipe", required=True, help="name of a recipe, or path of its YAML file")
    parser.add_argument(
        "--only", action="append", default=[], metavar="PATTERN",
        help="only treatments that match, for example 'A*B+' or 'A{3-5}B' (may be repeated)",
    )  # fmt: skip
    parser.add_argument(
        "--split", action="append", default=[], metavar="PATTERN",
        help="only splits that match, for example natman or 'random*' (may be repeated)",
    )  # fmt: skip
    parser.add_argument("--layers", metavar="N[-N]", help="only these n, for example 3, 3-5 or 1,3-5 (0: the bases)")
    parser.add_argument("--seed", action="append", default=[], type=int, metavar="N", help="only this seed")
    parser.add_argument(
        "--runs", default="runs", type=Path, metavar="DIR", help="folder of the networks (default: runs)"
    )
    parser.add_argument(
        "--data", default="data", type=Path, metavar="DIR", help="folder of the datasets (default: data)"
    )


def selected(recipe: Recipe, args: argparse.Namespace) -> Selection:
    """Return the selection given by the options of `add_recipe_arguments`."""
    return select(recipe, args.only, args.split, args.layers, args.seed)


def select(
    recipe: Recipe, only: Sequence[str] = (), splits: Sequence[str] = (), layers: str | None = None,
    seeds: Sequence[int] = (),
) -> Selection:  # fmt: skip
    """Return the networks that meet all criteria, and the bases that they need. Omitted criteria match everything.

    ``only``: patterns of treatments (as in a shell, or with a list in braces as in a recipe), ``splits``: patterns of
    splits, ``layers``: numbers and ranges of n. Raise UserError if a pattern matches nothing, or no network is
    selected.
    """
    every = recipe.networks()
    treatments = list(dict.fromkeys(str(network.treatment) for network in every))
    names = _any_of(treatments, only, "--only", f"treatments are {shown_treatments(recipe)}")
    there = list(recipe.treatments)
    among = _any_of(there, splits, "--split", f"its splits are {', '.join(there)}")
    numbers = _numbers(layers, recipe.stages) if layers is not None else range(recipe.stages)
    for seed in seeds:
        if seed not in recipe.seeds:
            raise UserError(
                f"--seed {seed}: the recipe {recipe.name} has the seeds {', '.join(map(str, recipe.seeds))}"
            )
    chosen = [
        network
        for network in every
        if str(network.treatment) in names
        and network.split in among
        and network.treatment.n in numbers
        and (not seeds or network.seed in seeds)
    ]
    if not chosen:
        given = [f"--only {each}" for each in only] + [f"--split {each}" for each in splits]
        given += [f"--layers {layers}"] * (layers is not None) + [f"--seed {each}" for each in seeds]
        has = "; ".join(f"{split}: {shown_treatments(recipe, split)}" for split in there if split in among)
        raise UserError(f"{' '.join(given)}: no network of {recipe.name} matches all of these; it has {has}")
    picked = {network.name for network in chosen}
    bases = {network.base.name: network.base for network in chosen if network.base}
    added = [base for name, base in bases.items() if name not in picked]
    return Selection(recipe, in_order([*chosen, *added]), in_order(added))


def in_order(networks: Sequence[Network]) -> list[Network]:
    """Return the networks in the order in which they are started, which gives a complete figure early and refines it.

    They are ordered by seed and split, as the recipe lists them. Within a split the bases come first, since others need
    them. Then the networks follow from coarse to fine over n (`coarse_to_fine`). Within one step, the networks with the
    most frozen layers come first, since they are the fastest.
    """
    splits: dict[tuple[int, str], set[int]] = {}
    for network in networks:
        numbers = splits.setdefault((network.seed, network.split), set())
        if not network.treatment.is_base:
            numbers.add(network.treatment.n)
    steps = {key: coarse_to_fine(numbers) for key, numbers in splits.items()}

    def key(network: Network) -> tuple[int, int, int, int]:
        treatment, recipe = network.treatment, network.recipe
        step = -1 if treatment.is_base else steps[network.seed, network.split][treatment.n]
        seed, split = recipe.seeds.index(network.seed), list(recipe.treatments).index(network.split)
        return seed, split, step, -treatment.frozen

    return sorted(networks, key=key)


def coarse_to_fine(numbers: Iterable[int]) -> dict[int, int]:
    """Return each number's step: 0 for the lowest and the highest, 1 for the middle one, then the middles of the gaps.

    For 1, 3, 5 and 7 the order is 1 and 7, then 3, then 5; for 1 to 7 it is 1 and 7, then 4, then 2 and 5, then 3 and
    6.
    """
    ordered = sorted(set(numbers))
    steps = dict.fromkeys(ordered[:1] + ordered[-1:], 0)
    gaps, step = [(0, len(ordered) - 1)], 1
    while gaps := [(low, high) for low, high in gaps if high - low > 1]:
        middles = [(low, (low + high) // 2, high) for low, high in gaps]
        steps |= {ordered[middle]: step for _, middle, _ in middles}
        gaps = [gap for low, middle, high in middles for gap in ((low, middle), (middle, high))]
        step += 1
    return steps


def _any_of(names: list[str], patterns: Sequence[str], option: str, has: str) -> set[str]:
    """Return the names that match one of the patterns; all names if there are no patterns."""
    found: set[str] = set() if patterns else set(names)
    for pattern in patterns:
        each = [str(treatment) for treatment in expand(pattern)] if "{" in pattern else [pattern]
        fitting = {name for name in names if any(fnmatch.fnmatchcase(name, one) for one in each)}
        if not fitting:
            raise UserError(f"{option} {pattern}: nothing in this recipe matches; {has}")
        found |= fitting
    return found


def _numbers(layers: str, stages: int) -> set[int]:
    numbers: set[int] = set()
    for item in layers.split(","):
        ends = re.fullmatch(r"\s*([0-9]{1,3})\s*(?:-\s*([0-9]{1,3})\s*)?", item)
        first, last = (int(ends[1]), int(ends[2] or ends[1])) if ends else (1, 0)
        if not first <= last < stages:
            raise UserError(
                f"--layers {layers}: numbers and ranges from 0 to {stages - 1} were expected, for example 1,3-5"
            )
        numbers.update(range(first, last + 1))
    return numbers


def shown_treatments(recipe: Recipe, split: str | None = None) -> str:
    """Return the treatments of a recipe, or of one of its splits, in short form: `baseA, A{1-7}B, A{1,3}B+`."""
    splits = [split] if split else recipe.treatments
    return shown_shortly(treatment for each in splits for treatment in recipe.treatments[each])


def shown_shortly(treatments: Iterable[Treatment]) -> str:
    """Return the names of treatments, combining those that differ only in n: `baseA, A{1-7}B, A{1,3}B+`."""
    groups: dict[tuple[str, str, bool], set[int]] = {}
    for treatment in treatments:
        groups.setdefault((treatment.source, treatment.target, treatment.finetuned), set()).add(treatment.n)
    return ", ".join(_shown(source, target, plus, sorted(ns)) for (source, target, plus), ns in groups.items())


def _shown(source: str, target: str, finetuned: bool, numbers: list[int]) -> str:
    if len(numbers) == 1:
        return str(Treatment(source, numbers[0], target, finetuned))
    whole = len(numbers) == numbers[-1] - numbers[0] + 1
    listed = f"{numbers[0]}-{numbers[-1]}" if whole else _listed(numbers, ",")
    return f"{source}{{{listed}}}{target}{'+' if finetuned else ''}"


def _listed(numbers: Sequence[int], comma: str = ", ") -> str:
    return comma.join(str(number) for number in numbers)
