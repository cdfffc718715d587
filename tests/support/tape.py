"""A stand-in for a CUDA graph, for machines without a GPU."""

from transfer_caffe.engine.layers.data import Images
from transfer_caffe.engine.layers.neuron import Dropout


class Tape:
    """A stand-in for a CUDA graph that calls the function: results and gradients are always in the same tensors.

    Recording computes nothing; the tensors then hold NaN.
    """

    def __init__(self, net):
        self.blobs, self.layers = net.learnable, net.layers
        self.registered = []
        self.seeds = []

    def register(self, generators):
        self.registered = list(generators)

    def record(self, function):
        self.function = function
        assert all(blob.data.grad is None for blob in self.blobs), "a replay would add to these gradients"
        loss, outputs = function()
        self.results = [loss, *outputs.values(), *(blob.data.grad for blob in self.blobs)]
        for each in self.results:
            if each is not None:
                each.fill_(float("nan"))
        return loss, outputs

    def replay(self):
        self.seeds.append([generator.initial_seed() for generator in self.registered])
        for blob in self.blobs:
            blob.data.grad = None
        # a graph repeats what was recorded, with the settings at that time
        images = [layer for layer in self.layers if isinstance(layer, Images)]
        drawing = [layer for layer in self.layers if isinstance(layer, Dropout)]
        for layer in images:
            layer.prepares = False
        for layer, generator in zip(drawing, self.registered, strict=True):
            layer.generator = generator
        loss, outputs = self.function()
        for layer in images:
            layer.prepares = True
        for layer in drawing:
            layer.generator = None
        new = [loss, *outputs.values(), *(blob.data.grad for blob in self.blobs)]
        for place, value in zip(self.results, new, strict=True):
            assert (place is None) == (value is None)
            if place is not None:
                place.copy_(value)
