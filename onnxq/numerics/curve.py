"""`Curve`: a function of one number, made of elementwise ops as ONNX defines them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from onnxq.qtypes import Float64Array

__all__ = ["FUNCTIONS", "Curve", "Step"]

SELU_ALPHA, SELU_GAMMA = 1.67326319217681884765625, 1.05070102214813232421875

Options = Mapping[str, float]
# values of the inputs, float64 of one shape; the attributes of the op
Function = Callable[[tuple[Float64Array, ...], Options], Float64Array]


@dataclass(frozen=True)
class Step:
    """An op on earlier values.

    sources: which of them: 0 is x, n the result of step n - 1.
    constant: the second or first operand of an op of two, where that is one number.
    first: the constant stands before the source. options: attributes, by name.
    """

    op: str
    sources: tuple[int, ...]
    constant: float | None = None
    first: bool = False
    options: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True)
class Curve:
    """steps: in order; the last one gives the result. Can be compared, hashed and sent."""

    steps: tuple[Step, ...]

    def __call__(self, x: Float64Array) -> Float64Array:
        """The function's values at x, of the same shape."""
        values = [x]
        for step in self.steps:
            given = tuple(values[i] for i in step.sources)
            if step.constant is not None:
                number = np.full((), step.constant)
                given = (number, *given) if step.first else (*given, number)
            values.append(FUNCTIONS[step.op](given, dict(step.options)))
        return values[-1]


def _one(function: Callable[[Float64Array], Float64Array]) -> Function:
    return lambda given, _: function(given[0])


def _two(function: Callable[[Float64Array, Float64Array], Float64Array]) -> Function:
    return lambda given, _: function(given[0], given[1])


def _sigmoid(x: Float64Array) -> Float64Array:
    return np.asarray(0.5 * (1.0 + np.tanh(0.5 * x)))


def _hard_sigmoid(x: Float64Array, alpha: float, beta: float) -> Float64Array:
    return np.asarray(np.clip(alpha * x + beta, 0.0, 1.0))


def _elu(x: Float64Array, alpha: float) -> Float64Array:
    return np.asarray(np.where(x < 0, alpha * np.expm1(np.minimum(x, 0.0)), x))


def _softplus(x: Float64Array) -> Float64Array:
    return np.asarray(np.logaddexp(0.0, x))


_ERF = np.frompyfunc(math.erf, 1, 1)


def _erf(x: Float64Array) -> Float64Array:
    return np.asarray(_ERF(x), np.float64)


def _gelu(x: Float64Array) -> Float64Array:
    return np.asarray(0.5 * x * (1.0 + _erf(x / math.sqrt(2.0))))


# Defaults of the attributes are those of the ONNX operator specification
FUNCTIONS: Mapping[str, Function] = {
    "Relu": _one(lambda x: np.maximum(x, 0.0)),
    "LeakyRelu": lambda g, o: np.where(g[0] < 0, o.get("alpha", 0.01) * g[0], g[0]),
    "PRelu": _two(lambda x, slope: np.where(x < 0, slope * x, x)),
    "Elu": lambda g, o: _elu(g[0], o.get("alpha", 1.0)),
    "Selu": lambda g, o: (
        o.get("gamma", SELU_GAMMA) * _elu(g[0], o.get("alpha", SELU_ALPHA))  #
    ),
    "Sigmoid": _one(_sigmoid),
    "HardSigmoid": lambda g, o: _hard_sigmoid(g[0], o.get("alpha", 0.2), o.get("beta", 0.5)),
    "HardSwish": _one(lambda x: x * _hard_sigmoid(x, 1 / 6, 0.5)),
    "Tanh": _one(np.tanh),
    "Softplus": _one(_softplus),
    "Mish": _one(lambda x: x * np.tanh(_softplus(x))),
    "Erf": _one(_erf),
    "Gelu": _one(_gelu),
    "Neg": _one(np.negative),
    "Add": _two(np.add),
    "Sub": _two(np.subtract),
    "Mul": _two(np.multiply),
    "Div": _two(np.divide),
    "Clip": lambda g, o: np.clip(g[0], o.get("min", -np.inf), o.get("max", np.inf)),
}
