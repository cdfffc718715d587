"""The embedded engine's solvers: real Caffe's numbers, both snapshot formats, exact resuming, and invalid settings."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from support import solver_suite
from support.solver_suite import CASES, FINETUNE, TRAIN, run_ours
from support.tiny import net_text

from transfer_caffe.engine.__main__ import main
from transfer_caffe.engine.solver.rates import LR_POLICIES
from transfer_caffe.engine.solver.updates import RULES
from transfer_caffe.formats.proto import read_binary, write_binary
from transfer_caffe.formats.proto.caffe_pb2 import SolverState

h5py = pytest.importorskip("h5py")
GOLDEN = json.loads((Path(__file__).parent.parent / "golden" / "solvers.json").read_text())
NAMES = ("caffemodel", "solverstate")
TYPES = {
    "SGD": "sgd_clip_iter_size_average",
    "Nesterov": "nesterov_clip_iter_size",
    "AdaGrad": "adagrad_clip_iter_size",
    "RMSProp": "rmsprop_clip_iter_size",
    "AdaDelta": "adadelta_clip_iter_size",
    "Adam": "adam_clip_iter_size",
}


def refused(capsys, *argv):
    """Run the engine, expect exit code 2 and one error line, and return that line."""
    assert main(list(argv)) == 2
    log = capsys.readouterr().err
    errors = [line for line in log.splitlines() if "error: " in line]
    assert len(errors) == 1 and "Traceback" not in log
    return errors[0]


def edit(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def test_the_golden_numbers_are_of_all_cases_and_the_cases_of_all_solvers_and_policies():
    assert list(GOLDEN) == list(CASES)
    assert all(any(f'type: "{name}"' in text for text in CASES.values()) for name in RULES if name != "SGD")
    assert all(any(f'"{name}"' in text for text in CASES.values()) for name in LR_POLICIES)


@pytest.mark.parametrize("case", CASES)
def test_losses_scores_weights_and_histories_are_those_of_real_caffe(case, tmp_path):
    solver_suite.prepare(tmp_path, case, iterations=20)
    log = run_ours(tmp_path, *FINETUNE)
    np.testing.assert_allclose(solver_suite.losses(log), GOLDEN[case]["losses"], rtol=1.01e-5)
    np.testing.assert_allclose(solver_suite.scores(log), GOLDEN[case]["scores"], rtol=1.01e-5)
    blobs = solver_suite.blobs(tmp_path, 20)
    assert list(blobs) == list(GOLDEN[case]["blobs"])
    for name, (total, absolute) in GOLDEN[case]["blobs"].items():
        values = blobs[name].astype(np.float64)
        np.testing.assert_allclose([values.sum(), np.abs(values).sum()], [total, absolute], atol=1e-5 * absolute)


@pytest.mark.parametrize("ending", ["", ".h5"], ids=["binary", "hdf5"])
@pytest.mark.parametrize("kind", TYPES)
def test_a_run_without_random_seed_resumes_at_any_iteration_to_the_same_bytes(kind, ending, tmp_path):
    more = "random_seed: -1" + (" snapshot_format: HDF5" if ending else "")
    solver_suite.prepare(tmp_path, TYPES[kind], iterations=7)
    edit(tmp_path / "solver.prototxt", "random_seed: 7", more)
    edit(tmp_path / "solver.prototxt", "snapshot: 20", "snapshot: 1")
    (tmp_path / "net.prototxt").write_text(net_text(random=True))
    assert kind == "SGD" or f'type: "{kind}"' in CASES[TYPES[kind]]
    run_ours(tmp_path, *TRAIN)
    finals = [tmp_path / f"snap/tiny_iter_7.{name}{ending}" for name in NAMES]
    whole = [path.read_bytes() for path in finals]
    for iteration in (1, 4, 6):
        for path in finals:
            path.unlink()
        run_ours(tmp_path, *TRAIN, "--snapshot", f"snap/tiny_iter_{iteration}.solverstate{ending}")
        assert [path.read_bytes() for path in finals] == whole


def test_two_runs_without_random_seed_draw_other_numbers(tmp_path):
    for folder in (tmp_path / "a", tmp_path / "b"):
        solver_suite.prepare(folder, "sgd_fixed", iterations=1)
        edit(folder / "solver.prototxt", "random_seed: 7", "")
        run_ours(folder, *TRAIN)
    a, b = ((tmp_path / name / "snap/tiny_iter_1.caffemodel").read_bytes() for name in "ab")
    assert a != b


def test_a_seed_other_than_the_states_is_said_and_followed(tmp_path):
    solver_suite.prepare(tmp_path, "sgd_fixed", iterations=6)
    edit(tmp_path / "solver.prototxt", "snapshot: 20", "snapshot: 3")
    (tmp_path / "net.prototxt").write_text(net_text(random=True))
    run_ours(tmp_path, *TRAIN)
    whole = (tmp_path / "snap/tiny_iter_6.caffemodel").read_bytes()
    same = run_ours(tmp_path, *TRAIN, "--snapshot", "snap/tiny_iter_3.solverstate")
    assert (tmp_path / "snap/tiny_iter_6.caffemodel").read_bytes() == whole
    edit(tmp_path / "solver.prototxt", "random_seed: 7", "random_seed: 8")
    other = run_ours(tmp_path, *TRAIN, "--snapshot", "snap/tiny_iter_3.solverstate")
    assert "was trained with random_seed 7: resuming with 8" in other and "was trained with" not in same
    assert (tmp_path / "snap/tiny_iter_6.caffemodel").read_bytes() != whole


@pytest.mark.parametrize("case", ["adam", "shared_sgd"])
def test_hdf5_snapshots_hold_what_binary_ones_hold(case, tmp_path):
    for name, more in (("binary", ""), ("hdf5", "snapshot_format: HDF5")):
        solver_suite.prepare(tmp_path / name, case, more, iterations=3)
        log = run_ours(tmp_path / name, *FINETUNE)
    assert "Snapshotting to HDF5 file snap/tiny_iter_3.caffemodel.h5" in log
    assert "Snapshotting solver state to HDF5 file snap/tiny_iter_3.solverstate.h5" in log
    binary, hdf5 = solver_suite.blobs(tmp_path / "binary", 3), solver_suite.blobs(tmp_path / "hdf5", 3, ".h5")
    # in HDF5, a blob that layers share is only stored with the first one
    assert set(binary) - set(hdf5) == ({"fc5/0", "fc5/1"} if case == "shared_sgd" else set())
    assert all(np.array_equal(binary[name], array) for name, array in hdf5.items())


def test_hdf5_snapshots_are_laid_out_as_caffes(tmp_path):
    solver_suite.prepare(tmp_path, "adam", "snapshot_format: HDF5", iterations=3)
    run_ours(tmp_path, *FINETUNE)

    def content(kind):
        found = {}
        with h5py.File(tmp_path / f"snap/tiny_iter_3.{kind}.h5") as file:
            file.visititems(lambda name, item: found.update({name: item[()] if hasattr(item, "shape") else None}))
        return found

    weights, state = content("caffemodel"), content("solverstate")
    layers = ["conv1", "conv2", "data", "fc3", "loss", "norm1", "pool1", "pool2", "relu1", "relu2"]
    assert sorted(name for name, value in weights.items() if value is None) == ["data", *(f"data/{x}" for x in layers)]
    assert weights["data/conv1/0"].shape == (6, 3, 3, 3) and weights["data/conv1/0"].dtype == np.float32
    assert [name for name in weights if name.startswith("data/fc3/")] == ["data/fc3/0", "data/fc3/1"]
    assert state["iter"].dtype == np.int32 and state["iter"].tolist() == [3] and state["current_step"].tolist() == [0]
    assert state["learned_net"] == b"snap/tiny_iter_3.caffemodel.h5"
    assert {name for name in state if name.startswith("history/")} == {f"history/{index}" for index in range(12)}


@pytest.mark.parametrize("case", ["sgd_fixed", "shared_sgd"])
def test_weights_in_hdf5_start_a_run_and_are_scored_as_binary_ones(case, tmp_path):
    solver_suite.prepare(tmp_path, case, "snapshot_format: HDF5", iterations=2)
    run_ours(tmp_path, *FINETUNE)
    shutil.move(tmp_path / "snap/tiny_iter_2.caffemodel.h5", tmp_path / "w.caffemodel.h5")
    edit(tmp_path / "solver.prototxt", "snapshot_format: HDF5", "")
    edit(tmp_path / "solver.prototxt", "max_iter: 2 snapshot: 20", "max_iter: 0 snapshot: 0")
    log = run_ours(tmp_path, *TRAIN, "--weights", "w.caffemodel.h5")
    assert "Finetuning from w.caffemodel.h5" in log
    score = ("test", "--model", "net.prototxt", "--iterations", "2", "--weights")
    logs = [run_ours(tmp_path, *score, path) for path in ("w.caffemodel.h5", "snap/tiny_iter_0.caffemodel")]
    found = [re.findall(r"caffe.cpp:\d+\] (\S+ = .*)", log) for log in logs]
    assert found[0] == found[1] and len(found[0]) == 2
    assert run_ours(tmp_path, *TRAIN, "--weights", "w.caffemodel, w.caffemodel.h5").count("Finetuning from") == 2


DAMAGES = {
    "empty": lambda data: b"",
    "half": lambda data: data[: len(data) // 2],
    "one byte short": lambda data: data[:-1],
    "one byte changed": lambda data: data[:900] + bytes([data[900] ^ 16]) + data[901:],
    "another file": lambda data: bytes(range(256)) * 4,
}


@pytest.mark.parametrize("ending", ["", ".h5"], ids=["binary", "hdf5"])
@pytest.mark.parametrize("kind", ["caffemodel", "solverstate"])
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_snapshot_is_refused_in_one_line(damage, kind, ending, tmp_path, capsys, monkeypatch):
    solver_suite.prepare(tmp_path, "adam", "snapshot_format: HDF5" if ending else "", iterations=1)
    run_ours(tmp_path, *FINETUNE)
    monkeypatch.chdir(tmp_path)
    path = Path(f"snap/tiny_iter_1.{kind}{ending}")
    path.write_bytes(DAMAGES[damage](path.read_bytes()))
    # a state names its weights file, so damage to that file is detected as well
    line = refused(capsys, *TRAIN, "--snapshot", f"snap/tiny_iter_1.solverstate{ending}")
    assert path.name in line
    if kind == "caffemodel":
        assert path.name in refused(capsys, *TRAIN, "--weights", str(path))


def test_a_state_in_hdf5_that_lacks_parts_is_refused_naming_it(tmp_path, capsys, monkeypatch):
    solver_suite.prepare(tmp_path, "adam", "snapshot_format: HDF5", iterations=1)
    run_ours(tmp_path, *FINETUNE)
    monkeypatch.chdir(tmp_path)
    state = "snap/tiny_iter_1.solverstate.h5"
    whole = Path(state).read_bytes()
    for part in ("iter", "history", "history/0"):
        Path(state).write_bytes(whole)
        with h5py.File(state, "r+") as file:
            file.attrs["sealed"] = 0
            del file[part]
        with open(state, "r+b") as file:
            file.truncate(len(whole) - 100)  # no seal, as in real Caffe's files
        assert "tiny_iter_1.solverstate.h5" in refused(capsys, *TRAIN, "--snapshot", state)


def test_a_run_that_goes_on_from_a_state_takes_no_weights_from_the_solver_file(tmp_path):
    solver_suite.prepare(tmp_path, "adam", iterations=2)
    run_ours(tmp_path, *FINETUNE)
    with open(tmp_path / "solver.prototxt", "a") as file:
        file.write('weights: "w.caffemodel"')
    assert "Finetuning from w.caffemodel" in run_ours(tmp_path, *TRAIN)
    log = run_ours(tmp_path, *TRAIN, "--snapshot", "snap/tiny_iter_2.solverstate")
    assert "Resuming from" in log and "Finetuning" not in log


def test_a_state_of_a_solver_with_another_history_is_refused(tmp_path, capsys, monkeypatch):
    solver_suite.prepare(tmp_path, "adam", iterations=1)
    run_ours(tmp_path, *FINETUNE)
    solver_suite.prepare(tmp_path / "other", "sgd_fixed", iterations=1)
    monkeypatch.chdir(tmp_path / "other")
    line = refused(capsys, *TRAIN, "--snapshot", "../snap/tiny_iter_1.solverstate")
    assert "a history of 12 blobs, the net and solver need 6" in line


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('type: "Adam"', 'type: "adam"', "unknown solver type 'adam'; known: SGD, Nesterov, AdaGrad, RMSProp"),
        ('type: "Adam"', 'type: "AdaGrad"', "AdaGrad has no momentum"),
        ('type: "Adam"', 'type: "RMSProp"', "RMSProp has no momentum"),
        ('type: "Adam"', 'type: "Adam" solver_type: ADAM', "both type and its old form solver_type"),
        ("momentum: 0.9", "momentum: 1", "Adam needs a momentum"),
        ('lr_policy: "fixed"', 'lr_policy: "step"', "lr_policy step needs a stepsize"),
        ('lr_policy: "fixed"', 'lr_policy: "sigmoid" gamma: 1', "lr_policy sigmoid needs a stepsize"),
        ('lr_policy: "fixed"', 'lr_policy: "exp" gamma: -1', "lr_policy exp needs a gamma of at least 0"),
        ("test_iter: 3", "test_iter: 3 test_net: 'net.prototxt' test_net: 'net.prototxt'", "2 test nets and 1"),
        ("test_iter: 3", "test_iter: 3 train_net: 'net.prototxt'", "more than once: net, train_net"),
        ("test_iter: 3", "test_iter: 3 test_state {} test_state {}", "2 test_state for 1 test nets"),
        ("test_interval: 10", "", "sets test_iter, but no test_interval"),
        ('net: "net.prototxt"', "", "names no training net"),
    ],
)
def test_settings_that_real_caffe_refuses_are_refused_in_one_line(tmp_path, capsys, monkeypatch, old, new, message):
    solver_suite.prepare(tmp_path, "adam", iterations=1)
    edit(tmp_path / "solver.prototxt", old, new)
    monkeypatch.chdir(tmp_path)
    line = refused(capsys, *TRAIN)
    assert line.count("solver.prototxt: ") == 1 and message in line


def test_without_a_prefix_snapshots_have_the_name_of_the_solver_file(tmp_path):
    solver_suite.prepare(tmp_path, "sgd_fixed", iterations=1)
    edit(tmp_path / "solver.prototxt", 'snapshot_prefix: "snap/tiny"', "")
    assert "is set to solver" in run_ours(tmp_path, *TRAIN)
    (tmp_path / "folder").mkdir()
    with open(tmp_path / "solver.prototxt", "a") as file:
        file.write('snapshot_prefix: "folder"')
    assert "is replaced to folder/solver" in run_ours(tmp_path, *TRAIN)
    assert (tmp_path / "solver_iter_1.caffemodel").exists() and (tmp_path / "folder/solver_iter_1.solverstate").exists()


def test_clipping_and_steps_are_told_as_real_caffe_tells_them(tmp_path):
    solver_suite.prepare(tmp_path, "sgd_multistep_unsorted", "clip_gradients: 0.3", iterations=12)
    log = run_ours(tmp_path, *FINETUNE)
    steps = re.findall(r"MultiStep Status: Iteration (\d+), step = (\d+)", log)
    assert steps == [("9", "1"), ("10", "2"), ("11", "3")]
    assert re.search(r"Gradient clipping: scaling down gradients \(L2 norm \S+ > 0.3\) by scale factor 0\.\d+", log)
    assert read_binary(tmp_path / "snap/tiny_iter_12.solverstate", SolverState()).current_step == 3


def test_a_rate_that_grows_beyond_all_numbers_is_a_divergence(tmp_path, capsys, monkeypatch):
    solver_suite.prepare(tmp_path, "sgd_exp", iterations=20)
    edit(tmp_path / "solver.prototxt", "gamma: 0.97", "gamma: 1e38")
    monkeypatch.chdir(tmp_path)
    assert "training diverged; lower base_lr" in refused(capsys, *TRAIN)


def test_a_state_of_a_negative_iteration_is_refused(tmp_path, capsys, monkeypatch):
    solver_suite.prepare(tmp_path, "sgd_fixed", iterations=1)
    write_binary(tmp_path / "x.solverstate", SolverState(iter=-5))
    monkeypatch.chdir(tmp_path)
    assert "its iteration is -5" in refused(capsys, *TRAIN, "--snapshot", "x.solverstate")


def test_layers_that_only_a_test_net_has_take_their_weights_too(tmp_path):
    solver_suite.prepare(tmp_path, "shared_sgd", iterations=0)
    both = run_ours(tmp_path, *FINETUNE)
    text = (tmp_path / "net.prototxt").read_text()
    head, tail = text.split('layer { name: "fc4"')
    tail = 'layer { name: "fc4"' + tail.replace('param { name: "w" } param { name: "b" }', "include { phase: TEST }")
    tail = tail.replace('name: "tanh4"', 'name: "tanh4" include { phase: TEST }')
    tail = tail.replace('param { name: "w" lr_mult: 2 } param { name: "b" }', "include { phase: TEST }")
    tail = tail.replace('bottom: "fc5" bottom: "label" top: "loss"', 'bottom: "fc3" bottom: "label" top: "loss"')
    (tmp_path / "net.prototxt").write_text(head + tail)
    alone = run_ours(tmp_path, *FINETUNE)
    accuracy = [re.findall("accuracy = (.*)", log) for log in (both, alone)]
    assert accuracy[0] == accuracy[1] and len(accuracy[0]) == 1


@pytest.mark.parametrize("ending", ["", ".h5"])
def test_a_state_takes_no_other_weights_than_those_written_with_it(ending, tiny, capsys):
    text = (tiny / "solver.prototxt").read_text() + ("snapshot_format: HDF5" if ending else "")
    (tiny / "solver.prototxt").write_text(text)
    assert main(["train", "--solver", "solver.prototxt"]) == 0
    snap = tiny / "snap"
    (snap / f"tiny_iter_10.caffemodel{ending}").write_bytes((snap / f"tiny_iter_5.caffemodel{ending}").read_bytes())
    capsys.readouterr()
    arguments = ["train", "--solver", "solver.prototxt", "--snapshot", f"snap/tiny_iter_10.solverstate{ending}"]
    assert main(arguments) == 2
    assert "is not the weights file written with it" in capsys.readouterr().err
