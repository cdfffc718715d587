"""Tests of `make caffe`: the source of packages, the errors, and that an incomplete installation is not used."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from tools import install_caffe
from tools.install_caffe import PROGRAMS, CannotInstall, mirror, script, swap

DEB822 = """\
# the system's sources
Types: deb deb-src
URIs: https://vendor.example/apt
Suites: nodistro
Components: main

Types: deb
URIs: http://security.example/debian-security
Suites: bookworm-security
Components: main

Types: deb
Enabled: no
URIs: http://off.example/debian
Suites: bookworm
Components: main

Types: deb
# a remark between fields
URIs: {address}
 http://second.example/debian
Suites: bookworm
 bookworm-updates
Components: main contrib
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg
"""


@pytest.fixture
def sources(tmp_path, monkeypatch):
    """Make a folder like /etc/apt; MIRROR is not set."""
    monkeypatch.delenv("MIRROR", raising=False)
    (tmp_path / "sources.list.d").mkdir()
    return tmp_path


@pytest.fixture
def able(monkeypatch):
    """Simulate a machine that meets all requirements."""
    monkeypatch.setattr("platform.system", lambda: "Linux")
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    monkeypatch.setattr("shutil.which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=10**12))


def run_main(monkeypatch, capsys, *arguments):
    """Return (exit code, standard error) of the command."""
    monkeypatch.setattr(sys, "argv", ["install_caffe.py", *map(str, arguments)])
    monkeypatch.setattr("signal.signal", lambda *_: None)
    return install_caffe.main(), capsys.readouterr().err


@pytest.mark.parametrize(
    "line",
    [
        "deb http://mirror.example/debian bookworm main",
        "deb [arch=amd64 signed-by=/a/key.gpg] http://mirror.example/debian/ trixie main contrib # a remark",
        "  deb\thttp://mirror.example/debian  oldoldstable  non-free main",
    ],
)
def test_the_mirror_is_the_first_line_of_debians_own_main(sources, line):
    others = (
        "# deb http://remark.example/debian bookworm main\n"
        "deb cdrom:[Debian_12]/ bookworm main\n"
        "deb-src http://source.example/debian bookworm main\n"
        "deb http://security.example/debian-security bookworm-security main\n"
        "deb http://ubuntu.example/ubuntu jammy main\n"
    )
    (sources / "sources.list").write_text(f"{others}{line}\ndeb http://later.example/debian sid main\n")
    assert mirror(sources) == "http://mirror.example/debian"


@pytest.mark.parametrize("address", ["http://mirror.example/debian", "mirror+file:///etc/apt/mirrors/debian.list"])
def test_the_mirror_is_found_in_deb822_sources(sources, address):
    (sources / "sources.list.d/debian.sources").write_text(DEB822.format(address=address))
    (sources / "sources.list.d/debian.sources.bak").write_text(DEB822.format(address="http://backup.example/debian"))
    assert mirror(sources) == address


def test_packages_of_a_local_mirror_are_copied(sources):
    (sources / "sources.list").write_text("deb file:/media/debian bookworm main\n")
    assert mirror(sources) == "copy:/media/debian"


def test_mirror_given_by_hand_wins(sources, monkeypatch):
    (sources / "sources.list").write_text("deb http://mirror.example/debian bookworm main\n")
    monkeypatch.setenv("MIRROR", "https://mine.example/debian/")
    assert mirror(sources) == "https://mine.example/debian"


def test_no_mirror_is_told(sources):
    with pytest.raises(CannotInstall, match=r"no Debian mirror .* set MIRROR="):
        mirror(sources)


def test_mirror_that_is_no_address_is_told(sources, monkeypatch):
    monkeypatch.setenv("MIRROR", "mine.example/debian")
    with pytest.raises(CannotInstall, match=r"MIRROR=mine\.example/debian: give the address"):
        mirror(sources)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("platform.machine", lambda: "aarch64"), "x86-64, but this is Linux aarch64"),
        (("platform.system", lambda: "Darwin"), "x86-64, but this is Darwin x86_64"),
        (("shutil.which", lambda name: None), "needs apt-get"),
        (("shutil.which", lambda name: None if name == "dpkg-deb" else "/x"), "needs dpkg-deb"),
        (("shutil.disk_usage", lambda path: SimpleNamespace(free=5 * 10**6)), "MB of free space and has 5"),
    ],
)
def test_a_machine_that_cannot_is_told_in_one_line_with_code_2(able, tmp_path, monkeypatch, capsys, change, message):
    monkeypatch.setattr(*change)
    code, error = run_main(monkeypatch, capsys, tmp_path / "caffe")
    assert (code, error.count("\n")) == (2, 1)
    assert error.startswith("install_caffe: error: ") and message in error


def test_a_mirror_without_the_packages_is_told_in_one_line(able, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("MIRROR", "http://me:secret@mirror.example/debian")

    def fake(argv, **_):
        failed = argv[0] == "apt-get"
        return subprocess.CompletedProcess(argv, 100 * failed, "Err:1\nE: no Release file\nN: see\n" if failed else "")

    monkeypatch.setattr("subprocess.run", fake)
    code, error = run_main(monkeypatch, capsys, tmp_path / "caffe")
    assert (code, error.count("\n")) == (2, 1)
    assert "http://mirror.example/debian does not have" in error and error.endswith("E: no Release file\n")
    assert "secret" not in error
    assert [path.name for path in (tmp_path / "caffe").iterdir()] == [install_caffe.LOCK]


def test_a_system_without_debians_keys_is_told_which_package_has_them(able, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("MIRROR", "http://mirror.example/debian")
    refused = subprocess.CompletedProcess([], 100, "E: The repository 'bullseye InRelease' is not signed.\n")
    calls = [subprocess.CompletedProcess([], 0, ""), refused]
    monkeypatch.setattr("subprocess.run", lambda *_, **__: calls.pop(0))
    code, error = run_main(monkeypatch, capsys, tmp_path / "caffe")
    assert (code, error.count("\n")) == (2, 1)
    assert "debian-archive-keyring" in error


def test_a_second_call_asks_neither_mirror_nor_tools(able, tmp_path, monkeypatch, capsys):
    _, dest = new_and_old(tmp_path)
    (dest / install_caffe.LOCK).touch()
    (dest / "root/MANIFEST").write_text(f"{install_caffe.STAMP}\ncaffe_1.deb 00\n")
    for name in (*PROGRAMS, "caffe-python"):
        (dest / "bin" / name).write_text("#!/bin/sh\n")
        (dest / "bin" / name).chmod(0o755)
    monkeypatch.setattr("shutil.which", lambda name: None)
    assert run_main(monkeypatch, capsys, dest) == (0, "")
    assert not (dest / "new-1").exists()  # left by a killed installation


@pytest.mark.parametrize("lost", ["bin/caffe", "bin/caffe-python", "root/MANIFEST"])
def test_half_a_caffe_does_not_pass_for_one(tmp_path, lost):
    _, dest = new_and_old(tmp_path)
    (dest / "root/MANIFEST").write_text(f"{install_caffe.STAMP}\n")
    for name in (*PROGRAMS, "caffe-python"):
        (dest / "bin" / name).write_text("#!/bin/sh\n")
        (dest / "bin" / name).chmod(0o755)
    assert install_caffe.installed(dest)
    (dest / lost).unlink()
    assert not install_caffe.installed(dest)


def test_a_folder_with_other_files_is_left_alone(able, tmp_path, monkeypatch, capsys):
    (tmp_path / "bin").mkdir()
    code, error = run_main(monkeypatch, capsys, tmp_path)
    assert code == 2 and "contains other files" in error
    assert os.listdir(tmp_path) == ["bin"]


@pytest.mark.parametrize("name", ["a:b", "a;b", "a$b"])
def test_a_path_that_the_loader_would_cut_is_refused(able, tmp_path, monkeypatch, capsys, name):
    code, error = run_main(monkeypatch, capsys, tmp_path / name)
    assert code == 2 and "must not contain" in error
    assert not (tmp_path / name).exists()


def new_and_old(folder: Path) -> tuple[Path, Path]:
    """Make a finished work folder, and a DEST with an older Caffe."""
    dest, work = folder / "caffe", folder / "caffe" / "new-1"
    for parent, text in ((dest, "old"), (work, "new")):
        for name in ("root", "bin"):
            (parent / name).mkdir(parents=True)
            (parent / name / "caffe").write_text(text)
    return work, dest


def test_the_new_caffe_takes_the_place_of_the_old(tmp_path):
    work, dest = new_and_old(tmp_path)
    swap(work, dest)
    assert [(dest / name / "caffe").read_text() for name in ("root", "bin")] == ["new", "new"]


@pytest.mark.parametrize("renames", range(1, 4))
def test_stopped_between_two_renames_no_program_is_there(tmp_path, monkeypatch, renames):
    work, dest = new_and_old(tmp_path)
    rename, done = Path.rename, []

    def stopping(self, target):
        if len(done) == renames:
            raise KeyboardInterrupt
        done.append(target)
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", stopping)
    with pytest.raises(KeyboardInterrupt):
        swap(work, dest)
    assert not (dest / "bin").exists()


@pytest.mark.parametrize("name", [*PROGRAMS, "caffe-python"])
def test_scripts_start_programs_where_the_folder_lies_and_pass_arguments_on(tmp_path, name):
    # a script that prints its arguments replaces the loader
    dest = tmp_path / "it's a place"
    loader = dest / "root/lib64/ld-linux-x86-64.so.2"
    loader.parent.mkdir(parents=True)
    loader.write_text('#!/bin/sh\nprintf "%s\\n" "$LD_LIBRARY_PATH$LD_PRELOAD" "$PYTHONHOME" "$@"\n')
    loader.chmod(0o755)
    (dest / "bin").mkdir()
    (dest / "bin" / name).write_text(script(name))
    (dest / "bin" / name).chmod(0o755)
    link = tmp_path / "link"
    link.symlink_to(dest / "bin" / name)
    env = {**os.environ, "LD_LIBRARY_PATH": "/host", "PYTHONHOME": "/host"}
    printed = subprocess.run([link, "train", "a b", "$x"], env=env, capture_output=True, text=True, check=True).stdout
    root = f"{dest}/root"
    libraries = ":".join(f"{root}/{folder}" for folder in install_caffe.LIBRARIES)
    python = name == "caffe-python"
    assert printed.splitlines() == [
        *("", "" if python else f"{root}/usr", "--inhibit-cache", "--library-path", libraries),
        *([f"{root}/usr/bin/python3.9", "-s"] if python else [f"{root}/usr/bin/{name}"]),
        *("train", "a b", "$x"),
    ]
