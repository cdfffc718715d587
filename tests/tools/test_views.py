"""Tests of transfer_caffe.formats.views and tools.split_lmdb: a split of a database, as an index or as a copy."""

import json
import os
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest

from transfer_caffe.formats.database import Database
from transfer_caffe.formats.database_writer import DatabaseWriter
from transfer_caffe.formats.datum import raw_datum
from transfer_caffe.formats.views import View, is_view, open_records, whole_of
from transfer_caffe.tools import split_lmdb
from transfer_caffe.tools.build_lmdb import Settings, build
from transfer_caffe.utils.errors import UserError

COUNT = 60


@pytest.fixture(autouse=True)
def _whole(tmp_path, monkeypatch):
    """Make images 0.png ... of 6 classes, a shuffled database of all, and half.txt: the images of the odd classes."""
    monkeypatch.chdir(tmp_path)
    os.mkdir("img")
    draw = np.random.default_rng(0)
    for number in range(COUNT):
        cv2.imwrite(f"img/{number}.png", draw.integers(0, 256, (6, 8, 3), dtype=np.uint8))
    Path("all.txt").write_text("".join(f"{number}.png {number % 6}\n" for number in range(COUNT)))
    Path("half.txt").write_text("".join(f"{number}.png {number % 6 // 2}\n" for number in range(1, COUNT, 2)))
    build("img/", "all.txt", "whole", Settings(shuffle=True, seed=5))


def take(*argv):
    return split_lmdb.main([*argv[:-1], "whole", "half.txt", argv[-1]])


def error_of(capsys, *argv):
    assert split_lmdb.main(list(argv)) == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines[-1].startswith("python -m tools.split_lmdb: error: ")
    return lines[-1]


def order():
    """Return the odd images in the order of the complete database."""
    return [number for number in np.random.RandomState(5).permutation(COUNT).tolist() if number % 2]


def image(number):
    found = cv2.imread(f"img/{number}.png")
    assert found is not None
    return found.transpose(2, 0, 1)


@pytest.mark.parametrize("flags", [[], ["--view"]])
def test_a_split_has_its_images_in_the_order_of_the_whole_with_its_own_labels(flags):
    assert take(*flags, "half") == 0
    records = open_records("half")
    assert is_view("half") == bool(flags) and isinstance(records, View if flags else Database)
    assert len(records) == COUNT // 2 and records.shape == (3, 6, 8)
    for index, number in enumerate(order()):
        array, label = records.record(index)
        np.testing.assert_array_equal(array, image(number))
        assert label == number % 6 // 2
    for (key, array, label), number in zip(records, order(), strict=True):
        assert key.endswith(f"_{number}.png".encode()) and label == number % 6 // 2
        np.testing.assert_array_equal(array, image(number))


def test_a_copy_has_the_records_that_building_it_from_the_images_would_give():
    assert take("copy") == 0
    Path("ordered.txt").write_text("".join(f"{number}.png {number % 6 // 2}\n" for number in order()))
    build("img/", "ordered.txt", "built", Settings())
    copy, built = Database("copy"), Database("built")
    assert [copy.raw(i) for i in range(len(copy))] == [built.raw(i) for i in range(len(built))]


def test_a_view_gives_the_records_of_a_copy():
    assert take("copy") == 0 and take("--view", "view") == 0
    copy, view = open_records("copy"), open_records("view")
    assert [copy.raw(i)[1] for i in range(len(copy))] == [view.raw(i)[1] for i in range(len(view))]
    with pytest.raises(IndexError):
        view.record(len(view))
    with pytest.raises(IndexError):
        view.record(-1)


