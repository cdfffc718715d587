"""Detection of unusual image files from their header and end, without decoding them.

    with open("n02105855_2933.JPEG", "rb") as file:
        look(file)      # [Oddity("PNG named JPEG", "...")]

The effects were measured with OpenCV 5 (tools/build_lmdb.py, which decodes from memory) and with real Caffe 1.0 with
OpenCV 4.5 (convert_imageset, which decodes from the file): tests/data_prep/test_image_headers.py tests both.
"""

from __future__ import annotations

import io
import struct
from dataclasses import dataclass
from typing import BinaryIO


@dataclass(frozen=True)
class Oddity:
    """A kind of unusual image file, its effect on the stored image, and whether tools.build_lmdb stops at it."""

    what: str
    effect: str
    stops: bool = False


_LEFT_OUT = "tools.build_lmdb stops and reports it; Caffe's convert_imageset leaves it out, as --on_error caffe does"
EMPTY = Oddity("empty file", _LEFT_OUT, stops=True)
NO_IMAGE = Oddity("no image", _LEFT_OUT, stops=True)
HEADER_CUT = Oddity("JPEG cut in its header", _LEFT_OUT, stops=True)
NO_END = Oddity(
    "JPEG without end",
    "no end-of-image marker; tools.build_lmdb stops and reports it; Caffe's convert_imageset stores it, as --on_error "
    "caffe does, gray where data is missing (if only the marker is missing, all pixels are right)",
    stops=True,
)
_SAME = "the same pixels in tools.build_lmdb and Caffe's convert_imageset"
_FOUR_CHANNELS = "converted to BGR by OpenCV's approximation, without the colour profile; " + _SAME
CMYK, YCCK = Oddity("CMYK JPEG", _FOUR_CHANNELS), Oddity("YCCK JPEG", _FOUR_CHANNELS)
_GIF = "OpenCV 5 (tools.build_lmdb) decodes it; convert_imageset of a Caffe with OpenCV 4 leaves it out"

_TURNS = {
    2: "mirrored left to right",
    3: "rotated by 180 degrees",
    4: "mirrored top to bottom",
    5: "transposed",
    6: "rotated by 90 degrees clockwise",
    7: "mirrored along the other diagonal",
    8: "rotated by 90 degrees counterclockwise",
}

_OTHER_TYPES = (
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"GIF8", "GIF"),
    (b"BM", "BMP"),
    (b"II*\0", "TIFF"),
    (b"MM\0*", "TIFF"),
    (b"\0\0\0\x0cjP  ", "JPEG 2000"),
)

_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}  # SOF0 to SOF15, without DHT, JPG and DAC
_ALONE = {0x01, *range(0xD0, 0xD8)}  # TEM and RSTn have no length
_SCAN, _END, _EXIF, _ADOBE = 0xDA, 0xD9, 0xE1, 0xEE


def oriented(orientation: int, behind: bool = False) -> Oddity:
    """Return the oddity of an EXIF orientation from 2 to 8; ``behind``: EXIF comes after another APP1 segment (XMP)."""
    who = "by OpenCV 5 (tools.build_lmdb), not by convert_imageset of a Caffe with OpenCV 4" if behind else _SAME
    return Oddity(f"EXIF orientation {orientation}", f"{_TURNS[orientation]} when it is decoded; {who}")


def named_jpeg(kind: str) -> Oddity:
    """Return the oddity of a file of another type that is named like a JPEG."""
    return Oddity(f"{kind} named JPEG", _GIF if kind == "GIF" else f"decoded by its real type; {_SAME}")


def look_at(data: bytes) -> list[Oddity]:
    """Do the same as `look` with the bytes of a file."""
    return look(io.BytesIO(data))


def look(file: BinaryIO) -> list[Oddity]:
    """Return the oddities of a file that is named like a JPEG; usually there are none. Gray JPEGs are normal."""
    head = file.read(16)
    if not head:
        return [EMPTY]
    if head[:3] != b"\xff\xd8\xff":
        if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
            return [named_jpeg("WebP")]
        return next(([named_jpeg(kind)] for magic, kind in _OTHER_TYPES if head.startswith(magic)), [NO_IMAGE])
    return _look_at_jpeg(file)


def _look_at_jpeg(file: BinaryIO) -> list[Oddity]:
    """Return the oddities of a JPEG."""
    file.seek(2)
    channels = orientation = 0
    transform = b"\0"
    exif = behind = False
    while (marker := _next_marker(file)) != _SCAN:
        size = file.read(2)
        if marker in (None, _END) or len(size) < 2:
            return [HEADER_CUT]
        length = max(int.from_bytes(size, "big") - 2, 0)
        if marker not in _FRAMES and marker not in (_EXIF, _ADOBE):
            file.seek(length, io.SEEK_CUR)
            continue
        content = file.read(length)
        if marker in _FRAMES and len(content) > 5:
            channels = content[5]
        elif marker == _ADOBE and content.startswith(b"Adobe"):
            transform = content[11:12]
        elif marker == _EXIF and not exif:  # OpenCV uses the first of several EXIF segments
            exif = content.startswith(b"Exif\0\0")
            orientation, behind = (_orientation(content[6:]), behind) if exif else (0, True)
    if not channels:
        return [HEADER_CUT]
    found = []
    if channels == 4:
        found.append(YCCK if transform == b"\2" else CMYK)
    if orientation in _TURNS:
        found.append(oriented(orientation, behind))
    if not _ends(file):
        found.append(NO_END)
    return found


def _next_marker(file: BinaryIO) -> int | None:
    """Return the next marker as libjpeg finds it, skipping other bytes; None at the end of the file."""
    byte = b""
    while True:
        while byte != b"\xff":
            byte = file.read(1)
            if not byte:
                return None
        while byte == b"\xff":
            byte = file.read(1)
        if not byte:
            return None
        if byte != b"\0" and byte[0] not in _ALONE:
            return byte[0]


def _ends(file: BinaryIO) -> bool:
    """Return whether an end-of-image marker follows. In a scan's data the bytes FF D9 cannot mean anything else."""
    start = file.tell()
    if file.seek(0, io.SEEK_END) - start < 2:
        return False
    file.seek(-2, io.SEEK_END)
    if file.read(2) == b"\xff\xd9":
        return True
    file.seek(start)
    return b"\xff\xd9" in file.read()


def _orientation(tiff: bytes) -> int:
    """Return the orientation in the first directory of a TIFF structure; 0 if it has none or is damaged."""
    order = {b"II": "<", b"MM": ">"}.get(tiff[:2])
    if order is None or len(tiff) < 8:
        return 0
    magic, start = struct.unpack_from(f"{order}HI", tiff, 2)
    if magic != 42 or start + 2 > len(tiff):
        return 0
    (entries,) = struct.unpack_from(f"{order}H", tiff, start)
    for entry in range(start + 2, start + 2 + 12 * entries, 12):
        if entry + 12 > len(tiff):
            break
        if struct.unpack_from(f"{order}H", tiff, entry)[0] == 0x112:
            return struct.unpack_from(f"{order}H", tiff, entry + 8)[0]
    return 0
