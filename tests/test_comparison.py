"""Comparing two models: outputs, labels, layers; and the split that verification uses."""

from __future__ import annotations

import csv
import math
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import onnxq
from onnxq.data.split import samples_to_read, split
from onnxq.demo import DIGITS, digits_data
from onnxq.measure.comparison import finite
from onnxq.measure.labels import LabelCounts, load_labels, paired_interval, translate
from onnxq.numerics.metrics import ErrorSums
from tests.models import Array, build, normal, run, sqnr
from tests.models import samples as feeds

X86 = "onnxruntime-x86"


@pytest.fixture(scope="module")
def quantized(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("q") / "q.onnx"
    onnxq.quantize_static(DIGITS, path, digits_data()[0][:64], target=X86)
    return path


def logits(path: Path, images: Array) -> Array:
    return np.concatenate([run(path, {"image": x[None]})[0] for x in images])


# outputs


def test_figures_are_those_of_the_formulas(quantized: Path) -> None:
    images = digits_data()[1][:50]
    (found,) = onnxq.compare(DIGITS, quantized, images).outputs
    r, q = logits(DIGITS, images).astype(np.float64), logits(quantized, images).astype(np.float64)
    c, d = r - r.mean(1, keepdims=True), (q - r) - (q - r).mean(1, keepdims=True)
    assert found.output == "logits"
    assert found.samples == 50
    assert found.centred
    assert found.sqnr == pytest.approx(10 * math.log10((c**2).sum() / (d**2).sum()))
    e = q - q.mean(1, keepdims=True)
    cosine = (c * e).sum() / math.sqrt((c**2).sum() * (e**2).sum())
    assert found.cosine == pytest.approx(cosine)
    assert found.max_error == pytest.approx(np.abs(q - r).max())
    assert found.relative_max_error == pytest.approx(np.abs(q - r).max() / (r.max() - r.min()))
    assert found.agreement == pytest.approx((r.argmax(1) == q.argmax(1)).mean())


def test_a_model_against_itself_is_exact_and_json_says_so() -> None:
    report = onnxq.compare(DIGITS, DIGITS, digits_data()[1][:3])
    assert report.outputs[0].sqnr == math.inf
    assert report.to_dict()["outputs"][0]["sqnr"] is None
    assert finite({"a": [math.nan, 1.0]}) == {"a": [None, 1.0]}


def test_equal_infinities_are_no_error() -> None:
    r = np.array([1.0, -np.inf, 2.0])
    sums = ErrorSums(centred=False)
    sums.add(r, np.array([1.5, -np.inf, 2.0]))
    assert sums.sqnr == pytest.approx(10 * math.log10(5 / 0.25))
    sums.add(r, np.array([1.0, 0.0, 2.0]))
    assert sums.sqnr == -math.inf
    assert sums.max_error == math.inf


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("(float[N,8] z) => (float[N,4] y) { y = MatMul(z, w) }", "the inputs z"),
        ("(float[N,8] x) => (float[N,4] v) { v = MatMul(x, w) }", "the outputs v"),
    ],
)
def test_models_that_do_not_belong_together(text: str, words: str) -> None:
    one = build("(float[N,8] x) => (float[N,4] y) { y = MatMul(x, w) }", {"w": normal(8, 4)})
    with pytest.raises(onnxq.ModelError, match=words):
        onnxq.compare(one, build(text, {"w": normal(8, 4)}), feeds("x", (1, 8)))


# labels


def test_top1_top5_and_the_difference(quantized: Path) -> None:
    _, images, labels = digits_data()
    found = onnxq.compare(DIGITS, quantized, images[:100], labels=labels[:100].tolist()).labels
    assert found is not None
    r, q = logits(DIGITS, images[:100]), logits(quantized, images[:100])
    one, other = (r.argmax(1) == labels[:100]), (q.argmax(1) == labels[:100])
    assert found.top1 == pytest.approx((one.mean(), other.mean()))
    assert found.difference == pytest.approx(other.mean() - one.mean())
    five = [
        np.mean([label in np.argsort(row)[::-1][:5] for row, label in zip(x, labels, strict=False)])
        for x in (r, q)
    ]
    assert found.top5 == pytest.approx(five)
    assert found.interval[0] <= found.difference <= found.interval[1]


