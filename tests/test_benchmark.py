"""The benchmark: its figures are there, are about the right thing, and its feeds fit the model."""

from __future__ import annotations

import dataclasses
import io
import json
import time
from pathlib import Path

import numpy as np
import onnx
import pytest
from rich.console import Console

import onnxq
from onnxq.cli.show_benchmark import print_benchmark
from onnxq.demo import digits_data
from onnxq.measure.benchmarking import BenchmarkReport, Memory, benchmark, disk_size
from onnxq.measure.random_feeds import feeds_for
from onnxq.measure.timing import Spread, interleaved
from tests.models import Array, build, normal, open_session

X86 = "onnxruntime-x86"


@pytest.fixture(scope="module")
def static(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("benchmark") / "digits.static.onnx"
    calibration, _, _ = digits_data()
    onnxq.quantize_static(_digits(), path, calibration[:32], target=X86)
    return path


@pytest.fixture(scope="module")
def report(static: Path) -> BenchmarkReport:
    return benchmark(_digits(), static, threads=1, batch=4, seconds=0.2)


def _digits() -> Path:
    from onnxq.demo import DIGITS

    return DIGITS


def test_figures_of_both_models(report: BenchmarkReport, static: Path) -> None:
    for model, path in ((report.float_model, _digits()), (report.quantized, static)):
        assert model.path == str(path)
        assert model.bytes == path.stat().st_size
        for spread in (model.latency, model.load):
            assert 0 < spread.p10 <= spread.median <= spread.p90 < 10
        assert model.memory.peak is not None
        assert model.memory.baseline is not None
        assert model.memory.model is not None
        assert 1e6 < model.memory.baseline < model.memory.peak < 2e9
        assert model.options == {}
    assert report.rounds >= 10
    assert report.inputs == {"image": "float32 4x1x8x8"}
    assert 0 < report.speedup.p10 <= report.speedup.median <= report.speedup.p90
    assert {s.reason.value for s in report.fusion.strays} >= {"model-input"}
    assert 0 < report.fusion.profile.integer_share < 1


def test_json(report: BenchmarkReport) -> None:
    figures = json.loads(json.dumps(report.to_dict()))
    assert figures["quantized"]["latency"]["median"] == report.quantized.latency.median
    memory = figures["float"]["memory"]
    assert memory["model"] == memory["peak"] - memory["baseline"]
    stray = figures["fusion"]["strays"][0]
    assert {"name", "tensor", "reason", "why", "remedy", "share"} <= set(stray)
    assert figures["fusion"]["profile"]["ops"][0]["share"] > 0


def printed(report: BenchmarkReport) -> str:
    text = io.StringIO()
    print_benchmark(report, Console(file=text, width=100, highlight=False))
    return text.getvalue()


def test_print(report: BenchmarkReport) -> None:
    text = printed(report)
    assert "x as fast" in text
    assert "peak memory" in text
    assert "QLinearConv" in text
    assert "turns the model's float input 'image' into integers" in text
    assert all(len(line.rstrip()) <= 100 for line in text.splitlines())
    listed = text.partition("each of them")[2].splitlines()[2:]
    assert len(listed) >= len(report.fusion.strays) > 0
    for stray in report.fusion.strays:
        row = next(line for line in listed if stray.tensor in line)
        assert stray.reason.value in row
        assert str(stray.consumers[0]) in row


def test_print_without_memory(report: BenchmarkReport) -> None:
    unknown = Memory(None, None, "this system does not tell")
    other = dataclasses.replace(
        report,
        float_model=dataclasses.replace(report.float_model, memory=unknown),
        quantized=dataclasses.replace(report.quantized, memory=unknown),
    )
    assert other.to_dict()["float"]["memory"]["model"] is None
    text = printed(other)
    assert "no peak memory: this system does not tell" in text
    assert "beyond" not in text


def test_weights_only_model_is_loaded_with_what_it_needs(tmp_path: Path) -> None:
    path = tmp_path / "dynamic.onnx"
    onnxq.quantize_dynamic(_digits(), path)
    result = benchmark(_digits(), path, threads=1, seconds=0)
    assert result.quantized.options == {"session.disable_quant_qdq": "1"}
    assert result.fusion.strays == ()
    assert result.rounds == 10
    assert "no QuantizeLinear or DequantizeLinear is left to run" in printed(result)


def test_memory_is_not_that_of_the_calling_process(static: Path) -> None:
    ballast = np.ones(300_000_000 // 8)
    memory = benchmark(_digits(), static, threads=1, seconds=0).float_model.memory
    assert memory.baseline is not None
    assert memory.baseline < ballast.nbytes


def test_size_counts_external_data_once(tmp_path: Path) -> None:
    model = build(
        "(float[N,16] x) => (float[N,16] y) { a = MatMul(x, w) y = MatMul(a, v) }",
        {"w": normal(16, 16), "v": normal(16, 16)},
    )
    path = tmp_path / "m.onnx"
    onnx.save(model, str(path), save_as_external_data=True, location="w.bin", size_threshold=0)
    assert disk_size(path) == sum(f.stat().st_size for f in tmp_path.iterdir())
    assert disk_size(path) > 2048


# feeds


def test_dynamic_dimensions_get_the_batch_and_sizes_that_run() -> None:
    text = (
        "(float[N,3,H,W] x, float[N,T] m) => (float[a,b,c,d] y, float[N,T] z)"
        " { y = Conv(x, w) z = Neg(m) }"
    )
    active = open_session(build(text, {"w": normal(4, 3, 100, 100)}))
    feed, other = feeds_for(active, active, batch=2)
    assert feed["x"].shape[:2] == (2, 3)
    assert min(feed["x"].shape[2:]) >= 100
    assert feed["m"].shape[0] == 2
    np.testing.assert_array_equal(feed["x"], other["x"])


def test_a_later_guess_is_taken_where_the_first_does_not_run() -> None:
    text = "(float[N,T] x) => (float[N,c] y) { y = MatMul(x, w) }"
    active = open_session(build(text, {"w": normal(16, 3)}))
    feed, _ = feeds_for(active, active)
    assert feed["x"].shape == (1, 16)


def test_shapes_and_data_override_guesses() -> None:
    text = (
        "(float[N,T] x, int64[N,S] ids) => (float[N,T] y, int64[N,S] z) { y = Neg(x) z = Neg(ids) }"
    )
    active = open_session(build(text))
    values = np.arange(6, dtype=np.int64).reshape(2, 3)
    feed, _ = feeds_for(active, active, shapes={"x": (2, 7)}, data={"ids": values})
    assert feed["x"].shape == (2, 7)
    np.testing.assert_array_equal(feed["ids"], values)


def test_integers_are_small_and_masks_too() -> None:
    text = "(int64[N,T] ids) => (float[a,b,c] y) { y = Gather(table, ids) }"
    active = open_session(build(text, {"table": normal(2, 4)}))
    feed, _ = feeds_for(active, active)
    assert set(np.unique(feed["ids"])) <= {0, 1}


def test_integer_inputs_of_the_quantized_model(tmp_path: Path) -> None:
    scales: dict[str, Array] = {
        "s": np.array(0.1, np.float32),
        "z": np.array(128, np.uint8),
    }
    a, b = tmp_path / "float.onnx", tmp_path / "integer.onnx"
    onnx.save(build("(float[N,4] x) => (float[N,4] y) { y = Neg(x) }"), str(a))
    text = "(uint8[N,4] x) => (float[N,4] y) { d = DequantizeLinear(x, s, z) y = Neg(d) }"
    onnx.save(build(text, scales), str(b))
    feed, other = feeds_for(open_session(a), open_session(b), batch=3)
    assert [f["x"].dtype.name for f in (feed, other)] == ["float32", "uint8"]
    assert feed["x"].shape == other["x"].shape == (3, 4)
    result = benchmark(a, b, threads=1, seconds=0)
    assert [s.tensor for s in result.fusion.strays] == ["x"]


def test_model_that_no_guess_fits_says_what_to_give() -> None:
    text = "(float[N,T] x) => (float[N,c] y) { y = MatMul(x, w) }"
    active = open_session(build(text, {"w": normal(17, 3)}))
    with pytest.raises(onnxq.DataError, match="--shape name=1x3x224x224, or real ones with --data"):
        feeds_for(active, active)
    feed, _ = feeds_for(active, active, shapes={"x": (1, 17)})
    assert feed["x"].shape == (1, 17)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch": 2}, "a batch of 2 does not fit"),
        ({"shapes": {"image": (1, 8)}}, "no input 'image'; it has x"),
        ({"data": {"image": np.zeros(1)}}, "no input 'image'; it has x"),
    ],
)
def test_options_that_do_not_fit(options: dict[str, object], message: str) -> None:
    active = open_session(build("(float[1,4] x) => (float[1,4] y) { y = Neg(x) }"))
    with pytest.raises(onnxq.OptionError, match=message):
        feeds_for(active, active, **options)  # type: ignore[arg-type]


