"""Copy batches to a device through a ring of host buffers, which threads fill ahead, without waiting for the copies.

    staging = Staging([windows, labels], fill, ahead=4)     # fill(arrays, batch) writes a batch into a buffer's arrays
    staging.send(7)                                         # copies batch 7 to `windows` and `labels`

The copies are enqueued on the device's current stream; later operations on that stream see the batch. The threads make
no CUDA calls, so they may run while a CUDA graph is captured.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait

import numpy as np
import torch
from torch import Tensor

SPARE = 3
"""Number of buffers beyond those being filled: how many batches the host may be ahead of the device."""


class Buffer:
    """Host memory with the shapes of some tensors; pinned if they are on a GPU, so that copies are asynchronous."""

    def __init__(self, targets: Sequence[Tensor]) -> None:
        pinned = targets[0].is_cuda
        self._tensors = [torch.empty(each.shape, dtype=each.dtype, pin_memory=pinned) for each in targets]
        self.arrays = [tensor.numpy() for tensor in self._tensors]
        # blocking: a waiting thread sleeps and leaves the core to the threads that build batches
        self._sent = torch.cuda.Event(blocking=True) if pinned else None

    def wait(self) -> None:
        """Wait until the last copy is done; the buffer must not be written before that."""
        if self._sent is not None:
            self._sent.synchronize()

    def send(self, targets: Sequence[Tensor]) -> None:
        """Enqueue copies to ``targets`` on the current stream. A target with fewer rows gets the first ones."""
        for tensor, target in zip(self._tensors, targets, strict=True):
            target.copy_(tensor[: len(target)], non_blocking=True)
        if self._sent is not None:
            self._sent.record(torch.cuda.current_stream(targets[0].device))


class Staging:
    """A ring of buffers between the host, which builds batches, and the target tensors."""

    def __init__(self, targets: Sequence[Tensor], fill: Callable[[list[np.ndarray], int], None], ahead: int) -> None:
        """``ahead`` is the number of batches prefetched, each in its own thread; 0 means no prefetching, no threads."""
        self._targets, self._fill, self._ahead = targets, fill, ahead
        self._free = deque(Buffer(targets) for _ in range(ahead + SPARE))
        self._pool = ThreadPoolExecutor(ahead, thread_name_prefix="batches") if ahead else None
        self._coming: deque[tuple[int, Buffer, Future[None]]] = deque()

    def send(self, batch: int) -> None:
        """Copy a batch to the targets. Errors that occur while it is built are raised here."""
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
        """Return a batch's buffer and future, prefetched if it follows the last one; prefetch the next batches."""
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
        """Discard prefetched batches: reclaim their buffers once no thread writes to them."""
        for _, _, made in self._coming:
            made.cancel()
        wait([made for _, _, made in self._coming])
        self._free.extend(buffer for _, buffer, _ in self._coming)
        self._coming.clear()
