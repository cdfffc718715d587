"""How two settings of a network differ, field by field: a net or solver in its folder, and that of the recipe now.

    differences(there, now)     ["base_lr is 0.01 in the folder and 0.02 by the recipe", ...]

Comparing messages instead of lines of text, a field is named with all that it lies in, whatever the order of the lines.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from google.protobuf.message import Message

from transfer_caffe.proto import to_text

SHOWN = 3
"""So many differences are named; of more the number is told."""


def differences(there: Message, now: Message) -> list[str]:
    """One sentence a field that differs between two messages of one type, in the order of their definition."""
    return [
        sentence(path, _shown(field, old), _shown(field, new)) for path, field, old, new in _walk(there, now, prefix="")
    ]


def sentence(what: str, there: object, now: object) -> str:
    """`base_lr is 0.01 in the folder and 0.02 by the recipe`."""
    return f"{what} is {there} in the folder and {now} by the recipe"


def in_short(every: list[str]) -> str:
    """The first few sentences, and how many there are more, on one line."""
    more = len(every) - SHOWN
    return ", ".join(every[:SHOWN]) + (f", and {more} more" if more > 0 else "")


def _walk(there: Message, now: Message, prefix: str) -> Iterator[tuple[str, Any, Any, Any]]:
    """Path, field, and the two values (None: not set) of each field, down to numbers and texts, that differs."""
    for field in there.DESCRIPTOR.fields:
        path = f"{prefix}{field.name}"
        if field.default_value != []:  # not repeated; protobuf 5 has no simpler word for that
            old, new = (getattr(each, field.name) if each.HasField(field.name) else None for each in (there, now))
            yield from _pair(path, field, old, new)
            continue
        olds, news = list(getattr(there, field.name)), list(getattr(now, field.name))
        if field.message_type is None:
            if olds != news:
                yield path, field, olds, news
            continue
        for index in range(max(len(olds), len(news))):
            old, new = (each[index] if index < len(each) else None for each in (olds, news))
            name = getattr(old or new, "name", "") or (str(index) if len(olds) + len(news) > 2 else "")
            yield from _pair(f"{path} {name}".rstrip(), field, old, new)


def _pair(path: str, field: Any, old: Any, new: Any) -> Iterator[tuple[str, Any, Any, Any]]:
    if old == new:
        return
    if field.message_type is not None and old is not None and new is not None:
        yield from _walk(old, new, f"{path}: " if field.default_value == [] else f"{path}.")
    else:
        yield path, field, old, new


def _shown(field: Any, value: Any) -> str:
    """A value as prototxt has it, on one line."""
    if isinstance(value, list):
        return f"[{', '.join(_shown(field, each) for each in value)}]"
    if value is None:
        return "not set"
    if isinstance(value, Message):
        return f"{{ {' '.join(to_text(value).split())} }}"
    if field.enum_type is not None:
        return field.enum_type.values_by_number[value].name
    if field.cpp_type == field.CPPTYPE_BOOL:
        return "true" if value else "false"
    if field.cpp_type == field.CPPTYPE_FLOAT:
        return str(np.float32(value)).removesuffix(".0")  # the shortest digits that mean this number
    return f'"{value}"' if isinstance(value, str) else str(value)
