"""Tests of data_prep.image_headers: the oddities of image files, and their effects in OpenCV and real Caffe."""

import io
import struct
import subprocess
import zlib
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from transfer_caffe.data_prep.image_headers import (
    CMYK,
    EMPTY,
    HEADER_CUT,
    NO_END,
    NO_IMAGE,
    YCCK,
    look_at,
    named_jpeg,
    oriented,
)
from transfer_caffe.formats.database import Database
from transfer_caffe.formats.datum import decode_datum
from transfer_caffe.real_caffe import programs as real_caffe
from transfer_caffe.tools.images import BrokenImage, Settings, image_record

PICTURE = Image.fromarray(
    np.stack(np.meshgrid(np.arange(0, 240, 5), np.arange(0, 160, 5)), 2).repeat(2, 2)[..., :3].astype(np.uint8)
)  # 32 x 48, each pixel with another colour


def saved(picture=PICTURE, kind="JPEG", **options):
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def turned(orientation, picture=PICTURE):
    exif = Image.Exif()
    exif[0x112] = orientation
    return saved(picture, exif=exif)


def exif(orientation, order="<", start=b"Exif\0\0"):
    """Return an EXIF segment with three entries, the second of which is the orientation."""
    entries = b"".join(
        struct.pack(f"{order}HHIHH", tag, 3, 1, value, 0)
        for tag, value in ((0x100, 9), (0x112, orientation), (0x128, 2))
    )
    tiff = (b"II" if order == "<" else b"MM") + struct.pack(f"{order}HIH", 42, 8, 3) + entries + bytes(4)
    return segment(0xE1, start + tiff)


def segment(marker, content):
    return bytes([0xFF, marker]) + struct.pack(">H", len(content) + 2) + content


def spliced(*segments, jpeg=None):
    """Return a JPEG with additional segments after its first marker."""
    plain = jpeg or saved()
    return plain[:2] + b"".join(segments) + plain[2:]


def ycck():
    cmyk = bytearray(saved(PICTURE.convert("CMYK")))
    cmyk[cmyk.index(b"Adobe") + 11] = 2
    return bytes(cmyk)


def without_adobe():
    cmyk = saved(PICTURE.convert("CMYK"))
    at = cmyk.index(b"\xff\xee")
    return cmyk[:at] + cmyk[at + 2 + int.from_bytes(cmyk[at + 2 : at + 4], "big") :]


def png16():
    return cv2.imencode(".png", np.arange(48 * 32 * 3, dtype=np.uint16).reshape(32, 48, 3) * 14)[1].tobytes()


def png_turned():
    png, content = saved(kind="PNG"), exif(6)[10:]
    chunk = b"eXIf" + content
    return png[:33] + struct.pack(">I", len(content)) + chunk + struct.pack(">I", zlib.crc32(chunk)) + png[33:]


PLAIN = saved()
XMP = segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0<x/>")
SCAN = PLAIN.index(b"\xff\xda")
PROFILE = b"".join(segment(0xE2, b"ICC_PROFILE\0" + bytes([n, 3]) + b"\xff\xd9" * 30000) for n in (1, 2, 3))

