"""If: both bodies as conditional blocks, and the result of the one that ran.

A program has one rank for each tensor. Where the bodies give two (torch writes a squeeze as an If
on the size of the dimension), what follows is written for the rank of the first body, which is the
squeezed one; with an input that takes the other way the program fails.
"""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir

from onnxq_paddle.worker.emit.op import Op

__all__ = ["RULES"]


def _if(op: Op) -> None:
    graphs = [op.node.attributes[name].as_graph() for name in ("then_branch", "else_branch")]
    known = op.array(0)
    if known is not None:
        _inline(op, graphs[0] if bool(known.reshape(-1)[0]) else graphs[1])
        return
    condition = op.x(0)
    if op.rank(condition) == 0:
        condition = op.reshaped(condition, [1])
    opposite = op.unary("logical_not", condition)
    results = [
        _body(op, graph, decides)
        for graph, decides in zip(graphs, (condition, opposite), strict=True)
    ]
    mask = op.cast(condition, "int32")
    for i, (yes, no) in enumerate(zip(*results, strict=True)):
        shape = op.shape(yes)
        if op.rank(yes) == op.rank(no):
            shape = [a if a == b else -1 for a, b in zip(shape, op.shape(no), strict=True)]
        op.builder.variable(op.y(i), shape=shape, dtype=op.dtype(yes))
        op.give("select_input", {"X": [no, yes], "Mask": mask}, index=i)


def _inline(op: Op, graph: ir.Graph) -> None:
    op.emitter.nodes(graph)
    for i, value in enumerate(graph.outputs):
        op.end(op.emitter.variable_of(value), i)


def _body(op: Op, graph: ir.Graph, condition: str) -> list[str]:
    builder = op.builder
    outer = builder.block
    with builder.body() as block:
        op.emitter.nodes(graph)
        results = []
        for value in graph.outputs:
            inside = op.emitter.variable_of(value)
            name = builder.fresh(f"{value.name}.result")
            builder.variable(
                name, shape=builder.shape(inside), dtype=builder.dtype(inside), block=outer
            )
            op.unary("assign", inside, name)
            results.append(name)
    attributes = {"sub_block": block, "is_scalar_condition": True}
    outputs = {"Out": results, "Scope": builder.scope(f"{op.y()}.scope")}
    reads = builder.reads(block)
    op.several("conditional_block", {"Cond": condition, "Input": reads}, outputs, **attributes)
    return results


RULES: dict[str, Callable[[Op], None]] = {"If": _if}
