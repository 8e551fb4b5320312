"""Pooling of one to three dimensions; one dimension as two, the first being 1."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from onnxq_paddle.worker.emit.conv import Window, window_of
from onnxq_paddle.worker.emit.op import Op
from onnxq_paddle.worker.emit.quantization import scale_of

__all__ = ["RULES"]

NEARLY = 0.8


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


def _averaged(op: Op, x: str, window: Window, **attributes: Any) -> None:
    """An average of two dimensions, in float where int8 would lose too much.

    oneDNN gives both sides of a pool one scale, that of its input or, without, of its result; and
    averages can be much smaller. Its passes spread scales over a pool, but not over `assign`.
    """
    if not op.emitter.static or _keeps_scale(op):
        _pooled(op, x, window, op.y(), pooling_type="avg", **attributes)
        return
    op.end(_pooled(op, op.unary("assign", x), window, pooling_type="avg", **attributes))


def _keeps_scale(op: Op) -> bool:
    """Whether the result is quantized too, with nearly the scale of the input."""
    given = scale_of(op.value(0).producer())
    readers = [node for node, _ in op.node.outputs[0].uses()]
    found = [scale_of(node) for node in readers if node.op_type == "QuantizeLinear"]
    if given is None or not found or found[0] is None:
        return False
    return found[0] > NEARLY * given


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
    kind = "avg" if average else "max"
    attributes: dict[str, Any] = {"exclusive": not whole, "ceil_mode": ceil}
    if len(spatial) == 1:
        lifted = op.unsqueezed(x, [2])
        flat = _pooled(op, lifted, window.with_leading(), pooling_type=kind, **attributes)
        op.squeezed(flat, [2], op.y())
    elif average and len(spatial) == 2:
        _averaged(op, x, window, **attributes)
    else:
        _pooled(op, x, window, op.y(), pooling_type=kind, **attributes)


def _global(op: Op) -> None:
    """The average of two dimensions as an adaptive pool, which oneDNN has; else a reduction."""
    x = op.x()
    average = op.node.op_type == "GlobalAveragePool"
    rank = op.rank(x)
    if rank != 4 or not average:
        op.reduced("reduce_mean" if average else "reduce_max", x, range(2, rank), op.y())
        return
    window = Window([1, 1], [1, 1], [1, 1], [0, 0, 0, 0], "EXPLICIT")
    _averaged(op, x, window, adaptive=True)


RULES: dict[str, Callable[[Op], None]] = {
    "AveragePool": _pool,
    "GlobalAveragePool": _global,
    "GlobalMaxPool": _global,
    "MaxPool": _pool,
}
