"""Groups of nodes that a runtime fuses in float, and inside which a Q or DQ would prevent that.

Gelu, as exporters write it: 0.5 * x * (1 + erf(x / sqrt(2))), in any order of the products. The
nodes between x and the last product are left alone.
"""

from __future__ import annotations

import onnx_ir as ir

from onnxq.model import constant

__all__ = ["float_regions"]


def float_regions(graph: ir.Graph) -> dict[str, str]:
    """Node name -> reason, for the nodes of such groups."""
    regions: dict[str, str] = {}
    for node in graph:
        if node.op_type == "Erf" and node.domain == "":
            for member in _gelu(node):
                regions[member.name or ""] = "part of a Gelu, which the runtime fuses in float"
    return regions


def _gelu(erf: ir.Node) -> list[ir.Node]:
    members = [erf]
    source = erf.inputs[0].producer() if erf.inputs[0] is not None else None
    if source is not None and source.op_type in ("Div", "Mul"):
        members.append(source)
    # 1 + erf, then the products: by x, and by 0.5 before or after
    after = _only_reader(erf, "Add")
    if after is None:
        return []
    members.append(after)
    product = _only_reader(after, "Mul")
    if product is None:
        return []
    members.append(product)
    for value in product.inputs:
        producer = value.producer() if value is not None else None
        if producer is not None and producer.op_type == "Mul" and _has_constant(producer):
            members.append(producer)
    half = _only_reader(product, "Mul")
    if half is not None and _has_constant(half):
        members.append(half)
    return members


def _only_reader(node: ir.Node, op_type: str) -> ir.Node | None:
    uses = list(node.outputs[0].uses())
    return uses[0][0] if len(uses) == 1 and uses[0][0].op_type == op_type else None


def _has_constant(node: ir.Node) -> bool:
    return any(constant(value) is not None for value in node.inputs)
