"""Batches that are copied to a GPU while it computes: what each stream waits for, with a stand-in for the streams."""

import threading
from typing import Any

import numpy as np
import pytest
import torch
from support.streams import Cuda, plain
from support.waiting import PATIENCE

from transfer_caffe.engine.batches.staging import SPARE, CudaLane, Staging


class Streams:
    """A stand-in for the copy stream and the current one, which do their work as late as possible.

    A stream runs only when the other one waits for its mark, so that a mark that is missing shows as an old value.
    """

    def __init__(self):
        self.waiting = {"copy": [], "current": []}
        self.copied = []

    def enqueue(self, name, work):
        self.waiting[name].append(work)

    def run(self, name, count):
        """Run the first ``count`` operations of a stream, and what they wait for."""
        queue = self.waiting[name]
        for index in range(count):
            work, queue[index] = queue[index], None
            if work is not None:
                work()

    # a Lane
    def copy(self, buffer, targets):
        self.copied.append(targets[0].data_ptr())
        values = [array.copy() for array in buffer.arrays]  # a real buffer is not written before its copy is done

        def work():
            for target, value in zip(targets, values, strict=True):
                target.copy_(torch.from_numpy(value))

        self.enqueue("copy", work)

    def mark(self, current):
        name = "current" if current else "copy"
        return name, len(self.waiting[name])

    def wait(self, mark, current):
        self.enqueue("current" if current else "copy", lambda: self.run(*mark))


class Target(torch.Tensor):
    """A tensor whose copies are enqueued on the current stream."""

    streams: Streams

    def copy_(self, other, non_blocking=False):
        plain = self.as_subclass(torch.Tensor)
        Target.streams.enqueue("current", lambda: plain.copy_(other.as_subclass(torch.Tensor)))
        return self


@pytest.fixture
def streams():
    Target.streams = Streams()
    return Target.streams


def staging(streams, fill=None, ahead=2):
    targets = [torch.zeros(3, dtype=torch.int64).as_subclass(Target), torch.zeros(1).as_subclass(Target)]
    made = Staging(targets, fill or number, ahead, lane=streams)
    assert made._landings is not None
    # landings are plain memory: the copy stream fills them
    made._landings._places = type(made._landings._places)(
        [each.as_subclass(torch.Tensor) for each in place] for place in made._landings._places
    )
    return made, [target.as_subclass(torch.Tensor) for target in targets]


def number(arrays, batch):
    for array in arrays:
        array[:] = batch


def compute(streams, targets, seen):
    """Enqueue an operation that uses the batch."""
    streams.enqueue("current", lambda: seen.append([target.clone() for target in targets]))


def all_done(made):
    for _, _, future in made._coming:
        future.result(PATIENCE)


@pytest.mark.parametrize("order", [range(9), [0, 1, 2, 7, 8, 3, 3, 4, 0]])
def test_each_computation_sees_its_batch_however_late_the_streams_run(streams, order):
    made, targets = staging(streams)
    seen = []
    for batch in order:
        made.send(batch)
        compute(streams, targets, seen)
        all_done(made)
    streams.run("current", len(streams.waiting["current"]))
    assert [int(each[0][0]) for each in seen] == list(order)
    assert all(bool((value == batch).all()) for batch, each in zip(order, seen, strict=True) for value in each)


def test_the_next_batch_is_copied_before_the_device_computes_with_this_one(streams):
    made, _ = staging(streams)
    made.send(0)  # the threads may not have made batch 1 yet
    all_done(made)
    made.send(1)
    all_done(made)
    for batch in range(2, 6):
        made.send(batch)
        all_done(made)
        assert len(streams.copied) == batch + 2  # batches 0 to batch + 1
        assert made._landings is not None and made._landings.holds(batch + 1)
    assert len(set(streams.copied)) == 2 and streams.copied[2:] == streams.copied[:-2]  # in turns


def test_a_copy_waits_until_the_batch_before_it_has_left_its_place(streams):
    made, targets = staging(streams)
    for batch in range(4):
        made.send(batch)
        all_done(made)
    streams.run("copy", len(streams.waiting["copy"]))  # the copy stream runs as early as it may
    assert int(targets[0][0]) == 2  # batch 4's copy, the last one, needs the place that batch 2 has left


