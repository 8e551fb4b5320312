"""`Variants`: plans of one network that leave other nodes float, and what such plans give.

Each is a placement of its own, made by the recipe with rules added, so that Q and DQ go where a
quantization with these rules would have them; its parameters are those of the plan that it varies.

All are emulated in parts that begin at the same nodes. So a variant can go on from where another
plan stands, as long as both have calculated the same until there (`Aligned.common`), and parts that
are the same share a session.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort

from onnxq.calibration import Calibration
from onnxq.improve.emulated import Emulated
from onnxq.improve.frontier import Batch, Frontier
from onnxq.improve.own_bias import own_bias
from onnxq.improve.sessions import give_memory_back
from onnxq.model import constant
from onnxq.optable import Role, rule_of
from onnxq.parametrize import parametrize, refit_biases
from onnxq.plans import Placement, Plan, WeightUpdate
from onnxq.prepare import Prepared
from onnxq.qtypes import Array, QuantParams
from onnxq.recipe import Rule

__all__ = ["Aligned", "Place", "Shared", "Unit", "Variant", "Variants", "Walk", "units_of"]

# What the recipe places with these rules added to its own
Place = Callable[[Sequence[Rule]], Placement]
# Bits of stored weights that are read as float
WIDE = 16

Key = tuple[object, ...]


@dataclass(frozen=True)
class Unit:
    """A quantized node that can be left float, with all that goes with it.

    Its bias, the Relu or Clip behind it and its Q and DQ are placed with it, and so are views and
    elementwise nodes that are no longer between quantized ones.

    node: its name in the prepared model. name: by which a rule finds it and no other node.
    core: it has a weight and MACs; others (Add, Mul, Concat, ...) have none.
    """

    node: str
    name: str
    op_type: str
    core: bool
    macs: int


def units_of(prepared: Prepared, placement: Placement, macs: Mapping[str, int]) -> list[Unit]:
    """The quantized nodes that can be left float, in the order of the graph; views follow them."""
    quantized = {use.node for a in placement.activations for use in a.uses}
    kernels = [w for w in placement.weights if w.form == "kernel" and w.kind == "weight"]
    core = {use.node for w in kernels for use in w.uses}
    answers: dict[str, int] = {}
    for node in ir.traversal.RecursiveGraphIterator(prepared.ir.graph):
        weights = [v.name for v in node.inputs if v is not None and constant(v) is not None]
        for name in {*prepared.names.of(node), *weights}:
            answers[name or ""] = answers.get(name or "", 0) + 1
    found = []
    for node in prepared.ir.graph:
        own, rule = node.name or "", rule_of(node)
        elementwise = rule is not None and rule.role is Role.ELEMENTWISE and own in quantized
        if own not in core and not elementwise:
            continue
        names = [name for name in prepared.names.of(node) if answers[name] == 1]
        if names:  # all outputs have names of their own, so there is one
            found.append(Unit(own, names[0], node.op_type, own in core, macs.get(own, 0)))
    return found


@dataclass(eq=False)
class Shared:
    """What the emulations of variants share.

    keys: of the parts whose sessions are kept; those of other parts go with their variant.
    """

    keys: set[Key] = field(default_factory=set)
    sessions: dict[Key, ort.InferenceSession] = field(default_factory=dict)
    rounded: dict[str, tuple[tuple[QuantParams, WeightUpdate | None], Array]] = field(
        default_factory=dict
    )


class Aligned(Emulated):
    """A placement in parts that begin at given nodes, whether or not it quantizes them."""

    def __init__(
        self, prepared: Prepared, placement: Placement, cuts: frozenset[str], shared: Shared
    ) -> None:
        self._cuts, self._shared = cuts, shared
        self._keys: dict[int, Key] = {}
        super().__init__(prepared, placement)
        self._rounded = shared.rounded
        self._kept = sum(array.nbytes for _, array in shared.rounded.values())

    def common(self, other: Aligned) -> int:
        """How many parts need not run again after `other`: all that they make is the same."""
        last = 0
        for i in range(len(self.parts)):
            if self._made(i) != other._made(i):
                break
            if self.live(i + 1) <= other.live(i + 1):
                last = i + 1
        return last

    def keep(self) -> None:
        """Let the sessions of these parts serve later variants as well."""
        self._shared.keys.update(self._key(i) for i in range(len(self.parts)))

    def forget(self) -> None:
        """Drop the sessions that no other variant uses."""
        self._sessions.clear()

    def _split(self) -> None:
        self.weighted = set(self._cuts)
        super()._split()

    def _made(self, index: int) -> Key:
        """What a part calculates, weights by their names."""
        if index not in self._keys:
            part = self.parts[index]
            nodes = tuple(n.SerializeToString(deterministic=True) for n in part.nodes)
            constants = tuple((name, c.dtype) for name, c in part.constants.items())
            self._keys[index] = (nodes, constants)
        return self._keys[index]

    def _key(self, index: int) -> Key:
        return (*self._made(index), self.parts[index].writes)

    def _session(self, index: int, *, probe: bool) -> ort.InferenceSession:
        key = self._key(index)
        if probe or key not in self._shared.keys:
            return super()._session(index, probe=probe)
        if key not in self._shared.sessions:
            self._shared.sessions[key] = super()._session(index, probe=probe)
        return self._shared.sessions[key]


@dataclass(frozen=True, eq=False)
class Variant:
    """A plan, and its emulation. rules: by which the recipe comes to its placement."""

    plan: Plan
    emulated: Aligned
    rules: tuple[Rule, ...] = ()

    def start(self, batches: tuple[Batch, ...]) -> Frontier:
        return Frontier(self.emulated, 0, batches)


class Walk:
    """Where one plan stands for some samples: variants go on from there, the earliest first."""

    def __init__(self, base: Variant, batches: tuple[Batch, ...]) -> None:
        self._base, self._frontier = base, base.start(batches)

    def meet(self, variant: Variant, position: int) -> Frontier:
        """The frontier before part `position`, for the variant; never before an earlier one."""
        while self._frontier.position < position:
            self._frontier = self._frontier.advance(self._base.plan)
        return Frontier(variant.emulated, self._frontier.position, self._frontier.batches)


class Variants:
    """Makes the variants of one plan. Can be sent to another process if `place` can.

    base: the plan itself. floating: nothing is quantized. units: the nodes that can be left float.
    """

    def __init__(
        self,
        prepared: Prepared,
        calibration: Calibration,
        plan: Plan,
        units: Sequence[Unit],
        place: Place,
    ) -> None:
        self._prepared, self._calibration, self._plan = prepared, calibration, plan
        self._place, self.units = place, units
        self._cuts = frozenset(unit.node for unit in units if unit.core)
        self._shared = Shared()
        self.base = self._variant(plan)
        self.floating = self._variant(Plan(Placement(()), {}))
        for variant in (self.base, self.floating):
            variant.emulated.keep()

    def __reduce__(self) -> tuple[Any, ...]:
        """Without sessions: where it arrives it is made anew."""
        made_of = (self._prepared, self._calibration, self._plan, self.units, self._place)
        return Variants, made_of

    @property
    def label(self) -> str:
        """How messages name the model."""
        return self._prepared.label

    def forget(self) -> None:
        """Drop all sessions and rounded weights."""
        for variant in (self.base, self.floating):
            variant.emulated.forget()
        self._shared.sessions.clear()
        self._shared.rounded.clear()
        give_memory_back()

    def left(self, units: Collection[Unit], *, stored: bool = False) -> Variant:
        """With these left float, and no others. stored: their weights are INT16 all the same.

        Nodes that would not pay in int8 then, by the target's costs, stay in int8 all the same.
        """
        if not units:
            return self.base
        rules = self.rules(units, stored=stored)
        variant = self.of(rules)
        kernels = {use.node for w in variant.plan.placement.weights for use in w.uses}
        lost = [u.name for u in self.units if u.core and u not in units and u.node not in kernels]
        return self.of([*rules, Rule(nodes=tuple(lost), leave_float=False)]) if lost else variant

    def only(self, unit: Unit) -> Variant:
        """With this one quantized alone."""
        ops = tuple(sorted({u.op_type for u in self.units}))
        return self.of(
            [Rule(ops=ops, leave_float=True), Rule(nodes=(unit.name,), leave_float=False)]
        )

    @staticmethod
    def rules(units: Collection[Unit], *, stored: bool = False) -> list[Rule]:
        """By which a recipe leaves them float."""
        wide = tuple(unit.name for unit in units if unit.core and stored)
        names = tuple(unit.name for unit in units if unit.name not in wide)
        found = [Rule(nodes=names, leave_float=True)] if names else []
        return [*found, *([Rule(nodes=wide, bits=WIDE)] if wide else [])]

    def of(self, rules: Sequence[Rule]) -> Variant:
        """With these rules after those of the recipe."""
        placement = self._place(rules)
        plan = _carried(self._prepared, self._calibration, self._plan, placement)
        return self._variant(plan, tuple(rules))

    def _variant(self, plan: Plan, rules: tuple[Rule, ...] = ()) -> Variant:
        emulated = Aligned(self._prepared, plan.placement, self._cuts, self._shared)
        return Variant(plan, emulated, rules)


def _carried(
    prepared: Prepared, calibration: Calibration, plan: Plan, placement: Placement
) -> Plan:
    """The plan for another placement: what both quantize keeps its parameters and updates."""
    owners = [a.owner for a in placement.activations]
    kernels = {w.tensor for w in placement.weights if w.form == "kernel"}
    tensors = [*(w.tensor for w in placement.weights), *owners]
    params = {
        name: plan.params[name]
        for name in tensors
        if name in plan.params and (name in kernels or name in owners)
    }
    biases = {b.use: plan.biases[b.use] for b in placement.biases if b.use in plan.biases}
    weighted = {use.node for w in placement.weights if w.form == "kernel" for use in w.uses}
    added = [own_bias(node, placement) for node in prepared.ir.graph if node.name in weighted]
    read = (*kernels, *(bias.name or "" for bias in added if bias is not None))
    updates = {name: plan.updates[name] for name in read if name in plan.updates}
    if all(name in params for name in tensors) and len(biases) == len(placement.biases):
        return Plan(placement, params, biases, updates)
    fresh = parametrize(prepared, placement, calibration)
    made = Plan(placement, {**fresh.params, **params}, {**fresh.biases, **biases}, updates)
    return _refitted(prepared, plan, made)


def _refitted(prepared: Prepared, plan: Plan, made: Plan) -> Plan:
    """With new biases where the activation or the weight has another scale than in the plan."""
    fitted = refit_biases(prepared, made)
    before = {a.tensor: plan.activation_params(a) for a in plan.placement.activations}
    now = {a.tensor: made.activation_params(a) for a in made.placement.activations}
    biases = {
        bias.use: plan.biases[bias.use]
        for bias in made.placement.biases
        if bias.use in plan.biases
        and now[bias.activation] is before.get(bias.activation)
        and np.array_equal(fitted.params[bias.weight].scale, plan.params[bias.weight].scale)
    }
    return dataclasses.replace(fitted, biases={**fitted.biases, **biases})
