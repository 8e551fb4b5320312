"""Multiply-accumulate operations (MACs) of each node, from the shapes that one sample gives.

Conv, ConvTranspose, Gemm and MatMul of the main graph are counted, whatever they multiply:

    Conv           elements of the output * elements of one filter
    ConvTranspose  elements of the input  * elements of one filter
    Gemm, MatMul   elements of the output * length of the inner dimension
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import onnx_ir as ir

from onnxq.model import constant
from onnxq.prepare import Prepared
from onnxq.runtime import Feed, run, session

__all__ = ["macs_of"]

COUNTED = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})


def macs_of(prepared: Prepared, feed: Feed) -> dict[str, int]:
    """Name of the node -> MACs for this feed."""
    model = prepared.ir.clone()
    nodes = [n for n in model.graph if n.op_type in COUNTED and n.domain == ""]
    values = {v for n in nodes for v in (*n.inputs[:2], n.outputs[0]) if v is not None}
    known = {
        v.name or "": tuple(tensor.shape.numpy())
        for v in values
        if (tensor := constant(v)) is not None
    }
    asked = sorted((v for v in values if v.name not in known), key=lambda v: v.name or "")
    for old in list(model.graph.outputs):
        model.graph.outputs.remove(old)
    for value in asked:
        node = ir.node("Shape", [value], name=f"{value.name}/onnxq_shape")
        node.outputs[0].name = f"{value.name}/onnxq_shape"
        node.outputs[0].type = ir.TensorType(ir.DataType.INT64)
        model.graph.append(node)
        model.graph.outputs.append(node.outputs[0])
    if asked:
        with session(model) as active:
            found = run(active, feed)
        known |= {
            v.name or "": tuple(int(d) for d in shape)
            for v, shape in zip(asked, found, strict=True)
        }
    return {node.name or "": _macs(node, known) for node in nodes}


def _macs(node: ir.Node, shapes: Mapping[str, Sequence[int]]) -> int:
    data, weight = (shapes[v.name or ""] if v is not None else () for v in node.inputs[:2])
    output = shapes[node.outputs[0].name or ""]
    if node.op_type == "Conv":
        return math.prod(output) * math.prod(weight[1:])
    if node.op_type == "ConvTranspose":
        return math.prod(data) * math.prod(weight[1:])
    inner = data[0] if node.attributes.get_int("transA", 0) else data[-1]
    return math.prod(output) * inner