CASES = {
    "plain": (PLAIN, []),
    "gray": (saved(PICTURE.convert("L")), []),
    "progressive": (saved(progressive=True), []),
    "large profile": (spliced(PROFILE), []),
    "bytes behind the end": (PLAIN + bytes(100), []),
    "upright": (turned(1), []),
    "no such orientation": (turned(9), []),
    **{f"orientation {n}": (turned(n), [oriented(n)]) for n in range(2, 9)},
    "orientation, big-endian": (spliced(exif(6, ">")), [oriented(6)]),
    "the first orientation counts": (spliced(exif(6), exif(3)), [oriented(6)]),
    "orientation behind the tables": (PLAIN[:SCAN] + exif(3) + PLAIN[SCAN:], [oriented(3)]),
    "orientation behind XMP": (spliced(XMP, exif(6)), [oriented(6, behind=True)]),
    "XMP behind the orientation": (spliced(exif(6), XMP), [oriented(6)]),
    "exif cut short": (spliced(segment(0xE1, exif(6)[4:28])), []),
    "exif of another order": (spliced(segment(0xE1, b"Exif\0\0XX" + exif(6)[12:])), []),
    "exif not of TIFF": (spliced(segment(0xE1, exif(6)[4:].replace(b"II*\0", b"II+\0"))), []),
    "CMYK": (saved(PICTURE.convert("CMYK")), [CMYK]),
    "CMYK without Adobe's mark": (without_adobe(), [CMYK]),
    "YCCK": (ycck(), [YCCK]),
    "CMYK, turned": (turned(6, PICTURE.convert("CMYK")), [CMYK, oriented(6)]),
    "PNG": (saved(kind="PNG"), [named_jpeg("PNG")]),
    "PNG of 16 bits": (png16(), [named_jpeg("PNG")]),
    "BMP": (saved(kind="BMP"), [named_jpeg("BMP")]),
    "TIFF": (saved(kind="TIFF"), [named_jpeg("TIFF")]),
    "WebP": (saved(kind="WEBP"), [named_jpeg("WebP")]),
    "GIF": (saved(kind="GIF"), [named_jpeg("GIF")]),
    "without end": (PLAIN[:-2], [NO_END]),
    "without the end's last byte": (PLAIN[:-1], [NO_END]),
    "cut in the middle": (PLAIN[: (SCAN + len(PLAIN)) // 2], [NO_END]),
    "cut in the middle, thumbnail and profile end": (spliced(PROFILE)[:-40], [NO_END]),
    "cut behind the scan's header": (PLAIN[: SCAN + 14], [NO_END]),
    "cut before the scan": (PLAIN[: SCAN - 5], [HEADER_CUT]),
    "no more than a marker": (PLAIN[:4], [HEADER_CUT]),
    "empty": (b"", [EMPTY]),
    "one byte": (b"\xff", [NO_IMAGE]),
    "a web page": (b"<html>404</html>", [NO_IMAGE]),
    "zeros": (bytes(5000), [NO_IMAGE]),
}
BROKEN = {EMPTY, NO_IMAGE, HEADER_CUT}


@pytest.mark.parametrize("name", CASES)
def test_what_is_odd_is_named(name):
    data, expected = CASES[name]
    assert look_at(data) == expected


def record(tmp_path, data) -> Any:
    """Return the pixels that tools.build_lmdb stores, height x width x channels; None if it stops."""
    (tmp_path / "x.JPEG").write_bytes(data)
    try:
        return decode_datum(image_record(str(tmp_path / "x.JPEG"), 0, Settings())[0], "x")[0].transpose(1, 2, 0)
    except BrokenImage:
        return None


@pytest.mark.parametrize("name", CASES)
def test_our_database_takes_all_but_what_is_said_to_stop_it(tmp_path, name):
    data, oddities = CASES[name]
    pixels = record(tmp_path, data)
    assert (pixels is None) == any(odd.stops for odd in oddities)
    if pixels is not None:
        turns = any("EXIF" in odd.what and int(odd.what[-1]) > 4 for odd in oddities)
        assert pixels.shape == ((48, 32, 3) if turns else (32, 48, 3))


@pytest.mark.parametrize(
    ("orientation", "turn"),
    [
        (2, lambda a: a[:, ::-1]),
        (3, lambda a: a[::-1, ::-1]),
        (4, lambda a: a[::-1]),
        (5, lambda a: a.swapaxes(0, 1)),
        (6, lambda a: np.rot90(a, -1)),
        (7, lambda a: a[::-1, ::-1].swapaxes(0, 1)),
        (8, lambda a: np.rot90(a, 1)),
    ],
)
def test_images_are_turned_as_is_said(tmp_path, orientation, turn):
    assert (record(tmp_path, turned(orientation)) == turn(record(tmp_path, PLAIN))).all()


def caffe_takes(tmp_path, data) -> Any:
    """Return the pixels that real Caffe's convert_imageset stores for an image; None if it leaves the image out."""
    (tmp_path / "x.JPEG").write_bytes(data)
    (tmp_path / "list.txt").write_text("x.JPEG 0\n")
    program = real_caffe.program("convert_imageset")
    assert program
    result = subprocess.run(
        [program, f"{tmp_path}/", tmp_path / "list.txt", tmp_path / "db"], capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    if "Could not open or find file" in result.stderr:
        return None
    return Database(tmp_path / "db").record(0)[0].transpose(1, 2, 0)


NEEDS_CAFFE = pytest.mark.skipif(real_caffe.program("convert_imageset") is None, reason="no real Caffe here")


@NEEDS_CAFFE
@pytest.mark.parametrize("name", CASES)
def test_real_caffe_does_what_is_said_of_it(tmp_path, name):
    data, oddities = CASES[name]
    pixels = caffe_takes(tmp_path, data)
    effects = [odd.effect for odd in oddities]
    if any("leaves it out" in effect for effect in effects):
        assert pixels is None
    elif any("not by convert_imageset" in effect for effect in effects):
        assert (pixels == record(tmp_path, PLAIN)).all()
        assert pixels.shape != record(tmp_path, data).shape
    else:
        assert pixels is not None
        ours = record(tmp_path, data)
        assert (ours is None) == (NO_END in oddities)
        if ours is not None:
            assert (pixels == ours).all()


@NEEDS_CAFFE
def test_real_caffe_has_all_pixels_of_an_image_that_lacks_the_end_marker_alone_and_gray_for_those_that_lack(tmp_path):
    whole = record(tmp_path, PLAIN)
    assert (caffe_takes(tmp_path, PLAIN[:-2]) == whole).all()
    half = tmp_path / "half"
    half.mkdir()
    cut = caffe_takes(half, PLAIN[: (SCAN + len(PLAIN)) // 2])
    assert (cut[:8, :8] == whole[:8, :8]).all()
    assert not (cut == whole).all() and np.ptp(cut[-1], axis=0).max() == 0


@NEEDS_CAFFE
def test_opencv_5_turns_a_png_by_its_exif_and_the_opencv_of_real_caffe_does_not(tmp_path):
    assert record(tmp_path, png_turned()).shape == (48, 32, 3)
    assert caffe_takes(tmp_path, png_turned()).shape == (32, 48, 3)
