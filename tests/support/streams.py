"""A stand-in for CUDA's streams, events and tensors, for machines without a GPU: all work is done as late as it may be.

What is enqueued runs only when the host or another stream waits for it, so that a wait that is missing shows as an old
value.
"""

import contextlib

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode


class Stream:
    """A queue of operations."""

    def __init__(self, device=None):
        self.work = []

    def enqueue(self, work):
        self.work.append(work)

    def run(self, count=None):
        """Run the first ``count`` operations, or all, and what they wait for."""
        for index in range(len(self.work) if count is None else count):
            work, self.work[index] = self.work[index], None
            if work is not None:
                work()

    def wait_event(self, event):
        stream, count = event.at
        self.enqueue(lambda: stream.run(count))


class Event:
    """A mark in a stream; of two marks with timing, the difference of `Cuda.clock` is known."""

    cuda: "Cuda"

    def __init__(self, enable_timing=False, blocking=False):
        self.timing, self.blocking = enable_timing, blocking
        self.at, self.passed = (Stream(), 0), False
        Event.cuda.events.append(self)

    def record(self, stream):
        self.at, self.time, self.passed = (stream, len(stream.work)), Event.cuda.clock, False

    def synchronize(self):
        stream, count = self.at
        stream.run(count)
        self.passed = True

    def elapsed_time(self, end):
        assert self.timing and end.timing and end.passed
        return end.time - self.time


class OnCuda(torch.Tensor):
    """A tensor that says it is on a GPU; copies from and to it are enqueued on the current stream."""

    stand_in: "Cuda"
    is_cuda = True
    device = torch.device("cuda", 0)

    def record_stream(self, s):
        OnCuda.stand_in.recorded.append((self.data_ptr(), s))

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        if func is not torch.Tensor.copy_:
            return super().__torch_function__(func, types, args, kwargs or {})
        target, source = (each.as_subclass(Tensor) for each in args[:2])
        stream = OnCuda.stand_in.current
        stream.enqueue(lambda: target.copy_(source))
        if not (kwargs or {}).get("non_blocking") and not all(isinstance(each, OnCuda) for each in args[:2]):
            stream.run()  # the host waits for a copy between its memory and the GPU's
        return args[0]


class Cuda:
    """What the stand-in has seen: events, pinned tensors, and the streams for which tensors' memory is reserved."""

    def __init__(self, monkeypatch):
        """Put the stand-in in the place of `torch.cuda`."""
        self.current = Stream()
        self.clock = 0.0
        self.events, self.pinned, self.recorded = [], [], []
        monkeypatch.setattr(Event, "cuda", self, raising=False)
        monkeypatch.setattr(OnCuda, "stand_in", self, raising=False)
        monkeypatch.setattr(torch.cuda, "Stream", Stream)
        monkeypatch.setattr(torch.cuda, "Event", Event)
        monkeypatch.setattr(torch.cuda, "stream", self._stream)
        monkeypatch.setattr(torch.cuda, "current_stream", lambda device=None: self.current)
        empty = torch.empty

        def pinned_empty(*given, pin_memory=False, **more):
            made = empty(*given, **more)
            if pin_memory:
                self.pinned.append(made)
            return made

        monkeypatch.setattr(torch, "empty", pinned_empty)

    @contextlib.contextmanager
    def _stream(self, stream):
        before, self.current = self.current, stream
        yield
        self.current = before

    def tensor(self, *given, **more):
        """Return zeros on the stand-in for a GPU."""
        return torch.zeros(*given, **more).as_subclass(OnCuda)


def plain(tensor):
    """Return the values that the memory holds now."""
    return tensor.as_subclass(Tensor)


class OnCpu(TorchFunctionMode):
    """Within this context, tensors that are created on or moved to a GPU lie in the CPU's memory."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is torch.device:
            return func(*args, **(kwargs or {}))
        given = {name: _on_cpu(value) for name, value in (kwargs or {}).items()}
        return func(*map(_on_cpu, args), **given)


def _on_cpu(value):
    named = isinstance(value, str) and value.startswith("cuda")
    return torch.device("cpu") if named or (isinstance(value, torch.device) and value.type == "cuda") else value
