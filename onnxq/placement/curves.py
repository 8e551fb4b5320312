"""What a tensor is read through: a function of each of its numbers alone.

    Conv -> LeakyRelu           Conv -> Sigmoid, Mul (Swish)         Conv -> Add, Clip, Mul, Div

A range for the output of the Conv need not hold what the function makes next to nothing of: below
-3, HardSwish is 0. A range that is searched for by its error is searched for by the error behind
the function.
"""

from __future__ import annotations

import onnx_ir as ir

from onnxq.model import constant
from onnxq.numerics.curve import FUNCTIONS, Curve, Step

__all__ = ["curve_behind"]

BOUNDS = ("min", "max")


def curve_behind(value: ir.Value) -> Curve | None:
    """The function through which all that reads the value reads it; None if there is none.

    The longest one: an op follows as long as nothing else reads what comes before it.
    """
    places = {value: 0}
    steps: list[Step] = []
    found = None
    waiting = [node for node, _ in value.uses()]
    while waiting:
        ready = [(node, step) for node in waiting if (step := _step(node, places)) is not None]
        if not ready:
            break
        node, step = ready[0]
        steps.append(step)
        end = node.outputs[0]
        places[end] = len(steps)
        if all(_ends_in(inner, places) for inner in places if inner is not end):
            found = Curve(tuple(steps))
        waiting = [n for inner in places for n, _ in inner.uses() if n.outputs[0] not in places]
    return found


def _ends_in(value: ir.Value, places: dict[ir.Value, int]) -> bool:
    """Whether nothing reads the value but what is in the function."""
    return not value.is_graph_output() and all(
        node.outputs[0] in places for node, _ in value.uses()
    )


def _step(node: ir.Node, places: dict[ir.Value, int]) -> Step | None:
    """The node as a step, if all that it reads is numbers and earlier values."""
    if node.domain or node.op_type not in FUNCTIONS or len(node.outputs) != 1:
        return None
    if node.attributes.get_string("approximate", "none") != "none":
        return None
    if node.op_type == "Clip":
        return _clip(node, places)
    sources, number, first = [], None, False
    for index, given in enumerate(node.inputs):
        if given is None:
            return None
        if given in places:
            sources.append(places[given])
            continue
        known = _number(given)
        if known is None or number is not None:
            return None
        number, first = known, index == 0
    if not sources:
        return None
    if node.op_type == "Div" and (first or not number):
        return None  # by a number only: 1 / x has no value at 0
    return Step(node.op_type, tuple(sources), number, first, _options(node))


def _clip(node: ir.Node, places: dict[ir.Value, int]) -> Step | None:
    source = node.inputs[0]
    bounds = []
    for name, value in zip(BOUNDS, node.inputs[1:], strict=False):
        if value is not None:
            number = _number(value)
            if number is None:
                return None
            bounds.append((name, number))
    if source is None or source not in places:
        return None
    return Step("Clip", (places[source],), options=(*_options(node), *bounds))


def _number(value: ir.Value) -> float | None:
    """A constant of one element."""
    tensor = constant(value)
    if tensor is None or tensor.size != 1 or not tensor.dtype.is_floating_point():
        return None
    return float(tensor.numpy().reshape(-1)[0])


def _options(node: ir.Node) -> tuple[tuple[str, float], ...]:
    numbers = [a for a in node.attributes.values() if a.type == ir.AttributeType.FLOAT]
    return tuple(sorted((a.name, a.as_float()) for a in numbers))
