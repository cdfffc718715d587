"""A Caffe-compatible engine on PyTorch: nets, solvers, and the command line, file formats and log lines of `caffe`.

    from transfer_caffe.engine import Net, Solver

    net = Net.load("deploy.prototxt", "net.caffemodel")
    net.feed({"data": images})                          # (num, channels, height, width)
    loss, outputs = net.forward(keep=True)
    features = net.array("fc7")

    solver = Solver.load("solver.prototxt")
    loss = solver.step(100)

Used like this, it installs no signal handlers, writes no files and no log, and does not change PyTorch's settings. It
does not depend on the experiment: together with `formats` and `utils` it can be used as a separate Caffe library.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transfer_caffe.engine.net import Net
    from transfer_caffe.engine.solver.solver import Solver

__all__ = ["Net", "Solver"]


def __getattr__(name: str) -> Any:
    # imported on demand: the command must configure how threads wait before PyTorch is imported
    if name == "Net":
        from transfer_caffe.engine.net import Net

        return Net
    if name == "Solver":
        from transfer_caffe.engine.solver.solver import Solver

        return Solver
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
