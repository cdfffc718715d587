"""The data layers other than Data: Input, MemoryData, DummyData, HDF5Data, ImageData.

Everything random (orders, dummy values) is a function of (seed, layer, batch); see `engine.rng`.
"""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from transfer_caffe.engine import rng
from transfer_caffe.engine.batches.records import Records
from transfer_caffe.engine.layers.base import Layer, Shape
from transfer_caffe.engine.layers.data import Images
from transfer_caffe.engine.layers.fillers import fill
from transfer_caffe.formats.proto.caffe_pb2 import FillerParameter
from transfer_caffe.utils.errors import UserError
from transfer_caffe.utils.files import read_text


class Input(Layer):
    """Blobs of given shapes that the program feeds; zeros until then."""

    bottoms = (0, 0)
    tops = (1, None)

    def setup(self, shapes: Sequence[Shape]) -> None:
        given = [tuple(shape.dim) for shape in self.param.input_param.shape]
        if len(given) not in (1, len(self.top)):
            raise self.error(f"input_param needs one shape, or one for each of the {len(self.top)} tops")
        self.shapes = dict(zip(self.top, given * (len(self.top) if len(given) == 1 else 1), strict=True))
        self.values = {name: torch.zeros(shape, device=self.context.device) for name, shape in self.shapes.items()}

    def top_shapes(self, shapes: Sequence[Shape]) -> list[Shape]:
        return list(self.shapes.values())

    def feed(self, values: Mapping[str, np.ndarray]) -> None:
        """Set tops by name. Raise UserError for a shape mismatch."""
        for name, array in values.items():
            if array.shape != self.shapes[name]:
                raise self.error(f"top {name!r} is {list(self.shapes[name])}, not {list(array.shape)}")
            self.values[name] = torch.tensor(array, dtype=torch.float32, device=self.context.device)

    def forward(self, bottoms: list[Tensor], batch: int) -> list[Tensor]:
        return list(self.values.values())


class MemoryData(Layer):
    """Images and labels that the program feeds, in batches, repeated endlessly (caffe/layers/memory_data_layer.cpp)."""

    bottoms = (0, 0)
    tops = (2, 2)

    def setup(self, shapes: Sequence[Shape]) -> None:
        param = self.param.memory_data_param
        self.size, self.image = param.batch_size, (param.channels, param.height, param.width)
        if min(self.size, *self.image) < 1:
            raise self.error("memory_data_param needs batch_size, channels, height and width")
        self.values: list[Tensor] | None = None

    def top_shapes(self, shapes: Sequence[Shape]) -> list[Shape]:
        return [(self.size, *self.image), (self.size, 1, 1, 1)]

    def feed(self, values: Mapping[str, np.ndarray]) -> None:
        """Set both tops: images (num, channels, height, width) and labels (num,), num a multiple of batch_size."""
        images, labels = (np.asarray(values[name]) for name in self.top)
        num = len(images)
        if images.shape[1:] != self.image or labels.size != num or num % self.size or not num:
            raise self.error(
                f"needs images of {list(self.image)} and as many labels, a multiple of batch_size {self.size}, "
                f"not {list(images.shape)} and {list(labels.shape)}"
            )
        self.values = [
            torch.tensor(array, dtype=torch.float32, device=self.context.device)
            for array in (images, labels.reshape(-1, 1, 1, 1))
        ]

    def forward(self, bottoms: list[Tensor], batch: int) -> list[Tensor]:
        if self.values is None:
            raise self.error("has no data: the program must feed it first (`Net.feed`)")
        first = batch * self.size % len(self.values[0])
        return [values[first : first + self.size] for values in self.values]


