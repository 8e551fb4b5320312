"""What onnxq knows of each op: one row an op.

`weights` serve dynamic and static mode: which inputs may be constant weights, and along which axis
each has one scale per output channel. Paddle's convention where it names one: Conv 0,
ConvTranspose 1, MatMul and Gemm the output axis. An embedding table (Gather) has one scale a row:
rows are whole vectors that are read one at a time, and the norms of frequent and rare ones differ
widely. LSTM and GRU weights are [directions, gates * hidden, inputs]: one scale for each gate row.

`role` and the rest serve static mode (see placement/static.py):

core         a weighted op with an int8 kernel; it is why a network is quantized at all
elementwise  has an int8 kernel and parameters of its own; worth it only between quantized tensors
view         moves or selects values: its output has exactly its input's parameters
absorbed     Relu and Clip: the runtime drops them where the quantized range does their work
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

import onnx_ir as ir

__all__ = ["OP_TABLE", "OpRule", "Role", "WeightSlot", "gemm_output_axis", "rule_of"]


class Role(Enum):
    """What part an op plays in static mode; the module's docstring explains each."""

    CORE = "core"
    ELEMENTWISE = "elementwise"
    VIEW = "view"
    ABSORBED = "absorbed"
    WEIGHT_ONLY = "weight-only"


# node, rank of the weight -> axis of its output channels, None if it has none
ChannelAxis = Callable[[ir.Node, int], int | None]


@dataclass(frozen=True)
class WeightSlot:
    """An input that may be a constant weight. `kind` is the word for it in reports."""

    index: int
    axis: ChannelAxis
    kind: str = "weight"


@dataclass(frozen=True)
class OpRule:
    """One row of the table.

    activations: inputs that are quantized at run time; None for all of them (Concat).
    bias: input that is added in the accumulator's scale.
    unit_range: the output lies in 0..1 whatever the input (Sigmoid, Softmax).
    refuse: why a particular node cannot be quantized; None if it can.
    """

    role: Role
    activations: tuple[int, ...] | None = (0,)
    weights: tuple[WeightSlot, ...] = ()
    bias: int | None = None
    unit_range: bool = False
    refuse: Callable[[ir.Node], str | None] = lambda _: None

    def activation_inputs(self, node: ir.Node) -> list[int]:
        """Indices of the inputs of `node` that are activations (or constants in their place)."""
        count = len(node.inputs)
        wanted = range(count) if self.activations is None else self.activations
        return [i for i in wanted if i < count and node.inputs[i] is not None]


def _fixed(axis: int) -> ChannelAxis:
    return lambda _node, rank: axis if axis < rank else None


def _last(_node: ir.Node, rank: int) -> int | None:
    return rank - 1 if rank >= 2 else None


def _second_last(_node: ir.Node, rank: int) -> int | None:
    return rank - 2 if rank >= 2 else None


def gemm_output_axis(node: ir.Node) -> int:
    """Axis of Gemm's weight (input 1) along which its output channels lie."""
    return 0 if node.attributes.get_int("transB", 0) else 1


def _gemm_axis(node: ir.Node, rank: int) -> int | None:
    return gemm_output_axis(node) if rank == 2 else None


def _gather_rows(node: ir.Node, rank: int) -> int | None:
    return node.attributes.get_int("axis", 0) % rank if rank >= 2 else None


def _refuse_gemm(node: ir.Node) -> str | None:
    if node.attributes.get_int("transA", 0):
        return "Gemm with transA has no int8 kernel"
    if node.attributes.get_float("alpha", 1.0) != 1.0:
        return "Gemm with alpha other than 1 has no int8 kernel"
    if len(node.inputs) > 2 and node.attributes.get_float("beta", 1.0) != 1.0:
        return "Gemm with beta other than 1 has no int8 kernel"
    return None


def _refuse_pool_indices(node: ir.Node) -> str | None:
    if len(node.outputs) > 1 and node.outputs[1].uses():
        return "MaxPool that also gives indices has no int8 kernel"
    return None


def _refuse_resize(node: ir.Node) -> str | None:
    mode = node.attributes.get_string("mode", "nearest")
    if mode not in ("nearest", "linear"):
        return f"Resize in {mode} mode has no int8 kernel"
    return None


def _refuse_dilated_pool(node: ir.Node) -> str | None:
    if any(d != 1 for d in node.attributes.get_ints("dilations", [])):
        return "AveragePool with dilations has no int8 kernel"
    return None


_RNN = (WeightSlot(1, _fixed(1)), WeightSlot(2, _fixed(1), "recurrence weight"))
_VIEW = OpRule(Role.VIEW)
_PAIR = OpRule(Role.ELEMENTWISE, (0, 1))
_SINGLE = OpRule(Role.ELEMENTWISE)

OP_TABLE: dict[str, OpRule] = {
    "Conv": OpRule(Role.CORE, weights=(WeightSlot(1, _fixed(0)),), bias=2),
    "Gemm": OpRule(
        Role.CORE,
        weights=(WeightSlot(1, _gemm_axis),),
        bias=2,
        refuse=_refuse_gemm,
    ),
    "MatMul": OpRule(Role.CORE, weights=(WeightSlot(1, _last), WeightSlot(0, _second_last))),
    "ConvTranspose": OpRule(Role.WEIGHT_ONLY, weights=(WeightSlot(1, _fixed(1)),)),
    "LSTM": OpRule(Role.WEIGHT_ONLY, weights=_RNN),
    "GRU": OpRule(Role.WEIGHT_ONLY, weights=_RNN),
    "Gather": OpRule(Role.VIEW, weights=(WeightSlot(0, _gather_rows, "embedding"),)),
    "Add": _PAIR,
    "Mul": _PAIR,
    "Concat": OpRule(Role.ELEMENTWISE, None),
    "Where": OpRule(Role.ELEMENTWISE, (1, 2)),
    "AveragePool": OpRule(Role.ELEMENTWISE, refuse=_refuse_dilated_pool),
    "GlobalAveragePool": _SINGLE,
    "LeakyRelu": _SINGLE,
    "Sigmoid": OpRule(Role.ELEMENTWISE, unit_range=True),
    "Softmax": OpRule(Role.ELEMENTWISE, unit_range=True),
    "Relu": OpRule(Role.ABSORBED),
    "Clip": OpRule(Role.ABSORBED),
    "MaxPool": OpRule(Role.VIEW, refuse=_refuse_pool_indices),
    "Resize": OpRule(Role.VIEW, refuse=_refuse_resize),
    **dict.fromkeys(
        ("Expand", "Flatten", "Reshape", "Slice", "Split", "Squeeze", "Tile", "Transpose"), _VIEW
    ),
    "Unsqueeze": _VIEW,
}


def rule_of(node: ir.Node) -> OpRule | None:
    """The row for a node of the standard domain, else None."""
    return OP_TABLE.get(node.op_type) if node.domain == "" else None
