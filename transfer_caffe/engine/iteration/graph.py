"""Forward and backward pass of an iteration as one CUDA graph: the host prepares the batch and replays the graph.

    run = Pass(net)                     # on a CPU: `Direct`
    loss, outputs = run(batch)          # gradients are in blob.data.grad afterwards

A small net's kernels take less time than PyTorch needs to launch them one by one; a graph launches them together.
Everything that differs between batches is set before the replay: the batch's records and windows (`Images.prepare`) and
the seeds of Dropout's masks. An iteration therefore computes the same as without a graph, and training can be resumed
at any iteration. The update is not part of the graph: it is one operation for all blobs with the same learning rate
(`solver.updates`), and the rate changes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from transfer_caffe.engine import glog
from transfer_caffe.engine.iteration import threads
from transfer_caffe.engine.iteration.direct import Direct, Result
from transfer_caffe.engine.layers import common, loss, shaping, vision
from transfer_caffe.engine.layers.data import Images
from transfer_caffe.engine.layers.neuron import Dropout, Neuron
from transfer_caffe.engine.layers.sources import DummyData
from transfer_caffe.engine.net import Net

CAPTURABLE = (
    common.Bias, common.Eltwise, common.InnerProduct, common.Scale, common.Softmax, loss.Accuracy, loss.SoftmaxWithLoss,
    shaping.Concat, shaping.Flatten, shaping.Reshape, shaping.Silence, shaping.Slice, shaping.Split,
    vision.Convolution, vision.LRN, vision.Pooling, Dropout, Neuron,
)  # fmt: skip
"""Layers that neither read values nor sample random numbers on the host in each batch."""

WARM_UP = 3
"""Number of iterations before capture, in which libraries allocate memory and choose algorithms."""


class Recorder(Protocol):
    """A CUDA graph, or a stand-in for one in tests."""

    def register(self, generators: Sequence[torch.Generator]) -> None:
        """Register the generators that the recorded function uses; each replay uses their seeds at that time."""
        ...

    def record(self, function: Callable[[], Result]) -> Result:
        """Record a function; each replay writes to the tensors of its results and of the gradients it leaves."""
        ...

    def replay(self) -> None:
        """Compute the results again, in place."""
        ...


class CudaGraph:
    """`torch.cuda.CUDAGraph` as a `Recorder`, on the current stream, which must not be the default one."""

    def __init__(self) -> None:
        """Create an empty graph."""
        self._graph = torch.cuda.CUDAGraph()

    def register(self, generators: Sequence[torch.Generator]) -> None:
        """See `Recorder.register`."""
        for generator in generators:
            self._graph.register_generator_state(generator)

    def record(self, function: Callable[[], Result]) -> Result:
        """See `Recorder.record`."""
        # thread_local: CUDA calls of other threads during the capture are allowed and not captured
        with torch.cuda.graph(self._graph, stream=torch.cuda.current_stream(), capture_error_mode="thread_local"):
            return function()

    def replay(self) -> None:
        """See `Recorder.replay`."""
        self._graph.replay()


def forward_backward(net: Net, batch: int) -> Result:
    """Run a net on a batch, add the gradients of its loss to the blobs' gradients, and return loss and outputs."""
    loss, outputs = net.forward(batch)
    if loss.requires_grad:
        loss.backward()
    # detach: holding the autograd graph would keep the activations and the stream alive
    return loss.detach(), {name: value.detach() for name, value in outputs.items()}


def direct_of(net: Net, own_process: bool = True) -> Direct | None:
    """Return a net's passes without autograd; None on a GPU, in bf16, or with force_backward.

    ``own_process`` says that this process only runs this net: `threads.plan` then sets the number of threads or
    processes. Otherwise the batch is computed as one shard with PyTorch's current threads.
    """
    context = net.layers[0].context
    if context.device.type != "cpu":
        return None
    shards = workers = 1
    if own_process:
        plan = threads.plan(net)
        torch.set_num_threads(plan.threads)
        glog.info("caffe.cpp:0", f"Computing with {plan}.")
        shards, workers = plan.shards, plan.workers
    if net.force_backward or context.dtype != torch.float32:
        return None
    return Direct(net, shards, workers)


