"""Operators on single elements: one row each where Paddle has the same."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from onnxq_paddle.worker.emit.op import FLOATS, Op, numpy_type
from onnxq_paddle.worker.emit.quantization import keeps_sign, source_of

__all__ = ["RULES"]

Rule = Callable[[Op], None]
# From inputs, and the name of the result if it has one already, to the result
Steps = Callable[[list[str], str | None], str]
INTEGERS = ("int32", "int64")
NEAR, HALF = 1e-6, 0.5

# ONNX: Paddle, for floats, without attributes
SAME = {
    "Acos": "acos",
    "Acosh": "acosh",
    "Asin": "asin",
    "Asinh": "asinh",
    "Atan": "atan",
    "Atanh": "atanh",
    "Ceil": "ceil",
    "Cos": "cos",
    "Cosh": "cosh",
    "Erf": "erf",
    "Exp": "exp",
    "Floor": "floor",
    "IsNaN": "isnan_v2",
    "Log": "log",
    "Reciprocal": "reciprocal",
    "Sigmoid": "sigmoid",
    "Sign": "sign",
    "Sin": "sin",
    "Sinh": "sinh",
    "Softsign": "softsign",
    "Sqrt": "sqrt",
    "Tan": "tan",
    "Tanh": "tanh",
}
# ONNX: Paddle, and {Paddle's attribute: (ONNX's attribute, its default)}; no name: always this
WITH_NUMBERS: dict[str, tuple[str, dict[str, tuple[str, float]]]] = {
    "Celu": ("celu", {"alpha": ("alpha", 1.0)}),
    "Elu": ("elu", {"alpha": ("alpha", 1.0)}),
    "HardSigmoid": ("hard_sigmoid", {"slope": ("alpha", 0.2), "offset": ("beta", 0.5)}),
    "HardSwish": ("hard_swish", {"threshold": ("", 6.0), "scale": ("", 6.0), "offset": ("", 3.0)}),
    "LeakyRelu": ("leaky_relu", {"alpha": ("alpha", 0.01)}),
    "Mish": ("mish", {"threshold": ("", 20.0)}),
    "Selu": ("selu", {"scale": ("gamma", 1.0507009873554805), "alpha": ("alpha", 1.67326324235)}),
    "Softplus": ("softplus", {"beta": ("", 1.0), "threshold": ("", 20.0)}),
    "ThresholdedRelu": (
        "thresholded_relu",
        {"threshold": ("alpha", 1.0), "value": ("", 0.0)},
    ),
}
ARITHMETIC = {
    "Add": "elementwise_add",
    "Sub": "elementwise_sub",
    "Mul": "elementwise_mul",
    "Div": "elementwise_div",
}
# oneDNN's kernels put the larger operand first, and then subtract and divide the wrong way round
TURNED = {"elementwise_sub": "elementwise_add", "elementwise_div": "elementwise_mul"}
EXTREMES = {"Max": "elementwise_max", "Min": "elementwise_min", "Sum": "elementwise_add"}
COMPARISONS = {
    "Equal": "equal",
    "Greater": "greater_than",
    "GreaterOrEqual": "greater_equal",
    "Less": "less_than",
    "LessOrEqual": "less_equal",
}
LOGICAL = {"And": "logical_and", "Or": "logical_or", "Xor": "logical_xor"}
BITWISE = {"BitwiseAnd": "bitwise_and", "BitwiseOr": "bitwise_or", "BitwiseXor": "bitwise_xor"}


def widened(op: Op, calculate: Steps, kinds: tuple[str, ...]) -> None:
    """Run `calculate` on the inputs; those of a type without a kernel go through a wider one."""
    xs = op.xs()
    given = op.dtype(xs[0])
    if given in kinds:
        calculate(xs, op.y())
        return
    wide = "float32" if given == "float16" or not set(kinds) & set(INTEGERS) else "int32"
    result = calculate([op.cast(x, wide) for x in xs], None)
    op.cast(result, given, op.y())


def _unary(kind: str, op: Op) -> None:
    if kind == "isnan_v2":
        op.give(kind, {"X": op.x()})
        return
    widened(op, lambda xs, to: op.unary(kind, xs[0], to), FLOATS)


def _relu(op: Op) -> None:
    if keeps_sign(op.node):
        op.unary("leaky_relu", op.x(), op.y(), alpha=0.0)
    else:
        _unary("relu", op)


def _with_numbers(kind: str, numbers: dict[str, tuple[str, float]], op: Op) -> None:
    attributes = {
        name: op.number(given, default) if given else default
        for name, (given, default) in numbers.items()
    }
    widened(op, lambda xs, to: op.unary(kind, xs[0], to, **attributes), FLOATS)


def _arithmetic(kind: str, op: Op) -> None:
    if kind == "elementwise_mul" and _gated(op):
        return

    def calculate(xs: list[str], to: str | None) -> str:
        x, y = xs
        if kind in TURNED and op.dtype(x) in FLOATS and _grows(op.shape(x), op.shape(y)):
            turned = op.scaled(y, -1.0) if kind == "elementwise_sub" else op.unary("reciprocal", y)
            return op.binary(TURNED[kind], turned, x, to)
        return op.binary(kind, x, y, to)

    widened(op, calculate, (*FLOATS, *INTEGERS))


def _grows(x: list[int], y: list[int]) -> bool:
    """Whether x may be broadcast to y's shape."""
    if len(x) != len(y):
        return len(x) < len(y)
    return any(a == 1 and b != 1 for a, b in zip(x, y, strict=True))


