"""Snapshots that a thread writes beside training are the snapshots of their iteration, complete or not there at all."""

import os
import threading
from pathlib import Path

import pytest
import torch
from support.streams import Cuda, plain
from support.waiting import PATIENCE

from transfer_caffe.engine.solver import solverstate
from transfer_caffe.engine.solver.beside import Beside, HostCopy
from transfer_caffe.engine.solver.settings import read_solver
from transfer_caffe.engine.solver.solver import Signals, Solver
from transfer_caffe.formats.log import LogParser
from transfer_caffe.utils.errors import UserError

pytestmark = pytest.mark.usefixtures("logged")
NAMES = [f"snap/tiny_iter_{n}.{kind}" for n in (5, 10, 15, 20) for kind in ("caffemodel", "solverstate")]


def solver(beside=True):
    param = read_solver("solver.prototxt")
    param.snapshot, param.max_iter = 5, 20
    made = Solver(param, torch.device("cpu"))
    made._beside = Beside() if beside else None
    return made


@pytest.mark.parametrize("kind", ["BINARYPROTO", "HDF5"])
def test_the_files_are_those_that_are_written_without_a_thread(tiny, kind):
    found = []
    for beside in (False, True):
        made = solver(beside)
        made.param.snapshot_format = getattr(type(made.param), kind)
        assert made.solve()
        files = sorted(Path("snap").iterdir())
        assert len(files) == 8
        found.append({file.name: file.read_bytes() for file in files})
        for file in files:
            file.unlink()
    assert found[0] == found[1]


def test_training_goes_on_while_a_snapshot_of_an_earlier_iteration_is_written(tiny, monkeypatch):
    solver(False).solve()
    expected = {name: Path(name).read_bytes() for name in NAMES}
    for name in NAMES:
        Path(name).unlink()
    go, save = threading.Event(), solverstate.save

    def held(*given, **more):
        assert go.wait(PATIENCE)
        save(*given, **more)

    monkeypatch.setattr(solverstate, "save", held)
    made = solver()
    made.step(5)
    made.save()
    made.step(4)  # these change weights and history, but not what is written
    assert not Path(NAMES[0]).exists()
    go.set()
    made.finish_snapshots()
    assert {name: Path(name).read_bytes() for name in NAMES[:2]} == {name: expected[name] for name in NAMES[:2]}
    made.step(1)
    memory = made._copy
    made.save()
    assert made._copy is memory is not None
    made.finish_snapshots()
    assert all(Path(name).read_bytes() == expected[name] for name in NAMES[2:4])


def test_the_next_snapshot_waits_for_the_one_that_is_being_written(tiny, monkeypatch):
    order, save = [], solverstate.save

    def noted(param, iteration, *given, **more):
        order.append(("begins", iteration))
        save(param, iteration, *given, **more)
        order.append(("ends", iteration))

    take = HostCopy.take

    def taken(self, tensors):
        assert made._beside is not None and made._beside._job is None  # the job before still reads the memory
        take(self, tensors)

    def waited(self):  # the training thread does not wait for the copy
        order.append(("waits for its copy", threading.current_thread() is not threading.main_thread()))

    monkeypatch.setattr(solverstate, "save", noted)
    monkeypatch.setattr(HostCopy, "take", taken)
    monkeypatch.setattr(HostCopy, "wait", waited)
    made = solver()
    made.solve()
    assert order == [
        each for n in (5, 10, 15, 20) for each in (("waits for its copy", True), ("begins", n), ("ends", n))
    ]  # fmt: skip


def test_a_copy_from_a_gpu_has_the_values_of_the_moment_although_the_gpu_makes_it_later(monkeypatch):
    cuda = Cuda(monkeypatch)
    tensors, passed = [torch.zeros(1), cuda.tensor(3), cuda.tensor(2, 2)], []
    copy = HostCopy(tensors)
    for value in (1.0, 2.0):
        for change in (value, -value):  # training goes on after the copy
            cuda.current.enqueue(lambda change=change: [plain(tensor).fill_(change) for tensor in tensors])
            if change == value:
                cuda.current.enqueue(lambda value=value: passed.append(value))
                copy.take(tensors)
        assert value not in passed  # the host has not waited
        copy.wait()
        assert all((copy.array(tensor) == value).all() for tensor in tensors[1:])
        cuda.current.run()
    assert len(cuda.pinned) == 3 and all(event.blocking for event in cuda.events)