def test_how_a_split_was_made_is_recorded():
    assert take("copy") == 0 and take("--view", "view") == 0
    for path in ("copy/build.json", "view/view.json"):
        made = json.loads(Path(path).read_text())
        assert (made["list"], made["records"], made["seed"], made["shuffle"]) == ("half.txt", COUNT // 2, 5, True)
    assert whole_of("view") == Path("view/../whole") and whole_of("copy") == Path("copy")


def test_few_records_out_of_many_are_found_one_by_one():
    Path("half.txt").write_text("".join(f"{number}.png 0\n" for number in (order()[0], order()[-1])))
    assert take("copy") == 0
    assert [key for key, _, _ in Database("copy")] == [
        b"%08d_%d.png" % (place, number) for place, number in enumerate((order()[0], order()[-1]))
    ]


def test_tree_of_whole_and_views_can_be_moved(tmp_path):
    os.mkdir("tree")
    shutil.move("whole", "tree/whole")
    assert split_lmdb.main(["--view", "tree/whole", "half.txt", "tree/a/view"]) == 0
    shutil.move("tree", "moved")
    assert open_records("moved/a/view").record(0)[1] == order()[0] % 6 // 2


def test_a_view_of_a_database_that_was_built_anew_is_refused():
    assert take("--view", "view") == 0
    shutil.rmtree("whole")
    build("img/", "all.txt", "whole", Settings(shuffle=True, seed=6))
    with pytest.raises(UserError, match=r"view: a view of .*whole, which was rebuilt since"):
        open_records("view")
    shutil.rmtree("whole")
    with pytest.raises(UserError, match=r"view: a view of another database, and .*no such database"):
        open_records("view")


@pytest.mark.parametrize("damage", ["flip", "cut", "missing", "another", "beyond", "json", "keys"])
def test_a_damaged_view_is_refused(damage):
    assert take("--view", "view") == 0
    table, record = Path("view/records.npy"), Path("view/view.json")
    if damage == "flip":
        content = bytearray(table.read_bytes())
        content[-1] ^= 1
        table.write_bytes(content)
    elif damage == "cut":
        table.write_bytes(table.read_bytes()[:-8])
    elif damage == "missing":
        table.unlink()
    elif damage in ("another", "beyond"):
        from transfer_caffe.utils.files import sha256

        np.save(table, np.array([[1.5]]) if damage == "another" else np.array([[COUNT, 0]], np.int32))
        made = json.loads(record.read_text())
        record.write_text(json.dumps(made | {"records_sha256": sha256(table)}))
    else:
        record.write_text("{" if damage == "json" else "{}")
    with pytest.raises(UserError, match=r"view\.json|records\.npy"):
        open_records("view")


@pytest.mark.parametrize("flags", [[], ["--view"]])
def test_an_image_that_the_whole_does_not_have_is_an_error(capsys, flags):
    Path("half.txt").write_text("1.png 0\nnew.png 0\nother.png 1\n")
    said = error_of(capsys, *flags, "whole", "half.txt", "out")
    assert "half.txt: line 2: new.png is not in whole (2 of the list's 3 images are not)" in said
    assert not [name for name in os.listdir() if "out" in name]


def test_images_that_the_whole_left_out_are_left_out_and_named(capsys):
    Path("img/7.png").write_text("broken")
    build("img/", "all.txt", "with_gap", Settings(), on_error="skip")
    for flags in ([], ["--view"]):
        assert split_lmdb.main([*flags, "with_gap", "half.txt", f"out{len(flags)}"]) == 0
        assert "left out: 7.png (half.txt, line 4)" in capsys.readouterr().err
    copy, view = open_records("out0"), open_records("out1")
    assert len(copy) == len(view) == COUNT // 2 - 1
    assert [copy.record(i)[0].tobytes() for i in range(len(copy))] == [
        view.record(i)[0].tobytes() for i in range(len(view))
    ]
    assert Database("out0").raw(3)[0] == b"00000003_9.png"


def test_an_image_twice_in_the_list_needs_to_be_twice_in_the_whole(capsys):
    Path("half.txt").write_text("1.png 0\n3.png 0\n1.png 0\n")
    said = error_of(capsys, "whole", "half.txt", "out")
    assert "half.txt: line 3 repeats the image of line 1, and whole has it only once" in said
    build("img/", "half.txt", "twice", Settings())
    assert split_lmdb.main(["twice", "half.txt", "out"]) == 0
    assert [key for key, _, _ in Database("out")] == [b"00000000_1.png", b"00000001_3.png", b"00000002_1.png"]


def test_what_exists_is_refused_and_a_view_of_a_view_too(capsys):
    assert take("--view", "view") == 0
    assert "exists already" in error_of(capsys, "whole", "half.txt", "view")
    assert "is itself a view; use" in error_of(capsys, "view", "half.txt", "out")
    assert "no such database" in error_of(capsys, "nothing", "half.txt", "out")
    for flags in ([], ["--view"]):
        assert "'' is not a valid name for a" in error_of(capsys, *flags, "whole", "half.txt", "")


def test_keys_that_name_no_image_are_an_error(capsys):
    with DatabaseWriter("strange") as writer:
        writer.put(b"cat", raw_datum(np.zeros((2, 2, 3), np.uint8), 0))
    assert "is not `number_path`" in error_of(capsys, "strange", "half.txt", "out")


def test_a_copy_that_was_stopped_goes_on(monkeypatch, capsys):
    assert take("reference") == 0
    monkeypatch.setattr("transfer_caffe.formats.database_writer._BATCH_BYTES", 1000)
    real, calls = split_lmdb.relabelled, []

    def stops(data, label, where):
        calls.append(where)
        if len(calls) == 20:
            raise KeyboardInterrupt
        return real(data, label, where)

    monkeypatch.setattr(split_lmdb, "relabelled", stops)
    assert take("copy") == 130
    assert not os.path.exists("copy")
    assert take("copy") == 0
    assert "copy: resuming after the first" in capsys.readouterr().err and len(calls) < 20 + COUNT // 2
    pairs = [[Database(path).raw(i) for i in range(COUNT // 2)] for path in ("reference", "copy")]
    assert pairs[0] == pairs[1]


@pytest.mark.parametrize("flags", [[], ["--view"]])
def test_a_damaged_whole_is_neither_copied_nor_viewed(capsys, flags):
    path = Path("whole/data.mdb")
    content = bytearray(path.read_bytes())
    pixels = content.index(image(1).tobytes()[:50])
    content[pixels + 20] ^= 1  # the pages stay consistent, and the record still parses
    path.write_bytes(content)
    assert "whole/data.mdb: damaged or replaced" in error_of(capsys, *flags, "whole", "half.txt", "out")
    assert not os.path.exists("out")


@pytest.mark.parametrize("content", ["[]", "{", "3"])
def test_a_build_json_of_another_program_does_no_harm(content):
    Path("whole/build.json").write_text(content)
    assert take("copy") == 0 and len(Database("copy")) == COUNT // 2
