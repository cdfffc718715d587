"""Copy batches to a device through a ring of host buffers, which threads fill ahead, without waiting for the copies.

    staging = Staging([windows, labels], fill, ahead=4)     # fill(arrays, batch) writes a batch into a buffer's arrays
    staging.send(7)                                         # copies batch 7 to `windows` and `labels`

Later operations on the device's current stream see the batch. If batches are prefetched, a GPU copies the next one
while it computes: on a stream of its own, to one of two landings (`Landings`), from which the current stream takes it.
A batch of 256 windows of 227 x 227 takes about a millisecond from the host, and a fiftieth of that within the GPU. The
threads make no CUDA calls, so they may run while a CUDA graph is captured.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any, Protocol

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


class Lane(Protocol):
    """A stream for copies from the host, beside the current stream, which computes; each can wait for the other."""

    def copy(self, buffer: Buffer, targets: Sequence[Tensor]) -> None:
        """Enqueue copies of a host buffer on this stream."""
        ...

    def mark(self, current: bool) -> Any:
        """Return a mark of the work that is enqueued so far, on the current stream or on this one."""
        ...

    def wait(self, mark: Any, current: bool) -> None:
        """Let what is enqueued later, on the current stream or on this one, wait for a mark."""
        ...


class CudaLane:
    """A CUDA stream as a `Lane`."""

    def __init__(self, device: torch.device) -> None:
        """Create the stream."""
        self._device, self._stream = device, torch.cuda.Stream(device)

    def copy(self, buffer: Buffer, targets: Sequence[Tensor]) -> None:
        """See `Lane.copy`."""
        for target in targets:
            target.record_stream(self._stream)  # its memory is not given to others while a copy may still be under way
        with torch.cuda.stream(self._stream):
            buffer.send(targets)

    def mark(self, current: bool) -> torch.cuda.Event:
        """See `Lane.mark`."""
        mark = torch.cuda.Event()
        mark.record(self._of(current))
        return mark

    def wait(self, mark: torch.cuda.Event, current: bool) -> None:
        """See `Lane.wait`."""
        self._of(current).wait_event(mark)

    def _of(self, current: bool) -> torch.cuda.Stream:
        return torch.cuda.current_stream(self._device) if current else self._stream


class Landings:
    """Two places on the device: a batch arrives in one of them while the other one's batch is being used."""

    def __init__(self, targets: Sequence[Tensor], lane: Lane) -> None:
        """Allocate memory like ``targets`` twice."""
        self._lane = lane
        self._places = deque([torch.empty_like(each) for each in targets] for _ in range(2))
        # the memory may still be used by earlier operations of the current stream
        self._left = deque(lane.mark(current=True) for _ in range(2))
        self._arrived: dict[int, Any] = {}
        """For each batch that has landed, or will: the mark of its arrival; in the order of the places."""

    def holds(self, batch: int) -> bool:
        """Return whether the batch is the next one to be delivered."""
        return next(iter(self._arrived), None) == batch

    def fetch(self, batch: int, buffer: Buffer) -> None:
        """Enqueue a batch's copy from the host, once the batch before it in the same place has been delivered."""
        at = len(self._arrived)
        self._lane.wait(self._left[at], current=False)
        self._lane.copy(buffer, self._places[at])
        self._arrived[batch] = self._lane.mark(current=False)

    def deliver(self, batch: int, targets: Sequence[Tensor]) -> None:
        """Enqueue the copy of the batch from its place to ``targets`` on the current stream."""
        self._lane.wait(self._arrived.pop(batch), current=True)
        for target, place in zip(targets, self._places[0], strict=True):
            target.copy_(place)
        self._left[0] = self._lane.mark(current=True)
        self._places.rotate(-1)
        self._left.rotate(-1)

    def forget(self) -> None:
        """Forget batches that will not be delivered; their copies still run, before those of later batches."""
        self._arrived.clear()


class Staging:
    """A ring of buffers between the host, which builds batches, and the target tensors."""

    def __init__(
        self, targets: Sequence[Tensor], fill: Callable[[list[np.ndarray], int], None], ahead: int,
        lane: Lane | None = None,
    ) -> None:  # fmt: skip
        """``ahead`` is the number of batches prefetched, each in its own thread; 0 means no prefetching, no threads.

        ``lane`` is the stream of the copies; by default a GPU has one if batches are prefetched.
        """
        if lane is None and ahead and targets[0].is_cuda:
            lane = CudaLane(targets[0].device)
        self._landings = Landings(targets, lane) if lane is not None else None
        self._targets, self._fill, self._ahead = targets, fill, ahead
        self._free = deque(Buffer(targets) for _ in range(ahead + SPARE))
        self._pool = ThreadPoolExecutor(ahead, thread_name_prefix="batches") if ahead else None
        self._coming: deque[tuple[int, Buffer, Future[None]]] = deque()

    def send(self, batch: int) -> None:
        """Copy a batch to the targets. Errors that occur while it is built are raised here."""
        if self._landings is not None and self._pool is not None:
            self._send_by_landing(self._landings, self._pool, batch)
            return
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

    def _send_by_landing(self, landings: Landings, pool: ThreadPoolExecutor, batch: int) -> None:
        if landings.holds(batch):
            self._foresee(pool, batch + 1, self._ahead)
        else:
            landings.forget()
            self._land(landings, batch, *self._foreseen(pool, batch))
        landings.deliver(batch, self._targets)
        if self._coming and self._coming[0][2].done() and self._coming[0][2].exception() is None:
            self._land(landings, *self._coming.popleft())

    def _land(self, landings: Landings, batch: int, buffer: Buffer, made: Future[None]) -> None:
        try:
            made.result()
            landings.fetch(batch, buffer)
        finally:
            self._free.append(buffer)

    def _foreseen(self, pool: ThreadPoolExecutor, batch: int) -> tuple[Buffer, Future[None]]:
        """Return a batch's buffer and future, prefetched if it follows the last one; prefetch the next batches."""
        self._foresee(pool, batch, self._ahead + 1)
        return self._coming.popleft()[1:]

    def _foresee(self, pool: ThreadPoolExecutor, first: int, count: int) -> None:
        """Start what is missing of ``count`` batches from ``first`` on; discard others."""
        if self._coming and self._coming[0][0] != first:
            self._forget()
        for number in range(first + len(self._coming), first + count):
            buffer = self._take()
            self._coming.append((number, buffer, pool.submit(self._fill, buffer.arrays, number)))

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
