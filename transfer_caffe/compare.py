"""Run one net in both engines with the same weights and data, and compare it with real Caffe blob by blob.

    python -m transfer_caffe.compare train_val.prototxt --weights net.caffemodel

Input blobs get random values and labels random classes; data layers read their first batch in both engines. The values
of all blobs and the gradients of blobs and weights are compared: for each, the largest difference relative to the
largest value. A net with random layers (crops and dropout in TRAIN, mirror) cannot be compared; the error names them.
"""

from __future__ import annotations

import collections
import contextlib
import itertools
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from transfer_caffe.engine.layers.data import Images
from transfer_caffe.engine.layers.sources import DummyData, HDF5Data, Input, MemoryData
from transfer_caffe.engine.net import Net
from transfer_caffe.formats.nets import read_net, state_of
from transfer_caffe.formats.proto import to_text
from transfer_caffe.formats.proto.caffe_pb2 import TEST, TRAIN, NetParameter
from transfer_caffe.real_caffe import programs as real_caffe
from transfer_caffe.real_caffe.differences import (
    SPREAD,
    TOLERANCE,
    Arrays,
    Row,
    compared,
    nudged,
    units_of,
    with_spread,
)
from transfer_caffe.utils.errors import ArgumentParser, UserError, command, require_file

SCRIPT = Path(__file__).parent / "real_caffe" / "scripts" / "run_net.py"

DRAWS = 8
"""How often real Caffe repeats a net with slightly different weights, if a difference exceeds the tolerance."""
MOST_BYTES = 100_000_000
"""Repetitions of a net whose arrays take no more than this together run in one process: a start takes 0.5 s."""


@dataclass(frozen=True)
class Case:
    """A net to run in both engines. Blobs and weights that are not in ``values`` are sampled with ``seed``.

    ``values`` holds `blob/NAME`, `param/LAYER/INDEX` and `diff/NAME`, as in real_caffe/scripts/run_net.py.
    """

    net: NetParameter
    phase: str = "TEST"
    values: Arrays = field(default_factory=dict)
    weights: str | None = None
    folder: Path = field(default_factory=Path.cwd)
    seed: int = 1
    backward: bool = True


@dataclass(frozen=True)
class Outcome:
    """The result of a case: the rows, and each engine's error message (None if it ran)."""

    rows: list[Row]
    ours: str | None
    real: str | None
    reference: Arrays
    """Real Caffe's arrays and the input values: all that is needed to repeat the comparison without real Caffe."""

    def worst(self, *kinds: str) -> float:
        """Return the largest difference of all rows, or of the rows of some kinds."""
        return max((row.difference for row in self.rows if not kinds or row.what in kinds), default=0.0)


def compare(cases: Sequence[Case], draws: int = 0) -> list[Outcome]:
    """Run all cases in both engines. Raise UserError if there is no real Caffe.

    If a difference exceeds the tolerance, real Caffe repeats the case ``draws`` times with its weights changed by one
    unit in the last place, and the rows get the spread of its own results. If these do not explain the difference, it
    does so again with changes that move its blobs as far as the engines differ.
    """
    ours = [_prepare(case) for case in cases]
    backward = [case.backward and _has_gradients(case.net, net) for case, (net, *_) in zip(cases, ours, strict=True)]
    values = [given for _, given, _ in ours]
    outcomes = []
    for index, (reference, real) in enumerate(_run_real(cases, values, backward)):
        case, (net, given, error) = cases[index], ours[index]
        rows: list[Row] = []
        if net is not None and real is None:
            with contextlib.chdir(case.folder):
                rows, error = compare_with(net, given, reference, backward[index])
        units, done = 1, 0
        while draws and units > done and not all(row.agrees for row in rows):
            moved = (nudged(given, draw, units) for draw in range(draws))
            rows = with_spread(rows, reference, _repeated(case, moved, backward[index], given, reference))
            units, done = units_of(rows) if units == 1 else units, units
        outcomes.append(Outcome(rows, error, real, {**{f"in/{k}": v for k, v in given.items()}, **reference}))
    return outcomes


