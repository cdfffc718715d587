"""Insert Split layers into a net, as Caffe does when it builds one (caffe/util/insert_splits.cpp).

A blob that several layers use becomes the bottom of a Split layer, with a top for each of them. Blobs and layers then
have pycaffe's names and order: `fc8_fc8_0_split_0` is the first top of the Split layer `fc8_fc8_0_split`.
"""

from __future__ import annotations

from collections import Counter, defaultdict

from transfer_caffe.formats.nets import included
from transfer_caffe.formats.proto.caffe_pb2 import LayerParameter, NetParameter, NetState

Top = tuple[int, int]
"""A top: the index of its layer and its index among that layer's tops."""


def net_in_state(param: NetParameter, state: NetState) -> NetParameter:
    """Return the layers that a net has in a state, with Split layers inserted."""
    layers = [layer for layer in param.layer if included(layer, state)]
    uses, sources = _uses(layers)
    out = NetParameter()
    out.CopyFrom(param)
    del out.layer[:]
    taken: dict[Top, int] = defaultdict(int)
    for index, layer in enumerate(layers):
        copy = out.layer.add()
        copy.CopyFrom(layer)
        for place, blob in enumerate(layer.bottom):
            top = sources.get((index, place))
            if top is not None and uses[top] > 1:
                copy.bottom[place] = f"{split_name(layers, top, blob)}_{taken[top]}"
                taken[top] += 1
        for place, blob in enumerate(layer.top):
            top = index, place
            if uses[top] < 2:
                continue
            split = out.layer.add(name=split_name(layers, top, blob), type="Split", bottom=[blob])
            split.top.extend(f"{split.name}_{number}" for number in range(uses[top]))
            weight = _weight(layer, place)
            if weight:
                # the first top of the split takes the place of the blob in the loss
                split.loss_weight.extend([weight, *[0.0] * (uses[top] - 1)])
                del copy.loss_weight[:]
                taken[top] += 1
    return out


def split_name(layers: list[LayerParameter], top: Top, blob: str) -> str:
    """Return the name of the Split layer of a top."""
    return f"{blob}_{layers[top[0]].name}_{top[1]}_split"


def _uses(layers: list[LayerParameter]) -> tuple[Counter[Top], dict[tuple[int, int], Top]]:
    """Return how often each top is used, and, for each bottom (layer, index), the top that it reads."""
    newest: dict[str, Top] = {}
    uses: Counter[Top] = Counter()
    sources: dict[tuple[int, int], Top] = {}
    for index, layer in enumerate(layers):
        for place, blob in enumerate(layer.bottom):
            if blob in newest:  # the net reports one that is not
                sources[index, place] = newest[blob]
                uses[newest[blob]] += 1
        for place, blob in enumerate(layer.top):
            newest[blob] = index, place
        for place in range(len(layer.top)):
            if _weight(layer, place):
                uses[index, place] += 1
    return uses, sources


def _weight(layer: LayerParameter, top: int) -> float:
    return layer.loss_weight[top] if top < len(layer.loss_weight) else 0.0
