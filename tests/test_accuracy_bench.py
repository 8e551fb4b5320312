"""The parts of the accuracy benchmark that need no peer: arithmetic, rows, bars, the table."""

from __future__ import annotations

import dataclasses
import io
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import pytest
from rich.console import Console

import onnxq
from benchmarks import accuracy
from benchmarks.accuracy_bars import judged, mean_drop
from benchmarks.accuracy_measure import Bench, compared
from benchmarks.accuracy_rows import LOWEST, Result, Rows, paired_drop, sqnr_of
from benchmarks.accuracy_table import absent, cells, figures
from benchmarks.accuracy_tools import LEVELS, ONLY_PADDLE, OURS, PEERS, TOOLS
from benchmarks.macs import all_macs, integer_macs
from benchmarks.rows import Row
from benchmarks.subjects import SUBJECTS, Subject, Validation
from benchmarks.workshop import Settings, Workshop

RNG = np.random.default_rng(0)
IMAGENET = [name for name, subject in SUBJECTS.items() if subject.kind == "imagenet"]


# Arithmetic


def test_the_drop_counts_the_images_where_both_differ() -> None:
    before, after = np.array([1, 1, 0, 1], bool), np.array([1, 0, 0, 1], bool)
    drop, interval = paired_drop(before, after)
    assert drop == 25.0
    # the differences are 0 1 0 0: deviation 0.5
    assert interval == pytest.approx(100 * 1.96 * 0.5 / math.sqrt(4))
    assert paired_drop(before, before) == (0.0, 0.0)
    assert paired_drop(after, before)[0] == -25.0


def test_the_interval_covers_the_true_drop_in_19_of_20_cases() -> None:
    cases, images = 400, 500
    kind = RNG.choice(3, size=(cases, images), p=[0.03, 0.05, 0.92])  # lost less won: 5 - 3 points
    covered = 0
    for row in kind:
        drop, interval = paired_drop(row != 0, row != 1)
        covered += abs(drop - 2.0) <= interval
    assert 0.92 <= covered / cases <= 0.98


def test_sqnr_is_that_of_all_samples_together() -> None:
    r, noise = RNG.normal(size=(5, 1, 7)) * 3, RNG.normal(size=(5, 1, 7))
    q = r + noise
    plain = 10 * math.log10((r**2).sum() / (noise**2).sum())
    assert sqnr_of(r, q, centred=False) == pytest.approx(plain)
    a, b = r - r.mean(axis=2, keepdims=True), noise - noise.mean(axis=2, keepdims=True)
    centred = 10 * math.log10((a**2).sum() / (b**2).sum())
    assert sqnr_of(r, q, centred=True) == pytest.approx(centred)
    # what is added to all scores of a sample changes no decision
    assert sqnr_of(r, q + RNG.normal(size=(5, 1, 1)), centred=True) == pytest.approx(centred)


def test_sqnr_of_what_json_cannot_say() -> None:
    r = RNG.normal(size=(2, 1, 3))
    assert sqnr_of(r, r, centred=True) is None
    assert sqnr_of(r, np.full_like(r, np.nan), centred=True) == LOWEST


def test_decisions_are_those_of_the_labels_classes() -> None:
    # class 0 is background: without it the float decisions are 1, 1, 0
    r = np.array([[9, 0, 2], [9, 1, 3], [0, 5, 1]], np.float32)[:, None]
    q = np.array([[0, 0, 2], [0, 4, 3], [9, 5, 1]], np.float32)[:, None]
    hidden = np.zeros((3, 1, 2, 2), np.float32)
    validation = Validation([{}, {}, {}], np.array([1, 1, 1]), lambda scores: scores[:, 1:])
    found = compared({"hidden": hidden, "logits": r}, {"h": hidden + 1, "l": q}, validation)
    assert found["agreement"] == pytest.approx(200 / 3)
    assert (found["fp32_top1"], found["top1"]) == pytest.approx((200 / 3, 100 / 3))
    assert found["drop"] == pytest.approx(100 / 3)
    # the lowest of all outputs; of one that is 0 throughout nothing is left
    assert found["sqnr"] == found["sqnrs"]["hidden"] == LOWEST
    assert found["sqnrs"]["logits"] == pytest.approx(sqnr_of(r, q, centred=True))


