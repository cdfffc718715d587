"""The data of one network's page in the report: treatment, training curve, layers, settings, provenance and log.

    pages = read_networks(rows, "final", Path("runs/demo"))
    pages[0].curve, pages[0].layers, pages[0].log

The data are read from the network's folder, as far as they exist. A long log is reduced to its beginning and end.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import matplotlib.image
from markupsafe import Markup

from transfer_caffe.experiment.architecture import weighted_layers
from transfer_caffe.experiment.treatment import Treatment
from transfer_caffe.figures.curves import read_tests
from transfer_caffe.figures.draw import folder_of
from transfer_caffe.figures.filters import filter_grid, read_filters
from transfer_caffe.formats.log import Row as Test
from transfer_caffe.formats.proto import caffe_pb2
from transfer_caffe.formats.proto import read_text as read_prototxt
from transfer_caffe.report import curve
from transfer_caffe.report.words import GROUPS, points
from transfer_caffe.results.markers import Marker, accuracy_of, markers_of
from transfer_caffe.results.reference import CURVES
from transfer_caffe.results.table import Row, load
from transfer_caffe.run.folder import CURVE, DONE, LOG, NET, SOLVER, SURGERY, weights_path
from transfer_caffe.run.watch import at_chance
from transfer_caffe.utils.errors import UserError
from transfer_caffe.utils.files import read_json, read_record, read_text

LOG_CHARACTERS = 24_000_000
"""Maximum number of characters of all logs together; compressed they take about a tenth of that."""
LOG_OF_ONE = 400_000
"""Maximum number of characters of one log."""


@dataclass
class Page:
    """The content of one network's page; fields for which its folder has no data are empty.

    ``layers`` has (layer, source of the initial weights, "learns" or "frozen", lr_mult of weights and biases, shapes of
    the blobs), from the input upwards. ``facts`` and ``provenance`` have (name, value).
    """

    row: Row
    marker: Marker | None
    words: str
    facts: list[tuple[str, str]]
    curve: Markup
    layers: list[tuple[str, str, str, str, str]] = field(default_factory=list)
    at_chance: bool = False
    """Whether the accuracy of the last test is at chance level."""
    filters: str = ""
    """The conv1 filters of a base network, as a PNG in base64."""
    solver: str = ""
    net: str = ""
    log: str = ""
    log_path: str = ""
    record: dict[str, Any] = field(default_factory=dict)
    provenance: list[tuple[str, str]] = field(default_factory=list)

    @property
    def anchor(self) -> str:
        """The network's name in the URL fragment, unique in a table of one or several recipes."""
        return f"{self.row.recipe}/{self.row.network}" if self.row.recipe else self.row.network


