"""The solver: Caffe's training loop and updates (caffe/solver.cpp, caffe/solvers/sgd_solver.cpp)."""

from __future__ import annotations

import itertools
import math
import os
import signal
import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from transfer_caffe.engine import glog
from transfer_caffe.engine.iteration import ways
from transfer_caffe.engine.iteration.direct import Result
from transfer_caffe.engine.iteration.graph import Pass, TestPass
from transfer_caffe.engine.net import Net
from transfer_caffe.engine.solver import rates, settings, solverstate, updates
from transfer_caffe.engine.solver.beside import Beside, HostCopy
from transfer_caffe.engine.solver.device_update import DeviceUpdate, blobs_with_copies
from transfer_caffe.engine.weights import owned_weights
from transfer_caffe.formats.proto import caffe_pb2, to_text
from transfer_caffe.formats.proto.caffe_pb2 import NetParameter, NetState, SolverParameter
from transfer_caffe.utils.errors import UserError


class Signals:
    """Record what SIGINT and SIGHUP request: ``stop``, ``snapshot`` or nothing (caffe train --sigint_effect)."""

    def __init__(self, sigint: str = "stop", sighup: str = "snapshot") -> None:
        """Install handlers for the two signals, except where the effect is ``none``."""
        self._asked: set[str] = set()
        for number, effect in ((signal.SIGINT, sigint), (signal.SIGHUP, sighup)):
            if effect != "none":
                signal.signal(number, lambda *_, effect=effect: self._asked.add(effect))

    def stop_asked(self) -> bool:
        """Return whether a stop was requested that `take` has not returned yet."""
        return "stop" in self._asked

    def take(self) -> set[str]:
        """Return what was requested since the last call."""
        asked, self._asked = self._asked, set()
        return asked


