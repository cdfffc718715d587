"""Forward and backward pass of an iteration on a CPU without autograd: each layer's operations are called directly.

    run = Direct(net)
    loss, outputs = run(batch)          # gradients are in blob.data.grad afterwards

An iteration of a small net consists of about a hundred operations on a few kilobytes, so autograd's bookkeeping takes a
considerable part of its time (`mini` of the demo, one thread: 4.7 ms with autograd, 4.1 ms without). The layers of a
CaffeNet have a `Step` that implements both passes and works in place where Caffe does. Any other layer runs through
autograd as a separate step. Every net can therefore be run like this, and the gradients equal those of `Net.backward`
up to rounding.

A net of moderate size is computed in *shards*: equal parts of each batch, whose gradients are summed in a fixed order.
The operations of such a net are too short to be split among threads, which would wait for each other hundreds of times
per iteration. Instead, each shard is computed by a separate process (`crew`), and the processes synchronise once. The
number of shards depends on the net only (`threads.shards_of`). The results depend on the shards, but not on the number
of processes that compute them.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch
from torch import Tensor

from transfer_caffe.engine import debug
from transfer_caffe.engine.iteration import crew
from transfer_caffe.engine.iteration.crew import Crew
from transfer_caffe.engine.iteration.steps import ByAutograd, Read, Shard, SoftmaxLossStep, Step, Unary, step_for
from transfer_caffe.engine.layers import Blob, Layer
from transfer_caffe.engine.net import Net

Result = tuple[Tensor, dict[str, Tensor]]
"""The loss and the outputs by name, without gradients."""


NOTHING = torch.empty(0)
"""Placeholder for values that are not computed yet or not needed any more."""


class Clock:
    """Seconds per layer, forward and backward, summed over passes."""

    def __init__(self) -> None:
        """Create a clock without measurements."""
        self.forward: dict[Layer, float] = {}
        self.backward: dict[Layer, float] = {}

    def add(self, where: dict[Layer, float], layer: Layer, since: float) -> float:
        """Add the time since ``since`` to a layer's seconds in ``where`` and return the current time."""
        now = time.perf_counter()
        where[layer] = where.get(layer, 0.0) + now - since
        return now


class Trace:
    """Log each layer after its pass, as Caffe does with `debug_info` (`engine.debug`)."""

    def __init__(self, net: Net, add: bool) -> None:
        """With ``add``, gradients are added to those that the learnable blobs already have."""
        self._net = net
        self._before = {blob: blob.data.grad for blob in net.learnable} if add else {}

    def forward(self, step: Step, values: list[Tensor]) -> None:
        """Log the tops and the learnable blobs of a step."""
        tops = [values[number] for number in step.tops]
        debug.log_forward(step.layer, tops, [blob.data for blob in step.layer.blobs])

    def backward(self, step: Step, below: Sequence[Tensor | None], found: dict[Blob, Tensor]) -> None:
        """Log the gradients of the bottoms and of the learnable blobs of a step."""
        layer, forced = step.layer, self._net.force_backward
        pairs = zip(layer.param.bottom, step.needs, below, strict=True)
        bottoms = [
            (name, NOTHING.new_zeros(1) if gradient is None else gradient)
            for index, (name, need, gradient) in enumerate(pairs)
            if need and index != layer.label_bottom
        ]
        learned = [index for index, blob in enumerate(layer.blobs) if blob.lr_mult != 0 or forced]
        debug.log_backward(layer, bottoms, [(index, self._gradient(step.roots[index], found)) for index in learned])

    def end(self, found: dict[Blob, Tensor]) -> None:
        """Log the norms of all learnable blobs."""
        blobs = self._net.learnable
        debug.log_params([blob.data for blob in blobs], [self._gradient(blob, found) for blob in blobs])

    def _gradient(self, blob: Blob, found: dict[Blob, Tensor]) -> Tensor:
        parts = [each for each in (self._before.get(blob), found.get(blob)) if each is not None]
        return torch.stack(parts).sum(0) if parts else torch.zeros_like(blob.data)


class Direct:
    """The forward and backward pass of one net; see the module's docstring."""

    def __init__(self, net: Net, shards: int = 1, workers: int = 1) -> None:
        """Compute ``shards`` shards in ``workers`` processes; a net that cannot be split needs 1 shard (`splits`)."""
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

    @torch.no_grad()
    def forward(self, batch: int, trace: Trace | None = None) -> Result:
        """Return the loss and the outputs of a batch, of a net with one shard."""
        part = self.parts[0]
        part.forward(part.read(batch, None), batch, trace)
        return part.loss, part.outputs

    @staticmethod
    def splits(net: Net) -> bool:
        """Return whether all layers treat images independently, batch sizes are equal and each output is a scalar."""
        part = _Part(net, Shard())
        sizes = {net.shapes[top][0] for step in part.reads for top in step.layer.top if net.shapes[top]}
        single = all(net.shapes[name] == () for name in net.outputs)
        return all(step.splits for step in part.steps) and len(sizes) == 1 and single

    @torch.no_grad()
    def __call__(self, batch: int, add: bool = False, clock: Clock | None = None, trace: Trace | None = None) -> Result:
        """Return the loss and the outputs of a batch; store the gradients in the blobs, or with ``add`` add them there.

        ``clock`` measures the layers, in the shards that this process computes. ``trace`` logs them, in a net with
        one shard.
        """
        read = self.parts[0].read(batch, clock)
        if self._crew is not None:
            self._crew.begin(read, batch)
        for part in self._own:
            part.run(read, batch, clock, trace)
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
        # a shard divides its loss and its accuracy by the number of images of the complete batch: add up the shards'
        outputs = first.outputs
        for other in results[1:]:
            outputs = {name: value + other.outputs[name] for name, value in outputs.items()}
        return sum((other.loss for other in results[1:]), start=first.loss), outputs


