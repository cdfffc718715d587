"""A stand-in for a CUDA graph, for machines without a GPU."""

import contextlib
import weakref
from typing import ClassVar
from unittest import mock

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from transfer_caffe.engine.layers.vision import Pooling

SYNCHRONISING = ("_local_scalar_dense", "nonzero", "masked_select", "equal")
"""Operations whose result the host waits for: a CUDA graph cannot be captured with them."""


class Tape:
    """A stand-in for a CUDA graph that repeats the operations, on the same tensors; no Python code runs again.

    Recording computes nothing: tensors that existed before keep their values, and new ones hold NaN until the first
    replay. As with a pool of memory that graphs share, a replay overwrites the results of all other tapes.
    """

    _all: ClassVar[weakref.WeakSet] = weakref.WeakSet()

    def __init__(self, net):
        """``net`` is the net whose function will be recorded."""
        self.blobs = net.learnable
        self.registered = []
        self.seeds = []

    def register(self, generators):
        self.registered = list(generators)

    def record(self, function):
        self.adds = any(blob.leaf.grad is not None for blob in self.blobs)
        operations = _Operations(self.registered)
        try:
            with capturing(operations):
                loss, outputs = function()
        finally:
            operations.undo()
        self.steps = operations.steps
        self.results = [each for each in (loss, *outputs.values()) if operations.made(each)]
        Tape._all.add(self)
        return loss, outputs

    @torch.no_grad()
    def replay(self):
        self.seeds.append([generator.initial_seed() for generator in self.registered])
        for other in Tape._all - {self}:
            for result in other.results:
                result.fill_(float("nan"))
        for function, args, kwargs, places in self.steps:
            for place, value in zip(places, tree_leaves(function(*args, **kwargs)), strict=True):
                if place is not None:
                    place.copy_(value)


@contextlib.contextmanager
def capturing(operations=None):
    """Raise RuntimeError if something reads a value, as while a CUDA graph is captured."""
    # a CPU also looks for NaN in the maxima
    with operations or _Operations(None), mock.patch.object(Pooling, "lacks_numbers", lambda *_: False):
        yield


class _Operations(TorchDispatchMode):
    """Note all operations that compute something, with their tensors; `undo` what they have done."""

    def __init__(self, generators):
        super().__init__()
        self.generators = None if generators is None else {_key(generator) for generator in generators}
        self.steps = []
        self._new = {}
        self._before = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        self._require_capturable(func, args, kwargs)
        given = {id(each): each for each in tree_leaves((args, kwargs)) if isinstance(each, torch.Tensor)}
        written = [
            tensor for argument, value in zip(func._schema.arguments, args, strict=False)
            for tensor in tree_leaves(value) if argument.alias_info is not None and argument.alias_info.is_write
        ]  # fmt: skip
        written += [kwargs[each.name] for each in func._schema.arguments
                    if each.name in kwargs and each.alias_info is not None and each.alias_info.is_write]  # fmt: skip
        for tensor in written:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in self._new and storage.data_ptr() not in self._before:
                self._before[storage.data_ptr()] = storage, storage.clone()
        result = func(*args, **kwargs)
        known = {each.untyped_storage().data_ptr() for each in given.values()}
        places = [
            each.data if isinstance(each, torch.Tensor) and each.untyped_storage().data_ptr() not in known else None
            for each in tree_leaves(result)
        ]
        self._new |= {place.untyped_storage().data_ptr(): place for place in places if place is not None}
        changes = bool(written) or any(place is not None for place in places)
        if changes and not func._schema.name.startswith(("aten::empty", "aten::new_empty")):
            # .data: on a GPU a replay does not change the versions that autograd counts
            self.steps.append((func, *tree_map(_plain, (args, kwargs)), places))
        return result

    def _require_capturable(self, func, args, kwargs):
        name = func._schema.name.removeprefix("aten::")
        masks = name.startswith("index") and any(
            isinstance(each, torch.Tensor) and each.dtype == torch.bool for each in tree_leaves(args[1:2])
        )
        drawing = [_key(each) for each in kwargs.values() if isinstance(each, torch._C.Generator)]
        unknown = self.generators is not None and not self.generators.issuperset(drawing)
        if name in SYNCHRONISING or masks or unknown:
            raise RuntimeError(f"operation not permitted when stream is capturing: {name}")

    def made(self, tensor):
        """Return whether a tensor's memory is new."""
        return tensor.untyped_storage().data_ptr() in self._new

    def undo(self):
        for storage, values in self._before.values():
            storage.copy_(values)
        for tensor in self._new.values():
            if tensor.is_floating_point():
                tensor.fill_(float("nan"))


def _key(generator):
    """Return what is the same for all of Python's objects of one generator."""
    return generator._cdata


def _plain(value):
    return value.data if isinstance(value, torch.Tensor) else value
