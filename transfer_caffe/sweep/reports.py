"""The report of a sweep, written while its networks are still in training: first as soon as it has a figure to show.

    reports = Reports(networks, folder=Path("runs/demo"), out=Path("report"), write_results=..., say=display.event)
    reports.update(done, failed, now)      # often; starts `python -m transfer_caffe.report` as a child when it is time
    reports.stop()                         # when the sweep ends, or is interrupted
    reports.write(done)                    # the last one; waits until it is there

The first report is written when the networks of the first split that show a figure from end to end are done, or after
some minutes with those that are. The next ones follow when more networks are done, but so rarely that they take a few
hundredths of the processor's time. Every file of a report appears complete, by a rename.
"""

from __future__ import annotations

import signal
import subprocess
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
"""Seconds of training after which the first report is written with whatever is done."""
SECONDS_BETWEEN = 60.0
"""From the end of one report to the beginning of the next, at least."""
SHARE = 15
"""That time is also at least so many times what the report took."""


@dataclass
class _Child:
    """A report being written: by which process, since when, and how many networks were done then."""

    process: subprocess.Popen[bytes]
    output: IO[bytes]
    began: float
    done: int


class Reports:
    """Writes the report of one sweep now and then, one at a time."""

    def __init__(
        self, networks: Sequence[Network], folder: Path, out: Path, write_results: Callable[[], object],
        say: Callable[[str], None],
    ) -> None:  # fmt: skip
        """``folder`` holds the networks, ``out`` is for the report; ``write_results`` brings results.csv up to date."""
        self.networks, self.folder, self.out = networks, folder, out
        self.say, self._write_results = say, write_results
        self._child: _Child | None = None
        self._first = {network.name for network in first_figure(networks)}
        self._began: float | None = None
        self._ended = 0.0
        self._reported: int | None = None
        self.seconds = 0.0
        """How long the newest report took; 0 while there is none."""

    def update(self, done: Collection[str], failed: Collection[str], now: float) -> None:
        """Start a report if it is time for one; say so when one is there."""
        self._began = now if self._began is None else self._began
        if self._child is not None:
            if self._child.process.poll() is None:
                return
            self._finish(self._child, now)
        if self._is_due(done, failed, now):
            self._start(len(done), now)

    def _is_due(self, done: Collection[str], failed: Collection[str], now: float) -> bool:
        if not done or len(done) == len(self.networks) or len(done) == self._reported:
            return False  # when all are done the sweep writes the last report
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
        """Say how a report that has ended came out; gives whether it was written."""
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
        """End a report that is being written; the one before stays."""
        if self._child is not None:
            self._child.process.send_signal(signal.SIGINT)
            self._child.process.wait()
            self._child.output.close()
            self._child = None

    def write(self, done: int) -> bool:
        """Write the report now, of so many networks, and wait for it; gives whether it was written."""
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
    """Return the networks of a first figure: of the first split the bases and the ends of the frozen curves.

    The ends are the networks of the lowest and highest n; where no network is frozen, of all the networks that take
    layers over.
    """
    if not networks:
        return []
    first = [each for each in networks if (each.seed, each.split) == (networks[0].seed, networks[0].split)]
    transferred = [each for each in first if not each.treatment.is_base]
    transferred = [each for each in transferred if each.treatment.frozen] or transferred
    steps = coarse_to_fine(each.treatment.n for each in transferred)
    ends = [each for each in transferred if steps[each.treatment.n] == 0]
    return [*(each for each in first if each.treatment.is_base), *ends]
