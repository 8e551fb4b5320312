"""The bias of a weighted node: a constant that is added to its output, and read nowhere else."""

from __future__ import annotations

import onnx_ir as ir

from onnxq.model import constant
from onnxq.optable import gemm_output_axis, rule_of
from onnxq.placement.nodes import bias_of
from onnxq.plans import Placement

__all__ = ["own_bias"]


def own_bias(node: ir.Node, placement: Placement) -> ir.Value | None:
    """What a correction of the node's output can be added to, a channel or one for all.

    An input of the node; or, for one without a bias, what the Add behind it adds in float (in a
    network with two open dimensions MatMul and Add stay apart).
    """
    rule = rule_of(node)
    if rule is None:
        return None
    value = bias_of(node, rule)
    if value is not None:
        return value if _is_own(value) else None
    value = _added(node)
    if value is None or value.name in {weight.tensor for weight in placement.weights}:
        return None
    return value


def _is_own(value: ir.Value) -> bool:
    return constant(value) is not None and not value.is_graph_output() and len(value.uses()) == 1


def _added(node: ir.Node) -> ir.Value | None:
    """A vector of a number for each channel, along the last axis."""
    weight = constant(node.inputs[1]) if len(node.inputs) > 1 else None
    output = node.outputs[0]
    if node.op_type not in ("MatMul", "Gemm") or weight is None or weight.shape.rank() != 2:
        return None
    if len(output.uses()) != 1 or output.is_graph_output():
        return None
    ((add, index),) = output.uses()
    if add.op_type != "Add" or add.domain or add.graph is not node.graph:
        return None
    value = add.inputs[1 - index]
    tensor = constant(value)
    if value is None or tensor is None or tensor.dtype != ir.DataType.FLOAT or not _is_own(value):
        return None
    channels = weight.shape.numpy()[gemm_output_axis(node) if node.op_type == "Gemm" else 1]
    shape = tensor.shape.numpy()
    return value if shape[-1:] == (channels,) and tensor.size == channels else None
