"""Fault tests of tools.build_lmdb: kills, interrupts, full disks, concurrent builds, other things in place of images.

In all cases the database is complete or absent, the same command then produces the bytes of an uninterrupted build,
errors are one line with exit code 2, and images and lists are not changed.
"""

import hashlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time

import cv2
import lmdb
import numpy as np
import pytest
from support.waiting import PATIENCE

from transfer_caffe.tools.build_lmdb import main
from transfer_caffe.utils.files import require_checksum

COUNT, SIDE = 300, 100  # of records, and of their images: 10 MB
BATCH = 1 << 20  # size of the records in one transaction: several transactions are needed
FLAGS = ["--shuffle", "--seed=5", f"--resize_height={SIDE}", f"--resize_width={SIDE}"]
BUILDER = f"""
import sys
from transfer_caffe.formats import database_writer
from tools.build_lmdb import main
assert database_writer._BATCH_BYTES > {BATCH}
database_writer._BATCH_BYTES = {BATCH}
sys.exit(main())
"""
ERROR = "python -m tools.build_lmdb: error: "


def write_images(folder):
    """Make COUNT images, links to a few different ones, and their list."""
    (folder / "img").mkdir()
    draw = np.random.RandomState(0)
    for i in range(COUNT):
        if i < 8:
            cv2.imwrite(str(folder / f"img/{i}.bmp"), draw.randint(0, 256, (60, 70, 3)).astype(np.uint8))
        else:
            os.link(folder / f"img/{i % 8}.bmp", folder / f"img/{i}.bmp")
    (folder / "list.txt").write_text("".join(f"{i}.bmp {i % 10}\n" for i in range(COUNT)))


def digest(file):
    return hashlib.sha256(file.read_bytes()).hexdigest()


def undisturbed(folder, image_list, flags):
    """Build a database without interruption; return the digest of its data.mdb."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr("transfer_caffe.formats.database_writer._BATCH_BYTES", BATCH)
        assert main([*flags, "img/", image_list, "undisturbed"]) == 0
    return digest(folder / "undisturbed/data.mdb")


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Return the folder of images and list, and the digest and size of an uninterrupted database of them."""
    folder = tmp_path_factory.mktemp("source")
    write_images(folder)
    whole = undisturbed(folder, "list.txt", FLAGS)
    return folder, whole, (folder / "undisturbed/data.mdb").stat().st_size


