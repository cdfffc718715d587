"""Choose the number of threads or processes that compute a net.

The choice depends on the net, up to the number of cores: with enough cores, results do not depend on their number. The
environment variable OMP_NUM_THREADS overrides the number of cores.

- Small nets are computed by one thread: two threads would wait for each other after each of about a hundred operations.
- Nets of moderate size are computed in shards of the batch, each in a separate process (`direct`); the results depend
  on the shards only.
- Large nets are computed by PyTorch's threads, which split each operation (`waiting` says how they wait).
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass

import torch

from transfer_caffe.engine.iteration.direct import Direct
from transfer_caffe.engine.layers.base import Layer
from transfer_caffe.engine.net import Net
from transfer_caffe.utils.machine import cores

FLOP_A_SHARD = 4e8
"""Minimum work of a shard, in FLOP: some milliseconds, compared to which synchronising processes costs little."""

MOST_SHARDS = 8

FLOP_A_WEIGHT = 400
"""Minimum FLOP per weight and shard for shards to be worthwhile: each shard's weight gradients must be summed."""

MOST_WEIGHTS = 1 << 22
"""Maximum number of weights of a net in shards: each shard keeps gradients of all weights (16 MB each)."""

FLOP_A_THREAD = 2e9
"""Minimum work of an iteration for each of PyTorch's threads, in FLOP."""


@dataclass(frozen=True)
class Plan:
    """How a net is computed: in ``shards`` shards by ``workers`` processes, or by ``threads`` PyTorch threads."""

    shards: int
    workers: int
    threads: int

    def __str__(self) -> str:
        """Describe the plan for the log."""
        if self.shards > 1:
            return f"{self.shards} shards of each batch, {self.workers} at a time"
        return f"{self.threads} thread{'s' * (self.threads > 1)}"


def plan(net: Net) -> Plan:
    """Return the plan for a training net on a CPU, from its work and the cores that this process may use."""
    given = _given()
    most = given or cores()
    # on one core, shards cost a fifth of the speed: `small`, batch 64, runs 53 iterations/s in two shards, 65 in one
    shards = shards_of(net) if most > 1 else 1
    if shards > 1:
        return Plan(shards, min(most, shards), 1)
    return Plan(1, 1, given or min(most, max(1, int(work(net) / FLOP_A_THREAD))))


def _given() -> int | None:
    """Return PyTorch's number of threads if OMP_NUM_THREADS sets it, otherwise None."""
    return torch.get_num_threads() if os.environ.get("OMP_NUM_THREADS", "").split(",")[0].isdecimal() else None


def shards_of(net: Net) -> int:
    """Return the number of shards in which a net is computed; it depends on the net only."""
    if net.force_backward or net.layers[0].context.dtype != torch.float32:
        return 1
    flop = work(net)
    weights = sum(blob.data.numel() for blob in net.learnable)
    if weights > MOST_WEIGHTS:
        return 1
    sizes = [net.shapes[top][0] for layer in net.layers if not layer.param.bottom for top in layer.top]
    shards = 1
    while (
        shards < MOST_SHARDS
        and flop >= 2 * shards * FLOP_A_SHARD
        and flop >= 2 * shards * FLOP_A_WEIGHT * weights
        and all(size % (2 * shards) == 0 for size in sizes)
    ):
        shards *= 2
    return shards if shards > 1 and Direct.splits(net) else 1


def work(net: Net) -> float:
    """Return the FLOP of an iteration's matrix products: the forward pass, and the backward pass as far as needed."""
    flop = 0.0
    learning = False
    for layer in net.layers:
        below = learning
        learned = any(blob.learned for blob in layer.blobs)
        learning |= learned
        flop += 2 * products(net, layer) * (1 + learned + below)
    return flop


def products(net: Net, layer: Layer) -> float:
    """Return the number of multiplications in the matrix product of a layer's forward pass, for a whole mini-batch."""
    if not layer.blobs or layer.blobs[0].data.ndim < 2:
        return 0.0
    weights = layer.blobs[0].data
    if layer.type == "Deconvolution":  # every number that comes in is multiplied with the kernels of its channel
        return sum(math.prod(net.shapes[bottom]) for bottom in layer.param.bottom) * weights.numel() / weights.shape[0]
    outputs = weights.shape[1 if layer.param.inner_product_param.transpose else 0]
    return sum(math.prod(net.shapes[top]) for top in layer.top) * weights.numel() / outputs
