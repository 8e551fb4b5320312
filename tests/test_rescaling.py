"""Rescaling of shared channels: what is exact, cross-layer equalization, and SmoothQuant."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import onnx
import pytest

import onnxq
from onnxq.improve import context as improving
from onnxq.improve import equalization, smoothquant, strength
from onnxq.improve.observed import observe
from onnxq.improve.offering import offer_links
from onnxq.improve.rescaling import links, rescaled, weight_maxima
from onnxq.improve.strength import strength_scales
from onnxq.model import load
from onnxq.parametrize import parametrize
from onnxq.pipeline import prepare_for
from onnxq.prepare import Prepared
from onnxq.recipe import StaticRecipe
from onnxq.rewrite import rewrite
from onnxq.saturation import Verdict
from onnxq.save import to_proto

from .models import Array, Feed, build, normal, rng, run, samples, sqnr, weights_of
from .test_improve import context_of

RECIPE = StaticRecipe(target="onnxruntime-x86", method="min_max").effective()
PER_TENSOR = dataclasses.replace(RECIPE, granularity="tensor")

IMAGE, TOKENS = (1, 4, 6, 6), (1, 5, 8)
CONV = {"a": normal(6, 4, 3, 3), "ab": normal(6, seed=1), "b": normal(5, 6, 1, 1, seed=2)}
WIDE = {"g": normal(8, seed=3), "h": normal(8, seed=4), "b": normal(8, 6, seed=5)}


def conv(middle: str, **weights: Array) -> tuple[onnx.ModelProto, tuple[int, ...]]:
    """A Conv, what is between, and another that reads r."""
    text = "(float[N, 4, 6, 6] x) => (float[N, 5, H, W] y) { c = Conv(x, a, ab) %s y = Conv(r, b) }"
    return build(text % middle, {**CONV, **weights}), IMAGE


def tokens(nodes: str, **weights: Array) -> tuple[onnx.ModelProto, tuple[int, ...]]:
    text = "(float[N, 5, 8] x) => (float[N, 5, 6] y) { %s }"
    return build(text % nodes, {**WIDE, **weights}), TOKENS


HEADS = """
    p = MatMul(x, wp) s = Softmax(p)
    v = MatMul(x, wv) v1 = Reshape(v, split) v2 = Transpose<perm = [0, 2, 1, 3]>(v1)
    o = MatMul(s1, v2) o1 = Transpose<perm = [0, 2, 1, 3]>(o) o2 = Reshape(o1, merge)
    s1 = Unsqueeze(s, one)
    y = MatMul(o2, b)"""

LINKED = {
    "relu": (conv("r = Relu(c)"), ["n_c"]),
    "leaky relu, pool": (
        conv("l = LeakyRelu<alpha = 0.1>(c) r = MaxPool<kernel_shape = [2, 2]>(l)"),
        ["n_c"],
    ),
    "prelu": (conv("r = PRelu(c, s)", s=np.abs(normal(6, 1, 1, seed=6))), ["n_c"]),
    "depthwise triple": (
        conv("d = Relu(c) e = Conv<group = 6>(d, w, wb) r = Relu(e)",
             w=normal(6, 1, 3, 3, seed=7), wb=normal(6, seed=8)),
        ["n_c", "n_e"],
    ),
    "depthwise with two outputs a channel": (
        conv("d = Conv<group = 6>(c, w) r = Conv<group = 6>(d, v)",
             w=normal(12, 1, 1, 1, seed=7), v=normal(6, 2, 1, 1, seed=8)),
        ["n_c", "n_r"],
    ),
    "two readers": (
        conv("q = Relu(c) r1 = Conv(q, w) r2 = Conv(q, v) r = Add(r1, r2)",
             w=normal(6, 6, 1, 1, seed=7), v=normal(6, 6, 1, 1, seed=8)),
        ["n_c"],
    ),
    "concat": (
        conv("e = Relu(c) f = Conv(x, w, wb) l = LeakyRelu<alpha = 0.1>(f) "
             "k = Concat<axis = 1>(e, l) m = MaxPool<kernel_shape = [2, 2]>(k) r = Conv(m, v, vb)",
             w=normal(4, 4, 3, 3, seed=7), wb=normal(4, seed=8),
             v=normal(6, 10, 1, 1, seed=9), vb=normal(6, seed=10)),
        ["n_c", "n_r"],
    ),
    "layer normalization": (
        tokens("n = LayerNormalization(x, g, h) y = MatMul(n, b)"),
        ["n_n"],
    ),
    "product and sum": (
        tokens("s = Softmax(x) n = Mul(g, s) m = Add(n, h) y = MatMul(m, b)"),
        ["n_n"],
    ),
    "matmul, sum, relu": (
        tokens("n = MatMul(x, w) m = Add(h, n) t = Relu(m) y = MatMul(t, b)",
               w=normal(8, 8, seed=6)),
        ["n_n"],
    ),
    "values of attention": (
        tokens(HEADS.replace("s1 = Unsqueeze(s, one)", "").replace(
            "o = MatMul", "s1 = Unsqueeze(s, one) o = MatMul"),
            wp=normal(8, 5, seed=6), wv=normal(8, 8, seed=7), one=np.array([1]),
            split=np.array([0, 0, 2, 4]), merge=np.array([0, 0, 8])),
        ["n_v"],
    ),
}  # fmt: skip

UNLINKED = {
    "clip": conv("r = Clip(c, lo, hi)", lo=np.array(0, np.float32), hi=np.array(6, np.float32)),
    "sigmoid": conv("r = Sigmoid(c)"),
    "residual": conv("q = Conv(c, w) r = Add(q, c)", w=normal(6, 6, 1, 1, seed=7)),
    "groups": conv("q = Conv<group = 2>(c, w) r = Sigmoid(q)", w=normal(6, 3, 1, 1, seed=7)),
    "a part that is no Conv's": conv(
        "s = Sigmoid(c) f = Conv(x, w) r = Concat<axis = 1>(s, f)",
        w=normal(2, 4, 3, 3, seed=7), b=normal(5, 8, 1, 1, seed=2)),
    "a part that is read twice": conv(
        "f = Conv(x, w) q = Concat<axis = 1>(c, f) k = Conv(q, v) r = Add(c, k)",
        w=normal(2, 4, 3, 3, seed=7), v=normal(6, 8, 1, 1, seed=8)),
    "concat along another axis": conv("r = Concat<axis = 2>(c, c)"),
    "sum with a number for all": tokens(
        "n = LayerNormalization(x, g, h) m = Add(n, k) y = MatMul(m, b)",
        k=np.array([0.5], np.float32),
    ),
    "read by a norm too": tokens(
        "n = LayerNormalization(x, g, h) m = MatMul(n, b) k = ReduceSum(n) y = Add(m, k)"
    ),
    "heads mixed with width": tokens(
        "n = LayerNormalization(x, g, h) m = Reshape(n, s) t = Transpose<perm = [0, 2, 1]>(m) "
        "k = Reshape(t, e) y = MatMul(k, b)",
        s=np.array([0, 8, 5]), e=np.array([0, 5, 8]),
    ),
}  # fmt: skip


def prepared(model: onnx.ModelProto) -> Prepared:
    return prepare_for(load(model), RECIPE)


@pytest.mark.parametrize("case", LINKED)
def test_a_rescaled_network_is_the_same_network(case: str) -> None:
    (model, shape), sources = LINKED[case]
    before = prepared(model)
    found = links(before)
    nodes = {node.name: before.names.label(node) for node in before.ir.graph}
    assert [nodes[link.sources[0]] for link in found] == sources
    scales = {link: np.exp(rng(9).uniform(-2, 2, link.channels)) for link in found}
    after = rescaled(before, scales)
    for feed in samples("x", shape, 2):
        expected = run(model, feed)[0]
        np.testing.assert_allclose(
            run(to_proto(after.ir), feed)[0],
            expected,
            rtol=1e-4,
            atol=1e-5 * np.abs(expected).max(),
        )
    for link in found:  # and what the readers weigh has been multiplied
        ratio = weight_maxima(after, link) / weight_maxima(before, link)
        divided = [s.tensor for other in found for s in other.divided]
        if not {s.tensor for s in link.multiplied} & set(divided):
            np.testing.assert_allclose(ratio, scales[link], rtol=1e-5)


@pytest.mark.parametrize("case", UNLINKED)
def test_channels_that_cannot_be_rescaled_are_no_link(case: str) -> None:
    before = prepared(UNLINKED[case][0])
    sources = {link.sources[0] for link in links(before)}
    assert not sources & {"n_c", "n_n"}


def test_what_is_given_as_an_output_is_no_link() -> None:
    model, _ = two_links()
    model.graph.output.append(onnx.helper.make_tensor_value_info("r", 1, None))
    assert [link.sources[0] for link in links(prepared(model))] == ["n_d"]


def test_a_network_has_to_gain_more_than_chance(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(improving, "SURE", 1e9)
    model = spread_network((2.0 ** np.arange(-8, 8, 2)).astype(np.float32))
    with context_of(model, samples("x", (1, 8, 4, 4), 24), PER_TENSOR) as context:
        equalization.equalize(context, context.best)
        assert not any(entry.kept for entry in context.ledger.entries)


def test_a_weight_or_bias_that_others_read_is_no_link() -> None:
    text = """(float[N, 4, 6, 6] x) => (float[N, 4, 6, 6] y) {
        c = Conv(x, a, ab) r = Relu(c) d = Conv(r, %s) y = Conv(d, %s, %s) }"""
    weights = {k: normal(4, 4, 1, 1, seed=i) for i, k in enumerate("abe")}
    weights["ab"] = normal(4)
    counts = []
    for names in (("b", "e", "k"), ("b", "a", "k"), ("b", "e", "ab")):
        given = {k: v for k, v in weights.items() if k in (*names, "a", "ab")} | {"k": normal(4)}
        model = build(text % names, given)
        counts.append([link.sources[0] for link in links(prepared(model))])
    assert [("n_c" in c, "n_d" in c) for c in counts] == [
        (True, True),
        (False, False),
        (False, True),
    ]


def test_equalization_of_a_depthwise_triple_is_the_closed_form() -> None:
    (model, _), _ = LINKED["depthwise triple"]
    weights = {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}
    before = prepared(model)
    found = links(before)
    first, second = equalization.equalizing_scales(before, found).values()
    r1, r2 = (np.abs(weights[n]).reshape(6, -1).max(axis=1) for n in ("a", "w"))
    r3 = np.abs(weights["b"]).max(axis=(0, 2, 3))
    mean = (r1 * r2 * r3) ** (1 / 3)
    np.testing.assert_allclose(first, r1 / mean, rtol=3e-3)
    np.testing.assert_allclose(second, mean / r3, rtol=3e-3)


def spread_network(spread: Array) -> onnx.ModelProto:
    """Two 1x1 convolutions and a Relu; channel i between is `spread[i]` times as large."""
    mixed = rng(5).choice([-1.0, 1.0], (8, 8)).astype(np.float32)  # all of one magnitude
    return build(
        """(float[N, 8, 4, 4] x) => (float[N, 8, 4, 4] y) {
            c = Conv(x, a, ab) r = Relu(c) y = Conv(r, b, bb) }""",
        {
            "a": (mixed * spread[:, None])[..., None, None],
            "ab": (0.1 * spread).astype(np.float32),
            "b": (mixed.T / spread)[..., None, None],
            "bb": np.zeros(8, np.float32),
        },
    )


def test_equalization_finds_the_balanced_network() -> None:
    """Powers of two, so that what is found is the balanced network to the bit."""
    balanced = spread_network(np.ones(8, np.float32))
    model = spread_network((2.0 ** np.arange(-8, 8, 2)).astype(np.float32))
    feeds = samples("x", (1, 8, 4, 4), 24)
    with context_of(model, feeds, PER_TENSOR) as context:
        before = context.errors.sqnr
        equalization.equalize(context, context.best)
        written = to_proto(rewrite(context.prepared, context.best))
        after = context.errors.sqnr
        assert context.ledger.entries[0].kept
    with context_of(balanced, feeds, PER_TENSOR) as context:
        expected = context.errors.sqnr
        exact = to_proto(rewrite(context.prepared, context.best))
    assert before < 10  # channels below a step of the weights were lost
    assert after == pytest.approx(expected, abs=0.1)
    assert after > before + 25
    for feed in feeds[:4]:
        assert sqnr(run(exact, feed)[0], run(written, feed)[0]) > 60


def wide_channels() -> onnx.ModelProto:
    """Four Convs in two pairs around a Concat; a few channels are far wider than the others."""
    wide = np.where(np.arange(16) == 5, 40.0, 1.0).astype(np.float32)
    return build(
        """(float[N, 8, 6, 6] x) => (float[N, 8, 6, 6] y) {
            c = Conv(x, a, ab) d = Relu(c) e = Conv(x, f, fb) g = Relu(e)
            k = Concat<axis = 1>(d, g) y = Conv(k, b, bb) }""",
        {
            "a": normal(16, 8, 1, 1) * wide[:, None, None, None],
            "ab": normal(16, seed=1) * wide,
            "f": normal(16, 8, 1, 1, seed=2),
            "fb": normal(16, seed=3),
            "b": normal(8, 32, 1, 1, seed=4)
            / np.concatenate([wide, np.ones(16, np.float32)])[None, :, None, None],
            "bb": normal(8, seed=5),
        },
    )


@pytest.mark.parametrize("rounds", [False, True])
def test_equalization_by_activations_takes_wide_channels_away(rounds: bool) -> None:
    feeds = samples("x", (1, 8, 6, 6), 48)
    with context_of(wide_channels(), feeds, RECIPE) as context:
        context.rounds = rounds
        before = context.errors.sqnr
        equalization.equalize(context, context.best)
        first, second = context.ledger.entries
        assert first.why == equalization.OWN_SCALES
        assert second.kept
        assert "2 nodes" not in second.why  # both Convs of the Concat are one link
        assert context.errors.sqnr > before + 15
        maxima = {link.sources: link for link in links(context.prepared)}
        assert list(maxima) == [("n_c", "n_e")]
        written = to_proto(rewrite(context.prepared, context.best))
        found = context.errors.sqnr
    model = wide_channels()
    expected = np.concatenate([run(model, feed)[0] for feed in feeds])
    got = np.concatenate([run(written, feed)[0] for feed in feeds])
    assert sqnr(expected, got) == pytest.approx(found, abs=1.0)


def test_a_predicted_error_is_that_of_the_quantized_layer() -> None:
    """Measured literally, on the rows that it is predicted from, weights and inputs quantized."""
    model, feeds = wide_channels(), samples("x", (1, 8, 6, 6), 48)
    with context_of(model, feeds, RECIPE) as context:
        (link,) = links(context.prepared)
        seen = observe(context, [link])[link]
        search = strength._search(context, context.best, link, seen)
        for s in (np.ones(32), strength_scales(seen.read.maxima, search.maxima, 0.7)):
            rows = seen.read.rows.astype(np.float64)
            x = (rows / s).astype(np.float32)
            step = x.max() / 255  # nothing is negative, and mse clips little of this
            rounded = np.clip(np.rint(x / step), 0, 255) * step * s
            weights = model.graph.initializer[4]
            w = onnx.numpy_helper.to_array(weights).reshape(8, 32) * s
            scale = np.abs(w).max(axis=1, keepdims=True) / 127
            w_rounded = np.rint(w / scale) * scale / s
            exact = rows @ (w / s).T
            off = rounded @ w_rounded.T - exact
            measured = off.var(axis=0).sum() / exact.var(axis=0).sum()
            assert search.error(s) == pytest.approx(measured, rel=0.5)


def outlier_network(outlier: float) -> onnx.ModelProto:
    """LayerNormalization, of which one channel is `outlier` times as large, and two MatMuls."""
    gain = np.ones(16, np.float32)
    gain[3] = outlier
    return build(
        """(float[N, 6, 16] x) => (float[N, 6, 12] y) {
            n = LayerNormalization(x, g, h) a = MatMul(n, wa) b = MatMul(n, wb) c = Mul(a, b)
            y = Add(c, a) }""",
        {
            "g": gain,
            "h": (normal(16, seed=1, scale=0.1) * gain).astype(np.float32),
            "wa": (normal(16, 12, seed=2) / gain[:, None]).astype(np.float32),
            "wb": (normal(16, 12, seed=3) / gain[:, None]).astype(np.float32),
        },
    )


def test_smoothquant_takes_an_outlier_away() -> None:
    """With a = 1/2 and max|X_j| / max|W_j| = outlier^2 for that channel alone, s is the outlier.

    The step of X, and the error it makes, fall by as much.
    """
    feeds = samples("x", (1, 6, 16), 48)
    errors = {}
    for outlier in (64.0, 1.0):
        with context_of(outlier_network(outlier), feeds, RECIPE) as context:
            before = context.errors.sqnr
            smoothquant.smooth(context, context.best)
            errors[outlier] = before, context.errors.sqnr
            if outlier > 1:
                assert [e.kept for e in context.ledger.entries] == [True]
                (link,) = links(context.prepared)
                assert {context.prepared.ir.graph.initializers["g"].name} == {"g"}
                g = context.prepared.ir.graph.initializers["g"].const_value
                assert g is not None
                spread = np.abs(g.numpy())
                assert spread.max() / np.median(spread) < 64 / 8
                assert len(link.readers) == 2
    before, after = errors[64.0]
    plain = errors[1.0][0]
    assert before == pytest.approx(plain - 20 * np.log10(64), abs=4)
    assert after > plain - 1.0


@pytest.mark.parametrize("strength", [0.0, 0.3, 1.0])
def test_scales_are_the_papers_up_to_one_factor_for_all(strength: float) -> None:
    x, w = np.array([1.0, 8.0, 2.0, 0.0]), np.array([2.0, 0.5, 4.0, 1.0])
    found = strength_scales(x, w, strength)
    paper = x[:3] ** strength / w[:3] ** (1 - strength)
    np.testing.assert_allclose(found[:3] / found[0], paper / paper[0])
    assert found[3] == 1.0  # a channel of zeros
    assert np.prod(found) == pytest.approx(1.0)


def test_the_smoothed_network_is_written() -> None:
    model, feeds = outlier_network(64.0), samples("x", (1, 6, 16), 48)
    figures = {}
    for level in ("fast", "balanced"):
        recipe = dataclasses.replace(RECIPE, accuracy=level, verify=False)
        written = onnxq.quantize(model, None, recipe, feeds)
        assert isinstance(written, onnx.ModelProto)
        pairs = [(run(model, f)[0], run(written, f)[0]) for f in samples("x", (1, 6, 16), 16, 8)]
        figures[level] = sqnr(*(np.concatenate(side) for side in zip(*pairs, strict=True)))
    assert figures["balanced"] > figures["fast"] + 20


def test_a_smoothed_network_is_guarded_against_saturation(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Its weights are others, and so are the pairs of products beyond int16."""
    model, feeds = outlier_network(64.0), samples("x", (1, 6, 16), 48)
    recipe = dataclasses.replace(RECIPE, isa="avx2", accuracy="balanced", verify=False)

    def verdict() -> Verdict:
        report = onnxq.quantize(model, tmp_path / "q.onnx", recipe, feeds)
        assert report.ledger is not None
        assert "smoothquant" in report.ledger.kept
        assert report.saturation is not None
        return report.saturation

    found = verdict()
    assert [layer.node for layer in found.raised] == ["n_a", "n_b"]
    assert found.seen == ()
    monkeypatch.setattr("onnxq.improving._remake", lambda task: parametrize)
    assert verdict().seen


