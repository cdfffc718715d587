"""Tests of tools.build_lmdb: the records, keys and flags of convert_imageset, and broken images."""

import json
import os
import subprocess
import sys

import cv2
import lmdb
import numpy as np
import pytest

from transfer_caffe.formats.database import Database
from transfer_caffe.formats.proto import caffe_pb2
from transfer_caffe.tools import build_lmdb, compute_mean, inspect
from transfer_caffe.tools.build_lmdb import main
from transfer_caffe.tools.images import Settings, read_image

IMAGE = np.arange(18, dtype=np.uint8).reshape(2, 3, 3) * 14
PHOTO = cv2.resize(np.random.RandomState(0).randint(0, 256, (6, 6, 3)).astype(np.uint8), (48, 40))


@pytest.fixture
def images(tmp_path, monkeypatch):
    """Make a folder img with a.png, b.png, `sub dir/c d.jpg` and lists of them; the current folder is its parent."""
    monkeypatch.chdir(tmp_path)
    os.makedirs("img/sub dir")
    cv2.imwrite("img/a.png", IMAGE)
    cv2.imwrite("img/b.png", 255 - IMAGE)
    cv2.imwrite("img/sub dir/c d.jpg", PHOTO)
    (tmp_path / "two.txt").write_text("a.png 0\nb.png 300\n")
    (tmp_path / "three.txt").write_text("a.png 0\nsub dir/c d.jpg 1\nb.png 300\n")
    return tmp_path


def records(path="db"):
    with lmdb.open(str(path), readonly=True, lock=False) as env, env.begin() as transaction:
        return list(transaction.cursor())


def error_of(capsys, *argv):
    assert main(list(argv)) == 2
    lines = capsys.readouterr().err.splitlines()
    assert not [name for name in os.listdir() if "db" in name and name != "old_db"]
    return lines[-1]


# keys and records as Caffe 1.0's convert_imageset wrote them from the same images
CAFFE = {
    "": [
        (
            b"00000000_a.png",
            b'\x08\x03\x10\x02\x18\x03"\x12\x00*T~\xa8\xd2\x0e8b\x8c\xb6\xe0\x1cFp\x9a\xc4\xee(\x008\x00',
        ),
        (
            b"00000001_b.png",
            b'\x08\x03\x10\x02\x18\x03"\x12\xff\xd5\xab\x81W-\xf1\xc7\x9dsI\x1f\xe3\xb9\x8fe;\x11(\xac\x028\x00',
        ),
    ],
    "-gray": [
        (b"00000000_a.png", b'\x08\x01\x10\x02\x18\x03"\x06\x10:d\x8e\xb8\xe2(\x008\x00'),
        (b"00000001_b.png", b'\x08\x01\x10\x02\x18\x03"\x06\xee\xc4\x9apF\x1c(\xac\x028\x00'),
    ],
    "--resize_height=1 -resize_width 2": [
        (b"00000000_a.png", b'\x08\x03\x10\x01\x18\x02"\x06J\x89X\x97f\xa5(\x008\x00'),
        (b"00000001_b.png", b'\x08\x03\x10\x01\x18\x02"\x06\xb6w\xa8i\x9a[(\xac\x028\x00'),
    ],
}


@pytest.mark.parametrize("flags", CAFFE)
def test_keys_and_records_are_those_of_real_caffe(images, flags):
    assert main([*flags.split(), "img/", "two.txt", "db"]) == 0
    assert records() == CAFFE[flags]


def test_the_root_needs_no_slash_at_its_end(images):
    assert main(["img", "two.txt", "db"]) == 0
    assert records() == CAFFE[""]


def test_a_path_with_spaces_and_dos_line_ends_are_read(images):
    (images / "list.txt").write_bytes(b"sub dir/c d.jpg 5\r\n")
    assert main(["img/", "list.txt", "db"]) == 0
    [(key, record)] = records()
    assert key == b"00000000_sub dir/c d.jpg"
    datum = caffe_pb2.Datum.FromString(record)
    expected = cv2.imread("img/sub dir/c d.jpg")
    assert expected is not None
    assert datum.label == 5 and datum.data == expected.transpose(2, 0, 1).tobytes()


