"""How far two engines' arrays are apart, and how far rounding alone moves real Caffe's own.

    difference(ours, real, noise_floor(key, reference))     relative to real Caffe's largest value

Arrays are named as in scripts/run_net.py: data/BLOB, diff/BLOB, grad/LAYER/INDEX, param/LAYER/INDEX.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

TOLERANCE = 1e-4
"""The largest relative difference that is accepted, in float32."""

NOISE = 1e-5
"""Blob gradients smaller than this fraction of the net's largest blob gradient are compared relative to that fraction.

That is, the divisor of the relative difference is at least NOISE times the largest gradient.
"""

NOISE_IN_LAYER = 1e-2
"""The same fraction for weight gradients within one layer: sums that cancel out are rounding noise in both engines.

The gradient of a bias before a BatchNorm, for example, is only rounding noise. Multiplied by `TOLERANCE`, the fraction
is 1e-6, a few units in the last place of float32; a smaller one would demand more digits than float32 has.
"""

SMALLEST = 1e-18
"""Values smaller than this may be 0 in one engine and a product of tiny numbers in the other."""

SPREAD = 4
"""How many times real Caffe's own spread is accepted: each layer of the other engine rounds again, not only the
weights, and the largest of a few draws is less than the largest of all."""

MOST_UNITS = 64

KINDS = ("data", "diff", "grad", "param")

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Row:
    """The comparison of one array: its kind (data, diff, grad, param), blob name, largest value, and difference.

    ``largest`` is the largest absolute value in real Caffe.
    """

    what: str
    name: str
    largest: float
    difference: float
    """The difference relative to ``largest``; infinite if shapes or the positions of NaN and inf differ, and if one
    engine lacks the array."""
    spread: float = 0.0
    """How far rounding moves real Caffe's own array (see `with_spread`); 0 if it was not measured."""
    only_in: str = ""
    """The engine that has the array, if the other lacks it."""

    @property
    def agrees(self) -> bool:
        """Whether the difference is within the tolerance, or can be explained by rounding."""
        return self.difference <= max(TOLERANCE, SPREAD * self.spread)


def compared(found: Mapping[str, np.ndarray], reference: Arrays) -> list[Row]:
    """Compare our arrays with real Caffe's. An array that only one of them has is named, unless it is a gradient of 0.

    Real Caffe has gradients of 0 for what it does not compute, and split blobs (with names of its own) for blobs that
    are used more than once.
    """
    beside = {key: reference[key] for key in found if key in reference}
    rows = []
    for key, ours in found.items():
        what, name = key.split("/", 1)
        if key in beside:
            rows.append(Row(what, name, _largest(beside[key]), difference(ours, beside[key], noise_floor(key, beside))))
        elif what == "data" or ours.any():
            rows.append(Row(what, name, 0.0, float("inf"), only_in="the embedded engine"))
    for key, real in reference.items():
        what, name = key.split("/", 1)
        if what in KINDS and key not in found and "_split_" not in key and (what == "data" or real.any()):
            rows.append(Row(what, name, _largest(real), float("inf"), only_in="real Caffe"))
    return rows


def noise_floor(key: str, reference: Arrays) -> float:
    """Return the value below which real Caffe's array ``key`` is rounding noise (see `NOISE`); 0 if not a gradient."""
    what = key.split("/", 1)[0]
    if what not in ("diff", "grad"):
        return 0.0
    beside, part = ("diff/", NOISE) if what == "diff" else (key.rsplit("/", 1)[0] + "/", NOISE_IN_LAYER)
    return part * max(_largest(array) for other, array in reference.items() if other.startswith(beside))


def _largest(array: np.ndarray) -> float:
    finite = np.abs(array[np.isfinite(array)])
    return float(finite.max()) if finite.size else 0.0


def difference(ours: np.ndarray, real: np.ndarray, floor: float = 0.0) -> float:
    """Return the largest difference relative to real Caffe's largest value; infinite if shapes or NaNs differ."""
    if ours.shape != real.shape or not np.array_equal(np.isfinite(ours), np.isfinite(real)):
        return float("inf")
    finite = np.isfinite(real)
    if not np.array_equal(ours[~finite], real[~finite], equal_nan=True):
        return float("inf")
    largest = _largest(ours[finite] - real[finite])
    return largest / max(_largest(real), floor, SMALLEST) if largest else 0.0


def nudged(values: Arrays, seed: int, units: int = 1) -> Arrays:
    """Return the weights (``param/...``), each changed by ``units`` units in the last place, up or down.

    This imitates rounding errors. Other values are returned as they are.
    """
    draw, moved = np.random.RandomState(seed), {}
    for key, array in values.items():
        if key.startswith("param/"):
            toward = np.where(draw.random_sample(array.shape) < 0.5, np.inf, -np.inf).astype(np.float32)
            for _ in range(units):
                array = np.nextafter(array, toward)
        moved[key] = array
    return moved


def with_spread(rows: Sequence[Row], reference: Arrays, draws: Iterable[Arrays]) -> list[Row]:
    """Return the rows with the largest difference of real Caffe's arrays in ``draws``, from nudged weights.

    Rows that have a spread already keep it if it is larger.
    """
    spread = {f"{row.what}/{row.name}": row.spread for row in rows if not row.only_in and row.what != "param"}
    for draw in draws:
        for key, before in spread.items():
            if key in draw:
                apart = difference(draw[key], reference[key], noise_floor(key, reference))
                spread[key] = max(before, apart)
    return [replace(row, spread=spread.get(f"{row.what}/{row.name}", 0.0)) for row in rows]


def units_of(rows: Sequence[Row]) -> int:
    """Return by how many units weights are nudged so that real Caffe's blobs move `SPREAD` times as far as the engines
    differ.

    ``rows`` have the spread for one unit. Near a tie of MAX pooling or a kink such as ReLU's, rounding decides where a
    gradient goes, and smaller changes may not reach each of these places in a few draws.
    """
    apart = [row.difference / row.spread for row in rows if row.what == "data" and row.spread and row.agrees]
    return min(MOST_UNITS, max(1, math.ceil(SPREAD * max(apart, default=1.0))))
