"""What is done to an image before it enters a net: resize, crop, subtract the mean, scale.

Channels are in the order BGR, as OpenCV reads them and Caffe stores them. The order of the operations is Caffe's
(caffe/data_transformer.cpp): crop, subtract the mean of the same window, multiply by the scale.
"""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from transfer_caffe.engine.layers import Shape
from transfer_caffe.formats.proto import read_mean
from transfer_caffe.formats.proto.caffe_pb2 import TransformationParameter
from transfer_caffe.utils.errors import UserError

if TYPE_CHECKING:
    from transfer_caffe.export.graph import Graph
    from transfer_caffe.export.inference import Inference


@dataclass(frozen=True)
class Preprocessing:
    """The preprocessing of one image.

    ``size``: height and width of the image before the crop. ``crop``: height and width of its centre that the net gets.
    ``mean``: subtracted from each pixel, (channels, 1, 1) or, for a mean image, (channels, *crop); None for no mean.
    ``scale``: factor after that. ``sized``: whether ``size`` is known; if not, it is that of the crop.
    """

    channels: int
    size: tuple[int, int]
    crop: tuple[int, int]
    mean: np.ndarray | None = None
    scale: float = 1.0
    sized: bool = True

    @property
    def image_shape(self) -> Shape:
        """The shape of an image as bytes: height, width, channels."""
        return (*self.size, self.channels)

    @property
    def corner(self) -> tuple[int, int]:
        """The top and left of the crop, as Caffe's centre crop computes it."""
        return (self.size[0] - self.crop[0]) // 2, (self.size[1] - self.crop[1]) // 2

    def check(self, shape: Shape, name: str) -> None:
        """Raise UserError unless images can be prepared for an input of ``shape`` in the graph."""
        if len(shape) != 4 or shape[1] not in (1, 3):
            raise UserError(
                f"input {name!r} is {list(shape)}; preprocessing needs one of batch x 1 or 3 channels x height x width"
            )

    def apply(self, images: np.ndarray) -> np.ndarray:
        """Return float32 images (batch, channels, *crop) from bytes (batch, *size, channels), channels as BGR."""
        top, left = self.corner
        window = images[:, top : top + self.crop[0], left : left + self.crop[1]].transpose(0, 3, 1, 2)
        values = window.astype(np.float32)
        if self.mean is not None:
            values -= self.mean
        return values * np.float32(self.scale) if self.scale != 1 else values

    def metadata(self) -> dict[str, Any]:
        """Return the metadata: channels, resize, crop, mean (of each channel), scale, and the mean image in base64."""
        found: dict[str, Any] = {
            "channels": "BGR" if self.channels == 3 else "gray" if self.channels == 1 else str(self.channels),
            **({"resize": list(self.size)} if self.sized else {}),
            "crop": list(self.crop),
            "scale": self.scale,
        }
        if self.mean is not None:
            found["mean"] = [round(float(each), 6) for each in self.mean.mean((1, 2), dtype=np.float64)]
            if self.mean.shape[1:] != (1, 1):
                # float32, little-endian, in the shape of the net's input
                found["mean_image"] = base64.b64encode(self.mean.astype("<f4").tobytes()).decode()
        return found

    @classmethod
    def from_metadata(cls, texts: Mapping[str, str], where: str) -> Preprocessing | None:
        """Return the preprocessing of a file's metadata (`metadata`, as text, with keys `caffe.`); None without.

        Raise UserError, which names the file ``where``, for values that are damaged.
        """
        if "caffe.crop" not in texts:
            return None
        names = {"BGR": 3, "gray": 1}
        try:
            channels = texts["caffe.channels"]
            crop, scale = (json.loads(texts[f"caffe.{key}"]) for key in ("crop", "scale"))
            size = json.loads(texts.get("caffe.resize", texts["caffe.crop"]))
            mean = None
            if "caffe.mean_image" in texts:
                mean = np.frombuffer(base64.b64decode(texts["caffe.mean_image"]), "<f4").reshape(-1, *crop)
            elif "caffe.mean" in texts:
                mean = np.asarray(json.loads(texts["caffe.mean"]), np.float32).reshape(-1, 1, 1)
            sides = (int(size[0]), int(size[1])), (int(crop[0]), int(crop[1]))
            count = names.get(channels) or int(channels)
            return cls(count, *sides, mean, float(scale), sized="caffe.resize" in texts)
        except (KeyError, ValueError, TypeError, IndexError) as error:
            raise UserError(f"{where}: the preprocessing in its metadata is damaged ({error!r})") from None

    def add_to(self, graph: Graph, image: str, top: str) -> int:
        """Add the nodes from ``image``, bytes (batch, *size, channels) as RGB, to ``top``; return their number."""
        before = len(graph.nodes)
        name = "preprocessing"
        tensor = graph.node("Cast", [image], f"{name}/float", f"{name}/float", to=1)
        tensor = graph.node("Transpose", [tensor], f"{name}/planes", f"{name}/planes", perm=[0, 3, 1, 2])
        if self.channels == 3:
            order = graph.constant(np.array([2, 1, 0]), f"{name}/order")
            tensor = graph.node("Gather", [tensor, order], f"{name}/bgr", f"{name}/bgr", axis=1)
        if self.crop != self.size:
            starts = np.array(self.corner)
            ends = [graph.constant(each, f"{name}/{what}") for each, what in (
                (starts, "from"), (starts + self.crop, "to"), (np.array([2, 3]), "axes"))]  # fmt: skip
            tensor = graph.node("Slice", [tensor, *ends], f"{name}/crop", f"{name}/crop")
        if self.mean is not None:
            mean = graph.constant(self.mean[None], f"{name}/mean")
            tensor = graph.node("Sub", [tensor, mean], f"{name}/centred", f"{name}/sub")
        if self.scale != 1:
            scale = graph.constant(self.scale, f"{name}/scale")
            tensor = graph.node("Mul", [tensor, scale], f"{name}/scaled", f"{name}/mul")
        graph.node("Identity", [tensor], [top], name)
        return len(graph.nodes) - before


