"""Tests of data_prep.folders: image lists from a tree of class folders."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from transfer_caffe.data_prep.classes import read_classes
from transfer_caffe.data_prep.folders import main, read_groups
from transfer_caffe.data_prep.split import main as split
from transfer_caffe.formats.image_list import read_list


def tree(root, *paths):
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(b"image")
    return root


@pytest.fixture
def images(tmp_path):
    """Make three classes with 3, 4 and 5 images."""
    return tree(
        tmp_path / "my images", *(f"{name}/{i}.png" for name, n in (("b", 3), ("a", 4), ("C", 5)) for i in range(n))
    )


def run(images, out, *options):
    return main([str(images), "--out", str(out), *map(str, options)])


def error_of(capsys, *arguments):
    assert run(*arguments) == 2
    text = capsys.readouterr().err
    assert text.count("\n") == 1
    return text


def test_classes_are_numbered_by_name_and_images_sorted(tmp_path, images):
    out = tmp_path / "out"
    assert run(images, out, "--val", tree(tmp_path / "val", "a/x.JPG", "b/y.jpeg", "C/z.bmp")) == 0
    assert (out / "train.txt").read_text() == "".join(
        f"{name}/{i}.png {label}\n" for label, (name, n) in enumerate((("C", 5), ("a", 4), ("b", 3))) for i in range(n)
    )
    assert (out / "val.txt").read_text() == "C/z.bmp 0\na/x.JPG 1\nb/y.jpeg 2\n"
    assert (out / "classes.txt").read_text() == "0 C\n1 a\n2 b\n"
    assert not (out / "classes.csv").exists()


def test_every_path_of_the_lists_is_found_through_the_links(tmp_path, images, capsys):
    out = tmp_path / "out"
    assert run(images, out, "--val", tree(tmp_path / "val", "a/x.jpg", "b/y.jpg", "C/z.jpg")) == 0
    assert all((out / "images" / path).is_file() for path, _ in read_list(out / "train.txt"))
    assert all((out / "val_images" / path).is_file() for path, _ in read_list(out / "val.txt"))
    assert "root: images, val_root: val_images" in capsys.readouterr().out
    assert run(images, tmp_path / "drawn", "--val-images-per-class", 1) == 0
    assert all((tmp_path / "drawn/images" / path).is_file() for path, _ in read_list(tmp_path / "drawn/val.txt"))
    assert "val_root" not in capsys.readouterr().out


def test_drawn_validation_images_are_taken_out_of_training_and_follow_from_the_seed(tmp_path, images):
    def lists(name, *options):
        assert run(images, tmp_path / name, "--val-images-per-class", 2, *options) == 0
        return read_list(tmp_path / name / "train.txt"), read_list(tmp_path / name / "val.txt")

    train, val = lists("one")
    assert [label for _, label in val] == [0, 0, 1, 1, 2, 2]
    assert len(train) == 6 and not {*train} & {*val}
    assert sorted({*train, *val}) == sorted(
        (f"{n}/{i}.png", k) for k, (n, m) in enumerate((("C", 5), ("a", 4), ("b", 3))) for i in range(m)
    )
    assert lists("two") == (train, val)
    assert any(lists(f"seed{seed}", "--seed", seed) != (train, val) for seed in (1, 2, 3))
    tree(images, "A new class/1.png", "A new class/2.png", "A new class/3.png")
    _, more = lists("more")
    assert [path for path, _ in val] == [path for path, _ in more if not path.startswith("A new")]


def test_of_each_class_other_images_are_drawn(tmp_path):
    images = tree(tmp_path / "i", *(f"{name}/{i}.png" for name in "abcdefgh" for i in range(10)))
    assert run(images, tmp_path / "out", "--val-images-per-class", 3) == 0
    drawn = [path.partition("/") for path, _ in read_list(tmp_path / "out/val.txt")]
    assert len({tuple(file for name, _, file in drawn if name == each) for each in "abcdefgh"}) > 4


def test_a_class_that_would_have_no_training_images_left_is_named(tmp_path, images, capsys):
    assert "b: 3 images" in error_of(capsys, images, tmp_path / "out", "--val-images-per-class", 3)
    assert not (tmp_path / "out").exists()


def test_endings_count_in_any_case_and_other_files_are_counted_and_named(tmp_path, capsys):
    kinds = ["jpg", "JPEG", "Png", "bmp", "WEBP", "tif", "TIFF", "ppm", "pgm"]
    images = tree(
        tmp_path / "i",
        *(f"c/{n}.{kind}" for n, kind in enumerate(kinds)),
        "c/notes.txt",
        "c/a.TXT",
        "c/b.gif",
        "README",
    )
    tree(images, "c/.hidden.png", ".git/x.png", "c/.cache/y.png")
    assert run(images, tmp_path / "out", "--val-images-per-class", 1) == 0
    both = read_list(tmp_path / "out/train.txt") + read_list(tmp_path / "out/val.txt")
    assert sorted(path for path, _ in both) == sorted(f"c/{n}.{kind}" for n, kind in enumerate(kinds))
    text = capsys.readouterr().err
    assert "4 files are not images" in text and "2 .txt" in text and "1 .gif" in text and "1 without extension" in text
    assert "README" in text and "hidden" not in text


def test_folders_within_a_class_are_walked(tmp_path):
    images = tree(tmp_path / "i", "c/1.png", "c/z/deep/2.png", "c/a/3.png")
    (tmp_path / "elsewhere").mkdir()
    tree(tmp_path / "elsewhere", "4.png")
    (images / "c/linked").symlink_to(tmp_path / "elsewhere")
    assert run(images, tmp_path / "out", "--val-images-per-class", 1) == 0
    both = read_list(tmp_path / "out/train.txt") + read_list(tmp_path / "out/val.txt")
    assert sorted(path for path, _ in both) == ["c/1.png", "c/a/3.png", "c/linked/4.png", "c/z/deep/2.png"]


def test_a_link_that_leads_back_is_an_error(tmp_path, images, capsys):
    (images / "a/up").symlink_to(images / "a")
    assert "a/up: this link points to a folder that contains it" in error_of(
        capsys, images, tmp_path / "out", "--val-images-per-class", 1
    )


def test_a_class_without_images_is_named(tmp_path, images, capsys):
    tree(images, "empty/readme.txt")
    assert "empty: this class has no images" in error_of(capsys, images, tmp_path / "out", "--val-images-per-class", 1)


def test_names_with_spaces_quotes_and_letters_of_all_kinds_stay_as_they_are(tmp_path):
    names = ["grüner Specht/ein Bild 1.png", 'it\'s "so"/2 3.png', "鳥/写真 1.jpg"]
    images = tree(tmp_path / "i", *names, *(f"{name.partition('/')[0]}/o.png" for name in names))
    assert run(images, tmp_path / "o ut", "--val-images-per-class", 1) == 0
    both = read_list(tmp_path / "o ut/train.txt") + read_list(tmp_path / "o ut/val.txt")
    assert {*names} < {path for path, _ in both}
    assert len(both) == 6


@pytest.mark.parametrize("name", ["a/line\nbreak.png", "a\nb/1.png", "a/carriage\rreturn.png"])
def test_a_line_break_in_a_name_is_an_error(tmp_path, images, capsys, name):
    tree(images, name)
    assert "line break" in error_of(capsys, images, tmp_path / "out", "--val-images-per-class", 1)


def test_a_name_that_is_not_utf8_is_an_error(tmp_path, images, capsys):
    with open(os.fsencode(images) + b"/a/\xff.png", "wb"):
        pass
    assert "not UTF-8" in error_of(capsys, images, tmp_path / "out", "--val-images-per-class", 1)


@pytest.mark.parametrize("more", ["d", None])
def test_validation_images_of_other_classes_are_an_error_that_names_one(tmp_path, images, capsys, more):
    val = tree(tmp_path / "val", "a/x.png", "b/x.png", *(["C/x.png", f"{more}/x.png"] if more else []))
    text = error_of(capsys, images, tmp_path / "out", "--val", val)
    assert (f"{images}/d" if more else f"{val}/C") + ": no such class" in text


def test_groups_make_a_class_file_that_natman_reads(tmp_path, images):
    groups = tmp_path / "groups.csv"
    groups.write_text("name,group\nb,man-made\nC,natural\na,natural\n\n")
    out = tmp_path / "out"
    assert run(images, out, "--val-images-per-class", 1, "--groups", groups) == 0
    assert [(c.name, c.words, c.group) for c in read_classes(out / "classes.csv")] == [
        ("C", "C", "natural"), ("a", "a", "natural"), ("b", "b", "man-made"),
    ]  # fmt: skip
    assert not (out / "classes.txt").exists()
    lists = ["--train", str(out / "train.txt"), "--val", str(out / "val.txt")]
    assert split(["natman", *lists, "--out", str(tmp_path / "natman")]) == 0
    assert {path[0] for path, _ in read_list(tmp_path / "natman/A/train.txt")} == {"b"}


def test_a_class_name_in_a_group_file_may_have_a_unicode_line_separator(tmp_path):
    path = tmp_path / "groups.csv"
    path.write_text("name,group\na\u2028b,natural\nc\x85,man-made\n", encoding="utf-8")
    assert [c.group for c in read_groups(path, ["a\u2028b", "c\x85"])] == ["natural", "man-made"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,natural\n", "first line must be name,group"),
        ("", "first line must be name,group"),
        ("name,group\na,artificial\n", "line 2: unknown group 'artificial'"),
        ("name,group\na,natural\nx,natural\n", "line 3: 'x' is not a class"),
        ("name,group\na,natural\na,natural\n", "line 3: 'a' is listed twice"),
        ("name,group\na,natural\n", "no group for 'C' (2 of 3"),
        ("name,group\na\n", "line 2: 1 columns"),
        ('name,group\n"' + "a" * 131073, "line 2: not valid CSV"),
    ],
)
def test_a_wrong_group_file_is_an_error_that_says_where(tmp_path, images, capsys, text, message):
    (tmp_path / "g.csv").write_text(text)
    text = error_of(capsys, images, tmp_path / "out", "--val-images-per-class", 1, "--groups", tmp_path / "g.csv")
    assert message in text and "g.csv" in text
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "--val"),
        (["--val-images-per-class", "0"], "at least 1"),
        (["--val-images-per-class", "1", "--seed", "-1"], "the seed must be a number"),
        (["--val", "none"], "none: no such folder"),
        (["--val", "my images"], "these are the training images"),
    ],
)
def test_options_that_make_no_sense_are_errors(tmp_path, images, capsys, monkeypatch, options, message):
    monkeypatch.chdir(tmp_path)
    assert message in error_of(capsys, images, tmp_path / "out", *options)


def test_an_output_that_exists_stays_as_it_is(tmp_path, images, capsys):
    tree(tmp_path / "out", "mine.txt")
    assert "exists already" in error_of(capsys, images, tmp_path / "out", "--val-images-per-class", 1)
    assert os.listdir(tmp_path / "out") == ["mine.txt"]


def test_an_output_among_the_images_is_an_error(tmp_path, images, capsys):
    assert "is inside" in error_of(capsys, images, images / "lists", "--val-images-per-class", 1)


def test_a_folder_without_classes_is_an_error(tmp_path, capsys):
    tree(tmp_path / "flat", "1.png")
    assert "no folders there" in error_of(capsys, tmp_path / "flat", tmp_path / "out", "--val-images-per-class", 1)
    assert "no such folder" in error_of(capsys, tmp_path / "none", tmp_path / "out", "--val-images-per-class", 1)


def test_the_installed_module_is_a_command(tmp_path, images):
    argv = [sys.executable, "-m", "transfer_caffe.data_prep.folders", str(images), "--out", str(tmp_path / "out")]
    package = Path(__file__).parent.parent.parent
    subprocess.run([*argv, "--val-images-per-class", "1"], check=True, env={**os.environ, "PYTHONPATH": str(package)})
    assert (tmp_path / "out/train.txt").exists()