def test_nodes_of_a_smoothed_network_are_left_float_for_a_target(tmp_path: Path) -> None:
    model, feeds = outlier_network(64.0), samples("x", (1, 6, 16), 48)
    recipe = dataclasses.replace(RECIPE, accuracy="balanced", target_sqnr=60.0, verify=False)
    report = onnxq.quantize(model, tmp_path / "q.onnx", recipe, feeds)
    assert report.ledger is not None
    assert report.ledger.kept[0] == "smoothquant"
    assert report.ledger.kept[-1] == "mixed_precision"
    written = onnx.load(tmp_path / "q.onnx")
    for feed in samples("x", (1, 6, 16), 4, 8):
        assert sqnr(run(model, feed)[0], run(written, feed)[0]) > 60


def two_links() -> tuple[onnx.ModelProto, list[Feed]]:
    one = normal(4, 4, 1, 1, seed=1)
    model = build(
        """(float[N, 4, 4, 4] x) => (float[N, 4, 4, 4] y) {
            c = Conv(x, a) r = Relu(c) d = Conv(r, b) s = Relu(d) y = Conv(s, e) }""",
        {"a": one, "b": normal(4, 4, 1, 1, seed=2), "e": normal(4, 4, 1, 1, seed=3)},
    )
    return model, samples("x", (1, 4, 4, 4), 24)


