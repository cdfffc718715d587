"""Install real Caffe 1.0 (CPU; programs and pycaffe) into a folder, out of Debian 11's packages, without root.

    python -m tools.install_caffe .caffe          what `make caffe` does
    .caffe/bin/caffe train --solver solver.prototxt
    .caffe/bin/caffe-python -c 'import caffe'

Debian 11 is the last one with Caffe. Its packages run on any x86-64 Linux when they are unpacked with all that they
depend on, the C library too, and started through their own dynamic loader: the scripts in bin/ do that. The folder
can be moved or copied as a whole. It appears whole or not at all: the new tree is made and checked beside it
(FOLDER.new), and renamed last. What was fetched when it was stopped is used by the next call.
"""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from transfer_caffe import processes
from transfer_caffe.errors import ArgumentParser, UserError, command
from transfer_caffe.files import write_json

from .debian_packages import Apt, Package, find_mirror, run

RELEASE = "bullseye"
NAMES = ("caffe", "python3-caffe", "libopenblas0-pthread", "python3-lmdb")
LAYOUT = 1
"""Of the tree that this makes; another number makes the next call build it anew."""
MANIFEST = "MANIFEST.json"

PROGRAMS = (
    "caffe", "caffe-gtest", "classification", "compute_image_mean", "convert_cifar_data", "convert_imageset",
    "convert_mnist_data", "convert_mnist_siamese_data", "extract_features", "upgrade_net_proto_binary",
    "upgrade_net_proto_text", "upgrade_solver_proto_text",
)  # fmt: skip
"""All programs of the package caffe; each gets a script in bin/."""
PYTHON = "caffe-python"

SPACE = 800 << 20
"""Bytes that the packages and the unpacked tree take together, at the most."""

ARCHITECTURE = "x86_64-linux-gnu"
LIBRARIES = f"usr/lib/{ARCHITECTURE}"
OPENBLAS = f"{LIBRARIES}/openblas-pthread"
LIBRARY_PATH = (OPENBLAS, f"lib/{ARCHITECTURE}", LIBRARIES, "usr/lib")
LOADER = "lib64/ld-linux-x86-64.so.2"
PACKAGES_OF_PYTHON = "usr/lib/python3/dist-packages"

Say = Callable[[str], None]


