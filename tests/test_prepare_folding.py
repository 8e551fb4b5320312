"""Prepare, the folding passes: neutral arithmetic, shapes from shapes, biases of Convs."""

from __future__ import annotations

import numpy as np
import pytest

from tests.models import Array, build, normal, ops, run
from tests.test_prepare import IMAGE, check_same


@pytest.mark.parametrize(
    ("op", "number", "dropped"),
    [
        ("Add(a, c)", 0.0, True),
        ("Sub(a, c)", 0.0, True),
        ("Mul(a, c)", 1.0, True),
        ("Div(a, c)", 1.0, True),
        ("Add(a, c)", 1e-6, False),
        ("Mul(a, c)", 1.001, False),
        ("Sub(c, a)", 0.0, False),
        ("Div(c, a)", 1.0, False),
    ],
)
@pytest.mark.parametrize("shape", [(), (1,), (1, 1)])
def test_arithmetic_that_changes_nothing(
    op: str, number: float, dropped: bool, shape: tuple[int, ...]
) -> None:
    model = build(
        f"(float[N,8] x) => (float[N,8] y) {{ a = Exp(x) b = {op} y = Tanh(b) }}",
        {"c": np.full(shape, number, np.float32)},
    )
    result = check_same(model, {"x": normal(3, 8)})
    assert (op[:3] not in ops(result)) == dropped


def test_a_neutral_number_that_broadcasts_stays() -> None:
    model = build(
        "(float[8] x) => (float[1,8] y) { a = Exp(x) y = Add(a, c) }",
        {"c": np.zeros((1, 1), np.float32)},
    )
    assert ops(check_same(model, {"x": normal(8)}))["Add"] == 1


FLATTEN = "s = Shape(x) b = Slice(s, zero, one, zero) t = Concat<axis=0>(b, rest) y = Reshape(x, t)"


@pytest.mark.parametrize(
    ("text", "folded"),
    [
        ("(float[N,8,6,6] x) => (float[N,M] y) { " + FLATTEN + " }", [0, 288]),
        ("(float[2,8,6,6] x) => (float[N,M] y) { " + FLATTEN + " }", [2, 288]),
        (  # the dimension of another tensor, at another place
            "(float[N,8,6,6] x) => (float[P,Q] y) { s = Shape(x) d = Gather(s, zero) "
            "t = Concat<axis=0>(rest, d) y = Reshape(x, t) }",
            [288, -1],
        ),
        (  # the same dimension by its symbol, through Cast and a scalar
            "(float[N,8,6,6] x) => (float[N,M] y) { e = Relu(x) s = Shape(e) i = Cast<to=6>(s) "
            "d = Gather(i, none) u = Unsqueeze(d, zero) l = Cast<to=7>(u) "
            "t = Concat<axis=0>(l, rest) y = Reshape(x, t) }",
            [0, 288],
        ),
    ],
)
def test_shape_of_a_reshape_is_calculated(text: str, folded: list[int]) -> None:
    weights: dict[str, Array] = {
        "zero": np.array([0]),
        "one": np.array([1]),
        "none": np.array(0),
        "rest": np.array([288]),
    }
    used = {name: value for name, value in weights.items() if name in text}
    result = check_same(build(text, used), IMAGE)
    assert "Shape" not in ops(result)
    reshape = next(node for node in result.graph.node if node.op_type == "Reshape")
    tensor = next(t for t in result.graph.initializer if t.name == reshape.input[1])
    assert list(np.frombuffer(tensor.raw_data, np.int64)) == folded


def test_two_open_dimensions_stay() -> None:
    model = build(
        "(float[N,8,H,W] x) => (float[A,B,C] y) { s = Shape(x) h = Gather(s, two) "
        "w = Gather(s, three) t = Concat<axis=0>(w, h, rest) y = Reshape(x, t) }",
        {"two": np.array([2]), "three": np.array([3]), "rest": np.array([-1])},
    )
    assert ops(check_same(model, IMAGE))["Shape"] == 1


