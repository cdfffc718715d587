"""Damaged weights, solver states, databases and means always give exit code 2 and one line that names the file.

The damage is sampled from seeds. Databases are read in a separate process, since a failure would be SIGBUS or SIGSEGV.
"""

import contextlib
import io
import os
import random
import subprocess
import sys
from pathlib import Path

import lmdb
import numpy as np
import pytest
import torch
from support.tiny import SOLVER, net_text, tiny_images, write_lmdb

from transfer_caffe import surgery
from transfer_caffe.engine.__main__ import main
from transfer_caffe.formats import seal
from transfer_caffe.formats.database import Database
from transfer_caffe.formats.database_writer import DatabaseWriter
from transfer_caffe.formats.datum import raw_datum
from transfer_caffe.formats.proto import read_mean
from transfer_caffe.formats.proto.caffe_pb2 import SolverState
from transfer_caffe.formats.weights import read_weights
from transfer_caffe.tools.compute_mean import write_mean
from transfer_caffe.utils.errors import UserError
from transfer_caffe.utils.processes import PACKAGE_PARENT, environment

WEIGHTS, STATE, MEAN = "snap/tiny_iter_1.caffemodel", "snap/tiny_iter_1.solverstate", "mean.binaryproto"
COUNT = 250  # number of damaged versions of each kind of file that has a checksum
TRAIN = ["train", "--solver", "solver.prototxt"]


