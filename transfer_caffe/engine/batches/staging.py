"""Batches on their way to a device: host buffers in a ring, filled ahead by threads, copied without waiting.

    staging = Staging([windows, labels], fill, ahead=4)     # fill(arrays, batch) writes a batch into a buffer's arrays
    staging.send(7)                                         # batch 7 is, or will be, in `windows` and `labels`

The copies are put on the device's current stream: what is put there next sees the batch. The threads make no call to
CUDA, so that they may go on while a CUDA graph is captured.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait

import numpy as np
import torch
from torch import Tensor

SPARE = 3
"""Buffers beyond those that are being filled: the host may be so many batches ahead of the device."""


class Buffer:
    """Host memory in the shapes of some tensors; for tensors of a GPU pinned, so that a copy need not be waited for."""

    def __init__(self, targets: Sequence[Tensor]) -> None:
        pinned = targets[0].is_cuda
        self._tensors = [torch.empty(each.shape, dtype=each.dtype, pin_memory=pinned) for each in targets]
        self.arrays = [tensor.numpy() for tensor in self._tensors]
        # blocking: who waits for it leaves the core to the threads that make batches
        self._sent = torch.cuda.Event(blocking=True) if pinned else None

    def wait(self) -> None:
        """Return once its last copy is done: before that it must not be written again."""
        if self._sent is not None:
            self._sent.synchronize()

    def send(self, targets: Sequence[Tensor]) -> None:
        """Put copies to ``targets`` on the current stream. A target may have fewer rows: it gets the first ones."""
        for tensor, target in zip(self._tensors, targets, strict=True):
            target.copy_(tensor[: len(target)], non_blocking=True)
        if self._sent is not None:
            self._sent.record(torch.cuda.current_stream(targets[0].device))


class Staging:
    """A ring of buffers between what makes batches on the host and the tensors that they are for."""

    def __init__(self, targets: Sequence[Tensor], fill: Callable[[list[np.ndarray], int], None], ahead: int) -> None:
        """``ahead``: how many batches are made in advance, each by a thread of its own; 0: none, and no threads."""
        self._targets, self._fill, self._ahead = targets, fill, ahead
        self._free = deque(Buffer(targets) for _ in range(ahead + SPARE))
        self._pool = ThreadPoolExecutor(ahead, thread_name_prefix="batches") if ahead else None
        self._coming: deque[tuple[int, Buffer, Future[None]]] = deque()

    def send(self, batch: int) -> None:
        """Let the targets be this batch. Whatever its making raises is raised here."""
        if self._pool is None:
            buffer, made = self._take(), None
        else:
            buffer, made = self._foreseen(self._pool, batch)
        try:
            if made is None:
                self._fill(buffer.arrays, batch)
            else:
                made.result()
            buffer.send(self._targets)
        finally:
            self._free.append(buffer)

    def _foreseen(self, pool: ThreadPoolExecutor, batch: int) -> tuple[Buffer, Future[None]]:
        """This batch, in the works already if it follows the last one; starts on those after it."""
        if self._coming and self._coming[0][0] != batch:
            self._forget()
        for number in range(batch + len(self._coming), batch + 1 + self._ahead):
            buffer = self._take()
            self._coming.append((number, buffer, pool.submit(self._fill, buffer.arrays, number)))
        return self._coming.popleft()[1:]

    def _take(self) -> Buffer:
        buffer = self._free.popleft()
        buffer.wait()
        return buffer

    def _forget(self) -> None:
        """Take back the buffers of batches that nobody asked for, once no thread writes to them."""
        for _, _, made in self._coming:
            made.cancel()
        wait([made for _, _, made in self._coming])
        self._free.extend(buffer for _, buffer, _ in self._coming)
        self._coming.clear()
