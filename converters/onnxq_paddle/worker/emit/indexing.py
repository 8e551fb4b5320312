"""Operators that choose or place values by indices, and those that give indices."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from onnxq_paddle.worker.emit.op import Op

__all__ = ["RULES"]


def _gather(op: Op) -> None:
    x, index = op.x(0), op.array(1)
    rank = op.rank(x)
    axis = op.integer("axis", 0) % rank
    size = op.shape(x)[axis]
    if index is not None and index.ndim == 0:
        at = int(index)
        op.sliced(x, [axis], [at], [at + 1 or 2**31 - 1], op.y(), drop=[axis])
        return
    if index is not None and (size >= 0 or index.min(initial=0) >= 0):
        where = op.fixed(np.where(index < 0, index + size, index), index.dtype.name)
    else:
        where = _from_start(op, op.x(1), x, axis)
    if axis == 0 and rank == 2 and op.dtype(x) in ("float32", "float64") and op.rank(where) != 1:
        op.give("lookup_table_v2", {"Ids": where, "W": x}, {"padding_idx": -1})
    elif op.rank(where) == 1:
        op.give("gather", {"X": x, "Index": where}, {"axis": axis})
    else:
        _gather_many(op, x, where, axis)


def _gather_many(op: Op, x: str, where: str, axis: int) -> None:
    """Indices of any rank: gather_nd on the first axis, and that moved back."""
    rank, count = op.rank(x), op.rank(where)
    others = [i for i in range(rank) if i != axis]
    first = op.transposed(x, [axis, *others]) if axis else x
    where = op.unsqueezed(where, [count])
    if not axis:
        op.give("gather_nd", {"X": first, "Index": where})
        return
    taken = op.run("gather_nd", {"X": first, "Index": where})
    ahead = range(count, count + axis)
    behind = range(count + axis, count + rank - 1)
    op.transposed(taken, [*ahead, *range(count), *behind], op.y())


def _from_start(op: Op, index: str, x: str, axis: int) -> str:
    """Indices that may count from the end, as ONNX allows, counted from the start."""
    if op.dtype(index) not in ("int32", "int64"):
        index = op.cast(index, "int64")
    dtype = op.dtype(index)
    known = op.shape(x)[axis]
    if known >= 0:
        size = op.fixed(known, dtype)
    else:
        shape = op.run("shape", {"Input": x})
        size = op.cast(op.sliced(shape, [0], [axis], [axis + 1], drop=[0]), dtype)
    negative = op.cast(op.binary("less_than", index, op.fixed(0, dtype)), dtype)
    return op.binary("elementwise_add", index, op.binary("elementwise_mul", negative, size))


def _gather_elements(op: Op) -> None:
    x = op.x(0)
    axis = op.integer("axis", 0) % op.rank(x)
    index = _from_start(op, op.x(1), x, axis)
    op.give("take_along_axis", {"Input": x, "Index": index}, {"Axis": axis}, slot="Result")


def _gather_nd(op: Op) -> None:
    if op.integer("batch_dims", 0):
        raise op.refuse("GatherND with batch_dims: Paddle has none")
    op.give("gather_nd", {"X": op.x(0), "Index": op.cast(op.x(1), "int64")})


def _scatter_nd(op: Op) -> None:
    """Paddle's only adds: add to zeros, and count where something was added."""
    x, index, updates = op.x(0), op.cast(op.x(1), "int64"), op.x(2)
    reduction = op.text("reduction", "none")
    if reduction not in ("none", "add"):
        raise op.refuse(f"ScatterND with reduction {reduction}: Paddle has none")
    if reduction == "add":
        op.give("scatter_nd_add", {"X": x, "Index": index, "Updates": updates})
        return
    given = op.dtype(x)
    wide = given if given in ("float32", "float64", "int32", "int64") else "int32"
    zeros = _like(op, op.cast(x, wide), 0)
    new = {"X": zeros, "Index": index, "Updates": op.cast(updates, wide)}
    placed = op.run("scatter_nd_add", new)
    ones = {"X": zeros, "Index": index, "Updates": _like(op, op.cast(updates, wide), 1)}
    there = op.cast(op.run("scatter_nd_add", ones), "bool")
    result = op.run("where", {"Condition": there, "X": placed, "Y": op.cast(x, wide)})
    op.cast(result, given, op.y())


