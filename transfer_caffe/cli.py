"""The command `transfer-caffe COMMAND`: every module's command under one name.

transfer-caffe driver --treatment A3B+ --recipe demo
"""

from __future__ import annotations

import importlib
import sys

COMMANDS = {
    "photos": ("transfer_caffe.data_prep.photos", "make the embedded dataset"),
    "ilsvrc": ("transfer_caffe.data_prep.ilsvrc", "ImageNet's archives to image lists"),
    "folders": ("transfer_caffe.data_prep.folders", "a tree of class folders to image lists"),
    "split": ("transfer_caffe.data_prep.split", "cut the classes of image lists in two halves"),
    "verify": ("transfer_caffe.data_prep.verify", "compare ImageNet's lists with the authors' checksums"),
    "wordnet": ("transfer_caffe.data_prep.wordnet", "man-made/natural groups for classes named by WordNet ids"),
    "build-lmdb": ("transfer_caffe.tools.build_lmdb", "image list to LMDB, as convert_imageset"),
    "split-lmdb": ("transfer_caffe.tools.split_lmdb", "a split's LMDB, or a view, out of that of all images"),
    "compute-mean": ("transfer_caffe.tools.compute_mean", "mean image of an LMDB, as compute_image_mean"),
    "inspect": ("transfer_caffe.tools.inspect", "what is in a database, and a contact sheet of it"),
    "upgrade-proto": ("transfer_caffe.tools.upgrade_proto", "old prototxt, .caffemodel or solver to today's form"),
    "data": ("transfer_caffe.data", "make all data a recipe needs"),
    "generate": ("transfer_caffe.generate", "render a network's prototxt and solver"),
    "surgery": ("transfer_caffe.surgery", "make a network's initial weights out of its base's"),
    "engine": ("transfer_caffe.engine.__main__", "train, test and time nets with caffe's flags"),
    "compare": ("transfer_caffe.compare", "one net through real Caffe and the engine, blob by blob"),
    "driver": ("transfer_caffe.driver", "take one network from recipe to done"),
    "sweep": ("transfer_caffe.sweep.__main__", "plan and train all networks of a recipe"),
    "results": ("transfer_caffe.results.__main__", "write the table of results"),
    "analysis": (
        "transfer_caffe.analysis.__main__",
        "what a results table says, with intervals, and what it cannot say",
    ),
    "figures": ("transfer_caffe.figures.__main__", "draw the figures"),
    "report": ("transfer_caffe.report.__main__", "write the report, one HTML page"),
}


def main(argv: list[str] | None = None) -> int:
    """Run the command named first with the arguments after it."""
    argv = sys.argv[1:] if argv is None else argv
    if argv and argv[0] in COMMANDS:
        module = importlib.import_module(COMMANDS[argv[0]][0])
        return module.main(argv[1:])
    lines = [f"  {name:13} {summary}" for name, (_, summary) in COMMANDS.items()]
    usage = "\n".join(["usage: transfer-caffe COMMAND [ARGUMENTS]", "", *lines, "", "transfer-caffe COMMAND --help"])
    if argv and argv[0] in ("-h", "--help"):
        print(usage)
        return 0
    wrong = f"transfer-caffe: error: unknown command {argv[0]!r}" if argv else "transfer-caffe: error: no command given"
    print(f"{wrong}; known: {', '.join(COMMANDS)}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
