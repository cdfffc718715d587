"""`sweep plan`: list the networks of a recipe with their bases, cost and state. It trains nothing.

    python -m transfer_caffe.sweep plan --recipe demo
    python -m transfer_caffe.sweep plan --recipe paper --seconds-per-iteration 0.25 --gpus 8
    python -m transfer_caffe.sweep plan --recipe paper --only 'A*B+' --json | jq '.networks[].name'

The JSON is one object. null means unknown. Hours are those of one network on one slot (a GPU, or as many cores as the
recipe has threads). Sizes on disk say whether they are estimated:

    recipe        its name                        chosen    description of the selection; null: all networks
    rate          source: where the numbers come from; seconds_per_iteration: 8 numbers, with the first 0 to 7 layers
                  frozen; seconds_per_test_image. If rate is null, all hours are null too
    networks      in the order in which they are started (a network comes after its base); for each:
        name, split, treatment, source, target, n, finetuned, seed, images_per_class
        base                    the network that layers are copied from, which must be done first; or null
        added                   whether it was added only because a selected network needs it
        frozen                  number of frozen layers
        outputs, target_classes number of outputs of the last layer; number of classes in the data
        max_iter, tests         number of iterations; number of test passes
        train_images, test_images    number of images in all iterations; in all test passes
        cost                    iterations (and tests), in units of an iteration in which all layers learn
        hours, hours_left       time of the complete training; time from its current state
        state                   done, changed, damaged, started, to do
        iteration, note         its progress; what has changed, or is damaged
    total         networks, iterations, train_images, test_images, cost, hours: sums over all networks
    left          the same sums over networks that are not done
    slots         number of slots -> hours until all are done (list scheduling: a network waits for its base)
    disk          data, snapshots_end, snapshots_peak: bytes, estimated; null if still unknown
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from transfer_caffe.experiment.read import load_recipe
from transfer_caffe.experiment.recipe import Network
from transfer_caffe.run import engines
from transfer_caffe.sweep.cost import Rate, Work, makespan, relative_cost
from transfer_caffe.sweep.display import duration
from transfer_caffe.sweep.progress import Progress, look
from transfer_caffe.sweep.selection import Selection, add_recipe_arguments, selected
from transfer_caffe.sweep.sizes import Room, Sizes, snapshots_kept
from transfer_caffe.utils.errors import ArgumentParser, UserError

SUMMARY = "show the networks of a recipe, their cost, and their state"
EXAMPLES = """examples:
  python -m transfer_caffe.sweep plan --recipe demo --measure
  python -m transfer_caffe.sweep plan --recipe paper --only 'A*B+' --split random0 --layers 3-5
  python -m transfer_caffe.sweep plan --recipe paper --seconds-per-iteration 0.25 --gpus 8 --json
"""


@dataclass(frozen=True)
class Item:
    """A network in the plan; the fields are the keys of the JSON, described in the module's docstring."""

    name: str
    split: str
    treatment: str
    source: str
    target: str
    n: int
    finetuned: bool
    seed: int
    images_per_class: int | None
    base: str | None
    added: bool
    frozen: int
    outputs: int | None
    target_classes: int | None
    max_iter: int
    tests: int
    train_images: int
    test_images: int | None
    cost: float
    hours: float | None
    hours_left: float | None
    state: str
    iteration: int
    note: str


@dataclass(frozen=True)
class Plan:
    """The networks of a selection, with their cost, state and disk space."""

    selection: Selection
    rate: Rate | None
    items: list[Item]
    slots: dict[int, float | None]
    data: Room | None
    snapshots_end: Room | None
    snapshots_peak: Room | None

    def total(self, left: bool) -> dict[str, Any]:
        """Return the sums over all networks, or with ``left`` over those that are not done (their hours left)."""
        items = [item for item in self.items if not (left and item.state in ("done", "changed"))]

        def summed(values: list[Any]) -> Any:
            return None if None in values else sum(values)

        return {
            "networks": len(items),
            "iterations": summed([item.max_iter for item in items]),
            "train_images": summed([item.train_images for item in items]),
            "test_images": summed([item.test_images for item in items]),
            "cost": summed([item.cost for item in items]),
            "hours": summed([item.hours_left if left else item.hours for item in items]),
        }

    @property
    def measure(self) -> str:
        """The unit in which the cost is printed."""
        return "hours" if self.rate else "cost"

    def as_json(self) -> dict[str, Any]:
        """Return the plan as plain values, in the structure described in the module's docstring."""
        rate = self.rate
        return {
            "recipe": self.selection.recipe.name,
            "chosen": self.selection.words(),
            "rate": rate and {
                "source": rate.source,
                "seconds_per_iteration": list(rate.iteration),
                "seconds_per_test_image": rate.test_image,
            },
            "networks": [asdict(item) for item in self.items],
            "total": self.total(left=False),
            "left": self.total(left=True),
            "slots": {str(count): hours for count, hours in self.slots.items()},
            "disk": {
                name: room and asdict(room)
                for name, room in (
                    ("data", self.data),
                    ("snapshots_end", self.snapshots_end),
                    ("snapshots_peak", self.snapshots_peak),
                )
            },
        }  # fmt: skip


