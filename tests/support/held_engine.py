"""The embedded engine, with the same results, but tests can hold it during training, and make it fail.

    python tests/support/held_engine.py train --solver solver.prototxt

It waits before iteration 15 while a file hold/NETWORK exists in the folder that holds runs/, or until a stop signal. It
creates hold/NETWORK.there when it starts waiting. It fails at its start while fail/NETWORK has lines, and removes one
of them each time.
"""

import sys
import time
from pathlib import Path

from transfer_caffe.engine import __main__ as engine
from transfer_caffe.engine.solver import solver

WORLD = Path("../../..")
HELD_AT = 15

_signals: list[solver.Signals] = []
_update = solver.Solver._update


class Signals(solver.Signals):
    def __init__(self, *args: str) -> None:
        super().__init__(*args)
        _signals.append(self)


def update(self: solver.Solver, show: bool) -> dict[int, solver.Tensor]:
    hold = WORLD / "hold" / Path.cwd().name
    if self.iteration == HELD_AT and hold.exists():
        hold.with_suffix(".there").touch()
        while hold.exists() and not _signals[0].stop_asked():
            time.sleep(0.05)
    return _update(self, show)


def main() -> int:
    fail = WORLD / "fail" / Path.cwd().name
    if fail.exists() and (lines := fail.read_text().splitlines()):
        fail.write_text("".join(f"{line}\n" for line in lines[1:]))
        sys.stderr.write("F1123 13:41:53.000000 9956 data_layer.cpp:9] Check failed: not today\n")
        return 1
    engine.Signals = Signals
    solver.Solver._update = update
    return engine.main(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
