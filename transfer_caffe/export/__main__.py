"""Export a net with its weights to ONNX or safetensors.

    python -m transfer_caffe.export deploy.prototxt --weights net.caffemodel --onnx net.onnx

A train_val.prototxt may be given as well: data layers become inputs, losses and accuracies are left out. The ONNX file
is compared with the engine, blob by blob, before it gets its name.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from transfer_caffe.export import Differs
from transfer_caffe.utils.errors import ArgumentParser, UserError, command, require_file, say_error
from transfer_caffe.utils.files import read_text, whole_file

if TYPE_CHECKING:
    from transfer_caffe.export.inference import Inference
    from transfer_caffe.export.preprocessing import Preprocessing
    from transfer_caffe.formats.proto.caffe_pb2 import NetParameter

SAFETENSORS = ".safetensors"

EXAMPLES = """examples:
  python -m transfer_caffe.export deploy.prototxt --weights net.caffemodel --onnx net.onnx
  python -m transfer_caffe.export deploy.prototxt --weights net.caffemodel --onnx net.onnx --mean 104,117,123 \\
      --with-preprocessing --images cat.jpg
  python -m transfer_caffe.export deploy.prototxt --weights net.caffemodel --safetensors net.safetensors
  python -m transfer_caffe.export net.safetensors --caffemodel net.caffemodel
  python -m transfer_caffe.export --network runs/birds/whole-P5+-s0 --onnx birds.onnx

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


def _numbers(
    count: Sequence[int], what: str, least: float = -math.inf, whole: bool = False
) -> Callable[[str], list[float]]:
    """Return an argparse type: numbers with commas, as many as ``count`` allows; integers if ``whole``."""

    def numbers(text: str) -> list[float]:
        try:
            found = [float(each) for each in text.split(",")]
        except ValueError:
            found = []
        fits = all(math.isfinite(each) and each >= least and not (whole and each % 1) for each in found)
        if len(found) not in count or not fits:
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
        "net", metavar="NET", type=Path, nargs="?",
        help="a deploy.prototxt or train_val.prototxt, or a .safetensors file written by this command",
    )  # fmt: skip
    parser.add_argument(
        "--network",
        metavar="DIR",
        type=Path,
        help="a trained network's folder, runs/RECIPE/NETWORK, instead of NET",
    )
    parser.add_argument("--weights", metavar="FILE", type=Path, help="the .caffemodel (or .h5) with its weights")
    parser.add_argument("--onnx", metavar="FILE", type=Path, help="write this ONNX file")
    parser.add_argument("--safetensors", metavar="FILE", type=Path, help="write the weights to this file")
    parser.add_argument(
        "--caffemodel",
        metavar="FILE",
        type=Path,
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
        "--resize", type=_numbers((2,), "height,width", 1, whole=True), metavar="H,W",
        help="size of images before the crop",
    )  # fmt: skip
    group.add_argument(
        "--shape", type=_numbers((3,), "channels,height,width", 1, whole=True), default=[], metavar="C,H,W",
        help="shape of the net's input images, if the net does not say it",
    )  # fmt: skip
    group.add_argument("--with-preprocessing", action="store_true", help="make it part of the graph: RGB bytes in")
    parser.add_argument("--classes", metavar="FILE", type=Path, help="names of the classes, one per line")
    return parser


@dataclass(frozen=True)
class _Given:
    """What the arguments name: the net for inference, the original, its weights, preprocessing and class names."""

    used: Inference
    net: NetParameter
    weights: Path | None
    preprocessing: Preprocessing | None
    classes: Sequence[str]


def _from_prototxt(args: argparse.Namespace) -> _Given:
    from transfer_caffe.export.inference import load, require_weights
    from transfer_caffe.formats.nets import read_net

    if args.weights is not None:
        require_file(args.weights, "give the .caffemodel with the net's weights")
    used = load(args.net, args.weights, [int(size) for size in args.shape])
    if args.weights is None:
        require_weights(used.net, [], "has weights, and --weights is missing")
    return _Given(used, read_net(args.net), args.weights, _preprocessing(args, used), _class_names(args, used))


def _from_safetensors(args: argparse.Namespace) -> _Given:
    from transfer_caffe.export.preprocessing import Preprocessing
    from transfer_caffe.export.tensor_file import load_safetensors, read_safetensors

    if args.weights is not None or args.safetensors is not None:
        raise UserError(f"{args.net} has weights already: give neither --weights nor --safetensors")
    used, texts = load_safetensors(args.net), read_safetensors(args.net)[0]
    known = Preprocessing.from_metadata(texts, str(args.net))
    preprocessing = _preprocessing(args, used, known=known)
    classes = _class_names(args, used) or json.loads(texts.get("caffe.classes", "[]"))
    return _Given(used, used.param, None, preprocessing, classes)


def _from_network(args: argparse.Namespace) -> _Given:
    from transfer_caffe.export.inference import load
    from transfer_caffe.export.network import read_network

    if args.net is not None or args.weights is not None:
        raise UserError("--network names a net with its weights: give neither NET nor --weights")
    network = read_network(args.network)
    used = load(network.net, network.weights, network.shape)
    preprocessing = _preprocessing(args, used, network.resize)
    return _Given(used, network.net, network.weights, preprocessing, _class_names(args, used) or network.classes)


