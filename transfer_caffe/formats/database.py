"""LMDB databases of Datum records, as Caffe's Data layer reads them (written by `database_writer`).

    db = Database("train_lmdb")
    image, label = db.record(7)         # (channels, height, width) uint8, channels in the order BGR

Caffe's sources: src/caffe/util/db_lmdb.cpp, src/caffe/layers/data_layer.cpp.
"""

from __future__ import annotations

import contextlib
import os
import time
import weakref
from collections.abc import Iterator, Sequence
from pathlib import Path

import lmdb
import numpy as np

from transfer_caffe.formats import lmdb_pages
from transfer_caffe.formats.datum import decode_datum
from transfer_caffe.utils.errors import UserError
from transfer_caffe.utils.files import checksum_path, require_checksum

CHECKED_BYTES = 4 << 30
"""Databases up to this size are compared with their checksum when they are opened.

That takes 2.5 s for 4 GiB (1.75 GB/s where the processor has instructions for SHA); of ImageNet's 240 GB it would be
minutes before each start, of which the disk takes most. `sha256sum -c` checks those by hand.
"""


SECONDS_TO_CLOSE = 2.0
"""How long a file that is being closed by another thread is waited for."""


class _Environment:
    """An open LMDB; a holder that, unlike lmdb.Environment, can be referred to weakly."""

    def __init__(self, path: Path) -> None:
        # A finished database is never written again: no locks, so that it can lie on a read-only disk.
        # Records are read in any order: no readahead.
        self.lmdb = lmdb.open(str(path), readonly=True, lock=False, readahead=False)
        self.closing = False

    def __del__(self) -> None:
        # weak references still give this object while it closes, to other threads
        self.closing = True
        with contextlib.suppress(AttributeError):
            self.lmdb.close()


# LMDB must not open a file twice in one process, but a train and a test net may well name the same database.
_environments: weakref.WeakValueDictionary[tuple[int, int], _Environment] = weakref.WeakValueDictionary()


def _usable(identity: tuple[int, int]) -> _Environment | None:
    environment = _environments.get(identity)
    return None if environment is None or environment.closing else environment


def _opened(path: Path, identity: tuple[int, int]) -> _Environment:
    """The environment of a file, opened unless it is so already.

    liblmdb closes outside of Python's lock: while a thread lets the last use of a file go, it can be neither used nor
    opened, and is waited for.
    """
    deadline = time.monotonic() + SECONDS_TO_CLOSE
    while (environment := _usable(identity)) is None:
        try:
            environment = _environments[identity] = _Environment(path)
        except lmdb.Error as error:
            if "already open" not in str(error) or time.monotonic() > deadline:
                raise
            time.sleep(0.001)
        else:
            break
    return environment


