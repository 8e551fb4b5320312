"""A 1x1 Conv over one position, whose output is flattened, becomes a Gemm.

    GlobalAveragePool -> Conv [C, K, 1, 1] -> Flatten    =    GlobalAveragePool -> Flatten -> Gemm

Many networks end so. The int8 kernel of Conv gives 8 bits, in which the best class scores are often
equal; that of Gemm gives float at no cost.

Applies where the weight is a constant that nothing else reads, and the output goes through Flatten,
Reshape or Squeeze to [rows, C].
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnxq.model import constant, new_value
from onnxq.prepare.names import NameMap

__all__ = ["conv_head_to_gemm"]

FLATTENING = frozenset({"Flatten", "Reshape", "Squeeze"})


def conv_head_to_gemm(model: ir.Model, names: NameMap) -> bool:
    """Whether there was anything to replace."""
    found = [(n, view) for n in model.graph if (view := _view_behind(n)) is not None]
    for conv, view in found:
        _replace(model.graph, conv, view, names)
    return bool(found)


def _view_behind(conv: ir.Node) -> ir.Node | None:
    """What flattens the output of a Conv that can be replaced."""
    if conv.op_type != "Conv" or conv.domain != "" or conv.attributes.get_int("group", 1) != 1:
        return None
    weight, data, result = conv.inputs[1], conv.inputs[0], conv.outputs[0]
    tensor = constant(weight)
    if weight is None or data is None or tensor is None or len(weight.uses()) != 1:
        return None
    dims = tensor.shape.numpy()
    if any(d != 1 for d in dims[2:]) or any(conv.attributes.get_ints("pads", [])):
        return None
    if not _has_one_position(data, len(dims)) or result.is_graph_output():
        return None
    if len(result.uses()) != 1:
        return None
    view, index = next(iter(result.uses()))
    if view.op_type not in FLATTENING or view.domain != "" or index != 0:
        return None
    if view.graph is not conv.graph:
        return None
    shape = view.outputs[0].shape
    flat = shape is not None and len(shape) == 2 and shape[1] == dims[0]
    return view if flat else None


def _has_one_position(data: ir.Value, rank: int) -> bool:
    node, shape = data.producer(), data.shape
    if node is not None and node.op_type == "GlobalAveragePool" and node.domain == "":
        return True
    return shape is not None and len(shape) == rank and all(d == 1 for d in list(shape)[2:])


def _replace(graph: ir.Graph, conv: ir.Node, view: ir.Node, names: NameMap) -> None:
    data, weight = conv.inputs[0], conv.inputs[1]
    tensor = constant(weight)
    assert weight is not None
    assert tensor is not None
    matrix = np.ascontiguousarray(tensor.numpy()).reshape(tensor.shape.numpy()[:2])
    name = weight.name or ""
    graph.initializers.pop(name)
    flat = ir.node("Flatten", [data], name=f"{conv.name}.flatten")
    flat.outputs[0].name = f"{conv.name}.flattened"
    inputs = [flat.outputs[0], new_value(graph, name, ir.tensor(matrix, name=name))]
    inputs += [v for v in conv.inputs[2:3] if v is not None]
    gemm = ir.node("Gemm", inputs, {"transB": 1}, name=f"{conv.name}.gemm")
    names.add(gemm, [*names.of(conv), *names.of(view)])
    names.add(flat, [names.label(gemm)])
    old, result = view.outputs[0], gemm.outputs[0]
    result.shape, result.type = old.shape, old.type
    graph.insert_before(view, [flat, gemm])
    old.replace_all_uses_with(result, replace_graph_outputs=True)
    graph.remove([view, conv], safe=True)
    result.name, old.name = old.name, None
