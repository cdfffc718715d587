"""Time a net layer by layer, in the same passes as training (`caffe time`).

On a CPU, training's passes measure themselves (`iteration.direct.Clock`); for a net computed in shards, only the
shards of this process are measured. Otherwise the complete net runs forward, autograd runs backward, and a clock is
read whenever a layer is done. Each moment of both passes is attributed to exactly one layer.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.autograd.graph import Node

from transfer_caffe.engine import glog
from transfer_caffe.engine.iteration.direct import Clock, Direct
from transfer_caffe.engine.iteration.graph import direct_of
from transfer_caffe.engine.layers import Layer
from transfer_caffe.engine.net import Net


def time_net(net: Net, iterations: int) -> None:
    """Run one warm-up pass and ``iterations`` timed passes forward and backward, and log each layer's mean times."""
    direct = direct_of(net) if net.has_loss else None
    timer = ByClock(direct) if direct else Timer(net)
    glog.info("caffe.cpp:351", "Performing Forward")
    glog.info("caffe.cpp:356", f"Initial loss: {glog.number(timer.run(0))}")
    glog.info("caffe.cpp:357", "Performing Backward")
    timer.reset()
    glog.info("caffe.cpp:365", "*** Benchmark begins ***")
    glog.info("caffe.cpp:366", f"Testing for {iterations} iterations.")
    before = 0.0
    for iteration in range(iterations):
        timer.run(iteration)
        total = sum(timer.forward.values()) + sum(timer.backward.values())
        glog.info("caffe.cpp:394", f"Iteration: {iteration + 1} forward-backward time: {1000 * (total - before):g} ms.")
        before = total
    glog.info("caffe.cpp:397", "Average time per layer: ")

    def show(place: str, what: str, seconds: float) -> None:
        glog.info(place, f"{what}: {1000 * seconds / iterations:g} ms.")

    for layer in net.layers:
        show("caffe.cpp:400", f"{layer.name:>10}\tforward", timer.forward[layer])
        show("caffe.cpp:403", f"{layer.name:>10}\tbackward", timer.backward[layer])
    show("caffe.cpp:408", "Average Forward pass", sum(timer.forward.values()))
    show("caffe.cpp:410", "Average Backward pass", sum(timer.backward.values()))
    show("caffe.cpp:412", "Average Forward-Backward", before)
    glog.info("caffe.cpp:414", f"Total Time: {1000 * before:g} ms.")
    glog.info("caffe.cpp:415", "*** Benchmark ends ***")


class ByClock:
    """Run a net's passes as training on a CPU does; ``forward`` and ``backward`` as in `Timer`."""

    def __init__(self, direct: Direct) -> None:
        """Measure the passes of ``direct``."""
        self._direct = direct
        self.reset()

    def reset(self) -> None:
        """Forget the times of the runs so far."""
        self._clock = Clock()
        self.forward = self._clock.forward = dict.fromkeys(self._direct.net.layers, 0.0)
        self.backward = self._clock.backward = dict.fromkeys(self._direct.net.layers, 0.0)

    def run(self, batch: int) -> float:
        """Run one iteration as training does, without the update, and return the loss."""
        return self._direct(batch, clock=self._clock)[0].item()


class Timer:
    """Run a net forward and backward; ``forward`` and ``backward`` hold each layer's seconds, summed over runs."""

    def __init__(self, net: Net) -> None:
        """Wrap each layer's forward function with a clock; the net can only be used for timing afterwards."""
        self._net = net
        net.compute_apart()
        self._device = net.layers[0].context.device
        self._since = 0.0
        self._current = net.layers[-1]
        self._owners: dict[Node, Layer] = {}
        self._hooks = {layer: functools.partial(self._enter, layer) for layer in net.layers}
        self.reset()
        for layer in net.layers:
            layer.forward = functools.partial(self._forward, layer, layer.forward)

    def reset(self) -> None:
        """Forget the times of the runs so far."""
        self.forward, self.backward = dict.fromkeys(self._net.layers, 0.0), dict.fromkeys(self._net.layers, 0.0)

    def run(self, batch: int) -> float:
        """Run one iteration as training does, without the update, and return the loss."""
        for blob in self._net.learnable:
            blob.leaf.grad = None
        self._since = self._now()
        loss, outputs = self._net.forward(batch)
        self.forward[self._net.layers[-1]] += self._now() - self._since
        # a net without a loss cannot be trained; gradients of the sums of its outputs are computed instead
        roots = [loss] if self._net.has_loss else list(outputs.values())
        roots = [root for root in roots if root.grad_fn is not None]
        if roots:
            for root in roots:
                self._claim(root, next(reversed(self._owners.values())))
            ones = [torch.ones_like(root) for root in roots]
            self._current = next(reversed(self._owners.values()))
            self._since = self._now()
            torch.autograd.backward(roots, ones)
            self._enter(self._current)
        self._owners.clear()
        return loss.item()

    def _forward(
        self, layer: Layer, forward: Callable[[list[Tensor], int], list[Tensor]], bottoms: list[Tensor], batch: int
    ) -> list[Tensor]:
        """Run a layer's ``forward``; all time since the previous layer ended counts for this layer."""
        tops = forward(bottoms, batch)
        self.forward[layer] += self._now() - self._since
        for top in tops:
            self._claim(top, layer)
        self._since = self._now()
        return tops

    def _claim(self, top: Tensor, layer: Layer) -> None:
        """Let the clock switch to ``layer`` at each autograd node of ``top`` that no earlier layer created."""
        nodes = [top.grad_fn]
        while nodes:
            node = nodes.pop()
            # nodes of leaves, which accumulate gradients, count for the layers whose gradients they accumulate
            if node is None or node in self._owners or hasattr(node, "variable"):
                continue
            self._owners[node] = layer
            node.register_prehook(self._hooks[layer])
            nodes += [other for other, _ in node.next_functions]

    def _enter(self, layer: Layer, *_: object) -> None:
        """Count the time since the clock was last read for the current layer, then make ``layer`` the current one."""
        now = self._now()
        self.backward[self._current] += now - self._since
        self._current, self._since = layer, now

    def _now(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter()