class Pass:
    """`forward_backward` in the fastest way: `Direct` on a CPU; on a GPU a CUDA graph, after the warm-up."""

    def __init__(self, net: Net, recorder: Callable[[], Recorder] | None = None, own_process: bool = True) -> None:
        """``recorder`` creates graphs; by default it is `CudaGraph` on a GPU, and there is none on a CPU.

        ``own_process`` as in `direct_of`; without it, no CUDA graph is used by default.
        """
        self._net = net
        device = net.layers[0].context.device
        if recorder is None and device.type == "cuda" and own_process:
            recorder = CudaGraph
        self._direct = direct_of(net, own_process) if recorder is None else None
        self._make, self._runs = recorder, 0
        self._images = [layer for layer in net.layers if isinstance(layer, Images)]
        self._drawing = [(layer, torch.Generator(device)) for layer in net.layers if isinstance(layer, Dropout)]
        self._recorder: Recorder | None = None
        self._result: Result | None = None
        self._gradients: list[Tensor | None] = []
        if recorder is not None and (why := uncapturable(net)):
            glog.info("solver.cpp:0", f"Iterations run without a CUDA graph: {why}.")
            self._make = None

    def add(self, batch: int) -> Result:
        """Like a call, but add the gradients to the blobs' existing gradients."""
        if self._direct is not None:
            return self._direct(batch, add=True)
        return forward_backward(self._net, batch)

    def __call__(self, batch: int) -> Result:
        """Return the loss and the outputs of a batch; store the gradients in the blobs."""
        if self._direct is not None:
            return self._direct(batch)
        blobs = self._net.learnable
        if self._recorder is None or self._result is None:
            for blob in blobs:
                blob.data.grad = None
            self._runs += 1
            if self._make is None or self._runs <= WARM_UP or not self._record(self._make(), batch):
                return forward_backward(self._net, batch)
        assert self._recorder is not None and self._result is not None
        self._put_in_place(batch)
        self._recorder.replay()
        # an update may have replaced the gradient tensors
        for blob, gradient in zip(blobs, self._gradients, strict=True):
            blob.data.grad = gradient
        loss, outputs = self._result
        return loss.clone(), outputs

    def _put_in_place(self, batch: int) -> None:
        for images in self._images:
            images.prepare(batch)
        for layer, generator in self._drawing:
            generator.manual_seed(layer.seed(batch))

    def _record(self, recorder: Recorder, batch: int) -> bool:
        """Record an iteration without computing it; return False, and never try again, if that fails."""
        blobs = self._net.learnable
        recorder.register([generator for _, generator in self._drawing])
        for layer, generator in self._drawing:
            layer.generator = generator
        for images in self._images:
            images.prepares = False
        try:
            self._result = recorder.record(lambda: forward_backward(self._net, batch))
            self._gradients = [blob.data.grad for blob in blobs]
            self._recorder = recorder
            glog.info("solver.cpp:0", "From here on an iteration is one CUDA graph.")
        except RuntimeError as error:
            glog.info("solver.cpp:0", f"Iterations run without a CUDA graph: {reasons(error)}")
            self._make = None
            for blob in blobs:
                blob.data.grad = None
        finally:
            # restore the state for passes outside the graph (for example, the loss displayed after training)
            for images in self._images:
                images.prepares = True
            for layer, _ in self._drawing:
                layer.generator = None
        return self._recorder is not None


def reasons(error: BaseException) -> str:
    """Return the first lines of an error and of those that it hides, the first one first.

    If an operation that cannot be captured raises an error, ending the capture raises another one in its place.
    """
    chain: list[BaseException] = []
    each: BaseException | None = error
    while each is not None and each not in chain:
        chain.append(each)
        each = each.__cause__ or each.__context__
    lines = [(str(each).splitlines() or [type(each).__name__])[0] for each in reversed(chain)]
    return "; then: ".join(dict.fromkeys(lines))


def uncapturable(net: Net) -> str:
    """Return the reason why a net's iterations cannot be recorded; empty if they can."""
    if net.force_backward:
        return "force_backward is set"
    for layer in net.layers:
        if not (
            isinstance(layer, CAPTURABLE)
            or (isinstance(layer, Images) and layer.by_device)
            or (isinstance(layer, DummyData) and layer.is_constant)
        ):
            return f"layer {layer.name!r} ({layer.type}) reads values or samples random numbers on the host"
    return ""
