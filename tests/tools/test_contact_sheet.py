"""Tests of tools.contact_sheet: thumbnails of all kinds of images, with captions."""

import cv2
import numpy as np
import pytest

from transfer_caffe.tools.contact_sheet import SIDE, contact_sheet, thumbnail


def test_an_image_stands_in_the_middle_on_its_caption():
    sheet = cv2.imdecode(np.frombuffer(contact_sheet([(np.zeros((1, 128, 200), np.uint8), ["", ""])], 1), np.uint8), 0)
    assert sheet is not None and not sheet[10 + 46 : 10 + SIDE, 10 : 10 + SIDE].any() and sheet[10 + 45].all()
    sheet = cv2.imdecode(np.frombuffer(contact_sheet([(np.zeros((1, 128, 64), np.uint8), ["", ""])], 1), np.uint8), 0)
    assert sheet is not None and not sheet[10 : 10 + SIDE, 10 + 32 : 10 + 96].any()


def test_label_and_key_number_stand_under_the_image():
    def below(*captions):
        sheet = cv2.imdecode(np.frombuffer(contact_sheet([(None, captions)], 1), np.uint8), cv2.IMREAD_GRAYSCALE)
        assert sheet is not None and sheet.shape == (10 + SIDE + 30 + 10, 10 + SIDE + 10)
        return sheet[10 + SIDE :]

    both, label_only = below("label 5", "00000012"), below("label 5", "")
    assert (both[:15] < 128).sum() > 20 and (both[15:30] < 128).sum() > 20
    np.testing.assert_array_equal(both[:14], label_only[:14])
    assert not (label_only[20:] < 255).any()
    assert (below("label 6", "")[:15] != label_only[:15]).any()
    wide = below("label -2147483648 and more", "")
    assert (wide[:, :10] == 255).all() and (wide[:, -10:] == 255).all()


def test_small_images_are_magnified_without_smoothing():
    image = np.arange(3 * 2 * 5, dtype=np.uint8).reshape(3, 2, 5)
    thumb = thumbnail(image)
    assert thumb.shape == (50, 125, 3)
    np.testing.assert_array_equal(thumb[::25, ::25], image.transpose(1, 2, 0))
    np.testing.assert_array_equal(thumb[24::25, 24::25], image.transpose(1, 2, 0))


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((3, 256, 512), (64, 128, 3)),
        ((3, 512, 256), (128, 64, 3)),
        ((3, 128, 100), (128, 100, 3)),
        ((3, 1, 5000), (1, 128, 3)),
        ((1, 64, 64), (128, 128, 3)),
    ],
)
def test_images_of_any_size_are_fitted(shape, expected):
    thumb = thumbnail(np.full(shape, 77, np.uint8))
    assert thumb.shape == expected and (thumb == 77).all()


@pytest.mark.parametrize(("channels", "expected"), [(1, [0, 0, 0]), (2, [0, 0, 0]), (3, [0, 1, 2]), (4, [0, 1, 2])])
def test_images_of_any_number_of_channels_are_shown(channels, expected):
    image = np.arange(channels, dtype=np.uint8)[:, None, None].repeat(2, 1).repeat(2, 2)
    assert thumbnail(image)[0, 0].tolist() == expected


def test_numbers_are_scaled_from_black_to_white():
    image = np.array([[[-2.0, 0, np.nan], [2, np.inf, -1]]], np.float32)
    assert thumbnail(image)[::42, ::42, 0].tolist() == [[0, 128, 0], [255, 0, 64]]
    assert not thumbnail(np.full((3, 2, 2), 5, np.float32)).any()
    assert not thumbnail(np.full((1, 2, 2), np.nan, np.float32)).any()
    wide = np.array([[[-3e38, 3e38]]], np.float32)
    assert thumbnail(wide)[0, ::64, 0].tolist() == [0, 255]
