"""What a recipe asks of each node: which stay float, and with what settings the others go."""

from __future__ import annotations

import dataclasses
import fnmatch
from collections.abc import Collection, Iterable
from dataclasses import dataclass

import onnx_ir as ir

from onnxq.errors import OptionError
from onnxq.model import constant
from onnxq.near import near
from onnxq.optable import OP_TABLE
from onnxq.prepare import Prepared
from onnxq.recipe import DynamicRecipe, Granularity, MethodOptions, Recipe, Rule

__all__ = ["Choice", "Choices"]


# What a rule says of nodes; the rest is about the tensors that they give, or an input
NODE_SETTINGS = ("leave_float", "bits", "granularity")


@dataclass(frozen=True)
class Choice:
    """The settings of one node, or of one tensor by way of the nodes that give it.

    left: why the user's choice leaves it float; None if it does not.
    symmetric: None for the mode's or the target's own choice.
    insisted: a rule says that it is not left float. ruled: a rule sets the method.
    """

    left: str | None
    bits: int
    granularity: Granularity
    symmetric: bool | None
    method: MethodOptions
    insisted: bool = False
    ruled: bool = False


class Choices:
    """A recipe applied to a model.

    Include and exclude come first, an exclude before an include; without any include all nodes are
    meant. Then the rules in their order: what a later one sets goes before what an earlier one set.

    Raises OptionError, with names that are near, for a pattern or op type that no node has.
    """

    def __init__(self, prepared: Prepared, recipe: Recipe) -> None:
        self._recipe = recipe
        self._prepared = prepared
        dynamic = isinstance(recipe, DynamicRecipe)
        method = MethodOptions() if isinstance(recipe, DynamicRecipe) else recipe.method_options
        self._base = Choice(None, recipe.bits, recipe.granularity, recipe.symmetric, method)
        nodes = list(ir.traversal.RecursiveGraphIterator(prepared.ir.graph))
        self._names = {node.name or "": self._all_names(node) for node in nodes}
        inputs = set() if dynamic else {v.name or "" for v in prepared.ir.graph.inputs}
        self._check({n for names in self._names.values() for n in names}, inputs, nodes)

    def of(self, node: ir.Node) -> Choice:
        """The settings of a node of the prepared model."""
        names = self._names[node.name or ""]
        choice = dataclasses.replace(self._base, left=self._left(names, node.op_type))
        return self._ruled(choice, names, {node.op_type})

    def of_tensor(self, value: ir.Value, givers: Iterable[ir.Node]) -> Choice:
        """The settings of a tensor: those of all nodes that give it (a Conv and its Relu, say).

        `left` says nothing of a tensor.
        """
        names, ops = {value.name or ""}, set()
        for node in givers:
            names.update(self._names[node.name or ""])
            ops.add(node.op_type)
        return self._ruled(self._base, names, ops)

    def _all_names(self, node: ir.Node) -> frozenset[str]:
        weights = [v.name or "" for v in node.inputs if v is not None and constant(v) is not None]
        return frozenset([*self._prepared.names.of(node), *filter(None, weights)])

    def _left(self, names: Collection[str], op_type: str) -> str | None:
        recipe = self._recipe
        pattern = _first_match(names, recipe.exclude)
        if pattern is not None:
            return f"excluded by pattern {pattern!r}"
        if op_type in recipe.exclude_ops:
            return f"excluded: op type {op_type}"
        if (
            (recipe.include or recipe.include_ops)
            and op_type not in recipe.include_ops
            and _first_match(names, recipe.include) is None
        ):
            return "not included"
        return None

    def _ruled(self, choice: Choice, names: Collection[str], ops: Collection[str]) -> Choice:
        for rule in self._recipe.rules:
            if _matches(rule, names, ops):
                choice = _apply(rule, choice)
        return choice

    def _check(self, names: set[str], inputs: set[str], nodes: list[ir.Node]) -> None:
        recipe = self._recipe
        for pattern in (*recipe.include, *recipe.exclude):
            _check_pattern(pattern, names)
        present = {node.op_type for node in nodes}
        for op in (*recipe.include_ops, *recipe.exclude_ops):
            _check_op(op, present)
        for rule in recipe.rules:
            for pattern in rule.nodes:
                _check_pattern(pattern, names | inputs)
            about_nodes = [name for name in rule.settings if name in NODE_SETTINGS]
            if about_nodes and rule.nodes and _first_match(names, rule.nodes) is None:
                raise OptionError(
                    f"{rule.label} matches inputs of the model only, for which {about_nodes[0]} "
                    "means nothing: name the nodes that read them"
                )
            for op in rule.ops:
                _check_op(op, present)
            if (
                rule.nodes
                and rule.ops
                and not any(
                    _matches(rule, self._names[node.name or ""], {node.op_type}) for node in nodes
                )
            ):
                raise OptionError(
                    f"{rule.label} matches no node: its names match, and its op types, but no node "
                    "has both"
                )


def _matches(rule: Rule, names: Collection[str], ops: Collection[str]) -> bool:
    by_op = not rule.ops or any(op in ops for op in rule.ops)
    return by_op and (not rule.nodes or _first_match(names, rule.nodes) is not None)


def _apply(rule: Rule, choice: Choice) -> Choice:
    if rule.leave_float is not None:
        choice = dataclasses.replace(
            choice,
            left=f"left float by the {rule.label}" if rule.leave_float else None,
            insisted=not rule.leave_float,
        )
    return dataclasses.replace(
        choice,
        bits=rule.bits or choice.bits,
        granularity=rule.granularity or choice.granularity,
        symmetric=choice.symmetric if rule.symmetric is None else rule.symmetric,
        method=rule.method_from(choice.method),
        ruled=choice.ruled or rule.method is not None,
    )


def _first_match(names: Iterable[str], patterns: Iterable[str]) -> str | None:
    names = list(names)
    for pattern in patterns:
        if any(_fits(name, pattern) for name in names):
            return pattern
    return None


def _fits(name: str, pattern: str) -> bool:
    return name == pattern or fnmatch.fnmatchcase(name, pattern)


def _check_pattern(pattern: str, known: set[str]) -> None:
    if not any(_fits(name, pattern) for name in known):
        raise OptionError(f"pattern {pattern!r} matches no node or tensor{near(pattern, known)}")


def _check_op(op: str, present: set[str]) -> None:
    if op in present:
        return
    if op in OP_TABLE:
        raise OptionError(f"the model has no {op}; it has {', '.join(sorted(present))}")
    raise OptionError(f"op type {op!r} is not in the model{near(op, present)}")
