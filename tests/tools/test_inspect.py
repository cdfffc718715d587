"""Tests of tools.inspect: its output for databases of all kinds, including damaged ones, and its contact sheets."""

import json
import os
import subprocess
import sys

import cv2
import lmdb
import numpy as np
import pytest

from transfer_caffe.formats.database import Database
from transfer_caffe.formats.datum import encoded_datum, raw_datum
from transfer_caffe.formats.proto import caffe_pb2
from transfer_caffe.tools import build_lmdb, inspect, split_lmdb
from transfer_caffe.tools.inspect import main

PHOTO = cv2.resize(np.random.RandomState(0).randint(0, 256, (6, 6, 3)).astype(np.uint8), (48, 40))


def write(path, records):
    """Write a database of {key: record}, as a program other than this project's would."""
    with lmdb.open(str(path), map_size=1 << 26) as env, env.begin(write=True) as transaction:
        for key, record in records.items():
            transaction.put(key, record)


def plain(labels, size=(4, 4)):
    """Return records of one colour each, whose blue is the number of the record."""
    return {
        b"%08d_%d.png" % (i, i): raw_datum(np.full((*size, 3), (i, 100, 200), np.uint8), label)
        for i, label in enumerate(labels)
    }


def jpeg(quality=95):
    return cv2.imencode(".jpg", PHOTO, [cv2.IMWRITE_JPEG_QUALITY, quality])[1].tobytes()


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def told(capfd):
    """Run the command; return {title: the lines under it}."""

    def run(*argv, code=0):
        assert main(list(argv)) == code
        answer = {}
        title = ""
        for text in capfd.readouterr().out.splitlines():
            title = text[:12].strip() or title
            answer.setdefault(title, []).append(text[12:])
        return answer

    return run


def error_of(capfd, *argv):
    assert main(list(argv)) == 2
    text = capfd.readouterr().err
    assert text.count("\n") == 1 and "error: " in text
    return text


def on_sheet(path="sheet.png", number=None):
    """Return the blue in the middle of each picture of a sheet, row by row."""
    image = cv2.imread(str(path))
    assert image is not None
    columns = (image.shape[1] - 10) // 138
    rows = (image.shape[0] - 10) // 168
    blue = [int(image[10 + 64 + 168 * r, 10 + 64 + 138 * c, 0]) for r in range(rows) for c in range(columns)]
    return blue[:number]


def test_a_database_of_ours_tells_how_it_was_made(folder, told):
    os.mkdir("img")
    for name in "abc":
        cv2.imwrite(f"img/{name}.png", PHOTO)
    (folder / "img/broken.png").write_bytes(b"no image")
    (folder / "list.txt").write_text("a.png 0\nbroken.png 1\nb.png 3\nc.png 3\nlost.png 3\n")
    flags = "--shuffle --seed 6 --resize_height 7 --resize_width 9 --on_error skip"
    assert build_lmdb.main([*flags.split(), "img/", "list.txt", "db"]) == 0
    answer = told("db")
    size = os.path.getsize("db/data.mdb")
    assert answer["database"] == ["db"] and answer["kind"] == ["LMDB"] and answer["records"] == ["3"]
    assert answer["size"] == [f"data.mdb has {size:,} bytes, {size / 3:,.0f} per record"]
    assert answer["checksum"] == ["checked, correct"]
    assert answer["made by"] == ["tools.build_lmdb (build.json)"]
    assert answer["list"] == ["list.txt: 5 images, images under img/"]
    assert answer["resized"] == ["7 x 9 (height x width)"]
    assert answer["order"] == ["shuffled, seed 6"]
    assert answer["left out"][0] == "2 images that could not be read"
    assert sorted(each[:21] for each in answer["left out"][1:]) == ["line 2: broken.png: c", "line 5: lost.png: No "]
    assert answer["read"] == ["all records"]
    assert answer["shape"] == ["3 x 7 x 9 (channels x height x width)"]
    assert answer["stored as"] == ["raw bytes"]
    assert answer["labels"] == [
        "0 to 3: 2 classes",
        "records per class: min 1, median 1.5, max 2",
        "labels between them without records: 2 (1 to 2)",
    ]
    assert len(answer["first keys"]) == 3 and answer["first keys"][0].startswith("0000000")
    assert answer["twice"] == ["no path"] and answer["damaged"] == ["none"]


