"""Build an image layer's batches on the device on which the net runs.

If the records are in the device's memory (`resident.Copy`), batches are built from them, otherwise from windows that
the host has cut, as bytes; if a part of the records is there, from both. In all cases `staging` copies a batch's inputs
to the device, and `make` does the rest with device operations only, on tensors at fixed addresses.
"""

from __future__ import annotations

import weakref
from functools import partial

import numpy as np
import torch
from torch import Tensor

from transfer_caffe.engine.batches import resident
from transfer_caffe.engine.batches.records import ImageSource
from transfer_caffe.engine.batches.staging import Staging
from transfer_caffe.engine.batches.transform import OnDevice

FROM_MEMORY = 4
"""Number of batches that are prefetched from records in the host's memory, one thread each."""


class DeviceBatches:
    """Builds the batches of ``layer``."""

    def __init__(self, layer: ImageSource, device: torch.device, copy: resident.Copy | None, dtype: np.dtype) -> None:
        """``copy`` holds records on the device; if None, the host cuts windows of ``dtype``, bytes or floats."""
        batch = layer.batch_size
        split = None if copy is None else copy.split
        self.on_device = copy is not None and split is None
        """Whether all records are on the device."""
        self._windows: Tensor | None = None
        # no reference cycle with the layer: the records' memory is freed as soon as the layer is
        layer_proxy = weakref.proxy(layer)
        self._transform = OnDevice(layer.transformer, device, layer.image_type)
        self.drawn = torch.zeros((4, batch), dtype=torch.int64, device=device)
        """The batch's `Images.plan`."""
        if copy is not None:
            assert copy.pixels is not None and copy.labels is not None
            self._pixels, self._labels = copy.pixels, torch.from_numpy(copy.labels).to(device)
        channels, height, width = layer.transformer.out_shape
        if copy is not None and split is not None:
            assert copy.rest is not None
            # in a fixed order each batch has the same share from the host; in a random order it may have all
            most = batch if layer.shuffles else batch - split.before(batch)
            self._windows = torch.zeros((most, height, width, channels), dtype=torch.uint8, device=device)
            self._slots = torch.zeros(batch, dtype=torch.int64, device=device)
            """For each image its record on the device, or -1 - the number of its window."""
            targets = [self.drawn, self._slots, self._windows]
            self.staging = Staging(targets, partial(_mix, layer_proxy, split, copy.rest.numpy()), FROM_MEMORY)
        elif copy is not None:
            self.staging = Staging([self.drawn], partial(_plan, layer_proxy), ahead=0)
        else:
            kind = torch.from_numpy(np.empty(0, dtype)).dtype
            self._pixels = torch.zeros((batch, height, width, channels), dtype=kind, device=device)
            self._labels = torch.zeros(batch, device=device)
            ahead = FROM_MEMORY if layer.keeps_records else resident.threads()
            targets = [self.drawn, self._pixels, self._labels]
            self.staging = Staging(targets, partial(_cut, layer_proxy), ahead)

    def make(self) -> list[Tensor]:
        """Return images and labels of the batch that was sent last."""
        place, window = self.drawn[0], self.drawn[1:]
        if self._windows is not None:
            images = self._transform.mix(self._pixels, self._windows, self._slots, window)
            return [images, self._labels[place]]
        if self.on_device:
            return [self._transform.cut(self._pixels, place, window), self._labels[place]]
        # clone: the next batch overwrites the labels, but tops must not change
        return [self._transform.finish(self._pixels, window), self._labels.clone()]


def _plan(layer: ImageSource, arrays: list[np.ndarray], batch: int) -> None:
    arrays[0][:] = layer.plan(batch)


def _mix(layer: ImageSource, split: resident.Split, rest: np.ndarray, arrays: list[np.ndarray], batch: int) -> None:
    """Cut the windows of the records in ``rest``; the device has the other records."""
    plan = layer.plan(batch)
    on_device, slots = split.slots(plan[0])
    windows = layer.transformer.cut(rest, slots[~on_device], plan[1:, ~on_device])
    arrays[0][:] = plan
    arrays[1][:] = np.where(on_device, slots, -np.cumsum(~on_device))
    arrays[2][: len(windows)] = windows


def _cut(layer: ImageSource, arrays: list[np.ndarray], batch: int) -> None:
    windows, labels, plan = layer.windows(batch)
    if windows.dtype != arrays[1].dtype and arrays[1].dtype == np.uint8:
        raise layer.error(
            f"{layer.source} has a record of floats in batch {batch}, but the first record holds bytes; rebuild the "
            "database, or train on the CPU"
        )
    for array, values in zip(arrays, (plan, windows, labels), strict=True):
        array[:] = values
