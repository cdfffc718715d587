"""Comparison with Caffe's tools on the same files: convert_imageset, compute_image_mean, and caffe on split LMDBs."""

import os
import shutil
import subprocess
from pathlib import Path

import cv2
import lmdb
import numpy as np
import pytest

from transfer_caffe.formats.views import open_records
from transfer_caffe.real_caffe import programs as real_caffe
from transfer_caffe.tools import build_lmdb, compute_mean, split_lmdb

CONVERT, MEAN = (real_caffe.program(tool) for tool in ("convert_imageset", "compute_image_mean"))
pytestmark = pytest.mark.skipif(CONVERT is None or MEAN is None, reason="there is no real Caffe (`make caffe`)")


def caffe(tool, *argv):
    environment = {**os.environ, "GLOG_logtostderr": "1"}
    subprocess.run([str(tool), *argv], check=True, capture_output=True, env=environment)


def records(path):
    with lmdb.open(str(path), readonly=True, lock=False) as env, env.begin() as transaction:
        return list(transaction.cursor())


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """img/ with photographs (baseline, progressive, gray JPEG; PNG, gray PNG; with EXIF), list.txt, half.txt."""
    folder = tmp_path_factory.mktemp("images")
    (folder / "img").mkdir()
    draw = np.random.default_rng(0)
    lines = []
    for number in range(40):
        height, width = draw.integers(40, 400, 2)
        low = draw.integers(0, 256, (6, 8, 3)).astype(np.uint8)
        photo = cv2.resize(low, (int(width), int(height)), interpolation=cv2.INTER_CUBIC)
        photo = np.clip(photo + draw.normal(0, 8, photo.shape), 0, 255).astype(np.uint8)
        if number % 5 == 3:
            photo = photo[:, :, 0]
        flags = [cv2.IMWRITE_JPEG_QUALITY, int(draw.integers(30, 100)), cv2.IMWRITE_JPEG_PROGRESSIVE, number % 2]
        name = f"{number}.{'png' if number % 7 == 6 else 'jpg'}"
        content = cv2.imencode(Path(name).suffix, photo, flags if name.endswith("jpg") else [])[1].tobytes()
        if number == 1:  # EXIF orientation 6: rotated by 90 degrees
            exif = b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"
            content = content[:2] + b"\xff\xe1" + (len(exif) + 2).to_bytes(2, "big") + exif + content[2:]
        (folder / "img" / name).write_bytes(content)
        lines.append(f"{name} {number % 6}\n")
    (folder / "list.txt").write_text("".join(lines))
    (folder / "half.txt").write_text("".join(line for number, line in enumerate(lines) if number % 6 < 3))
    return folder


@pytest.fixture(autouse=True)
def _here(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("img", "list.txt", "half.txt"):
        os.symlink(folder / name, name)


@pytest.mark.parametrize(
    "flags",
    [
        "",
        "--gray",
        "--resize_height=64 --resize_width=64",
        "--resize_height=256 --resize_width=256",
        "--gray --resize_height=50 --resize_width=70",
        "--encoded",
        "--encoded --gray",
    ],
)
def test_records_are_those_of_convert_imageset(flags):
    caffe(CONVERT, *flags.split(), "img/", "list.txt", "theirs")
    assert build_lmdb.main([*flags.split(), "img/", "list.txt", "ours"]) == 0
    theirs, ours = records("theirs"), records("ours")
    assert len(ours) == 40
    assert [key for key, _ in ours] == [key for key, _ in theirs]
    assert [key for (key, mine), (_, other) in zip(ours, theirs, strict=True) if mine != other] == []


@pytest.mark.parametrize("flags", ["", "--gray", "--resize_height=64 --resize_width=64"])
def test_damaged_images_are_stored_or_left_out_as_by_convert_imageset(tmp_path, folder, flags, capsys):
    os.remove("img")
    shutil.copytree(folder / "img", "img")
    for number, keep in ((0, 0.5), (2, 0.97), (4, 0.05)):
        content = (folder / f"img/{number}.jpg").read_bytes()
        Path(f"img/{number}.jpg").write_bytes(content[: int(len(content) * keep)])
    os.remove("img/5.jpg")
    Path("img/7.jpg").write_bytes(b"no image")
    caffe(CONVERT, *flags.split(), "img/", "list.txt", "theirs")
    assert build_lmdb.main([*flags.split(), "--on_error=caffe", "img/", "list.txt", "ours"]) == 0
    said = capsys.readouterr().err
    assert said.count("stored as far as it could be decoded") == 2 + ("img/4.jpg" in said and "out: img/4" not in said)
    assert said.count("left out: ") == 40 - len(records("ours"))
    # convert_imageset also skips the image, silently, and continues counting
    assert [record for _, record in records("ours")] == [record for _, record in records("theirs")]


@pytest.mark.parametrize("flags", ["", "--encoded --encode_type=png"])
def test_means_are_those_of_compute_image_mean_of_views_too(flags):
    size = "--shuffle --resize_height=30 --resize_width=40"
    assert build_lmdb.main([*flags.split(), *size.split(), "img/", "list.txt", "whole"]) == 0
    assert split_lmdb.main(["whole", "half.txt", "copy"]) == 0
    assert split_lmdb.main(["--view", "whole", "half.txt", "view"]) == 0
    for name in ("whole", "copy"):
        caffe(MEAN, name, f"{name}.theirs")
    assert compute_mean.main(["view", "view.mean", "whole", "whole.mean"]) == 0
    assert Path("view.mean").read_bytes() == Path("copy.theirs").read_bytes()
    assert Path("whole.mean").read_bytes() == Path("whole.theirs").read_bytes()


NET = """
name: "passes" layer {{ name: "data" type: "Data" top: "data" top: "label"
  data_param {{ source: "{}" batch_size: 20 backend: LMDB }} }}
layer {{ name: "silence" type: "Silence" bottom: "data" }}
layer {{ name: "sum" type: "Reduction" bottom: "label" top: "labels" }}
"""


def test_caffe_reads_a_copy_as_the_engine_reads_the_view(tmp_path):
    assert build_lmdb.main(["--resize_height=30", "--resize_width=40", "img/", "list.txt", "whole"]) == 0
    assert split_lmdb.main(["whole", "half.txt", "copy"]) == 0
    Path("net.prototxt").write_text(NET.format("copy"))
    program = real_caffe.program()
    assert program is not None
    done = subprocess.run(
        [str(program), "test", "-model", "net.prototxt", "-weights", _no_weights(), "-iterations", "1"],
        capture_output=True,
        text=True,
        env={**os.environ, "GLOG_logtostderr": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert split_lmdb.main(["--view", "whole", "half.txt", "view"]) == 0
    expected = sum(open_records("view").record(place)[1] for place in range(20))
    assert f"labels = {expected}" in done.stderr


def _no_weights():
    Path("none.caffemodel").write_bytes(b"\x0a\x01x")  # a NetParameter with only a name
    return "none.caffemodel"