def _repeated(
    case: Case, values: Iterator[Arrays], backward: bool, given: Arrays, reference: Arrays
) -> Iterator[Arrays]:
    """Yield real Caffe's arrays of one case with other values: as many at once as `MOST_BYTES` allows."""
    size = sum(array.nbytes for array in (*given.values(), *reference.values()))
    at_once = max(1, MOST_BYTES // max(1, size))
    while some := list(itertools.islice(values, at_once)):
        yield from (arrays for arrays, _ in _run_real([case] * len(some), some, [backward] * len(some)))


def _run_real(
    cases: Sequence[Case], values: Sequence[Arrays], backward: Sequence[bool]
) -> list[tuple[Arrays, str | None]]:
    """Run nets in real Caffe with these values; return its arrays, and its error message if it has rejected the net."""
    python = real_caffe.pycaffe()
    if python is None:
        raise UserError("no Python with pycaffe was found; run `make caffe`, or set CAFFE_PYTHON to one")
    with tempfile.TemporaryDirectory() as temporary:
        manifest = []
        for index, (case, given) in enumerate(zip(cases, values, strict=True)):
            paths = {what: os.path.join(temporary, f"{index}.{what}") for what in ("prototxt", "npz", "out.npz")}
            Path(paths["prototxt"]).write_text(to_text(case.net))
            np.savez(paths["npz"], **given)  # pyright: ignore[reportArgumentType]
            manifest.append(
                {
                    "folder": os.fspath(case.folder.absolute()),
                    "model": paths["prototxt"],
                    "phase": case.phase,
                    "values": paths["npz"],
                    "out": paths["out.npz"],
                    "backward": backward[index],
                }
            )
        path = Path(temporary) / "cases.json"
        path.write_text(json.dumps(manifest))
        environment = {**os.environ, "GLOG_minloglevel": "2", "GLOG_logtostderr": "1"}
        subprocess.run([*python, os.fspath(SCRIPT), os.fspath(path)], env=environment, check=True)
        return [_answer(Path(entry["out"]), python) for entry in manifest]


def _answer(out: Path, python: Sequence[str]) -> tuple[Arrays, str | None]:
    """Return the arrays that real Caffe has written, or its error message."""
    if out.exists():
        with np.load(out) as arrays:
            return dict(arrays), None
    error_file = Path(f"{out}.error")
    if not error_file.exists():
        raise UserError(f"{' '.join(python)}: it ran no net; check that it is a Python with pycaffe")
    return {}, real_caffe.last_words(error_file.read_text(errors="replace"))


def _has_gradients(param: NetParameter, net: Net | None) -> bool:
    """Return whether Caffe runs a backward pass for a net: because of a loss or of force_backward."""
    return param.force_backward or (net is not None and net.has_loss)


def _prepare(case: Case) -> tuple[Net | None, Arrays, str | None]:
    """Return our net with its weights, all values that both engines get, and the error if the net cannot be built."""
    values = {key: np.asarray(value, np.float32) for key, value in case.values.items()}
    try:
        with contextlib.chdir(case.folder):
            net = build(case.net, case.phase)
            if case.weights:
                net.copy_from(case.weights)
            draw_values(net, values, case.seed)
            return net, values, None
    except UserError as error:
        return None, values, str(error)


def build(param: NetParameter, phase: str) -> Net:
    """Build a net in a phase, on the CPU."""
    return Net(param, state_of(param, {"TRAIN": TRAIN, "TEST": TEST}[phase]), 1, torch.device("cpu"))


def draw_values(net: Net, values: Arrays, seed: int) -> None:
    """Add missing ``values``: input blobs (classes for labels), the weights of ``net``, and diffs of outputs.

    Weights that are in ``values`` are copied into ``net``.
    """
    draw = np.random.RandomState(seed)
    for layer in net.layers:
        if isinstance(layer, Input | MemoryData):
            kind = "memory" if isinstance(layer, MemoryData) else "blob"
            for index, name in enumerate(layer.top):
                key = f"{kind}/{('data', 'label')[index] if kind == 'memory' else name}"
                if key not in values:
                    values[key] = _input_values(net, name, draw)
        for index, blob in enumerate(layer.blobs):
            key = f"param/{layer.name}/{index}"
            if key in values:
                with torch.no_grad():
                    blob.data.copy_(torch.from_numpy(values[key].reshape(tuple(blob.data.shape))))
            else:
                values[key] = blob.data.detach().numpy().copy()
    draw = np.random.RandomState([seed, 1])  # independent of how many input values were sampled
    # without a loss, real Caffe runs the backward pass only with force_backward
    forced = net.layers[0].context.force_backward
    if forced and not net.has_loss and not any(key.startswith("diff/") for key in values):
        values.update({f"diff/{name}": _normal(draw, net.shapes[name]) for name in net.outputs})


def _normal(draw: np.random.RandomState, shape: tuple[int, ...]) -> np.ndarray:
    return np.asarray(draw.standard_normal(shape), np.float32)


def _input_values(net: Net, name: str, draw: np.random.RandomState) -> np.ndarray:
    """Sample normally distributed values, or classes if the blob holds a layer's labels."""
    for layer in net.layers:
        place, classes = layer.label_bottom, getattr(layer, "classes", 0)
        if place is not None and layer.param.bottom[place] == name and classes:
            return draw.randint(0, classes, net.shapes[name]).astype(np.float32)
    return _normal(draw, net.shapes[name])


def compare_with(net: Net, values: Arrays, reference: Arrays, backward: bool) -> tuple[list[Row], str | None]:
    """Run our net on ``values`` and compare all arrays with real Caffe's ``reference``.

    Return the rows and None, or no rows and the error message if our net fails.
    """
    try:
        found = run_ours(net, values, backward)
    except UserError as error:
        return [], str(error)
    return compared(found, reference), None


def run_ours(net: Net, values: Arrays, backward: bool) -> Arrays:
    """Run one pass of our net on ``values`` and return all arrays, named as in real_caffe/scripts/run_net.py."""
    memory = next((layer.top for layer in net.layers if isinstance(layer, MemoryData)), [])
    feed = {key[5:]: value for key, value in values.items() if key.startswith("blob/")}
    feed |= {name: values[f"memory/{what}"] for name, what in zip(memory, ("data", "label"), strict=False)}
    diffs = {key[5:]: value for key, value in values.items() if key.startswith("diff/")}
    net.feed(feed)
    net.forward(0, keep=True)
    if backward:
        net.backward(diffs or None)
    found: Arrays = {f"data/{name}": blob.detach().numpy() for name, blob in net.blobs.items()}
    if backward:
        found |= {f"diff/{name}": diff.numpy() for name, diff in net.diffs.items() if diff is not None}
        for top, weight in itertools.chain.from_iterable(net.loss_weights):  # a loss that depends on nothing learned
            found.setdefault(f"diff/{top}", np.full(net.shapes[top], weight, np.float32))
        # a top without a gradient keeps what it was given
        found |= {f"diff/{name}": diff for name, diff in diffs.items() if f"diff/{name}" not in found}
    _share_buffers(net, found)
    for layer in net.layers:
        for index, blob in enumerate(layer.blobs):
            found[f"param/{layer.name}/{index}"] = blob.data.detach().numpy()
            # the gradient of a view of another blob is stored in that blob
            gradient = (blob.owner or blob).data.grad
            if backward and gradient is not None:
                found[f"grad/{layer.name}/{index}"] = gradient.numpy().reshape(tuple(blob.data.shape))
    return found


def _share_buffers(net: Net, found: Arrays) -> None:
    """Set the arrays of blobs that share one buffer in real Caffe to what the buffer holds in the end.

    The top of Flatten and Reshape is its bottom in another shape: a layer that changes the top in place changes the
    bottom as well. The bottom's gradient replaces the top's, unless a Split, which has its own gradient, is between.
    """
    users = collections.Counter(itertools.chain.from_iterable(layer.param.bottom for layer in net.layers))
    for layer in net.layers:
        if layer.type not in ("Flatten", "Reshape") or not layer.param.bottom:
            continue
        bottom, top = layer.param.bottom[0], layer.top[0]
        if users[bottom] == 1 + _changes(net, bottom) and f"diff/{bottom}" in found and f"diff/{top}" in found:
            found[f"diff/{top}"] = found[f"diff/{bottom}"].reshape(found[f"diff/{top}"].shape)
    for layer in reversed(net.layers):
        if layer.type in ("Flatten", "Reshape") and _changes(net, layer.top[0]):
            bottom, top = (f"data/{name}" for name in (layer.param.bottom[0], layer.top[0]))
            found[bottom] = found[top].reshape(found[bottom].shape)


def _changes(net: Net, blob: str) -> int:
    """Return how many layers change a blob in place."""
    return sum(layer.in_place and layer.top[:1] == [blob] for layer in net.layers)


def random_layers(net: Net) -> list[str]:
    """Describe the random layers of a net, which make it impossible to compare."""
    found = []
    for layer in net.layers:
        if layer.type == "Dropout" and layer.context.training and layer.param.dropout_param.dropout_ratio:
            found.append(f"{layer.name} (dropout in TRAIN)")
        if isinstance(layer, Images):
            if layer.transformer.mirror:
                found.append(f"{layer.name} (mirror)")
            if layer.transformer.crop and layer.context.training:
                found.append(f"{layer.name} (random crop in TRAIN)")
        if layer.param.image_data_param.shuffle or layer.param.hdf5_data_param.shuffle:
            found.append(f"{layer.name} (shuffle)")
        if isinstance(layer, DummyData) and any(filler.type != "constant" for filler in layer.fillers):
            found.append(f"{layer.name} (random filler)")
        if isinstance(layer, Images | HDF5Data) and getattr(layer, "skip", 0):
            found.append(f"{layer.name} (rand_skip)")
    return found


def table(rows: Sequence[Row]) -> str:
    """Format the rows as a text table."""
    width = max((len(row.name) for row in rows), default=4)
    lines = [f"{'what':<6} {'blob':<{width}}  {'largest value':>13}  relative difference"]
    for row in rows:
        mark = f"   (real Caffe's own: {row.spread:.1e})" if row.spread else ""
        if not row.agrees:
            mark += f"   <-- only {row.only_in} has it" if row.only_in else "   <-- differs"
        lines.append(f"{row.what:<6} {row.name:<{width}}  {row.largest:13.6g}  {row.difference:.1e}{mark}")
    return "\n".join(lines)


EXAMPLES = """examples:
  python -m transfer_caffe.compare deploy.prototxt --weights net.caffemodel
  python -m transfer_caffe.compare train_val.prototxt --phase TRAIN

In the output, diff is the gradient of a blob, grad the gradient of weights, and param the weights after the forward
pass. If a difference is larger than 1e-4, real Caffe repeats the net with its weights changed by one unit in the last
place, eight times; and if that does not explain it, by as many units as move its blobs as far as the engines differ.
Exit code: 0 if all differences are within 1e-4, or within four times the largest difference of real Caffe's own
results; otherwise 1
"""


@command
def main(argv: list[str] | None = None) -> int:
    """Run the command line."""
    parser = ArgumentParser(
        prog="python -m transfer_caffe.compare",
        description="Run one net in real Caffe and in the embedded engine, and compare all blobs and gradients.",
        epilog=EXAMPLES,
    )
    parser.add_argument("net", help="a net prototxt; paths in it are relative to the current folder")
    parser.add_argument("--weights", metavar="FILE", help="a .caffemodel (default: weights from the fillers)")
    parser.add_argument("--phase", choices=("TRAIN", "TEST"), default="TEST", help="phase of the net (default: TEST)")
    parser.add_argument("--seed", type=int, default=1, help="seed of the values of input blobs (default: 1)")
    args = parser.parse_args(argv)
    if not 0 <= args.seed < 2**32:
        raise UserError(f"--seed {args.seed}: the seed must be between 0 and {2**32 - 1}")
    require_file(args.net, "`python -m transfer_caffe.generate --treatment baseA` writes a net")
    param = read_net(args.net)
    net = build(param, args.phase)
    if random := random_layers(net):
        raise UserError(f"{args.net}: cannot be compared, it has random layers: {', '.join(random)}; see --phase")
    if again := next((layer for layer in net.layers if layer.blobs and layer.key != layer.name), None):
        raise UserError(f"{args.net}: cannot be compared: pycaffe shows one of the layers named {again.name!r} only")
    outcome = compare([Case(param, args.phase, weights=args.weights, seed=args.seed)], DRAWS)[0]
    for who, error in (("the embedded engine", outcome.ours), ("real Caffe", outcome.real)):
        if error:
            raise UserError(f"{args.net}: {who} rejects it: {error}")
    print(table(outcome.rows))
    if not _has_gradients(param, net):
        print("\nno gradients: the net has no loss (add `force_backward: true` to compare gradients of random diffs)")
    print(f"\n{verdict(outcome.rows)}")
    return 0 if all(row.agrees for row in outcome.rows) else 1


def verdict(rows: Sequence[Row]) -> str:
    """Return one sentence on the largest difference, and on those that rounding does or does not explain."""
    worst = max((row.difference for row in rows), default=0.0)
    if worst <= TOLERANCE:
        return f"largest relative difference: {worst:.1e} (within {TOLERANCE:g})"
    beyond = [row for row in rows if not row.agrees]
    if beyond:
        worst = max(row.difference for row in beyond)
        return f"largest relative difference: {worst:.1e} (beyond {TOLERANCE:g}, and not explained by rounding)"
    return (
        f"largest relative difference: {worst:.1e}: beyond {TOLERANCE:g}, but within {SPREAD} times what real Caffe's "
        "own results change if its weights change by units in the last place"
    )


if __name__ == "__main__":
    sys.exit(main())
