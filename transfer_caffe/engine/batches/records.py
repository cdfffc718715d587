"""What the layers that read images read from, whatever holds it."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from transfer_caffe.engine.batches.transform import Transformer
from transfer_caffe.utils.errors import UserError


class Records(Protocol):
    """What a layer reads from: records numbered from 0, each an array (channels, height, width) and a label."""

    def __len__(self) -> int:
        """How many there are."""
        ...

    @property
    def shape(self) -> tuple[int, ...]:
        """That of the first record."""
        ...

    def record(self, index: int) -> tuple[np.ndarray, int]:
        """Record ``index``."""
        ...


class ImageSource(Protocol):
    """The layer whose batches are made on a device: what of it `device_batches` asks for."""

    batch_size: int
    source: str
    transformer: Transformer

    @property
    def keeps_records(self) -> bool:
        """Whether the host has all records decoded in its memory."""
        ...

    def plan(self, batch: int) -> np.ndarray:
        """(4, batch size): of each image its record, the window's row and column, and whether it is mirrored."""
        ...

    def windows(self, batch: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The windows that the host has cut (batch size, height, width, channels), their labels, and the plan."""
        ...

    def error(self, message: str) -> UserError:
        """An error that names the layer."""
        ...