def test_an_error_in_training_waits_for_the_snapshot_that_is_being_written(tiny, monkeypatch):
    save = solverstate.save
    monkeypatch.setattr(solverstate, "save", lambda *given, **more: (threading.Event().wait(0.3), save(*given, **more)))
    made = solver()
    run = made._forward_backward

    def diverges():
        if made.iteration == 6:
            raise UserError("training diverged")
        return run()

    monkeypatch.setattr(made, "_forward_backward", diverges)
    with pytest.raises(UserError, match="training diverged"):
        made.solve()
    assert all(Path(name).exists() for name in NAMES[:2])


def test_a_job_starts_only_after_the_one_before_whose_error_is_raised():
    beside, done = Beside(), []

    def fails():
        raise UserError("no space left")

    beside.start(fails)
    with pytest.raises(UserError, match="no space left"):
        beside.start(lambda: done.append(1))
    beside.finish()  # the error is raised once
    assert done == []


def test_a_snapshot_that_cannot_be_written_ends_training_with_its_error(tiny, monkeypatch):
    def fails(*given, **more):
        raise UserError("snap: no space left")

    monkeypatch.setattr(solverstate, "save", fails)
    made = solver()
    with pytest.raises(UserError, match="no space left"):
        made.solve()
    assert made.iteration == 10  # the next snapshot finds out


def test_the_last_snapshot_is_complete_before_the_log_says_that_training_is_done(tiny, capfd, monkeypatch):
    write = solverstate.write_binary
    monkeypatch.setattr(solverstate, "write_binary", lambda *given: (threading.Event().wait(0.05), write(*given)))
    made = solver()
    made.solve()
    lines = [line.split("] ")[-1] for line in capfd.readouterr().err.splitlines()]
    done = lines.index("Optimization Done.")
    states = [index for index, line in enumerate(lines) if line.startswith("Snapshotting solver state")]
    assert len(states) == 4 and max(states) < done


def test_a_log_tells_of_a_snapshot_only_after_it_is_there(tiny, capfd, monkeypatch):
    """Readers of the log take the line after the state's as a sign that both files are complete."""
    there = []
    write = solverstate.write_binary
    another = f"I1231 23:59:59.000000 {os.getpid():5d} solver.cpp:1] another line\n"

    def noted(path, message):
        write(path, message)
        parser = LogParser()
        parser.feed(capfd.readouterr().err + another)
        there.append((str(path), parser.log.snapshots))

    monkeypatch.setattr(solverstate, "write_binary", noted)
    made = solver()
    made.step(5)
    made.save()
    made.finish_snapshots()
    assert there == [(NAMES[0], []), (NAMES[1], [])]
    parser = LogParser()
    parser.feed(capfd.readouterr().err + another)
    assert parser.log.snapshots == [5]


def test_a_stop_waits_for_the_snapshot(tiny):
    class Stop(Signals):
        def take(self):
            return {"stop"}

    made = solver()
    made.param.snapshot_after_train = True
    assert not made.solve(Stop("none", "none"))
    assert sorted(path.name for path in Path("snap").iterdir()) == ["tiny_iter_1.caffemodel", "tiny_iter_1.solverstate"]


def test_weights_that_are_not_finite_are_found_before_anything_is_written(tiny):
    made = solver()
    made.net.learnable[3].data.detach()[0] = float("nan")
    with pytest.raises(UserError, match=r"layer 'conv2' \(Convolution\): blob 1 is not finite after iteration 0"):
        made.save()
    made.finish_snapshots()
    assert not Path("snap").exists() or not list(Path("snap").iterdir())


def test_a_solver_used_as_a_library_has_written_its_snapshot_when_save_returns(tiny):
    made = Solver(read_solver("solver.prototxt"), torch.device("cpu"))
    made.save()
    assert Path("snap/tiny_iter_0.solverstate").exists()
