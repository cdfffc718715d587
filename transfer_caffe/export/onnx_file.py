"""Write a net for inference as an ONNX file: standard operators, Caffe's names of layers and blobs.

    model = build(load("deploy.prototxt", "net.caffemodel"))
    model.write("net.onnx")

A blob keeps its name. Where layers work in place, the blob's name belongs to its last value (to the first one if the
blob is an input), as in Caffe after a forward pass; other values are called `BLOB@LAYER`, after the layer that computes
them. Weights have PyTorch's names (`conv1.weight`).
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import onnx  # pyright: ignore[reportMissingImports]
from onnx import helper  # pyright: ignore[reportMissingImports]

from transfer_caffe import __version__
from transfer_caffe.engine.layers import Shape
from transfer_caffe.export.graph import IR_VERSION, OPSET, Graph
from transfer_caffe.export.inference import Inference
from transfer_caffe.export.operators import OPERATORS, Place
from transfer_caffe.export.preprocessing import Preprocessing
from transfer_caffe.export.state import tensor_names
from transfer_caffe.utils.errors import UserError

FLOAT, BYTE = onnx.TensorProto.FLOAT, onnx.TensorProto.UINT8

BATCH = "batch"
"""The name of the first axis of blobs with any number of items."""

MOST_BYTES = 2**31 - 2**24
"""Protocol Buffers cannot store a message of 2 GiB or more; 16 MiB are left for all but the weights."""


@dataclass
class Model:
    """A net as an ONNX message, and where to find its blobs in it."""

    used: Inference
    proto: onnx.ModelProto
    blobs: dict[str, str]
    """The tensor of each blob."""
    open_batch: bool
    """Whether the number of items is left open."""
    preprocessing: Preprocessing | None = None
    image_input: str = ""
    """The input for images as bytes, if the preprocessing is part of the graph."""
    shapes: dict[str, Shape] = field(default_factory=dict)

    def without_weights(self) -> Model:
        """Drop the copy of the weights in ``proto``, once it is written; return the model."""
        self.proto.graph.ClearField("initializer")
        return self

    def write(self, path: str | os.PathLike[str]) -> None:
        """Write the file; the caller gives a temporary name."""
        Path(path).write_bytes(self.proto.SerializeToString())


@dataclass
class _Drawn:
    """The graph of a net at one batch size: nodes, the tensor of each blob, and the shapes of all these tensors."""

    graph: Graph
    blobs: dict[str, str]
    shapes: dict[str, Shape]


def build(
    used: Inference, preprocessing: Preprocessing | None = None, with_preprocessing: bool = False,
    classes: Sequence[str] = (),
) -> Model:  # fmt: skip
    """Return a net as an ONNX model, with the batch size left open if the net allows it.

    ``preprocessing`` becomes metadata, and part of the graph if ``with_preprocessing``; ``classes`` are the names of
    the outputs. Raise UserError, which names the layer, for a layer that has no equivalent.
    """
    drawn = _draw(used)
    inputs = used.inputs
    # twice as many items, so that layers which divide the batch can do it again
    other = used.with_batch(2 * used.batch)
    redrawn = _draw(other) if other is not None else None
    open_batch = redrawn is not None and drawn.graph.same_as(redrawn.graph)
    dims: dict[str, list[int | str]] = {}
    for name, shape in drawn.shapes.items():
        dims[name] = list(shape)
        if redrawn is not None and open_batch and redrawn.shapes[name] != shape:
            # tensors with several values an item, such as slices of the batch, have no name for their size
            dims[name][0] = BATCH if shape[0] == used.batch else f"{BATCH}_of_{name}"
    graph = drawn.graph
    model = Model(used, onnx.ModelProto(), drawn.blobs, open_batch, preprocessing, shapes=drawn.shapes)
    named_inputs = {name: (FLOAT, dims[name]) for name in inputs}
    if with_preprocessing:
        assert preprocessing is not None
        preprocessing.check(inputs[used.images], used.images)
        images = used.images
        model.image_input = graph.free_name("image")
        batch = BATCH if open_batch else used.batch
        before = preprocessing.add_to(graph, model.image_input, images)
        graph.nodes[:] = graph.nodes[len(graph.nodes) - before :] + graph.nodes[: len(graph.nodes) - before]
        named_inputs = {model.image_input: (BYTE, [batch, *preprocessing.image_shape]), **named_inputs}
        del named_inputs[images]
    infos = [
        helper.make_tensor_value_info(name, FLOAT, dims[name])
        for name in drawn.shapes
        if name not in inputs or (with_preprocessing and name == used.images)
    ]
    outputs = [drawn.blobs[name] for name in used.net.outputs]
    proto = helper.make_graph(
        graph.nodes,
        used.net.name or "net",
        [helper.make_tensor_value_info(name, kind, shape) for name, (kind, shape) in named_inputs.items()],
        [helper.make_tensor_value_info(name, FLOAT, dims[name]) for name in outputs],
        value_info=[info for info in infos if info.name not in outputs],
    )
    model.proto = helper.make_model(
        proto, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION, producer_name="transfer_caffe",
        producer_version=__version__,
    )  # fmt: skip
    if graph.size > MOST_BYTES:
        raise UserError(f"net {used.net.name!r}: has more than 2 GiB of weights, which an ONNX file cannot store")
    graph.add_constants(model.proto.graph)
    helper.set_model_props(model.proto, _metadata(model, classes))
    return model


def _draw(used: Inference) -> _Drawn:
    """Add all layers of a net to a graph."""
    net, graph = used.net, Graph()
    inputs = list(used.inputs)
    names = _tensor_names(used)
    for name in {*inputs, *names.values()}:
        graph.reserve(name)
    current: dict[str, str] = {}
    shapes: dict[str, Shape] = {}
    sizes: dict[str, Shape] = {}
    known: dict[int, str] = {}
    for index, layer in enumerate(net.layers):
        if layer.type == "Input":
            for top in layer.top:
                current[top] = top
                sizes[top] = shapes[top] = net.shapes[top]
            continue
        if layer.type not in OPERATORS:
            raise layer.error("cannot be exported: layers of this type have no equivalent in ONNX or PyTorch")
        bottoms = [sizes[bottom] for bottom in layer.param.bottom]
        tops = [tuple(shape) for shape in layer.top_shapes(bottoms)]
        tensors = [names[index, top] for top in layer.top]
        weights = tensor_names(layer.param, len(layer.blobs))
        given = [current[bottom] for bottom in layer.param.bottom]
        place = Place(graph, layer, layer.key, given, bottoms, tensors, tops, weights, known)
        OPERATORS[layer.type](place)
        for top, tensor, shape in zip(layer.top, tensors, tops, strict=True):
            current[top], sizes[top], shapes[tensor] = tensor, shape, shape
    return _Drawn(graph, current, shapes)


def _tensor_names(used: Inference) -> dict[tuple[int, str], str]:
    """Return the tensor for each top of each layer (by the layer's index and the top)."""
    layers, inputs = used.net.layers, used.inputs
    last = {top: index for index, layer in enumerate(layers) for top in layer.top}
    names: dict[tuple[int, str], str] = {}
    for index, layer in enumerate(layers):
        for top in layer.top if layer.type != "Input" else ():
            name = top if last[top] == index and top not in inputs else f"{top}@{layer.key}"
            while name != top and name in last:  # another blob has this name
                name += "@"
            names[index, top] = name
    return names


def _metadata(model: Model, classes: Sequence[str]) -> dict[str, str]:
    """Return the metadata of a model: its input, preprocessing and classes; values are text, or JSON."""
    used, found = model.used, dict[str, Any]()
    if used.images:
        found["input"] = used.images
        found["input_shape"] = list(used.inputs[used.images][1:])
    if model.image_input:
        found["image_input"] = model.image_input
    found["blobs"] = {blob: tensor for blob, tensor in model.blobs.items() if blob != tensor}
    if model.preprocessing is not None:
        found |= model.preprocessing.metadata()
    if classes:
        found["classes"] = list(classes)
    return {f"caffe.{key}": value if isinstance(value, str) else json.dumps(value) for key, value in found.items()}