@pytest.mark.parametrize("flags", ["--encoded", "-encode_type=jpg", "--encoded=true --encode_type jpg --gray"])
def test_encoded_records_hold_the_file_itself_where_nothing_changes(images, flags):
    (images / "list.txt").write_text("sub dir/c d.jpg 5\n")
    assert main([*flags.split(), "img/", "list.txt", "db"]) == 0
    datum = caffe_pb2.Datum.FromString(records()[0][1])
    assert datum == caffe_pb2.Datum(data=(images / "img/sub dir/c d.jpg").read_bytes(), label=5, encoded=True)


def test_encoded_records_hold_the_resized_image_encoded_anew(images):
    flags = "--encoded --encode_type png --resize_height 20 --resize_width 24"
    assert main([*flags.split(), "img/", "three.txt", "db"]) == 0
    array, label = Database("db").record(1)
    original = cv2.imread("img/sub dir/c d.jpg")
    assert original is not None and label == 1
    np.testing.assert_array_equal(array.transpose(1, 2, 0), cv2.resize(original, (24, 20)))
    assert caffe_pb2.Datum.FromString(records()[1][1]).data[:4] == b"\x89PNG"


def test_encoded_records_that_are_resized_keep_the_type_of_their_file(images):
    assert main(["--encoded", "--resize_height=20", "--resize_width=24", "img/", "three.txt", "db"]) == 0
    assert [array.shape for _, array, _ in Database("db")] == [(3, 20, 24)] * 3
    kinds = [caffe_pb2.Datum.FromString(record).data[:4] for _, record in records()]
    assert kinds == [b"\x89PNG", b"\xff\xd8\xff\xe0", b"\x89PNG"]


def test_shuffle_follows_from_the_seed_and_is_recorded(images):
    names = [f"{i}.png" for i in range(20)]
    for name in names:
        cv2.imwrite(f"img/{name}", IMAGE)
    (images / "list.txt").write_text("".join(f"{name} {i}\n" for i, name in enumerate(names)))
    for name, flags in (
        ("x", "-shuffle -seed 3"),
        ("y", "--shuffle=true --seed=3"),
        ("z", "--shuffle --seed 4"),
        ("w", "--shuffle --noshuffle --seed 3"),
    ):
        assert main([*flags.split(), "img/", "list.txt", name]) == 0
    order = np.random.RandomState(3).permutation(20)
    assert [label for _, _, label in Database("x")] == order.tolist()
    assert [key for key, _ in records("x")] == [b"%08d_%d.png" % (place, i) for place, i in enumerate(order)]
    assert (images / "x/data.mdb").read_bytes() == (images / "y/data.mdb").read_bytes()
    assert [label for _, _, label in Database("z")] != order.tolist()
    assert [label for _, _, label in Database("w")] == list(range(20))
    made = json.loads((images / "x/build.json").read_text())
    assert made["shuffle"] is True and made["seed"] == 3 and made["records"] == 20


