"""A Caffe database, or a view of one, as a PyTorch dataset.

dataset = Dataset("data/birds/whole/train_lmdb")
image, label = dataset[7]           # uint8 tensor (channels, height, width), channels as BGR; int
loader = torch.utils.data.DataLoader(dataset, batch_size=64, shuffle=True, num_workers=4)
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.utils.data
from torch import Tensor

from transfer_caffe.formats.database import Database
from transfer_caffe.formats.views import View, open_records


class Dataset(torch.utils.data.Dataset[tuple[Any, int]]):
    """The records of an LMDB of Datums (or of a view), in the order of their keys, to the byte.

    An image is a tensor (channels, height, width): uint8, or float32 if the record has floats. Color images have their
    channels in the order BGR, as Caffe stores them. ``color``: True decodes encoded images to three channels, False to
    one; by default each keeps its own. ``transform``: a function that is applied to each image.

    Raise UserError if the path is no database, or a record is damaged. Workers may get a copy, by fork or by pickling:
    each process opens the database itself, since LMDB must not be used across a fork.
    """

    def __init__(
        self, path: str | os.PathLike[str], color: bool | None = None, transform: Callable[[Tensor], Any] | None = None
    ) -> None:
        """Open the database, so that errors appear here, and not in a worker."""
        self.path, self.color, self.transform = os.path.abspath(path), color, transform
        self._records: Database | View | None = open_records(path, color)
        self._process = os.getpid()
        self._length = len(self._records)

    def __len__(self) -> int:
        """Return the number of records."""
        return self._length

    def __getitem__(self, index: int) -> tuple[Any, int]:
        """Return an image and its label; a negative index counts from the end."""
        place = index + self._length if index < 0 else index
        if not 0 <= place < self._length:
            raise IndexError(f"record {index} of a database of {self._length}")
        array, label = self._opened().record(int(place))
        # a record may share memory that is not writable
        image = torch.from_numpy(np.array(array))
        return (image if self.transform is None else self.transform(image)), label

    def _opened(self) -> Database | View:
        if self._process != os.getpid():
            self._records = None  # closes the database that a fork has brought, before it is opened again
        if self._records is None:
            self._records, self._process = open_records(self.path, self.color), os.getpid()
        return self._records

    def __getstate__(self) -> dict[str, Any]:
        """Return all attributes except the open database."""
        return {**self.__dict__, "_records": None}
