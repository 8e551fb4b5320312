"""MatMul + Add of a bias becomes Gemm.

onnxruntime has a fused int8 kernel for Gemm with its bias (QGemm). It also turns MatMul + Add into
Gemm itself, but after that the bias is float and nothing fuses (seen in its optimized graphs, for
inputs of rank 2 and for static shapes). So it is done here, before quantization:

1. x of rank 2: Gemm(x, W, b).
2. x of higher rank, with at most one dimension unknown before the last: Gemm between two Reshapes.
   (With more unknown, onnxruntime leaves the pair alone, and so does this pass.) A Relu that alone
   reads the sum moves before the second Reshape, where the Gemm absorbs it.

W is a constant of rank 2, b a constant of rank 1 with as many elements as W has columns.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from onnxq.model import constant, new_value
from onnxq.prepare.names import NameMap

__all__ = ["matmul_add_to_gemm"]


def matmul_add_to_gemm(model: ir.Model, names: NameMap) -> bool:
    """Whether there was anything to replace."""
    graph, any_found = model.graph, False
    for add in list(graph):
        if add.op_type != "Add" or add.domain != "":
            continue
        found = _match(add)
        if found is not None:
            matmul, bias = found
            _replace(graph, matmul, add, bias, names)
            any_found = True
    return any_found


def _match(add: ir.Node) -> tuple[ir.Node, ir.Value] | None:
    for x, bias in (add.inputs, add.inputs[::-1]):
        matmul = x.producer() if x is not None else None
        if x is None or bias is None or matmul is None or matmul.op_type != "MatMul":
            continue
        weight, b = constant(matmul.inputs[1]), constant(bias)
        data = matmul.inputs[0]
        if weight is None or b is None or data is None or data.shape is None:
            continue
        if len(x.uses()) != 1 or x.is_graph_output() or matmul.graph is not add.graph:
            continue
        fits = weight.shape.rank() == 2 and list(b.shape) == [weight.shape[1]]
        unknown = sum(not isinstance(d, int) for d in list(data.shape)[:-1])
        if fits and len(data.shape) >= 2 and (len(data.shape) == 2 or unknown <= 1):
            return matmul, bias
    return None


def _replace(
    graph: ir.Graph, matmul: ir.Node, add: ir.Node, bias: ir.Value, names: NameMap
) -> None:
    data, weight = matmul.inputs[0], matmul.inputs[1]
    assert data is not None
    assert data.shape is not None
    assert weight is not None
    assert weight.const_value is not None
    rows, columns = weight.const_value.shape.numpy()
    base, rank = matmul.name or "", len(data.shape)
    nodes: list[ir.Node] = []
    x = data
    if rank > 2:
        flat = _shape(graph, f"{base}.flat", [-1, rows])
        nodes.append(ir.node("Reshape", [data, flat], name=f"{base}.flatten"))
        x = nodes[-1].outputs[0]
        x.name = f"{base}.flattened"
    gemm = ir.node("Gemm", [x, weight, bias], name=f"{base}.gemm")
    nodes.append(gemm)
    result = gemm.outputs[0]
    last = add
    if rank > 2:
        result.name = f"{base}.rows"
        relu = _only_relu(add)
        if relu is not None:
            nodes.append(ir.node("Relu", [result], name=f"{relu.name}.rows"))
            names.add(nodes[-1], names.of(relu))
            last, result = relu, nodes[-1].outputs[0]
            result.name = f"{base}.activated"
        lead = [d if isinstance(d, int) else -1 for d in list(data.shape)[:-1]]
        shape = _shape(graph, f"{base}.shape", [*lead, columns])
        nodes.append(ir.node("Reshape", [result, shape], name=f"{base}.unflatten"))
        result = nodes[-1].outputs[0]
    graph.insert_before(last, nodes)
    old = last.outputs[0]
    name, result.shape, result.type = old.name, old.shape, old.type
    names.add(gemm, [*names.of(matmul), *names.of(add)])
    for node in nodes:
        names.add(node, [names.label(gemm)])
    old.replace_all_uses_with(result, replace_graph_outputs=True)
    graph.remove([last, add, matmul] if last is not add else [add, matmul], safe=True)
    old.name = None
    result.name = name


def _only_relu(add: ir.Node) -> ir.Node | None:
    readers = list(add.outputs[0].uses())
    if len(readers) != 1 or add.outputs[0].is_graph_output():
        return None
    node = readers[0][0]
    return (
        node if node.op_type == "Relu" and node.domain == "" and node.graph is add.graph else None
    )


def _shape(graph: ir.Graph, name: str, dims: list[int]) -> ir.Value:
    return new_value(graph, name, ir.tensor(np.array(dims, np.int64), name=name))
