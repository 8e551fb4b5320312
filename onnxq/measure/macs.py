"""How much of a network's arithmetic runs on integers: its multiply-accumulates (MACs).

Counted are the ops whose time grows with the product of three or more dimensions:

Conv            elements of the output x input channels of a group x kernel
ConvTranspose   elements of the input x output channels of a group x kernel
Gemm, MatMul    elements of the output x the dimension that is summed over
LSTM, GRU, RNN  steps x batch x (elements of the weight and of the recurrence weight)

From the shapes that ONNX's inference finds for a batch of one. Another dimension without a number
counts as 1: where it is a height or a width, that is an estimate of the share. A node whose shapes
are not known at all is counted in `unknown`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir

from onnxq.prepare import infer_shapes

__all__ = ["IntegerShare", "Sizes", "integer_share", "is_counted", "macs_of"]


@dataclass(frozen=True)
class IntegerShare:
    """MACs of one run, and those in nodes that run on integers.

    unknown: nodes whose shapes are not known, which are in neither sum.
    open: names of the dimensions that were counted as 1.
    """

    total: int
    integer: int
    unknown: int = 0
    open: tuple[str, ...] = ()

    @property
    def share(self) -> float | None:
        """None where there is nothing to count."""
        return self.integer / self.total if self.total else None

    @property
    def note(self) -> str | None:
        """What the figures leave out, in words; None if nothing."""
        parts = []
        if self.unknown:
            nodes = "node is" if self.unknown == 1 else "nodes are"
            parts.append(f"{self.unknown} {nodes} of unknown shape and not counted")
        if self.open:
            parts.append(f"dimensions without a size count as 1: {', '.join(self.open)}")
        return "; ".join(parts) or None

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "total": self.total,
            "integer": self.integer,
            "share": self.share,
            "unknown_nodes": self.unknown,
            "open_dimensions": list(self.open),
        }


class Sizes:
    """The shapes of a model's tensors for a batch of one, by name."""

    def __init__(self, model: ir.Model) -> None:
        self._dims: dict[str | None, list[int | str]] = {
            value.name: [d if isinstance(d, int) else d.value or "?" for d in value.shape]
            for graph in _of_one(model).graphs()
            for value in _values(graph)
            if value.shape is not None
        }

    @classmethod
    def given(cls, shapes: Mapping[str, Sequence[int]]) -> Sizes:
        """Of shapes that are known otherwise."""
        found = cls.__new__(cls)
        found._dims = {name: list(shape) for name, shape in shapes.items()}
        return found

    def dims(self, value: ir.Value | None) -> list[int] | None:
        """None if the rank is not known; dimensions without a number are 1."""
        found = self._dims.get(value.name) if value is not None else None
        return None if found is None else [d if isinstance(d, int) else 1 for d in found]

    def elements(self, value: ir.Value | None) -> int | None:
        """How many elements a tensor has; None if its rank is not known."""
        dims = self.dims(value)
        return None if dims is None else math.prod(dims)

    def open(self, value: ir.Value | None) -> set[str]:
        """Names of the dimensions that count as 1."""
        found = self._dims.get(value.name) if value is not None else None
        return {d for d in found or () if isinstance(d, str)}


def integer_share(
    model: ir.Model, quantized: Collection[str], sizes: Sizes | None = None
) -> IntegerShare:
    """The sums over all graphs of a model. quantized: names of the nodes that run on integers.

    A body of an If or a Loop counts once, and both branches of an If do.
    """
    sizes = sizes or Sizes(model)
    total = integer = unknown = 0
    names: set[str] = set()
    for node in ir.traversal.RecursiveGraphIterator(model.graph):
        if not is_counted(node):
            continue
        found = macs_of(node, sizes)
        if found is None:
            unknown += 1
            continue
        total += found
        integer += found if node.name in quantized else 0
        names |= sizes.open(node.inputs[0]) | sizes.open(node.outputs[0])
    return IntegerShare(total, integer, unknown, tuple(sorted(names)))


def is_counted(node: ir.Node) -> bool:
    """Whether it has MACs."""
    return node.domain == "" and node.op_type in COUNTS


def macs_of(node: ir.Node, sizes: Sizes) -> int | None:
    """The MACs of a counted node; None if its shapes are not known."""
    return COUNTS[node.op_type](node, sizes)


def _of_one(model: ir.Model) -> ir.Model:
    """The model, or a clone with a batch of one and its shapes, if its batch has no number."""
    inputs = [v for v in model.graph.inputs if not v.is_initializer()]
    if not any(v.shape and isinstance(v.shape[0], ir.SymbolicDim) for v in inputs):
        return model
    clone = model.clone()
    for node in ir.traversal.RecursiveGraphIterator(clone.graph):
        for value in node.outputs:
            value.shape = None
    for value in clone.graph.inputs:
        if value.shape and isinstance(value.shape[0], ir.SymbolicDim):
            value.shape = ir.Shape([1, *list(value.shape)[1:]])
    infer_shapes(clone)
    return clone


def _values(graph: ir.Graph) -> Iterator[ir.Value]:
    yield from (*graph.inputs, *graph.initializers.values())
    for node in graph:
        yield from node.outputs


def _conv(node: ir.Node, sizes: Sizes) -> int | None:
    weight, out = sizes.dims(node.inputs[1]), sizes.elements(node.outputs[0])
    return None if weight is None or out is None else out * math.prod(weight[1:])


def _conv_transpose(node: ir.Node, sizes: Sizes) -> int | None:
    weight, taken = sizes.dims(node.inputs[1]), sizes.elements(node.inputs[0])
    return None if weight is None or taken is None else taken * math.prod(weight[1:])


def _gemm(node: ir.Node, sizes: Sizes) -> int | None:
    a, out = sizes.dims(node.inputs[0]), sizes.elements(node.outputs[0])
    if not a or out is None:
        return None
    return out * a[0 if node.attributes.get_int("transA", 0) else -1]


def _matmul(node: ir.Node, sizes: Sizes) -> int | None:
    a, out = sizes.dims(node.inputs[0]), sizes.elements(node.outputs[0])
    return None if not a or out is None else out * a[-1]


def _recurrent(node: ir.Node, sizes: Sizes) -> int | None:
    x = sizes.dims(node.inputs[0])
    weights = [sizes.elements(value) for value in node.inputs[1:3]]
    if x is None or len(x) < 2 or any(weight is None for weight in weights):
        return None
    return x[0] * x[1] * sum(weight or 0 for weight in weights)


COUNTS: Mapping[str, Callable[[ir.Node, Sizes], int | None]] = {
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "Gemm": _gemm,
    "MatMul": _matmul,
    "LSTM": _recurrent,
    "GRU": _recurrent,
    "RNN": _recurrent,
}
