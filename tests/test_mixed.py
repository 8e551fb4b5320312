"""Mixed precision: the ranking of nodes, the fewest left float for a target, `analyze`."""

from __future__ import annotations

import gc
import json
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from typer.testing import CliRunner

import onnxq
from onnxq import runtime
from onnxq.analysis import calibrated
from onnxq.cli.app import app
from onnxq.errors import DataError, OptionError
from onnxq.improve import Ledger, emulated
from onnxq.improve.context import Context, chosen_samples
from onnxq.improve.judge import Judge
from onnxq.improve.macs import macs_by_node
from onnxq.improve.mixed.goals import Goal, Meter, evaluation_function
from onnxq.improve.mixed.search import Choice, Search
from onnxq.improve.mixed.sensitivity import Sensitivity, sensitivities
from onnxq.improve.mixed.stage import ranking_reference
from onnxq.improve.mixed.variants import Unit, Variants, units_of
from onnxq.measure.macs import Sizes
from onnxq.model import load
from onnxq.parametrize import parametrize
from onnxq.pipeline import Placer, place, prepare_for
from onnxq.placement.paying import estimated_gain
from onnxq.plans import Placement
from onnxq.recipe import Rule, StaticRecipe
from onnxq.recipe_file import recipe_from_dict
from onnxq.targets import target_of

from .models import Feed, build, normal, run, samples, sqnr
from .test_improve import residual

RECIPE = StaticRecipe(target="onnxruntime-x86", accuracy="none").effective()


def named(model: onnx.ModelProto, **names: str) -> onnx.ModelProto:
    """With names for the nodes that give these tensors."""
    for node in model.graph.node:
        node.name = names.get(node.output[0], "")
    return model


def outliers() -> onnx.ModelProto:
    """One input has a channel of +-1000 with weights of 0: 8 bits leave nothing of the others.

    `bad` reads it; nothing else is wrong.
    """
    weight = normal(8, 4, seed=4)
    weight[0] = 0
    model = build(
        """(float[N, 32] x, float[N, 8] o) => (float[N, 4] y) {
            a = Gemm(x, wa, ba)
            r = Relu(a)
            b = Gemm(r, wb, bb)
            d = Gemm(o, wd, bd)
            y = Add(b, d)
        }""",
        {
            "wa": normal(32, 32, seed=1),
            "ba": normal(32, seed=2),
            "wb": normal(32, 4, seed=3) / 8,
            "bb": normal(4, seed=5),
            "wd": weight,
            "bd": normal(4, seed=6),
        },
    )
    return named(model, a="first", b="second", d="bad")


def outlier_feeds(count: int = 24) -> list[Feed]:
    found: list[Feed] = []
    for i in range(count):
        o = normal(1, 8, seed=100 + i) * 3
        o[:, 0] = 1000 if i % 2 else -1000
        found.append({"x": normal(1, 32, seed=200 + i), "o": o})
    return found


class Given:
    """All that a search works with, on a small network."""

    def __init__(self, context: Context, variants: Variants, units: list[Unit]) -> None:
        self.context, self.variants, self.units = context, variants, units
        self.meter = Meter(context.judge, context.judged)

    def choice(self, *units: Unit) -> Choice:
        variant = self.variants.left(units)
        return Choice(units, variant, self.meter(variant))

    def unit(self, name: str) -> Unit:
        return next(u for u in self.units if u.name == name)


@contextmanager
def given(model: onnx.ModelProto, feeds: list[Feed]) -> Iterator[Given]:
    prepared = prepare_for(load(model), RECIPE)
    placement = place(prepared, RECIPE)
    opened, calibration = calibrated(prepared, placement, feeds, RECIPE)
    plan = parametrize(prepared, placement, calibration)
    chosen = chosen_samples(len(opened), 16, 8)
    with Context(prepared, calibration, opened, plan, Ledger("none"), chosen) as context:
        units = units_of(prepared, placement, macs_by_node(prepared, feeds[0]))
        place_with = Placer(prepared, RECIPE)
        yield Given(context, Variants(prepared, calibration, plan, units, place_with), units)


