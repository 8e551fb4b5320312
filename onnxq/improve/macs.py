"""Multiply-accumulate operations (MACs) of each node, from the shapes that one sample gives."""

from __future__ import annotations

import onnx_ir as ir

from onnxq.measure.macs import Sizes, is_counted, macs_of
from onnxq.model import constant
from onnxq.prepare import Prepared
from onnxq.runtime import Feed, run, session

__all__ = ["macs_by_node"]


def macs_by_node(prepared: Prepared, feed: Feed) -> dict[str, int]:
    """Name of each node of the main graph that has any -> MACs for this feed."""
    model = prepared.ir.clone()
    nodes = [node for node in model.graph if is_counted(node)]
    values = {v for n in nodes for v in (*n.inputs[:3], n.outputs[0]) if v is not None and v.name}
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
    sizes = Sizes.given(known)
    return {node.name or "": macs_of(node, sizes) or 0 for node in nodes}
