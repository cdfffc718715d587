"""Tests of data_prep.split, image lists and class files: halves, reduced lists, malformed files."""

import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from transfer_caffe.data_prep.classes import Class, read_classes, write_classes
from transfer_caffe.data_prep.split import half_lists, main, natman_split, random_split, reduced_list
from transfer_caffe.formats.image_list import read_class_map, read_list
from transfer_caffe.utils.errors import UserError


def write(path, text):
    path.write_text(text)
    return str(path)


@pytest.fixture
def lists(tmp_path):
    """Write lists of five classes, each with three training images and one validation image."""
    train = "".join(f"c{i % 5}/{i}.png {i % 5}\n" for i in range(15))
    val = "".join(f"v/{i}.png {i}\n" for i in range(5))
    return ["--train", write(tmp_path / "train.txt", train), "--val", write(tmp_path / "val.txt", val)]


def error_of(capsys, argv):
    assert main([str(word) for word in argv]) == 2
    text = capsys.readouterr().err
    assert text.count("\n") == 1
    return text


@pytest.mark.parametrize(
    ("seed", "digest"),
    [
        (0, "efc6dc75bc3dc17d2789c41cf81a16baf837a8c0d1bb2627f97c7ffeb3af5db0"),
        (1, "cebd4212709d57d7c7666c87ef6a9198d2c5df7385fdfea96a7cbb862a600ee4"),
    ],
)
def test_random_halves_of_1000_classes_are_those_of_the_authors(seed, digest):
    a, b = random_split(1000, seed)
    assert hashlib.sha256("".join(f"{number}\n" for number in a).encode()).hexdigest() == digest
    assert sorted([*a, *b]) == list(range(1000))


@given(st.integers(2, 200), st.integers(0, 2**32 - 1))
def test_random_halves_share_no_class_and_a_has_half_of_them_rounded_down(classes, seed):
    a, b = random_split(classes, seed)
    assert len(a) == classes // 2
    assert sorted([*a, *b]) == list(range(classes))
    assert list(a) == sorted(a) and list(b) == sorted(b)


def test_the_class_file_has_the_groups_of_the_paper():
    classes = read_classes()
    assert len(classes) == 1000
    assert (classes[0].name, classes[0].words, classes[0].group) == ("n01440764", "tench, Tinca tinca", "natural")
    a, b = natman_split(classes)
    assert (len(a), len(b)) == (551, 449)
    assert classes[a[0]].group == "man-made"


def test_half_lists_keep_the_order_and_count_labels_anew():
    lines = [("x", 4), ("y", 0), ("z", 2), ("w", 4), ("v", 3)]
    assert half_lists(lines, np.array([2, 4])) == [("x", 1), ("z", 0), ("w", 1)]


def test_a_reduced_list_has_the_first_images_of_each_class_in_list_order():
    lines = [("a", 1), ("b", 0), ("c", 1), ("d", 1), ("e", 0), ("f", 2)]
    assert reduced_list(lines, 2) == [("a", 1), ("b", 0), ("c", 1), ("e", 0), ("f", 2)]


def test_random_writes_lists_and_class_maps_of_both_halves(tmp_path, lists):
    assert main(["random", "--seed", "1", *lists, "--out", str(tmp_path / "out")]) == 0
    a, b = random_split(5, 1)
    for letter, half in (("A", a), ("B", b)):
        folder = tmp_path / "out" / letter
        new = {old: number for number, old in enumerate(half)}
        assert (folder / "classes.txt").read_bytes() == b"# Orig_idx new_idx\n" + b"".join(
            b"%d %d\n" % (old, number) for old, number in new.items()
        )
        assert read_class_map(folder / "classes.txt") == list(half)
        assert (folder / "train.txt").read_text() == "".join(
            f"c{i % 5}/{i}.png {new[i % 5]}\n" for i in range(15) if i % 5 in new
        )
        assert read_list(folder / "val.txt") == [(f"v/{old}.png", number) for old, number in new.items()]


