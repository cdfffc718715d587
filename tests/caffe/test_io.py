"""Images, messages, Transformer, Classifier and Detector; test_scenarios.py compares their numbers with pycaffe's."""

from pathlib import Path

import cv2
import numpy as np
import pytest

import transfer_caffe.caffe as caffe
from transfer_caffe.caffe import io
from transfer_caffe.formats.proto import caffe_pb2


def test_blobs_in_old_and_new_format() -> None:
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    blob = io.array_to_blobproto(array, diff=-array)
    np.testing.assert_array_equal(io.blobproto_to_array(blob), array)
    np.testing.assert_array_equal(io.blobproto_to_array(blob, return_diff=True), -array)
    old = caffe_pb2.BlobProto(num=1, channels=1, height=2, width=3, data=range(6))
    assert io.blobproto_to_array(old).shape == (1, 1, 2, 3)
    assert io.blobproto_to_array(caffe_pb2.BlobProto(data=[3])) == 3
    with pytest.raises(ValueError, match="reshape"):
        io.blobproto_to_array(caffe_pb2.BlobProto(data=range(6)))
    text = io.arraylist_to_blobprotovector_str([array, array[0]])
    assert [each.shape for each in io.blobprotovector_str_to_arraylist(text)] == [(2, 3), (3,)]


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_datums(dtype: type) -> None:
    array = np.arange(24).reshape(2, 3, 4).astype(dtype)
    datum = io.array_to_datum(array, label=7)
    assert datum.label == 7
    assert bool(datum.data) is (dtype is np.uint8)
    back = io.datum_to_array(datum)
    np.testing.assert_array_equal(back, array)
    back[0] = 0  # it can be written
    assert not io.array_to_datum(array).HasField("label")
    with pytest.raises(ValueError, match="Incorrect array shape"):
        io.array_to_datum(array[0])


@pytest.fixture
def image(tmp_path: Path) -> np.ndarray:
    """RGB values of an image in image.png."""
    rgb = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    cv2.imwrite(str(tmp_path / "image.png"), rgb[:, :, ::-1])
    return rgb


def test_images_in_colour_gray_and_with_transparency(image: np.ndarray, tmp_path: Path) -> None:
    loaded = io.load_image(tmp_path / "image.png")
    assert loaded.dtype == np.float32
    np.testing.assert_allclose(loaded, image / 255, rtol=1e-6)
    gray = io.load_image(str(tmp_path / "image.png"), color=False)
    assert gray.shape == (6, 8, 1)
    np.testing.assert_allclose(gray[:, :, 0], image @ [0.2125, 0.7154, 0.0721] / 255, rtol=1e-5)
    cv2.imwrite(str(tmp_path / "gray.png"), image[:, :, 0])
    assert io.load_image(tmp_path / "gray.png").shape == (6, 8, 3)
    assert io.load_image(tmp_path / "gray.png", False).shape == (6, 8, 1)
    cv2.imwrite(str(tmp_path / "alpha.png"), np.dstack([image[:, :, ::-1], image[:, :, :1]]))
    np.testing.assert_allclose(io.load_image(tmp_path / "alpha.png"), image / 255, rtol=1e-6)
    cv2.imwrite(str(tmp_path / "deep.png"), image[:, :, 0].astype(np.uint16) * 257)
    np.testing.assert_allclose(io.load_image(tmp_path / "deep.png", False)[:, :, 0], image[:, :, 0] / 255, rtol=1e-6)


