"""How many threads or processes compute a net.

That follows from the net alone, as far as the machine has the cores: where there are enough, results do not depend on
how many there are. OMP_NUM_THREADS in the environment says otherwise, as everywhere.

- Small nets are computed by one thread: two of them would wait for each other after each of some hundred operations.
- Nets of moderate size in shards of the batch, each by a process of its own (`direct`); the results depend on the
  shards only.
- Large nets by PyTorch's own threads, which share each operation (how they wait: `waiting`).
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass

import torch

from transfer_caffe.engine.iteration.direct import Direct
from transfer_caffe.engine.net import Net
from transfer_caffe.utils.machine import cores

FLOP_A_SHARD = 4e8
"""Work of a shard, at least: some milliseconds, beside which the microseconds of two processes' meeting are nothing."""

MOST_SHARDS = 8

FLOP_A_WEIGHT = 400
"""Work for each weight from which on shards pay: each has gradients of all weights of its own, which must be summed."""

MOST_WEIGHTS = 1 << 22
"""Of a net in shards: their gradients, of each shard, are kept and summed (16 MB each)."""

FLOP_A_THREAD = 2e9
"""Work of an iteration for each of PyTorch's threads, at least."""


@dataclass(frozen=True)
class Plan:
    """How a net is computed: in ``shards``, by ``workers`` threads, or by ``threads`` of PyTorch's."""

    shards: int
    workers: int
    threads: int

    def __str__(self) -> str:
        """In words, for the log."""
        if self.shards > 1:
            return f"{self.shards} shards of each batch, {self.workers} at a time"
        return f"{self.threads} thread{'s' * (self.threads > 1)}"


def plan(net: Net) -> Plan:
    """The plan for a training net on a CPU, by its work and the cores that this process may use."""
    given = _given()
    most = given or cores()
    # with nobody to share them shards cost a fifth: small, batch 64, 53 iterations a second in two, 65 in one
    shards = shards_of(net) if most > 1 else 1
    if shards > 1:
        return Plan(shards, min(most, shards), 1)
    return Plan(1, 1, given or min(most, max(1, int(work(net) / FLOP_A_THREAD))))


def _given() -> int | None:
    """OMP_NUM_THREADS, where it is a number: PyTorch has taken it."""
    return torch.get_num_threads() if os.environ.get("OMP_NUM_THREADS", "").split(",")[0].isdecimal() else None


def shards_of(net: Net) -> int:
    """In how many shards a net is computed: a function of the net alone."""
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
    """The floating-point operations of the products of an iteration: forward, and backward where something learns."""
    flop = 0.0
    learning = False
    for layer in net.layers:
        below = learning
        learned = any(blob.learned for blob in layer.blobs)
        learning |= learned
        if layer.blobs and layer.blobs[0].data.ndim > 1:
            weights = layer.blobs[0].data
            tops = sum(math.prod(net.shapes[top]) for top in layer.top)
            flop += 2 * tops * weights.numel() / weights.shape[0] * (1 + learned + below)
    return flop
