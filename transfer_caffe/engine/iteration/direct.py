"""Forward and backward pass of an iteration on a CPU without autograd: the operations of each layer, one after another.

    run = Direct(net)
    loss, outputs = run(batch)          # gradients are in blob.data.grad afterwards

An iteration of a small net is some hundred operations on a few kilobytes, and autograd's bookkeeping took a good part
of its time (`mini` of the demo, one thread: 4.7 ms with it, 4.1 ms without). The layers of a CaffeNet have a `Step`
that knows both directions and works in place where Caffe does; any other layer runs by autograd as a step of its own,
so every net can be run like this, with the gradients that `Net.backward` gives, to rounding.

A net of moderate size is run in *shards*: equal parts of each batch, whose gradients are summed in order. Operations of
such a net are too short to be shared among threads, which would wait for each other hundreds of times an iteration; so
each shard is computed by a process of its own (`crew`), and they meet once. How many shards there are depends on the
net alone (`threads.shards_of`), and the results depend on the shards, not on how many processes compute them.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch
from torch import Tensor

from transfer_caffe.engine.iteration import crew
from transfer_caffe.engine.iteration.crew import Crew
from transfer_caffe.engine.iteration.steps import ByAutograd, Read, Shard, SoftmaxLossStep, Step, Unary, step_for
from transfer_caffe.engine.layers import Blob, Layer
from transfer_caffe.engine.net import Net

Result = tuple[Tensor, dict[str, Tensor]]
"""The loss and the outputs by name, without gradients."""


NOTHING = torch.empty(0)
"""In the place of values that are not there yet, or not needed any more."""


class Clock:
    """Seconds of each layer, forward and backward, summed over passes."""

    def __init__(self) -> None:
        """Nothing measured yet."""
        self.forward: dict[Layer, float] = {}
        self.backward: dict[Layer, float] = {}

    def add(self, where: dict[Layer, float], layer: Layer, since: float) -> float:
        """Count the time since then for a layer; gives the time now."""
        now = time.perf_counter()
        where[layer] = where.get(layer, 0.0) + now - since
        return now


class Direct:
    """The passes of one net; see this module."""

    def __init__(self, net: Net, shards: int = 1, workers: int = 1) -> None:
        """``shards`` are computed by ``workers`` processes; a net that cannot be split takes 1 (`splits`)."""
        self.net = net
        workers = min(workers, shards)
        if workers > 1:
            crew.share_weights(net)
        self.parts = [_Part(net, Shard(number, shards)) for number in range(shards)]
        if shards > 1 and not all(step.splits for step in self.parts[0].steps):
            raise ValueError(f"net {net.name!r} cannot be computed in shards")
        shares = [self.parts[worker::workers] for worker in range(workers)]
        self._own = shares[0]
        self._crew = Crew(net, shares[1:]) if workers > 1 else None

    @staticmethod
    def splits(net: Net) -> bool:
        """Whether layers treat each image by itself, batches are of one size, and each output is one value."""
        part = _Part(net, Shard())
        sizes = {net.shapes[top][0] for step in part.reads for top in step.layer.top if net.shapes[top]}
        single = all(net.shapes[name] == () for name in net.outputs)
        return all(step.splits for step in part.steps) and len(sizes) == 1 and single

    @torch.no_grad()
    def __call__(self, batch: int, add: bool = False, clock: Clock | None = None) -> Result:
        """The loss and the outputs of a batch. Gradients stand in the blobs, or are added to those that do.

        ``clock`` measures the layers, in the parts that this process computes.
        """
        read = self.parts[0].read(batch, clock)
        if self._crew is not None:
            self._crew.begin(read, batch)
        for part in self._own:
            part.run(read, batch, clock)
        results: list[crew.Result | _Part] = list(self.parts)
        if self._crew is not None:
            shares = self._crew.end()
            for worker, share in enumerate(shares, start=1):
                results[worker :: len(shares) + 1] = share
        first = results[0]
        found = _summed([each.gradients for each in results])
        for blob in self.net.learnable:
            gradient, before = found.get(blob), blob.data.grad if add else None
            blob.data.grad = gradient if before is None else before if gradient is None else before + gradient
        # a loss is divided by the number of images of the whole batch, and so is an accuracy: the whole is the sum
        outputs = first.outputs
        for other in results[1:]:
            outputs = {name: value + other.outputs[name] for name, value in outputs.items()}
        return sum((other.loss for other in results[1:]), start=first.loss), outputs


def _summed(parts: list[dict[Blob, Tensor]]) -> dict[Blob, Tensor]:
    """The gradients of the blobs, summed over parts in their order."""
    sums = dict(parts[0])
    for part in parts[1:]:
        for blob, gradient in part.items():
            sums[blob] = sums[blob] + gradient
    return sums


class _Part:
    """A net's steps for one shard, in the order in which they run; values and gradients have a number for each top."""

    def __init__(self, net: Net, shard: Shard) -> None:
        """Find a step for each layer."""
        self.net, self.shard = net, shard
        self._by_autograd: set[Layer] = set()
        self._arrange()
        while wrong := self._unserved():  # one layer's step decides what the others' may do
            self._by_autograd |= wrong
            self._arrange()
        self.reads = [step for step in self.steps if isinstance(step, Read)]
        self.computed = [step for step in self.steps if not isinstance(step, Read)]
        self._buffered = [(step.layer.buffer, step) for step in self.steps if step.layer.buffer is not None]
        self.outputs: dict[str, Tensor] = {}
        self.loss = torch.zeros(())
        self.gradients: dict[Blob, Tensor] = {}

    def _arrange(self) -> None:
        """Make the steps, those of the layers in ``_by_autograd`` by autograd."""
        net = self.net
        self.steps: list[Step] = []
        self._current: dict[str, int] = {}
        """The number of a blob's newest values."""
        self._makers: list[Step] = []
        self._users: list[int] = []
        for layer, weights in zip(net.layers, net.loss_weights, strict=True):
            if layer in net.postponed:
                continue
            self._append(layer, layer.param.bottom, weights)
            if relu := net.relu_after.get(layer):  # it works on what the pooling has made of its bottom
                self._append(relu, layer.top, [], layer.top)
        self._find_overwriting()

    def _append(
        self, layer: Layer, bottoms: Sequence[str], weights: list[tuple[str, float]], tops: Sequence[str] | None = None
    ) -> None:
        weight = weights[0][1] if weights else 0.0
        step = step_for(layer, self.shard, weight, layer in self._by_autograd)
        step.bottoms = [self._current[name] for name in bottoms]
        step.cut = self.net.cuts.get(layer, set())
        for number in step.bottoms:
            self._users[number] += 1
        for name in layer.top if tops is None else tops:
            self._current[name] = len(self._makers)
            step.tops.append(len(self._makers))
            self._makers.append(step)
            self._users.append(0)
        step.terms = [(self._current[top], weight) for top, weight in weights]
        for number, _ in step.terms:
            self._users[number] += 1
        self.steps.append(step)

    def _find_overwriting(self) -> None:
        for step in self.steps:
            if step.writes_in_place and step.layer.in_place:
                bottom = step.bottoms[0]
                step.overwrites = self._makers[bottom].frees_output and self._users[bottom] == 1

    def _unserved(self) -> set[Layer]:
        """The layers whose steps would not do what Caffe does in this net."""
        wrong: set[Layer] = set()
        for index, step in enumerate(self.steps):
            if isinstance(step, ByAutograd):
                continue
            # the gradient is of what later layers in place leave: so they must write where this one has written
            writers = [other for other in self.steps[index + 1 :] if other.layer.top[:1] == step.layer.top[:1]]
            if step.layer.buffer is not None and not all(other.overwrites for other in writers):
                wrong.add(step.layer)
            # its own gradient is all that it knows
            if isinstance(step, SoftmaxLossStep) and self._users[step.tops[0]] != len(step.terms):
                wrong.add(step.layer)
        return wrong

    def read(self, batch: int, clock: Clock | None) -> dict[int, Tensor]:
        """The tops of the layers that read, whole, by their numbers."""
        found: dict[int, Tensor] = {}
        for step in self.reads:
            since = time.perf_counter()
            tops = step.layer.cast(step.layer.forward([], batch))
            found.update(zip(step.tops, tops, strict=True))
            if clock:
                clock.add(clock.forward, step.layer, since)
        return found

    def run(self, read: dict[int, Tensor], batch: int, clock: Clock | None = None) -> None:
        """Both passes; results are left in ``loss``, ``outputs`` and ``gradients``."""
        count = len(self._makers)
        values = [NOTHING] * count
        needs = [False] * count
        for number, whole in read.items():
            values[number] = self.shard.of(whole)
        self._forward(values, needs, batch, clock)
        self._backward(values, needs, clock)

    def _forward(self, values: list[Tensor], needs: list[bool], batch: int, clock: Clock | None) -> None:
        loss: Tensor | None = None
        since = time.perf_counter() if clock else 0.0
        for step in self.computed:
            bottoms = step.bottoms
            if step.unary:
                assert isinstance(step, Unary)
                bottom, top = bottoms[0], step.tops[0]
                need = needs[bottom] and not step.cut
                step.needs = [need]
                values[top], needs[top] = step.up(values[bottom], batch), need or step.learns
                if not needs[top]:
                    step.saved = None
            else:
                step.needs = [needs[number] and index not in step.cut for index, number in enumerate(bottoms)]
                tops = step.forward([values[number] for number in bottoms], batch)
                for number, top, need in zip(step.tops, tops, step.tops_need(), strict=True):
                    values[number], needs[number] = top, need
            for number, weight in step.terms:
                term = values[number].sum(dtype=torch.float32)
                term = term if weight == 1 else term * weight
                loss = term if loss is None else loss + term
            if clock:
                since = clock.add(clock.forward, step.layer, since)
        for buffer, step in self._buffered:
            assert buffer is not None
            buffer.content = values[self._current[step.layer.top[0]]]
        self.loss = torch.zeros(()) if loss is None else loss
        self.outputs = {name: values[self._current[name]].float() for name in self.net.outputs}

    def _backward(self, values: list[Tensor], needs: list[bool], clock: Clock | None) -> None:
        gradients: list[Tensor | None] = [None] * len(values)
        found: dict[Blob, Tensor] = {}
        since = time.perf_counter() if clock else 0.0
        for step in reversed(self.computed):
            for number, weight in step.terms:
                if needs[number]:
                    _add(gradients, number, torch.full_like(values[number], weight))
            if step.unary:
                assert isinstance(step, Unary)
                gradient = gradients[step.tops[0]]
                if gradient is None:
                    continue
                gradients[step.tops[0]] = None
                below = step.down(gradient)
                step.saved, values[step.tops[0]] = None, NOTHING
                if below is not None and step.needs[0]:
                    _add(gradients, step.bottoms[0], below)
            else:
                above = [gradients[number] for number in step.tops]
                if all(gradient is None for gradient in above):
                    continue
                below = step.backward(above)
                step.saved = None
                for number in step.tops:
                    gradients[number], values[number] = None, NOTHING
                for number, need, gradient in zip(step.bottoms, step.needs, below, strict=True):
                    if gradient is not None and need:
                        _add(gradients, number, gradient)
            for root, gradient in zip(step.roots, step.gradients, strict=True):
                if gradient is not None:
                    gradient = gradient.view(root.data.shape)
                    found[root] = found[root] + gradient if root in found else gradient
            if clock:
                since = clock.add(clock.backward, step.layer, since)
        self.gradients = found


def _add(gradients: list[Tensor | None], number: int, gradient: Tensor) -> None:
    before = gradients[number]
    gradients[number] = gradient if before is None else before + gradient