def test_without_labels_there_is_no_top1() -> None:
    r = np.eye(3, dtype=np.float32)[:, None]
    found = compared({"y": r}, {"y": r}, Validation([{}], None, lambda scores: scores))
    assert found == {"agreement": 100.0, "sqnr": None, "sqnrs": {"y": None}}


# Multiplications

NETWORK = """
<ir_version: 8, opset_import: ["" : 17]>
net (float[1,16,8,8] x) => (float[1,10] y)
<float[16,1,3,3] depthwise, float[32,16,1,1] pointwise, float[10,512] fc, int64[2] shape = {1, 512}>
{
    a = Conv <group = 16, pads = [1,1,1,1]> (x, depthwise)
    b = Relu (a)
    c = Conv (b, pointwise)
    d = Relu (c)
    e = MaxPool <kernel_shape = [2,2], strides = [2,2]> (d)
    f = Reshape (e, shape)
    y = Gemm <transB = 1> (f, fc)
}
"""
DEPTHWISE, POINTWISE, FC = 16 * 64 * 9, 32 * 64 * 16, 10 * 512


def written(text: str, path: Path) -> Path:
    """A model whose weights, declared without values, are drawn."""
    model = onnx.parser.parse_model(text)
    for weight in model.graph.value_info:
        shape = [dim.dim_value for dim in weight.type.tensor_type.shape.dim]
        array = RNG.normal(size=shape).astype(np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(array, weight.name))
    del model.graph.value_info[:]
    onnx.save(model, path)
    return path


def test_multiplications_are_counted_as_they_run(tmp_path: Path) -> None:
    model = written(NETWORK, tmp_path / "net.onnx")
    feeds = [{"x": RNG.normal(size=(1, 16, 8, 8)).astype(np.float32)} for _ in range(4)]
    assert all_macs(model, feeds[0]) == DEPTHWISE + POINTWISE + FC
    assert integer_macs(model, feeds[0]) == 0
    for excluded, expected in (((), DEPTHWISE + POINTWISE + FC), (("y",), DEPTHWISE + POINTWISE)):
        out = tmp_path / "int8.onnx"
        onnxq.quantize_static(
            model,
            out,
            feeds,
            verify=False,
            accuracy="none",
            exclude=excluded,
            target="onnxruntime-x86",
        )
        assert integer_macs(out, feeds[0]) == expected


def test_products_with_channels_of_zeros_are_none(tmp_path: Path) -> None:
    text = """
    <ir_version: 8, opset_import: ["" : 17]>
    net (float[1,3,32,32] x) => (float[1,16,32,32] y)
    <float[16,3,3,3] w>
    {
        y = Conv <pads = [1,1,1,1]> (x, w)
    }
    """
    model, out = written(text, tmp_path / "net.onnx"), tmp_path / "int8.onnx"
    feeds = [{"x": RNG.normal(size=(1, 3, 32, 32)).astype(np.float32)} for _ in range(4)]
    target = "onnxruntime-x86"
    onnxq.quantize_static(model, out, feeds, verify=False, accuracy="none", target=target)
    assert "Pad" in {node.op_type for node in onnx.load(out).graph.node}
    assert integer_macs(out, feeds[0]) == all_macs(model, feeds[0]) == 16 * 32 * 32 * 27


def test_multiplications_of_the_other_ops(tmp_path: Path) -> None:
    text = """
    <ir_version: 8, opset_import: ["" : 17]>
    net (float[2,4,5,5] x, float[2,3,6] a, float[2,6,7] b) => (float[2,9,11,11] y, float[2,3,7] z)
    <float[4,9,3,3] w>
    {
        y = ConvTranspose <strides = [2,2]> (x, w)
        z = MatMul (a, b)
    }
    """
    model = written(text, tmp_path / "net.onnx")
    shapes = {"x": (2, 4, 5, 5), "a": (2, 3, 6), "b": (2, 6, 7)}
    feed = {name: np.ones(shape, np.float32) for name, shape in shapes.items()}
    assert all_macs(model, feed) == 2 * 4 * 25 * 9 * 9 + 2 * 3 * 6 * 7


# Rows


def result(
    level: str, network: str = "mobilenet_v2_1.0", tool: str = OURS, **fields: Any
) -> Result:
    return Result(network, tool, level, **{"validation": 1300, **fields})