def break_image(images, how):
    """Replace the image of line 2 of three.txt by a broken one."""
    file = images / "img/sub dir/c d.jpg"
    data = file.read_bytes()
    if how == "missing":
        file.unlink()
    else:
        file.write_bytes(
            {"empty": b"", "text": b"hello", "half": data[: len(data) // 2], "almost all": data[:-30]}[how]
        )


@pytest.mark.parametrize("how", ["missing", "empty", "text", "half", "almost all"])
def test_a_broken_image_is_an_error_that_names_it_and_its_line(images, capsys, how):
    break_image(images, how)
    text = error_of(capsys, "img/", "three.txt", "db")
    assert "img/sub dir/c d.jpg (three.txt, line 2)" in text and "--on_error skip" in text


@pytest.mark.parametrize("how", ["missing", "half"])
def test_a_broken_image_is_left_out_named_and_counted_on_demand(images, capsys, how):
    break_image(images, how)
    assert main(["--on-error", "skip", "img/", "three.txt", "db"]) == 0
    said = capsys.readouterr()
    assert "2 records, 1 images left out" in said.out
    assert "left out: img/sub dir/c d.jpg (three.txt, line 2)" in said.err
    # the number in the key is the position in the list, as in real Caffe
    assert [key for key, _ in records()] == [b"00000000_a.png", b"00000002_b.png"]
    [skipped] = json.loads((images / "db/build.json").read_text())["skipped"]
    assert (skipped["line"], skipped["path"]) == (2, "sub dir/c d.jpg")


@pytest.mark.parametrize("flags", ["--encoded", "--encode_type=jpg", "--encoded --gray"])
@pytest.mark.parametrize("channels", [3, 1])
def test_the_decodable_part_of_a_damaged_image_is_encoded_so_that_other_tools_read_it(images, capsys, flags, channels):
    photo = PHOTO if channels == 3 else PHOTO[:, :, 0]
    for name in ("c d", "e"):
        cv2.imwrite(f"img/sub dir/{name}.jpg", photo)
    cut = images / "img/sub dir/c d.jpg"
    cut.write_bytes(cut.read_bytes()[: int(cut.stat().st_size * 0.7)])
    (images / "list.txt").write_text("sub dir/c d.jpg 1\nsub dir/e.jpg 2\n")
    assert main([*flags.split(), "--on_error=caffe", "img/", "list.txt", "db"]) == 0
    assert "stored as far as it could be decoded" in capsys.readouterr().err
    damaged, intact = (caffe_pb2.Datum.FromString(record).data for _, record in records())
    assert intact == (images / "img/sub dir/e.jpg").read_bytes()  # as without damage
    stored, seen = cv2.imdecode(np.frombuffer(damaged, np.uint8), -1), cv2.imread(str(cut), -1)
    assert stored is not None and seen is not None and stored.shape == seen.shape == photo.shape
    assert np.abs(stored.astype(int) - seen).mean() < 3
    assert compute_mean.main(["db", "mean.binaryproto"]) == 0
    assert inspect.main(["db"]) == 0


def test_a_list_of_nothing_but_broken_images_makes_no_database(images, capsys):
    (images / "list.txt").write_text("x.png 0\ny.png 1\n")
    assert "none of its 2 images" in error_of(capsys, "--on_error=skip", "img/", "list.txt", "db")


def test_damage_that_the_decoder_only_mentions_is_named(images):
    # in a separate process, because libjpeg writes to file descriptor 2 itself
    cv2.imwrite("img/photo.jpg", np.random.RandomState(1).randint(0, 256, (64, 64, 3)).astype(np.uint8))
    data = bytearray((images / "img/photo.jpg").read_bytes())
    data[-2:-2] = b"stray bytes"
    (images / "img/photo.jpg").write_bytes(data)
    (images / "list.txt").write_text("a.png 0\nphoto.jpg 1\n")
    argv = [sys.executable, "-m", "transfer_caffe.tools.build_lmdb", "img/", "list.txt", "db"]
    done = subprocess.run(
        argv, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    )
    assert done.returncode == 0
    assert done.stderr.startswith("warning: img/photo.jpg (list.txt, line 2): stored, but its decoder reports: Corrupt")
    [warning] = json.loads((images / "db/build.json").read_text())["warnings"]
    assert warning["path"] == "photo.jpg"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("-check_size", "40x48x3, but img/a.png has 2x3x3"),
        ("-encoded -check_size", "40x48x3, but img/a.png has 2x3x3"),
        ("-resize_height=8", "belong together"),
        ("-resize_height=-8 -resize_width=-8", "negative"),
        ("-backend leveldb", "only lmdb"),
        ("-shuffle=maybe", "true or false"),
        ("-seed -1", "from 0"),
        ("-encode_type=nonsense", "nonsense"),
        ("-jpeg_quality=0", "from 1 to 100"),
        ("-scaled_decode", "give --resize_height"),
        ("-jobs=0", "at least one thread"),
        ("-encode_type=gif", "gif"),
    ],
)
def test_bad_flags_and_sizes_are_errors(images, capsys, flags, message):
    assert message in error_of(capsys, *flags.split(), "img/", "three.txt", "db")


def test_a_file_name_without_ending_cannot_say_how_to_encode_it(images, capsys):
    os.rename("img/a.png", "img/a")
    (images / "list.txt").write_text("a 0\n")
    assert "--encode_type" in error_of(capsys, "-encoded", "img/", "list.txt", "db")


def test_missing_folder_list_and_a_path_beyond_the_limit_of_keys_are_errors(images, capsys):
    assert "nowhere: no such folder" in error_of(capsys, "nowhere", "two.txt", "db")
    assert "none.txt: no such file" in error_of(capsys, "img/", "none.txt", "db")
    (images / "long.txt").write_text("x" * 503 + " 0\n")
    assert "502 bytes" in error_of(capsys, "img/", "long.txt", "db")


