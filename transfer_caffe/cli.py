"""The command `transfer-caffe COMMAND`, which runs the commands of all modules.

transfer-caffe driver --treatment A3B+ --recipe demo
"""

from __future__ import annotations

import importlib
import sys

COMMANDS = {
    "photos": ("transfer_caffe.data_prep.photos", "create the demo's dataset"),
    "ilsvrc": ("transfer_caffe.data_prep.ilsvrc", "create image lists from ImageNet's archives"),
    "folders": ("transfer_caffe.data_prep.folders", "create image lists from a tree of class folders"),
    "split": ("transfer_caffe.data_prep.split", "split the classes of image lists into two halves"),
    "verify": ("transfer_caffe.data_prep.verify", "compare ImageNet's lists with the authors' checksums"),
    "wordnet": ("transfer_caffe.data_prep.wordnet", "group classes named by WordNet ids into man-made and natural"),
    "build-lmdb": ("transfer_caffe.tools.build_lmdb", "build an LMDB from an image list, like convert_imageset"),
    "split-lmdb": ("transfer_caffe.tools.split_lmdb", "make a split's LMDB, or a view, from the LMDB of all images"),
    "compute-mean": ("transfer_caffe.tools.compute_mean", "compute an LMDB's mean image, like compute_image_mean"),
    "inspect": ("transfer_caffe.tools.inspect", "show the content of a database, and draw a contact sheet"),
    "upgrade-proto": (
        "transfer_caffe.tools.upgrade_proto",
        "upgrade an old prototxt, .caffemodel or solver to the current format",
    ),
    "data": ("transfer_caffe.data", "build all data that a recipe needs"),
    "architecture": ("transfer_caffe.architecture", "print the stages of a net, which n counts"),
    "generate": ("transfer_caffe.generate", "render a network's prototxt and solver"),
    "surgery": ("transfer_caffe.surgery", "write a network's initial weights, copied from its base"),
    "engine": ("transfer_caffe.engine.__main__", "train, test and time nets with caffe's flags"),
    "export": ("transfer_caffe.export.__main__", "export a net with its weights to ONNX, and check the result"),
    "compare": ("transfer_caffe.compare", "compare a net in real Caffe and in the engine, blob by blob"),
    "driver": ("transfer_caffe.driver", "run all steps for one network of a recipe"),
    "probe": ("transfer_caffe.probe", "train linear classifiers on the features of existing weights"),
    "rates": ("transfer_caffe.rates", "search the learning rate of each kind of network"),
    "study": ("transfer_caffe.study", "how many stages of existing weights to copy for your images"),
    "sweep": ("transfer_caffe.sweep.__main__", "plan and train all networks of a recipe"),
    "results": ("transfer_caffe.results.__main__", "write the table of results"),
    "analysis": (
        "transfer_caffe.analysis.__main__",
        "estimate the effects in a results table, with confidence intervals",
    ),
    "figures": ("transfer_caffe.figures.__main__", "draw the figures"),
    "report": ("transfer_caffe.report.__main__", "write the report, a single HTML page"),
}


def main(argv: list[str] | None = None) -> int:
    """Run the command that the first argument names with the remaining arguments."""
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
