"""Weight surgery: write a network's initial .caffemodel, with exactly the layers that it copies from its base.

    python -m transfer_caffe.surgery --treatment A3B+ --base base.caffemodel \\
        --net train_val.prototxt --out init.caffemodel

`caffe train --weights` copies layers by name and initialises the others with their fillers, without reporting either.
The file therefore holds the first n layers that have weights, bit-identical to the base's, and no other layer. It has
the current format (`shape`, float `data`), whatever the base's format. A missing layer, a wrong number of blobs, a
shape mismatch or a damaged file is an error that names the layer.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from transfer_caffe.experiment.architecture import Shape, image_shape, require_frozen, weight_shapes
from transfer_caffe.experiment.stages import stages_of
from transfer_caffe.experiment.treatment import Treatment
from transfer_caffe.formats.hdf5 import is_hdf5, read_weights
from transfer_caffe.formats.proto import array_to_blob, blob_shape, blob_to_array, read_binary, read_text, write_binary
from transfer_caffe.formats.proto.caffe_pb2 import BlobProto, LayerParameter, NetParameter
from transfer_caffe.formats.upgrade import upgrade_net
from transfer_caffe.utils.errors import ArgumentParser, UserError, command, require_file
from transfer_caffe.utils.files import refuse_existing


@dataclass(frozen=True)
class Row:
    """How one layer starts: copied from the base or freshly initialised, learning or frozen, and its blobs' shapes."""

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
    cuts: Sequence[str] = (),
) -> list[Row]:
    """Write ``out_path``, a .caffemodel with the first n stages of the base, and return the table of all layers.

    ``net`` is the network that they are copied to (its prototxt or message); ``cuts`` are those of its stages, if the
    recipe names some. ``by_pycaffe``: pycaffe copies the weights (`real_caffe.surgery`); the file is the same. A
    file at ``out_path`` is replaced, by rename. UserError for weights that do not fit.
    """
    if not treatment.copies:
        raise UserError(f"treatment {treatment} copies no layers, so it needs no initial weights")
    if not isinstance(net, NetParameter):
        net = upgrade_net(read_text(net, NetParameter()), os.fspath(net))
    where = f"{os.fspath(base_path)} (the base of {net.name or treatment})"
    stages = stages_of(net, cuts)
    treatment.require_stages(len(stages))
    require_frozen(net, treatment, cuts)
    shapes = weight_shapes(net)
    number_of = {name: stage.number for stage in stages for name in stage.weighted}
    base = _read_base(base_path, where)
    by_name = {layer.name: layer for layer in base.layer}
    taken: dict[str, list[np.ndarray]] = {}
    rows = []
    for name, wanted in shapes.items():
        i = number_of.get(name, len(stages))  # an auxiliary classifier is never copied
        # above n as well: a file that ends early still parses where it ends between layers; weights from elsewhere may
        # be of a net with another end
        if name not in by_name and (i <= treatment.n or not treatment.is_external):
            has = ", ".join(layer.name for layer in base.layer if layer.blobs) or "no layer"
            raise UserError(
                f"{where}: layer {name} is missing: the file is truncated or from another network; "
                f"it has weights for {has}"
            )
        if i <= treatment.n:
            _check_blobs(by_name[name], wanted, f"{where}: layer {name}")
            taken[name] = [
                blob_to_array(blob, where).reshape(shape)
                for blob, shape in zip(by_name[name].blobs, wanted, strict=True)
            ]
        rows.append(Row(name, "copied" if i <= treatment.n else "fresh", i > treatment.frozen, wanted))
    if by_pycaffe:
        from transfer_caffe.real_caffe.surgery import blobs_by_pycaffe

        taken = blobs_by_pycaffe(base_path, net, image_shape(net), list(taken))
    out = NetParameter(name=net.name)
    types = {layer.name: layer.type for layer in net.layer}
    for name, arrays in taken.items():
        out.layer.add(name=name, type=types[name], blobs=[array_to_blob(array) for array in arrays])
    write_binary(out_path, out)
    return rows