class Database:
    """A finished LMDB of Datum records, read-only; records are numbered from 0 in the order of their keys.

    ``color`` as in `decode_datum`. Raises UserError for a path that is missing, no LMDB, damaged, or without records
    (on the last, real Caffe dies of a segmentation fault).
    """

    def __init__(self, path: str | os.PathLike[str], color: bool | None = None, checked: bool = True) -> None:
        """Open ``path``: the folder that holds data.mdb.

        ``checked``: whether it is compared with its checksum; else its pages are looked at alone, and the caller calls
        `require_sound_database` before it relies on what it has read.
        """
        self.path = Path(path)
        self.color = color
        file = _data_file(self.path)
        status = file.stat()
        identity = (status.st_dev, status.st_ino)
        environment = _usable(identity)
        if environment is None:
            (require_sound_database if checked else require_sound_pages)(self.path)
            with self._as_user_error():
                environment = _opened(self.path, identity)
        self._environment = environment
        self._env = environment.lmdb
        self._keys: list[bytes] | None = None
        with self._as_user_error():
            self._length = int(self._env.stat()["entries"])
            if not self._length:
                raise UserError(f"{self.path}: the database has no records; build it again")
            self._numbers = self._line_numbers()

    def __len__(self) -> int:
        """The number of records."""
        return self._length

    @property
    def shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of the first record."""
        channels, height, width = self.record(0)[0].shape
        return channels, height, width

    def record(self, index: int) -> tuple[np.ndarray, int]:
        """Record ``index``, 0 <= index < len, as (C x H x W array, label): `decode_datum`."""
        return self.keyed(index)[1:]

    def keyed(self, index: int) -> tuple[bytes, np.ndarray, int]:
        """Record ``index`` as (key, array, label)."""
        key, value = self.raw(index)
        return key, *decode_datum(value, self._where(key), self.color)

    def raw(self, index: int) -> tuple[bytes, bytes]:
        """The key and the serialized Datum of record ``index``."""
        if not 0 <= index < self._length:
            raise IndexError(f"record {index} of a database of {self._length}")
        with self._as_user_error(), self._env.begin() as transaction:
            cursor = transaction.cursor()
            if self._numbers is not None:
                prefix = b"%08d" % self._numbers[index]
                if cursor.set_range(prefix) and cursor.key()[:8] == prefix:
                    return cursor.item()
                self._numbers = None  # some keys count lines, others do not
            if self._keys is None:
                self._keys = list(self.keys())
            key = self._keys[index]
            value = transaction.get(key)
            if value is None:
                raise UserError(f"{self._where(key)}: listed, but not found: the database is damaged; build it again")
            return key, value

    def keys(self) -> Iterator[bytes]:
        """All keys, in order. The records are not read: `lmdb_pages.keys`."""
        try:
            yield from lmdb_pages.keys(_data_file(self.path))
        except lmdb_pages.Unsound as error:
            raise UserError(f"{self.path}: not a sound LMDB; build it again (data.mdb: {error})") from None

    def raw_in_order(self, first: int = 0) -> Iterator[tuple[bytes, bytes]]:
        """Keys and serialized Datums from record ``first`` on, as they lie in the file.

        Memory does not grow with the database, and the disk reads ahead: `lmdb_pages.Scan`.
        """
        start = self.raw(first)[0]
        with (
            self._as_user_error(),
            lmdb_pages.Scan(_data_file(self.path), self._length) as scan,
            self._env.begin() as transaction,
        ):
            cursor = transaction.cursor()
            cursor.set_key(start)
            for number, item in enumerate(cursor.iternext(), start=first):
                scan.at(number)
                yield item

    def raw_at(self, numbers: Sequence[int]) -> Iterator[tuple[bytes, bytes]]:
        """Keys and serialized Datums of the records with these ascending numbers.

        In one pass over what lies between them, or one by one where that is more than twenty times as many.
        """
        if len(numbers) and numbers[-1] - numbers[0] > 20 * len(numbers):
            yield from map(self.raw, numbers)
            return
        wanted = iter(numbers)
        number = next(wanted, None)
        if number is None:
            return
        for at, item in enumerate(self.raw_in_order(number), start=number):
            if at == number:
                yield item
                if (number := next(wanted, None)) is None:
                    return

    def __iter__(self) -> Iterator[tuple[bytes, np.ndarray, int]]:
        """All records in key order as (key, array, label)."""
        for key, value in self.raw_in_order():
            yield key, *decode_datum(value, self._where(key), self.color)

    def _where(self, key: bytes) -> str:
        return f"{self.path}: record {key.decode(errors='backslashreplace')!r}"

    def _line_numbers(self) -> range | np.ndarray | None:
        """The numbers that the keys begin with, where they are those of lines, as convert_imageset's; else None.

        By its number a record is found without a list of a million keys in memory. Images that were skipped leave
        gaps: then all keys are gone through once. `raw` looks at each key.
        """
        with self._env.begin() as transaction:
            cursor = transaction.cursor()
            first = cursor.key() if cursor.first() else b""
            last = cursor.key() if cursor.last() else b""
        if first[:8] == b"0" * 8 and last[:8] == b"%08d" % (self._length - 1):
            return range(self._length)
        if not (first[:8].isdigit() and last[:8].isdigit()):
            return None
        numbers = np.fromiter((int(key[:8]) if key[:8].isdigit() else -1 for key in self.keys()), np.int64)
        return numbers if numbers[0] >= 0 and (np.diff(numbers) > 0).all() else None

    @contextlib.contextmanager
    def _as_user_error(self) -> Iterator[None]:
        try:
            yield
        except lmdb.Error as error:
            raise UserError(f"{self.path}: not a sound LMDB; build it again ({error})") from None


def require_sound_database(path: str | os.PathLike[str]) -> None:
    """UserError if the database ``path`` is not what the checksum in its folder tells of.

    Where there is none, or the database is larger than `CHECKED_BYTES`: if its pages do not hang together.
    """
    file = _data_file(Path(path))
    if file.stat().st_size <= CHECKED_BYTES and checksum_path(file).exists():
        require_checksum(file, "build the database again")
    else:
        require_sound_pages(path)


def require_sound_pages(path: str | os.PathLike[str]) -> None:
    """UserError if the pages of the database ``path`` do not hang together: liblmdb would end the process."""
    file = _data_file(Path(path))
    try:
        lmdb_pages.check(file)
    except lmdb_pages.Unsound as error:
        raise UserError(f"{path}: not a sound LMDB; build it again (data.mdb: {error})") from None


def _data_file(path: Path) -> Path:
    """The file data.mdb of the database ``path``."""
    file = path / "data.mdb"
    if file.is_file():
        return file
    if not os.path.lexists(path):
        raise UserError(f"{path}: no such database; build it with python -m tools.build_lmdb")
    if (path / "CURRENT").exists():
        raise UserError(f"{path}: this is a LevelDB; only LMDB is read: build it with python -m tools.build_lmdb")
    raise UserError(f"{path}: not an LMDB: a folder with a file data.mdb was expected")
