"""A view: an index of some records of a complete database, with new labels, instead of a copy of these records.

    records = open_records("random0/A/train_lmdb")      # a database or a view, with the same interface
    image, label = records.record(7)

A view of half of ImageNet takes 5 MB, a copy 20 to 120 GB. The embedded engine reads a view as the `source:` of a Data
layer. For real Caffe, `tools.split_lmdb` copies the same records in the same order. A view is a folder:

    records.npy     int32, records x 2: the number of a record in the complete database (in the order of its keys), and
                    its label in the view
    view.json       the database (its path relative to the view, the checksum of its data.mdb), and how the view was
                    made
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from transfer_caffe.formats.database import Database
from transfer_caffe.formats.datum import relabelled
from transfer_caffe.utils.errors import UserError
from transfer_caffe.utils.files import (
    checksum_path,
    read_record,
    read_text,
    refuse_existing,
    sha256,
    whole_folder,
    write_json,
)

VIEW = "view.json"
RECORDS = "records.npy"
_AGAIN = "make the view again"


def is_view(path: str | os.PathLike[str]) -> bool:
    """Return whether ``path`` is a view."""
    return (Path(path) / VIEW).is_file()


def open_records(path: str | os.PathLike[str], color: bool | None = None) -> Database | View:
    """Open the database or view ``path``; ``color`` as in `datum.decode_datum`. Raise UserError if it is neither."""
    return View(path, color) if is_view(path) else Database(path, color)


def whole_of(path: str | os.PathLike[str]) -> Path:
    """Return the path of the database with the records of ``path``: of a view its database, otherwise ``path``."""
    return Path(path, _read(Path(path))["database"]) if is_view(path) else Path(path)


def made_from(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Return the recorded description of how a database or view was made; {} if another program has written it."""
    try:
        made = json.loads(read_text(Path(path, VIEW if is_view(path) else "build.json")))
    except (OSError, ValueError, UserError):
        return {}
    return made if isinstance(made, dict) else {}


class View:
    """Some records of a complete database, numbered from 0 and with new labels; read like a `database.Database`."""

    def __init__(self, path: str | os.PathLike[str], color: bool | None = None) -> None:
        """Open ``path``. Raise UserError if the view is damaged or its database has changed since it was made."""
        self.path = Path(path)
        record = _read(self.path)
        table = self.path / RECORDS
        try:
            if sha256(table) != record["records_sha256"]:
                raise ValueError
            entries = np.load(table, allow_pickle=False)
            if entries.dtype != np.int32 or entries.ndim != 2 or entries.shape[1] != 2 or not len(entries):
                raise ValueError
        except (ValueError, EOFError, FileNotFoundError):
            raise UserError(f"{table}: damaged or replaced: it does not match {VIEW} beside it; {_AGAIN}") from None
        self.index, self.labels = entries[:, 0], entries[:, 1]
        self.whole_path = Path(os.path.normpath(self.path / record["database"]))
        try:
            self.database = Database(self.whole_path, color)
        except UserError as error:
            raise UserError(f"{self.path}: a view of another database, and {error}") from None
        if len(self.database) != record["database_records"] or _checksum(self.whole_path) != record["database_sha256"]:
            raise UserError(f"{self.path}: a view of {self.whole_path}, which was rebuilt since; {_AGAIN}")
        if self.index.min() < 0 or self.index.max() >= len(self.database):
            raise UserError(f"{table}: refers to records that {self.whole_path} does not have; {_AGAIN}")

    def __len__(self) -> int:
        """Return the number of records."""
        return len(self.index)

    @property
    def shape(self) -> tuple[int, int, int]:
        """The (channels, height, width) of the first record."""
        channels, height, width = self.record(0)[0].shape
        return channels, height, width

    def record(self, index: int) -> tuple[np.ndarray, int]:
        """Return record ``index``, 0 <= index < len, as (C x H x W array, label)."""
        return self.database.record(self._at(index))[0], int(self.labels[index])

    def raw(self, index: int) -> tuple[bytes, bytes]:
        """Return the key in the complete database, and the serialized Datum with its label in the view."""
        key, value = self.database.raw(self._at(index))
        return key, relabelled(value, int(self.labels[index]), f"{self.whole_path}: record {key!r}")

    def __iter__(self) -> Iterator[tuple[bytes, np.ndarray, int]]:
        """Yield all records in order as (key in the complete database, array, label)."""
        for index in range(len(self)):
            key, array = self.database.keyed(self._at(index))[:2]
            yield key, array, int(self.labels[index])

    def _at(self, index: int) -> int:
        """Return the number of a record in the complete database. Raise IndexError if it is out of range."""
        if not 0 <= index < len(self):
            raise IndexError(f"record {index} of a view of {len(self)}")
        return int(self.index[index])


def write_view(path: str | os.PathLike[str], whole: Database, entries: np.ndarray, made: dict[str, Any]) -> None:
    """Write a view of the records ``entries`` (records x 2: number, label); ``made`` is added to view.json."""
    if not Path(path).name:
        raise UserError(f"{os.fspath(path)!r} is not a valid name for a view; is a shell variable unset?")
    refuse_existing(path, "choose another name, or remove it to make it again")
    with whole_folder(path) as folder:
        np.save(folder / RECORDS, entries.astype(np.int32))
        record = {
            "database": os.path.relpath(Path(whole.path).resolve(), Path(path).resolve()),
            "database_records": len(whole),
            "database_sha256": _checksum(whole.path),
            "records": len(entries),
            "records_sha256": sha256(folder / RECORDS),
        }
        write_json(folder / VIEW, record | made)


def _read(path: Path) -> dict[str, Any]:
    """Return the content of a view's view.json. Raise UserError if it is damaged."""
    kinds = {"database": str, "database_records": int, "records_sha256": str}
    record = read_record(path / VIEW, kinds, _AGAIN)
    if not isinstance(record.get("database_sha256"), str):
        raise UserError(f"{path / VIEW}: damaged: database_sha256 is missing; {_AGAIN}")
    return record


def _checksum(database: Path) -> str:
    """Return an identifier of a database's content: the checksum beside data.mdb, or the size if there is none."""
    file = Path(database) / "data.mdb"
    try:
        return checksum_path(file).read_text().split()[0]
    except (FileNotFoundError, IndexError, UnicodeDecodeError):
        return f"{file.stat().st_size} bytes"
