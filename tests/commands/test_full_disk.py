"""A full disk: a one-line error, and the same command produces the same bytes once there is room."""

import os
import subprocess
from pathlib import Path

import pytest
from support.small_world import EXPERIMENT, draw_shapes

from transfer_caffe import data, driver
from transfer_caffe.utils.files import sha256, write_text


@pytest.fixture
def disk(tmp_path, monkeypatch):
    """A separate 64 MiB disk at runs/ in the current folder, which has the data of the tiny experiment."""
    monkeypatch.chdir(tmp_path)
    Path("runs").mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", "runs"], capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.skip(f"a small disk needs permission to mount: {mounted.stderr.strip()}")
    draw_shapes()
    write_text("tiny.yaml", EXPERIMENT)
    assert data.main(["--recipe", "tiny.yaml"]) == 0
    yield Path("runs")
    subprocess.run(["umount", "-l", "runs"], check=True)


@pytest.fixture
def drive(capsys, forked_trainings):
    """A function that runs the driver and returns its exit code and output."""

    def run(runs: str = "runs") -> subprocess.CompletedProcess[str]:
        argv = ["--recipe", "tiny.yaml", "--treatment", "baseA", "--runs", runs]
        capsys.readouterr()
        return subprocess.CompletedProcess(argv, driver.main(argv), *capsys.readouterr())

    return run


def fill(disk: Path, left: int) -> Path:
    """Write a file that leaves ``left`` bytes of the disk free."""
    filler = disk / "filler"
    status = os.statvfs(disk)
    with open(filler, "wb") as file:
        os.posix_fallocate(file.fileno(), 0, status.f_bavail * status.f_frsize - left)
    return filler


def test_a_full_disk_is_told_in_one_line_and_the_same_command_goes_on_to_the_same_bytes(disk, drive):
    name = Path("tiny/random0-baseA-s0")
    assert drive("elsewhere").returncode == 0
    snapshots = Path("elsewhere") / name / "snapshots"
    pair = sum(path.stat().st_size for path in snapshots.iterdir())
    for left in (0, 12 * 1024, 12 * 1024, pair + 48 * 1024, pair * 3 // 4):
        filler = fill(disk, left)
        ended = drive()
        assert ended.returncode in (1, 2) and ended.stderr.count("\n") == 1, (left, ended)
        assert "no space left on the device" in ended.stderr, (left, ended.stderr)
        assert not (disk / name / "done.json").exists()
        filler.unlink()
    ended = drive()
    assert ended.returncode == 0, ended.stderr
    assert "resuming from the snapshot of iteration 10" in ended.stdout
    final = "snapshots/net_iter_20.caffemodel"
    assert sha256(disk / name / final) == sha256(Path("elsewhere") / name / final)
    assert (disk / name / "curve.csv").read_bytes() == (Path("elsewhere") / name / "curve.csv").read_bytes()
