"""BatchNormalization folded into the layer before it.

With BatchNormalization(y) = (y - mean) * gain + beta, gain = gamma / sqrt(var + epsilon):

    W' = W * gain (along the output channels),  b' = (b - mean) * gain + beta

Applies to Conv, ConvTranspose (group 1) and Gemm (beta 1) with constant weights, where nothing
else reads the layer's output or the weight. Products in float64, rounded once.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnxq.model import constant, new_value
from onnxq.optable import gemm_output_axis
from onnxq.prepare.names import NameMap
from onnxq.qtypes import Float64Array

__all__ = ["fold_batchnorm"]


def fold_batchnorm(model: ir.Model, names: NameMap) -> None:
    for graph in model.graphs():
        for node in list(graph):
            if node.op_type == "BatchNormalization" and node.domain == "":
                _fold(graph, node, names)


def _fold(graph: ir.Graph, norm: ir.Node, names: NameMap) -> None:
    value = norm.inputs[0]
    layer = value.producer() if value is not None else None
    axis = _output_axis(layer) if layer is not None else None
    if value is None or layer is None or axis is None:
        return
    if len(value.uses()) != 1 or value.is_graph_output() or layer.graph is not graph:
        return
    if len(norm.outputs) > 1 and any(o.uses() or o.is_graph_output() for o in norm.outputs[1:]):
        return  # in training mode
    weight = layer.inputs[1]
    bias = layer.inputs[2] if len(layer.inputs) > 2 else None
    tensors = [constant(v) for v in (weight, *norm.inputs[1:5])]
    if weight is None or len(weight.uses()) != 1 or any(t is None for t in tensors):
        return
    if bias is not None and constant(bias) is None:
        return
    old = constant(bias)
    w, gamma, beta, mean, var = (
        np.asarray(t.numpy(), np.float64) for t in tensors if t is not None
    )
    if tensors[0] is None or tensors[0].dtype != ir.DataType.FLOAT or w.shape[axis] != gamma.size:
        return
    epsilon = norm.attributes.get_float("epsilon", 1e-5)
    gain = gamma / np.sqrt(var + epsilon)
    along = [-1 if i == axis else 1 for i in range(w.ndim)]
    b = np.zeros(gamma.size) if old is None else np.asarray(old.numpy(), np.float64).reshape(-1)
    if b.size not in (1, gamma.size):
        return
    _set_weights(layer, w * gain.reshape(along), (b - mean) * gain + beta, names.label(layer))
    names.absorb(layer, norm)
    names.add(layer, [value.name or ""])
    _take_output(graph, layer, norm)


def _output_axis(layer: ir.Node) -> int | None:
    if layer.domain != "":
        return None
    if layer.op_type == "Conv":
        return 0
    if layer.op_type == "ConvTranspose" and layer.attributes.get_int("group", 1) == 1:
        return 1
    if layer.op_type == "Gemm" and layer.attributes.get_float("beta", 1.0) == 1.0:
        return gemm_output_axis(layer)
    return None


def _set_weights(layer: ir.Node, w: Float64Array, b: Float64Array, label: str) -> None:
    graph, weight = layer.graph, layer.inputs[1]
    assert isinstance(graph, ir.Graph)
    assert weight is not None
    weight.const_value = ir.tensor(w.astype(np.float32), name=weight.name)
    name = f"{weight.name}.bias"
    while name in graph.initializers:
        name += "_"
    bias = new_value(graph, name, ir.tensor(b.astype(np.float32), name=name))
    if len(layer.inputs) > 2:
        layer.replace_input_with(2, bias)
    else:
        layer.resize_inputs(3)
        layer.replace_input_with(2, bias)


def _take_output(graph: ir.Graph, layer: ir.Node, norm: ir.Node) -> None:
    """The layer's output takes the name and the place of the normalization's."""
    ours, theirs = layer.outputs[0], norm.outputs[0]
    name = theirs.name
    theirs.replace_all_uses_with(ours, replace_graph_outputs=True)
    graph.remove(norm, safe=True)
    theirs.name = None
    ours.name = name