def read_networks(rows: Sequence[Row], metric: str, runs: Path | None) -> list[Page]:
    """Return the pages of all rows, in their order; ``runs`` has the networks' folders (None if there are none).

    Raise UserError if a file of a network is damaged.
    """
    known = {(marker.recipe, marker.network): marker for marker in markers_of(rows, metric)}
    paper, tests = load("paper"), read_tests(CURVES)
    share = min(LOG_OF_ONE, LOG_CHARACTERS // max(1, len(rows)))
    pages = []
    for row in rows:
        marker = known.get((row.recipe, row.network))
        folder = folder_of(runs, row.network) if runs is not None else None
        own = tests.get(row.network, []) if runs is None else []
        if folder is not None and (folder / CURVE).is_file():
            own = read_tests(folder / CURVE).get("", [])
        theirs = (
            [] if runs is None else [(_paper_label(each), tests[each.network]) for each in alike(row, paper, tests)]
        )
        page = Page(row, marker, _words(row), _facts(row, marker, metric), curve.svg(own, theirs, row.network))
        page.at_chance = bool(own) and at_chance(own[-1], row.target_classes)
        if page.at_chance:
            page.facts.append(("remark", "the final test accuracy is at chance level"))
        if folder is not None and folder.is_dir():
            _of_folder(page, folder, share)
        pages.append(page)
    return pages


def alike(row: Row, paper: Sequence[Row], tests: dict[str, list[Test]]) -> list[Row]:
    """Return the paper's networks to compare a training curve with: those of the same treatment and split with a curve.

    If there are none, return those of the same treatment in other splits of the family. If there are none either,
    return those of the same kind and n, with the letters pooled (the paper has no selffer networks of half B).
    """
    having = [each for each in paper if tests.get(each.network) and each.images_per_class == row.images_per_class]
    family = [each for each in having if _family(each) == _family(row)]
    for same in (
        [each for each in having if (each.split, each.treatment) == (row.split, row.treatment)],
        [each for each in family if each.treatment == row.treatment],
        [each for each in family if _kind(each) == _kind(row)],
    ):
        if same:
            return same
    return []


def _family(row: Row) -> str:
    return "random" if row.split.startswith("random") else row.split


def _kind(row: Row) -> tuple[str, int]:
    marker = Marker("", "", row.split, 0, Treatment.parse(row.treatment), 0.0)
    return marker.kind, marker.n


def _paper_label(row: Row) -> str:
    images = f", {row.images_per_class} images per class" if row.images_per_class is not None else ""
    return f"paper: {row.treatment}, {row.split}{images}"


def _words(row: Row) -> str:
    """Return a sentence that describes the treatment."""
    treatment = Treatment.parse(row.treatment)

    def half(letter: str) -> str:
        return f"the {GROUPS[letter]} classes" if row.split == "natman" else f"half {letter} of {row.split}"

    on = f"{half(treatment.target)}" if treatment.target else "all classes"
    if row.images_per_class is not None:
        on += f", with the first {row.images_per_class} images of each class"
    first = "layer 1" if treatment.n == 1 else f"layers 1 to {treatment.n}"
    if treatment.is_base:
        return f"Base network: all layers are initialised randomly and trained on {on}."
    if treatment.is_random:
        return (
            f"Random weights: {first} keep{'s' * (treatment.n == 1)} random, untrained weights; the other layers are "
            f"trained on {on}."
        )
    what = "fine-tuned" if treatment.finetuned else "frozen"
    kind = "Selffer" if treatment.is_selffer else "Transfer"
    is_or_are = "is" if treatment.n == 1 else "are"
    if treatment.is_external:
        stages = "stage 1" if treatment.n == 1 else f"stages 1 to {treatment.n}"
        return (
            f"Existing weights: {stages} {is_or_are} copied from the recipe's weights {treatment.source} and {what}; "
            f"the other stages are re-initialised; the network is trained on {on}."
        )
    return (
        f"{kind} network: {first} {is_or_are} copied from the base network of {half(treatment.source)} and {what}; the "
        f"other layers are re-initialised; the network is trained on {on}."
    )


def _facts(row: Row, marker: Marker | None, metric: str) -> list[tuple[str, str]]:
    facts = [("accuracy after the last iteration", _number(row.accuracy_final, ".4f"))]
    facts.append(("mean of the ten highest test accuracies", _number(row.accuracy_top10, ".4f")))
    if row.accuracy_max is not None:
        at = f" at iteration {row.iteration_of_max:,}" if row.iteration_of_max is not None else ""
        facts.append(("highest test accuracy", f"{row.accuracy_max:.4f}{at}"))
    if marker is not None and marker.base is not None and marker.kind != "base":
        facts.append(("accuracy of its own base network", f"{marker.base:.4f}"))
        facts.append(("difference from its own base", f"{points(marker.gain or 0.0)} points"))
    if marker is not None and marker.control is not None:
        facts.append(("accuracy of the selffer network of the same target", f"{marker.control:.4f}"))
        facts.append(("difference from that selffer network", f"{points(marker.over_control or 0.0)} points"))
    facts += [
        ("test loss after the last iteration", _number(row.test_loss_final, ".4f")),
        ("mean training loss over the last 1000 iterations", _number(row.train_loss_last1000, ".4f")),
        ("iterations", f"{row.max_iter:,}"),
        ("classes; outputs", f"{row.target_classes}; {row.outputs}"),
    ]
    if accuracy_of(row, metric) is None:
        facts.insert(0, ("result", "none: no accuracy is recorded" + ("" if row.logged else "; its log is lost")))
    return [(name, value) for name, value in facts if value]


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def _of_folder(page: Page, folder: Path, characters: int) -> None:
    """Add the data of the network's folder to its page."""
    if (folder / DONE).is_file():
        record = read_json(folder / DONE)
        if not isinstance(record, dict):
            raise UserError(f"{folder / DONE}: not a JSON object; remove the file and run this network's driver again")
        page.record = record
        skipped = {"settings", *vars(page.row)} - {"seed", "recipe"}
        page.provenance = [(key, flat(value)) for key, value in record.items() if key not in skipped]
    if (folder / SOLVER).is_file():
        page.solver = read_text(folder / SOLVER)
    if (folder / NET).is_file():
        page.net = read_text(folder / NET)
        page.layers = _layers(folder, Treatment.parse(page.row.treatment))
    if (folder / LOG).is_file():
        page.log, page.log_path = excerpt(folder / LOG, characters), f"{folder / LOG}"
    weights = weights_path(folder, page.row.max_iter)
    if page.marker is not None and page.marker.kind == "base" and weights.is_file():
        filters = read_filters(weights)
        if filters is not None:
            picture = io.BytesIO()
            matplotlib.image.imsave(picture, filter_grid(filters), format="png")
            page.filters = base64.b64encode(picture.getvalue()).decode()


def _layers(folder: Path, treatment: Treatment) -> list[tuple[str, str, str, str, str]]:
    """Return the layers with weights, from the prototxt and the surgery record (see `Page.layers`)."""
    table: dict[str, dict[str, Any]] = {}
    base = ""
    if (folder / SURGERY).is_file():
        kinds = {"base": str, "layers": list}
        made = read_record(folder / SURGERY, kinds, "remove it, or retrain the network with --restart")
        base = made["base"]
        table = {str(each.get("layer")): each for each in made["layers"] if isinstance(each, dict)}
    net = read_prototxt(folder / NET, caffe_pb2.NetParameter())
    layers = []
    for layer in weighted_layers(net):
        row = table.get(layer.name, {})
        rates = [param.lr_mult for param in layer.param] or [1.0]
        came = "random, untrained" if treatment.is_random and not any(rates) else "random"
        if row.get("start") == "copied":
            came = f"copied from {base}"
        shapes = row.get("shapes")
        layers.append(
            (
                layer.name, came, "learns" if any(rates) else "frozen", ", ".join(f"{rate:g}" for rate in rates),
                "; ".join(" × ".join(map(str, each)) for each in shapes) if isinstance(shapes, list) else "",
            )
        )  # fmt: skip
    return layers


def excerpt(path: Path, characters: int) -> str:
    """Return the text of a log, shortened to about ``characters``.

    A longer log is reduced to complete lines from its beginning (one quarter) and its end (three quarters), with a note
    in between.
    """
    size = path.stat().st_size
    with open(path, "rb") as file:
        if size <= characters:
            return file.read().decode(errors="replace")
        head = file.read(characters // 4)
        file.seek(size - characters * 3 // 4)
        tail = file.read()
    head, tail = head[: head.rfind(b"\n") + 1], tail[tail.find(b"\n") + 1 :]
    left = size - len(head) - len(tail)
    return (
        f"{head.decode(errors='replace')}\n... {left:,} bytes left out; the complete log is {path}\n\n"
        + tail.decode(errors="replace")
    )


def flat(value: Any) -> str:
    """Return a value of done.json as one line of text."""
    if isinstance(value, dict):
        return ", ".join(f"{key} {flat(each)}" for key, each in value.items() if each not in (None, ""))
    return " ".join(flat(each) for each in value) if isinstance(value, list) else str(value)
