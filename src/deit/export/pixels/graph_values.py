"""Values of a graph that is being built, with which one can calculate as with numbers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from deit.export.pixels.preprocessing import Operations

WHOLE, SINGLE, DOUBLE = "int64", "float32", "float64"


class Graph(Protocol):
    """What builds the graph of a library."""

    def node(self, kind: str, *inputs: Any, **attributes: Any) -> Any:
        """Adds an operation under its name in ONNX; returns the handle of its result."""

    def constant(self, values: Any) -> Any:
        """Adds an array; returns its handle."""


@dataclass(frozen=True, eq=False)
class Value:
    """A value of a graph.

    Attributes:
        graph: The graph.
        handle: What the graph knows it by.
        kind: Its type: `WHOLE`, `SINGLE`, `DOUBLE`, or another name of numpy.
    """

    graph: Graph
    handle: Any
    kind: str

    def __add__(self, other: Any) -> Value:
        return self.joined("Add", other)

    def __sub__(self, other: Any) -> Value:
        return self.joined("Sub", other)

    def __mul__(self, other: Any) -> Value:
        return self.joined("Mul", other)

    def __truediv__(self, other: Any) -> Value:
        return self.joined("Div", other)

    def __rsub__(self, other: Any) -> Value:
        return self * -1 + other

    def joined(self, kind: str, other: Any, result: str | None = None) -> Value:
        """Returns the result of an operation on two values; a number becomes a constant of this value's type."""
        if not isinstance(other, Value):
            other = Value(self.graph, self.graph.constant(np.array(other, self.kind)), self.kind)
        assert other.kind == self.kind, f"{kind} of {self.kind} and {other.kind}"
        return Value(self.graph, self.graph.node(kind, self.handle, other.handle), result or self.kind)

    def changed(self, kind: str, *inputs: Any, result: str | None = None, **attributes: Any) -> Value:
        """Returns the result of an operation on this value; lists of numbers become constants of int64."""
        given = (
            each.handle if isinstance(each, Value) else self.graph.constant(np.array(each, np.int64)) for each in inputs
        )
        return Value(self.graph, self.graph.node(kind, self.handle, *given, **attributes), result or self.kind)

    def to(self, kind: str) -> Value:
        """Converts to another type."""
        return self if kind == self.kind else self.changed("Cast", result=kind, to=kind)


def operations_of(graph: Graph, real: str) -> Operations:
    """Returns the operations that build a graph.

    Args:
        graph: The graph.
        real: Type in which weights are computed, `SINGLE` or `DOUBLE`.
    """
    return _GraphOperations(graph, real)


class _GraphOperations:
    """See `Operations`; for every library whose graph is a `Graph`."""

    def __init__(self, graph: Graph, real: str) -> None:
        self.graph, self._real, self.is_double = graph, real, real == DOUBLE

    def _constant(self, values: Any, kind: str) -> Value:
        return Value(self.graph, self.graph.constant(np.array(values, kind)), kind)

    def lengths(self, images: Value) -> tuple[Value, Value]:
        sides = images.changed("Shape", result=WHOLE)
        return sides.changed("Gather", 1, axis=0), sides.changed("Gather", 2, axis=0)

    def whole(self, numbers: Any) -> Value:
        return self._constant(numbers, WHOLE)

    def count(self, length: Value) -> Value:
        return self._constant(0, WHOLE).changed("Range", length, 1)

    def real(self, x: Any) -> Any:
        return x.to(self._real) if isinstance(x, Value) else x

    def single(self, x: Value) -> Value:
        return x.to(SINGLE)

    def index(self, x: Value) -> Value:
        return x.to(WHOLE)

    def quotient(self, x: Any, y: Any) -> Any:
        return x / y if isinstance(x, Value) else x // y

    def larger(self, x: Any, y: Any) -> Any:
        return self._of_two("Max", max, x, y)

    def smaller(self, x: Any, y: Any) -> Any:
        return self._of_two("Min", min, x, y)

    def _of_two(self, kind: str, function: Any, x: Any, y: Any) -> Any:
        if isinstance(x, Value):
            return x.joined(kind, y)
        return y.joined(kind, x) if isinstance(y, Value) else function(x, y)

    def floor(self, x: Value) -> Value:
        return x.changed("Floor")

    def absolute(self, x: Value) -> Value:
        return x.changed("Abs")

    def sine(self, x: Value) -> Value:
        return x.changed("Sin")

    def below(self, x: Value, y: Any) -> Value:
        return x.joined("Less", y, "bool").to(x.kind)

    def total(self, x: Value) -> Value:
        return x.changed("ReduceSum", [-1], keepdims=1)

    def unsqueeze(self, x: Value, axis: int) -> Value:
        return x.changed("Unsqueeze", [axis])

    def column(self, x: Value, number: int) -> Value:
        return x.changed("Gather", number, axis=1)

    def join(self, x: Value, y: Value) -> Value:
        return x.changed("Concat", y, axis=1)

    def take(self, x: Value, places: Value) -> Value:
        return x.changed("Gather", places, axis=1)

    def product(self, x: Value, y: Value) -> Value:
        return x.joined("MatMul", y)

    def part(self, x: Value, axis: int, start: int, stop: int) -> Value:
        return x.changed("Slice", [start], [stop], [axis])

    def shape(self, x: Value, *sides: int) -> Value:
        return x.changed("Reshape", sides)

    def swap(self, x: Value, *order: int) -> Value:
        return x.changed("Transpose", perm=list(order))

    def look_up(self, table: Any, places: Value) -> Value:
        return self._constant(table, SINGLE).changed("Gather", places, axis=0)


def scored(logits: Value, function: str, temperature: float | None) -> Value:
    """Returns scores of logits (B, K).

    Args:
        logits: The logits.
        function: A name of `deit.core.scores.functions.FUNCTIONS`.
        temperature: What logits are divided by first; None leaves that out.
    """
    if temperature is not None:
        logits = logits / temperature
    if function == "none":
        return logits
    return logits.changed("Softmax", axis=1) if function == "softmax" else logits.changed("Sigmoid")
