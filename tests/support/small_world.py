"""The small world for tests of driver and sweep: a folder with a small recipe, some data, and a fake engine."""

import functools
import shlex
import sys
import tempfile
from pathlib import Path

import cv2
import numpy as np

from transfer_caffe.formats.database_writer import DatabaseWriter
from transfer_caffe.formats.datum import raw_datum
from transfer_caffe.tools.compute_mean import write_mean
from transfer_caffe.utils.files import write_bytes, write_text

FAKE = Path(__file__).with_name("fake_engine.py")

RECIPE = """\
name: small
dataset: pictures
images: {root: pictures, resize: [32, 32]}
architecture: mini
crop: 28
mirror: true
batch: {train: 4, test: 2}
outputs: classes
solver: {base_lr: 0.5, lr_policy: fixed, max_iter: 8, test_interval: 4, display: 1, snapshot: 3}
networks:
  random0: [baseA, baseB, A3B, A3B+]
  whole: [base, R2]
"""


def experiment(networks: str, solver: str = "display: 5, snapshot: 10", more: str = "") -> str:
    """Return the recipe of a complete experiment in miniature, for the data of `draw_shapes`."""
    return f"""\
name: tiny
dataset: data/shapes
images: {{resize: [32, 32]}}
architecture: mini
crop: 28
mirror: true
batch: {{train: 8, test: 4}}
solver: {{base_lr: 0.01, lr_policy: step, gamma: 0.1, stepsize: 15, max_iter: 20, momentum: 0.9, weight_decay: 0.0005,
         test_interval: 10, {solver}}}
networks: {networks}
{more}"""


EXPERIMENT = experiment("{random0: [baseA, baseB, A3B, A3B+], whole: [base, R2]}")


def fake_engine(*misbehaviours: str) -> str:
    """Return a value of the --engine option that starts the fake engine with these misbehaviours."""
    return shlex.join([sys.executable, str(FAKE), *misbehaviours])


def make_world(folder: Path, recipe: str = RECIPE) -> None:
    """Write a recipe and the data that driver and fake engine check (the same small database for all splits)."""
    write_text(folder / "small.yaml", recipe)
    for part in ("train", "val"):
        write_text(folder / "data" / "pictures" / f"{part}.txt", "1.png 0\n")
    for data in ("random0/A", "random0/B", "whole"):
        here = folder / "data" / "pictures" / data
        for part in ("train", "val"):
            write_text(here / f"{part}.txt", "".join(f"{number}.png {number % 3}\n" for number in range(6)))
            for name, content in database().items():
                write_bytes(here / f"{part}_lmdb" / name, content)
        write_mean(here / "mean.binaryproto", np.full((3, 32, 32), 100, np.float32))


@functools.cache
def database(labels: tuple[int, ...] = (0, 1, 2, 0, 1, 2)) -> dict[str, bytes]:
    """Return the files of a database of gray images with these labels."""
    with tempfile.TemporaryDirectory() as folder:
        with DatabaseWriter(Path(folder, "lmdb")) as writer:
            for number, label in enumerate(labels):
                image = np.full((32, 32, 3), 100, np.uint8)
                writer.put(b"%08d_%d.png" % (number, number), raw_datum(image, label))
        return {path.name: path.read_bytes() for path in Path(folder, "lmdb").iterdir()}


def draw_shapes() -> None:
    """Write a dataset of six classes of 40 x 40 images, lists and files without databases, to data/shapes."""
    draw = np.random.RandomState(0)
    for part, count in (("train", 12), ("val", 4)):
        lines = []
        for label in range(6):
            for number in range(count):
                image = draw.randint(0, 100, (40, 40, 3))
                image[5 * label : 5 * label + 8, :, label % 3] += 120
                name = f"images/{part}_{label}_{number}.png"
                Path("data/shapes/images").mkdir(parents=True, exist_ok=True)
                assert cv2.imwrite(f"data/shapes/{name}", image.astype(np.uint8))
                lines.append(f"{name} {label}\n")
        write_text(f"data/shapes/{part}.txt", "".join(lines))