def install(folder: Path, say: Say, progress: Say) -> None:
    """Make ``folder`` hold real Caffe, unless it does.

    UserError where it cannot be. Two at once take turns. ``progress`` gets lines that replace each other.
    """
    require_machine(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with processes.lock(folder.with_name(folder.name + ".lock"), str(folder), say) as lock:
        require_ours(folder)
        if works(folder):
            say(f"real Caffe is in {folder} already")
            return
        mirror = find_mirror(os.environ, Path("/etc/apt"))
        began = time.monotonic()
        work, old = folder.with_name(folder.name + ".new"), folder.with_name(folder.name + ".old")
        for left in (work / "tree", old):
            _remove(left)
        work.mkdir(exist_ok=True)
        require_space(work)
        say(f"installing real Caffe into {folder}, from {mirror.uri}")
        with Apt(mirror, RELEASE, work, [lock]) as apt:
            progress("fetching the lists of packages")
            try:
                apt.update()
                packages = apt.resolve(NAMES)
            except UserError:
                _remove(work)
                raise
            apt.download(packages, NAMES, progress)
            unpack(packages, apt.archives, work / "tree" / "root", progress, [lock])
        progress("mending and checking")
        root = work / "tree" / "root"
        mend(root)
        slim(root)
        write_scripts(work / "tree")
        said = check(work / "tree")
        content = [{"name": each.name, "version": each.version, "sha256": each.sha256} for each in packages]
        write_json(work / "tree" / MANIFEST, {"layout": LAYOUT, "mirror": mirror.uri, "packages": content})
        os.sync()  # thousands of files; a power cut after the rename must not find them empty
        if folder.exists():
            os.rename(folder, old)
        os.rename(work / "tree", folder)
        _remove(work)
        _remove(old)
        say(f"{said}; {len(packages)} packages, {time.monotonic() - began:.0f} s; programs: {folder / 'bin'}")


# ---- what it needs ----------------------------------------------------------------------------------------------


def require_machine(folder: Path, system: str = "", machine: str = "") -> None:
    """UserError where the packages cannot run, or cannot be had. ``system``, ``machine``: of another one, in tests."""
    system, machine = system or platform.system(), machine or platform.machine()
    if (system, machine.lower()) not in (("Linux", "x86_64"), ("Linux", "amd64")):
        raise UserError(
            f"real Caffe's packages run on Linux on x86-64 processors, this is {system} on {machine}; the embedded "
            "engine runs here"
        )
    for tool in ("apt-get", "dpkg-deb"):
        if shutil.which(tool) is None:
            raise UserError(
                f"{tool} is needed to fetch and unpack Debian's packages, and is not here; run this on Debian or "
                "Ubuntu and copy the folder that it makes, or build Caffe yourself and set CAFFE=/path/to/caffe"
            )
    # the loader parts a list of folders at colons and semicolons, and takes what follows a dollar for a variable
    if bad := re.search(r"[:;$\n]", str(folder.resolve())):
        raise UserError(f"{folder.resolve()}: the dynamic loader takes no path with {bad[0]!r}; take another folder")


def require_ours(folder: Path) -> None:
    """UserError if something else is where the tree is to come: it would be replaced."""
    if os.path.lexists(folder) and not (folder / MANIFEST).is_file() and not _is_empty(folder):
        raise UserError(f"{folder} exists and was not made by this command; remove it, or give another folder")


def _is_empty(folder: Path) -> bool:
    return folder.is_dir() and not folder.is_symlink() and not any(folder.iterdir())


def require_space(work: Path) -> None:
    """UserError if the packages, or what comes out of them, will not find room."""
    there = sum(path.stat().st_size for path in (work / "archives").glob("*.deb"))
    free = shutil.disk_usage(work).free
    if free < SPACE - there:
        raise UserError(
            f"{work.parent}: {free >> 20} MB are free, real Caffe takes {SPACE >> 20} MB while it is installed and "
            "450 MB then; free some, or give another folder"
        )


def works(folder: Path) -> bool:
    """Whether the folder holds a tree of this layout whose caffe runs."""
    try:
        manifest: Any = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        scripts = all((folder / "bin" / name).exists() for name in (*PROGRAMS, PYTHON))
    except (OSError, ValueError):
        return False
    if not isinstance(manifest, dict) or manifest.get("layout") != LAYOUT or not scripts:
        return False
    return subprocess.run([folder / "bin" / "caffe", "--version"], capture_output=True).returncode == 0


# ---- the tree ---------------------------------------------------------------------------------------------------


def unpack(
    packages: Sequence[Package], archives: Path, root: Path, progress: Say, keep_open: Sequence[int]
) -> None:
    """Unpack the files of all packages into ``root``; their scripts are not run."""
    root.mkdir(parents=True)
    last = 0.0
    for number, package in enumerate(packages, start=1):
        if time.monotonic() - last > 1:
            last = time.monotonic()
            progress(f"unpacking: {number} of {len(packages)} packages")
        code, output = run(["dpkg-deb", "-x", str(archives / package.file), str(root)], keep_open=keep_open)
        if code:
            raise UserError(f"{package.file}: dpkg-deb cannot unpack it: {' '.join(output.split())}")


def mend(root: Path) -> None:
    """Put right what packages take for granted: that they lie in / and that their scripts were run."""
    for folder, folders, files in os.walk(root):
        for name in folders + files:
            link = os.path.join(folder, name)
            if os.path.islink(link) and os.readlink(link).startswith("/"):
                # the loader itself is one of them: as it is, it leads to the machine's own
                inside = os.path.relpath(str(root) + os.readlink(link), folder)
                os.unlink(link)
                os.symlink(inside, link)
    matplotlib = root / PACKAGES_OF_PYTHON / "matplotlib"
    _replace(
        matplotlib / "__init__.py",
        "'/etc/matplotlibrc'",
        "os.path.join(os.path.dirname(__file__), 'mpl-data', 'matplotlibrc')",
    )
    data = matplotlib / "mpl-data"
    if data.is_symlink() or not data.exists():
        data.unlink(missing_ok=True)
        data.symlink_to("../../../../share/matplotlib/mpl-data")
    # the argument of skimage.io.imread has another name by Debian 11; caffe.io.load_image fails on it
    _replace(root / PACKAGES_OF_PYTHON / "caffe" / "io.py", "as_grey=", "as_gray=")
    # programs that Python starts through sys.executable have to come by the script as well
    site = root / "usr/lib/python3.9/sitecustomize.py"
    site.unlink(missing_ok=True)
    site.write_text(
        "import os\nimport sys\n\n"
        f"script = os.path.join(os.path.dirname(os.path.dirname(sys.prefix)), 'bin', {PYTHON!r})\n"
        "if os.access(script, os.X_OK):\n    sys.executable = sys._base_executable = script\n"
    )


def _replace(path: Path, old: str, new: str) -> None:
    text = path.read_text(encoding="utf-8")
    if old not in text and new not in text:
        raise UserError(f"{path.name}: {old} is not in it; these are not Debian 11's packages")
    path.write_text(text.replace(old, new), encoding="utf-8")


SLIM = (
    "usr/share/doc", "usr/share/man", "usr/share/info", "usr/share/lintian", "usr/share/locale", "usr/share/perl",
    "usr/share/perl5", "usr/share/javascript", "usr/share/fonts", "usr/share/bug", "usr/share/gdb", "usr/share/proj",
    "usr/share/bash-completion", "usr/share/zsh", "usr/share/gdal", "usr/share/debconf", "usr/share/dpkg",
    "usr/share/common-licenses", "usr/share/gcc", "usr/share/applications", "usr/share/pixmaps", "usr/lib/ogdi",
    "usr/lib/dpkg", "usr/lib/debug", "usr/lib/mime", "etc/perl", "var",
    *(f"{LIBRARIES}/{name}" for name in ("perl", "perl-base", "perl5", "ogdi", "gconv")),
    *(f"{PACKAGES_OF_PYTHON}/{name}" for name in ("Cython", "pyximport", "nose", "cython.py")),
)  # fmt: skip
"""What neither Caffe nor pycaffe opens."""


def slim(root: Path) -> None:
    """Remove what Caffe and pycaffe do not need: two thirds of the programs' folder, documents, tests."""
    # licences are part of what may be copied on: keep them, they are small
    for notice in sorted((root / "usr/share/doc").glob("*/copyright")):
        if notice.is_file():
            kept = root / "usr/share/licenses" / notice.parent.name
            kept.mkdir(parents=True, exist_ok=True)
            shutil.copy(notice, kept / "copyright")
    for name in SLIM:
        _remove(root / name)
    for python in (root / PACKAGES_OF_PYTHON, root / "usr/lib/python3.9"):
        for folder in sorted(python.rglob("test*")):
            if folder.name in ("test", "tests") and folder.is_dir() and "h5py" not in folder.parts:  # h5py imports its
                _remove(folder)
    for name in ("bin", "sbin", "usr/bin", "usr/sbin"):
        for path in (root / name).glob("*"):
            if path.name not in (*PROGRAMS, "python3", "python3.9", "caffe-cpu") and not path.is_dir():
                path.unlink()


SCRIPT = """\
#!/bin/sh
# Real Caffe's {program}, with the libraries that came with it. The folder above this one can be moved as a whole.
here=$(dirname "$(readlink -f "$0")")
root=${{here%/*}}/root
unset LD_LIBRARY_PATH LD_PRELOAD
{python}
exec "$root/{loader}" --inhibit-cache --library-path "{libraries}" "$root/{path}" {options}"$@"
"""


def write_scripts(tree: Path) -> None:
    """Write bin/: a script for each program, and caffe-python."""
    (tree / "bin").mkdir()
    libraries = ":".join(f"$root/{folder}" for folder in LIBRARY_PATH)
    for name in (*PROGRAMS, PYTHON):
        path = "usr/bin/python3.9" if name == PYTHON else f"usr/bin/{name}"
        if not (tree / "root" / path).exists():
            raise UserError(f"{path}: not in the packages; these are not Debian 11's")
        # libcaffe holds a Python, for Python layers, that has to find its modules; python3.9 itself finds them by its
        # own path, and what it starts must not inherit a home that is not its
        home = "unset PYTHONHOME" if name == PYTHON else 'export PYTHONHOME="$root/usr" PYTHONNOUSERSITE=1'
        text = SCRIPT.format(
            program=name, python=home, loader=LOADER, libraries=libraries, path=path,
            options="-s " if name == PYTHON else "",
        )  # fmt: skip
        (tree / "bin" / name).write_text(text)
        (tree / "bin" / name).chmod(0o755)


# ---- does it work? ----------------------------------------------------------------------------------------------

TINY_NET = """
name: "tiny"
layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 2 dim: 3 } } }
layer { name: "ip" type: "InnerProduct" bottom: "data" top: "ip" inner_product_param { num_output: 4
  weight_filler { type: "constant" value: 0.5 } bias_filler { type: "constant" value: 1 } } }
layer { name: "relu" type: "ReLU" bottom: "ip" top: "ip" }
"""

TRY_PYCAFFE = """
import sys
import caffe, caffe.io, caffe.net_spec, caffe.classifier
import google.protobuf.text_format, h5py, lmdb, numpy, skimage.io
net = caffe.Net(sys.argv[1], caffe.TEST)
net.blobs["data"].data[...] = [[1, 2, 3], [-4, -5, -6]]
net.forward()
assert net.blobs["ip"].data.tolist() == [[4.0] * 4, [0.0] * 4], net.blobs["ip"].data
maps = {line.split(None, 5)[-1].strip() for line in open("/proc/self/maps") if ".so" in line}
print("\\n".join(sorted(maps)))
"""


def check(tree: Path) -> str:
    """Run what was made. UserError if it does not work, or takes a library from the machine; gives its version."""
    root = (tree / "root").resolve()
    bindings = sorted((root / PACKAGES_OF_PYTHON / "caffe").glob("_caffe*.so"))
    paths = ":".join(str(root / folder) for folder in LIBRARY_PATH)
    for program in [*(root / "usr/bin" / name for name in PROGRAMS), *bindings]:
        argv = [str(root / LOADER), "--inhibit-cache", "--library-path", paths, "--list", str(program)]
        listing = _said(argv, f"{program.name}: its libraries")
        if foreign := foreign_libraries(listing, root):
            raise UserError(f"{program.name}: takes {foreign[0]} from this machine, not from the packages")
    version = _said([str(tree / "bin/caffe"), "--version"], "caffe").split("\n")[0]
    net = tree / "tiny.prototxt"
    net.write_text(TINY_NET)
    maps = _said([str(tree / "bin" / PYTHON), "-c", TRY_PYCAFFE, str(net)], "pycaffe")
    _said([str(tree / "bin/caffe"), "time", "--model", str(net), "--iterations", "1"], "caffe time")
    net.unlink()
    if f"{root / OPENBLAS}/" not in maps:
        raise UserError("pycaffe: computes without OpenBLAS")
    return f"{version} and pycaffe work"


def foreign_libraries(listing: str, root: Path) -> list[str]:
    """Of what `ld.so --list` prints, `NAME => PATH (ADDRESS)`, the paths outside ``root``, and what was not found."""
    found = re.findall(r"^\s*(\S+) => (.+?)(?: \(0x[0-9a-f]+\))?$", listing, re.MULTILINE)
    return [path if path.startswith("/") else name for name, path in found if not path.startswith(f"{root}/")]


def _said(argv: Sequence[str], what: str) -> str:
    env = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "LD_", "OPENBLAS"))}
    result = subprocess.run(argv, capture_output=True, text=True, errors="replace", env={**env, "GLOG_logtostderr": "1"})
    if result.returncode:
        lines = (result.stderr.strip() or result.stdout.strip() or "no word").splitlines()
        raise UserError(f"{what}: does not work here (exit code {result.returncode}): {lines[-1]}")
    return result.stdout


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


