"""`caffe.Net`: a net whose layers run one at a time on blobs that Python reads and writes (python/caffe/pycaffe.py).

Names and order of layers and blobs are pycaffe's, those of the Split layers that Caffe inserts included.
"""

from __future__ import annotations

import contextlib
import itertools
import os
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from transfer_caffe.caffe import mode
from transfer_caffe.caffe.errors import CaffeError, raises_caffe_errors, require_readable
from transfer_caffe.caffe.runs import Computes, Run, run_of
from transfer_caffe.engine import debug, glog
from transfer_caffe.engine.iteration import threads
from transfer_caffe.engine.iteration.steps import root_of
from transfer_caffe.engine.layers import Blob as Learnable
from transfer_caffe.engine.layers import Layer as EngineLayer
from transfer_caffe.engine.layers import loss, sources
from transfer_caffe.engine.layers.python_layer import Python
from transfer_caffe.engine.layers.views import Array, Blob, BlobVec, LearnableBlob, Vector
from transfer_caffe.engine.net import AUTOMATIC
from transfer_caffe.engine.net import Net as EngineNet
from transfer_caffe.engine.weights import copy_weights, owned_weights
from transfer_caffe.formats import hdf5
from transfer_caffe.formats.nets import read_net, state_of
from transfer_caffe.formats.proto import write_binary
from transfer_caffe.formats.proto.caffe_pb2 import NetParameter, NetState
from transfer_caffe.formats.splits import net_in_state

Callback = Callable[[int], object]
Arrays = dict[str, np.ndarray]


class LayerOfNet:
    """A layer of a net that is not written in Python: its ``type`` and its learnable ``blobs``."""

    def __init__(self, kind: str, blobs: BlobVec) -> None:
        """``kind`` is the type's name."""
        self.type, self.blobs = kind, blobs


_is_forked = False
"""Whether this process is a fork, as of multiprocessing: PyTorch's threads are missing in it, and it must not wait for
them."""


def _after_fork() -> None:
    global _is_forked
    _is_forked = True
    torch.set_num_threads(1)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


