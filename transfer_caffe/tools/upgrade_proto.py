"""Upgrade old nets, weights and solvers to the current format, as Caffe's upgrade_net_proto_text and similar tools do.

    python -m tools.upgrade_proto net_text    old.prototxt    new.prototxt
    python -m tools.upgrade_proto net_binary  old.caffemodel  new.caffemodel
    python -m tools.upgrade_proto solver_text old.prototxt    new.prototxt

All commands of this project read the old formats directly. Use this tool for files that are to be edited or read by
other programs. Comments in a prototxt are lost. If something in an old net has to be left out, a warning names it, the
file is still written, and the exit code is 1, as with Caffe's tools.
"""

from __future__ import annotations

import sys

from transfer_caffe.formats.proto import read_binary, read_text, to_text, write_binary
from transfer_caffe.formats.proto.caffe_pb2 import NetParameter, SolverParameter
from transfer_caffe.formats.upgrade import upgrade_net, upgrade_solver, warn
from transfer_caffe.utils.errors import ArgumentParser, command
from transfer_caffe.utils.files import refuse_existing, write_text
from transfer_caffe.utils.gflags import as_argparse


def _parser() -> ArgumentParser:
    parser = ArgumentParser(
        prog="python -m tools.upgrade_proto",
        description="Write an old Caffe net (prototxt or .caffemodel) or solver in the format of Caffe 1.0.",
        epilog="example: python -m tools.upgrade_proto net_text old.prototxt new.prototxt",
        allow_abbrev=False,
    )
    parser.add_argument("kind", choices=("net_text", "net_binary", "solver_text"), help="kind of the old file")
    parser.add_argument("old", metavar="IN", help="the old file")
    parser.add_argument("new", metavar="OUT", help="the new file")
    parser.add_argument("--force", action="store_true", help="overwrite an existing file")
    return parser


@command
def main(argv: list[str] | None = None) -> int | None:
    """Upgrade one file from the command line."""
    options = _parser().parse_args(as_argparse(sys.argv[1:] if argv is None else argv, ("force",)))
    if not options.force:
        refuse_existing(options.new, "choose another name, or overwrite it with --force")
    lost: list[str] = []
    if options.kind == "net_text":
        net = upgrade_net(read_text(options.old, NetParameter()), options.old, lost.append)
        write_text(options.new, to_text(net))
    elif options.kind == "net_binary":
        net = upgrade_net(read_binary(options.old, NetParameter()), options.old, lost.append)
        write_binary(options.new, net)
    else:
        solver = upgrade_solver(read_text(options.old, SolverParameter()), options.old)
        write_text(options.new, to_text(solver))
    for line in lost:
        warn(line)
    return 1 if lost else 0


if __name__ == "__main__":
    sys.exit(main())