# ---- the command ------------------------------------------------------------------------------------------------


class Progress:
    """Lines that replace each other on a terminal; elsewhere one now and then."""

    def __init__(self) -> None:
        self._last, self._open = float("-inf"), False

    def __call__(self, line: str) -> None:
        if sys.stderr.isatty():
            print(f"\r\033[K{line}", end="", file=sys.stderr, flush=True)
            self._open = True
        elif time.monotonic() - self._last >= 10:
            print(line, file=sys.stderr, flush=True)
            self._last = time.monotonic()

    def close(self) -> None:
        """Clear the line, for what comes after it."""
        if self._open:
            print("\r\033[K", end="", file=sys.stderr, flush=True)
            self._open = False


@command
def main(argv: list[str] | None = None) -> int | None:
    """The command line."""
    parser = ArgumentParser(
        prog="python -m tools.install_caffe",
        description="Install real Caffe 1.0 (CPU) and pycaffe into a folder, out of Debian 11's packages.",
        epilog="example: python -m tools.install_caffe .caffe\n\nMIRROR=http://HOST/debian in the environment names "
        "a Debian mirror; by default it is the one in this machine's apt sources.",
    )
    parser.add_argument("folder", nargs="?", default=".caffe", help="where it goes (default: .caffe)")
    args = parser.parse_args(argv)
    processes.interrupt_on_signals()
    progress = Progress()

    def say(line: str) -> None:
        progress.close()
        print(line, flush=True)

    try:
        install(Path(os.path.abspath(args.folder)), say, progress)
    finally:
        progress.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
