"""Parsing of Caffe's log (an engine's standard error): test results, losses, learning rates, how the run ended.

    log = read_log("runs/demo/random0-A3B-s0/train.log")
    for row in log.rows():
        print(row.iteration, row.test_accuracy, row.train_loss)

The lines have glog's format, `I1123 07:34:13.659520 22837 solver.cpp:347] Iteration 0, Testing net (#0)`; the format of
2014 (`Test score #0: 0.6`) is supported as well. A log may contain several consecutive runs of one network, each
resumed from a snapshot. Values of a later run replace those of an earlier run for the same iteration, and only the last
run determines how the training ended. An incomplete last line, left by a killed process, is ignored.
"""

from __future__ import annotations

import datetime
import math
import os
import re
import statistics
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_LINE = re.compile(
    r"([IWEF])(\d\d)(\d\d) (\d\d):(\d\d):(\d\d)\.(\d+) +(\d+) ([\w./-]+):\d+\] ?(.*)",
    re.DOTALL,
)
_TESTING = re.compile(r"Iteration (\d+), Testing net \(#(\d+)\)")
_TEST_OUTPUT = re.compile(r"\s*Test net output #\d+: (\S+) = (\S+)")
_TEST_SCORE = re.compile(r"\s*Test score #(\d+): (\S+)")
_TRAIN = re.compile(r"Iteration (\d+)(?: \(.*\))?, loss = (\S+)")
_RATE = re.compile(r"Iteration (\d+), lr = (\S+)")
_STATE = re.compile(r"Snapshotting solver state to .*_iter_(\d+)\.solverstate")
_RESUMED = re.compile(r"Starting .* --snapshot \S*_iter_(\d+)\.solverstate")
_DEVICE = re.compile(r"Use (CPU)|Using GPUs \d+: (.+)|GPU \d+: (.+)")
_IGNORED = re.compile(r"Ignoring source layer (\S+)")

_THREADS = ("data_layer.cpp", "blocking_queue.cpp", "base_data_layer.cpp")
"""Source files of Caffe's data threads, whose lines have their own thread numbers and appear between the others."""


START = "driver.py"
"""The name in place of the source file in the line that the driver writes at the start of each run of an engine."""


@dataclass(frozen=True)
class Row:
    """The results of one test, and the training loss and learning rate at that iteration; None if unknown."""

    iteration: int
    test_accuracy: float | None
    test_loss: float | None
    train_loss: float | None
    lr: float | None


@dataclass
class Log:
    """The content of a log. ``done`` and ``stopped_early`` describe its last run, the other fields all its runs."""

    tests: dict[int, dict[str, float]] = field(default_factory=dict)
    train_losses: dict[int, float] = field(default_factory=dict)
    rates: dict[int, float] = field(default_factory=dict)
    ignored_layers: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    snapshots: list[int] = field(default_factory=list)
    """Iterations whose snapshot was written completely: the engine has written another line after it."""
    resumed_from: list[int] = field(default_factory=list)
    """The iterations of the snapshots from which runs were resumed, in the order of the runs."""
    devices: list[str] = field(default_factory=list)
    """The devices of the runs, each listed once: `CPU`, or the name of a GPU."""
    done: bool = False
    stopped_early: bool = False
    seconds: float = 0.0
    """Wall time of all runs together, each from its first line to its last."""
    display_seconds: list[float] = field(default_factory=list)
    """Seconds per iteration of each interval between two displays that contains no test and no snapshot."""
    test_seconds: list[float] = field(default_factory=list)

    def rows(self) -> list[Row]:
        """Return one row per test, ordered by iteration."""
        return [
            Row(
                iteration,
                outputs.get("accuracy"),
                outputs.get("loss"),
                self.train_losses.get(iteration),
                self.rates.get(iteration),
            )
            for iteration, outputs in sorted(self.tests.items())
        ]

    @property
    def iteration(self) -> int | None:
        """The last iteration with a test or a training loss; None if there is none."""
        return max((*self.tests, *self.train_losses), default=None)

    @property
    def bad_number(self) -> str | None:
        """A description of the first value that is NaN or inf; None if all values are finite."""
        for iteration, loss in sorted(self.train_losses.items()):
            if not math.isfinite(loss):
                return f"the training loss is {loss:g} at iteration {iteration}"
        for iteration, outputs in sorted(self.tests.items()):
            for name, value in outputs.items():
                if not math.isfinite(value):
                    return f"the test {name} is {value:g} at iteration {iteration}"
        return None

    @property
    def seconds_per_iteration(self) -> float | None:
        """The median of `display_seconds`; None if every interval between two displays had a test or a snapshot."""
        return statistics.median(self.display_seconds) if self.display_seconds else None

    @property
    def seconds_per_test(self) -> float | None:
        """The median duration of a test; None if there is none."""
        return statistics.median(self.test_seconds) if self.test_seconds else None

    def train_loss_over_last(self, iterations: int) -> float | None:
        """Return the mean of the training losses displayed in the last ``iterations`` iterations, or None."""
        if not self.train_losses:
            return None
        since = max(self.train_losses) - iterations
        return statistics.fmean(loss for iteration, loss in self.train_losses.items() if iteration > since)


def read_log(path: str | os.PathLike[str]) -> Log:
    """Read a log file. Bytes that are not UTF-8 (for example in a file name) are replaced."""
    return parse_log(Path(path).read_bytes().decode(errors="replace"))


def parse_log(text: str) -> Log:
    """Parse the text of a log."""
    parser = LogParser()
    parser.feed(text)
    parser.finish()
    return parser.log


