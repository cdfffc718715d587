"""Layers written in Python: type "Python", python_param { module layer param_str } (caffe/layers/python_layer.hpp).

    class Double(caffe.Layer):
        def setup(self, bottom, top): ...
        def reshape(self, bottom, top): top[0].reshape(*bottom[0].data.shape)
        def forward(self, bottom, top): top[0].data[...] = 2 * bottom[0].data
        def backward(self, top, propagate_down, bottom): bottom[0].diff[...] = 2 * top[0].diff

The module is searched on Python's path (PYTHONPATH included), then in the folders of the prototxts that were read, then
in the current folder. If it imports `caffe`, it gets `transfer_caffe.caffe`.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
import traceback
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from transfer_caffe.engine import glog
from transfer_caffe.engine.layers.base import Blob as Learnable
from transfer_caffe.engine.layers.base import Context, Layer, Shape
from transfer_caffe.engine.layers.views import Blob, BlobVec, LearnableBlob, Vector
from transfer_caffe.formats.nets import python_folders
from transfer_caffe.formats.proto.caffe_pb2 import TEST, TRAIN, LayerParameter
from transfer_caffe.utils.errors import UserError


class PythonLayer:
    """The base class of layers written in Python, `caffe.Layer`.

    Caffe sets ``param_str``, the text of the layer's python_param, and ``phase``, caffe.TRAIN or caffe.TEST, before it
    calls `setup`. ``blobs`` are the layer's own learnable blobs: `setup` adds them with ``blobs.add_blob(*shape)``.
    """

    def __init__(self, param: LayerParameter | None = None) -> None:
        """Create a layer with the settings of a prototxt."""
        param = LayerParameter() if param is None else param
        self.type: str = param.type
        self.blobs = BlobVec()
        self.param_str: str = param.python_param.param_str
        self.phase = TRAIN

    @property
    def param_str_(self) -> str:
        """The name of ``param_str`` before 2015."""
        return self.param_str

    def setup(self, bottom: Sequence[Blob], top: Sequence[Blob]) -> None:
        """Check the settings and add blobs; called once."""

    def reshape(self, bottom: Sequence[Blob], top: Sequence[Blob]) -> None:
        """Set the shapes of the tops; called after `setup` and before each `forward`."""

    def forward(self, bottom: Sequence[Blob], top: Sequence[Blob]) -> None:
        """Compute the tops' ``data``."""
        raise NotImplementedError("this layer has no forward")

    def backward(self, top: Sequence[Blob], propagate_down: Sequence[bool], bottom: Sequence[Blob]) -> None:
        """Compute the bottoms' ``diff`` where ``propagate_down`` is True, and add to the own blobs' ``diff``."""
        raise NotImplementedError("this layer has no backward")


class _LayerFailed(UserError):
    """An exception of a Python layer; it is also of the class of that exception, so that programs can catch it."""


def _failure(error: Exception, message: str) -> Exception:
    kind = type(error)
    try:
        own = {"__str__": lambda self: message, "__module__": kind.__module__}
        both = type(kind.__name__, (_LayerFailed, kind), own)
        made = both.__new__(both, message)
        made.__dict__.update(error.__dict__)
        for name in ("errno", "strerror", "filename", "filename2", "value"):  # of OSError and StopIteration
            if hasattr(error, name):
                setattr(made, name, getattr(error, name))
        return made
    except TypeError:  # this class cannot have a second base
        return _LayerFailed(message)


