"""Write layers.npz and networks.json: real Caffe's results for the cases and networks of tests/conformance.

PYTHONPATH=tests python tests/golden/make_golden.py             (needs real Caffe: `make caffe`)
PYTHONPATH=tests python tests/golden/make_golden.py resnet      updates only these networks in networks.json
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from conformance.networks import NETWORKS, net_text, solver_text, write_data
from conformance.seeded import seeded_weights, write_weights
from conformance.suite import recorded_cases

from transfer_caffe.compare import Case, compare
from transfer_caffe.formats.log import parse_log
from transfer_caffe.formats.proto import parse_text
from transfer_caffe.formats.proto.caffe_pb2 import NetParameter
from transfer_caffe.real_caffe import programs as real_caffe
from transfer_caffe.real_caffe.differences import TOLERANCE, difference, noise_floor, nudged

HERE = Path(__file__).parent.resolve()

STEADY = (2e-5, 2e-3)
"""The largest accepted spread of real Caffe's losses (of the first 20 iterations, of the 100th): how far they change if
the initial weights are changed by one unit in the last place. It is a fifth of the engine's tolerance. Each network
starts from the first seed for which this holds. With other seeds, rounding decides the course of training, which no
other program or CPU can reproduce. The choice does not depend on our engine.
"""

UPSETS = (30, 4)
"""Number of samples, and the number of units in the last place by which each of them changes the weights. Real Caffe's
blobs and gradients must stay within the tolerance in all of them, which shows that no unit is so close to 0 that
rounding moves it to the other side of a ReLU.
"""


def make_layers() -> None:
    """Write all arrays of all cases as one flat array, with an index: for each case, its name and [array, shape]."""
    index, arrays = [], []
    names, cases = zip(*recorded_cases(), strict=True)
    for name, outcome in zip(names, compare(cases), strict=True):
        assert outcome.real is None, (name, outcome.real)
        index.append([name, *([key, list(array.shape)] for key, array in outcome.reference.items())])
        arrays += [np.asarray(array, np.float32).ravel() for array in outcome.reference.values()]
    text = np.frombuffer(json.dumps(index).encode(), np.uint8)
    np.savez_compressed(HERE / "layers.npz", values=np.concatenate(arrays), index=text)


def losses() -> np.ndarray:
    """Train with real Caffe from the solver and weights in the current folder, and return the losses."""
    argv = [str(real_caffe.program()), "train", "--solver", "solver.prototxt", "--weights", "w.caffemodel"]
    environment = {**os.environ, "GLOG_logtostderr": "1", "OMP_NUM_THREADS": "1"}
    log = subprocess.run(argv, env=environment, capture_output=True, text=True, check=True).stderr
    found = parse_log(log).train_losses
    return np.array([found[i] for i in (*range(20), 100)])


def steady_weights(name: str, param: NetParameter) -> tuple[int, list[float], dict[str, np.ndarray], np.ndarray]:
    """Return the first seed from which real Caffe is stable (`STEADY`, `UPSETS`), its spread, weights and losses."""
    for seed in range(1, 20):
        weights, runs = seeded_weights(param, seed), []
        for values in (weights, *(nudged(weights, nudge) for nudge in range(3))):
            write_weights("w.caffemodel", values)
            runs.append(losses())
        apart = np.max([np.abs(run - runs[0]) / runs[0] for run in runs[1:]], axis=0)
        spread = [float(f"{apart[:20].max():.2g}"), float(f"{apart[20]:.2g}")]
        blobs = spread_of_blobs(param, weights)
        print(f"{name}: seed {seed}, spread {spread}, {blobs:.2g}", flush=True)
        if spread[0] <= STEADY[0] and spread[1] <= STEADY[1] and blobs <= TOLERANCE:
            return seed, spread, weights, runs[0]
    raise SystemExit(f"{name}: real Caffe is not stable from any seed; lower base_lr in conformance/networks.py")


def spread_of_blobs(param: NetParameter, weights: dict[str, np.ndarray]) -> float:
    """Return the largest difference of real Caffe's blobs and gradients in the first iteration, as in `compare`."""
    draws = (weights, *(nudged(weights, nudge, UPSETS[1]) for nudge in range(UPSETS[0])))
    first, *others = (outcome.reference for outcome in compare([Case(param, "TRAIN", values) for values in draws]))
    keys = [key for key in first if key.startswith(("data/", "diff/", "grad/"))]
    return max(difference(other[key], first[key], noise_floor(key, first)) for other in others for key in keys)


def make_networks(names: list[str]) -> None:
    """Write the losses of iterations 0 to 19 and 100, and the norms of all initial blobs and gradients."""
    golden = json.loads((HERE / "networks.json").read_text()) if names else {}
    for name in names or NETWORKS:
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            (folder / "snap").mkdir()
            (folder / "net.prototxt").write_text(net_text(name))
            (folder / "solver.prototxt").write_text(solver_text(name, max_iter=100))
            write_data(name, folder, seed=1)
            param = parse_text(net_text(name), NetParameter(), name)
            os.chdir(folder)
            seed, spread, weights, run = steady_weights(name, param)
            [outcome] = compare([Case(param, "TRAIN", weights, folder=folder)])
            assert outcome.real is None and outcome.ours is None, (name, outcome.real, outcome.ours)
            norms = {
                key: float(np.linalg.norm(outcome.reference[key].astype(np.float64)))
                for key in (f"{row.what}/{row.name}" for row in outcome.rows)
                if not key.startswith("param/")
            }
            golden[name] = {"seed": seed, "spread": spread, "losses": run.tolist(), "norms": norms}
            os.chdir(HERE)
    lines = [f"  {json.dumps(name)}: {json.dumps(values)}" for name, values in golden.items()]
    (HERE / "networks.json").write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    if not sys.argv[1:]:
        make_layers()
    make_networks(sys.argv[1:])
