"""What pays: MACs on integers, islands that are too small for int8, and tuning by time."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import pytest
from typer.testing import CliRunner

import onnxq
from onnxq import tune
from onnxq.cli.app import app
from onnxq.errors import OptionError
from onnxq.measure.macs import Sizes, integer_share
from onnxq.model import load
from onnxq.pipeline import place, prepare_for
from onnxq.placement.islands import islands
from onnxq.plans import Plan
from onnxq.recipe import Rule, StaticRecipe
from onnxq.recipe_file import recipe_from_dict
from onnxq.report import Report
from onnxq.targets import default_target
from tests.models import build, normal, optimized_ops, samples

X86 = "onnxruntime-x86"
HERE = default_target().name
PAD = "<pads=[1,1,1,1]>"


def report_of(
    model: onnx.ModelProto, path: Path, shape: tuple[int, ...], **options: object
) -> Report:
    feeds = samples("x", shape, 4)
    settings = {"target": HERE, "verify": False, "method": "min_max", **options}
    return onnxq.quantize_static(model, path, feeds, **settings)  # type: ignore[call-overload, no-any-return]  # a table of options


# MACs


def test_macs_of_each_op_by_hand() -> None:
    model = build(
        "(float[N,4,6,6] x) => (float[N,3] y) {"
        " a = Conv<group=2, pads=[1,1,1,1]>(x, w) t = ConvTranspose(a, v)"
        " f = Flatten(t) m = MatMul(f, k) y = Gemm<transA=0, transB=1>(m, g) }",
        {
            "w": normal(8, 2, 3, 3),
            "v": normal(8, 5, 2, 2),
            "k": normal(5 * 7 * 7, 10),
            "g": normal(3, 10),
        },
    )
    expected = {
        "n_a": (8 * 6 * 6) * (2 * 3 * 3),
        "n_t": (8 * 6 * 6) * (5 * 2 * 2),
        "n_m": 10 * 5 * 7 * 7,
        "n_y": 3 * 10,
    }
    source = load(model).ir
    found = integer_share(source, {"n_a"})
    assert found.total == sum(expected.values())
    assert found.integer == expected["n_a"]
    assert found.share == pytest.approx(expected["n_a"] / found.total)
    assert found.note is None


def test_a_batch_without_a_number_is_one_behind_a_reshape_too() -> None:
    model = build(
        "(float[N,5,8] x) => (float[M,5,4] y) { r = Reshape(x, flat) m = MatMul(r, w)"
        " y = Reshape(m, back) }",
        {"flat": np.array([-1, 8]), "back": np.array([-1, 5, 4]), "w": normal(8, 4)},
    )
    found = integer_share(load(model).ir, ())
    assert (found.total, found.share, found.note) == (5 * 8 * 4, 0.0, None)


def test_other_dimensions_without_a_number_are_named() -> None:
    model = build(
        "(float[N,4,H,W] x) => (float[N,8,H,W] y) { y = Conv<pads=[1,1,1,1]>(x, w) }",
        {"w": normal(8, 4, 3, 3)},
    )
    found = integer_share(load(model).ir, {"n_y"})
    assert found.share == 1.0
    assert "count as 1" in (found.note or "")
    assert "H" in found.open


def test_recurrent_weights_count_each_step() -> None:
    model = build(
        "(float[5,2,8] x) => (float[5,1,2,6] y) { y = LSTM<hidden_size=6>(x, w, r) }",
        {"w": normal(1, 24, 8), "r": normal(1, 24, 6)},
    )
    assert integer_share(load(model).ir, ()).total == 5 * 2 * 24 * (8 + 6)


# placement


def hard_swish_net(channels: int, size: int, blocks: int = 3) -> onnx.ModelProto:
    """1 x 1 Convs, each with a HardSwish behind it."""
    weights = {
        f"w{i}": normal(channels, channels, 1, 1, seed=i, scale=channels**-0.5)
        for i in range(blocks)
    }
    nodes = " ".join(
        f"c{i} = Conv({'x' if i == 0 else f'h{i - 1}'}, w{i})"
        f" {'y' if i == blocks - 1 else f'h{i}'} = HardSwish(c{i})"
        for i in range(blocks)
    )
    shape = f"float[N,{channels},{size},{size}]"
    return build(f"({shape} x) => ({shape} y) {{ {nodes} }}", weights)


def test_small_convs_between_float_activations_stay_float_with_a_reason(tmp_path: Path) -> None:
    report = report_of(hard_swish_net(8, 32), tmp_path / "q.onnx", (1, 8, 32, 32), target=X86)
    reasons = {skip.name: skip.reason for skip in report.skips}
    assert all("int8 would cost time here" in reasons[f"n_c{i}"] for i in range(3))
    assert report.operators == {}
    assert report.macs is not None
    assert report.macs.share == 0.0


def depthwise_net(channels: int, size: int) -> onnx.ModelProto:
    """Depthwise Convs, one behind the other."""
    weights = {f"w{i}": normal(channels, 1, 3, 3, seed=i) for i in range(3)}
    nodes = " ".join(
        f"{'y' if i == 2 else f'c{i}'} = Conv{PAD[:-1]}, group={channels}>"
        f"({'x' if i == 0 else f'c{i - 1}'}, w{i})"
        for i in range(3)
    )
    shape = f"float[N,{channels},{size},{size}]"
    return build(f"({shape} x) => ({shape} y) {{ {nodes} }}", weights)


@pytest.mark.parametrize(("target", "noted"), [(X86, True), ("openvino", False)])
def test_a_network_of_depthwise_convs_is_told_that_int8_may_not_pay(
    target: str, noted: bool, tmp_path: Path
) -> None:
    shape = (1, 16, 28, 28)
    report = report_of(depthwise_net(16, 28), tmp_path / "q.onnx", shape, target=target)
    assert report.operators == {"Conv": 3}  # in one island: what is asked for is done
    # 3 x 16 x 28 x 28 elements at 0.4 ns, and 2 borders of 16 x 28 x 28 at 0.4 ns
    notes = [note for note in report.notes if "25 microseconds slower" in note]
    assert len(notes) == noted


def test_a_network_of_large_convs_is_told_nothing_of_that(tmp_path: Path) -> None:
    model = build(
        f"(float[N,64,14,14] x) => (float[N,64,14,14] y) {{ y = Conv{PAD}(x, w) }}",
        {"w": normal(64, 64, 3, 3)},
    )
    report = report_of(model, tmp_path / "q.onnx", (1, 64, 14, 14), target=X86)
    assert not [note for note in report.notes if "may not pay" in note]


def test_large_convs_between_float_activations_are_quantized(tmp_path: Path) -> None:
    report = report_of(hard_swish_net(256, 8), tmp_path / "q.onnx", (1, 256, 8, 8), target=X86)
    assert report.operators == {"Conv": 3}
    assert report.macs is not None
    assert report.macs.share == 1.0


def test_a_rule_quantizes_them_all_the_same(tmp_path: Path) -> None:
    rules = [Rule(nodes=("n_c1",), leave_float=False)]
    model = hard_swish_net(8, 32)
    report = report_of(model, tmp_path / "q.onnx", (1, 8, 32, 32), target=X86, rules=rules)
    assert report.operators == {"Conv": 1}
    assert optimized_ops(tmp_path / "q.onnx")["QLinearConv"] == 1


def test_targets_without_measured_costs_quantize_what_they_can(tmp_path: Path) -> None:
    model = hard_swish_net(8, 8)
    report = report_of(model, tmp_path / "q.onnx", (1, 8, 8, 8), target="openvino")
    assert report.operators == {"Conv": 3}


def test_islands_are_cut_at_float_tensors() -> None:
    recipe = StaticRecipe(target="openvino")
    prepared = prepare_for(load(hard_swish_net(8, 8)), recipe)
    found = islands(prepared, place(prepared, recipe))
    assert [[n.name for n in island.nodes] for island in found] == [["n_c0"], ["n_c1"], ["n_c2"]]
    assert [v.name for v in found[1].entering] == ["h0"]
    assert [v.name for v in found[1].leaving] == ["c1"]
    assert Sizes(prepared.ir).elements(found[1].leaving[0]) == 8 * 8 * 8


# tuning


def mixed_net() -> onnx.ModelProto:
    """Convs that gain much, and ones of one channel between float nodes."""
    weights = {f"w{i}": normal(1, 1, 1, 1, seed=i) for i in range(4)}
    weights |= {"b0": normal(128, 1, 16, 16, scale=0.1)}
    weights |= {f"b{i}": normal(128, 128, 3, 3, scale=0.02) for i in (1, 2)}
    small = " ".join(
        f"c{i} = Conv({'x' if i == 0 else f's{i - 1}'}, w{i}) s{i} = Abs(c{i})" for i in range(4)
    )
    big = "d0 = Conv<strides=[16,16]>(s3, b0) r0 = Relu(d0)"
    big += f" d1 = Conv{PAD}(r0, b1) r1 = Relu(d1) y = Conv{PAD}(r1, b2)"
    return build(f"(float[N,1,128,128] x) => (float[N,128,8,8] y) {{ {small} {big} }}", weights)


MIXED = (1, 1, 128, 128)


@dataclass(frozen=True)
class Timed:
    """A run that takes as long as its plan says; see `clocked`."""

    nodes: frozenset[str]

    def __call__(self) -> None:
        pass


def clocked(monkeypatch: pytest.MonkeyPatch, seconds: Callable[[frozenset[str]], float]) -> None:
    """Let `tune` see a clock that depends on the nodes in int8 only."""

    def opened(_: object, plan: Plan | None, stack: object = None) -> Timed:
        used = () if plan is None else [u for a in plan.placement.activations for u in a.uses]
        return Timed(frozenset(use.node for use in used))

    monkeypatch.setattr(tune._Bench, "open", opened)
    monkeypatch.setattr(tune, "_seconds", lambda calls, _: [seconds(c.nodes) for c in calls])


def test_the_islands_that_lose_are_left_float(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    lost = {"n_c0", "n_c2"}
    clocked(monkeypatch, lambda nodes: 10.0 + len(nodes & lost) - 2 * ("n_d1" in nodes))
    path, again = tmp_path / "q.onnx", tmp_path / "again.onnx"
    report = report_of(mixed_net(), path, MIXED, tune_latency=True)
    tuning = report.tuning
    assert tuning is not None
    assert (tuning.float_seconds, tuning.planned_seconds, tuning.seconds) == (10.0, 10.0, 8.0)
    assert {n for group in tuning.groups if not group.kept for n in group.nodes} == lost
    assert {group.seconds for group in tuning.groups} == {(10.0, 9.0), (10.0, 10.0), (10.0, 12.0)}
    assert {skip.name for skip in report.skips if "left float by the rule" in skip.reason} == lost
    recipe = recipe_from_dict(dict(report.recipe))
    assert isinstance(recipe, StaticRecipe)
    assert not recipe.tune_latency
    onnxq.quantize(mixed_net(), again, recipe, samples("x", MIXED, 4))
    assert again.read_bytes() == path.read_bytes()


def test_where_nothing_pays_the_result_is_the_float_model(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    clocked(monkeypatch, lambda nodes: 10.0 + len(nodes))
    path = tmp_path / "q.onnx"
    report = report_of(mixed_net(), path, MIXED, tune_latency=True)
    tuning = report.tuning
    assert tuning is not None
    assert not tuning.pays
    assert (tuning.float_seconds, tuning.planned_seconds, tuning.seconds) == (10.0, 17.0, 10.0)
    before = [node.op_type for node in mixed_net().graph.node]
    assert [node.op_type for node in onnx.load(path).graph.node] == before


def test_time_that_runs_out_leaves_the_rest_as_planned(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    clocked(monkeypatch, lambda nodes: 10.0 - len(nodes))
    monkeypatch.setattr(tune, "BUDGET", -1.0)
    report = report_of(mixed_net(), tmp_path / "q.onnx", MIXED, tune_latency=True)
    assert report.tuning is not None
    assert all(group.seconds is None and group.kept for group in report.tuning.groups)


def test_with_the_real_clock(tmp_path: Path) -> None:
    path = tmp_path / "q.onnx"
    report = report_of(mixed_net(), path, MIXED, tune_latency=True)
    tuning = report.tuning
    assert tuning is not None
    assert "tune" in report.seconds
    assert min(tuning.float_seconds, tuning.planned_seconds, tuning.seconds) > 0
    assert len(tuning.groups) == 5
    json.dumps(report.to_dict())
    if tuning.pays:  # a busy machine may hide that
        assert optimized_ops(path)["QLinearConv"] >= 1
        assert tuning.seconds <= tuning.float_seconds


def test_tuning_is_for_the_runtime_of_this_machine(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="says nothing of target openvino"):
        report_of(
            hard_swish_net(8, 8),
            tmp_path / "q.onnx",
            (1, 8, 8, 8),
            target="openvino",
            tune_latency=True,
        )


def test_the_command_prints_figures_and_rules(tmp_path: Path) -> None:
    model, data, path = tmp_path / "m.onnx", tmp_path / "x.npy", tmp_path / "q.onnx"
    onnx.save(hard_swish_net(8, 32), model)
    np.save(data, normal(4, 8, 32, 32))
    options = ["--data", str(data), "--tune-latency", "--no-verify"]
    done = CliRunner().invoke(app, ["static", str(model), "-o", str(path), *options])
    assert done.exit_code == 0, done.output
    assert "million products" in done.output
    assert "int8 does not pay here" in done.output or "tuned on this machine" in done.output
    assert "the whole model, with these nodes in int8 or left float" in done.output