class Solver:
    """Train and test a net. `solve` is `caffe train`, with its log and snapshots; `step` only trains.

    ``net`` is the training net, ``test_nets`` are the test nets, ``iteration`` is the number of finished iterations.
    """

    _may_update_on_device: ClassVar[bool] = True

    @classmethod
    def load(
        cls, path: str | os.PathLike[str], weights: str | os.PathLike[str] | None = None, device: str = "cpu"
    ) -> Solver:
        """Build the solver of a prototxt and load ``weights``, a .caffemodel, if given.

        Paths in the prototxts are relative to the current folder, as with Caffe. Raise UserError for files or settings
        that cannot be used.
        """
        solver = cls(settings.read_solver(os.fspath(path)), torch.device(device))
        if weights is not None:
            solver.finetune(os.fspath(weights))
        return solver

    def __init__(
        self, param: SolverParameter, device: torch.device, stages: Iterable[str] = (), level: int = 0,
        dtype: torch.dtype = torch.float32, own_process: bool = False,
    ) -> None:  # fmt: skip
        """Build the training net and the test nets; they compute in ``dtype`` (see `engine.precision`).

        ``own_process`` says that this process only trains, so that the number of PyTorch's threads may be changed and
        processes may be forked (see `iteration.threads`).
        """
        self.param, self.device, self.dtype = param, device, dtype
        self.seed = param.random_seed if param.random_seed >= 0 else int.from_bytes(os.urandom(4), "little")
        if param.random_seed < 0:
            glog.info("common.cpp:0", f"random_seed is not set: taking {self.seed}; set it to resume exactly")
        glog.info("solver.cpp:45", f"Initializing solver from parameters:\n{to_text(param).rstrip()}")
        glog.info("solver.cpp:102", "Creating training net.")
        net_param = settings.train_net(param)
        # as in `caffe train`: --level replaces train_state's level, even if it is not given; --stage adds to its stages
        more = NetState()
        more.CopyFrom(param.train_state)
        more.level = level
        more.stage.extend(stages)
        state = _merged(NetState(phase=caffe_pb2.TRAIN), net_param.state, more)
        self.net = self._build_net(net_param, state)
        self.test_nets = [self._test_net(index) for index in range(len(param.test_iter))]
        self.iteration = 0
        self._ways = ways.choose(self.net) if own_process else {}
        ways.use([self.net, *self.test_nets], self._ways)
        self._on_device = self._may_update_on_device and not self.net.traced and DeviceUpdate.fits(param, device)
        """Whether the device updates the weights without the host; with iter_size 1 the passes contain the update."""
        self._device_update: DeviceUpdate | None = None
        self._pass = self._build_pass(own_process)
        self._test_passes = [self._build_test_pass(net, own_process) for net in self.test_nets]
        self._step = 0
        """Number of steps that lr_policy step or multistep had taken at the last iteration."""
        self._idle: set[int] | None = None
        # first history blobs of all weights, then second history blobs of all weights, as in a .solverstate
        groups = updates.RULES[param.type][1]
        self.history = [torch.zeros_like(blob.data) for _ in range(groups) for blob in self.net.learnable]
        self._beside = Beside() if own_process and device.type == "cuda" else None
        """Writes snapshots in a thread. On a CPU it would only take time from training."""
        self._copy: HostCopy | None = None
        self._losses: deque[Tensor] = deque(maxlen=param.average_loss)

    def _test_net(self, index: int) -> Net:
        glog.info("solver.cpp:190", f"Creating test net (#{index})")
        net_param, more = settings.test_net(self.param, index)
        state = _merged(NetState(phase=caffe_pb2.TEST), net_param.state, more)
        return self._build_net(net_param, state, self.net)

    def _build_net(self, param: NetParameter, state: NetState, share: Net | None = None) -> Net:
        if param.debug_info != self.param.debug_info:  # the solver's counts, as in Caffe
            given, param = param, NetParameter()
            param.CopyFrom(given)
            param.debug_info = self.param.debug_info
        return Net(param, state, self.seed, self.device, share, self.dtype)

    def _build_pass(self, own_process: bool) -> Pass:
        update = self._update_on_device if self._on_device and self.param.iter_size == 1 else None
        return Pass(self.net, own_process=own_process, update=update)

    def _build_test_pass(self, net: Net, own_process: bool) -> TestPass:
        return TestPass(net, own_process=own_process)

    def finetune(self, path: str) -> None:
        """Load the weights of a .caffemodel or .caffemodel.h5, also into layers that only a test net has."""
        glog.info("solver.cpp:72", f"Finetuning from {path}")
        copied = self.net.copy_from(path)
        glog.info("net.cpp:760", f"Copied the weights of {' '.join(copied)}")
        shared = {layer.name for layer in self.net.layers}
        for net in self.test_nets:
            if any(layer.blobs and layer.name not in shared for layer in net.layers):
                net.copy_from(path)

    def restore(self, path: str, state: solverstate.State) -> None:
        """Resume from a .solverstate."""
        glog.info("solver.cpp:0", f"Resuming from {path}")
        if state.seed is not None and state.seed != self.seed:
            glog.info("common.cpp:0", f"{path} was trained with random_seed {state.seed}: resuming with {self.seed}")
        solverstate.restore(path, state, self.net, self.history)
        self._ways = ways.of_text(state.convolutions, path)  # the run continues as it was started
        ways.use([self.net, *self.test_nets], self._ways)
        for each in (self._pass, *self._test_passes):
            each.forget()  # recorded graphs compute in the ways of before
        self.iteration, self._step = state.iteration, state.step
        self._idle = self._device_update = None
        for blob in self.net.learnable:
            blob.low = None  # a copy of the weights of before

    def save(self) -> None:
        """Write a snapshot of this iteration. Raise UserError, and write nothing, if any weight is not finite.

        In a process that only trains, on a GPU, a thread writes the files; `finish_snapshots` waits for it.
        """
        self._require_finite()
        state = (self.param, self.iteration, self.net, self.history, self._step, self.seed, ways.to_text(self._ways))
        if self._beside is None:
            solverstate.save(*state)
            return
        self._beside.finish()  # the memory of the copy is in use until then
        tensors = [*(blob.data for layer in self.net.layers for blob in layer.blobs), *self.history]
        self._copy = copy = self._copy or HostCopy(tensors)
        copy.take(tensors)

        def write() -> None:
            copy.wait()
            solverstate.save(*state, array=copy.array, beside=True)

        self._beside.start(write)

    def finish_snapshots(self) -> None:
        """Wait until all snapshots are written. Raise the error of one that could not be written."""
        if self._beside is not None:
            self._beside.finish()

    def _require_finite(self) -> None:
        blobs = [(layer, index, blob) for layer in self.net.layers for index, blob in enumerate(layer.blobs)]
        finite = [torch.isfinite(blob.data).all() for _, _, blob in blobs]
        if not finite or bool(torch.stack(finite).all()):  # one wait for a GPU
            return
        layer, index, _ = next(each for each, good in zip(blobs, finite, strict=True) if not good)
        where = f"blob {index} is not finite after iteration {self.iteration}"
        raise layer.error(f"{where}: training diverged; lower base_lr")

    def solve(self, signals: Signals | None = None) -> bool:
        """Train up to max_iter with tests and snapshots; return False if a signal stopped it (after a snapshot)."""
        try:
            return self._solve(signals)
        finally:
            self.finish_snapshots()

    def _solve(self, signals: Signals | None) -> bool:
        param, signals = self.param, signals or Signals("none", "none")
        if param.snapshot or param.snapshot_after_train:
            solverstate.check_prefix(param.snapshot_prefix)
            if param.snapshot_format == SolverParameter.HDF5:
                owned_weights(self.net.layers)  # raises UserError for a net that HDF5 cannot hold
        glog.info("solver.cpp:289", f"Solving {self.net.name}")
        glog.info("solver.cpp:290", f"Learning Rate Policy: {param.lr_policy}")
        stopped = self._steps(signals, param.max_iter)
        if param.snapshot_after_train and (not param.snapshot or self.iteration % param.snapshot):
            self.save()
        self.finish_snapshots()
        if stopped:
            glog.info("solver.cpp:316", "Optimization stopped early.")
            return False
        if param.display and self.iteration % param.display == 0:
            self._losses.append(self._loss_of(self.iteration * param.iter_size))
            glog.info("solver.cpp:327", f"Iteration {self.iteration}, loss = {glog.number(self._smoothed_loss())}")
        if param.test_interval and self.iteration % param.test_interval == 0 and not self.test(signals):
            glog.info("solver.cpp:316", "Optimization stopped early.")
            return False
        glog.info("solver.cpp:332", "Optimization Done.")
        return True

    def step(self, iterations: int = 1) -> float:
        """Train for ``iterations`` iterations, without tests, snapshots or log, and return the loss of the last one.

        Raise UserError if the loss is not finite.
        """
        if iterations < 1:
            raise ValueError(f"step: iterations must be at least 1, not {iterations}")
        for _ in range(iterations):
            self._forward_backward()
            self._update(show=False)
            self.iteration += 1
        loss = float(self._losses[-1])
        if not math.isfinite(loss):
            self._diverged(loss)
        return loss

    def score(self, index: int = 0) -> dict[str, np.ndarray]:
        """Run test net ``index`` over its test_iter batches, from the first, and return the mean of each output."""
        self._renew_copies()
        means = test_pass(self._test_passes[index], range(self.param.test_iter[index]))
        return {name: value.cpu().numpy() for name, value in means.items()}

    @torch.no_grad()
    def _loss_of(self, batch: int) -> Tensor:
        return self._pass.forward(batch)[0]

    def _steps(self, signals: Signals, until: int) -> bool:
        """Train until iteration ``until``, with tests and snapshots; return whether a signal stopped it."""
        param, shown, since = self.param, self.iteration, time.perf_counter()
        while self.iteration < until:
            if (
                param.test_interval
                and self.iteration % param.test_interval == 0
                and (self.iteration > 0 or param.test_initialization)
                and not self.test(signals)
            ):
                return True
            show = bool(param.display) and self.iteration % param.display == 0
            self.net.debug_info = show and param.debug_info
            outputs = self._forward_backward()
            if show:
                now = time.perf_counter()
                self._show(outputs, self.iteration - shown, now - since)
                shown, since = self.iteration, now
            self._update(show)
            self.iteration += 1
            asked = signals.take()
            if "snapshot" in asked or (param.snapshot and self.iteration % param.snapshot == 0):
                self.save()
            if "stop" in asked:
                return True
        return False

    def _forward_backward(self) -> dict[str, Tensor]:
        """Compute one iteration's gradients, summed over iter_size batches, and return the last batch's outputs."""
        parts = self.param.iter_size
        if self._on_device:
            self._set_device_rate()
        if parts == 1:
            loss, outputs = self._pass(self.iteration)
        else:
            loss, outputs = self._pass(self.iteration * parts)
            for part in range(1, parts):
                each, outputs = self._pass.add(self.iteration * parts + part)
                loss = loss + each
        self._losses.append(loss / parts)
        # on a GPU, reading the loss makes the host wait: there it is checked only when it is displayed
        if self.device.type == "cpu" and not math.isfinite(loss.item()):
            self._diverged(loss.item())
        return outputs

    def _diverged(self, loss: float) -> None:
        raise UserError(
            f"iteration {self.iteration}: the loss is {loss:g}: training diverged; lower base_lr "
            f"({self.param.base_lr:g}) or check the data and the fillers"
        )

    def _smoothed_loss(self) -> float:
        loss = sum(float(value) for value in self._losses) / len(self._losses)
        if not math.isfinite(loss):
            self._diverged(loss)
        return loss

    @torch.no_grad()
    def _update(self, show: bool) -> dict[int, Tensor]:
        """Apply one update as SGDSolver::ApplyUpdate does: clip, normalise, regularise, then the solver's rule.

        Return what was subtracted from the learnable blobs, by index; the tensors may be those of the history.
        """
        param, count = self.param, len(self.net.learnable)
        rate = self._rate(show)
        if self._on_device:
            if param.iter_size > 1:
                self._update_on_device()
            if show and param.clip_gradients >= 0 and self._device_update is not None:
                self._log_clipping(float(self._device_update.norm))
            return {}
        if self._idle is None:
            self._idle = self._find_idle()
        places = [index for index in range(count) if index not in self._idle]
        blobs = [self.net.learnable[index] for index in places]
        # a blob that is frozen, or on which no loss depends, has no gradient, but weight decay still applies to it
        gradients = [torch.zeros_like(blob.data) if blob.data.grad is None else blob.data.grad for blob in blobs]
        if param.clip_gradients >= 0:
            self._clip(gradients)
        if param.iter_size > 1:
            for gradient in gradients:
                gradient.mul_(1 / param.iter_size)
        decays = [param.weight_decay * blob.decay_mult for blob in blobs]
        if param.regularization_type == "L1":
            for blob, gradient, decay in zip(blobs, gradients, decays, strict=True):
                gradient.add_(blob.data.sign(), alpha=decay)
            decays = [0.0] * len(blobs)
        rated = [rate * blob.lr_mult for blob in blobs]
        histories = [self.history[index::count] for index in places]
        data = [blob.values for blob in blobs]
        done = updates.update(param, data, gradients, histories, rated, decays, self.iteration)
        return dict(zip(places, done, strict=True))

    def _set_device_rate(self) -> None:
        """Give this iteration's learning rate to the device, before the passes, which may contain the update."""
        if self._device_update is None:
            # a recorded graph would contain an older update; one of a test pass would convert the weights each time
            for each in (self._pass, *self._test_passes):
                each.forget()
            count = len(self.net.learnable)
            low = blobs_with_copies(self.net.layers, self.dtype) if self.param.iter_size == 1 else []
            self._device_update = DeviceUpdate(self.param, self.net.learnable, self.history[:count], low, self.dtype)
        step = rates.next_step(self.param, self.iteration, self._step)
        self._device_update.set_rate(rates.rate(self.param, self.iteration, step))

    def _renew_copies(self) -> None:
        """Renew the weights' copies in the net's precision before a test, which may follow a change of the weights."""
        if self._device_update is not None:
            self._device_update.renew_copies()

    def _update_on_device(self) -> None:
        assert self._device_update is not None
        self._device_update()

    def _rate(self, show: bool) -> float:
        """Return this iteration's learning rate."""
        step = rates.next_step(self.param, self.iteration, self._step)
        if step != self._step and self.param.lr_policy == "multistep":
            glog.info("sgd_solver.cpp:50", f"MultiStep Status: Iteration {self.iteration}, step = {step}")
        self._step = step
        rate = rates.rate(self.param, self.iteration, step)
        if show:
            glog.info("sgd_solver.cpp:112", f"Iteration {self.iteration}, lr = {glog.number(rate)}")
        return rate

    def _find_idle(self) -> set[int]:
        """Return the indices of blobs whose weights and history no update changes: most of the frozen ones."""
        count = len(self.net.learnable)
        return {
            index
            for index, blob in enumerate(self.net.learnable)
            if not blob.data.requires_grad
            and not self.param.weight_decay * blob.decay_mult
            and not any(bool(history.any()) for history in self.history[index::count])
        }

    def _clip(self, gradients: list[Tensor]) -> None:
        """Clip the gradients by their L2 norm over all blobs, as SGDSolver::ClipGradients does."""
        norm = math.sqrt(sum(float((gradient * gradient).sum()) for gradient in gradients))
        limit = self.param.clip_gradients
        if norm <= limit:
            return
        for gradient in gradients:
            gradient.mul_(limit / norm)
        self._log_clipping(norm)

    def _log_clipping(self, norm: float) -> None:
        """Log that gradients of this norm were clipped, if they were. On a GPU, only displayed iterations call this."""
        limit, number = self.param.clip_gradients, glog.number
        if norm <= limit:
            return
        glog.info(
            "sgd_solver.cpp:99",
            f"Gradient clipping: scaling down gradients (L2 norm {number(norm)} > {number(limit)}) "
            f"by scale factor {number(limit / norm)}",
        )

    def _show(self, outputs: dict[str, Tensor], iterations: int, seconds: float) -> None:
        number = glog.number
        per_second = iterations / seconds if seconds else 0.0
        glog.info(
            "solver.cpp:239",
            f"Iteration {self.iteration} ({number(per_second)} iter/s, {number(seconds)}s/{self.param.display} iters), "
            f"loss = {number(self._smoothed_loss())}",
        )
        _show_outputs("solver.cpp:258", "    Train net output", self.net, {n: v.detach() for n, v in outputs.items()})

    def test(self, signals: Signals) -> bool:
        """Test all test nets, each on the test_iter batches that follow those of the previous test (Solver::TestAll).

        Return False if a stop was requested during the test; an interrupted test reports nothing.
        """
        interval = self.param.test_interval
        passes = self.iteration // interval - (0 if self.param.test_initialization else 1)
        self._renew_copies()
        for index, (net, count) in enumerate(zip(self.test_nets, self.param.test_iter, strict=True)):
            glog.info("solver.cpp:347", f"Iteration {self.iteration}, Testing net (#{index})")
            if not self._test(net, self._test_passes[index], range(passes * count, (passes + 1) * count), signals):
                return False
        return True

    def _test(self, net: Net, run: TestPass, batches: Iterable[int], signals: Signals) -> bool:
        losses: list[Tensor] = []
        net.debug_info = self.param.debug_info

        def each(_: int, loss: Tensor, __: dict[str, Tensor]) -> None:
            if self.param.test_compute_loss:
                losses.append(loss)  # converted to a number later: that would make the host wait for a GPU

        means = test_pass(run, itertools.takewhile(lambda _: not signals.stop_asked(), batches), each)
        if signals.stop_asked():
            return False
        if losses:
            glog.info("solver.cpp:401", f"Test loss: {glog.number(sum(map(float, losses)) / len(losses))}")
        _show_outputs("solver.cpp:414", "    Test net output", net, means)
        if not all(bool(torch.isfinite(value).all()) for value in means.values()):
            raise UserError(
                f"iteration {self.iteration}: the test outputs are not finite: training diverged; "
                f"lower base_lr ({self.param.base_lr:g})"
            )
        return True


