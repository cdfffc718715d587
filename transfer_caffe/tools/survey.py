"""A survey of the records of a database or view; damaged records do not stop it."""

from __future__ import annotations

import contextlib
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
from google.protobuf.message import DecodeError

from transfer_caffe.formats import lmdb_pages
from transfer_caffe.formats.database import Database
from transfer_caffe.formats.proto import caffe_pb2
from transfer_caffe.formats.views import View
from transfer_caffe.tools.image_type import image_type, jpeg_quality
from transfer_caffe.utils.errors import UserError

MOST_NAMED = 10
_REMEDY = "; build the database again"
_AT_ONCE = 64  # records
_PATH = re.compile(rb"\d{8,}_(.+)", re.DOTALL)  # the path follows the number in convert_imageset's keys


@dataclass(frozen=True)
class Look:
    """The properties of one record; a damaged one has only its number, its key, and the damage."""

    index: int
    key: bytes = b""
    way: str = ""  # how it is stored
    quality: int | None = None
    shape: tuple[int, ...] = ()
    label: int = 0
    damage: str = ""
    complaint: str = ""


def database_of(source: Database | View) -> Database:
    """Return the database: of a view its database, otherwise ``source``."""
    return source.database if isinstance(source, View) else source


def stored(source: Database | View, index: int) -> tuple[bytes, bytes]:
    """Return the key and the serialized Datum of record ``index`` as stored in the file, even if it is damaged."""
    return database_of(source).raw(number(source, index))


def number(source: Database | View, index: int) -> int:
    """Return the number of record ``index`` in the database."""
    return int(source.index[index]) if isinstance(source, View) else index


def look(source: Database | View, index: int) -> Look:
    """Read and decode record ``index``, and return its properties."""
    key, way, quality = b"", "", None
    try:
        key, value = stored(source, index)
        datum = caffe_pb2.Datum()
        with contextlib.suppress(DecodeError):  # `source.record` reports it below
            datum.ParseFromString(value)
        if datum.encoded:
            way = image_type(datum.data)
            quality = jpeg_quality(datum.data) if way == "JPEG" else None
        else:
            way = "raw bytes" if datum.data else "numbers (float_data)"
        array, label = source.record(index)
    except UserError as error:
        return Look(index, key, damage=str(error).removeprefix(f"{database_of(source).path}: ").removesuffix(_REMEDY))
    return Look(index, key, way, quality, array.shape, label)


def looks(source: Database | View, indices: Sequence[int], messages: Callable[[], str]) -> Iterator[Look]:
    """Yield the properties of the records ``indices``, in that order.

    ``messages`` returns and clears the messages that decoders have written.
    """
    database = database_of(source)
    many = len(indices) * 4 > len(database)  # otherwise reading single records is less work than reading ahead
    scan = lmdb_pages.Scan(database.path / "data.mdb", len(database))
    with ThreadPoolExecutor(os.cpu_count()) as pool, scan:
        for start in range(0, len(indices), _AT_ONCE):
            chunk = indices[start : start + _AT_ONCE]
            if many:
                scan.at(number(source, chunk[0]))
            found = list(pool.map(lambda index: look(source, index), chunk))
            if messages():  # read the records again one by one to find the ones that the messages are about
                found = [replace(look(source, index), complaint=messages()) for index in chunk]
            yield from found


class Survey:
    """Statistics of the records that were read, in about 30 bytes per record."""

    def __init__(self, indices: Sequence[int]) -> None:
        """Start with no records. ``indices``: the numbers of the records that will be added, in order."""
        self.indices = np.asarray(indices)
        self.sound = np.zeros(len(indices), bool)
        self.labels = np.zeros(len(indices), np.int32)
        self.paths = np.zeros(len(indices), np.int64)  # a hash of each path, to save memory
        self.read = 0
        self.shapes: Counter[tuple[int, ...]] = Counter()
        self.ways: Counter[str] = Counter()
        self.qualities: Counter[int] = Counter()
        self.first_keys: list[bytes] = []
        self.damaged = self.complaints = 0
        self.damages: list[str] = []  # the first `MOST_NAMED`, also below
        self.complaint_lines: list[str] = []

    def add(self, look: Look) -> None:
        """Add the properties of one record."""
        if len(self.first_keys) < 5:
            self.first_keys.append(look.key)
        path = _PATH.fullmatch(look.key)
        # records without a path count as different from each other
        self.paths[self.read] = hash(path[1]) if path else hash((look.index, "no path"))
        if look.complaint:
            self.complaints += 1
            if len(self.complaint_lines) < MOST_NAMED:
                self.complaint_lines.append(f"record {shown(look.key)}: {shown(look.complaint)}")
        if look.damage:
            self.damaged += 1
            if len(self.damages) < MOST_NAMED:
                self.damages.append(shown(look.damage))
        else:
            self.sound[self.read] = True
            self.labels[self.read] = look.label
            self.shapes[look.shape] += 1
            self.ways[look.way] += 1
            if look.quality:
                self.qualities[look.quality] += 1
        self.read += 1

    def with_label(self, label: int) -> np.ndarray:
        """Return the numbers of the valid records with this label."""
        return self.indices[self.sound & (self.labels == label)]

    def twice(self) -> tuple[int, int, list[int]]:
        """Return the number of paths that occur more than once, the number of their records, and some of these."""
        order = np.sort(self.paths)
        again = order[1:] == order[:-1]
        if not again.any():
            return 0, 0, []
        paths = np.unique(order[1:][again])
        records = self.indices[np.isin(self.paths, paths)]
        return len(paths), len(records), records[:MOST_NAMED].tolist()


def shown(text: str | bytes) -> str:
    """Return a text with its non-printable characters escaped, for the terminal."""
    text = text.decode(errors="backslashreplace") if isinstance(text, bytes) else text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
