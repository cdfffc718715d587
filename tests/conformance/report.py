"""Measure the differences between the engine and real Caffe, and write the numbers into docs/fidelity.md.

    make fidelity

Only the part between the two markers in the document is replaced; the rest is written manually.
"""

from __future__ import annotations

import contextlib
import platform
import re
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from conformance.graph_cases import GARBAGE_IN_CAFFE, GRAPH_CASES, REFUSED_BY_CAFFE
from conformance.layer_cases import LAYER_CASES
from conformance.networks import NETWORKS, net_text, solver_text, write_data
from conformance.random_layers import random_cases
from conformance.seeded import recorded, seeded_weights, write_weights
from conformance.suite import outcomes
from conformance.test_layers import known_difference
from conformance.test_networks import losses
from support.solver_suite import CASES as SOLVER_CASES
from support.solver_suite import prepare as prepare_solver

from transfer_caffe import __version__
from transfer_caffe.compare import Case, Outcome, compare
from transfer_caffe.formats.proto import parse_text
from transfer_caffe.formats.proto.caffe_pb2 import NetParameter
from transfer_caffe.real_caffe import programs as real_caffe
from transfer_caffe.utils.errors import UserError, command
from transfer_caffe.utils.files import write_text

DOCUMENT = Path(__file__).resolve().parent.parent.parent / "docs" / "fidelity.md"
BEGIN, END = "<!-- measured: from here on made by `make fidelity` -->", "<!-- measured: end -->"
KINDS = ("data", "diff", "grad")


def number(value: float) -> str:
    """Format a difference with two digits."""
    return "0" if value == 0 else f"{value:.1e}"


def table(head: list[str], rows: list[list[str]]) -> str:
    """Format a Markdown table."""
    return "\n".join(f"| {' | '.join(row)} |" for row in [head, ["---"] * len(head), *rows])


def worst(answers: list[Outcome]) -> list[str]:
    """Return the largest differences of values, of blob gradients and of weight gradients."""
    found = []
    for kind in KINDS:
        rows = [row.difference for outcome in answers for row in outcome.rows if row.what == kind]
        found.append(number(max(rows)) if rows else "-")
    return found


def layers() -> str:
    """Return the table of layer types."""
    by_type: dict[str, list[Outcome]] = {}
    for layer, outcome in outcomes(case for cases in LAYER_CASES.values() for case in cases):
        by_type.setdefault(layer.type, []).append(outcome)
    rows = [[kind, str(len(answers)), *worst(answers)] for kind, answers in sorted(by_type.items())]
    return table(["layer", "settings", "values", "gradients of blobs", "gradients of weights"], rows)


def random_layers() -> str:
    """Return a paragraph about layers with random settings."""
    answers = [
        outcome
        for layer, outcome in outcomes(case for seed in range(4) for case in random_cases(2000 + seed, 250))
        if outcome.real is None and outcome.ours is None and not known_difference(layer)
    ]
    values, blobs, weights = worst(answers)
    return (
        f"Layers with random settings and random shapes: both engines computed {len(answers)} of 1,000 (real Caffe "
        f"rejects the others, or they fall under the known differences below). Largest differences: "
        f"values {values}, gradients of blobs {blobs}, gradients of weights {weights}."
    )


def graphs() -> str:
    """Return a paragraph about interactions between layers."""
    names = [name for name in GRAPH_CASES if name not in REFUSED_BY_CAFFE + GARBAGE_IN_CAFFE]
    values, blobs, weights = worst(compare([GRAPH_CASES[name] for name in names]))
    return (
        f"Small nets that test interactions between layers (in-place layers, blobs used more than once, shared and "
        f"frozen weights, several losses, propagate_down): {len(names)} nets. Largest differences: values {values}, "
        f"gradients of blobs {blobs}, gradients of weights {weights}."
    )


@contextlib.contextmanager
def working_folder() -> Iterator[Path]:
    """Create a temporary folder and make it the current one."""
    with tempfile.TemporaryDirectory() as name, contextlib.chdir(name):
        Path("snap").mkdir()
        yield Path(name)


def trained(folder: Path) -> list[str]:
    """Train in both engines from w.caffemodel; return the relative differences of losses 0 to 19 and of loss 100."""
    engines = ([str(real_caffe.program())], [sys.executable, "-m", "transfer_caffe.engine"])
    theirs, ours = (losses(folder, program, "w.caffemodel") for program in engines)
    difference = np.abs(ours - theirs) / np.abs(theirs)
    return [number(difference[:20].max()), number(difference[-1])]


def networks() -> str:
    """Return the table of networks."""
    rows = []
    for name in NETWORKS:
        with working_folder() as folder:
            (folder / "net.prototxt").write_text(net_text(name))
            (folder / "solver.prototxt").write_text(solver_text(name, max_iter=100))
            write_data(name, folder, seed=1)
            param = parse_text(net_text(name), NetParameter(), name)
            weights = seeded_weights(param, recorded(name)["seed"])
            write_weights("w.caffemodel", weights)
            early, late = trained(folder)
            own_early, own_late = (number(value) for value in recorded(name)["spread"])
            differences = worst(compare([Case(param, "TRAIN", weights, folder=folder)]))
            rows.append([name, *differences, early, own_early, late, own_late])
    head = ["network", "values", "gradients of blobs", "gradients of weights",
            "losses 0 to 19", "real Caffe's own", "loss 100", "real Caffe's own"]  # fmt: skip
    return table(head, rows)


def solvers() -> str:
    """Return the table of solvers."""
    rows = []
    for name, settings in SOLVER_CASES.items():
        with working_folder() as folder:
            prepare_solver(folder, name)
            rows.append([name, f"`{settings.strip()}`", *trained(folder)])
    return table(["case", "solver", "losses 0 to 19", "loss 100"], rows)


@command
def main(argv: list[str] | None = None) -> None:
    """Measure everything and update the document."""
    if real_caffe.program() is None or real_caffe.pycaffe() is None:
        raise UserError("there is no real Caffe to compare with; run `make caffe`, or set CAFFE and CAFFE_PYTHON")
    torch.set_num_threads(1)
    parts = [
        BEGIN,
        f"transfer_caffe {__version__}, PyTorch {torch.__version__}, Caffe 1.0.0 (CPU, OpenBLAS), "
        f"{platform.machine()}, float32, one thread.",
        "### Layers",
        layers(),
        random_layers(),
        graphs(),
        "### Networks",
        networks(),
        "### Solvers",
        solvers(),
        END,
    ]
    text = DOCUMENT.read_text(encoding="utf-8")
    measured = "\n\n".join(parts)
    pattern = f"{re.escape(BEGIN)}.*{re.escape(END)}"
    write_text(DOCUMENT, re.sub(pattern, lambda _: measured, text, flags=re.DOTALL))
    print(f"wrote {DOCUMENT}")


if __name__ == "__main__":
    sys.exit(main())