class Net:
    """A net of a prototxt.

        caffe.Net("deploy.prototxt", caffe.TEST, weights="net.caffemodel")
        caffe.Net("deploy.prototxt", "net.caffemodel", caffe.TEST)          # before 2016
        caffe.Net("all.prototxt", caffe.TEST, level=1, stages=["deploy"])

    Raise RuntimeError for files that cannot be read and nets that Caffe rejects.
    """

    @raises_caffe_errors
    def __init__(
        self, network_file: str | os.PathLike[str], *args: Any, phase: int | None = None, level: int = 0,
        stages: Sequence[str] | None = None, weights: str | os.PathLike[str] | None = None,
    ) -> None:  # fmt: skip
        """``args`` are the phase (and level, stages, weights), or, as before 2016, the weights and the phase."""
        if args and isinstance(args[0], str | os.PathLike):
            weights, args = args[0], args[1:]
            if len(args) > 1:
                raise TypeError("Net(network_file, weights, phase) takes no more arguments")
            glog.info("_caffe.cpp:0", "Net(file, weights, phase) is old: use Net(file, phase, weights=weights)")
        given = dict(zip(("phase", "level", "stages", "weights"), args, strict=False))
        phase, level = given.get("phase", phase), given.get("level", level)
        stages, weights = given.get("stages", stages), given.get("weights", weights)
        if isinstance(phase, bool) or not isinstance(phase, int | np.integer) or phase not in (0, 1) or len(args) > 4:
            raise TypeError(f"Net: the phase must be caffe.TRAIN or caffe.TEST, not {phase!r}")
        if isinstance(stages, str):
            raise TypeError(f"Net: stages must be a list of names, not {stages!r}")
        param = read_net(require_readable(os.fsdecode(network_file)))
        if weights is not None:
            weights = require_readable(weights)
        state = state_of(param, int(phase), level, stages or ())
        engine = engine_net(param, state, mode.next_seed(), mode.device())
        self._build(engine)
        if weights is not None:
            self.copy_from(weights)

    @classmethod
    def of(cls, engine: EngineNet, share: Net | None = None) -> Net:
        """Return the net of an engine's net with Split layers, which shares the learnable blobs of ``share``."""
        net = cls.__new__(cls)
        net._build(engine, share)
        return net

    def _build(self, engine: EngineNet, share: Net | None = None) -> None:
        self._engine = engine
        self._thread_count: int | None = None
        self._device = engine.layers[0].context.device
        self._apart = self._device.type != "cpu"
        self._blobs: list[Blob] = []
        self._blob_names: list[str] = Vector()
        self._layer_names: list[str] = Vector(layer.name for layer in engine.layers)
        self._ids: list[tuple[list[int], list[int]]] = []
        self._roots: dict[int, Blob] = {}
        self._callbacks: dict[str, list[Callback]] = {"before_forward": [], "after_forward": []}
        self._callbacks |= {"before_backward": [], "after_backward": []}
        self._runs: list[Run] = []
        self.layers: list[Any] = Vector()
        """The layers, in order: the objects of Python layers, and for others their ``type`` and ``blobs``."""
        newest: dict[str, int] = {}
        made_by: dict[int, Run] = {}
        users: dict[int, int] = {}
        for layer, weights in zip(engine.layers, engine.loss_weights, strict=True):
            bottoms = [newest[name] for name in layer.param.bottom]
            tops = [self._top(layer, index, newest, dict(weights)) for index in range(len(layer.top))]
            params = self._params_of(layer, share)
            blobs = self._blobs
            run = run_of(layer, Vector(blobs[i] for i in bottoms), Vector(blobs[i] for i in tops), params)
            in_place = layer.in_place and bool(bottoms)
            run.may_overwrite = in_place and made_by[bottoms[0]].rewrites_tops
            made_by.update(dict.fromkeys(tops, run))
            for bottom in bottoms:
                users[bottom] = users.get(bottom, 0) + 1
            self._runs.append(run)
            self._ids.append((bottoms, tops))
            instance = layer.instance if isinstance(layer, Python) else LayerOfNet(layer.type, params)
            self.layers.append(instance)
        inputs = [index for index, run in enumerate(self._runs) if isinstance(run.layer, sources.Input)]
        self._inputs: list[int] = Vector(blob for index in inputs for blob in self._ids[index][1])
        self._outputs: list[int] = Vector(newest[name] for name in engine.outputs)
        weights_of = {name: weight for each in engine.loss_weights for name, weight in each}
        self._blob_loss_weights: list[float] = Vector(weights_of.get(name, 0.0) for name in self._blob_names)
        self._find_gradients()

    def _top(self, layer: EngineLayer, index: int, newest: dict[str, int], weights: Mapping[str, float]) -> int:
        """Return the number of a layer's top; create its blob unless the layer works in place."""
        name = layer.top[index]
        if name in list(layer.param.bottom) and name != AUTOMATIC:
            return newest[name]
        own = layer.top_blobs[index] if isinstance(layer, Python) else None
        blob = own or Blob(self._engine.shapes[name], self._device)
        blob._diff = Array(self._device, weights.get(name, 0.0))
        newest[name] = len(self._blobs)
        self._blobs.append(blob)
        self._blob_names.append(name)
        return newest[name]

    def _params_of(self, layer: EngineLayer, share: Net | None) -> BlobVec:
        """Return a layer's learnable blobs; those that layers share are the same memory."""
        if isinstance(layer, Python) and (share is None or not layer.blobs):
            for blob, engine_blob in zip(layer.instance.blobs, layer.blobs, strict=True):
                self._roots.setdefault(id(root_of(engine_blob)), blob)
            return layer.instance.blobs
        params = BlobVec(map(lambda blob: self._param(blob, share), layer.blobs))
        if isinstance(layer, Python):
            layer.instance.blobs = params
        return params

    def _param(self, blob: Learnable, share: Net | None) -> Blob:
        root = root_of(blob)
        known = self._roots.get(id(root))
        if known is None:
            known = self._roots[id(root)] = LearnableBlob(root)
            if share is not None and (theirs := share._roots.get(id(root))):
                known.share_data(theirs)
        if blob is root:
            return known
        other = LearnableBlob(blob)
        other.share_data(known)
        other.share_diff(known)
        return other

    def _find_gradients(self) -> None:
        """Find what the backward pass has to compute (Net::Init)."""
        needs = [False] * len(self._blobs)
        for run, (bottoms, tops) in zip(self._runs, self._ids, strict=True):
            down = list(run.layer.param.propagate_down)
            run.needs = down or [needs[bottom] for bottom in bottoms]
            run.learns = [blob.lr_mult != 0 for blob in run.layer.blobs]
            run.needed = any(run.learns) or any(needs[bottom] for bottom in bottoms)
            for top in tops if run.needed else ():
                needs[top] = True
        under_loss: set[int] = set()
        skipped: set[int] = set()
        for run, weights, (bottoms, tops) in reversed(
            list(zip(self._runs, self._engine.loss_weights, self._ids, strict=True))
        ):
            counts = bool(weights) or any(top in under_loss for top in tops)
            if run.needed and all(top in skipped for top in tops):
                run.needed, run.needs = False, [False] * len(bottoms)
            if counts:
                under_loss.update(bottoms)
            else:
                run.needed, run.needs = False, [False] * len(bottoms)
            skipped.update(bottom for bottom, need in zip(bottoms, run.needs, strict=True) if not need)
        for run in self._runs:
            if self._engine.force_backward:
                run.needed, run.learns = True, [True] * len(run.learns)
                run.needs = [need or _may_be_forced(run.layer, i) for i, need in enumerate(run.needs)]
            elif run.needed and run.layer.ignores_propagate_down:
                run.needs = [True] * len(run.needs)

    # blobs, layers and their names

    @property
    def blobs(self) -> OrderedDict[str, Blob]:
        """The blobs by name, from input to output."""
        return self._once("_blobs_dict", lambda: OrderedDict(zip(self._blob_names, self._blobs, strict=True)))

    @property
    def blob_loss_weights(self) -> OrderedDict[str, float]:
        """The weights of the blobs in the loss, by name."""
        return OrderedDict(zip(self._blob_names, self._blob_loss_weights, strict=True))

    @property
    def layer_dict(self) -> OrderedDict[str, Any]:
        """The layers by name, from input to output."""
        return self._once("_layers_dict", lambda: OrderedDict(zip(self._layer_names, self.layers, strict=True)))

    @property
    def params(self) -> OrderedDict[str, BlobVec]:
        """The learnable blobs by layer: for most layers their weights and bias."""
        return self._once("_params_dict", self._named_params)

    def _named_params(self) -> OrderedDict[str, BlobVec]:
        pairs = zip(self._layer_names, self.layers, strict=True)
        return OrderedDict((name, layer.blobs) for name, layer in pairs if len(layer.blobs))

    @property
    def inputs(self) -> list[str]:
        """The names of the tops of Input layers."""
        return [self._blob_names[index] for index in self._inputs]

    @property
    def outputs(self) -> list[str]:
        """The names of the blobs that no layer uses, sorted."""
        return [self._blob_names[index] for index in self._outputs]

    @property
    def top_names(self) -> OrderedDict[str, list[str]]:
        """The names of the tops by layer."""
        return self._once("_top_names", lambda: self._named(1))

    @property
    def bottom_names(self) -> OrderedDict[str, list[str]]:
        """The names of the bottoms by layer."""
        return self._once("_bottom_names", lambda: self._named(0))

    def _named(self, side: int) -> OrderedDict[str, list[str]]:
        pairs = zip(self._layer_names, self._ids, strict=True)
        return OrderedDict((name, [self._blob_names[index] for index in ids[side]]) for name, ids in pairs)

    def _once(self, attribute: str, make: Callable[[], Any]) -> Any:
        if attribute not in self.__dict__:
            setattr(self, attribute, make())
        return self.__dict__[attribute]

    def _bottom_ids(self, layer: int) -> list[int]:
        return Vector(self._ids[layer][0])

    def _top_ids(self, layer: int) -> list[int]:
        return Vector(self._ids[layer][1])

    def _layer_index(self, name: str) -> int:
        if name not in self._layer_names:
            raise ValueError(f"{name!r} is no layer of net {self._engine.name!r}: {', '.join(self._layer_names)}")
        return self._layer_names.index(name)

    def _require_blobs(self, names: Sequence[str]) -> None:
        for name in names:
            if name not in self.blobs:
                raise KeyError(f"{name!r} is no blob of net {self._engine.name!r}: {', '.join(self.blobs)}")

    # passes

    def forward(
        self, blobs: Sequence[str] | None = None, start: str | None = None, end: str | None = None, **kwargs: Any
    ) -> Arrays:
        """Run the layers from ``start`` to ``end`` and return the outputs, and ``blobs``, by name.

        Keyword arguments are arrays for all input blobs. With ``end``, the outputs are the tops of that layer.
        """
        wanted = list(blobs or ())
        first = 0 if start is None else self._layer_index(start)
        last = len(self.layers) - 1 if end is None else self._layer_index(end)
        outputs = {*(self.outputs if end is None else self.top_names[self._layer_names[last]]), *wanted}
        self._require_blobs(wanted)
        if kwargs:
            if set(kwargs) != set(self.inputs):
                raise ValueError(
                    f"Input blob arguments do not match net inputs: {sorted(kwargs)} given, {self.inputs} needed"
                )
            self._fill(kwargs, "data", "Input is not batch sized")
        self._forward(first, last)
        return {name: self.blobs[name].data for name in outputs}

    def backward(
        self, diffs: Sequence[str] | None = None, start: str | None = None, end: str | None = None, **kwargs: Any
    ) -> Arrays:
        """Run the layers backward from ``start`` to ``end`` and return the inputs' gradients, and ``diffs``, by name.

        Keyword arguments are gradients of all output blobs. With ``end``, those of that layer's bottoms are returned.
        """
        wanted = list(diffs or ())
        first = len(self.layers) - 1 if start is None else self._layer_index(start)
        last = 0 if end is None else self._layer_index(end)
        outputs = {*(self.inputs if end is None else self.bottom_names[self._layer_names[last]]), *wanted}
        self._require_blobs(wanted)
        if kwargs:
            if set(kwargs) != set(self.outputs):
                raise ValueError(
                    f"Top diff arguments do not match net outputs: {sorted(kwargs)} given, {self.outputs} needed"
                )
            self._fill(kwargs, "diff", "Diff is not batch sized")
        self._backward(first, last)
        return {name: self.blobs[name].diff for name in outputs}

    def _fill(self, arrays: Mapping[str, Any], what: str, problem: str) -> None:
        for name, array in arrays.items():
            blob, given = self.blobs[name], np.asarray(array)
            if not given.shape or not blob.shape or given.shape[0] != blob.shape[0]:
                raise ValueError(f"{problem}: {name!r} is {list(blob.shape)}, the array {list(given.shape)}")
            getattr(blob, what)[...] = given

    @raises_caffe_errors
    def _forward(self, start: int, end: int) -> float:
        """Run the layers ``start`` to ``end`` and return their loss (Net::ForwardFromTo)."""
        self._check_range(start, end)
        with self._computing():
            self._run_forward(start, end)
            return float(self._loss(start, end))

    @contextlib.contextmanager
    def _computing(self) -> Iterator[None]:
        """Compute without autograd, and a small net with one thread (see `iteration.threads`)."""
        before, wanted = torch.get_num_threads(), self._threads()
        if wanted != before:
            torch.set_num_threads(wanted)
        try:
            with torch.no_grad():
                yield
        finally:
            if wanted != before:
                torch.set_num_threads(before)

    def _threads(self) -> int:
        if self._device.type != "cpu":
            return torch.get_num_threads()
        if _is_forked:
            return 1
        if self._thread_count is None:
            # as much work as three times the forward pass
            flop = 6 * sum(threads.products(self._engine, layer) for layer in self._engine.layers)
            self._thread_count = max(1, int(flop / threads.FLOP_A_THREAD))
        return min(torch.get_num_threads(), self._thread_count)

    def _run_forward(self, start: int, end: int) -> None:
        before, after = self._callbacks["before_forward"], self._callbacks["after_forward"]
        logs = debug.is_on(self._engine)
        if self._apart:
            self._send_params()
        for index in range(start, end + 1):
            for callback in before:
                callback(index)
            run = self._runs[index]
            run.forward()
            if logs:
                debug.log_forward(run.layer, [blob.read() for blob in run.tops], [blob.read() for blob in run.params])
            for callback in after:
                callback(index)

    def _loss(self, start: int, end: int) -> Tensor:
        total: Tensor | None = None
        for index in range(start, end + 1):
            for name, weight in self._engine.loss_weights[index]:
                tops = self._runs[index].layer.top
                term = self._runs[index].tops[tops.index(name)].read().sum(dtype=torch.float32)
                term = term if weight == 1 else term * weight
                total = term if total is None else total + term
        return torch.zeros((), device=self._device) if total is None else total

    @raises_caffe_errors
    def _backward(self, start: int, end: int) -> None:
        """Run the layers ``start`` down to ``end`` backward (Net::BackwardFromTo)."""
        self._check_range(end, start)
        with self._computing():
            self._run_backward(start, end)

    def _run_backward(self, start: int, end: int) -> None:
        before, after = self._callbacks["before_backward"], self._callbacks["after_backward"]
        logs = debug.is_on(self._engine)
        if self._apart:
            self._send_params()
        for index in range(start, end - 1, -1):
            for callback in before:
                callback(index)
            if self._runs[index].needed:
                self._runs[index].backward()
                if logs:
                    self._log_backward(index)
            for callback in after:
                callback(index)

    def _log_backward(self, index: int) -> None:
        run, names = self._runs[index], [self._blob_names[blob] for blob in self._ids[index][0]]
        bottoms = zip(names, run.bottoms, run.needs, strict=True)
        debug.log_backward(
            run.layer,
            [(name, blob.read_diff()) for name, blob, needs in bottoms if needs],
            [(number, run.params[number].read_diff()) for number, learns in enumerate(run.learns) if learns],
        )

    def _check_range(self, low: int, high: int) -> None:
        if low < 0 or high >= len(self._runs):
            raise CaffeError(f"layers {low} to {high}: net {self._engine.name!r} has layers 0 to {len(self._runs) - 1}")

    def _send_params(self) -> None:
        """Bring what Python has written into learnable blobs to the device."""
        for run in self._runs:
            for blob in run.params:
                blob.read()

    @raises_caffe_errors
    @torch.no_grad()
    def reshape(self) -> None:
        """Give all blobs the shapes that follow from the inputs' shapes."""
        for run in self._runs:
            run.reshape_tops()
        self._engine.shapes.update({name: blob._shape for name, blob in self.blobs.items()})
        self._thread_count = None

    def forward_all(self, blobs: Sequence[str] | None = None, **kwargs: Any) -> Arrays:
        """Run the net on arrays of any number of items, in batches, and return all outputs, and ``blobs``."""
        out: dict[str, list[np.ndarray]] = {name: [] for name in {*self.outputs, *(blobs or ())}}
        for batch in self._batch(kwargs):
            for name, array in self.forward(blobs, None, None, **batch).items():
                out[name].extend(np.atleast_1d(array).copy())
        return self._without_padding(out, _first(kwargs))

    def forward_backward_all(
        self, blobs: Sequence[str] | None = None, diffs: Sequence[str] | None = None, **kwargs: Any
    ) -> tuple[Arrays, Arrays]:
        """Run both passes on arrays of any number of items, in batches, and return all blobs and all gradients.

        Keyword arguments are arrays for inputs and gradients of outputs.
        """
        values: dict[str, list[np.ndarray]] = {name: [] for name in {*self.outputs, *(blobs or ())}}
        gradients: dict[str, list[np.ndarray]] = {name: [] for name in {*self.inputs, *(diffs or ())}}
        up = self._batch({name: kwargs[name] for name in self.inputs if name in kwargs})
        down = self._batch({name: kwargs[name] for name in self.outputs if name in kwargs})
        for fed, given in itertools.zip_longest(up, down, fillvalue={}):
            for name, array in self.forward(blobs, None, None, **fed).items():
                values[name].extend(np.atleast_1d(array).copy())
            for name, array in self.backward(diffs, None, None, **given).items():
                gradients[name].extend(np.atleast_1d(array).copy())
        first = _first(kwargs)
        return self._without_padding(values, first), self._without_padding(gradients, first)

    def _without_padding(self, lists: dict[str, list[np.ndarray]], given: Any) -> Arrays:
        return {name: np.asarray(arrays)[: len(given)] for name, arrays in lists.items()}

    def _batch(self, arrays: Mapping[str, Any]) -> Iterator[Arrays]:
        """Yield the arrays in batches of the net's size, the last one filled up with zeros."""
        if not arrays:
            return
        size = next(iter(self.blobs.values())).shape[0]
        for first in range(0, len(_first(arrays)), size):
            parts = {name: np.asarray(array[first : first + size]) for name, array in arrays.items()}
            yield {name: _filled_up(part, size) for name, part in parts.items()}

    @raises_caffe_errors
    def set_input_arrays(self, data: np.ndarray, labels: np.ndarray) -> None:
        """Let the net's first layer, MemoryData, read these arrays; they are not copied.

        Both are C-contiguous float32 arrays; their number must be a multiple of the batch size.
        """
        layer = self._runs[0].layer
        if not isinstance(layer, sources.MemoryData):
            raise CaffeError("set_input_arrays may only be called if the first layer is a MemoryDataLayer")
        if labels.ndim == 1:
            labels = np.ascontiguousarray(labels[:, None, None, None])
        for array, name, image in ((data, "data array", layer.image), (labels, "labels array", (1, 1, 1))):
            if not array.flags.c_contiguous:
                raise CaffeError(f"{name} must be C contiguous")
            if array.ndim != 4:
                raise CaffeError(f"{name} must be 4-d")
            if array.dtype != np.float32:
                raise CaffeError(f"{name} must be float32")
            for what, size, has in zip(("number of channels", "height", "width"), image, array.shape[1:], strict=True):
                if size != has:
                    raise CaffeError(f"{name} has wrong {what}: {has} instead of {size}")
        if len(data) != len(labels):
            raise CaffeError("data and labels must have the same first dimension")
        if len(data) % layer.size or not len(data):
            raise CaffeError("first dimensions of input arrays must be a multiple of batch size")
        # PyTorch has no tensors that cannot be written, such as a file's pages in memory
        arrays = [array if array.flags.writeable else array.copy() for array in (data, labels)]
        layer.values = [torch.from_numpy(array).to(self._device) for array in arrays]
        self._runs[0].count = 0

    def before_forward(self, callback: Callback) -> None:
        """Call ``callback`` with the index of each layer before it runs forward."""
        self._callbacks["before_forward"].append(callback)

    def after_forward(self, callback: Callback) -> None:
        """Call ``callback`` with the index of each layer after it has run forward."""
        self._callbacks["after_forward"].append(callback)

    def before_backward(self, callback: Callback) -> None:
        """Call ``callback`` with the index of each layer before it runs backward."""
        self._callbacks["before_backward"].append(callback)

    def after_backward(self, callback: Callback) -> None:
        """Call ``callback`` with the index of each layer after it has run backward."""
        self._callbacks["after_backward"].append(callback)

    # weights

    def clear_param_diffs(self) -> None:
        """Set the gradients of all learnable blobs to 0."""
        for blob in self._roots.values():
            blob._diff.clear()

    @raises_caffe_errors
    def copy_from(self, path: str | os.PathLike[str]) -> None:
        """Copy the weights of a .caffemodel (or .caffemodel.h5) into the layers of the same name."""
        self._copy(path)

    @raises_caffe_errors
    def load_hdf5(self, path: str | os.PathLike[str]) -> None:
        """Copy the weights of an HDF5 file into the layers of the same name."""
        self._copy(path, as_hdf5=True)

    def _copy(self, path: str | os.PathLike[str], as_hdf5: bool | None = None) -> None:
        self._send_params()
        copy_weights(self._engine.name, self._engine.layers, require_readable(path), as_hdf5)

    @raises_caffe_errors
    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the net with its weights as a .caffemodel."""
        self._send_params()
        write_binary(path, self._engine.to_proto())

    @raises_caffe_errors
    def save_hdf5(self, path: str | os.PathLike[str]) -> None:
        """Write the weights as an HDF5 file."""
        self._send_params()
        hdf5.save_weights(os.fspath(path), owned_weights(self._engine.layers))

    @raises_caffe_errors
    def share_with(self, other: Net) -> None:
        """Use the weights of another net's layers of the same name: the same memory (Net::ShareTrainedLayersWith)."""
        for theirs in other._runs:
            own = next((run for run in self._runs if run.layer.name == theirs.layer.name), None)
            if own is None:
                glog.info("net.cpp:0", f"Ignoring source layer {theirs.layer.name}")
                continue
            shapes = [[list(blob.data.shape) for blob in run.layer.blobs] for run in (own, theirs)]
            if shapes[0] != shapes[1]:
                raise own.layer.error(f"cannot share weights: shape mismatch: {shapes[1]} there, {shapes[0]} here")
            for index, (mine, blob) in enumerate(zip(own.params, theirs.params, strict=True)):
                mine.share_data(blob)
                before = own.layer.blobs[index]
                meta = torch.empty(tuple(before.data.shape), device="meta")
                shared = Learnable(meta, before.lr_mult, before.decay_mult, owner=root_of(theirs.layer.blobs[index]))
                own.layer.blobs[index] = shared
            if isinstance(own, Computes):
                own.forget()


def engine_net(
    param: NetParameter, state: NetState, seed: int, device: torch.device, share: EngineNet | None = None
) -> EngineNet:
    """Return the engine's net for the layers in a state, with Split layers inserted."""
    return EngineNet(net_in_state(param, state), state, seed, device, share)


def _may_be_forced(layer: EngineLayer, bottom: int) -> bool:
    """Return whether force_backward applies to a bottom of a layer (Layer::AllowForceBackward)."""
    if isinstance(layer, loss.ContrastiveLoss):
        return bottom != 2
    if isinstance(layer, loss.EuclideanLoss) or not layer.is_loss:
        return not (isinstance(layer, loss.Accuracy))
    return bottom != 1


def _first(arrays: Mapping[str, Any]) -> Any:
    if not arrays:
        raise ValueError("no arrays are given; give one for each input blob")
    return next(iter(arrays.values()))


def _filled_up(part: np.ndarray, size: int) -> np.ndarray:
    missing = size - len(part)
    return np.concatenate([part, np.zeros((missing, *part.shape[1:]))]) if missing else part
