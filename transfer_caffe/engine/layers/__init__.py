"""Caffe's layers on PyTorch, by the names that prototxt files give them: what each computes, and what it learns.

base.py says what a layer is; vision, neuron, common, shaping and loss are those that compute, as Caffe groups them;
data and sources are those that read.
"""

from transfer_caffe.engine.layers import common, data, loss, neuron, shaping, sources, vision
from transfer_caffe.engine.layers.base import Blob, Buffer, Context, Layer, Shape

__all__ = ["LAYERS", "Blob", "Buffer", "Context", "Layer", "Shape"]

LAYERS: dict[str, type[Layer]] = {
    layer.__name__: layer
    for module in (vision, neuron, common, shaping, loss, data, sources)
    for layer in module.LAYERS
}
