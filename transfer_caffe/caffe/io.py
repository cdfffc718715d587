"""Images, messages and arrays, and the preparation of images for a net (python/caffe/io.py).

Linear resizing gives the numbers of pycaffe with scikit-image 0.15 to 0.18 (Debian 11 has 0.18), which smooths an image
before it makes it smaller. The names that scripts take from this module because pycaffe's imports them, ``resize``,
``skimage`` and ``zoom``, are there if their packages are.
"""

from __future__ import annotations

import importlib
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np

from transfer_caffe.caffe.errors import CaffeError
from transfer_caffe.formats.proto import caffe_pb2

# messages and arrays


def blobproto_to_array(blob: caffe_pb2.BlobProto, return_diff: bool = False) -> np.ndarray:
    """Return the data, or with ``return_diff`` the gradient, of a BlobProto, in its shape."""
    values = np.array(blob.diff if return_diff else blob.data, float)
    if any(blob.HasField(name) for name in ("num", "channels", "height", "width")):
        return values.reshape(blob.num, blob.channels, blob.height, blob.width)
    return values.reshape(tuple(blob.shape.dim))


def array_to_blobproto(arr: np.ndarray, diff: np.ndarray | None = None) -> caffe_pb2.BlobProto:
    """Return a BlobProto of an array, and of a gradient of the same shape if one is given."""
    blob = caffe_pb2.BlobProto()
    blob.shape.dim.extend(arr.shape)
    blob.data.extend(np.asarray(arr, float).ravel())
    if diff is not None:
        blob.diff.extend(np.asarray(diff, float).ravel())
    return blob


def arraylist_to_blobprotovector_str(arraylist: Iterable[np.ndarray]) -> bytes:
    """Return arrays as a serialized BlobProtoVector."""
    return caffe_pb2.BlobProtoVector(blobs=[array_to_blobproto(array) for array in arraylist]).SerializeToString()


def blobprotovector_str_to_arraylist(str: bytes) -> list[np.ndarray]:
    """Return the arrays of a serialized BlobProtoVector."""
    vector = caffe_pb2.BlobProtoVector()
    vector.ParseFromString(str)
    return [blobproto_to_array(blob) for blob in vector.blobs]


def array_to_datum(arr: np.ndarray, label: int | None = None) -> caffe_pb2.Datum:
    """Return a Datum of an array of 3 axes: bytes if it is uint8, otherwise floats."""
    if arr.ndim != 3:
        raise ValueError(f"Incorrect array shape: a datum has 3 axes (channels, height, width), not {arr.ndim}.")
    datum = caffe_pb2.Datum(channels=arr.shape[0], height=arr.shape[1], width=arr.shape[2])
    if arr.dtype == np.uint8:
        datum.data = arr.tobytes()
    else:
        datum.float_data.extend(np.asarray(arr, float).ravel())
    if label is not None:
        datum.label = label
    return datum


def datum_to_array(datum: caffe_pb2.Datum) -> np.ndarray:
    """Return the values of a Datum, (channels, height, width): uint8 if it has bytes, otherwise float64."""
    values = np.frombuffer(datum.data, np.uint8).copy() if datum.data else np.array(datum.float_data, float)
    return values.reshape(datum.channels, datum.height, datum.width)


# images


class ImageError(CaffeError, OSError):
    """An image that cannot be read: the errors of pycaffe's readers are OSErrors."""


class MissingImageError(ImageError, FileNotFoundError):
    """An image file that is not there."""


def __getattr__(name: str) -> Any:
    """Return what pycaffe's module has by its imports (see the module's docstring)."""
    if name == "zoom":
        return importlib.import_module("scipy.ndimage").zoom
    if name in ("skimage", "resize"):
        try:
            importlib.import_module("skimage.io")
            transform = importlib.import_module("skimage.transform")
        except ImportError:
            raise AttributeError(f"caffe.io.{name} is scikit-image's: pip install scikit-image") from None
        return transform.resize if name == "resize" else importlib.import_module("skimage")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def load_image(filename: str | os.PathLike[str] | IO[bytes], color: bool = True) -> np.ndarray:
    """Return an image as float32 from 0 to 1: (height, width, 3) in RGB, or without ``color`` (height, width, 1).

    ``filename`` may be an open file. Transparency is dropped. Raise `ImageError` for a file that is no image.
    """
    import cv2  # imported here, since importing it takes a while

    if isinstance(filename, str | os.PathLike):
        name = os.fspath(filename)
        try:
            data = Path(name).read_bytes()
        except FileNotFoundError:
            raise MissingImageError(f"Could not open file {name}: no such file") from None
        except OSError as error:
            raise ImageError(f"Could not open file {name}: {error.strerror}") from None
    else:
        name, data = str(getattr(filename, "name", "this file")), filename.read()
    content = np.frombuffer(data, np.uint8)
    image = cv2.imdecode(content, cv2.IMREAD_UNCHANGED) if content.size else None
    if image is None:
        raise ImageError(f"{name}: cannot be read as an image")
    if image.dtype not in (np.uint8, np.uint16):
        scaled = np.asarray(image, np.float64)
    else:
        scaled = image / float(np.iinfo(image.dtype).max)
    if scaled.ndim == 2:
        return np.asarray(np.repeat(scaled[:, :, None], 3 if color else 1, 2), np.float32)
    rgb = scaled[:, :, 2::-1] if scaled.shape[2] > 2 else np.repeat(scaled[:, :, :1], 3, 2)
    if color:
        return np.ascontiguousarray(rgb, np.float32)
    return np.asarray((rgb @ np.array([0.2125, 0.7154, 0.0721]))[:, :, None], np.float32)