@pytest.mark.parametrize("source", ["csv", "npy", "npz", "with the data"])
def test_labels_from_files(tmp_path: Path, quantized: Path, source: str) -> None:
    _, images, labels = (array[:40] for array in digits_data())
    data, path = tmp_path / "x.npz", tmp_path / f"labels.{source}"
    np.savez(data, image=images)
    given: dict[str, Any] = {"labels": path}
    if source == "csv":
        with open(path, "w", newline="") as file:
            csv.writer(file).writerows([["file", "label"], *(["x.png", n] for n in labels)])
    elif source == "npy":
        np.save(path, labels)
    elif source == "npz":
        np.savez(path, labels=labels)
    else:
        np.savez(data, image=images, label=labels)
        given = {}
    found = onnxq.compare(DIGITS, quantized, data, samples=30, **given).labels
    assert found is not None
    assert found.samples == 30
    assert found.top1[0] == (logits(DIGITS, images[:30]).argmax(1) == labels[:30]).mean()


def test_a_background_class_and_another_order() -> None:
    net = build(
        "(float[N,6] x) => (float[N,6] y) { y = MatMul(x, w) }", {"w": np.eye(6, dtype=np.float32)}
    )
    x = np.eye(6, dtype=np.float32)[[1, 2, 0, 4]]
    x[2, 3] = 0.5  # the background is first, class 2 behind it
    found = onnxq.compare(net, net, x, labels=[0, 1, 2, 0], label_offset=1).labels
    assert found is not None
    assert found.top1 == (0.75, 0.75)
    assert found.top5 is None  # of five classes the right one is always among the first five
    order = translate(np.array([2, 0]), ["a", "b", "c"], ["c", "a", "b", "d"])
    assert order.tolist() == [0, 1]


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        ([1, 2], "2 labels for 3 samples"),
        ([1, 2, 77], "label 77 is no class"),
        ([0.5, 1.0, 2.0], "one integer a sample"),
    ],
)
def test_labels_that_do_not_fit(labels: list[Any], words: str) -> None:
    with pytest.raises(onnxq.DataError, match=words):
        onnxq.compare(DIGITS, DIGITS, digits_data()[1][:3], labels=labels)


def test_label_files_that_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("file,class\nx.png,3\n")
    np.savez(tmp_path / "b.npz", image=np.zeros(3))
    (tmp_path / "c.npy").write_bytes(b"nothing")
    for name, words in {
        "a.csv": "no column `label`; its columns are file, class",
        "b.npz": "it has image",
        "c.npy": "cannot be read",
        "d.npy": "no such file",
    }.items():
        with pytest.raises(onnxq.DataError, match=words):
            load_labels(tmp_path / name)
    with pytest.raises(onnxq.OptionError, match="go together"):
        onnxq.compare(DIGITS, DIGITS, digits_data()[1][:3], label_classes="classes.txt")
    with pytest.raises(onnxq.OptionError, match="lack 1 of the data's, for example 'b'"):
        translate(np.array([0]), ["a", "b"], ["a"])


def test_the_interval_covers_the_true_difference() -> None:
    """95 % intervals of simulated paired outcomes hold the true difference 95 times in 100."""
    rng = np.random.default_rng(0)
    lost_share, gained_share, count = 0.02, 0.01, 500
    held = 0
    for _ in range(2000):
        outcome = rng.random(count)
        lost = int((outcome < lost_share).sum())
        gained = int((outcome > 1 - gained_share).sum())
        low, high = paired_interval(gained, lost, count)
        held += low <= gained_share - lost_share <= high
    assert 0.935 <= held / 2000 <= 0.975


def test_equal_scores_are_a_hit_for_the_first_only() -> None:
    counts = LabelCounts("y")
    counts.add(1, np.zeros(7), np.zeros(7))
    counts.add(0, np.zeros(7), np.zeros(7))
    assert counts.result().top1 == (0.5, 0.5)


# layers


