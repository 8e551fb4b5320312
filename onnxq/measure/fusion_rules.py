"""Why onnxruntime keeps a node in float that stands beside a QuantizeLinear or DequantizeLinear.

Its int8 fusion replaces a node with everything around it: a DequantizeLinear at each input, the
node, perhaps a Relu or Clip that the quantized range makes superfluous, and a QuantizeLinear at
each output. What it demands is checked here one by one, in its order, and the first demand that
fails is the reason. Which ops have int8 kernels is in the op table; tests/test_fusion.py has a
model for each rule and compares with what onnxruntime does.
"""

from __future__ import annotations

import platform
import re
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
import onnx_ir as ir

from onnxq.measure.optimized import is_dequantize, is_quantize, source_of
from onnxq.model import constant
from onnxq.optable import OpRule, Role, rule_of
from onnxq.qtypes import Array

__all__ = ["Cause", "Reason", "explain", "integers_of", "label"]


class Reason(StrEnum):
    """Kinds of reasons; `Cause.why` has the words."""

    MODEL_INPUT = "model-input"
    MODEL_OUTPUT = "model-output"
    NO_KERNEL = "no-int8-kernel"
    FLOAT_NEIGHBOUR = "float-neighbour"
    FLOAT_INPUT = "float-input"
    FLOAT_BIAS = "float-bias"
    FLOAT_OUTPUT = "float-output"
    FLOAT_READER = "float-reader"
    INTEGER_TYPES = "integer-types"
    PARAMETERS_DIFFER = "parameters-differ"
    PARAMETERS_FORM = "parameters-form"
    ACTIVATION_KEPT = "activation-kept"
    WEIGHT_ONLY = "weight-only"
    REQUANTIZE = "requantize"
    CONSTANT = "constant"
    BODY = "body"
    OPSET = "opset"
    SHAPE_ONLY = "shape-only"
    LAYOUT = "layout"
    FUSION_OFF = "fusion-off"
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class Cause:
    """A reason in words. remedy: what to do about it, None if there is nothing."""

    reason: Reason
    why: str
    remedy: str | None = None


# Views of onnxruntime that onnxq itself does not place
OTHER_VIEWS = frozenset({"GatherElements", "ReduceMax", "ReduceMin"})
# Integers stay in order only under a positive scale
ORDERED = frozenset({"MaxPool", "ReduceMax", "ReduceMin"})
SHAPE_READERS = frozenset({"Shape", "Size"})
# How onnxruntime calls the values within an op that it takes apart, and a Gemm that it makes
INLINED = re.compile(r"_inlfunc_([A-Za-z]+)_")
MERGED = "MatMulAddFusion"
FREE_OUTPUT = frozenset({"Gemm", "MatMul"})
MAX_POOL_OPSET = 12
EIGHT_BITS = (ir.DataType.UINT8, ir.DataType.INT8)
# Of the types whose views need no arithmetic
VIEW_TYPES = (*EIGHT_BITS, ir.DataType.UINT16, ir.DataType.INT16)
NO_KERNEL_REMEDY = "leave its neighbours float where this costs more than int8 gains there"
UINT8_ACTIVATIONS = "quantize activations to uint8 (--target onnxruntime-x86)"
NO_16_BITS = ORDERED | {"Resize"}


def explain(node: ir.Node, opset: int) -> Cause:
    """The first demand of onnxruntime's int8 fusion that `node` does not meet.

    node: of the graph before int8 fusion. opset: of the default domain.
    """
    rule = rule_of(node)
    if node.op_type in OTHER_VIEWS and node.domain == "":
        rule = OpRule(Role.VIEW)
    function = _function_of(node)
    if function is not None:
        return Cause(
            Reason.NO_KERNEL,
            f"{function} has no int8 kernel in onnxruntime: it runs as its parts, in float",
            NO_KERNEL_REMEDY,
        )
    if node.op_type in SHAPE_READERS and node.domain == "":
        return Cause(
            Reason.SHAPE_ONLY,
            f"{label(node)} asks for the shape alone, but the values are converted for it",
            "let it read a tensor of the same shape that is there anyway",
        )
    if rule is None or rule.role is Role.WEIGHT_ONLY:
        return Cause(
            Reason.NO_KERNEL,
            f"{node.op_type} has no int8 kernel in onnxruntime: it runs in float",
            NO_KERNEL_REMEDY,
        )
    if rule.role is Role.ABSORBED:
        return _explain_activation(node)
    for check in (_inputs, _outputs, _types, _parameters):
        cause = check(node, rule, opset)
        if cause is not None:
            return cause
    refused = rule.refuse(node)
    if refused is not None:
        return Cause(Reason.NO_KERNEL, refused)
    return Cause(
        Reason.UNKNOWN,
        f"{label(node)} has all that int8 fusion is known to need, but did not fuse",
        "please report it with the model",
    )


