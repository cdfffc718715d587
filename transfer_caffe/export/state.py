"""A layer's blobs as PyTorch's tensors, and back: names as in a state_dict, and the shapes of PyTorch's modules.

tensors_of(layer)                       {"weight": ..., "bias": ...}
blobs_of(layer.param, tensors, sums)    Caffe's blobs, in Caffe's order
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import numpy as np

from transfer_caffe.engine.layers import Layer
from transfer_caffe.formats.proto.caffe_pb2 import LayerParameter

RECURRENT = ("weight_ih", "bias_ih", "weight_static", "weight_hh", "weight_ho", "bias_ho")
"""Blobs of recurrent layers: ``weight_static`` for an input that is the same in all steps, the last two for RNN."""

BATCH_NORM = ("running_mean", "running_var", "num_batches_tracked")
"""Caffe stores sums of means and variances, and the sum of their weights; PyTorch means, variances and a count."""


def tensor_names(param: LayerParameter, blobs: int) -> tuple[str, ...]:
    """Return the names of a layer's blobs, in Caffe's order; ``blobs`` is their number."""
    if param.type == "BatchNorm":
        return BATCH_NORM
    if param.type in ("RNN", "LSTM"):
        names = RECURRENT if param.type == "RNN" else RECURRENT[:4]
        return tuple(name for name in names if name != "weight_static" or blobs == len(names))
    if param.type == "Bias" or (param.type == "Scale" and len(param.bottom) > 1):
        return ("bias",)[:blobs]
    return ("weight", "bias")[:blobs]


def statistics(sums: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Return the means and variances of a BatchNorm's blobs, as the engine computes them."""
    means, variances, weight = sums
    factor = np.float32(0 if weight[0] == 0 else 1 / weight[0])
    return means * factor, variances * factor


def tensors_of(layer: Layer) -> dict[str, np.ndarray]:
    """Return a layer's weights under PyTorch's names; they share memory with the layer's blobs where they can."""
    arrays = [blob.data.detach().numpy() for blob in layer.blobs]
    if layer.type == "BatchNorm":
        return dict(zip(BATCH_NORM, (*statistics(arrays), np.zeros((), np.int64)), strict=True))
    if layer.type == "InnerProduct" and layer.param.inner_product_param.transpose:
        arrays[0] = arrays[0].T
    if layer.type == "PReLU":
        arrays[0] = arrays[0].reshape(-1)  # PyTorch's PReLU has a vector with one element
    return dict(zip(tensor_names(layer.param, len(arrays)), arrays, strict=True))


def blobs_of(
    param: LayerParameter, tensors: Mapping[str, np.ndarray], sums: Sequence[np.ndarray] = ()
) -> list[np.ndarray]:
    """Return Caffe's blobs for the tensors of a layer; the opposite of `tensors_of`.

    ``sums``: the blobs that a BatchNorm was made from. If its statistics have not changed, they are returned, since the
    sums cannot be computed from means without rounding.
    """
    if param.type == "BatchNorm":
        mean, variance = tensors["running_mean"], tensors["running_var"]
        if sums and all(map(np.array_equal, statistics(sums), (mean, variance))):
            return list(sums)
        return [mean, variance, np.ones(1, np.float32)]
    arrays = [tensors[name] for name in ("weight", "bias", *RECURRENT) if name in tensors]
    if param.type == "InnerProduct" and param.inner_product_param.transpose:
        arrays[0] = arrays[0].T
    if param.type == "PReLU" and param.prelu_param.channel_shared:
        arrays[0] = arrays[0].reshape(())
    return arrays


def module_names(layers: Sequence[Layer], reserved: Collection[str] = ()) -> list[str]:
    """Return a name for each layer's module: the layer's name, changed where PyTorch does not accept it.

    Module names must be unique, contain no dot, and not be one of ``reserved``, the attributes of a module.
    """
    names: list[str] = []
    for layer in layers:
        name = layer.key.replace(".", "_") or "layer"
        while name in reserved or name in names:
            name += "_"
        names.append(name)
    return names