def quantized(tmp_path: Path, **options: object) -> onnxq.Report:
    settings = {"accuracy": "none", "target": "onnxruntime-x86", **options}
    return onnxq.quantize_static(  # type: ignore[no-any-return, call-overload]  # any of its options
        outliers(), tmp_path / "q.onnx", outlier_feeds(32), **settings
    )


def names(report: onnxq.Report) -> list[str]:
    assert report.mixed is not None
    return [node.node for node in report.mixed.nodes]


def test_macs() -> None:
    model = build(
        """(float[N, 4, 8, 8] x, float[N, 3, 5] m) => (float[N, 6, 4, 4] y, float[N, 2, 9, 9] t,
                                                      float[N, 3, 7] z, float[N, 3, 3] s) {
            y = Conv<strides = [2, 2], pads = [1, 1, 1, 1], group = 2>(x, wy)
            t = ConvTranspose(x, wt)
            z = MatMul(m, wz)
            k = Transpose<perm = [0, 2, 1]>(m)
            s = MatMul(m, k)
        }""",
        {"wy": normal(6, 2, 3, 3), "wt": normal(4, 2, 2, 2), "wz": normal(5, 7)},
    )
    named(model, y="conv", t="up", z="fc", s="scores")
    feed = {"x": normal(2, 4, 8, 8), "m": normal(2, 3, 5)}
    found = macs_by_node(prepare_for(load(model), RECIPE), feed)
    assert found == {
        "conv": 2 * 6 * 4 * 4 * 2 * 9,
        "up": 2 * 4 * 8 * 8 * 2 * 4,
        "fc": 2 * 3 * 7 * 5,
        "scores": 2 * 3 * 3 * 5,
    }


@pytest.mark.parametrize("network", ["residual", "outliers"])
def test_what_begins_in_the_middle_gives_what_the_whole_gives(network: str) -> None:
    model, feeds = {
        "residual": (residual(), samples("x", (1, 4, 8, 8), 24)),
        "outliers": (outliers(), outlier_feeds()),
    }[network]
    with given(model, feeds) as g:
        reference = ranking_reference(g.context)
        judge, batches = Judge(g.context.emulated, reference), reference.batches
        found = sensitivities(g.variants, reference, both=True)
        assert {s.unit for s in found} == set(g.units)
        for s in found:
            for variant, expected in (
                (g.variants.only(s.unit), s.quantized),
                (g.variants.left([s.unit]), s.floating),
            ):
                if expected is not None:
                    whole = judge.errors_of(variant.start(batches).outputs(variant.plan))
                    assert whole.sqnr == expected
        assert any(s.quantized is not None and s.floating != s.quantized for s in found)


def test_a_variant_is_what_a_recipe_with_its_rules_gives() -> None:
    feeds = samples("x", (1, 4, 8, 8), 24)
    with given(residual(), feeds) as g:
        unit = g.units[0]
        rules = g.variants.rules([unit])
        variant = g.variants.left([unit])
        written = onnxq.quantize(
            residual(),
            None,
            StaticRecipe(
                target="onnxruntime-x86", accuracy="none", verify=False, rules=tuple(rules)
            ),
            feeds,
        )
        batches = g.context.judge.start.batches
        for batch, outputs in zip(
            batches, variant.start(batches).outputs(variant.plan), strict=True
        ):
            expected = run(written, batch.tensors, optimize=False)
            for name, array in zip(("y", "z"), expected, strict=True):
                assert sqnr(array, outputs[name]) > 50


def test_the_layer_that_int8_destroys_is_first() -> None:
    found = onnxq.analyze(outliers(), outlier_feeds(), recipe=RECIPE)
    assert [n.node for n in found.nodes] == ["bad", *(n.node for n in found.nodes[1:])]
    worst, second = found.nodes[:2]
    assert worst.alone_quantized is not None
    assert second.alone_quantized is not None
    assert worst.alone_quantized < 10 < 25 < second.alone_quantized
    assert second.alone_float - found.sqnr < 1 < 10 < worst.alone_float - found.sqnr
    assert worst.mac_share == pytest.approx(8 * 4 / (8 * 4 + 32 * 32 + 32 * 4))
    assert found.mac_share == 1
    json.dumps(found.to_dict())


