"""Export a net with its weights to ONNX or safetensors.

    python -m transfer_caffe.export deploy.prototxt --weights net.caffemodel --onnx net.onnx

A train_val.prototxt may be given as well: data layers become inputs, losses and accuracies are left out. The ONNX file
is compared with the engine, blob by blob, before it gets its name.
"""

from __future__ import annotations

import argparse
import importlib.util
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from transfer_caffe.export import Differs
from transfer_caffe.utils.errors import ArgumentParser, UserError, command, named_path, require_file, say_error
from transfer_caffe.utils.files import read_text, whole_file

if TYPE_CHECKING:
    from transfer_caffe.export.inference import Inference
    from transfer_caffe.export.preprocessing import Preprocessing

SAFETENSORS = ".safetensors"

EXAMPLES = """examples:
  python -m transfer_caffe.export deploy.prototxt --weights net.caffemodel --onnx net.onnx
  python -m transfer_caffe.export deploy.prototxt --weights net.caffemodel --onnx net.onnx --mean 104,117,123 \\
      --with-preprocessing --images cat.jpg
  python -m transfer_caffe.export deploy.prototxt --weights net.caffemodel --safetensors net.safetensors
  python -m transfer_caffe.export net.safetensors --caffemodel net.caffemodel

docs/export.md shows how to use the files. Exit code: 1 if the ONNX file's blobs differ from the engine's.
"""


