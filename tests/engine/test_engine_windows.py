"""WindowData, recurrent layers over several batches: what a single batch of real Caffe does not show."""

import cv2
import numpy as np
import pytest

from transfer_caffe.compare import build
from transfer_caffe.formats.proto import parse_text
from transfer_caffe.formats.proto.caffe_pb2 import NetParameter
from transfer_caffe.utils.errors import UserError

WINDOWS = """layer { name: "data" type: "WindowData" top: "data" top: "label" transform_param { crop_size: 4 SETTINGS }
  window_data_param { source: "windows.txt" batch_size: 8 } }"""
FILE = (
    "# 0\nimage.png\n3 10 12\n4\n1 0.9 0 0 3 3\n2 0.5 4 4 9 9\n1 0.4 1 1 2 2\n2 0.7 5 5 8 8\n# 1\nimage.png 3 10 12 0\n"
)


def net(text):
    return build(parse_text(text, NetParameter(), "net"), "TRAIN")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cv2.imwrite("image.png", np.random.RandomState(0).randint(0, 256, (10, 12, 3)).astype(np.uint8))
    (tmp_path / "windows.txt").write_text(FILE)
    return tmp_path


def test_a_batch_is_a_quarter_foreground_and_a_function_of_its_number(folder):
    layer = net(WINDOWS.replace("SETTINGS", "")).layers[0]
    batches = [layer.forward([], number) for number in range(4)]
    assert all(labels[:6].tolist() == [0] * 6 and min(labels[6:].tolist()) > 0 for _, labels in batches)
    assert len({tuple(labels.tolist()) for _, labels in batches}) > 1
    again = net(WINDOWS.replace("SETTINGS", "")).layers[0].forward([], 2)
    assert all((one == two).all() for one, two in zip(again, batches[2], strict=True))


def test_mirrored_windows_are_reversed(folder):
    (folder / "windows.txt").write_text("# 0\nimage.png\n3\n10\n12\n2\n1 0.9 0 0 3 3\n1 0.1 4 4 7 7\n")
    images = net(WINDOWS.replace("SETTINGS", "mirror: true")).layers[0].forward([], 0)[0].numpy()
    background = {image.tobytes() for image in images[:6]}
    assert len(background) == 2 and np.ascontiguousarray(images[0][:, :, ::-1]).tobytes() in background


@pytest.mark.parametrize(
    "old, new, message",
    [
        ("# 0", "0", "not a valid window file, at image 0"),
        ("9 9", "9", "not a valid window file, at image 1"),
        ("image.png 3 10 12 0\n", "image.png 3 10", "not a valid window file, at image 2"),
        ("1 0.4 1 1 2 2", "1 0.6 1 1 2 2", "windows.txt has no background window, but each batch needs 6"),
        ("2 0.5", "0 0.5", "a foreground window of image.png has label 0"),
    ],
)
def test_window_files_that_cannot_be_used_are_refused(old, new, message, folder):
    (folder / "windows.txt").write_text(FILE.replace(old, new))
    with pytest.raises(UserError, match=message):
        net(WINDOWS.replace("SETTINGS", ""))


def test_a_window_outside_of_its_image_is_an_error_of_its_batch(folder):
    (folder / "windows.txt").write_text(FILE.replace("1 1 2 2", "1 1 12 2"))
    with pytest.raises(UserError, match=r"window \[1, 1, 12, 2\] is not inside of image.png, 12 x 10"):
        net(WINDOWS.replace("SETTINGS", "")).forward()


RECURRENT = """layer { name: "x" type: "Input" top: "x" top: "cont"
  input_param { shape { dim: STEPS dim: 2 dim: 3 } shape { dim: STEPS dim: 2 } } }
layer { name: "l" type: "KIND" bottom: "x" bottom: "cont" top: "y" recurrent_param { num_output: 4
  weight_filler { type: "uniform" min: -1 max: 1 } } }"""


@pytest.mark.parametrize("kind", ["RNN", "LSTM"])
def test_a_sequence_continues_in_the_next_batch_unless_it_starts_there(kind):
    draw = np.random.RandomState(0)
    x, cont = draw.standard_normal((4, 2, 3)), np.array([[0, 0], [1, 1], [1, 0], [1, 1]])
    whole = net(RECURRENT.replace("STEPS", "4").replace("KIND", kind))
    whole.feed({"x": x, "cont": cont})
    wanted = whole.forward()[1]["y"].detach()
    halves = net(RECURRENT.replace("STEPS", "2").replace("KIND", kind))
    for number in range(2):
        part = slice(2 * number, 2 * number + 2)
        halves.feed({"x": x[part], "cont": cont[part]})
        found = halves.forward(number)[1]["y"].detach()
        # the same sums of at most 12 products, in float32
        np.testing.assert_allclose(found, wanted[part], rtol=0, atol=1e-6)
