"""Clean: what paddle2onnx wrote, as a user wants to have it.

1. Names are Paddle's. A tensor of a legacy program has its variable's name; a node with a layer's
   parameter is called by the layer (`conv2d_0` for what reads `conv2d_0.w_0`).
2. BatchNormalization is folded, constants and shape arithmetic are calculated, Identity nodes and
   arithmetic that changes nothing are gone: the core's `prepare`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import onnx_ir as ir

from onnxq.model import load
from onnxq.prepare import prepare

__all__ = ["clean"]

PARAMETER = re.compile(r"(.+)\.[wb]_\d+")
# How paddle2onnx calls what an operation of Paddle makes; its own helpers have other names
RESULT = "p2o."
OLDEST_OPSET = 13


def clean(file: Path, names: Mapping[str, str]) -> ir.Model:
    """The model in `file`. names: Paddle's variables by the tensors that they are."""
    source = load(file)
    _lead_names_back(source.ir.graph, names)
    _name_nodes(source.ir.graph)
    return prepare(source, min_opset=OLDEST_OPSET, static=False).ir


def _lead_names_back(graph: ir.Graph, names: Mapping[str, str]) -> None:
    """Give tensors Paddle's names, those behind Identity nodes too, since these will be dropped."""
    used = {value.name for value in (*graph.inputs, *graph.outputs, *graph.initializers.values())}
    named: set[ir.Value] = set()
    for node in graph:
        for value in node.outputs:
            name = names.get(value.name or "")
            if name is not None and name not in used and not value.is_graph_output():
                used.add(name)
                named.add(value)
                value.name = name
            if value in named or (value.name or "").startswith(RESULT):
                _lead_back(value, named)


def _lead_back(value: ir.Value, named: set[ir.Value]) -> None:
    """Move the name of y = Identity(x) to x, unless that has one of Paddle's."""
    node = value.producer()
    while node is not None and node.op_type == "Identity":
        x = node.inputs[0]
        if x is None or x.producer() is None or x.is_graph_output() or x in named:
            return
        x.name, value.name = value.name, None
        named.add(x)
        value, node = x, x.producer()


def _name_nodes(graph: ir.Graph) -> None:
    """Call nodes by the layer whose parameters they read; a second one of a layer is numbered."""
    counts: Counter[str] = Counter()
    for node in graph:
        for given in node.inputs[1:]:
            value = given
            while value is not None and (maker := value.producer()) is not None:
                if maker.op_type not in ("Identity", "Unsqueeze"):
                    break
                value = maker.inputs[0]
            found = PARAMETER.fullmatch(value.name or "") if value is not None else None
            if found and value is not None and len(value.uses()) == 1:
                layer = found[1]
                counts[layer] += 1
                node.name = layer if counts[layer] == 1 else f"{layer}_{node.op_type}"
                break
