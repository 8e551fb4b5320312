"""Odd things about plain models: names, functions, attributes, inputs; and real networks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper

import onnxq
from benchmarks import assets
from tests.both_modes import assert_close, images, quantize, rows, w
from tests.models import Feed, build, normal, ops, run, sqnr

_ROWS = "(float[2,8] x) => (float[2,4] y)"

# names, functions, attributes


@pytest.mark.parametrize("mode", ["dynamic", "static"])
@pytest.mark.parametrize("names", [["same"] * 3, [""] * 3, ["y", "w2_quantized", "x_quantized"]])
def test_node_names(mode: str, names: list[str], tmp_path: Path) -> None:
    model = build(
        f"{_ROWS} {{ a = MatMul(x, w1) b = Relu(a) y = MatMul(b, w2) }}",
        {"w1": w(8, 8), "w2": w(8, 4)},
    )
    feeds = [rows(i) for i in range(16)]
    named = onnx.ModelProto()
    named.CopyFrom(model)
    for node, name in zip(named.graph.node, names, strict=True):
        node.name = name
    report, path = quantize(named, feeds, mode, tmp_path)
    assert len(report.placement.weights) == 2
    assert_close(model, path, feeds, mode)


@pytest.mark.parametrize("mode", ["dynamic", "static"])
@pytest.mark.parametrize("opset", [17, 13, 11])
def test_local_function_of_its_own_opset(mode: str, opset: int, tmp_path: Path) -> None:
    unsqueeze = (
        "y = Unsqueeze<axes=[0]>(m)"
        if opset < 13
        else "a = Constant<value_ints=[0]>() y = Unsqueeze(m, a)"
    )
    model = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17, "own" : 1]> g (float[2,8] x) => (float[1,2,4] y)'
        f' {{ y = own.F(x, w1) }} <domain: "own", opset_import: ["" : {opset}]>'
        f" F (x, w) => (y) {{ m = MatMul(x, w) {unsqueeze} }}"
    )
    model.graph.initializer.append(onnx.numpy_helper.from_array(w(8, 4), "w1"))
    inlined = build(
        "(float[2,8] x) => (float[1,2,4] y) { m = MatMul(x, w1) y = Unsqueeze(m, a) }",
        {"w1": w(8, 4), "a": np.array([0])},
    )
    feeds = [rows(i) for i in range(16)]
    report, path = quantize(model, feeds, mode, tmp_path)
    assert len(report.placement.weights) == 1
    assert_close(inlined, path, feeds, mode)


@pytest.mark.parametrize("mode", ["dynamic", "static"])
@pytest.mark.parametrize("kind", ["value", "value_ints", "value_floats"])
def test_constant_attributes_of_a_million_entries(mode: str, kind: str, tmp_path: Path) -> None:
    values: Any = np.arange(1_000_000, dtype=np.float32)
    text = "(float[2,8] x, float[1000000] k) => (float[2,4] y, float z)"
    if kind == "value_ints":
        text = text.replace("float[1000000]", "int64[1000000]").replace("float z", "int64 z")
    model = build(f"{text} {{ y = MatMul(x, w1) z = ReduceMax<keepdims=0>(k) }}", {"w1": w(8, 4)})
    del model.graph.input[1]
    given: dict[str, Any] = {
        "value": onnx.numpy_helper.from_array(values, "k"),
        "value_ints": values.astype(np.int64).tolist(),
        "value_floats": values.tolist(),
    }
    model.graph.node.insert(0, helper.make_node("Constant", [], ["k"], **{kind: given[kind]}))
    feeds = [rows(i) for i in range(16)]
    report, path = quantize(model, feeds, mode, tmp_path)
    assert len(report.placement.weights) == 1
    assert_close(model, path, feeds, mode)


def test_attributes_of_a_custom_op_are_kept(tmp_path: Path) -> None:
    model = build(f"{_ROWS} {{ a = MatMul(x, w1) y = Relu(a) }}", {"w1": w(8, 4)})
    node = model.graph.node[1]
    node.op_type, node.domain = "Frobnicate", "com.example"
    model.opset_import.append(helper.make_opsetid("com.example", 3))
    kept = [
        helper.make_attribute("longest", list(range(100_000))),
        helper.make_attribute("largest", 2**63 - 1),
        helper.make_attribute("smallest", -(2**63)),
        helper.make_attribute("bytes", b"\xff\xfe"),
    ]
    node.attribute.extend(kept)
    report, path = quantize(model, [], "dynamic", tmp_path)
    assert any("com.example:Frobnicate" in note for note in report.notes)
    (found,) = [n for n in onnx.load(str(path)).graph.node if n.op_type == "Frobnicate"]
    assert sorted(found.attribute, key=lambda a: a.name) == sorted(kept, key=lambda a: a.name)
    assert ops(path)["DequantizeLinear"] == 1
    with pytest.raises(onnxq.ModelError, match=r"com\.example:Frobnicate.*dynamic mode"):
        onnxq.quantize_static(model, None, [rows(0)])


# inputs that are no arrays of numbers


@pytest.mark.parametrize("spooled", [False, True])
def test_strings(spooled: bool, tmp_path: Path) -> None:
    model = build(
        "(float[N,8] x, string[N] s) => (float[N,4] y, string[N] t)"
        " { y = MatMul(x, w1) t = Identity(s) }",
        {"w1": w(8, 4)},
    )
    feeds = [{**rows(i), "s": np.array(["a", "longer"], object)} for i in range(4)]
    result = onnxq.quantize_static(model, None, iter(feeds) if spooled else feeds)
    assert ops(result)["QuantizeLinear"] == 1


def test_sequence_input_is_refused_by_name_in_static_mode() -> None:
    model = build(
        "(seq(float[2,8]) xs) => (float[2,4] y) { i = Constant<value_int=0>()"
        " x = SequenceAt(xs, i) y = MatMul(x, w1) }",
        {"w1": w(8, 4)},
    )
    assert ops(onnxq.quantize_dynamic(model))["DequantizeLinear"] == 1
    with pytest.raises(onnxq.DataError, match="input 'xs' is of type sequence"):
        onnxq.quantize_static(model, None, [{"xs": [normal(2, 8)]}])


def test_ragged_sample_is_refused_by_name() -> None:
    model = build(f"{_ROWS} {{ y = MatMul(x, w1) }}", {"w1": w(8, 4)})
    with pytest.raises(onnxq.DataError, match="sample 0: input 'x' cannot be made an array"):
        onnxq.quantize_static(model, None, [{"x": [[1.0], [1.0, 2.0]]}])


def test_model_without_inputs() -> None:
    model = build(
        "() => (float[2,4] y) { x = RandomNormal<shape=[2,8]>() y = MatMul(x, w1) }",
        {"w1": w(8, 4)},
    )
    assert ops(onnxq.quantize_static(model, None, [{}]))["QuantizeLinear"] == 1


def test_shape_of_input_not_declared(tmp_path: Path) -> None:
    model = build(
        "(float[A,B,C,D] x) => (float[E,F,G,H] y) { a = Conv<pads=[1,1,1,1]>(x, w1)"
        " r = Relu(a) y = Conv<pads=[1,1,1,1]>(r, w2) }",
        {"w1": w(16, 8, 3, 3), "w2": w(8, 16, 3, 3)},
    )
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.ClearField("shape")
    feeds = [images(i) for i in range(4)]
    for mode in ("dynamic", "static"):
        report, path = quantize(model, feeds, mode, tmp_path)
        assert len(report.placement.weights) == 2
        assert_close(model, path, feeds, mode)


def test_input_of_rank_1_is_one_sample_however_long() -> None:
    model = build("(float[K] x) => (float[4] y) { y = MatMul(x, w1) }", {"w1": w(8, 4)})
    feeds = [{"x": normal(8, seed=i)} for i in range(4)]
    for given in (feeds, iter(feeds)):
        assert ops(onnxq.quantize_static(model, None, given))["QuantizeLinear"] == 1


@pytest.mark.parametrize("spooled", [False, True])
def test_bfloat16_input(spooled: bool) -> None:
    model = build(
        "(bfloat16[N,8] x) => (float[N,4] y) { f = Cast<to=1>(x) y = MatMul(f, w1) }",
        {"w1": w(8, 4)},
    )
    bfloat16 = ir.DataType.BFLOAT16.numpy()
    feeds = [{"x": normal(2, 8, seed=i).astype(bfloat16)} for i in range(4)]
    result = onnxq.quantize_static(model, None, iter(feeds) if spooled else feeds)
    assert ops(result)["QuantizeLinear"] == 1


def test_outputs_that_cannot_be_compared(tmp_path: Path) -> None:
    model = build(
        "(float[2,8] x) => (float[2,4] y, seq(float[n,4]) s) { y = MatMul(x, w1)"
        " s = SplitToSequence<axis=0>(y, sizes) }",
        {"w1": w(8, 4), "sizes": np.array(1)},
    )
    report, _ = quantize(model, [rows(i) for i in range(8)], "static", tmp_path)
    assert report.verification is not None
    assert [output.output for output in report.verification.outputs] == ["y"]


def test_float_model_that_does_not_load_is_not_verified(tmp_path: Path) -> None:
    model = build(f"{_ROWS} {{ a = MatMul(x, w1) y = Relu(a) }}", {"w1": w(8, 4)})
    for node in model.graph.node:  # which onnxruntime refuses, and onnxq puts right
        node.name = "same"
    report, _ = quantize(model, [rows(i) for i in range(8)], "static", tmp_path)
    assert report.verification is None
    assert any(n.startswith("not verified: onnxruntime cannot load") for n in report.notes)


# real ones


@dataclass(frozen=True)
class Real:
    """weights: how many become integers in dynamic and in static mode; least: dB there."""

    feed: Callable[[np.random.Generator], Feed]
    weights: tuple[int, int]
    least: tuple[float, float]


def _audio(rng: np.random.Generator) -> Feed:
    tone = np.sin(np.arange(512) * rng.uniform(0.02, 0.4)) + 0.1 * rng.standard_normal(512)
    state = 0.1 * rng.standard_normal((2, 1, 128))
    return {
        "input": (0.3 * tone[None]).astype(np.float32),
        "state": state.astype(np.float32),
        "sr": np.array(16000),
    }


REAL = {
    # all of it is in the bodies of If. Few bits of such a tone say whether it is speech (0.1 %)
    "silero_vad": Real(_audio, (16, 0), (2.0, 100.0)),
    "stories260K": Real(lambda rng: {"ids": rng.integers(1, 512, (1, 64))}, (37, 36), (38.0, 30.0)),
    "ppocr_cls_constants": Real(
        lambda rng: {"x": rng.standard_normal((1, 3, 48, 192)).astype(np.float32)},
        (54, 54),
        (30.0, 26.0),
    ),
    "fastestdet": Real(
        lambda rng: {"input.1": rng.uniform(0, 1, (1, 3, 352, 352)).astype(np.float32)},
        (70, 70),
        (18.0, 16.0),
    ),
}


@pytest.mark.parametrize("name", REAL)
def test_real_network(name: str, tmp_path: Path) -> None:
    path = assets.ASSETS / "models" / "other" / f"{name}.onnx"
    if not path.is_file():
        pytest.skip(f"no {path}")
    rng, real = np.random.default_rng(5), REAL[name]
    feeds = [real.feed(rng) for _ in range(6)]
    model = onnx.load(str(path))
    expected = [run(model, feed) for feed in feeds[4:]]

    def assert_near(result: onnx.ModelProto | Path, least: float) -> None:
        for feed, outputs in zip(feeds[4:], expected, strict=True):
            for reference, actual in zip(outputs, run(result, feed), strict=True):
                assert sqnr(reference, actual) >= least

    for mode, weights, least in zip(("dynamic", "static"), real.weights, real.least, strict=True):
        report, result = quantize(model, feeds[:4], mode, tmp_path)
        assert len(report.placement.weights) == weights
        assert all(skip.reason for skip in report.skips)
        assert_near(result, least)
    # rounding to 16 bits is next to nothing, so whatever else happened would show
    assert_near(onnxq.quantize_dynamic(model, bits=16), 45.0)
