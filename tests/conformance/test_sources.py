"""Compare data layers with real Caffe: the same batches from Data, ImageData, HDF5Data, MemoryData and the others."""

import contextlib
import subprocess

import cv2
import h5py
import numpy as np
import pytest
from conformance.suite import needs_real_caffe

from transfer_caffe.compare import Case, build, compare, random_layers, run_ours
from transfer_caffe.formats.database_writer import DatabaseWriter
from transfer_caffe.formats.datum import encoded_datum, raw_datum
from transfer_caffe.formats.proto import array_to_blob, parse_text, write_binary
from transfer_caffe.formats.proto.caffe_pb2 import Datum, NetParameter
from transfer_caffe.real_caffe.programs import pycaffe
from transfer_caffe.utils.errors import UserError

pytestmark = needs_real_caffe


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with databases of raw, encoded and float records, an image list, HDF5 files and a mean image."""
    monkeypatch.chdir(tmp_path)
    write_sources(tmp_path)
    return tmp_path


def write_sources(folder):
    """Write the files of the fixture ``folder`` to a folder, which must be the current one."""
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
    (folder / "list.txt").write_text("".join(f"image {index}.png {index % 3}\n" for index in range(7)))
    for number, rows in enumerate((3, 4)):
        with h5py.File(f"part{number}.h5", "w") as file:
            file["data"] = draw.standard_normal((rows, 2, 3)).astype(np.float32)
            file["label"] = draw.randint(0, 4, rows)
            file["wide"] = draw.standard_normal((rows, 5))
    (folder / "files.txt").write_text("part0.h5\npart1.h5\n")
    write_binary("mean.binaryproto", array_to_blob(draw.uniform(0, 255, (1, 3, 9, 8))))


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


FIRST = [
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
        'type: "MemoryData" top: "data" top: "label" memory_data_param { batch_size: 3 channels: 2 height: 4 width: 5 }'
    ),
    plain(
        'type: "DummyData" top: "data" top: "label" dummy_data_param { shape { dim: 2 dim: 3 } shape { dim: 2 } '
        'data_filler { type: "constant" value: 2.5 } data_filler { value: 1 } }'
    ),
    plain('type: "DummyData" top: "data" dummy_data_param { num: 2 channels: 3 height: 4 width: 5 }'),
    plain('type: "Input" top: "data" top: "label" input_param { shape { dim: 2 dim: 3 } }'),
]


@pytest.fixture(scope="module")
def first_batches(tmp_path_factory):
    """The first batch of each source in both engines, computed at once."""
    folder = tmp_path_factory.mktemp("sources")
    with contextlib.chdir(folder):
        write_sources(folder)
        cases = []
        for text, phase in FIRST:
            net = parse_text(f'name: "source" layer {{ name: "data" {text} }}', NetParameter(), text)
            values = {}
            if "MemoryData" in text:
                draw = np.random.RandomState(2)
                values = {
                    "memory/data": draw.standard_normal((3, 2, 4, 5)),
                    "memory/label": np.array([[[[2]]], [[[0]]], [[[1]]]]),
                }
            cases.append(Case(net, phase, values, folder=folder, backward=False))
        return compare(cases)


@pytest.mark.parametrize("index", range(len(FIRST)), ids=[f"{text}-{phase}" for text, phase in FIRST])
def test_the_first_batch_is_real_caffes(index, first_batches):
    text, outcome = FIRST[index][0], first_batches[index]
    assert outcome.ours is None and outcome.real is None, (outcome.ours, outcome.real)
    assert len(outcome.rows) == text.count("top:")
    assert outcome.worst() <= 1e-6


def test_what_is_random_is_named(folder):
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


WINDOWS = """# 0
{root}image 0.png
3
9
8
2
{fg}
{bg}
"""


@pytest.mark.parametrize(
    "settings, transform, fg, bg",
    [
        ("", "crop_size: 6", "2 0.9 1 2 5 7", "3 0.1 0 0 7 3"),
        ("context_pad: 1", "crop_size: 7 mean_value: 100", "2 0.9 0 0 5 7", "3 0.1 3 4 7 8"),
        ("context_pad: 2", 'crop_size: 8 mean_file: "square.binaryproto"', "2 0.9 0 1 6 7", "3 0.1 5 5 7 8"),
        ('crop_mode: "square" scale: 0.5', "crop_size: 5 mean_value: 1 mean_value: 2 mean_value: 3 scale: 7",
         "2 0.5 1 1 2 6", "1 0.2 2 2 7 3"),
        ('crop_mode: "square" context_pad: 1', "crop_size: 9", "1 0.5 0 0 0 0", "1 0.2 7 8 7 8"),
    ],
)  # fmt: skip
def test_windows_are_real_caffes(settings, transform, fg, bg, folder):
    """One window of each kind, so that sampling has no choice."""
    (folder / "image0.png").write_bytes((folder / "image 0.png").read_bytes())
    text = WINDOWS.format(root="", fg=fg, bg=bg).replace("image 0", "image0")
    (folder / "windows.txt").write_text(text)
    write_binary("square.binaryproto", array_to_blob(np.random.RandomState(5).uniform(0, 255, (1, 3, 11, 11))))
    net = parse_text(
        f"""name: "source" layer {{ name: "data" type: "WindowData" top: "data" top: "label"
        transform_param {{ {transform} }}
        window_data_param {{ source: "windows.txt" batch_size: 5 fg_fraction: 0.45 {settings} }} }}""",
        NetParameter(),
        "windows",
    )
    [outcome] = compare([Case(net, "TRAIN", folder=folder, backward=False)])
    assert outcome.ours is None and outcome.real is None, (outcome.ours, outcome.real)
    # another version of OpenCV rounds a few pixels of a warped window up instead of down
    net = build(net, "TRAIN")
    ours, real = run_ours(net, {}, False)["data/data"], outcome.reference["data/data"]
    assert np.abs(ours - real).max() <= 1
    assert outcome.rows[1].difference == 0 and outcome.reference["data/label"].tolist() == [0, 0, 0, *[int(fg[0])] * 2]


def datasets():
    """The types and shapes of the datasets in out.h5."""
    with h5py.File("out.h5") as file:
        return {name: (str(np.asarray(file[name]).dtype), np.asarray(file[name]).shape) for name in file}


def test_hdf5_output_writes_real_caffes_datasets_once(folder):
    text = """layer { name: "x" type: "Input" top: "x" top: "y" input_param { shape { dim: 4 dim: 3 dim: 2 }
        shape { dim: 4 } } }
      layer { name: "out" type: "HDF5Output" bottom: "x" bottom: "y" hdf5_output_param { file_name: "out.h5" } }"""
    net = parse_text(text, NetParameter(), "net")
    values = {"blob/x": np.random.RandomState(6).standard_normal((4, 3, 2)), "blob/y": np.arange(4)}
    [outcome] = compare([Case(net, "TEST", values, folder=folder)])
    assert outcome.ours is None and outcome.real is None
    ours = datasets()  # the embedded engine has written last
    assert ours == {"data": ("float32", (4, 3, 2, 1)), "label": ("float32", (4, 1, 1, 1))}
    script = "import sys, caffe; caffe.Net(sys.argv[1], caffe.TEST).forward()"
    (folder / "net.prototxt").write_text(text)
    subprocess.run([*(pycaffe() or ()), "-c", script, "net.prototxt"], check=True, capture_output=True)
    assert datasets() == ours
    own = build(net, "TEST")
    own.forward()
    with pytest.raises(UserError, match=r"'out' \(HDF5Output\): has written out.h5: it writes one batch only"):
        own.forward()
