"""pycaffe's solvers: the engine's solver, whose nets are `caffe.Net` objects (python/caffe/_caffe.cpp)."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor

from transfer_caffe.caffe import mode
from transfer_caffe.caffe.errors import CaffeError, raises_caffe_errors, require_readable
from transfer_caffe.caffe.net import Net, engine_net
from transfer_caffe.engine import debug, glog
from transfer_caffe.engine.iteration.direct import Result
from transfer_caffe.engine.iteration.graph import Pass, TestPass
from transfer_caffe.engine.layers.views import Vector
from transfer_caffe.engine.net import Net as EngineNet
from transfer_caffe.engine.solver import rates, settings, solverstate
from transfer_caffe.engine.solver.solver import Signals
from transfer_caffe.engine.solver.solver import Solver as EngineSolver
from transfer_caffe.formats.proto.caffe_pb2 import NetParameter, NetState, SolverParameter

NO_SIGNALS = ("none", "none")


class _Passes:
    """The passes of a `Net` as the engine's solver calls them."""

    def __init__(self, net: Net) -> None:
        self._net = net

    def forward(self, batch: int) -> Result:
        """Run forward on the net's next batch, whatever ``batch`` is, and return loss and outputs."""
        net, last = self._net, len(self._net._runs) - 1
        net._run_forward(0, last)
        outputs = {net._blob_names[index]: net._blobs[index].read().detach() for index in net._outputs}
        return net._loss(0, last), outputs

    def loss_weight(self, blob: str) -> float:
        """Return the loss weight of an output."""
        return self._net._engine.loss_weight(blob)

    def __call__(self, batch: int) -> Result:
        """Run both passes and store the gradients in the engine's blobs."""
        result, net = self.forward(batch), self._net
        net._run_backward(len(net._runs) - 1, 0)
        if debug.is_on(net._engine):
            blobs = [net._roots[id(blob)] for blob in net._engine.learnable]
            debug.log_params([blob.read() for blob in blobs], [blob.read_diff() for blob in blobs])
        self.lend()
        return result

    add = __call__  # gradients always add up; the solver clears them first

    def forget(self) -> None:
        """Do nothing: there are no recorded graphs."""

    def lend(self) -> None:
        """Give the engine's learnable blobs their gradients, as the memory of `diff`."""
        for blob in self._net._engine.learnable:
            if blob.data.requires_grad:
                shape = tuple(blob.data.shape)
                blob.data.grad = self._net._roots[id(blob)]._diff.own(shape)


class _TestPass(_Passes):
    """The forward pass of a test net as the engine's solver calls it."""

    @torch.no_grad()
    def __call__(self, batch: int) -> Result:
        """Run forward on the net's next batch, and return loss and outputs."""
        return self.forward(batch)


class _Engine(EngineSolver):
    """The engine's solver on nets that run layer by layer."""

    _may_update_on_device = False  # callbacks and scripts see the gradients before the update

    def __init__(self, param: SolverParameter) -> None:
        self.nets: dict[int, Net] = {}
        self.callbacks: list[tuple[Callable[[], object], Callable[[], object]]] = []
        super().__init__(param, mode.device(), level=param.train_state.level)

    def _build_net(self, param: NetParameter, state: NetState, share: EngineNet | None = None) -> EngineNet:
        net = engine_net(param, state, self.seed, self.device, share)
        self.nets[id(net)] = Net.of(net, self.nets[id(share)] if share else None)
        return net

    def _build_pass(self, own_process: bool) -> Pass:
        return _Passes(self.nets[id(self.net)])  # pyright: ignore[reportReturnType] - it has the same methods

    @torch.no_grad()
    def _loss_of(self, batch: int) -> Tensor:
        return _Passes(self.nets[id(self.net)]).forward(batch)[0]

    def _forward_backward(self) -> dict[str, Tensor]:
        for on_start, _ in self.callbacks:
            on_start()
        with torch.no_grad():
            self.nets[id(self.net)].clear_param_diffs()
            outputs = super()._forward_backward()
        for _, on_gradients_ready in self.callbacks:
            on_gradients_ready()
        return outputs

    @torch.no_grad()
    def _update(self, show: bool) -> dict[int, Tensor]:
        _Passes(self.nets[id(self.net)]).lend()
        done = super()._update(show)
        # Caffe leaves in diff what it has subtracted from the weights
        for index, values in done.items():
            blob = self.net.learnable[index]
            self.nets[id(self.net)]._roots[id(blob)]._diff.write(values, owned=False)
        return done

    def _build_test_pass(self, net: EngineNet, own_process: bool) -> TestPass:
        return _TestPass(self.nets[id(net)])  # pyright: ignore[reportReturnType] - it has the same methods


