"""WindowData: windows of images, sampled from foreground and background (caffe/layers/window_data_layer.cpp).

Everything random is a function of (seed, layer, phase, batch); see `engine.rng`.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from transfer_caffe.engine import rng
from transfer_caffe.engine.layers.base import Layer, Shape
from transfer_caffe.formats.proto import read_mean
from transfer_caffe.utils.errors import UserError
from transfer_caffe.utils.files import read_text


class _Window(NamedTuple):
    """A window of an image: the image's number, the label, and the corners, which belong to the window, in pixels."""

    image: int
    label: int
    x1: int
    y1: int
    x2: int
    y2: int


class WindowData(Layer):
    """Batches of windows, warped to crop_size x crop_size, and their labels; background windows have label 0.

    The window file has, for each image: `# NUMBER`, its path, its channels, height and width (one per line), the number
    of windows, and a line `label overlap x1 y1 x2 y2` for each. The last batch_size * fg_fraction windows of a batch
    are from the foreground (overlap of at least fg_threshold), the others from the background (below bg_threshold).
    """

    bottoms = (0, 0)
    tops = (2, 2)

    def setup(self, shapes: Sequence[Shape]) -> None:
        param, transform = self.param.window_data_param, self.param.transform_param
        self.size, self.crop, self.pad = param.batch_size, transform.crop_size, param.context_pad
        self.square = param.crop_mode == "square"
        if param.crop_mode not in ("warp", "square"):
            raise self.error(f"crop_mode must be warp or square, not {param.crop_mode!r}")
        if self.size < 1 or self.crop < 1:
            raise self.error("needs batch_size in window_data_param, and crop_size in transform_param")
        if 2 * self.pad >= self.crop:
            raise self.error(f"context_pad {self.pad} must be less than half of crop_size {self.crop}")
        if transform.mean_file and transform.mean_value:
            raise self.error("give mean_file or mean_value, not both")
        self.images: list[str] = []
        self.foreground: list[_Window] = []
        self.background: list[_Window] = []
        self.channels = self._read(param.source, param.root_folder)
        self.count = int(np.float32(self.size) * np.float32(param.fg_fraction))
        for what, windows, count in (
            ("foreground", self.foreground, self.count),
            ("background", self.background, self.size - self.count),
        ):
            if count and not windows:
                raise self.error(f"{param.source} has no {what} window, but each batch needs {count}")
        self.mean = self._mean()
        self._image = functools.lru_cache(maxsize=None if param.cache_images else 4)(self._load)

    def _read(self, source: str, root: str) -> int:
        """Read the window file; return the number of channels of the last image."""
        param, channels = self.param.window_data_param, 0
        words = iter(read_text(source).split())
        try:
            for mark in words:
                if mark != "#":
                    raise ValueError
                next(words)
                self.images.append(root + next(words))
                channels, _, _, count = (int(next(words)) for _ in range(4))
                for _ in range(count):
                    label, overlap, *corners = (float(next(words)) for _ in range(6))
                    if not label.is_integer():
                        raise ValueError
                    window = _Window(len(self.images) - 1, int(label), *(int(corner) for corner in corners))
                    if overlap >= param.fg_threshold:
                        if window.label < 1:
                            raise self.error(f"{source}: a foreground window of {self.images[-1]} has label {label:g}")
                        self.foreground.append(window)
                    elif overlap < param.bg_threshold:
                        self.background.append(window._replace(label=0))
        except (ValueError, StopIteration, RuntimeError):
            raise self.error(f"{source}: not a valid window file, at image {len(self.images)}") from None
        if not self.images:
            raise self.error(f"{source} lists no image")
        return channels

    def _mean(self) -> np.ndarray | None:
        """Return the mean in the shape (channels, crop or 1, crop or 1), or None."""
        transform = self.param.transform_param
        if transform.mean_value:
            values = np.array(transform.mean_value, np.float32)
            if len(values) not in (1, self.channels):
                raise self.error(f"needs one mean_value, or one for each of the {self.channels} channels")
            return np.broadcast_to(values, self.channels)[:, None, None]
        if not transform.mean_file:
            return None
        mean = read_mean(transform.mean_file)
        if mean.shape[0] != self.channels or mean.shape[1] != mean.shape[2] or mean.shape[1] < self.crop:
            raise self.error(
                f"{transform.mean_file} is {list(mean.shape)}; a square of {self.channels} channels and at least "
                f"{self.crop} pixels is needed"
            )
        first = (mean.shape[2] - self.crop) // 2
        return mean[:, first : first + self.crop, first : first + self.crop]

    def top_shapes(self, shapes: Sequence[Shape]) -> list[Shape]:
        return [(self.size, self.channels, self.crop, self.crop), (self.size,)]

    def forward(self, bottoms: list[Tensor], batch: int) -> list[Tensor]:
        draw = rng.numpy_generator(
            self.context.seed, "windows", self.key, "train" if self.context.training else "test", batch
        )
        data, labels = (np.zeros(shape, np.float32) for shape in self.top_shapes([]))
        for item in range(self.size):
            windows = self.background if item < self.size - self.count else self.foreground
            window = windows[draw.integers(len(windows))]
            mirrored = self.param.transform_param.mirror and bool(draw.integers(2))
            pixels, top, left = self._warped(window, mirrored)
            place = (slice(None), slice(top, top + pixels.shape[1]), slice(left, left + pixels.shape[2]))
            if self.mean is not None:
                pixels = pixels - (self.mean[place] if self.mean.shape[1] > 1 else self.mean)
            data[item][place] = pixels * np.float32(self.param.window_data_param.scale)
            labels[item] = window.label
        return [torch.from_numpy(each).to(self.context.device) for each in (data, labels)]

    def _warped(self, window: _Window, mirrored: bool) -> tuple[np.ndarray, int, int]:
        """Return the pixels of a window (channels, height, width), and their first row and column in the top."""
        import cv2

        image = self._image(window.image)
        height, width = image.shape[:2]
        x1, y1, x2, y2 = window[2:]
        wide = high = self.crop
        top = left = 0
        if self.pad or self.square:
            x1, x2, y1, y2 = self._with_context(window)
            scale = np.float32(self.crop) / np.float32(x2 - x1 + 1), np.float32(self.crop) / np.float32(y2 - y1 + 1)
            # what lies outside of the image stays 0
            outside = max(0, -x1), max(0, x2 - width + 1), max(0, -y1), max(0, y2 - height + 1)
            x1, x2, y1, y2 = x1 + outside[0], x2 - outside[1], y1 + outside[2], y2 - outside[3]
            wide, high = _round((x2 - x1 + 1) * scale[0]), _round((y2 - y1 + 1) * scale[1])
            left, top = _round(outside[1 if mirrored else 0] * scale[0]), _round(outside[2] * scale[1])
            wide, high = min(wide, self.crop - left), min(high, self.crop - top)
        if not (0 <= x1 <= x2 < width and 0 <= y1 <= y2 < height) or min(wide, high) < 1:
            raise self.error(
                f"window {list(window[2:])} is not inside of {self.images[window.image]}, {width} x {height}"
            )
        pixels = cv2.resize(image[y1 : y2 + 1, x1 : x2 + 1], (wide, high), interpolation=cv2.INTER_LINEAR)
        if mirrored:
            pixels = pixels[:, ::-1]
        return pixels.transpose(2, 0, 1).astype(np.float32), top, left

    def _with_context(self, window: _Window) -> tuple[int, int, int, int]:
        """Return the corners x1, x2, y1, y2 of a window that is wider by its context, and square if it must be."""
        scale = np.float32(self.crop) / np.float32(self.crop - 2 * self.pad)
        half_width = np.float32(window.x2 - window.x1 + 1) / np.float32(2)
        half_height = np.float32(window.y2 - window.y1 + 1) / np.float32(2)
        x, y = np.float32(window.x1) + half_width, np.float32(window.y1) + half_height
        if self.square:
            half_width = half_height = max(half_width, half_height)
        return (
            _round(x - half_width * scale), _round(x + half_width * scale),
            _round(y - half_height * scale), _round(y + half_height * scale),
        )  # fmt: skip

    def _load(self, number: int) -> np.ndarray:
        import cv2

        content = np.frombuffer(Path(self.images[number]).read_bytes(), np.uint8)
        image = cv2.imdecode(content, cv2.IMREAD_COLOR) if content.size else None
        if image is None:
            raise UserError(f"{self.images[number]}: cannot be read as an image")
        if image.shape[2] != self.channels:
            raise self.error(f"{self.images[number]} has 3 channels, not {self.channels}")
        return image


def _round(value: float | np.floating) -> int:
    """Return the nearest integer; halves are rounded away from 0, as C does."""
    return int(math.copysign(math.floor(abs(float(value)) + 0.5), value))


LAYERS = (WindowData,)
