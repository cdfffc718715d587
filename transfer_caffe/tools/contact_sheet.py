"""Many small pictures with a caption each on one PNG: a contact sheet."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import cv2
import numpy as np

SIDE = 128  # pixels; pictures are scaled to fit a square of this side
_LINE = 15  # height of a line of text
_GAP = 10
_PAPER, _INK = 255, 0


def contact_sheet(pictures: Iterable[tuple[np.ndarray | None, Sequence[str]]], count: int) -> bytes:
    """The PNG file of a sheet of ``count`` pictures: each a C x H x W image, or None for one that cannot be shown, and
    two lines of caption.

    Colour channels are BGR. Rows and columns are about as many.
    """
    columns = math.ceil(math.sqrt(count))
    rows = math.ceil(count / columns)
    width, height = SIDE + _GAP, SIDE + 2 * _LINE + _GAP
    sheet = np.full((rows * height + _GAP, columns * width + _GAP, 3), _PAPER, np.uint8)
    for place, (image, captions) in enumerate(pictures):
        top, left = _GAP + place // columns * height, _GAP + place % columns * width
        thumb = cross() if image is None else thumbnail(image)
        y, x = top + SIDE - thumb.shape[0], left + (SIDE - thumb.shape[1]) // 2
        sheet[y : y + thumb.shape[0], x : x + thumb.shape[1]] = thumb
        for line, text in enumerate(captions):
            _write(sheet, text, left, top + SIDE + line * _LINE)
    return cv2.imencode(".png", sheet)[1].tobytes()


def thumbnail(image: np.ndarray) -> np.ndarray:
    """A C x H x W image as H x W x 3 of 8 bits: large ones at most `SIDE` wide and high, small ones magnified.

    Numbers other than uint8 are scaled so that the least is black and the greatest white. Of images with neither one,
    three nor four channels the first is shown.
    """
    if image.dtype != np.uint8:
        image = _as_bytes(image)
    channels = image[:3] if image.shape[0] in (3, 4) else image[[0, 0, 0]]
    pixels = np.ascontiguousarray(channels.transpose(1, 2, 0))
    height, width = pixels.shape[:2]
    if max(height, width) > SIDE:
        scale = SIDE / max(height, width)
        size = (max(round(width * scale), 1), max(round(height * scale), 1))
        return cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)
    times = SIDE // max(height, width)
    return pixels.repeat(times, 0).repeat(times, 1)


def _as_bytes(image: np.ndarray) -> np.ndarray:
    finite = np.isfinite(image)
    low, high = (image[finite].min(), image[finite].max()) if finite.any() else (0, 0)
    scaled = (np.where(finite, image, low).astype(np.float64) - low) * (255 / (float(high) - float(low) or 1))
    return scaled.round().astype(np.uint8)


def cross() -> np.ndarray:
    """What stands in the place of a picture that cannot be shown."""
    square = np.full((SIDE, SIDE, 3), 224, np.uint8)
    for start, end in (((0, 0), (SIDE - 1, SIDE - 1)), ((0, SIDE - 1), (SIDE - 1, 0))):
        cv2.line(square, start, end, (0, 0, 192), 2, cv2.LINE_AA)
    return square


def _write(sheet: np.ndarray, text: str, left: int, top: int) -> None:
    """Text in the middle of `SIDE` pixels; smaller where it would not fit."""
    font, scale = cv2.FONT_HERSHEY_SIMPLEX, 0.42
    width = cv2.getTextSize(text, font, scale, 1)[0][0]
    if width > SIDE:
        scale *= SIDE / width
        width = SIDE
    place = (left + (SIDE - width) // 2, top + _LINE - 3)
    cv2.putText(sheet, text, place, font, scale, (_INK, _INK, _INK), 1, cv2.LINE_AA)
