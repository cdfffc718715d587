"""Typical scripts give real pycaffe's numbers: each scenario runs unchanged with both, and all its arrays agree."""

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import cv2
import h5py
import numpy as np
import pytest
from support import python

from transfer_caffe.real_caffe import programs as real_caffe
from transfer_caffe.utils.processes import environment

SCRIPTS = Path(__file__).parent / "scripts"
SCENARIOS = [
    "classification", "detection", "learning", "adam", "nesterov", "adagrad", "rmsprop", "adadelta", "callbacks",
    "logreg", "fine_tuning", "surgery", "deepdream", "style", "fcn", "merge_bn", "detector_layers", "siamese", "passes",
    "between", "batch_norm", "memory",
]  # fmt: skip
TOLERANCE = 1e-4
"""Relative to an array's largest value; most differ by 1e-6."""


def prepare(folder: Path) -> None:
    """Write what the scenarios read."""
    folder.mkdir()
    shutil.copy(SCRIPTS / "layers_of_scenarios.py", folder)
    random = np.random.default_rng(0)
    with h5py.File(folder / "data.h5", "w") as file:
        file["data"] = random.random((70, 1, 12, 12), np.float32)
        file["label"] = random.integers(0, 4, 70).astype(np.float32)
    (folder / "list.txt").write_text("data.h5\n")
    y, x = np.mgrid[:48, :60]
    image = np.stack([127 + 100 * np.sin(x / 5), 127 + 100 * np.cos(y / 7 + x / 9), (x * y) % 256], -1)
    cv2.imwrite(str(folder / "image.png"), image.astype(np.uint8))


Started = Callable[[list[str], dict[str, str]], "subprocess.CompletedProcess[str]"]
"""A function that runs a Python with pycaffe, with arguments and an environment."""


def run(start: Started, name: str, folder: Path, env: dict[str, str]) -> dict[str, np.ndarray]:
    prepare(folder)
    env = {**env, "GLOG_minloglevel": "2", "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    result = start([str(SCRIPTS / "scenarios.py"), name, str(folder), str(folder / "out.npz")], env)
    assert result.returncode == 0, result.stderr[-2000:]
    return dict(np.load(folder / "out.npz"))


def ours(name: str, folder: Path) -> dict[str, np.ndarray]:
    def start(arguments: list[str], env: dict[str, str]) -> subprocess.CompletedProcess[str]:
        return python.run("-m", "transfer_caffe.caffe", *arguments, env=env)

    return run(start, name, folder, environment())


def real(name: str, folder: Path) -> dict[str, np.ndarray]:
    def start(arguments: list[str], env: dict[str, str]) -> subprocess.CompletedProcess[str]:
        argv = [*(real_caffe.pycaffe() or ()), *arguments]
        return subprocess.run(argv, env=env, capture_output=True, text=True, errors="replace")

    # its Python searches PYTHONPATH when a net, not the script, imports a module
    return run(start, name, folder, {**os.environ, "PYTHONPATH": str(folder)})


@pytest.mark.parametrize("name", SCENARIOS)
def test_a_script_gives_real_pycaffes_numbers(name: str, tmp_path: Path) -> None:
    if real_caffe.pycaffe() is None:
        pytest.skip("there is no real pycaffe (`make caffe`)")
    theirs = real(name, tmp_path / "real")
    mine = ours(name, tmp_path / "our own")
    assert list(mine) == list(theirs)
    for key, expected in theirs.items():
        got = mine[key]
        assert got.shape == expected.shape, key
        if got.dtype.kind == "U":
            assert got.tolist() == expected.tolist(), key
        elif got.size:
            scale = max(1e-3, float(np.abs(expected).max()))
            np.testing.assert_allclose(got / scale, expected / scale, rtol=0, atol=TOLERANCE, err_msg=key)


@pytest.mark.parametrize("name", ["deepdream", "detector_layers"])
def test_a_script_runs_without_real_caffe(name: str, tmp_path: Path) -> None:
    arrays = ours(name, tmp_path / "our own")
    assert all(np.isfinite(array).all() for array in arrays.values() if array.dtype.kind != "U")
