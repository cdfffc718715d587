"""`caffe.Detector`: a net that classifies windows of images (python/caffe/detector.py; R-CNN, Girshick et al. 2014)."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from transfer_caffe.caffe import io
from transfer_caffe.caffe.net import Net
from transfer_caffe.formats.proto.caffe_pb2 import TEST


class Detector(Net):
    """A net that classifies windows, with ``context_pad`` pixels of their surroundings on each side of its input."""

    def __init__(
        self, model_file: str | os.PathLike[str], pretrained_file: str | os.PathLike[str],
        mean: np.ndarray | None = None, input_scale: float | None = None, raw_scale: float | None = None,
        channel_swap: Sequence[int] | None = None, context_pad: int | None = None,
    ) -> None:  # fmt: skip
        """The other parameters are those of `io.Transformer`."""
        super().__init__(model_file, TEST, weights=pretrained_file)
        self.transformer = io.transformer_of(self, mean, input_scale, raw_scale, channel_swap)
        self.configure_crop(context_pad)

    def configure_crop(self, context_pad: int | None) -> None:
        """Set the context, and with which image, the mean before any preparation, it is filled beyond the border."""
        name = self.inputs[0]
        shape = tuple(self.blobs[name].shape)[1:]
        self.crop_dims = np.array(shape)[[1, 2, 0]]
        self.context_pad = context_pad
        mean = self.transformer.mean.get(name)
        self.crop_mean = np.zeros(self.crop_dims, np.float32)
        if context_pad and mean is not None:
            fill = np.broadcast_to(mean, shape).transpose(1, 2, 0)
            swap = self.transformer.channel_swap.get(name)
            fill = fill[:, :, np.argsort(swap)] if swap is not None else fill
            self.crop_mean = fill / (self.transformer.raw_scale.get(name) or 1.0)

    def detect_windows(self, images_windows: Iterable[tuple[str, Iterable[Any]]]) -> list[dict[str, Any]]:
        """Return a dict with filename, window and prediction for each window of (image file, windows) pairs.

        A window is (ymin, xmin, ymax, xmax).
        """
        found: list[dict[str, Any]] = []
        crops: list[np.ndarray] = []
        for filename, windows in images_windows:
            image = io.load_image(filename)
            for window in windows:
                crops.append(self.crop(image, window))
                found.append({"window": window, "filename": filename})
        if not found:
            return []
        name = self.inputs[0]
        prepared = np.array([self.transformer.preprocess(name, crop) for crop in crops])
        rows = self.forward_all(None, **{name: prepared})[self.outputs[0]]
        return [{**each, "prediction": row} for each, row in zip(found, rows, strict=True)]

    def detect_selective_search(self, image_fnames: Iterable[str]) -> list[dict[str, Any]]:
        """Return `detect_windows` for the windows that selective search proposes; it needs that program's module."""
        import selective_search_ijcv_with_python as search  # pyright: ignore[reportMissingImports]

        files = [os.path.abspath(name) for name in image_fnames]
        windows = search.get_windows(files, cmd="selective_search_rcnn")
        return self.detect_windows(zip(files, windows, strict=True))

    def crop(self, im: np.ndarray, window: Sequence[float] | np.ndarray) -> np.ndarray:
        """Return a window of an image; with context, in the net's input size."""
        y0, x0, y1, x1 = (int(edge) for edge in window)
        if not self.context_pad:
            return im[y0:y1, x0:x1]
        side = int(self.crop_dims[1])
        scale = side / (side - 2.0 * self.context_pad)
        halves = np.array([(window[2] - window[0] + 1) / 2.0, (window[3] - window[1] + 1) / 2.0])
        centre = np.array([window[0], window[1]]) + halves
        first, last = np.round(centre - scale * halves), np.round(centre + scale * halves)
        zoom = side / (last - first + 1)
        pad = [round(each) for each in np.maximum(0, -first) * zoom]
        low, high = np.clip(first, 0, im.shape[:2]), np.clip(last, 0, im.shape[:2])
        inside = high - low + 1
        sizes = [min(round(each), side - before) for each, before in zip(inside * zoom, pad, strict=True)]
        part = im[int(low[0]) : int(high[0]), int(low[1]) : int(high[1])]
        if not part.size:
            raise ValueError(f"window {[int(edge) for edge in window]} lies outside of the image")
        out = np.ones(self.crop_dims, np.float32) * self.crop_mean
        out[pad[0] : pad[0] + sizes[0], pad[1] : pad[1] + sizes[1]] = io.resize_image(part, sizes)
        return out
