"""Static mode: quantize what runs in int8 on the target, and nothing else.

Each Q or DQ that does not fuse into an int8 kernel costs time, so the question for a node is
whether its inputs come as integers (supply) and its outputs are read as integers (demand):

1. Core nodes (Conv, Gemm, MatMul with a constant weight) are quantized. They are the reason.
2. Elementwise nodes (Add, Concat, ...) are quantized between such: if at least one input is
   supplied and an output is demanded. So all of a Softmax, a LayerNormalization or a Gelu stays
   float, whose inputs no core node supplies. A GlobalAveragePool needs no demand: turning its
   input to float costs more than the pooling itself.
3. Views (Reshape, MaxPool, ...) likewise; they share their input's parameters.
4. Relu and Clip right behind a quantized node stay in the file; the runtime drops them, as the
   quantized range does their work. The tensor that gets the parameters is theirs.
5. The output of a Gemm or MatMul stays float unless only core nodes read it: its kernels give float
   for free, and what follows in a transformer (bias, LayerNormalization, residual) is float. Not so
   where onnxruntime would merge a Gemm with the activation behind it into one float kernel.
6. A Conv's output is quantized always: without that it does not fuse.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable

import onnx_ir as ir

from onnxq.model import constant
from onnxq.optable import OpRule, Role, rule_of
from onnxq.placement.existing import (
    already_quantized,
    check_something_is_float,
    is_quantize,
)
from onnxq.placement.fused import float_regions
from onnxq.placement.weights import (
    EMPTY,
    NOT_FLOAT32,
    OVERRIDABLE,
    granularity_of,
    place_weights,
)
from onnxq.plans import (
    ActivationPlacement,
    BiasPlacement,
    Placement,
    Skip,
    Use,
    WeightPlacement,
)
from onnxq.prepare import Prepared
from onnxq.qtypes import INT8, QuantSpec
from onnxq.selection import Choice, Choices
from onnxq.targets import Target

__all__ = ["place_static"]

# Float outputs are free after these, and only these
FLOAT_OUTPUT = frozenset({"Gemm", "MatMul"})
# Activations that onnxruntime merges into a float Gemm
GEMM_FUSED = frozenset(
    {"Elu", "HardSigmoid", "LeakyRelu", "Relu", "Selu", "Sigmoid", "Softplus", "Softsign", "Tanh"}
    | {"ThresholdedRelu"}
)
BODIES = (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)


def place_static(
    prepared: Prepared, choices: Choices, target: Target, *, integer_io: bool = False
) -> Placement:
    """What of the main graph runs in int8 on the target.

    integer_io: the graph's float inputs and outputs are quantized too, whatever their readers.

    Raises ModelError for a model that is quantized already.
    """
    check_something_is_float(prepared, static=True)
    return _Placer(prepared, choices, target, integer_io).place()


class _Placer:
    """Collects one placement; lives as long as `place_static` runs."""

    def __init__(
        self, prepared: Prepared, choices: Choices, target: Target, integer_io: bool
    ) -> None:
        self.prepared, self.choices, self.target = prepared, choices, target
        self.integer_io = integer_io
        self.graph = prepared.ir.graph
        self.skips: list[Skip] = []
        self.rules: dict[ir.Node, OpRule] = {}
        fused = float_regions(self.graph)
        integer = already_quantized(prepared)
        for node in self.graph:
            rule = rule_of(node)
            name = node.name or ""
            choice = choices.of(node)
            reason = integer.get(name) or choice.left or fused.get(name)
            reason = reason or self._refusal(node, rule)
            if reason is None and choice.bits > INT8.bits:
                reason = f"{choice.bits} bits have no int8 kernel: it calculates in float"
            if rule is not None and reason is None:
                self.rules[node] = rule
            elif reason is not None and (name in integer or _is_float(node)):
                self._skip(node, reason)
        self.demanded = _Memo(self._is_demanded)
        self.core_only = _Memo(self._is_read_by_core_only)
        for node in reversed(self.graph):  # readers first, so that no question recurses deeply
            for output in node.outputs:
                self.demanded(output), self.core_only(output)
        self.quantized: dict[ir.Node, OpRule] = {}
        # tensors that exist as integers: their producers fuse with a Q
        self.integers: set[ir.Value] = set()
        self.borders: list[ir.Value] = []  # float inputs and outputs that become integers

    def place(self) -> Placement:
        for node in self.graph:
            rule = self.rules.get(node)
            if rule is None or rule.role is Role.ABSORBED:
                continue
            if self._takes_part(node, rule):
                self.quantized[node] = rule
                self.integers.update(self._integer_outputs(node))
            elif rule.role is Role.ELEMENTWISE:
                self._skip(node, "not between quantized tensors: int8 would cost time here")
        if self.integer_io:
            ends = (*self.graph.inputs, *self.graph.outputs)
            self.borders = [value for value in ends if _becomes_integer(value)]
            self.integers.update(self.borders)
        weights, biases = self._weights(), self._biases()
        self._skip_bodies()
        return Placement(
            weights=weights,
            activations=self._activations(),
            biases=biases,
            skips=tuple(self.skips),
            target=self.target.name,
            guarded=self._guarded(),
            measured=self._measured(),
            integer_io=self.integer_io,
            labels={n.name or "": self.prepared.names.label(n) for n in self.graph},
        )

    # which nodes

    def _refusal(self, node: ir.Node, rule: OpRule | None) -> str | None:
        """Why a node cannot run in int8, None if it can."""
        if rule is None:
            if any(a.type in BODIES for a in node.attributes.values()):
                return f"{node.op_type}: static mode leaves what is in its bodies"
            if node.domain not in ("", "ai.onnx"):
                return f"op of domain {node.domain}: left as it is"
            return f"{node.op_type} has no int8 kernel on {self.target.name}"
        if node.op_type not in self.target.ops:
            return f"{node.op_type} has no int8 kernel on {self.target.name}"
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
            bias = constant(self._bias(node, rule))
            if bias is not None and bias.size not in (1, channels):
                return "its bias is not one value for each output channel"
        return rule.refuse(node)

    def _takes_part(self, node: ir.Node, rule: OpRule) -> bool:
        if rule.role is Role.CORE:
            return True
        if self.target.skip_input_only:
            return node.op_type == "Add" and self._skip_branch(node) is not None
        demanded = any(self.demanded(output) for output in node.outputs)
        if rule.role is Role.VIEW:
            source = node.inputs[0]
            return demanded and source is not None and self._supplied(source)
        inputs = [node.inputs[i] for i in rule.activation_inputs(node)]
        supplied = any(v is not None and self._supplied(v) for v in inputs)
        return supplied and (demanded or rule.shrinks)

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
        if self.integer_io and value.is_graph_output():
            return True
        for node, index in value.uses():
            rule = self.rules.get(node)
            if rule is None or node.graph is not self.graph:
                continue
            if rule.role is Role.CORE and index == 0:
                return True
            if index in rule.activation_inputs(node) and any(map(self.demanded, node.outputs)):
                return True
        return False

    def _is_read_by_core_only(self, value: ir.Value) -> bool:
        if value.is_graph_output() and not self.integer_io:
            return False
        if not value.uses() and not value.is_graph_output():
            return False
        for node, index in value.uses():
            rule = self.rules.get(node)
            if rule is None or node.graph is not self.graph:
                return False
            passes = rule.role in (Role.VIEW, Role.ABSORBED) and index == 0
            if not (rule.role is Role.CORE and index == 0) and not (
                passes and all(map(self.core_only, node.outputs))
            ):
                return False
        return True

    # which tensors

    def _integer_outputs(self, node: ir.Node) -> list[ir.Value]:
        """The outputs of a quantized node that get a Q: behind an absorbed Relu or Clip, if any."""
        if not self.target.quantized_outputs:
            return []
        read = [o for o in node.outputs if o.uses() or o.is_graph_output()]
        if self.quantized[node].role is Role.VIEW:
            return read  # a Relu behind it has parameters of its own
        values = [self._behind_absorbed(output) for output in read]
        if node.op_type in FLOAT_OUTPUT and not self._would_fuse_in_float(node):
            return [value for value in values if self.core_only(value)]
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

    def _quantized_inputs(self, node: ir.Node, rule: OpRule) -> list[tuple[int, ir.Value]]:
        indices = rule.activation_inputs(node)
        if self.target.skip_input_only and node.op_type == "Add":
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

    def _activations(self) -> tuple[ActivationPlacement, ...]:
        uses: dict[ir.Value, list[Use]] = {value: [] for value in self.graph.inputs}
        for node, rule in self.quantized.items():
            for i, value in self._quantized_inputs(node, rule):
                if constant(value) is None:
                    uses.setdefault(value, []).append(Use(node.name or "", i))
            for value in self._integer_outputs(node):
                uses.setdefault(value, [])
        for value in self.borders:
            uses.setdefault(value, [])
        return tuple(
            ActivationPlacement(
                tensor=value.name or "",
                spec=self._spec(value),
                owner=self._owner(value).name or "",
                uses=tuple(sorted(found)),
                method=self._choice(value).method,
                requantized=value in self.integers,
                unit_range=self._is_unit_range(value),
                joins=self._joins(value, uses.keys()),
            )
            for value, found in uses.items()
            if found or value in self.integers
        )

    def _choice(self, value: ir.Value) -> Choice:
        """The user's settings for a tensor: of the node whose range it has, and of a Relu on it."""
        owner = self._owner(value)
        givers: list[ir.Node] = []
        node = owner.producer()
        while node is not None:
            givers.append(node)
            source = node.inputs[0] if node.inputs else None
            if node not in self.rules or self.rules[node].role is not Role.ABSORBED:
                break
            node = source.producer() if source is not None else None
        return self.choices.of_tensor(owner, givers)

    def _spec(self, value: ir.Value) -> QuantSpec:
        asked = self._choice(value).symmetric
        spec = self.target.activation
        return spec if asked is None else dataclasses.replace(spec, symmetric=asked)

    def _owner(self, value: ir.Value) -> ir.Value:
        """The tensor whose range a view passes on (whether the view runs in int8 or not)."""
        node = value.producer()
        while node is not None and node in self.rules and self.rules[node].role is Role.VIEW:
            source = node.inputs[0]
            if source is None or source.is_initializer():
                break
            value, node = source, source.producer()
        return value

    def _joins(self, value: ir.Value, placed: Iterable[ir.Value]) -> tuple[str, ...]:
        """The owners of what a quantized Concat puts together, if all of it is quantized.

        With the union of their ranges, the widest part keeps its very parameters, and the runtime
        copies its integers in place of translating them.
        """
        node = self._owner(value).producer()
        if node is None or node.op_type != "Concat" or node not in self.quantized:
            return ()
        known = set(placed)
        if not all(v in known for v in node.inputs if v is not None):
            return ()
        return tuple(sorted({self._owner(v).name or "" for v in node.inputs if v is not None}))

    def _is_unit_range(self, value: ir.Value) -> bool:
        node = self._owner(value).producer()
        return node is not None and node in self.quantized and self.quantized[node].unit_range

    # weights, constants and biases

    def _weights(self) -> tuple[WeightPlacement, ...]:
        uses: dict[ir.Value, list[tuple[ir.Node, Use, int | None]]] = {}
        constants: dict[ir.Value, list[Use]] = {}
        for node, rule in self.quantized.items():
            if rule.role is Role.CORE:
                weight = node.inputs[1]
                assert weight is not None
                assert weight.const_value is not None
                axis = rule.weights[0].axis(node, weight.const_value.shape.rank())
                uses.setdefault(weight, []).append((node, Use(node.name or "", 1), axis))
                continue
            for i, value in self._quantized_inputs(node, rule):
                if constant(value) is not None:
                    constants.setdefault(value, []).append(Use(node.name or "", i))
        placed = []
        for weight, found in uses.items():
            axes = {axis for _, _, axis in found}
            granularity = granularity_of(axes, [self.choices.of(node) for node, _, _ in found])
            spec = QuantSpec(INT8, granularity, symmetric=True)
            readers = tuple(use for _, use, _ in found)
            placed.append(self._weight(weight, spec, readers, "weight"))
        for value, readers_of in constants.items():
            spec = self.target.activation
            placed.append(self._weight(value, spec, tuple(readers_of), "constant"))
        known = {weight.tensor for weight in placed}
        return (*placed, *(w for w in self._stored() if w.tensor not in known))

    def _stored(self) -> list[WeightPlacement]:
        """Weights of nodes that the recipe wants in more than 8 bits: stored so, read as float.

        As Cast and Mul: the session option by which onnxruntime folds a DequantizeLinear at load
        would undo the int8 part too.
        """
        wide = {
            node.name
            for node in ir.traversal.RecursiveGraphIterator(self.graph)
            if (choice := self.choices.of(node)).bits > INT8.bits and choice.left is None
        }
        if not wide:
            return []
        weights = place_weights(self.prepared, self.choices, "fold").weights
        return [w for w in weights if w.spec.qtype.bits > INT8.bits]

    def _weight(
        self, value: ir.Value, spec: QuantSpec, uses: tuple[Use, ...], kind: str
    ) -> WeightPlacement:
        others = value.is_graph_output() or len(value.uses()) > len(uses)
        return WeightPlacement(value.name or "", spec, tuple(sorted(uses)), "kernel", kind, others)

    def _bias(self, node: ir.Node, rule: OpRule) -> ir.Value | None:
        return node.inputs[rule.bias] if rule.bias and len(node.inputs) > rule.bias else None

    def _biases(self) -> tuple[BiasPlacement, ...]:
        placed = []
        for node, rule in self.quantized.items():
            bias, data, weight = self._bias(node, rule), node.inputs[0], node.inputs[1:2]
            if not self.target.integer_bias or bias is None or rule.bias is None or data is None:
                continue
            if constant(bias) is None:
                self._skip(node, "its bias is not a constant and stays float")
                continue
            name = weight[0].name if weight and weight[0] is not None else ""
            use = Use(node.name or "", rule.bias)
            placed.append(BiasPlacement(bias.name or "", use, data.name or "", name or ""))
        return tuple(placed)

    # the rest

    def _guarded(self) -> tuple[str, ...]:
        """Float Conv and Gemm between a DQ and a Q, which onnxruntime quantizes on its own."""
        quantized = {u.node for a in self._activations() for u in a.uses}
        entering = {v for n, r in self.quantized.items() for _, v in self._quantized_inputs(n, r)}
        guarded = []
        for node in self.graph:
            if node.op_type not in ("Conv", "Gemm") or node.domain or (node.name in quantized):
                continue
            source, end = node.inputs[0], node.outputs[0]
            while len(end.uses()) == 1 and (u := next(iter(end.uses()))[0]).op_type in (
                "Relu",
                "Clip",
            ):
                end = u.outputs[0]
            if source in self.integers and end in entering:
                guarded.append(node.name or "")
        return tuple(guarded)

    def _measured(self) -> dict[str, int]:
        """Outputs of core nodes with the axis of their channels."""
        return {
            node.outputs[0].name or "": 1 if node.op_type == "Conv" else -1
            for node, rule in self.quantized.items()
            if rule.role is Role.CORE
        }

    def _skip(self, node: ir.Node, reason: str) -> None:
        rule = rule_of(node)
        slots = rule.weights if rule is not None else ()
        tensors = [constant(node.inputs[s.index]) for s in slots if s.index < len(node.inputs)]
        size = sum(t.nbytes for t in tensors if t is not None)
        label = self.prepared.names.label(node)
        self.skips.append(Skip("node", label, node.op_type, reason, size))

    def _skip_bodies(self) -> None:
        for node in ir.traversal.RecursiveGraphIterator(self.graph):
            rule = rule_of(node)
            if node.graph is self.graph or rule is None:
                continue
            if any(constant(node.inputs[slot.index]) for slot in rule.weights):
                self._skip(node, "in the body of an If, Loop or Scan: static mode leaves those")


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
