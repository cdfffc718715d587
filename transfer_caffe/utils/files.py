"""Files that appear whole or not at all, and their checksums."""

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
    """Yield a temporary path beside ``path``; on success it becomes ``path`` by rename, on failure it is removed.

    A reader, or a run that was killed and started again, sees the old file or the new one, never a part.
    """
    if not os.fspath(path) or not Path(path).name:
        raise UserError(f"{os.fspath(path)!r} is no name for a file to write")
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
    """As `whole_file`, for a folder. ``path`` must not exist yet; the folder yielded exists and is empty."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        temporary.mkdir()
        yield temporary
        files = [child for child in temporary.rglob("*") if child.is_file()]
        if len(files) > 100:
            os.sync()  # once for all: thousands of single ones take longer than the work
        else:
            for file in files:
                sync(file)
        os.rename(temporary, path)
    except BaseException as error:
        shutil.rmtree(temporary, ignore_errors=True)
        _name_target(error, temporary, path)
        raise


def _name_target(error: BaseException, temporary: Path, path: Path) -> None:
    """Let an error of the operating system name the file that was wanted, not the temporary one."""
    if not isinstance(error, OSError):
        return
    if isinstance(error.filename, str | os.PathLike):
        error.filename = os.fspath(error.filename).replace(str(temporary), str(path))
    elif error.filename is None and error.errno in (errno.ENOSPC, errno.EDQUOT):
        error.filename = str(path)  # writing, unlike opening, names no file


def sync(path: Path) -> None:
    """Have a file, or the names in a folder, written to the disk: they then survive a loss of power."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_bytes(path: str | os.PathLike[str], data: bytes) -> None:
    """Write a whole file, or leave what was there."""
    with whole_file(path) as temporary:
        temporary.write_bytes(data)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write a whole UTF-8 text file, or leave what was there."""
    write_bytes(path, text.encode())


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Write a whole JSON file, indented, with its keys in the order given."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_text(path: str | os.PathLike[str], comment: str | None = None) -> str:
    """Read UTF-8 text; bytes that are not UTF-8 are the user's error, not ours.

    Except, where ``comment`` is the sign with which they begin, in comments: old files have those in any encoding.
    """
    try:
        return _decoded(path, Path(path).read_bytes(), comment)
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not a UTF-8 text file ({error.reason} at byte {error.start})") from None


def _decoded(path: str | os.PathLike[str], content: bytes, comment: str | None) -> str:
    try:
        text = content.decode()
    except UnicodeDecodeError:
        if comment is None:
            raise
        text = re.sub(re.escape(comment.encode()) + rb"[^\n]*", b"", content).decode()
    return text.replace("\r\n", "\n").replace("\r", "\n").removeprefix("\N{BYTE ORDER MARK}")


def read_json(path: str | os.PathLike[str]) -> Any:
    """Read a JSON file that this program wrote. UserError if it is damaged."""
    try:
        return json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: damaged: not valid JSON ({error})") from None


def read_record(
    path: str | os.PathLike[str], kinds: Mapping[str, type | tuple[type, ...]], remedy: str
) -> dict[str, Any]:
    """Read a JSON object that this program wrote, with at least these keys, each of its kind.

    UserError, ending with ``remedy``, if it is damaged or another's.
    """
    record = read_json(path)
    for key, kind in kinds.items():
        value = record.get(key) if isinstance(record, dict) else None
        if not isinstance(value, kind) or (isinstance(value, float) and not math.isfinite(value)):
            raise UserError(f"{path}: damaged: {key!r} is missing, or not as this program writes it; {remedy}")
    return record


def sha256(path: str | os.PathLike[str]) -> str:
    """The sha256 of a file, as hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def checksum_path(path: str | os.PathLike[str]) -> Path:
    """Where the checksum of ``path`` lies, if it has one: beside it, named as it with .sha256 behind."""
    path = Path(path)
    return path.with_name(path.name + ".sha256")


def write_checksum(path: str | os.PathLike[str], digest: str | None = None) -> None:
    """Write the checksum of ``path`` beside it, as `sha256sum` does; ``digest`` if it is known already."""
    write_text(checksum_path(path), f"{digest or sha256(path)}  {Path(path).name}\n")


def require_checksum(path: str | os.PathLike[str], remedy: str = "take a copy that is whole, or make it anew") -> None:
    """UserError, ending with ``remedy``, if a checksum lies beside ``path`` and is not that of its bytes."""
    beside = checksum_path(path)
    try:
        line = beside.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return
    if not re.fullmatch(rb"[0-9a-f]{64} [ *]" + re.escape(os.fsencode(Path(path).name)) + rb"\n?", line):
        raise UserError(f"{beside}: damaged: not a line of sha256sum about {path}; {remedy}")
    if sha256(path) != line[:64].decode():
        raise UserError(
            f"{path}: damaged or replaced: its checksum is not that in {beside.name} beside it; {remedy} (if it is "
            "meant to be another file, remove that checksum)"
        )


def refuse_existing(path: str | os.PathLike[str], remedy: str) -> None:
    """Raise UserError when ``path`` exists: what is the user's is never overwritten unasked."""
    if os.path.lexists(path):
        raise UserError(f"{path} exists already; {remedy}")