def test_an_order_that_is_the_lists_and_sizes_that_stay_are_told(folder, told):
    cv2.imwrite("a.png", PHOTO)
    (folder / "list.txt").write_text("a.png 0\n")
    assert build_lmdb.main(["--seed=6", "", "list.txt", "db"]) == 0
    answer = told("db")
    assert answer["order"] == ["as in the list"] and answer["resized"] == ["no"]
    assert answer["list"] == ["list.txt: 1 images"]
    assert "left out" not in answer and "warnings" not in answer


def test_images_whose_decoder_complained_are_told_of(folder, told):
    spoilt = bytearray(jpeg())
    spoilt[-300:-200] = bytes(100)
    (folder / "a.jpg").write_bytes(spoilt)
    (folder / "list.txt").write_text("a.jpg 0\n")
    assert build_lmdb.main(["", "list.txt", "db"]) == 0
    warnings = told("db")["warnings"]
    assert warnings[0] == "1 images with warnings of the decoder"
    assert warnings[1].startswith("line 1: a.jpg: Corrupt JPEG data")


@pytest.mark.parametrize(
    ("labels", "order"),
    [
        ([0, 0, 1, 5], "not shuffled: the labels are in ascending order"),
        ([0, 1, 0, 0], "unknown; the label changes 2 times from one record to the next"),
        ([4, 4, 4], "unknown; all labels are the same"),
    ],
)
def test_without_build_json_the_labels_tell_of_the_order(told, labels, order):
    write("db", plain(labels))
    answer = told("db")
    assert answer["made by"] == ["unknown: no build.json; convert_imageset or another program"]
    assert answer["order"] == [order]
    assert answer["checksum"] == ["none beside data.mdb"]


def test_of_many_images_left_out_the_first_are_named(folder, told):
    cv2.imwrite("a.png", PHOTO)
    (folder / "list.txt").write_text("a.png 0\n" + "lost.png 1\n" * 1200)
    assert build_lmdb.main(["--on_error=skip", "", "list.txt", "db"]) == 0
    left_out = told("db")["left out"]
    assert left_out[0] == "1,200 images that could not be read" and left_out[-1] == "... and 1,190 more"
    assert left_out[1].startswith("line 2: lost.png") and len(left_out) == 12


