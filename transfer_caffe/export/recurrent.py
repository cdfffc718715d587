"""Recurrent layers for other programs: ONNX nodes for each step, and PyTorch modules.

Neither ONNX's nor PyTorch's own recurrent operators know Caffe's indicators ``cont``, which say where in a batch a
sequence starts, so the steps are written out; their number is fixed. A layer without ``expose_hidden`` starts from
zeros at every run, where Caffe goes on from the end of the batch before: sequences have to start in the batch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

if TYPE_CHECKING:
    from transfer_caffe.export.operators import Place


class Recurrent(nn.Module):
    """Base class of RNN and LSTM; bottoms, tops and weights as in `engine.layers.recurrent`."""

    weight_ih: nn.Parameter
    bias_ih: nn.Parameter
    weight_static: nn.Parameter
    weight_hh: nn.Parameter

    def __init__(self, steps: int, states: int, size: int, static: bool, exposed: bool) -> None:
        """``states``: the number of hidden states; ``static``: whether an input is the same in all steps."""
        super().__init__()
        # a loop over the tensor's own steps could not be traced by torch.fx
        self.steps = steps
        self.states, self.size, self.static, self.exposed = states, size, static, exposed

    def forward(self, x: Tensor, cont: Tensor, *more: Tensor) -> Tensor | tuple[Tensor, ...]:
        inputs = F.linear(x.flatten(2), self.weight_ih, self.bias_ih)
        if self.static:
            inputs = inputs + F.linear(more[0].flatten(1), self.weight_static)
        if self.exposed:
            states = [more[self.static + index][0] for index in range(self.states)]
        else:
            states = [x.new_zeros(x.shape[1], self.size)] * self.states
        tops = []
        for step in range(self.steps):
            top, states = self.step(inputs[step], cont[step][:, None], states)
            tops.append(top)
        found = torch.stack(tops)
        return (found, *(state[None] for state in states)) if self.exposed else found

    def step(self, inputs: Tensor, cont: Tensor, states: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """Return the top of one step (sequences, size) and the new hidden states; ``cont`` is (sequences, 1)."""
        raise NotImplementedError


class RNN(Recurrent):
    """Caffe's RNN."""

    weight_ho: nn.Parameter
    bias_ho: nn.Parameter

    def step(self, inputs: Tensor, cont: Tensor, states: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
        hidden = torch.tanh(F.linear(states[0] * cont, self.weight_hh) + inputs)
        return torch.tanh(F.linear(hidden, self.weight_ho, self.bias_ho)), [hidden]


class LSTM(Recurrent):
    """Caffe's LSTM; the rows of its weights are the gates i, f, o, g."""

    def step(self, inputs: Tensor, cont: Tensor, states: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
        hidden, cell = states
        cell, hidden = _unit(cell, F.linear(hidden * cont, self.weight_hh) + inputs, cont)
        return hidden, [hidden, cell]


class LSTMUnit(nn.Module):
    """One step of an LSTM, without weights: the new cells and hidden values."""

    def forward(self, cell: Tensor, gates: Tensor, cont: Tensor) -> tuple[Tensor, Tensor]:
        return _unit(cell, gates, cont[..., None])


def _unit(cell: Tensor, gates: Tensor, cont: Tensor) -> tuple[Tensor, Tensor]:
    i, f, o, g = gates.chunk(4, -1)
    cell = torch.sigmoid(f) * cont * cell + torch.sigmoid(i) * torch.tanh(g)
    return cell, torch.sigmoid(o) * torch.tanh(cell)


def add_recurrent(place: Place) -> None:
    """Add the nodes of an RNN or LSTM, step by step; states and inputs of a step have two axes."""
    layer: Any = place.layer
    (steps, sequences), size = place.shapes[0][:2], layer.size
    x, cont, *more = place.bottoms
    weights = {name: place.weight(index) for index, name in enumerate(place.names)}
    rows = place.reshaped(x, (steps * sequences, math.prod(place.shapes[0][2:])))
    inputs = _pieces(place, place.node("Gemm", [rows, weights["weight_ih"], weights["bias_ih"]], transB=1), steps)
    if layer.static:
        same = place.reshaped(more.pop(0), (sequences, math.prod(place.shapes[2][1:])))
        same = place.node("Gemm", [same, weights["weight_static"]], transB=1)
        inputs = [place.node("Add", [each, same]) for each in inputs]
    going = _pieces(place, place.reshaped(cont, (steps * sequences, 1)), steps)
    if layer.exposed:
        states = [place.reshaped(each, (sequences, size)) for each in more]
    else:
        states = [place.constant(np.zeros((sequences, size), np.float32), "zeros")] * layer.states
    tops = []
    for values, indicator in zip(inputs, going, strict=True):
        before = place.node("Mul", [states[0], indicator])
        gates = place.node("Gemm", [before, weights["weight_hh"], values], transB=1)
        if layer.type == "LSTM":
            cell, hidden = _add_unit(place, states[1], gates, indicator)
            states = [hidden, cell]
            tops.append(hidden)
        else:
            states = [place.node("Tanh", [gates])]
            top = place.node("Gemm", [states[0], weights["weight_ho"], weights["bias_ho"]], transB=1)
            tops.append(place.node("Tanh", [top]))
    whole = place.node("Concat", tops, axis=0) if steps > 1 else tops[0]
    place.reshaped(whole, place.top_shapes[0], place.tops[0])
    for state, top, shape in zip(states, place.tops[1:], place.top_shapes[1:], strict=False):
        place.reshaped(state, shape, top)


def add_lstm_unit(place: Place) -> None:
    """Add the nodes of an LSTMUnit."""
    cell, gates, cont = place.bottoms
    going = place.reshaped(cont, (*place.shapes[2], 1))
    _add_unit(place, cell, gates, going, place.tops)


def _add_unit(
    place: Place, cell: str, gates: str, cont: str, tops: Sequence[str | None] = (None, None)
) -> tuple[str, str]:
    """Add one step of an LSTM, and return the new cells and hidden values."""
    i, f, o, g = _pieces(place, gates, 4, axis=-1)
    i, f, o = (place.node("Sigmoid", [each]) for each in (i, f, o))
    kept = place.node("Mul", [place.node("Mul", [f, cont]), cell])
    cell = place.node("Add", [kept, place.node("Mul", [i, place.node("Tanh", [g])])], tops[0])
    return cell, place.node("Mul", [o, place.node("Tanh", [cell])], tops[1])


def _pieces(place: Place, tensor: str, count: int, axis: int = 0) -> list[str]:
    """Split a tensor into equal parts."""
    if count == 1:
        return [tensor]
    outputs = [place.graph.free_name(f"{place.name}/part{index}") for index in range(count)]
    place.graph.node("Split", [tensor], outputs, place.name, axis=axis)
    return outputs
