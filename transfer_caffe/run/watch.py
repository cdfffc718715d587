"""Warnings about a training run: NaN or inf, accuracy at chance level, or a final accuracy outside the expected range.

    for line in remarks_of(network, Path("runs"), Path("data")):
        print(line)         # still at chance level at iteration 45000: test loss 6.910, random guessing gives 6.908

These are warnings only: nothing is retrained because of them. A network at chance level may still learn, and an
unexpected accuracy may be a valid result. Of the paper's networks, R3 and five of those trained on few images never
left chance level. R4 to R7 left it after 50,000 to 200,000 of 450,000 iterations, the others within 5,000
(transfer_caffe/results/reference/paper_curves.csv).
"""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from transfer_caffe.experiment.architecture import classes_of
from transfer_caffe.experiment.recipe import Network
from transfer_caffe.formats.image_list import read_class_map
from transfer_caffe.formats.log import Row, read_log
from transfer_caffe.formats.proto import read_text as read_message
from transfer_caffe.formats.proto.caffe_pb2 import NetParameter
from transfer_caffe.run.folder import CURVE, LOG, NET, read_done
from transfer_caffe.utils.errors import UserError
from transfer_caffe.utils.files import read_text

TOLERANCE = 0.02
"""How far below ln(classes), in nats, a test loss may be to count as chance level. The paper's networks that never left
chance level stay within 0.004 of it; networks that have learned anything are at least 0.04 below (R7, at an accuracy of
5 times chance)."""

LUCK = 2.0
"""The ratio of accuracy to chance accuracy from which a network counts as having learned something. The paper's
networks that never left chance level reach at most 1.1; the one trained on one image per class reaches 2.7, with a test
loss far above ln(classes)."""


def remarks(network: Network, rows: Sequence[Row], classes: int | None, final: float | None = None) -> list[str]:
    """Return the warnings about a network, one line each; an empty list if there are none.

    ``rows`` is its curve so far, ``classes`` the number of classes in its data (None: unknown), ``final`` its final
    accuracy if it is done.
    """
    said = []
    if bad := next((row for row in rows if not _finite(row)), None):
        said.append(f"the loss or accuracy is NaN or inf at iteration {bad.iteration}: the training diverged")
    tested = [row for row in rows if row.test_loss is not None and row.iteration >= network.chance_after]
    if classes and tested and at_chance(tested[-1], classes):
        row = tested[-1]
        accuracy = "" if row.test_accuracy is None else f", accuracy {row.test_accuracy:.4f}"
        still = f"still at chance level at iteration {row.iteration}" if final is None else "never left chance level"
        said.append(f"{still}: test loss {row.test_loss:.3f}, random guessing gives {math.log(classes):.3f}{accuracy}")
    expected = network.expected_accuracy
    if final is not None and expected and not expected[0] <= final <= expected[1]:
        low, high = expected
        said.append(f"final accuracy {final:.4f} is outside of the range that the recipe expects, {low:g} to {high:g}")
    return said


def at_chance(row: Row, classes: int) -> bool:
    """Return whether a test result is no better than guessing at random among ``classes`` classes."""
    if row.test_loss is None or not row.test_loss >= math.log(classes) - TOLERANCE:
        return False
    return row.test_accuracy is None or row.test_accuracy < LUCK / classes


def _finite(row: Row) -> bool:
    return all(
        math.isfinite(value) for value in (row.test_loss, row.test_accuracy, row.train_loss) if value is not None
    )


def remarks_of(network: Network, runs: Path, data: Path) -> list[str]:
    """Return the warnings about a network, read from its files; none if it has not been started.

    Damaged files are ignored here; other functions report them.
    """
    folder = network.folder(runs)
    try:
        if done := read_done(network, runs):
            return remarks(network, _curve(folder / CURVE), _classes_of_done(done), done["accuracy_final"])
        if not (folder / LOG).exists():
            return []
        log = read_log(folder / LOG)
        said = remarks(network, log.rows(), _classes(network, folder, data))
        if log.bad_number and not said:
            said.append(f"{log.bad_number}: the training diverged")
        return said + [f"its last run ended with an error: {error}" for error in log.errors[:1]]
    except (UserError, OSError, ValueError):
        return []


def _classes_of_done(done: Mapping[str, Any]) -> int | None:
    return done.get("target_classes") or done.get("outputs")


def _classes(network: Network, folder: Path, data: Path) -> int | None:
    """Return the number of classes of a network's data, else of its last layer's outputs; None if both are unknown."""
    classes = network.data_folder(data) / "classes.txt"
    if classes.is_file():
        return len(read_class_map(classes))
    if not (folder / NET).is_file():
        return None
    return classes_of(read_message(folder / NET, NetParameter()))


def _curve(path: Path) -> list[Row]:
    """Read the rows of a curve.csv (written by `record.curve_csv`)."""
    rows = []
    for values in csv.DictReader(read_text(path).splitlines()):
        numbers = [float(values[name]) if values[name] else None for name in list(values)[1:]]
        rows.append(Row(int(values["iteration"]), *numbers))
    return rows
