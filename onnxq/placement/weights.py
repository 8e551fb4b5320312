"""Dynamic mode: integer weights, wherever they sit, with the reason for each that stays float.

A weight is an initializer of the graph or of a body. Its channel axis is that of the op which
reads it, followed back through a Transpose or the like where that could not be folded. One that is
read in several places is quantized once: per channel if all of its uses agree on the axis, else per
tensor, which serves any use.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as ir

from onnxq.model import constant, initializers
from onnxq.optable import rule_of
from onnxq.placement.existing import (
    already_quantized,
    check_something_is_float,
    reads_integers,
)
from onnxq.plans import Placement, Skip, Use, WeightPlacement
from onnxq.prepare import Prepared
from onnxq.prepare.constants import VIEWS
from onnxq.qtypes import INT8, INT16, Granularity, PerChannel, PerTensor, QuantSpec
from onnxq.recipe import Encoding
from onnxq.selection import Choice, Choices

__all__ = [
    "EMPTY",
    "NOT_FLOAT32",
    "OVERRIDABLE",
    "granularity_of",
    "place_weights",
    "with_correction",
]

GIVEN = "given as an output"
# Types of weights that dynamic mode stores as integers; it calculates in float32
FLOATS = frozenset(
    {ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE}
)
# Kinds whose products are summed, so that errors of one sign add up
SUMMED = frozenset({"weight", "recurrence weight"})
# Reasons, the same in both modes
EMPTY = "its weight has no elements"
NOT_FLOAT32 = "its weight is {}: static mode quantizes float32 only"
OVERRIDABLE = (
    "a constant that it reads is also a graph input, which a caller may override: take it off the "
    "inputs"
)


@dataclass(frozen=True)
class _Role:
    """How one node uses a weight: `axis` is the channel axis in the stored tensor, if any."""

    node: ir.Node
    kind: str
    axis: int | None


def place_weights(prepared: Prepared, choices: Choices, encoding: Encoding) -> Placement:
    """Every floating-point weight of the op table; the rest as skips with reasons.

    Raises ModelError for a model that is quantized already.
    """
    check_something_is_float(prepared, static=False)
    placed: list[WeightPlacement] = []
    skips: list[Skip] = []
    for value in initializers(prepared.ir):
        tensor = value.const_value
        if tensor is None or not tensor.dtype.is_floating_point() or not value.uses():
            continue
        if all(reads_integers(node) for node, _ in value.uses()):
            continue  # a scale
        roles, others = _roles(value)
        chosen = [choices.of(role.node) for role in roles]
        reason = _why_not(value, tensor, others, chosen)
        name = value.name or ""
        if reason is None:
            uses = tuple(sorted(Use(node.name or "", i) for node, i in value.uses()))
            qtype = INT8 if max(choice.bits for choice in chosen) == 8 else INT16
            symmetric = all(choice.symmetric is not False for choice in chosen)
            granularity = granularity_of({role.axis for role in roles}, chosen)
            spec = QuantSpec(qtype, granularity, symmetric)
            placed.append(WeightPlacement(name, spec, uses, encoding, roles[0].kind))
        else:
            user = (roles[0].node if roles else next(iter(value.uses()))[0]).op_type
            skips.append(Skip("tensor", name, user, reason, tensor.nbytes))
    return Placement(tuple(placed), skips=(*skips, *_integer_nodes(prepared)))


def with_correction(placement: Placement) -> Placement:
    """The same with every weight corrected whose products are summed: not tables and operands."""
    weights = [dataclasses.replace(w, corrected=w.kind in SUMMED) for w in placement.weights]
    return dataclasses.replace(placement, weights=tuple(weights))


def _integer_nodes(prepared: Prepared) -> list[Skip]:
    """The nodes that are quantized in the model as it was given."""
    reasons = already_quantized(prepared)
    nodes = ir.traversal.RecursiveGraphIterator(prepared.ir.graph)
    return [
        Skip("node", prepared.names.label(node), node.op_type, reasons[node.name or ""])
        for node in nodes
        if (node.name or "") in reasons
    ]


def _why_not(
    value: ir.Value, tensor: ir.TensorProtocol, others: list[str], chosen: list[Choice]
) -> str | None:
    if not chosen:
        return f"{others[0]}: not a weight that dynamic mode covers"
    if tensor.dtype not in FLOATS:
        return f"its weight is {tensor.dtype.name.lower()}, which dynamic mode does not cover"
    if tensor.size == 0:
        return EMPTY
    if value.is_graph_input():
        return OVERRIDABLE
    if value.is_graph_output() or GIVEN in others:
        return "it is also a graph output"
    return next((choice.left for choice in chosen if choice.left), None)


def granularity_of(axes: set[int | None], chosen: Sequence[Choice]) -> Granularity:
    """Per channel if all the uses of a weight agree on the axis and none wants one scale."""
    axis = next(iter(axes)) if len(axes) == 1 else None
    if axis is None or any(choice.granularity == "tensor" for choice in chosen):
        return PerTensor()
    return PerChannel(axis)


def _roles(value: ir.Value) -> tuple[list[_Role], list[str]]:
    """The weighted ops that read the value, and in words what else does."""
    tensor = value.const_value
    assert tensor is not None
    roles: list[_Role] = []
    others: list[str] = []
    # what is followed: a value, and for each of its axes the axis of the stored tensor or None
    pending: list[tuple[ir.Value, list[int | None]]] = [(value, list(range(tensor.shape.rank())))]
    while pending:
        current, axes = pending.pop()
        for node, index in current.uses():
            rule = rule_of(node)
            slot = next((s for s in rule.weights if s.index == index), None) if rule else None
            if slot is not None:
                axis = slot.axis(node, len(axes))
                roles.append(_Role(node, slot.kind, None if axis is None else axes[axis]))
            elif _only_moves_constants(node, index):
                pending += [(output, _through(node, axes)) for output in node.outputs]
                if any(output.is_graph_output() for output in node.outputs):
                    others.append(GIVEN)
            else:
                others.append(_word(node, index))
    return roles, others


def _word(node: ir.Node, index: int) -> str:
    rule = rule_of(node)
    if rule is not None and rule.bias == index:
        return f"bias of {node.op_type}"
    if node.op_type in ("LSTM", "GRU"):
        return f"bias or state of {node.op_type}"
    return f"operand of {node.op_type}"


def _only_moves_constants(node: ir.Node, index: int) -> bool:
    """A view of a constant, or a Concat of views of constants (gates put in another order)."""
    if node.domain != "":
        return False
    if node.op_type == "Concat":
        return all(map(_is_moved_constant, node.inputs))
    return node.op_type in VIEWS and index == 0


def _is_moved_constant(value: ir.Value | None) -> bool:
    producer = value.producer() if value is not None else None
    if producer is None:
        return constant(value) is not None
    return _only_moves_constants(producer, 0) and _is_moved_constant(producer.inputs[0])


def _through(node: ir.Node, axes: list[int | None]) -> list[int | None]:
    """For each axis of a view's output the axis it comes from, None for one that is made up."""
    if node.op_type == "Transpose":
        perm = node.attributes.get_ints("perm", list(range(len(axes)))[::-1])
        return [axes[i] for i in perm]
    if node.op_type in ("Identity", "Slice", "Split", "Concat"):
        return axes
    if node.op_type == "Unsqueeze":
        at = constant(node.inputs[1]) if len(node.inputs) > 1 else None
        new = node.attributes.get_ints("axes", []) if at is None else at.numpy().tolist()
        rank = len(axes) + len(new)
        inserted = {i % rank for i in new}
        old = iter(axes)
        return [None if i in inserted else next(old) for i in range(rank)]
    shape = node.outputs[0].shape
    return [None] * (len(shape) if shape is not None else len(axes))