def test_a_link_that_harms_is_left_out_and_the_others_are_kept() -> None:
    model, feeds = two_links()
    before = prepared(model)
    first, second = links(before)
    spread = np.array([100.0, 1, 1, 1])
    model = to_proto(rescaled(before, {second: 1 / spread}).ir)
    with context_of(model, feeds, RECIPE) as context:
        first, second = links(context.prepared)
        offer_links(context, "trial", {first: 1 / spread, second: spread}, "a trial")
        assert [(e.node, e.kept) for e in context.ledger.entries[-2:]] == [
            ("n_c", False),
            ("n_d", True),
        ]
        assert context.untouched  # by others
        assert context.judge.errors(context.best).sqnr == context.errors.sqnr
        expected = weight_maxima(before, second)
        np.testing.assert_allclose(weight_maxima(context.prepared, second), expected, rtol=1e-5)


def test_channels_are_observed_where_a_tensor_has_them() -> None:
    """Behind a pool and Flatten they come last; in what is quantized before it they do not."""
    model = build(
        """(float[N, 3, 8, 8] x) => (float[N, 8] y) {
            a = Conv(x, w, b)
            r = LeakyRelu(a)
            p = GlobalAveragePool(r)
            f = Flatten(p)
            y = Gemm(f, v)
        }""",
        {"w": normal(8, 3, 1, 1), "b": normal(8, seed=1), "v": normal(8, 8, seed=2)},
    )
    with context_of(model, samples("x", (1, 3, 8, 8), 24), RECIPE) as context:
        (link,) = links(context.prepared)
        assert dict(zip(link.tensors, link.axes, strict=True))["a"] == (-3,)
        found = observe(context, [link])[link]
        assert found.before == ()
        assert found.read.maxima.shape == (8,)