class Python(Layer):
    """A layer whose computation is the class that python_param names."""

    bottoms = (0, None)
    tops = (0, None)

    def __init__(self, param: LayerParameter, context: Context) -> None:
        super().__init__(param, context)
        self.code = f"{param.python_param.module}.{param.python_param.layer}"
        glog.info("layer_factory.cpp:0", f"Layer {self.name} runs Python code: {self.code}")
        if param.python_param.share_in_parallel:
            glog.info("python_layer.hpp:0", f"Layer {self.name}: share_in_parallel is ignored: there is one net only")
        self.instance: Any = None
        self.bottom_blobs: list[Blob] = []
        self.top_blobs: list[Blob] = []

    def setup(self, shapes: Sequence[Shape]) -> None:
        """Create the layer's object and call its setup and reshape; later calls only call reshape."""
        if self.instance is not None:
            for blob, shape in zip(self.bottom_blobs, shapes, strict=True):
                blob.reshape(*shape)
            self.reshape_tops(self.bottom_blobs, self.top_blobs)
            return
        device = self.context.device
        self.bottom_blobs = Vector(Blob(shape, device) for shape in shapes)
        bottoms = dict(zip(self.param.bottom, self.bottom_blobs, strict=True))
        self.top_blobs = Vector(bottoms.get(top) or Blob((), device) for top in self.top)
        layer = self._class()
        with self.guarded("__init__"):
            self.instance = instance = layer(self.param)
        if not isinstance(getattr(instance, "blobs", None), BlobVec):  # its __init__ did not call the base class's
            PythonLayer.__init__(instance, self.param)
        instance.blobs = BlobVec(device=device)
        instance.param_str, instance.phase = self.param.python_param.param_str, TRAIN if self.context.training else TEST
        with self.guarded("setup"):
            instance.setup(self.bottom_blobs, self.top_blobs)
        self._add_blobs(instance.blobs)
        self.reshape_tops(self.bottom_blobs, self.top_blobs)

    def _class(self) -> type[PythonLayer]:
        """Import the module and return the class that python_param names."""
        name, wanted = self.param.python_param.module, self.param.python_param.layer
        if not name or not wanted:
            raise self.error("python_param needs a module and a layer, the names of a file and of a class in it")
        _make_findable()
        with self.guarded(f"import of module {name}"):
            try:
                module = importlib.import_module(name)
            except ModuleNotFoundError as error:
                if error.name != name.split(".")[0]:
                    raise
                places = ", ".join(dict.fromkeys(os.path.abspath(place) for place in python_folders)) or os.getcwd()
                raise self.error(
                    f"no module {name!r} on Python's path or in {places}; set PYTHONPATH to the folder that has it"
                ) from None
        layer = getattr(module, wanted, None)
        if layer is None:
            raise self.error(f"module {name!r} ({getattr(module, '__file__', None)}) has no class {wanted!r}")
        if not (isinstance(layer, type) and issubclass(layer, PythonLayer)):
            raise self.error(
                f"{self.code} is no subclass of this caffe.Layer: did its module import another Caffe's pycaffe?"
            )
        return layer

    def _add_blobs(self, blobs: BlobVec) -> None:
        """Make the blobs that setup has added learnable blobs, with the values that it has given them."""
        for index, blob in enumerate(blobs):
            spec = self.param.param[index] if index < len(self.param.param) else None
            lr_mult, decay_mult = (spec.lr_mult, spec.decay_mult) if spec else (1.0, 1.0)
            values = blob.read().detach()
            learned = lr_mult != 0 or self.context.force_backward
            learnable = Learnable(values.requires_grad_(learned), lr_mult, decay_mult)
            self.blobs.append(learnable)
            # the same object, since setup may have kept it
            blob.__class__ = LearnableBlob
            LearnableBlob.__init__(blob, learnable)  # pyright: ignore[reportArgumentType]

    def reshape_tops(self, bottoms: Sequence[Blob], tops: Sequence[Blob]) -> None:
        """Call the layer's reshape."""
        with self.guarded("reshape"):
            self.instance.reshape(bottoms, tops)

    def run_forward(self, bottoms: Sequence[Blob], tops: Sequence[Blob]) -> None:
        """Call reshape and forward, as Layer::Forward does."""
        self.reshape_tops(bottoms, tops)
        with self.guarded("forward"):
            self.instance.forward(bottoms, tops)

    def run_backward(self, tops: Sequence[Blob], propagate_down: Sequence[bool], bottoms: Sequence[Blob]) -> None:
        """Call the layer's backward."""
        with self.guarded("backward"):
            self.instance.backward(tops, Vector(propagate_down), bottoms)

    def top_shapes(self, shapes: Sequence[Shape]) -> list[Shape]:
        return [tuple(blob.shape) for blob in self.top_blobs]

    def forward(self, bottoms: list[Tensor], batch: int) -> list[Tensor]:
        tops = _ByPython.apply(self, len(bottoms), *bottoms, *(blob.data for blob in self.blobs))
        return list(tops)  # pyright: ignore[reportArgumentType]

    def guarded(self, what: str) -> _Guard:
        """Add the names of this layer, file and line to an exception of the layer's code."""
        return _Guard(self, what)


class _Guard:
    """A context; not a generator, in which StopIteration would not be an exception like others."""

    def __init__(self, layer: Python, what: str) -> None:
        self.layer, self.what = layer, what

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, place: object) -> None:
        if not isinstance(error, Exception) or isinstance(error, UserError):
            return
        frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename != __file__]
        where = f", {frames[-1].filename}, line {frames[-1].lineno}" if frames else ""
        if isinstance(error, SyntaxError):
            where = f", {error.filename}, line {error.lineno}"
        what = f"{type(error).__name__} in {self.what} of {self.layer.code}{where}"
        text = " ".join(str(error).split())
        raise _failure(error, str(self.layer.error(f"{what}: {text}" if text else what))) from error


class _ByPython(torch.autograd.Function):
    """A Python layer in a net that computes with tensors."""

    @staticmethod
    def forward(ctx: Any, layer: Python, count: int, *tensors: Tensor) -> tuple[Tensor, ...]:
        for blob, values in zip(layer.bottom_blobs, tensors[:count], strict=True):
            blob.write(values.detach(), owned=False)
            blob.data  # noqa: B018 - from here on the layer's own memory, which it may change
        ctx.layer, ctx.bottoms = layer, tensors[:count]
        layer.run_forward(layer.bottom_blobs, layer.top_blobs)
        return tuple(blob.read().clone() for blob in layer.top_blobs)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        layer: Python = ctx.layer
        for blob, gradient in zip(layer.top_blobs, grad_outputs, strict=True):
            blob.write_diff(gradient.clone())
        own = layer.instance.blobs
        for blob in own:
            blob._diff.clear()
        needs = ctx.needs_input_grad[2:]
        count = len(layer.bottom_blobs)
        layer.run_backward(layer.top_blobs, list(needs[:count]), layer.bottom_blobs)
        blobs = [*layer.bottom_blobs, *own]
        both = zip(blobs, needs, strict=True)
        return None, None, *(blob.read_diff().clone() if need else None for blob, need in both)


def _make_findable() -> None:
    """Let a layer's module be found in the folders of prototxts, and let it import `caffe`."""
    for folder in [*python_folders, os.getcwd()]:
        if (folder := os.path.abspath(folder)) not in sys.path:
            sys.path.append(folder)
    if "caffe" not in sys.modules:
        with contextlib.suppress(ModuleNotFoundError):  # the engine also works without that subpackage
            importlib.import_module("transfer_caffe.caffe").claim_name()


LAYERS = (Python,)