def test_files_that_are_no_images_raise(tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("text")
    with pytest.raises(RuntimeError, match=r"text\.png: cannot be read as an image"):
        io.load_image(tmp_path / "text.png")
    with pytest.raises(RuntimeError, match="Could not open file"):
        io.load_image(tmp_path / "none.png")


def test_resizing_keeps_constants_and_the_number_of_channels() -> None:
    assert (io.resize_image(np.full((4, 4, 3), 2.5), (7, 2)) == 2.5).all()
    for channels in (1, 2, 3, 5):
        resized = io.resize_image(np.random.default_rng(0).random((6, 8, channels)), (3, 9))
        assert resized.shape == (3, 9, channels)
        assert resized.dtype == np.float32
    plane = np.linspace(0, 1, 8)[None, :, None] * np.ones((6, 1, 3))
    doubled = io.resize_image(plane, (6, 16))
    np.testing.assert_allclose(np.diff(doubled[3, 1:-1, 0]), 1 / 14, rtol=1e-5)


def test_ten_crops() -> None:
    image = np.random.default_rng(0).random((5, 7, 3)).astype(np.float32)
    crops = io.oversample([image, image + 1], (3, 4))
    assert crops.shape == (20, 3, 4, 3)
    np.testing.assert_array_equal(crops[0], image[:3, :4])
    np.testing.assert_array_equal(crops[3], image[2:, 3:])
    np.testing.assert_array_equal(crops[4], image[1:4, 1:5])
    np.testing.assert_array_equal(crops[9], image[1:4, 1:5][:, ::-1])
    np.testing.assert_array_equal(crops[10], crops[0] + 1)


def transformer() -> io.Transformer:
    made = io.Transformer({"data": (1, 3, 6, 8)})
    made.set_transpose("data", (2, 0, 1))
    made.set_channel_swap("data", (2, 1, 0))
    made.set_raw_scale("data", 255)
    made.set_mean("data", np.array([1.0, 2.0, 3.0]))
    made.set_input_scale("data", 0.5)
    return made


def test_preprocess_and_its_inverse(image: np.ndarray) -> None:
    given = (image / 255).astype(np.float32)
    before = given.copy()
    made = transformer()
    prepared = made.preprocess("data", given)
    expected = (image[:, :, ::-1].transpose(2, 0, 1) - np.array([1.0, 2, 3])[:, None, None]) * 0.5
    np.testing.assert_allclose(prepared, expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(given, before)  # the program's array stays as it was
    np.testing.assert_allclose(made.deprocess("data", prepared[None]), given, atol=1e-5)


def test_means_of_images_are_resized() -> None:
    made = io.Transformer({"data": (1, 3, 6, 8)})
    mean = np.random.default_rng(0).random((3, 6, 8))
    made.set_mean("data", mean)
    np.testing.assert_array_equal(made.mean["data"], mean)
    made.set_mean("data", np.tile(np.array([1.0, 2, 3])[:, None, None], (1, 9, 9)))
    assert made.mean["data"].shape == (3, 6, 8)
    np.testing.assert_allclose(made.mean["data"][:, 3, 4], [1, 2, 3], rtol=1e-5)
    made.set_mean("data", np.full((3, 2, 2), 4.0))
    np.testing.assert_allclose(made.mean["data"], 4)


def test_wrong_settings_raise() -> None:
    made = io.Transformer({"data": (1, 3, 6, 8)})
    for call, message in (
        (lambda: made.set_raw_scale("image", 1), "image is not one of the net inputs"),
        (lambda: made.preprocess("image", np.zeros((2, 2, 3))), "not one of the net inputs"),
        (lambda: made.set_transpose("data", (1, 0)), "Transpose order"),
        (lambda: made.set_channel_swap("data", (1, 0)), "Channel swap"),
        (lambda: made.set_mean("data", np.zeros(2)), "Mean channels incompatible"),
        (lambda: made.set_mean("data", np.zeros((1, 3, 6, 8))), "Mean shape invalid"),
    ):
        with pytest.raises(ValueError, match=message):
            call()


NET = """input: "data" input_shape { dim: 4 dim: 3 dim: 6 dim: 8 }
layer { name: "fc" type: "InnerProduct" bottom: "data" top: "fc" inner_product_param { num_output: 5 } }
layer { name: "prob" type: "Softmax" bottom: "fc" top: "prob" }"""


@pytest.fixture
def files(tmp_path: Path) -> tuple[str, str]:
    (tmp_path / "net.prototxt").write_text(NET)
    net = caffe.Net(str(tmp_path / "net.prototxt"), caffe.TEST)
    net.params["fc"][0].data[...] = np.random.default_rng(0).normal(size=(5, 144)) / 12
    net.save(tmp_path / "net.caffemodel")
    return str(tmp_path / "net.prototxt"), str(tmp_path / "net.caffemodel")


def test_classifier(files: tuple[str, str], image: np.ndarray) -> None:
    classifier = caffe.Classifier(*files, image_dims=(8, 10), mean=np.zeros(3), raw_scale=2.0, channel_swap=(2, 1, 0))
    images = [(image / 255).astype(np.float32)] * 3
    rows = classifier.predict(images, oversample=False)
    assert rows.shape == (3, 5)
    np.testing.assert_allclose(rows.sum(1), 1, rtol=1e-5)
    np.testing.assert_allclose(rows[0], rows[2], rtol=1e-5)
    crops = io.oversample([io.resize_image(images[0], (8, 10))], (6, 8))
    each = classifier.forward_all(data=np.array([classifier.transformer.preprocess("data", c) for c in crops]))
    np.testing.assert_allclose(classifier.predict(images[:1])[0], each["prob"].mean(0), rtol=1e-5)


def test_detector(files: tuple[str, str], image: np.ndarray, tmp_path: Path) -> None:
    detector = caffe.Detector(*files, mean=np.array([1.0, 2, 3]), raw_scale=255.0, channel_swap=(2, 1, 0))
    name = str(tmp_path / "image.png")
    found = detector.detect_windows([(name, [(0, 0, 6, 8), (1, 2, 5, 6)])])
    assert [each["window"] for each in found] == [(0, 0, 6, 8), (1, 2, 5, 6)]
    assert found[0]["filename"] == name
    detector.forward_all(data=detector.transformer.preprocess("data", io.load_image(name))[None])
    np.testing.assert_allclose(found[0]["prediction"], detector.blobs["prob"].data[0], rtol=1e-5)
    assert detector.detect_windows([]) == []


def test_a_detectors_context_is_the_image_and_beyond_it_the_mean(files: tuple[str, str], tmp_path: Path) -> None:
    text = Path(files[0]).read_text().replace("dim: 6 dim: 8", "dim: 8 dim: 8")
    (tmp_path / "square.prototxt").write_text(text)
    net = caffe.Net(str(tmp_path / "square.prototxt"), caffe.TEST)
    net.save(tmp_path / "square.caffemodel")
    paths = str(tmp_path / "square.prototxt"), str(tmp_path / "square.caffemodel")
    detector = caffe.Detector(*paths, mean=np.array([51.0, 102.0, 153.0]), raw_scale=255.0, context_pad=2)
    inside = np.ones((40, 40, 3), np.float32)
    assert (detector.crop(inside, np.array([10, 10, 20, 20])) == 1).all()
    corner = detector.crop(inside, np.array([0, 0, 10, 10]))
    assert corner.shape == (8, 8, 3)
    np.testing.assert_allclose(corner[0, 0], [0.2, 0.4, 0.6], rtol=1e-6)
    assert (corner[4, 4] == 1).all()
    with pytest.raises(ValueError, match="outside"):
        detector.crop(inside, np.array([90, 90, 95, 95]))


def test_the_mean_file_beside_the_module_has_the_channel_means() -> None:
    assert caffe.__file__
    mean = np.load(Path(caffe.__file__).parent / "imagenet" / "ilsvrc_2012_mean.npy")
    assert mean.shape == (3, 256, 256)
    np.testing.assert_allclose(mean.mean(1).mean(1), [104.00698793, 116.66876762, 122.67891434], rtol=1e-9)