def test_samples_of_no_rows_are_passed_over() -> None:
    model = build(
        """(float[1, S, 6] x) => (float[1, S, 4] y) {
            n = LayerNormalization(x, g, h) m = MatMul(n, w) y = Add(m, b)
        }""",
        {"g": normal(6), "h": normal(6, seed=1), "w": normal(6, 4, seed=2), "b": normal(4, seed=3)},
    )
    feeds = [{"x": normal(1, 0 if i % 5 == 0 else 3, 6, seed=i)} for i in range(30)]
    for level in ("fast", "balanced"):
        written = onnxq.quantize_static(model, data=feeds, verify=False, accuracy=level)
        assert all(np.isfinite(array).all() for array in weights_of(written).values())


def test_weights_that_keep_their_means_are_exact_with_16_bits() -> None:
    """A rescaled network is then judged by its activations alone, not by 8 bit integers."""
    model = wide_channels()
    feeds = samples("x", (1, 8, 6, 6), 48)
    for correction in (False, True):
        recipe = dataclasses.replace(RECIPE, weight_correction=correction)
        with context_of(model, feeds, recipe) as context:
            exact = improving._with_exact_weights(context.best)
            assert context.judge.errors(exact).sqnr > context.errors.sqnr - 0.5


def test_what_cannot_be_done_is_noted() -> None:
    model, feeds = two_links()
    with context_of(model, feeds, RECIPE) as context:
        smoothquant.smooth(context, context.best)
        context.best = dataclasses.replace(context.best)
        equalization.equalize(context, context.best)
        words = [str(entry) for entry in context.ledger.entries]
    assert words == [
        f"smoothquant: not kept: {smoothquant.NOTHING}",
        "equalization: not kept: it has to come first",
    ]
