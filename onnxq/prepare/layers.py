"""What passes that fold a node into the layer before it have in common."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnxq.model import new_value
from onnxq.qtypes import Float64Array

__all__ = ["set_bias", "take_output"]


def set_bias(layer: ir.Node, bias: Float64Array) -> None:
    """Give the layer a bias of its own, as float32."""
    graph, weight = layer.graph, layer.inputs[1]
    assert isinstance(graph, ir.Graph)
    assert weight is not None
    taken = {v.name for node in graph for v in node.outputs} | {v.name for v in graph.inputs}
    name = f"{weight.name}.bias"
    while name in graph.initializers or name in taken:
        name += "_"
    value = new_value(graph, name, ir.tensor(bias.astype(np.float32), name=name))
    if len(layer.inputs) <= 2:
        layer.resize_inputs(3)
    layer.replace_input_with(2, value)


def take_output(graph: ir.Graph, layer: ir.Node, folded: ir.Node) -> None:
    """The layer's output takes the name and the place of that of the node folded into it."""
    ours, theirs = layer.outputs[0], folded.outputs[0]
    name = theirs.name
    theirs.replace_all_uses_with(ours, replace_graph_outputs=True)
    graph.remove(folded, safe=True)
    theirs.name = None
    ours.name = name
