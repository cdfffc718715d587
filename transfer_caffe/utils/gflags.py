"""The command line syntax of Caffe (gflags): `-gray`, `--gray`, `--gray=true`, `--nogray`, `-resize_height=256`."""

from __future__ import annotations

from collections.abc import Sequence

from transfer_caffe.utils.errors import UserError

_TRUE = ("1", "t", "true", "y", "yes")
_FALSE = ("0", "f", "false", "n", "no")


def as_argparse(argv: Sequence[str], switches: Sequence[str]) -> list[str]:
    """Rewrite command line arguments from gflags' syntax to argparse's.

    All flags get two dashes. A boolean flag is passed if it is true and omitted if it is false; its last occurrence
    counts. ``switches``: the names of the boolean flags, with underscores. Arguments after ``--`` are not changed.
    """
    result: list[str] = []
    on: dict[str, bool] = {}
    for place, word in enumerate(argv):
        if word == "--":
            result += argv[place:]
            break
        if not word.startswith("-") or word in ("-", "-h") or word[1].isdigit():
            result.append(word)
            continue
        name, equals, value = word.lstrip("-").partition("=")
        plain = name.replace("-", "_")
        if plain in switches:
            if equals and value.lower() not in _TRUE + _FALSE:
                raise UserError(f"{word}: expected true or false after the equals sign")
            on[plain] = not equals or value.lower() in _TRUE
        elif plain.startswith("no") and plain[2:] in switches and not equals:
            on[plain[2:]] = False
        else:
            result.append(f"--{plain}{equals}{value}")
    return [f"--{name}" for name, value in on.items() if value] + result
