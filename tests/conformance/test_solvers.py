"""The solvers beside real Caffe: losses of 100 iterations, weights and histories after 20; each resumes the other's."""

import os
import subprocess

import numpy as np
import pytest
from conformance.suite import needs_real_caffe
from solver_cases import SNAPSHOT, SOLVER_CASES, write_solver, write_weights

from transfer_caffe import real_caffe
from transfer_caffe.compare import difference
from transfer_caffe.engine import snapshot
from transfer_caffe.engine.__main__ import main
from transfer_caffe.log import parse_log
from transfer_caffe.snapshots import read_weights

pytestmark = needs_real_caffe


def real(*arguments):
    """Run real Caffe and give its log."""
    environment = {**os.environ, "GLOG_logtostderr": "1", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    argv = [str(real_caffe.program()), *arguments]
    result = subprocess.run(argv, env=environment, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr[-2000:]
    return result.stderr


def ours(capsys, *arguments):
    """Run the embedded engine and give its log."""
    capsys.readouterr()
    assert main(list(arguments)) == 0
    return capsys.readouterr().err


def losses(log):
    return np.array([loss for _, loss in sorted(parse_log(log).train_losses.items())])


def compare_snapshots(iteration, ending=""):
    """Largest relative differences of weights and of histories between snap/tiny and real/tiny."""
    weights = [read_weights_of(f"{folder}/tiny_iter_{iteration}.caffemodel{ending}") for folder in ("snap", "real")]
    states = [snapshot.read_state(f"{folder}/tiny_iter_{iteration}.solverstate{ending}") for folder in ("snap", "real")]
    assert list(weights[0]) == list(weights[1])
    assert [a.shape for a in states[0].history] == [a.shape for a in states[1].history]
    assert states[0].iteration == states[1].iteration
    return (
        max(difference(a, b) for name in weights[0] for a, b in zip(weights[0][name], weights[1][name], strict=True)),
        max(difference(a, b) for a, b in zip(states[0].history, states[1].history, strict=True)),
    )


def read_weights_of(path):
    if not path.endswith(".h5"):
        return read_weights(path)
    from transfer_caffe.engine import hdf5

    return {name: list(blobs.values()) for name, blobs in hdf5.read_weights(path).items() if blobs}


def move_real(folder):
    """What real Caffe wrote goes to the folder real."""
    (folder / "snap").rename(folder / "real")
    (folder / "snap").mkdir()


@pytest.mark.parametrize("name", SOLVER_CASES)
def test_losses_weights_and_histories_are_real_caffes(name, tiny, capsys):
    write_solver(tiny, name)
    write_weights("w.caffemodel")
    theirs = real("train", "--solver", "solver.prototxt", "--weights", "w.caffemodel")
    move_real(tiny)
    log = ours(capsys, "train", "--solver", "solver.prototxt", "--weights", "w.caffemodel")
    a, b = losses(log), losses(theirs)
    assert len(a) == len(b) == 101
    np.testing.assert_allclose(a[:20], b[:20], rtol=1e-4)
    np.testing.assert_allclose(a[-1], b[-1], rtol=1e-2)
    assert parse_log(log).rates == pytest.approx(parse_log(theirs).rates, rel=1e-4)
    weights, histories = compare_snapshots(SNAPSHOT)
    assert weights < 1e-4 and histories < 1e-3
    tests = [[row.test_accuracy for row in parse_log(text).rows()] for text in (log, theirs)]
    assert tests[0] == pytest.approx(tests[1], abs=0.051)  # one of the 20 test images may fall to another class


@pytest.mark.parametrize("name", ["sgd", "nesterov", "adagrad", "rmsprop", "adadelta", "adam"])
@pytest.mark.parametrize("more", ["", "snapshot_format: HDF5"], ids=["binary", "hdf5"])
def test_each_goes_on_from_the_others_snapshots(name, more, tiny, capsys):
    # 15 batches of 8 are twice the 60 images: there, real Caffe, which starts the data over, reads the same as ours
    write_solver(tiny, name, more)
    text = (tiny / "solver.prototxt").read_text()
    (tiny / "solver.prototxt").write_text(text.replace("snapshot: 20", "snapshot: 15"))
    write_weights("w.caffemodel")
    ending = ".h5" if more else ""
    theirs = real("train", "--solver", "solver.prototxt", "--weights", "w.caffemodel")
    move_real(tiny)
    log = ours(capsys, "train", "--solver", "solver.prototxt", "--weights", "w.caffemodel")
    for state, runner in (
        (f"real/tiny_iter_30.solverstate{ending}", lambda *a: ours(capsys, *a)),
        (f"snap/tiny_iter_30.solverstate{ending}", real),
    ):
        resumed = losses(runner("train", "--solver", "solver.prototxt", "--snapshot", state))
        assert len(resumed) == 71
        np.testing.assert_allclose(resumed[:20], losses(theirs)[30:50], rtol=1e-4)
        np.testing.assert_allclose(resumed[:20], losses(log)[30:50], rtol=1e-4)
        np.testing.assert_allclose(resumed[-1], losses(theirs)[-1], rtol=1e-2)
    assert max(compare_snapshots(90, ending)) < 1e-2


@pytest.mark.parametrize("ending", ["", ".h5"])
def test_both_score_weights_alike_whoever_wrote_them(ending, tiny, capsys):
    write_solver(tiny, "sgd", "snapshot_format: HDF5" if ending else "")
    write_weights("w.caffemodel")
    real("train", "--solver", "solver.prototxt", "--weights", "w.caffemodel")
    move_real(tiny)
    ours(capsys, "train", "--solver", "solver.prototxt", "--weights", "w.caffemodel")
    for folder in ("snap", "real"):
        arguments = ("test", "--model", "net.prototxt", "--weights", f"{folder}/tiny_iter_20.caffemodel{ending}",
                     "--iterations", "4")  # fmt: skip
        found = [
            [line.split("] ", 1)[1] for line in text.splitlines() if "caffe.cpp" in line and " = " in line]
            for text in (ours(capsys, *arguments), real(*arguments))
        ]
        assert len(found[0]) == len(found[1]) == 10
        for a, b in zip(*found, strict=True):
            assert a.split(" = ")[0] == b.split(" = ")[0]
            assert float(a.split(" = ")[1].split()[0]) == pytest.approx(float(b.split(" = ")[1].split()[0]), rel=1e-4)