def test_an_error_is_raised_for_its_batch_and_not_before(streams):
    def fill(arrays, batch):
        if batch == 2:
            raise ValueError("record 7 is damaged")
        number(arrays, batch)

    made, _ = staging(streams, fill)
    made.send(0)
    all_but_errors(made)
    made.send(1)
    all_but_errors(made)
    with pytest.raises(ValueError, match="record 7"):
        made.send(2)


def all_but_errors(made):
    for _, _, future in made._coming:
        future.exception(PATIENCE)


def test_a_batch_that_is_not_made_yet_does_not_delay_the_one_before(streams):
    go = threading.Event()

    def fill(arrays, batch):
        if batch == 1:
            assert go.wait(PATIENCE)
        number(arrays, batch)

    made, targets = staging(streams, fill)
    made.send(0)  # returns although batch 1 is held
    assert len(streams.copied) == 1
    go.set()
    seen = []
    made.send(1)
    compute(streams, targets, seen)
    streams.run("current", len(streams.waiting["current"]))
    assert int(seen[0][0][0]) == 1


def test_prefetching_keeps_the_number_of_batches_that_was_asked_for(streams):
    asked = []

    def fill(arrays, batch):
        asked.append(batch)
        number(arrays, batch)

    made, _ = staging(streams, fill, ahead=3)
    for batch in range(5):
        made.send(batch)
        all_done(made)
        # the next one may have landed already
        assert sorted(set(asked)) == list(range(max(asked) + 1)) and batch + 3 <= max(asked) <= batch + 4
    assert len(asked) == len(set(asked))
    assert np.array_equal(sorted(asked), np.arange(len(asked)))


ORDERS = [range(12), [0, 1, 2, 7, 8, 3, 3, 4, 0]]


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("ahead", [0, 2])
def test_a_gpus_streams_and_events_are_used_so_that_each_computation_sees_its_batch(order, ahead, monkeypatch):
    cuda = Cuda(monkeypatch)
    targets = [cuda.tensor(3, dtype=torch.int64), cuda.tensor(1)]
    made, seen = Staging(targets, number, ahead), []
    assert (made._landings is not None) == bool(ahead)
    for batch in order:
        made.send(batch)
        cuda.current.enqueue(lambda: seen.append([plain(target).clone() for target in targets]))
        all_done(made)
    assert len(seen) < len(order)  # the host is ahead
    cuda.current.run()
    assert [int(each[0][0]) for each in seen] == list(order)
    assert all(bool((value == batch).all()) for batch, each in zip(order, seen, strict=True) for value in each)
    assert len(cuda.pinned) == len(targets) * (ahead + SPARE)
    assert sum(event.blocking for event in cuda.events) == ahead + SPARE  # a thread that waits for a copy sleeps


def test_a_gpu_copies_the_next_batch_on_a_stream_of_its_own(monkeypatch):
    cuda = Cuda(monkeypatch)
    targets, seen = [cuda.tensor(3)], []
    cuda.current.enqueue(lambda: seen.append("earlier work, which may use the memory of the landings"))
    made = Staging(targets, number, 2)
    for batch in range(3):
        made.send(batch)
        all_done(made)
        if batch == 0:
            assert not seen and made._landings is not None and isinstance(made._landings._lane, CudaLane)
            stream: Any = made._landings._lane._stream
            stream.run()
            assert seen.pop().startswith("earlier work")
        cuda.current.enqueue(lambda: seen.append(int(plain(targets[0])[0])))
    landings = made._landings
    assert landings is not None and isinstance(landings._lane, CudaLane) and landings.holds(3)
    copies: Any = landings._lane._stream
    assert copies is not cuda.current
    copies.run()
    assert plain(landings._places[0][0]).tolist() == [3, 3, 3] and seen == [0]  # while batches 1 and 2 are computed
    memory = {place[0].data_ptr() for place in landings._places}
    assert {each for each, stream in cuda.recorded if stream is copies} == memory  # not given to others before that
