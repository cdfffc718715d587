"""Measure the data tools beside Caffe's own, in one run, and write the numbers into docs/benchmarks.md.

    make bench                  # about 10 minutes on two cores; 25 GB of room in the temporary folder

Speeds are compared within a round, one program after the other; of several rounds the middle one counts. Only what
stands between the two marks in the document is replaced.
"""

from __future__ import annotations

import argparse
import os
import platform
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from transfer_caffe import __version__
from transfer_caffe.data_prep import photos
from transfer_caffe.formats.database import CHECKED_BYTES, Database
from transfer_caffe.formats.database_writer import DatabaseWriter
from transfer_caffe.real_caffe import programs as real_caffe
from transfer_caffe.utils.errors import UserError, command
from transfer_caffe.utils.files import write_text
from transfer_caffe.utils.machine import cores

DOCUMENT = Path(__file__).resolve().parent.parent.parent / "docs" / "benchmarks.md"
BEGIN, END = "<!-- data: from here on made by `make bench` -->", "<!-- data: end -->"
SIZE = ["--resize_height=256", "--resize_width=256"]
TRAIN, VAL = 1_281_167, 50_000  # images of ILSVRC2012
REDUCED = (1, 2, 5, 10, 25, 50, 100, 250, 500, 750, 1000)  # images a class; 1300 is the whole set


class Run(NamedTuple):
    """What a command took: seconds from start to end, seconds of processor, the most memory in MiB."""

    seconds: float
    cpu: float
    memory: float


def run(*argv: str | os.PathLike[str]) -> Run:
    """Run a command to its end. UserError if it fails."""
    words = [os.fspath(word) for word in argv]
    with tempfile.TemporaryFile() as said:
        start = time.monotonic()
        process = subprocess.Popen(words, stdout=said, stderr=said, env={**os.environ, "GLOG_logtostderr": "1"})
        memory = 0.0
        while True:
            # not ru_maxrss, which begins with what the parent had at the fork
            memory = max(memory, _most_memory(process.pid))
            time.sleep(0.01)
            pid, status, usage = os.wait4(process.pid, os.WNOHANG)
            if pid:
                break
        seconds = time.monotonic() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            said.seek(0)
            raise UserError(f"{' '.join(words)}: exit code {process.returncode}: {said.read()[-500:].decode()}")
    return Run(seconds, usage.ru_utime + usage.ru_stime, memory)


def _most_memory(pid: int) -> float:
    """The most memory that a process had since it was started, in MiB."""
    found = re.search(r"VmHWM:\s*(\d+)", Path(f"/proc/{pid}/status").read_text())
    return int(found[1]) / 1024 if found else 0


def tool(name: str, *argv: str | os.PathLike[str]) -> Run:
    """Run one of our tools as a user does."""
    return run(sys.executable, "-m", f"transfer_caffe.tools.{name}", *argv)


def caffe(name: str, *argv: str | os.PathLike[str]) -> Run:
    """Run one of Caffe's."""
    program = real_caffe.program(name)
    if program is None:
        raise UserError(f"there is no real Caffe with {name} here; run `make caffe`")
    return run(program, *argv)