class World:
    """A folder with images and a list, in which builders run, and the expected database."""

    def __init__(self, folder, whole, size, root):
        self.folder, self.whole, self.size = folder, whole, size
        self.out = folder / "out"
        self.db = self.out / "db"
        self.environment = {**os.environ, "PYTHONPATH": str(root), "LC_ALL": "C.UTF-8"}

    def argv(self, *flags, target="out/db", image_list="list.txt"):
        return [sys.executable, "-c", BUILDER, *(flags or FLAGS), "img/", image_list, target]

    def start(self, *flags, **arguments):
        return subprocess.Popen(
            self.argv(*flags, **arguments),
            cwd=self.folder,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            # a shell starts background commands with SIGINT ignored, and children would inherit that
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )

    def run(self, *flags, **arguments):
        """Run to the end; return (exit code, lines of standard error)."""
        return self.end(self.start(*flags, **arguments))

    def end(self, process):
        try:
            _, text = process.communicate(timeout=PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            raise
        return process.returncode, text.splitlines()

    def wait_until(self, process, condition):
        """Return whether ``condition`` became true before the process ended."""
        while process.poll() is None:
            if condition():
                return True
            time.sleep(0.0005)
        return False

    def written(self):
        """Return the size of data.mdb of the database that is being built."""
        sizes = [0]
        for file in self.out.glob(".db.*/data.mdb"):
            try:
                sizes.append(file.stat().st_size)
            except FileNotFoundError:  # the database has its final name now
                sizes.append(self.size)
        return max(sizes)

    def look(self):
        """Check that the target is a complete database or does not exist; return whether it exists."""
        assert {path.name for path in self.out.glob("[!.]*")} <= {"db"}
        if not os.path.lexists(self.db):
            return False
        assert {"data.mdb", "build.json", "data.mdb.sha256"} <= {path.name for path in self.db.iterdir()}
        require_checksum(self.db / "data.mdb")
        return True

    def is_whole(self, whole=None):
        return self.look() and digest(self.db / "data.mdb") == (whole or self.whole)

    def nothing_is_left(self):
        return not self.look() and not list(self.out.glob(".db*"))


def everything(folder):
    """Return the names, kinds, times and contents of all of the user's files."""
    found = {}
    for path in sorted([*folder.glob("*.txt"), *(folder / "img").rglob("*")]):
        status = path.lstat()
        content = digest(path) if path.is_file() else os.readlink(path) if path.is_symlink() else ""
        found[str(path)] = status.st_mode, status.st_mtime_ns, content
    return found


@pytest.fixture
def world(source, tmp_path, pytestconfig):
    folder, whole, size = source
    here = World(tmp_path, whole, size, pytestconfig.rootpath)
    shutil.copytree(folder / "img", tmp_path / "img", copy_function=os.link)
    shutil.copy(folder / "list.txt", tmp_path)
    here.out.mkdir()
    return here


def is_error(answer, message):
    """Check for exit code 2 and a last line that is an error with ``message``; other lines may come before."""
    code, lines = answer
    assert code == 2 and lines[-1].startswith(ERROR) and message in lines[-1]
    assert not [line for line in lines[:-1] if "error" in line.lower() or "Traceback" in line]
    return True


@pytest.mark.parametrize("seed", range(3))
def test_killed_at_any_moment_the_same_command_ends_with_the_same_bytes(world, seed):
    draw = random.Random(seed)
    before = everything(world.folder)
    for _ in range(3):
        moment = draw.randrange(world.size)
        process = world.start()
        world.wait_until(process, lambda moment=moment: world.written() >= moment)
        process.kill()
        world.end(process)
        assert not world.look() or world.is_whole()
    if not world.look():
        assert world.run()[0] == 0
    assert world.is_whole() and everything(world.folder) == before
    assert not list(world.out.glob(".*"))


def test_killed_at_the_very_end_the_same_command_ends_with_the_same_bytes(world):
    process = world.start()
    world.wait_until(process, lambda: list(world.out.glob(".db.*/data.mdb.sha256")))
    process.kill()
    world.end(process)
    if not world.look():
        assert world.run()[0] == 0
    assert world.is_whole() and not list(world.out.glob(".*"))


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, -signal.SIGTERM)])
def test_interrupted_the_same_command_ends_with_the_same_bytes(world, number, code):
    process = world.start()
    assert world.wait_until(process, lambda: world.written() > world.size // 3)
    process.send_signal(number)
    answer, lines = world.end(process)
    assert answer == code and not world.look() and not [line for line in lines if "Traceback" in line]
    if number == signal.SIGINT:
        assert lines[-1] == "python -m tools.build_lmdb: interrupted"
    code, lines = world.run()
    assert code == 0 and world.is_whole() and "resuming after the first" in lines[0]


CHANGES = {
    "list": lambda lines: [line.replace(" 3", " 12") for line in lines],
    "order": lambda lines: lines[::-1],
    "shorter": lambda lines: lines[:-20],
}


@pytest.mark.parametrize("change", [*CHANGES, "settings"])
def test_work_from_another_list_or_other_settings_is_not_mixed_in(world, change):
    process = world.start()
    assert world.wait_until(process, lambda: world.written() > world.size // 3)
    process.kill()
    world.end(process)
    image_list = world.folder / "list.txt"
    flags = ["--gray", *FLAGS] if change == "settings" else FLAGS
    if change != "settings":
        lines = image_list.read_text().splitlines(keepends=True)
        image_list.write_text("".join(CHANGES[change](lines)))
    whole = undisturbed(world.folder, "list.txt", flags)
    assert whole != world.whole
    answer = world.run(*flags)
    if answer[0]:
        assert is_error(answer, "out/db") and not world.look()
    else:
        assert world.is_whole(whole)


def test_of_two_builders_at_once_the_second_is_refused_and_the_first_ends_well(world):
    process = world.start()
    assert world.wait_until(process, lambda: world.written() > 0)
    process.send_signal(signal.SIGSTOP)
    try:
        assert is_error(world.run(), "out/db: another process is writing it")
        assert not world.look()
    finally:
        process.send_signal(signal.SIGCONT)
    assert world.end(process)[0] == 0 and world.is_whole()


def kinds_of_no_image(folder):
    """Make things in place of an image, by name."""
    (folder / "directory.png").mkdir()
    (folder / "empty.png").touch()
    (folder / "text.png").write_text("no image")
    os.mkfifo(folder / "pipe.png")
    (folder / "dangling.png").symlink_to("nowhere.png")
    (folder / "loop.png").symlink_to("loop.png")
    (folder / "device.png").symlink_to("/dev/null")
    return sorted(["missing.png", *(path.name for path in folder.glob("*.png"))])


def test_what_is_no_image_is_left_out_and_named(world):
    names = kinds_of_no_image(world.folder / "img")
    (world.folder / "bad.txt").write_text("0.bmp 0\n" + "".join(f"{name} 1\n" for name in names) + "1.bmp 1\n")
    before = everything(world.folder)
    code, lines = world.run("--on_error=skip", image_list="bad.txt")
    assert code == 0 and world.look()
    for number, name in enumerate(names, 2):
        [line] = [line for line in lines if name in line]
        assert line.startswith(f"left out: img/{name} (bad.txt, line {number}): ")
        # files that can be read endlessly must not be read at all
        assert name not in ("pipe.png", "device.png") or line.endswith(": not a file")
    with lmdb.open(str(world.db), readonly=True, lock=False) as env, env.begin() as transaction:
        keys = list(transaction.cursor().iternext(values=False))
    assert keys == [b"00000000_0.bmp", b"%08d_1.bmp" % (len(names) + 1)]
    assert everything(world.folder) == before


@pytest.mark.parametrize("name", ["directory.png", "missing.png", "pipe.png"])
def test_what_is_no_image_ends_the_work_with_its_name(world, name):
    kinds_of_no_image(world.folder / "img")
    (world.folder / "bad.txt").write_text(f"0.bmp 0\n{name} 1\n")
    assert is_error(world.run("--gray", image_list="bad.txt"), f"img/{name} (bad.txt, line 2): ")
    assert world.nothing_is_left()


def test_an_image_broken_late_leaves_no_database_and_repaired_the_same_bytes(world):
    lines = (world.folder / "list.txt").read_text().splitlines()
    last = lines[np.random.RandomState(5).permutation(COUNT)[-1]].split()[0]
    aside = world.folder / "aside.bmp"
    os.rename(world.folder / "img" / last, aside)
    assert is_error(world.run(), f"img/{last} (list.txt, line ") and not world.look()
    os.rename(aside, world.folder / "img" / last)
    assert world.run()[0] == 0 and world.is_whole()


def test_a_path_that_is_listed_twice_is_stored_twice_but_not_with_two_labels(world):
    (world.folder / "twice.txt").write_text("0.bmp 0\n1.bmp 1\n0.bmp 0\n")
    code, lines = world.run("--gray", image_list="twice.txt")
    assert code == 0 and world.look() and "line 3" in lines[0] and "line 1" in lines[0]
    (world.folder / "twice.txt").write_text("0.bmp 0\n1.bmp 1\n0.bmp 1\n")
    answer = world.run("--gray", image_list="twice.txt", target="out/other")
    assert is_error(answer, "twice.txt: line 3: 0.bmp has the label 1, but 0 in line 1")
    assert not (world.out / "other").exists()


@pytest.mark.parametrize("kind", ["file", "folder", "full folder", "dangling link", "link to a folder"])
def test_what_has_the_name_already_stays_as_it_is(world, kind):
    place = world.db
    if kind == "file":
        place.write_text("mine")
    elif kind == "dangling link":
        place.symlink_to("nowhere")
    elif kind == "link to a folder":
        (world.folder / "elsewhere").mkdir()
        place.symlink_to("../elsewhere")
    else:
        place.mkdir()
        if kind == "full folder":
            (place / "data.mdb").write_text("mine")
    before = place.lstat()
    assert is_error(world.run(), "out/db exists already")
    assert place.lstat() == before and [path.name for path in world.out.iterdir()] == ["db"]
    assert kind != "file" or place.read_text() == "mine"
    assert kind != "full folder" or (place / "data.mdb").read_text() == "mine"
    assert kind != "link to a folder" or not os.listdir(place)


@pytest.mark.parametrize("kind", ["file", "link"])
def test_what_is_in_the_way_of_unfinished_work_stays_as_it_is(world, kind):
    place = world.out / ".db.partial"
    other = world.folder / "other"
    other.mkdir()
    (other / "precious").write_text("mine")
    if kind == "file":
        place.write_text("mine")
    else:
        place.symlink_to(other)
    assert is_error(world.run(), "out/db") and not world.look()
    assert place.is_symlink() if kind == "link" else place.read_text() == "mine"
    assert (other / "precious").read_text() == "mine"


def test_a_file_that_may_not_grow_is_an_error_and_with_room_the_work_goes_on(world):
    limited = subprocess.run(
        ["bash", "-c", f'ulimit -f {world.size // 2 // 1024}; exec "$@"', "-", *world.argv()],
        cwd=world.folder,
        env=world.environment,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert is_error((limited.returncode, limited.stderr.splitlines()), "out/db: ") and not world.look()
    assert world.run()[0] == 0 and world.is_whole()


def mounts():
    """Return the command that runs a script in a private mount namespace; nothing if namespaces are not permitted."""
    for prefix in (["unshare", "-rm"], ["unshare", "-m"]):
        tried = [*prefix, "sh", "-c", "mount -t tmpfs -o size=1m none /mnt"]
        try:
            if subprocess.run(tried, capture_output=True, timeout=PATIENCE).returncode == 0:
                return prefix
        except (OSError, subprocess.TimeoutExpired):
            pass
    return None


@pytest.fixture(scope="module")
def in_mounts():
    prefix = mounts()
    if prefix is None:
        pytest.skip("mounting is not allowed here")

    def run(world, script, *argv):
        """Run a script, in which "$@" is the builder; return the [(exit code, standard error)] of its `say $?`."""
        say = 'say() { cat err; echo "=$1"; }\nset -u\n'
        answer = subprocess.run(
            [*prefix, "sh", "-c", say + script, "-", *argv],
            cwd=world.folder,
            env=world.environment,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
        )
        assert answer.returncode == 0, answer.stderr
        found = []
        lines = []
        for line in answer.stdout.splitlines():
            if line.startswith("="):
                found.append((int(line[1:]), lines))
                lines = []
            else:
                lines.append(line)
        return found

    return run


def test_a_disk_that_fills_up_is_an_error_and_with_room_the_work_goes_on(world, in_mounts):
    # the size of the database is not known in advance: the disk fills up halfway
    flags = ["--encoded", "--encode_type=bmp", *FLAGS]
    whole = undisturbed(world.folder, "list.txt", flags)
    script = """
        mount -t tmpfs -o size=6m none out
        "$@" 2>err; say $?
        ls out
        mount -o remount,size=50m out
        "$@" 2>err; say $?
        sha256sum < out/db/data.mdb
        ls out/db; ls -A out; echo =0"""
    full, again, (_, seen) = in_mounts(world, script, *world.argv(*flags))
    assert is_error(full, "out/db: no space left on the device")
    assert again[0] == 0 and seen == [f"{whole}  -", "build.json", "data.mdb", "data.mdb.sha256", "db"]


def test_a_disk_that_is_too_small_is_told_of_at_once(world, in_mounts):
    script = 'mount -t tmpfs -o size=6m none out; "$@" 2>err; say $?; ls -A out; echo =0'
    answer, (_, left) = in_mounts(world, script, *world.argv())
    assert is_error(answer, "out/db: ") and not left


def test_a_folder_that_is_read_only_is_an_error(world, in_mounts):
    script = 'mount --bind out out && mount -o remount,bind,ro out; "$@" 2>err; say $?; ls -A out; echo =0'
    answer, (_, left) = in_mounts(world, script, *world.argv())
    assert is_error(answer, "out/db: the file system is read-only") and not left
