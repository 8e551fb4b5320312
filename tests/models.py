"""Small models for tests: ONNX text and numpy weights, and what onnxruntime makes of them."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx.parser
import onnxruntime as ort
import pytest
from onnx import numpy_helper

Array = npt.NDArray[Any]
Feed = Mapping[str, Array]
ModelIn = onnx.ModelProto | bytes | str | Path


def build(
    text: str, weights: Mapping[str, Array] | None = None, *, opset: int = 17
) -> onnx.ModelProto:
    """A checked model of `(inputs) => (outputs) { nodes }`; nodes are called n_<their output>."""
    ir_version = 10 if opset >= 21 else 8 if opset >= 13 else 6
    header = f'<ir_version: {ir_version}, opset_import: ["" : {opset}]>\ng '
    model = onnx.parser.parse_model(header + text)
    for node in model.graph.node:
        node.name = f"n_{node.output[0]}"
    for name, array in (weights or {}).items():
        model.graph.initializer.append(numpy_helper.from_array(np.asarray(array), name))
    onnx.checker.check_model(model)
    return model


def opsets(*versions: int) -> list[int | pytest.ParameterSet]:
    """Parameters of a test: those that the installed onnx does not know are skipped."""
    newest = onnx.defs.onnx_opset_version()
    reason = f"onnx {onnx.__version__} knows opsets up to {newest}"
    return [
        pytest.param(version, marks=pytest.mark.skip(reason)) if version > newest else version
        for version in versions
    ]


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def normal(*shape: int, seed: int = 0, scale: float = 1.0) -> Array:
    return (rng(seed).standard_normal(shape) * scale).astype(np.float32)


def samples(name: str, shape: Sequence[int], count: int = 8, seed: int = 7) -> list[Feed]:
    """Feeds of one normally distributed input."""
    generator = rng(seed)
    return [{name: generator.standard_normal(shape).astype(np.float32)} for _ in range(count)]


def _source(model: ModelIn) -> str | bytes:
    if isinstance(model, onnx.ModelProto):
        return bytes(model.SerializeToString())
    return model if isinstance(model, bytes) else str(model)


def open_session(
    model: ModelIn,
    entries: Mapping[str, str] | None = None,
    *,
    optimize: bool = True,
    optimized: Path | None = None,
) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    if not optimize:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    for key, value in (entries or {}).items():
        options.add_session_config_entry(key, value)
    if optimized is not None:
        options.optimized_model_filepath = str(optimized)
    return ort.InferenceSession(_source(model), options, providers=["CPUExecutionProvider"])


def run(model: ModelIn, feed: Feed, *, optimize: bool = True) -> list[Array]:
    session = open_session(model, optimize=optimize)
    return [np.asarray(x) for x in session.run(None, dict(feed))]


def optimized_graph(model: ModelIn, entries: Mapping[str, str] | None = None) -> onnx.GraphProto:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "optimized.onnx"
        open_session(model, entries, optimized=path)
        return onnx.load(str(path)).graph


def optimized_ops(model: ModelIn, entries: Mapping[str, str] | None = None) -> Counter[str]:
    """Op types of the main graph as onnxruntime runs it."""
    return Counter(node.op_type for node in optimized_graph(model, entries).node)


def ops(model: ModelIn) -> Counter[str]:
    """Op types of the model as stored, bodies included."""
    return Counter(node.op_type for node in all_nodes(as_proto(model).graph))


def as_proto(model: ModelIn) -> onnx.ModelProto:
    if isinstance(model, onnx.ModelProto):
        return model
    return onnx.load_from_string(model) if isinstance(model, bytes) else onnx.load(str(model))


def all_graphs(graph: onnx.GraphProto) -> list[onnx.GraphProto]:
    found = [graph]
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                found += all_graphs(attribute.g)
    return found


def all_nodes(graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    return [node for g in all_graphs(graph) for node in g.node]


def weights_of(model: ModelIn) -> dict[str, Array]:
    """All initializers by name, bodies included."""
    return {
        tensor.name: numpy_helper.to_array(tensor)
        for graph in all_graphs(as_proto(model).graph)
        for tensor in graph.initializer
    }


def with_weights(model: onnx.ModelProto, weights: Mapping[str, Array]) -> onnx.ModelProto:
    """A copy in which the initializers of those names hold other values."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    left = set(weights)
    for graph in all_graphs(copy.graph):
        for tensor in graph.initializer:
            if tensor.name in weights:
                tensor.CopyFrom(numpy_helper.from_array(weights[tensor.name], tensor.name))
                left.discard(tensor.name)
    assert not left, f"not in the model: {left}"
    return copy


def rounded(w: Array, axis: int | None, bits: int = 8) -> Array:
    """Symmetric quantization and back, written out once more and independently of onnxq."""
    qmax = 2 ** (bits - 1) - 1
    axes = None if axis is None else tuple(i for i in range(w.ndim) if i != axis)
    scale = (np.abs(w).max(axis=axes, keepdims=True).astype(np.float64) / qmax).astype(np.float32)
    q = np.clip(np.rint(w / scale), -qmax, qmax)
    return np.asarray(q.astype(np.float32) * scale, np.float32)


def assert_close(a: Array, b: Array, relative: float = 1e-5) -> None:
    """Equal up to `relative` of the largest magnitude."""
    assert a.shape == b.shape
    assert a.dtype == b.dtype
    assert np.abs(a).max() > 0
    assert np.isfinite(a).all()
    np.testing.assert_allclose(a, b, rtol=0, atol=relative * float(np.abs(a).max()))


def sqnr(reference: Array, other: Array) -> float:
    """Decibels."""
    noise = float(np.sum((reference.astype(np.float64) - other) ** 2))
    signal = float(np.sum(reference.astype(np.float64) ** 2))
    return 10 * float(np.log10(signal / max(noise, 1e-30)))