def _gated(op: Op) -> bool:
    """x * Sigmoid(x) and x * HardSigmoid(x) as one operator, which oneDNN fuses with a Conv."""
    for i in (0, 1):
        x, gate = source_of(op.value(i)), source_of(op.value(1 - i))
        node = gate.producer() if gate is not None else None
        if x is None or node is None or node.op_type not in ("Sigmoid", "HardSigmoid"):
            continue
        if source_of(node.inputs[0]) is not x or op.emitter.array_of(x) is not None:
            continue
        inner = Op(node, op.emitter)
        name = op.emitter.variable_of(x)
        if node.op_type == "Sigmoid":
            op.unary("swish", name, op.y(), beta=1.0)
            return True
        sixth = abs(inner.number("alpha", 0.2) - 1 / 6) < NEAR
        if sixth and inner.number("beta", 0.5) == HALF:
            op.unary("hard_swish", name, op.y(), threshold=6.0, scale=6.0, offset=3.0)
            return True
    return False


def _variadic(kind: str, op: Op) -> None:
    def calculate(xs: list[str], to: str | None) -> str:
        if len(xs) == 1:
            return op.unary("assign", xs[0], to)
        result = xs[0]
        for x in xs[1:-1]:
            result = op.binary(kind, result, x)
        return op.binary(kind, result, xs[-1], to)

    widened(op, calculate, (*FLOATS, *INTEGERS))


def _mean(op: Op) -> None:
    xs = op.xs()
    total = functools.reduce(lambda x, y: op.binary("elementwise_add", x, y), xs)
    op.scaled(total, 1.0 / len(xs), to=op.y())


def _comparison(kind: str, op: Op) -> None:
    xs = op.xs()
    if op.dtype(xs[0]) in ("int8", "uint8", "int16"):
        xs = [op.cast(x, "int32") for x in xs]
    op.binary(kind, xs[0], xs[1], op.y())


def _logical(kind: str, op: Op) -> None:
    op.binary(kind, op.x(0), op.x(1), op.y())


def _not(kind: str, op: Op) -> None:
    op.give(kind, {"X": op.x()})


def _abs(op: Op) -> None:
    widened(op, lambda xs, to: op.unary("abs", xs[0], to), (*FLOATS, *INTEGERS))


def _neg(op: Op) -> None:
    widened(op, lambda xs, to: op.scaled(xs[0], -1.0, to=to), (*FLOATS, *INTEGERS))


def _pow(op: Op) -> None:
    """By a constant: a square, a root, or Paddle's pow, which is faster than elementwise."""
    x, exponent = op.x(0), op.array(1)
    if op.dtype(x) in FLOATS and exponent is not None and exponent.size == 1:
        factor = float(exponent.reshape(()))
        if exponent.ndim <= op.rank(x):
            kinds = {0.5: "sqrt", 2.0: "square"}
            if factor in kinds:
                op.unary(kinds[factor], x, op.y())
            else:
                op.unary("pow", x, op.y(), factor=factor)
            return
    given, y = op.dtype(x), op.x(1)
    common = np.result_type(given, op.dtype(y)).name if given not in FLOATS else given
    result = op.binary("elementwise_pow", op.cast(x, common), op.cast(y, common))
    op.cast(result, given, op.y())


