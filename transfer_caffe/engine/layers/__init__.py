"""Caffe's layers on PyTorch, by the type names that prototxt files use.

`base` defines the base class. `vision`, `neuron`, `common`, `shaping`, `recurrent` and `loss` hold the layers that
compute, grouped as in Caffe; `data`, `sources` and `windows` hold the data layers, and `output` the one that writes.
"""

from transfer_caffe.engine.layers import (
    common,
    data,
    loss,
    neuron,
    output,
    recurrent,
    shaping,
    sources,
    vision,
    windows,
)
from transfer_caffe.engine.layers.base import Blob, Buffer, Context, Layer, Shape

__all__ = ["LAYERS", "Blob", "Buffer", "Context", "Layer", "Shape"]

LAYERS: dict[str, type[Layer]] = {
    layer.__name__: layer
    for module in (vision, neuron, common, shaping, recurrent, loss, data, sources, windows, output)
    for layer in module.LAYERS
}
