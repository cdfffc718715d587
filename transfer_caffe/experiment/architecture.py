"""What follows from a net's prototxt: which layers a treatment freezes, and the shapes of all weights.

weight_shapes(net)["conv1"]         ((96, 3, 11, 11), (96,))
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from transfer_caffe.experiment.treatment import Treatment
from transfer_caffe.formats.nets import layers_with_weights
from transfer_caffe.formats.proto.caffe_pb2 import TEST, LayerParameter, NetParameter, PoolingParameter
from transfer_caffe.utils.errors import UserError


def require_frozen(net: NetParameter, treatment: Treatment) -> None:
    """UserError unless exactly the layers that the treatment freezes, from the image upwards, do not learn."""
    for i, layer in enumerate(layers_with_weights(net), start=1):
        frozen = not any(param.lr_mult for param in layer.param) if layer.param else False
        if frozen != (i <= treatment.frozen):
            raise UserError(
                f"network {net.name!r}, layer {layer.name}: by the net it {'is frozen' if frozen else 'learns'}, "
                f"but {treatment} freezes {treatment.frozen or 'no'} layers; generate the net for {treatment}"
            )


Shape = tuple[int, ...]


def image_shape(net: NetParameter) -> Shape:
    """Channels, height and width of what the net is fed with."""
    source = next(layer for layer in net.layer if not layer.bottom)
    return _source_shape(source, f"network {net.name!r}, layer {source.name}")


def weight_shapes(net: NetParameter) -> dict[str, tuple[Shape, ...]]:
    """The shapes of the blobs of every layer with weights, in the net's order, for three-channel images.

    The shapes follow from the net alone: crop size, kernels, strides, outputs. UserError for a layer type whose
    output shape is not known here.
    """
    images: dict[str, Shape] = {}
    wanted: dict[str, tuple[Shape, ...]] = {}
    last = layers_with_weights(net)[-1:]
    for layer in net.layer:
        where = f"network {net.name!r}, layer {layer.name}"
        if not layer.bottom:
            if any(rule.phase == TEST for rule in layer.include if rule.HasField("phase")):
                continue
            images[layer.top[0]] = _source_shape(layer, where)
            continue
        if layer.bottom[0] not in images:
            raise UserError(f"{where}: no layer before it makes its bottom {layer.bottom[0]!r}")
        images[layer.top[0]], shapes = _shapes(layer, images[layer.bottom[0]], where)
        if shapes:
            wanted[layer.name] = shapes
        if last and layer is last[0]:
            break  # what comes after the last layer with weights is of no interest
    return wanted


def _source_shape(layer: LayerParameter, where: str) -> Shape:
    if layer.type == "Input" and layer.input_param.shape:
        return tuple(layer.input_param.shape[0].dim[1:])
    crop = layer.transform_param.crop_size
    if not crop:
        raise UserError(f"{where}: without a crop_size the shapes of the weights do not follow from the net")
    return (3, crop, crop)


def _shapes(layer: LayerParameter, image: Shape, where: str) -> tuple[Shape, tuple[Shape, ...]]:
    """The shapes of a layer's output (of one image) and of its blobs."""
    if layer.type == "Convolution":
        conv = layer.convolution_param
        kernel = _pair(conv.kernel_h, conv.kernel_w, conv.kernel_size, 0)
        stride = _pair(conv.stride_h, conv.stride_w, conv.stride, 1)
        pad = _pair(conv.pad_h, conv.pad_w, conv.pad, 0)
        dilation = _pair(0, 0, conv.dilation, 1)
        sides = tuple(
            (side + 2 * p - (d * (k - 1) + 1)) // s + 1
            for side, k, s, p, d in zip(image[1:], kernel, stride, pad, dilation, strict=True)
        )
        weights = (conv.num_output, image[0] // conv.group, *kernel)
        return (conv.num_output, *sides), (weights, (conv.num_output,))[: 1 + conv.bias_term]
    if layer.type == "InnerProduct":
        fc = layer.inner_product_param
        inputs = math.prod(image)
        weights = (inputs, fc.num_output) if fc.transpose else (fc.num_output, inputs)
        return (fc.num_output,), (weights, (fc.num_output,))[: 1 + fc.bias_term]
    if layer.type == "Pooling":
        pool = layer.pooling_param
        if pool.global_pooling:
            return (image[0], 1, 1), ()
        return (image[0], *_pooled(pool, image)), ()
    if layer.type in ("ReLU", "LRN", "Dropout", "Sigmoid", "TanH"):
        return image, ()
    raise UserError(f"{where}: the output shape of layers of type {layer.type} is not known here")


def _pooled(pool: PoolingParameter, image: Shape) -> Shape:
    """As PoolingLayer::Reshape: rounded up (or as round_mode says), without a window that starts in the padding."""
    kernel = _pair(pool.kernel_h, pool.kernel_w, [pool.kernel_size], 0)
    stride = _pair(pool.stride_h, pool.stride_w, [pool.stride], 1)
    pad = _pair(pool.pad_h, pool.pad_w, [pool.pad], 0)
    sides = []
    for side, k, s, p in zip(image[1:], kernel, stride, pad, strict=True):
        room = side + 2 * p - k
        size = (room // s if pool.round_mode == PoolingParameter.FLOOR else -(-room // s)) + 1
        if p and (size - 1) * s >= side + p:
            size -= 1
        sides.append(size)
    return tuple(sides)


def _pair(height: int, width: int, both: Sequence[int], default: int) -> tuple[int, int]:
    """A setting given for height and width apart, once for both, or not at all."""
    if height or width:
        return height, width
    return (both[0], both[-1]) if both else (default, default)
