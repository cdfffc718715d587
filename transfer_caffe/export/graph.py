"""Builds an ONNX graph: nodes, constants and weights, with unique names.

    graph = Graph()
    graph.node("Relu", ["conv1@conv1"], ["conv1"], "relu1")

Operators are those of opset 13 (2020), which every runtime in use has.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx  # pyright: ignore[reportMissingImports]
from onnx import helper  # pyright: ignore[reportMissingImports]

OPSET = 13
IR_VERSION = 7
"""The version of ONNX's file format that came with opset 13."""


class Graph:
    """The nodes and constants of a graph that is being built."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, np.ndarray] = {}
        """Constants and weights by tensor name; weights share the memory of the engine's net."""
        self.weights: set[str] = set()
        """The names of the constants that are weights of the net."""
        self._tensors: set[str] = set()
        self._nodes: set[str] = set()

    def node(
        self, operator: str, inputs: Sequence[str], outputs: Sequence[str] | str, name: str, **attributes: Any
    ) -> str:
        """Add a node and return its first output; ``outputs`` may be a wish for the name of a new tensor."""
        outputs = [self.free_name(outputs)] if isinstance(outputs, str) else list(outputs)
        self.nodes.append(
            helper.make_node(operator, list(inputs), outputs, name=_unique(name, self._nodes), **attributes)
        )
        return outputs[0]

    def constant(self, array: np.ndarray | Sequence[int] | float, wish: str) -> str:
        """Add a constant and return its name; integers become int64, other numbers float32."""
        values = np.asarray(array)
        values = values.astype(np.int64 if values.dtype.kind == "i" or not values.size else np.float32)
        name = self.free_name(wish)
        self.constants[name] = values
        return name

    def weight(self, array: np.ndarray, name: str) -> str:
        """Add the weights of a layer under a name, unless they are there already; return the name."""
        if name not in self.constants:
            self._tensors.add(name)
            self.constants[name] = array
            self.weights.add(name)
        return name

    def free_name(self, wish: str) -> str:
        """Reserve and return the name for a tensor: ``wish``, with a number if it is taken."""
        return _unique(wish, self._tensors)

    def reserve(self, name: str) -> str:
        """Reserve a tensor name, which must be free."""
        if name in self._tensors:
            raise ValueError(f"the name {name!r} is taken")
        return self.free_name(name)

    def same_as(self, other: Graph) -> bool:
        """Return whether both graphs have the same nodes and constants; shapes of tensors are not compared."""
        return (
            self.nodes == other.nodes
            and self.constants.keys() == other.constants.keys()
            and all(_same(array, other.constants[name]) for name, array in self.constants.items())
        )

    def add_constants(self, proto: onnx.GraphProto) -> None:
        """Add the constants to a graph's message, one by one: weights are large, and copied once only."""
        for name, array in self.constants.items():
            tensor = proto.initializer.add()
            tensor.name, tensor.data_type = name, helper.np_dtype_to_tensor_dtype(array.dtype)
            tensor.dims.extend(array.shape)
            tensor.raw_data = array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes()

    @property
    def size(self) -> int:
        """The size of all constants in bytes."""
        return sum(array.nbytes for array in self.constants.values())


def _same(one: np.ndarray, two: np.ndarray) -> bool:
    if one.shape != two.shape or one.dtype != two.dtype:
        return False
    shared = one.__array_interface__["data"] == two.__array_interface__["data"]
    return shared or np.array_equal(one, two, equal_nan=True)


def _unique(wish: str, taken: set[str]) -> str:
    name, number = wish, 1
    while name in taken:
        number += 1
        name = f"{wish}#{number}"
    taken.add(name)
    return name