def test_only_the_destroyed_layer_is_left_float_for_a_target(tmp_path: Path) -> None:
    report = quantized(tmp_path, target_sqnr=25)
    assert names(report) == ["bad"]
    assert report.mixed is not None
    assert report.mixed.reached
    assert report.mixed.before.sqnr < 10
    assert report.mixed.after.sqnr >= 25
    assert report.operators == {"Gemm": 2}
    reasons = {skip.name: skip.reason for skip in report.skips}
    assert "mixed precision: in int8 it alone gives" in reasons["bad"]
    entries = [e for e in report.ledger.entries if e.step == "mixed_precision"]  # type: ignore[union-attr]  # static mode has one
    assert any(e.kept for e in entries)
    json.dumps(report.to_dict())


def test_the_choice_can_be_repeated_without_measuring(tmp_path: Path) -> None:
    report = quantized(tmp_path, target_sqnr=25)
    recipe = recipe_from_dict(report.recipe)
    again = onnxq.quantize(outliers(), tmp_path / "again.onnx", recipe, outlier_feeds(32))
    assert again.mixed is None
    one, other = (onnx.load(tmp_path / name).graph for name in ("q.onnx", "again.onnx"))
    assert one == other


def test_a_target_that_holds_already_leaves_nothing_float(tmp_path: Path) -> None:
    report = quantized(tmp_path, target_sqnr=1)
    assert names(report) == []
    assert report.mixed is not None
    assert report.mixed.reached
    assert report.operators == {"Gemm": 3}


def test_what_is_not_needed_is_moved_back() -> None:
    with given(outliers(), outlier_feeds()) as g:
        order = [g.unit("first"), g.unit("bad")]  # a wrong ranking
        ranking = [Sensitivity(u, 10.0, 10.0, n) for u, n in zip(order, (0.5, 0.4), strict=True)]
        ledger = Ledger("none")
        goal = Goal(sqnr=25)
        search = Search(g.variants, ranking, g.meter, goal, ledger, g.choice())
        search.run()
        assert [u.name for u in search.best.units] == ["bad"]
        moved = [e for e in ledger.entries if e.node == "first"]
        assert [e.kept for e in moved] == [True]


def test_a_target_is_of_the_worst_output() -> None:
    model = outliers()
    model.graph.output.append(onnx.helper.make_tensor_value_info("b", 1, ["N", 4]))
    with given(model, outlier_feeds()) as g:
        score = g.meter(g.variants.base)
        assert score.sqnr < 10
        assert score.errors.sqnr > score.sqnr + 2  # b is as good as float
        assert not Goal(sqnr=score.errors.sqnr).holds(score)


def test_a_budget_is_kept() -> None:
    with given(outliers(), outlier_feeds()) as g:
        ranking = [
            Sensitivity(g.unit(name), 10.0, 10.0, noise)
            for name, noise in (("bad", 0.5), ("first", 0.4), ("second", 0.3))
        ]
        search = Search(
            g.variants, ranking, g.meter, Goal(sqnr=90, budget=0.2), Ledger("none"), g.choice()
        )
        search.run()
        assert not search.reached
        assert {u.name for u in search.best.units} <= {"bad", "second"}
        assert "bad" in {u.name for u in search.best.units}


def small_convs() -> onnx.ModelProto:
    """Three Convs of few products in a row: two islands of them would lose time in int8."""
    model = build(
        """(float[N, 8, 32, 32] x) => (float[N, 8, 32, 32] y) {
            a = Conv(x, wa) b = Conv(a, wb) y = Conv(b, wc) }""",
        {f"w{name}": normal(8, 8, 1, 1, seed=i) for i, name in enumerate("abc")},
    )
    return named(model, a="first", b="second", y="third")


def in_int8(placement: Placement) -> set[str]:
    return {use.node for weight in placement.weights for use in weight.uses}


