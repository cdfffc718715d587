"""The solver: Caffe's training loop and SGD with momentum (caffe/solver.cpp, caffe/solvers/sgd_solver.cpp)."""

from __future__ import annotations

import itertools
import math
import os
import signal
import time
from collections import deque
from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from transfer_caffe.engine import glog, snapshot, updates
from transfer_caffe.engine.net import Net, read_net
from transfer_caffe.errors import UserError
from transfer_caffe.proto import caffe_pb2, read_text
from transfer_caffe.proto.caffe_pb2 import NetParameter, NetState, SolverParameter
from transfer_caffe.upgrade import upgrade_solver


def read_solver(path: str) -> SolverParameter:
    """Read a solver prototxt; the nets it names are relative to the current folder, as with Caffe."""
    param = upgrade_solver(read_text(path, SolverParameter()), path)
    updates.check(param, path)
    for field in ("max_iter", "base_lr", "lr_policy"):
        if not param.HasField(field):
            raise UserError(f"{path}: gives no {field}")
    if param.lr_policy not in LR_POLICIES:
        raise UserError(f"{path}: unknown lr_policy {param.lr_policy!r}; known: {', '.join(LR_POLICIES)}")
    if param.lr_policy == "step" and param.stepsize < 1:
        raise UserError(f"{path}: lr_policy step needs a stepsize")
    if param.regularization_type not in ("L1", "L2"):
        raise UserError(f"{path}: unknown regularization_type {param.regularization_type!r}; known: L1, L2")
    if param.iter_size < 1 or param.average_loss < 1:
        raise UserError(f"{path}: iter_size and average_loss must be at least 1")
    return param


