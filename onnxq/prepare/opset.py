"""Opset and IR version raised to what the result needs, by onnx's own converter.

Where the converter gives a model that calculates something else (seen with onnx 1.23):

1. Resize of opset 10 and Upsample: it leaves out that their coordinates are asymmetric, and that
   nearest is the pixel below where that enlarges, the one above where it reduces. Put right here.
2. Scan of opset 8, with its batch axis, and Hardmax below opset 13, over all axes from `axis` on:
   it leaves them as they are. Refused.
"""

from __future__ import annotations

import onnx
import onnx.version_converter
import onnx_ir as ir

from onnxq.errors import ModelError, one_line
from onnxq.prepare.through_onnx import through_onnx

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
        if current < 11:
            _repair_resize(raised)
    except (RuntimeError, onnx.checker.ValidationError) as error:
        raise ModelError(
            f"{label}: opset {current} must be raised to {opset} and onnx's converter cannot: "
            f"{one_line(error)}; export the model at opset {opset} or later"
        ) from error
    raised.ir_version = max(raised.ir_version or 0, ir_version_for(opset))
    return raised


def _check(model: ir.Model, current: int) -> None:
    """Case 2. Raises RuntimeError."""
    for node in ir.traversal.RecursiveGraphIterator(model.graph):
        if node.domain != "":
            continue
        if node.op_type == "Scan" and current == 8:
            raise RuntimeError("a Scan of opset 8 has a batch axis, a later one has none")
        if node.op_type == "Hardmax" and node.attributes.get_int("axis", 1) != -1:
            raise RuntimeError("a Hardmax below opset 13 runs over several axes")


def _repair_resize(model: ir.Model) -> None:
    """Case 1. Raises RuntimeError where no attribute says what the old operator did."""
    for node in ir.traversal.RecursiveGraphIterator(model.graph):
        if node.op_type != "Resize" or node.domain != "":
            continue
        node.attributes["coordinate_transformation_mode"] = ir.AttrString(
            "coordinate_transformation_mode", "asymmetric"
        )
        if node.attributes.get_string("mode", "nearest") == "nearest":
            scales = ir.convenience.get_const_tensor(node.inputs[2]) if node.inputs[2] else None
            factors = [1.0] if scales is None else scales.numpy().tolist()
            if min(factors) < 1.0 < max(factors):
                raise RuntimeError("a Resize of opset 10 enlarges one axis and reduces another")
            node.attributes["nearest_mode"] = ir.AttrString(
                "nearest_mode", "ceil" if min(factors) < 1.0 else "floor"
            )
