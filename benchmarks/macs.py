"""Multiplications of a network, and the share of them that onnxruntime does in int8.

Of a float model all are counted as its file has them, without optimizations. Of a quantized one
those of the integer kernels are, as onnxruntime runs it: what did not fuse counts as float.
Shapes are those of a run, from onnxruntime's profile, so that nothing has to be inferred.
"""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import onnx
import onnxruntime as ort
from onnx import numpy_helper

from benchmarks.common import Array

__all__ = ["all_macs", "integer_macs", "macs_of"]

KERNEL = "_kernel_time"
Shape = Sequence[int]


def _conv(weight: int) -> Callable[[list[Shape], Shape], int]:
    """Each output takes one product for each value of its filter, [out, in / groups, ...]."""
    return lambda inputs, output: math.prod(output) * math.prod(inputs[weight][1:])


def _conv_transpose(inputs: list[Shape], output: Shape) -> int:
    """Each input gives one product to each value of its filter, [in, out / groups, ...]."""
    return math.prod(inputs[0]) * math.prod(inputs[1][1:])


def _matmul(inputs: list[Shape], output: Shape) -> int:
    return math.prod(output) * inputs[0][-1]


def _gemm(inputs: list[Shape], output: Shape) -> int:
    """The first matrix may be transposed."""
    return math.prod(output) * (math.prod(inputs[0]) // output[0])


FLOAT: Mapping[str, Callable[[list[Shape], Shape], int]] = {
    "Conv": _conv(1),
    "ConvTranspose": _conv_transpose,
    "MatMul": _matmul,
    "Gemm": _gemm,
}
INTEGER: Mapping[str, Callable[[list[Shape], Shape], int]] = {
    "ConvInteger": _conv(1),
    "QLinearMatMul": _matmul,
    "MatMulInteger": _matmul,
    "MatMulIntegerToFloat": _matmul,
    "DynamicQuantizeMatMul": _matmul,
    "QGemm": _gemm,
}


def all_macs(model: Path, feed: Mapping[str, Array]) -> int:
    """Of a float model."""
    return macs_of(_events(model, feed, ort.GraphOptimizationLevel.ORT_DISABLE_ALL), FLOAT)


def integer_macs(model: Path, feed: Mapping[str, Array]) -> int:
    """Of a quantized model, those in int8; products with channels that a Pad adds are none."""
    added = _added_channels(model)

    def conv(inputs: list[Shape], output: Shape) -> int:
        weight = inputs[3]  # [out, in / groups, ...], also where the channels are last
        channels = weight[1] - added.get(tuple(weight), 0)
        return math.prod(output) * channels * math.prod(weight[2:])

    events = _events(model, feed, ort.GraphOptimizationLevel.ORT_ENABLE_ALL)
    return macs_of(events, {**INTEGER, "QLinearConv": conv})


def _added_channels(model: Path) -> dict[tuple[int, ...], int]:
    """Shape of a Conv's weight -> input channels that a Pad before the Conv adds."""
    graph = onnx.load(str(model), load_external_data=False).graph
    producers = {name: node for node in graph.node for name in node.output}
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    found = {}
    for node in graph.node:
        if node.op_type != "Conv":
            continue
        given, weight = (producers.get(name) for name in node.input[:2])
        pad = producers.get(given.input[0]) if given is not None else None
        if weight is not None and pad is not None and pad.op_type == "Pad":
            shape = tuple(tensors[weight.input[0]].dims)
            found[shape] = int(numpy_helper.to_array(tensors[pad.input[1]])[len(shape) + 1])
    return found


def macs_of(
    events: Sequence[Mapping[str, Any]], rules: Mapping[str, Callable[[list[Shape], Shape], int]]
) -> int:
    """Of all kernels that have a rule, in the profile of one run."""
    total = 0
    for event in events:
        args = event.get("args", {})
        rule = rules.get(str(args.get("op_name")))
        if rule is None or not str(event.get("name")).endswith(KERNEL):
            continue
        inputs = [next(iter(given.values())) for given in args["input_type_shape"]]
        total += rule(inputs, next(iter(args["output_type_shape"][0].values())))
    return total


def _events(
    model: Path, feed: Mapping[str, Array], level: ort.GraphOptimizationLevel
) -> list[dict[str, Any]]:
    with tempfile.TemporaryDirectory(prefix="onnxq-macs-") as folder:
        options = ort.SessionOptions()
        options.log_severity_level = 3
        options.graph_optimization_level = level
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(folder) / "profile")
        # weights that are packed before the run are missing from the profile
        options.add_session_config_entry("session.disable_prepacking", "1")
        active = ort.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
        active.run(None, dict(feed))
        events: list[dict[str, Any]] = json.loads(
            Path(active.end_profiling()).read_text(encoding="utf-8")
        )
    return events
