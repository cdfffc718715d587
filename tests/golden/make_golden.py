"""Make layers.npz and networks.json: what real Caffe computes for the cases and networks of tests/conformance.

PYTHONPATH=tests python tests/golden/make_golden.py        (needs real Caffe: `make caffe`)
"""

import json
import os
import subprocess
import tempfile
from pathlib import Path

import numpy as np
from conformance.networks import NETWORKS, net_text, solver_text, write_data
from conformance.seeded import seeded_weights, write_weights
from conformance.suite import recorded_cases

from transfer_caffe import real_caffe
from transfer_caffe.compare import Case, compare
from transfer_caffe.log import parse_log
from transfer_caffe.proto import parse_text
from transfer_caffe.proto.caffe_pb2 import NetParameter

HERE = Path(__file__).parent.resolve()


def make_layers() -> None:
    """All arrays of all cases in one flat array, with an index: a list a case, of its name and [array, shape]."""
    index, arrays = [], []
    names, cases = zip(*recorded_cases(), strict=True)
    for name, outcome in zip(names, compare(cases), strict=True):
        assert outcome.real is None, (name, outcome.real)
        index.append([name, *([key, list(array.shape)] for key, array in outcome.reference.items())])
        arrays += [np.asarray(array, np.float32).ravel() for array in outcome.reference.values()]
    text = np.frombuffer(json.dumps(index).encode(), np.uint8)
    np.savez_compressed(HERE / "layers.npz", values=np.concatenate(arrays), index=text)


def make_networks() -> None:
    """Losses of the first 20 iterations and of the 100th, and the norms of all blobs and gradients before them."""
    golden = {}
    for name in NETWORKS:
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            (folder / "snap").mkdir()
            (folder / "net.prototxt").write_text(net_text(name))
            (folder / "solver.prototxt").write_text(solver_text(name, max_iter=100))
            write_data(name, folder, seed=1)
            param = parse_text(net_text(name), NetParameter(), name)
            os.chdir(folder)
            weights = seeded_weights(param, seed=1)
            write_weights("w.caffemodel", weights)
            [outcome] = compare([Case(param, "TRAIN", weights, folder=folder)])
            assert outcome.real is None and outcome.ours is None, (name, outcome.real, outcome.ours)
            norms = {
                key: float(np.linalg.norm(outcome.reference[key].astype(np.float64)))
                for key in (f"{row.what}/{row.name}" for row in outcome.rows)
                if not key.startswith("param/")
            }
            argv = [str(real_caffe.program()), "train", "--solver", "solver.prototxt", "--weights", "w.caffemodel"]
            log = subprocess.run(argv, env={**os.environ, "GLOG_logtostderr": "1"}, capture_output=True, text=True)
            losses = parse_log(log.stderr).train_losses
            golden[name] = {"losses": [losses[i] for i in (*range(20), 100)], "norms": norms}
            print(name, losses[0], losses[19], losses[100], f"worst {outcome.worst():.1e}")
            os.chdir(HERE)
    lines = [f"  {json.dumps(name)}: {json.dumps(values)}" for name, values in golden.items()]
    (HERE / "networks.json").write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    make_layers()
    make_networks()
