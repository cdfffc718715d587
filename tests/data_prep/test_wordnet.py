"""Tests of data_prep.wordnet: groups from WordNet's hierarchy, with small noun files and, if installed, WordNet."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.small_wordnet import ID, TEXT, noun_text, real_nouns

from transfer_caffe.data_prep import split
from transfer_caffe.data_prep.classes import IMAGENET_CLASSES, Class, read_classes, write_classes
from transfer_caffe.data_prep.noun_file import Nouns, noun_file
from transfer_caffe.data_prep.wordnet import ARTIFACT, EXCEPTIONS, Rule, main, read_exceptions, read_ids
from transfer_caffe.formats.image_list import read_class_map
from transfer_caffe.utils.errors import UserError


@pytest.fixture
def wordnet(tmp_path, monkeypatch):
    """Make a folder with the small data.noun, and set WORDNET to it."""
    folder = tmp_path / "word net"
    folder.mkdir()
    (folder / "data.noun").write_bytes(TEXT.encode())
    monkeypatch.setenv("WORDNET", str(folder))
    return folder


@pytest.fixture
def files(tmp_path, wordnet):
    """Return (path of the new class file, function that writes a file of ids)."""

    def write(text):
        (tmp_path / "ids.txt").write_bytes(text.encode())
        return str(tmp_path / "ids.txt")

    return tmp_path / "classes.csv", write


def error_of(capsys, *argv):
    assert main([str(word) for word in argv]) == 2
    text = capsys.readouterr().err
    assert text.count("\n") == 1
    return text


def groups(path):
    return {c.name: c.group for c in read_classes(path)}


def test_the_small_file_has_artifact_where_wordnet_has_it():
    assert ID["artifact"] == ARTIFACT


@pytest.mark.parametrize("key", ["artifact", "boat", "liner", "decoy", "many"])
def test_what_is_or_descends_from_artifact_is_man_made_by_any_hypernym_or_instance(wordnet, key):
    assert Rule().group(Nouns(noun_file()), ID[key]) == "man-made"


@pytest.mark.parametrize("key", ["entity", "animal", "cat", "crab", "egg", "hen"])
def test_the_rest_is_natural_whatever_other_pointers_say_and_though_hypernyms_go_round(wordnet, key):
    assert Rule().group(Nouns(noun_file()), ID[key]) == "natural"


@given(st.lists(st.sets(st.integers(0, 9)), min_size=8, max_size=8), st.integers(0, 9))
def test_groups_in_any_graph_are_those_of_a_search_down_from_the_split(tmp_path_factory, above, at):
    names = ["entity", "artifact", *(f"s{i}" for i in range(8))]
    graph = {
        name: (name, [("@" if i % 2 else "@i", names[i]) for i in up])
        for name, up in zip(names, [set(), set(), *above], strict=True)
    }
    text, ids = noun_text(graph)
    path = tmp_path_factory.mktemp("graph") / "data.noun"
    path.write_text(text)
    below = {names[at]}
    for _ in names:
        below |= {name for name in names if any(other in below for _, other in graph[name][1])}
    nouns, rule = Nouns(path), Rule(at=[ids[names[at]]])
    assert {name for name in names if rule.group(nouns, ids[name]) == "man-made"} == below


def test_the_command_writes_a_class_file_with_the_words_given_or_those_of_wordnet(files, capsys):
    out, write = files
    ids = write(f'{ID["liner"]}\n{ID["cat"]} cat, "puss"\n{ID["boat"]}\n{ID["many"]} word3\n')
    assert main(["--ids", ids, "--out", str(out)]) == 0
    assert out.read_bytes().startswith(b"index,wnid,words,group\n")
    assert [(c.name, c.words, c.group) for c in read_classes(out)] == [
        (ID["liner"], "Big Liner", "man-made"),
        (ID["cat"], 'cat, "puss"', "natural"),
        (ID["boat"], "boat, water craft", "man-made"),
        (ID["many"], "word3", "man-made"),
    ]
    text = capsys.readouterr()
    assert "4 classes: 3 man-made, 1 natural" in text.out
    assert f"descendants of {ARTIFACT} artifact, artefact: 3\n" in text.out
    assert "exceptions applied: 0 of the 29 in " in text.out
    assert text.err == ""


def test_split_natman_takes_what_the_command_wrote(files, tmp_path):
    out, write = files
    assert main(["--ids", write(f"{ID['cat']}\n{ID['boat']}\n{ID['hen']}\n"), "--out", str(out)]) == 0
    (tmp_path / "train.txt").write_text("a 0\nb 1\nc 2\n")
    lists = ["--train", str(tmp_path / "train.txt"), "--classes", str(out)]
    assert split.main(["natman", *lists, "--out", str(tmp_path / "natman")]) == 0
    assert read_class_map(tmp_path / "natman/A/classes.txt") == [1]
    assert read_class_map(tmp_path / "natman/B/classes.txt") == [0, 2]


def test_ids_come_in_the_order_of_the_file_with_tabs_dos_line_ends_and_no_last_line_end(tmp_path):
    (tmp_path / "s.txt").write_bytes(b"\xef\xbb\xbfn00000002\tb, c d\r\nn00000001  a \r\nn00000003")
    assert list(read_ids(tmp_path / "s.txt").items()) == [
        ("n00000002", "b, c d"),
        ("n00000001", "a"),
        ("n00000003", ""),
    ]


def test_ids_of_a_class_file_keep_order_and_words_and_get_groups_anew(files, tmp_path):
    out, _ = files
    wrong = [Class(0, ID["cat"], "cat, tom", "man-made"), Class(1, ID["boat"], "boat", "natural")]
    write_classes(tmp_path / "old.csv", wrong)
    assert main(["--ids", str(tmp_path / "old.csv"), "--out", str(out)]) == 0
    assert [(c.name, c.words, c.group) for c in read_classes(out)] == [
        (ID["cat"], "cat, tom", "natural"),
        (ID["boat"], "boat", "man-made"),
    ]


def test_ids_of_a_folder_are_its_subfolders_by_name_but_no_files_and_no_hidden_ones(tmp_path):
    names = [f"n{number:08d}" for number in range(20, 0, -1)]
    for name in [*names, ".cache"]:
        (tmp_path / name).mkdir()
    (tmp_path / "n00000021.tar").write_text("")
    assert list(read_ids(tmp_path)) == sorted(names)
    (tmp_path / "misc").mkdir()
    with pytest.raises(UserError, match="folder 'misc'"):
        read_ids(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no WordNet ids there"),
        ("\n \n", "no WordNet ids there"),
        ("n00000001\n\nn00000002\n", "line 2: '' is not the id"),
        ("n00000001\nn0000002\n", "line 2: 'n0000002'"),
        ("N00000001\n", "line 1"),
        ("n000000012 cat\n", "line 1"),
        ("n0000000٣\n", "line 1"),
        ("v00000001\n", "line 1"),
        ("n00000001/n00000001_1.JPEG 0\n", "line 1: 'n00000001/"),
        ("wnid,words\nn00000001,cat\n", "line 1: 'wnid,words'"),
        ("n00000001 a\nn00000002 b\nn00000001 c\n", "line 3: n00000001 is listed twice"),
        ("index,name,words,group\n0,cat,cat,natural\n", "class 0: 'cat' is not the id"),
    ],
)
def test_malformed_ids_are_an_error_that_says_where(tmp_path, text, message):
    (tmp_path / "ids.txt").write_text(text)
    with pytest.raises(UserError, match=message) as caught:
        read_ids(tmp_path / "ids.txt")
    assert "ids.txt" in str(caught.value)


def test_an_empty_folder_is_an_error(tmp_path):
    with pytest.raises(UserError, match="no WordNet ids there"):
        read_ids(tmp_path)


def test_a_file_of_ids_that_is_not_there_is_an_error(files, tmp_path, capsys):
    assert "no such file" in error_of(capsys, "--ids", tmp_path / "none.txt", "--out", files[0])


def test_ids_that_wordnet_has_not_are_named_and_nothing_is_written(files, capsys):
    out, write = files
    inside = f"n{int(ID['cat'][1:]) + 1:08d}"  # a byte offset in the middle of a line
    ids = write("".join(f"{i}\n" for i in [ID["cat"], inside, "n99999999", *(f"n9000000{i}" for i in range(5))]))
    text = error_of(capsys, "--ids", ids, "--out", out)
    assert f"{inside}, n99999999, n90000000, n90000001, n90000002 and 2 more of 8 ids" in text
    assert not out.exists()


def test_exceptions_overrule_wordnet_and_stand_in_for_it_and_others_do_not_matter(files, tmp_path, capsys):
    out, write = files
    more = tmp_path / "more.csv"
    more.write_text(
        f'wnid,words,group\n{ID["cat"]},my cat,man-made\n{ID["boat"]},x,natural\nn99999999,"a, b",man-made\n'
        "n88888888,z,natural\n"
    )
    ids = write(f"n99999999\n{ID['cat']}\n{ID['boat']} boat\n{ID['hen']}\n")
    assert main(["--ids", ids, "--out", str(out), "--exceptions", str(more)]) == 0
    assert [(c.name, c.words, c.group) for c in read_classes(out)] == [
        ("n99999999", "a, b", "man-made"),
        (ID["cat"], "cat", "man-made"),
        (ID["boat"], "boat", "natural"),
        (ID["hen"], "hen", "natural"),
    ]
    text = capsys.readouterr().out
    assert f"descendants of {ARTIFACT} artifact, artefact: 1\n" in text
    assert f"exceptions applied: 3 of the 4 in {more}\n" in text


def test_the_papers_exceptions_go_with_the_papers_rule_only(files, capsys):
    out, write = files
    ids = write("n07697313 cheeseburger\n")  # not in the small file
    assert main(["--ids", ids, "--out", str(out)]) == 0
    assert groups(out) == {"n07697313": "man-made"}
    out.unlink()
    for rule in (["--no-exceptions"], ["--at", ID["animal"]], ["--descendants", "natural"]):
        assert "n07697313 of 1 ids: not in WordNet" in error_of(capsys, "--ids", ids, "--out", out, *rule)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "first line must be wnid,words,group"),
        ("n00000001,a,natural\n", "first line must be wnid,words,group"),
        ("wnid,words,group\nn00000001,a,natural\nn00000002,natural\n", "line 3: 2 columns"),
        ("wnid,words,group\nn1,a,natural\n", "line 2: 'n1' is not the id"),
        ("wnid,words,group\nn00000001,a,artificial\n", "line 2: unknown group 'artificial'"),
        ("wnid,words,group\nn00000001,a,natural\nn00000001,a,man-made\n", "line 3: n00000001 is listed twice"),
        ('wnid,words,group\nn00000001,"' + "a" * 131073, "line 2: not valid CSV"),
    ],
)
def test_a_malformed_file_of_exceptions_is_an_error_that_says_where(tmp_path, text, message):
    (tmp_path / "e.csv").write_text(text)
    with pytest.raises(UserError, match=message) as caught:
        read_exceptions(tmp_path / "e.csv")
    assert "e.csv" in str(caught.value)


def test_a_split_at_other_synsets_and_descendants_that_are_natural(files, capsys):
    out, write = files
    ids = write("".join(f"{ID[key]}\n" for key in ("entity", "cat", "boat", "liner", "many")))
    rule = ["--at", ID["animal"], ID["liner"], "--descendants", "natural"]
    assert main(["--ids", ids, "--out", str(out), *rule]) == 0
    assert [c.group for c in read_classes(out)] == ["man-made", "natural", "man-made", "natural", "man-made"]
    text = capsys.readouterr().out
    assert f"descendants of {ID['animal']} animal, beast or {ID['liner']} Big Liner: 2\n" in text
    assert "exceptions" not in text


@pytest.mark.parametrize("at", ["artifact", "artifact.n.01", "00021939", "n21939", "n00021940"])
def test_a_synset_to_split_at_that_is_none_is_an_error(files, at, capsys):
    text = error_of(capsys, "--ids", files[1](ID["cat"]), "--out", files[0], "--at", at)
    assert "--at" in text and at in text


def test_words_that_are_not_those_of_the_synset_are_noted(files, capsys):
    out, write = files
    ids = write(f"{ID['cat']} boat\n{ID['boat']} Water Craft, ship\n{ID['hen']}\n{ID['many']} cat\n")
    assert main(["--ids", ids, "--out", str(out)]) == 0
    assert f"note: 2 have no word in common with their synsets: {ID['cat']}, {ID['many']};" in capsys.readouterr().err


def test_a_class_file_that_exists_stays_as_it_is(files, capsys):
    out, write = files
    out.write_text("mine")
    assert "exists already" in error_of(capsys, "--ids", write(ID["cat"]), "--out", out)
    assert out.read_text() == "mine"


@pytest.mark.parametrize("argv", [[], ["--ids", "x"], ["--out", "x"], ["--explain", ARTIFACT, "--out", "x"]])
def test_half_a_command_is_an_error(wordnet, argv, capsys):
    error_of(capsys, *argv)
    assert not Path("x").exists()


def test_explain_shows_the_way_to_entity_the_group_and_where_the_split_is(wordnet, capsys):
    assert main(["--explain", ID["liner"], ID["cat"]]) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"{ID['liner']} Big Liner: man-made, as it descends from {ARTIFACT} artifact, artefact",
        f"  {ID['liner']} Big Liner",
        f"    {ID['boat']} boat, water craft",
        f"      {ARTIFACT} artifact, artefact  <- the split",
        f"        {ID['entity']} entity",
        "",
        f"{ID['cat']} cat: natural, as it does not descend from {ARTIFACT} artifact, artefact",
        f"  {ID['cat']} cat",
        f"    {ID['animal']} animal, beast",
        f"      {ID['entity']} entity",
    ]


def test_explain_shows_each_way_up_once_and_ends_where_hypernyms_go_round(wordnet, capsys):
    assert main(["--explain", ID["egg"], "--at", ID["boat"], ID["animal"]]) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"{ID['egg']} egg: man-made, as it descends from {ID['animal']} animal, beast",
        f"  {ID['egg']} egg",
        f"    {ID['hen']} hen",
        f"      {ID['egg']} egg  (as above)",
        f"      {ID['animal']} animal, beast  <- the split",
        f"        {ID['entity']} entity",
    ]


def test_explain_does_not_point_up_again_from_where_nothing_is_above(wordnet, capsys):
    assert main(["--explain", ID["decoy"]]) == 0
    assert [line.strip() for line in capsys.readouterr().out.splitlines() if "entity" in line] == [
        f"{ID['entity']} entity"
    ] * 2


def test_explain_says_what_an_exception_overrules(wordnet, tmp_path, capsys):
    (tmp_path / "e.csv").write_text(f"wnid,words,group\n{ID['boat']},x,natural\nn99999999,plate,man-made\n")
    argv = ["--explain", ID["boat"], "n99999999", "--exceptions", str(tmp_path / "e.csv")]
    assert main(argv) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{ID['boat']} boat, water craft: natural, an exception in {tmp_path}/e.csv"
    assert lines[1] == f"without it: man-made, as it descends from {ARTIFACT} artifact, artefact"
    assert lines[-1] == f"n99999999 plate: man-made, an exception in {tmp_path}/e.csv"


@pytest.mark.parametrize("wnid", ["n99999999", "cat"])
def test_explain_of_what_is_no_noun_is_an_error(wordnet, wnid, capsys):
    assert wnid in error_of(capsys, "--explain", wnid)


def test_without_wordnet_the_error_says_how_to_get_it(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("WORDNET", str(tmp_path / "none"))
    text = error_of(capsys, "--explain", ARTIFACT)
    assert str(tmp_path / "none") in text and "wordnet-base" in text and "--wordnet" in text
    monkeypatch.delenv("WORDNET")
    monkeypatch.setattr("transfer_caffe.data_prep.noun_file.INSTALLED", str(tmp_path / "system"))
    assert str(tmp_path / "system") in error_of(capsys, "--explain", ARTIFACT)


# ---- WordNet itself


def test_the_exceptions_that_come_along_are_classes_of_imagenet_under_their_words():
    classes = {c.name: (c.words, c.group) for c in read_classes()}
    exceptions = read_exceptions(EXCEPTIONS)
    assert len(exceptions) == 29
    assert all(classes[wnid] == entry for wnid, entry in exceptions.items())
    assert {group for _, group in exceptions.values()} == {"man-made"}


def test_in_wordnet_522_imagenet_classes_descend_from_artifact_and_29_exceptions_make_the_papers_lists():
    real = real_nouns()
    classes, exceptions = read_classes(), read_exceptions(EXCEPTIONS)
    down = {c.name for c in classes if Rule().group(real, c.name) == "man-made"}
    assert len(down) == 522
    assert down.isdisjoint(exceptions)
    assert down | set(exceptions) == {c.name for c in classes if c.group == "man-made"}
    assert (len(classes), len(down | set(exceptions))) == (1000, 551)


def test_from_wordnet_and_the_bare_ids_comes_the_class_file_of_the_imagenet_classes(tmp_path, capsys):
    real = real_nouns()
    (tmp_path / "synsets.txt").write_text("".join(f"{c.name}\n" for c in read_classes()))
    argv = ["--ids", str(tmp_path / "synsets.txt"), "--out", str(tmp_path / "classes.csv")]
    assert main([*argv, "--wordnet", str(real.path)]) == 0
    assert (tmp_path / "classes.csv").read_bytes() == IMAGENET_CLASSES.read_bytes()
    assert (
        "1000 classes: 551 man-made, 449 natural\ndescendants of n00021939 artifact, artefact: 522\n"
        in capsys.readouterr().out
    )
