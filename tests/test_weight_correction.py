"""Correction of weights: what rounding does to the mean and the spread of each channel."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import numpy_helper

import onnxq
from onnxq.demo import DIGITS, digits_data
from onnxq.numerics.correction import corrected, round_to_mean, spread_ratio
from onnxq.numerics.quantize import (
    abs_max,
    dequantize,
    extremes,
    params_from_range,
    quantize,
    symmetric_params,
)
from onnxq.qtypes import INT8, INT16, UINT8, Array, PerChannel, PerTensor, QuantParams, QuantSpec
from tests.models import build, normal, run, samples, sqnr


def params_of(w: Array, axis: int | None, qtype: Any = INT8) -> QuantParams:
    spec = QuantSpec(qtype, PerTensor() if axis is None else PerChannel(axis), qtype.signed)
    if qtype.signed:
        return symmetric_params(spec, abs_max(w, axis))
    return params_from_range(spec, *extremes(w, axis))


def literally(w: Array, rounded: Array, axis: int | None) -> Array:
    """The formula, channel by channel."""
    found = np.empty(w.shape)
    count = 1 if axis is None else w.shape[axis]
    for i in range(count):
        at = np.ones(w.shape, bool)
        if axis is not None:
            np.moveaxis(at, axis, 0)[:] = False
            np.moveaxis(at, axis, 0)[i] = True
        x, y = w[at].astype(np.float64), rounded[at].astype(np.float64)
        ratio = x.std() / (y.std() + 1e-8)
        found[at] = (y + (x - y).mean()) * ratio
    return found


SHAPES = [((6, 5, 3, 3), 0), ((5, 6, 3, 3), 1), ((40, 7), 1), ((40, 7), None), ((8, 1, 3, 3), 0)]


@pytest.mark.parametrize(("shape", "axis"), SHAPES)
def test_the_formula_is_that_of_the_literal_loop(shape: tuple[int, ...], axis: int | None) -> None:
    w = normal(*shape, scale=0.1)
    rounded = dequantize(quantize(w, params := params_of(w, axis)), params)
    assert np.allclose(corrected(w, rounded, axis), literally(w, rounded, axis), rtol=1e-12)


@pytest.mark.parametrize("qtype", [INT8, INT16, UINT8], ids=str)
@pytest.mark.parametrize(("shape", "axis"), SHAPES)
def test_what_is_stored_has_the_mean_and_the_spread_of_the_formula(
    shape: tuple[int, ...], axis: int | None, qtype: Any
) -> None:
    w = normal(*shape, scale=0.1) + np.float32(0.01)
    params = params_of(w, axis, qtype)
    integers = round_to_mean(w, params)
    ratio = spread_ratio(w, integers, params)
    stored = QuantParams(params.spec, (params.scale * ratio).astype(np.float32), params.zero_point)
    found = dequantize(integers, stored).astype(np.float64)
    wanted = corrected(w, dequantize(quantize(w, params), params), axis)
    others = tuple(i for i in range(w.ndim) if i != axis)
    number = w.size // (1 if axis is None else w.shape[axis])
    # the ratio is that of the integers that are stored, so a little other than in the formula
    between = np.abs(wanted.std(axis=others) - found.std(axis=others)) / wanted.std(axis=others)
    off = np.abs(found.mean(axis=others) - ratio * w.mean(axis=others, dtype=np.float64))
    assert (off <= stored.scale * 0.51 / number).all()
    assert (between < 1e-4).all()
    assert np.allclose(found.std(axis=others), w.std(axis=others, dtype=np.float64), rtol=1e-4)
    assert np.abs(integers.astype(int) - quantize(w, params)).max() <= 1


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 1000), st.integers(1, 30), st.integers(1, 9), st.sampled_from([INT8, UINT8]))
def test_the_sum_of_a_channel_is_kept_to_half_a_step(
    seed: int, number: int, channels: int, qtype: Any
) -> None:
    w = normal(channels, number, seed=seed)
    params = params_of(w, 0, qtype)
    integers = round_to_mean(w, params)
    assert integers.dtype == qtype.dtype
    error = w.astype(np.float64) / params.scale[:, None] + params.zero_point[:, None] - integers
    assert (np.abs(error) <= 1.0001).all()
    # a value at the end of the integers cannot move
    free = ((integers > params.spec.lowest) & (integers < qtype.qmax)).sum(axis=1)
    assert (np.abs(error.sum(axis=1))[free >= number / 2 + 1] <= 0.5001).all()


def test_blocks_of_channels_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    w = normal(33, 17)
    params = params_of(w, 0)
    whole = round_to_mean(w, params)
    monkeypatch.setattr("onnxq.numerics.correction.AT_ONCE", 40)
    assert np.array_equal(round_to_mean(w, params), whole)
    assert spread_ratio(w, whole, params).shape == params.scale.shape


@pytest.mark.parametrize(
    "w", [np.full((3, 1), 0.3), np.full((3, 4), 0.3), np.zeros((3, 4))], ids=str
)
def test_a_channel_without_spread_is_left_alone(w: Array) -> None:
    w = w.astype(np.float32)
    params = params_of(w, 0)
    integers = round_to_mean(w, params)
    assert np.array_equal(integers, quantize(w, params))
    assert (spread_ratio(w, integers, params) == 1.0).all()


# in models


def test_it_pays_on_weights_with_a_bias_of_rounding() -> None:
    _, heldout, _ = digits_data()
    found = [
        onnxq.compare(DIGITS, onnxq.quantize_dynamic(DIGITS, weight_correction=on), heldout)
        for on in (False, True)
    ]
    assert found[1].outputs[0].sqnr > found[0].outputs[0].sqnr + 2


@pytest.mark.parametrize("encoding", ["qdq", "fold"])
@pytest.mark.parametrize("symmetric", [True, False])
def test_the_test_model_has_the_same_weights(
    tmp_path: Path, encoding: Any, symmetric: bool
) -> None:
    path, test = tmp_path / "q.onnx", tmp_path / "t.onnx"
    onnxq.quantize_dynamic(
        DIGITS,
        path,
        weight_correction=True,
        symmetric=symmetric,
        encoding=encoding,
        test_model=test,
    )
    x = {"image": digits_data()[1][:8]}
    assert np.allclose(run(path, x)[0], run(test, x)[0], rtol=1e-4, atol=1e-4)


def test_static_mode_gains_on_a_depthwise_network() -> None:
    calibration, heldout, _ = digits_data()
    found = [
        onnxq.quantize_static(DIGITS, data=calibration, weight_correction=on, accuracy="none")
        for on in (False, True)
    ]
    scores = [onnxq.compare(DIGITS, model, heldout).outputs[0].sqnr for model in found]
    assert scores[1] > scores[0] + 1


def test_a_bias_that_raises_the_scale_goes_first() -> None:
    """Then the integers are those of the raised scale: nothing may be twice as large."""
    w = normal(16, 8, 3, 3, seed=1) * np.float32(1e-8)
    b = np.where(np.arange(16) % 2, 100, 1e-8).astype(np.float32) * normal(16, seed=3)
    text = "(float[N,8,8,8] x) => (float[N,16,6,6] y) { y = Conv(x, w, b) }"
    model = build(text, {"w": w, "b": b})
    feeds = samples("x", (1, 8, 8, 8))
    for on in (False, True):
        result = onnxq.quantize_static(model, data=feeds, weight_correction=on)
        assert sqnr(run(model, feeds[0])[0], run(result, feeds[0])[0]) >= 30


def test_tables_and_operands_are_not_corrected() -> None:
    text = "(int64[N] i) => (float[N,8] y) { e = Gather(table, i) y = MatMul(e, w) }"
    table, w = normal(20, 8), normal(8, 8)
    model = build(text, {"table": table, "w": w})
    plain, mended = (
        {
            t.name: numpy_helper.to_array(t)
            for t in onnxq.quantize_dynamic(model, weight_correction=on).graph.initializer
        }
        for on in (False, True)
    )
    assert np.array_equal(plain["table_q"], mended["table_q"])
    assert not np.array_equal(plain["w_scale"], mended["w_scale"])


def test_it_is_in_the_file_the_plan_and_the_recipe(tmp_path: Path) -> None:
    path = tmp_path / "q.onnx"
    report = onnxq.quantize_dynamic(DIGITS, path, weight_correction=True)
    assert report.settings["weight_correction"] is True
    assert report.recipe["weight_correction"] is True
    assert "weight_correction" in onnx.load(path).metadata_props[0].value
    text = str(onnxq.plan(DIGITS, onnxq.DynamicRecipe(weight_correction=True)))
    assert "corrected, " in text
    assert "corrected" not in str(onnxq.plan(DIGITS, onnxq.DynamicRecipe())).split("weight ", 1)[1]
