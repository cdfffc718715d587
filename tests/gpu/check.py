"""Check the engine on a GPU and measure its speed there, in at most eight minutes: `make gpu-check`.

    python3 tests/gpu/check.py                   # on a machine with a GPU, Python 3.12 and PyTorch; needs no network
    python3 tests/gpu/check.py --only 'layers|graphs'
    python3 tests/gpu/check.py --dry-run         # on a CPU, in small sizes: shows that the script itself works

Each step is a process of its own with its own time limit; its output and results are written to OUT/log.txt and
OUT/results.jsonl at once. At the end a table is printed and OUT/results.json is written. The exit code is 0 only if all
checks hold. `make gpu-bundle` packs what has to be copied to a machine without network.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

TESTS = Path(__file__).resolve().parent.parent
ROOT = TESTS.parent
WHEELS, UNPACKED = ROOT / "wheels", ROOT / ".wheels"

STEPS = {
    "data": 24, "rates": 9, "smoke": 28, "kernels": 15, "layers": 25, "batches": 22, "graphs": 30, "resume": 30,
    "gpu_tests": 38, "speed": 75, "tests_and_snapshots": 43, "convolutions": 20, "parts": 10, "profile": 10,
    "sharing": 42, "by_mps": 20, "large": 10, "memory": 8, "cudnn": 9, "paper": 6,
}  # fmt: skip
"""The steps in order of value, and the share of each of the time, in seconds, about twice what it is expected to take.

A step may also use what the steps before it have left of their shares, but nothing of the shares of those after it: no
step is cut off because another one hangs.
"""
TOTAL = 474
"""Seconds of all steps together. If only some of them run, the first one may use what the others would have had."""


def main(argv: list[str] | None = None) -> int:
    """Run the steps, print the table, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("gpu-check"), help="folder of the results (gpu-check)")
    parser.add_argument("--only", default="", help="only steps whose name matches this regular expression, and data")
    parser.add_argument("--dry-run", action="store_true", help="run small sizes on the CPU")
    parser.add_argument("--step", choices=STEPS, help=argparse.SUPPRESS)
    parser.add_argument("--data", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.step:
        return run_step(args)
    return run_all(args)


def run_all(
    args: argparse.Namespace, shares: dict[str, int] = STEPS, total: float = TOTAL, start: Start | None = None
) -> int:
    """Run the chosen steps, each in a process with a time limit; see the module's docstring.

    ``start`` starts the processes; by default they are forks of this one.
    """
    args.out.mkdir(parents=True, exist_ok=True)
    unpack_wheels()
    for name in ("log.txt", "results.jsonl", "results.json"):
        (args.out / name).unlink(missing_ok=True)
    chosen = {name: share for name, share in shares.items() if name == "data" or re.search(args.only, name)}
    if start is None:
        start = start_by_fork
        try:
            import_all()
        except Exception:  # each step then says what it needs and lacks
            traceback.print_exc()
            start = start_anew
    began, steps = time.monotonic(), []
    end = began + total - sum(chosen.values())
    with tempfile.TemporaryDirectory() as data:
        for name, share in chosen.items():
            end += share
            one = run_in_process(args, name, end - time.monotonic(), Path(data), start)
            if one["state"] != "done" and start is start_by_fork and name in list(chosen)[1:2] and not args.dry_run:
                # the first step on the device: perhaps it cannot be used in a forked process
                print(f"{name}: {one['state']}; from here on each step imports PyTorch anew", flush=True)
                start = start_anew
                one = run_in_process(args, name, end - time.monotonic(), Path(data), start)
            steps.append(one)
            print(f"{name}: {one['state']}, {one['seconds']:.1f} s", flush=True)
    return summarise(args.out, steps, time.monotonic() - began)


def run_in_process(args: argparse.Namespace, name: str, limit: float, data: Path, start: Start) -> dict[str, Any]:
    """Run one step in a process group of its own, which is ended after ``limit`` seconds; return how it ended."""
    if limit < 1:
        return {"step": name, "state": "not run: no time was left", "seconds": 0.0}
    since = time.monotonic()
    with open(args.out / "log.txt", "a", encoding="utf-8") as log:
        log.write(f"\n== {name} ==\n")
        log.flush()
        argv = ["--step", name, "--out", str(args.out.resolve()), "--data", str(data)]
        process = start(argv + ["--dry-run"] * args.dry_run, log.fileno(), data)
        try:
            code = process.wait(limit)
            state = "done" if code == 0 else f"failed with exit code {code}"
        except subprocess.TimeoutExpired:
            state = f"ended after its limit of {limit:.0f} s"
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # also what the step has started
            process.wait()
    return {"step": name, "state": state, "seconds": time.monotonic() - since}


class Running(Protocol):
    """A process as `subprocess.Popen` has it."""

    pid: int

    def wait(self, timeout: float | None = None) -> int:
        """Return the exit code; raise subprocess.TimeoutExpired if it takes longer."""
        ...


def start_anew(argv: list[str], output: int, folder: Path) -> Running:
    """Start this script with other arguments."""
    argv = [sys.executable, str(Path(__file__).resolve()), *argv]
    return subprocess.Popen(
        argv, stdout=output, stderr=output, env=environment(), cwd=folder, start_new_session=True
    )  # fmt: skip


def start_by_fork(argv: list[str], output: int, folder: Path) -> Running:
    """Do the same by a fork of this process: importing PyTorch for each step would take a minute of the eight.

    A GPU can be used in a forked process if the process before the fork has not used it, and this one never does.
    """
    import_all()
    pid = os.fork()
    if pid:
        return _Fork(pid)
    code = 1
    try:
        os.setsid()
        os.chdir(folder)
        os.dup2(output, 1)
        os.dup2(output, 2)
        os.environ.update(environment())
        code = main(argv)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


Start = Callable[[list[str], int, Path], Running]
"""Starts a step: arguments, the file of its output, and its folder."""


class _Fork:
    """A forked process with the methods of `Running`."""

    def __init__(self, pid: int) -> None:
        self.pid, self._code = pid, None

    def wait(self, timeout: float | None = None) -> int:
        end = None if timeout is None else time.monotonic() + timeout
        while self._code is None:
            found, status = os.waitpid(self.pid, os.WNOHANG)
            if found:
                self._code = os.waitstatus_to_exitcode(status)
            elif end is not None and time.monotonic() > end:
                raise subprocess.TimeoutExpired("a step", timeout or 0)
            else:
                time.sleep(0.01)
        return self._code


def import_all() -> tuple[Any, ...]:
    """Import the modules of the steps."""
    sys.path[:0] = [each for each in (str(TESTS), str(ROOT)) if each not in sys.path]
    if UNPACKED.is_dir() and str(UNPACKED) not in sys.path:
        sys.path.append(str(UNPACKED))
    from benchmarks import speed
    from gpu import correct, speeds, world

    return speed, correct, speeds, world


def run_step(args: argparse.Namespace) -> int:
    """Run one step in this process."""
    benchmark, correct, speeds, world = import_all()
    from transfer_caffe.engine import glog

    results = args.out / "results.jsonl"
    if args.step == "data":
        benchmark.make_data(args.data, 1 / 50 if args.dry_run else 1)
        return 0
    step = getattr(correct, args.step, None) or getattr(speeds, args.step)
    with glog.logging():
        step(world.World.create(args.step, args.data, results, args.dry_run))
    return 0


def environment() -> dict[str, str]:
    """Return the environment of the steps: they import the repository, and the unpacked wheels where packages lack."""
    paths = [str(TESTS), str(ROOT), os.environ.get("PYTHONPATH", ""), str(UNPACKED) if UNPACKED.is_dir() else ""]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(each for each in paths if each), "PYTHONUNBUFFERED": "1"}


