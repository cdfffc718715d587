"""Print the stages of a net: what n counts in treatments such as A3B, and where the net can be cut.

    python -m transfer_caffe.architecture train_val.prototxt
    python -m transfer_caffe.architecture deploy.prototxt --crop 224 --cuts pool1,pool2,pool5

The net may be of any age, with data layers or with an input. What a stage is, `experiment/stages.py` says.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from transfer_caffe.experiment.architecture import built
from transfer_caffe.experiment.own_net import read_own_net
from transfer_caffe.experiment.stages import Stage, cuts_of, stages_of, training_layers
from transfer_caffe.formats.proto.caffe_pb2 import NetParameter
from transfer_caffe.utils.errors import ArgumentParser, UserError, command, require_file

EXAMPLES = """examples:
  python -m transfer_caffe.architecture train_val.prototxt
  python -m transfer_caffe.architecture deploy.prototxt --crop 224 --cuts pool1,pool2,pool5
"""


def table(stages: Sequence[Stage], net: NetParameter) -> str:
    """Return one line per stage: n, name, cut, shares of all weights and of all arithmetic, and layers with weights.

    Arithmetic is counted as the multiplications of matrix products in the forward pass of one image.
    """
    from transfer_caffe.engine.iteration.threads import products  # takes a second to load: not for --help

    made = built(net)
    sizes = {layer.name: sum(blob.data.numel() for blob in layer.blobs) for layer in made.layers}
    costs = {layer.name: products(made, layer) for layer in made.layers}
    total = sum(sizes[name] for stage in stages for name in stage.weighted)
    spent = sum(costs[name] for stage in stages for name in stage.weighted) or 1.0
    rows = [("n", "stage", "cut", "weights", "arithmetic", "layers with weights")]
    for stage in stages:
        own = sum(sizes[name] for name in stage.weighted)
        share = sum(costs[name] for name in stage.weighted) / spent
        names = ", ".join(stage.weighted[:4]) + (
            f" and {len(stage.weighted) - 4} more" if len(stage.weighted) > 4 else ""
        )
        rows.append((str(stage.number), stage.name, stage.cut, f"{own:,} ({own / total:.1%})", f"{share:.1%}", names))
    widths = [max(len(row[column]) for row in rows) for column in range(5)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row[:5], widths, strict=True)) + f"  {row[5]}"
        for row in rows
    )


def with_crop(net: NetParameter, crop: int | None) -> NetParameter:
    """Return the net for images of ``crop`` pixels: its data layers crop them, its input has that size."""
    copy = NetParameter()
    copy.CopyFrom(net)
    for layer in copy.layer:
        if layer.bottom or crop is None:
            continue
        if layer.type == "Input" and layer.input_param.shape:
            shape = layer.input_param.shape[0]
            shape.dim[2:] = [crop, crop]
        else:
            layer.transform_param.crop_size = crop
    return copy


@command
def main(argv: list[str] | None = None) -> int | None:
    """The command line."""
    parser = ArgumentParser(
        prog="python -m transfer_caffe.architecture",
        description="Print the stages of a net: what n counts in treatments such as A3B, and where the net can be cut.",
        epilog=EXAMPLES,
    )
    parser.add_argument("net", metavar="NET", help="a train_val.prototxt or deploy.prototxt, or a template (.j2)")
    parser.add_argument(
        "--cuts", metavar="BLOBS", help="blobs where stages end, with commas (default: all possible cuts)"
    )
    parser.add_argument("--crop", type=int, metavar="PIXELS", help="side of the images, if the net does not say it")
    args = parser.parse_args(argv)
    require_file(
        args.net, "give the path of a prototxt; `python -m transfer_caffe.generate --treatment baseA` writes one"
    )
    if args.crop is not None and args.crop < 1:
        raise UserError(f"--crop {args.crop}: a number of pixels, 1 or more, was expected")
    net = with_crop(read_own_net(args.net, args.crop), args.crop)
    cuts = [cut for cut in args.cuts.split(",") if cut] if args.cuts else []
    stages = stages_of(net, cuts)
    print(table(stages, net))
    beside = [layer.name for layer in training_layers(net) if layer.bottom]
    beside = [name for name in beside if not any(name in stage.layers for stage in stages)]
    if beside:
        print(f"\nin no stage, and never copied: {', '.join(beside)}")
    print(f"\npossible cuts: {', '.join(cuts_of(net))}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
