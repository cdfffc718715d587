"""Report how a network's settings have changed: the net or solver in its folder, or the recipe in its record.

    differences(there, now)           ["base_lr is 0.01 in the folder and 0.02 in the recipe", ...]
    changed_setting(network, done)    "threads was 1 and is 2"

Protobuf messages are compared, not lines of text: the order of the lines does not matter, and each difference is
reported with the full path of its field.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from google.protobuf.message import Message

from transfer_caffe.experiment.recipe import Network, solver_of
from transfer_caffe.formats.proto import to_text
from transfer_caffe.utils.files import sha256

SHOWN = 3
"""At most this many differences are listed; further ones are counted."""


def differences(there: Message, now: Message) -> list[str]:
    """Return one sentence per field that differs between two messages of the same type, in the order of definition."""
    return [
        sentence(path, _shown(field, old), _shown(field, new)) for path, field, old, new in _walk(there, now, prefix="")
    ]


def sentence(what: str, there: object, now: object) -> str:
    """Return a sentence such as `base_lr is 0.01 in the folder and 0.02 in the recipe`."""
    return f"{what} is {there} in the folder and {now} in the recipe"


def in_short(every: list[str]) -> str:
    """Join the first `SHOWN` sentences, and the number of further ones, to one line."""
    more = len(every) - SHOWN
    return ", ".join(every[:SHOWN]) + (f", and {more} more" if more > 0 else "")


def changed_setting(network: Network, done: Mapping[str, Any]) -> str:
    """Describe the first setting that affects training and differs between recipe and done.json; "" if none does."""
    if not isinstance(made := done.get("settings"), dict):
        return ""
    before = training_settings(made, network.split, str(network.treatment))
    now = training_settings(network.recipe.settings(), network.split, str(network.treatment))
    solver = {key for key in before.keys() ^ now.keys() if key.startswith("solver.")}
    for key in sorted(before.keys() & now.keys() | solver):  # other keys may come from another version's recipe format
        if before.get(key) != now.get(key):
            return f"{key} was {before.get(key, 'not given')} and is {now.get(key, 'not given')}"
    return ""


def training_settings(settings: Mapping[str, Any], split: str, treatment: str) -> dict[str, Any]:
    """Return the recipe settings (`Recipe.settings`) that affect the training of a network, with dotted keys."""
    solver = solver_of(settings.get("solver", {}), settings.get("solver_for", {}), split, treatment)
    flat: dict[str, Any] = {f"solver.{key}": value for key, value in solver.items()}
    for key in ("images", "batch"):
        flat |= {f"{key}.{name}": value for name, value in settings.get(key, {}).items() if not name.endswith("root")}
    flat["dataset"] = Path(str(settings.get("dataset"))).name  # the location of the images does not matter
    for key in ("architecture", "crop", "mirror", "outputs", "mean", "test_images", "threads"):
        if key in settings:
            flat[key] = settings[key]
    defaults = {
        "precision": "fp32", "deterministic": True, "net_sha256": None, "cuts": [], "scale": 1, "batch_norm": "stored",
        "copied_rate": 1,
    }  # fmt: skip
    return flat | {key: settings.get(key, default) for key, default in defaults.items()}


def changed_source(network: Network, done: Mapping[str, Any]) -> str:
    """Return how the weights that a network copies from differ from those it was trained with; "" if they do not.

    Only for sources that a recipe names; weights that have been removed since are not missed.
    """
    if network.source is None:
        return ""
    given = network.recipe.sources[network.treatment.source].sha256
    now = given.lower() if given else sha256_of(network.source)
    if now is None or now == done.get("base_sha256"):
        return ""
    return f"its source {network.treatment.source} ({network.source}) has changed since"


def sha256_of(path: Path) -> str | None:
    """Return the checksum of a file, computed once for each of its versions; None if there is no such file."""
    try:
        status = path.stat()
    except OSError:
        return None
    return _sha256_of_version(path, status.st_mtime_ns, status.st_size)


@functools.lru_cache(maxsize=64)
def _sha256_of_version(path: Path, _modified: int, _size: int) -> str:
    return sha256(path)


def _walk(there: Message, now: Message, prefix: str) -> Iterator[tuple[str, Any, Any, Any]]:
    """Yield path, field and both values (None: not set) of each differing field, down to scalar fields."""
    for field in there.DESCRIPTOR.fields:
        path = f"{prefix}{field.name}"
        if field.default_value != []:  # not repeated; protobuf 5 has no simpler test for that
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
    """Format a value as in prototxt, on one line."""
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
        return str(np.float32(value)).removesuffix(".0")  # the fewest digits that identify this float32
    return f'"{value}"' if isinstance(value, str) else str(value)
