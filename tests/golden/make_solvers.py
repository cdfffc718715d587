"""Make solvers.json: the losses that real Caffe prints for every case of tests/solver_cases.py.

PYTHONPATH=tests python tests/golden/make_solvers.py        (needs real Caffe: `make caffe`)
"""

import json
import os
import subprocess
import tempfile
from pathlib import Path

from conftest import write_tiny
from solver_cases import SOLVER_CASES, write_solver, write_weights

from transfer_caffe import real_caffe
from transfer_caffe.log import parse_log

HERE = Path(__file__).parent.resolve()


def main() -> None:
    """Run real Caffe on every case."""
    golden = {}
    for name in SOLVER_CASES:
        with tempfile.TemporaryDirectory() as folder:
            os.chdir(folder)
            write_tiny(Path(folder))
            write_solver(Path(folder), name)
            write_weights("w.caffemodel")
            argv = [str(real_caffe.program()), "train", "--solver", "solver.prototxt", "--weights", "w.caffemodel"]
            environment = {**os.environ, "GLOG_logtostderr": "1"}
            log = subprocess.run(argv, env=environment, capture_output=True, text=True, check=True).stderr
            losses = parse_log(log).train_losses
            golden[name] = {str(iteration): losses[iteration] for iteration in (*range(20), 100)}
            os.chdir(HERE)
    lines = [f"  {json.dumps(name)}: {json.dumps(values)}" for name, values in golden.items()]
    (HERE / "solvers.json").write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    main()
