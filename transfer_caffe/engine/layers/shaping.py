"""Layers that rearrange, select or reduce values: Concat, Slice, Reshape, Crop, Tile, Reduction, Filter, ..."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from transfer_caffe.engine.layers.base import Layer, Shape
from transfer_caffe.formats.proto.caffe_pb2 import ReductionParameter


class BatchReindex(Layer):
    """Select the items of bottom 0 whose indices are in bottom 1, in that order (batch_reindex_layer.cpp)."""

    bottoms = (2, 2)

    def setup(self, shapes: Sequence[Shape]) -> None:
        if len(shapes[1]) != 1:
            raise self.error(f"bottom 1 must have one axis, the indices to select, not shape {list(shapes[1])}")

    def forward(self, bottoms: list[Tensor], batch: int) -> list[Tensor]:
        places = bottoms[1].detach().long()
        if places.device.type == "cpu" and places.numel():
            wrong = places[(places < 0) | (places >= bottoms[0].shape[0])]
            if wrong.numel():
                raise self.error(
                    f"bottom 1 holds index {wrong[0]}, out of range for the {bottoms[0].shape[0]} items of bottom 0"
                )
        return [bottoms[0].index_select(0, places)]


class Concat(Layer):
    """Concatenate blobs along an axis."""

    precision = "given"
    bottoms = (1, None)

    def setup(self, shapes: Sequence[Shape]) -> None:
        param = self.param.concat_param
        if param.HasField("axis") and param.HasField("concat_dim"):
            raise self.error("give axis or concat_dim, not both")
        axis = self.axis(param.concat_dim if param.HasField("concat_dim") else param.axis, shapes[0])
        self.along = axis
        self.require_same_shape(
            [shape[:axis] + shape[axis + 1 :] for shape in shapes], f"bottoms that, except for axis {axis}, are"
        )

    def top_shapes(self, shapes: Sequence[Shape]) -> list[Shape]:
        first, along = shapes[0], self.along
        return [(*first[:along], sum(shape[along] for shape in shapes), *first[along + 1 :])]

    def forward(self, bottoms: list[Tensor], batch: int) -> list[Tensor]:
        return [torch.cat(bottoms, self.along)]


class Crop(Layer):
    """Crop bottom 0 to the size of bottom 1, from ``axis`` on, at ``offset`` (caffe/layers/crop_layer.cpp)."""

    bottoms = (2, 2)

    def setup(self, shapes: Sequence[Shape]) -> None:
        param, (shape, wanted) = self.param.crop_param, shapes
        first = self.axis(param.axis, shape)
        axes, offsets = len(shape) - first, list(param.offset)
        if len(offsets) > 1 and len(offsets) != axes:
            raise self.error(f"offset must be given once or for each of the {axes} axes, not {len(offsets)} times")
        if len(wanted) != len(shape):
            raise self.error(f"needs bottoms with the same number of axes, not {list(shape)} and {list(wanted)}")
        offsets = offsets if len(offsets) > 1 else (offsets or [0]) * axes
        for axis, offset in enumerate(offsets, start=first):
            if offset + wanted[axis] > shape[axis]:
                raise self.error(
                    f"offset {offset} and size {wanted[axis]} reach beyond axis {axis} of bottom 0, {list(shape)}"
                )
        self.windows = [slice(None)] * first + [
            slice(offset, offset + wanted[axis]) for axis, offset in enumerate(offsets, start=first)
        ]

    def forward(self, bottoms: list[Tensor], batch: int) -> list[Tensor]:
        return [bottoms[0][tuple(self.windows)]]


class Filter(Layer):
    """Select the items of each bottom where the last bottom, the selector, is not 0 (caffe/layers/filter_layer.cpp)."""

    bottoms = (2, None)
    tops = (1, None)

    def setup(self, shapes: Sequence[Shape]) -> None:
        selector = shapes[-1]
        if math.prod(selector) != selector[0]:
            raise self.error(f"the selector, its last bottom, must have one value per item, not {list(selector)}")
        if len(self.top) != len(shapes) - 1:
            raise self.error(f"needs {len(shapes) - 1} tops, one per bottom except the last, not {len(self.top)}")
        if any(shape[0] != selector[0] for shape in shapes):
            raise self.error(f"needs bottoms with as many items as the selector, {selector[0]}")

    def top_shapes(self, shapes: Sequence[Shape]) -> list[Shape]:
        """Return the shapes as if all items were selected, as Caffe does: the number depends on the values."""
        return list(shapes[:-1])

    def forward(self, bottoms: list[Tensor], batch: int) -> list[Tensor]:
        selected = bottoms[-1].detach().reshape(-1).nonzero().reshape(-1)
        return [bottom.index_select(0, selected) for bottom in bottoms[:-1]]


class Flatten(Layer):
    """Flatten the axes from ``axis`` to ``end_axis`` into one."""

    precision = "given"
    ignores_propagate_down = True

    def setup(self, shapes: Sequence[Shape]) -> None:
        param = self.param.flatten_param
        self.first, self.last = self.axis(param.axis, shapes[0]), self.axis(param.end_axis, shapes[0])
        # if end_axis is one before axis, Caffe inserts an axis of size 1 between them
        if self.first > self.last + 1:
            raise self.error(f"axis {param.axis} is after end_axis {param.end_axis} in a blob of {list(shapes[0])}")

    def forward(self, bottoms: list[Tensor], batch: int) -> list[Tensor]:
        if self.first > self.last:
            return [bottoms[0].unsqueeze(self.first)]
        return [bottoms[0].flatten(self.first, self.last)]


class Reduction(Layer):
    """Sum, sum of absolute values, sum of squares or mean over all axes from ``axis`` on, times ``coeff``."""

    def setup(self, shapes: Sequence[Shape]) -> None:
        self.first = self.axis(self.param.reduction_param.axis, shapes[0])

    def forward(self, bottoms: list[Tensor], batch: int) -> list[Tensor]:
        param = self.param.reduction_param
        rows = bottoms[0].flatten(self.first)
        if param.operation == ReductionParameter.ASUM:
            rows = rows.abs()
        elif param.operation == ReductionParameter.SUMSQ:
            rows = rows.square()
        top = rows.mean(-1) if param.operation == ReductionParameter.MEAN else rows.sum(-1)
        return [top if param.coeff == 1 else top * param.coeff]


class Reshape(Layer):
    """Change the shape; dim 0 copies the bottom's size, -1 is inferred (caffe/layers/reshape_layer.cpp)."""

    precision = "given"
    ignores_propagate_down = True

    def setup(self, shapes: Sequence[Shape]) -> None:
        self.new_shape(shapes[0])

    def new_shape(self, shape: Shape) -> Shape:
        """Return the top's shape for a bottom's shape."""
        param = self.param.reshape_param
        first = self.axis(param.axis, shape, ends=1) if param.axis >= 0 else len(shape) + param.axis + 1
        if not 0 <= first <= len(shape):
            raise self.error(f"axis {param.axis} is out of range for a blob of shape {list(shape)}")
        last = len(shape) if param.num_axes == -1 else first + param.num_axes
        if param.num_axes < -1 or last > len(shape):
            raise self.error(f"num_axes {param.num_axes} from axis {param.axis} on does not fit {list(shape)}")
        dims = list(param.shape.dim)
        for index, size in enumerate(dims):
            if size == 0:
                if first + index >= len(shape):
                    raise self.error(f"dim {index} is 0 (copy the size), but the bottom {list(shape)} has no such axis")
                dims[index] = shape[first + index]
        dims = [*shape[:first], *dims, *shape[last:]]
        if dims.count(-1) > 1 or min(dims, default=1) < -1:
            raise self.error(f"shape {list(param.shape.dim)} may have one -1 at most; other sizes must be 0 or more")
        known = math.prod(size for size in dims if size != -1)
        if -1 in dims:
            if not known or math.prod(shape) % known:
                raise self.error(f"{list(shape)} cannot be reshaped to {dims}")
            dims[dims.index(-1)] = math.prod(shape) // known
        if math.prod(dims) != math.prod(shape):
            raise self.error(f"{list(shape)} cannot be reshaped to {dims}: the counts differ")
        return tuple(dims)

    def forward(self, bottoms: list[Tensor], batch: int) -> list[Tensor]:
        return [bottoms[0].reshape(self.new_shape(tuple(bottoms[0].shape)))]


