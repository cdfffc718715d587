"""Make layers.npz and networks.json: what real Caffe computes for the cases and networks of tests/conformance.

PYTHONPATH=tests python tests/golden/make_golden.py        (needs real Caffe: `make caffe`)
"""

import json
import os
import subprocess
import tempfile
from pathlib import Path

import numpy as np
from conformance.layer_cases import LAYER_CASES
from conformance.networks import NETWORKS, net_text, solver_text, write_data
from conformance.seeded import seeded_weights, write_weights
from conformance.suite import outcomes

from transfer_caffe import real_caffe
from transfer_caffe.compare import Case, compare
from transfer_caffe.log import parse_log
from transfer_caffe.proto import parse_text
from transfer_caffe.proto.caffe_pb2 import NetParameter

HERE = Path(__file__).parent.resolve()


def make_layers() -> None:
    """All arrays of all cases in one flat array, with an index: case, name, shape, in this order."""
    index, arrays = [], []
    for number, (layer, outcome) in enumerate(outcomes(case for cases in LAYER_CASES.values() for case in cases)):
        assert outcome.real is None, (layer.name, outcome.real)
        for name, array in outcome.reference.items():
            index.append([number, name, list(array.shape)])
            arrays.append(np.asarray(array, np.float32).ravel())
    flat = np.concatenate(arrays)
    np.savez_compressed(HERE / "layers.npz", values=flat, index=np.frombuffer(json.dumps(index).encode(), np.uint8))


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
