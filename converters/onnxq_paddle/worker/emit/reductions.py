"""Reductions over axes, and running sums."""

from __future__ import annotations

from collections.abc import Callable

from onnxq_paddle.worker.emit.op import FLOATS, Op

__all__ = ["RULES"]

# ONNX: what is done to the elements, Paddle's reduction, what is done to its result
REDUCTIONS: dict[str, tuple[str, str, str]] = {
    "ReduceL1": ("abs", "reduce_sum", ""),
    "ReduceL2": ("square", "reduce_sum", "sqrt"),
    "ReduceLogSum": ("", "reduce_sum", "log"),
    "ReduceMax": ("", "reduce_max", ""),
    "ReduceMean": ("", "reduce_mean", ""),
    "ReduceMin": ("", "reduce_min", ""),
    "ReduceProd": ("", "reduce_prod", ""),
    "ReduceSum": ("", "reduce_sum", ""),
    "ReduceSumSquare": ("square", "reduce_sum", ""),
}
KERNELS = (*FLOATS, "int32", "int64")


def _reduce(op: Op) -> None:
    x = op.x()
    axes = op.listed(1, "axes", "axes") or []
    if not axes and op.integer("noop_with_empty_axes", 0):
        op.end(x)
        return
    given = op.dtype(x)
    keep = bool(op.integer("keepdims", 1))
    x = op.cast(x, given if given in KERNELS else "int32")
    if op.node.op_type == "ReduceLogSumExp":
        attributes = {"axis": axes or [0], "keepdim": keep, "reduce_all": not axes}
        op.give("logsumexp", {"X": x}, attributes)
        return
    before, kind, after = REDUCTIONS[op.node.op_type]
    x = op.unary(before, x) if before else x
    last = None if after or op.dtype(x) != given else op.y()
    result = op.reduced(kind, x, axes, last, keep=keep)
    if after:
        op.unary(after, result, op.y())
    elif last is None:
        op.cast(result, given, op.y())


def _cum_sum(op: Op) -> None:
    attributes = {
        "axis": int(op.constant(1, "axis").reshape(-1)[0]),
        "exclusive": bool(op.integer("exclusive", 0)),
        "reverse": bool(op.integer("reverse", 0)),
        "flatten": False,
    }
    op.give("cumsum", {"X": op.x()}, attributes)


RULES: dict[str, Callable[[Op], None]] = {
    **dict.fromkeys((*REDUCTIONS, "ReduceLogSumExp"), _reduce),
    "CumSum": _cum_sum,
}