def test_rows_survive_their_file(tmp_path: Path) -> None:
    rows = Rows([result("fast", sqnr=20.5, sqnrs={"y": 20.5}, notes={"seconds": {"load": 1.0}})])
    rows.add(result("none", reason="no such tool", started=False))
    path = tmp_path / "new" / "accuracy.json"
    rows.write(path, {"date": "2026-01-01"})
    document = json.loads(path.read_text())
    assert document["date"] == "2026-01-01"
    assert list(Rows.read(path)) == list(rows)
    # what could not start is tried again, what is there is not
    assert [row.level for row in Rows.read(path).finished()] == ["fast"]
    document["rows"][0]["of another version"] = 1
    path.write_text(json.dumps(document))
    assert list(Rows.read(path)) == list(rows)
    assert [p.name for p in path.parent.iterdir()] == ["accuracy.json"]


def test_a_later_row_takes_the_place_of_an_earlier() -> None:
    rows = Rows([result("fast", sqnr=1.0), result("best", sqnr=2.0)])
    rows.add(result("fast", sqnr=3.0))
    assert [(row.level, row.sqnr) for row in rows] == [("best", 2.0), ("fast", 3.0)]


def test_only_rows_that_are_missing_are_measured(tmp_path: Path) -> None:
    shop = Workshop(Settings(cache=tmp_path))
    bench = Bench(shop, Subject("none such", "generated"), None)
    rows = Rows([result("fast", network="none such")])
    found = list(accuracy.measured(bench, TOOLS[OURS], rows))
    assert [row.level for row in found] == [level for level in LEVELS if level != "fast"]
    assert {row.reason for row in found} == {"benchmarks/models.py makes no none such"}
    assert not any(row.started for row in found)


def test_a_tool_that_cannot_run_says_why(tmp_path: Path) -> None:
    shop = Workshop(Settings(cache=tmp_path))
    (setting,) = TOOLS["PaddleSlim"]
    row = Bench(shop, SUBJECTS["vit_tiny"], None).measure(setting, None)
    assert (row.reason, row.started, row.sqnr) == (ONLY_PADDLE, False, None)


def test_latencies_are_taken_again_where_the_model_is_kept(tmp_path: Path) -> None:
    subject = Subject("none such", "generated")
    bench = Bench(Workshop(Settings(cache=tmp_path)), subject, None)
    rows = Rows([result("fast", network="none such", sqnr=20.0, int8_ms=1.0)])
    assert list(accuracy.timed_again(bench, TOOLS[OURS], rows)) == []

    model = written(NETWORK, tmp_path / "net.onnx")
    feed = {"x": RNG.normal(size=(1, 16, 8, 8)).astype(np.float32)}

    class Small(Bench):
        validation = Validation([feed], None, lambda scores: scores)
        float_model = model

    small = Small(bench.shop, subject, None)
    small.kept(OURS, "fast").write_bytes(model.read_bytes())
    (row,) = accuracy.timed_again(small, TOOLS[OURS], rows)
    assert row.sqnr == 20.0
    assert row.ratio is not None
    assert 0.2 < row.ratio < 5  # it is the same model


def test_settings_are_chosen_by_tool_and_by_level() -> None:
    some = accuracy.chosen(["NNCF", OURS], ["fast", "best"])
    assert [(one.tool, one.level) for one in some] == [
        ("NNCF", "default"),
        ("NNCF", "full correction"),
        (OURS, "fast"),
        (OURS, "best"),
    ]
    scripts = Path(accuracy.__file__).parent / "peers"
    for tool, settings in TOOLS.items():
        assert [one.default for one in settings].count(True) == 1, tool
        assert all((scripts / one.script).is_file() for one in settings)


# Bars


def verdicts(*results: Result) -> dict[str, str]:
    groups = judged(Rows(results))
    rows: list[Row] = [row for group in groups for row in group.rows]
    return {row.what: row.verdict for row in rows}


def peer(default: bool, **fields: Any) -> Result:
    setting = next(one for one in PEERS if one.default is default)
    return result(setting.level, tool=setting.tool, **fields)


def test_fast_is_held_to_defaults_and_balanced_to_the_best() -> None:
    peers = peer(True, sqnr=12.0, agreement=90.0), peer(False, sqnr=18.0, agreement=96.0)
    ours = [result(level, sqnr=15.0, agreement=97.0) for level in ("fast", "balanced")]
    found = verdicts(*peers, *ours)
    assert found["fast: SQNR beside every peer's default"] == "met"
    assert found["balanced: SQNR beside every peer's best"] == "short"
    assert found["balanced: agreement beside every peer's best"] == "met"


