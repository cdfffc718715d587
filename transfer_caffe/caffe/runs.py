"""The layers of a net, each with its blobs, forward and backward one at a time (caffe/layer.hpp, net.cpp).

A layer reads the values that its blobs have at that moment, in both passes, as Caffe does. The layers of a CaffeNet use
the steps of `engine.iteration`; all others run through autograd.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from transfer_caffe.engine.iteration.steps import (
    AccuracyStep,
    ByAutograd,
    ConvolutionStep,
    DropoutStep,
    InnerProductStep,
    LRNStep,
    PoolingStep,
    Shard,
    SoftmaxLossStep,
    Step,
    Unary,
)  # fmt: skip
from transfer_caffe.engine.layers import Layer, common, neuron, shaping, sources, vision
from transfer_caffe.engine.layers.python_layer import Python
from transfer_caffe.engine.layers.views import Blob

aten = torch.ops.aten


class Run:
    """A layer of a net with its blobs."""

    rewrites_tops: bool = False
    """Whether a later layer may write over the tops that this layer has computed."""

    def __init__(self, layer: Layer, bottoms: Sequence[Blob], tops: Sequence[Blob], params: Sequence[Blob]) -> None:
        """``params`` are the layer's learnable blobs."""
        self.layer, self.bottoms, self.tops, self.params = layer, bottoms, tops, params
        self.needs: list[bool] = [False] * len(bottoms)
        """Which bottoms need a gradient."""
        self.needed = False
        """Whether the layer takes part in the backward pass."""
        self.learns: list[bool] = [False] * len(params)
        """Which learnable blobs need a gradient."""
        self.may_overwrite = False
        """Whether the layer works in place on values that nothing else needs."""
        self.count = 0
        """The number of forward passes so far; what is random is a function of it."""
        self.batch = 0
        self.shapes = [tuple(blob.shape) for blob in bottoms]

    def reshape(self) -> bool:
        """Adapt the layer to its bottoms' shapes; return whether they have changed."""
        shapes = [blob._shape for blob in self.bottoms]
        if shapes == self.shapes:
            return False
        self.layer.reshape(shapes)
        self.shapes = shapes
        return True

    def reshape_tops(self) -> None:
        """Give the tops the shapes that follow from the bottoms' shapes."""
        if self.reshape():
            for blob, shape in zip(self.tops, self.layer.top_shapes(self.shapes), strict=True):
                blob.reshape(*shape)

    def next_batch(self) -> int:
        """Return the number of the batch that this forward pass computes."""
        self.batch, self.count = self.count, self.count + 1
        return self.batch

    def forward(self) -> None:
        """Compute the tops."""
        raise NotImplementedError

    def backward(self) -> None:
        """Compute the bottoms' gradients, and add to those of the learnable blobs."""

    def write_below(self, gradients: Sequence[Tensor | None]) -> None:
        """Store the gradients of the bottoms that need one; None stands for zeros."""
        for blob, need, gradient in zip(self.bottoms, self.needs, gradients, strict=True):
            if need:
                blob.write_diff(torch.zeros_like(blob.read()) if gradient is None else gradient)

    def add_gradients(self, gradients: Sequence[Tensor | None]) -> None:
        """Add to the gradients of the learnable blobs."""
        for blob, learns, gradient in zip(self.params, self.learns, gradients, strict=True):
            if learns and gradient is not None:
                blob._diff.add(gradient.reshape(blob._shape).contiguous())


class Fed(Run):
    """A layer whose tops are set from outside (Input), or which computes nothing (Silence)."""

    def forward(self) -> None:
        self.reshape()

    def backward(self) -> None:
        self.write_below([None] * len(self.bottoms))


class Reads(Run):
    """A layer without bottoms: it reads or makes its tops."""

    def forward(self) -> None:
        for blob, values in zip(self.tops, self.layer.forward([], self.next_batch()), strict=True):
            blob.write(values.detach(), owned=False)


class Memory(Reads):
    """MemoryData: it reads its batches in order from the arrays that it was given last."""


class Dummy(Reads):
    """DummyData: tops with constant values are set once, so that what a program writes there stays."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        assert isinstance(self.layer, sources.DummyData)
        self.constant = [filler.type == "constant" for filler in self.layer.fillers]
        for blob, values in zip(self.tops, self.layer.forward([], 0), strict=True):
            blob.write(values.clone())

    def forward(self) -> None:
        batch = self.next_batch()
        if not all(self.constant):
            for blob, values, constant in zip(self.tops, self.layer.forward([], batch), self.constant, strict=True):
                if not constant:
                    blob.write(values, owned=False)


class Shared(Run):
    """Split, Reshape, Flatten: the tops are the bottom's memory (SplitLayer, Blob::ShareData)."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        for blob in self.tops:
            blob.share_data(self.bottoms[0])
            if not isinstance(self.layer, shaping.Split):
                blob.share_diff(self.bottoms[0])

    def forward(self) -> None:
        self.reshape_tops()

    def backward(self) -> None:
        if not isinstance(self.layer, shaping.Split):
            return
        gradients = [blob.read_diff() for blob in self.tops]
        total = gradients[0].clone() if len(gradients) == 1 else gradients[0] + gradients[1]
        for gradient in gradients[2:]:
            total.add_(gradient)
        self.bottoms[0].write_diff(total)


