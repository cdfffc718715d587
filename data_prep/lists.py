"""Caffe's image lists (`relative/path label`, one image a line), class files and class maps: reading and writing.

    cat/0001.png 0
    my photos/dog 7.png 1

As in Caffe's convert_imageset the last space separates the label, so that paths may hold spaces.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from transfer_caffe.errors import UserError, require_file
from transfer_caffe.files import read_text, write_text

MAX_LABEL = 2**31 - 1  # Datum.label is an int32
GROUPS = ("natural", "man-made")
IMAGENET_CLASSES = Path(__file__).parent / "classes.csv"

Line = tuple[str, int]


def read_list(path: str | os.PathLike[str]) -> list[Line]:
    """The (path, label) pairs of an image list, in its order: line i + 1 of the file is element i.

    UserError, naming file and line, for a malformed line, a label that is no number or negative, an empty list.
    """
    require_file(
        path,
        "`python -m data_prep.folders IMAGES --out DIR --val-images-per-class N` writes image lists of class folders",
    )
    if not os.path.isfile(path) and not os.path.isdir(path):
        raise UserError(f"{path}: not a file, and a list is read twice; write it to a file first")
    text = read_text(path).rstrip()
    if not text:
        raise UserError(f"{path}: the image list is empty; lines `relative/path label` were expected")
    result: list[Line] = []
    labels: dict[str, int] = {}  # ImageNet's list has a million of them, and a thousand different ones
    for number, line in enumerate(_lines(text), 1):
        name, space, label = line.rstrip().rpartition(" ")
        if not space or not name.strip():
            raise UserError(f"{path}: line {number}: {_short(line)} is not `relative/path label`")
        if "\0" in name:
            raise UserError(f"{path}: line {number}: {_short(name)} holds a NUL byte: that is no path")
        if label not in labels:
            labels[label] = _label(label, f"{path}: line {number}")
        result.append((name, labels[label]))
    return result


def _lines(text: str) -> Iterator[str]:
    """The lines, one at a time: all of them beside the text would take twice the memory."""
    start = 0
    while (end := text.find("\n", start)) >= 0:
        yield text[start:end]
        start = end + 1
    yield text[start:]


def _label(label: str, where: str) -> int:
    if not (label.isascii() and label.isdigit()):
        if label[:1] == "-" and label[1:].isdigit():
            raise UserError(f"{where}: the label {label} is negative; labels count from 0")
        raise UserError(f"{where}: the label {_short(label)} is not a whole number")
    if len(label) > 10 or int(label) > MAX_LABEL:
        raise UserError(f"{where}: the label {_short(label)} is above {MAX_LABEL}")
    return int(label)


def _short(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:57] + "...")


def write_list(path: str | os.PathLike[str], lines: Iterable[Line]) -> None:
    """Write an image list, byte for byte in the format of the paper's authors."""
    write_text(path, "".join(f"{name} {label}\n" for name, label in lines))


@dataclass(frozen=True)
class Class:
    """A line of a class file: number, folder or WordNet id, words, group (`natural` or `man-made`)."""

    index: int
    name: str
    words: str
    group: str


def read_classes(path: str | os.PathLike[str] = IMAGENET_CLASSES) -> list[Class]:
    """The classes of a class file, element i with index i.

    The file is CSV under the header `index,wnid,words,group` (or `name` instead of `wnid`). UserError, naming file and
    line, for anything else, for classes not numbered 0, 1, 2, ..., for a group that is neither natural nor man-made.
    """
    rows = csv.reader(read_text(path).splitlines())
    header = next(rows, [])
    if header not in (["index", "wnid", "words", "group"], ["index", "name", "words", "group"]):
        raise UserError(f"{path}: not a class file: its first line must be index,wnid,words,group (or name for wnid)")
    result: list[Class] = []
    for row in rows:
        where = f"{path}: line {rows.line_num}"
        if len(row) != 4:
            raise UserError(f"{where}: {len(row)} columns; index, {header[1]}, words and group were expected")
        if row[0] != str(len(result)):
            raise UserError(f"{where}: class {row[0]!r} where {len(result)} was expected: classes count 0, 1, 2, ...")
        if row[3] not in GROUPS:
            raise UserError(f"{where}: unknown group {row[3]!r}; allowed are {' and '.join(GROUPS)}")
        result.append(Class(len(result), *row[1:]))
    if not result:
        raise UserError(f"{path}: the class file has no classes")
    return result


def write_classes(path: str | os.PathLike[str], classes: Iterable[Class], key: str = "name") -> None:
    """Write a class file; ``key`` is what its header calls the names: `name`, or `wnid` for WordNet ids."""
    with_header = [("index", key, "words", "group"), *((c.index, c.name, c.words, c.group) for c in classes)]
    lines = _CsvLines()
    csv.writer(lines, lineterminator="\n").writerows(with_header)
    write_text(path, "".join(lines))


class _CsvLines(list[str]):
    def write(self, line: str) -> None:
        self.append(line)


def write_class_names(path: str | os.PathLike[str], names: Iterable[str]) -> None:
    """Write a line `number name` for each class, where the groups are unknown that a class file needs."""
    write_text(path, "".join(f"{number} {name}\n" for number, name in enumerate(names)))


def write_class_map(path: str | os.PathLike[str], old: Sequence[int] | np.ndarray) -> None:
    """Write a half's class map: a line `old new` for each new class number, under the authors' header."""
    write_text(path, "# Orig_idx new_idx\n" + "".join(f"{number} {new}\n" for new, number in enumerate(old)))


def read_class_map(path: str | os.PathLike[str]) -> list[int]:
    """The old class numbers of a class map, element i that of new class i."""
    result: list[int] = []
    for number, line in enumerate(read_text(path).splitlines(), 1):
        if line.startswith("#") or not line.strip():
            continue
        fields = line.split()
        if len(fields) != 2 or not all(field.isdigit() for field in fields) or int(fields[1]) != len(result):
            raise UserError(f"{path}: line {number}: {_short(line)}, where `old {len(result)}` was expected")
        result.append(int(fields[0]))
    return result
