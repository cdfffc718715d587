"""Make layers.npz and networks.json: real Caffe's numbers for every layer, graph and network of the conformance suite.

PYTHONPATH=tests python tests/golden/make_golden.py        (needs real Caffe: `make caffe`; some minutes)

The weights that a network starts with are those of the first seed from which real Caffe agrees with itself after all
weights were moved by one unit of the last place: elsewhere a tie or a kink would decide, and no engine could follow.
The embedded engine has no say in that.
"""

import json
import tempfile
from pathlib import Path

import numpy as np
from conformance.network_runs import (
    EARLY,
    ITERATIONS,
    first_iteration,
    losses,
    nudged,
    prepare,
    relative,
    weights,
    write_weights,
)
from conformance.networks import NETWORKS
from golden_cases import NETWORKS_FILE, golden_cases, write_layers

from transfer_caffe import real_caffe
from transfer_caffe.compare import compare

SEEDS, NUDGES = range(1, 13), range(2)
STEADY_EARLY, STEADY_LATE = 2e-5, 2e-3
"""Largest spread of real Caffe's own losses: a fifth of what the engine is allowed."""


def make_layers() -> None:
    """layers.npz."""
    cases = golden_cases()
    named = []
    for (name, _), outcome in zip(cases, compare([case for _, case in cases]), strict=True):
        assert outcome.real is None, f"{name}: real Caffe refuses it: {outcome.real}"
        named.append((name, outcome.reference))
    write_layers(named)


def make_network(name: str, folder: Path) -> dict[str, object]:
    """A network's seed, spread, losses and norms."""
    caffe = [str(real_caffe.program())]
    rejected = {}
    for seed in SEEDS:
        prepare(name, folder, ITERATIONS)
        values = weights(name, seed, folder)
        runs = []
        for start in (values, *(nudged(values, nudge) for nudge in NUDGES)):
            write_weights(start, folder / "w.caffemodel")
            runs.append(losses(caffe, folder, "w.caffemodel"))
        apart = np.max([relative(run, runs[0]) for run in runs[1:]], axis=0)
        early, late = float(apart[:EARLY].max()), float(apart[-1])
        if early <= STEADY_EARLY and late <= STEADY_LATE:
            break
        rejected[seed] = [float(f"{early:.1e}"), float(f"{late:.1e}")]
        print(f"{name}: seed {seed} is not steady in real Caffe: {early:.1e}, {late:.1e}", flush=True)
    else:
        raise SystemExit(f"{name}: real Caffe is steady from no seed; lower its base_lr in conformance/networks.py")
    outcome = compare([first_iteration(name, values, folder)])[0]
    assert outcome.real is None, outcome.real
    norms = {
        key: float(f"{np.linalg.norm(array.astype(np.float64).ravel()):.9g}")
        for key, array in outcome.reference.items()
        if key.startswith(("data/", "diff/", "grad/")) and "_split_" not in key
    }
    run = runs[0].tolist()
    print(f"{name}: seed {seed}, spread {early:.1e}, {late:.1e}", flush=True)
    return {
        "seed": seed,
        "spread": [early, late],
        "rejected": rejected,
        "losses": run[:EARLY],
        "last": run[ITERATIONS],
        "norms": norms,
    }


def main() -> None:
    """Both files."""
    make_layers()
    golden = {}
    for name in NETWORKS:
        with tempfile.TemporaryDirectory() as folder:
            golden[name] = make_network(name, Path(folder))
    lines = [f"{json.dumps(name)}: {json.dumps(values)}" for name, values in golden.items()]
    NETWORKS_FILE.write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    main()
