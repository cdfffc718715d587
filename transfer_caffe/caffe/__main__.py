"""Run a script, or a module with -m, in which `import caffe` means the embedded engine.

    python -m transfer_caffe.caffe script.py arguments
    python -m transfer_caffe.caffe -m pytest tests

--prefer-real, before these, uses a real pycaffe if this Python has one.
"""

from __future__ import annotations

import os
import runpy
import sys
import traceback

from transfer_caffe.caffe import install, old_names
from transfer_caffe.utils.errors import UserError, command, require_file


@command
def main(argv: list[str] | None = None) -> int:
    """Check the arguments and run the script, whose exceptions keep their traceback."""
    arguments = sys.argv[1:] if argv is None else list(argv)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(__doc__)
        return 0 if arguments else 2
    prefer_real = arguments[0] == "--prefer-real"
    as_module = arguments[prefer_real:][:1] == ["-m"]
    program = arguments[prefer_real + as_module :]
    if not program:
        raise UserError("names no script or module to run; --help shows how")
    if not as_module:
        require_file(program[0], "name a script to run, or a module after -m")
    install(prefer_real)
    old_names.restore()
    try:
        run(program, as_module)
    except UserError:
        # a bug or a wrong call of the script, not of this command
        traceback.print_exc()
        return 1
    return 0


def run(program: list[str], as_module: bool) -> None:
    """Run a script or module with its arguments as Python does."""
    sys.argv = program
    if as_module:
        sys.path.insert(0, os.getcwd())
        runpy.run_module(program[0], run_name="__main__", alter_sys=True)
    else:
        sys.path.insert(0, os.path.dirname(os.path.abspath(program[0])))
        runpy.run_path(program[0], run_name="__main__")


if __name__ == "__main__":
    sys.exit(main())
