"""Groups of nodes that stay float as a whole: a Q or DQ inside would keep them from being fused.

onnxruntime fuses the first and, with a Div, the third on CPUs (seen in its optimized graphs); the
others it fuses elsewhere, and all have steps with too wide a range for 8 bits. As exporters write
them, in any order of the operands of Add and Mul:

1. Gelu:      0.5 * x * (1 + erf(x / sqrt(2)))
2. Fast Gelu: 0.5 * x * (1 + tanh(k * (x + c * x^3)))
3. LayerNormalization and RMS normalization: (x - mean(x)) / sqrt(mean((x - mean(x))^2) + epsilon),
   or x / sqrt(mean(x^2) + epsilon), times a constant, plus a constant

The nodes between x and the last of them are left alone. (Softmax made of Exp and Div needs no rule:
it has no node with an int8 kernel.)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import onnx_ir as ir

from onnxq.model import constant

__all__ = ["float_regions"]


def float_regions(graph: ir.Graph) -> dict[str, str]:
    """Node name -> reason, for the nodes of such groups."""
    regions: dict[str, str] = {}
    for node in graph:
        found = KINDS.get(node.op_type) if node.domain == "" else None
        if found is not None:
            kind, match = found
            for member in match(node):
                regions[member.name or ""] = f"part of a {kind}, which stays whole in float"
    return regions


def _gelu(bend: ir.Node) -> list[ir.Node]:
    """`bend`: Erf or Tanh. After it 1 + bend, then the products: by x, and by 0.5 at some place."""
    after = _only_reader(bend, "Add")
    product = _only_reader(after, "Mul") if after is not None and _has_constant(after) else None
    if after is None or product is None:
        return []
    members = [bend, *_argument(bend), after, product]
    for value in product.inputs:
        producer = value.producer() if value is not None else None
        if producer is not None and producer.op_type == "Mul" and _has_constant(producer):
            members.append(producer)
    half = _only_reader(product, "Mul")
    if half is not None and _has_constant(half):
        members.append(half)
    return members


def _argument(bend: ir.Node) -> list[ir.Node]:
    """The nodes between x and Erf (one product), or x and Tanh (k * (x + c * x^3))."""
    first = _producer(bend, 0, "Mul", "Div")
    if first is None:
        return []
    members = [first]
    if bend.op_type == "Erf":
        return members
    total = _any_producer(first, "Add")
    cubic = _any_producer(total, "Mul") if total is not None else None
    if total is None or cubic is None:
        return members
    members += [total, cubic]
    power = _any_producer(cubic, "Pow", "Mul")
    if power is not None:
        members.append(power)
        square = _any_producer(power, "Mul") if power.op_type == "Mul" else None
        if square is not None and square.inputs[0] is square.inputs[1]:
            members.append(square)
    return members


def _norm(root: ir.Node) -> list[ir.Node]:
    """`root`: Sqrt of mean + epsilon, where the mean is of squares."""
    add = _producer(root, 0, "Add")
    mean = _any_producer(add, "ReduceMean") if add is not None and _has_constant(add) else None
    square = _producer(mean, 0, "Pow", "Mul") if mean is not None else None
    if add is None or mean is None or square is None:
        return []
    members = [square, mean, add, root]
    centred = _producer(square, 0, "Sub")
    if centred is not None:
        members += [centred, *_producers(centred, "ReduceMean")]
    end = _only_reader(root, "Div", "Mul", "Reciprocal")
    if end is not None and end.op_type == "Reciprocal":
        members.append(end)
        end = _only_reader(end, "Mul")
    if end is None:
        return []
    members.append(end)
    for op_type in ("Mul", "Add"):
        following = _only_reader(end, op_type)
        if following is not None and _has_constant(following):
            members.append(following)
            end = following
    return members


KINDS: dict[str, tuple[str, Callable[[ir.Node], Iterable[ir.Node]]]] = {
    "Erf": ("Gelu", _gelu),
    "Tanh": ("Gelu", _gelu),
    "Sqrt": ("normalization", _norm),
}


def _producer(node: ir.Node, index: int, *op_types: str) -> ir.Node | None:
    value = node.inputs[index]
    found = value.producer() if value is not None else None
    return found if found is not None and found.op_type in op_types else None


def _producers(node: ir.Node, *op_types: str) -> list[ir.Node]:
    found = (_producer(node, i, *op_types) for i in range(len(node.inputs)))
    return [producer for producer in found if producer is not None]


def _any_producer(node: ir.Node, *op_types: str) -> ir.Node | None:
    return next(iter(_producers(node, *op_types)), None)


def _only_reader(node: ir.Node, *op_types: str) -> ir.Node | None:
    uses = list(node.outputs[0].uses())
    return uses[0][0] if len(uses) == 1 and uses[0][0].op_type in op_types else None


def _has_constant(node: ir.Node) -> bool:
    return any(constant(value) is not None for value in node.inputs)