# SGDSolver::GetLearningRate; p is the SolverParameter, i the iteration
LR_POLICIES: dict[str, Callable[[SolverParameter, int], float]] = {
    "fixed": lambda p, i: p.base_lr,
    "step": lambda p, i: p.base_lr * p.gamma ** (i // p.stepsize),
    "exp": lambda p, i: p.base_lr * p.gamma**i,
    "inv": lambda p, i: p.base_lr * (1 + p.gamma * i) ** -p.power,
    "multistep": lambda p, i: p.base_lr * p.gamma ** current_step(p, i),
    "poly": lambda p, i: p.base_lr * (1 - i / p.max_iter) ** p.power,
    "sigmoid": lambda p, i: p.base_lr / (1 + math.exp(min(-p.gamma * (i - p.stepsize), 700))),  # exp(710) overflows
}


def current_step(param: SolverParameter, iteration: int) -> int:
    """How many steps the policies step and multistep have taken at this iteration."""
    if param.lr_policy == "step":
        return iteration // param.stepsize
    return sum(value <= iteration for value in param.stepvalue) if param.lr_policy == "multistep" else 0


class Signals:
    """What SIGINT and SIGHUP ask for: ``stop``, ``snapshot`` or nothing (caffe train --sigint_effect)."""

    def __init__(self, sigint: str = "stop", sighup: str = "snapshot") -> None:
        """Take over the two signals."""
        self._asked: set[str] = set()
        for number, effect in ((signal.SIGINT, sigint), (signal.SIGHUP, sighup)):
            if effect != "none":
                signal.signal(number, lambda *_, effect=effect: self._asked.add(effect))

    def stop_asked(self) -> bool:
        """Whether a stop was asked for and not taken yet."""
        return "stop" in self._asked

    def take(self) -> set[str]:
        """What was asked for since the last call."""
        asked, self._asked = self._asked, set()
        return asked


class Solver:
    """Trains a net, tests it, writes snapshots and Caffe's log."""

    def __init__(self, param: SolverParameter, device: torch.device, stages: Iterable[str] = (), level: int = 0):
        """Build the training net and the test nets."""
        self.param, self.device = param, device
        self.seed = param.random_seed if param.random_seed >= 0 else int.from_bytes(os.urandom(4), "little")
        if param.random_seed < 0:
            glog.info("common.cpp:0", f"random_seed is not set: taking {self.seed}; set it to resume exactly")
        glog.info("solver.cpp:87", "Creating training net.")
        net_param = self._net_param("train")
        state = NetState(phase=caffe_pb2.TRAIN, level=level, stage=list(stages))
        self.net = Net(net_param, _merged(state, net_param.state, param.train_state), self.seed, device)
        self.test_nets = [self._test_net(index) for index in range(len(param.test_iter))]
        if param.test_interval and not param.test_iter:
            raise UserError("solver: test_interval is given, but no test_iter")
        self.iteration = 0
        # all first history blobs, then all second ones: that is their order in a .solverstate
        self._rule, groups = updates.RULES[param.type]
        self.history = [torch.zeros_like(blob.data) for _ in range(groups) for blob in self.net.learnable]
        self._losses: deque[Tensor] = deque(maxlen=param.average_loss)
        if param.snapshot_prefix:
            snapshot.check_prefix(param.snapshot_prefix)
        elif param.snapshot or param.snapshot_after_train:
            raise UserError(
                "solver: gives no snapshot_prefix, so the weights would be lost; set it (or set "
                "snapshot: 0 and snapshot_after_train: false)"
            )

    def _net_param(self, kind: str, index: int = 0) -> NetParameter:
        param = self.param
        if kind == "train" and param.HasField("train_net"):
            return read_net(param.train_net)
        if kind == "train" and param.HasField("train_net_param"):
            return param.train_net_param
        if kind == "test" and index < len(param.test_net_param):
            return param.test_net_param[index]
        if kind == "test" and index < len(param.test_net_param) + len(param.test_net):
            return read_net(param.test_net[index - len(param.test_net_param)])
        if param.HasField("net_param"):
            return param.net_param
        if param.HasField("net"):
            return read_net(param.net)
        raise UserError(f'solver: gives no net to {kind}; set net: "train_val.prototxt"')

    def _test_net(self, index: int) -> Net:
        glog.info("solver.cpp:173", f"Creating test net (#{index})")
        net_param, states = self._net_param("test", index), self.param.test_state
        more = states[index] if index < len(states) else NetState()
        state = _merged(NetState(phase=caffe_pb2.TEST), net_param.state, more)
        return Net(net_param, state, self.seed, self.device, share=self.net)

    def rate(self) -> float:
        """The learning rate at this iteration."""
        return LR_POLICIES[self.param.lr_policy](self.param, self.iteration)

    def restore(self, path: str, state: snapshot.State) -> None:
        """Go on from a .solverstate."""
        glog.info("solver.cpp:0", f"Resuming from {path}")
        if state.seed is not None and state.seed != self.seed:
            glog.info("common.cpp:0", f"{path} was drawn with random_seed {state.seed}: the rest is with {self.seed}")
        snapshot.restore(path, state, self.net, self.history)
        self.iteration = state.iteration

    def save(self) -> None:
        """Write a snapshot of this iteration; a net that is not finite is never written."""
        for layer in self.net.layers:
            for index, blob in enumerate(layer.blobs):
                if not torch.isfinite(blob.data).all():
                    where = f"blob {index} is not finite after iteration {self.iteration}"
                    raise layer.error(f"{where}: training diverged; lower base_lr")
        step = current_step(self.param, self.iteration)
        snapshot.save(self.param, self.iteration, self.net, self.history, step, self.seed)

    def solve(self, signals: Signals) -> bool:
        """Train up to max_iter; False if a signal stopped it early (after a snapshot)."""
        param = self.param
        glog.info("solver.cpp:293", f"Solving {self.net.name}")
        glog.info("solver.cpp:294", f"Learning Rate Policy: {param.lr_policy}")
        stopped = self._steps(signals)
        if param.snapshot_after_train and (not param.snapshot or self.iteration % param.snapshot):
            self.save()
        if stopped:
            glog.info("solver.cpp:316", "Optimization stopped early.")
            return False
        if param.display and self.iteration % param.display == 0:
            with torch.no_grad():
                self._losses.append(self.net.forward(self.iteration * param.iter_size)[0])
            glog.info("solver.cpp:327", f"Iteration {self.iteration}, loss = {glog.number(self._smoothed_loss())}")
        if param.test_interval and self.iteration % param.test_interval == 0 and not self.test(signals):
            glog.info("solver.cpp:316", "Optimization stopped early.")
            return False
        glog.info("solver.cpp:332", "Optimization Done.")
        return True

    def _steps(self, signals: Signals) -> bool:
        param, shown, since = self.param, self.iteration, time.perf_counter()
        while self.iteration < param.max_iter:
            if (
                param.test_interval
                and self.iteration % param.test_interval == 0
                and (self.iteration > 0 or param.test_initialization)
                and not self.test(signals)
            ):
                return True
            show = bool(param.display) and self.iteration % param.display == 0
            outputs = self._forward_backward()
            if show:
                now = time.perf_counter()
                self._show(outputs, self.iteration - shown, now - since)
                shown, since = self.iteration, now
            self._update()
            self.iteration += 1
            asked = signals.take()
            if "snapshot" in asked or (param.snapshot and self.iteration % param.snapshot == 0):
                self.save()
            if "stop" in asked:
                return True
        return False

    def _forward_backward(self) -> dict[str, Tensor]:
        """One iteration's gradients, summed over iter_size batches."""
        total: Tensor | None = None
        outputs: dict[str, Tensor] = {}
        for blob in self.net.learnable:
            blob.data.grad = None
        for part in range(self.param.iter_size):
            loss, outputs = self.net.forward(self.iteration * self.param.iter_size + part)
            if loss.requires_grad:
                loss.backward()
            total = loss.detach() if total is None else total + loss.detach()
        assert total is not None
        self._losses.append(total / self.param.iter_size)
        # on a GPU a look at every loss would make the host wait each iteration; there it is looked at when shown
        if self.device.type == "cpu" and not math.isfinite(total.item()):
            self._diverged(total.item())
        return outputs

    def _diverged(self, loss: float) -> None:
        raise UserError(
            f"iteration {self.iteration}: the loss is {loss:g}: training diverged; lower base_lr "
            f"({self.param.base_lr:g}) or look at the data and the fillers"
        )

    def _smoothed_loss(self) -> float:
        loss = sum(float(value) for value in self._losses) / len(self._losses)
        if not math.isfinite(loss):
            self._diverged(loss)
        return loss

    @torch.no_grad()
    def _update(self) -> None:
        """SGDSolver::ApplyUpdate: clip, normalise, regularise, then the rule's update."""
        param, rate, count = self.param, self.rate(), len(self.net.learnable)
        # a blob that no loss depends on has no gradient, but decays all the same; what is frozen stays as it is
        places = [index for index, blob in enumerate(self.net.learnable) if blob.learned]
        blobs = [self.net.learnable[index] for index in places]
        gradients = [torch.zeros_like(blob.data) if blob.data.grad is None else blob.data.grad for blob in blobs]
        if param.clip_gradients >= 0:
            norm = math.sqrt(sum(float((gradient * gradient).sum()) for gradient in gradients))
            if norm > param.clip_gradients:
                gradients = [gradient.mul_(param.clip_gradients / norm) for gradient in gradients]
        if param.iter_size > 1:
            gradients = [gradient.mul_(1 / param.iter_size) for gradient in gradients]
        for index, blob, gradient in zip(places, blobs, gradients, strict=True):
            decay = param.weight_decay * blob.decay_mult
            if decay:
                gradient.add_(blob.data if param.regularization_type == "L2" else blob.data.sign(), alpha=decay)
            history = self.history[index::count]
            blob.data.sub_(self._rule(param, rate * blob.lr_mult, gradient, history, self.iteration))

    def _show(self, outputs: dict[str, Tensor], iterations: int, seconds: float) -> None:
        number = glog.number
        per_second = iterations / seconds if seconds else 0.0
        glog.info(
            "solver.cpp:239",
            f"Iteration {self.iteration} ({number(per_second)} iter/s, {number(seconds)}s/{self.param.display} iters), "
            f"loss = {number(self._smoothed_loss())}",
        )
        _show_outputs("solver.cpp:258", "    Train net output", self.net, {n: v.detach() for n, v in outputs.items()})
        glog.info("sgd_solver.cpp:112", f"Iteration {self.iteration}, lr = {number(self.rate())}")

    def test(self, signals: Signals) -> bool:
        """Test all test nets, each on the test_iter batches after those of the test before (Solver::TestAll).

        False if a stop was asked for meanwhile: tests can be long, and one that was cut short reports nothing.
        """
        interval = self.param.test_interval
        passes = self.iteration // interval - (0 if self.param.test_initialization else 1)
        for index, (net, count) in enumerate(zip(self.test_nets, self.param.test_iter, strict=True)):
            glog.info("solver.cpp:347", f"Iteration {self.iteration}, Testing net (#{index})")
            batches = range(passes * count, (passes + 1) * count)
            means = test_pass(net, itertools.takewhile(lambda _: not signals.stop_asked(), batches))
            if signals.stop_asked():
                return False
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
    net: Net, batches: Iterable[int], each: Callable[[int, Tensor, dict[str, Tensor]], None] | None = None
) -> dict[str, Tensor]:
    """Mean of each output blob of a net over batches; ``each`` is told every batch's loss and outputs."""
    sums: dict[str, Tensor] = {}
    count = 0
    for count, batch in enumerate(batches, 1):
        loss, outputs = net.forward(batch)
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
