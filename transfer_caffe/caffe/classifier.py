"""`caffe.Classifier`: a net that classifies images (python/caffe/classifier.py)."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from transfer_caffe.caffe import io
from transfer_caffe.caffe.net import Net
from transfer_caffe.formats.proto.caffe_pb2 import TEST


class Classifier(Net):
    """A net with one image input and one output; ``transformer`` prepares the images."""

    def __init__(
        self, model_file: str | os.PathLike[str], pretrained_file: str | os.PathLike[str],
        image_dims: Sequence[int] | None = None, mean: np.ndarray | None = None, input_scale: float | None = None,
        raw_scale: float | None = None, channel_swap: Sequence[int] | None = None,
    ) -> None:  # fmt: skip
        """``image_dims`` is the size (height, width) to which images are resized before they are cropped."""
        super().__init__(model_file, TEST, weights=pretrained_file)
        self.transformer = io.transformer_of(self, mean, input_scale, raw_scale, channel_swap)
        self.crop_dims = np.array(tuple(self.blobs[self.inputs[0]].shape)[2:])
        self.image_dims: Any = self.crop_dims if image_dims is None or not len(image_dims) else image_dims

    def predict(self, inputs: Sequence[np.ndarray], oversample: bool = True) -> np.ndarray:
        """Return the net's output for images (height, width, channels), one row for each.

        With ``oversample``, a row is the mean over ten crops (`io.oversample`), otherwise that of the centre.
        """
        images = np.array([io.resize_image(image, self.image_dims) for image in inputs])
        crops = io.oversample(images, self.crop_dims) if oversample else io.centre_crop(images, self.crop_dims)
        name = self.inputs[0]
        prepared = np.array([self.transformer.preprocess(name, crop) for crop in crops])
        rows = self.forward_all(None, **{name: prepared})[self.outputs[0]]
        return rows.reshape(len(rows) // 10, 10, -1).mean(1) if oversample else rows
