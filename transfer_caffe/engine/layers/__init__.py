"""Caffe's layers on PyTorch, by the type names that prototxt files use.

`base` defines the base class. `vision`, `neuron`, `common`, `shaping` and `loss` hold the layers that compute, grouped
as in Caffe; `data` and `sources` hold the data layers; `python_layer` holds layers written in Python.
"""

from transfer_caffe.engine.layers import common, data, loss, neuron, python_layer, shaping, sources, vision
from transfer_caffe.engine.layers.base import Blob, Buffer, Context, Layer, Shape

__all__ = ["LAYERS", "Blob", "Buffer", "Context", "Layer", "Shape"]

LAYERS: dict[str, type[Layer]] = {
    layer.__name__: layer
    for module in (vision, neuron, common, shaping, loss, data, sources, python_layer)
    for layer in module.LAYERS
}
