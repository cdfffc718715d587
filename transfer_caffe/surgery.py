"""Weight surgery: a network's initial .caffemodel, with exactly the layers that it takes over from its base.

    python -m transfer_caffe.surgery --treatment A3B+ --base base.caffemodel \\
        --net train_val.prototxt --out init.caffemodel

`caffe train --weights` copies layers by name and draws the others from their fillers, without a word about either.
So the file holds the first n layers that have weights, with the base's values to the last bit, and no other layer. It
has today's form (`shape`, float `data`), whatever the base's. A layer that is missing, a blob too many or too few,
another shape, a damaged file: each is an error that names it.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from transfer_caffe.errors import ArgumentParser, UserError, command, require_file
from transfer_caffe.files import refuse_existing
from transfer_caffe.generate import layers_with_weights, require_frozen
from transfer_caffe.proto import array_to_blob, blob_shape, blob_to_array, read_binary, read_text, write_binary
from transfer_caffe.proto.caffe_pb2 import TEST, BlobProto, LayerParameter, NetParameter, PoolingParameter
from transfer_caffe.treatment import Treatment
from transfer_caffe.upgrade import upgrade_net

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Row:
    """What became of one layer: copied from the base or fresh, learning or frozen, and its blobs' shapes."""

    layer: str
    start: Literal["copied", "fresh"]
    learns: bool
    shapes: tuple[Shape, ...]


def take_over(
    base_path: str | os.PathLike[str],
    net: NetParameter | str | os.PathLike[str],
    treatment: Treatment,
    out_path: str | os.PathLike[str],
    by_pycaffe: bool = False,
) -> list[Row]:
    """Write ``out_path``, a .caffemodel with the first n layers of the base, and return the table of all layers.

    ``net`` is the network that takes them over (its prototxt or message). ``by_pycaffe``: real Caffe copies the
    weights (`surgery_by_pycaffe`); the file is the same. What is at ``out_path`` is replaced, by rename. UserError for
    whatever does not fit.
    """
    if treatment.base is None:
        raise UserError(f"treatment {treatment} takes no weights over: it needs no surgery")
    if not isinstance(net, NetParameter):
        net = upgrade_net(read_text(net, NetParameter()), os.fspath(net))
    where = f"{os.fspath(base_path)} (the base of {net.name or treatment})"
    require_frozen(net, treatment)
    shapes = weight_shapes(net)
    if len(shapes) < treatment.n:
        raise UserError(f"network {net.name!r} has {len(shapes)} layers with weights; {treatment} takes {treatment.n}")
    base = upgrade_net(read_binary(base_path, NetParameter()), where)
    by_name = {layer.name: layer for layer in base.layer}
    taken: dict[str, list[np.ndarray]] = {}
    rows = []
    for i, (name, wanted) in enumerate(shapes.items(), start=1):
        if name not in by_name:  # above n as well: a file that ends early still parses where it ends between layers
            has = ", ".join(layer.name for layer in base.layer if layer.blobs) or "no layer"
            raise UserError(f"{where}: layer {name} is missing: cut off, or another network; it has weights for {has}")
        if i <= treatment.n:
            _check_blobs(by_name[name], wanted, f"{where}: layer {name}")
            taken[name] = [
                blob_to_array(blob, where).reshape(shape)
                for blob, shape in zip(by_name[name].blobs, wanted, strict=True)
            ]
        rows.append(Row(name, "copied" if i <= treatment.n else "fresh", i > treatment.frozen, wanted))
    if by_pycaffe:
        from transfer_caffe.surgery_by_pycaffe import blobs_by_pycaffe

        taken = blobs_by_pycaffe(base_path, net, image_shape(net), list(taken))
    out = NetParameter(name=net.name)
    types = {layer.name: layer.type for layer in net.layer}
    for name, arrays in taken.items():
        out.layer.add(name=name, type=types[name], blobs=[array_to_blob(array) for array in arrays])
    write_binary(out_path, out)
    return rows