def label(node: ir.Node) -> str:
    """How messages name a node."""
    return f"{node.op_type} {node.name!r}" if node.name else node.op_type


def integers_of(node: ir.Node) -> ir.DataType | None:
    """The integer type that a Q gives or a DQ takes."""
    zero = node.inputs[2] if len(node.inputs) > 2 else None
    integers = node.inputs[0] if is_dequantize(node) else node.outputs[0]
    for value in (integers, zero):
        if value is not None and value.dtype is not None:
            return value.dtype
        if value is not None and value.const_value is not None:
            return value.const_value.dtype
    return ir.DataType.UINT8 if zero is None and is_quantize(node) else None


def _function_of(node: ir.Node) -> str | None:
    """The op that onnxruntime took apart into `node` and others, if it did."""
    for value in (*node.inputs, *node.outputs):
        match = INLINED.match((value.name or "") if value is not None else "")
        if match is not None:
            return match[1]
    return None


def _explain_activation(node: ir.Node) -> Cause:
    """A Relu or Clip that stands alone, or that was not absorbed by what follows."""
    read = [reader for reader, _ in node.outputs[0].uses()]
    if len(read) == 1 and is_quantize(read[0]):
        return Cause(
            Reason.ACTIVATION_KEPT,
            f"{label(node)} cuts off values that the integers behind it can hold, so it has to "
            "run, in float",
            "choose the range of its output so that it begins where the activation does",
        )
    if read and all(is_quantize(r) for r in read):
        return Cause(
            Reason.ACTIVATION_KEPT,
            f"several QuantizeLinear read {label(node)}, which is absorbed only into one",
            "quantize the tensor once, for all that read it",
        )
    return Cause(
        Reason.ACTIVATION_KEPT,
        f"{label(node)} is read in float too, so it is not absorbed by the quantization behind it",
        "let the float readers read the DequantizeLinear's output",
    )


def _needed(node: ir.Node, rule: OpRule) -> list[int]:
    """Inputs that have to come from a DequantizeLinear."""
    if rule.role is Role.CORE:
        return [i for i, value in enumerate(node.inputs) if value is not None]
    return rule.activation_inputs(node)


def _inputs(node: ir.Node, rule: OpRule, opset: int) -> Cause | None:
    needed = _needed(node, rule)
    missing = [i for i in needed if not is_dequantize(source_of(node.inputs[i]))]
    if not missing:
        return None
    if len(missing) == len(needed):
        return Cause(
            Reason.FLOAT_NEIGHBOUR,
            f"{label(node)} runs in float: none of its inputs is quantized",
            "nothing, if it was left float on purpose: int8 begins behind it",
        )
    value = node.inputs[missing[0]]
    name = value.name if value is not None else ""
    if rule.role is Role.CORE and missing == [rule.bias]:
        # at load it becomes int32, but only if the output is quantized too: that comes first
        later = _outputs(node, rule, opset) if constant(value) is not None else None
        return later or _float_bias(node, name or "")
    if rule.role is Role.CORE and 0 in missing:
        return Cause(
            Reason.WEIGHT_ONLY,
            f"only the weight of {label(node)} is quantized; its input {name!r} is float",
            "quantize the input too, or load with session.disable_quant_qdq=1",
        )
    what = "weight" if rule.role is Role.CORE else "input"
    return Cause(
        Reason.FLOAT_INPUT,
        f"the {what} {name!r} of {label(node)} is float, and its int8 kernel needs all in integers",
        f"quantize {name!r}, or leave {label(node)} float with all its inputs",
    )


