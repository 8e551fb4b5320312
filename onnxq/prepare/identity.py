"""Nodes that change nothing dropped: y = Identity(x), Dropout(x) not in training, x + 0, x * 1.

1. y is not a graph's output: whoever reads y reads x.
2. y is a graph's output, and x comes from a node of the same graph and is no output itself: the
   node of x gives y instead, under y's name.
3. Otherwise (an input or an outer value handed through) the node stays.

onnx-ir's own pass does the same, but fails where case 3 is in the body of an If.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnxq.model import constant

__all__ = ["drop_identity"]

# The number that does nothing as the second operand
NEUTRAL = {"Add": 0, "Sub": 0, "Mul": 1, "Div": 1}


def drop_identity(model: ir.Model) -> None:
    for graph in model.graphs():
        for node in list(graph):
            if node.domain == "" and _changes_nothing(node):
                _drop(graph, node)


def _changes_nothing(node: ir.Node) -> bool:
    return node.op_type == "Identity" or _is_inactive_dropout(node) or _is_neutral(node)


def _is_neutral(node: ir.Node) -> bool:
    """x + 0, x - 0, x * 1 or x / 1, with a single number that broadcasts to x's shape."""
    if node.op_type not in NEUTRAL or len(node.inputs) != 2:
        return False
    x, number = node.inputs[0], constant(node.inputs[1])
    if x is None or number is None or number.size != 1 or number.dtype == ir.DataType.STRING:
        return False
    rank = x.shape.rank() if x.shape is not None else 0
    if number.shape.rank() > rank or constant(x) is not None:
        return False
    return bool(np.all(number.numpy() == NEUTRAL[node.op_type]))


def _drop(graph: ir.Graph, node: ir.Node) -> None:
    x, y = node.inputs[0], node.outputs[0]
    if x is None:
        return
    if y.is_graph_output():
        producer = x.producer()
        if producer is None or producer.graph is not graph or x.is_graph_output():
            return
        name = y.name
        y.replace_all_uses_with(x, replace_graph_outputs=True)
        graph.remove(node, safe=True)
        y.name = None
        x.name, x.shape, x.type = name, x.shape or y.shape, x.type or y.type
    else:
        y.replace_all_uses_with(x)
        graph.remove(node, safe=True)


def _is_inactive_dropout(node: ir.Node) -> bool:
    if node.op_type != "Dropout":
        return False
    if len(node.outputs) > 1 and (node.outputs[1].uses() or node.outputs[1].is_graph_output()):
        return False  # the mask is read
    if len(node.inputs) > 2 and node.inputs[2] is not None:
        training = constant(node.inputs[2])
        return training is not None and not bool(training.numpy())
    return True
