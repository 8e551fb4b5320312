"""Which files are the model: every form that Paddle has written, and what is none."""

from __future__ import annotations

from pathlib import Path

import pytest

from onnxq.errors import ConversionError
from onnxq_paddle import matches
from onnxq_paddle.files import find_files

PIR = '{"base_code":{"magic":"pir","trainable":true,"version":4},"program":{}}'


def fill(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).write_text(PIR if name.endswith(".json") else "x")
    return folder


@pytest.mark.parametrize(
    ("names", "asked", "model", "params"),
    [
        (("inference.json", "inference.pdiparams"), ".", "inference.json", "inference.pdiparams"),
        (("a.pdmodel", "a.pdiparams"), ".", "a.pdmodel", "a.pdiparams"),
        (("a.pdmodel", "a.pdiparams"), "a", "a.pdmodel", "a.pdiparams"),
        (("a.pdmodel", "b.pdiparams"), ".", "a.pdmodel", "b.pdiparams"),
        (("a.json", "b.json", "a.pdiparams", "b.pdiparams"), "b.json", "b.json", "b.pdiparams"),
        (("a.json", "a.pdiparams", "b.pdiparams"), ".", "a.json", "a.pdiparams"),
        (("a.json", "b.json", "a.pdiparams"), "a.pdiparams", "a.json", "a.pdiparams"),
        (("__model__", "__params__"), ".", "__model__", "__params__"),
        (("__model__", "conv_w", "conv_b"), ".", "__model__", None),
        (("a.json",), ".", "a.json", None),
    ],
)
def test_found(
    tmp_path: Path, names: tuple[str, ...], asked: str, model: str, params: str | None
) -> None:
    fill(tmp_path, *names)
    found = find_files(tmp_path / asked)
    assert found.model.name == model
    assert (found.params and found.params.name) == params
    if (tmp_path / asked).exists():
        assert matches(tmp_path / asked)


def test_names_are_taken_as_given(tmp_path: Path) -> None:
    fill(tmp_path, "a.json", "b.json", "net", "weights")
    found = find_files(tmp_path, model_filename="net", params_filename="weights")
    assert (found.model.name, found.params and found.params.name) == ("net", "weights")
    with pytest.raises(ConversionError, match=r"nett: no such file \(model_filename\).*a.json"):
        find_files(tmp_path, model_filename="nett")


@pytest.mark.parametrize(
    ("names", "asked", "words"),
    [
        ((), ".", "no Paddle model in it; it holds nothing"),
        (("a.txt", "b.onnx"), ".", "no Paddle model in it; it holds a.txt, b.onnx"),
        (("a.json", "b.pdmodel"), ".", r"several models \(a.json, b.pdmodel\): name one"),
        (("a.pdmodel", "b.pdiparams", "c.pdiparams"), ".", r"\(b.pdiparams, c.pdiparams\)"),
        (("a.txt",), "a.txt", "not a Paddle model"),
        ((), "missing", "no such file or directory"),
    ],
)
def test_what_is_no_model(tmp_path: Path, names: tuple[str, ...], asked: str, words: str) -> None:
    with pytest.raises(ConversionError, match=words):
        find_files(fill(tmp_path, *names) / asked)


def test_other_json_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"layers": []}')
    assert not matches(tmp_path)
    assert not matches(tmp_path / "config.json")
