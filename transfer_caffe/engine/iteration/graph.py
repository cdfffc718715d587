"""Passes of a net as CUDA graphs: the host prepares the batch and replays the graph.

    run = Pass(net)                     # training; on a CPU: `Direct`
    loss, outputs = run(batch)          # gradients are in blob.data.grad afterwards
    loss, outputs = run.add(batch)      # adds to these gradients (iter_size)
    test = TestPass(net)                # a test net: the forward pass alone

A small net's kernels take less time than PyTorch needs to launch them one by one; a graph launches them together.
Everything that differs between batches is set before the replay: the batch's records and windows (`Images.prepare`),
the seeds of Dropout's masks, and the rates of the update, which is part of the graph if the solver has one that runs
on the device alone (`solver.device_update`). An iteration therefore computes the same as without a graph, and training
can be resumed at any iteration.

The graphs of a process share one pool of memory: their temporary values overlie each other, since they are replayed
one after the other, and what a graph returns is used before the next one is replayed. Gradients are kept, since they
are in use when the other graphs are recorded.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from transfer_caffe.engine import debug, glog
from transfer_caffe.engine.iteration import threads
from transfer_caffe.engine.iteration.direct import Direct, Result, Trace
from transfer_caffe.engine.layers import common, loss, neuron, recurrent, shaping, vision
from transfer_caffe.engine.layers.data import Images
from transfer_caffe.engine.layers.neuron import Dropout
from transfer_caffe.engine.layers.sources import DummyData
from transfer_caffe.engine.net import Net

CAPTURABLE = (
    common.BatchNorm,
    common.Bias,
    common.Eltwise,
    common.InnerProduct,
    common.MVN,
    common.Parameter,
    common.Scale,
    common.Softmax,
    loss.Accuracy,
    loss.ContrastiveLoss,
    loss.EuclideanLoss,
    loss.HingeLoss,
    loss.SigmoidCrossEntropyLoss,
    loss.SoftmaxWithLoss,
    neuron.AbsVal,
    neuron.Dropout,
    neuron.Log,
    neuron.Neuron,
    neuron.Power,
    neuron.PReLU,
    neuron.Swish,
    neuron.Threshold,
    recurrent.LSTM,
    recurrent.LSTMUnit,
    recurrent.RNN,
    shaping.Concat,
    shaping.Crop,
    shaping.Flatten,
    shaping.Reduction,
    shaping.Reshape,
    shaping.Silence,
    shaping.Slice,
    shaping.Split,
    shaping.Tile,
    vision.Convolution,
    vision.Im2col,
    vision.LRN,
    vision.Pooling,
    vision.SPP,
)
"""Layers that neither read values nor sample random numbers on the host in each batch.

What BatchNorm and recurrent layers keep from batch to batch, statistics and hidden states, is changed in place on the
device, where the replays find it.
"""

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
        with torch.cuda.graph(
            self._graph, pool=_pool(), stream=torch.cuda.current_stream(), capture_error_mode="thread_local"
        ):
            return function()

    def replay(self) -> None:
        """See `Recorder.replay`."""
        self._graph.replay()


@functools.lru_cache(maxsize=1)
def _pool() -> Any:
    """Return the pool of memory that all graphs of this process share; it is on one device."""
    return torch.cuda.graph_pool_handle()


def forward_backward(net: Net, batch: int) -> Result:
    """Run a net on a batch, add the gradients of its loss to the blobs' gradients, and return loss and outputs."""
    loss, outputs = net.forward(batch)
    if loss.requires_grad:
        loss.backward()
    # detach: holding the autograd graph would keep the activations and the stream alive
    return loss.detach(), {name: value.detach() for name, value in outputs.items()}


def direct_of(net: Net, own_process: bool = True) -> Direct | None:
    """Return a net's passes without autograd; None on a GPU, in bf16, or with force_backward, unless it is traced.

    ``own_process`` says that this process only runs this net: `threads.plan` then sets the number of threads or
    processes. Otherwise the batch is computed as one shard with PyTorch's current threads.
    """
    context = net.layers[0].context
    if context.device.type != "cpu":
        return Direct(net) if net.traced else None
    shards = workers = 1
    if own_process:
        plan = threads.plan(net)
        torch.set_num_threads(plan.threads)
        glog.info("caffe.cpp:0", f"Computing with {plan}.")
        shards, workers = plan.shards, plan.workers
    if net.traced:
        return Direct(net)
    if net.force_backward or context.dtype != torch.float32:
        return None
    return Direct(net, shards, workers)


class Graph:
    """A function of a net's batch that is recorded once and then replayed."""

    def __init__(self, net: Net, recorder: Recorder) -> None:
        """``recorder`` records the function; it is used once."""
        self._recorder = recorder
        self._images = [layer for layer in net.layers if isinstance(layer, Images)]
        device = net.layers[0].context.device
        drawing = [layer for layer in net.layers if isinstance(layer, Dropout) and layer.context.training]
        self._drawing = [(layer, torch.Generator(device)) for layer in drawing]
        self._result: Result | None = None

    def record(self, function: Callable[[], Result]) -> str:
        """Record ``function`` without computing it. Return an empty string, or the reason why that failed."""
        self._recorder.register([generator for _, generator in self._drawing])
        for layer, generator in self._drawing:
            layer.generator = generator
        for images in self._images:
            images.prepares = False
        try:
            self._result = self._recorder.record(function)
        except RuntimeError as error:
            return reasons(error)
        finally:
            # restore the state for passes outside the graph (for example, the loss displayed after training)
            for images in self._images:
                images.prepares = True
            for layer, _ in self._drawing:
                layer.generator = None
        return ""

    def replay(self, batch: int) -> Result:
        """Compute the function for a batch; the outputs are overwritten by the next replay of any graph."""
        assert self._result is not None
        for images in self._images:
            images.prepare(batch)
        for layer, generator in self._drawing:
            generator.manual_seed(layer.seed(batch))
        self._recorder.replay()
        loss, outputs = self._result
        return loss.clone(), outputs


