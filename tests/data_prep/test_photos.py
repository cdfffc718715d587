"""Tests of the demo's dataset: its classes, its files, and that the same seed gives the same bytes."""

import csv
import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest

from transfer_caffe.data_prep import photos
from transfer_caffe.utils.errors import UserError

COUNTS = {"train": 3, "val": 2}


def make(out, seed=3, train=COUNTS["train"], val=COUNTS["val"]):
    photos.make(out, seed=seed, train=train, val=val)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Make a small dataset in a folder whose path has a space."""
    out = tmp_path_factory.mktemp("with space") / "photos"
    make(out)
    return out


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def read(path, flags=cv2.IMREAD_COLOR):
    image = cv2.imread(str(path), flags)
    assert image is not None, path
    return image


def image_list(path):
    return [(file, int(label)) for file, label in (line.split() for line in path.read_text().splitlines())]


def test_half_of_the_classes_are_natural_and_half_are_man_made():
    groups = [window.group for window in photos.windows()]
    assert groups.count("natural") == groups.count("man-made") == 50


def test_the_groups_mix_in_the_order_of_the_labels():
    groups = [window.group for window in photos.windows()]
    assert all(10 < groups[start : start + 50].count("natural") < 40 for start in (0, 25, 50))


def test_classes_are_different_windows_with_names_fit_for_an_image_list():
    windows = photos.windows()
    names = [window.name for window in windows]
    assert names == sorted(set(names))
    assert all(name.isidentifier() for name in names)
    assert len({window.words for window in windows}) == 100
    for one in windows:
        for other in windows:
            if one.photograph == other.photograph and one.name < other.name:
                apart = max(abs(one.x - other.x), abs(one.y - other.y))
                assert apart > 0.4 * min(one.side, other.side), f"{one.name} and {other.name} overlap too much"


def test_every_window_lies_in_its_photograph():
    paths = photos.photograph_paths()
    shapes = {name: photos.read_photograph(path).shape for name, path in paths.items()}
    for window in photos.windows():
        height, width, _ = shapes[window.photograph]
        half = window.side / 2
        assert half <= window.x <= width - half and half <= window.y <= height - half, window.name
    assert {window.photograph for window in photos.windows()} == set(paths), "a photograph without a window"


def test_lists_name_every_image_once_with_its_class(made):
    names = [window.name for window in photos.windows()]
    listed = []
    for part, count in COUNTS.items():
        lines = image_list(made / f"{part}.txt")
        assert [label for _, label in lines] == [label for label in range(100) for _ in range(count)]
        assert all(Path(file).parent == Path("images") / names[label] for file, label in lines)
        listed += [file for file, _ in lines]
    assert sorted(listed) == sorted(file for file in contents(made) if file.endswith(".png"))


def test_the_class_file_gives_index_name_words_and_group(made):
    with open(made / "classes.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["index", "name", "words", "group"]
    assert [(int(row["index"]), row["name"], row["words"], row["group"]) for row in rows] == [
        (index, window.name, window.words, window.group) for index, window in enumerate(photos.windows())
    ]


def test_images_are_colour_images_of_the_size_asked_for(made):
    for file, _ in image_list(made / "train.txt")[::40]:
        image = read(made / file, cv2.IMREAD_UNCHANGED)
        assert image.shape == (32, 32, 3) and image.dtype == np.uint8


def test_files_read_back_as_the_pixels_that_were_drawn(made):
    window = photos.windows()[0]
    photo = photos.read_photograph(photos.photograph_paths()[window.photograph])
    draw = np.random.default_rng([3, 0, 0])
    drawn = next(photos.examples(photos.surroundings(photo, window), 32, draw, photos.VARIATION))
    assert np.array_equal(read(made / "images" / window.name / "0000.png"), drawn)


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(made, tmp_path):
    make(tmp_path / "again")
    assert contents(tmp_path / "again") == contents(made)
    make(tmp_path / "other", seed=4)
    one, other = contents(made), contents(tmp_path / "other")
    assert one.keys() == other.keys()
    assert not any(one[file] == other[file] for file in one if file.endswith(".png"))


def test_the_first_examples_stay_the_same_when_more_are_made(made, tmp_path):
    make(tmp_path / "more", train=4)
    for part in COUNTS:
        few = {(label, (made / file).read_bytes()) for file, label in image_list(made / f"{part}.txt")}
        more = {
            (label, (tmp_path / "more" / file).read_bytes())
            for file, label in image_list(tmp_path / f"more/{part}.txt")
        }
        assert few <= more


def test_no_validation_image_is_a_training_image_and_no_image_comes_twice(made):
    images = [bytes_ for file, bytes_ in contents(made).items() if file.endswith(".png")]
    assert len(images) == len(set(images)) == 500
    # the validation examples are other samples, not the training examples with other noise
    part = photos.surroundings(np.arange(200 * 200 * 3, dtype=np.uint32).astype(np.uint8).reshape(200, 200, 3),
                               photos.Window("x", "natural", "x", 100, 100, 60, "x"))  # fmt: skip
    silent = photos.Variation(noise=0, drowned=0)
    train, val = (photos.examples(part, 16, np.random.default_rng([3, stream, 0]), silent) for stream in (0, 1))
    assert not {next(train).tobytes() for _ in range(50)} & {next(val).tobytes() for _ in range(50)}


def test_examples_show_their_window():
    """Return an example without variation, which is the window at a reduced size."""
    window = next(window for window in photos.windows() if window.name == "mission_patch")
    photo = photos.read_photograph(photos.photograph_paths()[window.photograph])
    still = photos.Variation(0, 1, 0, 0, 0, 0, 0, 0, 0, 0)
    seen = [
        next(photos.examples(photos.surroundings(photo, window), 32, np.random.default_rng(k), still)) for k in range(8)
    ]
    x, y, half = window.x, window.y, window.side // 2
    cut = cv2.resize(photo[y - half : y + half, x - half : x + half], (32, 32), interpolation=cv2.INTER_AREA)
    gray = cut.mean(2)
    # only the saturation of the colours varies, and half of the examples are mirrored
    errors = [(np.abs(e.mean(2) - gray).mean(), np.abs(e[:, ::-1].mean(2) - gray).mean()) for e in seen]
    assert all(min(pair) < 6 for pair in errors)
    assert {pair[0] < pair[1] for pair in errors} == {True, False}


def test_a_quarter_of_the_examples_are_nothing_but_noise():
    part = np.full((288, 288, 3), 90, np.uint8)
    draw = photos.examples(part, 16, np.random.default_rng(0), photos.Variation())
    # with noise this strong nearly every pixel is black or white, with equal frequency
    extreme = [np.isin(example, (0, 255)).mean() for example in (next(draw) for _ in range(400))]
    assert sum(part > 0.9 for part in extreme) / 400 == pytest.approx(0.25, abs=0.05)
    assert sum(part < 0.5 for part in extreme) / 400 == pytest.approx(0.75, abs=0.05)


def test_the_record_says_how_it_was_made(made):
    record = json.loads((made / "made.json").read_text())
    assert (record["seed"], record["size"], record["train"], record["val"]) == (3, 32, 3, 2)
    assert set(record["photographs"]) == {path.name for path in photos.photograph_paths().values()}
    assert {"numpy", "scikit-image", "scikit-learn", "matplotlib"} <= set(record["versions"])
    assert len(record["windows"]) == 100


def test_an_existing_folder_is_refused_and_left_alone(made, capsys):
    before = contents(made)
    assert photos.main(["--out", str(made), "--train", "1", "--val", "1"]) == 2
    assert "exists already" in capsys.readouterr().err
    assert contents(made) == before


def test_if_missing_accepts_the_same_settings_and_refuses_others(made, capsys):
    same = ["--out", str(made), "--seed", "3", "--train", "3", "--val", "2", "--if-missing"]
    assert photos.main(same) == 0
    assert photos.main([*same, "--seed", "4"]) == 2
    assert "seed 3, not 4" in capsys.readouterr().err


def test_if_missing_refuses_a_folder_that_is_something_else(tmp_path, capsys):
    assert photos.main(["--out", str(tmp_path), "--if-missing"]) == 2
    assert "made.json" in capsys.readouterr().err


def test_a_failure_leaves_nothing(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(photos, "write_classes", full)
    with pytest.raises(OSError):
        photos.make(tmp_path / "photos", train=1, val=1)
    assert not list(tmp_path.iterdir())


def test_a_missing_photograph_is_one_line_that_names_it_and_the_remedy(tmp_path, monkeypatch, capsys):
    moved = {("scikit-image", "skimage", "no such folder"): ["astronaut.png"]}
    monkeypatch.setattr(photos, "PHOTOGRAPHS", moved)
    assert photos.main(["--out", str(tmp_path / "photos")]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "astronaut.png" in error and "pip install 'transfer_caffe[demo]'" in error
    assert not list(tmp_path.iterdir())


def test_a_missing_package_is_named_with_the_remedy(monkeypatch):
    monkeypatch.setattr(photos, "PHOTOGRAPHS", {("scikit-image", "no_such_package", "data"): ["astronaut.png"]})
    with pytest.raises(UserError, match=r"scikit-image.*astronaut\.png.*missing.*transfer_caffe\[demo\]"):
        photos.photograph_paths()


def test_a_broken_photograph_is_named(tmp_path):
    whole = photos.photograph_paths()["page"]
    broken = tmp_path / "page.png"
    broken.write_bytes(whole.read_bytes()[:100])
    with pytest.raises(UserError, match=r"page\.png.*cannot be decoded"):
        photos.read_photograph(broken)


def test_dropping_the_colour_profile_leaves_the_pixels(tmp_path, capfd):
    path = photos.photograph_paths()["page"]
    ours = photos.read_photograph(path)
    assert capfd.readouterr().err == "", "libpng warned"
    shutil.copy(path, tmp_path / "page.png")
    assert np.array_equal(ours, read(tmp_path / "page.png"))


@pytest.mark.parametrize("wrong", [{"train": 0}, {"val": 0}, {"size": 4}, {"seed": -1}])
def test_counts_that_make_no_dataset_are_refused(tmp_path, wrong):
    with pytest.raises(UserError):
        photos.make(tmp_path / "photos", **wrong)
    assert not list(tmp_path.iterdir())
