"""BatchNormalization folded into the layer before it.

With BatchNormalization(y) = (y - mean) * gain + beta, gain = gamma / sqrt(var + epsilon):

    W' = W * gain (along the output channels),  b' = (b - mean) * gain + beta

Applies to Conv, ConvTranspose (group 1) and Gemm (beta 1) with constant weights, where nothing
else reads the layer's output or the weight. Products in float64, rounded once.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import onnx_ir as ir

from onnxq.model import constant
from onnxq.optable import gemm_output_axis
from onnxq.prepare.layers import set_bias, take_output, tensor_names
from onnxq.prepare.names import NameMap

__all__ = ["fold_batchnorm"]


def fold_batchnorm(model: ir.Model, names: NameMap) -> None:
    for graph in model.graphs():
        taken = tensor_names(graph)
        for node in list(graph):
            if node.op_type == "BatchNormalization" and node.domain == "":
                _fold(graph, node, names, taken)


def _fold(graph: ir.Graph, norm: ir.Node, names: NameMap, taken: Collection[str]) -> None:
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
    stored, *rest = (t for t in tensors if t is not None)
    gamma, beta, mean, var = (np.asarray(t.numpy(), np.float64) for t in rest)
    if stored.dtype != ir.DataType.FLOAT or stored.shape[axis] != gamma.size:
        return
    w = stored.numpy()
    epsilon = norm.attributes.get_float("epsilon", 1e-5)
    gain = gamma / np.sqrt(var + epsilon)
    along = [-1 if i == axis else 1 for i in range(w.ndim)]
    b = np.zeros(gamma.size) if old is None else np.asarray(old.numpy(), np.float64).reshape(-1)
    if b.size not in (1, gamma.size):
        return
    folded = np.empty_like(w)
    # numpy converts piece by piece: no copy of the weight in float64
    np.multiply(w, gain.reshape(along), out=folded, dtype=np.float64, casting="same_kind")
    weight.const_value = ir.tensor(folded, name=weight.name)
    set_bias(layer, (b - mean) * gain + beta, taken)
    names.absorb(layer, norm)
    names.add(layer, [value.name or ""])
    take_output(graph, layer, norm)


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
