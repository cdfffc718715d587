"""The classes of ImageNet's validation images: from the development kit, or from Caffe's own val.txt.

    truth = read_devkit(Path("ILSVRC2012_devkit_t12.tar.gz"))
    truth.wnids[293]        # "n01440764": the class of ILSVRC2012_val_00000293.JPEG

The kit holds data/ILSVRC2012_validation_ground_truth.txt, a class's ILSVRC2012_ID a line, in the order of the images;
and data/meta.mat, a MATLAB struct array `synsets` of classes and their ancestors, with the fields ILSVRC2012_ID, WNID,
num_children and num_train_images among others. Classes are those without children (readme.txt of the kit).
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
    """The class (WordNet id) of each validation image by its number, from 1, and where that is written.

    ``train_images``: how many training images a class should have, as far as that is known.
    """

    where: str
    wnids: dict[int, str]
    train_images: dict[str, int] = field(default_factory=dict)

    def require_fits(self, numbers: set[int]) -> None:
        """UserError if these validation images, which are there, are not those that the truth is about.

        A part of the validation images fits the list of all 50,000.
        """
        if missing := numbers - self.wnids.keys():
            raise UserError(
                f"{self.where}: it knows {len(self.wnids)} images, and not ILSVRC2012_val_{min(missing):08d}.JPEG "
                f"({len(missing)} of those that are there)"
            )
        if len(self.wnids) not in (len(numbers), VAL_IMAGES):
            raise UserError(f"{self.where}: it knows {len(self.wnids)} images, but {len(numbers)} are there")


def read_devkit(path: Path) -> Truth:
    """The truth of a development kit, given as the archive or as the unpacked folder."""
    if path.is_dir():
        for folder in (path, path / "data", path / "ILSVRC2012_devkit_t12" / "data"):
            if (folder / META).is_file() and (folder / GROUND_TRUTH).is_file():
                return _truth(str(folder), (folder / META).read_bytes(), (folder / GROUND_TRUTH).read_bytes())
        raise UserError(f"{path}: no data/{META} and data/{GROUND_TRUTH} here; is it the unpacked development kit?")
    if path.stat().st_size > _MAX_KIT:
        raise UserError(f"{path}: too large for the development kit, which has 3 MB; is it the right archive?")
    data = path.read_bytes()
    found: dict[str, bytes] = {}
    try:
        if data.startswith(b"\x1f\x8b"):
            data = gzip.decompress(data)  # at once: so its checksum is compared
        with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as tar:
            for member in tar:
                folder, _, name = member.name.rpartition("/")
                file = tar.extractfile(member) if member.isreg() else None
                if file and name in (META, GROUND_TRUTH) and folder.rpartition("/")[2] == "data":
                    found[name] = file.read()
    except (tarfile.TarError, zlib.error, EOFError, ValueError, OSError) as error:
        raise UserError(f"{path}: not a tar archive, or truncated or damaged ({error}); fetch it again") from None
    for name in (META, GROUND_TRUTH):
        if name not in found:
            raise UserError(f"{path}: no data/{name} in it; is it ILSVRC2012_devkit_t12.tar.gz?")
    return _truth(str(path), found[META], found[GROUND_TRUTH])


def _truth(where: str, meta: bytes, ground_truth: bytes) -> Truth:
    classes, train_images = _read_meta(f"{where}: {META}", meta)
    wnids: dict[int, str] = {}
    for number, line in enumerate(ground_truth.decode("ascii", "replace").rstrip().split("\n"), 1):
        text = line.strip()
        if not (text.isascii() and text.isdigit()):
            raise UserError(f"{where}: {GROUND_TRUTH}: line {number}: {text[:40]!r} is no ILSVRC2012_ID")
        if int(text) not in classes:
            raise UserError(
                f"{where}: {GROUND_TRUTH}: line {number}: ID {text} is none of the {len(classes)} classes of {META} "
                f"({min(classes)} to {max(classes)})"
            )
        wnids[number] = classes[int(text)]
    return Truth(f"{where}: {GROUND_TRUTH}", wnids, train_images)


def _read_meta(where: str, data: bytes) -> tuple[dict[int, str], dict[str, int]]:
    """WordNet id by ILSVRC2012_ID, and number of training images by WordNet id, of the classes."""
    from scipy.io import loadmat

    try:
        synsets = np.atleast_1d(loadmat(io.BytesIO(data), squeeze_me=True)["synsets"])
        leaves = [synset for synset in synsets if int(synset["num_children"]) == 0]
        classes = {int(leaf["ILSVRC2012_ID"]): str(leaf["WNID"]) for leaf in leaves}
        counts = {str(leaf["WNID"]): int(leaf["num_train_images"]) for leaf in leaves}
    except Exception as error:  # loadmat raises anything at what is no MATLAB file
        raise UserError(f"{where}: not the struct array `synsets` of the development kit ({error})") from None
    if not classes or len(classes) != len(leaves) or len(counts) != len(leaves):
        raise UserError(f"{where}: {len(leaves)} classes, with {len(classes)} IDs and {len(counts)} WordNet ids")
    return classes, counts


def read_val_list(path: Path) -> Truth:
    """The truth of Caffe's val.txt: lines `ILSVRC2012_val_00000001.JPEG 65`, labels those of data_prep/classes.csv."""
    classes = read_classes()
    wnids: dict[int, str] = {}
    for number, (name, label) in enumerate(read_list(path), 1):
        match = VAL_NAME.fullmatch(name.rpartition("/")[2])
        if not match:
            raise UserError(f"{path}: line {number}: {name[:60]!r} is not named as ILSVRC2012_val_00000001.JPEG")
        if label >= len(classes):
            raise UserError(f"{path}: line {number}: label {label}; ImageNet's are 0 to {len(classes) - 1}")
        if int(match[1]) in wnids:
            raise UserError(f"{path}: line {number}: {name} is listed twice")
        wnids[int(match[1])] = classes[label].name
    return Truth(str(path), wnids)
