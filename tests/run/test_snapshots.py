"""Which snapshots are accepted as intact."""

from pathlib import Path

import numpy as np
import pytest

from transfer_caffe.formats import seal
from transfer_caffe.formats.proto import array_to_blob, write_binary
from transfer_caffe.formats.proto.caffe_pb2 import NetParameter, SolverState
from transfer_caffe.formats.weights import differing_layers
from transfer_caffe.run import snapshots
from transfer_caffe.run.folder import iterations, state_path, weights_path
from transfer_caffe.utils.files import checksum_path

EXPECTED = snapshots.Expected({"conv1": 2, "fc2": 2}, random_seed=7, max_iter=20)


def write_pair(
    folder: Path,
    iteration: int,
    value: float = 1,
    history: int = 2,
    says: int | None = None,
    learned: str | None = None,
    layers: tuple[str, ...] = ("conv1", "fc2"),
) -> None:
    net = NetParameter()
    net.layer.add(name="data")
    for name in layers:
        net.layer.add(name=name, blobs=[array_to_blob(np.full((2, 3), value, np.float32))])
    write_binary(weights_path(folder, iteration), net)
    learned = f"snapshots/net_iter_{iteration}.caffemodel" if learned is None else learned
    state = SolverState(iter=iteration if says is None else says, learned_net=learned)
    state.history.extend(array_to_blob(np.full((2, 3), value, np.float32)) for _ in range(history))
    write_binary(state_path(folder, iteration), state)


@pytest.fixture
def folder(tmp_path) -> Path:
    write_pair(tmp_path, 9)
    write_pair(tmp_path, 10)
    return tmp_path


def newest(folder: Path) -> tuple[int | None, list[str]]:
    said: list[str] = []
    return snapshots.newest(folder, EXPECTED, said.append), said


def test_the_newest_is_that_of_the_highest_iteration(folder):
    assert newest(folder) == (10, [])
    assert newest(folder / "none") == (None, [])


def test_weights_without_a_state_are_not_a_snapshot_yet(folder):
    state_path(folder, 10).unlink()
    assert newest(folder) == (9, [])


DAMAGES = {
    "no weights": lambda folder: weights_path(folder, 10).unlink(),
    "weights cut off": lambda folder: _cut(weights_path(folder, 10), 20),
    "weights cut off between layers": lambda folder: _cut(weights_path(folder, 10), 53),
    "state empty": lambda folder: _cut(state_path(folder, 10), 0),
    "state cut off": lambda folder: _cut(state_path(folder, 10), 30),
    "state of another iteration": lambda folder: write_pair(folder, 10, says=9),
    "state cut off between blobs": lambda folder: write_pair(folder, 10, history=1),
    "state without the name of its weights": lambda folder: write_pair(folder, 10, learned=""),
    "weights of another net": lambda folder: write_pair(folder, 10, layers=("conv1", "ip2")),
    "one bit of the weights": lambda folder: _flip(weights_path(folder, 10)),
    "one bit of the state": lambda folder: _flip(state_path(folder, 10)),
    "state that goes with other weights": lambda folder: write_pair(
        folder, 10, learned="snapshots/net_iter_9.caffemodel"
    ),
    "not a number": lambda folder: write_pair(folder, 10, value=float("nan")),
}


def _cut(path: Path, size: int) -> None:
    path.write_bytes(path.read_bytes()[:size])


def _flip(path: Path) -> None:
    """Flip one bit of the last value."""
    data = bytearray(path.read_bytes())
    data[-seal.TRAILER_BYTES - 4] ^= 1
    path.write_bytes(data)


def test_snapshots_of_real_caffe_get_checksums_that_go_with_them(folder):
    paths = [weights_path(folder, 10), state_path(folder, 10)]
    snapshots.keep_checksums(folder)
    assert not checksum_path(paths[0]).exists()  # it already has a seal
    for path in paths:
        path.write_bytes(seal.read(path))
    snapshots.keep_checksums(folder, [10])
    snapshots.thin(folder, 10, count=1)
    names = {path.name for path in (folder / "snapshots").iterdir()}
    assert names == {file.name for path in paths for file in (path, checksum_path(path))}
    data = bytearray(paths[0].read_bytes())
    data[-4] ^= 1
    paths[0].write_bytes(data)
    found, said = newest(folder)
    assert found is None and "checksum" in said[0]
    assert not checksum_path(paths[0]).exists()


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_pair_is_set_aside_and_the_one_before_it_taken(folder, damage):
    DAMAGES[damage](folder)
    found, said = newest(folder)
    assert found == 9
    assert len(said) == 1 and "iteration 10 is damaged and renamed" in said[0]
    assert iterations(folder) == [9]
    assert (folder / "snapshots" / "net_iter_10.solverstate.damaged").exists()
    assert not list(
        (folder / "snapshots").glob("*.sha256")
    )  # a new file of the same name must not be compared with them


def test_thinning_leaves_one_pair_and_what_is_not_a_snapshot(folder):
    (folder / "snapshots" / "notes.txt").write_text("mine")
    (folder / "snapshots" / "net_iter_8.caffemodel.damaged").write_text("")
    snapshots.thin(folder, 10, count=1)
    names = sorted(path.name for path in (folder / "snapshots").iterdir())
    assert names == ["net_iter_10.caffemodel", "net_iter_10.solverstate", "notes.txt"]


def test_layers_are_the_same_only_byte_for_byte():
    zero, minus_zero = np.zeros(2, np.float32), -np.zeros(2, np.float32)
    assert differing_layers(["a"], {"a": [zero]}, {"a": [zero.copy()]}) == []
    assert differing_layers(["a"], {"a": [zero]}, {"a": [minus_zero]}) == ["a"]
    assert differing_layers(["a"], {"a": [zero]}, {}) == ["a"]
    assert differing_layers(["a"], {}, {}) == ["a"]  # a layer missing in both was not compared
