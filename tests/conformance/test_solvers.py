"""Compare all solvers with real Caffe: losses of 100 iterations, scores, and weights and history after 20."""

import numpy as np
import pytest
from support import solver_suite
from support.solver_suite import CASES, FINETUNE, run_ours, run_real

from transfer_caffe.real_caffe import programs as real_caffe

pytestmark = pytest.mark.skipif(
    real_caffe.program() is None,
    reason="there is no real Caffe (`make caffe`); tests/engine/test_engine_solvers.py compares with recorded numbers",
)


@pytest.mark.parametrize("case", CASES)
def test_losses_scores_weights_and_histories_are_real_caffes(case, tmp_path):
    logs = []
    for name, run in (("ours", run_ours), ("real", run_real)):
        solver_suite.prepare(tmp_path / name, case)
        logs.append(run(tmp_path / name, *FINETUNE))
    ours, real = (np.array(solver_suite.losses(log)) for log in logs)
    # numbers are displayed with 6 digits: one unit in the last digit is up to 1e-5
    np.testing.assert_allclose(ours[:20], real[:20], rtol=1.01e-5)
    np.testing.assert_allclose(ours, real, rtol=1e-3)
    np.testing.assert_allclose(*(solver_suite.scores(log) for log in logs), rtol=1e-3)
    blobs = [solver_suite.blobs(tmp_path / name, 20) for name in ("ours", "real")]
    assert solver_suite.difference(*blobs, histories=False) < 1e-5
    assert solver_suite.difference(*blobs, histories=True) < 1e-5
