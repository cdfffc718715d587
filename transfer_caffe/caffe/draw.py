"""Draw a net as a graph of layers and blobs (python/caffe/draw.py).

caffe.draw.draw_net_to_file(net_param, "net.svg")       # needs the program dot of Graphviz
caffe.draw.draw_net_to_file(net_param, "net.dot")       # its text; needs nothing
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from transfer_caffe.caffe.errors import CaffeError
from transfer_caffe.formats.nets import included
from transfer_caffe.formats.proto.caffe_pb2 import LayerParameter, NetParameter, NetState, PoolingParameter
from transfer_caffe.utils.files import write_bytes

FILLED = {"style": "filled"}
LAYER_STYLE_DEFAULT = {"shape": "record", "fillcolor": "#8FB3E6", **FILLED}
NEURON_LAYER_STYLE = {"shape": "record", "fillcolor": "#A8DDA8", **FILLED}
BLOB_STYLE = {"shape": "octagon", "fillcolor": "#E6E6E6", **FILLED}
COLOURS = {
    "Convolution": "#E88E8E", "Deconvolution": "#E88E8E", "Pooling": "#F0B660", "InnerProduct": "#C79BE0",
}  # fmt: skip
LEARNING = ("Convolution", "Deconvolution", "InnerProduct")


def get_pooling_types_dict() -> dict[int, str]:
    """Return the names of the pooling methods by number."""
    return {number: name for name, number in PoolingParameter.PoolMethod.items()}


def choose_color_by_layertype(layertype: str) -> str:
    """Return the colour of a layer type."""
    return COLOURS.get(layertype, LAYER_STYLE_DEFAULT["fillcolor"])


def get_layer_lr_mult(layer: LayerParameter) -> tuple[float, float]:
    """Return the learning rate multipliers of a layer's weights and bias. Raise ValueError if it has none."""
    if layer.type not in LEARNING:
        raise ValueError(f"{layer.type} layers do not have a learning rate multiplier")
    if len(layer.param) > 2:
        raise ValueError("Could not parse the learning rate multiplier")
    given = [spec.lr_mult for spec in layer.param]
    weights, bias = [*given, 1.0, 1.0][:2]
    return weights, bias


def get_edge_label(layer: LayerParameter) -> str:
    """Return what is written on the edges to a layer's tops: its batch size or number of outputs."""
    if layer.type == "Data":
        return f"Batch {layer.data_param.batch_size}"
    if layer.type in ("Convolution", "Deconvolution"):
        return str(layer.convolution_param.num_output)
    return str(layer.inner_product_param.num_output) if layer.type == "InnerProduct" else '""'


def get_layer_label(layer: LayerParameter, rankdir: str, display_lrm: bool = False) -> str:
    """Return what is written on a layer, in double quotes: name, type, and how it slides over images."""
    parts = [layer.name, f"({layer.type})"]
    if layer.type == "Pooling":
        pooling = layer.pooling_param
        parts[1] = f"(Pooling {get_pooling_types_dict()[pooling.pool]})"
        sizes: list[Any] = [pooling.kernel_size, pooling.stride, pooling.pad]
    else:
        param = layer.convolution_param
        sizes = [[*param.kernel_size, 1][0], [*param.stride, 1][0], [*param.pad, 0][0]]
    if layer.type in ("Convolution", "Deconvolution", "Pooling"):
        parts += [f"kernel size: {sizes[0]}", f"stride: {sizes[1]}", f"pad: {sizes[2]}"]
    if display_lrm and layer.type in LEARNING and any(multipliers := get_layer_lr_mult(layer)):
        parts.append("lr mult: {:.1f}, {:.1f}".format(*multipliers))
    text = (" " if rankdir in ("TB", "BT") else r"\n").join(parts)
    return '"' + text.replace('"', "'") + '"'


Node = tuple[str, str, dict[str, str]]
Edge = tuple[str, str, str]


