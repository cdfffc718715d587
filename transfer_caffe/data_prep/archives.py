"""Tar archives of images, read as a stream, from which nothing can come but plain files of the expected names.

    with open("n01440764.tar", "rb") as file:
        for name, data in images("n01440764.tar", file, re.compile(r"n01440764_[0-9]+\\.JPEG"), "images"):
            ...

A tar may name any path, link or device. Whatever is no plain file, or not of the expected name, is an error here that
names archive and member; and an archive that ends early is one, where Python's tarfile would say nothing.
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
"""No image file is larger; what is, is no image (the largest of ImageNet has 15 MB)."""

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
    """The members of a tar, as (plain name, member); all are plain files whose names match ``pattern``.

    ``where`` names the tar in errors, ``expected`` what it should hold. Names may begin with `./`. UserError for any
    other member, a name twice, no members at all, a tar that ends early or is none.
    """
    start = file.tell()
    head = file.read(8)
    for magic, program in _COMPRESSED.items():
        if head.startswith(magic):
            raise UserError(f"{where}: this is compressed ({program}), a plain tar was expected; decompress it first")
    file.seek(start)
    seen: set[str] = set()
    try:
        with tarfile.open(fileobj=file, mode="r:") as tar:
            for member in tar:
                if member.isdir() and member.name == ".":  # of `tar -c .`
                    continue
                name = member.name.removeprefix("./")
                _require_plain(where, member, name, pattern, expected)
                if name in seen:
                    raise UserError(f"{where}: {name} is in it twice; take an archive that is whole")
                seen.add(name)
                yield name, member
            end = tar.offset
    except (tarfile.TarError, ValueError, EOFError) as error:
        raise UserError(
            f"{where}: not a tar archive, or truncated or damaged ({error}); {expected} were expected"
        ) from None
    file.seek(end)
    if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):  # tarfile takes this for the end as well
        raise UserError(f"{where}: truncated or damaged at byte {end}: its end is missing; fetch it again")
    if not seen:
        raise UserError(f"{where}: the archive is empty; {expected} were expected")


def _require_plain(where: str, member: tarfile.TarInfo, name: str, pattern: re.Pattern[str], expected: str) -> None:
    if member.type not in (tarfile.REGTYPE, tarfile.AREGTYPE):
        kind = _KINDS.get(member.type, "no plain file")
        raise UserError(f"{where}: {member.name!r} is {kind}; only plain files are taken from an archive ({expected})")
    if not pattern.fullmatch(name):
        raise UserError(f"{where}: it holds {member.name!r}, where {expected} were expected; is it the right archive?")
    if member.size < 0:
        raise UserError(f"{where}: {name}: damaged: its size is negative")


def images(where: str, file: IO[bytes], pattern: re.Pattern[str], expected: str) -> Iterator[tuple[str, bytes]]:
    """The members of a tar of images, as (plain name, bytes); errors as in `members`."""
    for name, member in members(where, file, pattern, expected):
        if member.size > MAX_IMAGE:
            raise UserError(f"{where}: {name} has {member.size} bytes; that is no image")
        file.seek(member.offset_data)
        data = file.read(member.size)
        if len(data) < member.size:
            raise UserError(f"{where}: truncated: it ends within {name}; fetch it again")
        yield name, data


def unpack(
    where: str, file: IO[bytes], pattern: re.Pattern[str], expected: str, folder: Path
) -> Iterator[tuple[str, bytes]]:
    """Write a tar's images into the new ``folder`` and yield each; the folder appears after the last one, whole."""
    with whole_folder(folder) as temporary:
        for name, data in images(where, file, pattern, expected):
            path = temporary / name
            try:
                with open(path, "xb") as target:
                    target.write(data)
            except OSError as error:
                error.filename = error.filename or os.fspath(path)  # a write that fails does not say where
                raise
            yield name, data
