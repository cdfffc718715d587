"""Words that readers stumbled over stay out of the prose: documents, docstrings, comments, messages."""

import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
DOCUMENTS = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "Makefile")]
DOCUMENTS += sorted((ROOT / "docs").glob("*.md")) + sorted((ROOT / "transfer_caffe" / "recipes").glob("*.yaml"))
CODE = sorted(path for path in (ROOT / "transfer_caffe").rglob("*.py") if path.name != "caffe_pb2.py")

INSTEAD = {
    r"\bafresh\b": "again, re-initialised",
    r"\banew\b": "again, retrain, rebuild",
    r"\bamid\b": "during",
    r"\btak(?:e|es|en|ing) over\b(?! signals)": "copy, transfer",
    r"\bfreed of the mean\b": "mean-subtracted",
    r"\bset aside\b": "rename",
    r"\bis no number\b": "is NaN",
    r"\bso many\b": "the name of the parameter",
    r"\bbe it\b": "whether",
    r"\bwhoever\b": "the process, the caller",
    r"\bgo(?:es|ing)? on (?:from|where|with)\b": "resume",
    r"\bin vain\b": "without success",
    r"\bwhat of (?:it|them)\b": "which",
    r"\bnumbers? is told\b": "reported",
}
"""Pattern: what to write instead."""


def prose_of(path: Path) -> Iterator[tuple[int, str]]:
    """The lines of a document; of code its comments and strings."""
    text = path.read_text(encoding="utf-8")
    if path.suffix != ".py":
        yield from enumerate(text.splitlines(), start=1)
        return
    kinds = {tokenize.COMMENT, tokenize.STRING, getattr(tokenize, "FSTRING_MIDDLE", tokenize.STRING)}
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type in kinds:
            for number, line in enumerate(token.string.splitlines()):
                yield token.start[0] + number, line


@pytest.mark.parametrize("path", [*DOCUMENTS, *CODE], ids=lambda path: str(path.relative_to(ROOT)))
def test_prose_is_plain_english(path):
    found = [
        f"{path.relative_to(ROOT)}:{number}: {match[0]!r}: write {instead}"
        for number, line in prose_of(path)
        for pattern, instead in INSTEAD.items()
        if (match := re.search(pattern, line, re.IGNORECASE))
    ]
    assert not found, "\n".join(found)
