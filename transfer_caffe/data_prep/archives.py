"""Streaming reader for tar archives of images that accepts only plain files with the expected names.

    with open("n01440764.tar", "rb") as file:
        for name, data in images("n01440764.tar", file, re.compile(r"n01440764_[0-9]+\\.JPEG"), "images"):
            ...

A tar archive may contain arbitrary paths, links and devices. Here, a member that is not a plain file or does not have
an expected name is an error that names the archive and the member. A truncated archive is an error, too; Python's
tarfile would silently accept it.
"""

from __future__ import annotations

import os
import re
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from transfer_caffe.utils.errors import UserError
from transfer_caffe.utils.files import whole_folder

MAX_IMAGE = 1 << 28
"""Maximum size of an image file in bytes; a larger file is not an image (ImageNet's largest has 15 MB)."""

_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"PK\3\4": "zip"}
_KINDS = {
    tarfile.SYMTYPE: "a link",
    tarfile.LNKTYPE: "a hard link",
    tarfile.DIRTYPE: "a folder",
    tarfile.CHRTYPE: "a device",
    tarfile.BLKTYPE: "a device",
    tarfile.FIFOTYPE: "a pipe",
}


def members(
    where: str, file: IO[bytes], pattern: re.Pattern[str], expected: str
) -> Iterator[tuple[str, tarfile.TarInfo]]:
    """Yield the members of a tar archive as (plain name, member); all are plain files with names like ``pattern``.

    ``where`` is the archive's name in error messages, ``expected`` describes its content. Names may begin with `./`.
    Raise UserError for any other member, a duplicate name, an empty or truncated archive, or another kind of file.
    """
    start = file.tell()
    head = file.read(8)
    for magic, program in _COMPRESSED.items():
        if head.startswith(magic):
            raise UserError(f"{where}: this is compressed ({program}), but must be a plain tar; decompress it first")
    file.seek(start)
    seen: set[str] = set()
    try:
        with tarfile.open(fileobj=file, mode="r:") as tar:
            for member in tar:
                if member.isdir() and member.name == ".":  # written by `tar -c .`
                    continue
                name = member.name.removeprefix("./")
                _require_plain(where, member, name, pattern, expected)
                if name in seen:
                    raise UserError(f"{where}: contains {name} twice; use an intact archive")
                seen.add(name)
                yield name, member
            end = tar.offset
    except (tarfile.TarError, ValueError, EOFError) as error:
        raise UserError(
            f"{where}: not a tar archive, or truncated or damaged ({error}); {expected} were expected"
        ) from None
    file.seek(end)
    if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):  # tarfile also accepts other data as the end
        raise UserError(f"{where}: truncated or damaged at byte {end}: its end is missing; download it again")
    if not seen:
        raise UserError(f"{where}: the archive is empty; {expected} were expected")


def _require_plain(where: str, member: tarfile.TarInfo, name: str, pattern: re.Pattern[str], expected: str) -> None:
    """Raise UserError unless a member is a plain file with an expected name."""
    if member.type not in (tarfile.REGTYPE, tarfile.AREGTYPE):
        kind = _KINDS.get(member.type, "not a plain file")
        raise UserError(f"{where}: {member.name!r} is {kind}; only plain files are allowed in the archive ({expected})")
    if not pattern.fullmatch(name):
        raise UserError(f"{where}: contains {member.name!r}, but {expected} were expected; is it the right archive?")
    if member.size < 0:
        raise UserError(f"{where}: {name}: damaged: its size is negative")


def images(where: str, file: IO[bytes], pattern: re.Pattern[str], expected: str) -> Iterator[tuple[str, bytes]]:
    """Yield the members of a tar archive of images as (plain name, bytes); errors as in `members`."""
    for name, member in members(where, file, pattern, expected):
        if member.size > MAX_IMAGE:
            raise UserError(f"{where}: {name} has {member.size} bytes, too many for an image; is it the right archive?")
        file.seek(member.offset_data)
        data = file.read(member.size)
        if len(data) < member.size:
            raise UserError(f"{where}: truncated: it ends within {name}; download it again")
        yield name, data


def unpack(
    where: str, file: IO[bytes], pattern: re.Pattern[str], expected: str, folder: Path
) -> Iterator[tuple[str, bytes]]:
    """Write a tar archive's images into the new ``folder``, atomically, and yield each as (plain name, bytes)."""
    with whole_folder(folder) as temporary:
        for name, data in images(where, file, pattern, expected):
            path = temporary / name
            try:
                with open(path, "xb") as target:
                    target.write(data)
            except OSError as error:
                error.filename = error.filename or os.fspath(path)  # the error of a failed write has no file name
                raise
            yield name, data