def make_images(folder: Path, count: int) -> None:
    """JPEGs of about 500 x 375 (windows of the bundled photographs), and list.txt with 100 labels."""
    photographs = [photos.read_photograph(path) for path in photos.photograph_paths().values()]
    draw = np.random.default_rng(0)
    (folder / "img").mkdir()
    for number in range(count):
        photo = photographs[number % len(photographs)]
        side = min(photo.shape[0], photo.shape[1] * 3 // 4) * draw.uniform(0.5, 1)
        height, width = int(side), int(side * 4 / 3)
        top, left = (int(draw.integers(0, room + 1)) for room in (photo.shape[0] - height, photo.shape[1] - width))
        size = (500 + int(draw.integers(-20, 21)), 375 + int(draw.integers(-20, 21)))
        window = cv2.resize(photo[top : top + height, left : left + width], size, interpolation=cv2.INTER_CUBIC)
        # as grain: without it the windows, enlarged, would be smoother than photographs are
        window = np.clip(window + draw.normal(0, 3, window.shape), 0, 255).astype(np.uint8)
        cv2.imwrite(str(folder / f"img/{number:05d}.jpg"), window)
    write_list(folder / "list.txt", range(count))


def write_list(path: Path, numbers: range | list[int]) -> None:
    """An image list of the images with these numbers."""
    write_text(path, "".join(f"{number:05d}.jpg {number % 100}\n" for number in numbers))


def fresh(path: Path) -> Path:
    """The path, with nothing there."""
    shutil.rmtree(path, ignore_errors=True)
    return path


def middle(values: list[float]) -> float:
    """The median."""
    return statistics.median(values)


def building(folder: Path, count: int, rounds: int) -> list[str]:
    """Images a second of building, ours and theirs, and whether the records are equal."""
    root, images = f"{folder}/img/", folder / "list.txt"
    ways = {
        "convert_imageset, raw": lambda: caffe("convert_imageset", *SIZE, root, images, fresh(folder / "theirs")),
        "build_lmdb, raw": lambda: tool("build_lmdb", *SIZE, root, images, fresh(folder / "ours")),
        "build_lmdb, raw, --scaled_decode": lambda: tool(
            "build_lmdb", "--scaled_decode", *SIZE, root, images, fresh(folder / "scaled")
        ),
        "build_lmdb, raw, --jobs=1": lambda: tool("build_lmdb", "--jobs=1", *SIZE, root, images, fresh(folder / "one")),
        "convert_imageset, encoded": lambda: caffe(
            "convert_imageset", "--encoded", *SIZE, root, images, fresh(folder / "theirs_encoded")
        ),
        "build_lmdb, encoded": lambda: tool("build_lmdb", "--encoded", *SIZE, root, images, fresh(folder / "encoded")),
    }
    runs: dict[str, list[Run]] = {name: [] for name in ways}
    for number in range(rounds):
        for name, way in ways.items():
            os.sync()
            runs[name].append(way())
            say(f"round {number + 1}: {name}: {count / runs[name][-1].seconds:.0f} images/s")
    rows = []
    for name, each in runs.items():
        theirs = runs["convert_imageset, " + ("encoded" if "encoded" in name else "raw")]
        ratio = middle([other.seconds / mine.seconds for mine, other in zip(each, theirs, strict=True)])
        speed = middle([count / one.seconds for one in each])
        cpu = middle([one.cpu for one in each]) * 1000 / count
        memory = max(one.memory for one in each)
        rows.append([name, f"{speed:.0f}", f"{ratio:.2f}", f"{cpu:.2f}", f"{memory:.0f}"])
    text = table(["command", "images/s", "times Caffe's", "ms of processor an image", "memory, MiB"], rows)
    theirs, ours = Database(folder / "theirs"), Database(folder / "ours")
    equal = sum(one == other for one, other in zip(theirs.raw_in_order(), ours.raw_in_order(), strict=True))
    return [
        text,
        f"{equal} of {len(theirs)} raw records are equal to convert_imageset's, byte for byte. {scaled(folder)}",
    ]


def scaled(folder: Path) -> str:
    """How far the pixels of --scaled_decode are from Caffe's."""
    theirs, ours = Database(folder / "theirs"), Database(folder / "scaled")
    counts = np.zeros(256, np.int64)
    for place in range(0, len(theirs), 5):
        there, here = (each.record(place)[0].astype(int) for each in (theirs, ours))
        counts += np.bincount(np.abs(there - here).ravel(), minlength=256)
    share = counts / counts.sum()
    below = np.cumsum(share)
    mean = float((share * np.arange(256)).sum())
    half, most = (int(np.searchsorted(below, part)) for part in (0.5, 0.99))
    return (
        f"With --scaled_decode pixels (0 to 255) differ from those by {mean:.2f} on average; half of them by at most "
        f"{half}, 99% by at most {most}, the worst by {int(np.flatnonzero(counts)[-1])}."
    )


def splitting(folder: Path, rounds: int) -> str:
    """Records a second of copying a half out of an encoded database, and of making a view: a small and a large one.

    The large one has the small one's records many times over, for it shall be larger than what is compared with its
    checksum when it is opened, as ImageNet's is.
    """
    rows = []
    small = Database(folder / "encoded")
    for name, times in (("small", 1), ("large", CHECKED_BYTES // (small.path / "data.mdb").stat().st_size + 1)):
        whole, half = fresh(folder / f"{name}_whole"), []
        with DatabaseWriter(whole) as writer:
            for again in range(times):
                for place, (_, value) in enumerate(small.raw_in_order(), start=again * len(small)):
                    writer.put(f"{place:08d}_{place}.jpg".encode(), value)
                    if place % 2:
                        half.append(f"{place}.jpg {place % 100}\n")
        write_text(folder / "half.txt", "".join(half))
        start = [run(sys.executable, "-m", "transfer_caffe.tools.split_lmdb", "--help").seconds for _ in range(rounds)]
        size = (whole / "data.mdb").stat().st_size
        for kind, option in (("a copy", []), ("a view", ["--view"])):
            seconds = []
            for _ in range(rounds):
                os.sync()
                out = fresh(folder / "half")
                seconds.append(tool("split_lmdb", *option, whole, folder / "half.txt", out).seconds - middle(start))
                say(f"{kind} of {len(half)} records: {seconds[-1]:.2f} s")
            made = sum(file.stat().st_size for file in (folder / "half").iterdir())
            rows.append([f"{len(small) * times:,} ({size / 1e9:.1f} GB)", kind, f"{len(half):,}",
                         f"{len(half) / middle(seconds):,.0f}", f"{made / 1e6:,.1f} MB"])  # fmt: skip
        fresh(folder / "half")
        fresh(whole)
    text = table(["whole database, encoded", "half of it as", "records", "records/s", "size"], rows)
    return (
        f"{text}\n\nThe time that Python takes to start is not counted. Counted are the checksum of the copy, and the "
        f"comparison of the whole database with its own, where it has up to {CHECKED_BYTES >> 30} GiB."
    )


def means(folder: Path, rounds: int) -> str:
    """Seconds of the mean of a raw database, ours and theirs; of eight views in one pass and one by one."""
    views = []
    for number in range(8):
        name = folder / f"view{number}"
        write_list(
            folder / "some.txt", [each for each in range(len(Database(folder / "encoded"))) if each >> number & 1]
        )
        tool("split_lmdb", "--view", folder / "encoded", folder / "some.txt", fresh(name))
        views.append(name)
    pairs = [word for view in views for word in (view, folder / f"{view.name}.mean")]
    ways = {
        "compute_image_mean, raw": lambda: [caffe("compute_image_mean", folder / "ours", folder / "theirs.mean")],
        "compute_mean, raw": lambda: [tool("compute_mean", "--force", folder / "ours", folder / "ours.mean")],
        "compute_image_mean, encoded": lambda: [
            caffe("compute_image_mean", folder / "encoded", folder / "theirs_encoded.mean")
        ],
        "compute_mean, encoded": lambda: [tool("compute_mean", "--force", folder / "encoded", folder / "encoded.mean")],
        "compute_mean, 8 views of the encoded one, in one pass": lambda: [tool("compute_mean", "--force", *pairs)],
        "compute_mean, 8 views of the encoded one, one by one": lambda: [
            tool("compute_mean", "--force", view, folder / f"{view.name}.mean") for view in views
        ],
    }
    rows = []
    for name, way in ways.items():
        runs = [way() for _ in range(rounds)]
        seconds = middle([sum(each.seconds for each in one) for one in runs])
        memory = max(each.memory for one in runs for each in one)
        rows.append([name, f"{seconds:.2f}", f"{memory:.0f}"])
        say(f"{name}: {seconds:.2f} s")
    for one, other in (("theirs.mean", "ours.mean"), ("theirs_encoded.mean", "encoded.mean")):
        if (folder / one).read_bytes() != (folder / other).read_bytes():
            raise UserError(f"{one} and {other} differ")
    return table(["command", "seconds", "memory, MiB"], rows) + "\n\nThe means are equal to Caffe's, byte for byte."


def memory(folder: Path, count: int, many: int) -> str:
    """The most memory of building and of the mean, for few and for many images."""
    rows = []
    write_list(folder / "many.txt", [number % count for number in range(many)])
    for images, name in ((count, "list.txt"), (many, "many.txt")):
        database = fresh(folder / "memory")
        built = tool("build_lmdb", *SIZE, f"{folder}/img/", folder / name, database)
        mean = tool("compute_mean", "--force", database, folder / "memory.mean")
        rows.append([f"{images:,}", f"{built.memory:.0f}", f"{mean.memory:.0f}"])
        say(f"{images} images: {built.memory:.0f} MiB, mean {mean.memory:.0f} MiB")
        fresh(database)
    return table(["raw records of 256 x 256", "build_lmdb, MiB", "compute_mean, MiB"], rows)


def disk(folder: Path) -> str:
    """Bytes of the paper's sets in each form, from the bytes a record in the sample."""
    write_list(folder / "some.txt", range(0, len(Database(folder / "ours")), 10))
    argv = ["--encoded", "--jpeg_quality=90", *SIZE, f"{folder}/img/", folder / "some.txt", fresh(folder / "q90")]
    tool("build_lmdb", *argv)
    size = {
        name: (folder / path / "data.mdb").stat().st_size / len(Database(folder / path))
        for name, path in (("raw", "ours"), ("JPEG, quality 95", "encoded"), ("JPEG, quality 90", "q90"))
    }
    whole = TRAIN + VAL
    halves = 5 * whole
    # of the sets by images a class no more than: 1,000 classes have 732 to 1,300 images
    reduced = sum(1000 * k for k in REDUCED) + TRAIN + VAL * (len(REDUCED) + 1)
    rows = []
    for name, each in size.items():
        gigabytes = [count * each / 1e9 for count in (whole, halves, reduced)]
        rows.append([f"databases of their own, {name}", f"{each:,.0f}", *(f"{value:,.0f}" for value in gigabytes),
                     f"{sum(gigabytes):,.0f}"])  # fmt: skip
    for name, each in size.items():
        gigabytes = [whole * each / 1e9, halves * 8 / 1e9, reduced * 8 / 1e9]
        rows.append([f"one database and views, {name}", f"{each:,.0f}", f"{gigabytes[0]:,.0f}",
                     *(f"{value:.2f}" for value in gigabytes[1:]), f"{sum(gigabytes):,.0f}"])  # fmt: skip
    head = ["form", "bytes a record", "whole, GB", "10 halves, GB", "12 reduced sets, GB", "all, GB"]
    return table(head, rows)


def table(head: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    return "\n".join(f"| {' | '.join(row)} |" for row in [head, ["---"] * len(head), *rows])


def say(line: str) -> None:
    """Tell how far it is."""
    print(line, file=sys.stderr, flush=True)


@command
def main(argv: list[str] | None = None) -> int | None:
    """Measure, and write the document."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--many", type=int, default=50000)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        say(f"making {options.images} images")
        make_images(folder, options.images)
        bytes_each = sum(file.stat().st_size for file in (folder / "img").iterdir()) / options.images
        text = [
            f"Version {__version__}, OpenCV {cv2.__version__}, Python {platform.python_version()}, "
            f"{cores()} cores ({processor()}), {time.strftime('%Y-%m-%d')}; "
            f"{options.images:,} JPEGs of about 500 x 375, {bytes_each / 1000:.0f} kB each, {options.rounds} rounds.",
            "### Building",
            *building(folder, options.images, options.rounds),
            "### A split out of a whole database",
            splitting(folder, options.rounds),
            "### Means",
            means(folder, options.rounds),
            "### Memory",
            memory(folder, options.images, options.many),
            "### Disk",
            disk(folder),
        ]
    before, rest = DOCUMENT.read_text(encoding="utf-8").split(BEGIN)
    write_text(DOCUMENT, "\n\n".join([before + BEGIN, *text, END]) + rest.split(END)[1])
    print(f"wrote {DOCUMENT}")


def processor() -> str:
    """What the machine calls its processor."""
    found = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    return found[1] if found else platform.machine()


if __name__ == "__main__":
    sys.exit(main())
