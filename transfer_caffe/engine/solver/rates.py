"""The learning rate at an iteration, by lr_policy (SGDSolver::GetLearningRate in caffe/solvers/sgd_solver.cpp)."""

from __future__ import annotations

import math
from collections.abc import Callable

from transfer_caffe.formats.proto.caffe_pb2 import SolverParameter
from transfer_caffe.utils.errors import UserError

# p is the SolverParameter, i the iteration, s how many steps were taken
LR_POLICIES: dict[str, Callable[[SolverParameter, int, int], float]] = {
    "fixed": lambda p, i, s: p.base_lr,
    "step": lambda p, i, s: p.base_lr * p.gamma**s,
    "exp": lambda p, i, s: p.base_lr * p.gamma**i,
    "inv": lambda p, i, s: p.base_lr * (1 + p.gamma * i) ** -p.power,
    "multistep": lambda p, i, s: p.base_lr * p.gamma**s,
    "poly": lambda p, i, s: p.base_lr * (1 - i / p.max_iter) ** p.power,
    "sigmoid": lambda p, i, s: p.base_lr / (1 + math.exp(min(-p.gamma * (i - p.stepsize), 700))),  # exp(710) overflows
}


def check(param: SolverParameter, path: str) -> None:
    """Raise UserError for an unknown policy, or for settings that real Caffe rejects with the policy."""
    policy = param.lr_policy
    if policy not in LR_POLICIES:
        raise UserError(f"{path}: unknown lr_policy {policy!r}; known: {', '.join(LR_POLICIES)}")
    if policy in ("step", "sigmoid") and param.stepsize < 1:
        raise UserError(f"{path}: lr_policy {policy} needs a stepsize")
    if policy not in ("fixed", "poly") and param.gamma < 0:
        raise UserError(f"{path}: lr_policy {policy} needs a gamma of at least 0, not {param.gamma:g}")


def next_step(param: SolverParameter, iteration: int, step: int) -> int:
    """Return how many steps the policies step and multistep have taken, given ``step``, the previous iteration's count.

    multistep takes at most one stepvalue per iteration, in the order in which they are given. Stepvalues that are
    already passed (they follow a larger one, or a run resumes from a state with fewer steps) therefore take one
    iteration each.
    """
    if param.lr_policy == "step":
        return iteration // param.stepsize
    due = param.lr_policy == "multistep" and step < len(param.stepvalue) and iteration >= param.stepvalue[step]
    return step + due


def rate(param: SolverParameter, iteration: int, step: int) -> float:
    """Return the learning rate, before a blob's lr_mult; infinite on floating-point overflow."""
    try:
        return LR_POLICIES[param.lr_policy](param, iteration, step)
    except OverflowError:
        return math.inf
