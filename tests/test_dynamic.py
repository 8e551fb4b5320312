"""quantize_dynamic: integer weights, the same values as rounding gives, and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest

import onnxq
from onnxq.session import FOLD_WEIGHTS
from tests.models import (
    Array,
    all_nodes,
    assert_close,
    build,
    normal,
    open_session,
    ops,
    opsets,
    optimized_ops,
    rounded,
    run,
    samples,
    weights_of,
    with_weights,
)


@dataclass(frozen=True)
class Case:
    """axes: weight -> axis of its scales."""

    text: str
    weights: dict[str, Array]
    axes: dict[str, int]
    feed: dict[str, Array] = field(default_factory=lambda: {"x": normal(2, 8, 6, 6, seed=1)})

    def model(self, opset: int = 17) -> onnx.ModelProto:
        return build(self.text, self.weights, opset=opset)


def _spread(w: Array, axis: int) -> Array:
    """Channels of very different magnitude, so that the axis of the scales shows."""
    shape = [-1 if i == axis else 1 for i in range(w.ndim)]
    return np.asarray(w * np.logspace(-1, 1, w.shape[axis], dtype=np.float32).reshape(shape))


_IMAGE = "(float[N,8,6,6] x) => (float[N,c,h,w] y)"
_ROWS = {"x": normal(3, 12, seed=2)}
_RECURRENT = {"x": normal(5, 2, 6, seed=3)}


def _gather_feed() -> dict[str, Array]:
    return {"i": np.array([[0, 3, 9], [4, 4, 1]], np.int64)}


CASES = {
    "Conv": Case(
        f"{_IMAGE} {{ y = Conv(x, w, b) }}",
        {"w": _spread(normal(5, 8, 3, 3), 0), "b": normal(5)},
        {"w": 0},
    ),
    "depthwise": Case(
        f"{_IMAGE} {{ y = Conv<group=8>(x, w) }}", {"w": _spread(normal(8, 1, 3, 3), 0)}, {"w": 0}
    ),
    "grouped": Case(
        f"{_IMAGE} {{ y = Conv<group=2>(x, w) }}", {"w": _spread(normal(6, 4, 3, 3), 0)}, {"w": 0}
    ),
    "ConvTranspose": Case(
        f"{_IMAGE} {{ y = ConvTranspose<strides=[2,2]>(x, w) }}",
        {"w": _spread(normal(8, 5, 3, 3), 1)},
        {"w": 1},
    ),
    "MatMul B": Case(
        "(float[N,12] x) => (float[N,7] y) { y = MatMul(x, w) }",
        {"w": _spread(normal(12, 7), 1)},
        {"w": 1},
        _ROWS,
    ),
    "MatMul A": Case(
        "(float[12,4] x) => (float[7,4] y) { y = MatMul(w, x) }",
        {"w": _spread(normal(7, 12), 0)},
        {"w": 0},
        {"x": normal(12, 4, seed=2)},
    ),
    "Gemm": Case(
        "(float[N,12] x) => (float[N,7] y) { y = Gemm(x, w, b) }",
        {"w": _spread(normal(12, 7), 1), "b": normal(7)},
        {"w": 1},
        _ROWS,
    ),
    "Gemm transB": Case(
        "(float[N,12] x) => (float[N,7] y) { y = Gemm<transB=1>(x, w, b) }",
        {"w": _spread(normal(7, 12), 0), "b": normal(7)},
        {"w": 0},
        _ROWS,
    ),
    "LSTM": Case(
        "(float[5,2,6] x) => (float[5,1,2,4] y) { y, h, c = LSTM<hidden_size=4>(x, w, r, b) }",
        {
            "w": _spread(normal(1, 16, 6, scale=0.3), 1),
            "r": normal(1, 16, 4, seed=5),
            "b": normal(1, 32, seed=6),
        },
        {"w": 1, "r": 1},
        _RECURRENT,
    ),
    "GRU": Case(
        "(float[5,2,6] x) => (float[5,1,2,4] y) { y = GRU<hidden_size=4>(x, w, r) }",
        {"w": _spread(normal(1, 12, 6, scale=0.3), 1), "r": normal(1, 12, 4, seed=5)},
        {"w": 1, "r": 1},
        _RECURRENT,
    ),
    "Gather": Case(
        "(int64[a,b] i) => (float[a,b,16] y) { y = Gather(w, i) }",
        {"w": _spread(normal(10, 16), 0)},
        {"w": 0},
        _gather_feed(),
    ),
}


def _integers(model: onnx.ModelProto, bits: int) -> dict[str, Array]:
    dtype = np.int8 if bits == 8 else np.int16
    return {name: w for name, w in weights_of(model).items() if w.dtype == dtype}


def _scales(model: onnx.ModelProto) -> dict[str, tuple[Array, int | None]]:
    """Float weight -> scale and axis of its DequantizeLinear."""
    values = weights_of(model)
    found: dict[str, tuple[Array, int | None]] = {}
    for node in all_nodes(model.graph):
        if node.op_type == "DequantizeLinear":
            axis = next((a.i for a in node.attribute if a.name == "axis"), None)
            found[node.output[0]] = values[node.input[1]], axis
    return found


@pytest.mark.parametrize("granularity", ["channel", "tensor"])
@pytest.mark.parametrize("encoding", ["qdq", "fold"])
@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("name", CASES)
def test_values_are_those_of_rounding(
    name: str, bits: int, encoding: Any, granularity: Any
) -> None:
    case = CASES[name]
    model = case.model()
    result = onnxq.quantize_dynamic(model, bits=bits, encoding=encoding, granularity=granularity)
    onnx.checker.check_model(result, full_check=bits == 8)
    stored = _integers(result, bits)
    assert sorted(w.size for w in stored.values()) == sorted(
        case.weights[n].size for n in case.axes
    )
    assert all(abs(w.astype(int)).max() == 2 ** (bits - 1) - 1 for w in stored.values())
    assert not [w for n, w in weights_of(result).items() if n in case.axes]

    axes = {n: axis if granularity == "channel" else None for n, axis in case.axes.items()}
    if encoding == "qdq":
        assert ops(result)["DequantizeLinear"] == len(axes)
        for weight, axis in axes.items():
            scale, stated = _scales(result)[weight]
            channels = 1 if axis is None else case.weights[weight].shape[axis]
            assert scale.dtype == np.float32
            assert scale.shape == (() if axis is None else (channels,))
            assert stated == axis
    else:
        assert ops(result)["Cast"] == ops(result)["Mul"] == len(axes)

    reference = with_weights(
        model, {n: rounded(case.weights[n], axis, bits) for n, axis in axes.items()}
    )
    (expected, *_) = run(reference, case.feed)
    for optimize in (False, True):
        # without the entry onnxruntime makes MatMulNBits, which quantizes activations too
        entries = FOLD_WEIGHTS if encoding == "qdq" else {}
        session = open_session(result, entries, optimize=optimize)
        assert_close(expected, session.run(None, dict(case.feed))[0])


@pytest.mark.parametrize("name", CASES)
def test_error_is_within_half_a_step(name: str, tmp_path: Path) -> None:
    """The test model, whose weights are the rounded ones, is as far off as half a step allows."""
    case = CASES[name]
    onnxq.quantize_dynamic(case.model(), tmp_path / "q.onnx", test_model=tmp_path / "t.onnx")
    values = weights_of(tmp_path / "t.onnx")
    for weight, axis in case.axes.items():
        w = case.weights[weight]
        others = tuple(i for i in range(w.ndim) if i != axis)
        step = np.abs(w).max(axis=others, keepdims=True) / 127
        error = np.abs(values[weight] - w)
        assert (error <= step * 0.5001).all()
        assert error.max() > 0


@pytest.mark.parametrize("opset", opsets(13, 17, 21, 23))
def test_16_bits_use_the_standard_operator_from_opset_21(opset: int) -> None:
    case = CASES["Gemm"]
    result = onnxq.quantize_dynamic(case.model(opset), bits=16)
    (dq,) = [n for n in result.graph.node if n.op_type == "DequantizeLinear"]
    domains = {o.domain: o.version for o in result.opset_import}
    assert dq.domain == ("" if opset >= 21 else "com.microsoft")
    assert domains[""] == opset
    assert ("com.microsoft" in domains) == (opset < 21)


def test_16_bits_leave_opset_11() -> None:
    case = CASES["Conv"]
    model = case.model(11)
    result = onnxq.quantize_dynamic(model, bits=16)
    assert {o.domain: o.version for o in result.opset_import}[""] == 11
    reference = with_weights(model, {"w": rounded(case.weights["w"], 0, 16)})
    assert_close(run(reference, case.feed)[0], run(result, case.feed)[0])


def test_8_bits_raise_opset_11_and_say_so(tmp_path: Path) -> None:
    case = CASES["Conv"]
    model = case.model(11)
    report = onnxq.quantize_dynamic(model, tmp_path / "q.onnx")
    result = onnx.load(str(tmp_path / "q.onnx"))
    assert {o.domain: o.version for o in result.opset_import}[""] == 13
    assert any("opset raised from 11 to 13" in note for note in report.notes)
    reference = with_weights(model, {"w": rounded(case.weights["w"], 0)})
    assert_close(run(reference, case.feed)[0], run(result, case.feed)[0])


def test_8_bits_fold_leaves_opset_11() -> None:
    case = CASES["Conv"]
    result = onnxq.quantize_dynamic(case.model(11), encoding="fold")
    assert {o.domain: o.version for o in result.opset_import}[""] == 11
    onnx.checker.check_model(result)


def test_shared_weight_with_agreeing_axes_is_per_channel() -> None:
    w = _spread(normal(6, 6), 1)
    model = build(
        "(float[N,6] x) => (float[N,6] y) { a = MatMul(x, w) r = Relu(a) y = MatMul(r, w) }",
        {"w": w},
    )
    result = onnxq.quantize_dynamic(model)
    assert _scales(result)["w"][0].shape == (6,)
    assert len(_integers(result, 8)) == ops(result)["DequantizeLinear"] == 1
    feed = {"x": normal(3, 6, seed=1)}
    reference = with_weights(model, {"w": rounded(w, 1)})
    assert_close(run(reference, feed)[0], run(result, feed, optimize=False)[0])


def test_shared_weight_with_conflicting_axes_is_per_tensor() -> None:
    w = _spread(normal(6, 6), 1)
    model = build(
        "(float[N,6] x) => (float[N,6] y) { a = Gemm(x, w) r = Relu(a) y = Gemm<transB=1>(r, w) }",
        {"w": w},
    )
    result = onnxq.quantize_dynamic(model)
    scale, axis = _scales(result)["w"]
    assert scale.shape == ()
    assert axis is None
    assert len(_integers(result, 8)) == 1
    feed = {"x": normal(3, 6, seed=1)}
    reference = with_weights(model, {"w": rounded(w, None)})
    assert_close(run(reference, feed)[0], run(result, feed, optimize=False)[0])


def test_tied_embedding_is_stored_once_with_one_scale_a_row() -> None:
    w = _spread(normal(600, 32), 0)  # above 64 KB: a folded Transpose would store it twice
    model = build(
        "(int64[n] i) => (float[n,600] y) { e = Gather(w, i) t = Transpose(w) y = MatMul(e, t) }",
        {"w": w},
    )
    result = onnxq.quantize_dynamic(model)
    assert [q.shape for q in _integers(result, 8).values()] == [(600, 32)]
    assert _scales(result)["w"][0].shape == (600,)
    feed = {"i": np.array([5, 0, 599])}
    reference = with_weights(model, {"w": rounded(w, 0)})
    assert_close(run(reference, feed)[0], run(result, feed, optimize=False)[0])


def if_model() -> onnx.ModelProto:
    """Two bodies: one with weights of its own, the other reads one of the main graph."""
    inner = ", ".join(f"{v:.6f}" for v in normal(24, seed=9))
    text = f"""(bool c, float[N,6] x) => (float[N,4] y) {{
        y = If (c) <
          then_branch = t () => (float[N,4] p) <float[6,4] inner = {{{inner}}}>
            {{ p = MatMul(x, inner) }},
          else_branch = e () => (float[N,4] q) {{ q = MatMul(x, outer) }}
        >
    }}"""
    return build(text, {"outer": normal(6, 4, seed=10)})


@pytest.mark.parametrize("encoding", ["qdq", "fold"])
@pytest.mark.parametrize("condition", [True, False])
def test_weights_in_bodies(encoding: Any, condition: bool) -> None:
    model = if_model()
    result = onnxq.quantize_dynamic(model, encoding=encoding)
    assert len(_integers(result, 8)) == 2
    float_weights = weights_of(model)
    reference = with_weights(
        model, {name: rounded(float_weights[name], 1) for name in ("inner", "outer")}
    )
    feed = {"c": np.array(condition), "x": normal(3, 6, seed=1)}
    assert_close(run(reference, feed)[0], run(result, feed, optimize=False)[0])


def test_what_stays_float_is_listed_with_its_reason(tmp_path: Path) -> None:
    model = build(
        "(float[N,6] x, float[4,3] v = {0,1,2,3,4,5,6,7,8,9,10,11}) => (float[N,3] y, float[6,2] o)"
        " { a = MatMul(x, w) s = Add(a, k) d = Gemm(s, u, b) z = MatMul(d, v)"
        " h = Cast<to=10>(z) g = MatMul(h, half) f = Cast<to=1>(g) y = Add(f, z)"
        " oo = Identity(out) o = Add(oo, out) }",
        {
            "w": normal(6, 4),
            "k": normal(4),
            "u": normal(4, 4),
            "b": normal(4),
            "half": normal(3, 3).astype(np.float16),
            "out": normal(6, 2),
        },
    )
    report = onnxq.quantize_dynamic(model, tmp_path / "q.onnx", exclude=["n_d"])
    skips = {skip.name: skip for skip in report.skips}
    assert {w.tensor for w in report.placement.weights} == {"w", "half"}
    assert "operand of Add" in skips["k"].reason
    assert skips["k"].bytes == 16
    assert "bias of Gemm" in skips["b"].reason
    assert "excluded by pattern 'n_d'" in skips["u"].reason
    assert "graph input" in skips["v"].reason
    assert report.weights.count == 2
    assert report.weights.floats == 96 + 18
    assert report.weights.integers == 24 + 9
    assert report.weights.scales == 16 + 12


def test_load_session_folds_the_weights(tmp_path: Path, digits: Path) -> None:
    path, optimized = tmp_path / "q.onnx", tmp_path / "optimized.onnx"
    onnxq.quantize_dynamic(digits, path)
    assert ops(path)["DequantizeLinear"] > 0
    assert optimized_ops(path)["DequantizeLinear"] > 0  # what the option is for
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(optimized)
    options.log_severity_level = 3
    onnxq.load_session(path, options=options)
    assert ops(optimized)["DequantizeLinear"] == 0


@pytest.mark.parametrize("bits", [8, 16])
def test_fold_needs_no_option(tmp_path: Path, digits: Path, bits: int) -> None:
    path = tmp_path / "q.onnx"
    onnxq.quantize_dynamic(digits, path, bits=bits, encoding="fold")
    assert ops(path)["Cast"] > 0
    assert optimized_ops(path) == optimized_ops(digits)


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("encoding", ["qdq", "fold"])
def test_test_model_is_float_and_gives_the_same(
    tmp_path: Path, digits: Path, bits: int, encoding: Any
) -> None:
    path, test_path = tmp_path / "q.onnx", tmp_path / "test.onnx"
    onnxq.quantize_dynamic(digits, path, bits=bits, encoding=encoding, test_model=test_path)
    assert {w.dtype for w in weights_of(test_path).values()} <= {
        np.dtype(np.float32),
        np.dtype(np.int64),
    }
    name = open_session(digits).get_inputs()[0].name
    shape = [d if isinstance(d, int) else 2 for d in open_session(digits).get_inputs()[0].shape]
    feed = samples(name, shape, 1)[0]
    session = onnxq.load_session(path)
    assert_close(run(test_path, feed)[0], session.run(None, dict(feed))[0])


def test_same_bytes_twice(tmp_path: Path, digits: Path) -> None:
    a, b = tmp_path / "a.onnx", tmp_path / "b.onnx"
    onnxq.quantize_dynamic(digits, a)
    onnxq.quantize_dynamic(digits, b)
    assert a.read_bytes() == b.read_bytes()


def test_a_path_a_proto_and_an_ir_model_give_the_same(tmp_path: Path, digits: Path) -> None:
    import onnx_ir

    onnxq.quantize_dynamic(digits, tmp_path / "a.onnx")
    written = onnx.load(str(tmp_path / "a.onnx"))
    given: onnx.ModelProto = onnx.load(str(digits))
    before = given.SerializeToString(deterministic=True)
    model = onnx_ir.load(str(digits))
    for source in (digits, given, model):
        result = onnxq.quantize_dynamic(source)
        assert isinstance(result, onnx.ModelProto)
        assert result == written
    assert given.SerializeToString(deterministic=True) == before
    assert onnx_ir.to_proto(model).SerializeToString(deterministic=True) == onnx_ir.to_proto(
        onnx_ir.load(str(digits))
    ).SerializeToString(deterministic=True)


TWO = "(float[N,6] x) => (float[N,6] y) { a = MatMul(x, first) r = Relu(a) y = Gemm(r, second) }"


@pytest.mark.parametrize(
    ("selection", "expected"),
    [
        ({}, {"first", "second"}),
        ({"include": ["n_a"]}, {"first"}),
        ({"include": ["n_*"], "exclude": ["n_a"]}, {"second"}),
        ({"exclude": ["?_y"]}, {"first"}),
        ({"include": ["a"]}, {"first"}),
        ({"include_ops": ["Gemm"]}, {"second"}),
        ({"exclude_ops": ["Gemm"]}, {"first"}),
        ({"include": ["n_a"], "include_ops": ["Gemm"]}, {"first", "second"}),
        ({"exclude": ["*"]}, set()),
    ],
)
def test_selection(tmp_path: Path, selection: dict[str, list[str]], expected: set[str]) -> None:
    model = build(TWO, {"first": normal(6, 6), "second": normal(6, 6, seed=1)})
    quantize: Callable[..., Any] = onnxq.quantize_dynamic
    report = quantize(model, tmp_path / "q.onnx", **selection)
    assert {w.tensor for w in report.placement.weights} == expected
    stored = {
        n.input[0] for n in onnx.load(str(tmp_path / "q.onnx")).graph.node if "Deq" in n.op_type
    }
    assert len(stored) == len(expected)


@pytest.mark.parametrize(
    ("selection", "words"),
    [
        ({"include": ["n_yy"]}, ["'n_yy'", "n_y"]),
        ({"exclude": ["N_A*"]}, ["'N_A*'", "n_a"]),
        ({"include_ops": ["Gem"]}, ["'Gem'", "Gemm"]),
        ({"exclude_ops": ["Conv"]}, ["no Conv", "MatMul"]),
    ],
)
def test_selection_that_matches_nothing_names_what_is_near(
    selection: dict[str, list[str]], words: list[str]
) -> None:
    model = build(TWO, {"first": normal(6, 6), "second": normal(6, 6, seed=1)})
    quantize: Callable[..., Any] = onnxq.quantize_dynamic
    with pytest.raises(onnxq.OptionError) as caught:
        quantize(model, **selection)
    for word in words:
        assert word in str(caught.value)


def test_real_networks_shrink_and_stay_close(tmp_path: Path, networks: dict[str, Any]) -> None:
    network = networks.get("resnet20")
    if network is None:
        pytest.skip("resnet20 is not on this machine")
    report = onnxq.quantize_dynamic(network.file, tmp_path / "q.onnx")
    assert report.bytes_before is not None
    assert report.bytes_after is not None
    assert report.bytes_after < 0.32 * report.bytes_before
    source = open_session(network.file).get_inputs()[0]
    shape = [d if isinstance(d, int) and d > 0 else 1 for d in source.shape]
    feed = samples(source.name, shape, 1)[0]
    a = run(network.file, feed)[0]
    b = onnxq.load_session(tmp_path / "q.onnx").run(None, dict(feed))[0]
    assert np.abs(a - b).max() < 0.1 * np.abs(a).max()


@pytest.mark.parametrize("encoding", ["qdq", "fold"])
@pytest.mark.parametrize(("bits", "error"), [(8, 0.02), (16, 2e-3)])
@pytest.mark.parametrize("kind", ["float16", "double"])
def test_weights_of_other_floating_point_types(
    tmp_path: Path, encoding: Any, bits: int, error: float, kind: str
) -> None:
    dtype = np.float16 if kind == "float16" else np.float64
    w: Array = normal(64, 32).astype(dtype)
    model = build(f"({kind}[N,64] x) => ({kind}[N,32] y) {{ y = MatMul(x, w) }}", {"w": w})
    path, test = tmp_path / "q.onnx", tmp_path / "test.onnx"
    report = onnxq.quantize_dynamic(model, path, bits=bits, encoding=encoding, test_model=test)
    assert report.weights.floats == w.nbytes
    assert report.weights.ratio == pytest.approx(bits / 8 / dtype().itemsize, rel=0.3)
    x: Array = normal(4, 64, seed=1).astype(dtype)
    expected = np.matmul(x, w)
    (found,), (rounded_result,) = run(path, {"x": x}), run(test, {"x": x})
    assert found.dtype == dtype
    assert np.abs(found - expected).max() <= error * np.abs(expected).max()
    assert np.abs(found - rounded_result).max() <= 2e-3 * np.abs(expected).max()
    assert weights_of(test)["w"].dtype == dtype
