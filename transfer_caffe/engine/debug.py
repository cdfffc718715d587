"""The lines that `debug_info` adds to the log (Net::ForwardDebugInfo, BackwardDebugInfo and Backward in net.cpp).

They hold mean absolute values: of tops and learnable blobs after each layer's forward pass, of gradients after its
backward pass. A solver's `debug_info` concerns its test passes and the iterations that it displays.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from torch import Tensor

from transfer_caffe.engine import glog
from transfer_caffe.engine.layers import Layer
from transfer_caffe.engine.net import Net


def is_on(net: Net) -> bool:
    """Return whether a net's next pass is to be logged."""
    return net.debug_info and glog.is_logging()


def log_forward(layer: Layer, tops: Sequence[Tensor], params: Sequence[Tensor]) -> None:
    """Log the values of a layer's tops and of its learnable blobs."""
    names = [spec.name for spec in layer.param.param]
    for name, values in zip(layer.top, tops, strict=True):
        _log("net.cpp:593", "Forward", layer, f"top blob {name} data", values)
    for index, values in enumerate(params):
        name = names[index] if index < len(names) and names[index] else index
        _log("net.cpp:605", "Forward", layer, f"param blob {name} data", values)


def log_backward(layer: Layer, bottoms: Iterable[tuple[str, Tensor]], params: Iterable[tuple[int, Tensor]]) -> None:
    """Log the gradients of a layer's bottoms, by name, and of its learnable blobs, by index."""
    for name, gradient in bottoms:
        _log("net.cpp:621", "Backward", layer, f"bottom blob {name} diff", gradient)
    for index, gradient in params:
        _log("net.cpp:632", "Backward", layer, f"param blob {index} diff", gradient)


def log_params(data: Sequence[Tensor], gradients: Sequence[Tensor]) -> None:
    """Log the norms of all learnable blobs of a net and of their gradients; Caffe does that as an error."""
    norms = []
    for order in (1, 2):
        pair = [_norm(tensors, order) for tensors in (data, gradients)]
        norms.append(f"L{order} norm = ({', '.join(map(glog.number, pair))})")
    glog.error("net.cpp:721", f"    [Backward] All net params (data, diff): {'; '.join(norms)}")


def _log(place: str, which: str, layer: Layer, what: str, values: Tensor) -> None:
    mean = _norm([values], 1) / values.numel() if values.numel() else math.nan
    glog.info(place, f"    [{which}] Layer {layer.name}, {what}: {glog.number(mean)}")


def _norm(tensors: Sequence[Tensor], order: int) -> float:
    powers = [float(each.detach().double().abs().pow(order).sum()) for each in tensors]
    return sum(powers) ** (1 / order)
