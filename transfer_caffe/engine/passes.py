"""Analysis of a net before its passes run: overwritten buffers, postponed ReLUs, and bottoms that get no gradient.

Caffe computes in place, and its backward pass reads what later layers have left in the buffers (caffe/net.cpp).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set

from transfer_caffe.engine.layers import Buffer, Layer
from transfer_caffe.engine.layers.base import ReadsTop
from transfer_caffe.engine.layers.data import Images
from transfer_caffe.engine.layers.neuron import Neuron, ReLU
from transfer_caffe.engine.layers.vision import LRN, Convolution, Pooling


def keep_overwritten(layers: Sequence[Layer]) -> None:
    """Give a `Buffer` to each layer whose backward pass, in Caffe, reads values that a later layer has overwritten."""
    last = {layer.top[0]: layer for layer in layers if layer.top}
    for layer in layers:
        if isinstance(layer, ReadsTop | LRN) and (
            last[layer.top[0]] is not layer
            or (isinstance(layer, Neuron) and layer.in_place and not layer.keeps_slope_in_place)
        ):
            layer.buffer = Buffer()


def images_to_convert(layers: Sequence[Layer], used: Set[str]) -> list[Images]:
    """Find the layers whose images, of the blobs in ``used``, only layers in the net's own precision read.

    A device then makes them in that precision, in which they take half of the memory traffic.
    """
    found = []
    for layer in layers:
        if isinstance(layer, Images) and layer.by_device and layer.top[0] in used and not layer.param.loss_weight:
            users = [other for other in layers if layer.top[0] in other.param.bottom]
            if all(user.precision == "low" for user in users):
                found.append(layer)
    return found


def relus_to_postpone(
    layers: Sequence[Layer], counts_in_loss: Sequence[bool], cuts: Mapping[Layer, set[int]]
) -> dict[Layer, ReLU]:
    """Find in-place ReLUs whose output only a MAX pooling reads; return a dict from that pooling, marked, to the ReLU.

    Such a ReLU can be applied to the pooling's top instead: max and ReLU commute, and the gradient goes to the same
    element or nowhere. The top has a quarter of the values. This saves 4% of an iteration of conv 16-32-48-48-32 on
    28 x 28 images and 1% of an iteration of CaffeNet (CPU).
    """
    found: dict[Layer, ReLU] = {}
    for index, relu in enumerate(layers):
        if not isinstance(relu, ReLU) or not relu.in_place or relu.param.relu_param.negative_slope:
            continue
        if counts_in_loss[index]:  # the ReLU's own top contributes to the loss
            continue
        blob = relu.top[0]
        users = [layer for layer in layers[index + 1 :] if blob in layer.param.bottom]
        buffered = any(layer.buffer is not None and layer.top[0] == blob for layer in layers)
        if len(users) != 1 or buffered or any(cuts.get(layer) for layer in (relu, users[0])):
            continue
        if isinstance(users[0], Pooling) and users[0].is_plain_maximum:
            users[0].relu_postponed = True
            found[users[0]] = relu
    return found


def biases_to_postpone(
    layers: Sequence[Layer], relu_after: Mapping[Layer, ReLU], counts_in_loss: Sequence[bool]
) -> dict[Layer, Convolution]:
    """Find convolutions whose top only a postponed ReLU and its pooling read; return a dict from that pooling to them.

    On a GPU one operation then adds the bias, pools and rectifies (`layers.pool_triton`).
    """
    found: dict[Layer, Convolution] = {}
    for pooling, relu in relu_after.items():
        blob = relu.top[0]
        makers = [layer for layer in layers if blob in layer.top and layer is not relu]
        users = [layer for layer in layers if blob in layer.param.bottom]
        if len(makers) != 1 or len(users) != 2 or counts_in_loss[layers.index(makers[0])]:
            continue
        if type(makers[0]) is Convolution and makers[0].bias_can_wait:
            found[pooling] = makers[0]
    return found


def biases_to_rectify(
    layers: Sequence[Layer], counts_in_loss: Sequence[bool], cuts: Mapping[Layer, set[int]]
) -> dict[Layer, Convolution]:
    """Find convolutions whose top an in-place ReLU changes before others read it; return a dict from the ReLU to them.

    On a GPU one operation then adds the bias and rectifies (`layers.pool_triton`).
    """
    found: dict[Layer, Convolution] = {}
    for index, maker in enumerate(layers):
        if type(maker) is not Convolution or not maker.bias_can_wait or counts_in_loss[index]:
            continue
        users = [layer for layer in layers[index + 1 :] if maker.top[0] in (*layer.param.bottom, *layer.top)]
        relu = users[0] if users else None
        if not isinstance(relu, ReLU) or relu.param.relu_param.negative_slope:
            continue
        if relu.in_place and relu.buffer is None and not cuts.get(relu):
            found[relu] = maker
    return found


def norms_to_join(
    layers: Sequence[Layer], poolings: Sequence[Pooling], counts_in_loss: Sequence[bool]
) -> dict[Layer, LRN]:
    """Find LRN layers that alone read the top of one of ``poolings``; return a dict from that pooling to its LRN.

    On a GPU one operation then pools and normalises (`layers.pool_triton`).
    """
    found: dict[Layer, LRN] = {}
    for pooling in poolings:
        blob = pooling.top[0]
        users = [layer for layer in layers if blob in layer.param.bottom]
        if len(users) != 1 or not isinstance(users[0], LRN) or counts_in_loss[layers.index(pooling)]:
            continue
        norm = users[0]
        if norm.can_be_joined and norm.buffer is None:
            found[pooling] = norm
    return found


def find_cuts(layers: Sequence[Layer]) -> dict[Layer, set[int]]:
    """Return, for each layer, the indices of bottoms that get no gradient because propagate_down is false.

    Some layers of real Caffe ignore propagate_down; their gradient counts where another layer uses the blob as well.
    """
    cuts = {layer: {index for index, down in enumerate(layer.param.propagate_down) if not down} for layer in layers}
    open_blobs = {blob for layer in layers for index, blob in enumerate(layer.param.bottom) if index not in cuts[layer]}
    for layer, cut in cuts.items():
        if layer.ignores_propagate_down and not layer.in_place:
            cut -= {index for index in cut if layer.param.bottom[index] in open_blobs}
    return cuts
