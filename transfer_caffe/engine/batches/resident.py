"""Keep all records of a source decoded, as bytes: on the GPU as far as they fit, otherwise in the host's memory.

    copy = copy_of(records, key, "random0/A/train_lmdb", device)      # logs whether and where they are kept
    if copy and copy.ready():                                         # decodes them the first time
        copy.pixels, copy.labels

Half of ImageNet at 256 x 256 is 118 GiB, more than most GPUs have: then a part of the records is on the GPU, and the
rest on the host. The parts alternate (`Split`), so each batch takes about the same share from both. Records that fit
nowhere are read and decoded again for each batch. Layers with the same source (in a training net and a test net) share
one copy; it is freed together with the last of them.
"""

from __future__ import annotations

import math
import time
import weakref
from collections import deque
from collections.abc import Callable, Hashable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

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
"""Records are decoded and copied in chunks of about this size, each by one thread."""
SECONDS_BETWEEN_LINES = 10.0
LEAST_PART = 8
"""Records are divided between a GPU and the host if at least an eighth of them fits on the GPU."""
_PLACE = "data_layer.cpp:45"


def threads() -> int:
    """Return the number of decoding threads; OpenCV and LMDB release Python's global interpreter lock."""
    return min(MOST_THREADS, cores())


def reserve(total: int) -> int:
    """Return the bytes, out of ``total``, that are reserved for weights, activations and other programs."""
    return min(8 << 30, total * 15 // 100)


class Unlike(Exception):
    """Raised if a record's shape differs from the first one's, or if it holds floats."""


@dataclass(frozen=True)
class Split:
    """``first`` of ``count`` records are in one place, evenly spread among the others, which are in another place."""

    first: int
    count: int

    def before(self, index: int) -> int:
        """Return how many of the records before ``index`` are in the first place."""
        return index * self.first // self.count

    def slots(self, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return, for some records, whether they are in the first place, and their index among the records there."""
        before = places * self.first // self.count
        in_first = (places + 1) * self.first // self.count > before
        return in_first, np.where(in_first, before, places - before)


class Copy:
    """The decoded records of a source. Memory is only promised at first; `ready` decodes the records."""

    def __init__(self, source: str, on_device: bool, promised: tuple[int, int], fetch: Fetch) -> None:
        """``on_device``: whether all of them, or a part if there is a `rest`, are on the net's device.

        ``promised``: the bytes that ``fetch`` will allocate on the device and in the host's memory.
        """
        self.on_device = on_device
        self.promised = promised
        """Bytes that will be allocated, but still count as free memory."""
        self.pixels: Tensor | None = None
        """uint8, (records, height, width, channels)."""
        self.rest: Tensor | None = None
        """The same for the records in the host's memory, if `pixels` holds a part of them; see `split`."""
        self.labels: np.ndarray | None = None
        """float32, on the host."""
        self._source = source
        self._fetch: Fetch | None = fetch

    def ready(self) -> bool:
        """Decode all records unless that is done. Return False if their shapes differ or there is no memory left.

        Raise UserError for a record that is damaged.
        """
        if self._fetch is not None:
            fetch, self._fetch = self._fetch, None
            try:
                self.pixels, self.rest, self.labels = fetch()
            except (Unlike, torch.OutOfMemoryError) as error:
                why = error if isinstance(error, Unlike) else "there is not enough free memory any more"
                say(f"{self._source}: not kept in memory: {why}; the records are decoded again for each batch")
            finally:
                self.promised = 0, 0
        return self.pixels is not None

    @property
    def split(self) -> Split | None:
        """Which records are on the device, if a part of them is."""
        if self.pixels is None or self.rest is None:
            return None
        return Split(len(self.pixels), len(self.pixels) + len(self.rest))


Fetch = Callable[[], tuple[Tensor, Tensor | None, np.ndarray]]
_copies: weakref.WeakValueDictionary[Hashable, Copy] = weakref.WeakValueDictionary()


def copy_of(records: Records, key: Hashable, source: str, device: torch.device) -> Copy | None:
    """Return the copy of a source for nets on ``device``, or None if there is no room; ``key`` identifies the source.

    Memory is assigned in the order of the calls; a solver builds its training net first. If ``key`` is a
    `sharing.Source` and a sweep has enabled sharing, all processes on this GPU share one copy.
    """
    found = _copies.get((device, key))
    if found is not None:
        say(f"{source}: shares the records kept by another layer")
        return found
    share = sharing.Share.of_this_process()
    if share is not None and isinstance(key, sharing.Source):
        copy = _shared(share, key, records, source, device)
    else:
        place = _place(records, source, device)
        copy = None if place is None else _private(records, source, device, place)
    if copy is not None:
        _copies[device, key] = copy
    return copy


def _private(records: Records, source: str, device: torch.device, on_device: int) -> Copy:
    count, *one = shape_of(records)

    def fetch() -> tuple[Tensor, Tensor | None, np.ndarray]:
        host = torch.empty((count - on_device, *one), dtype=torch.uint8)
        if not on_device:
            return host, None, load(records, host, source, say)
        pixels = torch.empty((on_device, *one), dtype=torch.uint8, device=device)
        rest = host if len(host) else None
        return pixels, rest, load(records, pixels, source, say, rest)

    size = math.prod(one)
    return Copy(source, on_device > 0, (on_device * size, (count - on_device) * size), fetch)


def _shared(
    share: sharing.Share, key: sharing.Source, records: Records, source: str, device: torch.device
) -> Copy | None:
    """Return the copy that a separate process keeps for all networks on this GPU; start that process if necessary."""
    with share.lock():
        user = share.join(key)
        if user is None:
            place = _place(records, source, device, share.networks)
            if place is None:
                return None
            user = share.start(key, device if place else torch.device("cpu"), place)
        else:
            say(f"{source}: shares the records kept by process {user.pid}")
    if not user.room:
        say(
            f"{source}: not kept in memory: there is not enough free memory any more; the records are decoded again "
            "for each batch"
        )
        user.give_up()
        return None

    def fetch() -> tuple[Tensor, Tensor | None, np.ndarray]:
        received = user.receive()
        if isinstance(received, str):
            raise Unlike(received)
        return received

    copy = Copy(source, user.on_device, (0, 0), fetch)
    weakref.finalize(copy, user.give_up)
    return copy


def shape_of(records: Records) -> tuple[int, int, int, int]:
    """Return number, height, width and channels of the records, assuming that all are like the first one."""
    channels, height, width = records.shape
    return len(records), height, width, channels


def _place(records: Records, source: str, device: torch.device, networks: int = 1) -> int | None:
    """Return how many records are kept on ``device``, the others in the host's memory; log the decision.

    Return None if they do not fit in both together. ``networks`` is the number of networks on the device, each with its
    own weights and activations.
    """
    shape = shape_of(records)
    size = math.prod(shape)
    free, total = device_memory(device)
    room = free - networks * reserve(total) - _promised(True)
    what = f"{source}: {len(records)} records of {'x'.join(map(str, shape[1:]))}, {_size(size)} decoded"
    if size <= room:
        say(f"{what}, are kept on {device}, which has room for {_size(room)}")
        return len(records)
    available = available_memory()
    host = available - reserve(available) - _promised(False)
    why = f"{device} has room for {_size(room)}"
    part = max(room, 0) // math.prod(shape[1:])
    if part * LEAST_PART >= len(records) and size - part * math.prod(shape[1:]) <= host:
        say(
            f"{what}: {why}; {part} of them are kept there, the others in the host's memory, which has room for "
            f"{_size(host)}"
        )
        return part
    if size <= host:
        say(f"{what}: {why}; they are kept in the host's memory, which has room for {_size(host)}")
        return 0
    say(
        f"{what}: {why}, the host's memory for {_size(host)}; the records are decoded again for each batch, by "
        f"{threads()} threads"
    )
    return None


def say(line: str) -> None:
    """Write a line to the log."""
    glog.info(_PLACE, line)


def device_memory(device: torch.device) -> tuple[int, int]:
    """Return the free and total bytes of a device."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)
    available = available_memory()  # only tests keep records "on" the CPU
    return available, available


def _promised(on_device: bool) -> int:
    return sum(copy.promised[0 if on_device else 1] for copy in _copies.values())


def _size(count: int) -> str:
    return f"{max(count, 0) / 2**30:.1f} GiB"


def load(
    records: Records, pixels: Tensor, source: str, say: Callable[[str], None], rest: Tensor | None = None
) -> np.ndarray:
    """Decode all ``records`` into ``pixels`` in several threads and return their labels; report progress with ``say``.

    With ``rest``, in the host's memory, a part of the records goes there (`Split`). Raise UserError for a record that
    is damaged; if there are several, for the first one.
    """
    count, size = len(records), math.prod(pixels.shape[1:])
    split = Split(len(pixels), count)
    others = np.empty((0, *pixels.shape[1:]), np.uint8) if rest is None else rest.numpy()
    labels = np.empty(count, np.float32)
    chunk = min(count, max(1, CHUNK_BYTES // size))
    workers = threads()
    # a tensor on a GPU is filled through a ring of pinned buffers, one on the host directly
    buffers = deque(Buffer([pixels[:chunk]]) for _ in range(workers + 2)) if pixels.is_cuda else None
    pending: deque[tuple[int, Tensor, Buffer | None, Future[None]]] = deque()
    progress = _Progress(source, count, say)

    def finish() -> None:
        last, target, buffer, made = pending.popleft()
        made.result()
        if buffer is not None and buffers is not None:
            buffer.send([target])
            buffers.append(buffer)
        progress.at(last)

    with ThreadPoolExecutor(workers, thread_name_prefix="decode") as pool:
        try:
            for first in range(0, count, chunk):
                if len(pending) > workers:
                    finish()
                last = min(first + chunk, count)
                target = pixels[split.before(first) : split.before(last)]
                if buffers is None:
                    buffer, out = None, target.numpy()
                else:
                    buffer = buffers.popleft()
                    buffer.wait()
                    out = buffer.arrays[0][: len(target)]
                host = others[first - split.before(first) : last - split.before(last)]
                made = pool.submit(_decode, records, first, split, out, host, labels[first:last])
                pending.append((last, target, buffer, made))
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


def _decode(
    records: Records, first: int, split: Split, pixels: np.ndarray, others: np.ndarray, labels: np.ndarray
) -> None:  # fmt: skip
    """Decode records from ``first`` on into two arrays, those of the first and those of the second place of a split."""
    in_first, slots = split.slots(first + np.arange(len(labels)))
    begin = split.before(first)
    for index in range(len(labels)):
        image, labels[index] = records.record(first + index)
        if image.dtype != np.uint8:
            raise Unlike(f"record {first + index} holds floats")
        if image.shape[1:] != pixels.shape[1:3] or image.shape[0] != pixels.shape[3]:
            raise Unlike(f"record {first + index} is {list(image.shape)}, not the shape of the first record")
        if in_first[index]:
            pixels[slots[index] - begin] = image.transpose(1, 2, 0)
        else:
            others[slots[index] - (first - begin)] = image.transpose(1, 2, 0)


class _Progress:
    """Log the progress of decoding every few seconds."""

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
