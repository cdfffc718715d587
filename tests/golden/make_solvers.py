"""Write solvers.json: what real Caffe's solvers log and compute in 20 iterations, for tests without real Caffe.

python tests/golden/make_solvers.py       needs real Caffe (`make caffe`)

It holds, for each case of tests/support/solver_suite.py, the displayed losses, the test outputs, and the sum and the
sum of absolute values of each weight and history blob after 20 iterations.
"""

import json
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE.parent.parent)]

import numpy as np  # noqa: E402
from support import solver_suite  # noqa: E402

from transfer_caffe.utils.files import write_text  # noqa: E402


def digest(array: np.ndarray) -> list[float]:
    """Return the sum and the sum of absolute values, with 8 digits."""
    values = array.astype(np.float64)
    return [float(f"{values.sum():.8g}"), float(f"{np.abs(values).sum():.8g}")]


def golden(case: str, folder: Path) -> dict:
    """Run real Caffe on a case and return what is recorded."""
    solver_suite.prepare(folder, case, iterations=20)
    log = solver_suite.run_real(folder, *solver_suite.FINETUNE)
    blobs = {name: digest(array) for name, array in solver_suite.blobs(folder, 20).items()}
    return {"losses": solver_suite.losses(log), "scores": solver_suite.scores(log), "blobs": blobs}


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        rows = [f'"{case}": {json.dumps(golden(case, Path(folder) / case))}' for case in solver_suite.CASES]
    write_text(HERE / "solvers.json", "{\n" + ",\n".join(rows) + "\n}\n")
