"""Properties derived from a net's prototxt: which layers a treatment freezes, and the shapes of all weights.

weight_shapes(net)["conv1"]         ((96, 3, 11, 11), (96,))
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from transfer_caffe.experiment.rewrite import blobs_of, classifiers
from transfer_caffe.experiment.stages import has_weights, main_loss, stages_of, training_layers
from transfer_caffe.experiment.treatment import Treatment
from transfer_caffe.formats.proto.caffe_pb2 import TRAIN, LayerParameter, NetParameter, NetState
from transfer_caffe.formats.shapes import (
    Shape,
    convolution_blobs,
    convolution_sides,
    inner_product_blobs,
    pooling_sides,
    spatial,
)
from transfer_caffe.utils.errors import UserError

if TYPE_CHECKING:
    from transfer_caffe.engine.net import Net


def require_frozen(net: NetParameter, treatment: Treatment, cuts: Sequence[str] = ()) -> None:
    """Raise UserError unless exactly the stages that the treatment freezes do not learn. ``cuts`` as in `stages_of`."""
    by_name = {layer.name: layer for layer in training_layers(net)}
    for stage in stages_of(net, cuts):
        for name in stage.weighted:
            layer = by_name[name]
            if layer.type == "BatchNorm":  # its statistics never learn by gradients
                continue
            # blobs without a param of their own learn
            learns = any(param.lr_mult for param in layer.param) or len(layer.param) < blobs_of(layer)
            frozen = not learns
            if frozen != (stage.number <= treatment.frozen):
                raise UserError(
                    f"network {net.name!r}, layer {layer.name}: the net {'freezes it' if frozen else 'lets it learn'}, "
                    f"but {treatment} freezes {treatment.frozen or 'no'} layers; generate the net for {treatment}"
                )


def weights_of_stages(net: NetParameter, n: int, cuts: Sequence[str] = ()) -> list[str]:
    """Return the names of the layers with weights in the first ``n`` stages, in the net's order."""
    return [name for stage in stages_of(net, cuts)[:n] for name in stage.weighted]


def weighted_layers(net: NetParameter) -> list[LayerParameter]:
    """Return all layers with weights that a network trains, in the net's order, auxiliary classifiers included."""
    return [layer for layer in training_layers(net) if has_weights(layer)]


def classes_of(net: NetParameter) -> int:
    """Return the number of outputs of the classifier that leads to the main loss."""
    layers = training_layers(net)
    main = main_loss(layers)
    if main is None:
        raise UserError(f"network {net.name!r} has no loss")
    return max(outputs_of(layer) for layer in classifiers(main, layers, f"network {net.name!r}"))


def outputs_of(layer: LayerParameter) -> int:
    """Return the num_output of a layer; 0 for a type that has none."""
    return layer.convolution_param.num_output or layer.inner_product_param.num_output


def image_shape(net: NetParameter) -> Shape:
    """Return channels, height and width of the net's input images."""
    source = next(layer for layer in net.layer if not layer.bottom)
    return _source_shape(source, f"network {net.name!r}, layer {source.name}")


def weight_shapes(net: NetParameter) -> dict[str, tuple[Shape, ...]]:
    """Return the shapes of the blobs of every layer with weights, in the net's order.

    They follow from the net alone: crop size, kernels, strides, outputs. A chain of common layers takes no PyTorch;
    for any other net the engine builds it. UserError for a net that cannot be built.
    """
    layers = training_layers(net)
    if all(layer.type in _PLAIN and layer.inner_product_param.axis == 1 for layer in layers if layer.bottom):
        with contextlib.suppress(ValueError, LookupError, ArithmeticError):  # the engine says what is wrong
            return _shapes_of_chain(net, layers)
    return shapes_by_engine(net)


_PLAIN = (
    "Convolution", "InnerProduct", "Pooling", "ReLU", "LRN", "Dropout", "Sigmoid", "TanH", "SoftmaxWithLoss",
    "Accuracy",
)  # fmt: skip


def _shapes_of_chain(net: NetParameter, layers: Sequence[LayerParameter]) -> dict[str, tuple[Shape, ...]]:
    images: dict[str, Shape] = {}
    wanted: dict[str, tuple[Shape, ...]] = {}
    last = next((layer for layer in reversed(layers) if has_weights(layer)), None)
    for layer in layers:
        where = f"network {net.name!r}, layer {layer.name}"
        if not layer.bottom:
            images[layer.top[0]] = _source_shape(layer, where)
            continue
        if layer.bottom[0] not in images:
            raise UserError(f"{where}: no layer before it makes its bottom {layer.bottom[0]!r}")
        images[layer.top[0]], shapes = _shapes(layer, images[layer.bottom[0]], where)
        if shapes:
            wanted[layer.name] = shapes
        if layer is last:
            break  # the layers after the last one with weights do not matter
    return wanted


def shapes_by_engine(net: NetParameter) -> dict[str, tuple[Shape, ...]]:
    """Build the training net without data, and return the shapes of its weights. UserError if it cannot be built."""
    made = built(net)
    return {layer.name: tuple(tuple(blob.data.shape) for blob in layer.blobs) for layer in made.layers if layer.blobs}


def built(net: NetParameter) -> Net:
    """Return the engine's training net for one image, without data. UserError if it cannot be built."""
    import torch  # takes a second to load, and most nets do without

    from transfer_caffe.engine.net import Net

    layers = training_layers(net)
    source = next(layer for layer in layers if not layer.bottom)
    image = _source_shape(source, f"network {net.name!r}, layer {source.name}")
    fed = LayerParameter(name=source.name, type="Input", top=source.top)
    fed.input_param.shape.add(dim=[1, *image])
    for _ in source.top[1:]:
        fed.input_param.shape.add(dim=[1])
    computed = NetParameter(name=net.name, layer=[fed, *(layer for layer in layers if layer is not source)])
    return Net(computed, NetState(phase=TRAIN), 1, torch.device("cpu"))


def _source_shape(layer: LayerParameter, where: str) -> Shape:
    if layer.type == "Input" and layer.input_param.shape:
        return tuple(layer.input_param.shape[0].dim[1:])
    crop = layer.transform_param.crop_size
    if not crop:
        raise UserError(f"{where}: the shapes of the weights cannot be computed without a crop_size; set crop_size")
    return (1 if layer.transform_param.force_gray else 3, crop, crop)


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