def image_shape(net: NetParameter) -> Shape:
    """Channels, height and width of what the net is fed with."""
    source = next(layer for layer in net.layer if not layer.bottom)
    return _source_shape(source, f"network {net.name!r}, layer {source.name}")


def _check_blobs(layer: LayerParameter, wanted: tuple[Shape, ...], where: str) -> None:
    if len(layer.blobs) != len(wanted):
        raise UserError(f"{where}: {len(layer.blobs)} blobs are there, {len(wanted)} are needed (weights, biases)")
    for i, (blob, shape) in enumerate(zip(layer.blobs, wanted, strict=True)):
        there, values = blob_shape(blob), blob.double_data or blob.data
        if not _same_shape(blob, shape):
            raise UserError(f"{where}, blob {i}: its shape is {_by(there)}, the network needs {_by(shape)}")
        if len(values) != math.prod(shape):
            raise UserError(f"{where}, blob {i}: {len(values)} values are there, its shape {_by(shape)} says otherwise")
        # one infinite or undefined value makes the sum so; of 38 million this takes half a second
        if not math.isfinite(sum(values)):
            raise UserError(f"{where}, blob {i}: not all of its values are finite: the base has diverged")


def _same_shape(blob: BlobProto, shape: Shape) -> bool:
    """As Blob::ShapeEquals: files from before 2015 have four dimensions always, with ones in front."""
    if blob.HasField("shape"):
        return blob_shape(blob) == shape
    return blob_shape(blob) == (1,) * (4 - len(shape)) + shape


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


def table(rows: list[Row]) -> str:
    """The rows as text for people."""
    lines = [f"{'layer':<8}{'start':<9}{'then':<9}shapes"]
    for row in rows:
        state = "learns" if row.learns else "frozen"
        lines.append(f"{row.layer:<8}{row.start:<9}{state:<9}{', '.join(_by(shape) for shape in row.shapes)}")
    return "\n".join(lines)


def _by(shape: Shape) -> str:
    return " x ".join(str(side) for side in shape)


EXAMPLES = """example:
  python -m transfer_caffe.surgery --treatment A3B+ --base base.caffemodel \\
      --net train_val.prototxt --out init.caffemodel
"""


@command
def main(argv: list[str] | None = None) -> int | None:
    """The command line."""
    parser = ArgumentParser(
        prog="python -m transfer_caffe.surgery",
        description="Make a network's initial .caffemodel: the first n layers of its base, and nothing else.",
        epilog=EXAMPLES,
    )
    parser.add_argument("--treatment", required=True, help="A3B, B3B, A3B+, ...")
    parser.add_argument("--base", required=True, metavar="FILE", help="the base network's .caffemodel")
    parser.add_argument("--net", required=True, metavar="FILE", help="the prototxt of the network to be trained")
    parser.add_argument("--out", required=True, metavar="FILE", help="the .caffemodel to write")
    parser.add_argument(
        "--with", dest="by", choices=["pycaffe"], help="let real Caffe copy the weights (same file, to the byte)"
    )
    parser.add_argument("--force", action="store_true", help="overwrite an existing file")
    args = parser.parse_args(argv)
    treatment = Treatment.parse(args.treatment)
    if not args.force:
        refuse_existing(args.out, "give another --out, or --force to overwrite it")
    require_file(
        args.net,
        f"`python -m transfer_caffe.generate --treatment {treatment} --recipe RECIPE` writes a network's prototxt",
    )
    if treatment.base is not None:
        require_file(
            args.base,
            f"`python -m transfer_caffe.driver --treatment {treatment.base} --recipe RECIPE --split SPLIT` trains the "
            "base; its weights are then in snapshots/ of its folder",
        )
    rows = take_over(args.base, args.net, treatment, args.out, args.by == "pycaffe")
    print(f"{table(rows)}\nwrote {args.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