def _float_bias(node: ir.Node, name: str) -> Cause:
    if constant(node.inputs[2]) is None:
        why = f"the bias {name!r} of {label(node)} is no constant, and cannot be made int32 at load"
        return Cause(Reason.FLOAT_BIAS, why, "quantize the bias, or make it a constant")
    why = f"the bias {name!r} of {label(node)} is float, and becomes int32 only if the output is "
    why += "quantized"
    if MERGED in (node.name or ""):
        why += "; onnxruntime makes a float Gemm of a MatMul and an Add before it looks for int8"
    return Cause(Reason.FLOAT_BIAS, why, "make it one Gemm whose bias is int32, as onnxq does")


def _outputs(node: ir.Node, rule: OpRule, _opset: int) -> Cause | None:
    outputs = [o for o in node.outputs if o.uses() or o.is_graph_output()]
    last = node
    if len(outputs) == 1 and len(outputs[0].uses()) == 1 and not outputs[0].is_graph_output():
        reader = next(iter(outputs[0].uses()))[0]
        if reader.op_type in ("Relu", "Clip") and len(reader.outputs[0].uses()) == 1:
            last, outputs = reader, [reader.outputs[0]]
    readers = [reader for output in outputs for reader, _ in output.uses()]
    quantizers = [reader for reader in readers if is_quantize(reader)]
    if last is not node and quantizers:
        if rule.role is Role.VIEW:
            why = f"{last.op_type} behind {label(node)} is not absorbed: that moves values only"
            return Cause(Reason.ACTIVATION_KEPT, why, f"put the {last.op_type} first")
        return None if _absorbed(last, quantizers[0]) else _explain_activation(last)
    if not quantizers:
        if node.op_type in FREE_OUTPUT and last is node:
            return None
        behind = f" behind its {last.op_type}" if last is not node else ""
        return Cause(
            Reason.FLOAT_OUTPUT,
            f"{label(node)} runs on integers only if its output{behind} is quantized too",
            "quantize the output, or leave the inputs float",
        )
    for output in outputs:
        floats = [reader for reader, _ in output.uses() if not is_quantize(reader)]
        if floats or output.is_graph_output():
            by = f"{label(floats[0])} reads" if floats else "the model gives out"
            return Cause(
                Reason.FLOAT_READER,
                f"{by} the raw output {output.name!r} of {label(node)} in float, so it cannot give "
                "integers alone",
                "let the float reader read the DequantizeLinear's output",
            )
    if len(quantizers) > len(outputs):
        return Cause(
            Reason.FLOAT_READER,
            f"several QuantizeLinear read the output of {label(node)}, and only one can fuse",
            "quantize the tensor once, for all that read it",
        )
    return None


def _absorbed(node: ir.Node, quantizer: ir.Node) -> bool:
    """The quantized range lies within what a Relu or Clip lets through."""
    scale, zero, dtype = (*_parameters_of(quantizer), integers_of(quantizer))
    if scale is None or dtype is None or scale.size != 1:
        return False
    qmin, qmax = (int(dtype.min), int(dtype.max))
    offset = 0 if zero is None else int(zero.reshape(-1)[0])
    least, most = ((q - offset) * float(scale.reshape(-1)[0]) for q in (qmin, qmax))
    if node.op_type == "Relu":
        return least >= 0
    bounds = [constant(value) for value in node.inputs[1:3]]
    low, high = (
        [None if b is None else float(b.numpy().reshape(-1)[0]) for b in bounds] + [None, None]
    )[:2]
    return (low is None or low <= least) and (high is None or high >= most)