def _summed(parts: list[dict[Blob, Tensor]]) -> dict[Blob, Tensor]:
    """Return the gradients of the blobs, summed over parts in order."""
    sums = dict(parts[0])
    for part in parts[1:]:
        for blob, gradient in part.items():
            sums[blob] = sums[blob] + gradient
    return sums


class _Part:
    """A net's steps for one shard, in execution order. Each top of a step has a number, by which values are stored."""

    def __init__(self, net: Net, shard: Shard) -> None:
        """Choose a step for each layer."""
        self.net, self.shard = net, shard
        context = net.layers[0].context
        plain = context.device.type == "cpu" and context.dtype == torch.float32
        self._by_autograd: set[Layer] = set() if plain else set(net.layers)
        self._arrange()
        while wrong := self._unserved():  # replacing one layer's step can invalidate others
            self._by_autograd |= wrong
            self._arrange()
        self.reads = [step for step in self.steps if isinstance(step, Read)]
        self.computed = [step for step in self.steps if not isinstance(step, Read)]
        self._buffered = [(step.layer.buffer, step) for step in self.steps if step.layer.buffer is not None]
        self.outputs: dict[str, Tensor] = {}
        self.loss = torch.zeros(())
        self.gradients: dict[Blob, Tensor] = {}

    def _arrange(self) -> None:
        """Create the steps; layers in ``_by_autograd`` run through autograd."""
        net = self.net
        self.steps: list[Step] = []
        self._current: dict[str, int] = {}
        """For each blob, the number of its newest values."""
        self._makers: list[Step] = []
        self._users: list[int] = []
        for layer, weights in zip(net.layers, net.loss_weights, strict=True):
            if layer in net.postponed:
                continue
            self._append(layer, layer.param.bottom, weights)
            if relu := net.relu_after.get(layer):  # a postponed ReLU is applied to the pooling's top
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
        """Return the layers whose steps would not match Caffe's behaviour in this net."""
        wrong: set[Layer] = set()
        for index, step in enumerate(self.steps):
            if isinstance(step, ByAutograd):
                continue
            # Caffe computes the gradient from what later in-place layers leave, so they must overwrite this step's top
            writers = [other for other in self.steps[index + 1 :] if other.layer.top[:1] == step.layer.top[:1]]
            if step.layer.buffer is not None and not all(other.overwrites for other in writers):
                wrong.add(step.layer)
            # this step computes the gradient of its own loss only, so its top must not be used elsewhere
            if isinstance(step, SoftmaxLossStep) and self._users[step.tops[0]] != len(step.terms):
                wrong.add(step.layer)
        return wrong

    def read(self, batch: int, clock: Clock | None) -> dict[int, Tensor]:
        """Return the complete tops of the data layers, by number."""
        found: dict[int, Tensor] = {}
        for step in self.reads:
            since = time.perf_counter()
            tops = step.layer.cast(step.layer.forward([], batch))
            found.update(zip(step.tops, tops, strict=True))
            if clock:
                clock.add(clock.forward, step.layer, since)
        return found

    def run(self, read: dict[int, Tensor], batch: int, clock: Clock | None = None, trace: Trace | None = None) -> None:
        """Run both passes and store the results in ``loss``, ``outputs`` and ``gradients``."""
        self._backward(*self.forward(read, batch, trace, clock), clock, trace)

    def forward(
        self, read: dict[int, Tensor], batch: int, trace: Trace | None = None, clock: Clock | None = None
    ) -> tuple[list[Tensor], list[bool]]:
        """Run the forward pass; store ``loss`` and ``outputs``, and return the values and which need a gradient."""
        count = len(self._makers)
        values = [NOTHING] * count
        needs = [False] * count
        for number, whole in read.items():
            values[number], needs[number] = self.shard.of(whole), self.net.force_backward
        loss: Tensor | None = None
        since = time.perf_counter() if clock else 0.0
        for step in self.steps if trace else self.computed:
            if trace and isinstance(step, Read):
                trace.forward(step, values)
                continue
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
            if trace:
                trace.forward(step, values)
        for buffer, step in self._buffered:
            assert buffer is not None
            buffer.content = values[self._current[step.layer.top[0]]]
        self.loss = torch.zeros((), device=self.net.layers[0].context.device) if loss is None else loss
        self.outputs = {name: values[self._current[name]].float() for name in self.net.outputs}
        return values, needs

    def _backward(self, values: list[Tensor], needs: list[bool], clock: Clock | None, trace: Trace | None) -> None:
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
            if trace:
                trace.backward(step, below if isinstance(below, list) else [below], found)
        if trace:
            trace.end(found)
        self.gradients = found


def _add(gradients: list[Tensor | None], number: int, gradient: Tensor) -> None:
    before = gradients[number]
    gradients[number] = gradient if before is None else before + gradient