@pytest.mark.parametrize("text", ["{", "[1]", b"\xff\xfe"])
def test_a_damaged_build_json_is_told_and_the_rest_goes_on(folder, told, text):
    write("db", plain([0, 1]))
    (folder / "db/build.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    answer = told("db")
    assert answer["made by"][0].startswith("build.json cannot be read: ")
    assert answer["records"] == ["2"] and answer["order"][0].startswith("not shuffled")


def test_a_build_json_of_another_database_is_told(folder, told):
    write("db", plain([0, 1]))
    (folder / "db/build.json").write_text(json.dumps({"records": 7, "skipped": "?", "warnings": [3]}))
    answer = told("db")
    assert "left out" not in answer and answer["warnings"][0].startswith("1 images")
    assert answer["list"][1] == "build.json describes 7 records: it belongs to another database"


def test_a_checksum_of_a_database_too_large_to_compare_is_told_as_such(folder, told, monkeypatch):
    write("db", plain([0]))
    (folder / "db/data.mdb.sha256").write_text("0" * 64 + "  data.mdb\n")
    for module in (inspect, sys.modules["transfer_caffe.formats.database"]):
        monkeypatch.setattr(module, "CHECKED_BYTES", 100)
    [line] = told("db")["checksum"]
    assert line.startswith("not checked") and "sha256sum -c" in line


def test_several_sizes_are_counted(told):
    sizes = [(2, 3), (9, 2), (2, 3), (5, 1), (3, 9)]
    write("db", {b"%08d_x" % i: raw_datum(np.zeros((*size, 3), np.uint8), 0) for i, size in enumerate(sizes)})
    assert told("db")["shapes"] == [
        "4 different ones (channels x height x width)",
        "smallest 3 x 5 x 1, largest 3 x 3 x 9",
        "most frequent 3 x 2 x 3: 2 records",
    ]


def test_ways_to_store_are_counted_and_the_jpeg_quality_is_told(told):
    numbers = caffe_pb2.Datum(channels=1, height=1, width=2, float_data=[1, 2]).SerializeToString()
    png = cv2.imencode(".png", PHOTO)[1].tobytes()
    records = [encoded_datum(jpeg(q), 0) for q in (70, 80, 90)] + [encoded_datum(png, 0)] * 2 + [numbers]
    write("db", {b"%08d_%d" % (i, i): record for i, record in enumerate(records)})
    answer = told("db")
    assert answer["stored as"] == ["3 JPEG, 2 PNG, 1 numbers (float_data)"]
    assert answer["quality"] == ["min 70, median 80, max 90 (of 100, by the JPEGs' quantization tables)"]


def test_labels_lists_them_all(capfd):
    write("db", plain([5, 2, 5, -1]))
    assert main(["db", "--labels"]) == 0
    assert capfd.readouterr().out.endswith("\nlabel count\n-1 1\n2 1\n5 2\n")


def test_the_labels_that_no_record_has_are_named_in_ranges(told):
    write("db", plain([0, 2, 6, 7, 2**31 - 1]))
    assert told("db")["labels"][2] == "labels between them without records: 2,147,483,643 (1, 3 to 5, 8 to 2147483646)"
    write("many", plain(range(0, 30, 2)))
    assert told("many")["labels"][2].endswith("14 (1, 3, 5, 7, 9, 11, 13, 15, 17, 19, ...)")


def test_paths_that_are_there_twice_are_counted_and_named(told):
    paths = [b"a.png", b"b.png", b"a.png", b"c.png", b"a.png", b"b.png"]
    write("db", {b"%08d_%s" % (i, path): raw_datum(PHOTO, 0) for i, path in enumerate(paths)})
    assert told("db")["twice"] == [
        "paths of several records: 2, in 5 records",
        *(f"record {i}: {i:08d}_{paths[i].decode()}" for i in (0, 1, 2, 4, 5)),
    ]


def test_keys_without_paths_are_no_paths_twice(told):
    write("db", {b"%08d" % i: raw_datum(PHOTO, 0) for i in range(5)} | {b"x": raw_datum(PHOTO, 0)})
    answer = told("db")
    assert answer["twice"] == ["no path"]
    assert answer["first keys"] == [f"{i:08d}" for i in range(5)]


def test_what_does_not_print_is_escaped(told):
    write("db", {b"00000000_\x1b[31m\xff\n\xc3\xa4.png": raw_datum(PHOTO, 0)})
    assert told("db")["first keys"] == [r"00000000_\x1b[31m\xff\nä.png"]


DAMAGES = {
    "garbage": (b"\xff\xff", "does not parse"),
    "empty": (b"", "0x0x0"),
    "too few pixels": (caffe_pb2.Datum(channels=3, height=2, width=2, data=b"1").SerializeToString(), "with 1 values"),
    "no image": (encoded_datum(b"no image", 1), "cannot be decoded"),
    "16 bits": (encoded_datum(cv2.imencode(".png", PHOTO.astype(np.uint16))[1].tobytes(), 1), "8 bits"),
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("place", [1, 70, 99])
def test_a_damaged_record_is_named_and_the_rest_goes_on(told, capfd, damage, place):
    records = plain([i % 2 for i in range(100)])
    key = list(records)[place]
    record, reason = DAMAGES[damage]
    write("db", {**records, key: record})
    answer = told("db", "--sheet", "sheet.png", "--images", "100", code=2)
    [count, named] = answer["damaged"]
    assert count == "records: 1"
    assert named.startswith(f"record '{key.decode()}': ") and reason in named and "build" not in named
    assert answer["labels"][0] == "0 to 1: 2 classes" and answer["stored as"] == ["raw bytes"]
    assert [i for i, blue in enumerate(on_sheet(number=100)) if blue != i] == [place]
    assert main(["db"]) == 2
    error = capfd.readouterr().err
    assert error == "python -m tools.inspect: error: db: 1 of 100 records are damaged; build it again\n"


def test_a_database_of_damaged_records_only_is_told_of(told):
    write("db", {b"%08d_%d" % (i, i): b"\xff\xff" for i in range(12)})
    answer = told("db", "--sheet", "s.png", code=2)
    assert answer["damaged"][0] == "records: 12" and answer["damaged"][-1] == "... and 2 more"
    assert len(answer["damaged"]) == 12 and answer["sheet"] == ["s.png: 12 images"] and "labels" not in answer


def test_a_record_that_the_decoder_complains_about_is_named(told, capfd):
    spoilt = bytearray(jpeg())
    spoilt[-300:-200] = bytes(100)
    records = {b"%08d_%d.jpg" % (i, i): encoded_datum(jpeg(), 0) for i in range(70)}
    write("db", records | {b"00000066_66.jpg": encoded_datum(bytes(spoilt), 0)})
    answer = told("db", "--sheet", "s.png")
    [count, named] = answer["complaints"]
    assert count == "records with messages of the decoder: 1"
    assert named.startswith("record 00000066_66.jpg: Corrupt JPEG data")
    assert answer["damaged"] == ["none"] and not capfd.readouterr().err


def test_quick_reads_some_records_spread_over_all(told, monkeypatch):
    monkeypatch.setattr(inspect, "QUICK", 4)
    write("db", plain([0] * 4 + [1] * 4 + [2] * 4 + [9] * 4))
    answer = told("db", "--quick", "--sheet", "s.png", "--images", "16")
    assert answer["read"] == ["4 records, evenly spaced; all below is about these"]
    assert answer["labels"] == ["0 to 9: 4 classes", "records per class: 1"]
    assert "twice" not in answer and answer["records"] == ["16"]
    assert on_sheet("s.png") == list(range(16))
    assert told("db")["labels"][2] == "labels between them without records: 6 (3 to 8)"
    write("small", plain([0, 1, 2, 3]))
    assert told("small", "--quick")["read"] == ["all records"]


@pytest.fixture
def whole(folder):
    """Build a database of 6 images with build_lmdb, and the list of a split of it."""
    for i in range(6):
        cv2.imwrite(f"{i}.png", np.full((4, 4, 3), (i, 100, 200), np.uint8))
    (folder / "all.txt").write_text("".join(f"{i}.png {i}\n" for i in range(6)) + "lost.png 7\n")
    (folder / "half.txt").write_text("4.png 71\n1.png 70\nlost.png 72\n2.png 70\n")
    assert build_lmdb.main(["--on_error=skip", "--shuffle", "--seed=3", "", "all.txt", "whole"]) == 0
    return [int(key[9:10]) for key, _, _ in Database("whole")]


def test_a_view_is_told_of_with_its_own_labels(whole, told):
    assert split_lmdb.main(["--view", "whole", "half.txt", "view"]) == 0
    answer = told("view", "--sheet", "s.png")
    assert answer["database"] == ["view"] and answer["kind"] == ["view of whole"] and answer["records"] == ["3"]
    assert answer["labels"][:2] == ["70 to 71: 2 classes", "records per class: min 1, median 1.5, max 2"]
    assert answer["made by"] == ["tools.split_lmdb (view.json), from that database"]
    assert answer["list"] == ["half.txt: 4 images"]
    assert answer["order"] == ["as in the complete database: shuffled, seed 3"]
    assert answer["left out"] == ["1 images that could not be read", "line 3: lost.png"]
    assert answer["size"][0].endswith(" of its 6") and answer["size"][1].startswith("the view has ")
    assert answer["checksum"] == ["checked, correct"] and answer["read"] == ["all records"]
    order = [i for i in whole if i in (1, 2, 4)]
    assert on_sheet("s.png", 3) == order
    assert [key[9:] for key in answer["first keys"]] == [f"{i}.png" for i in order]
    told("view", "--sheet", "of_label.png", "--label", "70")
    assert on_sheet("of_label.png", 2) == [i for i in order if i != 4]


def test_a_copy_of_a_part_tells_of_what(whole, told):
    assert split_lmdb.main(["whole", "half.txt", "copy"]) == 0
    answer = told("copy")
    assert answer["kind"] == ["LMDB"] and answer["records"] == ["3"]
    assert answer["made by"] == ["tools.split_lmdb (build.json), from whole"]
    assert answer["order"] == ["as in the complete database: shuffled, seed 3"]


def test_a_damaged_record_under_a_view_is_named_by_its_key(folder, told):
    write("db", {**plain([0, 1, 2]), b"00000001_1.png": b"\xff\xff"})
    (folder / "list.txt").write_text("1.png 5\n2.png 6\n")
    assert split_lmdb.main(["--view", "db", "list.txt", "view"]) == 0
    answer = told("view", "--sheet", "s.png", code=2)
    assert answer["damaged"][1].startswith("record '00000001_1.png': damaged")
    assert answer["first keys"] == ["00000001_1.png", "00000002_2.png"]
    assert answer["labels"] == ["6 to 6: 1 classes", "records per class: 1"]
    assert answer["order"] == ["as in the complete database: unknown"] and "resized" not in answer


def test_a_sheet_has_64_images_spread_evenly_over_the_records(told):
    write("db", plain([0] * 200))
    assert told("db", "--sheet", "sheet.png")["sheet"] == ["sheet.png: 64 images"]
    assert on_sheet() == [i * 200 // 64 for i in range(64)]


def test_a_sheet_has_the_number_of_images_asked_for_or_all_there_are(told):
    write("db", plain([0] * 10))
    told("db", "--sheet", "sheet.png", "--images", "4")
    assert on_sheet() == [0, 2, 5, 7]
    assert told("db", "--sheet", "all.png", "--images", "50")["sheet"] == ["all.png: 10 images"]
    assert on_sheet("all.png", 10) == list(range(10))


def test_a_seed_draws_images_and_the_same_seed_the_same(told):
    write("db", plain([0] * 100))
    for name, seed in (("a.png", "1"), ("b.png", "1"), ("c.png", "2")):
        told("db", "--sheet", name, "--images", "64", "--seed", seed)
    one, again, other = (on_sheet(name) for name in ("a.png", "b.png", "c.png"))
    assert one == again != other
    assert len(set(one)) == 64 and one == sorted(one)


def test_a_sheet_of_one_label_has_no_other(told):
    write("db", plain([i % 10 for i in range(100)]))
    told("db", "--sheet", "sheet.png", "--label", "3")
    assert on_sheet(number=10) == list(range(3, 100, 10))
    told("db", "--sheet", "drawn.png", "--label", "3", "--seed", "0", "--images", "4")
    assert set(on_sheet("drawn.png")) < set(range(3, 100, 10))


def test_a_damaged_record_has_no_label(told, capfd):
    write("db", {**plain([1, 0, 2]), b"00000003_x": b"\xff\xff"})
    told("db", "--sheet", "sheet.png", "--label", "0", code=2)
    assert on_sheet() == [1]
    write("none", {**plain([1, 2]), b"00000003_x": b"\xff\xff"})
    assert "no record has the label 0" in error_of(capfd, "none", "--sheet", "none.png", "--label", "0")


def test_captions_are_the_label_and_the_number_in_the_key():
    write("db", {b"00000012_7.png": raw_datum(PHOTO, 5), b"odd": raw_datum(PHOTO, 6), b"00000013_x": b"\xff\xff"})
    found = [captions for _, captions in inspect.pictures(Database("db"), [0, 1, 2])]
    assert found == [("label 5", "00000012"), ("damaged", "00000013"), ("label 6", "record 2")]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["nothing"], "nothing: no such database"),
        (["level"], "LevelDB"),
        (["file.txt"], "not an LMDB"),
        (["empty"], "has no records"),
        (["db", "--sheet", "there.png"], "there.png exists already"),
        (["db", "--sheet", "dangling.png"], "dangling.png exists already"),
        (["db", "--sheet", "level.png"], "this is a folder"),
        (["db", "--sheet", "x.jpg"], "ends in .png"),
        (["db", "--sheet", "x.png", "--label", "7"], "no record has the label 7"),
        (["db", "--sheet", "x.png", "--images", "0"], "1 to 400"),
        (["db", "--sheet", "x.png", "--images", "401"], "1 to 400"),
        (["db", "--sheet", "x.png", "--seed", "-1"], "the seed must be"),
        (["db", "--sheet", "x.png", "--label", "1", "--quick"], "omit --quick"),
        (["db", "--label", "1"], "give --sheet"),
        (["db", "--images", "5"], "give --sheet"),
        (["db", "--seed", "0"], "give --sheet"),
        (["changed"], "damaged or replaced"),
        ([], "required"),
    ],
)
def test_bad_usage_is_one_line_and_makes_nothing(folder, capfd, argv, message):
    write("db", plain([0, 1]))
    write("empty", {})
    write("changed", plain([0, 1]))
    (folder / "changed/data.mdb.sha256").write_text("0" * 64 + "  data.mdb\n")
    os.makedirs("level")
    os.makedirs("level.png")
    (folder / "level/CURRENT").touch()
    (folder / "file.txt").touch()
    (folder / "there.png").write_bytes(b"mine")
    os.symlink("nowhere.png", "dangling.png")
    before = sorted(os.listdir())
    assert message in error_of(capfd, *argv)
    assert sorted(os.listdir()) == before and (folder / "there.png").read_bytes() == b"mine"


