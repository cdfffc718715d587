"""A view: some records of a whole database, with other labels, as an index over it instead of a copy.

    records = open_records("random0/A/train_lmdb")      # a database or a view: the same to a reader
    image, label = records.record(7)

A half of ImageNet takes 5 MB so, where a copy takes 20 to 120 GB. The embedded engine reads a view wherever a Data
layer names it as its `source:`; for real Caffe `tools.split_lmdb` copies the same records in the same order.
A view is a folder:

    records.npy     int32, records x 2: the number of a record in the whole database (in the order of its keys), and
                    its label here
    view.json       which database (its path seen from here, the checksum of its data.mdb), and how the view was made
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
    """Whether ``path`` is a view."""
    return (Path(path) / VIEW).is_file()


def open_records(path: str | os.PathLike[str], color: bool | None = None) -> Database | View:
    """The database or view ``path``; ``color`` as in `datum.decode_datum`. UserError for what is neither."""
    return View(path, color) if is_view(path) else Database(path, color)


def whole_of(path: str | os.PathLike[str]) -> Path:
    """The database that holds the records of ``path``: itself, or that under a view."""
    return Path(path, _read(Path(path))["database"]) if is_view(path) else Path(path)


def made_from(path: str | os.PathLike[str]) -> dict[str, Any]:
    """What is written beside the records of a database or view of how it was made; nothing where another made it."""
    try:
        made = json.loads(read_text(Path(path, VIEW if is_view(path) else "build.json")))
    except (OSError, ValueError, UserError):
        return {}
    return made if isinstance(made, dict) else {}


class View:
    """Records of a whole database by numbers of its own, with labels of its own; read as a `datum.Database` is."""

    def __init__(self, path: str | os.PathLike[str], color: bool | None = None) -> None:
        """Open ``path``. UserError where it is damaged, or its database is another than when it was made."""
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
            raise UserError(f"{table}: damaged or replaced: not what {VIEW} beside it tells of; {_AGAIN}") from None
        self.index, self.labels = entries[:, 0], entries[:, 1]
        self.whole_path = Path(os.path.normpath(self.path / record["database"]))
        try:
            self.database = Database(self.whole_path, color)
        except UserError as error:
            raise UserError(f"{self.path}: a view of another database, and {error}") from None
        if len(self.database) != record["database_records"] or _checksum(self.whole_path) != record["database_sha256"]:
            raise UserError(f"{self.path}: a view of {self.whole_path}, which was built anew since; {_AGAIN}")
        if self.index.min() < 0 or self.index.max() >= len(self.database):
            raise UserError(f"{table}: names records that {self.whole_path} does not have; {_AGAIN}")

    def __len__(self) -> int:
        """The number of records."""
        return len(self.index)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of the first record."""
        channels, height, width = self.record(0)[0].shape
        return channels, height, width

    def record(self, index: int) -> tuple[np.ndarray, int]:
        """Record ``index``, 0 <= index < len, as (C x H x W array, label)."""
        return self.database.record(self._at(index))[0], int(self.labels[index])

    def raw(self, index: int) -> tuple[bytes, bytes]:
        """The key in the whole database, and the serialized Datum with the label it has here."""
        key, value = self.database.raw(self._at(index))
        return key, relabelled(value, int(self.labels[index]), f"{self.whole_path}: record {key!r}")

    def __iter__(self) -> Iterator[tuple[bytes, np.ndarray, int]]:
        """All records in order as (key in the whole database, array, label)."""
        for index in range(len(self)):
            key, array = self.database.keyed(self._at(index))[:2]
            yield key, array, int(self.labels[index])

    def _at(self, index: int) -> int:
        if not 0 <= index < len(self):
            raise IndexError(f"record {index} of a view of {len(self)}")
        return int(self.index[index])


def write_view(path: str | os.PathLike[str], whole: Database, entries: np.ndarray, made: dict[str, Any]) -> None:
    """Write a view of the records ``entries`` (records x 2: number, label); ``made`` goes into view.json, too."""
    if not Path(path).name:
        raise UserError(f"{os.fspath(path)!r} is no name for a view; is a variable of the shell unset?")
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
    kinds = {"database": str, "database_records": int, "records_sha256": str}
    record = read_record(path / VIEW, kinds, _AGAIN)
    if not isinstance(record.get("database_sha256"), str):
        raise UserError(f"{path / VIEW}: damaged: it names no database_sha256; {_AGAIN}")
    return record


def _checksum(database: Path) -> str:
    """What tells a database from another one: the checksum beside data.mdb; the size where there is none."""
    file = Path(database) / "data.mdb"
    try:
        return checksum_path(file).read_text().split()[0]
    except (FileNotFoundError, IndexError, UnicodeDecodeError):
        return f"{file.stat().st_size} bytes"
