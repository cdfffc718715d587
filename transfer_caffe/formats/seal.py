"""Seals: checksums inside the weights and solver states that this program writes, which real Caffe does not see.

    header | the message's bytes | trailer         .caffemodel, .solverstate
    the HDF5 file's bytes        | trailer         .caffemodel.h5, .solverstate.h5

Header and trailer are fields of a number that no Caffe message has, so that every reader of protocol buffers passes
over them; the trailer holds the sha256 of all bytes before it. HDF5 readers do not look behind the end that the file's
own superblock gives. A file with header or trailer is sealed and must have both, whole: so damage to one of them is
seen by the other. For HDF5 files the root attribute `sealed` is the header: where it is 1, `verify` must say True.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import BinaryIO

from transfer_caffe.utils.errors import UserError
from transfer_caffe.utils.files import whole_file

_KEY = b"\xe2\xea\x09"  # field 20140, length-delimited
HEADER = _KEY + b"\x10" + b"sealed by sha256"
_MARK = _KEY + b"\x20"
TRAILER_BYTES = len(_MARK) + hashlib.sha256().digest_size


def write(path: str | os.PathLike[str], message: bytes) -> None:
    """Write a serialized message as a sealed file, whole or not at all."""
    digest = hashlib.sha256(HEADER)
    digest.update(message)
    with whole_file(path) as temporary, open(temporary, "wb") as file:
        for part in (HEADER, message, _MARK, digest.digest()):
            file.write(part)


def read(path: str | os.PathLike[str]) -> bytes:
    """The bytes of a message, without the seal if there is one. UserError if the seal tells of damage."""
    with open(path, "rb") as file:
        if _is_whole(file, path):
            file.seek(len(HEADER))
            return file.read(_size(file) - len(HEADER) - TRAILER_BYTES)
        file.seek(0)
        data = file.read()
    # a header amid the file was moved there, unless a program that keeps unknown fields has written the file anew
    rest = len(data) - TRAILER_BYTES - len(HEADER)
    place = data.find(HEADER)
    if place not in (-1, rest):
        raise _damaged(path)
    return data if place < 0 else data[:rest]


def append(path: str | os.PathLike[str]) -> None:
    """Append the trailer to a finished HDF5 file, in place: for a file that has its temporary name still."""
    with open(path, "r+b") as file:
        digest = _sha256(file, _size(file))
        file.seek(0, os.SEEK_END)
        file.write(_MARK + digest)


def verify(path: str | os.PathLike[str]) -> bool:
    """True if the file is sealed and whole, False if it has no seal; UserError if it is sealed and damaged."""
    with open(path, "rb") as file:
        return _is_whole(file, path)


def _is_whole(file: BinaryIO, path: str | os.PathLike[str]) -> bool:
    head, size = file.read(len(HEADER)), _size(file)
    file.seek(max(size - TRAILER_BYTES - len(HEADER), 0))
    end = file.read()
    before, trailer = end[:-TRAILER_BYTES], end[-TRAILER_BYTES:]
    headed = head[:4] == HEADER[:4] or head[4:] == HEADER[4:]
    trailed = len(trailer) == TRAILER_BYTES and trailer.startswith(_MARK)
    if not headed and (not trailed or before == HEADER):
        # no seal; or the two fields side by side at the end: so a program puts them that read the file as a message
        # and has written it anew, such as upgrade_net_proto_binary
        return False
    foreign = head.startswith(b"\x89HDF\r\n\x1a\n")
    if not trailed or (head != HEADER and not foreign) or _sha256(file, size - TRAILER_BYTES) != trailer[len(_MARK) :]:
        raise _damaged(path)
    return True


def _damaged(path: str | os.PathLike[str]) -> UserError:
    return UserError(
        f"{Path(path)}: damaged or truncated: its checksum is not that of the file as it was written; "
        "take a copy that is whole, or make it anew"
    )


def _size(file: BinaryIO) -> int:
    return os.fstat(file.fileno()).st_size


def _sha256(file: BinaryIO, size: int) -> bytes:
    """The sha256 of the first ``size`` bytes."""
    digest, buffer = hashlib.sha256(), memoryview(bytearray(1 << 20))
    file.seek(0)
    while size > 0 and (count := file.readinto(buffer[: min(size, len(buffer))])):  # pyright: ignore
        digest.update(buffer[:count])
        size -= count
    return digest.digest()
