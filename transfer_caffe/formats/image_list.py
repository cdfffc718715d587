"""Reading and writing of Caffe's image lists: `relative/path label`, one image per line.

    cat/0001.png 0
    my photos/dog 7.png 1

As in Caffe's convert_imageset the last space separates the label, so paths may contain spaces. Beside the lists of a
half of the classes is its class map, classes.txt: the original classes that it numbers 0, 1, 2, ...
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from transfer_caffe.utils.errors import UserError, require_file
from transfer_caffe.utils.files import read_text, write_text

MAX_LABEL = 2**31 - 1  # Datum.label is an int32


Line = tuple[str, int]


def read_list(path: str | os.PathLike[str]) -> list[Line]:
    """Return the (path, label) pairs of an image list, in order: line i + 1 of the file is element i.

    Raise UserError, naming file and line, for a malformed line, an invalid or negative label, or an empty list.
    """
    require_file(
        path,
        "`python -m data_prep.folders IMAGES --out DIR --val-images-per-class N` writes image lists from class folders",
    )
    if not os.path.isfile(path) and not os.path.isdir(path):
        raise UserError(f"{path}: not a regular file, but the list is read twice; write it to a file first")
    text = read_text(path).rstrip()
    if not text:
        raise UserError(f"{path}: the image list is empty; lines `relative/path label` were expected")
    result: list[Line] = []
    labels: dict[str, int] = {}  # a cache: ImageNet's list has a million labels, a thousand of them different
    for number, line in enumerate(_lines(text), 1):
        name, space, label = line.rstrip().rpartition(" ")
        if not space or not name.strip():
            raise UserError(f"{path}: line {number}: {_short(line)} is not `relative/path label`")
        if "\0" in name:
            raise UserError(f"{path}: line {number}: {_short(name)} contains a NUL byte, which no path can have")
        if label not in labels:
            labels[label] = _label(label, f"{path}: line {number}")
        result.append((name, labels[label]))
    return result


def _lines(text: str) -> Iterator[str]:
    """Yield the lines of a text one at a time: a list of all lines would double the memory."""
    start = 0
    while (end := text.find("\n", start)) >= 0:
        yield text[start:end]
        start = end + 1
    yield text[start:]


def _label(label: str, where: str) -> int:
    """Return a label as an integer. Raise UserError if it is not one from 0 to `MAX_LABEL`."""
    if not (label.isascii() and label.isdigit()):
        if label[:1] == "-" and label[1:].isdigit():
            raise UserError(f"{where}: the label {label} is negative; labels start at 0")
        raise UserError(f"{where}: the label {_short(label)} is not a whole number")
    if len(label) > 10 or int(label) > MAX_LABEL:
        raise UserError(f"{where}: the label {_short(label)} is larger than {MAX_LABEL}")
    return int(label)


def _short(text: str) -> str:
    """Return a text, truncated to 60 characters, in quotes for an error message."""
    return repr(text if len(text) <= 60 else text[:57] + "...")


def write_list(path: str | os.PathLike[str], lines: Iterable[Line]) -> None:
    """Write an image list, byte for byte in the format of the paper's authors' lists."""
    write_text(path, "".join(f"{name} {label}\n" for name, label in lines))


def write_class_map(path: str | os.PathLike[str], old: Sequence[int] | np.ndarray) -> None:
    """Write the class map of a half: the authors' header, then a line `old new` for each new class number."""
    write_text(path, "# Orig_idx new_idx\n" + "".join(f"{number} {new}\n" for new, number in enumerate(old)))


def read_class_map(path: str | os.PathLike[str]) -> list[int]:
    """Return the old class numbers of a class map; element i is the old number of new class i."""
    result: list[int] = []
    for number, line in enumerate(read_text(path).splitlines(), 1):
        if line.startswith("#") or not line.strip():
            continue
        fields = line.split()
        if len(fields) != 2 or not all(field.isdigit() for field in fields) or int(fields[1]) != len(result):
            raise UserError(f"{path}: line {number}: expected `old {len(result)}`, not {_short(line)}")
        result.append(int(fields[0]))
    return result
