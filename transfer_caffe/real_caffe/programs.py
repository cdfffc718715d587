"""Where real Caffe is on this machine: its programs, and a Python that imports pycaffe.

    program("convert_imageset")     Path, or None where there is no real Caffe
    pycaffe()                       the argv of a Python with pycaffe, or None

Taken in this order: the program that the environment variable CAFFE names, `caffe` on the PATH, and what
`make caffe` put into the folder .caffe of the project.
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
    """The program ``name`` (caffe, convert_imageset, ...) of the Caffe that is used here; None if it is not there.

    UserError where CAFFE names no program: falling back to another Caffe would be a surprise.
    """
    given = os.environ.get("CAFFE")
    if given:
        found = shutil.which(given)
        if found is None:
            raise UserError(f"CAFFE={given}: there is no such program; give the path of the program caffe, or unset it")
    else:
        found = shutil.which("caffe") or shutil.which("caffe", path=INSTALLED)
    if found is None:
        return None
    caffe = Path(os.path.abspath(found))
    # a distribution names the tools as Caffe's Makefile does; Caffe's build folder adds .bin
    for path in (caffe.with_name(name + caffe.suffix), caffe.with_name(name)):
        if path.exists():
            return path
    return None


def pycaffe() -> tuple[str, ...] | None:
    """The argv of a Python in which `import caffe` works: CAFFE_PYTHON, the one beside caffe, or this one.

    UserError where CAFFE_PYTHON is no such Python.
    """
    given = os.environ.get("CAFFE_PYTHON")
    if given:
        if not _imports_caffe(given):
            raise UserError(f"CAFFE_PYTHON={given}: not a Python in which `import caffe` works; unset it, or name one")
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
    """Of what real Caffe wrote before it ended itself, the line that says why; the last one if none does."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    for line in lines:
        if match := re.match(r"F\d{4} .*?\] (.*)", line):
            return match[1]
    return lines[-1] if lines else "it ended without a word"
