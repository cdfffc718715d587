"""One way for every command to fail: a line that says what, where and what to do, and exit code 2."""

from __future__ import annotations

import argparse
import errno
import functools
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn


class UserError(Exception):
    """Bad usage or bad input, in one line a person can act on. Commands print it and exit with 2."""


class ArgumentParser(argparse.ArgumentParser):
    """An argparse parser whose errors are one line; its --help keeps the layout of the examples in ``epilog``."""

    def __init__(self, *args: object, **kwargs: object) -> None:
        kwargs.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(*args, **kwargs)  # pyright: ignore[reportArgumentType]

    def error(self, message: str) -> NoReturn:
        """Raise UserError where argparse would print the whole usage before the error."""
        raise UserError(f"{message}; --help shows what this command takes")


def named_path(text: str) -> Path:
    """A path of the command line: argparse's ``type`` for paths that must not be empty."""
    if not text:
        raise argparse.ArgumentTypeError("is empty; is a variable of the shell unset?")
    return Path(text)


def require_file(path: str | os.PathLike[str], remedy: str) -> None:
    """Raise UserError, ending with ``remedy``, unless there is something at ``path``."""
    if not os.path.exists(path):
        raise UserError(f"{os.fspath(path)}: no such file; {remedy}")


_OS_HINTS = {
    errno.ENOSPC: "no space left on the device; free some, then run the same command again",
    errno.EDQUOT: "the disk quota is used up; free some space, then run the same command again",
    errno.EACCES: "permission denied",
    errno.EPERM: "permission denied",
    errno.EROFS: "the file system is read-only",
    errno.ENOENT: "no such file or directory",
    errno.EISDIR: "this is a directory; a file was expected",
    errno.ENOTDIR: "a part of this path is a file; a directory was expected",
    errno.EEXIST: "something of this name exists already and is in the way",
    errno.ENAMETOOLONG: "this name is too long",
}


def os_error_line(error: OSError) -> str:
    """The one line for an operating system error: the file it is about, and what is wrong with it."""
    what = _OS_HINTS.get(error.errno or 0, error.strerror or str(error))
    return f"{os.fspath(error.filename)}: {what}" if error.filename else what


def say_error(program: str, message: str) -> None:
    """Write ``program: error: message`` to standard error, as one line."""
    print(f"{program}: error: {' '.join(message.split())}", file=sys.stderr, flush=True)


def command(main: Callable[[list[str] | None], int | None]) -> Callable[..., int]:
    """Wrap a command's ``main(argv) -> exit code`` so that bad input gives one line and 2, Ctrl-C gives 130.

    Errors of the program itself keep their traceback: they are bugs, and the traceback is their report.
    """
    program = _as_typed(main.__module__)

    @functools.wraps(main)
    def run(argv: list[str] | None = None) -> int:
        name = program or _module_of_main()
        try:
            return main(argv) or 0
        except UserError as error:
            say_error(name, str(error))
            return 2
        except BrokenPipeError:
            # the reader of our output (head, less) went away: not an error of ours
            sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - it keeps the flush at exit from failing again
            return 141  # as a shell tells of SIGPIPE
        except OSError as error:
            say_error(name, os_error_line(error))
            return 2
        except KeyboardInterrupt:
            print(f"{name}: interrupted", file=sys.stderr)
            return 130

    return run


def _as_typed(module: str) -> str:
    """How people type the command of a module; empty if the module is the running program itself.

    In a checkout the doors `tools` and `data_prep` at its top are typed.
    """
    if module == "__main__":
        return ""
    name = module.removesuffix(".__main__")
    short = name.removeprefix("transfer_caffe.")
    door = Path(__file__).resolve().parents[2].joinpath(*short.split("."))
    return f"python -m {short if door.with_suffix('.py').is_file() else name}"


def _module_of_main() -> str:
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    return f"python -m {spec.name.removesuffix('.__main__')}" if spec else os.path.basename(sys.argv[0])
