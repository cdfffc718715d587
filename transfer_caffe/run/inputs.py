"""Check the inputs of a training run before the engine starts: databases, labels and mean image.

Real Caffe crashes with a segmentation fault on a database without records. It does not report the path of a missing
file. It trains without a warning on labels for which the last layer has no output.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from transfer_caffe.experiment.recipe import Network
from transfer_caffe.formats.image_list import read_list
from transfer_caffe.utils.errors import UserError
from transfer_caffe.utils.files import sha256

if TYPE_CHECKING:
    from transfer_caffe.formats.database import Database
    from transfer_caffe.formats.views import View

# modules that read databases and messages are imported where they are used: a network that is done does not need them

LABELS_READ = 1000
"""Number of records checked in a database that this program did not build, spread evenly over the database."""


def _make(network: Network) -> str:
    return f"python -m transfer_caffe.data --recipe {network.recipe.given}"


def require_made(network: Network, data: Path) -> None:
    """Raise UserError unless image lists, databases and the mean image exist."""
    from transfer_caffe.formats.views import is_view

    folder, mean = network.data_folder(data), network.mean_folder(data) / "mean.binaryproto"
    bases = [folder / f"{part}_lmdb" for part in ("train", "val")]
    files = [base / "data.mdb" for base in bases if not is_view(base)]
    for path in (folder / "train.txt", folder / "val.txt", *files, mean):
        if not path.exists():
            raise UserError(f"{path} is missing; build the data first: {_make(network)}")


def require_data(network: Network, data: Path, views: bool = True) -> None:
    """Raise UserError unless image lists, databases with records, and the mean image exist and are valid.

    ``views``: whether the engine can read a view of a database, as the embedded engine can.
    """
    from transfer_caffe.formats.database import require_sound_database
    from transfer_caffe.formats.proto import read_mean
    from transfer_caffe.formats.views import is_view, open_records, whole_of

    require_made(network, data)
    mean = network.mean_folder(data) / "mean.binaryproto"
    for base in [network.data_folder(data) / f"{part}_lmdb" for part in ("train", "val")]:
        if is_view(base) and not views:
            raise UserError(f"{base} is a view, which real Caffe cannot read; build a copy: {_make(network)} --copies")
        require_sound_database(whole_of(base))
        open_records(base)  # raises UserError if it has no records
    shape, crop = read_mean(mean).shape, network.recipe.crop
    channels = 1 if network.recipe.images.gray else 3
    if shape[0] != channels or min(shape[1:]) < crop:
        raise UserError(
            f"{mean}: not a mean image of {channels} channels and at least {crop} x {crop} pixels: its shape is "
            f"{list(shape)}; remove it and build the data again: {_make(network)}"
        )


def require_labels(network: Network, data: Path, outputs: int) -> None:
    """Raise UserError if a label in the lists or the databases has no output in the last layer."""
    from transfer_caffe.formats.image_list import read_list
    from transfer_caffe.formats.views import made_from, open_records

    for part in ("train", "val"):
        image_list = network.data_folder(data) / f"{part}.txt"
        for number, (_, label) in enumerate(read_list(image_list), start=1):
            if label >= outputs:
                raise UserError(f"{image_list}: line {number}: label {label}, {_but(network, outputs)}")
        path = network.data_folder(data) / f"{part}_lmdb"
        if made_from(path).get("list_sha256") != sha256(image_list):
            _require_labels_of_records(network, open_records(path), outputs)


def _require_labels_of_records(network: Network, database: Database | View, outputs: int) -> None:
    from google.protobuf.message import DecodeError

    from transfer_caffe.formats.proto.caffe_pb2 import Datum

    count = min(len(database), LABELS_READ)
    for index in {round(i * (len(database) - 1) / max(count - 1, 1)) for i in range(count)}:
        key, value = database.raw(index)
        where = f"{database.path}: record {key.decode(errors='backslashreplace')!r}"
        try:
            label = Datum.FromString(value).label
        except DecodeError:
            raise UserError(f"{where}: damaged: it cannot be parsed as a Datum; build the database again") from None
        if not 0 <= label < outputs:
            raise UserError(f"{where}: label {label}, {_but(network, outputs)}")


def _but(network: Network, outputs: int) -> str:
    return (
        f"but the last layer of {network.name} has {outputs} outputs (labels 0 to {outputs - 1}); set "
        "`outputs: classes` or a larger number in the recipe, or correct the labels"
    )


def count_images(path: Path) -> int:
    """Return the number of images in an image list."""
    return len(_labels(path))


def count_classes(path: Path) -> int:
    """Return the number of classes in an image list, whose labels run from 0 to that number minus 1."""
    return max(_labels(path)) + 1


def _labels(path: Path) -> list[int]:
    if not path.is_file():
        raise UserError(
            f"{path}: no such image list; build the data first: python -m transfer_caffe.data --recipe RECIPE"
        )
    return [label for _, label in read_list(path)]
