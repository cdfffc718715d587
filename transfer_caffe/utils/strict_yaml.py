"""YAML read strictly: a key twice, an unknown key, a value of another type are errors that name file and key.

    section = Section(load_yaml(path), str(path))
    crop = section.whole("crop", least=1)
    section.end()                       # UserError if there are keys that nobody took

YAML itself takes the second of two equal keys, and everybody ignores what they do not know, without a word.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, NoReturn

import yaml

from transfer_caffe.utils.errors import UserError
from transfer_caffe.utils.files import read_text


class _Loader(yaml.SafeLoader):
    """YAML in which a key twice is an error; YAML itself would take the second one without a word."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"the key {key.value} is here twice", key.start_mark
                    )
                seen.add(key.value)
        return super().construct_mapping(node, deep)


def load_yaml(path: Path) -> Any:
    """The value of a YAML file. UserError, by file and line, if it is broken or has a key twice."""
    try:
        return yaml.load(read_text(path), Loader=_Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}:{mark.line + 1}" if mark else str(path)
        raise UserError(f"{where}: not valid YAML: {getattr(error, 'problem', None) or error}") from None


REQUIRED = object()


class Section:
    """One mapping of the file: takes its keys one by one, checks their types, and knows those nobody took."""

    def __init__(self, value: Any, where: str) -> None:
        """Take a mapping; ``where`` says in errors which one."""
        self.where = where
        if not isinstance(value, dict):
            raise UserError(f"{where}: a mapping (key: value) was expected, not {shown(value)}")
        self.left: dict[Any, Any] = dict(value)
        self.known: list[str] = []

    def fail(self, key: str, problem: str) -> NoReturn:
        """UserError about one key."""
        raise UserError(f"{self.where}: {key}: {problem}")

    def take(self, key: str, default: Any = REQUIRED) -> Any:
        """The value of a key, of any type."""
        self.known.append(key)
        if key not in self.left:
            if default is REQUIRED:
                raise UserError(f"{self.where}: the key `{key}` is missing")
            return default
        return self.left.pop(key)

    def text(self, key: str, default: Any = REQUIRED) -> str:
        """Text, not empty."""
        value = self.take(key, default)
        if not isinstance(value, str) or not value:
            self.fail(key, f"text was expected, not {shown(value)}")
        return value

    def flag(self, key: str, default: Any = REQUIRED) -> bool:
        """True or false."""
        value = self.take(key, default)
        if not isinstance(value, bool):
            self.fail(key, f"true or false was expected, not {shown(value)}")
        return value

    def whole(self, key: str, least: int, default: Any = REQUIRED) -> int:
        """A whole number, ``least`` or more."""
        value = self.take(key, default)
        if not is_whole(value, least):
            self.fail(key, f"a whole number, {least} or more, was expected, not {shown(value)}")
        return value

    def whole_or(self, key: str, word: str) -> int | None:
        """A whole number from 1, or the word (None), which is also the default."""
        value = self.take(key, word)
        if value != word and not is_whole(value, 1):
            self.fail(key, f"`{word}` or a whole number, 1 or more, was expected, not {shown(value)}")
        return None if value == word else value

    def one_of(self, key: str, words: list[str], default: Any = REQUIRED) -> str:
        """One of these words."""
        value = self.take(key, default)
        if value not in words:
            self.fail(key, f"one of {', '.join(words)} was expected, not {shown(value)}")
        return value

    def end(self) -> None:
        """UserError if there are keys that nobody took."""
        if self.left:
            unknown = ", ".join(str(key) for key in self.left)
            raise UserError(f"{self.where}: unknown key {unknown}; known are {', '.join(self.known)}")


def shown(value: Any) -> str:
    """A value as an error message shows it."""
    text = "nothing" if value is None else repr(value)
    if isinstance(value, str) and re.fullmatch(r"[-+]?[0-9.]+[eE][-+]?[0-9]+", value):
        text += " (YAML takes this for text: write it with a point and a sign, as 1.0e-4)"
    return text


def is_whole(value: Any, least: int) -> bool:
    """Whether this is a whole number, and not less than that; true and false are none."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= least
