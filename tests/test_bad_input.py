"""What is wrong with an input is said by the right error, and nothing is written."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import onnxq
from onnxq import errors
from tests.models import Array, Feed, build, normal, samples

quantize_static: Callable[..., Any] = onnxq.quantize_static
quantize_dynamic: Callable[..., Any] = onnxq.quantize_dynamic

TEXT = "(float[N,8] x) => (float[N,4] y) { a = MatMul(x, w) y = Add(a, b) }"
WEIGHTS = {"w": normal(8, 4), "b": normal(4)}
OLD = b"what was here before"


def model(**weights: Array) -> onnx.ModelProto:
    return build(TEXT, {**WEIGHTS, **weights})


def feeds() -> list[Feed]:
    return samples("x", (1, 8), 3)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "in" / "model.onnx"
    path.parent.mkdir()
    onnx.save(model(), str(path))
    return path


@pytest.fixture
def external(tmp_path: Path) -> Path:
    """A model whose weights are in a file beside it."""
    path = tmp_path / "in" / "model.onnx"
    path.parent.mkdir()
    onnx.save(
        model(), str(path), save_as_external_data=True, location="weights.bin", size_threshold=0
    )
    return path


@pytest.fixture
def out(tmp_path: Path) -> Path:
    path = tmp_path / "out" / "q.onnx"
    path.parent.mkdir()
    path.write_bytes(OLD)
    return path


@contextmanager
def refused(out: Path, error: type[errors.OnnxqError], *words: object) -> Iterator[None]:
    """Exactly this error, naming the thing; the old output as it was, and nothing beside it."""
    with pytest.raises(errors.OnnxqError) as caught:
        yield
    assert type(caught.value) is error
    for word in words:
        assert str(word) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert [p.name for p in out.parent.iterdir()] == [out.name]
    assert out.read_bytes() == OLD


def test_not_an_onnx_file(out: Path, source: Path) -> None:
    source.write_bytes(b"\xff\xfe this is no protobuf, and never was")
    with refused(out, errors.ModelError, source, "not an ONNX file"):
        quantize_dynamic(source, out)


def test_another_protobuf_or_empty_file(out: Path, source: Path) -> None:
    source.write_bytes(b"")
    with refused(out, errors.ModelError, source, "ONNX"):
        quantize_dynamic(source, out)


@pytest.mark.parametrize("share", [0.3, 0.6, 0.95])
def test_truncated(out: Path, source: Path, share: float) -> None:
    data = source.read_bytes()
    source.write_bytes(data[: int(len(data) * share)])
    with refused(out, errors.ModelError, source):
        quantize_dynamic(source, out)


def test_missing_file(out: Path, tmp_path: Path) -> None:
    with refused(out, errors.ModelError, tmp_path / "nowhere.onnx", "no such file"):
        quantize_dynamic(tmp_path / "nowhere.onnx", out)


def test_directory(out: Path, source: Path) -> None:
    with refused(out, errors.ModelError, source.parent, "directory"):
        quantize_dynamic(source.parent, out)


def test_external_data_is_read_where_it_is(out: Path, external: Path) -> None:
    quantize_dynamic(external, out)
    assert out.read_bytes() != OLD


def test_external_data_missing(out: Path, external: Path) -> None:
    (external.parent / "weights.bin").unlink()
    with refused(out, errors.ExternalDataError, external, "weights.bin", "missing"):
        quantize_dynamic(external, out)


def test_external_data_too_short(out: Path, external: Path) -> None:
    os.truncate(external.parent / "weights.bin", 40)
    with refused(out, errors.ExternalDataError, external, "weights.bin", "40"):
        quantize_dynamic(external, out)


@pytest.mark.parametrize("link", [False, True])
def test_external_data_outside_the_directory(out: Path, external: Path, link: bool) -> None:
    outside = external.parent.parent / "weights.bin"
    shutil.move(external.parent / "weights.bin", outside)
    if link:
        (external.parent / "weights.bin").symlink_to(outside)
    else:
        proto = onnx.load(str(external), load_external_data=False)
        for tensor in proto.graph.initializer:
            for entry in tensor.external_data:
                if entry.key == "location":
                    entry.value = "../weights.bin"
        external.write_bytes(proto.SerializeToString())
    with refused(out, errors.ExternalDataError, external, "outside"):
        quantize_dynamic(external, out)


@pytest.mark.parametrize(("domain", "static"), [("", False), ("", True), ("com.example", True)])
def test_unknown_op(out: Path, source: Path, domain: str, static: bool) -> None:
    proto = onnx.load(str(source))
    proto.graph.node[1].op_type = "Frobnicate"
    proto.graph.node[1].domain = domain
    if domain:
        proto.opset_import.append(onnx.helper.make_opsetid(domain, 1))
    source.write_bytes(proto.SerializeToString())
    with refused(out, errors.ModelError, source, "Frobnicate"):
        if static:
            quantize_static(source, out, feeds())
        else:
            quantize_dynamic(source, out)


X = np.zeros((1, 8), np.float32)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        pytest.param([{"z": X}], ["'x'", "'z'"], id="name"),
        pytest.param([{"x": X}, {"z": X}], ["'x'", "'z'"], id="name of the second"),
        pytest.param([{"x": np.zeros((1, 9), np.float32)}], ["'x'", "[1, 9]"], id="shape"),
        pytest.param([{"x": np.zeros((1, 1, 8), np.float32)}], ["'x'", "[1, 1, 8]"], id="rank"),
        pytest.param([{"x": X.astype(np.float64)}], ["'x'", "float64", "float32"], id="dtype"),
        pytest.param([{"x": X.astype(np.uint8)}], ["'x'", "uint8"], id="integers"),
        pytest.param([{"x": X}, {"x": X * np.nan}], ["'x'", "NaN", "sample 1"], id="NaN"),
        pytest.param([{"x": X + np.inf}], ["'x'", "Inf", "sample 0"], id="Inf"),
        pytest.param([], ["empty"], id="empty list"),
        pytest.param(iter([]), ["empty"], id="empty iterator"),
        pytest.param(np.zeros((0, 8), np.float32), ["empty"], id="empty array"),
        pytest.param("nowhere.npz", ["nowhere.npz"], id="missing file"),
    ],
)
def test_samples(out: Path, source: Path, data: Any, words: list[str]) -> None:
    with refused(out, errors.DataError, *words):
        quantize_static(source, out, data)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("static", [False, True])
def test_weight_that_is_not_finite(out: Path, source: Path, value: float, static: bool) -> None:
    w = WEIGHTS["w"].copy()
    w[2, 1] = value
    onnx.save(model(w=w), str(source))
    with refused(out, errors.ModelError, source, "'w'", "NaN or Inf"):
        if static:
            quantize_static(source, out, feeds())
        else:
            quantize_dynamic(source, out)


def test_weight_that_is_not_finite_is_named_where_a_later_activation_shows_it(out: Path) -> None:
    w = WEIGHTS["w"].copy()
    w[0, 0] = np.nan
    net = build(
        "(float[N,8] x) => (float[N,4] y) { a = Gemm(x, w, b) r = Relu(a) y = Gemm(r, v) }",
        {**WEIGHTS, "w": w, "v": normal(4, 4)},
    )
    with refused(out, errors.ModelError, "'w'", "NaN or Inf"):
        quantize_static(net, out, feeds())


def test_bias_that_is_not_finite_is_named(out: Path, source: Path) -> None:
    b = WEIGHTS["b"].copy()
    b[0] = np.inf
    onnx.save(model(b=b), str(source))
    with refused(out, errors.ModelError, source, "'b'", "NaN or Inf"):
        quantize_static(source, out, feeds())


def test_activation_that_is_not_finite(out: Path, tmp_path: Path) -> None:
    path = tmp_path / "log.onnx"
    net = build(
        "(float[N,8] x) => (float[N,4] y) { l = Log(x) y = MatMul(l, w) }", {"w": WEIGHTS["w"]}
    )
    onnx.save(net, str(path))
    good, bad = np.ones((1, 8), np.float32), -np.ones((1, 8), np.float32)
    with refused(out, errors.CalibrationError, path, "'l'", "sample 1"):
        quantize_static(path, out, [{"x": good}, {"x": bad}, {"x": good}])
    with refused(out, errors.DataError, "'y'", "sample 1", "NaN"):  # the one that is held out
        quantize_static(path, out, [{"x": good}, {"x": bad}])


@pytest.mark.parametrize("spelling", ["same", "relative", "link"])
def test_output_is_the_input(source: Path, monkeypatch: pytest.MonkeyPatch, spelling: str) -> None:
    before = source.read_bytes()
    target: Path = source
    if spelling == "relative":
        monkeypatch.chdir(source.parent)
        target = Path("model.onnx")
    elif spelling == "link":
        target = source.parent / "link.onnx"
        target.symlink_to(source)
    files = sorted(p.name for p in source.parent.iterdir())
    calls: list[Callable[[], Any]] = [
        lambda: quantize_dynamic(source, target),
        lambda: quantize_static(source, target, feeds()),
        lambda: quantize_dynamic(source, source.parent / "q.onnx", test_model=target),
    ]
    for quantize in calls:
        with pytest.raises(errors.OutputError, match="input itself"):
            quantize()
        assert source.read_bytes() == before
        assert sorted(p.name for p in source.parent.iterdir()) == files


def test_output_directory_does_not_exist(out: Path, source: Path) -> None:
    bad = out.parent / "nowhere" / "q.onnx"
    with refused(out, errors.OutputError, bad, "does not exist"):
        quantize_dynamic(source, bad)


def test_output_in_a_file(out: Path, source: Path) -> None:
    bad = out / "q.onnx"
    with refused(out, errors.OutputError, bad):
        quantize_dynamic(source, bad)


def test_output_is_a_directory(out: Path, source: Path) -> None:
    with refused(out, errors.OutputError, out.parent, "directory"):
        quantize_dynamic(source, out.parent)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_output_directory_is_not_writable(out: Path, source: Path) -> None:
    out.parent.chmod(0o555)
    try:
        with refused(out, errors.OutputError, out, "cannot be written"):
            quantize_dynamic(source, out)
    finally:
        out.parent.chmod(0o755)


def test_test_model_that_cannot_be_written_is_found_first(out: Path, source: Path) -> None:
    bad = out.parent / "nowhere" / "t.onnx"
    with refused(out, errors.OutputError, bad):
        quantize_dynamic(source, out, test_model=bad)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"method": "magic"}, ["'magic'", "mse", "KL"]),
        ({"target": "abacus"}, ["'abacus'", "tensorrt"]),
        ({"granularity": "row"}, ["'row'", "channel"]),
        ({"method": "hist", "percentile": 0.2}, ["0.2"]),
        ({"include": ["zz*"]}, ["'zz*'"]),
        ({"exclude_ops": ["Conv"]}, ["Conv"]),
    ],
)
def test_static_options(out: Path, source: Path, options: dict[str, Any], words: list[str]) -> None:
    with refused(out, errors.OptionError, *words):
        quantize_static(source, out, feeds(), **options)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"bits": 4}, ["bits", "8, 16", "4"]),
        ({"granularity": "row"}, ["'row'", "channel"]),
        ({"encoding": "zip"}, ["'zip'", "qdq, fold"]),
        ({"exclude": ["zz*"]}, ["'zz*'"]),
    ],
)
def test_dynamic_options(
    out: Path, source: Path, options: dict[str, Any], words: list[str]
) -> None:
    with refused(out, errors.OptionError, *words):
        quantize_dynamic(source, out, **options)


def test_neither_data_nor_statistics(out: Path, source: Path) -> None:
    with refused(out, errors.OptionError, "data", "statistics"):
        quantize_static(source, out)


def test_both_data_and_statistics(out: Path, source: Path) -> None:
    found = onnxq.calibrate(source, feeds())
    with refused(out, errors.OptionError, "data", "statistics"):
        quantize_static(source, out, feeds(), statistics=found)


def test_statistics_of_another_model(out: Path, source: Path) -> None:
    found = onnxq.calibrate(model(w=normal(8, 4, seed=5)), feeds())
    with refused(out, errors.CalibrationError, source):
        quantize_static(source, out, statistics=found)


def test_load_session_of_what_is_no_model(tmp_path: Path) -> None:
    path = tmp_path / "x.onnx"
    with pytest.raises(errors.ModelError, match="no such file"):
        onnxq.load_session(path)
    path.write_bytes(b"\xff\xff\xff nonsense")
    with pytest.raises(errors.ModelError, match=r"x\.onnx"):
        onnxq.load_session(path)