def _read_base(path: str | os.PathLike[str], where: str) -> NetParameter:
    """Read a .caffemodel of any age, or the HDF5 form of one."""
    if not is_hdf5(path):
        return upgrade_net(read_binary(path, NetParameter()), where)

    base = NetParameter()
    for name, blobs in read_weights(os.fspath(path)).items():
        base.layer.add(name=name, blobs=[array_to_blob(blobs[index]) for index in sorted(blobs)])
    return base


def _check_blobs(layer: LayerParameter, wanted: tuple[Shape, ...], where: str) -> None:
    if len(layer.blobs) != len(wanted):
        raise UserError(f"{where}: it has {len(layer.blobs)} blobs, {len(wanted)} are needed (weights, biases)")
    for i, (blob, shape) in enumerate(zip(layer.blobs, wanted, strict=True)):
        there, values = blob_shape(blob), blob.double_data or blob.data
        if not _same_shape(blob, shape):
            raise UserError(
                f"{where}, blob {i}: shape mismatch: its shape is {_by(there)}, the network needs {_by(shape)}"
            )
        if len(values) != math.prod(shape):
            raise UserError(f"{where}, blob {i}: it has {len(values)} values, which does not match shape {_by(shape)}")
        # one inf or NaN makes the sum inf or NaN; summing 38 million values takes half a second
        if not math.isfinite(sum(values)):
            raise UserError(f"{where}, blob {i}: not all of its values are finite: the base has diverged")


def _same_shape(blob: BlobProto, shape: Shape) -> bool:
    """Compare shapes as Blob::ShapeEquals: in files from before 2015, shapes are padded to 4 axes with leading ones."""
    there = blob_shape(blob)
    if blob.HasField("shape") or not there:
        return there == shape
    return there == (1,) * (4 - len(shape)) + shape


def table(rows: list[Row]) -> str:
    """Format the rows as a text table."""
    width = max([7, *(len(row.layer) for row in rows)]) + 1
    lines = [f"{'layer':<{width}}{'start':<9}{'then':<9}shapes"]
    for row in rows:
        state = "learns" if row.learns else "frozen"
        lines.append(f"{row.layer:<{width}}{row.start:<9}{state:<9}{', '.join(_by(shape) for shape in row.shapes)}")
    return "\n".join(lines)


def _by(shape: Shape) -> str:
    return " x ".join(str(side) for side in shape)


EXAMPLES = """example:
  python -m transfer_caffe.surgery --treatment A3B+ --base base.caffemodel \\
      --net train_val.prototxt --out init.caffemodel
"""


@command
def main(argv: list[str] | None = None) -> int | None:
    """Run the command line."""
    parser = ArgumentParser(
        prog="python -m transfer_caffe.surgery",
        description="Write a network's initial .caffemodel: the first n layers of its base, and no other layer.",
        epilog=EXAMPLES,
    )
    parser.add_argument("--treatment", required=True, help="A3B, B3B, A3B+, ...")
    parser.add_argument("--base", required=True, metavar="FILE", help="the base network's .caffemodel")
    parser.add_argument("--net", required=True, metavar="FILE", help="the prototxt of the network to be trained")
    parser.add_argument("--out", required=True, metavar="FILE", help="the .caffemodel to write")
    parser.add_argument(
        "--with",
        dest="by",
        choices=["pycaffe"],
        help="let pycaffe copy the weights (real Caffe's, or else the embedded engine's); the file is byte-identical",
    )
    parser.add_argument(
        "--cuts", default="", metavar="BLOBS", help="blobs where stages end, with commas, if not all cuts"
    )
    parser.add_argument("--force", action="store_true", help="overwrite an existing file")
    args = parser.parse_args(argv)
    treatment = Treatment.parse(args.treatment)
    if not args.force:
        refuse_existing(args.out, "choose another --out, or give --force to overwrite it")
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
    cuts = [cut for cut in args.cuts.split(",") if cut]
    rows = take_over(args.base, args.net, treatment, args.out, args.by == "pycaffe", cuts)
    print(f"{table(rows)}\nwrote {args.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
