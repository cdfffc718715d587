"""tools.build_lmdb: records, keys and flags of convert_imageset, and what broken images do."""

import json
import os
import subprocess
import sys

import cv2
import lmdb
import numpy as np
import pytest

from tools.build_lmdb import main
from transfer_caffe.datum import Database
from transfer_caffe.proto import caffe_pb2

IMAGE = np.arange(18, dtype=np.uint8).reshape(2, 3, 3) * 14
PHOTO = cv2.resize(np.random.RandomState(0).randint(0, 256, (6, 6, 3)).astype(np.uint8), (48, 40))


@pytest.fixture
def images(tmp_path, monkeypatch):
    """A folder img with a.png, b.png, `sub dir/c d.jpg` and lists of them; the current folder is its parent."""
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
    """Put a broken image in the place of line 2 of three.txt."""
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
    # the number in the key is the place in the list, as real Caffe has it
    assert [key for key, _ in records()] == [b"00000000_a.png", b"00000002_b.png"]
    [skipped] = json.loads((images / "db/build.json").read_text())["skipped"]
    assert (skipped["line"], skipped["path"]) == (2, "sub dir/c d.jpg")


def test_a_list_of_nothing_but_broken_images_makes_no_database(images, capsys):
    (images / "list.txt").write_text("x.png 0\ny.png 1\n")
    assert "none of its 2 images" in error_of(capsys, "--on_error=skip", "img/", "list.txt", "db")


def test_damage_that_the_decoder_only_mentions_is_named(images):
    # in a process of its own, as libjpeg writes to file descriptor 2 itself
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
    assert done.stderr.startswith("warning: img/photo.jpg (list.txt, line 2): stored, but its decoder says: Corrupt")
    [warning] = json.loads((images / "db/build.json").read_text())["warnings"]
    assert warning["path"] == "photo.jpg"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("-check_size", "40x48x3, but img/a.png has 2x3x3"),
        ("-encoded -check_size", "40x48x3, but img/a.png has 2x3x3"),
        ("-resize_height=8", "go together"),
        ("-resize_height=-8 -resize_width=-8", "negative"),
        ("-backend leveldb", "only lmdb"),
        ("-shuffle=maybe", "true or false"),
        ("-seed -1", "from 0"),
        ("-encode_type=nonsense", "nonsense"),
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
