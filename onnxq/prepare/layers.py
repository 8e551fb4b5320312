"""What passes that fold nodes have in common."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import onnx_ir as ir

from onnxq.model import new_value
from onnxq.qtypes import Array, Float64Array

__all__ = ["add_constant", "set_bias", "take_output", "tensor_names"]


def set_bias(layer: ir.Node, bias: Float64Array, taken: Collection[str]) -> None:
    """Give the layer a bias of its own, as float32."""
    graph, weight = layer.graph, layer.inputs[1]
    assert isinstance(graph, ir.Graph)
    assert weight is not None
    value = add_constant(graph, f"{weight.name}.bias", bias.astype(np.float32), taken)
    if len(layer.inputs) <= 2:
        layer.resize_inputs(3)
    layer.replace_input_with(2, value)


def tensor_names(graph: ir.Graph) -> set[str]:
    """Names that a new tensor must not have; a pass asks once and hands them on."""
    names = {value.name or "" for node in graph for value in node.outputs}
    return names | {value.name or "" for value in graph.inputs}


def add_constant(graph: ir.Graph, name: str, array: Array, taken: Collection[str]) -> ir.Value:
    """An initializer, called so unless another tensor is (`taken`, from `tensor_names`)."""
    while name in graph.initializers or name in taken:
        name += "_"
    return new_value(graph, name, ir.Tensor(array, name=name))


def take_output(graph: ir.Graph, layer: ir.Node, folded: ir.Node) -> None:
    """The layer's output takes the name and the place of that of the node folded into it."""
    ours, theirs = layer.outputs[0], folded.outputs[0]
    name = theirs.name
    theirs.replace_all_uses_with(ours, replace_graph_outputs=True)
    graph.remove(folded, safe=True)
    theirs.name = None
    ours.name = name
