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
from collections.abc import Callable, Hashable
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from transfer_caffe.engine import glog
from transfer_caffe.engine.batches import sharing
from transfer_caffe.engine.batches.records import Records
from transfer_caffe.engine.batches.staging import Buffer
from transfer_caffe.utils.machine import available_memory, cores

MOST_THREADS = 16
CHUNK_BYTES = 8 << 20
"""Records are decoded and copied in pieces of about this size, by one thread each."""
SECONDS_BETWEEN_LINES = 10.0
_PLACE = "data_layer.cpp:45"


def threads() -> int:
    """How many threads decode: OpenCV and LMDB work outside of Python's lock."""
    return min(MOST_THREADS, cores())


def reserve(total: int) -> int:
    """The bytes of a memory of ``total`` that no copy takes: for weights, activations, and whoever else is there."""
    return min(8 << 30, total * 15 // 100)


class Unlike(Exception):
    """A record has another shape than the first one, or holds floats."""


class Copy:
    """The decoded records of a source. Made as a promise; `ready` fetches them."""

    def __init__(self, source: str, on_device: bool, promised: int, fetch: Fetch) -> None:
        """``on_device``: whether they are where the net runs; ``promised``: the bytes that ``fetch`` will allocate."""
        self.on_device = on_device
        self.promised = promised
        """Memory that will be taken, and that still counts as free."""
        self.pixels: Tensor | None = None
        """uint8, (records, height, width, channels)."""
        self.labels: np.ndarray | None = None
        """float32, on the host."""
        self._source = source
        self._fetch: Fetch | None = fetch

    def ready(self) -> bool:
        """Have all records decoded, unless that is done. False if they are not alike, or the memory is gone.

        UserError for a record that is damaged.
        """
        if self._fetch is not None:
            fetch, self._fetch = self._fetch, None
            try:
                self.pixels, self.labels = fetch()
            except (Unlike, torch.OutOfMemoryError) as error:
                why = error if isinstance(error, Unlike) else "the memory that was free is not any more"
                say(f"{self._source}: not kept: {why}; each batch is decoded anew")
            finally:
                self.promised = 0
        return self.pixels is not None


Fetch = Callable[[], tuple[Tensor, np.ndarray]]
_copies: weakref.WeakValueDictionary[Hashable, Copy] = weakref.WeakValueDictionary()


def copy_of(records: Records, key: Hashable, source: str, device: torch.device) -> Copy | None:
    """The copy of a source for nets on ``device``, or None where there is no room; ``key`` tells sources apart.

    Room is given away in the order of the calls: a solver makes its training net first. A key that is a
    `sharing.Source` stands for one copy of all processes that share this GPU, where a sweep wants that.
    """
    found = _copies.get((device, key))
    if found is not None:
        say(f"{source}: shares the records that another layer keeps")
        return found
    share = sharing.Share.of_this_process()
    if share is not None and isinstance(key, sharing.Source):
        copy = _shared(share, key, records, source, device)
    else:
        place = _place(records, source, device)
        copy = None if place is None else _private(records, source, place, place is device)
    if copy is not None:
        _copies[device, key] = copy
    return copy


def _private(records: Records, source: str, place: torch.device, on_device: bool) -> Copy:
    shape = shape_of(records)

    def fetch() -> tuple[Tensor, np.ndarray]:
        pixels = torch.empty(shape, dtype=torch.uint8, device=place)
        return pixels, load(records, pixels, source, say)

    return Copy(source, on_device, math.prod(shape), fetch)


def _shared(
    share: sharing.Share, key: sharing.Source, records: Records, source: str, device: torch.device
) -> Copy | None:
    """The copy that a process of its own keeps for all networks on this GPU, which is started if need be."""
    with share.lock():
        user = share.join(key)
        if user is None:
            place = _place(records, source, device, share.networks)
            if place is None:
                return None
            user = share.start(key, place, place is device)
        else:
            say(f"{source}: shares the records that process {user.pid} keeps")
    if not user.room:
        say(f"{source}: not kept: the memory that was free is not any more; each batch is decoded anew")
        user.give_up()
        return None

    def fetch() -> tuple[Tensor, np.ndarray]:
        received = user.receive()
        if isinstance(received, str):
            raise Unlike(received)
        return received

    copy = Copy(source, user.on_device, 0, fetch)
    weakref.finalize(copy, user.give_up)
    return copy


def shape_of(records: Records) -> tuple[int, int, int, int]:
    """Number, height, width, channels of records that are like the first one."""
    channels, height, width = records.shape
    return len(records), height, width, channels


def _place(records: Records, source: str, device: torch.device, networks: int = 1) -> torch.device | None:
    """Where there is room for all records: ``device``, the host's memory, or nowhere; said in a line of the log.

    ``networks``: how many run on the device, each with weights and activations of its own.
    """
    shape = shape_of(records)
    size = math.prod(shape)
    free, total = device_memory(device)
    room = free - networks * reserve(total) - _promised(True)
    what = f"{source}: {len(records)} records of {'x'.join(map(str, shape[1:]))}, {_size(size)} decoded"
    if size <= room:
        say(f"{what}, are kept on {device}, which has room for {_size(room)}")
        return device
    available = available_memory()
    host = available - reserve(available) - _promised(False)
    why = f"{device} has room for {_size(room)}"
    if size <= host:
        say(f"{what}: {why}; they are kept in the host's memory, which has room for {_size(host)}")
        return torch.device("cpu")
    say(f"{what}: {why}, the host's memory for {_size(host)}; each batch is decoded anew by {threads()} threads")
    return None


def say(line: str) -> None:
    """A line in the log."""
    glog.info(_PLACE, line)


def device_memory(device: torch.device) -> tuple[int, int]:
    """Free and total bytes of a device."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)
    available = available_memory()  # only tests keep records "on" the CPU
    return available, available


def _promised(on_device: bool) -> int:
    return sum(copy.promised for copy in _copies.values() if copy.on_device is on_device)


def _size(count: int) -> str:
    return f"{max(count, 0) / 2**30:.1f} GiB"


def load(records: Records, pixels: Tensor, source: str, say: Callable[[str], None]) -> np.ndarray:
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
    progress = _Progress(source, count, say)

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
            raise Unlike(f"record {first + index} holds floats")
        if image.shape[1:] != pixels.shape[1:3] or image.shape[0] != pixels.shape[3]:
            raise Unlike(f"record {first + index} is {list(image.shape)}, another shape than the first one's")
        pixels[index] = image.transpose(1, 2, 0)


class _Progress:
    """Lines in the log about a long loading."""

    def __init__(self, source: str, count: int, say: Callable[[str], None]) -> None:
        self._source, self._count, self._say = source, count, say
        self._began = self._said = time.monotonic()

    def at(self, done: int) -> None:
        now = time.monotonic()
        if now - self._said >= SECONDS_BETWEEN_LINES and done < self._count:
            left = (now - self._began) * (self._count - done) / done
            self._say(f"{self._source}: {done} of {self._count} records decoded, {left:.0f} s left")
            self._said = now

    def end(self) -> None:
        self._say(f"{self._source}: {self._count} records decoded in {time.monotonic() - self._began:.1f} s")
