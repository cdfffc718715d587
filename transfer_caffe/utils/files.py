"""Atomic writes of files and folders, and their checksums."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import math
import os
import re
import secrets
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from transfer_caffe.utils.errors import UserError


@contextlib.contextmanager
def whole_file(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; on success it is renamed to ``path``, on failure it is removed.

    A reader, or a run that was killed and started again, sees the old file or the new one, never a partial file.
    """
    if not os.fspath(path) or not Path(path).name:
        raise UserError(f"{os.fspath(path)!r} is not a valid name for an output file")
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        yield temporary
        sync(temporary)
        os.replace(temporary, path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        _name_target(error, temporary, path)
        raise


@contextlib.contextmanager
def whole_folder(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Do the same as `whole_file` for a folder. ``path`` must not exist yet; the yielded folder exists and is empty."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        temporary.mkdir()
        yield temporary
        files = [child for child in temporary.rglob("*") if child.is_file()]
        if len(files) > 100:
            os.sync()  # once for all files: thousands of calls of fsync would take longer than writing them
        else:
            for file in files:
                sync(file)
        os.rename(temporary, path)
    except BaseException as error:
        shutil.rmtree(temporary, ignore_errors=True)
        _name_target(error, temporary, path)
        raise


def _name_target(error: BaseException, temporary: Path, path: Path) -> None:
    """Make an operating system error name the requested file instead of the temporary one."""
    if not isinstance(error, OSError):
        return
    if isinstance(error.filename, str | os.PathLike):
        error.filename = os.fspath(error.filename).replace(str(temporary), str(path))
    elif error.filename is None and error.errno in (errno.ENOSPC, errno.EDQUOT):
        error.filename = str(path)  # an error in writing, unlike one in opening, names no file


def sync(path: Path) -> None:
    """Flush a file, or the directory entries of a folder, to the disk, so that it survives a power failure."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_bytes(path: str | os.PathLike[str], data: bytes) -> None:
    """Write a file atomically: on failure the old file stays."""
    with whole_file(path) as temporary:
        temporary.write_bytes(data)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write a UTF-8 text file atomically: on failure the old file stays."""
    write_bytes(path, text.encode())


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Write a JSON file atomically, indented, with its keys in the given order."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_text(path: str | os.PathLike[str], comment: str | None = None) -> str:
    """Read a UTF-8 text file. Raise UserError if it is not UTF-8.

    If ``comment`` (the marker that starts a comment) is given, comments may be in any encoding, as in old files.
    """
    try:
        return _decoded(path, Path(path).read_bytes(), comment)
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not a UTF-8 text file ({error.reason} at byte {error.start})") from None


def _decoded(path: str | os.PathLike[str], content: bytes, comment: str | None) -> str:
    """Return ``content`` as text with normalised line ends. If it is not UTF-8, its comments are dropped."""
    try:
        text = content.decode()
    except UnicodeDecodeError:
        if comment is None:
            raise
        text = re.sub(re.escape(comment.encode()) + rb"[^\n]*", b"", content).decode()
    return text.replace("\r\n", "\n").replace("\r", "\n").removeprefix("\N{BYTE ORDER MARK}")


def read_json(path: str | os.PathLike[str]) -> Any:
    """Read a JSON file that this program wrote. Raise UserError if it is damaged."""
    try:
        return json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: damaged: not valid JSON ({error})") from None


def read_record(
    path: str | os.PathLike[str], kinds: Mapping[str, type | tuple[type, ...]], remedy: str
) -> dict[str, Any]:
    """Read a JSON object that this program wrote.

    ``kinds`` maps each required key to the type of its value. Raise UserError, ending with ``remedy``, if the file is
    damaged or was not written by this program.
    """
    record = read_json(path)
    for key, kind in kinds.items():
        value = record.get(key) if isinstance(record, dict) else None
        if not isinstance(value, kind) or (isinstance(value, float) and not math.isfinite(value)):
            raise UserError(f"{path}: damaged: {key!r} is missing or has an invalid value; {remedy}")
    return record


def sha256(path: str | os.PathLike[str]) -> str:
    """Return the SHA-256 of a file, as hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def checksum_path(path: str | os.PathLike[str]) -> Path:
    """Return the path of the checksum file of ``path``: the same path with .sha256 appended. It need not exist."""
    path = Path(path)
    return path.with_name(path.name + ".sha256")


def write_checksum(path: str | os.PathLike[str], digest: str | None = None) -> None:
    """Write the checksum of ``path`` beside it, in the format of `sha256sum`. ``digest``: the checksum, if known."""
    write_text(checksum_path(path), f"{digest or sha256(path)}  {Path(path).name}\n")


def require_checksum(path: str | os.PathLike[str], remedy: str = "use an intact copy, or build it again") -> None:
    """Raise UserError, ending with ``remedy``, if a checksum file beside ``path`` does not match the file."""
    beside = checksum_path(path)
    try:
        line = beside.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return
    if not re.fullmatch(rb"[0-9a-f]{64} [ *]" + re.escape(os.fsencode(Path(path).name)) + rb"\n?", line):
        raise UserError(f"{beside}: damaged: not a line written by sha256sum for {path}; {remedy}")
    if sha256(path) != line[:64].decode():
        raise UserError(
            f"{path}: damaged or replaced: its checksum differs from the one in {beside.name} beside it; {remedy} (if "
            "you replaced the file on purpose, remove that checksum file)"
        )


def refuse_existing(path: str | os.PathLike[str], remedy: str) -> None:
    """Raise UserError if ``path`` exists: a user's files are never overwritten without being asked to."""
    if os.path.lexists(path):
        raise UserError(f"{path} exists already; {remedy}")
