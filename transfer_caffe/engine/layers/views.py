"""Blobs as Python code sees them in Caffe: NumPy arrays `data` and `diff` that are the memory of the net (pycaffe).

    blob.data[...] = image          # the next forward pass reads it
    blob.diff                       # after a backward pass

A blob's values are whatever tensor a layer has computed, in that tensor's memory format, until Python asks for an
array. From then on they stay at one address, where layers read and write them. Arrays therefore stay valid, and no
value is copied for a blob that nobody looks at. On a GPU the values exist twice, and are copied when the other side
reads them (caffe/syncedmem.cpp).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from transfer_caffe.engine.layers.base import Blob as Learnable
from transfer_caffe.engine.layers.base import Shape

CPU = torch.device("cpu")


class Array:
    """The values of a blob, or their gradient: a tensor for layers, and memory for NumPy as soon as it is asked for.

    All values are ``fill`` at first. The array has no shape of its own: blobs that share it (Split, Reshape) may have
    different shapes of the same count.
    """

    __slots__ = ("_apart", "_at_host", "_device", "_fill", "_flat", "_host", "_owned", "_tensor")

    def __init__(self, device: torch.device = CPU, fill: float = 0.0, apart: bool | None = None) -> None:
        """``apart`` says that NumPy's memory is not the layers' memory; by default it is on a GPU."""
        self._device, self._fill = device, fill
        self._apart = device.type != "cpu" if apart is None else apart
        self._tensor: Tensor | None = None
        self._owned = True
        """Whether nothing else uses ``_tensor``, so that `add` may change it."""
        self._host: Tensor | None = None
        """The memory that NumPy sees, flat."""
        self._flat: np.ndarray | None = None
        self._at_host = False
        """If the memories are apart: whether the newest values are those that NumPy sees."""

    @property
    def exposed(self) -> bool:
        """Whether NumPy has seen the values, and may change them at any time."""
        return self._host is not None

    def view(self, shape: Shape) -> np.ndarray:
        """Return the values as a NumPy array without copying them; the first call gives them their memory."""
        count = math.prod(shape)
        if self._host is None or len(self._host) < count:
            newest_elsewhere = self._apart and not self._at_host and self._tensor is not None
            if self._host is None or newest_elsewhere:
                self._take(self.read(shape).detach().reshape(-1).to("cpu", copy=True))
            else:
                self._take(torch.zeros(count))
        elif self._apart and not self._at_host and self._tensor is not None:
            self._host[: self._tensor.numel()].copy_(self._tensor.detach().reshape(-1))
        self._at_host = True
        assert self._flat is not None
        return self._flat[:count].reshape(shape)

    def _take(self, host: Tensor) -> Tensor:
        self._host, self._flat = host, host.numpy()
        if not self._apart:
            self._tensor = None
        return host

    def read(self, shape: Shape) -> Tensor:
        """Return the values as a tensor on the device, which shares their memory if that is possible."""
        host = self._host
        if host is not None and not self._apart:
            count = math.prod(shape)
            if len(host) < count:  # the blob has grown since: new memory, as in Blob::Reshape
                host = self._take(torch.zeros(count))
            return (host if len(host) == count else host[:count]).view(shape)
        if host is not None and self._at_host:
            self._push(shape, host)
        tensor = self._tensor
        if tensor is not None and tensor.shape == shape:
            return tensor
        count = math.prod(shape)
        if tensor is None or tensor.numel() < count:
            tensor = torch.full(shape, self._fill, device=self._device)
            self._owned = True
        elif tensor.numel() > count:
            tensor = tensor.reshape(-1)[:count].view(shape)
        else:
            tensor = tensor.reshape(shape)
        self._tensor = tensor
        return tensor

    def _push(self, shape: Shape, host: Tensor) -> None:
        count = math.prod(shape)
        if len(host) < count:
            host = self._take(torch.zeros(count))
        self._tensor, self._at_host = host[:count].view(shape).to(self._device, copy=True), False
        self._owned = True

    def write(self, values: Tensor, owned: bool = True) -> None:
        """Set the values; if NumPy has not seen any, keep ``values`` itself instead of a copy."""
        host = self._host
        if host is None or self._apart:
            self._tensor, self._owned, self._at_host = values, owned, False
            return
        count = values.numel()
        if len(host) < count:
            host = self._take(torch.zeros(count))
        if host.data_ptr() != values.data_ptr() or not values.is_contiguous():
            host[:count].view(values.shape).copy_(values)

    def add(self, values: Tensor) -> None:
        """Add to the values; ``values`` belongs to the array from now on."""
        if self._host is None and self._tensor is None and not self._fill:
            self._tensor, self._owned = values, True
            return
        before = self.read(tuple(values.shape))
        if self._owned or (self._host is not None and not self._apart):
            before.add_(values)
        else:
            self._tensor, self._owned = before + values, True
        self._at_host = False

    def own(self, shape: Shape) -> Tensor:
        """Return the values as a tensor that may be changed in place."""
        values = self.read(shape)
        if not self._owned and (self._host is None or self._apart):
            self._tensor, self._owned = values.clone(), True
        return self.read(shape)

    def clear(self) -> None:
        """Set all values to 0."""
        if self._host is not None:
            self._host.zero_()
        self._tensor, self._at_host, self._fill = None, self._host is not None, 0.0


class LearnableArray(Array):
    """The values of a learnable blob, whose tensor stays the same."""

    __slots__ = ("_blob",)

    def __init__(self, blob: Learnable, apart: bool | None = None) -> None:
        super().__init__(blob.data.device, apart=apart)
        self._blob = blob
        if not self._apart:
            self._take(blob.data.detach().view(-1))

    def read(self, shape: Shape) -> Tensor:
        data = self._blob.values
        if self._apart:
            if self._at_host and self._host is not None:
                data.copy_(self._host.view(data.shape))
                self._at_host = False
            self._tensor = data
        return data.view(shape)

    def view(self, shape: Shape) -> np.ndarray:
        if self._apart and not self._at_host:
            self._tensor = self._blob.data.detach()
        return super().view(shape)


class Blob:
    """A blob with its arrays ``data`` and ``diff``, float32 in the blob's shape (caffe/blob.hpp, _caffe.cpp)."""

    def __init__(
        self, shape: Sequence[int] = (), device: torch.device = CPU, data: Array | None = None,
        diff: Array | None = None,
    ) -> None:  # fmt: skip
        """Create a blob of zeros, or one that shares arrays with other blobs."""
        self._shape: Shape = tuple(shape)
        self._data = Array(device) if data is None else data
        self._diff = Array(device) if diff is None else diff

    @property
    def data(self) -> np.ndarray:
        """The values: a view of the net's memory that can be written."""
        return self._data.view(self._shape)

    @property
    def diff(self) -> np.ndarray:
        """The gradient: a view of the net's memory that can be written."""
        return self._diff.view(self._shape)

    @property
    def shape(self) -> Vector[int]:
        """The sizes of the axes."""
        return Vector(self._shape)

    @property
    def count(self) -> int:
        """The number of values."""
        return math.prod(self._shape)

    num = property(lambda self: self._legacy(0), doc="The size of axis 0; 1 if there is none.")
    channels = property(lambda self: self._legacy(1), doc="The size of axis 1; 1 if there is none.")
    height = property(lambda self: self._legacy(2), doc="The size of axis 2; 1 if there is none.")
    width = property(lambda self: self._legacy(3), doc="The size of axis 3; 1 if there is none.")

    def _legacy(self, axis: int) -> int:
        if len(self._shape) > 4:
            raise RuntimeError(f"a blob of shape {list(self._shape)} has no num, channels, height and width: use shape")
        return self._shape[axis] if axis < len(self._shape) else 1

    def reshape(self, *shape: int, **kwargs: Any) -> None:
        """Change the shape. Values keep their order; a blob that grows beyond its memory gets new memory, zeros."""
        if kwargs:
            raise RuntimeError("Blob.reshape takes no kwargs")
        sizes = tuple(_size(size) for size in shape)
        if any(size < 0 for size in sizes):
            raise RuntimeError(f"Blob.reshape: sizes must be 0 or more, not {sizes}")
        self._shape = sizes

    def read(self) -> Tensor:
        """Return the values as a tensor for layers."""
        return self._data.read(self._shape)

    def write(self, values: Tensor, owned: bool = True) -> None:
        """Set values and shape, from a layer's result."""
        self._shape = tuple(values.shape)
        self._data.write(values, owned)

    def read_diff(self) -> Tensor:
        """Return the gradient as a tensor for layers."""
        return self._diff.read(self._shape)

    def write_diff(self, values: Tensor) -> None:
        """Set the gradient."""
        self._diff.write(values if values.shape == self._shape else values.reshape(self._shape))

    @property
    def exposed(self) -> bool:
        """Whether Python has seen the values."""
        return self._data.exposed

    def share_data(self, other: Blob) -> None:
        """Use the values of another blob (Blob::ShareData)."""
        self._data = other._data

    def share_diff(self, other: Blob) -> None:
        """Use the gradient of another blob (Blob::ShareDiff)."""
        self._diff = other._diff


