"""A Paddle model where Paddle is missing, or in a version that does not work."""

from __future__ import annotations

import importlib.util
from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest

import onnxq


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "net"
    folder.mkdir()
    (folder / "inference.json").write_text('{"base_code":{"magic":"pir","version":4},"program":{}}')
    return folder


@pytest.mark.parametrize("missing", ["paddle", "paddle2onnx"])
def test_not_installed(
    missing: str, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def find(name: str, package: str | None = None) -> ModuleSpec | None:
        return None if name == missing else ModuleSpec(name, None)

    monkeypatch.setattr(importlib.util, "find_spec", find)
    words = rf"{missing} is not installed: pip install 'onnxq\[paddle\]'"
    for call in (onnxq.quantize_dynamic, onnxq.export):
        with pytest.raises(onnxq.ConversionError, match=words):
            call(model, tmp_path / "out.onnx")
    assert not (tmp_path / "out.onnx").exists()


@pytest.mark.parametrize(
    ("package", "version", "words"),
    [
        ("paddlepaddle", "2.6.2", r"paddlepaddle 2\.6\.2 is not supported: Paddle 3\.0 and later"),
        ("paddlepaddle", "4.0.0", r"paddlepaddle 4\.0\.0 is not supported"),
        ("paddle2onnx", "1.3.1", r"paddle2onnx 1\.3\.1 is not supported: 2\.1 and later"),
        ("paddle2onnx", "2.0.9", r"paddle2onnx 2\.0\.9 is not supported: 2\.1 and later"),
    ],
)
def test_a_version_that_does_not_work(
    package: str,
    version: str,
    words: str,
    model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    site = tmp_path / "site"
    for name in ("paddle", "paddle2onnx"):
        (site / name).mkdir(parents=True)
        (site / name / "__init__.py").touch()
    for name, installed in {
        "paddlepaddle": "3.3.1",
        "paddle2onnx": "2.1.0",
        package: version,
    }.items():
        info = site / f"{name}-{installed}.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: {name}\nVersion: {installed}\n"
        )
    monkeypatch.syspath_prepend(str(site))
    with pytest.raises(onnxq.ConversionError, match=words):
        onnxq.quantize_dynamic(model, tmp_path / "out.onnx")
