"""The provenance of a network: code, data, engine and machine. All of it is recorded in done.json.

Each checksum can be reproduced manually: it is the `sha256sum` of a file, and for the program's code the result of

    cd transfer_caffe && find -L . -name '*.py' | LC_ALL=C sort | xargs sha256sum | sha256sum

which the function `code_sha256` reproduces.
"""

from __future__ import annotations

import functools
import hashlib
import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

from transfer_caffe import __version__
from transfer_caffe.experiment.recipe import Network
from transfer_caffe.run.engines import Engine
from transfer_caffe.utils.files import checksum_path, read_record, sha256

PACKAGE = Path(__file__).resolve().parent.parent

_SECONDS = 20.0
"""Timeout, in seconds, for querying git or an engine's version."""


@functools.cache
def code_sha256() -> str:
    """Return one checksum of the names and contents of all Python files in the package."""
    names = [
        os.path.relpath(Path(folder, name), PACKAGE)
        for folder, _, files in os.walk(PACKAGE, followlinks=True)
        for name in files
        if name.endswith(".py")
    ]
    digest = hashlib.sha256()
    for name in sorted(f"./{name}" for name in names):
        digest.update(f"{sha256(PACKAGE / name)}  {name}\n".encode())
    return digest.hexdigest()


@functools.cache
def code() -> dict[str, Any]:
    """Return version and checksum of this program; in a git checkout also its commit and whether files differ from it.

    The first result is cached: the checkout may move to another commit while a network is trained, which can take days.
    """
    found: dict[str, Any] = {"version": __version__, "sha256": code_sha256()}
    checkout = PACKAGE.parent
    if (checkout / ".git").exists():  # an installed copy may be inside another project's checkout
        commit = _says(["git", "-C", str(checkout), "rev-parse", "HEAD"])
        changed = _says(["git", "-C", str(checkout), "status", "--porcelain", "--untracked-files=no"])
        if commit and changed is not None:
            found |= {"commit": commit, "dirty": bool(changed)}
    return found


def versions() -> dict[str, str]:
    """Return the versions of Python and of the libraries used; from metadata, since importing torch takes seconds."""
    found = {"transfer_caffe": __version__, "python": platform.python_version()}
    for package in ("torch", "numpy", "protobuf", "lmdb", "opencv-python-headless"):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def engine_record(engine: Engine) -> dict[str, Any]:
    """Return the engine's name, its version if known, and the path and checksum of its program."""
    if engine.name == "embedded":
        return {"engine": engine.name, "engine_version": __version__, "engine_path": str(PACKAGE / "engine")}
    program = Path(engine.argv[0])
    # `caffe --version` prints "caffe version 1.0.0"; it is unknown what another program does with that option
    words = _says([*engine.argv, "--version"]) if program.name.startswith("caffe") else None
    return {
        "engine": engine.name,
        "engine_version": words.split()[-1] if words else None,
        "engine_path": str(program),
        "engine_sha256": sha256(program),
    }


def machine() -> dict[str, Any]:
    """Describe the machine that this process runs on."""
    model = ""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                model = line.split(":", 1)[1].strip()
                break
    except OSError:
        model = platform.processor()
    return {"node": platform.node(), "system": platform.platform(), "cpu": model, "cores": os.cpu_count()}


def data_checksums(network: Network, data: Path) -> dict[str, str]:
    """Return the checksums of all data that a network is trained and tested on: lists, databases and mean image.

    The checksum of a database is read from the .sha256 file beside it, so that no large file is read; without such a
    file the size is returned instead, as `123 bytes`. A view (`transfer_caffe.formats.views`) is identified by the
    checksums of its table and of the database of all images.
    """
    folder = network.data_folder(data)
    found = {
        name: sha256(folder / name) for name in ("classes.txt", "train.txt", "val.txt") if (folder / name).exists()
    }
    for part in ("train", "val"):
        found |= {f"{part}_lmdb/{name}": digest for name, digest in _of_records(folder / f"{part}_lmdb").items()}
    mean = network.mean_folder(data) / "mean.binaryproto"
    return found | ({mean.name: sha256(mean)} if mean.exists() else {})


def _of_records(path: Path) -> dict[str, str]:
    """Return the checksums of a database's files, or of a view's table and its database."""
    view = path / "view.json"
    if view.exists():
        kinds = {"database_sha256": str, "records_sha256": str}
        record = read_record(view, kinds, "build the view again")
        return {"data.mdb": record["database_sha256"], "records.npy": record["records_sha256"]}
    file = path / "data.mdb"
    if not file.exists():
        return {}
    try:
        return {"data.mdb": checksum_path(file).read_text().split()[0]}
    except (FileNotFoundError, IndexError, UnicodeDecodeError):
        return {"data.mdb": f"{file.stat().st_size} bytes"}


def _says(argv: list[str]) -> str | None:
    """Return what a program prints; None if it fails, hangs or does not exist."""
    try:
        answer = subprocess.run(argv, capture_output=True, text=True, timeout=_SECONDS, check=True)
    except (OSError, subprocess.SubprocessError, UnicodeDecodeError):
        return None
    return answer.stdout.strip()
