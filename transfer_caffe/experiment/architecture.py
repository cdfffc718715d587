"""Properties derived from a net's prototxt: which layers a treatment freezes, and the shapes of all weights.

weight_shapes(net)["conv1"]         ((96, 3, 11, 11), (96,))
"""

from __future__ import annotations

import math

from transfer_caffe.experiment.treatment import Treatment
from transfer_caffe.formats.nets import layers_with_weights
from transfer_caffe.formats.proto.caffe_pb2 import TEST, LayerParameter, NetParameter
from transfer_caffe.formats.shapes import (
    Shape,
    convolution_blobs,
    convolution_sides,
    inner_product_blobs,
    pooling_sides,
    spatial,
)
from transfer_caffe.utils.errors import UserError


def require_frozen(net: NetParameter, treatment: Treatment) -> None:
    """Raise UserError unless the net freezes exactly the first n layers that the treatment freezes.

    A layer is frozen when the lr_mult of all its blobs is 0. Layers are counted from the image upwards.
    """
    for i, layer in enumerate(layers_with_weights(net), start=1):
        frozen = not any(param.lr_mult for param in layer.param) if layer.param else False
        if frozen != (i <= treatment.frozen):
            raise UserError(
                f"network {net.name!r}, layer {layer.name}: the net {'freezes it' if frozen else 'lets it learn'}, "
                f"but {treatment} freezes {treatment.frozen or 'no'} layers; generate the net for {treatment}"
            )


def image_shape(net: NetParameter) -> Shape:
    """Return channels, height and width of the net's input images."""
    source = next(layer for layer in net.layer if not layer.bottom)
    return _source_shape(source, f"network {net.name!r}, layer {source.name}")


def weight_shapes(net: NetParameter) -> dict[str, tuple[Shape, ...]]:
    """Return the blob shapes of every layer with weights, in the net's order, for three-channel images.

    The shapes are computed from the net alone: crop size, kernels, strides, outputs. Raise UserError for a layer type
    whose output shape cannot be computed here.
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
            raise UserError(f"{where}: no earlier layer produces its bottom {layer.bottom[0]!r}")
        images[layer.top[0]], shapes = _shapes(layer, images[layer.bottom[0]], where)
        if shapes:
            wanted[layer.name] = shapes
        if last and layer is last[0]:
            break  # layers after the last one with weights do not matter here
    return wanted


def _source_shape(layer: LayerParameter, where: str) -> Shape:
    if layer.type == "Input" and layer.input_param.shape:
        return tuple(layer.input_param.shape[0].dim[1:])
    crop = layer.transform_param.crop_size
    if not crop:
        raise UserError(f"{where}: the shapes of the weights cannot be computed without a crop_size; set crop_size")
    return (3, crop, crop)


def _shapes(layer: LayerParameter, image: Shape, where: str) -> tuple[Shape, tuple[Shape, ...]]:
    """Return the shape of a layer's output (for one image) and the shapes of its blobs."""
    if layer.type == "Convolution":
        conv = layer.convolution_param
        kernel = spatial(conv, "kernel_size", None)
        stride, pad, dilation = spatial(conv, "stride", 1), spatial(conv, "pad", 0), spatial(conv, "dilation", 1)
        sides = convolution_sides(image[1:], kernel, stride, pad, dilation)
        return (conv.num_output, *sides), convolution_blobs(conv, image[0], kernel)
    if layer.type == "InnerProduct":
        fc = layer.inner_product_param
        return (fc.num_output,), inner_product_blobs(fc, math.prod(image))
    if layer.type == "Pooling":
        return (image[0], *pooling_sides(layer.pooling_param, image[1:])), ()
    if layer.type in ("ReLU", "LRN", "Dropout", "Sigmoid", "TanH"):
        return image, ()
    raise UserError(f"{where}: the output shape of layer type {layer.type} cannot be computed here")
