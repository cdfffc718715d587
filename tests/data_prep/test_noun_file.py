"""Tests of data_prep.noun_file: finding and reading WordNet's noun file, and refusing damaged ones."""

import re
from pathlib import Path

import pytest
from support.small_wordnet import ID, TEXT, VERSION_LINE, noun_text, real_nouns

from transfer_caffe.data_prep.noun_file import Nouns, noun_file
from transfer_caffe.data_prep.wordnet import ARTIFACT
from transfer_caffe.utils.errors import UserError


@pytest.mark.parametrize("under", ["", "dict", "usr/share/wordnet"])
def test_the_noun_file_is_found_in_the_folder_given_before_that_of_the_environment(tmp_path, monkeypatch, under):
    folder = tmp_path / "given" / under
    folder.mkdir(parents=True)
    (folder / "data.noun").write_text(TEXT)
    monkeypatch.setenv("WORDNET", str(tmp_path / "other"))
    assert noun_file(str(tmp_path / "given")) == folder / "data.noun"
    monkeypatch.setenv("WORDNET", str(tmp_path / "given"))
    assert noun_file() == folder / "data.noun"


def test_the_noun_file_may_be_given_itself_under_any_name(tmp_path):
    (tmp_path / "nouns").write_text(TEXT)
    assert ID["cat"] in Nouns(noun_file(str(tmp_path / "nouns")))


def refusal(tmp_path, data):
    """Return the error for a noun file with these bytes, from reading the file or from parsing all its synsets."""
    (tmp_path / "data.noun").write_bytes(data)
    with pytest.raises(UserError) as caught:
        nouns = Nouns(tmp_path / "data.noun")
        for wnid in ID.values():
            nouns.ancestors(wnid)
    assert str(tmp_path / "data.noun") in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("version", ["2.1", "3.1", "1.7.1", "30"])
def test_another_wordnet_is_refused_by_its_version(tmp_path, version):
    text = noun_text(version=VERSION_LINE.replace("3.0", version))[0]
    assert f"this is WordNet {version}" in refusal(tmp_path, text.encode())


@pytest.mark.parametrize(
    "text",
    [
        "",
        "\n",
        "cat 0\n",
        noun_text(version="")[0],
        TEXT[TEXT.index("\n0") + 1 :],  # the licence is gone
        TEXT[: TEXT.index("\n0") + 1],  # the synsets are gone
        TEXT.replace(" 05 n ", " 05 v "),  # data.verb
        TEXT[: TEXT.index("\n0") + 1] + "boat n 1 2 @ ~ 1 0 00022222  \n",  # index.noun
    ],
)
def test_what_is_no_noun_file_is_refused(tmp_path, text):
    assert "not the noun file" in refusal(tmp_path, text.encode())


def test_a_noun_file_with_dos_line_ends_reads_as_the_original(tmp_path):
    (tmp_path / "data.noun").write_bytes(TEXT.replace("\n", "\r\n").encode())
    nouns = Nouns(tmp_path / "data.noun")
    assert all(wnid in nouns for wnid in ID.values())
    assert nouns[ID["decoy"]].hypernyms == (ID["animal"], ID["boat"])


def place(key):
    return int(ID[key][1:])


@pytest.mark.parametrize(
    ("data", "where"),
    [
        (TEXT.replace("what it is", "what is", 1), place("artifact") - 3),  # the line after one that lost bytes
        (TEXT.replace("beast", "beasts"), place("boat") + 1),
        (TEXT.replace(ID["cat"][1:] + " 05", f"{place('cat') + 1:08d} 05"), place("cat")),
        (TEXT[: place("crab")] + TEXT[place("egg") :], place("crab")),
        (TEXT[: place("crab")] + "\n" + TEXT[place("crab") :], place("crab")),
        (TEXT[:-20], place("many")),  # truncated
    ],
)
def test_a_file_in_which_something_was_added_or_lost_is_refused_where_it_shows(tmp_path, data, where):
    assert data != TEXT
    assert f"damaged at byte {where};" in refusal(tmp_path, data.encode())


@pytest.mark.parametrize(
    ("key", "old", "new"),
    [
        ("boat", " n 02 ", " n 03 "),
        ("boat", " n 02 ", " n 01 "),
        ("boat", " n 02 ", " n zz "),
        ("boat", " n 02 ", " n ff "),
        ("boat", " n 02 ", " v 02 "),
        ("boat", " 003 ", " 004 "),
        ("boat", " 003 ", " 002 "),
        ("boat", f"@ {ARTIFACT[1:]} ", "@ 00021938 "),
        ("cat", " | what", " _ what"),
        ("cat", "01 cat", "01 c\xe4t"),
        ("many", " n 0c ", " n 12 "),
    ],
)
def test_a_synset_whose_line_is_damaged_is_refused_by_its_place(tmp_path, key, old, new):
    start, end = place(key), TEXT.index("\n", place(key))
    line = TEXT[start:end]
    assert line.count(old) == 1
    data = (TEXT[:start] + line.replace(old, new) + TEXT[end:]).encode("latin-1")
    assert f"damaged at byte {start};" in refusal(tmp_path, data)


def test_all_of_wordnet_is_read_and_leads_up_to_entity():
    real = real_nouns()
    ids = [f"n{number}" for number in re.findall(r"^\d{8}", Path(real.path).read_text(), re.M)]
    assert len(ids) == 82115
    assert all("n00001740" in real.ancestors(wnid) for wnid in ids)
