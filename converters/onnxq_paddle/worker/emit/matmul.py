"""MatMul and Gemm."""

from __future__ import annotations

from collections.abc import Callable

from onnxq_paddle.worker.emit.op import FLOATS, Op
from onnxq_paddle.worker.emit.quantization import is_activation, quantized_matmul, source_of

__all__ = ["RULES"]


def _matmul(op: Op) -> None:
    if quantized_matmul(op):
        return
    both = is_activation(op.value(0)) and is_activation(op.value(1))
    x, y = _floats(op) if both else (op.x(0), op.x(1))
    given = op.dtype(x)
    if given not in FLOATS:
        x, y = op.cast(x, "float64"), op.cast(y, "float64")
    attributes = {"trans_x": False, "trans_y": False}
    end = op.y() if given in FLOATS else None
    result = op.run("matmul_v2", {"X": x, "Y": y}, attributes, to=end)
    if given not in FLOATS:
        op.cast(result, given, op.y())


def _floats(op: Op) -> tuple[str, str]:
    """Two activations without their Q and DQ: oneDNN's int8 fails if only one is unsigned."""
    x, y = source_of(op.value(0)), source_of(op.value(1))
    assert x is not None
    assert y is not None
    return op.emitter.variable_of(x), op.emitter.variable_of(y)


def _gemm(op: Op) -> None:
    """alpha * A B + beta * C; a constant B is stored as it is multiplied, so that Paddle fuses."""
    if quantized_matmul(op):
        return
    alpha, beta = op.number("alpha", 1.0), op.number("beta", 1.0)
    trans_a, trans_b = bool(op.integer("transA", 0)), bool(op.integer("transB", 0))
    weight = op.array(1)
    if weight is not None and trans_b:
        y = op.emitter.parameter(f"{op.value(1).name}.transposed", weight.T)
        trans_b = False
    else:
        y = op.x(1)
    more = op.has(2) and beta != 0
    last = None if more or alpha != 1 else op.y()
    attributes = {"trans_x": trans_a, "trans_y": trans_b}
    result = op.run("matmul_v2", {"X": op.x(0), "Y": y}, attributes, to=last)
    if alpha != 1:
        result = op.scaled(result, alpha, to=None if more else op.y())
    if more:
        c = op.emitter.bias(op.node, 2)
        c = op.scaled(c, beta) if beta != 1 else c
        op.binary("elementwise_add", result, c, op.y())


RULES: dict[str, Callable[[Op], None]] = {"Gemm": _gemm, "MatMul": _matmul}
