"""Worker processes that compute parts of each batch in parallel to this process, on shared weights.

    share_weights(net)              # moves the weights into memory that forked processes share
    crew = Crew(net, shares)        # the parts of each worker process
    crew.begin(read, batch)         # the workers start computing their parts ...
    ...                             # ... while this process computes its own
    results = crew.end()            # loss, outputs and gradients of the workers' parts

Python threads are not an alternative: each operation needs the global interpreter lock, and a small net has about a
hundred operations per batch, so two threads took longer than one. The processes are forked at the first batch. They end
when this process ends, for whatever reason, because each of them reads from a pipe whose other end is closed then.
"""

from __future__ import annotations

import gc
import math
import mmap
import os
import signal
import warnings
from collections.abc import Sequence
from contextlib import suppress
from typing import Protocol

import torch
from torch import Tensor

from transfer_caffe.engine.layers import Blob
from transfer_caffe.engine.net import Net
from transfer_caffe.utils.errors import UserError


class Part(Protocol):
    """An object that computes a part of a batch, with its results."""

    loss: Tensor
    outputs: dict[str, Tensor]
    gradients: dict[Blob, Tensor]

    def run(self, read: dict[int, Tensor], batch: int) -> None:
        """Run the forward and the backward pass on a batch whose data layers' tops are ``read``."""
        ...


class Result:
    """The results of a part that another process computes, in memory shared with that process."""

    def __init__(self, blobs: Sequence[Blob], outputs: dict[str, tuple[int, ...]]) -> None:
        """Allocate memory for gradients of ``blobs`` and for outputs of the given shapes."""
        self.loss = shared(())
        self.outputs = {name: shared(shape) for name, shape in outputs.items()}
        self.room = {blob: shared(tuple(blob.data.shape)) for blob in blobs}
        self.given = shared((len(blobs),))
        """1 for each blob that has a gradient, otherwise 0."""

    def take(self, part: Part) -> None:
        """Copy the results of a part into this object."""
        self.loss.copy_(part.loss)
        for name, value in part.outputs.items():
            self.outputs[name].copy_(value)
        found = part.gradients
        for index, (blob, room) in enumerate(self.room.items()):
            self.given[index] = float(blob in found)
            if blob in found:
                room.copy_(found[blob])

    @property
    def gradients(self) -> dict[Blob, Tensor]:
        """The gradients of the blobs that have one."""
        given = self.given.tolist()
        return {blob: room for has, (blob, room) in zip(given, self.room.items(), strict=True) if has}


def shared(shape: tuple[int, ...]) -> Tensor:
    """Return a float32 tensor of zeros in memory that forked processes share; 4-D tensors are channels-last."""
    count = max(1, math.prod(shape))
    flat = torch.frombuffer(mmap.mmap(-1, 4 * count), dtype=torch.float32)[: math.prod(shape)]
    if len(shape) == 4:
        num, channels, height, width = shape
        return flat.view(num, height, width, channels).permute(0, 3, 1, 2)
    return flat.view(shape)


def share_weights(net: Net) -> None:
    """Move the blobs of a net into shared memory; `Blob.data` returns the shared values from now on."""
    for layer in net.layers:
        for blob in layer.blobs:
            if blob.owner is None:
                blob.move_to(shared((blob.data.numel(),)).view(blob.data.shape))


class Crew:
    """The worker processes; each computes some of the parts."""

    def __init__(self, net: Net, shares: Sequence[Sequence[Part]]) -> None:
        """``shares`` are the parts of each worker; the weights must be in shared memory (`share_weights`)."""
        self._pipes: list[tuple[int, int, int]] = []
        """For each worker, its process id and the pipes for orders and answers."""
        self._shares = shares
        outputs = {name: tuple(net.shapes[name]) for name in net.outputs}
        self._results = [[Result(net.learnable, outputs) for _ in share] for share in shares]
        self._inputs: dict[int, Tensor] = {}

    def begin(self, read: dict[int, Tensor], batch: int) -> None:
        """Let the workers compute their parts of a batch. ``read`` holds the data layers' tops, by number."""
        if not self._pipes:
            self._inputs = {number: shared(tuple(whole.shape)) for number, whole in read.items()}
            self._pipes = [self._fork(*pair) for pair in zip(self._shares, self._results, strict=True)]
        for number, whole in read.items():
            self._inputs[number].copy_(whole)
        for _, orders, _ in self._pipes:
            with suppress(BrokenPipeError):  # `end` reports why the process ended
                os.write(orders, batch.to_bytes(8, "little"))

    def end(self) -> list[list[Result]]:
        """Wait for the workers and return their results; raise an error that occurred in one of them."""
        for pid, _, answers in self._pipes:
            if os.read(answers, 1) != b".":
                said = b""
                while more := os.read(answers, 1 << 16):
                    said += more
                if not said:
                    raise UserError(
                        f"process {pid}, which computes a part of each batch, was killed; run the command again"
                    )
                raise UserError(said.decode()) if said[:1] != b"\0" else RuntimeError(said[1:].decode())
        return self._results

    def _fork(self, share: Sequence[Part], results: Sequence[Result]) -> tuple[int, int, int]:
        """Fork a process for these parts and return its process id and the pipes for orders and answers."""
        (orders, to_orders), (from_answers, answers) = os.pipe(), os.pipe()
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore", DeprecationWarning
            )  # about forking a process that has threads: none of them holds a lock
            pid = os.fork()
        if pid:
            os.close(orders)
            os.close(answers)
            return pid, to_orders, from_answers
        try:
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                signal.signal(number, signal.SIG_IGN)  # the parent handles signals
            os.close(to_orders)
            os.close(from_answers)
            torch.set_num_threads(1)
            gc.freeze()  # otherwise the collector would write to, and thereby copy, pages shared with the parent
            self._serve(share, results, orders, answers)
        finally:
            os._exit(0)

    @torch.no_grad()
    def _serve(self, share: Sequence[Part], results: Sequence[Result], orders: int, answers: int) -> None:
        try:
            while order := os.read(orders, 8):
                for part, result in zip(share, results, strict=True):
                    part.run(self._inputs, int.from_bytes(order, "little"))
                    result.take(part)
                os.write(answers, b".")
        except UserError as error:
            os.write(answers, b"!" + str(error).encode())
        except BaseException as error:
            os.write(answers, b"!\0" + f"{type(error).__name__}: {error}".encode())

    def close(self) -> None:
        """End the workers and wait for them."""
        for _, orders, answers in self._pipes:
            os.close(orders)
            os.close(answers)
        for pid, _, _ in self._pipes:
            with suppress(ChildProcessError):
                os.waitpid(pid, 0)
        self._pipes = []

    def __del__(self) -> None:
        """Call `close`."""
        self.close()
