"""Miniature versions of ImageNet's archives: real names and structure, three classes, a few images."""

import io
import tarfile
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
import pytest
from scipy.io import savemat

from transfer_caffe.data_prep.ilsvrc import main

# some of the 1000 classes, with ILSVRC2012_IDs in another order than the WordNet ids, as in the real development kit
IDS = {"n01440764": 2, "n02085620": 3, "n02123045": 1}
NAMES = {
    "n01440764": ["n01440764_10026.JPEG", "n01440764_1006.JPEG", "n01440764_9.JPEG"],
    "n02085620": ["n02085620_1.JPEG", "n02085620_2.JPEG"],
    "n02123045": ["n02123045_7.JPEG"],
}
TRUTH = [2, 1, 3, 2]
LABELS = [0, 2, 1, 0]  # of the same images


def jpeg(seed=0):
    """Return the bytes of a small JPEG file."""
    image = np.random.RandomState(seed).randint(0, 255, (6, 8, 3), np.uint8)
    return cv2.imencode(".jpg", cv2.resize(image, (40, 32)))[1].tobytes()


def tar(members):
    """Return an uncompressed tar of (name or TarInfo, bytes) pairs."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.GNU_FORMAT) as archive:
        for name, data in members:
            info = name if isinstance(name, tarfile.TarInfo) else tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def meta_mat(ids=IDS, counts=None):
    """Return the bytes of meta.mat, with the classes and one ancestor."""
    fields = [
        "ILSVRC2012_ID",
        "WNID",
        "words",
        "gloss",
        "num_children",
        "children",
        "wordnet_height",
        "num_train_images",
    ]
    rows = [
        (n, wnid, "words", "gloss", 0, [], 0, (counts or {}).get(wnid, len(NAMES[wnid]))) for wnid, n in ids.items()
    ]
    rows.append((len(ids) + 1, "n00001740", "entity", "gloss", len(ids), list(ids.values()), 1, 0))
    synsets = np.zeros((len(rows), 1), dtype=[(name, object) for name in fields])
    for place, row in enumerate(rows):
        synsets[place, 0] = tuple(
            np.array(value, dtype=float) if not isinstance(value, str) else value for value in row
        )
    buffer = io.BytesIO()
    savemat(buffer, {"synsets": synsets})
    return buffer.getvalue()


@dataclass
class Miniature:
    """The archives as Python data, which tests may change before `write`."""

    train: dict = field(default_factory=lambda: {w: [(n, jpeg(i)) for i, n in enumerate(NAMES[w])] for w in NAMES})
    val: list = field(default_factory=lambda: [(f"ILSVRC2012_val_{i:08d}.JPEG", jpeg(9 + i)) for i in range(1, 5)])
    truth: str = "".join(f"{number}\n" for number in TRUTH)
    meta: bytes = field(default_factory=meta_mat)

    def write(self, folder: Path) -> Path:
        """Write the three archives into ``folder``."""
        folder.mkdir(exist_ok=True)
        classes = [(f"{wnid}.tar", tar(images)) for wnid, images in self.train.items()]
        (folder / "ILSVRC2012_img_train.tar").write_bytes(tar(classes))
        (folder / "ILSVRC2012_img_val.tar").write_bytes(tar(self.val))
        kit = {"readme.txt": b"", "data/meta.mat": self.meta}
        kit["data/ILSVRC2012_validation_ground_truth.txt"] = self.truth.encode()
        with tarfile.open(folder / "ILSVRC2012_devkit_t12.tar.gz", "w:gz") as archive:
            for name, data in kit.items():
                info = tarfile.TarInfo(f"ILSVRC2012_devkit_t12/{name}")
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
        return folder

    def unpack(self, folder: Path, sort_val=False) -> Path:
        """Write the images as folders train and val, and the kit as folder ILSVRC2012_devkit_t12."""
        by_id = {number: wnid for wnid, number in IDS.items()}
        val = {f"{by_id[TRUTH[i]]}/{name}" if sort_val else name: data for i, (name, data) in enumerate(self.val)}
        files = {f"train/{wnid}/{name}": data for wnid, images in self.train.items() for name, data in images}
        files |= {f"val/{name}": data for name, data in val.items()}
        kit = "ILSVRC2012_devkit_t12/data"
        files |= {f"{kit}/meta.mat": self.meta}
        files |= {f"{kit}/ILSVRC2012_validation_ground_truth.txt": self.truth.encode()}
        for name, data in files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(data)
        return folder


TRAIN_LIST = [(f"{wnid}/{name}", label) for label, wnid in enumerate(NAMES) for name in NAMES[wnid]]
VAL_LIST = [(f"ILSVRC2012_val_{i:08d}.JPEG", label) for i, label in enumerate(LABELS, 1)]
TRAIN, VAL, KIT = "ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar", "ILSVRC2012_devkit_t12.tar.gz"


@pytest.fixture
def mini():
    return Miniature()


@pytest.fixture
def run(tmp_path, mini):
    """Return a function that writes the miniature, runs the command on it, and returns the exit code."""

    def run(*options):
        mini.write(tmp_path / "archives")
        return main([str(tmp_path / "archives"), "--out", str(tmp_path / "data/out"), *map(str, options)])

    return run


@pytest.fixture
def out(tmp_path):
    return tmp_path / "data/out"


@pytest.fixture
def fails(tmp_path, run, capsys):
    """Return a function that runs the command, checks that it fails cleanly, and returns its error line."""

    def fails(*options):
        before = {path for path in tmp_path.rglob("*") if "data" not in path.parts}
        assert run(*options) == 2
        text = capsys.readouterr().err
        assert text.splitlines()[-1].startswith("python -m data_prep.ilsvrc: error: ")
        assert "Traceback" not in text
        after = {path for path in tmp_path.rglob("*") if "data" not in path.parts}
        archives = {tmp_path / "archives", *(tmp_path / "archives" / name for name in (TRAIN, VAL, KIT))}
        assert after - before <= archives
        return text.splitlines()[-1]

    return fails


def everything(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def error_of(capsys, *arguments):
    assert main([str(word) for word in arguments]) == 2
    return capsys.readouterr().err.splitlines()[-1]