def _preprocessing(
    args: argparse.Namespace, used: Inference, resize: Sequence[int] = (), known: Preprocessing | None = None
) -> Preprocessing | None:
    """Return the preprocessing that the arguments and the net describe.

    ``resize`` is for a net that is trained, ``known`` what a file says.
    """
    from transfer_caffe.export.preprocessing import preprocessing_of

    mean, mean_file = [], None
    if args.mean is not None:
        try:
            mean = _numbers((1, 3), "")(args.mean)
        except argparse.ArgumentTypeError:
            mean_file = args.mean
    nothing = used.transform is None and known is None
    scale = args.scale[0] if args.scale else 1.0 if args.with_preprocessing and nothing else None
    found = preprocessing_of(
        used, mean=mean, mean_file=mean_file, scale=scale, resize=[int(side) for side in args.resize or resize],
        known=known,
    )  # fmt: skip
    if args.with_preprocessing and found is not None and not found.sized:
        height, width = found.crop
        raise UserError(
            f"the size of images before the crop to {height} x {width} pixels is not known; give it with --resize "
            "HEIGHT,WIDTH"
        )
    return found


def _class_names(args: argparse.Namespace, used: Inference) -> list[str]:
    """Return the names in the file of --classes; [] without one."""
    if args.classes is None:
        return []
    require_file(args.classes, "give a text file with the name of a class on each line")
    names = read_text(args.classes).splitlines()
    # an ArgMax may follow the probabilities
    scores = [layer.top[0] for layer in used.net.layers if layer.type == "Softmax"]
    sizes = {blob: used.net.shapes[blob] for blob in [*scores, *used.net.outputs]}
    counts = {blob: size[1] for blob, size in sizes.items() if len(size) > 1}
    if counts and len(names) not in counts.values():
        last, count = next(reversed(counts.items()))
        raise UserError(f"{args.classes}: has {len(names)} names, but output {last!r} has {count} classes")
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


def _write_caffemodel(args: argparse.Namespace) -> None:
    from transfer_caffe.export.tensor_file import write_original

    if args.net is None or args.net.suffix != SAFETENSORS:
        raise UserError("--caffemodel: NET must be a .safetensors file that this command wrote")
    same = write_original(args.net, args.caffemodel)
    origin = f"the same bytes as the file that {args.net} was made from"
    what = origin if same else f"the weights of {args.net}"
    print(f"{args.caffemodel}: {what}")


def _write(args: argparse.Namespace, given: _Given) -> int:
    """Write the files and return the exit code."""
    if given.used.left_out:
        print(f"left out: {', '.join(given.used.left_out)}")
    if args.safetensors:
        from transfer_caffe.export.tensor_file import write_safetensors

        count = write_safetensors(
            args.safetensors, given.used, given.net, given.weights, given.preprocessing, given.classes
        )
        print(f"{args.safetensors}: {count} tensors")
    if not args.onnx:
        return 0
    try:
        found = export_onnx(
            given.used, args.onnx, given.preprocessing, with_preprocessing=args.with_preprocessing,
            classes=given.classes, checked=args.check, images=args.images,
        )  # fmt: skip
    except Differs as error:
        say_error("python -m transfer_caffe.export", f"{args.onnx} was not written: {error}")
        return 1
    print(f"{args.onnx}: {found}")
    return 0


def _refuse_what_would_be_lost(args: argparse.Namespace) -> None:
    """Raise UserError for an output that is also an input or another output, and for options without an effect."""
    outputs = {"--onnx": args.onnx, "--safetensors": args.safetensors, "--caffemodel": args.caffemodel}
    taken = {os.path.realpath(path) for path in (args.net, args.weights, args.classes, args.mean, *args.images) if path}
    for option, path in outputs.items():
        if path is None:
            continue
        if os.path.realpath(path) in taken:
            raise UserError(f"{option} {path}: the same command reads or writes this file; give another name")
        taken.add(os.path.realpath(path))
    if args.images and not (args.check and args.onnx):
        raise UserError("--images: only the check of an ONNX file uses them; give --onnx, and no --no-check")
    if args.with_preprocessing and not args.onnx:
        raise UserError("--with-preprocessing: it becomes a part of an ONNX file; give --onnx FILE")


@command
def main(argv: list[str] | None = None) -> int | None:
    """The command line."""
    args = _parser().parse_args(argv)
    if not (args.onnx or args.safetensors or args.caffemodel):
        raise UserError("nothing to do: give --onnx FILE, --safetensors FILE or --caffemodel FILE")
    _refuse_what_would_be_lost(args)
    if args.net is None and args.network is None:
        raise UserError("NET is missing: give the path of a net's prototxt, or --network DIR")
    if args.net is not None:
        require_file(args.net, "give the path of a net's prototxt")
    stored = args.net is not None and args.net.suffix == SAFETENSORS
    needed = ["onnx"] * bool(args.onnx) + ["onnxruntime"] * bool(args.onnx and args.check)
    require_packages(*needed, *["safetensors"] * bool(stored or args.safetensors))
    if args.caffemodel:
        _write_caffemodel(args)
    if not args.onnx and not args.safetensors:
        return 0
    read = _from_network if args.network is not None else _from_safetensors if stored else _from_prototxt
    return _write(args, read(args))


if __name__ == "__main__":
    sys.exit(main())
