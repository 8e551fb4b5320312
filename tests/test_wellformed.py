"""Graphs that are not what ONNX says a graph is: one sentence each, in both modes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

import onnxq
from tests.both_modes import quantize, rows, w
from tests.models import build, run

FEEDS = [rows(i) for i in range(8)]
MODES = ["dynamic", "static"]


def good() -> onnx.ModelProto:
    return build(
        "(float[N,8] x) => (float[N,4] y) { a = MatMul(x, w1) b = Relu(a) y = Add(b, k) }",
        {"w1": w(8, 4), "k": w(4)},
    )


def _sparse() -> onnx.SparseTensorProto:
    values = numpy_helper.from_array(np.array([1, -2], np.float32), "w1")
    return helper.make_sparse_tensor(values, numpy_helper.from_array(np.array([6, 12])), [8, 4])


def _read_nothing(model: onnx.ModelProto) -> None:
    model.graph.node[2].input[1] = "zz"


def _read_nothing_in_a_body(model: onnx.ModelProto) -> None:
    body = onnx.parser.parse_graph("b () => (float[N,4] o) { o = Relu(zz) }")
    node = helper.make_node("If", ["c"], ["y"], then_branch=body, else_branch=body)
    model.graph.input.append(helper.make_tensor_value_info("c", TensorProto.BOOL, []))
    model.graph.node[2].CopyFrom(node)


def _cycle(model: onnx.ModelProto) -> None:
    model.graph.node[0].input[0] = "b"


def _twice(model: onnx.ModelProto) -> None:
    model.graph.node[1].output[0] = "a"


def _output(model: onnx.ModelProto) -> None:
    model.graph.output.append(helper.make_tensor_value_info("q", TensorProto.FLOAT, [1]))


def _bytes(model: onnx.ModelProto) -> None:
    model.graph.initializer[0].dims[0] = 9


def _floats(model: onnx.ModelProto) -> None:
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.float_data.extend([1.0] * 31)


def _constant(model: onnx.ModelProto) -> None:
    tensor = model.graph.initializer.pop(0)
    tensor.raw_data = tensor.raw_data[:-4]
    model.graph.node.insert(0, helper.make_node("Constant", [], ["w1"], value=tensor))


def _sparse_initializer(model: onnx.ModelProto) -> None:
    del model.graph.initializer[0]
    model.graph.sparse_initializer.append(_sparse())


def _sparse_constant(model: onnx.ModelProto) -> None:
    del model.graph.initializer[0]
    model.graph.node.insert(0, helper.make_node("Constant", [], ["w1"], sparse_value=_sparse()))


BROKEN: dict[str, tuple[Callable[[onnx.ModelProto], None], str]] = {
    "reads nothing": (_read_nothing, "Add 'n_y' reads 'zz', which is nowhere"),
    "reads nothing in a body": (_read_nothing_in_a_body, "Relu 'o' reads 'zz', which is nowhere"),
    "cycle": (_cycle, "the graph has a cycle"),
    "a name given twice": (_twice, "'a' is redeclared"),
    "an output of nothing": (_output, "output 'q' is given by no node"),
    "too few bytes": (_bytes, r"'w1' of shape \[9, 4\] has 128 bytes in place of 144"),
    "too few values": (_floats, r"'w1' of shape \[8, 4\] has 31 values in place of 32"),
    "a Constant with too few bytes": (_constant, r"has 124 bytes in place of 128"),
    "sparse initializer": (_sparse_initializer, "weight 'w1' is stored as a sparse tensor"),
    "sparse Constant": (_sparse_constant, "stored as a sparse tensor"),
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", BROKEN)
def test_broken_graph(
    name: str, mode: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    change, words = BROKEN[name]
    model = good()
    change(model)
    with pytest.raises(onnxq.ModelError, match=words) as caught:
        quantize(model, FEEDS, mode, tmp_path)
    assert "\n" not in str(caught.value)
    assert caplog.records == []
    assert not (tmp_path / f"{mode}.onnx").exists()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("in_a_body", [False, True])
def test_nodes_in_any_order(mode: str, in_a_body: bool, tmp_path: Path) -> None:
    model = good()
    if in_a_body:
        text = "b () => (float[N,4] y) { a = MatMul(x, w1) b = Relu(a) y = Add(b, k) }"
        bodies = [onnx.parser.parse_graph(text.replace("b ()", f"b{i} ()")) for i in range(2)]
        del model.graph.node[:]
        model.graph.node.append(
            helper.make_node("If", ["c"], ["y"], then_branch=bodies[0], else_branch=bodies[1])
        )
        model.graph.initializer.append(numpy_helper.from_array(np.array(True), "c"))
    mixed = onnx.ModelProto()
    mixed.CopyFrom(model)
    graphs = [mixed.graph]
    if in_a_body:
        graphs = [attribute.g for attribute in mixed.graph.node[0].attribute]
    for graph in graphs:
        nodes = list(graph.node)[::-1]
        del graph.node[:]
        graph.node.extend(nodes)
    report, path = quantize(mixed, FEEDS, mode, tmp_path)
    assert len(report.placement.weights) == (0 if in_a_body and mode == "static" else 1)
    folder = tmp_path / "ordered"
    folder.mkdir()
    _, ordered = quantize(model, FEEDS, mode, folder)
    for feed in FEEDS:
        np.testing.assert_array_equal(run(ordered, feed)[0], run(path, feed)[0])


@pytest.mark.parametrize("mode", MODES)
def test_weight_of_a_rank_that_the_op_does_not_take(mode: str, tmp_path: Path) -> None:
    for text, weight in (
        ("y = Conv(x, w1)", np.array(2, np.float32)),
        ("y = Gemm(x, w1)", w(8)),
        ("y = Gemm<transB=1>(x, w1)", w(8)),
    ):
        model = good()
        parsed = onnx.parser.parse_graph(f"g (float[N,8] x) => (float[N,4] y) {{ {text} }}")
        del model.graph.node[:]
        model.graph.node.extend(parsed.node)
        model.graph.initializer[0].CopyFrom(numpy_helper.from_array(weight, "w1"))
        with pytest.raises(onnxq.ModelError, match="onnxruntime cannot load") as caught:
            quantize(model, FEEDS, mode, tmp_path)
        assert "defect" not in str(caught.value)
        assert str(tmp_path) not in str(caught.value)


def test_ir_model_out_of_order() -> None:
    model = ir.from_proto(good())
    first = model.graph[0]
    model.graph.remove(first)
    model.graph.append(first)
    order = list(model.graph)
    assert [node.op_type for node in onnxq.quantize_dynamic(model).graph.node] == [
        *("DequantizeLinear", "MatMul", "Relu", "Add")
    ]
    assert list(model.graph) == order
