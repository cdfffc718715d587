"""The classes of ImageNet's validation images, read from the development kit or from Caffe's own val.txt.

    truth = read_devkit(Path("ILSVRC2012_devkit_t12.tar.gz"))
    truth.wnids[293]        # "n01440764": the class of ILSVRC2012_val_00000293.JPEG

The kit contains data/ILSVRC2012_validation_ground_truth.txt, with one ILSVRC2012_ID per line in the images' order, and
data/meta.mat, a MATLAB struct array `synsets` of classes and their ancestors, with the fields ILSVRC2012_ID, WNID,
num_children, num_train_images and others. The synsets without children are the classes (readme.txt of the kit).
"""

from __future__ import annotations

import gzip
import io
import re
import tarfile
import zlib
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from transfer_caffe.data_prep.classes import read_classes
from transfer_caffe.formats.image_list import read_list
from transfer_caffe.utils.errors import UserError

GROUND_TRUTH = "ILSVRC2012_validation_ground_truth.txt"
META = "meta.mat"
VAL_IMAGES = 50000
_MAX_KIT = 100 << 20  # bytes
VAL_NAME = re.compile(r"ILSVRC2012_val_([0-9]{8})\.JPEG")


@dataclass(frozen=True)
class Truth:
    """The ground truth of the validation images.

    ``wnids``: the class (WordNet id) of each image by its number, from 1. ``where``: the source, for error messages.
    ``train_images``: the expected number of training images of each class, as far as known.
    """

    where: str
    wnids: dict[int, str]
    train_images: dict[str, int] = field(default_factory=dict)

    def require_fits(self, numbers: set[int]) -> None:
        """Raise UserError if the ground truth does not match the validation images with these numbers.

        The ground truth of all 50,000 images also matches a subset of them.
        """
        if missing := numbers - self.wnids.keys():
            raise UserError(
                f"{self.where}: it lists {len(self.wnids)} images, without ILSVRC2012_val_{min(missing):08d}.JPEG "
                f"({len(missing)} of the images in the folder are missing); is it the right list?"
            )
        if len(self.wnids) not in (len(numbers), VAL_IMAGES):
            raise UserError(
                f"{self.where}: it lists {len(self.wnids)} images, but the folder has {len(numbers)}; "
                "is it the right list?"
            )


def read_devkit(path: Path) -> Truth:
    """Read the ground truth of a development kit, from the archive or the unpacked folder."""
    if path.is_dir():
        for folder in (path, path / "data", path / "ILSVRC2012_devkit_t12" / "data"):
            if (folder / META).is_file() and (folder / GROUND_TRUTH).is_file():
                return _truth(str(folder), (folder / META).read_bytes(), (folder / GROUND_TRUTH).read_bytes())
        raise UserError(f"{path}: no data/{META} and data/{GROUND_TRUTH} there; is it the unpacked development kit?")
    if path.stat().st_size > _MAX_KIT:
        raise UserError(f"{path}: too large for the development kit, which has 3 MB; is it the right archive?")
    data = path.read_bytes()
    found: dict[str, bytes] = {}
    try:
        if data.startswith(b"\x1f\x8b"):
            data = gzip.decompress(data)  # all at once, so that gzip's checksum is checked
        with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as tar:
            for member in tar:
                folder, _, name = member.name.rpartition("/")
                file = tar.extractfile(member) if member.isreg() else None
                if file and name in (META, GROUND_TRUTH) and folder.rpartition("/")[2] == "data":
                    found[name] = file.read()
    except (tarfile.TarError, zlib.error, EOFError, ValueError, OSError) as error:
        raise UserError(f"{path}: not a tar archive, or truncated or damaged ({error}); download it again") from None
    for name in (META, GROUND_TRUTH):
        if name not in found:
            raise UserError(f"{path}: no data/{name} in it; is it ILSVRC2012_devkit_t12.tar.gz?")
    return _truth(str(path), found[META], found[GROUND_TRUTH])


def _truth(where: str, meta: bytes, ground_truth: bytes) -> Truth:
    """Parse the two files of a kit."""
    classes, train_images = _read_meta(f"{where}: {META}", meta)
    wnids: dict[int, str] = {}
    for number, line in enumerate(ground_truth.decode("ascii", "replace").rstrip().split("\n"), 1):
        text = line.strip()
        if not (text.isascii() and text.isdigit()):
            raise UserError(f"{where}: {GROUND_TRUTH}: line {number}: {text[:40]!r} is not an ILSVRC2012_ID")
        if int(text) not in classes:
            raise UserError(
                f"{where}: {GROUND_TRUTH}: line {number}: ID {text} is not one of the {len(classes)} classes of {META} "
                f"({min(classes)} to {max(classes)})"
            )
        wnids[number] = classes[int(text)]
    return Truth(f"{where}: {GROUND_TRUTH}", wnids, train_images)


def _read_meta(where: str, data: bytes) -> tuple[dict[int, str], dict[str, int]]:
    """Return two dictionaries: ILSVRC2012_ID to WordNet id, and WordNet id to number of training images."""
    from scipy.io import loadmat

    try:
        synsets = np.atleast_1d(loadmat(io.BytesIO(data), squeeze_me=True)["synsets"])
        leaves = [synset for synset in synsets if int(synset["num_children"]) == 0]
        classes = {int(leaf["ILSVRC2012_ID"]): str(leaf["WNID"]) for leaf in leaves}
        counts = {str(leaf["WNID"]): int(leaf["num_train_images"]) for leaf in leaves}
    except Exception as error:  # loadmat raises all kinds of exceptions for files that are not MATLAB files
        raise UserError(f"{where}: not the struct array `synsets` of the development kit ({error})") from None
    if not classes or len(classes) != len(leaves) or len(counts) != len(leaves):
        raise UserError(f"{where}: {len(leaves)} classes, with {len(classes)} IDs and {len(counts)} WordNet ids")
    return classes, counts


def read_val_list(path: Path) -> Truth:
    """Read the ground truth from Caffe's val.txt: lines `ILSVRC2012_val_00000001.JPEG 65`, labels as in classes.csv."""
    classes = read_classes()
    wnids: dict[int, str] = {}
    for number, (name, label) in enumerate(read_list(path), 1):
        match = VAL_NAME.fullmatch(name.rpartition("/")[2])
        if not match:
            raise UserError(f"{path}: line {number}: {name[:60]!r} is not a name like ILSVRC2012_val_00000001.JPEG")
        if label >= len(classes):
            raise UserError(f"{path}: line {number}: label {label}; ImageNet's labels are 0 to {len(classes) - 1}")
        if int(match[1]) in wnids:
            raise UserError(f"{path}: line {number}: {name} is listed twice")
        wnids[int(match[1])] = classes[label].name
    return Truth(str(path), wnids)