def test_a_variant_s_sessions_go_when_it_has_been_measured(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made: list[weakref.ref[ort.InferenceSession]] = []
    real = runtime.session

    @contextmanager
    def session(model: bytes, options: ort.SessionOptions) -> Iterator[ort.InferenceSession]:
        with real(model, options) as active:
            made.append(weakref.ref(active))
            yield active

    def alive() -> int:
        return sum(reference() is not None for reference in made)

    monkeypatch.setattr(emulated, "session", session)
    with given(outliers(), outlier_feeds()) as g:
        g.context.emulated.forget()
        parts = len(g.variants.base.emulated.parts)
        gc.disable()
        try:
            ranking = sensitivities(g.variants, ranking_reference(g.context), both=True)
            assert len(made) > 2 * parts  # more than those of the float and of the int8 network
            assert alive() <= 2 * parts
            goal = Goal(sqnr=60)  # cannot be reached
            Search(g.variants, ranking, g.meter, goal, Ledger("none"), g.choice()).run()
            assert alive() <= 2 * parts
            g.variants.forget()
            assert alive() == 0
        finally:
            gc.enable()


def test_only_what_is_asked_for_is_left_float() -> None:
    with given(small_convs(), samples("x", (1, 8, 32, 32), 24)) as g:
        unit = g.unit("second")
        assert in_int8(place_with_rules(g.variants.rules([unit]))) == set()  # by the costs
        variant = g.variants.left([unit])
        assert in_int8(variant.plan.placement) == {"first", "third"}
        assert place_with_rules(variant.rules) == variant.plan.placement


def place_with_rules(rules: Sequence[Rule]) -> Placement:
    prepared = prepare_for(load(small_convs()), RECIPE)
    return Placer(prepared, RECIPE)(rules)


def always(_: object) -> bool:
    return True


def never(_: object) -> bool:
    return False


def test_time_is_not_given_for_what_is_optional() -> None:
    goal = Goal(sqnr=25, budget=1.0, optional=True)
    with given(outliers(), outlier_feeds()) as g:
        ranking = [Sensitivity(g.unit("bad"), 10.0, 10.0, 0.5)]
        for pays in (True, False):
            ledger = Ledger("none")
            search = Search(
                g.variants, ranking, g.meter, goal, ledger, g.choice(), [never, always][pays]
            )
            search.run()
            assert bool(search.best.units) is pays
            assert any("cost too much" in e.why for e in ledger.entries) is not pays


def test_the_estimated_gain_is_the_sum_over_islands() -> None:
    """By hand: 8 products an output for each Conv, and what is converted around the islands."""
    costs = target_of("onnxruntime-x86").costs
    assert costs is not None
    prepared = prepare_for(load(small_convs()), RECIPE)
    sizes, size = Sizes(prepared.ir), 8 * 32 * 32
    conv, border = size * (8 * costs.product - costs.element), size * costs.conversion
    whole = estimated_gain(prepared, place(prepared, RECIPE), costs, sizes)
    assert whole == pytest.approx((3 * conv - 2 * border) * 1e-9)
    with given(small_convs(), samples("x", (1, 8, 32, 32), 24)) as g:
        split = g.variants.left([g.unit("second")]).plan.placement
        found = estimated_gain(prepared, split, costs, sizes)
        assert found == pytest.approx((2 * conv - 4 * border) * 1e-9)
    assert estimated_gain(prepared, Placement(()), costs, sizes) == 0


def test_a_network_that_collapses_is_saved_at_balanced(tmp_path: Path) -> None:
    report = quantized(tmp_path, accuracy="balanced")
    assert names(report) == ["bad"]
    assert report.mixed is not None
    assert report.mixed.mac_share < 0.1
    assert report.mixed.after.sqnr >= 22  # 2 dB for samples that did not calibrate
    assert report.ledger is not None
    entries = list(report.ledger.entries)
    while "mixed_precision" in {entry.step for entry in entries}:
        entries.pop(0)
    # the passes run again, but none that would begin with another float network
    assert {e.step for e in entries if e.after is not None} == {"bias_correction", "rounding"}
    anew = {e.step for e in entries if "starts anew" in e.why}
    assert anew == {"smoothquant", "equalization"}
    unchanged = quantized(tmp_path, accuracy="balanced", mixed_precision=False)
    assert unchanged.operators == {"Gemm": 3}


def test_an_evaluation_function(tmp_path: Path) -> None:
    feeds = outlier_feeds(8)
    expected = [run(outliers(), feed)[0] for feed in feeds]
    paths = []

    def score(path: str) -> float:
        paths.append(path)
        found = [run(onnx.load(path), feed)[0] for feed in feeds]
        return -float(np.square(np.subtract(expected, found)).mean())

    before = score(str(quantized(tmp_path).output))
    report = quantized(tmp_path, evaluate=score, max_drop=1.0)
    assert before < -5
    assert names(report) == ["bad"]
    assert score(str(tmp_path / "q.onnx")) > -1
    assert len(set(paths)) > 3


def test_what_cannot_be_reached_is_said_and_the_best_is_written(tmp_path: Path) -> None:
    calls = []

    def never(path: str) -> float:
        calls.append(path)
        return 1.0 if len(calls) == 2 else 0.0  # the second is the float model

    report = quantized(tmp_path, evaluate=never, max_drop=0.5)
    assert report.mixed is not None
    assert not report.mixed.reached
    assert "which was not reached" in str(report.mixed)
    assert (tmp_path / "q.onnx").exists()


def test_an_interrupt_keeps_the_best(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(search: Search, order: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Search, "_shorten", stop)
    report = quantized(tmp_path, target_sqnr=25)
    assert report.ledger is not None
    assert report.ledger.interrupted
    assert set(names(report)) == {"first", "second", "bad"}  # the first that held


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("score", "takes MODULE:FUNCTION"),
        ("no_such_module:score", "there is no module 'no_such_module': run the command in the"),
        ("json:lods", "json has no function 'lods'.*loads"),
    ],
)
def test_an_unknown_evaluation_function_is_an_error_with_the_remedy(text: str, words: str) -> None:
    with pytest.raises(OptionError, match=words):
        evaluation_function(text)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"evaluate": "json:loads"}, "evaluate needs max_drop"),
        ({"evaluate": lambda _: 1.0}, "evaluate needs max_drop"),
        ({"max_drop": 1.0}, "max_drop is of an evaluation function"),
        ({"max_drop": -1.0, "evaluate": "json:loads"}, "at least 0"),
        ({"target_agreement": 101.0}, "up to 100"),
        ({"target_sqnr": 20.0, "mixed_precision": False}, "leave out mixed_precision"),
        ({"evaluate": lambda _: "good", "max_drop": 1.0}, "gave 'good'.*has to return a number"),
    ],
)
def test_a_wrong_goal_is_an_error(tmp_path: Path, options: dict[str, object], words: str) -> None:
    with pytest.raises(OptionError, match=words):
        quantized(tmp_path, **options)
    assert not (tmp_path / "q.onnx").exists()


