"""Weights that are mapped from the file are those that protobuf reads."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, numpy_helper

import onnxq
from onnxq.errors import ModelError
from onnxq.mapped import message_of, model_of
from tests.models import build, normal, open_session

WEIGHTS = {"w": normal(512, 700, seed=0), "v": normal(700, 600, seed=1), "b": normal(600, seed=2)}


def proto() -> onnx.ModelProto:
    nodes = "a = MatMul(x, w) c = MatMul(a, v) y = Add(c, b)"
    text = f"(float[N,512] x) => (float[N,600] y) {{ {nodes} }}"
    return build(text, WEIGHTS)


@pytest.mark.parametrize("stored", ["raw", "float_data", "float16", "renamed"])
def test_mapped_model_is_the_parsed_one(tmp_path: Path, stored: str) -> None:
    path, model = tmp_path / "m.onnx", proto()
    first = model.graph.initializer[0]
    if stored == "float_data":
        values = numpy_helper.to_array(first).reshape(-1).tolist()
        first.ClearField("raw_data")
        first.float_data.extend(values)
    elif stored == "float16":
        half = numpy_helper.from_array(WEIGHTS["w"].astype(np.float16), "spare")
        model.graph.initializer.append(half)
    elif stored == "renamed":
        model.graph.doc_string, first.doc_string = "behind the weights", "of the weight"
    onnx.save(model, str(path))
    found, expected = model_of(path, "m"), ir.from_proto(onnx.load(str(path)))
    assert ir.to_proto(found) == ir.to_proto(expected)
    mapped = found.graph.initializers["v"].const_value
    assert isinstance(mapped, ir.Tensor)
    assert len(message_of(path).SerializeToString()) < path.stat().st_size - WEIGHTS["v"].nbytes


@pytest.mark.parametrize("damage", ["cut", "short weight", "two graphs"])
def test_damaged_file_is_refused_or_read_as_protobuf_does(tmp_path: Path, damage: str) -> None:
    path, model = tmp_path / "m.onnx", proto()
    if damage == "short weight":
        model.graph.initializer[1].raw_data = model.graph.initializer[1].raw_data[:-4]
    content = model.SerializeToString()
    if damage == "two graphs":  # which protobuf merges
        named = onnx.ModelProto(graph=onnx.GraphProto(name="merged"))
        path.write_bytes(content + named.SerializeToString())
        assert model_of(path, "m").graph.name == "merged"
        return
    path.write_bytes(content[: -len(content) // 3] if damage == "cut" else content)
    with pytest.raises(ModelError, match=r"truncated|bytes in place"):
        onnxq.quantize_dynamic(path, tmp_path / "q.onnx")


@pytest.mark.parametrize("bits", [8, 16])
def test_source_of_two_gigabytes_gets_a_data_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bits: int
) -> None:
    """With the limit at a size that a test can write."""
    path, plain, pair = tmp_path / "m.onnx", tmp_path / "plain.onnx", tmp_path / "pair.onnx"
    onnx.save(proto(), str(path), save_as_external_data=True, location="m.data")
    onnxq.quantize_dynamic(path, plain, bits=bits)
    monkeypatch.setattr("onnxq.pipeline.PROTOBUF_LIMIT", 1 << 20)
    onnxq.quantize_dynamic(path, pair, bits=bits)
    (data,) = tmp_path.glob("pair-*.data")
    integers = 700 * (512 + 600) * bits // 8
    assert integers <= data.stat().st_size < integers + (1 << 14)
    assert pair.stat().st_size < 1 << 16
    stored = onnx.load(str(pair), load_external_data=False).graph.initializer
    assert any(tensor.data_location == TensorProto.EXTERNAL for tensor in stored)
    feed = {"x": normal(3, 512, seed=3)}
    outputs = [open_session(file).run(None, feed)[0] for file in (plain, pair)]
    np.testing.assert_array_equal(*outputs)