def _graph(
    net: NetParameter, rankdir: str, label_edges: bool, phase: int | None, display_lrm: bool
) -> tuple[dict[str, Node], list[Edge]]:
    """Return the nodes by key, each with label and style, and the edges between keys, each with a label."""
    nodes: dict[str, Node] = {}
    edges: list[Edge] = []
    for layer in _layers(net, phase):
        in_place = list(layer.bottom) == list(layer.top) and len(layer.bottom) == 1
        style = dict(LAYER_STYLE_DEFAULT, fillcolor=choose_color_by_layertype(layer.type))
        style = NEURON_LAYER_STYLE if in_place else style
        key = f"layer {layer.name} {layer.type}"
        nodes[key] = (f"{layer.name}_{layer.type}", get_layer_label(layer, rankdir, display_lrm), style)
        for blob in (*layer.bottom, *layer.top):
            nodes.setdefault(f"blob {blob}", (blob, _quoted(blob), BLOB_STYLE))
        edges += [(f"blob {blob}", key, '""') for blob in layer.bottom]
        edges += [(key, f"blob {blob}", get_edge_label(layer) if label_edges else '""') for blob in layer.top]
    return nodes, edges


def _layers(net: NetParameter, phase: int | None) -> Iterator[LayerParameter]:
    state = NetState() if phase is None else NetState(phase=phase)  # pyright: ignore[reportArgumentType]
    yield from (layer for layer in net.layer if phase is None or included(layer, state))


def _quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"' if not text.startswith('"') else text


def to_dot(
    caffe_net: NetParameter, rankdir: str = "LR", label_edges: bool = True, phase: int | None = None,
    display_lrm: bool = False,
) -> str:  # fmt: skip
    """Return the graph of a net as text in Graphviz's language."""
    nodes, edges = _graph(caffe_net, rankdir, label_edges, phase, display_lrm)
    numbers = {key: f"n{number}" for number, key in enumerate(nodes)}
    lines = [f"digraph {_quoted(caffe_net.name or 'Net')} {{", f"rankdir={rankdir};"]
    for key, (_, label, style) in nodes.items():
        attributes = ", ".join(f"{name}={_quoted(value)}" for name, value in style.items())
        lines.append(f"{numbers[key]} [label={label}, {attributes}];")
    lines += [f"{numbers[start]} -> {numbers[end]} [label={_quoted(label)}];" for start, end, label in edges]
    return "\n".join([*lines, "}", ""])


def get_pydot_graph(
    caffe_net: NetParameter, rankdir: str, label_edges: bool = True, phase: int | None = None,
    display_lrm: bool = False,
) -> Any:  # fmt: skip
    """Return the graph of a net as an object of the package pydot, which must be installed."""
    try:
        import pydot  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise ImportError("get_pydot_graph needs the package pydot (pip install pydot); draw_net does not") from None
    nodes, edges = _graph(caffe_net, rankdir, label_edges, phase, display_lrm)
    graph = pydot.Dot(_quoted(caffe_net.name or "Net"), graph_type="digraph", rankdir=rankdir)
    made = {key: pydot.Node(_quoted(name), label=label, **style) for key, (name, label, style) in nodes.items()}
    for node in made.values():
        graph.add_node(node)
    for start, end, label in edges:
        graph.add_edge(pydot.Edge(made[start], made[end], label=label))
    return graph


def draw_net(
    caffe_net: NetParameter, rankdir: str, ext: str = "png", phase: int | None = None, display_lrm: bool = False
) -> bytes:
    """Return the picture of a net in a format of Graphviz; ``ext`` dot or raw is the graph as text.

    ``rankdir`` is the direction of the graph (LR, TB or BT), ``phase`` limits it to a phase's layers. Raise
    RuntimeError if the program dot is missing or refuses the format.
    """
    text = to_dot(caffe_net, rankdir, True, phase, display_lrm).encode()
    if ext in ("dot", "raw"):
        return text
    program = shutil.which("dot")
    if program is None:
        raise CaffeError(f"drawing {ext} needs the program dot: install Graphviz, or use ext dot, which is its text")
    result = subprocess.run([program, f"-T{ext}"], input=text, capture_output=True)
    if result.returncode:
        raise CaffeError(f"dot -T{ext}: {result.stderr.decode(errors='replace').strip()}")
    return result.stdout


def draw_net_to_file(
    caffe_net: NetParameter, filename: str | os.PathLike[str], rankdir: str = "LR", phase: int | None = None,
    display_lrm: bool = False,
) -> None:  # fmt: skip
    """Write the picture of a net, in the format of the file's extension."""
    ext = Path(filename).suffix.lstrip(".")
    write_bytes(filename, draw_net(caffe_net, rankdir, ext, phase, display_lrm))
