"""Fields of other versions of Caffe in prototxts: read if BVLC Caffe 1.0 has the same by another name, else explained.

    rewritten(text, error)     the text with `ceil_mode: false` replaced by `round_mode: FLOOR`, for example

Real Caffe refuses all of them. A field is replaced in the text, at the place that the parser names, and not added to
the messages: other versions of Caffe use the same field numbers for different things.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from google.protobuf.text_format import ParseError

from transfer_caffe.utils.errors import UserError

TRUE, FALSE = ("true", "True", "t", "1"), ("false", "False", "f", "0")


def _boolean(true: str | None, false: str | None) -> Callable[[str], str | None]:
    """Return a function from a boolean's text to the field to write instead; None where there is no such field."""
    return lambda value: true if value in TRUE else false if value in FALSE else None


SAME: dict[tuple[str, str], Callable[[str], str | None]] = {
    ("PoolingParameter", "ceil_mode"): _boolean("round_mode: CEIL", "round_mode: FLOOR"),
    ("PoolingParameter", "torch_pooling"): _boolean("round_mode: FLOOR", "round_mode: CEIL"),
    ("ConvolutionParameter", "hole"): lambda value: f"dilation: {value}" if value.isdigit() else None,
    ("DropoutParameter", "scale_train"): _boolean("", None),
    ("BatchNormParameter", "scale_bias"): _boolean(None, ""),
}
"""What to read instead of a field, by message and field: a function of its value."""

INSTEAD = {
    ("ConvolutionParameter", "hole_h"): "write `dilation: H dilation: W`",
    ("ConvolutionParameter", "hole_w"): "write `dilation: H dilation: W`",
    ("DropoutParameter", "scale_train"): "remove it, and in TEST multiply by 1 - dropout_ratio with a Power layer",
    ("BatchNormParameter", "scale_bias"): 'remove it, and add a layer of type "Scale" with `bias_term: true` after it',
    ("LayerParameter", "bn_param"): 'write layers of type "BatchNorm" and "Scale" instead of a BN layer',
    ("ImageDataParameter", "label_type"): "a label per pixel can be read with an HDF5Data layer",
    ("TransformationParameter", "crop_h"): "crop_size is height and width",
    ("TransformationParameter", "crop_w"): "crop_size is height and width",
}
"""What to do about a field that cannot be read."""

NO_FIELD = re.compile(r'Message type "\w+\.(\w+)" has no field named "(\w+)"')
NO_ENGINE = re.compile(r'Enum type "\w+\.\w+\.Engine" has no value named')
NAME = re.compile(r"\w+")
VALUE = re.compile(r'\w+\s*:\s*([^\s{}\[\]<>,;"#]+)')


def rewritten(text: str, error: ParseError, where: str) -> str | None:
    """Return the text without the field at which the parser has stopped, or None if the error has another reason.

    Raise UserError, starting with ``where``, line and column, for a field that cannot be read, with what to write.
    """
    line, column = error.GetLine(), error.GetColumn()
    if not line or not column:
        return None
    start = _place(text, line, column)
    if NO_ENGINE.search(str(error)):  # all engines of a layer give the same results; the parser stops at the value
        return text[:start] + NAME.sub("DEFAULT", text[start:], count=1)
    found = NO_FIELD.search(str(error))
    if not found:
        return None
    field = found[1], found[2]
    given = VALUE.match(text, start)
    new = None
    if given and field in SAME:
        new = SAME[field](given[1])
    elif given and field[1] == "engine":
        new = ""
    if given and new is not None:
        return text[:start] + new + text[given.end() :]
    todo = INSTEAD.get(field)
    if field[0] == "LayerParameter" and field[1].endswith("_param"):
        todo = todo or "it is misspelled, or belongs to a layer type of another version of Caffe"
    if not todo:
        return None
    raise UserError(f"{where}: line {line}:{column} : {field[0]} has no field {field[1]!r} in BVLC Caffe 1.0: {todo}")


def _place(text: str, line: int, column: int) -> int:
    """Return the index of a line and column, both counted from 1."""
    return sum(len(each) + 1 for each in text.split("\n")[: line - 1]) + column - 1
