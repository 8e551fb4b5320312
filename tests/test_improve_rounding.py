"""Weight rounding: against brute force, on layers with a known best result, in a network."""

from __future__ import annotations

import itertools

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from onnxq.improve import rounding
from onnxq.improve.layer import Layer, layer_of
from onnxq.numerics.rounding import adaround, descend, layer_error, with_scales
from onnxq.qtypes import UINT8, PerTensor, QuantParams, QuantSpec

from .models import Array, Feed, build, normal, rng, run, samples
from .test_improve import context_of

LIMITS = (-127, 127)


def problem(groups: int, channels: int, inputs: int, seed: int) -> tuple[Array, Array, Array]:
    """Weights, scales and moments of inputs that go together."""
    generator = rng(seed)
    weights = generator.standard_normal((groups, channels, inputs))
    x = generator.standard_normal((groups, 200, inputs)) @ generator.standard_normal(
        (groups, inputs, inputs)
    )
    x += 2.0
    moments = x.transpose(0, 2, 1) @ x / 200
    return weights, np.full((groups, channels, 1), 0.1), moments


def errors(weights: Array, q: Array, scale: Array, moments: Array) -> Array:
    return layer_error(weights - scale * q, moments)


@pytest.mark.parametrize("seed", range(4))
def test_descent_ends_where_no_single_step_helps(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("onnxq.numerics.rounding.SWEEPS", 100)
    weights, scale, moments = problem(2, 3, 8, seed)
    nearest = np.rint(weights / scale)
    q = descend(weights, nearest, scale, moments, *LIMITS)
    found, plain = errors(weights, q, scale, moments), errors(weights, nearest, scale, moments)
    for j, step in itertools.product(range(8), (-1, 1)):
        other = q.copy()
        other[:, :, j] += step
        allowed = np.abs(other[:, :, j] - weights[:, :, j] / scale[:, :, 0]) <= 1
        worse = errors(weights, other, scale, moments) >= found - 1e-9
        assert (worse | ~allowed).all()
    every = [
        errors(weights, np.floor(weights / scale) + np.array(up), scale, moments)
        for up in itertools.product((0, 1), repeat=8)
    ]
    assert found.sum() < 0.9 * plain.sum()
    assert found.sum() >= np.min(every, axis=0).sum() - 1e-9  # the best of all, by brute force


def test_what_rounds_down_alone_rounds_up_in_company() -> None:
    # four inputs that are one and the same: the nearest integers of 0.04 / 0.1 lose 4 * 0.04, of
    # which 0.1 can be had together
    weights, scale = np.full((1, 1, 4), 0.04), np.full((1, 1, 1), 0.1)
    q = descend(weights, np.zeros((1, 1, 4)), scale, np.ones((1, 4, 4)), *LIMITS)
    assert q.sum() == 2
    assert set(q.ravel()) == {0, 1}  # none further than a step from its weight


def test_a_weight_beyond_the_last_integer_gets_that_one() -> None:
    weights, scale = np.array([[[20.0, -20.0, 0.3]]]), np.full((1, 1, 1), 0.1)
    q = descend(weights, np.zeros((1, 1, 3)), scale, np.eye(3)[None], *LIMITS)
    assert q.ravel().tolist() == [127, -127, 3]


@pytest.mark.parametrize("groups", [1, 3])
def test_the_best_of_several_scales_is_that_of_trying_each(groups: int) -> None:
    weights, scale, moments = problem(groups, 4, 9, 8)
    scale = np.abs(weights).max(axis=2, keepdims=True) / 127
    start = descend(weights, np.rint(weights / scale), scale, moments, *LIMITS)
    factors = np.linspace(0.75, 1.15, 9)
    q, scales = with_scales(weights, start, scale, factors, moments, *LIMITS)
    tried = [errors(weights, start, scale, moments)]
    for factor in factors:
        other = (scale * factor).astype(np.float32).astype(np.float64)
        nearest = np.clip(np.rint(weights / other), *LIMITS)
        found = descend(weights, nearest, other, moments, *LIMITS)
        tried.append(errors(weights, found, other, moments))
    best = np.min(tried, axis=0)
    np.testing.assert_allclose(errors(weights, q, scales, moments), best, rtol=1e-9)
    assert (best < 0.8 * tried[0]).any()
    assert np.abs(q).max() <= 127


def test_a_scale_at_which_all_weights_are_integers_is_found() -> None:
    integers = rng(4).integers(-100, 100, (1, 3, 6)).astype(np.float64)
    integers[:, :, 0] = 110  # so that the largest weight asks for another scale
    scale = np.full((1, 3, 1), 110 / 127 * 0.1)
    weights = integers * 0.1
    start = np.rint(weights / scale)
    exact = np.array([127 / 110])
    q, scales = with_scales(weights, start, scale, exact, np.eye(6)[None], *LIMITS)
    assert np.array_equal(q, integers)
    np.testing.assert_allclose(scales, 0.1, rtol=1e-6)


def test_without_factors_nothing_changes() -> None:
    weights, scale, moments = problem(1, 4, 9, 8)
    start = np.rint(weights / scale)
    q, scales = with_scales(weights, start, scale, np.empty(0), moments, *LIMITS)
    assert np.array_equal(q, start)
    assert np.array_equal(scales, scale)


def test_blocks_do_not_change_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    weights, scale, moments = problem(1, 5, 150, 3)
    results = []
    for block in (7, 64, 200):
        monkeypatch.setattr("onnxq.numerics.rounding.BLOCK", block)
        results.append(descend(weights, np.rint(weights / scale), scale, moments, *LIMITS))
    assert np.array_equal(results[0], results[1])
    assert np.array_equal(results[1], results[2])


def test_adaround_is_better_than_the_nearest() -> None:
    weights, scale, moments = problem(1, 16, 30, 5)
    learned = adaround(weights, scale, moments, *LIMITS)
    assert (np.abs(learned - weights / scale) <= 1).all()
    nearest = np.rint(weights / scale)
    found, plain = (errors(weights, q, scale, moments).sum() for q in (learned, nearest))
    assert found < 0.8 * plain


@pytest.mark.parametrize(
    ("attributes", "shape", "group"),
    [
        ("", (6, 4, 1, 1), 1),
        ("pads = [1, 0, 1, 2], strides = [2, 1]", (6, 4, 3, 3), 1),
        ("dilations = [2, 1], pads = [2, 1, 2, 1]", (6, 4, 3, 2), 1),
        ("group = 4, pads = [1, 1, 1, 1], strides = [2, 2]", (4, 1, 3, 3), 4),
        ("group = 2", (6, 2, 3, 3), 2),
    ],
)
def test_patches_times_weights_are_the_convolution(
    attributes: str, shape: tuple[int, ...], group: int
) -> None:
    comma = f"<{attributes}>" if attributes else ""
    model = build(
        f"(float[N, 4, 9, 8] x) => (float[N, C, H, W] y) {{ y = Conv{comma}(x, w) }}",
        {"w": normal(*shape)},
    )
    layer = found_layer(model)
    q = rng(1).integers(0, 255, (2, 4, 9, 8)).astype(np.uint8)
    spec = QuantSpec(UINT8, PerTensor(), symmetric=False)
    params = QuantParams(spec, np.asarray(0.1, np.float32), np.asarray(100, np.uint8))
    x = (q.astype(np.float32) - 100) * np.float32(0.1)
    expected = run(model, {"x": x})[0]
    for patches in (layer.patches(x, None, 1000), layer.patches(q, params, 1000)):
        y = np.einsum("grk,gok->rgo", patches, layer.weights).reshape(2, -1, shape[0])
        assert np.allclose(y.transpose(0, 2, 1).reshape(expected.shape), expected, atol=1e-4)
    assert layer.patches(x, None, 5).shape[1] <= 2 * 5
    assert np.array_equal(layer.stored(layer.weights), normal(*shape))


@pytest.mark.parametrize("trans", [0, 1])
def test_a_gemm_is_a_matrix(trans: int) -> None:
    shape = (5, 7) if trans else (7, 5)
    model = build(
        f"(float[N, 7] x) => (float[N, 5] y) {{ y = Gemm<transB = {trans}>(x, w) }}",
        {"w": normal(*shape)},
    )
    layer = found_layer(model)
    x = normal(3, 7, seed=2)
    y = layer.patches(x, None, 1000)[0] @ layer.weights[0].T
    assert np.allclose(y, run(model, {"x": x})[0], atol=1e-5)
    assert np.array_equal(layer.stored(layer.weights), normal(*shape))
    assert layer.scale(np.arange(1.0, 6.0)).ravel().tolist() == [1, 2, 3, 4, 5]


def found_layer(model: onnx.ModelProto) -> Layer:
    graph = ir.serde.deserialize_model(model).graph
    layer = layer_of(graph[0])
    assert isinstance(layer, Layer)
    return layer


def test_rounding_gains_in_a_network_and_the_ledger_has_each_layer() -> None:
    model = build(
        """(float[N, 8, 6, 6] x) => (float[N, 4, 6, 6] y) {
            a = Conv<pads = [1, 1, 1, 1]>(x, wa, ba)
            r = Relu(a)
            y = Conv(r, wb, bb)
        }""",
        {
            "wa": normal(16, 8, 3, 3, seed=1),
            "ba": normal(16, seed=2),
            "wb": normal(4, 16, 1, 1, seed=3),
            "bb": normal(4, seed=4),
        },
    )
    # all channels are nearly the same picture
    feeds: list[Feed] = [
        {"x": np.asarray(f["x"][:, :1].repeat(8, 1) + 0.05 * f["x"], np.float32)}
        for f in samples("x", (1, 8, 6, 6), 24)
    ]
    with context_of(model, feeds) as context:
        plan, changed = rounding.rounded(context, context.best, "rounding", learned=False)
        assert changed == 2
        entries = context.ledger.entries
        assert [e.node for e in entries] == ["n_a", "n_y"]
        assert entries[0].after is not None
        assert entries[0].before is not None
        assert entries[0].after < 0.5 * entries[0].before
        assert {e.measure for e in entries} == {"error"}
        integers = plan.updates["wa"].integers
        assert integers is not None
        nearest = np.rint(
            normal(16, 8, 3, 3, seed=1) / plan.params["wa"].scale.reshape(-1, 1, 1, 1)
        )
        assert (np.abs(integers - nearest) <= 1).all()
        assert not np.array_equal(integers, nearest)


def test_a_channel_whose_bias_bears_no_other_scale_does_not_stop_the_others() -> None:
    """Its weights are next to nothing, so that the bias sets the scale."""
    weights = {"w": normal(8, 1, 3, 3), "b": normal(8, seed=1), "v": normal(8, 8, 1, 1, seed=2)}
    weights["w"][3] *= np.float32(1e-7)
    weights["b"][3] = 1.0
    model = build(
        """(float[N, 8, 8, 8] x) => (float[N, 8, 6, 6] y) {
            a = Conv<group = 8>(x, w, b)
            r = Relu(a)
            y = Conv(r, v)
        }""",
        weights,
    )
    with context_of(model, samples("x", (1, 8, 8, 8), 24)) as context:
        before = context.best
        after, _ = rounding.rounded(context, before, rounding.NAME, learned=False)
        entry = context.ledger.entries[0]
    assert entry.kept
    changed = after.params["w"].scale != before.params["w"].scale
    assert changed.any()
    assert not changed[3]


def test_a_layer_with_too_many_inputs_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rounding, "MOST_INPUTS", 3)
    model = build(
        "(float[N, 4] x) => (float[N, 3] y) { y = Gemm(x, w, b) }",
        {"w": normal(4, 3), "b": normal(3)},
    )
    with context_of(model, samples("x", (1, 4), 12)) as context:
        rounding.round_weights(context, context.best)
        assert [str(e) for e in context.ledger.entries] == [
            "rounding n_y: not kept: 4 inputs an output channel, more than 3: too slow"
        ]