def resize_image(im: np.ndarray, new_dims: Sequence[int], interp_order: int = 1) -> np.ndarray:
    """Return an image (height, width, channels) in another size, as float32; by default interpolated linearly.

    ``new_dims`` are height and width, and perhaps the channels, which stay as they are.
    """
    height, width = (int(size) for size in new_dims[:2])
    if len(new_dims) > 3 or tuple(new_dims[2:]) not in ((), im.shape[2:]):
        raise ValueError(f"resize_image: an image of shape {im.shape} cannot get the shape {tuple(new_dims)}")
    if im.shape[-1] not in (1, 3):
        from scipy.ndimage import zoom

        scale = height / im.shape[0], width / im.shape[1], 1.0
        return np.asarray(zoom(im, scale, order=interp_order), np.float32)
    least, most = im.min(), im.max()
    if not most > least:
        return np.full((height, width, im.shape[-1]), least, np.float32)
    scaled = (im - least) / (most - least)
    resized = _resized(np.asarray(scaled, np.float64), (height, width), interp_order)
    return (resized * (most - least) + least).astype(np.float32)


def _resized(image: np.ndarray, size: tuple[int, int], order: int) -> np.ndarray:
    """Return an image with values from 0 to 1 in another size; beyond its border, it is 0."""
    from scipy import ndimage

    factors = [image.shape[axis] / size[axis] for axis in (0, 1)]
    if max(factors) > 1:
        sigma = [max(0.0, (factor - 1) / 2) for factor in factors]
        image = ndimage.gaussian_filter(image, [*sigma, 0], cval=0.0, mode="constant")
    places = np.meshgrid(
        *((np.arange(count) + 0.5) * factor - 0.5 for count, factor in zip(size, factors, strict=True)), indexing="ij"
    )
    channels = [
        ndimage.map_coordinates(image[:, :, channel], places, order=order, mode="grid-constant", cval=0.0)
        for channel in range(image.shape[2])
    ]
    resized = np.stack(channels, -1)
    return np.clip(resized, min(image.min(), 0.0), image.max())


def oversample(images: Sequence[np.ndarray] | np.ndarray, crop_dims: Sequence[int] | np.ndarray) -> np.ndarray:
    """Return ten crops of each image, (10 x images, height, width, channels): corners, centre, and these mirrored."""
    height, width = (int(size) for size in crop_dims)
    rows, columns = images[0].shape[0], images[0].shape[1]
    corners = [(top, left) for top in (0, rows - height) for left in (0, columns - width)]
    corners.append((int(rows / 2.0 - height / 2.0), int(columns / 2.0 - width / 2.0)))
    crops = []
    for image in images:
        own = [image[top : top + height, left : left + width] for top, left in corners]
        crops += [*own, *(crop[:, ::-1] for crop in own)]
    return np.array(crops, np.float32)