def _like(op: Op, x: str, value: float) -> str:
    kind = op.emitter.types[op.dtype(x)]
    return op.run("fill_any_like", {"X": x}, {"value": float(value), "dtype": kind})


def _scatter_elements(op: Op) -> None:
    x = op.x(0)
    reduction = {"none": "assign", "add": "add", "mul": "multiply", "max": "amax", "min": "amin"}
    axis = op.integer("axis", 0) % op.rank(x)
    inputs = {"Input": x, "Index": _from_start(op, op.x(1), x, axis), "Value": op.x(2)}
    attributes = {"Axis": axis, "Reduce": reduction[op.text("reduction", "none")]}
    op.give("put_along_axis", inputs, {**attributes, "Include_self": True}, slot="Result")


def _non_zero(op: Op) -> None:
    x = op.x()
    if op.dtype(x) in ("int8", "uint8", "int16"):
        x = op.cast(x, "int32")
    op.transposed(op.run("where_index", {"Condition": x}), [1, 0], op.y())


def _one_hot(op: Op) -> None:
    """off + hot * (on - off), the new axis being the last and moved."""
    depth = int(op.constant(1, "depth").reshape(-1)[0])
    index = op.cast(op.x(0), "int64")
    negative = op.cast(op.binary("less_than", index, op.fixed(0, "int64")), "int64")
    index = op.binary("elementwise_add", index, op.scaled(negative, depth))
    attributes = {"depth": depth, "dtype": op.emitter.types["float32"], "allow_out_of_range": True}
    hot = op.run("one_hot_v2", {"X": index}, attributes)
    values = op.x(2)
    given = op.dtype(values)
    wide = given if given in ("float32", "float64", "int32", "int64") else "float32"
    values = op.cast(values, wide)
    off, on = (op.sliced(values, [0], [i], [i + 1]) for i in (0, 1))
    hot = op.binary("elementwise_mul", op.cast(hot, wide), op.binary("elementwise_sub", on, off))
    result = op.cast(op.binary("elementwise_add", hot, off), given)
    rank = op.rank(result)
    axis = op.integer("axis", -1) % rank
    order = [i if i < axis else i - 1 if i > axis else rank - 1 for i in range(rank)]
    op.transposed(result, order, op.y())


def _arg(op: Op) -> None:
    if op.integer("select_last_index", 0):
        raise op.refuse(f"{op.node.op_type} with select_last_index: Paddle takes the first")
    attributes = {
        "axis": op.integer("axis", 0),
        "keepdims": bool(op.integer("keepdims", 1)),
        "flatten": False,
        "dtype": op.emitter.types["int64"],
    }
    kind = "arg_max" if op.node.op_type == "ArgMax" else "arg_min"
    op.give(kind, {"X": op.x()}, attributes)


def _top_k(op: Op) -> None:
    """The first of a stable sort: ONNX takes equal values in their order, top_k_v2 in any."""
    x, axis, count = op.x(0), op.integer("axis", -1), op.array(1)
    axis = axis % op.rank(x)
    values, places = (op.builder.fresh(f"{op.node.name}.{kind}") for kind in ("sorted", "order"))
    attributes = {"axis": axis, "descending": bool(op.integer("largest", 1)), "stable": True}
    op.several("argsort", {"X": x}, {"Out": values, "Indices": places}, **attributes)
    for i, name in enumerate((values, places)):
        if op.wants(i):
            if count is not None:
                first = op.sliced(name, [axis], [0], [int(count.reshape(-1)[0])])
            else:
                inputs = {"Input": name, "EndsTensor": op.cast(op.x(1), "int32")}
                ends = {"axes": [axis], "starts": [0], "ends": [-1], "infer_flags": [-1]}
                first = op.run("slice", inputs, {**ends, "decrease_axis": []})
            op.end(first, i)


RULES: dict[str, Callable[[Op], None]] = {
    "ArgMax": _arg,
    "ArgMin": _arg,
    "Gather": _gather,
    "GatherElements": _gather_elements,
    "GatherND": _gather_nd,
    "NonZero": _non_zero,
    "OneHot": _one_hot,
    "ScatterElements": _scatter_elements,
    "ScatterND": _scatter_nd,
    "TopK": _top_k,
}
