"""SGD with momentum on a GPU without the host: rates in device memory, one kernel per blob, part of the CUDA graph.

    update = DeviceUpdate(param, blobs, histories)
    update.set_rate(0.01)       # copied to the device if it has changed
    update()                    # reads blob.data.grad

The rule is Caffe's (SGDSolver::ComputeUpdateValue in caffe/solvers/sgd_solver.cpp), as in `updates.sgd`: history =
momentum * history + rate * lr_mult * (gradient + decay * weight), weight -= history. One pass over memory reads weight,
gradient and history and writes weight and history; the host only launches, or with a graph does nothing.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from transfer_caffe.engine import glog
from transfer_caffe.engine.batches.staging import Staging
from transfer_caffe.engine.layers.base import Blob
from transfer_caffe.formats.proto.caffe_pb2 import SolverParameter

Kernel = Callable[[Tensor, Tensor, Tensor, Tensor, int, float, float, float], None]
"""Updates a weight and its history: weight, gradient, history, rates, the blob's index among the rates, momentum,
decay, and a factor of the gradient."""


class DeviceUpdate:
    """The update of some blobs of a net; see the module's docstring."""

    devices: ClassVar[tuple[str, ...]] = ("cuda",)
    """Types of devices on which it is used; tests add the CPU."""

    @classmethod
    def fits(cls, param: SolverParameter, device: torch.device) -> bool:
        """Return whether a solver's updates can run like this: SGD with L2 decay, without clipping, on a GPU."""
        plain = param.type == "SGD" and param.regularization_type == "L2" and param.clip_gradients < 0
        return plain and device.type in cls.devices

    def __init__(self, param: SolverParameter, blobs: Sequence[Blob], histories: Sequence[Tensor]) -> None:
        """``histories`` belong to ``blobs``. Blobs that no update would change are left out.

        These are the blobs with lr_mult 0 and a history of zeros, whatever their decay.
        """
        chosen = [pair for pair in zip(blobs, histories, strict=True) if pair[0].lr_mult or bool(pair[1].any())]
        self._blobs, self._histories = [blob for blob, _ in chosen], [history for _, history in chosen]
        device = histories[0].device if histories else torch.device("cpu")
        self._mults = np.array([blob.lr_mult for blob in self._blobs], np.float64)
        self._decays = [param.weight_decay * blob.decay_mult for blob in self._blobs]
        self._momentum, self._factor = param.momentum, 1 / param.iter_size
        self._rates = torch.zeros(max(len(chosen), 1), device=device)
        self._rate: float | None = None
        self._staging = Staging([self._rates], self._fill, ahead=0)
        self._zeros: dict[Blob, Tensor] = {}
        self._kernel = (_fused_update() if device.type == "cuda" else None) or plain

    def set_rate(self, rate: float) -> None:
        """Set the learning rate of the next updates, before lr_mult."""
        if rate != self._rate:
            self._rate = rate
            self._staging.send(0)

    def _fill(self, arrays: list[np.ndarray], _: int) -> None:
        assert self._rate is not None
        arrays[0][: len(self._mults)] = self._rate * self._mults

    @torch.no_grad()
    def __call__(self) -> None:
        """Update all weights and histories with the blobs' gradients, with device operations only."""
        for index, (blob, history, decay) in enumerate(zip(self._blobs, self._histories, self._decays, strict=True)):
            gradient = blob.data.grad
            if gradient is None:  # no loss depends on the blob, but weight decay still applies to it
                if blob not in self._zeros:
                    self._zeros[blob] = torch.zeros_like(history)
                gradient = self._zeros[blob]
            self._kernel(
                blob.data, gradient.contiguous(), history, self._rates, index, self._momentum, decay, self._factor
            )


def plain(
    weight: Tensor, gradient: Tensor, history: Tensor, rates: Tensor, index: int, momentum: float, decay: float,
    factor: float,
) -> None:  # fmt: skip
    """Update a blob with PyTorch's operations."""
    step = gradient.to(torch.float32, copy=True).mul_(factor)
    if decay:
        step.add_(weight, alpha=decay)
    history.mul_(momentum).add_(step.mul_(rates[index]))
    weight.sub_(history)


@functools.lru_cache(maxsize=1)
def _fused_update() -> Kernel | None:
    """Return the Triton kernel; None without Triton or what it needs to compile (a C compiler)."""
    try:
        from transfer_caffe.engine.solver.update_triton import update

        weight, gradient, history, rates = (torch.ones(1, device="cuda") for _ in range(4))
        update(weight, gradient, history, rates, 0, 0.5, 0.5, 0.5)
    except Exception as error:  # whatever the reason, there is another implementation
        glog.info("sgd_solver.cpp:0", f"Updates run without their Triton kernel: {str(error).splitlines()[:1]}")
        return None
    return update