class LogParser:
    """An incremental parser for a growing log: pass new text to `feed`; ``log`` can be read at any time."""

    def __init__(self) -> None:
        self.log = Log()
        self._rest = ""  # an incomplete line
        self._year = datetime.date.today().year  # glog writes no year: that of reading is assumed for all lines
        self._process: int | None = None  # the engine's process number; None before its first line
        self._testing: int | None = None
        self._first = self._last = 0.0  # times of the run's first and last line
        self._seconds_before = 0.0  # duration of the previous runs
        self._shown: tuple[int, float] | None = None  # iteration and time of the display at the start of an interval
        self._interval_disturbed = False
        self._test_began: float | None = None
        self._snapshot: int | None = None  # the iteration of the snapshot that is being written

    def feed(self, text: str) -> None:
        """Parse the next part of the log, which may end in the middle of a line."""
        lines = (self._rest + text).split("\n")
        self._rest = lines.pop()
        for line in lines:
            self._line(line.rstrip("\r"))

    def finish(self) -> None:
        """Mark the end of the log: the output of the last test is complete."""
        self._end_test()

    def _line(self, line: str) -> None:
        """Parse one complete line."""
        match = _LINE.fullmatch(line)
        if match is None:
            # the format of this project's own error messages
            if ": error: " in line:
                self.log.errors.append(line)
            return
        level, *stamp, process, source, message = match.groups()
        now = self._clock(_seconds(self._year, *stamp), int(process), source)
        if level in "EF" or "Check failed" in message:
            self.log.errors.append(message)
        elif source not in _THREADS:
            self._message(message, now)

    def _clock(self, now: float, process: int, source: str) -> float:
        """Update the run's time, and detect the start of a new run. Return the line's time on the run's clock."""
        if source == START:
            self._new_run(now)
            self._process = None
        elif source not in _THREADS and process != self._process:
            if self._process is not None or not self._last:
                self._new_run(now)  # the runs of this log are not separated by a driver's lines
            self._process = process
        if now < self._last - 43200:
            # the time stamps have no year, and this log extends over New Year
            now += datetime.date(self._year, 12, 31).timetuple().tm_yday * 86400
        self._last = max(self._last, now)
        self.log.seconds = self._seconds_before + self._last - self._first
        return now

    def _new_run(self, now: float) -> None:
        """Start a new run: reset the fields that describe only the last run."""
        self._end_test()
        self._seconds_before = self.log.seconds
        self._first = self._last = now
        self._shown = self._snapshot = None
        self.log.done = self.log.stopped_early = False
        self.log.errors.clear()

    def _message(self, message: str, now: float) -> None:
        """Parse the message of an engine's line."""
        log = self.log
        if self._snapshot is not None:
            log.snapshots.append(self._snapshot)
            self._snapshot = None
        if match := _TESTING.match(message):
            self._end_test()
            self._interval_disturbed = True
            self._test_began = now
            if int(match[2]) == 0:  # the experiment's networks have one test net
                self._testing = int(match[1])
                log.tests[self._testing] = {}
        elif self._testing is not None and (match := _TEST_OUTPUT.match(message)):
            self._test_ended(now)
            _number_into(log.tests[self._testing], match[1], match[2])
        elif self._testing is not None and (match := _TEST_SCORE.match(message)):
            self._test_ended(now)
            name = {"0": "accuracy", "1": "loss"}.get(match[1])
            if name:
                _number_into(log.tests[self._testing], name, match[2])
        elif match := _TRAIN.match(message):
            self._end_test()
            self._displayed(int(match[1]), now)
            _number_into(log.train_losses, int(match[1]), match[2])
        elif match := _RATE.match(message):
            _number_into(log.rates, int(match[1]), match[2])
        elif message.startswith("Snapshotting"):
            self._interval_disturbed = True
            self._snapshot = int(match[1]) if (match := _STATE.match(message)) else None
        elif match := _RESUMED.match(message):
            log.resumed_from.append(int(match[1]))
        elif match := _DEVICE.match(message):
            device = next(filter(None, match.groups()))
            if device not in log.devices:
                log.devices.append(device)
        elif match := _IGNORED.match(message):
            log.ignored_layers.append(match[1])
        elif message.startswith("Optimization stopped early"):
            log.stopped_early = True
        elif message.startswith("Optimization Done"):
            log.done = True

    def _displayed(self, iteration: int, now: float) -> None:
        """Measure the interval since the last display; the speed that Caffe prints is wrong after a start."""
        if self._shown is not None and not self._interval_disturbed and iteration > self._shown[0]:
            self.log.display_seconds.append((now - self._shown[1]) / (iteration - self._shown[0]))
        self._shown = (iteration, now)
        self._interval_disturbed = False

    def _test_ended(self, now: float) -> None:
        """Record the duration of a test at its first output line."""
        if self._test_began is not None:
            self.log.test_seconds.append(now - self._test_began)
            self._test_began = None

    def _end_test(self) -> None:
        """End a test; discard it if it has no results, because the run was killed."""
        if self._testing is not None and not self.log.tests[self._testing]:
            del self.log.tests[self._testing]
        self._testing = self._test_began = None


def _number_into(numbers: dict[Any, float], key: Any, text: str) -> None:
    """Store a number under ``key``; ignore a text that is not a number."""
    try:
        numbers[key] = float(text)  # nan, -nan and inf are stored as such
    except ValueError:
        return


def _seconds(year: int, month: str, day: str, hour: str, minute: str, second: str, fraction: str) -> float:
    """Return the seconds since the start of the year."""
    try:
        days = datetime.date(year, int(month), int(day)).timetuple().tm_yday
    except ValueError:
        days = 0  # 29 February, read in another year: only the durations are wrong
    return days * 86400 + int(hour) * 3600 + int(minute) * 60 + int(second) + float(f"0.{fraction}")
