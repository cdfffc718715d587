"""Seals: checksums inside the weights and solver states that this program writes. Real Caffe ignores them.

    header | the message's bytes | trailer         .caffemodel, .solverstate
    the HDF5 file's bytes        | trailer         .caffemodel.h5, .solverstate.h5

Header and trailer are fields with a number that no Caffe message uses, so every protocol buffer reader skips them. The
trailer contains the SHA-256 of all bytes before it. HDF5 readers do not read beyond the end that is given in the file's
superblock. A file with a header or a trailer is sealed and must have both intact, so damage to one of them is detected
by the other. In HDF5 files the root attribute `sealed` replaces the header: if it is 1, `verify` must return True.
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
    """Write a serialized message atomically as a sealed file."""
    digest = hashlib.sha256(HEADER)
    digest.update(message)
    with whole_file(path) as temporary, open(temporary, "wb") as file:
        for part in (HEADER, message, _MARK, digest.digest()):
            file.write(part)


def read(path: str | os.PathLike[str]) -> bytes:
    """Return the bytes of a message without its seal, if it has one. Raise UserError if the seal does not match."""
    with open(path, "rb") as file:
        if _is_whole(file, path):
            file.seek(len(HEADER))
            return file.read(_size(file) - len(HEADER) - TRAILER_BYTES)
        file.seek(0)
        data = file.read()
    # A header in the middle of the file is a sign of damage. At the end, beside the trailer, it was put by a program
    # that keeps unknown fields and has rewritten the file.
    rest = len(data) - TRAILER_BYTES - len(HEADER)
    place = data.find(HEADER)
    if place not in (-1, rest):
        raise _damaged(path)
    return data if place < 0 else data[:rest]


def append(path: str | os.PathLike[str]) -> None:
    """Append the trailer to a finished HDF5 file in place, while it still has its temporary name."""
    with open(path, "r+b") as file:
        digest = _sha256(file, _size(file))
        file.seek(0, os.SEEK_END)
        file.write(_MARK + digest)


def verify(path: str | os.PathLike[str]) -> bool:
    """Return True if the file is sealed and intact, False if it has no seal. Raise UserError if it is damaged."""
    with open(path, "rb") as file:
        return _is_whole(file, path)


def _is_whole(file: BinaryIO, path: str | os.PathLike[str]) -> bool:
    """Do the same as `verify` for an open file."""
    head, size = file.read(len(HEADER)), _size(file)
    file.seek(max(size - TRAILER_BYTES - len(HEADER), 0))
    end = file.read()
    before, trailer = end[:-TRAILER_BYTES], end[-TRAILER_BYTES:]
    headed = head[:4] == HEADER[:4] or head[4:] == HEADER[4:]
    trailed = len(trailer) == TRAILER_BYTES and trailer.startswith(_MARK)
    if not headed and (not trailed or before == HEADER):
        # no seal, or both fields together at the end: a program such as upgrade_net_proto_binary, which reads the
        # message and rewrites the file, moves them there
        return False
    foreign = head.startswith(b"\x89HDF\r\n\x1a\n")
    if not trailed or (head != HEADER and not foreign) or _sha256(file, size - TRAILER_BYTES) != trailer[len(_MARK) :]:
        raise _damaged(path)
    return True


def _damaged(path: str | os.PathLike[str]) -> UserError:
    return UserError(
        f"{Path(path)}: damaged or truncated: the checksum in the file does not match its content; "
        "use an intact copy, or create the file again"
    )


def _size(file: BinaryIO) -> int:
    return os.fstat(file.fileno()).st_size


def _sha256(file: BinaryIO, size: int) -> bytes:
    """Return the SHA-256 of the first ``size`` bytes."""
    digest, buffer = hashlib.sha256(), memoryview(bytearray(1 << 20))
    file.seek(0)
    while size > 0 and (count := file.readinto(buffer[: min(size, len(buffer))])):  # pyright: ignore
        digest.update(buffer[:count])
        size -= count
    return digest.digest()
