"""Run a script, or a module with -m, in which `import caffe` means the embedded engine.

    python -m transfer_caffe.caffe script.py arguments
    python -m transfer_caffe.caffe -m pytest tests

--prefer-real, before these, uses a real pycaffe if this Python has one.
"""

from __future__ import annotations

import os
import runpy
import sys

from transfer_caffe.utils.errors import UserError, command, require_file


@command
def main(argv: list[str] | None = None) -> int:
    """Run the command."""
    arguments = sys.argv[1:] if argv is None else list(argv)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(__doc__)
        return 0 if arguments else 2
    prefer_real = arguments[0] == "--prefer-real"
    arguments = arguments[prefer_real:]
    as_module = bool(arguments) and arguments[0] == "-m"
    arguments = arguments[as_module:]
    if not arguments:
        raise UserError("names no script or module to run; --help shows how")
    from transfer_caffe import caffe

    caffe.install(prefer_real)
    sys.argv = arguments
    if as_module:
        sys.path.insert(0, os.getcwd())
        runpy.run_module(arguments[0], run_name="__main__", alter_sys=True)
        return 0
    require_file(arguments[0], "name a script to run, or a module after -m")
    sys.path.insert(0, os.path.dirname(os.path.abspath(arguments[0])))
    runpy.run_path(arguments[0], run_name="__main__")
    return 0


if __name__ == "__main__":
    sys.exit(main())
