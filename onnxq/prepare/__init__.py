"""Prepare: a clone of the user's model, in the form that the other stages expect.

functions.py   model-local functions replaced by their bodies
names.py       every node and tensor has one name; the user's names are remembered
constants.py   Constant nodes become initializers; what depends on constants alone is calculated
identity.py    Identity, Dropout and arithmetic that changes nothing are dropped
shapes.py      shapes calculated from shapes become constants where they can
opset.py       opset and IR version raised where DequantizeLinear needs it
conv_bias.py   Conv + Add of a number for each channel becomes a Conv with a bias
batchnorm.py   BatchNormalization folded into Conv, ConvTranspose and Gemm
matmul_add.py  MatMul + Add of a bias becomes Gemm (static mode)
conv_head.py   a 1x1 Conv over one position becomes Gemm (static mode)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir
import onnx_ir.passes.common as common

from onnxq.errors import ModelError
from onnxq.lean import collector_paused
from onnxq.model import SourceModel
from onnxq.prepare.batchnorm import fold_batchnorm
from onnxq.prepare.constants import fold_constants, lift_constants
from onnxq.prepare.conv_bias import fold_conv_bias
from onnxq.prepare.conv_head import conv_head_to_gemm
from onnxq.prepare.functions import inline_functions
from onnxq.prepare.identity import drop_identity
from onnxq.prepare.matmul_add import matmul_add_to_gemm
from onnxq.prepare.names import NameMap, unique_names
from onnxq.prepare.opset import raise_opset
from onnxq.prepare.shapes import fold_shapes
from onnxq.qtypes import Array
from onnxq.runtime import attached, detached
from onnxq.wellformed import silent

__all__ = ["NameMap", "Prepared", "prepare"]


@dataclass(frozen=True)
class Prepared:
    """The float model that is calibrated and rewritten.

    names: from its nodes to the names they had in the user's model.
    """

    ir: ir.Model
    names: NameMap
    label: str

    def __reduce__(self) -> tuple[Any, ...]:
        """To be sent to another process, which onnx-ir's objects cannot be."""
        content, weights = detached(self.ir.clone())
        return _received, (content, weights, self.names, self.label)


def _received(content: bytes, weights: Mapping[str, Array], names: NameMap, label: str) -> Prepared:
    return Prepared(attached(content, weights), names, label)


@collector_paused()
def prepare(source: SourceModel, *, min_opset: int, static: bool) -> Prepared:
    """A prepared clone of `source`, whose opset is at least `min_opset`.

    static: the model is to be calibrated: MatMul + Add becomes Gemm, a 1x1 Conv over one position
    too, and a constant behind a Transpose or the like is always folded, even where that stores a
    shared weight twice.

    Raises ModelError if the opset cannot be raised, or a constant part does not run.
    """
    model = source.ir.clone()
    model = inline_functions(model, source.label)
    if model.ir_version < 4:  # until then initializers had to be listed as inputs
        common.RemoveInitializersFromInputsPass()(model)
        model.ir_version = 4
    names = unique_names(model)
    lift_constants(model)
    model = raise_opset(model, min_opset, source.label)
    names.adopt(model)
    common.TopologicalSortPass()(model)
    infer_shapes(model)
    drop_identity(model)
    if fold_constants(model, duplicate=static, label=source.label):
        infer_shapes(model)
    changed = fold_shapes(model)
    fold_conv_bias(model, names)
    fold_batchnorm(model, names)
    if static:
        changed |= matmul_add_to_gemm(model, names) | conv_head_to_gemm(model, names)
        if changed:
            infer_shapes(model)
    common.RemoveUnusedNodesPass()(model)
    drop_unused_initializers(model)
    if len(model.graph) == 0:
        raise ModelError(
            f"{source.label}: every output is a constant; there is nothing to quantize"
        )
    return Prepared(model, names, source.label)


def infer_shapes(model: ir.Model) -> None:
    """Types and shapes where ONNX's inference finds them; what it cannot stays unknown."""
    # where inference fails, the pass prints a traceback
    with silent("onnx_ir.passes.common.shape_inference"):
        common.ShapeInferencePass(check_type=False, strict_mode=False, data_prop=True)(model)


def drop_unused_initializers(model: ir.Model) -> None:
    """In the bodies of If and Loop too, where onnx-ir's pass leaves them."""
    for graph in model.graphs():
        for name, value in list(graph.initializers.items()):
            if not value.uses() and not value.is_graph_output() and not value.is_graph_input():
                graph.initializers.pop(name)
