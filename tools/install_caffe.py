"""Install real Caffe 1.0 (CPU: programs and pycaffe) from Debian 11's packages into one folder, without root.

    python -P tools/install_caffe.py [DEST]       DEST: .caffe of the project
    MIRROR=http://... python -P tools/install_caffe.py

The packages are installed with all their dependencies, including the C library, so this system's own files are neither
used nor changed:

    DEST/root       the unpacked packages; MANIFEST lists them
    DEST/bin        scripts that start the programs: caffe, caffe-python, convert_imageset, ...

DEST can be moved as a whole. Requirements are Linux on x86-64, apt-get, dpkg-deb, and a Debian mirror with Debian 11
(bullseye): the one in the system's apt sources, or MIRROR. DEST/bin is moved into place last, after the new Caffe has
passed a check; an interrupted installation is started again by the next call. The exit code is 2 if it is not possible.

This script uses only the standard library, because it runs before anything is installed.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import fcntl
import hashlib
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, NoReturn

PROJECT = Path(__file__).resolve().parent.parent
SUITE = "bullseye"
PACKAGES = ("caffe", "python3-caffe", "libopenblas0-pthread", "python3-lmdb")
STAMP = f"layout 1: {SUITE} {' '.join(PACKAGES)}"  # first line of MANIFEST; if it differs, Caffe is installed again
PROGRAMS = (
    *("caffe", "caffe-gtest", "classification", "compute_image_mean", "convert_cifar_data", "convert_imageset"),
    *("convert_mnist_data", "convert_mnist_siamese_data", "extract_features"),
    *("upgrade_net_proto_binary", "upgrade_net_proto_text", "upgrade_solver_proto_text"),
)
PYTHON = "caffe-python"  # the name of the packages' Python in DEST/bin
MEGABYTES = 1100  # maximum disk space during the installation: package lists, packages, and their content
LOCK = ".install_caffe.lock"
WORK = "new-"
KEYS = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
# names of Debian's past and future suites, which distinguish a Debian mirror from other sources
SUITES = re.compile(r"(old)*stable|testing|unstable|sid|buster|bullseye|bookworm|trixie|forky|duke")

APT_CONF = """\
Dir::Etc::main "/dev/null";
Dir::Etc::parts "/dev/null";
Dir::Etc::sourcelist "{apt}/sources.list";
Dir::Etc::sourceparts "/dev/null";
Dir::Etc::preferences "/dev/null";
Dir::Etc::preferencesparts "/dev/null";
Dir::State "{apt}";
Dir::State::lists "{apt}/lists";
Dir::State::status "{apt}/status";
Dir::Cache "{apt}";
Dir::Cache::archives "{apt}/archives";
Dir::Log "{apt}";
APT::Architecture "amd64";
APT::Architectures {{ "amd64"; }};
APT::Install-Recommends "false";
APT::Sandbox::User "";
APT::Update::Error-Mode "any";
Acquire::Languages "none";
Acquire::Retries "2";
Acquire::http::Timeout "30";
Acquire::https::Timeout "30";
"""

# child processes that are started through sys.executable need the script in DEST/bin, too
SITE = """\
import os
import sys

script = os.path.join(os.path.dirname(os.path.dirname(sys.prefix)), "bin", "caffe-python")
if os.access(script, os.X_OK):
    sys.executable = sys._base_executable = script
