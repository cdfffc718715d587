"""Train all networks of a recipe: bases first, several at a time, resuming where an earlier sweep ended.

    python -m transfer_caffe.sweep plan   --recipe demo      list the networks, their order, cost and state
    python -m transfer_caffe.sweep run    --recipe demo      build the data, train the networks, write results.csv
    python -m transfer_caffe.sweep status --recipe demo      show the progress of each network
    python -m transfer_caffe.sweep cancel --recipe demo      end its jobs on a cluster, after a snapshot
    python -m transfer_caffe.sweep verify --recipe demo      check that finished networks still match their records

Each network is trained by a separate `transfer_caffe.driver` process. Each command is a module in this package, with
its options and examples.
"""

from __future__ import annotations

import importlib
import sys

from transfer_caffe.utils.errors import ArgumentParser, command

COMMANDS = {
    "plan": "transfer_caffe.sweep.plan",
    "run": "transfer_caffe.sweep.run",
    "status": "transfer_caffe.sweep.status",
    "cancel": "transfer_caffe.sweep.cancel",
    "verify": "transfer_caffe.sweep.verify",
}
"""The module of each command. Each module has SUMMARY, EXAMPLES, add_arguments(parser) and main(args)."""


@command
def main(argv: list[str] | None = None) -> int | None:
    """Run the command line."""
    parser = ArgumentParser(
        prog="python -m transfer_caffe.sweep",
        description="Plan and train all networks of a recipe.",
        epilog="example: python -m transfer_caffe.sweep run --recipe demo",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, module_name in COMMANDS.items():
        module = importlib.import_module(module_name)
        sub = commands.add_parser(name, help=module.SUMMARY, description=module.SUMMARY, epilog=module.EXAMPLES)
        module.add_arguments(sub)
        sub.set_defaults(run=module.main)
    args = parser.parse_args(argv)
    return args.run(args)


if __name__ == "__main__":
    sys.exit(main())
