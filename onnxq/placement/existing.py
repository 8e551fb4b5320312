"""What of a model is quantized already, by onnxq or by another tool: it is left alone.

1. A node whose weight comes from integers through DequantizeLinear, or through Cast and Mul.
2. A node that calculates on integers: QLinearConv, MatMulInteger, MatMulNBits, ...
3. A node that is neither a weighted one nor moves values only, between existing Q and DQ: a
   runtime runs it on integers as it is.

A weighted node with a float weight is what there is left to quantize, wherever it stands.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import onnx_ir as ir

from onnxq.errors import ModelError
from onnxq.model import constant
from onnxq.optable import Role, rule_of
from onnxq.prepare import Prepared
from onnxq.prepare.constants import VIEWS, is_stored_integer

__all__ = [
    "already_quantized",
    "check_something_is_float",
    "is_quantize",
    "reads_integers",
    "signs",
]

QDQ = frozenset({"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"})
INTEGER_OPS = frozenset(
    {"MatMulInteger", "ConvInteger", "MatMulNBits", "MatMulBnb4", "GatherBlockQuantized", "QGemm"}
    | {"DynamicQuantizeMatMul", "MatMulIntegerToFloat", "DynamicQuantizeLSTM", "QAttention"}
    | {"QEmbedLayerNormalization", "QOrderedMatMul", "QMoE", "MatMulInteger16", "MatMulFpQ4"}
)
DOMAINS = ("", "com.microsoft")


def already_quantized(prepared: Prepared) -> dict[str, str]:
    """Node name -> reason, for the nodes that are quantized in the model as it was given."""
    reasons: dict[str, str] = {}
    for node in ir.traversal.RecursiveGraphIterator(prepared.ir.graph):
        reason = _reason(node)
        if reason is not None:
            reasons[node.name or ""] = f"already quantized: {reason}"
    return reasons


def check_something_is_float(prepared: Prepared, *, static: bool) -> None:
    """Raises ModelError for a model that is quantized as far as the mode could quantize it."""
    nodes = list(ir.traversal.RecursiveGraphIterator(prepared.ir.graph))
    found = signs(nodes)
    if not found or any(_has_float_weight(node, static=static) for node in nodes):
        return
    listed = ", ".join(f"{count} {kind}" for kind, count in found.items())
    raise ModelError(
        f"{prepared.label}: it is quantized already ({listed}) and has no float weight left "
        "to quantize; quantize the float model it was made from"
    )


def signs(nodes: Iterable[ir.Node]) -> dict[str, int]:
    """How often each sign that a model is quantized occurs; empty for a float model."""
    found = Counter(kind for node in nodes if (kind := _kind(node)))
    return dict(sorted(found.items()))


def _reason(node: ir.Node) -> str | None:
    if is_quantize(node):
        return None  # not a node that anybody expects to be quantized
    if _is_integer_op(node):
        return "it calculates on integers"
    rule = rule_of(node)
    if rule is None:
        return None
    for slot in rule.weights:
        if slot.index < len(node.inputs) and _from_integers(node.inputs[slot.index]):
            return f"its {slot.kind} is stored as integers"
    if rule.role is Role.CORE:
        return None
    inputs = [node.inputs[i] for i in rule.activation_inputs(node)]
    for producer in (v.producer() for v in inputs if v is not None):
        if producer is not None and is_quantize(producer):
            return f"it reads a {producer.op_type}"
    if any(is_quantize(reader) for o in node.outputs for reader, _ in o.uses()):
        return "a QuantizeLinear reads it"
    return None


def _kind(node: ir.Node) -> str | None:
    """The word for a sign that a model is quantized."""
    if is_quantize(node) or _is_integer_op(node):
        return node.op_type
    if is_stored_integer(node):
        return "Cast of an integer weight"
    return None


def is_quantize(node: ir.Node | None) -> bool:
    """QuantizeLinear, DequantizeLinear or DynamicQuantizeLinear."""
    return node is not None and node.op_type in QDQ and node.domain in DOMAINS


def reads_integers(node: ir.Node) -> bool:
    """Whether the floats among its constant inputs are scales."""
    return is_quantize(node) or _is_integer_op(node)


def _is_integer_op(node: ir.Node) -> bool:
    return node.domain in DOMAINS and (
        node.op_type in INTEGER_OPS or node.op_type.startswith("QLinear")
    )


def _from_integers(value: ir.Value | None) -> bool:
    """Whether a weight comes from integers (through views of it, and the Mul of Cast and Mul)."""
    while value is not None and (node := value.producer()) is not None:
        if is_quantize(node) or is_stored_integer(node):
            return True
        scaled = node.op_type == "Mul" and constant(node.inputs[1]) is not None
        if node.domain != "" or not (node.op_type in VIEWS or scaled):
            return False
        value = node.inputs[0]
    return False


def _has_float_weight(node: ir.Node, *, static: bool) -> bool:
    rule = rule_of(node)
    if rule is None or (static and rule.role is not Role.CORE):
        return False
    tensors = [constant(node.inputs[s.index]) for s in rule.weights if s.index < len(node.inputs)]
    return any(t is not None and t.dtype.is_floating_point() and t.size for t in tensors)