def test_layers_alone_and_accumulated() -> None:
    w = {"w1": normal(16, 16), "w2": normal(16, 16, seed=1), "w3": normal(16, 4, seed=2)}
    net = build(
        "(float[N,16] x) => (float[N,4] y) { a = Gemm(x, w1) r = Relu(a) b = Gemm(r, w2)"
        " s = Relu(b) y = Gemm(s, w3) }",
        w,
    )
    data = feeds("x", (1, 16), 32)
    model = onnxq.quantize_static(net, None, data, target=X86, verify=False, method="min_max")
    rows = {row.tensor: row for row in onnxq.compare(net, model, data, layers=True).layers}
    assert set(rows) == {"x", "r", "s", "w1", "w2", "w3"}
    assert [rows[n].op_type for n in ("x", "r", "w1")] == ["graph input", "Relu", "Gemm"]
    x = np.concatenate([feed["x"] for feed in data])
    r = np.maximum(x @ w["w1"], 0)
    scale = np.float32((r.max() - r.min()) / 255)
    assert rows["r"].alone == pytest.approx(sqnr(r, np.rint(r / scale) * scale), abs=0.1)
    s1 = np.abs(w["w1"]).max(0) / 127
    assert rows["w1"].alone == pytest.approx(sqnr(w["w1"], np.rint(w["w1"] / s1) * s1), abs=0.01)
    assert rows["w1"].accumulated is None
    for name in ("r", "s"):
        accumulated = rows[name].accumulated
        assert accumulated is not None
        assert accumulated < rows[name].alone
    order = [row.alone for row in onnxq.compare(net, model, data, layers=True).layers]
    assert order == sorted(order)


def test_layers_find_the_one_that_is_broken(tmp_path: Path) -> None:
    path = tmp_path / "q.onnx"
    onnxq.quantize_static(DIGITS, path, digits_data()[0][:32], target=X86, verify=False)
    model = onnx.load(str(path))
    scale = next(t for t in model.graph.initializer if t.name == "block2.conv.relu.out_scale")
    array = onnx.numpy_helper.to_array(scale) / 8
    scale.CopyFrom(onnx.numpy_helper.from_array(array, scale.name))
    rows = onnxq.compare(DIGITS, model, digits_data()[1][:8], layers=True).layers
    assert rows[0].tensor == "block2.conv.relu.out"
    assert rows[0].alone < 10


@pytest.mark.parametrize("options", [{}, {"encoding": "fold"}, {"bits": 16}, {"symmetric": False}])
def test_layers_of_a_dynamic_model_are_its_weights(options: Any) -> None:
    model = onnxq.quantize_dynamic(DIGITS, **options)
    rows = onnxq.compare(DIGITS, model, digits_data()[1][:2], layers=True).layers
    assert {row.kind for row in rows} == {"weight"}
    assert len(rows) == 10
    least = 80 if options == {"bits": 16} else 35
    assert all(least < row.alone < math.inf for row in rows)


def test_a_shared_weight_is_one_row_and_half_precision_is_compared() -> None:
    net = build(
        "(float[N,8] x) => (float[N,8] y) { a = MatMul(x, w) r = Relu(a) y = MatMul(r, w) }",
        {"w": normal(8, 8)},
    )
    data = feeds("x", (1, 8), 8)
    model = onnxq.quantize_static(net, None, data, target=X86)
    rows = [row.tensor for row in onnxq.compare(net, model, data, layers=True).layers]
    assert sorted(rows) == sorted(set(rows))
    half = build(
        "(float16[N,8] x) => (float16[N,8] y) { y = MatMul(x, w) }",
        {"w": normal(8, 8).astype(np.float16)},
    )
    halves = [{"x": d["x"].astype(np.float16)} for d in data]
    for encoding in ("qdq", "fold"):
        stored = onnxq.quantize_dynamic(half, encoding=encoding)
        (row,) = onnxq.compare(half, stored, halves, layers=True).layers
        assert row.tensor == "w"
        assert 35 < row.alone < 60


def test_an_offset_without_labels_is_a_mistake() -> None:
    with pytest.raises(onnxq.OptionError, match="no labels"):
        onnxq.compare(DIGITS, DIGITS, digits_data()[1][:3], label_offset=1)


# the split