def preprocessing_of(
    used: Inference, *, mean: Sequence[float] = (), mean_file: str | os.PathLike[str] | None = None,
    scale: float | None = None, resize: Sequence[int] = (), known: Preprocessing | None = None,
) -> Preprocessing | None:  # fmt: skip
    """Return the preprocessing for a net's images; None if nothing is known about it, or its input is no image.

    The arguments override what the net's data layer does, or ``known``: the mean of each channel, or the path of a mean
    image (.binaryproto), the scale, and height and width before the crop.
    """
    shape, transform, given = used.inputs.get(used.images, ()), used.transform, bool(mean) or mean_file is not None
    if len(shape) != 4:
        if given or scale is not None or resize:
            raise UserError(f"the net's input is {list(shape)}: not images, so it has no mean, scale or size")
        return None
    if transform is None and known is None and not given and scale is None and not resize:
        return None
    transform = TransformationParameter() if transform is None else transform
    channels, crop = shape[1], (shape[2], shape[3])
    if not given:
        mean, mean_file = list(transform.mean_value), transform.mean_file or None
    image = _mean_image(mean_file) if mean_file is not None else None
    sides: Sequence[int] | None = resize or (image.shape[1:] if image is not None else None)
    if sides is None:
        sides = (known.size if known.sized else None) if known is not None else used.whole
    sized = sides is not None or (known is None and not transform.crop_size)
    size = (sides[0], sides[1]) if sides is not None else crop
    if min(size) < 1 or size[0] < crop[0] or size[1] < crop[1]:
        raise UserError(
            f"images of {size[0]} x {size[1]} pixels are smaller than the net's input, {crop[0]} x {crop[1]}"
        )
    if scale is None:
        scale = known.scale if known is not None else transform.scale
    made = Preprocessing(channels, size, crop, None, scale, sized)
    if image is not None:
        if image.shape != (channels, *size):
            raise UserError(
                f"{os.fspath(mean_file or '')}: it is {list(image.shape)}, the images are {[channels, *size]}"
            )
        top, left = made.corner
        values = np.ascontiguousarray(image[:, top : top + crop[0], left : left + crop[1]])
    elif mean:
        if len(mean) not in (1, channels):
            raise UserError(f"{len(mean)} means are given for {channels} channels")
        values = np.broadcast_to(np.asarray(mean, np.float32), (channels,)).reshape(-1, 1, 1).copy()
    else:
        values = known.mean if known is not None and not given else None
    return replace(made, mean=values)


def _mean_image(path: str | os.PathLike[str]) -> np.ndarray:
    if not os.path.exists(path):
        raise UserError(f"{os.fspath(path)}: no such mean image; give one, or the mean of each channel")
    return read_mean(path)
