"""Errors of this interface: exceptions that say in one line what is wrong; real pycaffe often ends Python instead."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from transfer_caffe.utils.errors import UserError

P = ParamSpec("P")
R = TypeVar("R")


class CaffeError(UserError, RuntimeError):
    """A net, a file or a call that Caffe rejects. It is a RuntimeError, as the few errors that pycaffe raises."""


def raises_caffe_errors(function: Callable[P, R]) -> Callable[P, R]:
    """Let a function raise the engine's errors as `CaffeError`; exceptions of Python layers stay as they are."""

    @functools.wraps(function)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return function(*args, **kwargs)
        except UserError as error:
            if type(error) is UserError:
                raise CaffeError(str(error)) from None
            raise

    return wrapped


def require_readable(path: str | os.PathLike[str]) -> str:
    """Return a path as text. Raise CaffeError, with pycaffe's message, unless it is a file that can be opened."""
    path = os.fspath(path)
    try:
        with open(path, "rb"):
            return path
    except OSError as error:
        raise CaffeError(f"Could not open file {path}: {error.strerror}") from None
