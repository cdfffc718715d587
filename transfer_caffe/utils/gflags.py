"""The spelling of Caffe's command lines: `-gray`, `--gray`, `--gray=true`, `--nogray`, `-resize_height=256`."""

from __future__ import annotations

from collections.abc import Sequence

from transfer_caffe.utils.errors import UserError

_TRUE = ("1", "t", "true", "y", "yes")
_FALSE = ("0", "f", "false", "n", "no")


def as_argparse(argv: Sequence[str], switches: Sequence[str]) -> list[str]:
    """Rewrite gflags' spelling to argparse's: two dashes; a switch is there or it is not, the last one given counts.

    ``switches`` are the names of the boolean flags, with underscores. What follows ``--`` stays as it is.
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
                raise UserError(f"{word}: true or false was expected after the equals sign")
            on[plain] = not equals or value.lower() in _TRUE
        elif plain.startswith("no") and plain[2:] in switches and not equals:
            on[plain[2:]] = False
        else:
            result.append(f"--{plain}{equals}{value}")
    return [f"--{name}" for name, value in on.items() if value] + result
