"""Static mode: from the nodes that run in int8 to the tensors that get parameters.

nodes.py says which nodes those are; here their inputs and outputs, weights and biases are placed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

import onnx_ir as ir

from onnxq.model import constant
from onnxq.optable import Role, rule_of
from onnxq.placement.curves import curve_behind
from onnxq.placement.existing import check_something_is_float
from onnxq.placement.nodes import ChosenNodes, bias_of
from onnxq.placement.padding import with_padding
from onnxq.placement.weights import granularity_of, place_weights
from onnxq.plans import (
    ActivationPlacement,
    BiasPlacement,
    Placement,
    Use,
    WeightPlacement,
)
from onnxq.prepare import Prepared
from onnxq.qtypes import INT8, QuantSpec
from onnxq.selection import Choice, Choices
from onnxq.targets import Target

__all__ = ["place_static"]


def place_static(
    prepared: Prepared, choices: Choices, target: Target, *, integer_io: bool = False
) -> Placement:
    """What of the main graph runs in int8 on the target.

    integer_io: the graph's float inputs and outputs are quantized too, whatever their readers.

    Raises ModelError for a model that is quantized already.
    """
    check_something_is_float(prepared, static=True)
    refused: dict[str, str] = {}
    while True:
        chosen = ChosenNodes(prepared, choices, target, integer_io, refused)
        placement = _Placer(prepared, choices, target, chosen).place()
        if target.costs is None:
            return placement
        from onnxq.placement.paying import losing  # dynamic mode needs none of it

        found = losing(prepared, placement, choices, target.costs, refused)
        if not found:
            return placement
        refused |= found  # these are in no later placement, so that this ends


class _Placer:
    """Collects one placement; lives as long as `place_static` runs."""

    def __init__(
        self, prepared: Prepared, choices: Choices, target: Target, chosen: ChosenNodes
    ) -> None:
        self.prepared, self.choices, self.target, self.chosen = prepared, choices, target, chosen
        self.graph = prepared.ir.graph
        self.quantized, self.integers = chosen.quantized, chosen.integers
        self.owners: dict[ir.Value, ir.Value] = {}
        for node in self.graph:  # in this order no question recurses deeply
            for output in node.outputs:
                self._owner(output)

    def place(self) -> Placement:
        kernels, biases = self._weights(), self._biases()
        known = {weight.tensor for weight in kernels}
        stored = [weight for weight in self._stored() if weight.tensor not in known]
        self._leave_bodies()
        activations = self._activations()
        if self.target.paddings:
            kernels = with_padding(kernels, self.graph, activations, self.target.paddings)
        return Placement(
            weights=(*kernels, *stored),
            activations=activations,
            biases=biases,
            skips=self.chosen.skips({weight.tensor for weight in stored}),
            target=self.target.name,
            guarded=self._guarded(activations),
            borders=frozenset(value.name or "" for value in self.chosen.borders),
            labels={n.name or "": self.prepared.names.label(n) for n in self.graph},
        )

    # activations

    def _activations(self) -> tuple[ActivationPlacement, ...]:
        uses: dict[ir.Value, list[Use]] = {value: [] for value in self.graph.inputs}
        for node, rule in self.quantized.items():
            for i, value in self.chosen.quantized_inputs(node, rule):
                if constant(value) is None:
                    uses.setdefault(value, []).append(Use(node.name or "", i))
            for value in self.chosen.integer_outputs(node):
                uses.setdefault(value, [])
        for value in self.chosen.borders:
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
                tied=self._is_tied(value) and not self._choice(value).ruled,
                ruled=self._choice(value).ruled,
                curve=curve_behind(self._owner(value)),
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
            if node not in self.chosen.rules or self.chosen.rules[node].role is not Role.ABSORBED:
                break
            node = source.producer() if source is not None else None
        return self.choices.of_tensor(owner, givers)

    def _spec(self, value: ir.Value) -> QuantSpec:
        asked = self._choice(value).symmetric
        spec = self.target.activation
        return spec if asked is None else dataclasses.replace(spec, symmetric=asked)

    def _owner(self, value: ir.Value) -> ir.Value:
        """The tensor whose range a view passes on (whether the view runs in int8 or not)."""
        if value not in self.owners:
            self.owners[value] = self._find_owner(value)
        return self.owners[value]

    def _find_owner(self, value: ir.Value) -> ir.Value:
        node = value.producer()
        if node is None or node not in self.chosen.rules:
            return value
        source = node.inputs[0]
        if self.chosen.rules[node].role is not Role.VIEW or source is None:
            return value
        return value if source.is_initializer() else self._owner(source)

    def _joins(self, value: ir.Value, placed: Iterable[ir.Value]) -> tuple[str, ...]:
        """The owners of what a quantized Concat puts together, if all of it is quantized.

        Its range is the union of theirs.
        """
        node = self._owner(value).producer()
        if node is None or node.op_type != "Concat" or node not in self.quantized:
            return ()
        known = set(placed)
        if not all(v in known for v in node.inputs if v is not None):
            return ()
        return tuple(sorted({self._owner(v).name or "" for v in node.inputs if v is not None}))

    def _is_tied(self, value: ir.Value) -> bool:
        """A quantized Concat is all that reads it: it gets the Concat's parameters.

        In finer ones of its own it would be rounded twice, and the runtime would have to translate
        it in place of copying it.
        """
        if self._owner(value) is not value or len(value.uses()) != 1 or value.is_graph_output():
            return False
        node, _ = next(iter(value.uses()))
        return node.op_type == "Concat" and node in self.quantized

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
            for i, value in self.chosen.quantized_inputs(node, rule):
                if constant(value) is not None:
                    constants.setdefault(value, []).append(Use(node.name or "", i))
        placed = []
        for weight, found in uses.items():
            axes = {axis for _, _, axis in found}
            chosen = [self.choices.of(node) for node, _, _ in found]
            qtype = (
                INT8 if all(choice.bits == INT8.bits for choice in chosen) else self.target.weight
            )
            spec = QuantSpec(qtype, granularity_of(axes, chosen), symmetric=True)
            readers = tuple(use for _, use, _ in found)
            placed.append(self._weight(weight, spec, readers, "weight"))
        for value, readers_of in constants.items():
            spec = self.target.activation
            placed.append(self._weight(value, spec, tuple(readers_of), "constant"))
        return tuple(placed)

    def _stored(self) -> list[WeightPlacement]:
        """Weights of nodes that the recipe wants in more than 8 bits: stored so, read as float.

        As Cast and Mul: the session option by which onnxruntime folds a DequantizeLinear at load
        would undo the int8 part too.
        """
        bits = self.target.weight.bits
        wide = {
            node.name
            for node in ir.traversal.RecursiveGraphIterator(self.graph)
            if (choice := self.choices.of(node)).bits > bits and choice.left is None
        }
        if not wide:
            return []
        weights = place_weights(self.prepared, self.choices, "fold").weights
        return [
            # `symmetric` is about activations here
            dataclasses.replace(w, spec=dataclasses.replace(w.spec, symmetric=True))
            for w in weights
            if w.spec.qtype.bits > bits
        ]

    def _weight(
        self, value: ir.Value, spec: QuantSpec, uses: tuple[Use, ...], kind: str
    ) -> WeightPlacement:
        others = value.is_graph_output() or len(value.uses()) > len(uses)
        return WeightPlacement(value.name or "", spec, tuple(sorted(uses)), "kernel", kind, others)

    def _biases(self) -> tuple[BiasPlacement, ...]:
        placed = []
        for node, rule in self.quantized.items():
            bias, data, weight = bias_of(node, rule), node.inputs[0], node.inputs[1:2]
            if not self.target.integer_bias or bias is None or rule.bias is None or data is None:
                continue
            if constant(bias) is None:
                self.chosen.leave(node, "its bias is not a constant and stays float")
                continue
            name = weight[0].name if weight and weight[0] is not None else ""
            use = Use(node.name or "", rule.bias)
            placed.append(BiasPlacement(bias.name or "", use, data.name or "", name or ""))
        return tuple(placed)

    # the rest

    def _guarded(self, activations: Iterable[ActivationPlacement]) -> tuple[str, ...]:
        """Float Conv and Gemm between a DQ and a Q, which onnxruntime quantizes on its own.

        The Q may be further down: onnxruntime moves it up over views, Relu and Clip.
        """
        quantized = {u.node for a in activations for u in a.uses}
        entering = {
            v for n, r in self.quantized.items() for _, v in self.chosen.quantized_inputs(n, r)
        }
        guarded = []
        for node in self.graph:
            if node.op_type not in ("Conv", "Gemm") or node.domain or (node.name in quantized):
                continue
            source, end = node.inputs[0], node.outputs[0]
            while len(end.uses()) == 1 and _is_passed(reader := next(iter(end.uses()))[0]):
                end = reader.outputs[0]
            if source in self.integers and end in entering:
                guarded.append(node.name or "")
        return tuple(guarded)

    def _leave_bodies(self) -> None:
        for node in ir.traversal.RecursiveGraphIterator(self.graph):
            rule = rule_of(node)
            if node.graph is self.graph or rule is None:
                continue
            if any(constant(node.inputs[slot.index]) for slot in rule.weights):
                self.chosen.leave(
                    node, "in the body of an If, Loop or Scan: static mode leaves those"
                )


def _is_passed(node: ir.Node) -> bool:
    """Whether a Q behind the node may as well stand before it."""
    rule = rule_of(node)
    return rule is not None and rule.role in (Role.ABSORBED, Role.VIEW)
