"""Fixtures shared by the tests; docs/testing.md says which to take."""

import gc
import signal

import hypothesis
import pytest
import torch
from support.tiny import write_tiny

from transfer_caffe.engine import glog

torch.set_num_threads(1)  # the nets here are small: threads would wait for each other more than they work
# by default an example that takes 0.2 s, or slow ones in a row, fail a test: a busy machine is no failure
hypothesis.settings.register_profile(
    "any machine", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("any machine")


@pytest.fixture(autouse=True)
def _own_random_numbers_and_threads():
    """Make each test independent of the tests before it: its random numbers, and the number of PyTorch's threads."""
    torch.manual_seed(1)
    torch.set_num_threads(1)  # an engine's command that ran in this process has set it


_HANDLERS = {
    number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
}


@pytest.fixture(autouse=True)
def _own_signal_handlers():
    """Restore the signal handlers that pytest was started with: a command that runs in this process sets its own."""
    yield
    for number, handler in _HANDLERS.items():
        signal.signal(number, handler)


def pytest_unconfigure():
    gc.unfreeze()  # else libraries that look for leaks at the end report what was frozen


@pytest.fixture(scope="module", autouse=True)
def _quick_garbage_collection():
    """Exclude what the tests have imported from garbage collection, which the engine's command starts before training.

    Scanning those objects takes 0.1 s each time. The engine's command would include them again when it ends.
    """
    gc.collect()
    gc.freeze()
    with pytest.MonkeyPatch.context() as patch:
        for name in ("freeze", "unfreeze"):
            patch.setattr(gc, name, lambda: None)
        yield


@pytest.fixture
def logged():
    """Nets and solvers that a test uses as a library write the log that the engine's command writes."""
    with glog.logging():
        yield


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """A folder, made the current one, with databases, mean, net.prototxt and solver.prototxt."""
    monkeypatch.chdir(tmp_path)
    write_tiny(tmp_path)
    return tmp_path


@pytest.fixture
def forked_trainings():
    """Drivers and engines that this process starts are forked, as a sweep's are: none imports PyTorch again."""
    from support.preloaded import forked  # not for tests of the engine alone

    with forked():
        yield


@pytest.fixture
def driver_world(tmp_path, monkeypatch):
    """The small world in a current folder whose name has a space and a quote."""
    from support.driving import STARTED  # not for tests of the engine alone
    from support.small_world import make_world

    folder = tmp_path / "it's a folder"
    folder.mkdir()
    make_world(folder)
    monkeypatch.chdir(folder)
    yield folder
    while STARTED:
        process = STARTED.pop()
        process.kill()
        if process.stdout and not process.stdout.closed:
            process.communicate()
