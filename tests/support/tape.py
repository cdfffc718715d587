"""A stand-in for a CUDA graph, for machines without a GPU."""

from transfer_caffe.engine.layers.data import Images
from transfer_caffe.engine.layers.neuron import Dropout


class Tape:
    """A stand-in for a CUDA graph that calls the function: results and gradients are always in the same tensors.

    Recording computes nothing; the tensors then hold NaN.
    """

    def __init__(self, net, state=()):
        """``state``: further tensors that the function changes (the solver's history), restored after recording."""
        self.blobs, self.layers = net.learnable, net.layers
        self.state = [*(blob.data.detach() for blob in net.learnable), *state]
        self.registered = []
        self.seeds = []

    def register(self, generators):
        self.registered = list(generators)

    def record(self, function):
        self.function = function
        self.adds = any(blob.leaf.grad is not None for blob in self.blobs)
        lows = [blob.low.detach() for blob in self.blobs if blob.low is not None]
        state = [*self.state, *lows]
        before = [each.clone() for each in state]
        gradients = [None if blob.leaf.grad is None else blob.leaf.grad.clone() for blob in self.blobs]
        loss, outputs = function()
        for each, old in zip(state, before, strict=True):
            each.copy_(old)
        self.results = [loss, *outputs.values(), *(blob.leaf.grad for blob in self.blobs)]
        olds = [None] * (1 + len(outputs)) + gradients
        for each, old in zip(self.results, olds, strict=True):
            if each is not None:
                each.copy_(old) if old is not None else each.fill_(float("nan"))
        return loss, outputs

    def replay(self):
        self.seeds.append([generator.initial_seed() for generator in self.registered])
        count = len(self.blobs)
        for blob, gradient in zip(self.blobs, self.results[len(self.results) - count :], strict=True):
            blob.leaf.grad = gradient if self.adds else None
        # a graph repeats what was recorded, with the settings at that time
        images = [layer for layer in self.layers if isinstance(layer, Images)]
        drawing = [layer for layer in self.layers if isinstance(layer, Dropout) and layer.context.training]
        for layer in images:
            layer.prepares = False
        for layer, generator in zip(drawing, self.registered, strict=True):
            layer.generator = generator
        loss, outputs = self.function()
        for layer in images:
            layer.prepares = True
        for layer in drawing:
            layer.generator = None
        new = [loss, *outputs.values(), *(blob.leaf.grad for blob in self.blobs)]
        for place, value in zip(self.results, new, strict=True):
            assert (place is None) == (value is None)
            if place is not None:
                place.copy_(value)
