"""Caffe's weight fillers (include/caffe/filler.hpp), sampled with a generator that the caller passes.

The distributions are the same as Caffe's. The values are not, since Caffe uses a different random number generator.
"""

from __future__ import annotations

import math

import torch

from transfer_caffe.formats.proto.caffe_pb2 import FillerParameter
from transfer_caffe.utils.errors import UserError

Shape = tuple[int, ...]


def fill(shape: Shape, filler: FillerParameter, generator: torch.Generator, where: str) -> torch.Tensor:
    """Return a float32 tensor of ``shape``, initialised by ``filler``; ``where`` names layer and blob in errors."""
    kind = filler.type
    if kind not in _FILLERS:
        raise UserError(f"{where}: unknown filler type {kind!r}; known: {', '.join(sorted(_FILLERS))}")
    if filler.sparse > _num(shape):
        raise UserError(f"{where}: sparse {filler.sparse} is more than the {_num(shape)} outputs of the layer")
    if filler.sparse != -1 and kind != "gaussian":
        raise UserError(f"{where}: sparse is only valid for the gaussian filler, not for {kind!r}")
    return _FILLERS[kind](shape, filler, generator, where)


def _constant(shape: Shape, filler: FillerParameter, generator: torch.Generator, where: str) -> torch.Tensor:
    return torch.full(shape, filler.value)


def _uniform(shape: Shape, filler: FillerParameter, generator: torch.Generator, where: str) -> torch.Tensor:
    return torch.empty(shape).uniform_(filler.min, filler.max, generator=generator)


def _gaussian(shape: Shape, filler: FillerParameter, generator: torch.Generator, where: str) -> torch.Tensor:
    values = torch.empty(shape).normal_(filler.mean, filler.std, generator=generator)
    if filler.sparse >= 0:
        # each weight is kept with probability sparse / number of outputs (shape[0])
        keep = torch.empty(shape).uniform_(generator=generator) < filler.sparse / _num(shape)
        values *= keep
    return values


def _positive_unitball(shape: Shape, filler: FillerParameter, generator: torch.Generator, where: str) -> torch.Tensor:
    rows = torch.empty(_num(shape), math.prod(shape[1:])).uniform_(generator=generator)
    return (rows / rows.sum(dim=1, keepdim=True)).reshape(shape)


def _num(shape: Shape) -> int:
    """Return Blob::num; a blob without axes has one item."""
    return shape[0] if shape else 1


def _fan(shape: Shape, filler: FillerParameter) -> float:
    """Return the n of the xavier and msra fillers: count/num, count/channels (shape[1]), or their mean."""
    fan_in = math.prod(shape) / _num(shape)
    # a blob with one axis has channels 1 (Blob::channels is LegacyShape(1))
    fan_out = math.prod(shape) / (shape[1] if len(shape) > 1 else 1)
    if filler.variance_norm == FillerParameter.FAN_OUT:
        return fan_out
    return (fan_in + fan_out) / 2 if filler.variance_norm == FillerParameter.AVERAGE else fan_in


def _xavier(shape: Shape, filler: FillerParameter, generator: torch.Generator, where: str) -> torch.Tensor:
    scale = math.sqrt(3 / _fan(shape, filler))
    return torch.empty(shape).uniform_(-scale, scale, generator=generator)


def _msra(shape: Shape, filler: FillerParameter, generator: torch.Generator, where: str) -> torch.Tensor:
    return torch.empty(shape).normal_(0, math.sqrt(2 / _fan(shape, filler)), generator=generator)


def _bilinear(shape: Shape, filler: FillerParameter, generator: torch.Generator, where: str) -> torch.Tensor:
    if len(shape) != 4 or shape[2] != shape[3]:
        raise UserError(f"{where}: the bilinear filler needs a blob of 4 axes with square kernels, not {list(shape)}")
    size = shape[3]
    factor = math.ceil(size / 2)
    centre = (size - 1) / (2 * factor)
    ramp = 1 - (torch.arange(size) / factor - centre).abs()
    return (ramp[:, None] * ramp[None, :]).expand(shape).contiguous()


_FILLERS = {
    "constant": _constant,
    "uniform": _uniform,
    "gaussian": _gaussian,
    "positive_unitball": _positive_unitball,
    "xavier": _xavier,
    "msra": _msra,
    "bilinear": _bilinear,
}
