"""Islands: groups of int8 nodes that integers connect, with the conversions around them.

Two nodes are in one island if one tensor exists as integers for both. So an island can be left
float as a whole, and nothing changes for the others.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import onnx_ir as ir

from onnxq.plans import Placement
from onnxq.prepare import Prepared

__all__ = ["Island", "islands"]

ABSORBED = ("Relu", "Clip")


@dataclass(frozen=True, eq=False)
class Island:
    """nodes: in the order of the graph.

    entering: float tensors that a QuantizeLinear turns into integers.
    leaving: integer tensors that a DequantizeLinear turns into float for whoever reads them so.
    """

    nodes: tuple[ir.Node, ...]
    entering: tuple[ir.Value, ...]
    leaving: tuple[ir.Value, ...]


def islands(prepared: Prepared, placement: Placement) -> list[Island]:
    """The islands of a static placement, in the order of their first nodes."""
    graph = prepared.ir.graph
    nodes = {node.name or "": node for node in graph}
    values = {v.name or "": v for v in _values(graph)}
    order = {node: i for i, node in enumerate(graph)}
    members = {nodes[use.node] for a in placement.activations for use in a.uses}
    groups = _Groups()
    touching: dict[ir.Value, list[ir.Node]] = {}
    for activation in placement.activations:
        value = values[activation.tensor]
        found = [nodes[use.node] for use in activation.uses]
        giver = _giver(value, members) if activation.requantized else None
        touching[value] = [*found, *([giver] if giver is not None else [])]
        groups.join(touching[value])
    entering: dict[ir.Node, list[ir.Value]] = {}
    leaving: dict[ir.Node, list[ir.Value]] = {}
    for activation in placement.activations:
        value = values[activation.tensor]
        if not touching[value]:
            continue
        root = groups.root(touching[value][0])
        if not activation.requantized:
            entering.setdefault(root, []).append(value)
        elif value.is_graph_output() or len(value.uses()) > len(activation.uses):
            leaving.setdefault(root, []).append(value)
    found_groups: dict[ir.Node, list[ir.Node]] = {}
    for node in sorted(members, key=order.__getitem__):
        found_groups.setdefault(groups.root(node), []).append(node)
    return [
        Island(tuple(group), tuple(entering.get(root, ())), tuple(leaving.get(root, ())))
        for root, group in found_groups.items()
    ]


def _values(graph: ir.Graph) -> Iterator[ir.Value]:
    yield from graph.inputs
    for node in graph:
        yield from node.outputs


def _giver(value: ir.Value, members: set[ir.Node]) -> ir.Node | None:
    """The int8 node that gives a tensor, with the Relu or Clip that it absorbs."""
    node = value.producer()
    while node is not None and node not in members and node.op_type in ABSORBED:
        source = node.inputs[0]
        node = source.producer() if source is not None else None
    return node if node in members else None


class _Groups:
    """Disjoint sets of nodes."""

    def __init__(self) -> None:
        self._parent: dict[ir.Node, ir.Node] = {}

    def root(self, node: ir.Node) -> ir.Node:
        while (parent := self._parent.get(node, node)) is not node:
            self._parent[node] = self._parent.get(parent, parent)
            node = parent
        return node

    def join(self, nodes: list[ir.Node]) -> None:
        for node in nodes[1:]:
            self._parent[self.root(node)] = self.root(nodes[0])