def _mod(op: Op) -> None:
    """fmod keeps the dividend's sign: x - trunc(x / y) * y; Paddle's own the divisor's."""
    x, y = op.x(0), op.x(1)
    if not op.integer("fmod", 0):
        widened(op, lambda xs, to: op.binary("elementwise_mod", xs[0], xs[1], to), INTEGERS)
        return
    given = op.dtype(x)
    wide = given if given in FLOATS else "float64"
    x, y = op.cast(x, wide), op.cast(y, wide)
    whole = op.binary("elementwise_mul", op.unary("trunc", op.binary("elementwise_div", x, y)), y)
    op.cast(op.binary("elementwise_sub", x, whole), given, op.y())


def _round(op: Op) -> None:
    """Halves to the even number: 2 * round(x / 2) where x is halfway, else floor(x + 0.5)."""
    x = op.x()
    low = op.unary("floor", x)
    part = op.binary("elementwise_sub", x, low)
    half = op.scaled(op.unary("floor", op.scaled(low, 0.5)), 2.0)
    odd = op.binary("elementwise_sub", low, half)
    dtype = op.dtype(x)
    above = op.cast(op.binary("greater_than", part, op.fixed(0.5, dtype)), dtype)
    halfway = op.cast(op.binary("equal", part, op.fixed(0.5, dtype)), dtype)
    step = op.binary("elementwise_add", above, op.binary("elementwise_mul", halfway, odd))
    op.binary("elementwise_add", low, step, op.y())


def _isinf(op: Op) -> None:
    x = op.x()
    found = op.unary("isinf_v2", x)
    zero = op.fixed(0, op.dtype(x))
    for attribute, sign in (("detect_negative", "greater_than"), ("detect_positive", "less_than")):
        if not op.integer(attribute, 1):
            found = op.binary("logical_and", found, op.binary(sign, x, zero))
    op.end(found)


def _clip(op: Op) -> None:
    """Both limits constant: an attribute, and relu6, which oneDNN fuses; else Min and Max."""
    x = op.x()
    dtype = op.dtype(x)
    limits = [op.array(i) if op.has(i) else np.asarray(v) for i, v in ((1, -np.inf), (2, np.inf))]
    low, high = (None if v is None or v.size != 1 else float(v.reshape(())) for v in limits)
    if dtype in FLOATS and low is not None and high is not None and low <= high:
        signed = keeps_sign(op.node)
        if (low, high) == (0.0, 6.0) and not signed:
            op.unary("relu6", x, op.y())
        elif (low, high) == (0.0, np.inf):
            _relu(op)
        else:
            least, most = float(np.finfo(np.float32).min), float(np.finfo(np.float32).max)
            op.unary("clip", x, op.y(), min=max(low, least), max=min(high, most))
        return
    wide = dtype if dtype in (*FLOATS, *INTEGERS) else "int32"
    result = op.cast(x, wide)
    for i, kind in ((1, "elementwise_max"), (2, "elementwise_min")):
        if op.has(i):
            result = op.binary(kind, result, op.cast(op.x(i), wide))
    op.cast(result, dtype, op.y())


def _prelu(op: Op) -> None:
    """max(x, 0) + slope * min(x, 0): with any broadcasting of the slope."""
    x, slope = op.x(0), op.array(1)
    if slope is not None and slope.size == 1:
        op.unary("leaky_relu", x, op.y(), alpha=float(slope.reshape(())))
        return
    if slope is not None and op.rank(x) == 4 and slope.shape[1:] == (1, 1):
        weights = op.emitter.parameter(f"{op.value(1).name}.flat", slope.reshape(-1))
        attributes = {"mode": "channel", "data_format": "NCHW"}
        op.give("prelu", {"X": x, "Alpha": weights}, attributes)
        return
    zero = op.fixed(0, op.dtype(x))
    low = op.binary("elementwise_mul", op.binary("elementwise_min", x, zero), op.x(1))
    op.binary("elementwise_add", op.binary("elementwise_max", x, zero), low, op.y())