def test_natman_takes_the_groups_from_the_class_file_beside_the_list(tmp_path, lists):
    groups = ["natural", "man-made", "man-made", "natural", "natural"]
    write_classes(tmp_path / "classes.csv", [Class(i, f"c{i}", 'a, "b"', group) for i, group in enumerate(groups)])
    assert main(["natman", *lists, "--out", str(tmp_path / "out")]) == 0
    assert read_class_map(tmp_path / "out/A/classes.txt") == [1, 2]
    assert read_class_map(tmp_path / "out/B/classes.txt") == [0, 3, 4]


def test_natman_without_groups_asks_for_a_class_file(tmp_path, lists, capsys):
    assert "--classes" in error_of(capsys, ["natman", *lists, "--out", tmp_path / "out"])


def test_reduced_keeps_labels_and_the_whole_validation_list(tmp_path, lists):
    assert main(["reduced", "--images-per-class", "1", *lists, "--out", str(tmp_path / "out")]) == 0
    assert read_list(tmp_path / "out/train.txt") == [(f"c{i}/{i}.png", i) for i in range(5)]
    assert (tmp_path / "out/val.txt").read_bytes() == (tmp_path / "val.txt").read_bytes()


def test_whole_changes_nothing(tmp_path, lists):
    assert main(["whole", *lists, "--out", str(tmp_path / "out")]) == 0
    assert (tmp_path / "out/train.txt").read_bytes() == (tmp_path / "train.txt").read_bytes()
    assert read_class_map(tmp_path / "out/classes.txt") == list(range(5))


def test_an_output_that_exists_is_refused_and_stays_as_it_is(tmp_path, lists, capsys):
    out = tmp_path / "out"
    out.mkdir()
    write(out / "mine.txt", "mine")
    assert "exists already" in error_of(capsys, ["whole", *lists, "--out", out])
    assert [path.name for path in out.iterdir()] == ["mine.txt"]


def test_a_split_that_fails_leaves_nothing(tmp_path, lists, capsys, monkeypatch):
    def full_disk(*_):
        raise OSError(28, "No space left on device", "classes.txt")

    monkeypatch.setattr("transfer_caffe.data_prep.split.write_class_map", full_disk)
    before = set(tmp_path.iterdir())
    assert "no space left" in error_of(capsys, ["random", "--seed", "0", *lists, "--out", tmp_path / "out"])
    assert set(tmp_path.iterdir()) == before


def test_a_label_gap_is_an_error_that_names_the_label(tmp_path, capsys):
    train = write(tmp_path / "gap.txt", "a 0\nb 1\nc 3\n")
    text = error_of(capsys, ["random", "--seed", "0", "--train", train, "--out", tmp_path / "out"])
    assert "gap.txt" in text and "label 2" in text
    assert not (tmp_path / "out").exists()


def test_a_validation_label_outside_the_training_labels_is_an_error_that_names_the_line(tmp_path, lists, capsys):
    val = write(tmp_path / "v.txt", "a 0\nb 5\n")
    text = error_of(capsys, ["whole", *lists[:2], "--val", val, "--out", tmp_path / "out"])
    assert "v.txt: line 2: label 5" in text


def test_a_label_outside_the_class_file_is_an_error(tmp_path, lists, capsys):
    classes = write(tmp_path / "c.csv", "index,name,words,group\n0,a,a,natural\n1,b,b,man-made\n")
    text = error_of(capsys, ["whole", *lists, "--classes", classes, "--out", tmp_path / "out"])
    assert "train.txt: line 3: label 2" in text


