"""What onnxruntime makes of a model: the graph it runs, and the one its int8 fusion starts from.

Nodes without a name get that of their first output, in memory, so that each can be recognized in
the optimized graph and in a profile. Weights in other files are read from where they are, and stay
out of the optimized graph, so that models above 2 GB work too.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

import google.protobuf.message
import onnx
import onnx_ir as ir
import onnxruntime as ort

from onnxq.errors import ModelError
from onnxq.runtime import ORT_ERRORS, one_line

__all__ = ["is_dequantize", "is_quantize", "named", "open_named", "optimized", "source_of"]

MODEL_DIRECTORY = "session.model_external_initializers_file_folder_path"
WEIGHTS_FILE = "session.optimized_model_external_initializers_file_name"
DOMAINS = ("", "ai.onnx", "com.microsoft")

# Left out of the "before" graph: the int8 fusion itself, and what merges its candidates afterwards
INT8_FUSION = [
    "QDQSelectorActionTransformer",
    "QDQFinalCleanupTransformer",
    "ConvActivationFusion",
    "ConvAddActivationFusion",
    "GemmActivationFusion",
    "MatmulTransposeFusion",
    "MatMulActivationFusion",
    "BiasSoftmaxFusion",
    "BiasGeluFusion",
]


def is_quantize(node: ir.Node | None) -> bool:
    return node is not None and node.op_type == "QuantizeLinear" and node.domain in DOMAINS


def is_dequantize(node: ir.Node | None) -> bool:
    return node is not None and node.op_type == "DequantizeLinear" and node.domain in DOMAINS


def source_of(value: ir.Value | None) -> ir.Node | None:
    """The node that gives `value`, None for an input or a constant."""
    return value.producer() if value is not None else None


def named(path: Path) -> bytes:
    """The file as bytes, without its external data, in which every node has a name of its own.

    Raises ModelError if it is not an ONNX file.
    """
    if not path.is_file():
        raise ModelError(f"{path}: no such file")
    try:
        proto = onnx.load(str(path), format="protobuf", load_external_data=False)
    except (google.protobuf.message.DecodeError, OSError) as error:
        raise ModelError(f"{path}: not an ONNX file: {error}") from error
    _name(proto.graph, set())
    return bytes(proto.SerializeToString())


def _name(graph: onnx.GraphProto, taken: set[str]) -> None:
    for node in graph.node:
        base = node.name or next((o for o in node.output if o), node.op_type)
        name, i = base, 1
        while name in taken:
            name, i = f"{base}_{i}", i + 1
        taken.add(name)
        node.name = name
        for attribute in node.attribute:
            for body in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                _name(body, taken)


def open_named(
    path: Path,
    content: bytes,
    settings: ort.SessionOptions,
    entries: Mapping[str, str],
    disabled: list[str] | None = None,
) -> ort.InferenceSession:
    """A CPU session of `content`, what `named` made of `path`. Raises ModelError."""
    settings.log_severity_level = 3
    settings.add_session_config_entry(MODEL_DIRECTORY, os.path.abspath(path.parent))
    for key, value in entries.items():
        settings.add_session_config_entry(key, value)
    try:
        return ort.InferenceSession(
            content, settings, providers=["CPUExecutionProvider"], disabled_optimizers=disabled
        )
    except ORT_ERRORS as error:
        raise ModelError(f"{path}: onnxruntime cannot load it: {one_line(error)}") from error


def optimized(
    path: Path, content: bytes, entries: Mapping[str, str], *, before_int8: bool = False
) -> ir.Model:
    """The graph that onnxruntime runs, without its large weights.

    before_int8: instead, the graph in which its int8 fusion looks for what it can replace.
    Raises ModelError if onnxruntime cannot load the model.
    """
    settings = ort.SessionOptions()
    if before_int8:
        settings.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    with tempfile.TemporaryDirectory(prefix="onnxq-") as folder:
        target = Path(folder) / "optimized.onnx"
        settings.optimized_model_filepath = str(target)
        settings.add_session_config_entry(WEIGHTS_FILE, "weights.data")
        open_named(path, content, settings, entries, INT8_FUSION if before_int8 else None)
        proto = onnx.load(str(target), format="protobuf", load_external_data=False)
    return ir.from_proto(proto)