def _shrink(op: Op) -> None:
    x, edge, bias = op.x(), op.number("lambd", 0.5), op.number("bias", 0.0)
    dtype = op.dtype(x)
    parts = []
    for kind, limit, shift in (("less_than", -edge, bias), ("greater_than", edge, -bias)):
        outside = op.cast(op.binary(kind, x, op.fixed(limit, dtype)), dtype)
        parts.append(op.binary("elementwise_mul", outside, op.scaled(x, 1.0, shift)))
    op.binary("elementwise_add", parts[0], parts[1], op.y())


def _gelu(op: Op) -> None:
    op.give("gelu", {"X": op.x()}, {"approximate": op.text("approximate", "none") == "tanh"})


def _identity(op: Op) -> None:
    op.end(op.x())


def _dropout(op: Op) -> None:
    if op.wants(1) or (op.has(2) and op.constant(2, "training mode").any()):
        raise op.refuse("Dropout in training mode, or with its mask, is not for inference")
    op.end(op.x())


def _cast(op: Op) -> None:
    op.cast(op.x(), numpy_type(op.integer("to", 1)), op.y())


def _cast_like(op: Op) -> None:
    op.cast(op.x(0), op.dtype(op.x(1)), op.y())


def _where(op: Op) -> None:
    """Paddle's needs three tensors of one shape."""
    condition, x, y = op.x(0), op.x(1), op.x(2)
    shapes = [op.shape(v) for v in (condition, x, y)]
    if any(shape != shapes[0] for shape in shapes) or any(-1 in shape for shape in shapes):
        condition, x, y = _expanded(op, [condition, x, y], shapes)
    inputs = {"Condition": condition, "X": x, "Y": y}
    given = op.dtype(x)
    if given in (*FLOATS, *INTEGERS):
        op.give("where", inputs)
        return
    wide = {"X": op.cast(x, "int32"), "Y": op.cast(y, "int32")}
    op.cast(op.run("where", {**inputs, **wide}), given, op.y())


def _expanded(op: Op, xs: list[str], shapes: list[list[int]]) -> list[str]:
    """Each of the tensors in the shape that they have together."""
    if all(-1 not in shape for shape in shapes):
        common = list(np.broadcast_shapes(*map(tuple, shapes)))
        return [
            x if shape == common else op.unary("expand_v2", x, shape=common)
            for x, shape in zip(xs, shapes, strict=True)
        ]
    # bool in place of the values, which may be infinite
    masks = [x if op.dtype(x) == "bool" else op.binary("equal", x, x) for x in xs]
    together = functools.reduce(lambda x, y: op.binary("logical_or", x, y), masks)
    shape = op.run("shape", {"Input": together})
    rank = op.rank(together)
    attributes = {"shape": [-1] * rank}
    return [op.run("expand_v2", {"X": x, "Shape": shape}, attributes) for x in xs]


def _rows(rule: Callable[..., None], table: dict[str, Any]) -> dict[str, Rule]:
    return {
        name: functools.partial(rule, *(row if isinstance(row, tuple) else (row,)))
        for name, row in table.items()
    }


RULES: dict[str, Rule] = {
    **_rows(_unary, SAME),
    **_rows(_with_numbers, WITH_NUMBERS),
    **_rows(_arithmetic, ARITHMETIC),
    **_rows(_variadic, EXTREMES),
    **_rows(_comparison, COMPARISONS),
    **_rows(_logical, {**LOGICAL, **BITWISE}),
    **_rows(_not, {"Not": "logical_not", "BitwiseNot": "bitwise_not"}),
    "Abs": _abs,
    "Cast": _cast,
    "CastLike": _cast_like,
    "Clip": _clip,
    "Dropout": _dropout,
    "Gelu": _gelu,
    "Identity": _identity,
    "IsInf": _isinf,
    "Mean": _mean,
    "Mod": _mod,
    "Neg": _neg,
    "PRelu": _prelu,
    "Pow": _pow,
    "Relu": _relu,
    "Round": _round,
    "Shrink": _shrink,
    "Where": _where,
}
