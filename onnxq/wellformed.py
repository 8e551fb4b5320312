"""What a graph has to fulfil before anything else looks at it, and what is said if it does not.

1. Weights are dense, and have as many bytes as their shape says.
2. Whatever is read is given by a node, an input or an initializer of the same or an outer graph.
3. Every output is given by something.
4. There is no cycle. (Nodes in another order are brought into one that runs.)
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator

import onnx
import onnx_ir as ir
import onnx_ir.passes.common as common

from onnxq.errors import ModelError, one_line

__all__ = ["check_structure", "graph_of_proto", "silent"]

SPARSE = "is stored as a sparse tensor, which onnxq does not read: export the model without"


@contextlib.contextmanager
def silent(name: str) -> Iterator[None]:
    """Without what the logger of that name prints, of which we make errors or which is none."""
    logger = logging.getLogger(name)
    before, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = before


def graph_of_proto(proto: onnx.ModelProto, label: str) -> ir.Model:
    """The model as onnx-ir reads it. Raises ModelError if it cannot."""
    if proto.graph.sparse_initializer:
        name = proto.graph.sparse_initializer[0].values.name
        raise ModelError(f"{label}: weight {name!r} {SPARSE}")
    try:
        with silent("onnx_ir.serde"):
            return ir.from_proto(proto)
    except (RuntimeError, ValueError, KeyError, TypeError, IndexError) as error:
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        if isinstance(cause, NotImplementedError) and "parse" in str(cause):
            raise ModelError(f"{label}: a constant {SPARSE}") from error
        raise ModelError(f"{label}: not a valid ONNX graph: {one_line(cause)}") from error


def check_structure(model: ir.Model, label: str) -> None:
    """Raises ModelError for the first thing that is wrong; may bring nodes into order."""
    for graph in model.graphs():
        for value in graph.initializers.values():
            _check_size(value.name or "", value.const_value, label)
        for node in graph:
            for attribute in node.attributes.values():
                if attribute.type is ir.AttributeType.TENSOR:
                    _check_size(_named(node), attribute.as_tensor(), label)
    ordered = _check_graph(model.graph, set(), label)
    if ordered:
        return
    try:
        common.TopologicalSortPass()(model)
    except (RuntimeError, ValueError) as error:
        raise ModelError(f"{label}: the graph has a cycle: export the model again") from error


def _check_graph(graph: ir.Graph, outer: set[ir.Value], label: str) -> bool:
    """Whether each node comes after all that it reads."""
    known = outer | set(graph.inputs) | set(graph.initializers.values())
    given = known | {output for node in graph for output in node.outputs}
    ordered = True
    for node in graph:
        for value in node.inputs:
            if value is None:
                continue
            if value not in given:
                raise ModelError(f"{label}: {_named(node)} reads {value.name!r}, which is nowhere")
            ordered = ordered and value in known
        for body in _bodies(node):
            ordered = _check_graph(body, given, label) and ordered
        known.update(node.outputs)
    for value in graph.outputs:
        if value not in given:
            raise ModelError(f"{label}: output {value.name!r} is given by no node")
    return ordered


def _bodies(node: ir.Node) -> Iterator[ir.Graph]:
    for attribute in node.attributes.values():
        if attribute.type is ir.AttributeType.GRAPH:
            yield attribute.as_graph()
        elif attribute.type is ir.AttributeType.GRAPHS:
            yield from attribute.as_graphs()


def _check_size(name: str, tensor: ir.TensorProtocol | None, label: str) -> None:
    if not isinstance(tensor, ir.TensorProtoTensor):
        return
    proto = tensor.raw
    if proto.HasField("raw_data"):
        have, want, unit = len(proto.raw_data), tensor.nbytes, "bytes"
    elif proto.float_data:
        have, want, unit = len(proto.float_data), tensor.size, "values"
    else:
        return
    if have != want:
        raise ModelError(
            f"{label}: {name!r} of shape {list(tensor.shape.numpy())} has {have} {unit} in place "
            f"of {want}; export the model again"
        )


def _named(node: ir.Node) -> str:
    """A node in words, by what there is to name it."""
    outputs = [value.name for value in node.outputs if value.name]
    return f"{node.op_type} {node.name or (outputs[0] if outputs else '')!r}"
