"""Which networks of a recipe a command is about: all of them, or those that some patterns choose.

    python -m transfer_caffe.sweep plan --recipe paper --only 'A*B+' --split 'random*' --layers 3-5

The bases that the chosen networks take their weights from are added: without these they cannot be trained.
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
    """Networks of a recipe in the order in which they are started, and which of them are there for others' sake."""

    recipe: Recipe
    networks: list[Network]
    added: list[Network]
    """The bases among ``networks`` that nobody chose, but that chosen ones need."""

    def narrowed(self) -> Recipe:
        """The recipe with nothing but these networks' splits and treatments: to make the data of these alone."""
        treatments: dict[str, tuple[Treatment, ...]] = {}
        for split in dict.fromkeys(network.split for network in self.networks):
            of_split = (network.treatment for network in self.networks if network.split == split)
            treatments[split] = tuple(dict.fromkeys(of_split))
        return replace(self.recipe, treatments=treatments)

    def words(self) -> str | None:
        """What was chosen, for people; None if it is the whole recipe."""
        total = len(self.recipe.networks())
        if len(self.networks) == total:
            return None
        chosen = len(self.networks) - len(self.added)
        text = f"{chosen} of the {total} networks of {self.recipe.name} are chosen"
        return f"{text}, and added as bases: {', '.join(each.name for each in self.added)}" if self.added else text


def add_recipe_arguments(parser: ArgumentParser) -> None:
    """Which recipe, which of its networks, and where networks and data are."""
    parser.add_argument("--recipe", required=True, help="a recipe's name or its YAML file")
    parser.add_argument(
        "--only", action="append", default=[], metavar="PATTERN",
        help="only treatments like this, as 'A*B+' or 'A{3-5}B' (several times: any of these)",
    )  # fmt: skip
    parser.add_argument(
        "--split", action="append", default=[], metavar="PATTERN", help="only splits like this, as natman or 'random*'"
    )
    parser.add_argument("--layers", metavar="N[-N]", help="only these n, as 3, 3-5 or 1,3-5 (0: the bases)")
    parser.add_argument("--seed", action="append", default=[], type=int, metavar="N", help="only this seed")
    parser.add_argument("--runs", default="runs", type=Path, metavar="DIR", help="where networks go (default: runs)")
    parser.add_argument("--data", default="data", type=Path, metavar="DIR", help="where datasets are (default: data)")


def selected(recipe: Recipe, args: argparse.Namespace) -> Selection:
    """What the options of `add_recipe_arguments` choose."""
    return select(recipe, args.only, args.split, args.layers, args.seed)


def select(
    recipe: Recipe, only: Sequence[str] = (), splits: Sequence[str] = (), layers: str | None = None,
    seeds: Sequence[int] = (),
) -> Selection:  # fmt: skip
    """The networks that meet all of these, and the bases that they need. What is left out chooses everything.

    ``only``: patterns of treatments (as a shell's, or with a list in braces, as in a recipe), ``splits``: patterns of
    splits, ``layers``: numbers and ranges of n. UserError for a pattern that fits nothing, and if nothing is chosen.
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
        raise UserError(f"{' '.join(given)}: no network of {recipe.name} is all of this; it has {has}")
    picked = {network.name for network in chosen}
    bases = {network.base.name: network.base for network in chosen if network.base}
    added = [base for name, base in bases.items() if name not in picked]
    return Selection(recipe, in_order([*chosen, *added]), in_order(added))


def in_order(networks: Sequence[Network]) -> list[Network]:
    """Return the networks in the order in which they are started: one that shows a whole figure early, then refines it.

    Seed by seed and split by split, as the recipe lists them. Within a split the bases come first, since others need
    them; then the networks go from coarse to fine over n (`coarse_to_fine`), and among those of one step the networks
    with the most frozen layers come first, since they are the quickest.
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

    Of 1, 3, 5 and 7 these are 1 and 7, then 3, then 5; of 1 to 7 they are 1 and 7, then 4, then 2 and 5, then 3 and 6.
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
    """Those of the names that are like one of the patterns; all where there is none."""
    found: set[str] = set() if patterns else set(names)
    for pattern in patterns:
        each = [str(treatment) for treatment in expand(pattern)] if "{" in pattern else [pattern]
        fitting = {name for name in names if any(fnmatch.fnmatchcase(name, one) for one in each)}
        if not fitting:
            raise UserError(f"{option} {pattern}: nothing in this recipe is like that; {has}")
        found |= fitting
    return found


def _numbers(layers: str, stages: int) -> set[int]:
    numbers: set[int] = set()
    for item in layers.split(","):
        ends = re.fullmatch(r"\s*([0-9]{1,3})\s*(?:-\s*([0-9]{1,3})\s*)?", item)
        first, last = (int(ends[1]), int(ends[2] or ends[1])) if ends else (1, 0)
        if not first <= last < stages:
            raise UserError(f"--layers {layers}: numbers and ranges from 0 to {stages - 1} were expected, as 1,3-5")
        numbers.update(range(first, last + 1))
    return numbers


def shown_treatments(recipe: Recipe, split: str | None = None) -> str:
    """The treatments of a recipe, or of one of its splits, shortly: `baseA, A{1-7}B, A{1,3}B+`."""
    splits = [split] if split else recipe.treatments
    return shown_shortly(treatment for each in splits for treatment in recipe.treatments[each])


def shown_shortly(treatments: Iterable[Treatment]) -> str:
    """Return the names of treatments, those that differ in n alone as one: `baseA, A{1-7}B, A{1,3}B+`."""
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
