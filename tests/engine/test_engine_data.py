"""The Data layer: which records a batch holds, crops, flips and mean subtraction, and that batches are reproducible."""

import cv2
import lmdb
import numpy as np
import pytest
import torch

from transfer_caffe.engine.batches import transform
from transfer_caffe.engine.batches.transform import Transformer
from transfer_caffe.engine.layers import Context, data
from transfer_caffe.engine.layers.data import Data
from transfer_caffe.formats.database import Database
from transfer_caffe.formats.datum import encoded_datum, raw_datum
from transfer_caffe.formats.proto import array_to_blob, parse_text, write_binary
from transfer_caffe.formats.proto.caffe_pb2 import LayerParameter, TransformationParameter
from transfer_caffe.formats.views import write_view

COUNT, SIZE, CROP, BATCH = 10, 8, 5, 4
IMAGES = np.random.RandomState(0).randint(0, 256, (COUNT, SIZE, SIZE, 3)).astype(np.uint8)
MEAN = np.random.RandomState(1).rand(3, SIZE, SIZE).astype(np.float32) * 100


@pytest.fixture(autouse=True)
def _database(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with lmdb.open("db", map_size=1 << 24) as env, env.begin(write=True) as transaction:
        for index, image in enumerate(IMAGES):
            transaction.put(f"{index:08d}_x".encode(), raw_datum(image, index))
    with lmdb.open("encoded", map_size=1 << 24) as env, env.begin(write=True) as transaction:
        for index, image in enumerate(IMAGES):
            datum = encoded_datum(cv2.imencode(".png", image)[1].tobytes(), index)
            transaction.put(f"{index:08d}_x".encode(), datum)
    write_binary("mean.binaryproto", array_to_blob(MEAN[None]))


def layer(transform="", training=True, seed=1, source="db"):
    text = f'name: "d" type: "Data" top: "data" top: "label" transform_param {{ {transform} }} '
    text += f'data_param {{ source: "{source}" batch_size: {BATCH} backend: LMDB }}'
    made = Data(parse_text(text, LayerParameter(), ""), Context(seed, torch.device("cpu"), training))
    made.setup([])
    return made


def batch(made, number):
    images, labels = made.forward([], number)
    return images.numpy(), labels.int().tolist()


def planes(index):
    """Return record ``index`` as (channels, height, width)."""
    return IMAGES[index].transpose(2, 0, 1).astype(np.float32)


def place(window, whole):
    """Return where a window was cut from and whether it was mirrored; None if it is not in the image."""
    for top, left in np.ndindex(SIZE - CROP + 1, SIZE - CROP + 1):
        there = whole[:, top : top + CROP, left : left + CROP]
        for mirrored in (False, True):
            if np.allclose(window, there[:, :, ::-1] if mirrored else there, atol=1e-4):
                return top, left, mirrored
    return None


def test_batches_follow_each_other_and_begin_anew_after_the_last_record():
    made = layer()
    images, labels = batch(made, 1)
    assert labels == [4, 5, 6, 7]
    assert np.array_equal(images, np.stack([planes(index) for index in labels]))
    assert [batch(made, number)[1] for number in (2, 0, 5)] == [[8, 9, 0, 1], [0, 1, 2, 3], [0, 1, 2, 3]]


def test_in_training_windows_are_cut_and_mirrored_at_random_with_the_mean_of_the_same_window():
    made = layer(f'crop_size: {CROP} mirror: true mean_file: "mean.binaryproto" scale: 0.5')
    seen = []
    for number in range(100):
        images, labels = batch(made, number)
        seen += [place(2 * image, planes(index) - MEAN) for image, index in zip(images, labels, strict=True)]
    assert None not in seen
    # all window positions occur about equally often, and half of the images are mirrored
    for axis in (0, 1):
        counts = np.bincount([each[axis] for each in seen])
        assert len(counts) == SIZE - CROP + 1 and counts.min() > 60
    assert 0.4 < np.mean([each[2] for each in seen]) < 0.6


def test_a_batch_repeats_itself_and_another_batch_another_seed_and_another_phase_differ():
    transform = f"crop_size: {CROP} mirror: true"
    first = batch(layer(transform), 0)[0]
    assert np.array_equal(batch(layer(transform), 0)[0], first)
    assert not np.array_equal(batch(layer(transform), 5)[0], first)  # the same records
    assert not np.array_equal(batch(layer(transform, seed=2), 0)[0], first)
    assert not np.array_equal(batch(layer(transform, training=False), 0)[0], first)


def test_in_the_test_phase_the_window_is_the_centre():
    images, labels = batch(layer(f"crop_size: {CROP}", training=False), 0)
    first = (SIZE - CROP) // 2
    for image, index in zip(images, labels, strict=True):
        assert np.array_equal(image, planes(index)[:, first : first + CROP, first : first + CROP])


def test_mean_values_are_subtracted_by_channel():
    images, _ = batch(layer("mean_value: 10 mean_value: 20 mean_value: 30"), 0)
    assert np.array_equal(images[0], planes(0) - np.array([10, 20, 30], np.float32)[:, None, None])


def test_gray_records_lose_the_mean_of_their_own_window():
    write_binary("gray.binaryproto", array_to_blob(MEAN[None, :1]))
    made = layer(f'force_gray: true crop_size: {CROP} mean_file: "gray.binaryproto"', training=False, source="encoded")
    images, labels = batch(made, 0)
    first = (SIZE - CROP) // 2
    window = np.s_[first : first + CROP, first : first + CROP]
    for image, index in zip(images, labels, strict=True):
        gray = cv2.cvtColor(IMAGES[index], cv2.COLOR_BGR2GRAY).astype(np.float32)
        assert np.abs(image[0] - (gray - MEAN[0])[window]).max() < 1.1  # OpenCV's decoder rounds differently


def test_a_database_too_large_to_keep_gives_the_same_batches(monkeypatch):
    transform = f'crop_size: {CROP} mirror: true mean_file: "mean.binaryproto"'
    kept = layer(transform)
    expected = [batch(kept, number) for number in (0, 1, 2, 7, 3)]  # not always the prefetched one
    monkeypatch.setattr(data, "KEEP_BYTES", 0)
    streamed = layer(transform)
    for (images, labels), number in zip(expected, (0, 1, 2, 7, 3), strict=True):
        again = batch(streamed, number)
        assert np.array_equal(again[0], images) and again[1] == labels
    assert streamed._kept is None


def test_a_view_gives_its_records_with_its_labels():
    numbers = [1, 2, 5, 9]
    write_view("view", Database("db"), np.array([(number, 10 + number) for number in numbers]), {})
    images, labels = batch(layer(source="view"), 3)
    assert labels == [11, 12, 15, 19]
    assert np.array_equal(images, np.stack([planes(number) for number in numbers]))


@pytest.mark.parametrize("mean", ["", "file", "values"])
@pytest.mark.parametrize("crop", [0, 75])
@pytest.mark.parametrize("scale", [1, 0.017])
def test_large_images_are_finished_to_the_same_bits(tmp_path, mean, crop, scale):
    draw = np.random.RandomState(0)
    pixels = draw.randint(0, 256, (7, 80, 90, 3)).astype(np.uint8)
    param = TransformationParameter(crop_size=crop, mirror=True, scale=scale)
    if mean == "file":
        param.mean_file = str(tmp_path / "mean")
        write_binary(param.mean_file, array_to_blob(draw.rand(1, 3, 80, 90).astype(np.float32) * 255))
    elif mean:
        param.mean_value.extend([104.3, 117.2, 123.9])
    transformer = Transformer(param, (3, 80, 90), True, "here")
    drawn = transformer.draws(np.random.default_rng(1), 7, (3, 80, 90))
    assert set(drawn[2]) == {0, 1}
    windows = transformer.cut(pixels, np.arange(7), drawn)
    assert windows[0].size >= transform.LARGE
    made = transformer.finish(windows, drawn)
    expected = transformer.finish(windows.astype(np.float32), drawn)  # as other windows are
    assert made.tobytes() == expected.tobytes() and made.strides == expected.strides


def test_images_of_many_channels_are_mirrored_too():
    transformer = Transformer(TransformationParameter(mirror=True), (513, 2, 3), True, "here")
    windows = np.random.RandomState(0).rand(2, 2, 3, 513).astype(np.float32)
    made = transformer.finish(windows, np.array([[0, 0], [0, 0], [0, 1]]))
    assert np.array_equal(made[0], windows[0].transpose(2, 0, 1))
    assert np.array_equal(made[1], windows[1, :, ::-1].transpose(2, 0, 1))


@pytest.mark.parametrize("mean", ["", 'mean_file: "mean.binaryproto"', "mean_value: 7", "mean_value: [1, 20, 300]"])
@pytest.mark.parametrize("settings", ["", f"crop_size: {CROP} mirror: true scale: 0.3"])
def test_records_kept_as_numbers_give_the_batches_of_records_kept_as_bytes(mean, settings, monkeypatch):
    numbers = layer(f"{mean} {settings}")
    batches = [numbers.forward([], number) for number in range(6)]
    assert numbers._finished is not None
    monkeypatch.setattr(data, "FINISH_BYTES", 0)
    as_bytes = layer(f"{mean} {settings}")
    for number, tops in enumerate(batches):
        for one, two in zip(tops, as_bytes.forward([], number), strict=True):
            assert torch.equal(one, two) and one.stride() == two.stride()
    assert as_bytes._finished is None