def make_plan(
    selection: Selection, runs: Path, data: Path, rate: Rate | None = None, slots: Sequence[int] = (1,),
    copies: bool = False,
) -> Plan:  # fmt: skip
    """Plan the networks of a selection; the default ``rate`` is computed from the networks that are already done.

    ``slots``: the numbers of parallel networks for which hours are computed; disk space is computed for the largest.
    ``copies``: databases instead of views, for real Caffe.
    """
    recipe = selection.recipe
    states = {network.name: look(network, runs) for network in selection.networks}
    done = [(network, states[network.name].done) for network in selection.networks]
    rate = rate or Rate.of_done(recipe, [(network, record) for network, record in done if record])
    sizes = Sizes(selection.narrowed(), data)
    added = {network.name for network in selection.added}
    items = [_item(network, states[network.name], sizes, rate, network.name in added) for network in selection.networks]
    works = [Work(item.name, item.base, 3600 * (item.hours_left or 0)) for item in items if _is_left(item)]
    hours = {count: makespan(works, count) / 3600 if rate else None for count in sorted(set(slots))}
    end, peak = _snapshots(selection.networks, states, sizes, max(slots))
    return Plan(selection, rate, items, hours, sizes.databases(copies), end, peak)


def _is_left(item: Item) -> bool:
    return item.state not in ("done", "changed")


def _item(network: Network, state: Progress, sizes: Sizes, rate: Rate | None, added: bool) -> Item:
    treatment, max_iter = network.treatment, network.max_iter
    tests = max_iter // network.solver["test_interval"] + bool(network.solver.get("test_initialization", True))
    batch, each_test = network.recipe.batch.train, sizes.test_images(network)
    test_images = None if each_test is None else tests * each_test
    left = 1 - state.snapshot / max_iter

    def hours(part: float) -> float | None:
        # tests of unknown size are left out: they are a few percent of the time
        return rate and rate.seconds(network, max_iter, test_images or 0) / 3600 * part

    relative = relative_cost(network.recipe.architecture, network.recipe.stages)
    reduced = re.fullmatch(r"reduced(\d+)", network.split)
    return Item(
        name=network.name,
        split=network.split,
        treatment=str(treatment),
        source=treatment.source,
        target=treatment.target,
        n=treatment.n,
        finetuned=treatment.finetuned,
        seed=network.seed,
        images_per_class=int(reduced[1]) if reduced else None,
        base=network.base.name if network.base else None,
        added=added,
        frozen=treatment.frozen,
        outputs=sizes.outputs(network),
        target_classes=sizes.classes(network.data_folder(sizes.data)),
        max_iter=max_iter,
        tests=tests,
        train_images=max_iter * batch,
        test_images=test_images,
        cost=round(max_iter * relative[treatment.frozen] + (test_images or 0) / batch * relative[-1], 1),
        hours=hours(1),
        hours_left=hours(0 if state.word in ("done", "changed") else left),
        state=state.word,
        iteration=state.iteration,
        note=state.note,
    )


def _snapshots(
    networks: Sequence[Network], states: dict[str, Progress], sizes: Sizes, slots: int
) -> tuple[Room | None, Room | None]:
    """Return the disk space for snapshots and initial weights: when all networks are done, and the maximum before."""
    end, more = 0, []
    for network in networks:
        snapshot, weights = sizes.snapshot(network), sizes.weights(network)
        if snapshot is None or weights is None:
            return None, None
        kept = snapshots_kept(network, done=True)
        end += kept * snapshot + weights[1]
        if states[network.name].word not in ("done", "changed"):
            more.append((snapshots_kept(network, done=False) - kept) * snapshot)
    return Room(end, False), Room(end + sum(sorted(more)[-slots:]), False)


