"""Write the report of a sweep while its networks are still in training, starting when there is a figure to show.

    reports = Reports(networks, folder=Path("runs/demo"), out=Path("report"), write_results=..., say=display.event)
    reports.update(done, failed, now)      # call often; starts `python -m transfer_caffe.report` as a child when due
    reports.stop()                         # when the sweep ends, or is interrupted
    reports.write(done)                    # write the last report, and wait for it

The first report is written when the networks that span a figure of the first split are done, or after some minutes with
those that are done by then. Further reports follow as more networks are done, but only so often that they take a few
percent of the processor time. Every file of a report is written atomically.
"""

from __future__ import annotations

import signal
import sys
import tempfile
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from transfer_caffe.experiment.recipe import Network
from transfer_caffe.sweep.selection import coarse_to_fine
from transfer_caffe.utils import processes
from transfer_caffe.utils.errors import UserError

FIRST_AFTER = 200.0
"""Seconds of training after which the first report is written with the networks that are done."""
SECONDS_BETWEEN = 120.0
"""Minimum seconds from the end of one report to the start of the next."""
SHARE = 15
"""That time is also at least this multiple of the time that the last report took."""


@dataclass
class _Child:
    """A report being written: its process, start time, and the number of networks that were done at that time."""

    process: processes.Child
    output: IO[bytes]
    began: float
    done: int


class Reports:
    """Writes the report of one sweep from time to time, one at a time."""

    def __init__(
        self, networks: Sequence[Network], folder: Path, out: Path, write_results: Callable[[], object],
        say: Callable[[str], None],
    ) -> None:  # fmt: skip
        """``folder`` holds the networks, ``out`` is the report's folder, ``write_results`` updates results.csv."""
        self.networks, self.folder, self.out = networks, folder, out
        self.say, self._write_results = say, write_results
        self._child: _Child | None = None
        self._first = {network.name for network in first_figure(networks)}
        self._began: float | None = None
        self._ended = 0.0
        self._reported: int | None = None
        self.seconds = 0.0
        """Seconds that the newest report took; 0 if there is none yet."""

    def update(self, done: Collection[str], failed: Collection[str], now: float) -> None:
        """Start a report if one is due; report it when one is finished."""
        self._began = now if self._began is None else self._began
        if self._child is not None:
            if self._child.process.poll() is None:
                return
            self._finish(self._child, now)
        if self._is_due(done, failed, now):
            self._start(len(done), now)

    def _is_due(self, done: Collection[str], failed: Collection[str], now: float) -> bool:
        if not done or len(done) == len(self.networks) or len(done) == self._reported:
            return False  # when all are done, the sweep writes the last report itself
        if self._reported is None:
            assert self._began is not None
            return self._first <= {*done, *failed} or now - self._began >= FIRST_AFTER
        return now - self._ended >= max(SECONDS_BETWEEN, SHARE * self.seconds)

    def _start(self, done: int, now: float) -> None:
        self._reported = done
        try:
            self._write_results()
        except (UserError, OSError) as error:  # a damaged file of one network must not stop the others
            self._ended = now
            self.say(f"report: not written: {error}")
            return
        output = tempfile.TemporaryFile()  # noqa: SIM115 - closed when the child has ended
        argv = [sys.executable, "-m", "transfer_caffe.report", "--runs", str(self.folder), "--out", str(self.out)]
        self._child = _Child(processes.start(argv, output, env=processes.environment()), output, now, done)

    def _finish(self, child: _Child, now: float) -> bool:
        """Report the result of a child that has ended; return whether the report was written."""
        self._child, self._ended, self.seconds = None, now, now - child.began
        child.output.seek(0)
        lines = child.output.read().decode(errors="replace").strip().splitlines()
        child.output.close()
        if written := child.process.returncode == 0:
            self.say(f"report: {self.out / 'index.html'} ({child.done} of {len(self.networks)} networks)")
        else:
            why = lines[-1].split(": error: ")[-1] if lines else f"exit code {child.process.returncode}"
            self.say(f"report: not written: {why}")
        return written

    def stop(self) -> None:
        """Stop a report that is being written; the previous one is kept."""
        if self._child is not None:
            self._child.process.send_signal(signal.SIGINT)
            self._child.process.wait()
            self._child.output.close()
            self._child = None

    def write(self, done: int) -> bool:
        """Write the report with ``done`` finished networks, wait for it, and return whether it was written."""
        self.stop()
        self._start(done, 0.0)
        if self._child is None:
            return False
        try:
            self._child.process.wait()
        except BaseException:
            self.stop()
            raise
        return self._finish(self._child, 0.0)


def first_figure(networks: Sequence[Network]) -> list[Network]:
    """Return the networks needed for a first figure: the bases of the first split and the ends of its frozen curves.

    The ends are the networks with the lowest and the highest n. If no network has frozen layers, all networks with
    copied layers are considered.
    """
    if not networks:
        return []
    first = [each for each in networks if (each.seed, each.split) == (networks[0].seed, networks[0].split)]
    transferred = [each for each in first if not each.treatment.is_base]
    transferred = [each for each in transferred if each.treatment.frozen] or transferred
    steps = coarse_to_fine(each.treatment.n for each in transferred)
    ends = [each for each in transferred if steps[each.treatment.n] == 0]
    return [*(each for each in first if each.treatment.is_base), *ends]