class Silence(Layer):
    """Consume blobs so that they are not outputs of the net."""

    bottoms = (1, None)
    tops = (0, 0)

    def forward(self, bottoms: list[Tensor], batch: int) -> list[Tensor]:
        return []


class Slice(Layer):
    """Slice a blob along an axis, at the slice points or into equal parts (caffe/layers/slice_layer.cpp)."""

    precision = "given"
    tops = (1, None)

    def setup(self, shapes: Sequence[Shape]) -> None:
        param, tops = self.param.slice_param, len(self.top)
        if param.HasField("axis") and param.HasField("slice_dim"):
            raise self.error("give axis or slice_dim, not both")
        self.along = self.axis(param.slice_dim if param.HasField("slice_dim") else param.axis, shapes[0])
        size, points = shapes[0][self.along], list(param.slice_point)
        if not points:
            if size % tops:
                raise self.error(f"axis {self.along} of {list(shapes[0])} cannot be sliced into {tops} equal parts")
            self.parts = [size // tops] * tops
            return
        if len(points) != tops - 1:
            raise self.error(f"{tops} tops need {tops - 1} slice_point, not {len(points)}")
        edges = [0, *points, size]
        self.parts = [end - start for start, end in itertools.pairwise(edges)]
        if min(self.parts) < 1:
            raise self.error(
                f"slice_point {points} must be increasing and within axis {self.along} of {list(shapes[0])}"
            )

    def forward(self, bottoms: list[Tensor], batch: int) -> list[Tensor]:
        return list(bottoms[0].split(self.parts, self.along))


class Split(Layer):
    """Make a blob available as several tops."""

    precision = "given"
    tops = (1, None)

    def forward(self, bottoms: list[Tensor], batch: int) -> list[Tensor]:
        return [bottoms[0].view_as(bottoms[0]) for _ in self.top]


class Tile(Layer):
    """Repeat a blob ``tiles`` times along an axis."""

    def setup(self, shapes: Sequence[Shape]) -> None:
        self.along = self.axis(self.param.tile_param.axis, shapes[0])
        if self.param.tile_param.tiles < 1:
            raise self.error("tile_param has no tiles")

    def forward(self, bottoms: list[Tensor], batch: int) -> list[Tensor]:
        return [torch.cat([bottoms[0]] * self.param.tile_param.tiles, self.along)]


LAYERS = (BatchReindex, Concat, Crop, Filter, Flatten, Reduction, Reshape, Silence, Slice, Split, Tile)
