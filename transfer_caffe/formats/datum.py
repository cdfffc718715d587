"""Datum records: one image and its label, raw or encoded, as Caffe stores them (src/caffe/util/io.cpp).

image, label = decode_datum(data, "record 7")       # (channels, height, width) uint8, channels in the order BGR
"""

from __future__ import annotations

import numpy as np
from google.protobuf.message import DecodeError

from transfer_caffe.formats.proto import caffe_pb2
from transfer_caffe.utils.errors import UserError


def decode_datum(data: bytes | memoryview, where: str, color: bool | None = None) -> tuple[np.ndarray, int]:
    """Decode a serialized Datum to (array, label); the array is C x H x W, uint8, or float32 if it has float_data.

    An encoded image keeps its number of channels (1 if it is gray). With ``color=True`` it is decoded to three channels
    (BGR), with ``color=False`` to one: the Data layer's force_color and force_gray. Raises UserError, starting with
    ``where``, if the record is damaged. The array may be read-only, because it can share the record's bytes.
    """
    datum = caffe_pb2.Datum()
    try:
        datum.ParseFromString(data)  # pyright: ignore[reportArgumentType]
    except DecodeError:
        raise UserError(f"{where}: damaged: it does not parse as a Datum; build the database again") from None
    if datum.encoded:
        return _decode_image(datum.data, where, color), datum.label
    shape = (datum.channels, datum.height, datum.width)
    array = np.frombuffer(datum.data, np.uint8) if datum.data else np.asarray(datum.float_data, np.float32)
    if min(shape) < 1 or array.size != shape[0] * shape[1] * shape[2]:
        raise UserError(
            f"{where}: damaged: a Datum of shape {shape[0]}x{shape[1]}x{shape[2]} (channels, height, width) "
            f"with {array.size} values; build the database again"
        )
    return array.reshape(shape), datum.label


def _decode_image(data: bytes, where: str, color: bool | None) -> np.ndarray:
    """Decode an image file's bytes to a C x H x W array. Raise UserError if that fails or the image is not 8-bit."""
    import cv2  # only encoded databases need it, and importing it is slow

    flag = {None: cv2.IMREAD_UNCHANGED, True: cv2.IMREAD_COLOR, False: cv2.IMREAD_GRAYSCALE}[color]
    image = cv2.imdecode(np.frombuffer(data, np.uint8), flag) if data else None
    if image is None:
        raise UserError(f"{where}: damaged: its encoded image cannot be decoded; build the database again")
    if image.dtype != np.uint8:
        raise UserError(f"{where}: its encoded image has {image.dtype} pixels; Caffe supports only 8 bits per channel")
    return image[None] if image.ndim == 2 else image.transpose(2, 0, 1)


def raw_datum(image: np.ndarray, label: int) -> bytes:
    """Serialize an 8-bit image, H x W or H x W x C, as CVMatToDatum does: channels first, ``encoded`` set to false."""
    if image.dtype != np.uint8 or image.ndim not in (2, 3):
        raise ValueError(f"an 8-bit image was expected, not {image.dtype} of shape {image.shape}")
    planes = image[None] if image.ndim == 2 else image.transpose(2, 0, 1)
    channels, height, width = planes.shape
    datum = caffe_pb2.Datum(
        channels=channels, height=height, width=width, data=planes.tobytes(), label=label, encoded=False
    )
    return datum.SerializeToString()


def encoded_datum(data: bytes, label: int) -> bytes:
    """Serialize an image file's bytes as Caffe's ReadFileToDatum does: without channels, height and width."""
    return caffe_pb2.Datum(data=data, label=label, encoded=True).SerializeToString()


def relabelled(data: bytes, label: int, where: str) -> bytes:
    """Return a serialized Datum with its label replaced. Raise UserError if it does not parse."""
    try:
        datum = caffe_pb2.Datum.FromString(data)
    except DecodeError:
        raise UserError(f"{where}: damaged: it does not parse as a Datum; build the database again") from None
    datum.label = label
    return datum.SerializeToString()
