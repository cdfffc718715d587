"""`make caffe` without a network: which mirror, what fits this machine, what is mended, what is said."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tools import debian_packages, install_caffe
from tools.debian_packages import Mirror, Package, find_mirror, mirrors_of_list, mirrors_of_sources, parse_uris, reason
from transfer_caffe.errors import UserError

LIST = """\
# deb http://commented/debian bookworm main
deb-src http://sources/debian bookworm main
deb cdrom:[Debian 12]/ bookworm main
deb http://security/debian-security bookworm-security main
deb [arch=amd64 signed-by=/keys/other.gpg] https://other/apt stable-of-other main
deb [ arch=amd64 signed-by=/keys/debian.gpg trusted=yes ] http://first/debian/ bookworm main contrib  # comment
deb http://second/mirrors/debian bookworm main
deb http://third/renamed bookworm-updates main
deb http://fourth/renamed trixie main
"""

SOURCES = """\
# a comment
Types: deb-src
URIs: http://sources/debian
Suites: bookworm

Enabled: no
Types: deb
URIs: http://off/debian
Suites: bookworm

Types: deb
URIs: http://security/debian-security
Suites: bookworm-security
Components: main

Types: deb deb-src
# amid a stanza
URIs: http://first/debian/
  http://second/debian
Suites: bookworm bookworm-updates
Components: main
Signed-By: /keys/debian.gpg

Types: deb
URIs: mirror+file:///etc/apt/mirrors/debian.list
Suites: trixie
Signed-By:
 -----BEGIN PGP PUBLIC KEY BLOCK-----
 .
 abc
