"""Back to Paddle: what cannot be written is one clear error, and leaves everything as it was."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

import onnxq
from onnxq.converters import from_onnx
from onnxq.errors import ConversionError, OptionError, OutputError
from onnxq_paddle import to_paddle
from onnxq_paddle.worker.emit.table import RULES
from tests.models import build, normal, samples
from tests.pages import ROOT

CONV = "(float[1, 3, 8, 8] x) => (float[1, 4, 6, 6] y) { c = Conv(x, w) y = Relu(c) }"


def conv() -> onnx.ModelProto:
    return build(CONV, {"w": normal(4, 3, 3, 3)})


def test_all_missing_operators_at_once(tmp_path: Path) -> None:
    model = build(
        "(float[4] x) => (float[4] y) { a = Bernoulli(x) b = Bernoulli(a) i = Det(m) "
        "y = Mul(b, i) }",
        {"m": np.eye(2, dtype=np.float32)},
    )
    model.graph.initializer.pop()
    model.graph.input.append(onnx.helper.make_tensor_value_info("m", 1, [2, 2]))
    with pytest.raises(ConversionError, match=r"Bernoulli \(2, as 'n_a'\), Det \(1, as 'n_i'\)"):
        to_paddle(model, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("target", ["onnxruntime-x86", "onnxruntime-arm"])
def test_asymmetric(target: str, tmp_path: Path) -> None:
    onnxq.quantize_static(
        conv(), tmp_path / "q.onnx", samples("x", (1, 3, 8, 8)), target=target, verify=False
    )
    with pytest.raises(ConversionError, match=r"not symmetric int8.*--target paddle"):
        to_paddle(tmp_path / "q.onnx", tmp_path / "out")


def test_static_as_pir(tmp_path: Path) -> None:
    data = samples("x", (1, 3, 8, 8))
    onnxq.quantize_static(conv(), tmp_path / "q.onnx", data, target="paddle", verify=False)
    with pytest.raises(ConversionError, match="write the legacy format"):
        to_paddle(tmp_path / "q.onnx", tmp_path / "out", format="pir")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("(float16[2] x) => (float16[2] y) { y = Relu(x) }", "float16"),
        ("(int16[2] x) => (int16[2] y) { y = Max(x, x) }", "int16"),
        (
            "(float[2, 1, 3] x) => (float[2, 1, 2, 4] y) { y = GRU<hidden_size = 4>(x, w, r) }",
            "resets after",
        ),
        (
            "(float[1, 1, 9, 9] x) => (float[1, 1, N, M] y) "
            "{ y = MaxPool<kernel_shape = [3, 3], dilations = [2, 2]>(x) }",
            "dilations",
        ),
    ],
)
def test_refused(text: str, reason: str, tmp_path: Path) -> None:
    weights = {"w": normal(1, 12, 3), "r": normal(1, 12, 4)} if "GRU" in text else {}
    with pytest.raises(ConversionError, match=reason):
        to_paddle(build(text, weights), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_difference_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConversionError, match=r"output 'y' differs by .* of its range"):
        to_paddle(conv(), tmp_path / "out", tolerance=1e-12)
    assert list(tmp_path.iterdir()) == []


def test_only_its_own_files(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "labels.txt").write_text("cat")
    (out / "inference.pdmodel").write_text("old")
    report = to_paddle(conv(), out)
    assert sorted(f.name for f in out.iterdir()) == [
        "inference.pdiparams",
        "inference.pdmodel",
        "labels.txt",
    ]
    assert report.model.stat().st_size > 3
    with pytest.raises(ConversionError):
        to_paddle(conv(), out, tolerance=1e-12)
    assert report.model.stat().st_size > 3
    assert list(tmp_path.iterdir()) == [out]


def test_where_it_cannot_write(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="is a file"):
        to_paddle(conv(), tmp_path / "file")
    with pytest.raises(OutputError, match="does not exist"):
        to_paddle(conv(), tmp_path / "missing" / "out")
    with pytest.raises(OptionError, match="without a path"):
        to_paddle(conv(), tmp_path / "out", model_filename="../m.pdmodel")
    with pytest.raises(OptionError, match=r"ends in \.json"):
        to_paddle(conv(), tmp_path / "out", format="pir", model_filename="m.pdmodel")
    with pytest.raises(OptionError, match="legacy and pir"):
        to_paddle(conv(), tmp_path / "out", format="json")  # type: ignore[arg-type]


def test_through_the_core(tmp_path: Path) -> None:
    onnx.save(conv(), str(tmp_path / "m.onnx"))
    options = {"model_filename": "__model__", "params_filename": "__params__", "shape": "x=1x3x8x8"}
    from_onnx(tmp_path / "m.onnx", tmp_path / "out", name="paddle", options=options)
    assert sorted(f.name for f in (tmp_path / "out").iterdir()) == ["__model__", "__params__"]


def test_page_lists_all_operators() -> None:
    page = (ROOT / "docs" / "to-paddle.md").read_text()
    listed = page.split("## Operators")[1].split("##")[0]
    names = {word.strip("`,.()") for word in listed.split() if word.startswith(("`", "(`"))}
    assert set(RULES) <= names
    assert {name for name in names if name[0].isupper()} <= set(RULES)
