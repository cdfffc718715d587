"""Read the nouns of WordNet 3.0: synsets by their ids, and their hypernyms.

nouns = Nouns(noun_file())
nouns["n02123045"].words            "tabby, tabby cat"
"""

from __future__ import annotations

import io
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from transfer_caffe.utils.errors import UserError

VERSION = "3.0"  # the version of WordNet: ImageNet's ids are byte offsets in its files
MADE = ".wordnet/usr/share/wordnet"  # installed by `make wordnet` in the repository
INSTALLED = MADE if os.path.isdir(MADE) else "/usr/share/wordnet"  # installed by Debian's package


@dataclass(frozen=True)
class Synset:
    """A noun of WordNet: its id (n and its byte offset in the file), its words, the ids of its hypernyms."""

    id: str
    words: str
    hypernyms: tuple[str, ...]

    def __str__(self) -> str:
        """Return the synset as text for messages."""
        return f"{self.id} {self.words}"


def noun_file(given: str | None = None) -> Path:
    """Return the path of data.noun: ``given``, the environment variable WORDNET, or the folder of Debian's package.

    Each may be the file, its folder, a folder of Princeton's WordNet-3.0, or an unpacked Debian package.
    """
    place = Path(given or os.environ.get("WORDNET") or INSTALLED)
    for path in (place / "data.noun", place / "dict/data.noun", place / "usr/share/wordnet/data.noun", place):
        if path.is_file():
            return path
    raise UserError(
        f"{place}: no noun file of WordNet {VERSION} (data.noun) there; run `make wordnet`, install "
        "Debian's package wordnet-base, or give the folder of another copy with --wordnet"
    )


class Nouns:
    """The synsets of a noun file (format: wndb(5WN)), parsed on demand.

    Raises UserError, naming the file, if it is damaged or not WordNet 3.0's. Each line starts with its own byte offset
    in the file, so added or lost bytes are detected.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Read the file, and check the offset of each line."""
        self.path = path
        # with line ends of two bytes the offsets would be wrong
        data = Path(path).read_bytes().replace(b"\r\n", b"\n")
        header = re.match(rb"(?: .*\n)*", data)
        version = re.search(rb"WordNet (\d[.\d]*) Copyright", header[0] if header else b"")
        if not header or not version or not re.match(rb"\d{8} \d\d n ", data[header.end() : header.end() + 14]):
            raise UserError(f"{path}: not the noun file of WordNet {VERSION}, data.noun")
        if version[1].decode() != VERSION:
            raise UserError(
                f"{path}: this is WordNet {version[1].decode()}; ImageNet's ids belong to WordNet {VERSION}, and in "
                f"other versions they are other synsets or none; get WordNet {VERSION} with `make wordnet`"
            )
        self._lines: dict[bytes, bytes] = {}
        self._synsets: dict[str, Synset] = {}
        place = 0
        for line in io.BytesIO(data):
            if place >= header.end():
                if line[:9] != b"%08d " % place or line[-1:] != b"\n":
                    raise self._damaged(place)
                self._lines[line[:8]] = line
            place += len(line)

    def _damaged(self, place: int | str) -> UserError:
        """Return the error for a file that is damaged at byte ``place``."""
        return UserError(f"{self.path}: damaged at byte {int(place)}; unpack the package wordnet-base again")

    def __contains__(self, wnid: str) -> bool:
        """Return whether a synset has this id."""
        return wnid[:1] == "n" and wnid[1:].encode() in self._lines

    def __getitem__(self, wnid: str) -> Synset:
        """Return the synset of an id. Raise KeyError if there is none, UserError if its line is damaged."""
        if wnid not in self._synsets:
            self._synsets[wnid] = self._parse(wnid, self._lines[wnid[1:].encode()])
        return self._synsets[wnid]

    def _parse(self, wnid: str, line: bytes) -> Synset:
        """Parse the line of a synset. Raise UserError if it is damaged."""
        # place lex_filenum ss_type w_cnt word lex_id [word lex_id...] p_cnt [symbol place pos source/target...] | gloss
        try:
            fields = line.partition(b" | ")[0].decode().split()
            end = 4 + 2 * int(fields[3], 16)
            words, count = fields[4:end:2], int(fields[end])
            pointers = fields[end + 1 :]
            if fields[2] != "n" or not words or len(pointers) != 4 * count:
                raise ValueError
        except (ValueError, IndexError):
            raise self._damaged(wnid[1:]) from None
        above = [f"n{pointers[i + 1]}" for i in range(0, len(pointers), 4) if pointers[i] in ("@", "@i")]
        if not all(wnid in self for wnid in above):
            raise self._damaged(wnid[1:])
        return Synset(wnid, ", ".join(words).replace("_", " "), tuple(above))

    def ancestors(self, wnid: str) -> set[str]:
        """Return the ids of a synset, its hypernyms, their hypernyms and so on."""
        found: set[str] = set()
        todo = [wnid]
        while todo:
            wnid = todo.pop()
            if wnid not in found:
                found.add(wnid)
                todo.extend(self[wnid].hypernyms)
        return found

    def tree(self, wnid: str) -> Iterator[tuple[int, Synset, bool]]:
        """Yield (depth, synset, whether it occurred before) for a synset and all its ancestors, depth first."""
        todo, seen = [(0, wnid)], set[str]()
        while todo:
            depth, wnid = todo.pop()
            yield depth, self[wnid], wnid in seen
            if wnid not in seen:
                seen.add(wnid)
                todo.extend((depth + 1, above) for above in reversed(self[wnid].hypernyms))