class Solver:
    """A solver of a prototxt. ``net`` is the training net; ``test_nets`` are the test nets, which share its weights."""

    type: ClassVar[str] = ""
    """The solver type, whatever the prototxt names; empty for the prototxt's."""

    @raises_caffe_errors
    def __init__(self, solver_file: str | os.PathLike[str]) -> None:
        """Raise RuntimeError for files that cannot be read and settings that Caffe rejects."""
        param = settings.read_solver(require_readable(solver_file))
        if self.type and param.type != self.type:
            param.type = self.type
            settings.updates.check(param, os.fspath(solver_file))
        if param.random_seed < 0 and mode.is_seeded():
            param.random_seed = mode.next_seed() % 2**31
        self._engine = _Engine(param)
        self.net = self._engine.nets[id(self._engine.net)]
        self.test_nets = Vector(self._engine.nets[id(net)] for net in self._engine.test_nets)

    @property
    def iter(self) -> int:
        """The number of finished iterations."""
        return self._engine.iteration

    @property
    def param(self) -> SolverParameter:
        """The settings; a new base_lr counts from the next iteration on."""
        return self._engine.param

    @property
    def lr(self) -> float:
        """The learning rate of the next iteration."""
        engine = self._engine
        return rates.rate(engine.param, engine.iteration, rates.next_step(engine.param, engine.iteration, engine._step))

    @raises_caffe_errors
    def step(self, iterations: int) -> None:
        """Train for some iterations, with the tests, snapshots and log lines that are due (Solver::Step)."""
        with self.net._computing():
            self._engine._steps(Signals(*NO_SIGNALS), self._engine.iteration + int(iterations))

    @raises_caffe_errors
    def solve(self, resume_file: str | os.PathLike[str] | None = None) -> None:
        """Train up to max_iter, from a .solverstate if one is given (Solver::Solve)."""
        if resume_file:
            self.restore(resume_file)
        with self.net._computing():
            self._engine.solve(Signals(*NO_SIGNALS))

    @raises_caffe_errors
    def restore(self, path: str | os.PathLike[str]) -> None:
        """Resume from a .solverstate: weights, history, iteration, and the position in the data."""
        path = require_readable(path)
        self.net._send_params()
        self._engine.restore(path, solverstate.read_state(path))
        for run in self.net._runs:
            run.count = self._engine.iteration * self.param.iter_size

    @raises_caffe_errors
    def snapshot(self) -> None:
        """Write PREFIX_iter_N.caffemodel and .solverstate (Solver::Snapshot)."""
        solverstate.check_prefix(self.param.snapshot_prefix)
        self.net._send_params()
        self._engine.save()

    @raises_caffe_errors
    def apply_update(self) -> None:
        """Update the weights with the gradients in their `diff` (Solver::ApplyUpdate)."""
        self._engine._update(show=False)
        self._engine.iteration += 1

    def share_weights(self, net: Net) -> None:
        """Let another net use the weights of the training net."""
        net.share_with(self.net)

    def add_callback(
        self, on_start: Callable[[], object], on_gradients_ready: Callable[[], object] | None = None
    ) -> None:
        """Call two functions in each iteration: before its passes, and before its update."""
        if on_gradients_ready is None:
            raise CaffeError("add_callback takes two functions: on_start and on_gradients_ready")
        self._engine.callbacks.append((on_start, on_gradients_ready))


class SGDSolver(Solver):
    """Stochastic gradient descent with momentum."""

    type = "SGD"


class NesterovSolver(SGDSolver):
    """SGD with Nesterov's momentum."""

    type = "Nesterov"


class AdaGradSolver(SGDSolver):
    """AdaGrad."""

    type = "AdaGrad"


class RMSPropSolver(SGDSolver):
    """RMSProp."""

    type = "RMSProp"


class AdaDeltaSolver(SGDSolver):
    """AdaDelta."""

    type = "AdaDelta"


class AdamSolver(SGDSolver):
    """Adam."""

    type = "Adam"


@raises_caffe_errors
def get_solver(solver_file: str | os.PathLike[str]) -> Solver:
    """Return the solver of the type that a prototxt names."""
    kinds = (SGDSolver, NesterovSolver, AdaGradSolver, RMSPropSolver, AdaDeltaSolver, AdamSolver)
    wanted = settings.read_solver(require_readable(solver_file)).type
    glog.info("solver_factory.hpp:0", f"Creating a solver of type {wanted}")
    return next(kind for kind in kinds if kind.type == wanted)(solver_file)
