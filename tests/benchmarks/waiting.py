"""Compare the engine's choice of threads and waiting policy with the alternatives, in the presence of other processes.

    cd tests && PYTHONPATH=.:.. ../.venv/bin/python -m benchmarks.waiting --busy 2 --rounds 3

For each net, the iterations per second are measured with the engine's own choice and with prescribed numbers of threads
and waiting policies, alternately, while a number of busy loops run at the same time.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
from pathlib import Path

from benchmarks.data import say, table
from benchmarks.speed import Case, busy_loops, net_of

from transfer_caffe.formats.proto.caffe_pb2 import SolverParameter
from transfer_caffe.run.engines import Engine
from transfer_caffe.sweep.measure import iterations
from transfer_caffe.utils.errors import command
from transfer_caffe.utils.machine import cores

CHOSEN = "as chosen"


def variants() -> dict[str, dict[str, str]]:
    """Return the environment variables of each variant by its name."""
    found: dict[str, dict[str, str]] = {CHOSEN: {}}
    for threads in range(1, cores() + 1):
        found[f"{threads} threads" if threads > 1 else "1 thread"] = {"OMP_NUM_THREADS": str(threads)}
    most = {"OMP_NUM_THREADS": str(cores())}
    found["PyTorch's default waiting"] = {**most, "GOMP_SPINCOUNT": "300000"}
    found["passive"] = {**most, "OMP_WAIT_POLICY": "PASSIVE"}
    return found


@command
def main(argv: list[str] | None = None) -> None:
    """Run the command line: measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--busy", type=int, default=cores(), help="number of busy loops (default: one per core)")
    parser.add_argument("--rounds", type=int, default=3, help="number of rounds (default: 3)")
    parser.add_argument(
        "--seconds", type=float, default=6, help="training time of each variant in each round (default: 6)"
    )
    parser.add_argument("--nets", default="mini,small,caffenet", help="nets to measure, separated by commas")
    options = parser.parse_args(argv)
    engine = Engine.find("embedded")
    rows, before = [], dict(os.environ)
    for net in options.nets.split(","):
        rates: dict[str, list[float]] = {}
        for _ in range(options.rounds):
            for name, environment in variants().items():
                every = 1 if net == "caffenet" else 20
                solver = SolverParameter(base_lr=1e-6, lr_policy="fixed", momentum=0.9, weight_decay=0.0005)
                solver.display, solver.solver_mode = every, SolverParameter.CPU
                with tempfile.TemporaryDirectory() as where, busy_loops(options.busy):
                    os.environ.update(environment)
                    try:
                        seconds = iterations(
                            net_of(Case(net, 64), Path()), solver, engine, Path(where), None, options.seconds
                        )
                    finally:
                        os.environ.clear()
                        os.environ.update(before)
                rates.setdefault(name, []).append(1 / statistics.mean(seconds))
                say(f"{net}, {name}: {rates[name][-1]:.4g} iterations/s")
        best = max(statistics.median(each) for each in rates.values())
        for name, each in rates.items():
            rows.append([net, name, f"{statistics.median(each):.4g}", f"{statistics.median(each) / best:.2f}"])
    head = ["net, batch 64", f"variant, with {options.busy} busy loops", "iterations/s", "relative to the best"]
    print(table(head, rows))


if __name__ == "__main__":
    sys.exit(main())
