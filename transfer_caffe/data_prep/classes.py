"""Reading and writing of class files (classes.csv) and class names (classes.txt)."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from transfer_caffe.utils.errors import UserError
from transfer_caffe.utils.files import read_text, write_text

GROUPS = ("natural", "man-made")
IMAGENET_CLASSES = Path(__file__).parent / "classes.csv"


@dataclass(frozen=True)
class Class:
    """One line of a class file: number, folder or WordNet id, words, group (`natural` or `man-made`)."""

    index: int
    name: str
    words: str
    group: str


def read_classes(path: str | os.PathLike[str] = IMAGENET_CLASSES) -> list[Class]:
    """Return the classes of a class file; element i has index i.

    The file is CSV with the header `index,wnid,words,group` (or `name` instead of `wnid`). Raise UserError, naming file
    and line, for another format, for classes not numbered 0, 1, 2, ..., or for a group other than natural and man-made.
    """
    rows = csv_lines(path)
    _, header = next(rows, (0, []))
    if header not in (["index", "wnid", "words", "group"], ["index", "name", "words", "group"]):
        raise UserError(f"{path}: not a class file: its first line must be index,wnid,words,group (or name for wnid)")
    result: list[Class] = []
    for number, row in rows:
        where = f"{path}: line {number}"
        if len(row) != 4:
            raise UserError(f"{where}: {len(row)} columns; index, {header[1]}, words and group were expected")
        if row[0] != str(len(result)):
            raise UserError(f"{where}: class {row[0]!r}, but {len(result)} was expected: number classes 0, 1, 2, ...")
        if row[3] not in GROUPS:
            raise UserError(f"{where}: unknown group {row[3]!r}; allowed are {' and '.join(GROUPS)}")
        result.append(Class(len(result), *row[1:]))
    if not result:
        raise UserError(f"{path}: the class file has no classes")
    return result


def csv_lines(path: str | os.PathLike[str]) -> Iterator[tuple[int, list[str]]]:
    """Yield the line number and the fields of each row of a CSV file. Raise UserError if it is not valid CSV.

    Unlike `str.splitlines`, this ends a row only at a line feed, not at U+2028 and other characters of a name.
    """
    rows = csv.reader(io.StringIO(read_text(path), newline=""), strict=True)
    try:
        for row in rows:
            yield rows.line_num, row
    except csv.Error as error:
        raise UserError(f"{path}: line {rows.line_num}: not valid CSV: {error}") from None


def write_classes(path: str | os.PathLike[str], classes: Iterable[Class], key: str = "name") -> None:
    """Write a class file; ``key`` is the header of the names' column: `name`, or `wnid` for WordNet ids."""
    with_header = [("index", key, "words", "group"), *((c.index, c.name, c.words, c.group) for c in classes)]
    lines = _CsvLines()
    csv.writer(lines, lineterminator="\n").writerows(with_header)
    write_text(path, "".join(lines))


class _CsvLines(list[str]):
    """A list of lines to which csv.writer can write."""

    def write(self, line: str) -> None:
        """Append a line."""
        self.append(line)


def write_class_names(path: str | os.PathLike[str], names: Iterable[str]) -> None:
    """Write a line `number name` for each class, for classes whose groups are unknown (a class file needs them)."""
    write_text(path, "".join(f"{number} {name}\n" for number, name in enumerate(names)))
