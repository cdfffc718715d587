"""Linear probes: what a linear classifier can read from the features of existing weights, at every cut of the net.

    python -m transfer_caffe.probe --recipe my_photos.yaml

The features of all cuts are computed in one pass over the training and validation images, with the weights as they
are, and on the features of each cut a linear classifier is trained (multinomial logistic regression). That takes
minutes, because the net itself is not trained, and shows where copying is worth trying. A probe is a lower bound for
what a network with the first n stages frozen can reach: such a network retrains all stages above. The results are
stored in runs/RECIPE/probes.json, and are shown by the report and by the answer of a study.
"""

from __future__ import annotations

import itertools
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from transfer_caffe.data import make_data
from transfer_caffe.experiment.read import load_recipe
from transfer_caffe.experiment.recipe import Network, Recipe
from transfer_caffe.experiment.stages import Stage, stages_of
from transfer_caffe.experiment.treatment import Treatment
from transfer_caffe.formats.proto.caffe_pb2 import TEST, NetParameter, NetState
from transfer_caffe.formats.views import open_records
from transfer_caffe.generate import compose
from transfer_caffe.results.probes import Probe, made_from, read_probes, write_probes
from transfer_caffe.sweep.cost import Rate
from transfer_caffe.utils.errors import ArgumentParser, UserError, command
from transfer_caffe.utils.files import sha256
from transfer_caffe.utils.locks import lock
from transfer_caffe.utils.progress import track

if TYPE_CHECKING:
    import torch

IMAGES = 5000
"""At most this many training and as many validation images are used, the first ones of the shuffled databases."""
FEATURES = 4096
"""A blob with more numbers is averaged, over cells of a coarser grid, until it has at most this many."""
CUTS_AT_ONCE = 12
"""Cuts whose features are held in memory at the same time: 12 of 10,000 x 4,096 numbers are 2 GB."""
BATCH = 50
DECAYS = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5)
"""Weights of the L2 penalty that are tried, strongest first."""
HELD_OUT = 0.2
"""Fraction of the training images on which the penalty is chosen."""
STEPS = 100
"""Maximum number of L-BFGS steps for each penalty."""

Say = Callable[[str], None]
Place = tuple[str, str, str]
"""Split, target and letter of the source."""


def make_probes(recipe: Recipe, data: Path, runs: Path, say: Say = print) -> list[Probe]:
    """Probe every source of a recipe on all data that its networks with that source use; return the probes.

    Probes that were made from the same net, weights and data are not made again. Raise UserError if the recipe has no
    networks with stages from existing weights, or if the weights do not fit the net.
    """
    places = places_of(recipe)
    if not places:
        raise UserError(
            f"recipe {recipe.name}: none of its networks has stages from existing weights, so there is nothing to "
            "probe; list treatments such as P3 under `networks`, with the weights under `sources`"
        )
    make_data(recipe, data, say)
    folder = runs / recipe.name
    folder.mkdir(parents=True, exist_ok=True)
    with lock(folder / ".probes.lock", f"the probes of {recipe.name}", say):
        origin = _origin(recipe, data, places)
        if made_from(folder) != origin:
            found = [probe for place in places for probe in _probe(recipe, data, place, say)]
            write_probes(folder, origin, found)
        return read_probes(folder)


