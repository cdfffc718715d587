"""Batches of images with labels: cropped, mirrored, mean-subtracted as in Caffe. Data reads an LMDB or a view of one.

Batch b of a net holds batch_size records from b * batch_size on, modulo the number of records. Its crops and flips are
sampled from (seed, layer, phase, b), so no state has to be saved to resume at any iteration.

On the CPU, NumPy builds a batch. For a GPU, the host samples crops and flips and reads records if necessary
(`Images.prepare`); the GPU does the rest (`Images.make`). The records are in the GPU's memory as far as they fit
(`batches.resident`); of the others the host copies the windows that it has cut to the GPU (`batches.staging`).
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from transfer_caffe.engine import rng
from transfer_caffe.engine.batches import resident
from transfer_caffe.engine.batches.device_batches import DeviceBatches
from transfer_caffe.engine.batches.records import Records
from transfer_caffe.engine.batches.sharing import Source
from transfer_caffe.engine.batches.transform import Transformer
from transfer_caffe.engine.layers.base import Layer, Shape
from transfer_caffe.formats.leveldb import LevelDatabase
from transfer_caffe.formats.proto.caffe_pb2 import DataParameter
from transfer_caffe.formats.views import open_records

# a database whose decoded records fit in this many bytes is decoded once and kept in memory
KEEP_BYTES = 512 << 20

FINISH_BYTES = 256 << 20
"""Records that fit in this many bytes as float32 are kept mean-subtracted and scaled: a batch is then copied only, in
two thirds of the time (128 crops of 28 x 28 from 32 x 32 images: 0.48 instead of 0.71 ms)."""


class Images(Layer):
    """Base class of the layers that read images with labels. The tops are the images and, optionally, the labels.

    Batch b holds batch_size records from position b * batch_size of an endless order; see `places`.

    On a GPU, `forward` is `prepare` followed by `make`. A CUDA graph captures `make` only: set ``prepares`` to False
    and call `prepare` on the replay's stream before each replay.
    """

    bottoms = (0, 0)
    tops = (1, 2)
    image_type = torch.float32
    """The type of the images that a device makes: the net's, if all layers that read them would convert them to it."""
    _made_by_device: ClassVar[tuple[str, ...]] = ("cuda",)
    """Types of devices on which batches are built with `make`; tests add the CPU."""

    def open(self) -> tuple[Records, str, int, int]:
        """Return the records, the name of their source, the batch size, and rand_skip."""
        raise NotImplementedError

    def identity(self) -> Hashable:
        """Return a key that distinguishes the records of this layer from those of others."""
        raise NotImplementedError

    def setup(self, shapes: Sequence[Shape]) -> None:
        self.records, self.source, self.batch_size, rand_skip = self.open()
        if self.batch_size < 1:
            raise self.error("has no batch_size")
        self.skip = rng.derived_seed(self.context.seed, "rand_skip", self.key) % rand_skip if rand_skip else 0
        self.with_labels = len(self.top) > 1
        first = self.records.record(0)[0]
        transform = self.param.transform_param
        self.transformer = Transformer(transform, first.shape, self.context.training, f"layer {self.name!r}")
        self.label_limits: dict[str, int] = {}
        self._kept: tuple[np.ndarray | list[np.ndarray], np.ndarray] | None = None
        self._finished: tuple[np.ndarray, np.ndarray] | None = None
        """All records as returned by `Transformer.finish_whole`, and their labels."""
        self._pool: ThreadPoolExecutor | None = None
        self._next: tuple[int, Future[tuple[Tensor, Tensor]]] | None = None
        self.prepares = True
        self._device: DeviceBatches | None = None
        self._dtype = first.dtype
        self._copy: resident.Copy | None = None
        self.by_device = self.context.device.type in self._made_by_device
        if self.by_device and first.dtype == np.uint8:
            self._copy = resident.copy_of(self.records, self.identity(), self.source, self.context.device)

    def limit_labels(self, classes: int, layer: str) -> None:
        """Reject labels outside 0 ... classes - 1 from now on, because ``layer`` cannot use them."""
        self.label_limits[layer] = classes

    def forward(self, bottoms: list[Tensor], batch: int) -> list[Tensor]:
        if self.by_device:
            if self.prepares:
                self.prepare(batch)
            return self.make()
        images, labels = self._upcoming(batch)
        tops = [images, labels] if self.with_labels else [images]
        return [top.to(self.context.device, non_blocking=True) for top in tops]

    @property
    def keeps_records(self) -> bool:
        """Whether all records are kept decoded in the host's memory."""
        return self._kept is not None

    @property
    def shuffles(self) -> bool:
        """Whether the records of a batch are not consecutive."""
        return False

    @property
    def resident(self) -> bool:
        """Whether all records are in the memory of the net's device; loads them there if there is room."""
        return self.by_device and self._batches().on_device

    def prepare(self, batch: int) -> None:
        """Prepare a batch for `make`; on a GPU, enqueue its copies on the current stream.

        The host waits for the GPU only if it is several batches ahead.
        """
        self._batches().staging.send(batch)

    def make(self) -> list[Tensor]:
        """Return the tops of the last prepared batch, using device operations only, on tensors at fixed addresses."""
        return self._batches().make()[: 2 if self.with_labels else 1]

    def _batches(self) -> DeviceBatches:
        if self._device is None:
            copy = self._copy if self._copy and self._copy.ready() else None
            if copy is not None:
                assert copy.pixels is not None and copy.labels is not None
                self._require_labels(copy.labels)
                if not copy.on_device:
                    self._kept = copy.pixels.numpy(), copy.labels
            self._device = DeviceBatches(
                self, self.context.device, copy if copy and copy.on_device else None, self._dtype
            )
        return self._device

    def top_shapes(self, shapes: Sequence[Shape]) -> list[Shape]:
        """Return the shapes of the tops: images (batch, channels, height, width) and labels (batch,)."""
        return [(self.batch_size, *self.transformer.out_shape), (self.batch_size,)][: len(self.top)]

    def places(self, batch: int) -> np.ndarray:
        """Return the indices of the records of a batch."""
        return (self.skip + batch * self.batch_size + np.arange(self.batch_size)) % len(self.records)

    def plan(self, batch: int) -> np.ndarray:
        """Return the random choices for a batch, for records of the first one's size.

        int64, (4, batch): record, top, left, flip.
        """
        places = self.places(batch)
        return np.stack([places, *self.transformer.draws(self._draw(batch), len(places), self.transformer.shape)])

    def _draw(self, batch: int) -> np.random.Generator:
        phase = "train" if self.context.training else "test"
        return rng.numpy_generator(self.context.seed, "transform", self.key, phase, batch)

    def windows(self, batch: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return a batch as bytes (or floats): windows (batch, height, width, channels), labels, and its `plan`."""
        plan = self.plan(batch)
        places, cut = plan[0], self.transformer.cut
        if self._kept and isinstance(self._kept[0], np.ndarray):
            return cut(self._kept[0], places, plan[1:]), self._kept[1][places], plan
        if self._kept:
            records, labels = _together([self._kept[0][place] for place in places]), self._kept[1][places]
        else:
            records, labels = self._read(places)
        every, draw = np.arange(len(places)), self._draw(batch)
        if isinstance(records, np.ndarray):
            if records.shape[1:3] != self.transformer.shape[1:]:  # all of one size, but not the first record's
                plan[1:] = self.transformer.draws(draw, len(places), (0, *records.shape[1:3]))
            return cut(records, every, plan[1:]), labels, plan
        windows = []  # records of several sizes are cropped one by one
        for index, record in enumerate(records):
            plan[1:, index : index + 1] = self.transformer.draws(draw, 1, (0, *record.shape[:2]))
            windows.append(cut(np.ascontiguousarray(record)[None], every[:1], plan[1:, index : index + 1]))
        return np.concatenate(windows), labels, plan

    def _upcoming(self, batch: int) -> tuple[Tensor, Tensor]:
        """Return a batch, prefetched if possible; if records are decoded each time, start prefetching the next one."""
        if self._fits():
            if self._finished is None and self._kept is None:
                records, labels = self._kept = self._read(np.arange(len(self.records)))
                if isinstance(records, np.ndarray) and records.size * 4 <= FINISH_BYTES:
                    self._finished, self._kept = (self.transformer.finish_whole(records), labels), None
            return self._make(batch)
        if self._pool is None:
            self._pool = ThreadPoolExecutor(1, thread_name_prefix=f"data-{self.name}")
        ready = self._next[1] if self._next and self._next[0] == batch else self._pool.submit(self._make, batch)
        self._next = (batch + 1, self._pool.submit(self._make, batch + 1))
        return ready.result()

    def _fits(self) -> bool:
        return len(self.records) * math.prod(self.transformer.shape) <= KEEP_BYTES

    def _make(self, batch: int) -> tuple[Tensor, Tensor]:
        if self._finished is not None:
            plan = self.plan(batch)
            pixels, labels = self._finished
            windows = self.transformer.turn(self.transformer.cut(pixels, plan[0], plan[1:]), plan[1:])
            return torch.from_numpy(windows.transpose(0, 3, 1, 2)), torch.from_numpy(labels[plan[0]])
        windows, labels, plan = self.windows(batch)
        images = torch.from_numpy(self.transformer.finish(windows, plan[1:]))
        return images.contiguous(memory_format=torch.channels_last), torch.from_numpy(labels)  # usually no copy

    def _read(self, places: np.ndarray) -> tuple[np.ndarray | list[np.ndarray], np.ndarray]:
        """Read records (uint8, or float32 if they hold floats; channels last) and labels (float32, as Caffe's blobs).

        Records of several sizes, which are cropped to one size later, are returned as a list.
        """
        records, labels = [], np.empty(len(places), np.float32)
        for index, place in enumerate(places.tolist()):
            image, label = self.records.record(place)
            if image.shape != self.transformer.shape:
                self._require_room(place, image.shape)
            self._require_label(place, label)
            records.append(image.transpose(1, 2, 0))
            labels[index] = label
        return _together(records), labels

    def _require_label(self, place: int, label: int) -> None:
        for layer, classes in self.label_limits.items():
            if not 0 <= label < classes:
                raise self.error(
                    f"record {place} of {self.source} has label {label}, but layer "
                    f"{layer!r} has the classes 0 to {classes - 1} only"
                )

    def _require_labels(self, labels: np.ndarray) -> None:
        """Apply `_require_label` to all records."""
        for classes in self.label_limits.values():
            for place in np.flatnonzero((labels < 0) | (labels >= classes))[:1].tolist():
                self._require_label(place, int(labels[place]))

    def _require_room(self, place: int, shape: Shape) -> None:
        """Raise UserError unless a record whose size differs from the first one's can be cropped like it."""
        crop, first = self.transformer.crop, self.transformer.shape
        if not crop or shape[0] != first[0] or min(shape[1:]) < crop or self.transformer.mean_file:
            raise self.error(
                f"record {place} of {self.source} is {list(shape)}, the first record is {list(first)}"
                + (f"; sizes may differ if all are at least crop_size {crop} and no mean_file is set" * bool(crop))
            )


def _together(records: list[np.ndarray]) -> np.ndarray | list[np.ndarray]:
    """Stack records of one size into one array; return records of several sizes unchanged."""
    if any(record.shape != records[0].shape for record in records):
        return records
    pixels = np.empty((len(records), *records[0].shape), np.result_type(*records))
    for index, record in enumerate(records):
        pixels[index] = record
    return pixels


class Data(Images):
    """Read batches from an LMDB or a LevelDB (caffe/layers/data_layer.cpp), or from a view of an LMDB."""

    def open(self) -> tuple[Records, str, int, int]:
        param, transform = self.param.data_param, self.param.transform_param
        if transform.force_color and transform.force_gray:
            raise self.error("force_color and force_gray cannot both be set")
        lmdb = param.backend == DataParameter.LMDB
        records = open_records(param.source, self._color()) if lmdb else LevelDatabase(param.source, self._color())
        return records, param.source, param.batch_size, param.rand_skip

    def identity(self) -> Hashable:
        return Source(Path(self.source).resolve(), self._color())

    def _color(self) -> bool | None:
        """Return ``color`` as `formats.datum.decode_datum` takes it."""
        transform = self.param.transform_param
        return transform.force_color if transform.force_color or transform.force_gray else None


LAYERS = (Data,)
