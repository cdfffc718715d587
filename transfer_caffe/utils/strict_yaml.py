"""Strict reading of YAML: duplicate keys, unknown keys and wrong types are errors that name the file and the key.

    section = Section(load_yaml(path), str(path))
    crop = section.whole("crop", least=1)
    section.end()                       # UserError if there are keys that were not read

A plain YAML loader silently uses the last of two equal keys, and programs often ignore unknown keys.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, NoReturn

import yaml

from transfer_caffe.utils.errors import UserError
from transfer_caffe.utils.files import read_text


class _Loader(yaml.SafeLoader):
    """A YAML loader that refuses duplicate keys; PyYAML would silently use the last one."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Return the mapping of a node. Raise ConstructorError if it has a duplicate key."""
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(None, None, f"duplicate key {key.value}", key.start_mark)
                seen.add(key.value)
        return super().construct_mapping(node, deep)

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        """Return the value of a node. Raise ConstructorError, for one line with its place, if it cannot be meant.

        YAML 1.1 reads 010 as 8 and 1:30 as 90; PyYAML's own errors for an impossible date, for example, name no line.
        """
        if node.tag.endswith((":int", ":float")) and re.fullmatch(r"[-+]?0[0-9_]+|.*:.*", str(node.value)):
            problem = f"{node.value} would be read as another number; omit leading zeros, or write it in quotes"
            raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark)
        try:
            return super().construct_object(node, deep)
        except (ValueError, LookupError, AttributeError):
            problem = f"{node.value} cannot be read as {node.tag.rpartition(':')[2]}; write text in quotes"
            raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark) from None


def load_yaml(path: Path) -> Any:
    """Return the content of a YAML file. Raise UserError, with file and line, for bad YAML or duplicate keys."""
    try:
        return yaml.load(read_text(path), Loader=_Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}:{mark.line + 1}" if mark else str(path)
        raise UserError(f"{where}: not valid YAML: {getattr(error, 'problem', None) or error}") from None


REQUIRED = object()


class Section:
    """One mapping of a YAML file. Keys are read one by one with a check of their type; unread keys are detected."""

    def __init__(self, value: Any, where: str) -> None:
        """Wrap a mapping; ``where`` is its name in error messages. Raise UserError if ``value`` is not a mapping."""
        self.where = where
        if not isinstance(value, dict):
            raise UserError(f"{where}: a mapping (key: value) was expected, not {shown(value)}")
        self.left: dict[Any, Any] = dict(value)
        self.known: list[str] = []

    def fail(self, key: str, problem: str) -> NoReturn:
        """Raise UserError about one key."""
        raise UserError(f"{self.where}: {key}: {problem}")

    def take(self, key: str, default: Any = REQUIRED) -> Any:
        """Return the value of a key, of any type. Raise UserError if it is missing and there is no default."""
        self.known.append(key)
        if key not in self.left:
            if default is REQUIRED:
                raise UserError(f"{self.where}: the key `{key}` is missing")
            return default
        return self.left.pop(key)

    def text(self, key: str, default: Any = REQUIRED) -> str:
        """Return a value that must be a non-empty string."""
        value = self.take(key, default)
        if not isinstance(value, str) or not value:
            self.fail(key, f"text was expected, not {shown(value)}")
        return value

    def flag(self, key: str, default: Any = REQUIRED) -> bool:
        """Return a value that must be true or false."""
        value = self.take(key, default)
        if not isinstance(value, bool):
            self.fail(key, f"true or false was expected, not {shown(value)}")
        return value

    def whole(self, key: str, least: int, default: Any = REQUIRED) -> int:
        """Return a value that must be an integer >= ``least``."""
        value = self.take(key, default)
        if not is_whole(value, least):
            self.fail(key, f"a whole number, {least} or more, was expected, not {shown(value)}")
        return value

    def whole_or(self, key: str, word: str) -> int | None:
        """Return an integer >= 1, or None if the value is ``word``, which is also the default."""
        value = self.take(key, word)
        if value != word and not is_whole(value, 1):
            self.fail(key, f"`{word}` or a whole number, 1 or more, was expected, not {shown(value)}")
        return None if value == word else value

    def one_of(self, key: str, words: list[str], default: Any = REQUIRED) -> str:
        """Return a value that must be one of ``words``."""
        value = self.take(key, default)
        if value not in words:
            self.fail(key, f"one of {', '.join(words)} was expected, not {shown(value)}")
        return value

    def end(self) -> None:
        """Raise UserError if there are keys that were not read."""
        if self.left:
            unknown = ", ".join(str(key) for key in self.left)
            raise UserError(f"{self.where}: unknown key {unknown}; known keys: {', '.join(self.known)}")


def shown(value: Any) -> str:
    """Return a value as text for an error message."""
    text = "nothing" if value is None else repr(value)
    if isinstance(value, str) and re.fullmatch(r"[-+]?[0-9.]+[eE][-+]?[0-9]+", value):
        text += " (YAML reads this as a string: write it with a decimal point and a sign, as in 1.0e-4)"
    return text


def is_whole(value: Any, least: int) -> bool:
    """Return whether ``value`` is an integer >= ``least``; true and false are not integers."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= least