class Elementwise(Run):
    """Neuron layers: the gradient is computed from what the blobs hold in the backward pass."""

    rewrites_tops = True

    def forward(self) -> None:
        self.reshape()
        x, layer = self.bottoms[0].read(), self.layer
        assert isinstance(layer, neuron.Neuron)
        if isinstance(layer, neuron.ReLU) and not layer.param.relu_param.negative_slope:
            top = x.relu_() if self.may_overwrite or (layer.in_place and self.tops[0].exposed) else x.relu()
        else:
            top = layer.value(x)
        self.tops[0].write(top)

    def backward(self) -> None:
        if not self.needs[0]:
            return
        layer, above, bottom = self.layer, self.tops[0].read_diff(), self.bottoms[0].read()
        assert isinstance(layer, neuron.Neuron)
        if isinstance(layer, neuron.ReLU) and not layer.param.relu_param.negative_slope:
            below = aten.threshold_backward(above, bottom, 0)
        else:
            below = above * layer.slope(bottom, self.tops[0].read())
        self.bottoms[0].write_diff(below)


class LossStep(SoftmaxLossStep):
    """SoftmaxWithLoss, whose backward pass may be repeated, and starts from the gradient of its top."""

    def backward(self, gradients: list[Tensor | None]) -> list[Tensor | None]:
        logs, own, over, shape = self.saved
        assert gradients[0] is not None
        gradient = logs.exp()
        gradient.scatter_add_(1, own, gradient.new_full((1, 1), -1.0).expand(len(gradient), 1))
        return [gradient.mul_(gradients[0].reshape(()) / over).view(shape), None]


class KeepingGraph(ByAutograd):
    """A layer through autograd, whose backward pass may be repeated."""

    def forward(self, bottoms: list[Tensor], batch: int) -> list[Tensor]:
        # tensors of their own on the same memory: autograd does not notice what others write there, as in Caffe
        own = [bottom.clone() if self.overwrites else bottom.data for bottom in bottoms]
        inputs = [bottom.requires_grad_(need) for bottom, need in zip(own, self.needs, strict=True)]
        with torch.set_grad_enabled(any(self.needs) or self.learns):
            outputs = self.layer.forward(self.layer.cast(list(inputs)), batch)
        self.saved = inputs, outputs
        return [top.detach() for top in outputs]

    def backward(self, gradients: list[Tensor | None]) -> list[Tensor | None]:
        inputs, outputs = self.saved
        pairs = [(top, g) for top, g in zip(outputs, gradients, strict=True) if top.requires_grad and g is not None]
        wanted = [each for each in inputs if each.requires_grad]
        wanted += [root.data for root, learned in zip(self.roots, self.learned, strict=True) if learned]
        self.gradients = [None] * len(self.roots)
        if not pairs or not wanted:
            return [None] * len(inputs)
        found = list(
            torch.autograd.grad(
                [top for top, _ in pairs], wanted, [g.reshape(top.shape) for top, g in pairs],
                retain_graph=True, allow_unused=True,
            )
        )  # fmt: skip
        below = [found.pop(0) if each.requires_grad else None for each in inputs]
        for index, learned in enumerate(self.learned):
            if learned and (gradient := found.pop(0)) is not None:
                self.gradients[index] = gradient.clone(memory_format=torch.contiguous_format)
        # autograd may return the same tensor twice, or an expanded one
        return [None if each is None else each.clone(memory_format=torch.contiguous_format) for each in below]


STEPS: tuple[type[Step], ...] = (
    AccuracyStep, ConvolutionStep, PoolingStep, LRNStep, InnerProductStep, DropoutStep, LossStep,
)  # fmt: skip


READ_BOTTOMS = common.InnerProduct, common.Scale, common.Eltwise, neuron.PReLU, vision.Convolution, vision.Deconvolution
"""Layers whose backward pass, in Caffe, reads what the bottoms hold at that moment."""


