"""Range choice: each tensor's method by what the outputs lose, and `--method auto`."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx
import pytest

import onnxq
from onnxq.calibration import Calibration
from onnxq.data.samples import input_specs, open_samples
from onnxq.improve import Ledger, bias, improve, ranges
from onnxq.improve.alone import Alone, Trial
from onnxq.improve.context import Context, chosen_samples
from onnxq.model import load
from onnxq.numerics.quantize import dequantize, quantize
from onnxq.numerics.ranges import METHODS
from onnxq.parametrize import parametrize
from onnxq.pipeline import place, prepare_for
from onnxq.recipe import MethodOptions, Rule, StaticRecipe
from onnxq.recipe_file import load_recipe, recipe_to_toml

from .models import Feed, build, normal, rng, run, weights_of

RECIPE = StaticRecipe(target="onnxruntime-x86", isa="vnni", method="auto", accuracy="none")
SHAPE = (1, 4, 32, 32)


def two_outliers() -> onnx.ModelProto:
    """Channel 0 of both inputs has rare outliers: `y` ignores those of a, `z` needs those of b."""
    ignoring, needing = normal(4, 4, 1, 1, seed=1), normal(4, 4, 1, 1, seed=2)
    ignoring[:, 0], needing[:, 0] = 0.0, 1.0
    return build(
        f"""(float[N, {", ".join(map(str, SHAPE[1:]))}] a, float[N, 4, 32, 32] b)
            => (float[N, 4, 32, 32] y, float[N, 4, 32, 32] z) {{
            y = Conv(a, wy, by)
            z = Conv(b, wz, bz)
        }}""",
        {"wy": ignoring, "wz": needing, "by": normal(4, seed=3), "bz": normal(4, seed=4)},
    )


def feeds(count: int, seed: int) -> list[Feed]:
    """In every third sample both have an outlier: less than 0.01 % of the values."""
    generator = rng(seed)
    found: list[Feed] = []
    for i in range(count):
        feed = {name: generator.standard_normal(SHAPE).astype(np.float32) for name in "ab"}
        if i % 3 == 1:
            for name, size in (("a", 200.0), ("b", 40.0)):
                row, column = generator.integers(0, 32, 2)
                feed[name][0, 0, row, column] = size * generator.uniform(0.8, 1.0)
        found.append(feed)
    return found


def noise(model: onnx.ModelProto, written: onnx.ModelProto, data: list[Feed]) -> float:
    """Of both outputs together, as the judge counts it."""
    total, signal = np.zeros(2), np.zeros(2)
    for feed in data:
        for i, (r, q) in enumerate(zip(run(model, feed), run(written, feed), strict=True)):
            total[i] += np.square(r - q).sum()
            signal[i] += np.square(r).sum()
    return float((total / signal).mean())


@contextmanager
def context_of(recipe: StaticRecipe = RECIPE) -> Iterator[Context]:
    model, data = two_outliers(), feeds(48, seed=1)
    source, recipe = load(model), recipe.effective()
    prepared, calibration = prepare_for(source, recipe), onnxq.calibrate(model, data)
    plan = parametrize(prepared, place(prepared, recipe), calibration)
    opened, chosen = open_samples(data, input_specs(prepared.ir)), chosen_samples(len(data), 24, 16)
    with Context(prepared, calibration, opened, plan, Ledger("none"), chosen) as context:
        yield context


def methods(report: onnxq.Report) -> dict[str, str]:
    """Tensor -> what was kept for it."""
    assert report.ledger is not None
    entries = [e for e in report.ledger.entries if e.step == ranges.NAME and e.kept and e.node]
    return {e.node or "": e.why for e in entries if e.measure == "error"}


def quantized(tmp_path: Path, **changes: object) -> onnxq.Report:
    recipe = dataclasses.replace(RECIPE, verify=False, **changes)  # type: ignore[arg-type]  # by name
    return onnxq.quantize(two_outliers(), tmp_path / "q.onnx", recipe, feeds(48, seed=1))


def test_a_choice_for_each_tensor_beats_every_single_method(tmp_path: Path) -> None:
    model, fresh = two_outliers(), feeds(24, seed=2)
    found = {}
    for method in METHODS:
        quantized(tmp_path, method=method)
        found[method] = noise(model, onnx.load(str(tmp_path / "q.onnx")), fresh)
    best = min(found[method] for method in METHODS if method != "auto")
    assert found["auto"] < best / 3, found


def test_the_range_that_the_outputs_need_is_found_from_a_clipping_start(tmp_path: Path) -> None:
    found = methods(quantized(tmp_path, method="percentile", passes=("range_choice",)))
    assert list(found) == ["b"]
    assert found["b"].startswith("by mse in place of percentile 0.9999: of the outputs")


def test_the_ledger_tells_what_was_chosen(tmp_path: Path) -> None:
    report = quantized(tmp_path)
    found = methods(report)
    assert list(found) == ["a"]
    assert found["a"].startswith("by percentile 0.9999 in place of mse")
    assert report.settings["method"] == report.recipe["method"] == "auto"
    assert report.ledger is not None
    assert report.ledger.kept == [ranges.NAME]
    assert report.ledger.estimate


def test_what_a_rule_sets_is_left_alone(tmp_path: Path) -> None:
    pinned = quantized(tmp_path, rules=(Rule(nodes=("a",), method="min_max"),))
    assert methods(pinned) == {}
    wide = weights_of(str(tmp_path / "q.onnx"))["a_scale"]
    assert wide > 0.5
    asked = quantized(tmp_path, method="percentile", rules=(Rule(nodes=("a",), method="auto"),))
    assert list(methods(asked)) == ["a"]  # and not b, which loses most, but of which it is not said


def test_statistics_alone_fall_back_and_say_so() -> None:
    model = two_outliers()
    statistics = onnxq.calibrate(model, feeds(12, seed=1))
    recipe = dataclasses.replace(RECIPE, accuracy="fast")
    plain = onnxq.quantize(
        model, None, dataclasses.replace(recipe, method="mse"), statistics=statistics
    )
    found = onnxq.quantize(model, None, recipe, statistics=statistics)
    assert all(np.array_equal(v, weights_of(found)[k]) for k, v in weights_of(plain).items())


def test_the_report_says_that_auto_fell_back(tmp_path: Path) -> None:
    model = two_outliers()
    statistics = onnxq.calibrate(model, feeds(12, seed=1))
    report = onnxq.quantize(model, tmp_path / "q.onnx", RECIPE, statistics=statistics)
    words = (
        "not done: range_choice: it needs samples, and only statistics were given; auto is mse then"
    )
    assert words in report.notes
    few = onnxq.quantize(model, tmp_path / "q.onnx", RECIPE, feeds(3, seed=1))
    assert any("at least 4 samples" in note and "auto is mse then" in note for note in few.notes)


def test_ranges_without_histograms_are_listed(tmp_path: Path) -> None:
    report = quantized(tmp_path, method="min_max", passes=("range_choice",))
    assert report.ledger is not None
    entries = [e for e in report.ledger.entries if e.step == ranges.NAME]
    assert [e.why for e in entries] == [ranges.NO_HISTOGRAM]


def test_saved_statistics_serve_with_samples(tmp_path: Path) -> None:
    with context_of() as context:
        context.calibration.save(tmp_path / "s")
        saved = Calibration.load(tmp_path / "s")
        given = context.prepared, context.samples, context.best
    prepared, samples, plan = given
    found = improve(prepared, saved, samples, plan, "none")
    assert found.ledger.kept == [ranges.NAME]
    chosen = {a.tensor: a.method for a in found.plan.placement.activations}
    assert chosen["a"] == MethodOptions("percentile", 0.9999)
    assert float(found.plan.params["a"].scale) < float(plan.params["a"].scale) / 10
    for placed in found.plan.placement.biases:  # which have to follow the scale of the input
        s_x = found.plan.params[placed.activation].scale
        s_w = found.plan.params[placed.weight].scale
        assert np.array_equal(found.plan.biases[placed.use].scale, s_x * s_w)


def test_a_tensor_alone_makes_the_noise_that_it_makes() -> None:
    model = two_outliers()
    with context_of() as context:
        params = context.best.params["b"]
        trial = Trial("b", MethodOptions(), {MethodOptions(): params})
        [(_, errors)] = Alone(context, context.best.params).errors([trial], 1000)
        total = np.zeros(2)
        signal = np.zeros(2)
        for batch in context.fit.batches:
            given = dict(batch.tensors)
            rounded = {**given, "b": dequantize(quantize(given["b"], params), params)}
            pairs = zip(run(model, given), run(model, rounded), strict=True)
            for i, (r, q) in enumerate(pairs):
                total[i] += np.square(r - q).sum()
                signal[i] += np.square(r).sum()
    assert errors[MethodOptions()].noise.sum() == pytest.approx((total / signal).mean(), rel=1e-4)


def test_it_comes_before_what_is_fitted_to_the_ranges() -> None:
    with context_of() as context:
        later, corrected = bias.sequentially(context, context.best)
        assert corrected
        ranges.choose_ranges(context, later)
        assert [e.why for e in context.ledger.entries] == [ranges.LATE]


def test_what_is_joined_is_chosen_for_by_its_parts() -> None:
    """A Concat of two tensors: its range is the union of theirs, whichever is chosen."""
    keeping = np.eye(4, dtype=np.float32)[:, :, None, None]
    model = build(
        """(float[N, 4, 32, 32] a, float[N, 4, 32, 32] b) => (float[N, 4, 32, 32] y) {
            p = Conv(a, wp)
            q = Conv(b, wq)
            c = Concat<axis = 1>(p, q)
            y = Conv(c, w)
        }""",
        {
            "wp": keeping,
            "wq": keeping,
            "w": normal(4, 8, 1, 1, seed=1)
            * np.array([0, 1, 1, 1, 0, 1, 1, 1], np.float32)[:, None, None],
        },
    )
    recipe = dataclasses.replace(RECIPE, verify=False)
    scales = {}
    for method in ("mse", "auto"):
        changed = dataclasses.replace(recipe, method=method)
        weights = weights_of(onnxq.quantize(model, None, changed, feeds(48, seed=1)))
        scales[method] = {name: float(weights[f"{name}_scale"]) for name in "abpqc"}
        widest = max(scales[method]["p"], scales[method]["q"])
        assert widest <= scales[method]["c"] < 1.05 * widest
    for name in "apc":
        assert scales["auto"][name] < scales["mse"][name] / 4


def test_auto_survives_a_recipe_and_the_command_line(tmp_path: Path) -> None:
    (tmp_path / "r.toml").write_text(recipe_to_toml(RECIPE.effective()))
    assert load_recipe(tmp_path / "r.toml") == RECIPE.effective()
    onnx.save(two_outliers(), tmp_path / "m.onnx")
    data = feeds(48, seed=1)
    a, b = (np.concatenate([feed[name] for feed in data]) for name in "ab")
    np.savez(tmp_path / "d.npz", a=a, b=b)
    command = [sys.executable, "-m", "onnxq", "static", "m.onnx", "-o", "q.onnx", "--data", "d.npz"]
    asked = [
        "--method",
        "auto",
        "--accuracy",
        "none",
        "--no-verify",
        "--json",
        "--report",
        "r.json",
    ]
    done = subprocess.run(
        [*command, *asked], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "r.json").read_text())
    kept = [e["node"] for e in report["improvement"]["entries"] if e["kept"]]
    assert "a" in kept
    (tmp_path / "again.json").write_text(json.dumps(report["recipe"]))
    again = onnxq.quantize(tmp_path / "m.onnx", None, tmp_path / "again.json", tmp_path / "d.npz")
    assert weights_of(again)["a_scale"] == weights_of(tmp_path / "q.onnx")["a_scale"]


def test_a_plan_says_where_auto_starts() -> None:
    text = str(onnxq.plan(two_outliers(), RECIPE))
    assert "by mse, which auto goes on from" in text
