"""LevelDB databases of Datum records, for reading (caffe/util/db_leveldb.cpp). Needs the package plyvel.

db = LevelDatabase("train_leveldb")
image, label = db.record(7)
"""

from __future__ import annotations

import os
import weakref
from pathlib import Path
from typing import Any

import numpy as np

from transfer_caffe.formats.datum import decode_datum
from transfer_caffe.utils.errors import UserError


class _Open:
    """An open LevelDB with the keys of its records. Unlike plyvel.DB, it supports weak references."""

    def __init__(self, path: Path) -> None:
        plyvel = _plyvel(path)
        try:
            self.db = plyvel.DB(os.fspath(path), create_if_missing=False)
            self.keys: list[bytes] = list(self.db.iterator(include_value=False))
        except plyvel.IOError as error:
            raise UserError(f"{path}: cannot be opened as a LevelDB; does another program use it? ({error})") from None
        except plyvel.Error as error:
            raise UserError(f"{path}: not a valid LevelDB; build it again ({error})") from None

    def __del__(self) -> None:
        if hasattr(self, "db"):
            self.db.close()


# a LevelDB can be opened once at a time, but a train net and a test net may use the same one
_opened: weakref.WeakValueDictionary[Path, _Open] = weakref.WeakValueDictionary()


class LevelDatabase:
    """A LevelDB of Datum records, which are numbered from 0 in the order of their keys.

    ``color`` as in `decode_datum`. Raise UserError if the path is not a LevelDB, or has no records, or if plyvel is not
    installed. LevelDB has no read-only mode: the folder must be writable, and only one program can use it at a time.
    """

    def __init__(self, path: str | os.PathLike[str], color: bool | None = None) -> None:
        """Open the folder ``path``."""
        self.path, self.color = Path(path), color
        if not self.path.is_dir():
            raise UserError(f"{path}: no such database; build one with python -m tools.build_lmdb")
        if (self.path / "data.mdb").exists():
            raise UserError(f"{path}: this is an LMDB: set backend: LMDB in data_param")
        if not (self.path / "CURRENT").exists():
            raise UserError(f"{path}: not a LevelDB: a folder with a file CURRENT was expected")
        key = self.path.resolve()
        opened = _opened.get(key)
        if opened is None:
            opened = _opened[key] = _Open(self.path)
        self._open = opened
        if not opened.keys:
            raise UserError(f"{path}: the database has no records; build it again")

    def __len__(self) -> int:
        """Return the number of records."""
        return len(self._open.keys)

    @property
    def shape(self) -> tuple[int, int, int]:
        """The (channels, height, width) of the first record."""
        channels, height, width = self.record(0)[0].shape
        return channels, height, width

    def record(self, index: int) -> tuple[np.ndarray, int]:
        """Return record ``index``, 0 <= index < len, as (C x H x W array, label); see `decode_datum`."""
        key = self._open.keys[index]
        where = f"{self.path}: record {key.decode(errors='backslashreplace')!r}"
        try:
            value = self._open.db.get(key)
        except _plyvel(self.path).Error as error:
            raise UserError(f"{where}: damaged; build the database again ({error})") from None
        if value is None:
            raise UserError(f"{where}: record not found: the database is damaged; build it again")
        return decode_datum(value, where, self.color)


def _plyvel(path: Path) -> Any:
    """Return the module plyvel. Raise UserError if it is not installed."""
    try:
        import plyvel  # pyright: ignore[reportMissingImports] - an optional package
    except ImportError:
        raise UserError(
            f"{path}: reading a LevelDB needs the package plyvel: pip install plyvel (or build an LMDB with python -m "
            "tools.build_lmdb, and set backend: LMDB)"
        ) from None
    return plyvel
