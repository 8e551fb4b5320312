"""Writing a message weight by weight: it parses to what protobuf would have written."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from onnxq.runtime import INLINE
from onnxq.streamed import contents, is_large, write_message


def written(model: ir.Model) -> bytes:
    file = io.BytesIO()
    write_message(model, file)
    return file.getvalue()


def model_with(tensors: list[TensorProto]) -> ir.Model:
    """One Identity, and initializers that nobody reads."""
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])
    result = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])
    node = helper.make_node("Identity", ["x"], ["y"])
    graph = helper.make_graph([node], "g", [value], [result], tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    helper.set_model_props(model, {"key": "value"})
    return ir.from_proto(model)


# around where a tensor becomes large, and where a length takes one byte more
SIZES = st.sampled_from([0, 1, 127, INLINE - 1, INLINE, INLINE + 1, 16_354, 16_384, 70_000])


@given(sizes=st.lists(SIZES, max_size=6), seed=st.integers(0, 9))
@settings(deadline=None, max_examples=60)
def test_it_parses_to_what_protobuf_would_write(sizes: list[int], seed: int) -> None:
    random = np.random.default_rng(seed)
    tensors = [
        numpy_helper.from_array(random.integers(0, 255, size, np.uint8), f"w{i}")
        for i, size in enumerate(sizes)
    ]
    model = model_with(tensors)
    expected = ir.to_proto(model)
    content = written(model)
    assert onnx.ModelProto.FromString(content) == expected
    assert written(model) == content  # and the model is as it was
    assert ir.to_proto(model) == expected


@pytest.mark.parametrize(
    "dtype", [ir.DataType.FLOAT, ir.DataType.INT8, ir.DataType.INT4, ir.DataType.BFLOAT16]
)
def test_lazy_tensors_of_any_type(dtype: ir.DataType) -> None:
    model = model_with([numpy_helper.from_array(np.zeros(1, np.float32), "w")])
    values = (np.arange(5001) % 7).astype(dtype.numpy())
    shape = ir.Shape([5001])
    lazy = ir.LazyTensor(lambda: ir.Tensor(values, dtype=dtype), dtype=dtype, shape=shape, name="w")
    model.graph.initializers["w"].const_value = lazy
    parsed = onnx.ModelProto.FromString(written(model))
    found = ir.from_proto(parsed.graph.initializer[0])
    assert found.dtype == dtype
    np.testing.assert_array_equal(found.numpy(), values)


def test_documentation_and_strings_stay() -> None:
    large = numpy_helper.from_array(np.ones(INLINE, np.float32), "w")
    large.doc_string = "of a weight"
    text = numpy_helper.from_array(np.array(["a" * 900, "b" * 900], object), "s")
    model = model_with([text, large])
    assert onnx.ModelProto.FromString(written(model)) == ir.to_proto(model)
    apart = [v for v in model.graph.initializers.values() if is_large(v.const_value)]
    assert [c.value.name for c in contents(apart)] == ["w"]


def test_what_lay_beside_the_model_comes_into_it_whatever_its_size(tmp_path: Path) -> None:
    """Also what a body of an If reads: nothing refers to the old file any more."""
    values = {"small": np.arange(3, dtype=np.float32), "inner": np.arange(5, dtype=np.float32)}
    body = helper.make_graph(
        [helper.make_node("Identity", ["inner"], ["z"])],
        "body",
        [],
        [helper.make_tensor_value_info("z", TensorProto.FLOAT, [5])],
        [numpy_helper.from_array(values["inner"], "inner")],
    )
    branch = helper.make_node("If", ["x"], ["y"], then_branch=body, else_branch=body)
    graph = helper.make_graph(
        [branch],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.BOOL, [])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [5])],
        [numpy_helper.from_array(values["small"], "small")],
    )
    model = ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]))
    (tmp_path / "w.bin").write_bytes(b"".join(v.tobytes() for v in values.values()))
    offsets = {"small": 0, "inner": 12}
    for each in model.graphs():
        for name, value in each.initializers.items():
            value.const_value = ir.ExternalTensor(
                "w.bin",
                offsets[name],
                values[name].nbytes,
                ir.DataType.FLOAT,
                shape=ir.Shape(values[name].shape),
                name=name,
                base_dir=tmp_path,
            )
    found = ir.from_proto(onnx.ModelProto.FromString(written(model)))
    seen = [
        (name, value.const_value)
        for each in found.graphs()
        for name, value in each.initializers.items()
    ]
    assert sorted(name for name, _ in seen) == ["inner", "inner", "small"]
    for name, tensor in seen:
        assert tensor is not None
        assert not isinstance(tensor, ir.ExternalTensor)
        np.testing.assert_array_equal(tensor.numpy(), values[name])
