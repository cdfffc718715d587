"""When a sweep writes its report, its messages, and reports that fail or are interrupted."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import pytest
from support.report_runs import make_runs, text_of

from transfer_caffe.experiment.read import load_recipe
from transfer_caffe.sweep import reports
from transfer_caffe.sweep.reports import FIRST_AFTER, SECONDS_BETWEEN, SHARE, Reports, first_figure
from transfer_caffe.sweep.selection import in_order, select
from transfer_caffe.utils.errors import UserError

NETWORKS = in_order(load_recipe("demo").networks())
NAMES = [network.name for network in NETWORKS]


class Child:
    """A fake report process that runs until the test ends it."""

    def __init__(self, output: IO[bytes]) -> None:
        self.output, self.returncode = output, None
        self.signals: list[int] = []

    def poll(self) -> int | None:
        return self.returncode

    def wait(self) -> int:
        self.returncode = 0 if self.returncode is None else self.returncode
        return self.returncode

    def send_signal(self, number: int) -> None:
        self.signals.append(number)

    def ends(self, code: int, words: str = "") -> None:
        self.output.write(words.encode())
        self.returncode = code


class World:
    """Reports of the demo with fake child processes; ``said`` holds the messages."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.children: list[Child] = []
        self.said: list[str] = []
        self.tables = 0
        monkeypatch.setattr(reports.processes, "start", self._start)
        self.reports = Reports(NETWORKS, Path("runs/demo"), Path("out"), self._table, self.said.append)

    def _start(self, argv: list[str], output: IO[bytes], **_: Any) -> Child:
        assert argv[2:] == ["transfer_caffe.report", "--runs", "runs/demo", "--out", "out"]
        self.children.append(Child(output))
        return self.children[-1]

    def _table(self) -> None:
        self.tables += 1

    def end(self) -> None:
        """End the children that the test has not ended."""
        for child in self.children:
            child.output.close()


@pytest.fixture
def world(monkeypatch) -> Iterator[World]:
    made = World(monkeypatch)
    yield made
    made.end()


def test_the_first_figure_has_the_bases_and_both_ends_of_the_frozen_curves_and_comes_first_in_the_order():
    first = [network.name for network in first_figure(NETWORKS)]
    assert first == NAMES[:10]
    treatments = {str(network.treatment) for network in first_figure(NETWORKS)}
    assert treatments == {"baseA", "baseB"} | {f"{x}{n}{y}" for n in (1, 7) for x in "AB" for y in "AB"}


def test_without_frozen_networks_the_ends_of_the_others_make_the_first_figure():
    chosen = select(load_recipe("demo"), ["A*B+"]).networks
    assert [str(network.treatment) for network in first_figure(chosen)] == ["baseA", "A1B+", "A7B+"]
    bases = select(load_recipe("demo"), ["baseA"]).networks
    assert [network.name for network in first_figure(bases)] == ["random0-baseA-s0"]
    assert first_figure([]) == []


def test_the_first_report_is_written_when_its_networks_are_done_and_the_next_ones_rarely(world):
    world.reports.update(NAMES[:9], [], 100.0)
    assert not world.children
    world.reports.update(NAMES[:10], [], 101.0)
    assert len(world.children) == 1 and world.tables == 1
    world.reports.update(NAMES[:12], [], 105.0)  # it is being written
    assert len(world.children) == 1 and not world.said
    world.children[0].ends(0)
    world.reports.update(NAMES[:13], [], 111.0)
    assert world.said == ["report: out/index.html (10 of 49 networks)"]
    between = SHARE * 10.0
    assert between > SECONDS_BETWEEN
    world.reports.update(NAMES[:20], [], 110.0 + between)
    assert len(world.children) == 1
    world.reports.update(NAMES[:20], [], 111.0 + between)
    assert len(world.children) == 2 and world.tables == 2


def test_nothing_is_written_when_nothing_has_changed_or_all_is_done(world):
    world.reports.update(NAMES[:10], [], 0.0)
    world.children[0].ends(0)
    world.reports.update(NAMES[:10], [], 1.0)
    world.reports.update(NAMES[:10], [], 10_000.0)
    world.reports.update(NAMES, [], 20_000.0)
    assert len(world.children) == 1


def test_the_first_report_waits_neither_for_failed_networks_nor_for_slow_ones(world, monkeypatch):
    world.reports.update(NAMES[1:10], NAMES[:1], 0.0)
    assert len(world.children) == 1
    slow = World(monkeypatch)
    slow.reports.update(NAMES[:2], [], 0.0)
    slow.reports.update(NAMES[:2], [], FIRST_AFTER - 1)
    assert not slow.children
    slow.reports.update(NAMES[:2], [], FIRST_AFTER)
    assert len(slow.children) == 1
    slow.end()


def test_a_report_that_fails_is_said_and_tried_again(world):
    world.reports.update(NAMES[:10], [], 0.0)
    world.children[0].ends(2, "python -m transfer_caffe.report: error: no room on the disk\n")
    world.reports.update(NAMES[:11], [], 1.0)
    assert world.said == ["report: not written: no room on the disk"]
    world.reports.update(NAMES[:11], [], 1.0 + SECONDS_BETWEEN)
    assert len(world.children) == 2


def test_a_damaged_record_stops_no_sweep(world, monkeypatch):
    def damaged() -> None:
        raise UserError("done.json: damaged")

    monkeypatch.setattr(world.reports, "_write_results", damaged)
    world.reports.update(NAMES[:10], [], 0.0)
    assert world.said == ["report: not written: done.json: damaged"] and not world.children
    assert not world.reports.write(10)


def test_an_interruption_ends_the_report_and_the_last_one_begins_anew(world):
    world.reports.update(NAMES[:10], [], 0.0)
    world.reports.stop()
    assert world.children[0].signals == [signal.SIGINT] and not world.said
    assert world.reports.write(49)
    assert len(world.children) == 2 and world.said == ["report: out/index.html (49 of 49 networks)"]


def test_a_report_is_written_beside_a_sweep_and_its_page_names_what_is_missing(tmp_path):
    said: list[str] = []
    made = Reports(NETWORKS, make_runs(tmp_path), tmp_path / "out", lambda: None, said.append)
    made.update(NAMES[:10], [], time.monotonic())
    deadline = time.monotonic() + 120
    while not said:
        assert time.monotonic() < deadline
        time.sleep(0.05)
        made.update(NAMES[:10], [], time.monotonic())
    assert said == [f"report: {tmp_path / 'out' / 'index.html'} (10 of 49 networks)"] and made.seconds > 0
    text = text_of((tmp_path / "out" / "index.html").read_text())
    assert "Missing: random0: A5B." in text and "reload it" in text
    assert (tmp_path / "out" / "figures" / "figure2_bottom.png").exists()
    assert not list((tmp_path / "out").rglob("*.tmp"))