def test_an_existing_database_is_refused_and_stays_as_it_is(images, capsys):
    (images / "old_db").mkdir()
    assert "exists already" in error_of(capsys, "img/", "two.txt", "old_db")
    assert os.listdir("old_db") == []


def many(images, count=300, broken=(), odd=()):
    """Write list.txt with ``count`` photographs; some are broken, and for some the decoder only gives a warning."""
    data = (images / "img/sub dir/c d.jpg").read_bytes()
    for number in range(count):
        content = data[: len(data) // 2] if number in broken else data
        if number in odd:
            content = data[:-2] + b"stray bytes" + data[-2:]
        (images / f"img/{number}.jpg").write_bytes(content)
    (images / "list.txt").write_text("".join(f"{number}.jpg {number % 7}\n" for number in range(count)))


@pytest.mark.parametrize("flags", ["", "--encoded --resize_height=20 --resize_width=24 --shuffle"])
def test_the_database_is_the_same_for_any_number_of_threads(images, flags):
    many(images)
    for jobs in (1, 2, 5):
        assert main([*flags.split(), f"--jobs={jobs}", "img/", "list.txt", f"db{jobs}"]) == 0
    one, two, five = ((images / f"db{jobs}/data.mdb").read_bytes() for jobs in (1, 2, 5))
    assert one == two == five
    assert len(records("db2")) == 300


@pytest.mark.parametrize("jobs", [1, 4])
def test_what_decoders_say_is_told_of_the_right_images_among_many(images, jobs):
    many(images, odd=(3, 150, 151, 299), broken=(4, 152))
    argv = [sys.executable, "-m", "transfer_caffe.tools.build_lmdb", "--on_error=skip", f"--jobs={jobs}"]
    done = subprocess.run(
        [*argv, "img/", "list.txt", "db"],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert done.returncode == 0
    made = json.loads((images / "db/build.json").read_text())
    assert [each["line"] for each in made["warnings"]] == [4, 151, 152, 300]
    assert [each["line"] for each in made["skipped"]] == [5, 153]
    assert done.stderr.count("stored, but its decoder reports") == 4


def test_a_build_that_failed_on_an_image_goes_on_when_that_is_repaired(images, capsys, monkeypatch):
    monkeypatch.setattr("transfer_caffe.formats.database_writer._BATCH_BYTES", 1 << 16)
    many(images)
    assert main(["--shuffle", "img/", "list.txt", "whole"]) == 0
    broken = images / f"img/{np.random.RandomState(0).permutation(300)[200]}.jpg"
    content = broken.read_bytes()
    broken.write_bytes(b"")
    assert main(["--shuffle", "img/", "list.txt", "db"]) == 2
    said = capsys.readouterr().err.splitlines()
    assert said[-2] == "db: not complete; the finished part is in .db.partial: the same command resumes it"
    assert "the file is empty" in said[-1] and not os.path.exists("db")
    broken.write_bytes(content)
    assert main(["--shuffle", "--on_error=skip", "img/", "list.txt", "db"]) == 0
    assert "db: resuming after the first" in capsys.readouterr().err
    assert (images / "db/data.mdb").read_bytes() == (images / "whole/data.mdb").read_bytes()
    assert sorted(os.listdir("db")) == ["build.json", "data.mdb", "data.mdb.sha256"]


@pytest.mark.parametrize("change", ["list", "flags"])
def test_unfinished_work_of_another_list_or_of_other_flags_is_started_over(images, capsys, monkeypatch, change):
    monkeypatch.setattr("transfer_caffe.formats.database_writer._BATCH_BYTES", 1 << 16)
    many(images, broken=[299])
    assert main(["img/", "list.txt", "db"]) == 2
    if change == "list":
        (images / "list.txt").write_text("a.png 0\nb.png 0\n")
    assert main([*["--gray", "--on_error=skip"] * (change == "flags"), "img/", "list.txt", "db"]) == 0
    assert "db: the unfinished build there has another list or other settings" in capsys.readouterr().err
    assert len(records()) == (2 if change == "list" else 299)


def test_images_left_out_before_a_stop_are_still_recorded(images, monkeypatch):
    monkeypatch.setattr("transfer_caffe.formats.database_writer._BATCH_BYTES", 1 << 16)
    many(images, broken=(2, 299))
    real, calls = build_lmdb.make_records, []

    def stops(*args):
        for made in real(*args):
            calls.append(made)
            if len(calls) == 250:
                raise KeyboardInterrupt
            yield made

    monkeypatch.setattr(build_lmdb, "make_records", stops)
    assert main(["--on_error=skip", "img/", "list.txt", "db"]) == 130
    assert main(["--on_error=skip", "img/", "list.txt", "db"]) == 0
    made = json.loads((images / "db/build.json").read_text())
    assert [each["line"] for each in made["skipped"]] == [3, 300] and made["records"] == 298
    assert len(calls) < 400


def test_a_pipe_in_the_place_of_an_image_is_not_waited_for(images, capsys):
    os.remove("img/b.png")
    os.mkfifo("img/b.png")
    assert "b.png (two.txt, line 2): not a file" in error_of(capsys, "img/", "two.txt", "db")


def test_an_image_listed_twice_and_a_label_without_images_are_told_of(images, capsys):
    (images / "list.txt").write_text("a.png 0\nb.png 3\na.png 0\na.png 0\n")
    assert main(["img/", "list.txt", "db"]) == 0
    said = capsys.readouterr().err
    assert "warning: list.txt: line 3 repeats the image of line 1 (2 such lines)" in said
    assert "warning: list.txt: no image has the label 1 (2 of the labels 0 to 3 have none)" in said
    assert len(records()) == 4


def test_an_image_with_two_labels_is_an_error(images, capsys):
    (images / "list.txt").write_text("a.png 0\nb.png 3\na.png 1\n")
    assert "list.txt: line 3: a.png has the label 1, but 0 in line 1" in error_of(capsys, "img/", "list.txt", "db")


@pytest.mark.parametrize(
    ("size", "stored", "decoded"),
    [
        ((400, 300), (120, 120), (100, 75)),
        ((400, 300), (130, 130), (200, 150)),  # a quarter would be 75: less than 0.6 of 130
        ((400, 300), (150, 200), (200, 150)),
        ((400, 300), (40, 40), (50, 38)),
        ((400, 300), (300, 300), (400, 300)),
        ((1000, 900), (100, 100), (125, 113)),
    ],
)
def test_scaled_decoding_takes_the_smallest_size_that_is_large_enough(images, size, stored, decoded):
    photo = cv2.resize(PHOTO, size[::-1])
    for name in ("photo.jpg", "photo.png"):
        cv2.imwrite(f"img/{name}", photo)
    settings = Settings(resize_height=stored[0], resize_width=stored[1], scaled_decode=True)
    divisor = round(size[0] / decoded[0])
    flag = {1: cv2.IMREAD_COLOR, 2: cv2.IMREAD_REDUCED_COLOR_2, 4: cv2.IMREAD_REDUCED_COLOR_4,
            8: cv2.IMREAD_REDUCED_COLOR_8}[divisor]  # fmt: skip
    expected = cv2.imread("img/photo.jpg", flag)
    assert expected is not None and expected.shape[:2] == decoded
    np.testing.assert_array_equal(
        read_image("img/photo.jpg", settings)[0], cv2.resize(expected, (stored[1], stored[0]))
    )
    # only JPEGs can be decoded at a smaller size
    np.testing.assert_array_equal(read_image("img/photo.png", settings)[0], cv2.resize(photo, (stored[1], stored[0])))


def test_the_quality_of_encoded_images_is_chosen_and_recorded(images):
    flags = "--encoded --encode_type=jpg --resize_height 20 --resize_width 24"
    assert main([*flags.split(), "img/", "three.txt", "db95"]) == 0
    assert main([*flags.split(), "--jpeg_quality=50", "img/", "three.txt", "db50"]) == 0
    size = {quality: len(records(f"db{quality}")[1][1]) for quality in (95, 50)}
    assert size[50] < size[95]
    assert [json.loads((images / f"db{q}/build.json").read_text())["jpeg_quality"] for q in (95, 50)] == [95, 50]


def test_a_list_through_a_pipe_and_an_empty_name_are_errors(images, capsys):
    os.mkfifo("pipe")
    assert "pipe: not a regular file" in error_of(capsys, "img/", "pipe", "db")
    assert "'' is not a valid name for a database" in error_of(capsys, "img/", "two.txt", "")