"""

# files that no program here reads; with them the folder would be 50% larger
UNUSED = {
    "etc": "perl",
    ".": "var",
    "usr/lib": "debug dpkg mime ogdi",
    "usr/lib/x86_64-linux-gnu": "gconv ogdi perl perl-base perl5",
    "usr/lib/python3/dist-packages": "Cython nose pyximport",
    "usr/share": "applications bash-completion bug common-licenses debconf doc dpkg fonts gcc gdal gdb info javascript "
    "lintian locale man perl perl5 pixmaps proj zsh",
}

LIBRARIES = ("usr/lib/x86_64-linux-gnu/openblas-pthread", "lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu", "usr/lib")
SCRIPT = """\
#!/bin/sh
here=$(dirname "$(readlink -f "$0")")
root=${here%/*}/root
unset LD_LIBRARY_PATH LD_PRELOAD
"""

NET = """\
layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 2 dim: 3 } } }
layer { name: "sum" type: "InnerProduct" bottom: "data" top: "sum" inner_product_param { num_output: 4
        weight_filler { type: "constant" value: 0.5 } bias_filler { type: "constant" value: 1 } } }
"""
CHECK = """\
import re, sys
import caffe, caffe.classifier, h5py, lmdb, matplotlib.pyplot, numpy, PIL.Image, google.protobuf.text_format
net = caffe.Net(sys.argv[1], caffe.TEST)
net.blobs["data"].data[...] = 2
result = net.forward()["sum"]
assert result.shape == (2, 4) and (result == 4).all(), result
PIL.Image.new("RGB", (5, 4), "white").save(sys.argv[2])
assert (caffe.io.load_image(sys.argv[2]) == numpy.ones((4, 5, 3))).all()
blas = {line.split(None, 5)[5].strip() for line in open("/proc/self/maps") if re.search("/lib(open)?blas", line)}
assert blas and all("/openblas-pthread/" in path for path in blas), blas
print("pycaffe", caffe.__version__, "with numpy", numpy.__version__, "and OpenBLAS")
"""


class CannotInstall(Exception):
    """Caffe cannot be installed here; the message says in one line why, and what to do."""


# ---- the mirror


def mirror(sources: Path = Path("/etc/apt")) -> str:
    """Return the address of a Debian mirror: MIRROR, or the first one in the apt sources that has Debian's main."""
    given = os.environ.get("MIRROR", "").strip()
    if given:
        if not re.fullmatch(r"[a-z+]+:\S+", given):
            raise CannotInstall(f"MIRROR={given}: give the address of a Debian mirror, http://HOST/debian")
        return as_downloaded(given)
    files = [sources / "sources.list", *sorted((sources / "sources.list.d").glob("*"))]
    for path in files:
        if path.suffix not in (".list", ".sources") or not path.is_file():
            continue
        text = path.read_text(errors="replace")
        for address, suites, components in (one_line_entries if path.suffix == ".list" else deb822_entries)(text):
            if "main" in components and any(SUITES.fullmatch(suite) for suite in suites):
                return as_downloaded(address)
    raise CannotInstall(f"no Debian mirror in {sources}/sources.list and sources.list.d; set MIRROR=http://HOST/debian")


def as_downloaded(address: str) -> str:
    """Return ``address`` without a final slash, with copy: instead of file:, so that apt copies the packages."""
    return re.sub("^file:", "copy:", address).rstrip("/")


def one_line_entries(text: str) -> Iterator[tuple[str, list[str], list[str]]]:
    """Yield (address, suites, components) of the lines `deb [options] address suite component...` of a .list file."""
    for line in text.splitlines():
        match = re.match(r"\s*deb\s+(?:\[[^]]*\]\s*)?([a-z+]+:\S+)\s+(\S+)([^#]*)", line)
        if match and not match[1].startswith("cdrom:"):
            yield match[1], [match[2]], match[3].split()


def deb822_entries(text: str) -> Iterator[tuple[str, list[str], list[str]]]:
    """Yield (address, suites, components) of the paragraphs of a .sources file; see sources.list(5)."""
    text = re.sub(r"^#.*\n?", "", text, flags=re.M)
    for paragraph in re.split(r"\n[ \t]*\n", text):
        fields = re.findall(r"^([\w-]+):(.*(?:\n[ \t].*)*)", paragraph, flags=re.M)
        values = {name.lower(): value.split() for name, value in fields}
        if "deb" not in values.get("types", ()) or values.get("enabled", ["yes"])[0].lower() in ("no", "false", "0"):
            continue
        for address in values.get("uris", ()):
            yield address, values.get("suites", []), values.get("components", [])


# ---- the steps


def run(argv: list[str | Path], why: str, **options) -> str:
    """Run a program and return its output. If it fails, raise CannotInstall with ``why`` and the program's error."""
    done = subprocess.run(
        argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace",
        **options,
    )  # fmt: skip
    if done.returncode:
        lines = [line.strip() for line in done.stdout.splitlines() if line.strip()]
        errors = [line for line in lines if line.startswith("E:")] or lines[-1:] or [f"exit code {done.returncode}"]
        raise CannotInstall(f"{why}: {errors[0]}")
    return done.stdout


def download(apt: Path, address: str) -> list[Path]:
    """Download the packages and all their dependencies, with a separate apt state in which nothing is installed."""
    for folder in ("lists/partial", "archives/partial"):
        (apt / folder).mkdir(parents=True)
    (apt / "status").touch()
    keys = f"[signed-by={KEYS}] " if KEYS.exists() else ""
    (apt / "sources.list").write_text(f"deb {keys}{address} {SUITE} main\n")
    # only network settings of the system's apt are used: others, such as hooks, would act on the system
    settings = run(["apt-config", "dump"], "apt-config does not work").splitlines()
    network = [line for line in settings if re.match(r"Acquire::https?::", line, flags=re.I)]
    (apt / "apt.conf").write_text(APT_CONF.format(apt=apt) + "\n".join(network) + "\n")
    env = {**os.environ, "APT_CONFIG": str(apt / "apt.conf"), "LC_ALL": "C"}
    shown = re.sub("//[^/@]*@", "//", address)
    why = f"{shown} does not have Debian 11's ({SUITE}) Caffe; set MIRROR=http://HOST/debian to a mirror that has it"
    try:
        run(["apt-get", "-q", "update"], why, env=env)
    except CannotInstall as error:
        if "not signed" not in str(error):
            raise
        raise CannotInstall(f"{shown} is signed with unknown keys; install debian-archive-keyring") from None
    run(["apt-get", "-q", "-y", "--download-only", "install", *PACKAGES], why, env=env)
    return sorted((apt / "archives").glob("*.deb"))


def unpack(packages: list[Path], root: Path) -> None:
    """Unpack all files of the packages under ``root``; their scripts are not run."""
    root.mkdir()
    pool = concurrent.futures.ThreadPoolExecutor(os.cpu_count())
    try:
        for done in [pool.submit(run, ["dpkg-deb", "-x", deb, root], f"{deb.name} is broken") for deb in packages]:
            done.result()
    finally:
        pool.shutdown(cancel_futures=True)


def mend(root: Path) -> None:
    """Change the unpacked packages so that they work in the folder ``root``."""
    for folder, folders, files in os.walk(root):  # absolute links point out of the tree, to this system's files
        for path in (Path(folder, name) for name in folders + files):
            if path.is_symlink() and os.path.isabs(target := os.readlink(path)):
                path.unlink()
                path.symlink_to(os.path.relpath(f"{root}{target}", folder))
    modules = root / "usr/lib/python3/dist-packages"
    plots = modules / "matplotlib"  # Debian's version contains paths in /usr/share and /etc
    replace(plots / "__init__.py", "'/etc/matplotlibrc'", "os.path.join(get_data_path(), 'matplotlibrc')")
    shutil.rmtree(plots / "mpl-data", ignore_errors=True)
    (plots / "mpl-data").unlink(missing_ok=True)
    (plots / "mpl-data").symlink_to("../../../../share/matplotlib/mpl-data")
    replace(modules / "caffe/io.py", "as_grey=", "as_gray=")  # the name in this version of skimage, for load_image
    site = root / "usr/lib/python3.9/sitecustomize.py"
    site.unlink(missing_ok=True)  # a link into /etc
    site.write_text(SITE)


def replace(path: Path, old: str, new: str) -> None:
    """Replace ``old`` in a file. Raise CannotInstall if the file does not contain it."""
    text = path.read_text()
    if old not in text:
        raise CannotInstall(f"{path.name} of the package does not contain {old}: not the expected version")
    path.write_text(text.replace(old, new))


def slim(root: Path) -> None:
    """Remove files that Caffe and its Python do not use."""
    for folder, names in UNUSED.items():
        for name in names.split():
            shutil.rmtree(root / folder / name, ignore_errors=True)
    for folder in ("usr/lib/python3/dist-packages", "usr/lib/python3.9"):
        for tests in [path for path in (root / folder).rglob("test*") if path.name in ("test", "tests")]:
            if "h5py" not in tests.parts:  # h5py imports its tests
                shutil.rmtree(tests, ignore_errors=True)
    for folder in ("bin", "sbin", "usr/bin", "usr/sbin"):
        for path in (root / folder).glob("*"):
            if path.name not in (*PROGRAMS, "python3", "python3.9") and not path.name.startswith("caffe"):
                path.unlink()


def script(name: str) -> str:
    """Return the text of DEST/bin/``name``, which starts the program with the loader and libraries of DEST/root."""
    libraries = ":".join(f"$root/{folder}" for folder in LIBRARIES)
    start = f'exec "$root/lib64/ld-linux-x86-64.so.2" --inhibit-cache --library-path "{libraries}" "$root/usr/bin/'
    if name == PYTHON:  # it finds its modules from its own path
        return f'{SCRIPT}unset PYTHONHOME\n{start}python3.9" -s "$@"\n'
    # libcaffe embeds a Python interpreter for Python layers
    home = "PYTHONHOME=$root/usr PYTHONNOUSERSITE=1\nexport PYTHONHOME PYTHONNOUSERSITE\n"
    return f'{SCRIPT}{home}{start}{name}" "$@"\n'


def write_scripts(root: Path, folder: Path) -> None:
    """Write a script for each program."""
    folder.mkdir()
    for name in (*PROGRAMS, PYTHON):
        if name != PYTHON and not (root / "usr/bin" / name).exists():
            raise CannotInstall(f"the packages do not contain the program {name}: not the expected versions")
        (folder / name).write_text(script(name))
        (folder / name).chmod(0o755)


def check(work: Path) -> list[str]:
    """Check the new Caffe: its version, libraries, pycaffe and a small network. Return the lines to show."""
    root, folder = work / "root", work / "bin"
    env = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "XDG_", "MPL"))}
    env |= {"GLOG_minloglevel": "2", "HOME": str(work)}  # matplotlib and fontconfig write into HOME
    loader: list[str | Path] = [root / "lib64/ld-linux-x86-64.so.2", "--inhibit-cache", "--library-path"]
    loader.append(":".join(f"{root}/{name}" for name in LIBRARIES))
    module = next((root / "usr/lib/python3/dist-packages/caffe").glob("_caffe*.so"))
    for path in (*(root / "usr/bin" / name for name in PROGRAMS), module):
        libraries = run([*loader, "--list", path], f"{path.name} lacks a library", env=env)
        for line in libraries.splitlines():
            found = re.search(r"=> (/.*) \(0x", line)
            if found and not found[1].startswith(f"{root}/"):
                raise CannotInstall(f"{path.name} would use a library of this system: {found[1]}")
    version = run([folder / "caffe", "--version"], "the new caffe does not start", env=env).strip()
    (work / "check.prototxt").write_text(NET)
    argv = [folder / PYTHON, "-c", CHECK, work / "check.prototxt", work / "check.png"]
    return [version, run(argv, "the new pycaffe does not pass its check", env=env).strip()]


def swap(work: Path, dest: Path) -> None:
    """Move the new root and bin into ``dest``; bin is last, because without it Caffe does not count as installed."""
    old = work / "old"
    old.mkdir()
    for name in ("bin", "root"):
        if (dest / name).exists():
            (dest / name).rename(old / name)
    for name in ("root", "bin"):
        (work / name).rename(dest / name)


# ---- the whole


def installed(dest: Path) -> bool:
    """Return whether this Caffe is in ``dest`` and starts."""
    try:
        with open(dest / "root/MANIFEST") as file:
            same = file.readline().strip() == STAMP
        if not same or not all((dest / "bin" / name).exists() for name in (*PROGRAMS, PYTHON)):
            return False
        return subprocess.run([dest / "bin/caffe", "--version"], capture_output=True).returncode == 0
    except OSError:
        return False


def refuse(dest: Path) -> None:
    """Raise CannotInstall if the packages cannot run on this machine or in this folder."""
    system = f"{platform.system()} {platform.machine()}"
    if system != "Linux x86_64":
        raise CannotInstall(f"the packages are for Linux on x86-64, but this is {system}")
    if re.search(r'[:;$"\n]', str(dest)):
        raise CannotInstall(f'{dest}: the path of the folder must not contain : ; $ " (the loader would split it)')
    if dest.is_dir() and not (dest / LOCK).exists() and any(dest.iterdir()):
        raise CannotInstall(f"{dest} contains other files; give a new or empty folder")


def refuse_without_means(dest: Path) -> None:
    """Raise CannotInstall if tools or disk space are missing."""
    for name in ("apt-get", "apt-config", "dpkg-deb"):
        if shutil.which(name) is None:
            raise CannotInstall(f"needs {name} of Debian or Ubuntu; on other systems set CAFFE to your own caffe")
    free = shutil.disk_usage(dest).free // 10**6
    if free < MEGABYTES:
        raise CannotInstall(f"{dest} needs {MEGABYTES} MB of free space and has {free}; give a folder on another disk")


def lock(dest: Path) -> IO[str]:
    """Wait until no other installation is running in ``dest``. Return the lock file, which must stay open."""
    file = open(dest / LOCK, "w")  # noqa: SIM115
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        say(f"another installation is running in {dest}; waiting until it ends")
        fcntl.flock(file, fcntl.LOCK_EX)
    return file


def say(line: str) -> None:
    """Print a line and flush the output."""
    print(line, flush=True)


def install(dest: Path) -> None:
    """Install Caffe into ``dest`` unless it is there already. Raise CannotInstall or OSError if that fails."""
    refuse(dest)
    dest.mkdir(parents=True, exist_ok=True)
    with lock(dest):
        for path in dest.glob(WORK + "*"):  # left by an installation that was killed
            shutil.rmtree(path, ignore_errors=True)
        if installed(dest):
            say(f"Caffe is in {dest} already; to install it again, delete that folder")
            return
        refuse_without_means(dest)
        address = mirror()
        say(f"Installing Caffe into {dest}")
        # a new name, because a child process of a killed installation may still write into the old folder
        work = Path(tempfile.mkdtemp(prefix=WORK, dir=dest))
        try:
            _install(work, dest, address)
        finally:
            shutil.rmtree(work, ignore_errors=True)


def _install(work: Path, dest: Path, address: str) -> None:
    """Do all steps in the folder ``work``, then move the result to ``dest``."""
    root = work / "root"
    start = last = time.monotonic()

    def done(what: str) -> None:
        nonlocal last
        now = time.monotonic()
        say(f"{now - last:6.1f} s  {what}")
        last = now

    packages = download(work / "apt", address)
    size = sum(path.stat().st_size for path in packages) // 10**6
    done(f"downloaded {len(packages)} packages, {size} MB")
    unpack(packages, root)
    done("unpacked")
    mend(root)
    slim(root)
    sums = [f"{path.name} {hashlib.sha256(path.read_bytes()).hexdigest()}" for path in packages]
    (root / "MANIFEST").write_text("\n".join([STAMP, *sums]) + "\n")
    write_scripts(root, work / "bin")
    done("adapted")
    for line in check(work):
        say(f"          {line}")
    done("checked")
    swap(work, dest)
    say(f"Caffe is in {dest}/bin ({time.monotonic() - start:.0f} s)")


def _stop(number: int, _frame: object) -> NoReturn:
    """Handle SIGTERM like Ctrl-C."""
    raise KeyboardInterrupt(number)


def main() -> int:
    """Install Caffe from the command line; return the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "dest", metavar="DEST", nargs="?", type=Path, default=PROJECT / ".caffe", help="folder to install into (.caffe)"
    )
    dest = Path(os.path.abspath(parser.parse_args().dest))
    signal.signal(signal.SIGTERM, _stop)
    try:
        install(dest)
    except (CannotInstall, OSError) as error:
        print(f"install_caffe: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("install_caffe: stopped; the next call starts again", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