class Computes(Run):
    """Any other layer, as a `Step`."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self._step: Step | None = None
        on_cpu = self.layer.context.device.type == "cpu"
        self.kind = next((kind for kind in STEPS if on_cpu and kind.serves(self.layer)), KeepingGraph)
        self.rewrites_tops = self.kind is not KeepingGraph

    def step(self) -> Step:
        """Return the step for the present shapes and weights."""
        if self._step is None:
            step = self._step = self.kind(self.layer, Shard(), 1.0)
            # BatchNorm's statistics get no gradient, whatever force_backward says
            step.learned = [
                learns and root.data.requires_grad for learns, root in zip(self.learns, step.roots, strict=True)
            ]
            step.learns = any(step.learned)
            step.needs, step.gradients = list(self.needs), [None] * len(self.params)
            step.tops = list(range(len(self.tops)))
        return self._step

    def forget(self) -> None:
        """Look the layer's settings and weights up again."""
        self._step = None

    def forward(self) -> None:
        if self.reshape():
            self.forget()
            if self.kind is not KeepingGraph and not self.kind.serves(self.layer):
                self.kind = KeepingGraph
        step, bottoms = self.step(), self.bottoms
        in_place = self.layer.in_place and bool(bottoms) and bottoms[0].exposed
        # a layer that works in place keeps a copy for its backward pass, as Caffe's BatchNorm, Scale and PReLU do
        step.overwrites = in_place if self.kind is KeepingGraph else self.may_overwrite or in_place
        values = [blob.read() for blob in bottoms]
        if isinstance(step, PoolingStep) and step.is_maximum:
            # a convolution of gray images, and NumPy, leave the other memory format, in which this takes 5 times as
            # long (LeNet: 3 ms of an iteration's 26)
            values = [values[0].contiguous(memory_format=torch.channels_last)]
        tops = _run(step, values, self.next_batch())
        if not self.needed:
            step.saved = None
        if self.kind is KeepingGraph:
            tops = [self._private(top, values) for top in tops]
        for blob, top in zip(self.tops, tops, strict=True):
            blob.write(top)

    def _private(self, top: Tensor, bottoms: list[Tensor]) -> Tensor:
        """Return a top that shares no memory with a bottom that NumPy sees."""
        place = top.untyped_storage().data_ptr()
        for blob, bottom in zip(self.bottoms, bottoms, strict=True):
            if blob.exposed and bottom.untyped_storage().data_ptr() == place:
                return top.clone(memory_format=torch.contiguous_format)
        return top

    def backward(self) -> None:
        if not any(self.needs) and not any(self.learns):
            return
        step = self.step()
        if step.saved is None:  # no forward pass has come before: Caffe would read what its buffers happen to hold
            step.overwrites = False
            _run(step, [blob.read() for blob in self.bottoms], self.batch)
        elif isinstance(step, ConvolutionStep) and self.bottoms[0].exposed:
            step.saved = self.bottoms[0].read().contiguous(memory_format=torch.channels_last)
        elif isinstance(step, KeepingGraph) and isinstance(self.layer, READ_BOTTOMS) and not step.overwrites:
            self._renew(step.saved[0])
        if self.layer.buffer is not None:
            self.layer.buffer.content = self.tops[0].read()
        gradients: list[Tensor | None] = [blob.read_diff() for blob in self.tops]
        step.gradients = [None] * len(self.params)
        if isinstance(step, Unary):
            above = gradients[0]
            assert above is not None
            below = [step.down(above)]
        else:
            below = step.backward(gradients)
        self.write_below(below)
        self.add_gradients(step.gradients)

    def _renew(self, inputs: Sequence[Tensor]) -> None:
        """Give the graph what a script has written into the bottoms since the forward pass."""
        for blob, values in zip(self.bottoms, inputs, strict=True):
            if blob.exposed and blob.read().data_ptr() != values.data_ptr():
                values.data.copy_(blob.read())


def _run(step: Step, bottoms: list[Tensor], batch: int) -> list[Tensor]:
    return [step.up(bottoms[0], batch)] if isinstance(step, Unary) else step.forward(bottoms, batch)


class ByPython(Run):
    """A layer written in Python: it gets the net's blobs themselves."""

    layer: Python

    def reshape_tops(self) -> None:
        self.layer.reshape_tops(self.bottoms, self.tops)

    def forward(self) -> None:
        self.layer.run_forward(self.bottoms, self.tops)

    def backward(self) -> None:
        self.layer.run_backward(self.tops, self.needs, self.bottoms)


def run_of(layer: Layer, bottoms: Sequence[Blob], tops: Sequence[Blob], params: Sequence[Blob]) -> Run:
    """Return the way in which a layer runs."""
    kinds: list[tuple[type[Layer] | tuple[type[Layer], ...], type[Run]]] = [
        (Python, ByPython),
        ((sources.Input, shaping.Silence), Fed),
        (sources.MemoryData, Memory),
        (sources.DummyData, Dummy),
        ((shaping.Split, shaping.Reshape, shaping.Flatten), Shared),
        (neuron.Neuron, Elementwise),
    ]
    kind = next((run for layers, run in kinds if isinstance(layer, layers)), None)
    if kind is None:
        kind = Computes if bottoms or isinstance(layer, common.Parameter) or layer.blobs else Reads
    return kind(layer, bottoms, tops, params)