class DummyData(Layer):
    """Blobs made by fillers: constant ones once, others for each batch (caffe/layers/dummy_data_layer.cpp)."""

    bottoms = (0, 0)
    tops = (1, None)

    def setup(self, shapes: Sequence[Shape]) -> None:
        param, count = self.param.dummy_data_param, len(self.top)
        fillers = list(param.data_filler) or [FillerParameter(type="constant", value=0)]
        old = [list(sizes) for sizes in (param.num, param.channels, param.height, param.width)]
        if any(old) and param.shape:
            raise self.error("give shape, or num, channels, height and width, not both")
        if any(old) and any(len(sizes) not in (1, count) for sizes in old):
            raise self.error(
                f"num, channels, height and width must each be given once, or for each of the {count} tops"
            )
        given = [tuple(shape.dim) for shape in param.shape] or [
            tuple(sizes[index if len(sizes) > 1 else 0] for sizes in old) for index in range(count) if any(old)
        ]
        for what, values in (("data_filler", fillers), ("shape", given)):
            if len(values) not in (1, count):
                raise self.error(f"has {len(values)} {what} for {count} tops; give one, or one per top")
        self.fillers = fillers * (count if len(fillers) == 1 else 1)
        self.shapes = given * (count if len(given) == 1 else 1)
        self._made: dict[str, Tensor] = {}

    @property
    def is_constant(self) -> bool:
        """Whether all batches are the same."""
        return all(filler.type == "constant" for filler in self.fillers)

    def top_shapes(self, shapes: Sequence[Shape]) -> list[Shape]:
        return list(self.shapes)

    def forward(self, bottoms: list[Tensor], batch: int) -> list[Tensor]:
        phase = "train" if self.context.training else "test"
        tops = []
        for name, shape, filler in zip(self.top, self.shapes, self.fillers, strict=True):
            top = self._made.get(name)
            if top is None:
                generator = rng.torch_generator(self.context.seed, "dummy", self.key, name, phase, batch)
                top = fill(shape, filler, generator, f"layer {self.name!r}, top {name!r}").to(self.context.device)
            if filler.type == "constant":
                self._made[name] = top
            tops.append(top)
        return tops


class HDF5Data(Layer):
    """Rows of datasets in HDF5 files; each top is the dataset of the same name (caffe/layers/hdf5_data_layer.cpp).

    ``source`` is a text file that lists the HDF5 files, one per line. Files and rows are read in order; with
    ``shuffle``, the files and the rows of each file are shuffled in every epoch.
    """

    bottoms = (0, 0)
    tops = (1, None)

    def setup(self, shapes: Sequence[Shape]) -> None:
        param = self.param.hdf5_data_param
        if self.param.HasField("transform_param"):
            raise self.error("does not support data transformation; remove transform_param")
        if param.batch_size < 1:
            raise self.error("hdf5_data_param has no batch_size")
        self.files = [line.strip() for line in read_text(param.source).splitlines() if line.strip()]
        if not self.files:
            raise self.error(f"{param.source} lists no HDF5 file")
        self.batch_size = param.batch_size
        self._read = functools.lru_cache(maxsize=2)(self._read_file)
        self.shapes = [array.shape[1:] for array in self._read(0)]
        self.counts: list[int] = []
        for index in range(len(self.files)):
            arrays = self._read(index)
            self.counts.append(len(arrays[0]))
            for name, shape, array in zip(self.top, self.shapes, arrays, strict=True):
                if array.shape[1:] != shape or len(array) != len(arrays[0]) or not len(array):
                    raise self.error(
                        f"{self.files[index]}: dataset {name!r} is {list(array.shape)}; expected rows of "
                        f"{list(shape)}, and the same number in all datasets ({len(arrays[0])})"
                    )

    def _read_file(self, index: int) -> list[np.ndarray]:
        import h5py  # imported here, since few nets need it

        path = self.files[index]
        if not os.path.exists(path):
            raise self.error(f"{path}: no such file (named in {self.param.hdf5_data_param.source})")
        try:
            with h5py.File(path) as file:
                arrays = []
                for name in self.top:
                    if not isinstance(file.get(name), h5py.Dataset):
                        raise self.error(f"{path}: no dataset {name!r} for the top of this name; it has {list(file)}")
                    arrays.append(np.asarray(file[name], np.float32))
        except (OSError, RuntimeError, ValueError) as error:
            raise UserError(f"{path}: not a valid HDF5 file ({error})") from None
        if any(array.ndim < 1 for array in arrays):
            raise self.error(f"{path}: its datasets must have rows, that is, 1 or more axes")
        return arrays

    def top_shapes(self, shapes: Sequence[Shape]) -> list[Shape]:
        return [(self.batch_size, *shape) for shape in self.shapes]

    def forward(self, bottoms: list[Tensor], batch: int) -> list[Tensor]:
        total, tops = sum(self.counts), [np.empty(shape, np.float32) for shape in self.top_shapes([])]
        for row in range(self.batch_size):
            epoch, place = divmod(batch * self.batch_size + row, total)
            file, place = self._find(epoch, place)
            for top, array in zip(tops, self._read(file), strict=True):
                top[row] = array[place]
        return [torch.from_numpy(top).to(self.context.device) for top in tops]

    def _find(self, epoch: int, place: int) -> tuple[int, int]:
        """Return the file and the row at a position in an epoch's order."""
        shuffle, files = self.param.hdf5_data_param.shuffle, np.arange(len(self.files))
        if shuffle:
            files = rng.numpy_generator(self.context.seed, "files", self.key, epoch).permutation(files)
        ends = np.cumsum([self.counts[file] for file in files])
        position = int(np.searchsorted(ends, place, side="right"))
        file = int(files[position])
        place -= int(ends[position]) - self.counts[file]
        return file, int(self._rows(epoch, file)[place]) if shuffle else place

    @functools.lru_cache(maxsize=4)  # noqa: B019 - a layer lives as long as its net
    def _rows(self, epoch: int, file: int) -> np.ndarray:
        return rng.numpy_generator(self.context.seed, "rows", self.key, epoch, file).permutation(self.counts[file])


