"""Model-local functions replaced by their bodies.

1. A function of the model's opset: by onnx-ir.
2. A function that declares another opset: by onnx, which converts it to the model's.
"""

from __future__ import annotations

import onnx.inliner
import onnx_ir as ir
import onnx_ir.passes.common as common

from onnxq.errors import ModelError, one_line
from onnxq.prepare.through_onnx import through_onnx

__all__ = ["inline_functions"]


def inline_functions(model: ir.Model, label: str) -> ir.Model:
    """The model without functions: `model` itself, changed in place, or a new one (case 2).

    Raises ModelError if a function cannot be inlined.
    """
    if not model.functions:
        return model
    try:
        if not _opsets_differ(model):
            common.InlinePass()(model)
            return model
        return through_onnx(
            model, lambda proto: onnx.inliner.inline_local_functions(proto, convert_version=True)
        )
    except (RuntimeError, ValueError, ir.passes.PassError) as error:
        raise ModelError(
            f"{label}: its local functions cannot be put in place of their calls: "
            f"{one_line(error)}; export the model without functions"
        ) from error


def _opsets_differ(model: ir.Model) -> bool:
    return any(
        version != model.opset_imports.get(domain, version)
        for function in model.functions.values()
        for domain, version in function.opset_imports.items()
    )
