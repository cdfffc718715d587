"""The type of an encoded image, and the quality with which a JPEG was saved, determined from the first bytes."""

from __future__ import annotations

import bisect

_SIGNATURES = {
    b"\xff\xd8\xff": "JPEG",
    b"\x89PNG\r\n\x1a\n": "PNG",
    b"BM": "BMP",
    b"GIF8": "GIF",
    b"II*\0": "TIFF",
    b"MM\0*": "TIFF",
}

# The luminance table of the JPEG standard (ITU-T T.81, annex K.1), which libjpeg scales by the quality.
_LUMINANCE = (
    *(16, 11, 10, 16, 24, 40, 51, 61, 12, 12, 14, 19, 26, 58, 60, 55, 14, 13, 16, 24, 40, 57, 69, 56, 14, 17, 22, 29),
    *(51, 87, 80, 62, 18, 22, 37, 56, 68, 109, 103, 77, 24, 35, 55, 64, 81, 104, 113, 92, 49, 64, 78, 87, 103, 121),
    *(120, 101, 72, 92, 95, 98, 112, 100, 103, 99),
)


def image_type(data: bytes) -> str:
    """Return the type of an encoded image: JPEG, PNG, ..., or `unknown type`."""
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WebP"
    return next((name for start, name in _SIGNATURES.items() if data.startswith(start)), "unknown type")


def jpeg_quality(data: bytes) -> int | None:
    """Return the quality, 1 to 100, at which libjpeg's luminance table is closest to this JPEG's; None if it has none.

    For a file written by libjpeg (OpenCV, Pillow, ImageMagick) this is the quality with which it was saved. Cameras
    have their own tables.
    """
    place = 2
    while data[place : place + 1] == b"\xff" and (length := int.from_bytes(data[place + 2 : place + 4], "big")) >= 2:
        kind, segment = data[place + 1], data[place + 4 : place + 2 + length]
        place += 2 + length
        if kind == 0xDA:  # pixels follow
            break
        if kind != 0xDB:
            continue
        # consecutive tables: a byte (upper half: 1 for 16-bit numbers; lower half: the table's number), then 64 numbers
        while len(segment) > 64:
            size = 2 if segment[0] >> 4 else 1
            numbers, which = segment[1 : 1 + 64 * size], segment[0] & 15
            if which == 0 and len(numbers) == 64 * size:
                return _nearest(sum(numbers[i] << 8 * ((i + 1) % size) for i in range(64 * size)))
            segment = segment[1 + 64 * size :]
    return None


def _scaled_sum(quality: int) -> int:
    """Return the sum of the table that libjpeg uses for a quality (jpeg_set_quality, for baseline files)."""
    scale = 5000 // quality if quality < 50 else 200 - 2 * quality
    return sum(min(max((value * scale + 50) // 100, 1), 255) for value in _LUMINANCE)


_SUMS = [_scaled_sum(quality) for quality in range(100, 0, -1)]  # ascending


def _nearest(total: int) -> int:
    """Return the quality whose table has the sum closest to ``total``."""
    place = bisect.bisect_left(_SUMS, total)
    near = [each for each in (place - 1, place) if 0 <= each < 100]
    return 100 - min(near, key=lambda each: abs(_SUMS[each] - total))