def _types(node: ir.Node, rule: OpRule, _opset: int) -> Cause | None:
    taken = [integers_of(n) for i in _needed(node, rule) if (n := source_of(node.inputs[i]))]
    given = [integers_of(q) for q in _quantizers(node)]
    activations = [*(taken[:1] if rule.role is Role.CORE else taken), *given]
    names = " and ".join(dict.fromkeys(t.name.lower() for t in activations if t is not None))
    core_weight = taken[1] if rule.role is Role.CORE and len(taken) > 1 else None
    view = rule.role is Role.VIEW and node.op_type not in NO_16_BITS
    fitting = VIEW_TYPES if view else EIGHT_BITS
    if any(t not in fitting for t in (*activations, core_weight) if t is not None):
        found = names if core_weight in (None, *EIGHT_BITS) else core_weight.name.lower()
        return Cause(
            Reason.INTEGER_TYPES,
            f"{node.op_type} has no kernel for {found}; onnxruntime computes with 8 bits",
            "quantize activations to uint8 and weights to int8",
        )
    if len(set(activations)) > 1:
        why = f"{label(node)} has {names} around it, and its int8 kernel needs one type"
        if ir.DataType.INT8 in activations and not _int8_allowed():
            why += (
                "; on this kind of processor onnxruntime turns int8 activations into uint8, but "
                "only where a single node reads them"
            )
            return Cause(Reason.INTEGER_TYPES, why, UINT8_ACTIVATIONS)
        remedy = "give its inputs and its output one integer type"
        return Cause(Reason.INTEGER_TYPES, why, remedy)
    signed = rule.role is Role.CORE and activations[0] is ir.DataType.INT8
    if signed and core_weight is not ir.DataType.INT8:
        return Cause(
            Reason.INTEGER_TYPES,
            f"{label(node)} has int8 activations and a uint8 weight, for which there is no kernel",
            "quantize its weight to int8",
        )
    if signed and not _int8_allowed() and node.op_type != "Gemm":
        return Cause(
            Reason.INTEGER_TYPES,
            f"{label(node)} has int8 activations, which onnxruntime fuses as uint8 on this kind of "
            "processor",
            UINT8_ACTIVATIONS,
        )
    return None


def _int8_allowed() -> bool:
    """Whether onnxruntime fuses int8 activations as they are: on Arm it does."""
    return platform.machine().lower() in ("arm64", "aarch64")


def _quantizers(node: ir.Node) -> list[ir.Node]:
    found = []
    for output in node.outputs:
        for reader, _ in output.uses():
            behind = [reader]
            if reader.op_type in ("Relu", "Clip"):
                behind = [r for r, _ in reader.outputs[0].uses()]
            found += [r for r in behind if is_quantize(r)]
    return found


def _parameters_of(node: ir.Node) -> tuple[Array | None, Array | None]:
    """Scale and zero point, None where they are no constants or not there."""
    tensors = [constant(value) for value in node.inputs[1:3]]
    arrays = [None if t is None or _is_elsewhere(t) else t.numpy() for t in tensors]
    return arrays[0], arrays[1] if len(arrays) > 1 else None


def _is_elsewhere(tensor: ir.TensorProtocol) -> bool:
    """In a file of weights: then it is no scalar."""
    return isinstance(tensor, ir.ExternalTensor)


def _parameters(node: ir.Node, rule: OpRule, opset: int) -> Cause | None:
    """Views hand integers on, so both sides must have the very same parameters."""
    if rule.role is not Role.VIEW:
        return None
    if node.op_type == "MaxPool" and opset < MAX_POOL_OPSET:
        why = "MaxPool runs on integers only from opset 12 on"
        return Cause(Reason.OPSET, why, "raise the opset of the model to 13")
    dq = source_of(node.inputs[0])
    quantizers = _quantizers(node)
    if dq is None:
        return None
    before = _parameters_of(dq)
    for q in quantizers:
        after = _parameters_of(q)
        if any(p is None or p.size != 1 for p in (*before, *after)):
            return Cause(
                Reason.PARAMETERS_FORM,
                f"{label(node)} passes integers on only if scale and zero point on both sides are "
                "there, constant, and one for the tensor",
                "give both sides a scalar scale and an explicit zero point",
            )
        if not all(_equal(a, b) for a, b in zip(before, after, strict=True)):
            return Cause(
                Reason.PARAMETERS_DIFFER,
                f"scale or zero point differ before and behind {label(node)}, which only moves "
                "values",
                "give both sides the same scale and zero point",
            )
        if node.op_type in ORDERED and before[0] is not None and float(before[0].min()) <= 0:
            return Cause(Reason.PARAMETERS_FORM, f"the scale around {label(node)} is not positive")
    return None


def _equal(a: Array | None, b: Array | None) -> bool:
    return a is not None and b is not None and np.array_equal(a.reshape(-1), b.reshape(-1))