def unpack_wheels() -> None:
    """Unpack the wheels of a bundle for packages that cannot be imported here."""
    for wheel in sorted(WHEELS.glob("*.whl")):
        package = wheel.name.partition("-")[0]
        if subprocess.run([sys.executable, "-c", f"import {package}"], capture_output=True, check=False).returncode:
            with zipfile.ZipFile(wheel) as archive:
                archive.extractall(UNPACKED)


def summarise(out: Path, steps: list[dict[str, Any]], seconds: float) -> int:
    """Print the table, write results.json, and return 0 if all steps were done and all checks hold, else 1."""
    path = out / "results.jsonl"
    records = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    checks = [each for each in records if "check" in each]
    measures = [each for each in records if "measure" in each]
    failed = [each for each in checks if not each["holds"]]
    undone = [each for each in steps if each["state"] != "done"]
    lines = ["", f"{len(checks) - len(failed)} of {len(checks)} checks hold; {seconds:.0f} s"]
    lines += [f"STEP {each['step']}: {each['state']}" for each in undone]
    lines += [f"FAILED {each['step']}: {each['check']} {each['detail']}".rstrip() for each in failed]
    lines += [f"holds  {each['step']}: {each['check']} {each['detail']}".rstrip() for each in checks if each["holds"]]
    width = max((len(each["measure"]) for each in measures), default=0)
    lines += [f"{each['measure']:<{width}}  {each['value']:>12.5g} {each['unit']}" for each in measures]
    text = "\n".join(lines) + "\n"
    print(text, flush=True)
    with open(out / "log.txt", "a", encoding="utf-8") as log:
        log.write(text)
    good = bool(checks) and not failed and not undone
    found = {"good": good, "seconds": seconds, "steps": steps, "checks": checks, "measures": measures}
    temporary = out / "results.json.tmp"
    temporary.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    temporary.replace(out / "results.json")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
