"""Error handling of all commands: one line that says what is wrong, where and what to do, and exit code 2."""

from __future__ import annotations

import argparse
import errno
import functools
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn


class UserError(Exception):
    """Bad usage or bad input, described in one line that a user can act on. Commands print it and exit with code 2."""


class ArgumentParser(argparse.ArgumentParser):
    """An argparse parser with one-line errors; its --help keeps the layout of the examples in ``epilog``."""

    def __init__(self, *args: object, **kwargs: object) -> None:
        kwargs.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(*args, **kwargs)  # pyright: ignore[reportArgumentType]

    def error(self, message: str) -> NoReturn:
        """Raise UserError instead of printing the usage before the error, as argparse does."""
        raise UserError(f"{message}; --help shows the arguments of this command")

    def _get_value(self, action: argparse.Action, arg_string: str) -> Any:
        """Refuse an empty file or folder: `--runs "$RUNS"` without RUNS would otherwise use the current folder."""
        is_path = action.type is Path or action.metavar in ("DIR", "FILE", "MEAN")
        if is_path and not arg_string and action.default != "":
            raise argparse.ArgumentError(action, "is empty; is a shell variable unset?")
        return super()._get_value(action, arg_string)  # pyright: ignore[reportAttributeAccessIssue]


def require_file(path: str | os.PathLike[str], remedy: str) -> None:
    """Raise UserError, ending with ``remedy``, unless ``path`` exists."""
    if not os.path.exists(path):
        raise UserError(f"{os.fspath(path)}: no such file; {remedy}")


_OS_HINTS = {
    errno.ENOSPC: "no space left on the device; free some space, then run the same command again",
    errno.EDQUOT: "the disk quota is used up; free some space, then run the same command again",
    errno.EACCES: "permission denied",
    errno.EPERM: "permission denied",
    errno.EROFS: "the file system is read-only",
    errno.ENOENT: "no such file or directory",
    errno.EISDIR: "this is a directory; a file was expected",
    errno.ENOTDIR: "a part of this path is a file; a directory was expected",
    errno.EEXIST: "a file or folder with this name exists already",
    errno.ENAMETOOLONG: "this name is too long",
}


def os_error_line(error: OSError) -> str:
    """Return the one-line message for an operating system error: the file, and what is wrong with it."""
    what = _OS_HINTS.get(error.errno or 0, error.strerror or str(error))
    return f"{os.fspath(error.filename)}: {what}" if error.filename else what


def say_error(program: str, message: str) -> None:
    """Write ``program: error: message`` to standard error, as one line."""
    print(f"{program}: error: {' '.join(message.split())}", file=sys.stderr, flush=True)


def command(main: Callable[[list[str] | None], int | None]) -> Callable[..., int]:
    """Wrap a command's ``main(argv) -> exit code``: bad input gives one line and exit code 2, Ctrl-C gives 130.

    All other exceptions are bugs of the program and keep their traceback.
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
            # the reader of our output (head, less) has closed the pipe: not an error of this program
            sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - otherwise the flush at exit would fail again
            return 141  # the exit code by which a shell reports SIGPIPE
        except OSError as error:
            say_error(name, os_error_line(error))
            return 2
        except KeyboardInterrupt:
            print(f"{name}: interrupted", file=sys.stderr)
            return 130

    return run


def _as_typed(module: str) -> str:
    """Return the command line that starts a module, or "" if the module is the running program itself.

    In a checkout that is the short form, through the top-level packages `tools` and `data_prep`.
    """
    if module == "__main__":
        return ""
    name = module.removesuffix(".__main__")
    short = name.removeprefix("transfer_caffe.")
    wrapper = Path(__file__).resolve().parents[2].joinpath(*short.split("."))
    return f"python -m {short if wrapper.with_suffix('.py').is_file() else name}"


def _module_of_main() -> str:
    """Return the command line of the running program, as `python -m` or a script's name."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    return f"python -m {spec.name.removesuffix('.__main__')}" if spec else os.path.basename(sys.argv[0])