def test_no_minus_one_beside_a_dimension_that_may_be_zero() -> None:
    """Reshape to [N, H, 6] of [N, 6, H]: as [0, -1, 6] it would fail for N = 0."""
    model = build(
        "(float[N,6,H] x) => (float[A,B,C] y) { s = Shape(x) n = Gather(s, zero) "
        "h = Gather(s, two) t = Concat<axis=0>(n, h, six) y = Reshape(x, t) }",
        {"zero": np.array([0]), "two": np.array([2]), "six": np.array([6])},
    )
    result = check_same(model, {"x": normal(2, 6, 5)})
    assert run(result, {"x": np.zeros((0, 6, 5), np.float32)})[0].shape == (0, 5, 6)


@pytest.mark.parametrize("name", ["?", "batch size"])
def test_what_is_no_name_of_a_dimension_says_nothing(name: str) -> None:
    model = build(
        "(float[3,4] x, float[2,6] w) => (float[A,B] y) { s = Shape(w) y = Reshape(x, s) }"
    )
    for value in model.graph.input:
        for dim in value.type.tensor_type.shape.dim:
            dim.dim_param = name
    result = check_same(model, {"x": normal(3, 4), "w": normal(2, 6)})
    assert ops(result)["Shape"] == 1


def test_known_dimensions_become_constants() -> None:
    model = build(
        "(float[N,8,6,6] x) => (float[N,8,12,12] y) { s = Shape(x) h = Slice(s, two, four, zero) "
        "d = Add(h, h) n = Slice(s, zero, two, zero) t = Concat<axis=0>(n, d) "
        "y = Resize(x, , , t) }",
        {"two": np.array([2]), "four": np.array([4]), "zero": np.array([0])},
    )
    result = check_same(model, IMAGE)
    add = next(node for node in result.graph.node if node.op_type == "Add")
    assert add.input[0] in {t.name for t in result.graph.initializer}


@pytest.mark.parametrize("shape", [(1, 4, 1, 1), (4, 1, 1), (1,), ()])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("op", ["Conv", "ConvTranspose"])
def test_add_behind_a_conv_becomes_its_bias(op: str, bias: bool, shape: tuple[int, ...]) -> None:
    weights = {"w": normal(4, 8, 3, 3) if op == "Conv" else normal(8, 4, 3, 3), "c": normal(*shape)}
    if bias:
        weights["b"] = normal(4, seed=3)
    inputs = "x, w, b" if bias else "x, w"
    model = build(
        f"(float[N,8,H,W] x) => (float[N,4,H2,W2] y) {{ a = {op}({inputs}) s = Add(c, a) "
        "y = Relu(s) }",
        weights,
    )
    result = check_same(model, IMAGE)
    assert ops(result) == {op: 1, "Relu": 1}


@pytest.mark.parametrize(
    "text",
    [
        "(float[N,8,6,6] x) => (float[N,4,4,4] y) { a = Conv(x, w) y = Add(a, c) }",  # along width
        "(float[N,8,6,6] x) => (float[N,4,4,4] y, float[N,4,4,4] a) "
        "{ a = Conv(x, w) y = Add(a, k) }",
        "(float[N,8,6,6] x, float[4] b) => (float[N,4,4,4] y) { a = Conv(x, w, b) y = Add(a, k) }",
    ],
)
def test_add_that_is_no_bias_stays(text: str) -> None:
    weights = {"w": normal(4, 8, 3, 3), "c": normal(4), "k": normal(4, 1, 1)}
    used = {name: value for name, value in weights.items() if f"{name})" in text or name == "w"}
    feed = {**IMAGE, **({"b": normal(4)} if " b)" in text.split("=>")[0] else {})}
    assert ops(check_same(build(text, used), feed))["Add"] == 1
