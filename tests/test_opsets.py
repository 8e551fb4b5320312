"""Opsets: each from 7 on in both modes, operators whose meaning changed, and those outside."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper

import onnxq
from onnxq.prepare.opset import raise_opset
from tests.both_modes import assert_close, images, quantize, w
from tests.models import Array, build, normal, open_session, run

P = "<pads=[1,1,1,1]>"
MODES = ["dynamic", "static"]


def network(opset: int) -> onnx.ModelProto:
    """A network of operators that changed between opsets 7 and 13, as `opset` writes them."""
    clip = "c = Clip<min=0.0, max=6.0>(b)" if opset < 11 else "c = Clip(b, lo, hi)"
    pad = "p = Pad<pads=[0,0,1,1,0,0,1,1]>(c)" if opset < 11 else "p = Pad(c, pads)"
    cut = (
        "s = Slice<axes=[2,3], starts=[0,0], ends=[-1,9223372036854775807]>(p)"
        if opset < 10
        else "s = Slice(p, start, end, axes)"
    )
    grow = {
        7: 'u = Upsample<mode="linear", scales=[1.0,1.0,2.0,1.5]>(s)',
        9: 'u = Upsample<mode="linear">(s, scales)',
        10: 'u = Resize<mode="linear">(s, scales)',
        11: 'u = Resize<mode="linear", coordinate_transformation_mode="asymmetric">(s, r, scales)',
    }[7 if opset < 9 else min(opset, 11)]
    weights: dict[str, Array] = {
        "w1": w(16, 8, 3, 3),
        "b1": w(16),
        "gain": w(16) + 1,
        "shift": w(16),
        "mean": w(16) * np.float32(0.1),
        "var": np.abs(w(16)) + np.float32(0.5),
        "w2": w(12, 16, 3, 3, seed=2),
        "b2": w(12),
        "w3": w(5, 12, seed=3),
        "b3": w(5),
    }
    if opset >= 9:
        weights["scales"] = np.array([1, 1, 2, 1.5], np.float32)
    if opset >= 10:
        weights["start"], weights["axes"] = np.array([0, 0]), np.array([2, 3])
        weights["end"] = np.array([-1, 2**63 - 1])
    if opset >= 11:
        weights["lo"], weights["hi"] = np.array(0, np.float32), np.array(6, np.float32)
        weights["pads"], weights["r"] = np.array([0, 0, 1, 1] * 2), np.zeros(0, np.float32)
    return build(
        f"(float[N,8,10,10] x) => (float[N,5] y) {{ a = Conv{P}(x, w1, b1)"
        f" b = BatchNormalization(a, gain, shift, mean, var) {clip} {pad} {cut} {grow}"
        " m = MaxPool<kernel_shape=[2,2], strides=[2,2]>(u) d = Dropout(m)"
        f" e = Conv{P}(d, w2, b2) g = GlobalAveragePool(e) h = Squeeze<axes=[2,3]>(g)"
        " i = Unsqueeze<axes=[1]>(h) j = ReduceSum<axes=[1], keepdims=0>(i)"
        " f = Flatten<axis=1>(j) l = Gemm<transB=1>(f, w3, b3) k = Softmax<axis=1>(l)"
        " l1, l2 = Split<axis=1, split=[2,3]>(l) o = Concat<axis=1>(l1, l2) y = Add(k, o) }",
        weights,
        opset=opset,
    )


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("ir_version", [3, 6])
@pytest.mark.parametrize("opset", range(7, 13))
def test_each_opset(opset: int, ir_version: int, mode: str, tmp_path: Path) -> None:
    model = network(opset)
    model.ir_version = ir_version
    if ir_version == 3:  # then every initializer is an input too
        for t in model.graph.initializer:
            model.graph.input.append(helper.make_tensor_value_info(t.name, t.data_type, t.dims))
    report, path = quantize(model, [images(i) for i in range(8)], mode, tmp_path)
    assert {weight.tensor for weight in report.placement.weights} == {"w1", "w2", "w3"}
    assert any(f"opset raised from {opset} to 13" in note for note in report.notes)
    assert_close(model, path, [images(i) for i in range(8, 11)], mode)


# what the converter makes of operators whose meaning changed


@dataclass(frozen=True)
class Old:
    opset: int
    node: str
    weights: Mapping[str, Array] = field(default_factory=dict)


def _scales(*factors: float) -> dict[str, Array]:
    return {"s": np.array([1, 1, *factors], np.float32)}


_DOWN, _UP = (0.7, 0.6), (1.7, 1.3)
OLD = {
    "Softmax over several axes": Old(7, "y = Softmax<axis=1>(x)"),
    "LogSoftmax over several axes": Old(12, "y = LogSoftmax<axis=2>(x)"),
    "linear Resize": Old(10, 'y = Resize<mode="linear">(x, s)', _scales(1.7, 0.6)),
    "nearest Resize up": Old(10, 'y = Resize<mode="nearest">(x, s)', _scales(*_UP)),
    "nearest Resize down": Old(10, 'y = Resize<mode="nearest">(x, s)', _scales(*_DOWN)),
    "linear Upsample 9": Old(9, 'y = Upsample<mode="linear">(x, s)', _scales(2, 3)),
    "nearest Upsample 9": Old(9, 'y = Upsample<mode="nearest">(x, s)', _scales(*_UP)),
    "linear Upsample 7": Old(7, 'y = Upsample<mode="linear", scales=[1.0,1.0,2.0,3.0]>(x)'),
    "nearest Upsample 7": Old(7, 'y = Upsample<mode="nearest", scales=[1.0,1.0,1.7,1.3]>(x)'),
    "Pad": Old(7, "y = Pad<value=2.5, pads=[0,0,1,1,0,0,-1,1]>(x)"),
    "Clip": Old(7, "y = Clip<min=0.2>(x)"),
    "Squeeze": Old(12, "a = ReduceSum<axes=[0], keepdims=1>(x) y = Squeeze<axes=[0]>(a)"),
    "Slice": Old(9, "y = Slice<axes=[-1,2], starts=[-3,1], ends=[2147483647,-1]>(x)"),
    "AveragePool": Old(
        7, "y = AveragePool<kernel_shape=[3,3], pads=[1,1,1,1], count_include_pad=1>(x)"
    ),
    "Dropout": Old(7, "y = Dropout<ratio=0.3>(x)"),
    "Hardmax over the last axis": Old(11, "y = Hardmax<axis=-1>(x)"),
}


@pytest.mark.parametrize("name", OLD)
def test_raised_opset_calculates_the_same(name: str) -> None:
    old = OLD[name]
    model = build(f"(float[1,4,6,8] x) => (float y) {{ {old.node} }}", old.weights, opset=old.opset)
    model.graph.output[0].type.tensor_type.ClearField("shape")
    feed = {"x": normal(1, 4, 6, 8)}
    raised = ir.to_proto(raise_opset(ir.from_proto(model), 13, "model"))
    assert raised.opset_import[0].version == 13
    (before,), (after,) = run(model, feed), run(raised, feed)
    np.testing.assert_allclose(before, after, rtol=1e-6, atol=1e-6)


def test_sequences_keep_their_types() -> None:
    model = build(
        "(bool c, float[2,8] x, seq(float[2,8]) q)"
        " => (float[2,4] y, seq(float[2,8]) s, seq(float) i)"
        " { y = MatMul(x, w1) i = SequenceInsert(q, x) s = If(c) <"
        "then_branch = t () => (seq(float[2,8]) a) { a = SequenceConstruct(x) },"
        "else_branch = e () => (seq(float[2,8]) b) { r = Relu(x) b = SequenceConstruct(r, x) }> }",
        {"w1": w(8, 4)},
        opset=12,
    )
    result = onnxq.quantize_dynamic(model)
    assert result.opset_import[0].version == 13
    for before, after in (
        (model.graph.input, result.graph.input),
        (model.graph.output, result.graph.output),
    ):
        assert {v.name: v.type for v in before} == {v.name: v.type for v in after}
    session, x = open_session(result), normal(2, 8)
    for condition, length in ((True, 1), (False, 2)):
        _, made, inserted = session.run(None, {"c": np.array(condition), "x": x, "q": [x]})
        assert (len(made), len(inserted)) == (length, 2)


@pytest.mark.parametrize(
    ("opset", "node", "weights", "words"),
    [
        (10, 'y = Resize<mode="nearest">(x, s)', _scales(1.7, 0.6), "enlarges one axis"),
        (11, "y = Hardmax<axis=1>(x)", {}, "several axes"),
    ],
)
def test_what_no_later_opset_says_is_refused(
    opset: int, node: str, weights: dict[str, Array], words: str
) -> None:
    model = build(f"(float[1,4,6,8] x) => (float y) {{ {node} }}", weights, opset=opset)
    with pytest.raises(onnxq.ModelError, match=f"opset {opset} must be raised to 13.*{words}"):
        onnxq.quantize_dynamic(model)


def test_scan_of_opset_8_is_refused() -> None:
    model = build(
        "(int64[1] lengths, float[1,3,2] x, float[1,2] i) => (float[1,2] y, float[1,3,2] z)"
        " { y, z = Scan<num_scan_inputs=1, body = b (float[2] s, float[2] t)"
        " => (float[2] so, float[2] o) { so = Add(s, t) o = Identity(so) }>(lengths, i, x) }",
        opset=8,
    )
    with pytest.raises(onnxq.ModelError, match="Scan of opset 8 has a batch axis"):
        onnxq.quantize_dynamic(model)


# opsets that there are not


def _model(**opsets: int) -> onnx.ModelProto:
    model = build("(float[2,8] x) => (float[2,4] y) { y = MatMul(x, w1) }", {"w1": w(8, 4)})
    del model.opset_import[:]
    for domain, version in opsets.items():
        model.opset_import.append(helper.make_opsetid(domain.removeprefix("_"), version))
    return model


NEWEST = onnx.defs.onnx_opset_version()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("opsets", "words"),
    [
        ({}, "no opset is declared"),
        ({"own": 1}, "declares no opset for them"),
        ({"_": 0}, "opset 0 does not exist"),
        ({"_": -3}, "opset -3 does not exist"),
        ({"_": NEWEST + 1}, f"opset {NEWEST + 1} is newer.*opset {NEWEST} or below"),
        ({"_": 10**6}, "opset 1000000 is newer"),
    ],
)
def test_opset_outside(opsets: dict[str, int], words: str, mode: str, tmp_path: Path) -> None:
    with pytest.raises(onnxq.ModelError, match=words) as caught:
        quantize(_model(**opsets), [{"x": normal(2, 8)}], mode, tmp_path)
    assert "\n" not in str(caught.value)


def test_what_the_converter_refuses_is_one_line(tmp_path: Path) -> None:
    weights = {name: np.abs(normal(4, 6, 8)) for name in "abcd"}
    model = build(
        "(float[1,4,6,8] x) => (float[1,4,6,8] y)"
        " { y = BatchNormalization<spatial=0>(x, a, b, c, d) }",
        weights,
        opset=7,
    )
    with pytest.raises(onnxq.ModelError, match=r"opset 7 must be raised.*spatial") as caught:
        quantize(model, [], "dynamic", tmp_path)
    assert "\n" not in str(caught.value)


def test_ir_version_outside(tmp_path: Path) -> None:
    model = _model(_=17)
    model.ir_version = onnx.IR_VERSION + 1
    with pytest.raises(onnxq.ModelError, match=f"IR version {onnx.IR_VERSION + 1} is newer"):
        quantize(model, [], "dynamic", tmp_path)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", ["ai.onnx"])
def test_other_spelling_of_the_standard_domain(name: str, mode: str, tmp_path: Path) -> None:
    feeds = [{"x": normal(2, 8, seed=i)} for i in range(8)]
    report, path = quantize(_model(**{name: 11}), feeds, mode, tmp_path)
    assert [weight.tensor for weight in report.placement.weights] == ["w1"]
    assert any("opset raised from 11 to 13" in note for note in report.notes)
    assert_close(_model(_=11), path, feeds, mode)
