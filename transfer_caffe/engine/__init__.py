"""Caffe's engine on PyTorch: nets, solvers, and the command line, files and log lines of `caffe`.

    from transfer_caffe.engine import Net, Solver

    net = Net.load("deploy.prototxt", "net.caffemodel")
    net.feed({"data": images})                          # (num, channels, height, width)
    loss, outputs = net.forward(keep=True)
    features = net.array("fc7")

    solver = Solver.load("solver.prototxt")
    loss = solver.step(100)

Used like this, it takes over no signals, writes no files and no log, and leaves PyTorch's settings alone. It knows
nothing of the experiment: with `formats` and `utils` below it, it is a Caffe library of its own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transfer_caffe.engine.net import Net
    from transfer_caffe.engine.solver.solver import Solver

__all__ = ["Net", "Solver"]


def __getattr__(name: str) -> Any:
    # on demand: the command has to set how threads wait before PyTorch is loaded
    if name == "Net":
        from transfer_caffe.engine.net import Net

        return Net
    if name == "Solver":
        from transfer_caffe.engine.solver.solver import Solver

        return Solver
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
