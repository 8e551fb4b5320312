"""Paddle's names of operators, and which nodes of the ONNX model they mean.

1. Weighted operators are what PaddleSlim quantizes. `conv2d` and `depthwise_conv2d` are both Conv;
   the groups tell them apart. `mul`, `matmul` and `matmul_v2` are all MatMul or Gemm with a
   constant weight (Linear layers): which of them a node was is not in the ONNX model, so one
   stands for all.
2. The others follow: with integers on both sides they run on integers, else they stay float. So
   naming one is the same as not naming it. (PaddleSlim observes all of them as well, and leaves
   the choice to the runtime.)
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence

import onnx_ir as ir

from onnxq.errors import OptionError
from onnxq.model import constant
from onnxq.near import near
from onnxq.optable import rule_of
from onnxq.recipe import names

__all__ = ["DYNAMIC_OPS", "FOLLOWING", "STATIC_OPS", "check_ops", "left_float", "skipped"]

_LINEAR = frozenset({"mul", "matmul", "matmul_v2"})
_TABLE = frozenset({"lookup_table", "lookup_table_v2"})
_RECURRENT = frozenset({"lstm", "gru", "rnn"})

STATIC_OPS = frozenset({"conv2d", "depthwise_conv2d", "conv2d_transpose"}) | _LINEAR
DYNAMIC_OPS = STATIC_OPS | _TABLE | _RECURRENT

# Operators of which ONNX has a node with an int8 kernel, or one that passes int8 through
FOLLOWING: Mapping[str, tuple[str, ...]] = {
    "ONNX's Add and Mul": ("elementwise_add", "elementwise_mul"),
    "pooling": ("pool2d",),
    "activations": ("relu", "relu6", "leaky_relu", "sigmoid", "softmax", "clip"),
    "views": (
        *("concat", "expand_v2", "flatten", "flatten2", "flatten_contiguous_range", "gather"),
        *("reshape", "reshape2", "slice", "split", "squeeze", "squeeze2", "tile", "transpose"),
        *("transpose2", "unsqueeze2", "where"),
    ),
    "resizing": (
        *("nearest_interp", "nearest_interp_v2", "bilinear_interp", "bilinear_interp_v2"),
    ),
}
_FOLLOWING = frozenset(name for group in FOLLOWING.values() for name in group)


def check_ops(asked: Sequence[str] | None, *, static: bool) -> frozenset[str]:
    """The names of weighted operators among those asked for.

    Raises OptionError, which lists the known ones, for a name that means nothing here.
    """
    weighted = STATIC_OPS if static else DYNAMIC_OPS
    known = weighted | _FOLLOWING if static else weighted
    wanted = names("quantizable_op_type", asked or ())
    for name in wanted:
        if name not in known:
            close = near(name, known)
            raise OptionError(
                f"quantizable_op_type: {_why_not(name, static=static)}"
                f"{close if 'near' in close else ''}; known are {', '.join(sorted(known))}"
            )
    if not wanted and not static:
        raise OptionError("quantizable_op_type names no operator: nothing would be quantized")
    return frozenset(wanted) & weighted if wanted else weighted


def _why_not(name: str, *, static: bool) -> str:
    if static and name in DYNAMIC_OPS:
        return f"the weights of {name!r} can be quantized by quant_post_dynamic alone"
    if not static and name in _FOLLOWING:
        return f"{name!r} has no weights, and quant_post_dynamic quantizes nothing else"
    return f"there is no int8 kernel for {name!r}, or no such operator"


def left_float(model: ir.Model, wanted: Collection[str]) -> tuple[str, ...]:
    """Names that stand for the weighted nodes of which no Paddle name is wanted."""
    return tuple(
        _name(node)
        for node in ir.traversal.RecursiveGraphIterator(model.graph)
        if (meant := _paddle_names(node)) and not meant & set(wanted)
    )


def skipped(model: ir.Model, tensors: Sequence[str]) -> tuple[str, ...]:
    """Names that stand for the nodes that read one of the tensors.

    Raises OptionError for a tensor that no node reads.
    """
    readers: dict[str, list[str]] = {}
    for node in ir.traversal.RecursiveGraphIterator(model.graph):
        for value in node.inputs:
            if value is not None and value.name:
                readers.setdefault(value.name, []).append(_name(node))
    found: dict[str, None] = {}
    for name in names("skip_tensor_list", tensors):
        if name not in readers:
            raise OptionError(
                f"skip_tensor_list: no operator of the exported model reads {name!r}"
                f"{near(name, set(readers))}; onnxq inspect lists the tensors"
            )
        found |= dict.fromkeys(readers[name])
    return tuple(found)


def _name(node: ir.Node) -> str:
    """Of what a node gives: tensors always have a name of their own."""
    return next(filter(None, _outputs(node)), node.name or "")


def _outputs(node: ir.Node) -> Iterator[str]:
    return (value.name or "" for value in node.outputs)


def _paddle_names(node: ir.Node) -> frozenset[str]:
    """What Paddle may have called a node with constant weights; empty if it has none."""
    rule = rule_of(node)
    slots = [] if rule is None else [slot.index for slot in rule.weights]
    weights = [constant(node.inputs[i]) for i in slots if i < len(node.inputs)]
    tensor = next((weight for weight in weights if weight is not None), None)
    if tensor is None:
        return frozenset()
    if node.op_type == "Conv":
        grouped = node.attributes.get_int("group", 1) > 1
        depthwise = grouped and tensor.shape.rank() > 1 and tensor.shape[1] == 1
        rank = tensor.shape.rank() - 2
        return frozenset({f"{'depthwise_' if depthwise else ''}conv{rank}d"})
    if node.op_type == "ConvTranspose":
        return frozenset({f"conv{tensor.shape.rank() - 2}d_transpose"})
    return {"MatMul": _LINEAR, "Gemm": _LINEAR, "Gather": _TABLE}.get(node.op_type, _RECURRENT)