def test_one_class_cannot_be_cut_in_two(tmp_path, capsys):
    train = write(tmp_path / "one.txt", "a 0\n")
    assert "half A" in error_of(capsys, ["random", "--seed", "0", "--train", train, "--out", tmp_path / "out"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("\n\n", "is empty"),
        ("a.png 0\nb.png\n", "line 2"),
        ("a.png 0\n\nb.png 1\n", "line 2"),
        ("a.png -1\n", "negative"),
        ("a.png 1.5\n", "not a whole number"),
        ("a.png ²\n", "not a whole number"),
        ("a.png\t3\n", "relative/path label"),
        ("a.png 99999999999\n", "larger than"),
    ],
)
def test_a_malformed_image_list_is_an_error_that_says_where(tmp_path, text, message):
    path = write(tmp_path / "list.txt", text)
    with pytest.raises(UserError, match=message) as caught:
        read_list(path)
    assert "list.txt" in str(caught.value)


def test_an_image_list_may_have_spaces_in_paths_and_dos_line_ends(tmp_path):
    (tmp_path / "list.txt").write_bytes(b"my cats/1 2.png 3\r\na.png 1 \nb.png 0")
    assert read_list(tmp_path / "list.txt") == [("my cats/1 2.png", 3), ("a.png", 1), ("b.png", 0)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,b,c\n", "not a class file"),
        ("index,wnid,words,group\n", "no classes"),
        ("index,wnid,words,group\n0,n1,x,natural\n2,n2,y,natural\n", "line 3"),
        ("index,wnid,words,group\n0,n1,x,artificial\n", "artificial.*natural and man-made"),
        ("index,wnid,words,group\n0,n1,x\n", "3 columns"),
        ('index,wnid,words,group\n0,n1,"' + "x" * 131073, r"c\.csv: line 2: not valid CSV"),
        ('index,wnid,words,group\n0,n1,"x,natural\n', r"c\.csv: line 2: not valid CSV"),
    ],
)
def test_a_malformed_class_file_is_an_error_that_says_where(tmp_path, text, message):
    with pytest.raises(UserError, match=message):
        read_classes(write(tmp_path / "c.csv", text))


@pytest.mark.parametrize("sign", ["\u2028", "\x85", "\x0c", "\n"])
def test_signs_that_unicode_calls_line_breaks_are_kept_in_a_class_file(tmp_path, sign):
    classes = [Class(0, "a", f"one{sign}two", "natural"), Class(1, "b", f"{sign}x", "man-made")]
    write_classes(tmp_path / "c.csv", classes)
    assert read_classes(tmp_path / "c.csv") == classes


def test_a_malformed_class_map_is_an_error_that_names_the_line(tmp_path):
    with pytest.raises(UserError, match="line 3"):
        read_class_map(write(tmp_path / "classes.txt", "# Orig_idx new_idx\n4 0\n5 7\n"))


def test_a_byte_order_mark_is_not_part_of_the_first_line(tmp_path):
    (tmp_path / "train.txt").write_bytes(b"\xef\xbb\xbfa.png 0\n")
    assert read_list(tmp_path / "train.txt") == [("a.png", 0)]


def test_a_path_with_a_nul_byte_is_an_error_that_names_the_line(tmp_path):
    (tmp_path / "train.txt").write_bytes(b"a.png 0\nb\0.png 1\n")
    with pytest.raises(UserError, match=r"line 2: .*NUL byte"):
        read_list(tmp_path / "train.txt")


@pytest.mark.parametrize("kind", [["random", "--seed", "1"], ["reduced", "--images-per-class", "1"]])
def test_the_same_split_twice_is_no_error_and_another_one_is(tmp_path, lists, capsys, kind):
    out = tmp_path / "out"
    assert main([*kind, *lists, "--out", str(out)]) == 0
    before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in out.rglob("*.txt")}
    capsys.readouterr()
    assert main([*kind, *lists, "--out", str(out)]) == 0
    assert "it was there already" in capsys.readouterr().out
    assert {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in out.rglob("*.txt")} == before
    with open(tmp_path / "train.txt", "a") as file:
        file.write("one/more.png 0\nand/more.png 4\n" * 2)
    changed = main([*kind, *lists, "--out", str(out)])
    assert (changed == 2) == (kind[0] == "random")  # the first image of each class is still the same
    assert {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in out.rglob("*.txt")} == before