def add_arguments(parser: ArgumentParser) -> None:
    """Add the options of `sweep plan`."""
    add_recipe_arguments(parser)
    rates = parser.add_mutually_exclusive_group()
    rates.add_argument(
        "--seconds-per-iteration",
        type=float,
        metavar="S",
        help="seconds of an iteration in which all layers learn, to compute hours",
    )
    rates.add_argument(
        "--measure", action="store_true", help="measure these seconds here (takes a few minutes; needs no data)"
    )
    parser.add_argument(
        "--gpus", type=int, metavar="K", help="also compute the hours on K GPUs (or with K networks at a time)"
    )
    parser.add_argument(
        "--engine", default="embedded", help="the engine for training; real Caffe cannot read views and needs more disk"
    )
    parser.add_argument("--json", action="store_true", help="print JSON, for programs")


def main(args: argparse.Namespace) -> None:
    """Print the plan."""
    recipe = load_recipe(args.recipe)
    selection = selected(recipe, args)
    for option, value in (("--gpus", args.gpus), ("--seconds-per-iteration", args.seconds_per_iteration)):
        if value is not None and not 0 < value < float("inf"):
            raise UserError(f"{option} {value}: must be a number above 0")
    rate = None
    if args.seconds_per_iteration:
        rate = Rate.of_seconds(args.seconds_per_iteration, recipe)
    if args.measure:
        from transfer_caffe.sweep.measure import measure

        rate = measure(selection, engines.Engine.find(args.engine))
    slots = [1, *[args.gpus] * (args.gpus is not None)]
    plan = make_plan(selection, args.runs, args.data, rate, slots, copies=args.engine != "embedded")
    if args.json:
        print(json.dumps(plan.as_json(), indent=1))
    else:
        print("\n".join(as_text(plan)))


def as_text(plan: Plan) -> list[str]:
    """Return the lines of the plan as readable text."""
    wide = max(len(item.name) for item in plan.items)
    lines = [f"{'network':{wide}}  {'copies from':{wide}}  frozen  iterations  images  {plan.measure:>6}  state"]
    for item in plan.items:
        cost = _count(round(item.cost)) if item.hours is None else _short(item.hours)
        lines.append(
            f"{item.name:{wide}}  {item.base or '-':{wide}}  {item.frozen or '-':>6}  {item.max_iter:>10}  "
            f"{_count(item.train_images):>6}  {cost:>6}  {_state(item)}"
        )
    return [*lines, "", *_sums(plan)]


def _state(item: Item) -> str:
    words = {
        "started": f"started, at iteration {item.iteration}",
        "changed": f"done, but out of date: {item.note}",
        "damaged": f"damaged: {item.note}",
    }.get(item.state, item.state)
    return f"{words} (added)" if item.added else words


def _sums(plan: Plan) -> list[str]:
    lines = [words] if (words := plan.selection.words()) else []
    for name, sums in (("all", plan.total(left=False)), ("to do", plan.total(left=True))):
        tests = "" if sums["test_images"] is None else f" + {_count(sums['test_images'])} in tests"
        times = "" if sums["hours"] is None else f", {_time(sums['hours'])} one after the other"
        lines.append(
            f"{name + ':':7}{sums['networks']} networks, {sums['iterations']} iterations, "
            f"{_count(sums['train_images'])} images{tests}{times}"
        )
    if plan.rate:
        for count, hours in plan.slots.items():
            if count > 1 and hours is not None:
                lines.append(f"on {count} GPUs, or {count} networks at a time: {_time(hours)}")
        most = f"{plan.rate.iteration[-1]:.3g} s with {len(plan.rate.iteration) - 1} of them"
        lines.append(f"rate:  {plan.rate.source}; less with frozen layers ({most})")
    else:
        lines.append(
            "cost:  iterations (and tests), in units of an iteration in which all layers learn; for hours use "
            "--measure or --seconds-per-iteration"
        )
    data = "unknown until the image lists exist" if plan.data is None else _room(plan.data)
    lines.append(f"disk:  data {data}; snapshots {_room(plan.snapshots_end)}, at most {_room(plan.snapshots_peak)}")
    return lines


def _room(room: Room | None) -> str:
    if room is None:
        return "unknown"
    power = min(4, max(0, len(str(room.bytes)) - 1) // 3)
    return (
        f"{'about ' if room.estimated else ''}{_short(room.bytes / 1000**power)} {('B', 'kB', 'MB', 'GB', 'TB')[power]}"
    )


def _count(number: int) -> str:
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= limit:
            return f"{_short(number / limit)} {unit}"
    return str(number)


def _short(number: float) -> str:
    """Format a number with three significant digits, and at least all digits before the decimal point."""
    return f"{number:.0f}" if number >= 100 else f"{number:.3g}"


def _time(hours: float) -> str:
    return duration(3600 * hours)
