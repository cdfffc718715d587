"""PyTorch's names for a layer's blobs: weight, bias, running_mean and so on."""

from __future__ import annotations

from transfer_caffe.engine.layers import Layer

BATCH_NORM = ("running_mean", "running_var", "num_batches_tracked")
"""Caffe stores sums of means and variances, and the sum of their weights; PyTorch means, variances and a count."""


def weight_names(layer: Layer) -> tuple[str, ...]:
    """Return the names of a layer's blobs, in Caffe's order."""
    if layer.type == "BatchNorm":
        return BATCH_NORM
    if layer.type == "Bias" or (layer.type == "Scale" and len(layer.param.bottom) > 1):
        return ("bias",)
    return ("weight", "bias")[: len(layer.blobs)]
