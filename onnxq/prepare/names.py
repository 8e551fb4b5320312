"""Names: unique for every node and tensor, and mapped back to those of the user's model."""

from __future__ import annotations

from collections.abc import Iterable

import onnx_ir as ir

__all__ = ["NameMap", "unique_names"]


class NameMap:
    """The user's names of each node of the prepared model.

    A node without a name gets one from its op type and position (`Conv_3`). A node that absorbed
    others (Conv + BatchNormalization) answers to the names of all of them, and to the tensors that
    went with them.
    """

    def __init__(self) -> None:
        self._names: dict[str, list[str]] = {}

    def add(self, node: ir.Node, names: Iterable[str]) -> None:
        known = self._names.setdefault(node.name or "", [])
        known.extend(name for name in names if name and name not in known)

    def absorb(self, node: ir.Node, other: ir.Node) -> None:
        """`other` is about to become part of `node`."""
        self.add(node, self.of(other))

    def of(self, node: ir.Node) -> tuple[str, ...]:
        """All names that `node` answers to, the first being the one to print."""
        own = self._names.get(node.name or "", [node.name or ""])
        outputs = [value.name for value in node.outputs if value.name]
        return tuple(dict.fromkeys([*own, *outputs]))

    def label(self, node: ir.Node) -> str:
        """The name to print: the user's, or the one given to a node without."""
        return self.of(node)[0]

    def adopt(self, model: ir.Model) -> None:
        """Take in nodes that a pass has added under names of its own."""
        for node in ir.traversal.RecursiveGraphIterator(model.graph):
            if node.name not in self._names:
                self.add(node, [node.name or ""])


def unique_names(model: ir.Model) -> NameMap:
    """Give every node and every tensor of the model, bodies included, a name of its own."""
    names = NameMap()
    used_nodes: set[str] = set()
    used_values: set[str] = set()
    for graph in model.graphs():
        for value in (*graph.inputs, *graph.initializers.values()):
            if value.name and value.name not in used_values:
                used_values.add(value.name)
            elif value not in graph.inputs or value.name is None:
                _rename_initializer(graph, value, _free(value.name or "weight", used_values))
        counts: dict[str, int] = {}
        for node in graph:
            position = counts.get(node.op_type, 0)
            counts[node.op_type] = position + 1
            given = node.name
            node.name = _free(given or f"{node.op_type}_{position}", used_nodes)
            names.add(node, [node.name] if not given else [given, node.name])
            for i, value in enumerate(node.outputs):
                if value.name == "":
                    continue  # an optional output that is not asked for
                if value.name is None or value.name in used_values:
                    if value.is_graph_output() and graph is model.graph:
                        continue  # the main graph's outputs keep their names
                    value.name = _free(value.name or f"{node.name}_{i}", used_values)
                used_values.add(value.name)
    return names


def _rename_initializer(graph: ir.Graph, value: ir.Value, name: str) -> None:
    if value.name is not None:
        graph.initializers.pop(value.name)
    value.name = name
    graph.register_initializer(value)


def _free(name: str, used: set[str]) -> str:
    candidate, i = name, 1
    while candidate in used:
        candidate, i = f"{name}_{i}", i + 1
    used.add(candidate)
    return candidate
