"""Changes made by onnx's own C++ code, for models of any size.

That code wants the whole model in one protobuf, which ends at 2 GB, so weights stay outside: they
are handed over as graph inputs without data and put back after.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import onnx
import onnx_ir as ir

__all__ = ["through_onnx"]

# Small initializers stay: the code reads some of them (scales, axes, shapes)
STAYS_INSIDE = 1024


def through_onnx(model: ir.Model, change: Callable[[onnx.ModelProto], onnx.ModelProto]) -> ir.Model:
    """What `change` makes of the model, with the weights of its main graph; `model` stays."""
    work = model.clone()
    graph = work.graph
    kept: dict[str, ir.TensorProtocol] = {}
    for name, value in list(graph.initializers.items()):
        tensor = value.const_value
        if tensor is None or value.is_graph_input():
            continue
        if tensor.nbytes > STAYS_INSIDE:
            kept[name] = tensor
            value.const_value = None
            graph.initializers.pop(name)
            graph.inputs.append(value)
        elif isinstance(tensor, ir.ExternalTensor):
            value.const_value = ir.tensor(tensor.numpy(), name=name)
    changed = ir.from_proto(change(ir.to_proto(work)))
    _restore_types(model, changed)
    for value in list(changed.graph.inputs):
        if value.name in kept:
            changed.graph.inputs.remove(value)
            value.const_value = kept[value.name]
            changed.graph.register_initializer(value)
    return changed


def _restore_types(model: ir.Model, changed: ir.Model) -> None:
    """Sequences and optionals that graphs take or give: onnx 1.17's converter drops their types."""
    declared = {value.name: value for value in _interface(model)}
    for value in _interface(changed):
        if value.type is None and value.name in declared:
            value.type, value.shape = declared[value.name].type, declared[value.name].shape


def _interface(model: ir.Model) -> Iterator[ir.Value]:
    for graph in model.graphs():
        yield from graph.inputs
        yield from graph.outputs
