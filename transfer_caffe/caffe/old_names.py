"""Names that Python and NumPy had when the scripts for pycaffe were written, and have removed since.

`python -m transfer_caffe.caffe` gives them back to the script that it runs; nothing else in the project does.
"""

from __future__ import annotations

import unittest
from typing import Any

import numpy as np

ASSERTIONS = {
    "assert_": "assertTrue",
    "assertAlmostEquals": "assertAlmostEqual",
    "assertEquals": "assertEqual",
    "assertItemsEqual": "assertCountEqual",
    "assertNotAlmostEquals": "assertNotAlmostEqual",
    "assertNotEquals": "assertNotEqual",
    "assertNotRegexpMatches": "assertNotRegex",
    "assertRaisesRegexp": "assertRaisesRegex",
    "assertRegexpMatches": "assertRegex",
}
"""Methods of unittest.TestCase that Python 3.12 has removed, one that Python 3.0 has removed, and their new names."""

NUMPY: dict[str, Any] = {
    "bool": bool, "complex": complex, "float": float, "int": int, "object": object, "str": str, "unicode": str,
    "complex_": np.complex128, "float_": np.float64, "string_": np.bytes_, "unicode_": np.str_,
    "Inf": np.inf, "NaN": np.nan, "alltrue": np.all, "asscalar": np.ndarray.item, "product": np.prod,
    "row_stack": np.vstack, "sometrue": np.any,
}  # fmt: skip
"""Names that NumPy 1.24 and 2.0 have removed, and their values."""


def restore() -> None:
    """Define the names that are missing in unittest and NumPy."""
    for old, new in ASSERTIONS.items():
        if not hasattr(unittest.TestCase, old):
            setattr(unittest.TestCase, old, getattr(unittest.TestCase, new))
    for name, value in NUMPY.items():
        if name not in vars(np):  # hasattr would raise warnings
            setattr(np, name, value)