def test_a_peer_on_other_images_is_not_compared_with() -> None:
    found = verdicts(peer(True, sqnr=12.0, validation=200), result("fast", sqnr=15.0))
    assert found["fast: beside every peer's default"] == "absent"
    assert not any("SQNR" in what for what in found)


@pytest.mark.parametrize(
    ("level", "sqnr", "verdict"),
    [("balanced", 20.0, "met"), ("balanced", 19.9, "short"), ("best", 21.4, "short")]
    + [("best", 21.5, "met")],
)
def test_best_is_held_to_more_than_balanced(level: str, sqnr: float, verdict: str) -> None:
    assert verdicts(result(level, sqnr=sqnr))[f"{level}: SQNR"] == verdict


def test_costs_are_compared_with_the_level_none() -> None:
    plain = result("none", seconds=10.0, peak_mb=400.0, fp32_ms=10.0, int8_ms=2.0, macs=100.0)
    fast = dataclasses.replace(plain, level="fast", seconds=13.1, fp32_ms=20.0, macs=99.9)
    found = verdicts(plain, fast)
    assert found["fast: seconds / none"] == "short"
    # twice as slow as it was, as the float model beside it is: the machine was busy
    assert found["fast: latency / none"] == "met"
    assert found["fast: MACs in int8"] == "short"
    assert found["none: MACs in int8"] == found["fast: peak memory"] == "met"
    slow = result("balanced", seconds=61.0, peak_mb=1501.0)
    found = verdicts(slow)
    assert found["balanced: seconds"] == found["balanced: peak memory"] == "short"


def test_transformers_may_keep_some_in_float() -> None:
    row = result("balanced", network="bert_small", sqnr=19.0, macs=91.0)
    found = verdicts(row)
    assert (found["balanced: MACs in int8"], found["balanced: SQNR"]) == ("met", "short")


def test_drops_are_averaged_over_imagenet() -> None:
    drops = dict(zip(IMAGENET, (0.5, 0.1, 0.7, -0.3), strict=True))
    rows = [result("balanced", network=name, drop=drop) for name, drop in drops.items()]
    figures_of_all = mean_drop(Rows(rows), OURS, "balanced")
    assert not isinstance(figures_of_all, str)
    assert figures_of_all == pytest.approx((0.25, 0.7))
    found = verdicts(*rows)
    assert found[f"{OURS} balanced: mean drop"] == "met"
    assert found[f"{OURS} balanced: largest drop"] == "short"
    assert mean_drop(Rows(rows[1:]), OURS, "balanced") == f"no figure of {IMAGENET[0]}"
    assert verdicts(*rows[1:])[f"{OURS} balanced: mean drop"] == "absent"


# The table


def test_a_line_of_the_table() -> None:
    row = result(
        "fast",
        fp32_top1=79.46,
        top1=79.2,
        drop=0.261,
        interval=0.8,
        agreement=97.51,
        sqnr=20.123,
        seconds=12.34,
        others=0.5,
        peak_mb=412.3,
        fp32_ms=8.0,
        int8_ms=2.0,
        latency_others=0.0,
        macs=100.0,
    )
    shown = ["79.20", "+0.26 ± 0.80", "97.51", "20.12", "12.3*", "412", "2.00 (0.25)", "100.0"]
    assert cells(row)[3:] == shown
    assert cells(dataclasses.replace(row, others=0.1))[7] == "12.3"
    assert cells(dataclasses.replace(row, latency_others=0.5))[9] == "2.00 (0.25)*"
    text = io.StringIO()
    rows = Rows([result("balanced", reason="it ended with [1]"), row])
    Console(width=200, file=text).print(figures(rows))
    assert ["balanced", "none"] in [
        line.replace("│", " ").split()[-2:] for line in text.getvalue().splitlines()
    ]
    assert [line for line in text.getvalue().splitlines() if "float" in line and "79.46" in line]


def test_what_is_absent_is_listed_by_its_reason() -> None:
    rows = [result("best", network=name, reason="too [1] slow") for name in IMAGENET[:2]]
    rows.append(result("fast", reason="no memory"))
    first, second = IMAGENET[:2]
    assert absent(Rows(rows)) == [
        f"{OURS} best on {first}, {second}: too [1] slow",
        f"{OURS} fast on mobilenet_v2_1.0: no memory",
    ]
