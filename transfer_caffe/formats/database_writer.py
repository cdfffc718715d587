"""Write an LMDB of records: whole or absent, and long work gone on with where it was stopped.

    with DatabaseWriter("train_lmdb") as db:
        db.put(b"00000000_cat.png", raw_datum(image, label))

Until it is complete the database is a hidden folder beside its place, .train_lmdb.partial. A writer that is given a
`job` (what is to be made, and from what) leaves it there when it is stopped, and the next one with the same job goes on
with it; its records, and the bytes of data.mdb, are those of a writer that was never stopped.
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

_BATCH_BYTES = 16 << 20  # of records held before they are written in one transaction
_FIRST_MAP = 64 << 20
_CHECKPOINT = "checkpoint.json"


class DatabaseWriter:
    """A new LMDB at ``path``: complete, with its checksum data.mdb.sha256, or absent. A context manager.

    The map grows when it is full. Raises UserError when ``path`` exists or another process writes it, OSError (naming
    ``path``) on a full disk.

    With a ``job`` (JSON values) the work can be resumed: `state` is then what the caller had in ``state`` at the last
    record that is safe on the disk, or empty. Leaving by an error keeps what was written, if there is any (`kept`);
    without a job it leaves nothing. `started_over` tells that there was unfinished work of another job. `require` is
    called when all is written, before the database gets its name: an error in it keeps it from that.
    """

    def __init__(self, path: str | os.PathLike[str], job: dict[str, Any] | None = None, size: int = 0) -> None:
        """Nothing happens on the disk before the writer is entered. ``size``: bytes that it will come to, if known."""
        self.path = Path(path)
        if not self.path.name:
            raise UserError(f"{os.fspath(path)!r} is no name for a database; is a variable of the shell unset?")
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
        """Make or take over the hidden folder, `folder`; files that go with the database may be written there, too."""
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
        refuse_existing(self.path, "choose another name, or remove it to build it again")

    def _make_folder(self) -> None:
        """The hidden folder, locked. The lock goes with this process, so that a kill leaves none."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with contextlib.suppress(FileExistsError):
                self.folder.mkdir()
            self._lock = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError as error:
            raise self._about_path(error) from None
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._refuse_existing()  # finished by another in this moment
        except BlockingIOError:
            os.close(self._lock)
            raise UserError(f"{self.path}: another process is writing it; wait until that has ended") from None
        except BaseException:
            os.close(self._lock)
            raise

    def _resume(self) -> None:
        """Find the checkpoint that the database in the folder is at. What is of another job, or damaged, is removed."""
        record = self.folder / _CHECKPOINT
        data = self.folder / "data.mdb"
        if self._job is not None and record.exists() and data.exists():
            with contextlib.suppress(UserError, lmdb_pages.Unsound, lmdb.Error, LookupError, TypeError, OSError):
                found = read_json(record)
                # a round trip through JSON makes lists of tuples
                # pages reach the disk in any order: after a loss of power some may be missing
                if found["job"] == json.loads(json.dumps(self._job)) and found["boot"] == _boot():
                    lmdb_pages.check(data)
                    with lmdb.open(str(self.folder), readonly=True, lock=False) as env, env.begin() as transaction:
                        entries = env.stat()["entries"]
                        cursor = transaction.cursor()
                        last = cursor.key() if cursor.last() else b""
                    # the record is written before the database's commit: that, too, may be missing
                    at = next((each for each in found["checkpoints"] if each["entries"] == entries), None)
                    if at and entries:
                        self._checkpoints, self.state, self._last_key = [at], at["state"], last
                        return
        self.started_over = record.exists()
        for child in self.folder.iterdir():
            shutil.rmtree(child) if child.is_dir() and not child.is_symlink() else child.unlink()

    def _require_room(self) -> None:
        """UserError where the disk is too small: better now than after hours."""
        there = sum(file.stat().st_size for file in self.folder.iterdir())
        free = shutil.disk_usage(self.folder).free
        if self._size - there > free:
            raise UserError(
                f"{self.path}: needs {_gigabytes(self._size - there)} GB, and {_gigabytes(free)} GB are free there; "
                "make room, or name another place"
            )

    def put(self, key: bytes, value: bytes) -> None:
        """Add a record. A key that is there already is an error, when the batch is written."""
        self._pending.append((key, value))
        self._pending_bytes += len(key) + len(value)
        if self._pending_bytes >= _BATCH_BYTES:
            self._hand_over()

    def flush(self) -> None:
        """Write what is pending, and wait until it is written."""
        self._hand_over()
        self._wait()

    def _wait(self) -> None:
        if self._writing is not None:
            writing, self._writing = self._writing, None
            writing.result()

    def _hand_over(self) -> None:
        """Give what is pending to the thread that writes, as one batch, when it is done with the one before."""
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
        """Write a batch in one transaction, and before it the record of where the work is then."""
        if record is not None:
            try:
                # by rename, but not synced: a kill cannot tear it, and after a loss of power it does not count
                beside = self.folder / f"{_CHECKPOINT}.new"
                beside.write_text(record)
                os.replace(beside, self.folder / _CHECKPOINT)
            except OSError as error:
                raise self._about_path(error) from None
        size = 0  # that of the file
        while True:
            last = self._last_key
            # Opened anew for each batch: an open environment fills the gaps in its pages with what it wrote before, so
            # that the file's bytes would tell of stops. A kill loses nothing that was committed; power: see _resume.
            try:
                with self._open(size) as env:
                    size = 2 * env.info()["map_size"]
                    with env.begin(write=True) as transaction, transaction.cursor() as cursor:
                        for key, value in batch:
                            # behind all others no place is looked for, and pages are filled
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
        if self._syncing is None or self._syncing.done():  # keep the disk at work meanwhile
            if self._syncing is not None:
                self._syncing.result()  # an error of the disk
            self._syncing = self._syncer.submit(sync, self.folder / "data.mdb")

    def _open(self, map_size: int) -> lmdb.Environment:
        return lmdb.open(str(self.folder), map_size=map_size, sync=False, lock=False)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Write the rest, close, and give the folder its name; after an error see the class."""
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
        self.flush()
        data = self.folder / "data.mdb"
        synced = self._syncer.submit(sync, data)
        write_checksum(data)
        synced.result()
        self._writer.shutdown()
        self._syncer.shutdown()
        for file in self.folder.iterdir():
            if file.name.startswith(".") or file.suffix == ".new":
                file.unlink()  # by whole_file, or of a checkpoint, when it was killed
            else:
                sync(file)
        self.require()
        # refuse what another program has put there meanwhile: a rename would replace an empty folder
        self._refuse_existing()
        os.rename(self.folder, self.path)
        (self.path / _CHECKPOINT).unlink(missing_ok=True)  # to the last moment there was something to go on with
        sync(self.path.parent)

    def _committed(self) -> bool:
        return self._job is not None and bool(self._last_key)

    def _leave(self, keep: bool) -> None:
        """After an error: close, and remove the folder unless there is something to go on with."""
        self._writer.shutdown()
        self._syncer.shutdown()
        self.kept = keep and (self.folder / _CHECKPOINT).exists()
        if not self.kept:
            shutil.rmtree(self.folder, ignore_errors=True)
        os.close(self._lock)

    def _about_path(self, error: OSError) -> OSError:
        """An error of the operating system, naming the database that is wanted instead of the hidden folder."""
        if isinstance(error.filename, str | os.PathLike):
            name = os.fspath(error.filename)
            error.filename = str(self.path) if name.startswith(str(self.folder)) else name
        return error

    def _translated(self, error: BaseException) -> BaseException:
        """LMDB reports errors of the operating system by their text: as an OSError about our path, where it is one."""
        if isinstance(error, lmdb.Error):
            # a write that the disk took in part only is EIO to LMDB
            if os.strerror(errno.EIO) in str(error) and shutil.disk_usage(self.folder).free < self._batch_bytes:
                return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path))
            for code in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS, errno.EIO, errno.EFBIG, errno.ENOMEM):
                if os.strerror(code) in str(error):
                    return OSError(code, os.strerror(code), str(self.path))
            return UserError(f"{self.path}: LMDB cannot write here: {error}")
        return self._about_path(error) if isinstance(error, OSError) else error


def _gigabytes(count: int) -> str:
    return f"{count / 1e9:.3g}"


def _boot() -> str:
    """What tells this start of the machine from others; nothing where that is unknown."""
    with contextlib.suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return ""
