"""Tests of tools.image_type: the types of image files, and the quality of JPEGs, from their first bytes."""

import cv2
import numpy as np
import pytest

from transfer_caffe.tools.image_type import image_type, jpeg_quality

PHOTO = cv2.resize(np.random.RandomState(0).randint(0, 256, (6, 6, 3)).astype(np.uint8), (48, 40))


def jpeg(quality):
    return cv2.imencode(".jpg", PHOTO, [cv2.IMWRITE_JPEG_QUALITY, quality])[1].tobytes()


@pytest.mark.parametrize("kind", ["jpg", "png", "bmp", "tif", "webp"])
def test_types_of_images_are_told(kind):
    names = {"jpg": "JPEG", "tif": "TIFF", "webp": "WebP"}
    assert image_type(cv2.imencode(f".{kind}", PHOTO)[1].tobytes()) == names.get(kind, kind.upper())
    assert image_type(b"") == "unknown type"


def test_the_quality_of_a_jpeg_by_libjpeg_is_found():
    assert [jpeg_quality(jpeg(quality)) for quality in range(1, 101)] == list(range(1, 101))
    gray = cv2.imencode(".jpg", PHOTO[:, :, 0], [cv2.IMWRITE_JPEG_QUALITY, 33])[1].tobytes()
    assert jpeg_quality(gray) == 33


def test_tables_of_16_bits_and_of_chrominance_and_cut_ones_are_understood():
    def file(*tables):
        content = b"".join(tables)
        return b"\xff\xd8\xff\xe0\0\4ab\xff\xdb" + (len(content) + 2).to_bytes(2, "big") + content + b"\xff\xda"

    assert jpeg_quality(file(b"\x10" + b"\0\1" * 64)) == 100
    assert jpeg_quality(file(b"\x10" + b"\1\0" * 64)) == 1  # 256 each
    assert jpeg_quality(file(b"\x01" + b"\xff" * 64, b"\x00" + b"\1" * 64)) == 100
    assert jpeg_quality(file(b"\x01" + b"\1" * 64)) is None
    for size in range(12 + 65):
        assert jpeg_quality(file(b"\0" + b"\1" * 64)[:size]) is None
    for size in range(12 + 129):
        assert jpeg_quality(file(b"\x10" + b"\0\1" * 64)[:size]) is None
