"""Any net as one for inference: inputs in place of data layers, and the preprocessing of the one that holds images."""

import cv2
import numpy as np
import pytest

from transfer_caffe.export.inference import load
from transfer_caffe.export.preprocessing import preprocessing_of
from transfer_caffe.formats.database_writer import DatabaseWriter
from transfer_caffe.formats.datum import raw_datum
from transfer_caffe.formats.proto import parse_text
from transfer_caffe.formats.proto.caffe_pb2 import NetParameter
from transfer_caffe.utils.errors import UserError

FC = """
layer { name: "fc" type: "InnerProduct" bottom: "data" top: "fc" inner_product_param { num_output: 2 } }
"""
LOSS = 'layer { name: "loss" type: "SoftmaxWithLoss" bottom: "fc" bottom: "label" top: "loss" }'


def used(text, shape=()):
    return load(parse_text(text, NetParameter(), "net"), None, shape)


def data(transform, more="", top='top: "data" top: "label"', source="nowhere_lmdb", name="data"):
    return (
        f'layer {{ name: "{name}" type: "Data" {top} {more} transform_param {{ {transform} }} '
        f'data_param {{ source: "{source}" batch_size: 4 }} }}'
    )


def test_a_data_layer_of_phase_train_tells_the_preprocessing():
    net = used(data("crop_size: 8 scale: 0.5 mean_value: 1 mean_value: 2 mean_value: 3", "include { phase: TRAIN }")
               + FC + LOSS)  # fmt: skip
    assert list(net.inputs) == ["data"] and net.inputs["data"] == (4, 3, 8, 8)
    found = preprocessing_of(net)
    assert found is not None and found.scale == 0.5 and found.mean is not None
    assert found.mean.ravel().tolist() == [1, 2, 3]


def test_the_transform_is_that_of_the_images_and_not_that_of_the_labels():
    text = (
        data("", top='top: "data"')
        + data("scale: 0.004 mean_value: 9", top='top: "label"', name="labels")
        + FC
        + 'layer { name: "loss" type: "EuclideanLoss" bottom: "fc" bottom: "label" top: "loss" }'
    )
    net = used(text, (3, 8, 8))
    assert list(net.inputs) == ["data"]
    found = preprocessing_of(net)
    assert found is not None and found.scale == 1 and found.mean is None


def test_the_size_before_the_crop_is_that_of_the_records(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with DatabaseWriter(tmp_path / "train_lmdb") as writer:
        writer.put(b"0", raw_datum(np.zeros((20, 24, 3), np.uint8), 0))
    found = preprocessing_of(used(data("crop_size: 16 mean_value: 5 mean_value: 5 mean_value: 5", source="train_lmdb")
                                  + FC + LOSS))  # fmt: skip
    assert found is not None and (found.size, found.crop, found.sized) == ((20, 24), (16, 16), True)


def test_the_size_before_the_crop_is_that_to_which_images_are_resized(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cv2.imwrite("a.png", np.zeros((40, 40, 3), np.uint8))
    (tmp_path / "list.txt").write_text("a.png 0\n")
    text = (
        'layer { name: "data" type: "ImageData" top: "data" top: "label" transform_param { crop_size: 16 } '
        'image_data_param { source: "list.txt" new_height: 20 new_width: 24 } }'
    )
    found = preprocessing_of(used(text + FC + LOSS))
    assert found is not None and found.size == (20, 24)


def test_an_unknown_size_before_the_crop_is_not_guessed():
    net = used(data("crop_size: 16 mean_value: 5 mean_value: 5 mean_value: 5") + FC + LOSS)
    found = preprocessing_of(net)
    assert found is not None and not found.sized and "resize" not in found.metadata()
    again = preprocessing_of(net, resize=(20, 20))
    assert again is not None and again.sized and again.metadata()["resize"] == [20, 20]


@pytest.mark.parametrize(
    "start",
    [
        'layer { name: "in" type: "Input" top: "data" }',
        'input: "data"',
        'input: "data" input_dim: 1 input_dim: 3 input_dim: 2 input_dim: 2',
    ],
)
def test_an_input_gets_the_given_shape(start):
    assert used(start + FC, (3, 6, 5)).inputs == {"data": (1, 3, 6, 5)}


def test_only_the_first_of_several_inputs_gets_the_given_shape():
    more = 'layer { name: "sum" type: "Concat" bottom: "fc" bottom: "info" top: "out" }'
    separate = "".join(
        f'layer {{ name: "{name}" type: "Input" top: "{name}" input_param {{ shape {{ {dims} }} }} }}'
        for name, dims in (("data", "dim: 1 dim: 3 dim: 2 dim: 2"), ("info", "dim: 1 dim: 5"))
    )
    together = 'input: "data" input: "info" input_shape { dim: 1 dim: 3 } input_shape { dim: 1 dim: 5 }'
    for start in (separate, together):
        assert used(start + FC + more, (3, 6, 5)).inputs == {"data": (1, 3, 6, 5), "info": (1, 5)}


def test_a_blob_that_nothing_computes_is_still_an_error():
    with pytest.raises(UserError, match="'data' is not a top of any earlier layer"):
        used(FC)
