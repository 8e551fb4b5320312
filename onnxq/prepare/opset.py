"""Opset and IR version raised to what the result needs, by onnx's own converter."""

from __future__ import annotations

import onnx
import onnx.version_converter
import onnx_ir as ir

from onnxq.errors import ModelError
from onnxq.prepare.through_onnx import through_onnx
from onnxq.runtime import one_line

__all__ = ["ir_version_for", "raise_opset"]


def ir_version_for(opset: int) -> int:
    """The IR version that came with an opset, as far as the ones that matter here."""
    return 10 if opset >= 21 else 9 if opset >= 20 else 8 if opset >= 15 else 7


def raise_opset(model: ir.Model, opset: int, label: str) -> ir.Model:
    """The model at `opset` or above: `model` itself if it is there already, else a new one."""
    current = model.opset_imports.get("", 0)
    if current == 0 or current >= opset:
        return model
    try:
        _check(model, current)
        raised = through_onnx(
            model, lambda proto: onnx.version_converter.convert_version(proto, opset)
        )
    except (RuntimeError, onnx.checker.ValidationError) as error:
        raise ModelError(
            f"{label}: opset {current} must be raised to {opset} and onnx's converter cannot: "
            f"{one_line(error)}; export the model at opset {opset} or later"
        ) from error
    raised.ir_version = max(raised.ir_version or 0, ir_version_for(opset))
    return raised


def _check(model: ir.Model, current: int) -> None:
    """Raises RuntimeError for what the converter turns into something else."""
    if current == 8:
        for node in ir.traversal.RecursiveGraphIterator(model.graph):
            if node.op_type == "Scan" and node.domain == "":
                # the converter leaves the axis, and one input more, where they are
                raise RuntimeError("a Scan of opset 8 has a batch axis, a later one has none")