class Pass:
    """`forward_backward` in the fastest way: `Direct` on a CPU; on a GPU CUDA graphs, after the warm-up."""

    def __init__(
        self, net: Net, recorder: Callable[[], Recorder] | None = None, own_process: bool = True,
        update: Callable[[], None] | None = None,
    ) -> None:  # fmt: skip
        """``recorder`` creates graphs; by default it is `CudaGraph` on a GPU, and there is none on a CPU.

        ``own_process`` as in `direct_of`; without it, no CUDA graph is used by default. ``update`` is an update of the
        weights on the device: each call then also updates them.
        """
        self._net = net
        device = net.layers[0].context.device
        if recorder is None and device.type == "cuda" and own_process and not net.traced:
            recorder = CudaGraph
        self._direct = direct_of(net, own_process) if recorder is None else None
        self._make, self._update = recorder, update
        self.forget()
        if recorder is not None and (why := uncapturable(net)):
            glog.info("solver.cpp:0", f"Iterations run without a CUDA graph: {why}.")
            self._make = None

    def forget(self) -> None:
        """Forget the recorded graphs, since the tensors that they use have been replaced."""
        self._graphs: dict[bool, Graph] = {}
        """For `__call__` (False) and `add` (True)."""
        self._runs = {False: 0, True: 0}
        self._gradients: list[Tensor | None] = []

    @property
    def recorded(self) -> bool:
        """Whether iterations are replayed from a graph."""
        return False in self._graphs

    def add(self, batch: int) -> Result:
        """Like a call, but add the gradients to the blobs' existing gradients. There must be no update."""
        if self._direct is not None:
            return self._direct(batch, add=True, trace=self._trace(True))
        if self.recorded and (graph := self._graph(True, batch)):
            return graph.replay(batch)
        return self._run(batch)

    def __call__(self, batch: int) -> Result:
        """Return the loss and the outputs of a batch; store the gradients in the blobs."""
        if self._direct is not None:
            return self._direct(batch, trace=self._trace(False))
        graph = self._graph(False, batch)
        if graph is None:
            self._clear()
            return self._run(batch)
        result = graph.replay(batch)
        # an update may have replaced the gradient tensors
        for blob, gradient in zip(self._net.learnable, self._gradients, strict=True):
            blob.leaf.grad = gradient
        return result

    def forward(self, batch: int) -> Result:
        """Return the loss and the outputs of a batch, without gradients."""
        trace = self._trace(False)
        return self._direct.forward(batch, trace) if self._direct and trace else self._net.forward(batch)

    def _trace(self, add: bool) -> Trace | None:
        return Trace(self._net, add) if debug.is_on(self._net) else None

    def _run(self, batch: int) -> Result:
        result = forward_backward(self._net, batch)
        if self._update is not None:
            self._update()
        return result

    def _clear(self) -> None:
        for blob in self._net.learnable:
            blob.leaf.grad = None

    def _graph(self, adds: bool, batch: int) -> Graph | None:
        """Return the graph of `__call__` or `add`; None before it is recorded, or if that is impossible."""
        if adds in self._graphs:
            return self._graphs[adds]
        self._runs[adds] += 1
        if self._make is None or self._runs[adds] <= WARM_UP:
            return None
        if not adds:
            self._clear()  # otherwise a replay would add to these gradients
        graph = Graph(self._net, self._make())
        if why := graph.record(lambda: self._run(batch)):
            glog.info("solver.cpp:0", f"Iterations run without a CUDA graph: {why}")
            self._make = None
            return None
        if not adds:
            self._gradients = [blob.leaf.grad for blob in self._net.learnable]
            glog.info("solver.cpp:0", "From here on an iteration is one CUDA graph.")
        self._graphs[adds] = graph
        return graph


class TestPass:
    """The forward pass of a test net; on a GPU a CUDA graph, after the warm-up. Weights are those of the moment."""

    __test__ = False  # not a test, although its name starts like one

    def __init__(self, net: Net, recorder: Callable[[], Recorder] | None = None, own_process: bool = True) -> None:
        """``recorder`` and ``own_process`` as in `Pass`."""
        if recorder is None and net.layers[0].context.device.type == "cuda" and own_process and not net.traced:
            recorder = CudaGraph
        self._net = net
        self._direct = Direct(net) if net.traced else None
        self._make = None if uncapturable(net) else recorder
        self.forget()

    def forget(self) -> None:
        """Forget the recorded graph."""
        self._runs, self._graph = 0, None

    @torch.no_grad()
    def __call__(self, batch: int) -> Result:
        """Return the loss and the outputs of a batch; the outputs are overwritten by the next call."""
        if self._direct is not None:
            return self._direct.forward(batch, Trace(self._net, False) if debug.is_on(self._net) else None)
        if self._graph is None and self._make is not None:
            self._runs += 1
            if self._runs > WARM_UP:
                self._record(self._make(), batch)
        return self._net.forward(batch) if self._graph is None else self._graph.replay(batch)

    def _record(self, recorder: Recorder, batch: int) -> None:
        graph = Graph(self._net, recorder)
        if why := graph.record(lambda: self._net.forward(batch)):
            glog.info("solver.cpp:0", f"Test passes run without a CUDA graph: {why}")
            self._make = None
        else:
            self._graph = graph


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
