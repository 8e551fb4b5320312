"""Opset and IR version raised to what the result needs.

onnx's own converter does the work. It wants the whole model in one protobuf, which ends at 2 GB,
so weights stay outside: they are handed over as graph inputs without data and put back after.
"""

from __future__ import annotations

import onnx
import onnx.version_converter
import onnx_ir as ir

from onnxq.errors import ModelError

__all__ = ["ir_version_for", "raise_opset"]

# Small initializers stay: the converter reads some of them (scales, axes, shapes)
STAYS_INSIDE = 1024


def ir_version_for(opset: int) -> int:
    """The IR version that came with an opset, as far as the ones that matter here."""
    return 10 if opset >= 21 else 9 if opset >= 20 else 8 if opset >= 15 else 7


def raise_opset(model: ir.Model, opset: int, label: str) -> ir.Model:
    """The model at `opset` or above: `model` itself if it is there already, else a new one."""
    current = model.opset_imports.get("", 0)
    if current == 0 or current >= opset:
        return model
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
    try:
        proto = onnx.version_converter.convert_version(ir.to_proto(work), opset)
    except (RuntimeError, onnx.checker.ValidationError) as error:
        raise ModelError(
            f"{label}: opset {current} must be raised to {opset} and onnx's converter cannot: "
            f"{error}; export the model at opset {opset} or later"
        ) from error
    raised = ir.from_proto(proto)
    for value in list(raised.graph.inputs):
        if value.name in kept:
            raised.graph.inputs.remove(value)
            value.const_value = kept[value.name]
            raised.graph.register_initializer(value)
    raised.ir_version = max(raised.ir_version or 0, ir_version_for(opset))
    return raised
