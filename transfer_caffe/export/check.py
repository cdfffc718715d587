"""Compare an ONNX file with the engine, blob by blob, in onnxruntime.

    report = check(model, "net.onnx", images=["cat.jpg"])

The input is random, and images if there are any. If the batch size is open, two sizes are compared.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import onnx  # pyright: ignore[reportMissingImports]
import onnxruntime  # pyright: ignore[reportMissingImports]
from onnx import helper  # pyright: ignore[reportMissingImports]

from transfer_caffe.engine.layers import Layer, Shape
from transfer_caffe.export import Differs
from transfer_caffe.export.inference import Inference
from transfer_caffe.export.onnx_file import FLOAT, Model
from transfer_caffe.export.preprocessing import Preprocessing
from transfer_caffe.utils.errors import UserError

TOLERANCE, DEEP_TOLERANCE = 1e-5, 1e-4
"""Accepted differences, relative to a blob's largest value: for nets of up to `DEEP` layers, and for deeper ones.

float32 has 1.2e-7 between neighbouring values. Each layer's sums are computed in another order, which adds a few such
units; measured are 1e-7 to 2e-6 for a CaffeNet's blobs, and up to 1e-5 at the end of a ResNet-50.
"""
DEEP = 50

CANCELLED = 1e-2
"""A blob whose values are smaller than this fraction of the layer's bottoms is compared relative to that fraction: with
`TOLERANCE` that is one unit in the last place of the bottoms, of which nothing remains where terms cancel out."""

INDICATORS = {"RNN": 1, "LSTM": 1, "LSTMUnit": 2}
"""The bottom of a recurrent layer that holds 0 and 1: whether a sequence starts or continues."""

BATCHES = (1, 3)
MOST_BYTES = 512 << 20
"""The second batch size is left out for nets whose blobs of one image take more than this."""


@dataclass(frozen=True)
class Report:
    """The result of a comparison: how many blobs on which inputs, and the largest relative difference and its blob."""

    blobs: int
    inputs: list[str]
    difference: float
    blob: str

    def __str__(self) -> str:
        """Return the result in words."""
        where = f" (blob {self.blob!r})" if self.blob else ""
        return (
            f"{self.blobs} blobs are the engine's on {', '.join(self.inputs)}; largest relative difference "
            f"{self.difference:.1e}{where}"
        )


def check(model: Model, path: str | os.PathLike[str], images: Sequence[str | os.PathLike[str]] = ()) -> Report:
    """Compare a file that `model` was written to. Raise Differs, or UserError for an image that cannot be read."""
    try:
        onnx.checker.check_model(os.fspath(path), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise Differs(f"onnx.checker rejects it: {str(error).splitlines()[0]}") from None
    tensors = list(dict.fromkeys(_tensors(model)))
    session = _session(model, path, tensors)
    done: list[str] = []
    worst, at = 0.0, ""
    for what, used, feeds, values in _inputs(model, images):
        found = {name: np.asarray(array) for name, array in zip(tensors, session.run(tensors, feeds), strict=True)}
        difference, blob = _compare(model, used, values, found, what)
        done.append(what)
        if difference > worst:
            worst, at = difference, blob
    return Report(len(tensors), done, worst, at)


def _tensors(model: Model) -> Iterator[str]:
    """Yield the tensors to compare, in the order of the layers that compute them."""
    inputs = model.used.inputs
    for layer in model.used.net.layers:
        for top in layer.top:
            if top not in inputs or model.blobs[top] != top or (model.image_input and top == model.used.images):
                yield model.blobs[top]


def _session(model: Model, path: str | os.PathLike[str], tensors: Sequence[str]) -> onnxruntime.InferenceSession:
    """Return a session that gives all tensors as outputs."""
    known = {output.name for output in model.proto.graph.output}
    more = [helper.make_tensor_value_info(name, FLOAT, None) for name in tensors if name not in known]
    # the fields of two messages are merged when their bytes are joined, so the outputs are added without a copy
    tail = onnx.ModelProto(graph=onnx.GraphProto(output=more)).SerializeToString()
    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = 3
    # a second copy of each weight in another layout makes no difference to the result
    settings.add_session_config_entry("session.disable_prepacking", "1")
    settings.enable_mem_pattern = False
    with open(path, "rb") as file:
        content = file.read() + tail
    return onnxruntime.InferenceSession(content, settings, providers=["CPUExecutionProvider"])


def _inputs(
    model: Model, images: Sequence[str | os.PathLike[str]]
) -> Iterator[tuple[str, Inference, dict[str, np.ndarray], dict[str, np.ndarray]]]:
    """Yield what is compared: its description, the net at this batch size, and the inputs of file and engine."""
    used = model.used
    draw = np.random.RandomState(1)
    for size in _batch_sizes(model):
        same = size is None or used.batch == size
        at_size = used if same or size is None else used.with_batch(size)
        if at_size is None:  # a layer divides the batch, for example
            at_size, size = used, None
        values = {name: _values(at_size, name, draw) for name in at_size.inputs}
        feeds = dict(values)
        if model.image_input:
            assert model.preprocessing is not None
            count = at_size.inputs[used.images][0]
            pixels = draw.randint(0, 256, (count, *model.preprocessing.image_shape)).astype(np.uint8)
            values[used.images] = model.preprocessing.apply(_as_bgr(pixels))
            del feeds[used.images]
            feeds[model.image_input] = pixels
        what = "random values" if not values or size is None else f"random values in a batch of {size}"
        yield what, at_size, feeds, values
    for path in images:
        yield _with_image(model, path)


def _batch_sizes(model: Model) -> list[int | None]:
    """Return the batch sizes to compare; None is the net's own."""
    first = model.used.batch
    if not model.open_batch:
        return [None]
    bytes_of_one = sum(4 * math.prod(shape) for shape in model.shapes.values()) / first
    if all(model.used.with_batch(size) is not None for size in BATCHES):
        return list(BATCHES) if bytes_of_one <= MOST_BYTES else list(BATCHES[:1])
    return [first, 2 * first]


