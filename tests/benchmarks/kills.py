"""Check that a sweep that is killed at random times and restarted gives the same bytes as an uninterrupted sweep.

    cd tests && PYTHONPATH=.:.. ../.venv/bin/python -m benchmarks.kills --kills 50 --data ../data

A sweep of some of the demo's networks, with fewer iterations, first runs without interruption. It then runs again, and
the sweep, a driver, an engine, or all of them at once are killed with SIGKILL at random times. Each time the sweep
ends, the same command is run again. A sweep that finishes is compared with the uninterrupted one, and a new sweep is
started until the requested number of kills is reached.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml

from transfer_caffe.experiment.read import load_recipe
from transfer_caffe.utils.files import sha256, write_text
from transfer_caffe.utils.processes import environment

NETWORKS = {"random0": ["baseA", "baseB", "A3B", "B3B", "A5B+", "B5A+"], "whole": ["base", "R3"]}
COMPARED = ("*/snapshots/*", "*/init.caffemodel", "*/*.prototxt", "*/surgery.json", "*/curve.csv")
TARGETS = ("sweep", "driver", "engine", "all")


def write_recipe(path: Path, iterations: int) -> None:
    """Write a recipe with the demo's settings for a few of its networks."""
    settings = load_recipe("demo").settings() | {"name": path.stem, "networks": NETWORKS}
    settings["solver"] |= {
        "max_iter": iterations, "stepvalue": [iterations * 7 // 10, iterations * 9 // 10],
        "test_interval": iterations // 10, "snapshot": iterations // 12,
    }  # fmt: skip
    write_text(path, yaml.safe_dump(settings))


def start(recipe: Path, data: Path) -> subprocess.Popen[bytes]:
    """Start the sweep; its networks are in runs/ next to the recipe, and its output in said.txt."""
    argv = [sys.executable, "-m", "transfer_caffe.sweep", "run", "--recipe", str(recipe), "--data", str(data)]
    with open(recipe.parent / "said.txt", "ab") as said:
        return subprocess.Popen(
            argv, cwd=recipe.parent, env=environment(), stdout=said, stderr=said, start_new_session=True
        )


def children(pid: int) -> list[int]:
    """Return the running child processes of a process."""
    try:
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def victims(sweep: int, target: str) -> list[int]:
    """Return the processes to kill; none if the sweep currently has no process of that kind."""
    drivers = children(sweep)
    engines = [engine for driver in drivers for engine in children(driver)]
    if target == "all":
        return [sweep, *drivers, *engines]
    each = {"sweep": [sweep], "driver": drivers, "engine": engines}[target]
    return [random.choice(each)] if each else []


def contents(runs: Path) -> dict[str, str]:
    """Return the checksums of the files that must not depend on kills."""
    return {str(path.relative_to(runs)): sha256(path) for pattern in COMPARED for path in sorted(runs.glob(pattern))}


def main() -> int:
    """Run the command line: kill and restart the sweep, compare the files, and print the counts."""
    parser = argparse.ArgumentParser(description="Kill a sweep at random times, restart it, and compare the results.")
    parser.add_argument("--kills", type=int, default=50, help="number of kills (default: 50)")
    parser.add_argument("--iterations", type=int, default=1200, help="iterations of each network (the demo has 2000)")
    parser.add_argument("--seconds", type=float, default=6, help="longest time between two kills (default: 6)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the times and targets of the kills (default: 0)")
    parser.add_argument("--data", type=Path, default=Path("../data"), help="data folder (default: ../data)")
    args = parser.parse_args()
    random.seed(args.seed)
    with tempfile.TemporaryDirectory() as folder:
        recipe, runs = Path(folder, "kills.yaml"), Path(folder, "runs", "kills")
        write_recipe(recipe, args.iterations)
        began = time.monotonic()
        if start(recipe, args.data.resolve()).wait():
            print(Path(folder, "said.txt").read_text())
            return 1
        undisturbed, seconds = contents(runs), time.monotonic() - began
        print(f"uninterrupted: {seconds:.0f} s, {len(undisturbed)} files", flush=True)
        shutil.rmtree(runs)

        counts: collections.Counter[str] = collections.Counter()
        differing = []
        began, sweep = time.monotonic(), None
        while True:
            if sweep is None:
                counts["starts of the sweep"] += 1
                sweep = start(recipe, args.data.resolve())
            enough = sum(counts[f"kills: {target}"] for target in TARGETS) >= args.kills
            with contextlib.suppress(subprocess.TimeoutExpired):
                sweep.wait(None if enough else random.uniform(0, args.seconds))
            if sweep.poll() is None:
                target = random.choice(TARGETS)
                for pid in victims(sweep.pid, target):
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
                    counts[f"kills: {target}"] += target != "all" or pid == sweep.pid
                if target in ("sweep", "all"):
                    sweep.wait()
            if sweep.returncode == 0:
                counts["sweeps compared"] += 1
                now = contents(runs)
                differing += [name for name in {*undisturbed, *now} if undisturbed.get(name) != now.get(name)]
                if enough:
                    break
                shutil.rmtree(runs)
            if sweep.returncode is not None:
                sweep = None
        said = Path(folder, "said.txt").read_text()
        counts["damaged snapshots"] = said.count("*.damaged")
        for what, count in sorted(counts.items()):
            print(f"{what:32} {count}")
        print(f"files that differ                {len(differing)} {sorted(set(differing))[:5]}")
        print(f"{time.monotonic() - began:.0f} s")
    return 1 if differing else 0


if __name__ == "__main__":
    sys.exit(main())
