"""Pack what `check.py` needs on a GPU machine without network: this repository, and wheels of packages missing there.

    make gpu-bundle                 # writes build/gpu-bundle.tar.gz, and prints the two commands to run there

The machine needs Python 3.12 with PyTorch for CUDA and the packages in `PRESENT`.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
MOST_BYTES = 60 << 20
PRESENT = {"numpy", "protobuf", "pyyaml", "matplotlib", "jinja2", "torch", "opencv-python-headless", "h5py", "rich",
           "scipy", "pytest", "hypothesis"}  # fmt: skip
"""Packages that are expected there."""
ONLY_HERE = {"scikit-image", "scikit-learn", "ruff", "pyright", "playwright", "setuptools"}
"""Packages that the check does not need."""
FOR = ["--python-version", "3.12", "--implementation", "cp", "--abi", "cp312", "--platform", "manylinux2014_x86_64",
       "--platform", "manylinux_2_17_x86_64", "--platform", "manylinux_2_28_x86_64"]  # fmt: skip
NAME = "transfer_caffe"


def main() -> int:
    """Write the bundle and print the commands; the exit code is 2 if it cannot be made."""
    path = ROOT / "build" / "gpu-bundle.tar.gz"
    path.parent.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        wheels = Path(folder)
        for requirement in missing((ROOT / "requirements.txt").read_text()):
            argv = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:", *FOR]
            done = subprocess.run([*argv, "--dest", folder, requirement], capture_output=True, text=True, check=False)
            if done.returncode:
                print(f"gpu-bundle: error: no wheel of {requirement}: {done.stderr.strip()[-300:]}", file=sys.stderr)
                return 2
        write(path, files(), wheels)
    size = path.stat().st_size
    if size > MOST_BYTES:
        path.unlink()
        print(f"gpu-bundle: error: {size / 2**20:.0f} MiB are more than {MOST_BYTES >> 20}", file=sys.stderr)
        return 2
    print(f"wrote {path.relative_to(ROOT)} ({size / 2**20:.1f} MiB); copy it to the GPU machine, and run there:")
    print(f"  tar -xzf {path.name}")
    print(f"  python3 {NAME}/tests/gpu/check.py --out gpu-check")
    return 0


def missing(requirements: str) -> list[str]:
    """Return the pinned requirements that are neither expected on the GPU machine nor unnecessary there."""
    lines = [line.partition("#")[0].strip() for line in requirements.splitlines()]
    pinned = [line.partition(";")[0].strip() for line in lines if re.match(r"[A-Za-z0-9_.-]+==", line)]
    known = {name.lower() for name in PRESENT | ONLY_HERE}
    return [line for line in pinned if re.split("==", line)[0].lower() not in known]


def files() -> list[Path]:
    """Return the files of this checkout, as paths from its root: what git tracks, and new files it does not ignore."""
    argv = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    names = subprocess.run(argv, cwd=ROOT, capture_output=True, check=True).stdout.decode().split("\0")
    return sorted(Path(name) for name in names if name and (ROOT / name).is_file())


def write(path: Path, names: list[Path], wheels: Path) -> None:
    """Write the archive: the files and the folder ``wheels``, under `NAME`; complete or not at all."""
    temporary = path.with_suffix(".tmp")
    with tarfile.open(temporary, "w:gz") as archive:
        for name in names:
            archive.add(ROOT / name, f"{NAME}/{name}", recursive=False)
        for wheel in sorted(wheels.glob("*.whl")):
            archive.add(wheel, f"{NAME}/wheels/{wheel.name}", recursive=False)
    temporary.replace(path)


if __name__ == "__main__":
    sys.exit(main())
