"""Consistency checks of an LMDB's pages before liblmdb maps the file, and sequential reading of the file.

liblmdb trusts the file. With a damaged page number, offset or length it reads beyond the map, and SIGSEGV, SIGBUS or an
assertion then ends the process. This module first checks everything that a reader follows: the two meta pages, and the
tree from its root to the position of each record. The content of records is not checked, and the pages of large records
are not read. The layout is LMDB 0.9's (MDB_meta, MDB_page, MDB_node in its mdb.c) on 64-bit little-endian machines.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

# page number, unused, kind, end of the list of nodes, start of the nodes
_PAGE = struct.Struct("<QHHHH")
# magic, version, address, map size; page size, environment flags, the rest of the tree of free pages;
# unused, flags, depth, branch pages, leaf pages, overflow pages, entries, root; last page, transaction
_META = struct.Struct("<IIQQIH42x4xHHQQQQQQQ")
_NODE = struct.Struct("<HHHH")  # low and high half of size or page, flags or highest part of page, key size
_MAGIC, _VERSION = 0xBEEFC0DE, 1
_BRANCH, _LEAF, _META_KIND = 1, 2, 8
_ELSEWHERE = 1  # flag of a node whose value is on overflow pages
_INTEGER_KEY, _NO_SUBDIR = 8, 0x4000  # the environment's flags that are allowed
_NO_ROOT = (1 << 64) - 1
_MOST_LEVELS = 32  # the maximum depth of liblmdb's cursors


class Unsound(Exception):
    """The file is damaged or is not an LMDB; the message says what is wrong with it."""


@dataclass(frozen=True)
class _Meta:
    """The fields of a meta page (MDB_meta)."""

    map_size: int
    page_size: int
    flags: int
    depth: int
    branches: int
    leaves: int
    overflows: int
    entries: int
    root: int
    last: int
    transaction: int


def check(path: str | os.PathLike[str]) -> None:
    """Raise Unsound if liblmdb could fail on the file ``path``, a data.mdb with one tree and one value per key.

    Pages after the last one that the tree uses may be missing: they were freed before they were ever written.
    """
    for _ in keys(path):
        pass


def keys(path: str | os.PathLike[str]) -> Iterator[bytes]:
    """Yield the keys of the file ``path``, in order, with the checks of `check`.

    Large records are not read: liblmdb would read a page of each, which takes hours for a million of them on a disk.
    """
    with open(path, "rb", buffering=0) as file:
        yield from _checked(file.fileno(), os.fstat(file.fileno()).st_size)


def _checked(file: int, size: int) -> Iterator[bytes]:
    """Check the meta pages, then yield the keys of the tree; ``size``: the file's size in bytes."""
    metas = [_meta(os.pread(file, 4096, 0), 0)]
    page_size = metas[0].page_size
    if size < 2 * page_size or size % page_size:
        raise Unsound(f"truncated: the size of {size} bytes is not a multiple of the page size")
    metas.append(_meta(os.pread(file, page_size, page_size), 1))
    if metas[1].page_size != page_size:
        raise Unsound("the two meta pages differ in the page size")
    meta = max(metas, key=lambda each: each.transaction)
    if meta.flags:
        raise Unsound(f"the database has flags {meta.flags}, which Caffe does not set")
    if meta.map_size < (meta.last + 1) * page_size:
        raise Unsound(f"the map of {meta.map_size} bytes is too small for {meta.last + 1} pages")
    if meta.root == _NO_ROOT:
        return
    if not 1 <= meta.depth <= _MOST_LEVELS:
        raise Unsound(f"the tree has {meta.depth} levels; 1 to {_MOST_LEVELS} are possible")
    yield from _walk(file, min(size // page_size, meta.last + 1), meta)


def _meta(page: bytes, number: int) -> _Meta:
    """Parse meta page ``number`` (0 or 1). Raise Unsound if it is damaged."""
    if len(page) < _PAGE.size + _META.size:
        raise Unsound("truncated: the two meta pages are not complete")
    own_number, _, kind, _, _ = _PAGE.unpack_from(page)
    magic, version, _, map_size, page_size, environment, *rest = _META.unpack_from(page, _PAGE.size)
    if magic != _MAGIC or version != _VERSION or kind != _META_KIND or own_number != number:
        raise Unsound(f"meta page {number} is damaged, or the file is not an LMDB")
    if page_size not in (512, 1024, 2048, 4096, 8192, 16384, 32768, 65536):
        raise Unsound(f"meta page {number} has an invalid page size, {page_size}")
    if environment & ~_NO_SUBDIR != _INTEGER_KEY:
        raise Unsound(f"meta page {number} has unsupported flags, {environment}")
    return _Meta(map_size, page_size, *rest)


def _walk(file: int, pages: int, meta: _Meta) -> Iterator[bytes]:
    """Walk the tree in the order of the keys and yield each key. ``pages``: number of pages in the file."""
    size, node_at = meta.page_size, _NODE.unpack_from
    used = bytearray(pages)
    branches = leaves = overflows = entries = 0
    last_key = b""
    todo = [(meta.root, 1, b"")]  # page, its level, the lower bound of its keys
    while todo:
        number, level, bound = todo.pop()
        _use(used, number, 1)
        page = os.pread(file, size, number * size)
        own_number, _, kind, lower, upper = _PAGE.unpack_from(page)
        leaf = level == meta.depth
        if own_number != number or kind != (_LEAF if leaf else _BRANCH):
            raise Unsound(f"page {number} has another number or kind than expected")
        count = (lower - _PAGE.size) // 2
        if lower % 2 or not _PAGE.size <= lower <= upper <= size or count < (1 if leaf else 2):
            raise Unsound(f"page {number} is damaged: its bounds {lower} and {upper} are invalid")
        offsets = struct.unpack_from(f"<{count}H", page, _PAGE.size)
        if min(offsets) < upper or max(offsets) > size - _NODE.size:
            raise Unsound(f"page {number} is damaged: a node is outside the page")
        if bound and bound <= last_key:
            raise Unsound(f"page {number} is out of order")
        if leaf:
            leaves += 1
            entries += count
            for offset in offsets:
                low, high, flags, key_size = node_at(page, offset)
                value_at = offset + _NODE.size + key_size
                key, length = page[offset + _NODE.size : value_at], low | high << 16
                if flags & ~_ELSEWHERE or value_at + (8 if flags else length) > size:
                    raise Unsound(f"page {number} is damaged: a record exceeds the page")
                if not last_key < key or key < bound:
                    raise Unsound(f"page {number} is damaged: its keys are out of order")
                last_key = key
                if flags:
                    needed = (_PAGE.size - 1 + length) // size + 1
                    _use(used, int.from_bytes(page[value_at : value_at + 8], "little"), needed)
                    overflows += needed
                yield key
        else:
            branches += 1
            below = []
            for index, offset in enumerate(offsets):
                low, high, top, key_size = node_at(page, offset)
                end = offset + _NODE.size + key_size
                if end > size:
                    raise Unsound(f"page {number} is damaged: a key exceeds the page")
                # the first key of a branch page is not used
                key = page[offset + _NODE.size : end] if index else bound
                below.append((low | high << 16 | top << 32, level + 1, key))
            todo += reversed(below)
    if (branches, leaves, overflows, entries) != (meta.branches, meta.leaves, meta.overflows, meta.entries):
        raise Unsound("the numbers of pages and records differ from those in the meta page")


def _use(used: bytearray, first: int, count: int) -> None:
    """Mark pages as used. Raise Unsound if one is beyond the end of the file or is used already."""
    if first < 2 or first + count > len(used):
        raise Unsound(f"truncated or damaged: pages {first} to {first + count - 1} are used, but there are {len(used)}")
    if used.find(1, first, first + count) >= 0:
        raise Unsound(f"page {first} is used twice")
    used[first : first + count] = b"\1" * count


_AHEAD = 64 << 20


class Scan:
    """A context manager for reading a database sequentially with bounded memory and with readahead from the disk.

    liblmdb maps the whole file for random access: pages are read one at a time, and they stay in this process's memory
    as long as there is room. Call `at` for each record.
    """

    def __init__(self, path: str | os.PathLike[str], records: int) -> None:
        """Prepare to read ``path``, a data.mdb of ``records`` records, stored roughly in the order of their keys."""
        self._path, self._records = os.path.realpath(path), records

    def __enter__(self) -> Scan:
        """Open the file, in addition to liblmdb's own map of it."""
        self._file = os.open(self._path, os.O_RDONLY)
        self._size, self._asked = os.fstat(self._file).st_size, -_AHEAD
        return self

    def __exit__(self, *_: object) -> None:
        """Close the file and release the memory."""
        os.close(self._file)
        self._release()

    def at(self, record: int) -> None:
        """Report that record number ``record`` is being read; request readahead and release memory where due."""
        place = self._size * record // self._records
        if place >= self._asked + _AHEAD // 2:
            self._asked = place
            if hasattr(os, "posix_fadvise"):
                os.posix_fadvise(self._file, place, _AHEAD, os.POSIX_FADV_WILLNEED)
            self._release()

    def _release(self) -> None:
        """Release the memory of all pages that were read. They stay in the system's page cache."""
        with contextlib.suppress(OSError, AttributeError):  # only on Linux
            madvise = ctypes.CDLL(None).madvise
            for line in Path("/proc/self/maps").read_text(errors="surrogateescape").splitlines():
                span, access, _, _, _, *name = line.split(None, 5)
                if name == [self._path] and access == "r--s":
                    start, end = (int(each, 16) for each in span.split("-"))
                    madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), 4)  # MADV_DONTNEED
