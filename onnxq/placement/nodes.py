"""Which nodes run in int8 on a target: static mode quantizes what does, and nothing else.

Each Q or DQ that does not fuse into an int8 kernel costs time, so the question for a node is
whether its inputs come as integers (supply) and its outputs are read as integers (demand):

1. Core nodes (Conv, Gemm, MatMul with a constant weight) are quantized. They are the reason.
2. Elementwise nodes (Add, Concat, ...) are quantized between such: if at least one input is
   supplied and an output is demanded. So all of a Softmax, a LayerNormalization or a Gelu stays
   float, whose inputs no core node supplies; and a GlobalAveragePool that gives class scores, of
   which the best ones are often equal in 8 bits.
3. Views (Reshape, MaxPool, ...) likewise; they share their input's parameters.
4. Relu and Clip right behind a quantized node stay in the file; the runtime drops them, as the
   quantized range does their work. The tensor that gets the parameters is theirs.
5. The output of a Gemm or MatMul stays float unless only core nodes read it: its kernels give float
   for free, and what follows in a transformer (bias, LayerNormalization, residual) is float. Not so
   where onnxruntime would merge a Gemm with the activation behind it into one float kernel.
6. A Conv's output is quantized always: without that it does not fuse.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

import onnx_ir as ir

from onnxq.model import constant
from onnxq.optable import OpRule, Role, rule_of
from onnxq.placement.existing import already_quantized, is_quantize
from onnxq.placement.fused import float_regions
from onnxq.placement.weights import EMPTY, NOT_FLOAT32, OVERRIDABLE
from onnxq.plans import Skip
from onnxq.prepare import Prepared
from onnxq.selection import Choices
from onnxq.targets import Target

__all__ = ["ChosenNodes", "bias_of"]

# Float outputs are free after these, and only these
FLOAT_OUTPUT = frozenset({"Gemm", "MatMul"})
# Activations that onnxruntime merges into a float Gemm
GEMM_FUSED = frozenset(
    {"Elu", "HardSigmoid", "LeakyRelu", "Relu", "Selu", "Sigmoid", "Softplus", "Softsign", "Tanh"}
    | {"ThresholdedRelu"}
)
BODIES = (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)


class ChosenNodes:
    """The nodes of the main graph that run in int8, and the tensors that are integers with them.

    rules: the nodes that could, by the op table, the target and the user's choices.
    quantized: those that do.
    integers: tensors that exist as integers, because their producers fuse with a QuantizeLinear.
    borders: float inputs and outputs of the graph that become integers.
    wide: those that the user wants in more than 8 bits, for which there are no kernels.

    refused: node name -> reason, for those that would lose time in int8 (see paying.py).
    """

    def __init__(
        self,
        prepared: Prepared,
        choices: Choices,
        target: Target,
        integer_io: bool,
        refused: Mapping[str, str],
    ) -> None:
        self._prepared, self._target, self._integer_io = prepared, target, integer_io
        self._graph = prepared.ir.graph
        self._refused = refused
        self._left: list[tuple[ir.Node, str]] = []
        self.wide: set[ir.Node] = set()
        self.rules: dict[ir.Node, OpRule] = {}
        self.quantized: dict[ir.Node, OpRule] = {}
        self.integers: set[ir.Value] = set()
        self.borders: list[ir.Value] = []
        self._consider(choices, target)
        self._demanded = _Memo(self._is_demanded)
        self._core_only = _Memo(self._is_read_by_core_only)
        for node in reversed(self._graph):  # readers first, so that no question recurses deeply
            for output in node.outputs:
                self._demanded(output), self._core_only(output)
        self._choose()

    def _consider(self, choices: Choices, target: Target) -> None:
        fused = float_regions(self._graph)
        integer = already_quantized(self._prepared)
        for node in self._graph:
            rule = rule_of(node)
            name = node.name or ""
            choice = choices.of(node)
            reason = integer.get(name) or choice.left or fused.get(name)
            reason = reason or self._refusal(node, rule) or self._refused.get(name)
            if choice.bits > target.weight.bits and choice.left is None:
                self.wide.add(node)
            if reason is None and node in self.wide:
                self.leave(node, f"{choice.bits} bits have no int8 kernel: it calculates in float")
            elif rule is not None and reason is None:
                self.rules[node] = rule
            elif reason is not None and (name in integer or _is_float(node)):
                self.leave(node, reason)

    def _choose(self) -> None:
        for node in self._graph:
            rule = self.rules.get(node)
            if rule is None or rule.role is Role.ABSORBED:
                continue
            if self._takes_part(node, rule):
                self.quantized[node] = rule
                self.integers.update(self.integer_outputs(node))
            elif rule.role is Role.ELEMENTWISE:
                self.leave(node, "not between quantized tensors: int8 would cost time here")
        if self._integer_io:
            ends = (*self._graph.inputs, *self._graph.outputs)
            self.borders = [value for value in ends if _becomes_integer(value)]
            self.integers.update(self.borders)

    def leave(self, node: ir.Node, reason: str) -> None:
        """Note that a node stays float."""
        self._left.append((node, reason))

    def skips(self, stored: Collection[str]) -> tuple[Skip, ...]:
        """The nodes that stay float. stored: weights that become integers all the same."""
        return tuple(self._skip(node, reason, stored) for node, reason in self._left)

    def _skip(self, node: ir.Node, reason: str, stored: Collection[str]) -> Skip:
        rule = rule_of(node)
        slots = rule.weights if rule is not None else ()
        weights = [
            (value.name, tensor)
            for slot in slots
            if slot.index < len(node.inputs)
            and (value := node.inputs[slot.index]) is not None
            and (tensor := constant(value)) is not None
        ]
        kept = [tensor for name, tensor in weights if name not in stored]
        if weights and not kept:
            reason += "; its weights are stored in 16 bits"
        elif node in self.wide and kept:
            reason += "; its weight stays float, as others read it in 8 bits or in float"
        label = self._prepared.names.label(node)
        return Skip("node", label, node.op_type, reason, sum(t.nbytes for t in kept))

    def _refusal(self, node: ir.Node, rule: OpRule | None) -> str | None:
        """Why a node cannot run in int8, None if it can."""
        if rule is None:
            if any(a.type in BODIES for a in node.attributes.values()):
                return f"{node.op_type}: static mode leaves what is in its bodies"
            if node.domain not in ("", "ai.onnx"):
                return f"op of domain {node.domain}: left as it is"
            return f"{node.op_type} has no int8 kernel on {self._target.name}"
        if node.op_type not in self._target.ops:
            return f"{node.op_type} has no int8 kernel on {self._target.name}"
        operands = [node.inputs[i] for i in rule.activation_inputs(node)]
        if any(v is not None and v.is_graph_input() and v.is_initializer() for v in operands):
            return OVERRIDABLE
        if rule.role is Role.CORE:
            weight = node.inputs[1] if len(node.inputs) > 1 else None
            tensor = constant(weight)
            if tensor is None and weight is not None and weight.is_initializer():
                return OVERRIDABLE
            if tensor is None:
                return "its weight is not a constant"
            if tensor.dtype != ir.DataType.FLOAT:
                return NOT_FLOAT32.format(tensor.dtype.name.lower())
            if tensor.size == 0:
                return EMPTY
            if node.op_type == "MatMul" and tensor.shape.rank() != 2:
                return "its weight is not of rank 2"
            axis = rule.weights[0].axis(node, tensor.shape.rank())
            if axis is None:
                return f"its weight is of rank {tensor.shape.rank()}"
            channels = tensor.shape[axis]
            bias = constant(bias_of(node, rule))
            if bias is not None and bias.size not in (1, channels):
                return "its bias is not one value for each output channel"
        return rule.refuse(node)

    def _takes_part(self, node: ir.Node, rule: OpRule) -> bool:
        if rule.role is Role.CORE:
            return True
        if self._target.skip_input_only:
            return node.op_type == "Add" and self._skip_branch(node) is not None
        demanded = any(self._demanded(output) for output in node.outputs)
        if rule.role is Role.VIEW:
            source = node.inputs[0]
            return demanded and source is not None and self._supplied(source)
        inputs = [node.inputs[i] for i in rule.activation_inputs(node)]
        supplied = any(v is not None and self._supplied(v) for v in inputs)
        return supplied and demanded

    def _supplied(self, value: ir.Value) -> bool:
        """The value exists as integers, or has to because a core node reads it."""
        if value in self.integers:
            return True
        return constant(value) is None and any(
            (rule := self.rules.get(node)) is not None and rule.role is Role.CORE and index == 0
            for node, index in value.uses()
        )

    def _is_demanded(self, value: ir.Value) -> bool:
        """Some reader takes integers: a core node, or one that hands them on to such."""
        if self._integer_io and value.is_graph_output():
            return True
        for node, index in value.uses():
            rule = self.rules.get(node)
            if rule is None or node.graph is not self._graph:
                continue
            if rule.role is Role.CORE and index == 0:
                return True
            if index in rule.activation_inputs(node) and any(map(self._demanded, node.outputs)):
                return True
        return False

    def _is_read_by_core_only(self, value: ir.Value) -> bool:
        if value.is_graph_output() and not self._integer_io:
            return False
        if not value.uses() and not value.is_graph_output():
            return False
        for node, index in value.uses():
            rule = self.rules.get(node)
            if rule is None or node.graph is not self._graph:
                return False
            passes = rule.role in (Role.VIEW, Role.ABSORBED) and index == 0
            if not (rule.role is Role.CORE and index == 0) and not (
                passes and all(map(self._core_only, node.outputs))
            ):
                return False
        return True

    def integer_outputs(self, node: ir.Node) -> list[ir.Value]:
        """The outputs of a quantized node that get a Q: behind an absorbed Relu or Clip, if any."""
        if not self._target.quantized_outputs:
            return []
        read = [o for o in node.outputs if o.uses() or o.is_graph_output()]
        if self.quantized[node].role is Role.VIEW:
            return read  # a Relu behind it has parameters of its own
        values = [self._behind_absorbed(output) for output in read]
        if node.op_type in FLOAT_OUTPUT and not self._would_fuse_in_float(node):
            return [value for value in values if self._core_only(value)]
        return values

    def _would_fuse_in_float(self, node: ir.Node) -> bool:
        """A Gemm that onnxruntime merges with the activation behind it before it looks for int8."""
        readers = [reader for output in node.outputs for reader, _ in output.uses()]
        return node.op_type == "Gemm" and len(readers) == 1 and readers[0].op_type in GEMM_FUSED

    def _behind_absorbed(self, value: ir.Value) -> ir.Value:
        while len(value.uses()) == 1 and not value.is_graph_output():
            node, index = next(iter(value.uses()))
            rule = self.rules.get(node)
            if rule is None or rule.role is not Role.ABSORBED or index != 0:
                break
            value = node.outputs[0]
        return value

    def quantized_inputs(self, node: ir.Node, rule: OpRule) -> list[tuple[int, ir.Value]]:
        """Index and value of each input of a quantized node that is read as integers."""
        indices = rule.activation_inputs(node)
        if self._target.skip_input_only and node.op_type == "Add":
            branch = self._skip_branch(node)
            indices = [] if branch is None else [branch]
        return [(i, v) for i in indices if (v := node.inputs[i]) is not None]

    def _skip_branch(self, node: ir.Node) -> int | None:
        """The input of a residual Add that does not come straight from a weighted node."""
        straight = [
            v is not None and (p := v.producer()) is not None and p in self.quantized
            for v in node.inputs
        ]
        if sum(straight) == 0 or any(constant(v) is not None for v in node.inputs):
            return None
        return 0 if straight[1] else 1


def bias_of(node: ir.Node, rule: OpRule) -> ir.Value | None:
    """The input that is added in the accumulator's scale, if the node has one."""
    return node.inputs[rule.bias] if rule.bias and len(node.inputs) > rule.bias else None


def _is_float(node: ir.Node) -> bool:
    """False for nodes that calculate shapes and indices, which nobody expects to be quantized.

    And for those that quantize already.
    """
    if is_quantize(node):
        return False
    known = [output.dtype for output in node.outputs if output.dtype is not None]
    return not known or any(dtype.is_floating_point() for dtype in known)


def _becomes_integer(value: ir.Value) -> bool:
    """Whether `integer_io` applies: a float32 input that a caller gives, or an output of a node."""
    if value.dtype != ir.DataType.FLOAT or value.is_initializer():
        return False
    return value.is_graph_input() != value.is_graph_output()


class _Memo:
    """A recursive question about values, answered once each; values are visited by identity."""

    def __init__(self, question: Callable[[ir.Value], bool]) -> None:
        self._question = question
        self._known: dict[ir.Value, bool] = {}

    def __call__(self, value: ir.Value) -> bool:
        if value not in self._known:
            self._known[value] = self._question(value)
        return self._known[value]