def mutate(data: bytes, draw: random.Random) -> tuple[str, bytes]:
    """Return the name of a kind of damage, and the damaged bytes, which differ from ``data``."""
    size, out = len(data), bytearray(data)
    kind = draw.choice(["bit", "bit", "byte", "run", "cut", "empty", "longer", "zeroed", "doubled", "swapped"])
    # half of the damage is at the front, where headers are
    at = draw.randrange(draw.choice([size, max(size // 16, 1)]))
    length = draw.choice([1, 4, 20, 36, 512, 4096])
    if kind == "bit":
        out[at] ^= 1 << draw.randrange(8)
    elif kind == "byte":
        out[at] = draw.randrange(256)
    elif kind == "run":
        out[at : at + length] = draw.randbytes(min(length, size - at))
    elif kind == "cut":
        del out[draw.choice([at, size - length, size // 4096 * 4096 - 4096, size - 1]) :]
    elif kind == "empty":
        out.clear()
    elif kind == "longer":
        out += draw.randbytes(length)
    elif kind == "zeroed":
        out[at : at + length] = bytes(min(length, size - at))
    elif kind == "doubled":
        out[at:at] = data[at : at + length]
    else:
        other = draw.randrange(size)
        a, b = sorted((at, other))
        length = min(length, b - a, size - b)
        out[a : a + length], out[b : b + length] = data[b : b + length], data[a : a + length]
    return (kind, bytes(out)) if out != data else mutate(data, draw)


@pytest.fixture(scope="module", params=["with checksums", "without"])
def files(request, tmp_path_factory):
    """Change to a folder with all input files of a small net; yield whether these files have checksums."""
    before, threads = os.getcwd(), torch.get_num_threads()
    torch.set_num_threads(1)  # a net this small is slower with more threads
    os.chdir(tmp_path_factory.mktemp("files"))
    yield make_files(request.param == "with checksums")
    os.chdir(before)
    torch.set_num_threads(threads)


def make_files(checked: bool) -> bool:
    for name, count in (("train_lmdb", 60), ("test_lmdb", 20)):
        images, labels = tiny_images(count, 1)
        if checked:
            with DatabaseWriter(name) as writer:
                for index, (image, label) in enumerate(zip(images, labels, strict=True)):
                    writer.put(b"%08d_x.png" % index, raw_datum(image, int(label)))
        else:
            write_lmdb(name, images, labels)
    write_mean(MEAN, np.full((3, 12, 12), 70, np.float32))
    Path("net.prototxt").write_text(net_text())
    short = SOLVER.replace("max_iter: 20", "max_iter: 1").replace("test_iter: 4", "test_iter: 1")
    Path("solver.prototxt").write_text(short)
    assert run(main, TRAIN)[0] == 0
    Path("solver.prototxt").write_text(f"{short} snapshot_after_train: false test_initialization: false")
    if not checked:
        Path(f"{MEAN}.sha256").unlink()
        replace(WEIGHTS, seal.read(WEIGHTS))
        state = SolverState.FromString(seal.read(STATE))
        state.ClearField("learned_net_sha256")
        replace(STATE, state.SerializeToString())
    return checked


def replace(path: str | Path, data: bytes) -> None:
    """Replace the file at ``path`` by a new file, since the old one may still be mapped."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
    Path(path).write_bytes(data)


def run(command, argv: list[str]) -> tuple[int, list[str]]:
    """Run a command and return its exit code and its error lines. A traceback is raised as an exception."""
    heard = io.StringIO()
    with contextlib.redirect_stderr(heard), contextlib.redirect_stdout(io.StringIO()):
        code = command(argv)
    return code, [line for line in heard.getvalue().splitlines() if ": error: " in line]


def refuses(command, argv: list[str], path: str, data: bytes, what: str, checked: bool) -> bool:
    """Run a command with the damaged ``data`` at ``path``; return whether it failed, naming the file in one line."""
    whole = Path(path).read_bytes()
    replace(path, data)
    try:
        code, errors = run(command, argv)
        if code == 0 and not checked:
            return False
        assert code == 2 and len(errors) == 1, (what, code, errors)
        assert not checked or path.removesuffix("/data.mdb") in errors[0], (what, errors)
        return True
    finally:
        replace(path, whole)


def mutations(path: str, checked: bool):
    """Yield damaged versions of a file as (seed, what, bytes); ``what`` is for messages."""
    whole = Path(path).read_bytes()
    for seed in range(COUNT if checked else COUNT // 3):
        kind, data = mutate(whole, random.Random(seed))
        yield seed, f"{path}: {kind}, seed {seed}", data


def test_damaged_weights_are_refused_by_engine_and_surgery(files):
    commands = [
        (main, [*TRAIN, "--weights", WEIGHTS]),
        (main, ["test", "--model", "net.prototxt", "--weights", WEIGHTS, "--iterations", "1"]),
        (surgery.main, f"--treatment A1B+ --base {WEIGHTS} --net net.prototxt --out init.caffemodel --force".split()),
    ]
    shapes = {name: [array.shape for array in arrays] for name, arrays in read_weights(Path(WEIGHTS)).items()}
    for command, argv in commands:
        assert run(command, argv) == (0, [])
    for seed, what, data in mutations(WEIGHTS, files):
        command, argv = commands[seed % 3]
        if not refuses(command, argv, WEIGHTS, data, what, files):
            # without a checksum, damage that leaves a valid net is not detected; NaN, inf and wrong shapes are
            replace("damaged.caffemodel", data)
            for name, arrays in read_weights(Path("damaged.caffemodel")).items():
                assert [array.shape for array in arrays] == shapes.get(name, [array.shape for array in arrays]), what


def test_damaged_solver_states_are_refused(files):
    argv = [*TRAIN, "--snapshot", STATE]
    assert run(main, argv) == (0, [])
    for _, what, data in mutations(STATE, files):
        refuses(main, argv, STATE, data, what, files)


def test_damaged_means_are_refused(files):
    assert run(main, TRAIN) == (0, [])
    for _, what, data in mutations(MEAN, files):
        if not refuses(main, TRAIN, MEAN, data, what, files):
            replace("damaged.binaryproto", data)
            assert read_mean("damaged.binaryproto").shape == (3, 12, 12), what


def with_tests() -> dict[str, str]:
    """Return an environment in which this file runs as a script."""
    return environment() | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parent.parent), PACKAGE_PARENT])}


def test_damaged_databases_are_refused_and_end_no_process(files):
    argv = [sys.executable, __file__, "engine" if files else "engine-without"]
    done = subprocess.run(argv, capture_output=True, text=True, env=with_tests())
    assert done.returncode == 0, done.stderr[-2000:]


def test_damage_to_pages_of_a_database_without_checksum_ends_no_process(tmp_path):
    argv = [sys.executable, __file__, "pages"]
    done = subprocess.run(argv, capture_output=True, text=True, env=with_tests(), cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]


def damage_databases_of_the_engine(checked: bool) -> None:
    torch.set_num_threads(1)
    path = "train_lmdb/data.mdb"
    seen = [refuses(main, TRAIN, path, data, what, checked) for _, what, data in mutations(path, checked)]
    assert all(seen) if checked else 0.2 < sum(seen) / len(seen) < 0.9, sum(seen)
    assert run(main, TRAIN) == (0, [])


def damage_pages() -> None:
    """Read many damaged databases; they have three levels, and records within pages and on separate pages."""
    with lmdb.open("db", map_size=1 << 26) as env, env.begin(write=True) as transaction:
        for index in range(600):
            side = 40 if index % 20 == 0 else 3
            key = b"%08d_%s" % (index, b"a long name " * 30)
            transaction.put(key, raw_datum(np.full((side, side, 3), index % 256, np.uint8), index))
    path = Path("db/data.mdb")
    whole = path.read_bytes()
    starts = [at for at in range(0, len(whole), 4096) if whole[at + 10] in (1, 2, 8)]  # branch, leaf and meta pages
    for seed in range(3 * COUNT):
        draw = random.Random(seed)
        data = bytearray(whole)
        start = draw.choice([*starts[:2], draw.choice(starts)])
        if seed % 3:
            for _ in range(draw.choice([1, 1, 2])):
                data[start + draw.randrange(draw.choice([24, 160, 4096]))] ^= 1 << draw.randrange(8)
        else:
            data[:] = mutate(whole, draw)[1]
        replace(path, bytes(data))
        with contextlib.suppress(UserError):
            read_all(path.parent)
    replace(path, whole)
    read_all(path.parent)


def read_all(path: Path) -> None:
    """Read all records; a separate function, so that the database is closed before another is opened at its path."""
    database = Database(path)
    for index in (0, len(database) // 2, len(database) - 1):
        database.record(index)
    for _ in database:
        pass


if __name__ == "__main__":
    damage_pages() if sys.argv[1] == "pages" else damage_databases_of_the_engine(sys.argv[1] == "engine")
