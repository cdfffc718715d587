"""engine, formats and utils are an independent Caffe library: copied into an empty project, they pass their tests."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import transfer_caffe

PACKAGE = Path(transfer_caffe.__file__).parent
TESTS = Path(__file__).resolve().parent.parent
SUPPORT = (
    "__init__.py", "python.py", "tiny.py", "waiting.py", "solver_suite.py", "gpu.py", "tape.py", "streams.py",
    "guards.py", "plain_pool.py",
)  # fmt: skip


@pytest.fixture
def project(tmp_path) -> Path:
    folder = tmp_path / "another project"
    for name in ("utils", "formats", "engine"):
        shutil.copytree(PACKAGE / name, folder / "transfer_caffe" / name, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copytree(TESTS / name, folder / "tests" / name, ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "transfer_caffe" / "__init__.py").touch()
    (folder / "tests" / "support").mkdir()
    for name in SUPPORT:
        shutil.copy(TESTS / "support" / name, folder / "tests" / "support" / name)
    (folder / "tests" / "golden").mkdir()
    for name in ("solvers.json",):
        shutil.copy(TESTS / "golden" / name, folder / "tests" / "golden" / name)
    shutil.copy(TESTS / "conftest.py", folder / "tests" / "conftest.py")
    return folder


def pytest_in(project: Path, *words: str) -> str:
    environment = os.environ | {"PYTHONPATH": str(project), "PYTHONSAFEPATH": "1"}
    argv = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", str(project), *words]
    done = subprocess.run(argv, cwd=project, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    return done.stdout


def test_all_tests_of_the_library_can_be_collected_and_some_run(project):
    """All of them pass, too; here a few do, since the others ran once already."""
    said = pytest_in(
        project, "-v", "tests", "-k", "test_engine_api or test_engine_old_files or test_seal or test_files"
    )
    for name in ("engine/test_engine_api", "engine/test_engine_old_files", "formats/test_seal", "utils/test_files"):
        assert f"tests/{name}.py" in said
    number = re.search(r"(\d+) deselected", said)  # the others were collected, and not run
    assert number and int(number[1]) > 500
    said = "import transfer_caffe; print(transfer_caffe.__file__)"
    environment = os.environ | {"PYTHONPATH": str(project), "PYTHONSAFEPATH": "1"}
    where = subprocess.run([sys.executable, "-c", said], env=environment, capture_output=True, text=True, check=True)
    assert where.stdout.startswith(str(project))
