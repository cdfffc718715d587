"""Caffe's messages (caffe.proto), and reading and writing of them as in Caffe.

The message classes are in `transfer_caffe.formats.proto.caffe_pb2`. `make proto` generates that file from caffe.proto
with protoc 4.25: its output works with protobuf 5, 6 and 7. Its package name differs from pycaffe's.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TypeVar

import numpy as np
from google.protobuf import text_format
from google.protobuf.message import DecodeError, Message

from transfer_caffe.formats import forks, seal
from transfer_caffe.formats.proto import caffe_pb2
from transfer_caffe.utils.errors import UserError
from transfer_caffe.utils.files import read_text as _read_text_file
from transfer_caffe.utils.files import require_checksum, write_bytes

M = TypeVar("M", bound=Message)


def parse_text(text: str, message: M, name: str) -> M:
    """Parse text format (a .prototxt) into ``message``; ``name`` is the source of the text in error messages.

    Fields of other versions of Caffe are read where their meaning is plain (`formats.forks`).
    """
    while True:
        try:
            return text_format.Parse(text, message)
        except text_format.ParseError as error:
            new = forks.rewritten(text, error, name)
            if new is None:
                raise UserError(f"{name}: not a valid {message.DESCRIPTOR.name} prototxt: line {error}") from None
        text = new
        message.Clear()


def read_text(path: str | os.PathLike[str], message: M) -> M:
    """Read a text format file into ``message``."""
    return parse_text(_read_text_file(path, comment="#"), message, os.fspath(path))


def to_text(message: Message) -> str:
    """Return a message in text format, readable by Caffe's own parser."""
    return text_format.MessageToString(message)


def read_binary(path: str | os.PathLike[str], message: M) -> M:
    """Read a binary file (.caffemodel, .solverstate, .binaryproto) into ``message``.

    Raise UserError if the file is empty, does not parse, or does not match its seal or the checksum beside it. Real
    Caffe reads an empty .caffemodel as a network without layers and silently trains from scratch.
    """
    require_checksum(path)
    data = seal.read(path)
    kind = message.DESCRIPTOR.name
    if not os.path.getsize(path):
        raise UserError(f"{os.fspath(path)}: the file is empty; a binary {kind} was expected")
    try:
        message.ParseFromString(data)
    except DecodeError:
        raise UserError(f"{os.fspath(path)}: damaged or truncated: it does not parse as a binary {kind}") from None
    return message


def write_binary(path: str | os.PathLike[str], message: Message) -> None:
    """Write a binary file atomically. Weights and solver states are sealed (`transfer_caffe.formats.seal`).

    Mean images are not sealed, so that their bytes equal compute_image_mean's; they have a checksum file instead.
    """
    if isinstance(message, caffe_pb2.NetParameter | caffe_pb2.SolverState):
        seal.write(path, message.SerializeToString())
    else:
        write_bytes(path, message.SerializeToString())


def blob_shape(blob: caffe_pb2.BlobProto) -> tuple[int, ...]:
    """Return the shape of a blob; files from before 2015 have num, channels, height, width instead of shape.

    Caffe writes a blob without axes (a scalar) as one value without any shape (Blob::ToProto).
    """
    if blob.HasField("shape"):
        return tuple(blob.shape.dim)
    if any(blob.HasField(name) for name in ("num", "channels", "height", "width")):
        return (blob.num, blob.channels, blob.height, blob.width)
    count = len(blob.data) or len(blob.double_data)
    return () if count == 1 else (count,)


def blob_to_array(blob: caffe_pb2.BlobProto, where: str) -> np.ndarray:
    """Return a blob's data as float32 in its shape. Raise UserError, naming ``where``, if count and shape disagree."""
    values = np.asarray(blob.double_data if len(blob.double_data) else blob.data, dtype=np.float32)
    shape = blob_shape(blob)
    if any(dim < 0 for dim in shape) or int(np.prod(shape, dtype=np.float64)) != values.size:
        raise UserError(f"{where}: the blob has {values.size} values, which does not match its shape {list(shape)}")
    return values.reshape(shape)


def read_mean(path: str | os.PathLike[str]) -> np.ndarray:
    """Read a mean image (.binaryproto) as a float32 array of shape (channels, height, width)."""
    mean = blob_to_array(read_binary(path, caffe_pb2.BlobProto()), os.fspath(path))
    if mean.ndim == 4 and mean.shape[0] == 1:
        mean = mean[0]
    if mean.ndim != 3 or not np.isfinite(mean).all():
        raise UserError(
            f"{path}: not a mean image: one image of finite values was expected, not a blob of shape {list(mean.shape)}"
        )
    return mean


def array_to_blob(array: np.ndarray, shape: Sequence[int] | None = None) -> caffe_pb2.BlobProto:
    """Return a BlobProto with ``array`` as float32, in its shape (or in ``shape``, with the same count)."""
    blob = caffe_pb2.BlobProto()
    blob.shape.SetInParent()  # a blob without axes has a shape too
    blob.shape.dim.extend(int(dim) for dim in (array.shape if shape is None else shape))
    # extend() with Python floats is slow for 60 M weights; a packed field consists of the array's bytes
    blob.MergeFromString(_packed_floats(5, np.ascontiguousarray(array, dtype="<f4").tobytes()))
    return blob


def _packed_floats(field: int, data: bytes) -> bytes:
    """Return the wire format of a packed float field: its tag, the length as a varint, the data."""
    length, size = bytearray(), len(data)
    while size > 0x7F:
        length.append(size & 0x7F | 0x80)
        size >>= 7
    length.append(size)
    return bytes([field << 3 | 2]) + bytes(length) + data
