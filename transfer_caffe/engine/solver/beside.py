"""Write snapshots beside training: their values are copied to the host's memory, and a thread writes the files.

    copy.take(tensors)              # enqueued on the device's stream: later updates do not change the copy
    beside.start(write)             # waits for the previous job, and raises its error
    beside.finish()

For 61 million weights with their history, serializing, checksums and the disk take seconds, the copy some
milliseconds. The files are those that are written without a thread, and each appears complete or not at all.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor


class HostCopy:
    """A copy of some tensors in the host's memory, which is pinned if they are on a GPU."""

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        """Allocate memory for tensors of these shapes."""
        pinned = any(tensor.is_cuda for tensor in tensors)
        self._host = [torch.empty(each.shape, dtype=each.dtype, pin_memory=pinned) for each in tensors]
        self._taken = torch.cuda.Event(blocking=True) if pinned else None
        self._places: dict[tuple[int, tuple[int, ...]], np.ndarray] = {}

    def take(self, tensors: Sequence[Tensor]) -> None:
        """Enqueue the copy of ``tensors`` on the current stream."""
        self._places = {}
        for host, tensor in zip(self._host, tensors, strict=True):
            host.copy_(tensor.detach(), non_blocking=True)
            self._places[tensor.data_ptr(), tuple(tensor.shape)] = host.numpy()
        if self._taken is not None:
            self._taken.record(torch.cuda.current_stream(tensors[0].device))

    def wait(self) -> None:
        """Wait until the copy is complete."""
        if self._taken is not None:
            self._taken.synchronize()

    def array(self, tensor: Tensor) -> np.ndarray:
        """Return the copied values of one of the tensors."""
        return self._places[tensor.data_ptr(), tuple(tensor.shape)]


class Beside:
    """A thread that does one job at a time."""

    def __init__(self) -> None:
        """Create the thread with the first job."""
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="snapshots")
        self._job: Future[None] | None = None

    def start(self, job: Callable[[], None]) -> None:
        """Start a job after the previous one; raise the previous one's error."""
        self.finish()
        self._job = self._pool.submit(job)

    def finish(self) -> None:
        """Wait for the job, and raise its error."""
        job, self._job = self._job, None
        if job is not None:
            job.result()
