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
"""Databases up to this size in bytes are compared with their checksum when they are opened.

That takes 2.5 s for 4 GiB (1.75 GB/s on a processor with SHA instructions). For ImageNet's 240 GB it would take minutes
before each start, mostly for reading the disk. Use `sha256sum -c` to check larger databases manually.
"""


SECONDS_TO_CLOSE = 2.0
"""How long to wait for a file that another thread is closing."""


class _Environment:
    """An open LMDB: a wrapper of lmdb.Environment that, unlike it, supports weak references."""

    def __init__(self, path: Path) -> None:
        # A finished database is never written again: without locks it can be on a read-only disk.
        # Records are read in any order, so readahead is off.
        self.lmdb = lmdb.open(str(path), readonly=True, lock=False, readahead=False)
        self.closing = False

    def __del__(self) -> None:
        # other threads can still get this object from the weak dictionary while it is being closed
        self.closing = True
        with contextlib.suppress(AttributeError):
            self.lmdb.close()


# LMDB must not open a file twice in one process, but a train net and a test net may use the same database.
_environments: weakref.WeakValueDictionary[tuple[int, int], _Environment] = weakref.WeakValueDictionary()


def _usable(identity: tuple[int, int]) -> _Environment | None:
    """Return the open environment of a file (device, inode), or None if there is none that is not being closed."""
    environment = _environments.get(identity)
    return None if environment is None or environment.closing else environment


def _opened(path: Path, identity: tuple[int, int]) -> _Environment:
    """Return the environment of a file; open it unless it is open already.

    liblmdb closes a file without holding the GIL. While another thread closes it, the file can be neither used nor
    opened again, so this function waits.
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
    """A finished, read-only LMDB of Datum records; records are numbered from 0 in the order of their keys.

    ``color`` as in `decode_datum`. Raises UserError if the path does not exist or is not an LMDB, and if the database
    is damaged or has no records (real Caffe crashes with a segmentation fault on an empty database).
    """

    def __init__(self, path: str | os.PathLike[str], color: bool | None = None, checked: bool = True) -> None:
        """Open ``path``: the folder that contains data.mdb.

        ``checked``: whether to compare the file with its checksum. If False, only its pages are checked, and the caller
        must call `require_sound_database` before it relies on the records.
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
        """Return the number of records."""
        return self._length

    @property
    def shape(self) -> tuple[int, int, int]:
        """The (channels, height, width) of the first record."""
        channels, height, width = self.record(0)[0].shape
        return channels, height, width

    def record(self, index: int) -> tuple[np.ndarray, int]:
        """Return record ``index``, 0 <= index < len, as (C x H x W array, label); see `decode_datum`."""
        return self.keyed(index)[1:]

    def keyed(self, index: int) -> tuple[bytes, np.ndarray, int]:
        """Return record ``index`` as (key, array, label)."""
        key, value = self.raw(index)
        return key, *decode_datum(value, self._where(key), self.color)

    def raw(self, index: int) -> tuple[bytes, bytes]:
        """Return the key and the serialized Datum of record ``index``."""
        if not 0 <= index < self._length:
            raise IndexError(f"record {index} of a database of {self._length}")
        with self._as_user_error(), self._env.begin() as transaction:
            cursor = transaction.cursor()
            if self._numbers is not None:
                prefix = b"%08d" % self._numbers[index]
                if cursor.set_range(prefix) and cursor.key()[:8] == prefix:
                    return cursor.item()
                self._numbers = None  # not all keys start with a line number
            if self._keys is None:
                self._keys = list(self.keys())
            key = self._keys[index]
            value = transaction.get(key)
            if value is None:
                raise UserError(f"{self._where(key)}: record not found: the database is damaged; build it again")
            return key, value

    def keys(self) -> Iterator[bytes]:
        """Yield all keys, in order, without reading the records; see `lmdb_pages.keys`."""
        try:
            yield from lmdb_pages.keys(_data_file(self.path))
        except lmdb_pages.Unsound as error:
            raise UserError(f"{self.path}: not a valid LMDB; build it again (data.mdb: {error})") from None

    def raw_in_order(self, first: int = 0) -> Iterator[tuple[bytes, bytes]]:
        """Yield the keys and serialized Datums from record ``first`` on, in the order of the keys.

        Memory use is bounded, and the disk reads ahead; see `lmdb_pages.Scan`.
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
        """Yield the keys and serialized Datums of the records with these numbers, which must be ascending.

        The records are read in one pass over the range, or one by one if the range has more than 20 times as many.
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
        """Yield all records in key order as (key, array, label)."""
        for key, value in self.raw_in_order():
            yield key, *decode_datum(value, self._where(key), self.color)

    def _where(self, key: bytes) -> str:
        """Return the name of a record for error messages."""
        return f"{self.path}: record {key.decode(errors='backslashreplace')!r}"

    def _line_numbers(self) -> range | np.ndarray | None:
        """Return the line numbers with which the keys start, as convert_imageset writes them; None for other keys.

        With its line number a record is found without a list of all keys in memory. Skipped images leave gaps in the
        numbers; only then are all keys read once. `raw` checks the key of each record that it reads.
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
        """Turn LMDB's errors into UserError."""
        try:
            yield
        except lmdb.Error as error:
            raise UserError(f"{self.path}: not a valid LMDB; build it again ({error})") from None


def require_sound_database(path: str | os.PathLike[str]) -> None:
    """Raise UserError if the database ``path`` does not match the checksum in its folder.

    If there is no checksum, or the database is larger than `CHECKED_BYTES`, only its pages are checked.
    """
    file = _data_file(Path(path))
    if file.stat().st_size <= CHECKED_BYTES and checksum_path(file).exists():
        require_checksum(file, "build the database again")
    else:
        require_sound_pages(path)


def require_sound_pages(path: str | os.PathLike[str]) -> None:
    """Raise UserError if the pages of the database ``path`` are not consistent: liblmdb could crash on it."""
    file = _data_file(Path(path))
    try:
        lmdb_pages.check(file)
    except lmdb_pages.Unsound as error:
        raise UserError(f"{path}: not a valid LMDB; build it again (data.mdb: {error})") from None


def _data_file(path: Path) -> Path:
    """Return the path of the file data.mdb of the database ``path``. Raise UserError if there is none."""
    file = path / "data.mdb"
    if file.is_file():
        return file
    if not os.path.lexists(path):
        raise UserError(f"{path}: no such database; build it with python -m tools.build_lmdb")
    if (path / "CURRENT").exists():
        raise UserError(
            f"{path}: this is a LevelDB: set backend: LEVELDB in a Data layer, or build an LMDB with python -m "
            "tools.build_lmdb"
        )
    raise UserError(f"{path}: not an LMDB: a folder with a file data.mdb was expected")