def test_a_target_needs_samples_to_measure_it_on(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="fewer than 4 samples"):
        onnxq.quantize_static(outliers(), tmp_path / "q.onnx", outlier_feeds(3), target_sqnr=20)
    with pytest.raises(DataError, match="at least 4 samples"):
        onnxq.analyze(outliers(), outlier_feeds(3))


def test_the_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    onnx.save(outliers(), tmp_path / "m.onnx")
    feeds = outlier_feeds(32)
    joined = {name: np.concatenate([feed[name] for feed in feeds]) for name in ("x", "o")}
    np.savez(tmp_path / "data.npz", **joined)  # type: ignore[arg-type]  # arrays by name
    (tmp_path / "score.py").write_text("def score(path):\n    return 1.0\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))  # and taken away again

    def call(*words: str) -> str:
        done = CliRunner().invoke(app, [*words, "--data", "data.npz"], catch_exceptions=False)
        assert done.exit_code == 0
        return done.stdout

    assert json.loads(call("analyze", "m.onnx", "--json"))["nodes"][0]["node"] == "bad"
    call("analyze", "m.onnx", "--top", "1")
    static = ("static", "m.onnx", "-o", "q.onnx", "--accuracy", "none", "--json")
    found = json.loads(call(*static, "--target-sqnr", "25"))["mixed_precision"]
    assert [node["node"] for node in found["nodes"]] == ["bad"]
    found = json.loads(call(*static, "--evaluate", "score:score", "--max-drop", "0"))
    assert found["mixed_precision"]["nodes"] == []
