"""What the tests of driver and sweep work in: a folder with a small recipe, a little data, a fake engine."""

import shlex
import sys
from pathlib import Path

import numpy as np

from transfer_caffe.datum import DatabaseWriter, raw_datum
from transfer_caffe.files import write_text
from transfer_caffe.tools.compute_mean import write_mean

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


def fake_engine(*misbehaviours: str) -> str:
    """An --engine option."""
    return shlex.join([sys.executable, str(FAKE), *misbehaviours])


def make_world(folder: Path, recipe: str = RECIPE) -> None:
    """A recipe and as much of its data as driver and fake engine look at."""
    write_text(folder / "small.yaml", recipe)
    for part in ("train", "val"):
        write_text(folder / "data" / "pictures" / f"{part}.txt", "1.png 0\n")
    for data in ("random0/A", "random0/B", "whole"):
        here = folder / "data" / "pictures" / data
        for part in ("train", "val"):
            write_text(here / f"{part}.txt", "".join(f"{number}.png {number % 3}\n" for number in range(6)))
            with DatabaseWriter(here / f"{part}_lmdb") as writer:
                writer.put(b"00000000_1.png", raw_datum(np.zeros((32, 32, 3), np.uint8), 0))
        write_mean(here / "mean.binaryproto", np.zeros((3, 32, 32), np.float32))