def probe_seconds(rate: Rate, cuts: int, images: int, val_images: int, classes: int) -> float:
    """Return about how many seconds probes take, for a net whose ``rate`` is known.

    The features take a forward pass; the classifiers of each cut some 600 products of all features with all classes,
    at 20 GFLOP/s.
    """
    used = min(IMAGES, images)
    passes = -(-cuts // CUTS_AT_ONCE) * (used + min(IMAGES, val_images)) * rate.test_image
    return passes + cuts * 600 * 4.0 * used * FEATURES * classes / 2e10


def places_of(recipe: Recipe) -> list[Place]:
    """Return where a recipe's networks use existing weights: split, target and source, each once."""
    return list(
        dict.fromkeys(
            (split, treatment.target, treatment.source)
            for split, treatments in recipe.treatments.items()
            for treatment in treatments
            if treatment.is_external
        )
    )


def _origin(recipe: Recipe, data: Path, places: Sequence[Place]) -> dict[str, Any]:
    """Everything that the probes depend on: if it is the same, they are."""
    lists = {
        f"{split}{target}/{part}": sha256(recipe.data_folder(data, split, target) / f"{part}.txt")
        for split, target, _ in places
        for part in ("train", "val")
    }
    settings = recipe.settings()
    keys = ("images", "architecture", "crop", "mean", "scale", "net_sha256", "cuts")
    return {
        "settings": {key: settings[key] for key in keys if key in settings},
        "lists": lists,
        "weights": {letter: sha256(recipe.source_file(letter)) for letter in sorted({place[2] for place in places})},
        "places": [list(place) for place in places],
        "images": IMAGES, "features": FEATURES, "decays": list(DECAYS), "steps": STEPS,
    }  # fmt: skip


def _probe(recipe: Recipe, data: Path, place: Place, say: Say) -> list[Probe]:
    split, target, source = place
    network = Network(recipe, split, Treatment(source, 1, target, False), 0)
    net = compose(network, data, "runs").net
    stages = stages_of(net, recipe.cuts)[:-1]
    probes = []
    for first in range(0, len(stages), CUTS_AT_ONCE):
        group = stages[first : first + CUTS_AT_ONCE]
        train, labels = features_of(network, net, data, "train", group)
        test, answers = features_of(network, net, data, "val", group)
        for stage in group:
            classifier = fit(train.pop(stage.cut), labels)
            seen = test.pop(stage.cut)
            accuracy = float(np.mean(classifier.classes(seen) == answers))
            say(f"probe: n = {stage.number}, {stage.name}: {accuracy:.1%} with a linear classifier on {stage.cut}")
            probes.append(
                Probe(
                    split, target, source, stage.number, stage.name, stage.cut, seen.shape[1], len(labels),
                    len(answers), classifier.decay, accuracy,
                )
            )  # fmt: skip
    return probes


def features_of(
    network: Network, net: NetParameter, data: Path, part: str, stages: Sequence[Stage]
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Return the features at the cuts of ``stages``, (images, features) float32 by cut, and the labels of the images.

    ``part`` is "train" or "val". The images are cropped as in a test pass, and not mirrored.
    """
    from transfer_caffe.engine.iteration import waiting  # noqa: F401 - first, since it has no effect once torch is imported

    import torch  # isort: skip

    from transfer_caffe.engine.net import Net

    folder = network.data_folder(data)
    database = folder / f"{part}_lmdb"
    count = min(IMAGES, len(open_records(database)))
    mean = network.mean_folder(data) / "mean.binaryproto"
    below = stages_of(net, network.recipe.cuts)[: stages[-1].number]
    reading = reading_net(net, below, database, mean, min(BATCH, count))
    made = Net(reading, NetState(phase=TEST), 1, torch.device("cpu"))
    source = network.source
    assert source is not None
    copied = made.copy_from(source)
    if absent := [name for stage in below for name in stage.weighted if name not in copied]:
        raise UserError(f"{source} has no layer {absent[0]}, which stage {stages[-1].number} of the net needs")
    images: dict[str, list[np.ndarray]] = {stage.cut: [] for stage in stages}
    labels: list[np.ndarray] = []
    batches = -(-count // min(BATCH, count))
    with torch.no_grad():
        for batch in track(range(batches), batches, f"batches of {part} images"):
            made.forward(batch, keep=True)
            for cut, found in images.items():
                found.append(reduced(made.blobs[cut]).numpy().copy())
            labels.append(made.array("label").ravel().astype(np.int64))
    return {cut: np.concatenate(found)[:count] for cut, found in images.items()}, np.concatenate(labels)[:count]


def reading_net(net: NetParameter, stages: Sequence[Stage], database: Path, mean: Path, batch: int) -> NetParameter:
    """Return the data layers of a net and the layers of ``stages``, the first ones, reading another database.

    Auxiliary classifiers are in no stage, so they are left out: they have other outputs than those of the weights.
    """
    wanted = {name for stage in stages for name in stage.layers}
    layers = [layer for layer in net.layer if layer.type == "Data" or layer.name in wanted]
    reading = NetParameter(name=net.name, layer=layers)
    for layer in reading.layer:
        if layer.type == "Data":  # also that of the phase TRAIN, which is not used
            layer.data_param.source, layer.data_param.batch_size = os.fspath(database), batch
            if layer.transform_param.mean_file:
                layer.transform_param.mean_file = os.fspath(mean)
    return reading


def reduced(blob: torch.Tensor) -> torch.Tensor:
    """Return a blob as (images, features), averaged over a grid of cells so that features are at most `FEATURES`.

    The grid is as fine as that allows. If there are more channels, or if the blob is flat, neighbours are averaged.
    """
    import torch

    blob = blob.float()
    if blob.dim() == 4 and blob[0].numel() > FEATURES:
        side = next((side for side in range(max(blob.shape[2:]), 1, -1) if blob.shape[1] * side * side <= FEATURES), 1)
        cells = min(side, blob.shape[2]), min(side, blob.shape[3])
        blob = torch.nn.functional.adaptive_avg_pool2d(blob, cells)
    blob = blob.flatten(1)
    return blob if blob.shape[1] <= FEATURES else torch.nn.functional.adaptive_avg_pool1d(blob, FEATURES)


@dataclass(frozen=True)
class Linear:
    """A linear classifier on standardised features: (features - ``center``) * ``scale``, times ``weights``, + ``bias``.

    ``decay`` is the weight of the L2 penalty that it was trained with.
    """

    center: np.ndarray
    scale: np.ndarray
    weights: np.ndarray
    bias: np.ndarray
    decay: float

    def scores(self, features: np.ndarray) -> np.ndarray:
        """Return the score of each class, (images, classes)."""
        return ((features - self.center) * self.scale) @ self.weights + self.bias

    def classes(self, features: np.ndarray) -> np.ndarray:
        """Return the most likely class of each image."""
        return self.scores(features).argmax(1)


def fit(features: np.ndarray, labels: np.ndarray) -> Linear:
    """Train a linear classifier on (images, features) float32 and return it.

    It minimises the mean log loss plus half of ``decay`` times the sum of squared weights, with every feature scaled to
    variance 1 / (number of features). ``decay`` is the one of `DECAYS` with the lowest log loss on a fifth of the
    images that is held out for that; the classifier is then trained on all of them.
    """
    center = features.mean(0)
    spread = features.std(0)
    varies = spread > 1e-5 * spread.max()  # what never varies in training would be scaled to huge values elsewhere
    scale = np.where(varies, 1 / np.sqrt(features.shape[1]) / np.where(varies, spread, 1), 0).astype(np.float32)
    ready = ((features - center) * scale).astype(np.float32)
    classes = int(labels.max()) + 1
    order = np.random.RandomState(0).permutation(len(labels))
    held, rest = np.split(order, [max(1, int(HELD_OUT * len(order)))])
    losses = {}
    for decay, solution in _path(ready[rest], labels[rest], classes, DECAYS):
        losses[decay] = _log_loss(ready[held] @ solution[:-1] + solution[-1], labels[held])
    best = min(losses, key=lambda decay: losses[decay])
    # from the strongest penalty to the chosen one again: each solution is the start of the next
    chain = list(itertools.takewhile(lambda decay: decay >= best, DECAYS))
    solution = list(_path(ready, labels, classes, chain))[-1][1]
    return Linear(center, scale, solution[:-1], solution[-1], best)


def _path(
    features: np.ndarray, labels: np.ndarray, classes: int, decays: Sequence[float]
) -> Iterator[tuple[float, np.ndarray]]:
    """Yield each decay and its solution, (features + 1, classes), whose last row are the biases."""
    from scipy.optimize import minimize

    one_hot = np.eye(classes, dtype=np.float32)[labels]
    solution = np.zeros((features.shape[1] + 1, classes))

    def objective(flat: np.ndarray, decay: float) -> tuple[float, np.ndarray]:
        current = flat.reshape(solution.shape).astype(np.float32)
        scores = features @ current[:-1] + current[-1]
        likely = np.exp(scores - scores.max(1, keepdims=True))
        likely /= likely.sum(1, keepdims=True)
        wrong = (likely - one_hot) / len(labels)
        slope = np.vstack([features.T @ wrong + decay * current[:-1], wrong.sum(0)])
        penalty = 0.5 * decay * float(np.square(flat.reshape(solution.shape)[:-1]).sum())
        return _log_loss(scores, labels) + penalty, slope.astype(np.float64).ravel()

    for decay in decays:
        found = minimize(objective, solution.ravel(), (decay,), "L-BFGS-B", jac=True, options={"maxiter": STEPS})
        solution = found.x.reshape(solution.shape)
        yield decay, solution.astype(np.float32)


def _log_loss(scores: np.ndarray, labels: np.ndarray) -> float:
    top = scores.max(1, keepdims=True)
    total = np.log(np.exp((scores - top).astype(np.float64)).sum(1)) + top[:, 0]
    return float(np.mean(total - scores[np.arange(len(labels)), labels]))


@command
def main(argv: list[str] | None = None) -> int | None:
    """The command line."""
    parser = ArgumentParser(
        prog="python -m transfer_caffe.probe",
        description="Train a linear classifier on the features of existing weights, at every cut of the net.",
        epilog="example: python -m transfer_caffe.probe --recipe my_photos.yaml",
    )
    parser.add_argument("--recipe", required=True, help="the YAML file of a recipe with `sources`")
    parser.add_argument("--data", default="data", type=Path, metavar="DIR", help="where datasets are (default: data)")
    parser.add_argument("--runs", default="runs", type=Path, metavar="DIR", help="where networks are (default: runs)")
    args = parser.parse_args(argv)
    probes = make_probes(load_recipe(args.recipe), args.data, args.runs)
    rows = [("split", "source", "n", "stage", "cut", "features", "accuracy")]
    rows += [
        (p.split + p.target, p.source, str(p.n), p.stage, p.cut, str(p.features), f"{p.accuracy:.1%}") for p in probes
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    return 0


if __name__ == "__main__":
    sys.exit(main())
