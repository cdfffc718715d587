"""Batches of images with labels, cropped, mirrored, freed of the mean as Caffe does; Data reads an LMDB or a view.

Batch b of a net holds the records b * batch_size ... modulo the number of records, and its crops and flips are
drawn from (seed, layer, phase, b): nothing has to be saved to resume at any iteration.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol

import numpy as np
import torch
from numpy.lib.stride_tricks import as_strided
from torch import Tensor

from transfer_caffe.engine import rng
from transfer_caffe.engine.layers import LAYERS, Layer, Shape
from transfer_caffe.errors import UserError
from transfer_caffe.proto import read_mean
from transfer_caffe.proto.caffe_pb2 import DataParameter, TransformationParameter
from transfer_caffe.views import open_records

# a database whose decoded records fit in this many bytes is decoded once and kept
KEEP_BYTES = 512 << 20


class Transformer:
    """TransformationParameter applied to a batch (caffe/data_transformer.cpp): crop, minus mean, mirror, scale."""

    def __init__(self, param: TransformationParameter, shape: Shape, training: bool, where: str) -> None:
        """``shape`` is that of a record: channels, height, width."""
        self.where, self.training, self.shape = where, training, shape
        self.crop, self.mirror, self.scale = param.crop_size, param.mirror, param.scale
        if self.crop > min(shape[1:]):
            raise UserError(f"{where}: crop_size {self.crop} is larger than the records ({shape[1]}x{shape[2]})")
        if param.HasField("mean_file") and param.mean_value:
            raise UserError(f"{where}: mean_file and mean_value cannot both be given")
        self.mean: np.ndarray | None = None
        """(1, height, width, channels), or (1, 1, 1, channels) for values."""
        self.mean_file = param.HasField("mean_file")
        if param.HasField("mean_file"):
            mean = read_mean(param.mean_file)
            if mean.shape != shape:
                raise UserError(
                    f"{where}: the mean {param.mean_file} is {list(mean.shape)}, the records are {list(shape)}"
                )
            self.mean = np.ascontiguousarray(mean.transpose(1, 2, 0))[None]
        elif param.mean_value:
            if len(param.mean_value) not in (1, shape[0]):
                raise UserError(f"{where}: {len(param.mean_value)} mean_value for {shape[0]} channels")
            values = np.broadcast_to(np.asarray(param.mean_value, np.float32), shape[:1])
            self.mean = values[None, None, None]  # the same at all places

    @property
    def out_shape(self) -> Shape:
        """Channels, height, width after the crop."""
        return (self.shape[0], self.crop, self.crop) if self.crop else self.shape

    def __call__(self, records: np.ndarray, draw: np.random.Generator) -> np.ndarray:
        """Records as (batch, channels, height, width), uint8 or float32; gives float32, cropped.

        In memory the channels come last, which is what PyTorch's convolutions and poolings are quick with: to make the
        batch so from the start takes a third of the time (64 images of 32 x 32: 0.4 instead of 1.2 ms).
        """
        pixels = np.ascontiguousarray(records.transpose(0, 2, 3, 1))
        mean = self.mean
        if self.crop:
            top_most, left_most = records.shape[2] - self.crop, records.shape[3] - self.crop
            if self.training:
                top = draw.integers(0, top_most + 1, len(records))
                left = draw.integers(0, left_most + 1, len(records))
            else:
                # Caffe's centre crop; in the test phase every image has the same window
                top = np.full(len(records), top_most // 2)
                left = np.full(len(records), left_most // 2)
            pixels = self._windows(pixels, np.arange(len(records)), top, left)
            if mean is not None and self.mean_file:
                mean = self._windows(mean, np.zeros(len(records), int), top, left)
        out = pixels.astype(np.float32)
        if mean is not None:
            out -= mean
        if self.mirror:
            flip = np.flatnonzero(draw.integers(0, 2, len(records)))
            out[flip] = out[flip, :, ::-1]
        if self.scale != 1:
            out *= np.float32(self.scale)
        return out.transpose(0, 3, 1, 2)

    def _windows(self, pixels: np.ndarray, image: np.ndarray, top: np.ndarray, left: np.ndarray) -> np.ndarray:
        """The crop of ``image`` of (images, height, width, channels) at ``top`` and ``left``: three numbers a window.

        A row of a window is one piece of memory, and copied as one.
        """
        count, height, width, channels = pixels.shape
        by_image, by_row, by_column, by_channel = pixels.strides
        crop = self.crop
        every = as_strided(
            pixels,
            (count, height - crop + 1, width - crop + 1, crop, crop * channels),
            (by_image, by_row, by_column, by_row, by_channel),
            writeable=False,
        )
        return every[image, top, left].reshape(-1, crop, crop, channels)


class Records(Protocol):
    """What a layer reads from: records numbered from 0, each an array (channels, height, width) and a label."""

    def __len__(self) -> int:
        """How many there are."""
        ...

    @property
    def shape(self) -> Shape:
        """That of the first record."""
        ...

    def record(self, index: int) -> tuple[np.ndarray, int]:
        """Record ``index``."""
        ...


class Images(Layer):
    """Base of the layers that read images with labels: tops are the images and, if asked for, the labels.

    Batch b holds the records at places b * batch_size onwards of an endless order: `places`.
    """

    bottoms = (0, 0)
    tops = (1, 2)

    def open(self) -> tuple[Records, str, int, int]:
        """The records, the name of where they lie, the batch size, and rand_skip."""
        raise NotImplementedError

    def setup(self, shapes: Sequence[Shape]) -> None:
        self.records, self.source, self.batch_size, rand_skip = self.open()
        if self.batch_size < 1:
            raise self.error("gives no batch_size")
        self.skip = rng.derived_seed(self.context.seed, "rand_skip", self.key) % rand_skip if rand_skip else 0
        self.with_labels = len(self.top) > 1
        transform = self.param.transform_param
        self.transformer = Transformer(transform, self.records.shape, self.context.training, f"layer {self.name!r}")
        self.label_limits: dict[str, int] = {}
        self._kept: tuple[np.ndarray | list[np.ndarray], np.ndarray] | None = None
        self._pool: ThreadPoolExecutor | None = None
        self._next: tuple[int, Future[tuple[Tensor, Tensor]]] | None = None

    def limit_labels(self, classes: int, layer: str) -> None:
        """From now on a label outside 0 ... classes - 1, which ``layer`` could not use, is an error."""
        self.label_limits[layer] = classes

    def forward(self, bottoms: list[Tensor], batch: int) -> list[Tensor]:
        images, labels = self._upcoming(batch)
        tops = [images, labels] if self.with_labels else [images]
        return [top.to(self.context.device, non_blocking=True) for top in tops]

    def top_shapes(self, shapes: Sequence[Shape]) -> list[Shape]:
        """The shapes of the tops: images (batch, channels, height, width) and labels (batch,)."""
        return [(self.batch_size, *self.transformer.out_shape), (self.batch_size,)][: len(self.top)]

    def places(self, batch: int) -> np.ndarray:
        """The numbers of the records of a batch."""
        return (self.skip + batch * self.batch_size + np.arange(self.batch_size)) % len(self.records)

    def _upcoming(self, batch: int) -> tuple[Tensor, Tensor]:
        """This batch, made already if it was foreseen; where records are decoded each time, start on the next."""
        if self._fits():
            return self._make(batch)
        if self._pool is None:
            self._pool = ThreadPoolExecutor(1, thread_name_prefix=f"data-{self.name}")
        ready = self._next[1] if self._next and self._next[0] == batch else self._pool.submit(self._make, batch)
        self._next = (batch + 1, self._pool.submit(self._make, batch + 1))
        return ready.result()

    def _fits(self) -> bool:
        return len(self.records) * int(np.prod(self.records.shape)) <= KEEP_BYTES

    def _make(self, batch: int) -> tuple[Tensor, Tensor]:
        places = self.places(batch)
        if self._fits():
            self._kept = self._kept or self._read(np.arange(len(self.records)))
            kept, labels = self._kept[0], self._kept[1][places]
            if isinstance(kept, np.ndarray):  # indexed as it lies in memory, to be copied image by image
                records = kept.transpose(0, 2, 3, 1)[places].transpose(0, 3, 1, 2)
            else:
                records = [kept[place] for place in places]
        else:
            records, labels = self._read(places)
        phase = "train" if self.context.training else "test"
        draw = rng.numpy_generator(self.context.seed, "transform", self.key, phase, batch)
        if isinstance(records, np.ndarray):
            images = self.transformer(records, draw)
        else:  # of several sizes, each cropped by itself
            images = np.concatenate([self.transformer(record[None], draw) for record in records])
        images = torch.from_numpy(images).contiguous(memory_format=torch.channels_last)  # most are so already
        return images, torch.from_numpy(labels)

    def _read(self, places: np.ndarray) -> tuple[np.ndarray | list[np.ndarray], np.ndarray]:
        """Records (uint8, or float32 where they hold floats) and labels (float32, as Caffe's blobs are).

        Records of several sizes, which are cropped to one, come as a list.
        """
        records, labels = [], np.empty(len(places), np.float32)
        for index, place in enumerate(places.tolist()):
            image, label = self.records.record(place)
            if image.shape != self.records.shape:
                self._require_room(place, image.shape)
            for layer, classes in self.label_limits.items():
                if not 0 <= label < classes:
                    raise self.error(
                        f"record {place} of {self.source} has label {label}, but layer "
                        f"{layer!r} knows the classes 0 to {classes - 1} only"
                    )
            records.append(image)
            labels[index] = label
        same = all(record.shape == records[0].shape for record in records)
        if not same:
            return records, labels
        # the channels last in memory, as the transformer wants them
        channels, height, width = records[0].shape
        pixels = np.empty((len(records), height, width, channels), np.result_type(*records))
        for index, record in enumerate(records):
            pixels[index] = record.transpose(1, 2, 0)
        return pixels.transpose(0, 3, 1, 2), labels

    def _require_room(self, place: int, shape: Shape) -> None:
        """Error unless a record of another size than the first can be cropped like that one."""
        crop, first = self.transformer.crop, self.records.shape
        if not crop or shape[0] != first[0] or min(shape[1:]) < crop or self.transformer.mean_file:
            raise self.error(
                f"record {place} of {self.source} is {list(shape)}, the first record is {list(first)}"
                + (f"; sizes may differ where all have room for the crop_size {crop}, without a mean_file" * bool(crop))
            )


class Data(Images):
    """Batches from an LMDB (caffe/layers/data_layer.cpp), or from a view of one."""

    def open(self) -> tuple[Records, str, int, int]:
        param, transform = self.param.data_param, self.param.transform_param
        if param.backend != DataParameter.LMDB:
            raise self.error("only LMDB databases are read; convert the LEVELDB to LMDB, and set backend: LMDB")
        if transform.force_color and transform.force_gray:
            raise self.error("force_color and force_gray cannot both be set")
        color = transform.force_color if transform.force_color or transform.force_gray else None
        return open_records(param.source, color), param.source, param.batch_size, param.rand_skip


LAYERS["Data"] = Data
