"""Contact sheets: many thumbnails with captions on one PNG."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import cv2
import numpy as np

SIDE = 128  # pixels; pictures are scaled to fit into a square with this side
_LINE = 15  # height of a line of text in pixels
_GAP = 10
_PAPER, _INK = 255, 0


def contact_sheet(pictures: Iterable[tuple[np.ndarray | None, Sequence[str]]], count: int) -> bytes:
    """Return a contact sheet of ``count`` pictures as the bytes of a PNG file.

    Each picture is a C x H x W image (BGR), or None if it cannot be shown, and two lines of caption. The numbers of
    rows and columns are about equal.
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
    """Return a C x H x W image as an H x W x 3 thumbnail, uint8.

    Large images are reduced to at most `SIDE` pixels, small ones magnified. Values other than uint8 are scaled so that
    the minimum is black and the maximum white. Only the first channel is shown unless there are three or four.
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
    """Scale an image's finite values to 0 to 255; values that are not finite become 0."""
    finite = np.isfinite(image)
    low, high = (image[finite].min(), image[finite].max()) if finite.any() else (0, 0)
    scaled = (np.where(finite, image, low).astype(np.float64) - low) * (255 / (float(high) - float(low) or 1))
    return scaled.round().astype(np.uint8)


def cross() -> np.ndarray:
    """Return the placeholder for a picture that cannot be shown: a red cross."""
    square = np.full((SIDE, SIDE, 3), 224, np.uint8)
    for start, end in (((0, 0), (SIDE - 1, SIDE - 1)), ((0, SIDE - 1), (SIDE - 1, 0))):
        cv2.line(square, start, end, (0, 0, 192), 2, cv2.LINE_AA)
    return square


def _write(sheet: np.ndarray, text: str, left: int, top: int) -> None:
    """Draw a line of text, centred in `SIDE` pixels, in a smaller size if it would not fit."""
    font, scale = cv2.FONT_HERSHEY_SIMPLEX, 0.42
    width = cv2.getTextSize(text, font, scale, 1)[0][0]
    if width > SIDE:
        scale *= SIDE / width
        width = SIDE
    place = (left + (SIDE - width) // 2, top + _LINE - 3)
    cv2.putText(sheet, text, place, font, scale, (_INK, _INK, _INK), 1, cv2.LINE_AA)