def test_two_networks_are_told_apart(tmp_path: Path) -> None:
    path = tmp_path / "other.onnx"
    onnx.save(build("(float[1,4] z) => (float[1,4] y) { y = Neg(z) }"), str(path))
    with pytest.raises(onnxq.OptionError, match="different inputs"):
        benchmark(_digits(), path)


def test_missing_file_and_bad_options(static: Path) -> None:
    with pytest.raises(onnxq.ModelError, match="no such file"):
        benchmark(_digits(), "absent.onnx")
    with pytest.raises(onnxq.OptionError, match="at least 1"):
        benchmark(_digits(), static, threads=0)


# timing


def test_interleaved_takes_turns_and_counts_rounds() -> None:
    calls: list[str] = []
    times = interleaved(
        [lambda: calls.append("a"), lambda: calls.append("b")],
        rounds=3,
        seconds=0,
        settle=1,
        burst=2,
    )
    assert "".join(calls) == "aaabbb" + "bbbaaa" + "aaabbb" + "bbbaaa"
    assert times.shape == (3, 2, 2)
    times = interleaved([lambda: time.sleep(0.002)], rounds=2, seconds=0.01)
    assert len(times) >= 2
    assert times.min() >= 0.002


def test_spread() -> None:
    assert Spread.of(np.arange(101.0)) == Spread(50, 10, 90)
