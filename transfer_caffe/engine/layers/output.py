"""The layer that writes: HDF5Output (caffe/layers/hdf5_output_layer.cpp)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from transfer_caffe.engine.layers.base import Layer, Shape
from transfer_caffe.utils.files import whole_file


class HDF5Output(Layer):
    """Write the bottoms of a batch as the datasets ``data`` and ``label`` of an HDF5 file, float32 in four axes.

    It writes one batch: real Caffe stops at the second one, because the datasets exist.
    """

    bottoms = (2, 2)
    tops = (0, 0)

    def setup(self, shapes: Sequence[Shape]) -> None:
        self.path = self.param.hdf5_output_param.file_name
        if not self.path:
            raise self.error("hdf5_output_param has no file_name")
        if max(len(shape) for shape in shapes) > 4:
            raise self.error(f"needs bottoms of at most 4 axes, not {', '.join(str(list(each)) for each in shapes)}")
        if len({(*shape, 1)[0] for shape in shapes}) > 1:
            raise self.error(f"needs bottoms with the same number of items, not {[shape[0] for shape in shapes]}")
        self.written = False

    def top_shapes(self, shapes: Sequence[Shape]) -> list[Shape]:
        return []

    def forward(self, bottoms: list[Tensor], batch: int) -> list[Tensor]:
        import h5py  # imported here, since few nets need it

        if self.written:
            raise self.error(f"has written {self.path}: it writes one batch only; run the net for one iteration")
        with whole_file(self.path) as temporary, h5py.File(temporary, "w") as file:
            for name, bottom in zip(("data", "label"), bottoms, strict=True):
                values = bottom.detach().float().cpu().numpy()
                file[name] = np.ascontiguousarray(values.reshape(*values.shape, *(1,) * (4 - values.ndim)))
        self.written = True
        return []


LAYERS = (HDF5Output,)
