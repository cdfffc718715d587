"""Derive the groups man-made and natural of classes named by WordNet ids from WordNet's hierarchy of nouns.

    python -m data_prep.wordnet --ids synset_words.txt --out classes.csv
    python -m data_prep.wordnet --explain n02123045

Descendants of the synset artifact (n00021939) are man-made and all others natural, with the exceptions in
natman_exceptions.csv (prepared foods, bubble, ...). For the 1000 ImageNet classes the result is the paper's 551
man-made and 449 natural classes (section 4). --ids is a class file, Caffe's synsets.txt or synset_words.txt (one id per
line, optionally followed by words), or a folder whose subfolders are named by ids, like ImageNet's training images.
Pass the class file that is written to `python -m data_prep.split natman --classes`.

The noun file of WordNet 3.0, data.noun, is needed, because ImageNet's ids refer to it. To get it without root on Debian
or Ubuntu:

    apt-get download wordnet-base && dpkg-deb -x wordnet-base_*.deb wordnet    # then --wordnet wordnet
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from transfer_caffe.data_prep.classes import GROUPS, Class, csv_lines, read_classes, write_classes
from transfer_caffe.data_prep.noun_file import INSTALLED, VERSION, Nouns, noun_file
from transfer_caffe.utils.errors import ArgumentParser, UserError, command, require_file
from transfer_caffe.utils.files import read_text, refuse_existing

ARTIFACT = "n00021939"
EXCEPTIONS = Path(__file__).parent / "natman_exceptions.csv"
ID = re.compile(r"n\d{8}", re.ASCII)


@dataclass(frozen=True)
class Rule:
    """A rule for groups: descendants of a synset of ``at`` are in group ``descendants``, all others in the other group.

    ``exceptions``: the words and the group of ids to which the rule does not apply.
    """

    at: Sequence[str] = (ARTIFACT,)
    descendants: str = "man-made"
    exceptions: Mapping[str, tuple[str, str]] = field(default_factory=dict)

    def descends(self, nouns: Nouns, wnid: str) -> bool:
        """Return whether an id descends from one of the synsets ``at``."""
        return not nouns.ancestors(wnid).isdisjoint(self.at)

    def group(self, nouns: Nouns, wnid: str) -> str:
        """Return the group of an id."""
        if wnid in self.exceptions:
            return self.exceptions[wnid][1]
        return self.descendants if self.descends(nouns, wnid) else self.other()

    def other(self) -> str:
        """Return the group of ids that do not descend from ``at``."""
        return next(group for group in GROUPS if group != self.descendants)


def read_exceptions(path: str | os.PathLike[str]) -> dict[str, tuple[str, str]]:
    """Read exceptions (id to words and group) from a CSV file with the header `wnid,words,group`.

    Raise UserError, naming file and line, if it is malformed.
    """
    rows = csv_lines(path)
    if next(rows, (0, []))[1] != ["wnid", "words", "group"]:
        raise UserError(f"{path}: not a file of exceptions: its first line must be wnid,words,group")
    result: dict[str, tuple[str, str]] = {}
    for number, row in rows:
        where = f"{path}: line {number}"
        if len(row) != 3:
            raise UserError(f"{where}: {len(row)} columns; wnid, words and group were expected")
        wnid, words, group = row
        _require_id(wnid, where)
        if group not in GROUPS:
            raise UserError(f"{where}: unknown group {group!r}; allowed are {' and '.join(GROUPS)}")
        if wnid in result:
            raise UserError(f"{where}: {wnid} is listed twice")
        result[wnid] = words, group
    return result


def read_ids(path: str | os.PathLike[str]) -> dict[str, str]:
    """Read ids (id to words, or "" without words) in the order of the classes; ``path``: see --ids in the module.

    Raise UserError, naming file and line, for invalid and duplicate ids.
    """
    require_file(
        path, "--ids needs a file with one WordNet id per line, like Caffe's synset_words.txt, or a folder of folders"
    )
    result: dict[str, str] = {}
    for where, wnid, words in _entries(Path(path)):
        _require_id(wnid, where)
        if wnid in result:
            raise UserError(f"{where}: {wnid} is listed twice")
        result[wnid] = words
    if not result:
        raise UserError(f"{path}: no WordNet ids there: neither lines nor subfolders that start like n02123045")
    return result


def _entries(path: Path) -> Iterator[tuple[str, str, str]]:
    """Yield (place for error messages, id, words) of each entry of a file or folder of ids."""
    if path.is_dir():
        # all subfolders except hidden ones count as classes, as in programs that read images by folder
        names = sorted(child.name for child in path.iterdir() if child.is_dir() and child.name[0] != ".")
        yield from ((f"{path}: folder {name!r}", name, "") for name in names)
        return
    lines = read_text(path).rstrip().split("\n")
    if lines[0].startswith("index,"):
        yield from ((f"{path}: class {c.index}", c.name, c.words) for c in read_classes(path))
    elif lines != [""]:
        for number, line in enumerate(lines, 1):
            wnid, _, words = line.strip().replace("\t", " ").partition(" ")
            yield f"{path}: line {number}", wnid, words.strip()


def _require_id(wnid: str, where: str) -> None:
    """Raise UserError unless ``wnid`` has the form of a WordNet noun id."""
    if not ID.fullmatch(wnid):
        shown = wnid if len(wnid) <= 40 else wnid[:37] + "..."
        raise UserError(f"{where}: {shown!r} is not the id of a WordNet noun: an n and eight digits, like n02123045")


def classify(nouns: Nouns, ids: Mapping[str, str], rule: Rule) -> list[Class]:
    """Return the classes of ``ids`` (id to words) with their groups; missing words are taken from WordNet.

    Raise UserError for ids that are neither in WordNet nor in the exceptions.
    """
    unknown = [wnid for wnid in ids if wnid not in nouns and wnid not in rule.exceptions]
    if unknown:
        raise UserError(
            f"{_some(unknown)} of {len(ids)} ids: not in WordNet {VERSION} ({nouns.path}); correct them, or list their "
            "groups in a file for --exceptions (wnid,words,group)"
        )
    result = []
    for index, (wnid, given) in enumerate(ids.items()):
        words = given or (nouns[wnid].words if wnid in nouns else rule.exceptions[wnid][0])
        result.append(Class(index, wnid, words, rule.group(nouns, wnid)))
    return result


def _some(names: Sequence[str]) -> str:
    """Return up to five names as text, and the number of further ones."""
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(names[:5]) + more


def strange_words(nouns: Nouns, ids: Mapping[str, str]) -> list[str]:
    """Return the ids that have no word in common with their synset: a sign of another WordNet or of shifted lines."""

    def parts(words: str) -> set[str]:
        return {word.strip().lower() for word in words.split(",")}

    return [w for w, words in ids.items() if words and w in nouns and parts(words).isdisjoint(parts(nouns[w].words))]


def explain(nouns: Nouns, wnid: str, rule: Rule, source: str) -> str:
    """Return an explanation of a class's group, with the tree of its hypernyms; ``source``: the exceptions' file."""
    lines = []
    if wnid in rule.exceptions:
        words, group = rule.exceptions[wnid]
        lines.append(f"{wnid} {nouns[wnid].words if wnid in nouns else words}: {group}, an exception in {source}")
    if wnid in nouns:
        down = rule.descends(nouns, wnid)
        at = [nouns[i] for i in rule.at if not down or i in nouns.ancestors(wnid)]
        why = f"{'descends' if down else 'does not descend'} from {' or '.join(map(str, at))}"
        if lines:
            lines.append(f"without it: {rule.descendants if down else rule.other()}, as it {why}")
        else:
            lines.append(f"{nouns[wnid]}: {rule.group(nouns, wnid)}, as it {why}")
        for depth, synset, again in nouns.tree(wnid):
            note = "  <- the split" if synset.id in rule.at else ""
            lines.append(f"  {'  ' * depth}{synset}{note}{'  (as above)' * (again and bool(synset.hypernyms))}")
    elif not lines:
        raise UserError(f"{wnid}: not in WordNet {VERSION} ({nouns.path})")
    return "\n".join(lines)


# ---- the command


def _parser() -> ArgumentParser:
    parser = ArgumentParser(
        prog="python -m data_prep.wordnet",
        description="Divide classes named by WordNet ids into man-made and natural by WordNet's hierarchy of nouns.",
        epilog="example: python -m data_prep.wordnet --ids synset_words.txt --out classes.csv",
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--ids", help="class file, synsets.txt, synset_words.txt, or folder with subfolders named by ids")
    what.add_argument("--explain", nargs="+", metavar="ID", help="show hypernyms and groups of ids, with the reason")
    parser.add_argument("--out", metavar="CSV", help="the new class file")
    parser.add_argument(
        "--wordnet",
        metavar="PATH",
        help=f"WordNet {VERSION}'s data.noun, or its folder (default: environment variable WORDNET, or {INSTALLED})",
    )
    parser.add_argument(
        "--at",
        nargs="+",
        default=[ARTIFACT],
        metavar="ID",
        help=f"split at these synsets (default {ARTIFACT}, artifact)",
    )
    parser.add_argument(
        "--descendants",
        choices=GROUPS,
        default="man-made",
        help="the group of the classes below the synsets of --at (default man-made)",
    )
    exceptions = parser.add_mutually_exclusive_group()
    exceptions.add_argument(
        "--exceptions",
        metavar="CSV",
        help="wnid,words,group for ids to which the rule does not apply (default: the paper's, unless --at or "
        "--descendants changes the rule)",
    )
    exceptions.add_argument("--no-exceptions", action="store_true", help="apply the rule without exceptions")
    return parser


@command
def main(argv: list[str] | None = None) -> int | None:
    """Write a class file, or explain single classes."""
    options = _parser().parse_args(argv)
    if bool(options.ids) != bool(options.out):
        raise UserError("--ids and --out belong together: --ids is read, and --out is written")
    for wnid in [*options.at, *(options.explain or ())]:
        _require_id(wnid, "--at" if wnid in options.at else "--explain")
    if options.out:
        refuse_existing(options.out, "give another file with --out, or remove it to write it again")
    ids = read_ids(options.ids) if options.ids else {}

    # the paper's exceptions only apply to the paper's rule
    papers = options.at == [ARTIFACT] and options.descendants == "man-made" and not options.no_exceptions
    source = options.exceptions or (EXCEPTIONS if papers else None)
    exceptions = read_exceptions(source) if source else {}
    nouns = Nouns(noun_file(options.wordnet))
    rule = Rule(options.at, options.descendants, exceptions)
    for wnid in rule.at:
        if wnid not in nouns:
            raise UserError(f"--at {wnid}: no noun of WordNet {VERSION} has this id ({nouns.path})")
    if options.explain:
        print("\n\n".join(explain(nouns, wnid, rule, f"{source}") for wnid in options.explain))
        return 0

    classes = classify(nouns, ids, rule)
    write_classes(options.out, classes, key="wnid")
    counts = ", ".join(f"{sum(c.group == group for c in classes)} {group}" for group in reversed(GROUPS))
    down = sum(rule.descends(nouns, wnid) for wnid in ids if wnid in nouns)
    print(f"{options.out}: {len(classes)} classes: {counts}")
    print(f"descendants of {' or '.join(str(nouns[wnid]) for wnid in rule.at)}: {down}")
    if source:
        print(f"exceptions applied: {sum(wnid in exceptions for wnid in ids)} of the {len(exceptions)} in {source}")
    strange = strange_words(nouns, ids)
    if strange:
        print(
            f"note: {len(strange)} have no word in common with their synsets: {_some(strange)}; see --explain",
            file=sys.stderr,
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