def test_with_force_an_existing_sheet_is_replaced(folder, told):
    write("db", plain([0, 1]))
    (folder / "sheet.PNG").write_bytes(b"old")
    told("db", "--sheet", "sheet.PNG", "--force")
    assert on_sheet("sheet.PNG") == [0, 1]


def test_a_reader_that_goes_away_is_no_error(folder, pytestconfig):
    write("db", plain(range(100)))
    line = f"'{sys.executable}' -m tools.inspect {folder}/db --labels 2>err | head -n 1; echo ${{PIPESTATUS[0]}}"
    line = line.replace("2>err", f"2>{folder}/err")
    answer = subprocess.run(["bash", "-c", line], cwd=pytestconfig.rootpath, capture_output=True, text=True)
    assert answer.stdout.splitlines()[1] in ("0", "141") and not (folder / "err").read_text()


def test_only_where_many_records_are_read_the_disk_reads_ahead(told, monkeypatch):
    write("db", plain([0] * 200))
    asked = []
    monkeypatch.setattr("transfer_caffe.formats.lmdb_pages.Scan.at", lambda _, record: asked.append(record))
    told("db")
    assert asked == [0, 64, 128, 192]
    monkeypatch.setattr(inspect, "QUICK", 20)
    told("db", "--quick")
    assert len(asked) == 4
