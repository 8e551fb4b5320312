"""Functions that tensors are read through: what they are, and the ranges chosen behind them."""

from __future__ import annotations

import pickle

import numpy as np
import onnx
import onnx_ir as ir
import pytest

import onnxq
from onnxq.numerics.curve import FUNCTIONS, Curve, Step
from onnxq.numerics.quantize import fake_quantize
from onnxq.numerics.ranges import METHODS, RangeOptions
from onnxq.numerics.statistics import StatisticsBuilder, TensorStatistics
from onnxq.placement.curves import curve_behind

from .models import Array, build, normal, run, samples, sqnr, weights_of

GRID = np.linspace(-9, 9, 401).astype(np.float32)


def scalar(value: float) -> Array:
    return np.array(value, np.float32)


# nodes from x to y -> constants
READ_THROUGH: dict[str, dict[str, Array]] = {
    "y = Relu(x)": {},
    "y = LeakyRelu<alpha = 0.2>(x)": {},
    "y = LeakyRelu(x)": {},
    "y = PRelu(x, a)": {"a": np.array([0.3], np.float32)},
    "y = Elu<alpha = 0.7>(x)": {},
    "y = Selu(x)": {},
    "y = Sigmoid(x)": {},
    "y = HardSigmoid(x)": {},
    "y = HardSigmoid<alpha = 0.1, beta = 0.4>(x)": {},
    "y = HardSwish(x)": {},
    "y = Tanh(x)": {},
    "y = Softplus(x)": {},
    "y = Mish(x)": {},
    "y = Erf(x)": {},
    "y = Clip(x, a, b)": {"a": scalar(-1), "b": scalar(6)},
    "y = Clip(x, , b)": {"b": scalar(2)},
    "y = Neg(x)": {},
    "s = Sigmoid(x) y = Mul(s, x)": {},
    "p = Add(x, a) c = Clip(p, z, b) m = Mul(x, c) y = Div(m, b)": {
        "a": scalar(3), "z": scalar(0), "b": scalar(6)},
    "d = Div(x, a) e = Erf(d) o = Add(e, b) m = Mul(x, o) y = Mul(c, m)": {
        "a": scalar(np.sqrt(2)), "b": scalar(1), "c": scalar(0.5)},
    "s = Sub(a, x) y = Div(s, b)": {"a": scalar(2), "b": scalar(-4)},
}  # fmt: skip


def value_of(nodes: str, constants: dict[str, Array]) -> tuple[ir.Value, onnx.ModelProto]:
    model = build(f"(float[N, C] x) => (float[N, C] y) {{ {nodes} }}", constants, opset=18)
    return ir.serde.deserialize_model(model).graph.inputs[0], model


@pytest.mark.parametrize("nodes", READ_THROUGH)
def test_a_curve_gives_what_the_nodes_give(nodes: str) -> None:
    value, model = value_of(nodes, READ_THROUGH[nodes])
    curve = curve_behind(value)
    assert curve is not None
    expected = run(model, {"x": GRID[None]})[0][0]
    np.testing.assert_allclose(curve(GRID.astype(np.float64)), expected, rtol=1e-4, atol=1e-5)
    assert pickle.loads(pickle.dumps(curve)) == curve
    assert len(curve.steps) == len(model.graph.node)


def test_gelu_is_a_curve_too() -> None:
    """Of opset 20."""
    model = build("(float[N, C] x) => (float[N, C] y) { y = Gelu(x) }", opset=20)
    curve = curve_behind(ir.serde.deserialize_model(model).graph.inputs[0])
    assert curve is not None
    expected = run(model, {"x": GRID[None]})[0][0]
    np.testing.assert_allclose(curve(GRID.astype(np.float64)), expected, rtol=1e-4, atol=1e-5)


def test_an_approximate_gelu_is_none() -> None:
    model = build(
        '(float[N, C] x) => (float[N, C] y) { y = Gelu<approximate = "tanh">(x) }', opset=20
    )
    assert curve_behind(ir.serde.deserialize_model(model).graph.inputs[0]) is None


@pytest.mark.parametrize(
    "nodes",
    [
        "s = Sigmoid(x) y = Add(s, t)",  # x has another reader, see below
        "y = Mul(x, v)",  # a number for each channel
        "y = PRelu(x, v)",
        "y = Softmax(x)",
        "a = Add(x, c) y = Div(a, x)",  # no value at 0
        "y = Div(c, x)",
        "y = Clip(x, u, u)",  # a bound that is calculated
    ],
)
def test_what_is_no_function_of_one_number_is_no_curve(nodes: str) -> None:
    extra = "t = Softmax(x)" if "t)" in nodes else ""
    extra += " m = ReduceMax<keepdims = 0>(x) u = Abs(m)" if "u," in nodes else ""
    constants = {"v": normal(7, seed=3)} if "v)" in nodes else {}
    constants |= {"c": np.array(2, np.float32)} if "Div" in nodes else {}
    value, _ = value_of(f"{extra} {nodes}", constants)
    assert curve_behind(value) is None


