"""The interfaces of record sources and of the layers that read images from them."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import torch

from transfer_caffe.engine.batches.transform import Transformer
from transfer_caffe.utils.errors import UserError


class Records(Protocol):
    """A source of records, numbered from 0; each is an array (channels, height, width) and a label."""

    def __len__(self) -> int:
        """Return the number of records."""
        ...

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the first record."""
        ...

    def record(self, index: int) -> tuple[np.ndarray, int]:
        """Return record ``index``."""
        ...


class ImageSource(Protocol):
    """A layer whose batches are built on a device, as far as `device_batches` uses it."""

    batch_size: int
    source: str
    transformer: Transformer
    image_type: torch.dtype
    """The type of the images that a device makes."""

    @property
    def keeps_records(self) -> bool:
        """Whether all records are kept decoded in the host's memory."""
        ...

    @property
    def shuffles(self) -> bool:
        """Whether the records of a batch are not consecutive."""
        ...

    def plan(self, batch: int) -> np.ndarray:
        """Return, for each image, its record, its window's row and column, and whether it is mirrored; (4, batch)."""
        ...

    def windows(self, batch: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return the windows that the host has cut (batch, height, width, channels), their labels, and the plan."""
        ...

    def error(self, message: str) -> UserError:
        """Return a UserError that names the layer."""
        ...
