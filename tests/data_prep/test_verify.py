"""Tests of data_prep.verify: image lists compared with the checksums of the paper's authors."""

import hashlib
import re

import pytest

from transfer_caffe.data_prep import verify


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Make a folder with three lists, and a table that matches them and has one list that does not exist."""
    texts = {"train.txt": "a 0\nb 1\n", "random0/A/val.txt": "c 0\n", "natman/B/train.txt": "d 0\n"}
    rows = []
    for name, text in texts.items():
        path = tmp_path / "data" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        rows.append(f"{name} {hashlib.md5(text.encode()).hexdigest()} {text.count(chr(10))}")
    monkeypatch.setattr(verify, "AUTHORS", "\n".join([*rows, f"reduced1/train.txt {'0' * 32}"]))
    return tmp_path / "data"


def table(capsys):
    lines = capsys.readouterr().out.splitlines()
    return {line.split()[0]: re.split("  +", line, maxsplit=1)[1] for line in lines[:-1]}, lines[-1]


def test_lists_that_are_the_authors_match_and_others_are_not_made(folder, capsys):
    assert verify.main([str(folder)]) == 0
    rows, last = table(capsys)
    assert rows["train.txt"] == rows["random0/A/val.txt"] == rows["natman/B/train.txt"] == "match"
    assert rows["reduced1/train.txt"] == "not made"
    assert last == "3 match, 0 differs, 1 not made"


@pytest.mark.parametrize(
    ("content", "detail"),
    [
        (b"a 0\n", "1 lines, 2 expected"),
        (b"a 0", "1 lines, 2 expected"),
        (b"b 1\na 0\n", "2 lines, 2 expected; another order, other paths or other labels"),
        (b"a 0\r\nb 1\r\n", "2 lines, 2 expected; it has Windows line endings"),
        (b"", "0 lines, 2 expected"),
    ],
)
def test_a_list_that_differs_says_in_what_and_the_exit_code_is_1(folder, capsys, content, detail):
    (folder / "train.txt").write_bytes(content)
    assert verify.main([str(folder)]) == 1
    rows, last = table(capsys)
    assert rows["train.txt"] == f"differs   {detail}"
    assert rows["random0/A/val.txt"] == "match"
    assert last == "2 match, 1 differs, 1 not made"


def test_a_folder_that_is_missing_is_an_error(tmp_path, capsys):
    assert verify.main([str(tmp_path / "none")]) == 2
    assert "none: no such folder" in capsys.readouterr().err


def test_a_list_that_cannot_be_read_is_an_error_that_names_it(folder, capsys):
    (folder / "reduced1/train.txt").mkdir(parents=True)
    assert verify.main([str(folder)]) == 2
    assert "reduced1/train.txt" in capsys.readouterr().err


def test_the_table_has_each_list_of_the_paper_once():
    rows = [line.split() for line in verify.AUTHORS.strip().splitlines()]
    files = [row[0] for row in rows]
    halves = [f"{split}/{half}" for split in ("random0", "random1", "random2", "random3", "natman") for half in "AB"]
    expected = [f"{folder}/{part}.txt" for folder in halves for part in ("train", "val")]
    reduced = [f"reduced{k}/train.txt" for k in (1, 2, 5, 10, 25, 50, 100, 250, 500, 750, 1000, 1300)]
    assert files == ["train.txt", "val.txt", *expected, *reduced]
    digests = {row[0]: row[1] for row in rows}
    assert all(re.fullmatch("[0-9a-f]{32}", digest) for digest in digests.values())
    # only two files have the same checksum: reducing to 1300 images changes nothing
    assert len(set(digests.values())) == len(files) - 1
    assert digests["train.txt"] == digests["reduced1300/train.txt"]


def test_in_natman_a_is_man_made_though_the_authors_call_that_half_b():
    digests = {line.split()[0]: line.split()[1] for line in verify.AUTHORS.strip().splitlines()}
    assert digests["natman/A/train.txt"] == "4ba839156cd6c7f33d8ada94e4331887"
    assert digests["natman/B/train.txt"] == "5fb4569a4f3be3897f490ee21b356256"
    assert digests["natman/A/val.txt"] == "f03be5732fb6bc7928ee53397b043613"