def test_the_curve_ends_where_something_else_reads() -> None:
    value, _ = value_of("r = Relu(x) s = Sigmoid(r) t = Tanh(r) y = Softmax(s) z = Softmax(t)", {})
    curve = curve_behind(value)
    assert curve is not None
    assert [step.op for step in curve.steps] == ["Relu"]


def test_an_output_ends_it() -> None:
    model = build("(float[N, C] x) => (float[N, C] r, float[N, C] y) { r = Relu(x) y = Tanh(r) }")
    curve = curve_behind(ir.serde.deserialize_model(model).graph.inputs[0])
    assert curve == Curve((Step("Relu", (0,)),))


def statistics(x: Array) -> TensorStatistics:
    builder = StatisticsBuilder(histogram=True)
    builder.add(x, 1)
    found = builder.build()
    assert found is not None
    return found


CURVES = {
    "Relu": Curve((Step("Relu", (0,)),)),
    "LeakyRelu": Curve((Step("LeakyRelu", (0,), options=(("alpha", 0.1),)),)),
    "HardSwish": Curve((Step("HardSwish", (0,)),)),
}


@pytest.mark.parametrize("name", CURVES)
def test_mse_behind_a_curve_is_the_literal_search(name: str) -> None:
    """One end at a time, twice; the error of all values as they are, not of a histogram."""
    x = normal(4000, seed=5, scale=4.0).astype(np.float64) - 3.0
    curve = CURVES[name]
    stats = statistics(x.astype(np.float32))

    def error(low: float, high: float) -> float:
        rounded = fake_quantize(x, np.array([low]), np.array([high]), 255)[0]
        return float(np.square(curve(rounded) - curve(x)).mean())

    shares = [0.02 * i for i in range(1, 51)]
    low, high = float(x.min()), float(x.max())
    lowest, highest = low, high
    for _ in range(2):
        high = min((s * highest for s in shares), key=lambda h: error(low, h))
        low = min((s * lowest for s in shares), key=lambda b: error(b, high))
    found = METHODS["mse"](stats, RangeOptions(curve=curve))
    assert error(*found) <= 1.02 * error(low, high)
    assert error(*found) < error(*METHODS["mse"](stats, RangeOptions()))


def test_nothing_below_where_hard_swish_is_zero_is_kept() -> None:
    x = normal(20000, seed=6, scale=8.0)
    low, high = METHODS["mse"](statistics(x), RangeOptions(curve=CURVES["HardSwish"]))
    assert -4.0 < low < -2.0
    assert high > 20.0


def test_other_methods_are_what_they_were() -> None:
    stats = statistics(normal(2000, seed=6, scale=8.0))
    for method in ("min_max", "abs_max", "KL", "hist", "emd", "ptf", "avg"):
        with_curve = METHODS[method](stats, RangeOptions(curve=CURVES["Relu"]))
        assert with_curve == METHODS[method](stats, RangeOptions())


def test_a_network_gains_by_it() -> None:
    """A Conv of which one channel is very negative: next to nothing behind the LeakyRelu."""
    text = (
        "(float[N, 8, 8, 8] x) => (float[N, 8, 8, 8] y) "
        "{ c = Conv(x, a, ab) r = LeakyRelu<alpha = 0.001>(c) y = Conv(r, b) }"
    )
    bias = np.where(np.arange(8) == 3, -300.0, 1.0).astype(np.float32)
    weights = {"a": normal(8, 8, 1, 1), "ab": bias, "b": normal(8, 8, 1, 1, seed=1)}
    model, feeds = build(text, weights), samples("x", (1, 8, 8, 8), 16)
    models = [
        onnxq.quantize_static(
            model, None, feeds, target="onnxruntime-x86", accuracy="none", method=method
        )
        for method in ("mse", "min_max")
    ]
    fine, plain = (float(weights_of(m)["c_scale"]) for m in models)
    assert fine < plain / 5
    expected = np.concatenate([run(model, feed)[0] for feed in feeds])
    found = [sqnr(expected, np.concatenate([run(m, f)[0] for f in feeds])) for m in models]
    assert found[0] > found[1] + 6


def test_every_function_is_an_op_of_onnx() -> None:
    for name in FUNCTIONS:
        assert onnx.defs.has(name), name
