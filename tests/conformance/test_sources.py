"""Compare data layers with real Caffe: the same batches from Data, ImageData, HDF5Data, MemoryData and the others."""

import cv2
import h5py
import numpy as np
import pytest
from conformance.suite import needs_real_caffe

from transfer_caffe.compare import Case, compare, random_layers
from transfer_caffe.formats.database_writer import DatabaseWriter
from transfer_caffe.formats.datum import encoded_datum, raw_datum
from transfer_caffe.formats.proto import array_to_blob, parse_text, write_binary
from transfer_caffe.formats.proto.caffe_pb2 import Datum, NetParameter

pytestmark = needs_real_caffe


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with databases of raw, encoded and float records, an image list, HDF5 files and a mean image."""
    monkeypatch.chdir(tmp_path)
    draw = np.random.RandomState(1)
    images = draw.randint(0, 256, (7, 9, 8, 3)).astype(np.uint8)
    with DatabaseWriter("raw_lmdb") as db:
        for index, image in enumerate(images):
            db.put(b"%08d" % index, raw_datum(image, index % 3))
    with DatabaseWriter("encoded_lmdb") as db:
        for index, image in enumerate(images):
            db.put(b"%08d" % index, encoded_datum(cv2.imencode(".png", image)[1].tobytes(), index % 3))
    with DatabaseWriter("sizes_lmdb") as db:
        for index in range(7):
            image = draw.randint(0, 256, (8 + index % 3, 12 - index, 3)).astype(np.uint8)
            db.put(b"%08d" % index, raw_datum(image, index % 3))
    with DatabaseWriter("float_lmdb") as db:
        for index in range(7):
            datum = Datum(channels=2, height=3, width=4, label=index, float_data=draw.standard_normal(24))
            db.put(b"%08d" % index, datum.SerializeToString())
    for index, image in enumerate(images):
        cv2.imwrite(f"image {index}.png", image)
    (tmp_path / "list.txt").write_text("".join(f"image {index}.png {index % 3}\n" for index in range(7)))
    for number, rows in enumerate((3, 4)):
        with h5py.File(f"part{number}.h5", "w") as file:
            file["data"] = draw.standard_normal((rows, 2, 3)).astype(np.float32)
            file["label"] = draw.randint(0, 4, rows)
            file["wide"] = draw.standard_normal((rows, 5))
    (tmp_path / "files.txt").write_text("part0.h5\npart1.h5\n")
    write_binary("mean.binaryproto", array_to_blob(draw.uniform(0, 255, (1, 3, 9, 8))))
    return tmp_path


def data(source, transform="", phase="TEST", batch=5):
    return (
        f'type: "Data" top: "data" top: "label" transform_param {{ {transform} }} '
        f'data_param {{ source: "{source}" batch_size: {batch} backend: LMDB }}',
        phase,
    )


def images(settings, transform=""):
    return (
        f'type: "ImageData" top: "data" top: "label" transform_param {{ {transform} }} '
        f'image_data_param {{ source: "list.txt" {settings} }}',
        "TEST",
    )


def plain(text):
    return text, "TRAIN"


@pytest.mark.parametrize(
    ("text", "phase"),
    [
        data("raw_lmdb"),
        data("raw_lmdb", batch=12),  # more than there are records
        data("raw_lmdb", "scale: 0.5 mean_value: 3", "TRAIN"),
        data("raw_lmdb", "mean_value: 3 mean_value: 100 mean_value: 7"),
        data("raw_lmdb", 'mean_file: "mean.binaryproto" crop_size: 5 scale: 0.1'),
        data("raw_lmdb", "crop_size: 8"),
        data("raw_lmdb", 'mean_file: "mean.binaryproto"', "TRAIN"),
        data("encoded_lmdb", "crop_size: 4"),
        data("encoded_lmdb", "force_gray: true"),
        data("encoded_lmdb", "force_color: true"),
        data("sizes_lmdb", "crop_size: 5 mean_value: 100 mean_value: 3 mean_value: 7"),
        data("float_lmdb", "scale: 3"),
        data("float_lmdb", "crop_size: 3 mean_value: 1"),
        images("batch_size: 4"),
        images("batch_size: 9 new_height: 6 new_width: 13"),
        images("batch_size: 2 is_color: false new_height: 20 new_width: 20", "crop_size: 11 mean_value: 100"),
        images('batch_size: 3 root_folder: "./"', 'mean_file: "mean.binaryproto"'),
        plain('type: "HDF5Data" top: "data" top: "label" hdf5_data_param { source: "files.txt" batch_size: 5 }'),
        plain('type: "HDF5Data" top: "wide" hdf5_data_param { source: "files.txt" batch_size: 17 }'),
        plain(
            'type: "MemoryData" top: "data" top: "label" '
            "memory_data_param { batch_size: 3 channels: 2 height: 4 width: 5 }"
        ),
        plain(
            'type: "DummyData" top: "data" top: "label" dummy_data_param { shape { dim: 2 dim: 3 } shape { dim: 2 } '
            'data_filler { type: "constant" value: 2.5 } data_filler { value: 1 } }'
        ),
        plain('type: "DummyData" top: "data" dummy_data_param { num: 2 channels: 3 height: 4 width: 5 }'),
        plain('type: "Input" top: "data" top: "label" input_param { shape { dim: 2 dim: 3 } }'),
    ],
)
def test_the_first_batch_is_real_caffes(text, phase, folder):
    net = parse_text(f'name: "source" layer {{ name: "data" {text} }}', NetParameter(), text)
    values = {}
    if "MemoryData" in text:
        draw = np.random.RandomState(2)
        values = {
            "memory/data": draw.standard_normal((3, 2, 4, 5)),
            "memory/label": np.array([[[[2]]], [[[0]]], [[[1]]]]),
        }
    [outcome] = compare([Case(net, phase, values, folder=folder, backward=False)])
    assert outcome.ours is None and outcome.real is None, (outcome.ours, outcome.real)
    assert len(outcome.rows) == text.count("top:")
    assert outcome.worst() <= 1e-6


def test_what_is_random_is_named(folder):
    from transfer_caffe.compare import build

    text = f"layer {{ name: 'd' {data('raw_lmdb', 'crop_size: 4 mirror: true')[0]} }}"
    text += 'layer { name: "o" type: "Dropout" bottom: "data" top: "data" }'
    net = parse_text(text, NetParameter(), "")
    assert random_layers(build(net, "TRAIN")) == ["d (mirror)", "d (random crop in TRAIN)", "o (dropout in TRAIN)"]
    assert random_layers(build(net, "TEST")) == ["d (mirror)"]


def test_the_matrix_of_infogain_loss_is_read_from_its_file(folder):
    write_binary("matrix.binaryproto", array_to_blob(np.random.RandomState(3).uniform(0, 1, (1, 1, 4, 4))))
    text = """force_backward: true
      layer { name: "x" type: "Input" top: "x" input_param { shape { dim: 5 dim: 4 } } }
      layer { name: "y" type: "Input" top: "y" input_param { shape { dim: 5 } } }
      layer { name: "l" type: "InfogainLoss" bottom: "x" bottom: "y" top: "l"
        infogain_loss_param { source: "matrix.binaryproto" } }"""
    case = Case(
        parse_text(text, NetParameter(), "infogain"), "TRAIN", {"blob/y": np.array([0, 3, 2, 1, 3])}, folder=folder
    )
    [outcome] = compare([case])
    assert outcome.ours is None and outcome.real is None
    assert outcome.worst() <= 1e-5 and "x" in [row.name for row in outcome.rows if row.what == "diff"]
