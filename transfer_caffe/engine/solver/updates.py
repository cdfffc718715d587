"""The update rules of Caffe's solvers (caffe/solvers/*.cpp).

A rule takes the gradient of one blob, already clipped, divided by iter_size and with weight decay added. It updates the
blob's history and returns the value to subtract from the weights. ``rate`` is the learning rate times the blob's
lr_mult.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.optim.sgd import sgd as torch_sgd

from transfer_caffe.formats.proto.caffe_pb2 import SolverParameter
from transfer_caffe.utils.errors import UserError

Rule = Callable[[SolverParameter, float, Tensor, list[Tensor], int], Tensor]


def sgd(param: SolverParameter, rate: float, gradient: Tensor, history: list[Tensor], iteration: int) -> Tensor:
    """Return the SGD update with momentum: history = momentum * history + rate * gradient."""
    return history[0].mul_(param.momentum).add_(gradient, alpha=rate)


def nesterov(param: SolverParameter, rate: float, gradient: Tensor, history: list[Tensor], iteration: int) -> Tensor:
    """Return the update with Nesterov momentum: (1 + momentum) * new history - momentum * old history."""
    before = history[0].clone()
    return sgd(param, rate, gradient, history, iteration).mul(1 + param.momentum).sub_(before, alpha=param.momentum)


def adagrad(param: SolverParameter, rate: float, gradient: Tensor, history: list[Tensor], iteration: int) -> Tensor:
    """Return the gradient divided by the root of the sum of all squared gradients so far."""
    history[0].addcmul_(gradient, gradient)
    return gradient.div_(history[0].sqrt().add_(param.delta)).mul_(rate)


def rmsprop(param: SolverParameter, rate: float, gradient: Tensor, history: list[Tensor], iteration: int) -> Tensor:
    """Return the gradient divided by the root of the moving average of squared gradients (decay: rms_decay)."""
    history[0].mul_(param.rms_decay).addcmul_(gradient, gradient, value=1 - param.rms_decay)
    return gradient.div_(history[0].sqrt().add_(param.delta)).mul_(rate)


def adadelta(param: SolverParameter, rate: float, gradient: Tensor, history: list[Tensor], iteration: int) -> Tensor:
    """Return the gradient times the root of the ratio of two moving averages (decay: momentum).

    They are those of the squared updates and of the squared gradients.
    """
    squares, updates = history
    squares.mul_(param.momentum).addcmul_(gradient, gradient, value=1 - param.momentum)
    gradient.mul_(((updates + param.delta) / (squares + param.delta)).sqrt_())
    updates.mul_(param.momentum).addcmul_(gradient, gradient, value=1 - param.momentum)
    return gradient.mul_(rate)


def adam(param: SolverParameter, rate: float, gradient: Tensor, history: list[Tensor], iteration: int) -> Tensor:
    """Return the bias-corrected moving average of gradients divided by the root of that of squared gradients."""
    first, second = history
    first.mul_(param.momentum).add_(gradient, alpha=1 - param.momentum)
    second.mul_(param.momentum2).addcmul_(gradient, gradient, value=1 - param.momentum2)
    step = iteration + 1
    correction = math.sqrt(1 - param.momentum2**step) / (1 - param.momentum**step)
    return first.div(second.sqrt().add_(param.delta)).mul_(rate * correction)


RULES: dict[str, tuple[Rule, int]] = {
    "SGD": (sgd, 1),
    "Nesterov": (nesterov, 1),
    "AdaGrad": (adagrad, 1),
    "RMSProp": (rmsprop, 1),
    "AdaDelta": (adadelta, 2),
    "Adam": (adam, 2),
}
"""For each solver ``type``: its rule, and the number of history blobs that it keeps per blob."""


def update(
    param: SolverParameter, weights: Sequence[Tensor], gradients: Sequence[Tensor], histories: Sequence[list[Tensor]],
    rates: Sequence[float], decays: Sequence[float], iteration: int,
) -> list[Tensor]:  # fmt: skip
    """Update weights and histories with this iteration's gradients, which are overwritten.

    ``rates`` are learning rates times lr_mult; ``decays`` are L2 weight decays times decay_mult. Return what was
    subtracted from the weights.
    """
    if param.type == "SGD" and param.momentum:
        _sgd_at_once(param.momentum, weights, gradients, histories, rates, decays)
        return [history[0] for history in histories]
    done = []
    rule = RULES[param.type][0]
    for weight, gradient, history, rate, decay in zip(weights, gradients, histories, rates, decays, strict=True):
        if decay:
            gradient.add_(weight, alpha=decay)
        done.append(rule(param, rate, gradient, history, iteration))
        weight.sub_(done[-1])
    return done


SMALLEST_RATE = 1 / float(torch.finfo(torch.float32).max)


def _sgd_at_once(
    momentum: float, weights: Sequence[Tensor], gradients: Sequence[Tensor], histories: Sequence[list[Tensor]],
    rates: Sequence[float], decays: Sequence[float],
) -> None:  # fmt: skip
    """Apply `sgd` with weight decay in one pass over memory, for all blobs with the same rate and decay.

    PyTorch's rule is history = momentum * history + gradient / scale + decay * weight, weight -= lr * history. With
    lr 1, scale 1 / rate and decay times rate, this is Caffe's rule. It takes half the time of four separate passes,
    which saves 1% of an iteration of CaffeNet or of `mini` (batch 64, CPU).
    """
    groups: dict[tuple[float, float], list[int]] = {}
    for index, pair in enumerate(zip(rates, decays, strict=True)):
        groups.setdefault(pair, []).append(index)
    for (rate, decay), members in groups.items():
        # a rate so small that its inverse is no float32 changes nothing
        scale = torch.full((), 1 / rate if rate > SMALLEST_RATE else math.inf, device=weights[members[0]].device)
        torch_sgd(
            [weights[index] for index in members],
            [gradients[index].contiguous() for index in members],  # the fused kernel ignores strides
            [histories[index][0] for index in members],
            fused=True, grad_scale=scale,
            weight_decay=rate * decay, momentum=momentum, lr=1.0, dampening=0.0, nesterov=False, maximize=False,
        )  # fmt: skip


def check(param: SolverParameter, path: str) -> None:
    """Raise UserError for an unknown solver type, or for settings that its rule cannot use."""
    if param.type not in RULES:
        raise UserError(f"{path}: unknown solver type {param.type!r}; known: {', '.join(RULES)}")
    if param.type in ("AdaGrad", "RMSProp") and param.momentum:
        raise UserError(f"{path}: {param.type} has no momentum; remove momentum, or set it to 0")
    if param.type == "RMSProp" and not 0 <= param.rms_decay < 1:
        raise UserError(f"{path}: rms_decay must be at least 0 and less than 1, not {param.rms_decay:g}")
    if param.type == "Adam" and not (0 <= param.momentum < 1 and 0 <= param.momentum2 <= 1):
        raise UserError(
            f"{path}: Adam needs a momentum of at least 0 and less than 1, and a momentum2 from 0 to 1, "
            f"not {param.momentum:g} and {param.momentum2:g}"
        )
