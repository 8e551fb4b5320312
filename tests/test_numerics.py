"""Numerics against brute force and literal transcriptions of their formulas."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from onnxq.numerics.exact import ExactSum
from onnxq.numerics.histogram import HistogramBuilder
from onnxq.numerics.metrics import ErrorSums
from onnxq.numerics.quantize import dequantize, params_from_range, quantize
from onnxq.numerics.ranges import BINS, METHODS, RangeOptions, kl_threshold
from onnxq.numerics.statistics import StatisticsBuilder, TensorStatistics
from onnxq.qtypes import INT8, UINT8, Array, Float32Array, Float64Array, PerTensor, QuantSpec

SYMMETRIC = RangeOptions(symmetric=True)
FINITE = st.floats(-(2.0**90), 2.0**90, width=32)
ARRAYS = npst.arrays(np.float32, st.tuples(st.integers(1, 6), st.integers(1, 5)), elements=FINITE)


def statistics(x: Float32Array, cuts: list[int] | None = None) -> TensorStatistics:
    builder = StatisticsBuilder(histogram=True)
    for part in np.split(x, cuts or []):
        assert builder.add(part, len(part))
    built = builder.build()
    assert built is not None
    return built


DATA: dict[str, Float32Array] = {
    name: x.astype(np.float32)
    for name, x in {
        "relu": np.maximum(np.random.default_rng(0).normal(size=(24, 5000)), 0),
        "gauss": np.random.default_rng(1).normal(size=(24, 5000)),
        "laplace": np.random.default_rng(2).laplace(size=(24, 5000)) + 0.5,
        "leaky": (lambda x: np.where(x > 0, x, 0.1 * x))(
            np.random.default_rng(3).normal(size=(24, 5000))
        ),
    }.items()
}


@settings(deadline=None, max_examples=60)
@given(ARRAYS, st.randoms())
def test_exact_sum_is_exact_in_any_order(x: Float32Array, shuffle: object) -> None:
    whole = ExactSum.of(x)
    order = np.random.default_rng(len(x)).permutation(len(x))
    parts = [ExactSum.of(x[i : i + 1]) for i in order]
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    assert np.array_equal(total.limbs, whole.limbs)
    for column, mean in zip(x.T.tolist(), whole.mean(len(x)).tolist(), strict=True):
        assert mean == float(sum(map(Fraction, column)) / len(x))


@settings(deadline=None, max_examples=60)
@given(
    npst.arrays(np.float32, st.integers(1, 60), elements=st.floats(-1e6, 1e6, width=32)),
    st.lists(st.integers(0, 60), max_size=4),
)
def test_histogram_is_that_of_brute_force_however_it_is_fed(
    x: Float32Array, cuts: list[int]
) -> None:
    builder = HistogramBuilder()
    for part in np.split(x, sorted(min(c, len(x)) for c in cuts)):
        if part.size:
            builder.add(part, float(part.min()), float(part.max()))
    found = builder.build()
    largest = float(np.abs(x).max())
    assert largest < 2.0**found.exponent or largest == 0
    assert found.exponent == -90 or largest >= 2.0 ** (found.exponent - 1)
    expected: dict[int, int] = {}
    for value in x.tolist():
        k = math.floor(Fraction(value) / Fraction(found.width))
        expected[k] = expected.get(k, 0) + 1
    counted = {int(k): int(found.positive[k]) for k in np.flatnonzero(found.positive)}
    counted |= {-1 - int(k): int(found.negative[k]) for k in np.flatnonzero(found.negative)}
    assert counted == expected


@pytest.mark.parametrize("name", DATA)
def test_statistics_of_parts_add_up_to_those_of_the_whole(name: str) -> None:
    x = DATA[name]
    whole = statistics(x)
    merged = statistics(x[17:]) + statistics(x[:5]) + statistics(x[5:17])
    for a in (merged, statistics(x, [3, 4, 20])):
        assert (a.samples, a.minimum, a.maximum) == (
            whole.samples,
            whole.minimum,
            whole.maximum,
        )
        assert np.array_equal(a.extremes.limbs, whole.extremes.limbs)
        assert np.array_equal(a.counted.positive, whole.counted.positive)
        assert np.array_equal(a.counted.negative, whole.counted.negative)
        assert a.counted.exponent == whole.counted.exponent


def two_pass(x: Float32Array) -> tuple[Float64Array, float, float]:
    """The reference: all of |x| kept, then 2048 bins over its exact range."""
    magnitude = np.abs(x.astype(np.float64)).reshape(-1)
    counts, edges = np.histogram(magnitude, BINS)
    return counts.astype(np.float64), float(edges[0]), float(edges[1] - edges[0])


def kl_divergences(hist: list[float], groups: int = 127) -> dict[int, float]:
    """Literally: for each i the divergence of the quantized from the clipped distribution."""
    found: dict[int, float] = {}
    total = sum(hist)
    for i in range((len(hist) - 1) // 2, len(hist)):
        p = list(hist[:i])
        if p[i - 1] == 0:
            continue
        p[i - 1] += sum(hist[i:])
        width = i // groups
        q = [0.0] * i
        for g in range(groups):
            start = g * width
            end = i if g == groups - 1 else start + width
            mass = sum(hist[start:end])
            occupied = sum(1 for v in p[start:end] if v != 0)
            for k in range(start, end):
                q[k] = mass / occupied if p[k] != 0 else 0.0
        q_sum = sum(q)
        a = sum(v * math.log(q_sum * v) for v in p if v != 0)
        b = sum(v * math.log(total * w) for v, w in zip(p, q, strict=True) if v != 0)
        found[i] = (a - b) / total
    return found


@pytest.mark.parametrize("name", DATA)
def test_kl_threshold_is_that_of_the_literal_search(name: str) -> None:
    counts, _, _ = two_pass(DATA[name])
    divergences = kl_divergences(counts.tolist())
    assert kl_threshold(counts, 127) == min(divergences, key=lambda i: (divergences[i], i))


@pytest.mark.parametrize("name", DATA)
def test_kl_end_to_end_is_within_a_bin_of_the_two_pass_reference(name: str) -> None:
    counts, start, width = two_pass(DATA[name])
    divergences = kl_divergences(counts.tolist())
    best = min(divergences, key=lambda i: (divergences[i], i))
    _, alpha = METHODS["KL"](statistics(DATA[name], [7]), SYMMETRIC)
    index = round((alpha - start) / width - 0.5)
    # where two thresholds are as good as each other, either will do
    near_tie = divergences.get(index, math.inf) <= divergences[best] * 1.01
    assert abs(index - best) <= 1 or near_tie


@pytest.mark.parametrize("share", [0.9, 0.999, 0.9999])
@pytest.mark.parametrize("name", DATA)
def test_hist_end_to_end_is_within_a_bin_of_the_two_pass_reference(name: str, share: float) -> None:
    counts, start, width = two_pass(DATA[name])
    total, index = 0.0, 0
    for index, count in enumerate(counts):  # noqa: B007  # the index is what is wanted
        total += count
        if total >= share * counts.sum():
            break
    _, alpha = METHODS["hist"](statistics(DATA[name], [2, 9]), RangeOptions(8, True, share))
    assert abs(alpha - (start + (index + 0.5) * width)) <= width * 1.001


@pytest.mark.parametrize("name", DATA)
def test_mse_is_the_search_over_all_values(name: str) -> None:
    x = DATA[name].astype(np.float64)
    top = float(np.abs(x).max())
    losses = {}
    for step in range(36):
        alpha = (0.30 + 0.02 * step) * top
        rounded = np.clip(np.rint(x / alpha * 127), -127, 127) * alpha / 127
        losses[alpha] = float(np.square(x - rounded).mean())
    _, found = METHODS["mse"](statistics(DATA[name], [11]), SYMMETRIC)
    nearest = min(losses, key=lambda alpha: abs(alpha - found))
    assert nearest == pytest.approx(found)
    assert losses[nearest] <= min(losses.values()) * 1.005


@pytest.mark.parametrize("name", DATA)
def test_ptf_is_the_best_power_of_two_as_literally_searched(name: str) -> None:
    """PaddleSlim clips negative values to 0 in the loss; so on |x|, where that is no difference."""
    x = np.abs(DATA[name])
    top = np.float64(x.max())
    scales = [top / 127 / 8, top / 127 / 4, top / 127 / 2, top / 127]
    losses = [np.square(x - np.clip(np.round(x / s), 0, 127) * s).mean() for s in scales]
    _, found = METHODS["ptf"](statistics(x, [11]), SYMMETRIC)
    assert found == pytest.approx(127 * scales[int(np.argmin(losses))])


def test_extremes_are_exact_and_avg_is_the_mean_over_samples() -> None:
    x = DATA["laplace"]
    stats = statistics(x, [10])
    assert METHODS["min_max"](stats, RangeOptions()) == (float(x.min()), float(x.max()))
    assert METHODS["abs_max"](stats, SYMMETRIC)[1] == float(np.abs(x).max())
    exact = sum(Fraction(float(np.abs(row).max())) for row in x) / len(x)
    assert METHODS["avg"](stats, SYMMETRIC)[1] == float(exact)


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    "x", [np.zeros((2, 5)), np.full((1, 1), 3.5), -np.arange(1.0, 9).reshape(2, 4), np.eye(4)]
)
def test_degenerate_data_has_a_finite_range(x: Array, method: str, symmetric: bool) -> None:
    low, high = METHODS[method](statistics(x.astype(np.float32)), RangeOptions(8, symmetric))
    assert math.isfinite(low)
    assert math.isfinite(high)
    assert low <= high


@settings(deadline=None, max_examples=60)
@given(st.floats(-1e4, 1e4), st.floats(-1e4, 1e4), st.sampled_from([UINT8, INT8]), st.booleans())
def test_zero_is_exact_and_values_in_range_are_within_half_a_step(
    a: float, b: float, qtype: object, symmetric: bool
) -> None:
    kind = UINT8 if qtype is UINT8 and not symmetric else INT8
    params = params_from_range(QuantSpec(kind, PerTensor(), symmetric), min(a, b), max(a, b))
    x = np.linspace(min(a, b, 0), max(a, b, 0), 101).astype(np.float32)
    back = dequantize(quantize(x, params), params)
    assert dequantize(quantize(np.zeros(1, np.float32), params), params)[0] == 0
    # the ends may lose up to another half step, as the zero point is rounded
    assert np.abs(back - x).max() <= float(params.scale) * 1.001


def test_sqnr_is_the_formula() -> None:
    rng = np.random.default_rng(0)
    r = rng.normal(size=(5, 7))
    q = r + 0.1 * rng.normal(size=(5, 7)) + 3
    sums = ErrorSums(centred=True)
    for row_r, row_q in zip(r, q, strict=True):
        sums.add(row_r[None], row_q[None])
    c = r - r.mean(axis=1, keepdims=True)
    d = (q - r) - (q - r).mean(axis=1, keepdims=True)
    assert sums.sqnr == pytest.approx(10 * math.log10((c**2).sum() / (d**2).sum()))
    same = ErrorSums(centred=False)
    same.add(r, r)
    assert same.sqnr == math.inf


def test_the_smallest_negative_number_is_below_zero_whatever_it_is_counted_with() -> None:
    x = np.array([65536, -1.4e-45], np.float32)
    parts = []
    for order in ([x], [x[1:], x[:1]], [x[:1], x[1:]]):
        builder = HistogramBuilder()
        for part in order:
            builder.add(part, float(part.min()), float(part.max()))
        parts.append(builder.build())
    for built in parts:
        assert built.negative.tolist()[:2] == [1, 0]
        assert built.positive.sum() == 1