def _values(used: Inference, name: str, draw: np.random.RandomState) -> np.ndarray:
    """Sample values for an input: places for layers that look something up, centred pixels for images."""
    shape = used.inputs[name]
    for layer in used.net.layers:
        for index, bottom in enumerate(layer.param.bottom):
            if bottom == name and (most := _integers(used, layer.type, layer.param.bottom, index, layer.blobs)):
                return draw.randint(0, most, shape).astype(np.float32)
    if len(shape) == 4 and shape[1] in (1, 3) and min(shape[2:]) >= 16:
        return draw.randint(-128, 128, shape).astype(np.float32)
    return np.asarray(draw.standard_normal(shape), np.float32)


def _integers(used: Inference, kind: str, bottoms: Sequence[str], index: int, blobs: Sequence) -> int:
    """Return the number of integers that a layer's bottom can hold; 0 for a bottom with any values."""
    if kind == "Embed":
        return blobs[0].data.shape[0]
    if kind == "BatchReindex" and index == 1:
        return used.net.shapes[bottoms[0]][0]
    if kind == "Filter" and index == len(bottoms) - 1:
        return 2
    return 2 if kind in INDICATORS and index == INDICATORS[kind] else 0


def _as_bgr(pixels: np.ndarray) -> np.ndarray:
    return pixels[..., ::-1] if pixels.shape[-1] == 3 else pixels


def _with_image(
    model: Model, path: str | os.PathLike[str]
) -> tuple[str, Inference, dict[str, np.ndarray], dict[str, np.ndarray]]:
    used = model.used if not model.open_batch else model.used.with_batch(1) or model.used
    name = used.images
    shape: Shape = used.inputs[name] if name else ()
    if len(shape) != 4 or shape[1] not in (1, 3) or len(used.inputs) != 1:
        raise UserError(f"{os.fspath(path)}: the net takes no images: its inputs are {dict(used.inputs)}")
    given = model.preprocessing or Preprocessing(shape[1], (shape[2], shape[3]), (shape[2], shape[3]))
    image = cv2.imread(os.fspath(path), cv2.IMREAD_COLOR if shape[1] == 3 else cv2.IMREAD_GRAYSCALE)
    if image is None:
        raise UserError(f"{os.fspath(path)}: cannot be read as an image")
    if image.shape[:2] != given.size:
        image = cv2.resize(image, given.size[::-1])
    pixels = np.repeat(image.reshape(1, *given.image_shape), shape[0], 0)
    values = {name: given.apply(pixels)}
    feeds = {model.image_input: np.ascontiguousarray(_as_bgr(pixels))} if model.image_input else dict(values)
    return os.fspath(path), used, feeds, values


def _compare(
    model: Model, used: Inference, values: dict[str, np.ndarray], found: dict[str, np.ndarray], what: str
) -> tuple[float, str]:
    """Run the engine and compare all blobs; return the largest difference and its blob. Raise Differs."""
    net = used.net
    used.compute(values)
    arrays = {name: blob.detach().numpy() for name, blob in net.blobs.items()}
    computed = sum(layer.type != "Input" for layer in net.layers)
    tolerance = DEEP_TOLERANCE if computed > DEEP else TOLERANCE
    makers = {top: layer for layer in net.layers for top in layer.top}  # the last layer that works in place
    worst, at = 0.0, ""
    for layer in net.layers:
        floor = CANCELLED * max((_largest(arrays[bottom]) for bottom in layer.param.bottom), default=0.0)
        for top in layer.top:
            tensor = model.blobs[top]
            if tensor not in found or makers[top] is not layer:
                continue
            difference = relative_difference(found[tensor], arrays[top], floor)
            if not difference <= tolerance * _growth(layer, arrays):
                raise Differs(
                    f"blob {top!r} of layer {layer.name!r} ({layer.type}) differs from the engine's on {what}: "
                    f"relative difference {difference:.1e}, at most {tolerance:g} is accepted"
                )
            if difference > worst:
                worst, at = difference, top
    return worst, at


def _growth(layer: Layer, arrays: dict[str, np.ndarray]) -> float:
    """Return the factor by which a layer's function makes relative differences larger.

    An exponential turns a difference of its argument into a relative one: e^(x + d) is about e^x * (1 + d).
    """
    if layer.type not in ("Softmax", "Exp"):
        return 1.0
    scale = layer.param.exp_param.scale * getattr(layer, "log_base", 1.0) if layer.type == "Exp" else 1.0
    return max(1.0, abs(scale) * _largest(arrays[layer.param.bottom[0]]))


def _largest(array: np.ndarray) -> float:
    finite = array[np.isfinite(array)]
    return float(np.abs(finite).max()) if finite.size else 0.0


def relative_difference(found: np.ndarray, wanted: np.ndarray, floor: float = 0.0) -> float:
    """Return the largest difference, relative to the largest wanted value or ``floor``; infinite for other shapes."""
    if found.shape != wanted.shape:
        return math.inf
    finite = np.isfinite(wanted)
    if not np.array_equal(finite, np.isfinite(found)) or not np.array_equal(
        found[~finite], wanted[~finite], equal_nan=True
    ):
        return math.inf
    difference = _largest(found[finite] - wanted[finite])
    return difference / max(_largest(wanted), floor, float(np.finfo(np.float32).tiny)) if difference else 0.0
