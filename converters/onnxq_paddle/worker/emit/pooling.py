"""Pooling of one to three dimensions; one dimension as two, the first being 1."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from onnxq_paddle.worker.emit.conv import Window, window_of
from onnxq_paddle.worker.emit.op import Op

__all__ = ["RULES"]


def _pooled(op: Op, x: str, window: Window, to: str | None = None, **attributes: Any) -> str:
    volume = len(window.kernel) == 3
    given = {
        "ksize": window.kernel,
        "strides": window.strides,
        "paddings": window.paddings,
        "padding_algorithm": window.algorithm,
        "global_pooling": False,
        "adaptive": False,
        "exclusive": True,
        "ceil_mode": False,
        "data_format": "NCDHW" if volume else "NCHW",
        **attributes,
    }
    return op.run("pool3d" if volume else "pool2d", {"X": x}, given, to=to)


def _pool(op: Op) -> None:
    x = op.x()
    spatial = op.shape(x)[2:]
    window = window_of(op, op.integers("kernel_shape", []), spatial)
    if any(d != 1 for d in window.dilations):
        raise op.refuse("pooling with dilations: Paddle has none")
    if op.wants(1):
        raise op.refuse("MaxPool that also gives indices: Paddle counts them differently")
    average = op.node.op_type == "AveragePool"
    ceil = bool(op.integer("ceil_mode", 0))
    whole = op.integer("count_include_pad", 0)
    if ceil and average and whole and any(window.pads):
        raise op.refuse("AveragePool with ceil_mode and count_include_pad: Paddle differs")
    attributes: dict[str, Any] = {
        "pooling_type": "avg" if average else "max",
        "exclusive": not whole,
        "ceil_mode": ceil,
    }
    if len(spatial) == 1:
        flat = _pooled(op, op.unsqueezed(x, [2]), window.with_leading(), **attributes)
        op.squeezed(flat, [2], op.y())
    else:
        _pooled(op, x, window, op.y(), **attributes)


def _global(op: Op) -> None:
    """The average of two dimensions as an adaptive pool, which oneDNN has; else a reduction."""
    x = op.x()
    average = op.node.op_type == "GlobalAveragePool"
    rank = op.rank(x)
    if rank != 4 or not average:
        op.reduced("reduce_mean" if average else "reduce_max", x, range(2, rank), op.y())
        return
    window = Window([1, 1], [1, 1], [1, 1], [0, 0, 0, 0], "EXPLICIT")
    _pooled(op, x, window, op.y(), pooling_type="avg", adaptive=True)


RULES: dict[str, Callable[[Op], None]] = {
    "AveragePool": _pool,
    "GlobalAveragePool": _global,
    "GlobalMaxPool": _global,
    "MaxPool": _pool,
}