def _merged(state: NetState, *more: NetState) -> NetState:
    for other in more:
        state.MergeFrom(other)
    return state


@torch.no_grad()
def test_pass(
    run: Callable[[int], Result], batches: Iterable[int],
    each: Callable[[int, Tensor, dict[str, Tensor]], None] | None = None,
) -> dict[str, Tensor]:  # fmt: skip
    """Return the mean of each output blob over batches; call ``each`` with every batch's loss and outputs.

    ``run`` computes a batch's loss and outputs (`TestPass`).
    """
    sums: dict[str, Tensor] = {}
    count = 0
    for count, batch in enumerate(batches, 1):
        loss, outputs = run(batch)
        if each:
            each(count - 1, loss, outputs)
        sums = {name: sums[name] + value if sums else value.clone() for name, value in outputs.items()}
    return {name: value / count for name, value in sums.items()}


def _show_outputs(place: str, what: str, net: Net, outputs: dict[str, Tensor]) -> None:
    index = 0
    for name, values in outputs.items():
        weight = net.loss_weight(name)
        for value in values.reshape(-1).tolist():
            tail = f" (* {glog.number(weight)} = {glog.number(weight * value)} loss)" if weight else ""
            glog.info(place, f"{what} #{index}: {name} = {glog.number(value)}{tail}")
            index += 1
