"""Recurrent layers: RNN, LSTM, and LSTMUnit, one step of an LSTM (caffe/layers/recurrent_layer.cpp and others).

Bottoms are the inputs (steps, sequences, ...), the indicators ``cont`` (steps, sequences), which are 0 where a sequence
starts and 1 where it continues, and optionally an input that is the same in all steps (sequences, ...). With
``expose_hidden``, the initial hidden states follow, and the final ones are further tops; each is (1, sequences,
num_output).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from transfer_caffe.engine.layers.base import Layer, Shape


class _Recurrent(Layer):
    """Base class. Without ``expose_hidden``, a batch starts from the hidden states at the end of the one before it.

    Sequences that start in a batch (``cont`` 0) do not depend on it. The hidden states are not part of a snapshot, and
    gradients end at them, as in Caffe: no gradient enters by the final states or leaves by the initial ones.
    """

    bottoms = (2, None)
    tops = (1, None)
    states: ClassVar[int]
    """Number of hidden states."""
    gates: ClassVar[int]
    """Number of values that are computed per output and step."""

    def setup(self, shapes: Sequence[Shape]) -> None:
        param = self.param.recurrent_param
        self.size, self.exposed = param.num_output, param.expose_hidden
        extra = self.states if self.exposed else 0
        if self.size < 1:
            raise self.error("recurrent_param has no num_output")
        if len(self.top) != 1 + extra or not 2 + extra <= len(shapes) <= 3 + extra:
            raise self.error(
                f"needs {2 + extra} or {3 + extra} bottoms and {1 + extra} tops, not {len(shapes)} and {len(self.top)}"
            )
        if len(shapes[0]) < 3:
            raise self.error(f"needs inputs of 3 or more axes (steps, sequences, ...), not {list(shapes[0])}")
        self.steps, self.sequences = shapes[0][:2]
        if tuple(shapes[1]) != shapes[0][:2]:
            raise self.error(f"bottom 1, the indicators, must be {list(shapes[0][:2])}, not {list(shapes[1])}")
        self.static = len(shapes) > 2 + extra
        if self.static and shapes[2][:1] != (self.sequences,):
            raise self.error(f"bottom 2 must have {self.sequences} items, one per sequence, not {list(shapes[2])}")
        wanted = (1, self.sequences, self.size)
        for index, shape in enumerate(shapes[len(shapes) - extra :] if extra else []):
            if tuple(shape) != wanted:
                raise self.error(f"hidden state {index} must be {list(wanted)}, not {list(shape)}")
        wide = self.gates * self.size
        self.add_blob((wide, math.prod(shapes[0][2:])), param.weight_filler)
        self.add_blob((wide,), param.bias_filler)
        if self.static:
            self.add_blob((wide, math.prod(shapes[2][1:])), param.weight_filler)
        self.add_blob((wide, self.size), param.weight_filler)
        self.hidden = [torch.zeros(self.sequences, self.size, device=self.context.device) for _ in range(self.states)]

    def top_shapes(self, shapes: Sequence[Shape]) -> list[Shape]:
        return [(self.steps, self.sequences, self.size)] + [(1, self.sequences, self.size)] * (len(self.top) - 1)

    def forward(self, bottoms: list[Tensor], batch: int) -> list[Tensor]:
        x, cont, *more = bottoms
        weights = [blob.data for blob in self.blobs]
        inputs = F.linear(x.flatten(2), weights[0], weights[1])
        if self.static:
            inputs = inputs + F.linear(more.pop(0).flatten(1), weights[2])
        own = weights[2 + self.static :]
        states = [each[0].detach() for each in more] if self.exposed else [each.clone() for each in self.hidden]
        tops = []
        for values, going in zip(inputs, cont.detach(), strict=True):
            top, states = self.step(values, going[:, None], states, own)
            tops.append(top)
        if not self.exposed:
            for kept, state in zip(self.hidden, states, strict=True):
                kept.copy_(state.detach())
        return [torch.stack(tops), *(state.detach()[None] for state in states if self.exposed)]

    def step(
        self, inputs: Tensor, cont: Tensor, states: list[Tensor], weights: list[Tensor]
    ) -> tuple[Tensor, list[Tensor]]:
        """Return the top of one step (sequences, num_output) and the new hidden states.

        ``inputs`` is what the bottoms contribute to the gates, ``cont`` is (sequences, 1), and ``weights`` are the
        blobs after those of the bottoms.
        """
        raise NotImplementedError


class RNN(_Recurrent):
    """h = tanh(W_hh h + W_xh x + b_h), top = tanh(W_ho h + b_o) (caffe/layers/rnn_layer.cpp).

    Blobs: W_xh, b_h, the weights of the input that is the same in all steps, W_hh, W_ho, b_o.
    """

    states, gates = 1, 1

    def setup(self, shapes: Sequence[Shape]) -> None:
        super().setup(shapes)
        self.add_blob((self.size, self.size), self.param.recurrent_param.weight_filler)
        self.add_blob((self.size,), self.param.recurrent_param.bias_filler)

    def step(
        self, inputs: Tensor, cont: Tensor, states: list[Tensor], weights: list[Tensor]
    ) -> tuple[Tensor, list[Tensor]]:
        of_hidden, of_top, bias = weights
        hidden = torch.tanh(F.linear(states[0] * cont, of_hidden) + inputs)
        return torch.tanh(F.linear(hidden, of_top, bias)), [hidden]


class LSTM(_Recurrent):
    """A long short-term memory (caffe/layers/lstm_layer.cpp); the hidden states are h, which is the top, and c.

    Blobs: W_xc, b_c, the weights of the input that is the same in all steps, W_hc; the rows are the gates i, f, o, g.
    """

    states, gates = 2, 4

    def step(
        self, inputs: Tensor, cont: Tensor, states: list[Tensor], weights: list[Tensor]
    ) -> tuple[Tensor, list[Tensor]]:
        hidden, cell = states
        cell, hidden = _unit(cell, F.linear(hidden * cont, weights[0]) + inputs, cont)
        return hidden, [hidden, cell]


def _unit(cell: Tensor, gates: Tensor, cont: Tensor) -> tuple[Tensor, Tensor]:
    """Return the new cells and hidden values (lstm_unit_layer.cpp)."""
    found = _Unit.apply(cell, gates, cont)
    assert isinstance(found, tuple)
    return found


class _Unit(torch.autograd.Function):
    """c = f c + i g, h = o tanh(c). Caffe's gradient of f is f (1 - f), with f multiplied by ``cont``."""

    @staticmethod
    def forward(ctx: Any, cell: Tensor, gates: Tensor, cont: Tensor) -> tuple[Tensor, Tensor]:
        i, f, o = (torch.sigmoid(part) for part in gates.chunk(4, -1)[:3])
        f, g = f * cont, torch.tanh(gates.chunk(4, -1)[3])
        new = f * cell + i * g
        squashed = torch.tanh(new)
        ctx.save_for_backward(cell, i, f, o, g, squashed)
        return new, o * squashed

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        of_cell, of_hidden = grad_outputs
        cell, i, f, o, g, squashed = ctx.saved_tensors
        below = of_cell + of_hidden * o * (1 - squashed * squashed)
        gates = (
            below * g * i * (1 - i),
            below * cell * f * (1 - f),
            of_hidden * squashed * o * (1 - o),
            below * i * (1 - g * g),
        )
        return below * f, torch.cat(gates, -1), None


class LSTMUnit(Layer):
    """One step of an LSTM. Bottoms: c (1, sequences, size), gates (1, sequences, 4 size), cont (1, sequences).

    Tops: c, h (caffe/layers/lstm_unit_layer.cpp).
    """

    bottoms = (3, 3)
    tops = (2, 2)

    def setup(self, shapes: Sequence[Shape]) -> None:
        cell, gates, cont = shapes
        if len(cell) != 3 or cell[0] != 1 or tuple(gates) != (1, cell[1], 4 * cell[2]) or tuple(cont) != cell[:2]:
            raise self.error(
                "needs bottoms (1, sequences, size), (1, sequences, 4 size) and (1, sequences), not "
                f"{', '.join(str(list(shape)) for shape in shapes)}"
            )

    def top_shapes(self, shapes: Sequence[Shape]) -> list[Shape]:
        return [shapes[0]] * 2

    def forward(self, bottoms: list[Tensor], batch: int) -> list[Tensor]:
        cell, gates, cont = bottoms
        return list(_unit(cell, gates, cont.detach()[..., None]))


LAYERS = (RNN, LSTM, LSTMUnit)
