"""The float model with other outputs: what statistics are taken of, as cheaply as it comes.

The graph's outputs become the tensors that are asked for, so that onnxruntime runs with its
optimizations on and drops what nobody needs. Each tensor is read in one of three ways:

1. An input of the model: from the feed.
2. A tensor of images of which nothing can be negative, if only its range is asked for: its maximum
   per channel (GlobalMaxPool), which onnxruntime takes in its own layout, in a fraction of the time
   that it takes to bring the tensor to the layout of ONNX and to write it.
3. All others: as a whole.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import onnx_ir as ir

from onnxq.errors import CalibrationError
from onnxq.model import constant
from onnxq.prepare import Prepared

__all__ = ["Request", "Tap", "tapped"]


@dataclass(frozen=True)
class Request:
    """What to collect: of which tensors, and whether histograms or ranges only."""

    tensors: tuple[str, ...]
    histograms: bool = True


@dataclass(frozen=True)
class Tap:
    """How a tensor is read. fetch: the output that gives it, None for an input of the model.

    maxima: the output holds the maximum of each channel.
    """

    tensor: str
    fetch: str | None
    maxima: bool = False


def tapped(
    prepared: Prepared, request: Request, inputs: Collection[str]
) -> tuple[ir.Model, tuple[Tap, ...]]:
    """A clone that gives what is asked for, and how each tensor is read from its outputs.

    Raises CalibrationError for a tensor that does not exist.
    """
    model = prepared.ir.clone()
    values = {v.name or "": v for node in model.graph for v in node.outputs}
    taps, outputs = [], []
    for name in request.tensors:
        if name in inputs:
            taps.append(Tap(name, None))
            continue
        if name not in values:
            raise CalibrationError(f"{prepared.label}: there is no tensor {name!r}")
        value = values[name]
        maxima = not request.histograms and _is_image(value) and _never_negative(value)
        output = _maxima(model.graph, value) if maxima else value
        output.type = output.type or ir.TensorType(ir.DataType.FLOAT)
        outputs.append(output)
        taps.append(Tap(name, output.name or "", maxima))
    model.graph.outputs.clear()
    model.graph.outputs.extend(outputs)
    return model, tuple(taps)


def _is_image(value: ir.Value) -> bool:
    return value.shape is not None and len(value.shape) == 4 and value.dtype == ir.DataType.FLOAT


def _never_negative(value: ir.Value) -> bool:
    """Whether the op that gives it bounds it by 0 from below."""
    node = value.producer()
    if node is None or node.domain != "":
        return False
    if node.op_type == "Clip":
        low = constant(node.inputs[1]) if len(node.inputs) > 1 else None
        return low is not None and low.size == 1 and float(low.numpy().reshape(())) >= 0.0
    return node.op_type in ("Relu", "Sigmoid", "HardSigmoid")


def _maxima(graph: ir.Graph, value: ir.Value) -> ir.Value:
    node = ir.node("GlobalMaxPool", [value], name=f"{value.name}/onnxq_max")
    node.outputs[0].name = f"{value.name}/onnxq_max"
    graph.append(node)
    return node.outputs[0]