"""


def test_debians_archive_is_found_in_a_sources_list_and_nothing_else_is():
    assert list(mirrors_of_list(LIST)) == [
        Mirror("http://first/debian", ("signed-by=/keys/debian.gpg", "trusted=yes")),
        Mirror("http://second/mirrors/debian"),
        Mirror("http://fourth/renamed"),
    ]


def test_debians_archive_is_found_in_deb822_sources_and_nothing_else_is():
    assert list(mirrors_of_sources(SOURCES)) == [
        Mirror("http://first/debian", ("signed-by=/keys/debian.gpg",)),
        Mirror("http://second/debian", ("signed-by=/keys/debian.gpg",)),
        Mirror("mirror+file:///etc/apt/mirrors/debian.list"),
    ]


def test_the_variable_comes_first_then_the_list_then_the_other_files_by_name(tmp_path):
    (tmp_path / "sources.list.d").mkdir()
    (tmp_path / "sources.list.d/b.sources").write_text(SOURCES)
    (tmp_path / "sources.list.d/a.list.disabled").write_text("deb http://disabled/debian bookworm main\n")
    assert find_mirror({}, tmp_path).uri == "http://first/debian"
    (tmp_path / "sources.list.d/a.list").write_text("deb http://a/debian bookworm main\n")
    assert find_mirror({}, tmp_path).uri == "http://a/debian"
    (tmp_path / "sources.list").write_text("deb http://main/debian bookworm main\n")
    assert find_mirror({"MIRROR": " "}, tmp_path).uri == "http://main/debian"
    assert find_mirror({"MIRROR": "http://mine/debian/"}, tmp_path).uri == "http://mine/debian"


@pytest.mark.parametrize("given", ["mine/debian", "http://mine/debian bullseye", "ftp"])
def test_a_mirror_that_is_no_address_is_an_error(given, tmp_path):
    with pytest.raises(UserError, match="not the address of a Debian mirror"):
        find_mirror({"MIRROR": given}, tmp_path)


def test_a_machine_without_a_debian_mirror_is_told_to_name_one(tmp_path):
    (tmp_path / "sources.list").write_text("deb http://archive/ubuntu noble main\n")
    with pytest.raises(UserError, match="name one that carries Debian 11: MIRROR="):
        find_mirror({}, tmp_path)


def test_the_line_for_apt_names_the_keys():
    assert Mirror("http://a/debian").line("bullseye") == "deb http://a/debian bullseye main\n"
    assert Mirror("http://a/debian", ("trusted=yes",)).line("x") == "deb [trusted=yes] http://a/debian x main\n"


def test_packages_are_what_apt_prints_as_addresses():
    printed = (
        "NOTE: whatever\n"
        "'http://a/debian/pool/main/c/caffe/caffe_1.0.0%2bgit_amd64.deb' caffe_1.0.0+git%3a1-2_amd64.deb 1234 "
        "SHA256:aa\n"
        "'http://a/debian/pool/b.deb' a_1_all.deb 5 MD5Sum:bb\n"
    )
    packages = parse_uris(printed)
    assert packages == [Package("a_1_all.deb", 5, None), Package("caffe_1.0.0+git%3a1-2_amd64.deb", 1234, "aa")]
    assert (packages[1].name, packages[1].version) == ("caffe", "1.0.0+git:1-2")


def test_of_all_that_apt_says_the_cause_is_kept():
    said = "W: Target twice\nErr:1 http://a\nE: Failed to fetch http://a  404  Not Found\nE: Some index files failed\n"
    assert reason(said) == "Failed to fetch http://a 404 Not Found"
    assert reason("E: Unable to locate package caffe\n") == "Unable to locate package caffe"
    assert reason("Get:1 http://a\nW: Target twice\n") == ""


@pytest.mark.parametrize(("system", "machine"), [("Darwin", "x86_64"), ("Linux", "aarch64"), ("Windows", "AMD64")])
def test_another_machine_is_told_that_the_packages_do_not_run_there(system, machine, tmp_path):
    with pytest.raises(UserError, match=f"Linux on x86-64 processors, this is {system} on {machine}"):
        install_caffe.require_machine(tmp_path, system, machine)


def test_a_machine_without_apt_is_told_what_is_missing(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="apt-get is needed"):
        install_caffe.require_machine(tmp_path, "Linux", "x86_64")


@pytest.fixture
def _apt(tmp_path, monkeypatch):
    for name in ("apt-get", "dpkg-deb"):
        (tmp_path / name).write_text("#!/bin/sh\nexit 100\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")


@pytest.mark.usefixtures("_apt")
def test_a_space_in_the_path_is_fine_what_the_loader_takes_for_a_separator_is_not(tmp_path):
    install_caffe.require_machine(tmp_path / "a b", "Linux", "x86_64")
    for bad in ("a:b", "a;b", "$ORIGIN"):
        with pytest.raises(UserError, match="the dynamic loader takes no path with"):
            install_caffe.require_machine(tmp_path / bad, "Linux", "x86_64")


def test_what_this_command_did_not_make_is_not_replaced(tmp_path):
    (tmp_path / "empty").mkdir()
    install_caffe.require_ours(tmp_path / "empty")
    install_caffe.require_ours(tmp_path / "new")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/file").write_text("precious")
    with pytest.raises(UserError, match="was not made by this command"):
        install_caffe.require_ours(tmp_path / "mine")


def test_too_little_room_is_said_before_anything_is_fetched(tmp_path, monkeypatch):
    monkeypatch.setattr(install_caffe, "SPACE", 1 << 60)
    with pytest.raises(UserError, match="MB are free, real Caffe takes"):
        install_caffe.require_space(tmp_path)


def test_a_tree_counts_only_with_its_manifest_all_its_scripts_and_a_caffe_that_runs(tmp_path):
    tree = tmp_path / "caffe"
    (tree / "bin").mkdir(parents=True)
    assert not install_caffe.works(tree)
    for name in (*install_caffe.PROGRAMS, install_caffe.PYTHON):
        (tree / "bin" / name).write_text("#!/bin/sh\n")
        (tree / "bin" / name).chmod(0o755)
    assert not install_caffe.works(tree)
    (tree / "MANIFEST.json").write_text('{"layout": %d}' % install_caffe.LAYOUT)
    assert install_caffe.works(tree)
    (tree / "bin/extract_features").unlink()
    assert not install_caffe.works(tree)
    (tree / "bin/extract_features").touch()
    (tree / "bin/caffe").write_text("#!/bin/sh\nexit 1\n")
    assert not install_caffe.works(tree)
    (tree / "MANIFEST.json").write_text("[]")
    assert not install_caffe.works(tree)


@pytest.mark.usefixtures("_apt")
def test_a_mirror_without_the_packages_is_one_line_and_2_and_leaves_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(install_caffe, "require_machine", lambda folder: None)
    monkeypatch.setenv("MIRROR", "http://mine/debian")
    out = tmp_path / "out"
    assert install_caffe.main([str(out / "caffe")]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "http://mine/debian: it gives no Debian 11 (bullseye) packages; set MIRROR" in error
    assert sorted(path.name for path in out.iterdir()) == ["caffe.lock"]


def test_keys_that_are_missing_are_named_as_the_cause(tmp_path):
    apt = debian_packages.Apt(Mirror("http://a/debian"), "bullseye", tmp_path)
    assert "debian-archive-keyring" in apt._no_packages("GPG error: http://a InRelease: NO_PUBKEY 0E98404D386FA1D9")


def tree(folder: Path) -> Path:
    """A root with as much in it as is mended."""
    root = folder / "root"
    for path, text in {
        "usr/lib/python3/dist-packages/matplotlib/__init__.py": "        yield '/etc/matplotlibrc'\n",
        "usr/lib/python3/dist-packages/caffe/io.py": "skimage.io.imread(filename, as_grey=not color)\n",
        "usr/lib/python3.9/sitecustomize.py": "# Debian's\n",
        "lib/x86_64-linux-gnu/ld-2.31.so": "loader",
        "usr/share/doc/caffe/copyright": "BSD",
        "usr/share/doc/caffe/README": "long",
        "usr/bin/python3.9": "",
        "usr/bin/perl": "",
        **{f"usr/bin/{name}": "" for name in install_caffe.PROGRAMS},
    }.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text)
    (root / "lib64").mkdir()
    (root / "lib64/ld-linux-x86-64.so.2").symlink_to("/lib/x86_64-linux-gnu/ld-2.31.so")
    return root


def test_links_to_the_machines_own_root_lead_into_the_tree_and_still_do_when_it_is_moved(tmp_path):
    root = tree(tmp_path)
    install_caffe.mend(root)
    root.rename(tmp_path / "moved")
    assert (tmp_path / "moved/lib64/ld-linux-x86-64.so.2").read_text() == "loader"
    assert "mpl-data" in (tmp_path / "moved/usr/lib/python3/dist-packages/matplotlib/__init__.py").read_text()
    assert "as_gray=" in (tmp_path / "moved/usr/lib/python3/dist-packages/caffe/io.py").read_text()


def test_slimming_keeps_caffes_programs_and_the_licences(tmp_path):
    root = tree(tmp_path)
    install_caffe.slim(root)
    assert sorted(path.name for path in (root / "usr/bin").iterdir()) == sorted(
        (*install_caffe.PROGRAMS, "python3.9")
    )
    assert (root / "usr/share/licenses/caffe/copyright").read_text() == "BSD"
    assert not (root / "usr/share/doc").exists()


def test_each_program_has_a_script_that_starts_it_through_the_trees_own_loader(tmp_path):
    folder = tmp_path / "a folder"
    root = tree(folder)
    install_caffe.mend(root)
    loader = root / "lib/x86_64-linux-gnu/ld-2.31.so"
    loader.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\necho "home $PYTHONHOME preload $LD_PRELOAD"\n')
    loader.chmod(0o755)
    install_caffe.write_scripts(folder)
    assert {path.name for path in (folder / "bin").iterdir()} == {*install_caffe.PROGRAMS, "caffe-python"}
    environment = {**os.environ, "PYTHONHOME": "/other", "LD_LIBRARY_PATH": "/other"}

    def started(name: str) -> list[str]:
        argv = [folder / "bin" / name, "train", "a b"]
        return subprocess.run(argv, env=environment, capture_output=True, text=True, check=True).stdout.splitlines()

    said = started("caffe")
    assert said[3:-1] == [f"{root}/usr/bin/caffe", "train", "a b"]
    assert all(path.startswith(f"{root}/") for path in said[2].split(":"))
    assert said[-1] == f"home {root}/usr preload "
    said = started("caffe-python")
    assert said[3:-1] == [f"{root}/usr/bin/python3.9", "-s", "train", "a b"]
    assert said[-1] == "home  preload "


def test_libraries_from_the_machine_or_from_nowhere_are_found_in_the_loaders_list(tmp_path):
    listing = (
        f"\tlibm.so.6 => {tmp_path}/lib/libm.so.6 (0x00007f0000000000)\n"
        "\tlibz.so.1 => /usr/lib/libz.so.1 (0x00007f0000000000)\n"
        "\tlibcaffe.so.1 => not found\n"
        "\t/lib64/ld-linux-x86-64.so.2 (0x00007f0000000000)\n"
    )
    assert install_caffe.foreign_libraries(listing, tmp_path) == ["/usr/lib/libz.so.1", "libcaffe.so.1"]


def test_it_needs_nothing_but_the_standard_library():
    # -S: without site-packages
    root = Path(__file__).resolve().parent.parent
    subprocess.run([sys.executable, "-S", "-c", "import tools.install_caffe"], cwd=root, check=True)
