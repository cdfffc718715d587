"""Find real Caffe on this machine: its programs, and a Python that can import pycaffe.

    program("convert_imageset")     Path, or None if there is no real Caffe
    pycaffe()                       the argv of a Python with pycaffe, or None

The search order is: the program that the environment variable CAFFE names, `caffe` on the PATH, and the program that
`make caffe` installed in the project's folder .caffe.
"""

from __future__ import annotations

import functools
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from transfer_caffe.utils.errors import UserError

INSTALLED = Path(__file__).resolve().parent.parent.parent / ".caffe" / "bin"


def program(name: str = "caffe") -> Path | None:
    """Return the path of Caffe's program ``name`` (caffe, convert_imageset, ...); None if there is none.

    Raise UserError if CAFFE does not name a program, rather than silently falling back to another Caffe.
    """
    given = os.environ.get("CAFFE")
    if given:
        found = shutil.which(given)
        if found is None:
            raise UserError(f"CAFFE={given}: no such program; set CAFFE to the path of the program caffe, or unset it")
    else:
        found = shutil.which("caffe") or shutil.which("caffe", path=INSTALLED)
    if found is None:
        return None
    caffe = Path(os.path.abspath(found))
    # Linux distributions name the tools as Caffe's Makefile does; Caffe's build folder adds .bin
    for path in (caffe.with_name(name + caffe.suffix), caffe.with_name(name)):
        if path.exists():
            return path
    return None


def pycaffe() -> tuple[str, ...] | None:
    """Return the argv of a Python in which `import caffe` works: CAFFE_PYTHON, the one beside caffe, or this one.

    Return None if there is none. Raise UserError if CAFFE_PYTHON is set but cannot import caffe.
    """
    given = os.environ.get("CAFFE_PYTHON")
    if given:
        if not _imports_caffe(given):
            raise UserError(f"CAFFE_PYTHON={given}: `import caffe` fails in it; unset it, or set it to another Python")
        return (given,)
    beside = program("caffe-python")
    for python in (beside and str(beside), sys.executable, shutil.which("python3")):
        if python and _imports_caffe(python):
            return (python,)
    return None


@functools.cache
def _imports_caffe(python: str) -> bool:
    try:
        result = subprocess.run([python, "-c", "import caffe; print(caffe.Net)"], capture_output=True, text=True)
    except OSError:
        return False
    return result.returncode == 0 and "caffe" in result.stdout


def last_words(output: str) -> str:
    """Return the line of real Caffe's output that says why it failed; the last line if there is no fatal error."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    for line in lines:
        if match := re.match(r"F\d{4} .*?\] (.*)", line):
            return match[1]
    return lines[-1] if lines else "it ended without any output"
