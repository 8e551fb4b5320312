"""Models that are quantized already, in whole or in part, by onnxq or by another tool."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import onnxruntime.quantization as ort_quantization
import pytest

import onnxq
from tests.both_modes import assert_close, images, quantize, w
from tests.models import (
    Array,
    Feed,
    build,
    normal,
    ops,
    optimized_ops,
    run,
    sqnr,
    weights_of,
)

P = "<pads=[1,1,1,1]>"
FEEDS = [images(i) for i in range(12)]
MODES = ["dynamic", "static"]


def three() -> onnx.ModelProto:
    """Three Convs (n_a, n_b, n_y) and a residual Add."""
    return build(
        f"(float[1,8,10,10] x) => (float[1,8,10,10] y) {{ a = Conv{P}(x, w1, b1) r = Relu(a)"
        f" b = Conv{P}(r, w2) s = Add(b, x) t = Relu(s) y = Conv{P}(t, w3) }}",
        {"w1": w(16, 8, 3, 3), "b1": w(16), "w2": w(8, 16, 3, 3, seed=1), "w3": w(8, 8, 3, 3)},
    )


def _ort(name: str, exclude: list[str], folder: Path) -> onnx.ModelProto:
    source, target = folder / "float.onnx", folder / "ort.onnx"
    onnx.save(three(), str(source))

    class Reader(ort_quantization.CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self._feeds = iter(FEEDS)

        def get_next(self) -> Feed | None:
            return next(self._feeds, None)

    logging.disable(logging.WARNING)
    try:
        if name == "dynamic":
            ort_quantization.quantize_dynamic(source, target, nodes_to_exclude=exclude)
        else:
            ort_quantization.quantize_static(
                source,
                target,
                Reader(),
                quant_format=ort_quantization.QuantFormat[name],
                nodes_to_exclude=exclude,
            )
    finally:
        logging.disable(logging.NOTSET)
    return onnx.load(str(target))


Maker = Callable[[list[str], Path], onnx.ModelProto]
# how it was quantized -> a model without the named nodes
MAKERS: dict[str, Maker] = {
    "onnxq static": lambda left, _: onnxq.quantize_static(three(), None, FEEDS, exclude=left),
    "onnxq dynamic": lambda left, _: onnxq.quantize_dynamic(three(), exclude=left),
    "onnxq dynamic, 16 bits": lambda left, _: onnxq.quantize_dynamic(
        three(), exclude=left, bits=16
    ),
    "onnxq dynamic, fold": lambda left, _: onnxq.quantize_dynamic(
        three(), exclude=left, encoding="fold"
    ),
    "onnxruntime dynamic": lambda left, folder: _ort("dynamic", left, folder),
    "onnxruntime QDQ": lambda left, folder: _ort("QDQ", left, folder),
    "onnxruntime QOperator": lambda left, folder: _ort("QOperator", left, folder),
}
SIGNS = {
    "onnxq static": "QuantizeLinear",
    "onnxq dynamic": "3 DequantizeLinear",
    "onnxq dynamic, 16 bits": "3 DequantizeLinear",
    "onnxq dynamic, fold": "3 Cast of an integer weight",
    "onnxruntime dynamic": "3 ConvInteger",
    "onnxruntime QDQ": "QuantizeLinear",
    "onnxruntime QOperator": "3 QLinearConv",
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("by", MAKERS)
def test_wholly_quantized_is_refused(by: str, mode: str, tmp_path: Path) -> None:
    model = MAKERS[by]([], tmp_path)
    with pytest.raises(onnxq.ModelError) as caught:
        quantize(model, FEEDS, mode, tmp_path)
    assert SIGNS[by] in str(caught.value)
    assert "quantize the float model it was made from" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / f"{mode}.onnx").exists()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("left", ["n_a", "n_b", "n_y"])
@pytest.mark.parametrize("by", MAKERS)
def test_the_rest_of_a_model_is_quantized(by: str, left: str, mode: str, tmp_path: Path) -> None:
    part = MAKERS[by]([left], tmp_path)
    report, path = quantize(part, FEEDS[:8], mode, tmp_path)
    assert [use.node for use in report.placement.weights[0].uses] == [left]
    assert len(report.placement.weights) == 1
    already = [skip for skip in report.skips if skip.reason.startswith("already quantized")]
    weighted = [s for s in already if "Conv" in s.op_type and "Cast" not in s.op_type]
    assert len(weighted) == 2
    assert {skip.op_type for skip in report.skips}.isdisjoint(
        {"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"}
    )
    assert_close(part, path, FEEDS[8:], mode)
    for feed in FEEDS[8:]:
        assert sqnr(run(three(), feed)[0], run(path, feed)[0]) >= 20
    # what was there is there still: its integers are the same
    kept = {t.name: t for t in onnx.load(str(path)).graph.initializer}
    for tensor in part.graph.initializer:
        if tensor.data_type in (onnx.TensorProto.INT8, onnx.TensorProto.INT16):
            assert kept[tensor.name].raw_data == tensor.raw_data


@pytest.mark.parametrize("mode", MODES)
def test_selection_of_what_is_quantized_already(mode: str, tmp_path: Path) -> None:
    part = MAKERS["onnxq static"](["n_b"], tmp_path)
    path = tmp_path / "q.onnx"
    report = (
        onnxq.quantize_dynamic(part, path, include=["n_a"])
        if mode == "dynamic"
        else onnxq.quantize_static(part, path, FEEDS, include=["n_a"])
    )
    assert not report.placement.weights
    (note,) = [n for n in report.notes if n.startswith("nothing was quantized")]
    assert "not included" in note


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("whole", [True, False])
def test_matmul_nbits(mode: str, whole: bool, tmp_path: Path) -> None:
    tail = "y = MatMul(a, w1)"
    text = "y = com.microsoft.MatMulNBits<K=32, N=16, bits=4, block_size=32>(x, B, S)"
    model = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17, "com.microsoft" : 1]>'
        f" g (float[2,32] x) => (float[2,n] y) {{ {text if whole else f'a{text[1:]} {tail}'} }}"
    )
    integers = np.random.default_rng(1).integers(0, 255, (16, 1, 16), dtype=np.uint8)
    weights: dict[str, Array] = {
        "B": integers,
        "S": np.abs(w(16)) * np.float32(0.1),
        "w1": w(16, 4),
    }
    for name, array in weights.items():
        if not (whole and name == "w1"):
            model.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    feeds = [{"x": normal(2, 32, seed=i)} for i in range(8)]
    if whole:
        with pytest.raises(onnxq.ModelError, match="1 MatMulNBits"):
            quantize(model, feeds, mode, tmp_path)
        return
    report, path = quantize(model, feeds, mode, tmp_path)
    assert [weight.tensor for weight in report.placement.weights] == ["w1"]
    assert [s.reason for s in report.skips if s.op_type == "MatMulNBits"] == [
        "already quantized: it calculates on integers"
    ]
    assert ops(path)["MatMulNBits"] == 1
    assert_close(model, path, feeds, mode)


def test_dynamic_mode_on_top_of_a_static_model_keeps_its_int8_part(tmp_path: Path) -> None:
    model = build(
        "(float[N,8,8,8] x) => (float[N,8,8,8] y) { a = Conv<pads=[1,1,1,1]>(x, w) r = Relu(a)"
        " b = Conv<pads=[1,1,1,1]>(r, w2) y = Relu(b) }",
        {"w": normal(8, 8, 3, 3), "w2": normal(8, 8, 3, 3, seed=1)},
    )
    part, whole = tmp_path / "part.onnx", tmp_path / "whole.onnx"
    data = [{"x": normal(1, 8, 8, 8, seed=i)} for i in range(8)]
    onnxq.quantize_static(model, part, data, exclude=["n_b"], target="onnxruntime-x86")
    assert optimized_ops(part)["QLinearConv"] == 1
    report = onnxq.quantize_dynamic(part, whole)
    assert report.settings["encoding"] == "fold"
    assert any("Cast and Mul" in note for note in report.notes)
    assert weights_of(whole)["w2_q"].dtype == np.int8
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    onnxq.load_session(whole, options=options)
    assert ops(tmp_path / "optimized.onnx")["QLinearConv"] == 1