class _ImageList:
    """The images of an image list, read and resized as Caffe's ReadImageToCVMat does."""

    def __init__(self, layer: ImageData) -> None:
        param = layer.param.image_data_param
        self.size, self.color = (param.new_height, param.new_width), param.is_color
        if (self.size[0] > 0) != (self.size[1] > 0):
            raise layer.error("give both new_height and new_width, or neither")
        self.lines: list[tuple[str, int]] = []
        for number, line in enumerate(read_text(param.source).splitlines(), start=1):
            name, _, label = line.rpartition(" ")
            if not line.strip():
                continue
            try:
                # concatenated as text, as Caffe does
                self.lines.append((param.root_folder + name, int(label)))
            except ValueError:
                raise layer.error(f"{param.source}, line {number}: expected `path label`, not {line!r}") from None
        if not self.lines:
            raise layer.error(f"{param.source} lists no image")
        self.shape: Shape = self.record(0)[0].shape

    def __len__(self) -> int:
        return len(self.lines)

    def record(self, index: int) -> tuple[np.ndarray, int]:
        """Return the image, (channels, height, width) in BGR or gray, and the label."""
        import cv2  # imported here, since importing it takes a while

        path, label = self.lines[index]
        flag = cv2.IMREAD_COLOR if self.color else cv2.IMREAD_GRAYSCALE
        content = np.frombuffer(Path(path).read_bytes(), np.uint8)
        image = cv2.imdecode(content, flag) if content.size else None
        if image is None:
            raise UserError(f"{path}: cannot be read as an image")
        if self.size[0]:
            image = cv2.resize(image, (self.size[1], self.size[0]))
        return (image[None] if image.ndim == 2 else image.transpose(2, 0, 1)), label


class ImageData(Images):
    """Read batches of the images in an image list (caffe/layers/image_data_layer.cpp).

    With ``shuffle``, the order is shuffled in every epoch.
    """

    tops = (2, 2)

    def open(self) -> tuple[Records, str, int, int]:
        param = self.param.image_data_param
        return _ImageList(self), param.source, param.batch_size, param.rand_skip

    def identity(self) -> Hashable:
        param = self.param.image_data_param
        size = param.new_height, param.new_width
        return Path(param.source).resolve(), param.root_folder, size, param.is_color

    @property
    def shuffles(self) -> bool:
        return self.param.image_data_param.shuffle

    def places(self, batch: int) -> np.ndarray:
        if not self.shuffles:
            return super().places(batch)
        size = len(self.records)
        first = self.skip + batch * self.batch_size
        epochs = range(first // size, (first + self.batch_size - 1) // size + 1)
        order = np.concatenate([self._order(epoch) for epoch in epochs])
        return order[first % size :][: self.batch_size]

    @functools.lru_cache(maxsize=2)  # noqa: B019 - a layer lives as long as its net
    def _order(self, epoch: int) -> np.ndarray:
        return rng.numpy_generator(self.context.seed, "order", self.key, epoch).permutation(len(self.records))

    def _fits(self) -> bool:
        return len(self.records) * math.prod(self.transformer.shape) <= (64 << 20)


LAYERS = (Input, MemoryData, DummyData, HDF5Data, ImageData)
