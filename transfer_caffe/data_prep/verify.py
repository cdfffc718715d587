"""Compare image lists of ImageNet and of its splits with the lists of the paper's authors, by their checksums.

    python -m data_prep.verify data/ilsvrc2012

The command prints a table with `match`, `differs` or `not made` for each file. The exit code is 0 if none differs, else
1. The checksums (MD5) are of the lists in the authors' code release. In natman, A is man-made and B natural, as in the
paper's text; the letters are swapped in the authors' files.
"""

from __future__ import annotations

import hashlib
import sys
from dataclasses import dataclass
from pathlib import Path

from transfer_caffe.utils.errors import ArgumentParser, UserError, command

# file, MD5, and the number of lines if it is known without the images. In a half it depends on the classes, in a
# reduced list on the number of classes that have fewer images (the smallest class has 732).
AUTHORS = """
train.txt             3be8e5d8cbd932cc295ec175d5110921  1281167
val.txt               b6284a7c08fba47457c2c1f6049a156e  50000
random0/A/train.txt   83f4e664c68213ba43dd9b4465dd7d4e
random0/A/val.txt     2f10009e20d77eb7007cf70674958b94  25000
random0/B/train.txt   0a9e2917a5f10bdbf22974f4b1fc17ce
random0/B/val.txt     cce39b383d681345c873faf2c0c28d33  25000
random1/A/train.txt   8926a880165726455c5639e4813a2d3b
random1/A/val.txt     9ab48b6420504e32ff4498e7d8569f8b  25000
random1/B/train.txt   b95d534d95151f4fae7610d25d6377fd
random1/B/val.txt     57522f5e2aa69547846089f5197c8a6b  25000
random2/A/train.txt   61ffa67fe88e307ac1c5639a087fdf1b
random2/A/val.txt     03d05b6565ab9176baccdd05d746bfd1  25000
random2/B/train.txt   ddda030205cfd7960498d9300f5c3deb
random2/B/val.txt     18de8b37378e07e60dc602b6130eeeb2  25000
random3/A/train.txt   32369aaeb73012881558f0f16d932b95
random3/A/val.txt     46086440ddde128f169f23331998499d  25000
random3/B/train.txt   0017c6f301f33db91008663985b6f826
random3/B/val.txt     e5f9f0895fd0d49a8ac0b804ec891282  25000
natman/A/train.txt    4ba839156cd6c7f33d8ada94e4331887
natman/A/val.txt      f03be5732fb6bc7928ee53397b043613  27550
natman/B/train.txt    5fb4569a4f3be3897f490ee21b356256
natman/B/val.txt      4fb63c72229ba07106a558127192cb9f  22450
reduced1/train.txt    803a36f02b511db01532a604f5704ea8  1000
reduced2/train.txt    af6addb779610611d460f0ade2931f2f  2000
reduced5/train.txt    abdce3ff7f7933b0323c1074de7a734d  5000
reduced10/train.txt   d3752c71b0facde0173876293ce632fd  10000
reduced25/train.txt   df313d05c0256010b96870f5707f0417  25000
reduced50/train.txt   34e5285b75e5448ff82bc6b0ca0c28f7  50000
reduced100/train.txt  8376e82b043586424b8bebf4fd4a8af2  100000
reduced250/train.txt  e83abe901d08926ef62956be8628dbd0  250000
reduced500/train.txt  d32ff1c8817548f0edf5557b32ca5e0e  500000
reduced750/train.txt  5bb58aecc081ec6c27ec68bbc755bb58
reduced1000/train.txt 94fce01f9b4cb80bdb3fbf2a440c26e6
reduced1300/train.txt 3be8e5d8cbd932cc295ec175d5110921  1281167
"""

MATCH, DIFFERS, NOT_MADE = "match", "differs", "not made"


@dataclass(frozen=True)
class Comparison:
    """The comparison of one list: ``outcome``, and in ``detail`` how it differs."""

    file: str
    outcome: str
    detail: str = ""


def compare(folder: Path, authors: str) -> list[Comparison]:
    """Compare the lists in ``folder`` with a table of file, MD5 and number of lines, in the table's order."""
    result = []
    for line in authors.strip().splitlines():
        file, md5, *known = line.split()
        path = folder / file
        if not path.exists():
            result.append(Comparison(file, NOT_MADE))
            continue
        digest, lines, crlf = _digest(path)
        if digest == md5:
            result.append(Comparison(file, MATCH))
            continue
        detail = f"{lines} lines" + (f", {known[0]} expected" if known else "")
        if crlf:
            detail += "; it has Windows line endings"
        elif known and int(known[0]) == lines:
            detail += "; another order, other paths or other labels"
        result.append(Comparison(file, DIFFERS, detail))
    return result


def _digest(path: Path) -> tuple[str, int, bool]:
    """Return the MD5 of a file, its number of lines, and whether lines end with CR LF."""
    md5 = hashlib.md5(usedforsecurity=False)
    lines, crlf, last = 0, False, b"\n"
    with open(path, "rb") as file:
        while data := file.read(1 << 20):
            md5.update(data)
            lines += data.count(b"\n")
            crlf = crlf or b"\r\n" in data
            last = data[-1:]
    return md5.hexdigest(), lines + (last != b"\n"), crlf


@command
def main(argv: list[str] | None = None) -> int | None:
    """Compare the lists from the command line and print the table."""
    parser = ArgumentParser(
        prog="python -m data_prep.verify",
        description="Compare image lists of ImageNet with those of the paper's authors.",
        epilog="example: python -m data_prep.verify data/ilsvrc2012",
    )
    parser.add_argument(
        "folder", metavar="DIR", nargs="?", default=Path("data/ilsvrc2012"), type=Path,
        help="the dataset's folder (default: data/ilsvrc2012)",
    )  # fmt: skip
    folder = parser.parse_args(argv).folder
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; make it and its splits with `make imagenet ARCHIVES=FOLDER`")
    table = compare(folder, AUTHORS)
    width = max(len(row.file) for row in table)
    for row in table:
        print(f"{row.file:{width}}  {row.outcome:8}  {row.detail}".rstrip())
    counts = {outcome: sum(row.outcome == outcome for row in table) for outcome in (MATCH, DIFFERS, NOT_MADE)}
    print(", ".join(f"{count} {outcome}" for outcome, count in counts.items()))
    return 1 if counts[DIFFERS] else 0


if __name__ == "__main__":
    sys.exit(main())
