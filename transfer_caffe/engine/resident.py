"""All records of a source, decoded once and kept as bytes: on the GPU where they fit, else in the host's memory.

    copy = copy_of(records, key, "random0/A/train_lmdb", device)      # whether and where, told in a line of the log
    if copy and copy.ready():                                         # decodes them, the first time
        copy.pixels, copy.labels

Half of ImageNet at 256 x 256 is 118 GiB. What fits nowhere is read and decoded for each batch anew. Layers over the
same source (a training net's and a test net's) have one copy in common; it goes when the last of them goes.
"""

from __future__ import annotations

import math
import time
import weakref
from collections import deque
from collections.abc import Hashable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from transfer_caffe import processes
from transfer_caffe.engine import glog
from transfer_caffe.engine.staging import Buffer

if TYPE_CHECKING:
    from transfer_caffe.engine.data import Records

MOST_THREADS = 16
CHUNK_BYTES = 8 << 20
"""Records are decoded and copied in pieces of about this size, by one thread each."""
SECONDS_BETWEEN_LINES = 10.0
_PLACE = "data_layer.cpp:45"


def threads() -> int:
    """How many threads decode: OpenCV and LMDB work outside of Python's lock."""
    return min(MOST_THREADS, processes.cores())


def reserve(total: int) -> int:
    """The bytes of a memory of ``total`` that no copy takes: for weights, activations, and whoever else is there."""
    return min(8 << 30, total * 15 // 100)


class Copy:
    """The decoded records of a source. Made as a promise of so much memory; `ready` fills it."""

    def __init__(self, records: Records, source: str, device: torch.device, on_device: bool) -> None:
        """``device`` is where the records lie; ``on_device`` whether that is where the net runs."""
        channels, height, width = records.shape
        self.shape = (len(records), height, width, channels)
        self.device, self.on_device = device, on_device
        self.pixels: Tensor | None = None
        """uint8, (records, height, width, channels)."""
        self.labels: np.ndarray | None = None
        """float32, on the host."""
        self._records, self._source = records, source
        self._usable = True

    @property
    def nbytes(self) -> int:
        """The memory that it takes, or will take."""
        return math.prod(self.shape)

    @property
    def promised(self) -> int:
        """The memory that it will take, and that still counts as free."""
        return self.nbytes if self._usable and self.pixels is None else 0

    def ready(self) -> bool:
        """Decode and keep all records, unless that is done. False if they are not alike, or the memory is gone.

        UserError for a record that is damaged.
        """
        if self.pixels is None and self._usable:
            try:
                pixels = torch.empty(self.shape, dtype=torch.uint8, device=self.device)
                self.labels = load(self._records, pixels, self._source)
                self.pixels = pixels
            except (_Unlike, torch.OutOfMemoryError) as error:
                why = error if isinstance(error, _Unlike) else f"{self.device} has no room for it any more"
                glog.info(_PLACE, f"{self._source}: not kept: {why}; each batch is decoded anew")
                self._usable = False
        return self.pixels is not None


class _Unlike(Exception):
    """A record has another shape than the first one, or holds floats."""


_copies: weakref.WeakValueDictionary[Hashable, Copy] = weakref.WeakValueDictionary()


def copy_of(records: Records, key: Hashable, source: str, device: torch.device) -> Copy | None:
    """The copy of a source for nets on ``device``, or None where there is no room; ``key`` tells sources apart.

    Room is given away in the order of the calls: a solver makes its training net first.
    """
    found = _copies.get((device, key))
    if found is not None:
        glog.info(_PLACE, f"{source}: shares the records that another layer keeps")
        return found
    copy = _place(records, source, device)
    if copy is not None:
        _copies[device, key] = copy
    return copy


def _place(records: Records, source: str, device: torch.device) -> Copy | None:
    free, total = device_memory(device)
    room = free - reserve(total) - _promised(True)
    copy = Copy(records, source, device, True)
    what = f"{source}: {len(records)} records of {'x'.join(map(str, copy.shape[1:]))}, {_size(copy.nbytes)} decoded"
    if copy.nbytes <= room:
        glog.info(_PLACE, f"{what}, are kept on {device}, which has room for {_size(room)}")
        return copy
    available = processes.available_memory()
    host = available - reserve(available) - _promised(False)
    why = f"{device} has room for {_size(room)}"
    if copy.nbytes <= host:
        glog.info(_PLACE, f"{what}: {why}; they are kept in the host's memory, which has room for {_size(host)}")
        return Copy(records, source, torch.device("cpu"), False)
    glog.info(
        _PLACE, f"{what}: {why}, the host's memory for {_size(host)}; each batch is decoded anew by {threads()} threads"
    )
    return None


def device_memory(device: torch.device) -> tuple[int, int]:
    """Free and total bytes of a device."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)
    available = processes.available_memory()  # only tests keep records "on" the CPU
    return available, available


def _promised(on_device: bool) -> int:
    return sum(copy.promised for copy in _copies.values() if copy.on_device is on_device)


def _size(count: int) -> str:
    return f"{max(count, 0) / 2**30:.1f} GiB"


def load(records: Records, pixels: Tensor, source: str) -> np.ndarray:
    """Decode all ``records`` into ``pixels`` by several threads; gives their labels. Says how far it is.

    UserError for a record that is damaged; of several the first one.
    """
    count, size = len(records), math.prod(pixels.shape[1:])
    labels = np.empty(count, np.float32)
    chunk = min(count, max(1, CHUNK_BYTES // size))
    workers = threads()
    # a GPU's tensor is filled through pinned buffers in a ring, another one directly
    buffers = deque(Buffer([pixels[:chunk]]) for _ in range(workers + 2)) if pixels.is_cuda else None
    pending: deque[tuple[int, Buffer | None, Future[None]]] = deque()
    progress = _Progress(source, count)

    def finish() -> None:
        first, buffer, made = pending.popleft()
        made.result()
        if buffer is not None and buffers is not None:
            buffer.send([pixels[first : first + chunk]])
            buffers.append(buffer)
        progress.at(min(first + chunk, count))

    with ThreadPoolExecutor(workers, thread_name_prefix="decode") as pool:
        try:
            for first in range(0, count, chunk):
                if len(pending) > workers:
                    finish()
                if buffers is None:
                    buffer, out = None, pixels[first : first + chunk].numpy()
                else:
                    buffer = buffers.popleft()
                    buffer.wait()
                    out = buffer.arrays[0][: count - first]
                part = labels[first : first + chunk]
                pending.append((first, buffer, pool.submit(_decode, records, first, out, part)))
            while pending:
                finish()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    if buffers is not None:
        for buffer in buffers:
            buffer.wait()
    progress.end()
    return labels


def _decode(records: Records, first: int, pixels: np.ndarray, labels: np.ndarray) -> None:
    for index in range(len(labels)):
        image, labels[index] = records.record(first + index)
        if image.dtype != np.uint8:
            raise _Unlike(f"record {first + index} holds floats")
        if image.shape[1:] != pixels.shape[1:3] or image.shape[0] != pixels.shape[3]:
            raise _Unlike(f"record {first + index} is {list(image.shape)}, another shape than the first one's")
        pixels[index] = image.transpose(1, 2, 0)


class _Progress:
    """Lines in the log about a long loading."""

    def __init__(self, source: str, count: int) -> None:
        self._source, self._count = source, count
        self._began = self._said = time.monotonic()

    def at(self, done: int) -> None:
        now = time.monotonic()
        if now - self._said >= SECONDS_BETWEEN_LINES and done < self._count:
            left = (now - self._began) * (self._count - done) / done
            glog.info(_PLACE, f"{self._source}: {done} of {self._count} records decoded, {left:.0f} s left")
            self._said = now

    def end(self) -> None:
        glog.info(_PLACE, f"{self._source}: {self._count} records decoded in {time.monotonic() - self._began:.1f} s")
