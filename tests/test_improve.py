"""The accuracy levels: what a plan is judged by, what is kept, and bias correction."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx
import pytest

import onnxq
from onnxq import recipe
from onnxq.data.samples import input_specs, open_samples
from onnxq.demo import DIGITS, digits_data
from onnxq.improve import LEVELS, PASSES, Ledger, bias, levels
from onnxq.improve.bias import shrunk_mean
from onnxq.improve.context import Context, chosen_samples
from onnxq.improve.judge import Errors
from onnxq.model import load
from onnxq.parametrize import parametrize
from onnxq.pipeline import place, prepare_for
from onnxq.plans import Plan, WeightUpdate
from onnxq.recipe import Accuracy, StaticRecipe
from onnxq.rewrite import rewrite
from onnxq.save import to_proto

from .models import Feed, build, normal, rng, run, samples, sqnr, weights_of

RECIPE = StaticRecipe(target="onnxruntime-x86").effective()


@contextmanager
def context_of(
    model: object, feeds: list[Feed], recipe: StaticRecipe = RECIPE
) -> Iterator[Context]:
    source = load(model)  # type: ignore[arg-type]  # whatever load takes
    prepared = prepare_for(source, recipe)
    calibration = onnxq.calibrate(model, feeds)  # type: ignore[arg-type]  # as above
    plan = parametrize(prepared, place(prepared, recipe), calibration)
    opened = open_samples(feeds, input_specs(prepared.ir))
    chosen = chosen_samples(len(feeds), 16, 8)
    with Context(prepared, calibration, opened, plan, Ledger("fast"), chosen) as context:
        yield context


def residual() -> onnx.ModelProto:
    """Convs, one of them depthwise; a residual Add, a Concat, and a float branch out of it."""
    return build(
        """(float[N, 4, 8, 8] x) => (float[N, 6] y, float[N, 12, 8, 8] z) {
            a = Conv<pads = [1, 1, 1, 1], group = 4>(x, wa, ba)
            r = Relu(a)
            b = Conv(r, wb, bb)
            s = Add(b, r)
            c = Conv(s, wc, bc)
            k = Concat<axis = 1>(c, s)
            z = Conv(k, wd, bd)
            p = GlobalAveragePool(z)
            f = Flatten(p)
            y = Gemm(f, we, be)
        }""",
        {
            "wa": normal(4, 1, 3, 3, seed=1),
            "ba": normal(4, seed=2),
            "wb": normal(4, 4, 1, 1, seed=3),
            "bb": normal(4, seed=4),
            "wc": normal(4, 4, 1, 1, seed=5),
            "bc": normal(4, seed=6),
            "wd": normal(12, 8, 1, 1, seed=7),
            "bd": normal(12, seed=8),
            "we": normal(12, 6, seed=9),
            "be": normal(6, seed=10),
        },
    )


@pytest.mark.parametrize("batched", [True, False])
def test_the_emulated_network_gives_what_the_written_one_gives(batched: bool) -> None:
    model = residual()
    if not batched:
        model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    feeds = samples("x", (1, 4, 8, 8), 24)
    with context_of(model, feeds) as context:
        written = to_proto(rewrite(context.prepared, context.best))
        found = context.judge.start.outputs(context.best)
        batches = context.judge.start.batches
    assert (len(batches) < 8) == batched
    for batch, outputs in zip(batches, found, strict=True):
        expected = run(written, batch.tensors, optimize=False)
        for name, array in zip(("y", "z"), expected, strict=True):
            assert sqnr(array, outputs[name]) > 50


def test_the_rest_of_the_network_can_be_run_from_anywhere() -> None:
    with context_of(residual(), samples("x", (1, 4, 8, 8), 24)) as context:
        frontier, plan = context.judge.start, context.best
        whole = context.judge.errors(plan)
        while not frontier.done:
            frontier = frontier.advance(plan)
            found = context.judge.errors(plan, frontier)
            assert np.array_equal(found.noise, whole.noise)
        names = {name for batch in frontier.batches for name in batch.tensors}
        assert names == set(context.emulated.outputs.values())  # the rest has been dropped


def test_the_judge_measures_what_verification_measures() -> None:
    with context_of(DIGITS, [{"image": i} for i in digits_data()[0][:24, None]]) as context:
        found = context.judge.errors(context.best).sqnr
        written = to_proto(rewrite(context.prepared, context.best))
        feeds = [dict(b.tensors) for b in context.judge.start.batches]
    images = np.concatenate([f["image"] for f in feeds])
    expected = onnxq.compare(DIGITS, written, images).outputs[0].sqnr
    assert found == pytest.approx(expected, abs=0.3)


def test_the_standard_error_of_a_gain_is_that_of_the_jackknife() -> None:
    generator = rng(3)
    before = generator.gamma(2.0, size=40)
    after = before * generator.uniform(0.3, 0.9, 40)
    gain, error = Errors(after).gain_over(Errors(before))
    assert gain == pytest.approx(10 * np.log10(before.sum() / after.sum()))
    left_out = [
        10 * np.log10(np.delete(before, i).sum() / np.delete(after, i).sum()) for i in range(40)
    ]
    assert error == pytest.approx(np.sqrt(39 * np.var(left_out)), rel=0.05)


def test_the_typical_gain_counts_each_sample_once() -> None:
    before, after = np.array([1.0, 1.0, 1.0, 100.0, 0.0]), np.array([0.1, 0.1, 0.1, 100.0, 0.0])
    gain, error = Errors(after).typical_gain_over(Errors(before))
    assert gain == pytest.approx(7.5)
    assert error == pytest.approx(2.5)
    assert Errors(after).gain_over(Errors(before))[0] < 0.2
    assert Errors(after[:1]).typical_gain_over(Errors(before[:1])) == (0.0, float("inf"))


@pytest.mark.parametrize("count", [4, 5, 7, 24, 100, 1000])
def test_no_sample_is_both_fitted_to_and_judged_on(count: int) -> None:
    fit, judge = chosen_samples(count, 48, 24)
    assert len(fit) + len(judge) == min(count, 72)
    assert not set(fit) & set(judge)
    assert min(len(fit), len(judge)) >= 2
    assert len(judge) == pytest.approx(min(count, 72) / 3, abs=1)


def test_shrinking_drops_what_may_be_chance() -> None:
    differences = normal(50, 3, seed=1).astype(np.float64) * [1.0, 1.0, 0.0] + [0.0, 10.0, 2.0]
    found = shrunk_mean(differences)
    assert abs(found[0]) < abs(differences[:, 0].mean())
    assert found[1] == pytest.approx(10, rel=0.03)
    assert found[2] == 2.0


def shifted_network() -> tuple[onnx.ModelProto, list[Feed]]:
    """y = x0 * 1.27 + x1 * 0.004: the second weight rounds to 0, as the step is 0.01.

    x1 is 10 on average, so that the output loses 0.04.
    """
    model = build(
        "(float[N, 2, 1, 1] x) => (float[N, 1, 1, 1] y) { y = Conv(x, w, b) }",
        {"w": np.array([1.27, 0.004], np.float32).reshape(1, 2, 1, 1), "b": np.zeros(1, "f4")},
    )
    generator = rng(0)
    feeds: list[Feed] = []
    for _ in range(64):
        x = np.array([generator.uniform(-1, 1), generator.uniform(9.9, 10.1)], np.float32)
        feeds.append({"x": x.reshape(1, 2, 1, 1)})
    return model, feeds


def test_bias_correction_restores_a_mean_that_rounding_has_moved() -> None:
    model, feeds = shifted_network()
    with context_of(model, feeds) as context:
        bias.correct_biases(context, context.best)
        update = context.best.updates["b"]
        step = next(iter(context.best.biases.values())).scale.item()
    assert update.values is not None
    # besides the weight, the rounding of x0 moves the mean by what its own mean error is
    assert update.values[0] == pytest.approx(0.04, abs=0.01)
    assert step < 0.001
    entry = context.ledger.entries[0]
    assert entry.kept
    assert entry.after is not None
    assert entry.before is not None
    assert entry.after > entry.before


def test_the_corrected_bias_is_written() -> None:
    model, feeds = shifted_network()
    found = {}
    levels_here: tuple[Accuracy, ...] = ("none", "fast")
    for level in levels_here:
        written = onnxq.quantize_static(model, data=feeds, verify=False, accuracy=level)
        found[level] = np.mean([run(written, f)[0] - run(model, f)[0] for f in feeds])
    assert found["none"] < -0.02
    assert abs(found["fast"]) < abs(found["none"]) / 3


@pytest.mark.parametrize("shape", [(2,), (1, 1, 2)])
def test_what_is_added_behind_a_matmul_is_its_bias(shape: tuple[int, ...]) -> None:
    """As `shifted_network`, with two open dimensions: MatMul and Add do not become a Gemm."""
    model = build(
        "(float[B, S, 2] x) => (float[B, S, 2] y) { a = MatMul(x, w) y = Add(a, b) }",
        {
            "w": np.array([[1.27, 1.27], [0.004, -0.004]], np.float32),
            "b": np.array([3, 4], np.float32).reshape(shape),
        },
    )
    feeds = [{"x": feed["x"].reshape(1, 1, 2)} for feed in shifted_network()[1]]
    written = onnxq.quantize_static(model, data=feeds, verify=False)
    assert [node.op_type for node in written.graph.node].count("MatMul") == 1
    added = weights_of(written)["b"]
    assert added.shape == shape
    np.testing.assert_allclose(added.reshape(-1), [3.04, 3.96], atol=0.01)
    shift = np.mean([run(written, f)[0] - run(model, f)[0] for f in feeds], axis=(0, 1, 2))
    np.testing.assert_allclose(shift, 0, atol=0.01)


def test_an_add_that_is_not_a_bias_is_left_alone() -> None:
    """The sum is over positions, not channels; or the product is given as well."""
    for outputs, shape in (
        ("float[B, 2, 2] y", (2, 1)),
        ("float[B, 2, 2] y, float[B, 2, 2] a", (2,)),
    ):
        model = build(
            f"(float[B, 2, 2] x) => ({outputs}) {{ a = MatMul(x, w) y = Add(a, b) }}",
            {"w": normal(2, 2), "b": normal(*shape, seed=1)},
        )
        with context_of(model, samples("x", (1, 2, 2), 12)) as context:
            bias.correct_biases(context, context.best)
            assert "no weighted node has a bias" in str(context.ledger.entries[0])


def test_a_bias_that_others_read_is_left_alone() -> None:
    model = build(
        "(float[N, 2, 4, 4] x) => (float[N, 2, 4, 4] y) { a = Conv(x, w, b) y = Conv(a, v, b) }",
        {"w": normal(2, 2, 1, 1), "v": normal(2, 2, 1, 1, seed=1), "b": normal(2, seed=2)},
    )
    with context_of(model, samples("x", (1, 2, 4, 4), 12)) as context:
        bias.correct_biases(context, context.best)
        assert [str(e) for e in context.ledger.entries] == [
            "bias_correction: not kept: no weighted node has a bias of its own"
        ]


def spoil(context: Context, plan: Plan) -> None:
    """A pass that makes things worse."""
    name = plan.placement.biases[0].tensor
    tensor = context.prepared.ir.graph.initializers[name].const_value
    assert tensor is not None
    worse = WeightUpdate(values=np.full(tensor.shape.numpy(), 50, np.float32))
    updates = {**plan.updates, name: worse}
    context.offer("spoil", name, dataclasses.replace(plan, updates=updates), "a bias of 50")


def stop(_context: Context, _plan: Plan) -> None:
    raise KeyboardInterrupt


PASSES_HERE = {
    name: levels.Pass(name, run_pass, lambda _: 1.0)
    for name, run_pass in (("spoil", spoil), ("stop", stop))
}


def quantized(
    monkeypatch: pytest.MonkeyPatch, *names: str
) -> tuple[onnxq.Report, onnx.ModelProto, list[str]]:
    """Digits with these passes; the report, the model and what was said."""
    monkeypatch.setattr(levels, "PASSES", {**PASSES, **PASSES_HERE})
    level = dataclasses.replace(LEVELS["fast"], passes=names)
    monkeypatch.setattr(levels, "LEVELS", {**LEVELS, "fast": level})
    said: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "o.onnx")
        asked = StaticRecipe(target="onnxruntime-x86", verify=False)
        report = onnxq.quantize(DIGITS, path, asked, digits_data()[0][:40], tell=said.append)
        return report, onnx.load(path), said


def test_a_pass_that_makes_things_worse_is_taken_back(monkeypatch: pytest.MonkeyPatch) -> None:
    report, model, said = quantized(monkeypatch, "spoil")
    _, plain, _ = quantized(monkeypatch)
    assert weights_equal(model, plain)
    assert report.ledger is not None
    (entry,) = report.ledger.entries
    assert not entry.kept
    assert entry.after is not None
    assert entry.before is not None
    assert entry.after < entry.before - 10
    assert report.to_dict()["improvement"]["entries"][0]["kept"] is False
    assert said[0].startswith("accuracy fast: spoil: about ")
    assert said[1].endswith("0 of 1 changes kept")


def test_ctrl_c_keeps_the_best_until_then(monkeypatch: pytest.MonkeyPatch) -> None:
    report, model, _ = quantized(monkeypatch, bias.NAME, "stop", "spoil")
    _, corrected, _ = quantized(monkeypatch, bias.NAME)
    _, plain, _ = quantized(monkeypatch)
    assert weights_equal(model, corrected)
    assert not weights_equal(model, plain)
    assert report.ledger is not None
    assert report.ledger.interrupted
    assert any("this is the best until then" in note for note in report.notes)


def weights_equal(one: onnx.ModelProto, other: onnx.ModelProto) -> bool:
    a, b = weights_of(one), weights_of(other)
    return a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)


def test_without_samples_the_ledger_says_what_was_not_tried(tmp_path: Path) -> None:
    calibration = digits_data()[0]
    statistics = onnxq.calibrate(DIGITS, calibration[:40])
    out = tmp_path / "o.onnx"
    reports = [
        onnxq.quantize_static(DIGITS, out, statistics=statistics),
        onnxq.quantize_static(DIGITS, out, calibration[:3], verify=False),
        onnxq.quantize_static(DIGITS, out, calibration[:3], accuracy="none"),
    ]
    words = [[str(e) for e in r.ledger.entries] for r in reports if r.ledger is not None]
    assert words == [
        ["bias_correction: not kept: it needs samples, and only statistics were given"],
        ["bias_correction: not kept: it needs at least 4 samples to calibrate with, there are 3"],
        [],
    ]


def test_passes_can_be_asked_for_by_name() -> None:
    assert set(recipe.PASSES) == set(PASSES)
    assert set(recipe.ACCURACIES) == set(LEVELS)
    asked = StaticRecipe(accuracy="none", passes=("bias_correction",))
    assert asked.passes == ("bias_correction",)
    with pytest.raises(onnxq.OptionError, match=r"passes must be one of .*bias_correction"):
        StaticRecipe(passes=("rouding",))


def test_a_float_bias_is_corrected_too() -> None:
    # TensorRT takes biases in float
    model, feeds = shifted_network()
    found = []
    levels_here: tuple[Accuracy, ...] = ("none", "fast")
    for level in levels_here:
        recipe_of = StaticRecipe(target="tensorrt", accuracy=level, verify=False)
        written = onnxq.quantize(model, None, recipe_of, feeds)
        found.append(abs(np.mean([run(written, f)[0] - run(model, f)[0] for f in feeds])))
    assert found[1] < found[0] / 3


def test_same_samples_same_bytes() -> None:
    feeds = samples("x", (1, 4, 8, 8), 24)
    one, other = (
        onnxq.quantize_static(residual(), data=feeds, verify=False).SerializeToString()
        for _ in range(2)
    )
    assert one == other