def require_packages(*names: str) -> None:
    """Raise UserError, which says what to install, unless all packages are installed."""
    missing = [name for name in names if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(
            f"not installed: {' and '.join(missing)}; run: {sys.executable} -m pip install {' '.join(missing)} (or "
            "install transfer_caffe[export])"
        )


def _numbers(count: Sequence[int], what: str, least: float = -math.inf) -> Callable[[str], list[float]]:
    """Return an argparse type: numbers with commas, as many as ``count`` allows."""

    def numbers(text: str) -> list[float]:
        try:
            found = [float(each) for each in text.split(",")]
        except ValueError:
            found = []
        if len(found) not in count or not all(math.isfinite(each) and each >= least for each in found):
            raise argparse.ArgumentTypeError(f"{what} was expected, not {text!r}")
        return found

    return numbers


def _parser() -> ArgumentParser:
    parser = ArgumentParser(
        prog="python -m transfer_caffe.export",
        description="Export a net with its weights to ONNX, and compare the result with the engine.",
        epilog=EXAMPLES,
    )
    parser.add_argument(
        "net", metavar="NET", type=named_path,
        help="a deploy.prototxt or train_val.prototxt, or a .safetensors file written by this command",
    )  # fmt: skip
    parser.add_argument("--weights", metavar="FILE", type=named_path, help="the .caffemodel (or .h5) with its weights")
    parser.add_argument("--onnx", metavar="FILE", type=named_path, help="write this ONNX file")
    parser.add_argument("--safetensors", metavar="FILE", type=named_path, help="write the weights to this file")
    parser.add_argument(
        "--caffemodel",
        metavar="FILE",
        type=named_path,
        help="write the .caffemodel that NET, a .safetensors, came from",
    )
    parser.add_argument(
        "--check", action=argparse.BooleanOptionalAction, default=True, help="compare with the engine (default: yes)"
    )
    parser.add_argument(
        "--images", nargs="+", default=[], metavar="FILE", help="images to compare on, beside random values"
    )
    group = parser.add_argument_group("preprocessing (default: what the net's data layer does)")
    group.add_argument("--mean", metavar="B,G,R", help="mean of each channel, or the path of a mean.binaryproto")
    group.add_argument("--scale", type=_numbers((1,), "a number"), metavar="S", help="factor for the pixels")
    group.add_argument(
        "--resize", type=_numbers((2,), "height,width", 1), metavar="H,W", help="size of images before the crop"
    )
    group.add_argument(
        "--shape", type=_numbers((3,), "channels,height,width", 1), default=[], metavar="C,H,W",
        help="shape of the net's input images, if the net does not say it",
    )  # fmt: skip
    group.add_argument("--with-preprocessing", action="store_true", help="make it part of the graph: RGB bytes in")
    parser.add_argument("--classes", metavar="FILE", type=named_path, help="names of the classes, one per line")
    return parser


def _preprocessing(args: argparse.Namespace, used: Inference) -> Preprocessing | None:
    """Return the preprocessing that the arguments and the net describe."""
    from transfer_caffe.export.preprocessing import Preprocessing, preprocessing_of

    mean, mean_file = [], None
    if args.mean is not None:
        try:
            mean = _numbers((1, 3), "")(args.mean)
        except argparse.ArgumentTypeError:
            mean_file = args.mean
    shape = used.inputs.get(used.images, ())
    if args.net.suffix == SAFETENSORS and args.mean is None and args.scale is None and args.resize is None:
        from transfer_caffe.export.tensor_file import read_safetensors

        return Preprocessing.from_metadata(read_safetensors(args.net)[0])
    found = preprocessing_of(
        shape, used.transform, mean=mean, mean_file=mean_file, scale=args.scale[0] if args.scale else None,
        resize=[int(side) for side in args.resize or ()],
    )  # fmt: skip
    if found is None and args.with_preprocessing:
        found = preprocessing_of(shape, used.transform, scale=1.0)
        if found is None:
            raise UserError("--with-preprocessing: the net has no input")
    return found


def _class_names(path: Path, used: Inference) -> list[str]:
    require_file(path, "give a text file with the name of a class on each line")
    names = read_text(path).splitlines()
    output = used.net.shapes[used.net.outputs[-1]]
    if len(output) > 1 and output[1] != len(names):
        raise UserError(f"{path}: has {len(names)} names, but output {used.net.outputs[-1]!r} has {output[1]} classes")
    return names


def export_onnx(
    used: Inference, path: Path, preprocessing: Preprocessing | None, *, with_preprocessing: bool = False,
    classes: Sequence[str] = (), checked: bool = True, images: Sequence[str] = (),
) -> str:  # fmt: skip
    """Write the ONNX file and return what the check found; the file gets its name after the check.

    Raise `Differs` if a blob differs, and UserError for a layer that cannot be exported.
    """
    from transfer_caffe.export.onnx_file import build

    model = build(used, preprocessing, with_preprocessing, classes)
    found = "not compared with the engine"
    with whole_file(path) as temporary:
        model.write(temporary)
        if checked:
            from transfer_caffe.export.check import check

            found = str(check(model.without_weights(), temporary, images))
    batch = "any batch size" if model.open_batch else "a fixed batch size" if used.inputs else "no input"
    return f"{batch}; {found}"


def _load(args: argparse.Namespace) -> Inference:
    """Return the net that the arguments name, with its weights."""
    from transfer_caffe.export.inference import load, require_weights

    if args.net.suffix == SAFETENSORS:
        from transfer_caffe.export.tensor_file import load_safetensors

        if args.weights is not None:
            raise UserError(f"--weights: {args.net} has weights already")
        return load_safetensors(args.net)
    if args.weights is not None:
        require_file(args.weights, "give the .caffemodel with the net's weights")
    used = load(args.net, args.weights, [int(size) for size in args.shape])
    if args.weights is None:
        require_weights(used.net, [], "has weights, and --weights is missing")
    return used


def _write_caffemodel(args: argparse.Namespace) -> None:
    from transfer_caffe.export.tensor_file import write_original

    if args.net.suffix != SAFETENSORS:
        raise UserError(f"--caffemodel: {args.net} is not a .safetensors file")
    same = write_original(args.net, args.caffemodel)
    what = "the same bytes as" if same else "the values of"
    print(f"{args.caffemodel}: {what} the file that {args.net} was made from")


def _write_safetensors(args: argparse.Namespace, used: Inference, preprocessing: Preprocessing | None) -> None:
    from transfer_caffe.export.tensor_file import write_safetensors
    from transfer_caffe.formats.nets import read_net

    if args.net.suffix == SAFETENSORS:
        raise UserError(f"--safetensors: {args.net} is one already")
    classes = _class_names(args.classes, used) if args.classes else ()
    count = write_safetensors(args.safetensors, used, read_net(args.net), args.weights, preprocessing, classes)
    print(f"{args.safetensors}: {count} tensors")


def _write_onnx(args: argparse.Namespace, used: Inference, preprocessing: Preprocessing | None) -> int:
    try:
        found = export_onnx(
            used, args.onnx, preprocessing, with_preprocessing=args.with_preprocessing,
            classes=_class_names(args.classes, used) if args.classes else (), checked=args.check, images=args.images,
        )  # fmt: skip
    except Differs as error:
        say_error("python -m transfer_caffe.export", f"{args.onnx} was not written: {error}")
        return 1
    print(f"{args.onnx}: {found}")
    return 0


@command
def main(argv: list[str] | None = None) -> int | None:
    """The command line."""
    args = _parser().parse_args(argv)
    if not (args.onnx or args.safetensors or args.caffemodel):
        raise UserError("nothing to do: give --onnx FILE, --safetensors FILE or --caffemodel FILE")
    require_file(args.net, "give the path of a net's prototxt")
    needed = ["onnx"] * bool(args.onnx) + ["onnxruntime"] * bool(args.onnx and args.check)
    require_packages(*needed, *["safetensors"] * (args.net.suffix == SAFETENSORS or bool(args.safetensors)))
    if args.caffemodel:
        _write_caffemodel(args)
    if not args.onnx and not args.safetensors:
        return 0
    used = _load(args)
    if used.left_out:
        print(f"left out: {', '.join(used.left_out)}")
    preprocessing = _preprocessing(args, used)
    if args.safetensors:
        _write_safetensors(args, used, preprocessing)
    return _write_onnx(args, used, preprocessing) if args.onnx else 0


if __name__ == "__main__":
    sys.exit(main())
