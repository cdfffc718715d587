"""Names that Python and NumPy had when the scripts for pycaffe were written, and have removed since.

`python -m transfer_caffe.caffe` gives them back to the script that it runs; nothing else in the project does.
"""

from __future__ import annotations

import collections
import collections.abc
import functools
import unittest
from typing import Any

import numpy as np
import yaml

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
    "bool8": np.bool_, "int0": np.intp, "Inf": np.inf, "Infinity": np.inf, "infty": np.inf, "PINF": np.inf,
    "NINF": -np.inf, "NaN": np.nan, "alltrue": np.all, "asfarray": lambda a, dtype=np.float64: np.asarray(a, dtype),
    "asscalar": lambda a: a.item(), "cumproduct": np.cumprod,
    "in1d": lambda a, b, **more: np.isin(a, b, **more).ravel(), "mat": np.asmatrix, "msort": lambda a: np.sort(a, 0),
    "product": np.prod, "round_": np.round, "row_stack": np.vstack, "sometrue": np.any,
    "trapz": getattr(np, "trapezoid", None),
}  # fmt: skip
"""Names that NumPy 1.24 and 2.0 have removed, and their values."""


def _load(load: Any, stream: Any, Loader: Any = yaml.SafeLoader) -> Any:
    """yaml.load, whose second argument could be left out before PyYAML 6."""
    return load(stream, Loader)


def _from_text(given: Any, dtype: Any = float, count: int = -1, *, sep: str = "", **more: Any) -> np.ndarray:
    """np.fromstring, also of bytes, for which it has become np.frombuffer."""
    if sep:
        return _fromstring(given, dtype, count, sep=sep, **more)
    return np.frombuffer(given.encode("latin-1") if isinstance(given, str) else given, dtype, count).copy()


_fromstring = np.fromstring


def restore() -> None:
    """Define the names that are missing in unittest, NumPy and collections, and the default of yaml.load."""
    for name in collections.abc.__all__:
        if not hasattr(collections, name):
            setattr(collections, name, getattr(collections.abc, name))
    np.fromstring = _from_text
    yaml.load = functools.partial(_load, yaml.load) if not isinstance(yaml.load, functools.partial) else yaml.load
    for old, new in ASSERTIONS.items():
        if not hasattr(unittest.TestCase, old):
            setattr(unittest.TestCase, old, getattr(unittest.TestCase, new))
    for name, value in NUMPY.items():
        if name not in vars(np):  # hasattr would raise warnings
            setattr(np, name, value)
