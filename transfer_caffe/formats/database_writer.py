"""Atomic writing of an LMDB of records; an interrupted build can be resumed.

    with DatabaseWriter("train_lmdb") as db:
        db.put(b"00000000_cat.png", raw_datum(image, label))

Until it is complete, the database is in a hidden folder beside its final path, .train_lmdb.partial. A writer with a
`job` (a description of the output and its sources) keeps this folder when it is interrupted, and the next writer with
the same job resumes it. The records and the bytes of data.mdb are the same as those of an uninterrupted writer.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import shutil
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any

import lmdb

from transfer_caffe.formats import lmdb_pages
from transfer_caffe.utils.errors import UserError
from transfer_caffe.utils.files import read_json, refuse_existing, sync, write_checksum
from transfer_caffe.utils.machine import keep_freed_memory

_BATCH_BYTES = 16 << 20  # size of the records that are written in one transaction
_FIRST_MAP = 64 << 20
_CHECKPOINT = "checkpoint.json"


class DatabaseWriter:
    """A context manager that writes a new LMDB at ``path`` atomically, with its checksum data.mdb.sha256.

    The map grows when it is full. Raises UserError if ``path`` exists or another process writes it, and OSError (naming
    ``path``) if the disk is full.

    With a ``job`` (JSON values) the build can be resumed. On entry `state` then holds the caller's `state` at the last
    record that was committed, or is empty. After an error the written records are kept, if there are any (`kept`);
    without a job nothing is kept. `started_over` says that unfinished work of another job was discarded. `require` is
    called after all records are written and before the database gets its final name, which an error in it prevents.
    """

    def __init__(self, path: str | os.PathLike[str], job: dict[str, Any] | None = None, size: int = 0) -> None:
        """Store the arguments; nothing is written before the context is entered. ``size``: final size in bytes or 0."""
        self.path = Path(path)
        if not self.path.name:
            raise UserError(f"{os.fspath(path)!r} is not a valid name for a database; is a shell variable unset?")
        self.folder = self.path.with_name(f".{self.path.name}.partial")
        self.kept = self.started_over = False
        self.state: dict[str, Any] = {}
        self.require: Callable[[], object] = lambda: None
        self._job, self._size = job, size
        self._pending: list[tuple[bytes, bytes]] = []
        self._pending_bytes = self._batch_bytes = 0
        self._last_key = b""
        self._checkpoints: list[dict[str, Any]] = []
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="write")
        self._writing: Future[None] | None = None
        self._syncer = ThreadPoolExecutor(1, thread_name_prefix="sync")
        self._syncing: Future[None] | None = None

    def __enter__(self) -> DatabaseWriter:
        """Create or reuse the hidden folder, `folder`. The caller may add files of the finished database to it."""
        self._refuse_existing()
        keep_freed_memory()
        self._make_folder()
        try:
            self._resume()
            self._require_room()
            self._open(0 if self._checkpoints else _FIRST_MAP).close()
        except BaseException as error:
            self._leave(keep=bool(self._checkpoints))
            raise self._translated(error) from None
        return self

    def _refuse_existing(self) -> None:
        """Raise UserError if the database exists."""
        refuse_existing(self.path, "choose another name, or remove it to build it again")

    def _make_folder(self) -> None:
        """Create and lock the hidden folder. The lock ends with this process, so a killed writer leaves no lock."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with contextlib.suppress(FileExistsError):
                self.folder.mkdir()
            self._lock = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError as error:
            raise self._about_path(error) from None
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._refuse_existing()  # another process may just have finished it
        except BlockingIOError:
            os.close(self._lock)
            raise UserError(f"{self.path}: another process is writing it; wait until that process has ended") from None
        except BaseException:
            os.close(self._lock)
            raise

    def _resume(self) -> None:
        """Find the checkpoint of the unfinished database. Remove what belongs to another job or is damaged."""
        record = self.folder / _CHECKPOINT
        data = self.folder / "data.mdb"
        if self._job is not None and record.exists() and data.exists():
            with contextlib.suppress(UserError, lmdb_pages.Unsound, lmdb.Error, LookupError, TypeError, OSError):
                found = read_json(record)
                # the round trip through JSON turns tuples into lists, as in the file
                # pages reach the disk in any order: after a power failure (another boot id) some may be missing
                if found["job"] == json.loads(json.dumps(self._job)) and found["boot"] == _boot():
                    lmdb_pages.check(data)
                    with lmdb.open(str(self.folder), readonly=True, lock=False) as env, env.begin() as transaction:
                        entries = env.stat()["entries"]
                        cursor = transaction.cursor()
                        last = cursor.key() if cursor.last() else b""
                    # a checkpoint is written before its batch is committed, so the batch may be missing
                    at = next((each for each in found["checkpoints"] if each["entries"] == entries), None)
                    if at and entries:
                        self._checkpoints, self.state, self._last_key = [at], at["state"], last
                        return
        self.started_over = record.exists()
        for child in self.folder.iterdir():
            shutil.rmtree(child) if child.is_dir() and not child.is_symlink() else child.unlink()

    def _require_room(self) -> None:
        """Raise UserError at the start if the disk is too small, instead of failing after hours."""
        there = sum(file.stat().st_size for file in self.folder.iterdir())
        free = shutil.disk_usage(self.folder).free
        if self._size - there > free:
            raise UserError(
                f"{self.path}: needs {_gigabytes(self._size - there)} GB, and {_gigabytes(free)} GB are free there; "
                "free some space, or use another path"
            )

    def put(self, key: bytes, value: bytes) -> None:
        """Add a record. A duplicate key raises UserError when its batch is written."""
        self._pending.append((key, value))
        self._pending_bytes += len(key) + len(value)
        if self._pending_bytes >= _BATCH_BYTES:
            self._hand_over()

    def flush(self) -> None:
        """Write all pending records, and wait until they are written."""
        self._hand_over()
        self._wait()

    def _wait(self) -> None:
        """Wait for the batch that is being written, and raise its error if it failed."""
        if self._writing is not None:
            writing, self._writing = self._writing, None
            writing.result()

    def _hand_over(self) -> None:
        """Pass the pending records as one batch to the writing thread, after it has finished the previous batch."""
        self._wait()
        if not self._pending:
            return
        batch, self._pending, self._batch_bytes, self._pending_bytes = self._pending, [], self._pending_bytes, 0
        record = None
        if self._job is not None:
            at = self._checkpoints[-1:]
            entries = (at[0]["entries"] if at else 0) + len(batch)
            self._checkpoints = [*at, {"entries": entries, "state": json.loads(json.dumps(self.state))}]
            record = json.dumps({"job": self._job, "boot": _boot(), "checkpoints": self._checkpoints})
        self._writing = self._writer.submit(self._write, batch, record)

    def _write(self, batch: list[tuple[bytes, bytes]], record: str | None) -> None:
        """Write the checkpoint ``record`` of the state after this batch, then the batch in one transaction."""
        if record is not None:
            try:
                # renamed, but not synced: a kill leaves no partial file, and after a power failure it is not used
                beside = self.folder / f"{_CHECKPOINT}.new"
                beside.write_text(record)
                os.replace(beside, self.folder / _CHECKPOINT)
            except OSError as error:
                raise self._about_path(error) from None
        size = 0  # map size; 0: the one stored in the file
        while True:
            last = self._last_key
            # The environment is opened again for each batch. An open environment fills the gaps in its pages with
            # earlier data, so the file's bytes would depend on interruptions. A killed process loses nothing that was
            # committed; for power failures see _resume.
            try:
                with self._open(size) as env:
                    size = 2 * env.info()["map_size"]
                    with env.begin(write=True) as transaction, transaction.cursor() as cursor:
                        for key, value in batch:
                            # a key after all others is appended: no search for its position, and pages are filled
                            if not cursor.put(key, value, overwrite=False, append=key > last):
                                name = key.decode(errors="replace")
                                raise UserError(f"{self.path}: two records with the key {name!r}")
                            last = max(last, key)
                break
            except lmdb.MapFullError:
                continue
            except lmdb.Error as error:
                raise self._translated(error) from None
        self._last_key = last
        if self._syncing is None or self._syncing.done():  # keep the disk busy in the meantime
            if self._syncing is not None:
                self._syncing.result()  # an error of the disk
            self._syncing = self._syncer.submit(sync, self.folder / "data.mdb")

    def _open(self, map_size: int) -> lmdb.Environment:
        """Open the unfinished database; ``map_size`` 0 keeps the size stored in the file."""
        return lmdb.open(str(self.folder), map_size=map_size, sync=False, lock=False)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Write the remaining records, close, and rename the folder; after an error see the class."""
        try:
            if error is None:
                self._finish()
        except BaseException as late:
            self._leave(keep=self._committed())
            raise self._translated(late) from None
        if error is not None:
            self._leave(keep=self._committed())
        else:
            os.close(self._lock)

    def _finish(self) -> None:
        """Write the remaining records and the checksum, sync all files, and rename the folder to the final path."""
        self.flush()
        data = self.folder / "data.mdb"
        synced = self._syncer.submit(sync, data)
        write_checksum(data)
        synced.result()
        self._writer.shutdown()
        self._syncer.shutdown()
        for file in self.folder.iterdir():
            if file.name.startswith(".") or file.suffix == ".new":
                file.unlink()  # a temporary file that a killed process left, of whole_file or of a checkpoint
            else:
                sync(file)
        self.require()
        # another program may have created the path in the meantime: a rename would replace an empty folder
        self._refuse_existing()
        os.rename(self.folder, self.path)
        (self.path / _CHECKPOINT).unlink(missing_ok=True)  # removed last, so that the build could be resumed until now
        sync(self.path.parent)

    def _committed(self) -> bool:
        """Return whether there are committed records that a later writer can resume from."""
        return self._job is not None and bool(self._last_key)

    def _leave(self, keep: bool) -> None:
        """Close after an error; remove the folder unless ``keep`` and there is a checkpoint to resume from."""
        self._writer.shutdown()
        self._syncer.shutdown()
        self.kept = keep and (self.folder / _CHECKPOINT).exists()
        if not self.kept:
            shutil.rmtree(self.folder, ignore_errors=True)
        os.close(self._lock)

    def _about_path(self, error: OSError) -> OSError:
        """Return an operating system error with the path of the database instead of the hidden folder's."""
        if isinstance(error.filename, str | os.PathLike):
            name = os.fspath(error.filename)
            error.filename = str(self.path) if name.startswith(str(self.folder)) else name
        return error

    def _translated(self, error: BaseException) -> BaseException:
        """Return an error of LMDB as an OSError about the database's path, or as UserError.

        LMDB reports operating system errors by their text only.
        """
        if isinstance(error, lmdb.Error):
            # LMDB reports a partial write (disk full) as EIO
            if os.strerror(errno.EIO) in str(error) and shutil.disk_usage(self.folder).free < self._batch_bytes:
                return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path))
            for code in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS, errno.EIO, errno.EFBIG, errno.ENOMEM):
                if os.strerror(code) in str(error):
                    return OSError(code, os.strerror(code), str(self.path))
            return UserError(f"{self.path}: LMDB cannot write this database: {error}")
        return self._about_path(error) if isinstance(error, OSError) else error


def _gigabytes(count: int) -> str:
    """Return a number of bytes as text in GB."""
    return f"{count / 1e9:.3g}"


def _boot() -> str:
    """Return the boot id of the machine, which changes with each boot; "" if it is unknown."""
    with contextlib.suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return ""
