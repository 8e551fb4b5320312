"""Constants: nodes lifted to initializers, and whatever depends on constants alone calculated.

The constant part of a graph is run once, in onnxruntime itself, so that it is calculated by the
same kernels that would calculate it at load.

Left alone:
1. Random and stateful ops, ops with bodies, other domains, QuantizeLinear and DequantizeLinear,
   and the Cast of a weight that is stored as integers: it is quantized already.
2. What makes something large out of something small (ConstantOfShape, Expand, Tile, Range, ...)
   above 64 KB.
3. Views (Transpose, Reshape, Slice, ...) of a weight that stays for other uses, unless
   `duplicate`: folding would store it twice.
4. Anything fed by more than 512 MB.
"""

from __future__ import annotations

import math

import onnx_ir as ir
import onnx_ir.passes.common as common

from onnxq.errors import ModelError
from onnxq.model import constant, new_value, shape_of
from onnxq.qtypes import Array

__all__ = ["VIEWS", "fold_constants", "is_stored_integer", "lift_constants"]

VIEWS = frozenset(
    {"Flatten", "Identity", "Reshape", "Slice", "Split", "Squeeze", "Transpose", "Unsqueeze"}
)
NEVER = frozenset(
    {"RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Bernoulli"}
    | {"Multinomial", "Dropout", "QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"}
    | {"Constant", "If", "Loop", "Scan", "Optional", "SequenceMap", "SequenceConstruct"}
    | {"SequenceInsert", "SequenceEmpty", "SplitToSequence"}
)
GROWS = frozenset({"ConstantOfShape", "Expand", "EyeLike", "OneHot", "Pad", "Range", "Tile"})
NARROW = frozenset(
    {ir.DataType.INT8, ir.DataType.UINT8, ir.DataType.INT16, ir.DataType.UINT16}
    | {ir.DataType.INT4, ir.DataType.UINT4}
)
LARGEST_GROWN = 64 << 10
LARGEST_INPUT = 512 << 20


def lift_constants(model: ir.Model) -> None:
    """Constant nodes become initializers of the graph that holds them."""
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)


def fold_constants(model: ir.Model, *, duplicate: bool, label: str) -> bool:
    """Replace what depends on constants alone by initializers. Whether there was anything."""
    found = False
    for graph in model.graphs():
        nodes = _foldable(graph)
        if not duplicate:
            nodes = _without_shared_views(nodes)
        if nodes:
            _fold(graph, nodes, model, label)
            found = True
    return found


def is_stored_integer(node: ir.Node) -> bool:
    """A Cast to float of a constant tensor of narrow integers, as in a quantized weight."""
    if node.op_type != "Cast" or node.domain != "":
        return False
    tensor = constant(node.inputs[0])
    if tensor is None or tensor.dtype not in NARROW or tensor.shape.rank() < 2:
        return False
    return ir.DataType(node.attributes.get_int("to", 0)).is_floating_point()


def _foldable(graph: ir.Graph) -> list[ir.Node]:
    """Nodes that can be calculated now, in topological order."""
    known: set[ir.Value] = set()
    nodes: list[ir.Node] = []
    for node in graph:
        if node.domain != "" or node.op_type in NEVER or not node.inputs:
            continue
        if is_stored_integer(node):
            continue
        if not all(v is None or v in known or constant(v) is not None for v in node.inputs):
            continue
        if any(o.is_graph_output() for o in node.outputs):
            continue
        sizes = [t.nbytes for v in node.inputs if (t := constant(v)) is not None]
        if sum(sizes) > LARGEST_INPUT or (node.op_type in GROWS and _grown(node) > LARGEST_GROWN):
            continue
        nodes.append(node)
        known.update(node.outputs)
    return nodes


def _grown(node: ir.Node) -> float:
    """Bytes of a node's output as far as it is known, else infinite."""
    shape = node.outputs[0].shape
    if shape is None or not shape.is_static():
        return math.inf
    return 8.0 * math.prod(shape.numpy())


def _without_shared_views(nodes: list[ir.Node]) -> list[ir.Node]:
    """Case 3: leave out the views, and what follows them, of weights that others read as well."""
    inside = set(nodes)
    left: set[ir.Value] = set()
    kept: list[ir.Node] = []
    for node in nodes:
        source = node.inputs[0]
        tensor = constant(source)
        shared = (
            node.op_type in VIEWS
            and source is not None
            and tensor is not None
            and tensor.nbytes > LARGEST_GROWN
            and not all(user in inside for user, _ in source.uses())
        )
        if shared or any(v in left for v in node.inputs):
            left.update(node.outputs)
        else:
            kept.append(node)
    return kept


def _fold(graph: ir.Graph, nodes: list[ir.Node], model: ir.Model, label: str) -> None:
    inside = set(nodes)
    wanted = [
        output
        for node in nodes
        for output in node.outputs
        if any(user not in inside for user, _ in output.uses())
    ]
    for value, array in zip(wanted, _calculate(nodes, wanted, model, label), strict=True):
        name = value.name or ""
        value.name = None
        folded = new_value(graph, name, ir.tensor(array, name=name))
        value.replace_all_uses_with(folded)
    graph.remove(list(reversed(nodes)), safe=True)
    for node in nodes:
        for v in node.inputs:
            if v is not None and v.is_initializer() and not v.uses() and not v.is_graph_output():
                _forget(v)


def _calculate(
    nodes: list[ir.Node], wanted: list[ir.Value], model: ir.Model, label: str
) -> list[Array]:
    """Run `nodes` in onnxruntime and return the values of `wanted`."""
    from onnxq.runtime import RuntimeFailureError, run_once

    values: dict[ir.Value, ir.Value] = {}
    weights: list[ir.Value] = []
    copies: list[ir.Node] = []
    for node in nodes:
        for v in node.inputs:
            if v is not None and v not in values:
                tensor = v.const_value
                assert tensor is not None
                if isinstance(tensor, ir.ExternalTensor):
                    tensor = ir.tensor(tensor.numpy(), name=v.name)
                values[v] = ir.Value(
                    name=v.name,
                    shape=shape_of(tensor),
                    type=ir.TensorType(tensor.dtype),
                    const_value=tensor,
                )
                weights.append(values[v])
        outputs = [ir.Value(name=o.name, type=o.type) for o in node.outputs]
        values.update(zip(node.outputs, outputs, strict=True))
        copies.append(
            ir.Node(
                "",
                node.op_type,
                [None if v is None else values[v] for v in node.inputs],
                node.attributes.values(),
                outputs=outputs,
                name=node.name,
            )
        )
    graph = ir.Graph(
        [],
        [values[v] for v in wanted],
        nodes=copies,
        initializers=weights,
        opset_imports=model.opset_imports,
        name="constants",
    )
    try:
        return run_once(ir.Model(graph, ir_version=model.ir_version or 8))
    except RuntimeFailureError as error:
        raise ModelError(f"{label}: a constant part of the graph does not run: {error}") from error


def _forget(value: ir.Value) -> None:
    if isinstance(value.graph, ir.Graph) and value.name:
        value.graph.initializers.pop(value.name, None)
