"""The installed package is the same and complete, whether built from the tree, from a zip of it, or from the sdist."""

import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
TOP = (
    "setup.py", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE", "CHANGELOG.md", "CONTRIBUTING.md", "Makefile",
    "requirements.txt", "docs", "prototxt_templates", "transfer_caffe", "tools", "data_prep", "tests", ".ci",
)  # fmt: skip
JUNK = shutil.ignore_patterns("__pycache__", "*.egg-info", ".pytest_cache", ".hypothesis", "*.pyc")


def run(*argv: object, cwd: Path, **more: str) -> str:
    done = subprocess.run(
        [str(word) for word in argv], cwd=cwd, env={**os.environ, **more}, capture_output=True, text=True
    )
    assert done.returncode == 0, f"{argv}: {done.stdout[-2000:]}{done.stderr[-3000:]}"
    return done.stdout


def copy_tree(folder: Path) -> Path:
    """Copy the checkout's files, since a build writes into the source folder."""
    for name in TOP:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=JUNK, symlinks=True)
        else:
            folder.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, folder / name)
    return folder


@pytest.fixture(scope="module")
def sources(tmp_path_factory) -> dict[str, Path]:
    """Folders to build from: the tree, an unpacked zip of the tree, and the unpacked sdist."""
    folder = tmp_path_factory.mktemp("a package")
    tree = copy_tree(folder / "tree")
    with zipfile.ZipFile(folder / "tree.zip", "w") as packed:
        for path in sorted(tree.rglob("*")):
            packed.write(path, Path("zip") / path.relative_to(tree))
    with zipfile.ZipFile(folder / "tree.zip") as packed:
        packed.extractall(folder)
    run(sys.executable, "-c", "from setuptools import build_meta as b; print(b.build_sdist('../dist'))", cwd=tree)
    (sdist,) = (folder / "dist").glob("*.tar.gz")
    with tarfile.open(sdist) as packed:
        packed.extractall(folder, filter="data")
    return {"tree": tree, "zip": folder / "zip", "sdist": folder / sdist.name.removesuffix(".tar.gz")}


@pytest.fixture(scope="module")
def wheels(sources) -> dict[str, Path]:
    made = {}
    for name, source in sources.items():
        out = source.parent / f"wheel of {name}"
        run(
            sys.executable, "-m", "pip", "wheel", "-q", "--disable-pip-version-check", "--no-deps", "--no-index",
            "--no-build-isolation", "-w", out, source, cwd=source.parent,
        )  # fmt: skip
        (made[name],) = out.glob("*.whl")
    return made


def contents(wheel: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(wheel) as packed:
        return {name: packed.read(name) for name in packed.namelist() if not name.endswith("/RECORD")}


def test_there_are_no_links():
    assert not [path for name in TOP for path in (ROOT / name).rglob("*") if path.is_symlink()]


def test_the_sdist_has_every_file_of_the_tree(sources):
    def files(folder: Path) -> set[str]:
        return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}

    left_out = {name for name in files(sources["tree"]) - files(sources["sdist"]) if ".egg-info" not in name}
    assert not {name for name in left_out if not name.startswith("build/")}


def test_wheels_from_tree_zip_and_sdist_are_the_same_and_complete(wheels, sources):
    tree, unzipped, unpacked = (contents(wheels[name]) for name in ("tree", "zip", "sdist"))
    assert tree == unzipped == unpacked
    package = sources["tree"] / "transfer_caffe"
    wanted = {f"transfer_caffe/{path.relative_to(package)}" for path in package.rglob("*") if path.is_file()}
    templates = sources["tree"] / "prototxt_templates"
    wanted |= {
        f"transfer_caffe/prototxt_templates/{path.relative_to(templates)}"
        for path in templates.rglob("*")
        if path.is_file()
    }
    assert {name for name in wanted if "__pycache__" not in name} <= set(tree)
    # no top-level name other than the package's is installed
    assert {name.split("/")[0].split("-")[0] for name in tree} == {"transfer_caffe"}


@pytest.mark.parametrize("origin", ["tree", "zip", "sdist"])
def test_an_installed_package_works_from_data_to_done(origin, sources, tmp_path):
    place = tmp_path / "env"
    venv.create(place, with_pip=False)
    site = next(place.glob("lib*/python*/site-packages"))
    # dependencies come from this environment, but the package does not: .pth files in it are not processed
    (site / "needed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    python = place / "bin" / "python"
    run(
        python, "-m", "pip", "install", "-q", "--disable-pip-version-check", "--no-deps", "--no-index",
        "--no-build-isolation", "--ignore-installed", sources[origin], cwd=tmp_path,
    )  # fmt: skip
    environment = {"PYTHONPATH": "", "PYTHONSAFEPATH": "1"}
    where = run(python, "-c", "import transfer_caffe; print(transfer_caffe.__file__)", cwd=tmp_path, **environment)
    assert where.startswith(str(place))
    command = place / "bin" / "transfer-caffe"
    if origin == "sdist":  # the three wheels are the same, so only one is tested from data to a trained network
        recipe = (Path(where.strip()).parent / "recipes" / "demo.yaml").read_text()
        for setting, shorter in (("max_iter: 2000", "max_iter: 100"), ("interval: 500", "interval: 50")):
            assert setting in recipe
            recipe = recipe.replace(setting, shorter)
        (tmp_path / "demo.yaml").write_text(recipe.replace("snapshot: 500", "snapshot: 50"))
        run(command, "data", "--recipe", "demo.yaml", cwd=tmp_path, **environment)
        said = run(command, "driver", "--recipe", "demo.yaml", "--treatment", "baseA", cwd=tmp_path, **environment)
        assert "random0-baseA-s0: done: test accuracy 0." in said
    else:
        run(command, "generate", "--recipe", "paper", "--treatment", "R3", "--help", cwd=tmp_path, **environment)