@settings(deadline=None)
@given(st.integers(0, 3000), st.none() | st.integers(1, 1500))
def test_split(count: int, limit: int | None) -> None:
    found = split(count, limit)
    assert not found.independent or not set(found.calibration) & set(found.held_out)
    assert set(found.calibration) | set(found.held_out) <= set(range(count))
    assert found == split(count, limit)
    assert found.independent == (count > 1)
    if count > 1:
        assert 1 <= len(found.held_out) <= 64
        assert len(found.calibration) >= len(found.held_out)
    if limit is not None and count > limit:
        assert len(found.calibration) == limit
        assert max(found.held_out) < (samples_to_read(limit) or 0)


def test_static_reports_its_split_and_verifies_on_what_it_held_out(tmp_path: Path) -> None:
    images = digits_data()[0][:80]
    report = onnxq.quantize_static(
        DIGITS, tmp_path / "q.onnx", images, report=tmp_path / "r.json", target=X86
    )
    assert report.split is not None
    assert report.split.held_out == tuple(range(7, 80, 8))
    assert report.settings["samples"] == 70
    held = images[list(report.split.held_out)]
    assert report.verification is not None
    (output,) = onnxq.compare(DIGITS, tmp_path / "q.onnx", held).outputs
    assert report.verification.outputs == (output,)
    kept = np.delete(images, list(report.split.held_out), axis=0)
    onnxq.quantize_static(DIGITS, tmp_path / "k.onnx", kept, target=X86, verify=False)
    assert (tmp_path / "k.onnx").read_bytes() == (tmp_path / "q.onnx").read_bytes()
    limited = onnxq.quantize_static(DIGITS, tmp_path / "l.onnx", images, samples=40, target=X86)
    assert limited.split is not None
    assert limited.split.held_out == tuple(range(40, 45))


def test_one_sample_is_verified_on_itself_and_that_is_said(tmp_path: Path) -> None:
    report = onnxq.quantize_static(DIGITS, tmp_path / "q.onnx", digits_data()[0][:1])
    assert report.verification is not None
    assert not report.verification.independent
    assert any("the sample that calibrated" in note for note in report.notes)
    unverified = onnxq.quantize_static(
        DIGITS, tmp_path / "q.onnx", digits_data()[0][:4], verify=False
    )
    assert unverified.verification is None
    assert any("not verified (--no-verify)" in note for note in unverified.notes)


def test_a_bad_result_is_noted(tmp_path: Path) -> None:
    far = digits_data()[0][:16].copy()
    far[7] *= 40  # held out, and far beyond the range of the others
    far[15] *= 40
    report = onnxq.quantize_static(DIGITS, tmp_path / "q.onnx", far, method="min_max")
    assert any("SQNR" in note and "--layers" in note for note in report.notes)


def test_a_detector_that_finds_another_number(tmp_path: Path) -> None:
    text = "(float[1,8] x) => (float[n,1] y) { c = Mul(x, k) m = Greater(c, half) i = NonZero(m) "
    text += "r = Slice(i, one, two, zero) f = Cast<to=1>(r) y = Transpose<perm=[1,0]>(f) }"
    given: dict[str, Array] = {"half": np.array(0.5, np.float32), "zero": np.array([0])}
    given |= {"one": np.array([1]), "two": np.array([2])}
    paths = []
    for name, factor in (("float", 1.0), ("other", 0.7)):
        model = build(text, {**given, "k": np.array(factor, np.float32)})
        paths.append(tmp_path / f"{name}.onnx")
        onnx.save(model, str(paths[-1]))
    x = np.zeros((3, 8), np.float32)
    x[0, 1], x[1, :2], x[2, 3:5] = 2, (0.6, 2), 0.6  # 1 and 1 found, 2 and 1, 2 and none
    (output,) = onnxq.compare(paths[0], paths[1], x).outputs
    assert (output.samples, output.other_rows) == (1, 2)
    assert output.sqnr == float("inf")
    assert output.agreement is None
    (output,) = onnxq.compare(paths[0], paths[1], x[1:]).outputs
    assert math.isnan(output.sqnr)
    assert output.samples == 0
    other = build("(float[1,8] x) => (float[a,b] y) { y = Relu(x) }")
    with pytest.raises(onnxq.DataError, match=r"has shape \[1, 8\] in the quantized model"):
        onnxq.compare(paths[0], other, x)