class Transformer:
    """Prepare images for the inputs of a net.

    ``inputs`` are the shapes of the inputs by name: {"data": net.blobs["data"].data.shape}. What the methods set is
    applied in this order: resize, transpose, swap channels, raw_scale, mean, input_scale.
    """

    def __init__(self, inputs: Mapping[str, Sequence[int]]) -> None:
        """Create a transformer that only resizes."""
        self.inputs = inputs
        self.transpose: dict[str, Sequence[int]] = {}
        self.channel_swap: dict[str, Sequence[int]] = {}
        self.raw_scale: dict[str, float] = {}
        self.mean: dict[str, np.ndarray] = {}
        self.input_scale: dict[str, float] = {}

    def _shape(self, in_: str) -> tuple[int, ...]:
        if in_ not in self.inputs:
            raise ValueError(f"{in_} is not one of the net inputs: {dict(self.inputs)}")
        return tuple(self.inputs[in_])

    def preprocess(self, in_: str, data: np.ndarray) -> np.ndarray:
        """Return an image (height, width, channels) as an input, float32 (channels, height, width)."""
        size = self._shape(in_)[2:]
        image = np.array(data, np.float32)
        if image.shape[:2] != size:
            image = resize_image(image, size)
        if in_ in self.transpose:
            image = image.transpose(self.transpose[in_])
        if in_ in self.channel_swap:
            image = image[list(self.channel_swap[in_])]
        if self.raw_scale.get(in_) is not None:
            image *= self.raw_scale[in_]
        if self.mean.get(in_) is not None:
            image -= self.mean[in_]
        if self.input_scale.get(in_) is not None:
            image *= self.input_scale[in_]
        return image

    def deprocess(self, in_: str, data: np.ndarray) -> np.ndarray:
        """Return the image of an input: the inverse of `preprocess`, except for the size."""
        self._shape(in_)
        image = np.array(data).squeeze()
        if self.input_scale.get(in_) is not None:
            image /= self.input_scale[in_]
        if self.mean.get(in_) is not None:
            image += self.mean[in_]
        if self.raw_scale.get(in_) is not None:
            image /= self.raw_scale[in_]
        if in_ in self.channel_swap:
            image = image[np.argsort(self.channel_swap[in_])]
        if in_ in self.transpose:
            image = image.transpose(np.argsort(self.transpose[in_]))
        return image

    def set_transpose(self, in_: str, order: Sequence[int]) -> None:
        """Set the order of axes; (2, 0, 1) makes (channels, height, width) of an image."""
        if len(order) != len(self._shape(in_)) - 1:
            raise ValueError("Transpose order needs to have the same number of dimensions as the input.")
        self.transpose[in_] = order

    def set_channel_swap(self, in_: str, order: Sequence[int]) -> None:
        """Set the order of channels; (2, 1, 0) makes BGR of RGB."""
        if len(order) != self._shape(in_)[1]:
            raise ValueError("Channel swap needs to have the same number of dimensions as the input channels.")
        self.channel_swap[in_] = order

    def set_raw_scale(self, in_: str, scale: float) -> None:
        """Set a factor that is applied before the mean is subtracted: 255 for nets trained on bytes."""
        self._shape(in_)
        self.raw_scale[in_] = scale

    def set_mean(self, in_: str, mean: np.ndarray) -> None:
        """Set the mean to subtract: one value per channel, or an image, which is resized to the input's size."""
        shape = self._shape(in_)
        if mean.ndim == 1:
            if len(mean) != shape[1]:
                raise ValueError(f"Mean channels incompatible with input: {len(mean)} for {shape[1]}.")
            mean = mean[:, None, None]
        else:
            own = (1,) * (3 - mean.ndim) + mean.shape
            if len(own) != 3:
                raise ValueError(f"Mean shape invalid: {list(mean.shape)}.")
            if own != shape[1:]:
                least, most = float(mean.min()), float(mean.max())
                spread = (most - least) or 1.0
                scaled = ((mean.reshape(own) - least) / spread).transpose(1, 2, 0)
                mean = resize_image(scaled, shape[2:]).transpose(2, 0, 1) * spread + least
        self.mean[in_] = mean

    def set_input_scale(self, in_: str, scale: float) -> None:
        """Set a factor that is applied after the mean is subtracted."""
        self._shape(in_)
        self.input_scale[in_] = scale


def transformer_of(net: Any, mean: Any, input_scale: Any, raw_scale: Any, channel_swap: Any) -> Transformer:
    """Return the transformer of a net's first input, as `Classifier` and `Detector` use it."""
    name = net.inputs[0]
    transformer = Transformer({name: tuple(net.blobs[name].shape)})
    transformer.set_transpose(name, (2, 0, 1))
    setters = {"set_mean": mean, "set_input_scale": input_scale, "set_raw_scale": raw_scale}
    for method, value in {**setters, "set_channel_swap": channel_swap}.items():
        if value is not None:
            getattr(transformer, method)(name, value)
    return transformer


def centre_crop(images: np.ndarray, crop_dims: Sequence[int] | np.ndarray) -> np.ndarray:
    """Return the centres of images (count, height, width, channels)."""
    starts = [int(size / 2.0 - crop / 2.0) for size, crop in zip(images.shape[1:3], crop_dims, strict=True)]
    (top, left), (height, width) = starts, (math.floor(crop) for crop in crop_dims)
    return images[:, top : top + height, left : left + width]
