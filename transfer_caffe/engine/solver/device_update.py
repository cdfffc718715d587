"""SGD with momentum on a GPU without the host: rates in device memory, one kernel per blob, part of the CUDA graph.

    update = DeviceUpdate(param, blobs, histories)
    update.set_rate(0.01)       # copied to the device if it has changed
    update()                    # reads blob.data.grad

The rule is Caffe's (SGDSolver::ComputeUpdateValue in caffe/solvers/sgd_solver.cpp), as in `updates.sgd`: history =
momentum * history + rate * lr_mult * (gradient + decay * weight), weight -= history. One pass over memory reads weight,
gradient and history and writes weight and history; the host only launches, or with a graph does nothing.

In bf16, layers would convert all weights in each iteration, and their gradients back to float32. Instead, the update
keeps a copy of the weights in bf16 (`Blob.low`), whose gradient, in bf16, it reads. The results are the same.

With clip_gradients, the norm of all gradients is computed on the device, too, and each blob's gradient is scaled as it
is read. The host reads the norm only to log it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from transfer_caffe.engine.batches.staging import Staging
from transfer_caffe.engine.kernels import usable
from transfer_caffe.engine.layers.base import Blob, Layer
from transfer_caffe.formats.proto.caffe_pb2 import SolverParameter

Kernel = Callable[[Tensor, Tensor, Tensor, Tensor, int, float, float, float, Tensor | None, Tensor | None], None]
"""Updates a weight and its history: weight, gradient, history, rates, the blob's index among the rates, momentum,
decay, a factor of the gradient, a copy of the weight in another type, or None, and another factor, on the device, or
None."""


class DeviceUpdate:
    """The update of some blobs of a net; see the module's docstring."""

    devices: ClassVar[tuple[str, ...]] = ("cuda",)
    """Types of devices on which it is used; tests add the CPU."""

    @classmethod
    def fits(cls, param: SolverParameter, device: torch.device) -> bool:
        """Return whether a solver's updates can run like this: SGD with L2 decay, on a GPU."""
        return param.type == "SGD" and param.regularization_type == "L2" and device.type in cls.devices

    def __init__(
        self, param: SolverParameter, blobs: Sequence[Blob], histories: Sequence[Tensor], low: Sequence[Blob] = (),
        dtype: torch.dtype = torch.float32,
    ) -> None:  # fmt: skip
        """``histories`` belong to ``blobs``. Blobs that no update would change are left out.

        These are the blobs with lr_mult 0 and a history of zeros, whatever their decay. The blobs in ``low`` get a copy
        in ``dtype`` (see `blobs_with_copies`).
        """
        self._versions: dict[Blob, int] = {}
        """For each blob with a copy, the version of its values from which the copy was made."""
        for blob in low:
            blob.low = blob.data.detach().to(dtype).requires_grad_(blob.data.requires_grad)
            self._versions[blob] = blob.data._version
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
        self._limit = param.clip_gradients
        self.norm = torch.zeros((), device=device)
        """With clip_gradients, the L2 norm of the gradients at the last update."""
        self._kernel = (_fused_update() if device.type == "cuda" else None) or plain

    def set_rate(self, rate: float) -> None:
        """Set the learning rate of the next updates, before lr_mult; renew copies of weights that were replaced."""
        self.renew_copies()
        if rate != self._rate:
            self._rate = rate
            self._staging.send(0)

    def renew_copies(self) -> None:
        """Renew copies of weights that something else than an update has changed (a file that was loaded)."""
        for blob, version in self._versions.items():
            if blob.data._version != version and blob.low is not None:
                blob.low.detach().copy_(blob.data.detach())
                self._versions[blob] = blob.data._version

    def _fill(self, arrays: list[np.ndarray], _: int) -> None:
        assert self._rate is not None
        arrays[0][: len(self._mults)] = self._rate * self._mults

    @torch.no_grad()
    def __call__(self) -> None:
        """Update all weights and histories with the blobs' gradients, with device operations only."""
        scale = self._scale() if self._limit >= 0 else None
        for index, (blob, history, decay) in enumerate(zip(self._blobs, self._histories, self._decays, strict=True)):
            gradient = blob.leaf.grad
            if gradient is None:  # no loss depends on the blob, but weight decay still applies to it
                if blob not in self._zeros:
                    self._zeros[blob] = torch.zeros_like(history)
                gradient = self._zeros[blob]
            low = None if blob.low is None else blob.low.detach()
            settings = (self._momentum, decay, self._factor)
            self._kernel(blob.data, gradient.contiguous(), history, self._rates, index, *settings, low, scale)

    def _scale(self) -> Tensor:
        """Return the factor by which all gradients are clipped, at most 1, as SGDSolver::ClipGradients computes it."""
        gradients = [blob.leaf.grad for blob in self._blobs if blob.leaf.grad is not None]
        norms = [torch.linalg.vector_norm(gradient, dtype=torch.float32) for gradient in gradients]
        self.norm.copy_(torch.linalg.vector_norm(torch.stack(norms)) if norms else self.norm.new_zeros(()))
        return torch.where(self.norm <= self._limit, 1.0, self._limit / self.norm)


def blobs_with_copies(layers: Sequence[Layer], dtype: torch.dtype) -> list[Blob]:
    """Return the weights of which a copy in ``dtype`` saves conversions: those that one low-precision layer uses once.

    The gradients of a weight that is used twice would be added in ``dtype``. Biases are small, and may be added by
    another layer in float32.
    """
    if dtype == torch.float32:
        return []
    uses = [id(blob if blob.owner is None else blob.owner) for layer in layers for blob in layer.blobs]
    low = [layer for layer in layers if layer.precision == "low" and len(layer.param.bottom) == 1]
    # a view of another blob counts as a use of that one
    return [blob for layer in low for blob in layer.blobs[:1] if uses.count(id(blob)) == 1]


def plain(
    weight: Tensor, gradient: Tensor, history: Tensor, rates: Tensor, index: int, momentum: float, decay: float,
    factor: float, low: Tensor | None = None, scale: Tensor | None = None,
) -> None:  # fmt: skip
    """Update a blob with PyTorch's operations."""
    step = gradient.to(torch.float32, copy=True).mul_(factor)
    if scale is not None:
        step.mul_(scale)
    if decay:
        step.add_(weight, alpha=decay)
    history.mul_(momentum).add_(step.mul_(rates[index]))
    weight.sub_(history)
    if low is not None:
        low.copy_(weight)


@functools.lru_cache(maxsize=1)
def _fused_update() -> Kernel | None:
    """Return the Triton kernel; None if it cannot be used."""

    def probe() -> Kernel:
        from transfer_caffe.engine.solver.update_triton import update

        weight, gradient, history, rates = (torch.ones(1, device="cuda") for _ in range(4))
        update(weight, gradient, history, rates, 0, 0.5, 0.5, 0.5, None, None)
        return update

    return usable("sgd_solver.cpp:0", "Updates run without their Triton kernel", probe)
