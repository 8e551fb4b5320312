"""Prepare: other nodes, the same values; and the names that the user knows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import numpy_helper

import onnxq
from onnxq.model import load
from onnxq.placement import place_weights
from onnxq.prepare import Prepared, prepare
from onnxq.recipe import DynamicRecipe
from onnxq.selection import Choices
from tests.models import (
    Array,
    Feed,
    all_nodes,
    assert_close,
    build,
    normal,
    ops,
    opsets,
    run,
    samples,
    weights_of,
)

IMAGE = {"x": normal(2, 8, 6, 6, seed=1)}
ROWS = {"x": normal(3, 8, seed=1)}


def prepared(model: onnx.ModelProto, *, static: bool = False, min_opset: int = 13) -> Prepared:
    return prepare(load(model), min_opset=min_opset, static=static)


def excluded(result: Prepared, pattern: str) -> dict[str, str]:
    """Node name -> reason, of the nodes that the pattern excludes."""
    choices = Choices(result, DynamicRecipe(exclude=(pattern,)))
    left = {node.name or "": choices.of(node).left for node in result.ir.graph}
    return {name: reason for name, reason in left.items() if reason is not None}


def proto(result: Prepared) -> onnx.ModelProto:
    return ir.to_proto(result.ir)


def check_same(
    model: onnx.ModelProto, feed: Feed, *, static: bool = False, min_opset: int = 13
) -> onnx.ModelProto:
    """The prepared model, whose outputs have been found equal, by name and value."""
    expected = run(model, feed)
    result = proto(prepared(model, static=static, min_opset=min_opset))
    onnx.checker.check_model(result)
    assert [o.name for o in result.graph.output] == [o.name for o in model.graph.output]
    assert [i.name for i in result.graph.input] == [i.name for i in model.graph.input]
    found = run(result, feed)
    assert len(found) == len(expected)
    for a, b in zip(expected, found, strict=True):
        assert_close(a, b)
    return result


# names


def test_names_are_unique_and_the_user_s_are_remembered() -> None:
    model = build(
        "(float[N,8] x) => (float[N,8] y) { a = MatMul(x, w) b = Relu(a) c = MatMul(b, w)"
        " d = Relu(c) y = MatMul(d, w) }",
        {"w": normal(8, 8)},
    )
    (expected,) = run(model, ROWS)  # while onnxruntime, which refuses two of a name, still runs it
    for node, name in zip(model.graph.node, ["dense", "", "dense", "", "dense"], strict=True):
        node.name = name
    result = prepared(model)
    nodes = list(result.ir.graph)
    assert len({node.name for node in nodes}) == 5
    assert all(node.name for node in nodes)
    assert [result.names.label(n) for n in nodes] == ["dense", "Relu_0", "dense", "Relu_1", "dense"]
    reasons = excluded(result, "dense")
    assert sum("dense" in reason for reason in reasons.values()) == 3
    # a tensor's name tells nodes of one name apart
    assert len(excluded(result, "c")) == 1
    assert_close(expected, run(proto(result), ROWS)[0])


def test_bodies_that_repeat_names_of_the_main_graph() -> None:
    model = body_model("p = MatMul(x, w)", "q = MatMul(x, w)", {"w": normal(8, 8)})
    del model.graph.initializer[:]
    then_body, else_body = (a.g for a in model.graph.node[0].attribute)
    for body, seed in ((then_body, 1), (else_body, 2)):
        body.initializer.append(numpy_helper.from_array(normal(8, 8, seed=seed), "w"))
        body.node[0].name = "n_y"
    result = prepared(model)
    names = [v for g in result.ir.graphs() for v in g.initializers]
    assert len(set(names)) == len(names)
    for condition in (True, False):
        check_same(model, {"c": np.array(condition), **ROWS})


@pytest.mark.parametrize("static", [False, True])
def test_patterns_speak_the_user_s_names(tmp_path: Path, static: bool) -> None:
    """A BatchNormalization that was folded away still stands for the Conv that took it in."""
    model = batchnorm_model("c = Conv(x, w)", normal(5, 8, 3, 3), 5)
    for pattern in ("n_c", "c", "n_y", "y"):
        if static:
            report = onnxq.quantize_static(
                model, tmp_path / "q.onnx", samples("x", (1, 8, 6, 6), 2), exclude=[pattern]
            )
        else:
            report = onnxq.quantize_dynamic(model, tmp_path / "q.onnx", exclude=[pattern])
        assert not report.placement.weights
        assert any(pattern in skip.reason for skip in report.skips)


def test_patterns_match_what_became_a_gemm() -> None:
    model = build(
        "(float[N,8] x) => (float[N,4] y) { a = MatMul(x, w) y = Add(a, b) }",
        {"w": normal(8, 4), "b": normal(4)},
    )
    result = prepared(model, static=True)
    (gemm,) = list(result.ir.graph)
    for name in ("n_a", "n_y", "y"):
        assert list(excluded(result, name)) == [gemm.name]
    assert result.names.label(gemm) == "n_a"


# constants


def test_constant_nodes_are_lifted() -> None:
    model = build(
        "(float[N,2] x) => (float[N,2] y)"
        " { w = Constant<value = float[2,2] {1.5, 2.5, -3.5, 4.5}>() a = MatMul(x, w)"
        " s = Constant<value_float = 2.0>() y = Mul(a, s) }"
    )
    result = check_same(model, {"x": normal(3, 2)})
    assert ops(result) == Counter(MatMul=1, Mul=1)
    assert {w.size for w in weights_of(result).values()} == {4, 1}


FOLDED = {
    "Transpose": ("t = Transpose(w)", normal(8, 8)),
    "Reshape": ("t = Reshape(w, shape)", normal(64)),
    "Slice": ("t = Slice(w, zero, eight)", normal(12, 8)),
    "Identity": ("t = Identity(w)", normal(8, 8)),
    "chain": ("i = Identity(w) r = Reshape(i, shape) u = Transpose(r) t = Neg(u)", normal(64)),
}


@pytest.mark.parametrize("static", [False, True])
@pytest.mark.parametrize("name", FOLDED)
def test_constant_parts_are_calculated(name: str, static: bool) -> None:
    text, w = FOLDED[name]
    indices = {
        "shape": np.array([8, 8], np.int64),
        "zero": np.array([0], np.int64),
        "eight": np.array([8], np.int64),
    }
    used = {k: v for k, v in indices.items() if k in text}
    model = build(
        f"(float[N,8] x) => (float[N,8] y) {{ {text} y = MatMul(x, t) }}", {"w": w, **used}
    )
    result = check_same(model, ROWS, static=static)
    assert ops(result) == Counter(MatMul=1)
    assert [v.shape for v in weights_of(result).values()] == [(8, 8)]


def tied() -> onnx.ModelProto:
    return build(
        "(int64[n] i) => (float[n,700] y) { e = Gather(w, i) t = Transpose(w) y = MatMul(e, t) }",
        {"w": normal(700, 32)},
    )


def test_shared_view_is_not_stored_twice_in_dynamic_mode() -> None:
    result = check_same(tied(), {"i": np.array([1, 699, 0])})
    assert ops(result) == Counter(Gather=1, Transpose=1, MatMul=1)
    assert list(weights_of(result)) == ["w"]
    float_model = prepared(tied())
    choices = Choices(float_model, DynamicRecipe())
    (weight,) = place_weights(float_model, choices, "qdq").weights
    assert str(weight.spec) == "symmetric int8 per-channel (axis 0)"


def test_shared_view_is_folded_in_static_mode() -> None:
    result = check_same(tied(), {"i": np.array([1, 699, 0])}, static=True)
    assert ops(result) == Counter(Gather=1, MatMul=1)


def test_random_and_large_constants_are_left_alone() -> None:
    model = build(
        "(float[1000,1000] x) => (float[1000,1000] y)"
        " { k = ConstantOfShape(shape) r = RandomNormalLike(small) s = ReduceSum<keepdims=0>(r)"
        " a = Add(x, k) z = Mul(s, zero) y = Add(a, z) }",
        {
            "shape": np.array([1000, 1000], np.int64),
            "small": normal(2),
            "zero": np.array(0, np.float32),
        },
    )
    result = check_same(model, {"x": normal(1000, 1000)})
    assert ops(result)["ConstantOfShape"] == 1
    assert ops(result)["RandomNormalLike"] == 1
    assert result.ByteSize() < 10_000


# Identity and Dropout


def body_model(then: str, other: str, weights: dict[str, Array] | None = None) -> onnx.ModelProto:
    return build(
        f"""(bool c, float[N,8] x) => (float[N,8] y) {{
            y = If (c) <then_branch = t () => (float[N,8] p) {{ {then} }},
                        else_branch = e () => (float[N,8] q) {{ {other} }}>
        }}""",
        weights,
    )


@pytest.mark.parametrize("op", ["Identity", "Dropout"])
@pytest.mark.parametrize("condition", [True, False])
def test_identity_and_dropout_in_bodies(op: str, condition: bool) -> None:
    feed = {"c": np.array(condition), **ROWS}
    weights = {"w": normal(8, 8)}
    # handed through from outside; between nodes; behind a node as the body's output
    model = body_model(f"p = {op}(x)", f"a = MatMul(x, w) b = {op}(a) q = Relu(b)", weights)
    assert ops(check_same(model, feed))[op] == 1
    model = body_model(f"a = {op}(x) p = Neg(a)", f"a = MatMul(x, w) q = {op}(a)", weights)
    assert ops(check_same(model, feed))[op] == 0


@pytest.mark.parametrize("op", ["Identity", "Dropout"])
def test_identity_and_dropout_in_the_main_graph(op: str) -> None:
    model = build(
        "(float[N,8] x) => (float[N,8] y, float[N,8] z, float[N,8] s)"
        f" {{ i = {op}(x) a = MatMul(i, w) d = {op}(a) y = Relu(d) z = {op}(y) s = {op}(x) }}",
        {"w": normal(8, 8)},
    )
    result = check_same(model, ROWS)
    # s hands an input through, and z an output: those have to stay
    assert ops(result) == Counter({"MatMul": 1, "Relu": 1, op: 2})


# opset


def test_opset_11_is_raised_to_13() -> None:
    model = build(
        "(float[2,8,6,6] x) => (float[2,n] y)"
        " { c = Conv(x, w, b) r = Clip(c, lo, hi) u = Unsqueeze<axes=[0]>(r)"
        " s = Squeeze<axes=[0]>(u) f = Flatten(s) m = ReduceSum<axes=[1]>(f)"
        " t = Softmax<axis=1>(f) y = Add(t, m) }",
        {
            "w": normal(5, 8, 3, 3),
            "b": normal(5),
            "lo": np.array(0, np.float32),
            "hi": np.array(6, np.float32),
        },
        opset=11,
    )
    result = check_same(model, IMAGE)
    assert result.opset_import[0].version == 13
    assert result.ir_version >= 7


@pytest.mark.parametrize("opset", opsets(13, 17, 21, 23))
def test_a_higher_opset_stays(opset: int) -> None:
    model = build(
        "(float[N,8] x) => (float[N,4] y) { y = MatMul(x, w) }", {"w": normal(8, 4)}, opset=opset
    )
    assert check_same(model, ROWS).opset_import[0].version == opset


# BatchNormalization


def batchnorm_model(
    layer: str, w: Array, channels: int, bias: Array | None = None, head: str = ""
) -> onnx.ModelProto:
    head = head or "(float[N,8,6,6] x) => (float[N,c,h,w2] y)"
    weights = {
        "w": w,
        "gamma": normal(channels, seed=11) + 1,
        "beta": normal(channels, seed=12),
        "mean": normal(channels, seed=13),
        "var": normal(channels, seed=14) ** 2 + np.array(0.1, np.float32),
    }
    if bias is not None:
        weights["b"] = bias
    text = f"{head} {{ {layer} y = BatchNormalization<epsilon=0.01>(c, gamma, beta, mean, var) }}"
    return build(text, weights)


GEMM_HEAD = "(float[N,8] x) => (float[N,5] y)"
LAYERS = {
    "Conv": ("c = Conv(x, w)", normal(5, 8, 3, 3), None),
    "Conv with bias": ("c = Conv(x, w, b)", normal(5, 8, 3, 3), normal(5)),
    "grouped": ("c = Conv<group=2>(x, w, b)", normal(6, 4, 3, 3), normal(6)),
    "depthwise": ("c = Conv<group=8>(x, w)", normal(8, 1, 3, 3), None),
    "ConvTranspose": ("c = ConvTranspose(x, w, b)", normal(8, 5, 3, 3), normal(5)),
    "ConvTranspose no bias": ("c = ConvTranspose<strides=[2,2]>(x, w)", normal(8, 5, 3, 3), None),
    "Gemm": ("c = Gemm(x, w, b)", normal(8, 5), normal(5)),
    "Gemm transB": ("c = Gemm<transB=1>(x, w, b)", normal(5, 8), normal(5)),
    "Gemm scalar bias": ("c = Gemm(x, w, b)", normal(8, 5), normal(1)),
    "Gemm alpha": ("c = Gemm<alpha=0.5>(x, w, b)", normal(8, 5), normal(5)),
    "Gemm row bias": ("c = Gemm(x, w, b)", normal(8, 5), normal(1, 5)),
}


@pytest.mark.parametrize("static", [False, True])
@pytest.mark.parametrize("name", LAYERS)
def test_batchnorm_is_folded(name: str, static: bool) -> None:
    layer, w, bias = LAYERS[name]
    gemm = "Gemm" in name
    channels = 6 if name == "grouped" else 8 if name == "depthwise" else 5
    model = batchnorm_model(layer, w, channels, bias, GEMM_HEAD if gemm else "")
    result = check_same(model, ROWS if gemm else IMAGE, static=static)
    assert len(result.graph.node) == 1


UNFOLDED = {
    "beta of Gemm": ("c = Gemm<beta=0.5>(x, w, b)", normal(8, 5), normal(5), 5),
    "grouped ConvTranspose": ("c = ConvTranspose<group=2>(x, w)", normal(8, 3, 3, 3), None, 6),
}


@pytest.mark.parametrize("name", UNFOLDED)
def test_batchnorm_that_cannot_be_folded_stays(name: str) -> None:
    layer, w, bias, channels = UNFOLDED[name]
    gemm = "Gemm" in name
    model = batchnorm_model(layer, w, channels, bias, GEMM_HEAD if gemm else "")
    result = check_same(model, ROWS if gemm else IMAGE)
    assert ops(result)["BatchNormalization"] == 1


def test_batchnorm_stays_where_the_conv_is_read_elsewhere_or_its_weight_is_shared() -> None:
    norm = "BatchNormalization(c, gamma, beta, mean, var)"
    vectors = {
        name: np.abs(normal(8, seed=i))
        for i, name in enumerate(("gamma", "beta", "mean", "var"), start=20)
    }
    head = "(float[N,8,6,6] x) => (float[N,8,h,w2] y, float[N,8,h2,w3] z)"
    for text in (
        f"c = Conv(x, w) y = {norm} z = Relu(c)",
        f"c = Conv(x, w) y = {norm} z = Conv(x, w)",
    ):
        model = build(f"{head} {{ {text} }}", {"w": normal(8, 8, 3, 3), **vectors})
        assert ops(check_same(model, IMAGE))["BatchNormalization"] == 1


def test_two_convs_may_share_a_bias_that_one_of_them_folds() -> None:
    vectors = {
        name: np.abs(normal(8, seed=i))
        for i, name in enumerate(("gamma", "beta", "mean", "var"), start=20)
    }
    model = build(
        "(float[N,8,6,6] x) => (float[N,8,h,w] y, float[N,8,h,w] z) { c = Conv(x, w1, b)"
        " y = BatchNormalization(c, gamma, beta, mean, var) z = Conv(x, w2, b) }",
        {"w1": normal(8, 8, 3, 3), "w2": normal(8, 8, 3, 3, seed=1), "b": normal(8), **vectors},
    )
    assert ops(check_same(model, IMAGE)) == Counter(Conv=2)


# MatMul + Add


@pytest.mark.parametrize("order", ["a, b", "b, a"])
@pytest.mark.parametrize(
    ("shape", "feed_shape", "nodes"),
    [
        ("N,8", (3, 8), Counter(Gemm=1)),
        ("3,8", (3, 8), Counter(Gemm=1)),
        ("N,4,8", (3, 4, 8), Counter(Gemm=1, Reshape=2)),
        ("2,T,8", (2, 5, 8), Counter(Gemm=1, Reshape=2)),
        ("2,3,4,8", (2, 3, 4, 8), Counter(Gemm=1, Reshape=2)),
        ("N,T,8", (2, 5, 8), Counter(MatMul=1, Add=1)),
    ],
)
def test_matmul_add_becomes_gemm(
    order: str, shape: str, feed_shape: tuple[int, ...], nodes: Counter[str]
) -> None:
    lead = shape.rsplit(",", 1)[0]
    model = build(
        f"(float[{shape}] x) => (float[{lead},5] y) {{ a = MatMul(x, w) y = Add({order}) }}",
        {"w": normal(8, 5), "b": normal(5)},
    )
    feed = {"x": normal(*feed_shape, seed=2)}
    assert ops(check_same(model, feed, static=True)) == nodes
    assert ops(check_same(model, feed, static=False)) == Counter(MatMul=1, Add=1)


@pytest.mark.parametrize("b", [normal(1), normal(3, 5), normal(1, 5)])
def test_add_of_what_is_no_bias_stays(b: Array) -> None:
    model = build(
        "(float[3,8] x) => (float[3,5] y) { a = MatMul(x, w) y = Add(a, b) }",
        {"w": normal(8, 5), "b": b},
    )
    assert ops(check_same(model, ROWS, static=True)) == Counter(MatMul=1, Add=1)


# A 1x1 Conv over one position

HEADS = {
    "Flatten": ("g = GlobalAveragePool(x) c = Conv(g, w, b) y = Flatten(c)", {}),
    "Reshape": (
        "g = GlobalAveragePool(x) c = Conv(g, w) y = Reshape(c, s)",
        {"s": np.array([0, -1])},
    ),
    "Squeeze": (
        "g = GlobalAveragePool(x) c = Conv(g, w, b) y = Squeeze(c, s)",
        {"s": np.array([2, 3])},
    ),
    "a pool that covers all": (
        "g = MaxPool<kernel_shape = [6, 6]>(x) c = Conv<strides = [2, 2]>(g, w, b) y = Flatten(c)",
        {},
    ),
}


def head(nodes: str, constants: Mapping[str, Array], shape: str = "2, 8, 6, 6") -> onnx.ModelProto:
    weights = {"w": normal(5, 8, 1, 1), "b": normal(5)}
    used = {name: array for name, array in weights.items() if f", {name}" in nodes}
    return build(f"(float[{shape}] x) => (float[N, C] y) {{ {nodes} }}", {**used, **constants})


@pytest.mark.parametrize("case", HEADS)
def test_a_conv_head_becomes_a_gemm(case: str) -> None:
    model = head(*HEADS[case])
    found = ops(check_same(model, IMAGE, static=True))
    assert found["Gemm"] == 1
    assert found["Conv"] == 0
    assert ops(check_same(model, IMAGE, static=False))["Conv"] == 1


def test_a_conv_head_keeps_its_name_and_takes_any_batch() -> None:
    nodes = "g = GlobalAveragePool(x) c = Conv(g, w, b) y = Flatten(c)"
    model = head(nodes, {}, "N, 8, 6, 6")
    check_same(model, IMAGE, static=True)
    result = prepared(model, static=True)
    gemm = next(node for node in result.ir.graph if node.op_type == "Gemm")
    assert result.names.label(gemm) == "n_c"
    assert {"n_c", "c", "n_y", "y"} <= set(result.names.of(gemm))


@pytest.mark.parametrize(
    ("nodes", "constants"),
    [
        ("c = Conv(x, w, b) y = Flatten(c)", {}),  # many positions
        ("g = GlobalAveragePool(x) c = Conv<pads = [1, 1, 1, 1]>(g, w, b) y = Flatten(c)", {}),
        ("g = GlobalAveragePool(x) c = Conv<group = 2>(g, v) y = Flatten(c)",
         {"v": normal(6, 4, 1, 1)}),
        ("g = GlobalAveragePool(x) c = Conv(g, w, b) r = Relu(c) y = Flatten(r)", {}),
        ("g = GlobalAveragePool(x) c = Conv(g, w, b) f = Flatten(c) k = Sigmoid(c) "
         "l = Flatten(k) y = Add(f, l)", {}),
        ("g = GlobalAveragePool(x) c = Conv(g, w, b) y = Reshape(c, s)", {"s": np.array([5, 2])}),
        ("g = GlobalAveragePool(x) c = Conv(g, w) k = Conv(x, w) p = GlobalMaxPool(k) "
         "m = Add(c, p) y = Flatten(m)", {}),
    ],
)  # fmt: skip
def test_another_conv_stays(nodes: str, constants: Mapping[str, Array]) -> None:
    assert ops(check_same(head(nodes, constants), IMAGE, static=True))["Gemm"] == 0


def test_class_scores_are_float_though_all_before_them_runs_on_integers() -> None:
    feeds = samples("x", (1, 8, 6, 6), 8)
    wide = build(
        """(float[1, 8, 6, 6] x) => (float[1, 5] y, float[1, 6] z) {
            a = Conv(x, v) r = Relu(a)
            g = GlobalAveragePool(r) c = Conv(g, w, b) y = Flatten(c)
            d = Conv(r, u) p = GlobalAveragePool(d) z = Flatten(p)
        }""",
        {
            "v": normal(8, 8, 3, 3, seed=3),
            "w": normal(5, 8, 1, 1),
            "b": normal(5),
            "u": normal(6, 8, 1, 1, seed=4),
        },
    )
    result = onnxq.quantize_static(wide, None, feeds, target="onnxruntime-x86")
    for index, classes in enumerate((5, 6)):
        scores = np.concatenate([run(result, feed)[index] for feed in feeds])
        steps = np.diff(np.sort(scores.ravel()))
        assert (steps > 0).all()  # 8 bits would have many equal ones
        assert scores.shape == (8, classes)


def test_the_given_model_is_not_changed() -> None:
    model = batchnorm_model("c = Conv(x, w)", normal(5, 8, 3, 3), 5)
    before = model.SerializeToString(deterministic=True)
    for static in (False, True):
        prepared(model, static=static)
    assert model.SerializeToString(deterministic=True) == before
    assert [n.name for n in all_nodes(model.graph)] == ["n_c", "n_y"]