def _size(size: Any) -> int:
    """Return a size given to Blob.reshape as an integer. Raise TypeError for one that is not a whole number."""
    if isinstance(size, float | np.floating) and not float(size).is_integer():
        raise TypeError(f"Blob.reshape: a size must be a whole number, not {size}")
    return int(size)


class LearnableBlob(Blob):
    """A learnable blob of a layer: weights, bias, statistics."""

    def __init__(self, blob: Learnable, apart: bool | None = None) -> None:
        super().__init__(tuple(blob.data.shape), blob.data.device, LearnableArray(blob, apart))
        self.learnable = blob

    def reshape(self, *shape: int, **kwargs: Any) -> None:
        """See `Blob.reshape`; the layer computes with its own shape, so only the count can be kept."""
        if math.prod(shape) != self.count:
            raise RuntimeError(
                f"a layer's blob of shape {list(self._shape)} cannot get shape {list(shape)}: the counts differ; "
                "change the net's prototxt instead"
            )
        super().reshape(*shape, **kwargs)


T = TypeVar("T")


class Vector(list[T]):
    """A list, as pycaffe's IntVec, StringVec, LayerVec ...: it also takes the place of a tuple in comparisons."""

    def __eq__(self, other: object) -> bool:
        """Compare with a list or a tuple."""
        return list(self) == list(other) if isinstance(other, tuple) else super().__eq__(other)

    def __ne__(self, other: object) -> bool:
        """Compare with a list or a tuple."""
        return not self == other

    def __add__(self, other: Iterable[Any]) -> Any:
        """Join with a list, or with a tuple to a tuple: a shape is a list here and a tuple in NumPy."""
        return tuple(self) + other if isinstance(other, tuple) else Vector([*self, *other])

    def __radd__(self, other: Iterable[Any]) -> Any:
        """Join as `__add__`."""
        return other + tuple(self) if isinstance(other, tuple) else Vector([*other, *self])

    __hash__ = None  # pyright: ignore[reportAssignmentType]


class BlobVec(Vector[Blob]):
    """The blobs of a layer."""

    def __init__(self, blobs: Iterable[Blob] = (), device: torch.device = CPU) -> None:
        super().__init__(blobs)
        self._device = device

    def add_blob(self, *shape: int, **kwargs: Any) -> None:
        """Append a learnable blob of zeros; only a Python layer's setup may do that."""
        if kwargs:
            raise RuntimeError("BlobVec.add_blob takes no kwargs")
        self.append(Blob([_size(size) for size in shape], self._device))
